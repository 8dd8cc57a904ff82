"""`hmr-skel photo`: SKEL bodies, with error bars, of the people in photographs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.errors import Incomplete, UsageError
from stages import options
from stages.terminal import Progress, say

Focal = Annotated[
    float | None,
    typer.Option(help="Focal length, pixels.", show_default="assumed by the picture's size"),
]
Height = Annotated[
    float | None,
    typer.Option(help="How tall the person is, metres.", show_default="as it fits"),
]
Gender = Annotated[Literal["male", "female"], typer.Option(help="SKEL model.")]
Prior = Annotated[
    Literal["motion", "wide", "limits"],
    typer.Option(help="What poses to expect: as the committed motion, twice as wide, anything."),
]
BodyModels = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR|default-body",
        help="Folder with body models, or default-body: the licence-free stand-in.",
        show_default="$HMR_SKEL_MODELS, ./models, or the stand-in where there is neither",
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(help="Trained network whose answer fits start from, too.", show_default="none"),
]


@dataclass(frozen=True)
class PhotoRequest:
    """Which photographs, and what to write where."""

    images: options.Images
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("photo")
    focal: Focal = None
    height: Height = None
    gender: Gender = "male"
    prior: Prior = "wide"
    checkpoint: Start = None
    models: BodyModels = None
    device: options.Device = "cpu"
    save: Annotated[
        str, typer.Option(help="What to write: npz, csv, json, overlay, views, glb; with commas.")
    ] = "npz,csv,json,overlay,views,glb"
    stored_pixels: options.StoredPixels = False
    quiet: options.Quiet = False


@options.command_line(PhotoRequest)
def photo(request: PhotoRequest) -> None:
    """SKEL angles with standard deviations, overlays and meshes of the people in photographs."""
    from stages.photo import photographs, setting

    setting.check_numbers(request.focal, request.height)
    save = chosen(request.save, photographs.KINDS)

    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory
    from stages.photo.people import Finder
    from stages.regressor.evaluation.prediction import find_pictures

    images = find_pictures(request.images)
    out = request.out
    written = [out / name for name in photographs.NUMBERS]
    written += [path for kind in photographs.PICTURES for path in sorted(out.glob(kind))]
    Inputs(*images, request.checkpoint, request.models).check(*written)
    finder = Finder()
    made = setting.make_setting(
        request.models, request.gender, request.prior, request.height, request.checkpoint,
        request.device,
    )  # fmt: skip
    network = None
    if made.trained is not None:
        network = setting.NetworkStart(made.trained, not request.stored_pixels)
    make_directory(out)
    wish = photographs.Wish(
        out, frozenset(save), request.focal, not request.stored_pixels, made.notes
    )
    with Progress("photo", len(images), "pictures", quiet=request.quiet) as progress:
        outcome = photographs.Photographs(made.fitter, finder, network).run(
            images, wish, progress.update
        )
    for _, line in outcome.pictures.values():
        say(line)
    tell_standin(made.standin)
    statuses = [status for status, _ in outcome.pictures.values()]
    fitted = sum(row["status"] == "fitted" for row in outcome.rows)
    say(f"{fitted} people in {len(images)} pictures -> {out}")
    if missing := statuses.count(photographs.UNREADABLE):
        raise Incomplete(f"{missing} of {len(images)} pictures cannot be read")


def chosen(given: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Words of `--save`. Raises UsageError."""
    words = tuple(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))
    unknown = [word for word in words if word not in allowed]
    if unknown or not words:
        raise UsageError(f"--save {given}: expected some of {', '.join(allowed)}")
    return words


def tell_standin(standin: bool) -> None:
    """Say whose bones it was."""
    if standin:
        say("fitted with the licence-free stand-in body; --models DIR for the licensed SKEL",
            file=sys.stderr)  # fmt: skip
