"""`hmr-skel moyo-hard`: the hard part of MOYO as a label file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.terminal import say


def moyo_hard(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="MOYO label file, npz.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    camera: Annotated[
        str, typer.Option(help="Folder of the front camera; the source leaves it open.")
    ] = "YOGI_Cam_01",
    rounding: Annotated[
        Literal["floor", "ceil", "nearest", "slice"],
        typer.Option(help="Of a quarter of a video."),
    ] = "floor",
    expected: Annotated[
        int, typer.Option(min=0, help="Number of rows that must come out; 0: any.")
    ] = 9725,
) -> None:
    """Make MOYO-HARD (one camera, middle half of every video) out of a MOYO label file."""
    from pipeline.guard import Inputs
    from stages.regressor.evaluation.moyo_hard import build_moyo_hard

    Inputs(source).check(out)
    built = build_moyo_hard(
        source, out, camera=camera, rounding=rounding, expected_rows=expected or None
    )
    by_rounding = ", ".join(f"{how} {count}" for how, count in built.counts.items())
    say(f"{out}: {len(built.rows)} rows of {built.sequences} sequences, camera {camera}")
    say(f"rows by rounding: {by_rounding}")
