"""`hmr-skel report`: a self-contained page about a converted dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from stages import options
from stages.terminal import say


def report(
    directory: options.Directory,
    models: options.Models = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also write a PNG of a few people: target, skin, skeleton.")
    ] = None,
) -> None:
    """Write DIR/report.html (residuals, limits, pictures) and bodies.html, which turns them."""
    from pipeline.dataset import open_dataset
    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from stages.drawing.render import png_bytes
    from stages.inspection.people import people, poser_of
    from stages.inspection.report_page import report_page
    from stages.inspection.statistics import collect

    target, bodies = directory / "report.html", directory / "bodies.html"
    outputs = (target, bodies, *([picture] if picture else []))
    Inputs(models).and_dataset(directory).check(*outputs)
    dataset = open_dataset(directory, allow_incomplete=True)
    columns = collect(dataset)
    poser, missing = poser_of(dataset, models)
    made = report_page(dataset, columns, poser, missing, bodies.name)
    if made.bodies is not None:
        write_bytes(bodies, made.bodies.encode("utf-8"))
    write_bytes(target, made.html.encode("utf-8"))
    say(target)
    if missing:
        say(f"no pictures: {missing}", file=sys.stderr)
    if picture is not None:
        if poser is None:
            raise InputError(f"{directory}: no picture without body models: {missing}")
        write_bytes(picture, png_bytes(people(dataset, columns, poser)))
        say(picture)
