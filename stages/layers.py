"""`hmr-skel layers`: what each layer of a decoder looks at and estimates, person by person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stages import options
from stages.terminal import say


@dataclass(frozen=True)
class Request:
    """Which pictures, by which network."""

    images: options.Images
    checkpoint: options.TrainedCheckpoint
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("layers")
    boxes: options.Boxes = None
    fov_checkpoint: options.FovCheckpoint = None
    models: options.Models = None
    device: options.Device = "cpu"


@options.command_line(Request)
def layers(request: Request) -> None:
    """Attention maps and estimates of every decoder layer, as pictures and GIF."""
    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory, write_bytes
    from stages.drawing.pictures import side_by_side
    from stages.drawing.render import png_bytes
    from stages.regressor.data.boxes import find_boxes, read_file
    from stages.regressor.data.images import decode
    from stages.regressor.evaluation import prediction
    from stages.regressor.evaluation.layer_pictures import PersonLayers, gif_bytes
    from stages.regressor.evaluation.trained import Person, TrainedNetwork
    from stages.regressor.network.official import load_human_fov

    images = prediction.find_pictures(request.images)
    stems = prediction.stems(images)
    pictures = {image: decode(read_file(image), str(image), turned=True) for image in images}
    boxes = find_boxes(images, {k: v.shape[:2] for k, v in pictures.items()}, request.boxes)
    named = {box: f"{stems[box.image]}.{k}" for k, box in enumerate(boxes)}
    written = [request.out / f"{name}.{kind}" for name in named.values()
               for kind in ("attention.png", "layers.png", "layers.gif")]  # fmt: skip
    Inputs(*images, request.checkpoint, request.boxes, request.fov_checkpoint).check(*written)
    fov = load_human_fov(request.fov_checkpoint) if request.fov_checkpoint else None
    trained = TrainedNetwork(request.checkpoint, device=request.device, focal=fov)
    _, skel = prediction.load_body(trained, request.models)
    make_directory(request.out)
    for box, name in named.items():
        picture = pictures[box.image]
        person = Person(
            read_file(box.image), str(box.image), box.center, box.size,
            trained.intrinsics(picture, str(box.image)), turned=True,
        )  # fmt: skip
        found = PersonLayers(trained, skel, person)
        frames = found.frames()
        for kind, data in (
            ("attention.png", png_bytes(found.attention_picture())),
            ("layers.png", png_bytes(side_by_side(frames))),
            ("layers.gif", gif_bytes(frames)),
        ):
            write_bytes(request.out / f"{name}.{kind}", data)
    say(f"{len(boxes)} people -> {request.out}: attention (rows: tokens, columns: layers), layers "
        "(coarse first)")  # fmt: skip
