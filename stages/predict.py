"""`hmr-skel predict`: SKEL bodies of the people in pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError
from stages import options
from stages.terminal import say


@dataclass(frozen=True)
class Request:
    """Which pictures, by which network, and what to write where."""

    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")]
    checkpoint: Annotated[Path, typer.Option(help="best.pt of a training folder.")]
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions")
    boxes: Annotated[
        Path | None,
        typer.Option(help="JSON or CSV of person boxes.", show_default="whole pictures"),
    ] = None
    focal: Annotated[float | None, typer.Option(help="Focal length, pixels.")] = None
    fov_checkpoint: options.FovCheckpoint = None
    models: options.Models = None
    device: options.Device = "cpu"
    meshes: Annotated[bool, typer.Option(help="Also write a GLB per person.")] = True


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
    from stages.regressor.data.boxes import find_boxes, read_file
    from stages.regressor.data.images import decode
    from stages.regressor.evaluation import prediction
    from stages.regressor.evaluation.trained import TrainedNetwork
    from stages.regressor.network.official import load_human_fov

    read = (request.checkpoint, request.boxes, request.fov_checkpoint, request.models)
    written = [request.out / name for name in prediction.NUMBERS]
    written += [path for kind in prediction.PICTURES for path in sorted(request.out.glob(kind))]
    Inputs(*request.images, *read).check(*written)
    fov = load_human_fov(request.fov_checkpoint) if request.fov_checkpoint else None
    trained = TrainedNetwork(request.checkpoint, device=request.device, focal=fov)
    images = list(dict.fromkeys(request.images))
    folder, skel = prediction.load_body(trained, request.models)
    body = KeypointBody(skel, keypoint_matrix(folder))
    pictures = {image: read_file(image) for image in images}
    sizes = {image: decode(data, str(image)).shape[:2] for image, data in pictures.items()}
    boxes = find_boxes(images, sizes, request.boxes)
    results = prediction.predict_people(trained, body, pictures, boxes, focal)
    make_directory(request.out)
    prediction.write_numbers(request.out, results, trained, focal)
    prediction.write_pictures(request.out, skel, pictures, results, meshes=request.meshes)
    for image in images:
        if not any(box.image == image for box in boxes):
            say(f"{image}: 0 people, the boxes name none")
    source = prediction.focal_source(trained, focal)
    say(f"{len(boxes)} people in {len(images)} pictures -> {request.out} (focal length: {source})")
    if trained.standin:
        say("the network was trained on the licence-free stand-in body: a demonstration, "
              "not for photographs of people", file=sys.stderr)  # fmt: skip
