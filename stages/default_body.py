"""`hmr-skel default-body`: write the licence-free stand-in models as official-schema files."""

from __future__ import annotations

from pathlib import Path

import typer

from skel_fit.default_body import write_default_body


def default_body(out: Path) -> None:
    """Write the stand-in pair (SMPL, SKEL and joint regressors) into the folder `out`."""
    for path in write_default_body(out):
        typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    typer.echo("Stand-in body: not SMPL, not SKEL; never compare its numbers with published ones.")
