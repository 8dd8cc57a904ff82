"""`hmr-skel export`: a converted dataset as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stages import options
from stages.formats import count, counts
from stages.terminal import aligned, print_json

if TYPE_CHECKING:
    from pipeline.exporters.base import Exported


def export(
    directory: options.Directory,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    format: Annotated[str, typer.Option(help="hmr-skel-npz: what SKEL-CF reads.")] = "hmr-skel-npz",
    keypoints3d: Annotated[
        Literal["add", "replace", "none"] | None,
        typer.Option(help="The 44 keypoints; add: where the labels have none.", show_default="add"),
    ] = None,
    rejected: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="Rows without a fit.", show_default="drop"),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Leave out rows with a mean error above this, mm.")
    ] = None,
    models: options.Models = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a converted dataset as a file for other programs."""
    from stages.exporting import export_dataset

    exported = export_dataset(
        directory, out, format=format, models=models,
        keypoints3d=keypoints3d, rejected=rejected, max_error=max_error,
    )  # fmt: skip
    if as_json:
        print_json(exported.to_json())
    else:
        print(_table(exported))


def _table(exported: Exported) -> str:
    lines = [
        ("file", str(exported.path)),
        ("rows", count(exported.rows)),
        ("left out", counts(exported.left_out)),
        ("columns", ", ".join(exported.columns)),
    ]
    if exported.attention:
        lines.append(("attention", exported.attention))
    return aligned(lines)
