"""Draw the committed takes as a contact sheet, to look at: `python -m tools.contact_sheet OUT.png`.

Each take is a row of twelve bodies through time, seen from the front left of the first frame, the
camera moving with the person.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.takes import Take, takes
from skel_fit.default_body import default_body_directory
from skel_fit.models import BodyModels
from stages.drawing.pictures import meshes_picture, side_by_side
from stages.drawing.render import TARGET_COLOR, Mesh, png_bytes

SIZE, COLUMNS, DEGREES = 190, 12, -35.0


def row(take: Take, models: BodyModels) -> NDArray[np.uint8]:
    """Bodies of one take beside one another."""
    chosen = np.linspace(0, len(take.poses) - 1, COLUMNS).astype(int)
    smpl = models.model("smpl", "neutral", "float32")
    poses = torch.as_tensor(take.poses[chosen], dtype=torch.float32)
    with torch.no_grad():
        skin = smpl(global_orient=poses[:, :3], body_pose=poses[:, 3:],
                    betas=torch.zeros(COLUMNS, 10)).vertices.numpy()  # fmt: skip
    # pictures look along +z with y down: turn the world upside down about x
    turned = skin * (1.0, -1.0, -1.0)
    pictures = [meshes_picture([Mesh(v, smpl.faces, TARGET_COLOR)], DEGREES, SIZE) for v in turned]
    return side_by_side(pictures, gap=2)


def main() -> None:
    models = BodyModels(Path(default_body_directory()))
    rows = [row(take, models) for take in takes()]
    Path(sys.argv[1]).write_bytes(png_bytes(np.concatenate(rows)))


if __name__ == "__main__":
    main()
