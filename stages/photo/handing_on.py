"""One person of a video for other programs: OpenSim model and motion, the page that plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.output_files import pretty_json, whole_folder, write_bytes
from pipeline.provenance import file_record
from skel_fit.opensim import osim_writer, tables
from skel_fit.opensim.angles import coordinates
from skel_fit.opensim.subject import GROUNDS, skin_points, subjects
from skel_fit.skel import SKEL
from stages.drawing.pictures import Poser
from stages.drawing.viewer.page import scene_page
from stages.inspection.motion import MOST_FRAMES, file_scene

_INDEX = "index.json"


def write_opensim(
    folder: Path, name: str, skel: SKEL, poses: np.ndarray, betas: np.ndarray, trans: np.ndarray,
    seconds: np.ndarray, axes: str = "camera",
) -> None:  # fmt: skip
    """A folder with model, motion and markers of poses (n, 46), betas (10,), trans (n, 3) in the
    axes of that name (`GROUNDS`) at seconds (n,)."""
    ground, kind = GROUNDS[axes], skel.template.dtype
    body = subjects(skel, torch.as_tensor(betas[None]))[0]
    shared = osim_writer.template(skel)
    values = coordinates(poses, trans, body.root(ground), "opensim")
    turned, shape, moved = (torch.as_tensor(v, dtype=kind) for v in (poses, betas[None], trans))
    markers = skin_points(skel, turned, shape, moved, shared.markers.vertices) @ ground.T
    digest = file_record(Path(skel.path)).sha256 if Path(skel.path).is_file() else ""
    model = osim_writer.osim_text(
        name, body, shared, ground, "opensim", geometry=osim_writer.GEOMETRY, model_sha256=digest,
        standin=bool(skel.standin),
    )  # fmt: skip
    with whole_folder(folder, _INDEX) as inside:
        bones = inside / osim_writer.GEOMETRY
        bones.mkdir()
        texts = {
            **{f"{osim_writer.GEOMETRY}/{bone}.obj": text for bone, text in shared.bones.items()},
            f"{name}.osim": model,
            f"{name}.mot": tables.mot_text(name, seconds, values),
            f"{name}.trc": tables.trc_text(f"{name}.trc", seconds, shared.markers.names, markers),
        }
        for path, text in texts.items():
            (inside / path).write_text(text, encoding="utf-8", newline="\n")
        (inside / _INDEX).write_bytes(pretty_json({"files": sorted(texts), "axes": axes}))


def write_view(
    page: Path, parameters: Path, models: Path, gender: str, rate: float, up: str = "camera"
) -> str:
    """The page that plays a file of parameters; a remark if it is only its beginning."""
    poser = Poser(models)
    with np.load(parameters, allow_pickle=False) as file:
        frames = len(file["poses"])
        if frames > MOST_FRAMES:
            return f"{frames} frames are too many for one page ({MOST_FRAMES}): none was written"
    html = scene_page(file_scene(parameters, poser, gender, rate, up)).html
    write_bytes(page, html.encode("utf-8"))
    return ""
