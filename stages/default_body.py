"""`hmr-skel default-body`: write the licence-free stand-in models as official-schema files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.terminal import say


def default_body(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files, made if missing.")],
) -> None:
    """Write the licence-free stand-in body models into a folder."""
    from pipeline.errors import UsageError
    from skel_fit.default_body import write_default_body
    from skel_fit.default_body.files import FILE_NAMES, RECORD

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: no folder; give --out a folder, made if missing")
    others = [out / name for name in FILE_NAMES if (out / name).exists()]
    if others and not (out / RECORD).is_file():
        raise UsageError(f"{others[0]}: a model file that is not ours; choose another folder")
    for path in write_default_body(out):
        say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    say("Stand-in body: not SMPL, not SKEL; never compare its numbers with published ones.")
