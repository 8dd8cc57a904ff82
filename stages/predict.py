"""`hmr-skel predict`: SKEL bodies of the people in pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import Incomplete, UsageError
from stages import options
from stages.terminal import Progress, say
from stages.wording import rate

if TYPE_CHECKING:
    import numpy as np

    from stages.regressor.data.boxes import Box

_NAMED = 3  # skipped pictures in the closing line


@dataclass(frozen=True)
class Request:
    """Which pictures, by which network, and what to write where."""

    images: options.Images
    checkpoint: options.TrainedCheckpoint
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions")
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Boxes of people, JSON or CSV: docs/regressor.md#boxes.",
            show_default="who is found, with the extra photo; else whole pictures",
        ),
    ] = None
    focal: Annotated[float | None, typer.Option(help="Focal length, pixels.")] = None
    fov_checkpoint: options.FovCheckpoint = None
    models: options.Models = None
    device: options.Device = "cpu"
    save: Annotated[
        str, typer.Option(help="What to write: npz, json, csv, overlay, views, glb; with commas.")
    ] = "npz,json,overlay,glb"
    views: Annotated[
        str, typer.Option(help="Of the picture of views: front, side, top; with commas.")
    ] = "front,side"
    stored_pixels: options.StoredPixels = False
    quiet: options.Quiet = False


@options.command_line(Request)
def predict(request: Request) -> None:
    """SKEL parameters, overlay pictures and meshes of the people in pictures."""
    focal = request.focal
    if focal is not None and not focal > 0:
        raise UsageError(f"--focal {focal:g}: expected a positive number of pixels")

    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory
    from skel_fit.keypoint_body import KeypointBody
    from skel_fit.keypoints import keypoint_matrix
    from stages.regressor.evaluation import prediction
    from stages.regressor.evaluation.trained import TrainedNetwork
    from stages.regressor.network.official import load_human_fov

    wish = prediction.Wish(
        out=request.out,
        save=frozenset(_listed("--save", request.save, prediction.KINDS)),
        views=_listed("--views", request.views, tuple(prediction.VIEWS)),
        focal=focal,
        boxes=request.boxes,
        find=None if request.boxes is not None else _finder(),
        turned=not request.stored_pixels,
    )
    images = prediction.find_pictures(request.images)
    read = (request.checkpoint, request.boxes, request.fov_checkpoint, request.models)
    written = [request.out / name for name in prediction.NUMBERS]
    written += [path for kind in prediction.PICTURES for path in sorted(request.out.glob(kind))]
    Inputs(*images, *read).check(*written)
    fov = load_human_fov(request.fov_checkpoint) if request.fov_checkpoint else None
    trained = TrainedNetwork(request.checkpoint, device=request.device, focal=fov)
    folder, skel = prediction.load_body(trained, request.models)
    body = KeypointBody(skel, keypoint_matrix(folder))
    began = time.monotonic()
    with Progress("predict", len(images), "pictures", quiet=request.quiet) as progress:
        outcome = prediction.predict_pictures(
            trained, skel, body, images, wish, lambda: make_directory(request.out), progress.update
        )
    pace = len(images) / max(time.monotonic() - began, 1e-9)
    prediction.write_numbers(outcome, trained, wish)
    for image in outcome.empty:
        say(f"{image}: 0 people, the boxes name none")
    source = prediction.focal_source(trained, focal)
    say(f"{outcome.people} people in {len(images) - len(outcome.skipped)} pictures -> "
        f"{request.out} (focal length: {source}; {rate(pace, 'pictures')})")  # fmt: skip
    if trained.standin:
        say("the network was trained on the licence-free stand-in body: a demonstration, "
              "not for photographs of people", file=sys.stderr)  # fmt: skip
    if outcome.skipped:
        named = "; ".join(list(outcome.skipped.values())[:_NAMED])
        raise Incomplete(
            f"{len(outcome.skipped)} of {len(images)} pictures skipped, all in "
            f"{request.out / prediction.NUMBERS[3]}: {named}"
        )


def _finder() -> Callable[[Path, np.ndarray], list[Box]] | None:
    """Finds people where the extra is installed; None: each picture is one person's box."""
    from importlib.util import find_spec

    if find_spec("ai_edge_litert") is None:
        return None
    from stages.photo.people import Finder, boxes

    finder = Finder()
    return lambda image, picture: boxes(image, finder.find(picture))


def _listed(option: str, given: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))
    unknown = [word for word in words if word not in allowed]
    if unknown or not words:
        raise UsageError(f"{option} {given}: expected some of {', '.join(allowed)}")
    return words
