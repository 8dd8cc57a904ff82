"""`hmr-skel view`: a converted sequence, or rows, as one HTML page that plays in a browser."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.errors import InputError
from stages import options
from stages.terminal import say

if TYPE_CHECKING:
    from stages.drawing.viewer.page import Scene


@dataclass(frozen=True)
class ViewRequest:
    """What to show."""

    given: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE",
            help="Output of a conversion, or an npz of SKEL poses, betas, trans.",
        ),
    ]
    out: Annotated[Path, typer.Option(help="The page to write.")]
    rows: Annotated[str | None, typer.Option(help="Rows A:B of the dataset.")] = None
    sequence: Annotated[str | None, typer.Option(help="Name of a sequence.")] = None
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, max=1000, help="Frames a second.", show_default="stored, or 30"),
    ] = None
    up: Annotated[
        Literal["auto", "camera", "y-up", "z-up"],
        typer.Option(help="Which way is up; auto: as recorded, camera (y down) for a FILE."),
    ] = "auto"
    gender: Annotated[
        Literal["male", "female"] | None,
        typer.Option(help="SKEL model of a FILE.", show_default="as FILE says, else male"),
    ] = None
    target: Annotated[bool, typer.Option(help="With the SMPL surface that was fitted.")] = True
    models: Annotated[
        Path | None,
        typer.Option(
            help="Folder with body models; default-body: the stand-in.",
            show_default="the data set's, or $HMR_SKEL_MODELS or ./models",
        ),
    ] = None


@options.command_line(ViewRequest)
def view(request: ViewRequest) -> None:
    """Write a page that plays bodies, bones and angle curves; it needs no server and no network."""
    from dataclasses import replace

    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from stages.drawing.viewer.page import scene_page
    from stages.wording import size

    inputs = Inputs(request.given if request.given.is_file() else None, request.models)
    inputs.and_dataset(request.given).check(request.out)
    scene = _of_file(request) if request.given.is_file() else _of_dataset(request)
    if not request.target:
        shown = tuple(surface for surface in scene.surfaces if surface.name != "target")
        scene = replace(scene, surfaces=shown)
    written = scene_page(scene)
    data = written.html.encode("utf-8")
    write_bytes(request.out, data)
    worst = max(largest for _, largest in written.deviations.values())
    say(f"{scene.title}: {scene.about}", file=sys.stderr)
    say(
        f"{request.out} ({size(len(data))}; packing moves no vertex by more than "
        f"{1000 * worst:.2f} mm)"
    )


def _of_dataset(request: ViewRequest) -> Scene:
    from pipeline.dataset import open_dataset
    from stages.inspection.motion import dataset_scene, shown_rows
    from stages.inspection.people import poser_of

    dataset = open_dataset(request.given, allow_incomplete=True)
    choice = shown_rows(dataset, request.rows, request.sequence)
    poser, missing = poser_of(dataset, request.models)
    if poser is None:
        raise InputError(f"{request.given}: nothing to show without body models: {missing}")
    return dataset_scene(dataset, poser, choice, request.rate, request.up)


def _of_file(request: ViewRequest) -> Scene:
    from pipeline.manifest import models_directory
    from stages.drawing.pictures import Poser
    from stages.inspection.motion import file_scene

    poser = Poser(models_directory("licensed", request.models))
    return file_scene(request.given, poser, request.gender, request.rate, request.up)
