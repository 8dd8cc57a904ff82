"""`hmr-skel export`: a converted dataset for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stages import options
from stages.terminal import aligned, print_json, say
from stages.wording import count, counts

if TYPE_CHECKING:
    from pipeline.exporters.base import Exported


def export(
    directory: options.Directory,
    out: Annotated[Path, typer.Option("--out", help="The file or folder to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="hmr-skel-npz: what SKEL-CF reads; parquet: all columns; webdataset: pictures "
            "and labels; csv: a table; opensim: models and motions; glb, bvh: one moving person "
            "as a rig; smpl: one as a .smpl file."
        ),
    ] = "hmr-skel-npz",
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
    rows: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Motion formats: rows A up to but without B."),
    ] = None,
    sequence: Annotated[str | None, typer.Option(help="Motion formats: this sequence.")] = None,
    angles: Annotated[
        Literal["opensim", "skel"] | None,
        typer.Option(help="opensim: order of three-angle joints.", show_default="opensim"),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE.osim", help="opensim: give the motion to this model instead."),
    ] = None,
    ground: Annotated[
        Literal["auto", "camera", "y-up", "z-up", "none"] | None,
        typer.Option(help="Motion formats: which way is up in the data.", show_default="auto"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="HZ",
            help="Motion formats: frames a second.",
            show_default="of the data, else 30",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="parquet, webdataset: these columns only."),
    ] = None,
    extra: Annotated[
        str | None, typer.Option(metavar="A,B", help="csv: further columns of one value.")
    ] = None,
    per_file: Annotated[
        int | None,
        typer.Option(
            help="parquet: rows of a file; webdataset: pictures of a tar.",
            show_default="100000, 1000",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|TAR",
            help="webdataset: the pictures.",
            show_default="where the conversion had them",
        ),
    ] = None,
    models: options.Models = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a converted dataset for other programs."""
    from stages.export_formats import export_dataset

    exported = export_dataset(
        directory, out, format=format, models=models,
        keypoints3d=keypoints3d, rejected=rejected, max_error=max_error, rows=rows,
        sequence=sequence, angles=angles, into=into, ground=ground, rate=rate,
        columns=columns, extra=extra, per_file=per_file, images=images,
    )  # fmt: skip
    if as_json:
        print_json(exported.to_json())
    else:
        say(_table(exported))


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
