"""`EvalRows`: what is evaluated, whatever file it came from, and the checks that all readers share.

Source: docs/reference/label-formats.md#traps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import InputError
from pipeline.row_checks import Verdicts, check_boxes

ScaleUnit = Literal["px", "200px"]
UNITS: Mapping[ScaleUnit, float] = {"px": 1.0, "200px": 200.0}
SMALLEST_BOX = 8.0
LARGEST_BOX_DIAGONALS = 4.0
_MIXED_UP = 0.5  # share of impossible boxes from which on the unit must be wrong


@dataclass(frozen=True)
class EvalRows:
    """Rows to evaluate; absent columns are None. Pixels are those of the full image.

    row: (N,) int64 position in the file. name: (N,) image names. center, box: (N, 2) box centre
    and (w, h). sequence: (N,) video or folder, the unit of the bootstrap. gender: (N,) of the SMPL
    body, '' if unknown. cam_int: (N, 3, 3), NaN rows where not given. poses (N, 72), betas (N, 10),
    transl (N, 3): SMPL in the camera frame. keypoints_2d: (N, 44, 3) pixels and confidence.
    keypoints_3d: (N, 44, 3) metres. skel_poses (N, 46), skel_betas (N, 10), skel_trans (N, 3),
    skel_gender: SKEL labels. reason: (N,) why a row is skipped, '' if it is not.
    files: path -> SHA-256; images: their folder or tar file, None if not known.
    """

    row: np.ndarray
    name: np.ndarray
    center: np.ndarray
    box: np.ndarray
    sequence: np.ndarray
    gender: np.ndarray
    cam_int: np.ndarray
    reason: np.ndarray
    files: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    poses: np.ndarray | None = None
    betas: np.ndarray | None = None
    transl: np.ndarray | None = None
    keypoints_2d: np.ndarray | None = None
    keypoints_3d: np.ndarray | None = None
    skel_poses: np.ndarray | None = None
    skel_betas: np.ndarray | None = None
    skel_trans: np.ndarray | None = None
    skel_gender: np.ndarray | None = None
    models: Path | None = None
    """Folder of the body models that made the rows (shards)."""
    standin: bool | None = None
    """These are the licence-free stand-in; None: not known, as for label files."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: np.ndarray) -> EvalRows:
        """Some rows (indices or mask), in order."""
        changes = {
            item.name: value[chosen]
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), np.ndarray)
        }
        return replace(self, **changes)


def boxes_of(
    label: str,
    member: str,
    scale: np.ndarray,
    center: np.ndarray,
    cam_int: np.ndarray,
    unit: ScaleUnit,
    verdicts: Verdicts,
) -> np.ndarray:
    """(N, 2) boxes in pixels. Single impossible ones skip the row, many refuse the file."""
    if scale.shape[1] not in (1, 2):
        raise InputError(
            f"{label}: member '{member}': expected one or two numbers a row, found {scale.shape[1]}"
        )
    box = np.broadcast_to(scale * UNITS[unit], (len(scale), 2)).copy()
    side = box.max(1)
    known = np.isfinite(side)
    finite = center[np.isfinite(center).all(1)]
    # No image size in these files: box centres lie in the image, so it reaches at least so far.
    reach = np.hypot(*(2 * finite.max(0))) if len(finite) else np.inf
    with np.errstate(invalid="ignore"):
        small = side < SMALLEST_BOX
        large = side > LARGEST_BOX_DIAGONALS * reach
        for bad, what in (
            (small, f"below {SMALLEST_BOX:g} px"),
            (large, f"beyond {LARGEST_BOX_DIAGONALS:g} image diagonals"),
        ):
            if bad.sum() > _MIXED_UP * known.sum():
                other = "200px" if unit == "px" else "px"
                raise InputError(
                    f"{label}: member '{member}': read in units of {unit}, {int(bad.sum())} of "
                    f"{int(known.sum())} boxes are {what}; its unit is probably {other} "
                    "(source.scale_unit of the protocol)"
                )
        verdicts.reject(small, "box_too_small")
        verdicts.reject(large, "box_too_large")
    intrinsics = cam_int if np.isfinite(cam_int).any() else None
    check_boxes(verdicts, center, side, intrinsics)
    return box


def check_body(verdicts: Verdicts, body: Mapping[str, np.ndarray]) -> None:
    """Finite is enough: the published evaluators keep every row, also shapes that a conversion
    would refuse, and so do we, or the averages would be over other rows.
    """
    for name, what in (("poses", "pose"), ("betas", "betas"), ("transl", "transl")):
        verdicts.reject(~np.isfinite(body[name]).all(1), f"non_finite_{what}")


def folders_of(names: np.ndarray) -> np.ndarray:
    """Folder of each image; with all images in one folder, each image by itself."""
    folders = np.array([name.rpartition("/")[0] for name in names.tolist()], np.str_)
    return names if len(set(folders.tolist())) < 2 else folders
