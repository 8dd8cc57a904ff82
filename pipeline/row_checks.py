"""Why a row is rejected. A row's verdict depends on that row (and the image root) alone.

Thresholds: boxes below 1 px stop the published training code
(docs/reference/label-formats.md#camerahmr); 4 image diagonals is the unit mix-up rule
(#scale-unit). SMPL parameters are judged by `skel_fit.status`, as a fit judges them (filters
upstream stop at |beta| 3, #filters, which `hmr-skel lint` reports).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.given_labels import SKEL_REASONS
from pipeline.paths import Root, stays_inside
from skel_fit.rejections import MAX_TRANSLATION, SMPL_REASONS, smpl_rejections

CRASHED = "crashed"
REASONS = {
    "no_smpl_pose": "the label says that it has no valid SMPL pose",
    "no_smpl_betas": "the label says that it has no valid SMPL shape",
    "unknown_gender": "gender is not neutral, male or female (SKEL: male or female)",
    **SMPL_REASONS,
    "pose_not_rotation": "a pose matrix that is no rotation",
    "non_finite_vertices": "NaN or infinity in the vertices of a mesh",
    "vertices_out_of_range": "a mesh that is smaller than 0.2 m, larger than 4 m or 1 km away",
    "non_finite_parameter": "NaN or infinity in a parameter of the body",
    "kid_shape": "a child, whose shape needs a template that is not SMPL-X's",
    "mhr_invalid": "the label says that its parameters of MHR are not valid",
    "no_camera_pose": "the label says that it has no valid camera pose",
    "bad_extrinsics": "extrinsics that are not a finite rotation and shift, last row 0 0 0 1",
    "bad_camera": "intrinsics that are not finite, focal length <= 0, last row not 0 0 1",
    "non_finite_box": "NaN or infinity in centre or scale",
    "box_too_small": "box side below 1 px",
    "box_too_large": "box side above 4 image diagonals (100,000 px without a camera)",
    "non_finite_keypoints": "a visible keypoint that is not finite",
    "bad_image_name": "image name empty, not UTF-8, or with a control character or backslash",
    "image_path_escapes": "image name leads out of the image root",
    **SKEL_REASONS,
    CRASHED: "the row alone killed or hung its process, or raised (see `concessions/`)",
}
"""Reason code -> what it means. The first that applies, in this order, is a row's reason."""

_LIKELY = {
    "pose_out_of_range": "the poses look like degrees: expected axis-angle in radians",
    "transl_out_of_range": "the translations look like millimetres: expected metres",
    "betas_out_of_range": "the betas look like those of another body model: expected SMPL's",
    "vertices_out_of_range": "the meshes are not of a person's size: expected metres, not "
    "centimetres or millimetres",
    "box_too_small": "the boxes look like fractions of the image: expected pixels",
    "box_too_large": "the box scale looks like pixels where it should be divided by 200",
}
"""Reason -> what most often makes every row of a file fail for it."""

MESH_SIZE = (0.2, 4.0)
"""Metres: the longest side of a person's bounding box."""
_TURN_OF_PELVIS = 2.0
"""Metres: more than a camera's turn about SMPL's pelvis, R J - J, can add to a translation."""
MIN_BOX = 1.0
MAX_BOX = 1e5
MAX_BOX_DIAGONALS = 4.0
_ORTHONORMAL = 1e-3
# Control characters, backslash, undecodable bytes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\\\\\ufffd\ud800-\udfff]")
_DTYPE = f"<U{max(map(len, REASONS))}"


def check_some_accepted(rows: int, rejected: Mapping[str, int]) -> None:
    """Where not one of `rows` is accepted, it is the file that is wrong.

    rejected: rows by reason. Raises InputError that names the unit which is likely mixed up.
    """
    if not rows or sum(rejected.values()) < rows:
        return
    reason = max(rejected, key=lambda name: rejected[name])
    likely = _LIKELY.get(reason, REASONS.get(reason, reason))
    raise InputError(
        f"all {rows} rows were rejected, {rejected[reason]} of them as {reason}: {likely}; "
        "correct the label file (hmr-skel lint FILE says more) and convert again"
    )


@dataclass(frozen=True)
class Verdicts:
    """Collects reasons; the first one given to a row stays."""

    reasons: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> Verdicts:
        return cls(np.full(rows, "", _DTYPE))

    def reject(self, bad: np.ndarray, reason: str) -> None:
        """bad: (n,) bool."""
        if reason not in REASONS:
            raise KeyError(reason)
        self.reasons[bad & (self.reasons == "")] = reason


def check_body(
    verdicts: Verdicts,
    poses: np.ndarray,
    betas: np.ndarray,
    transl: np.ndarray,
    max_beta: float,
    cameras: np.ndarray | None = None,
) -> None:
    """poses: (n, 72) radians; betas: (n, 10); transl: (n, 3) metres; float64. cameras: (n, 4, 4)
    world -> camera, where bodies of a world are wanted in the camera."""
    place = in_camera(transl, cameras)
    for reason, bad in smpl_rejections(poses, betas, place, max_beta):
        verdicts.reject(bad, reason)
    if cameras is not None:  # the fit, which knows the pelvis, must not find a row farther away
        with np.errstate(over="ignore", invalid="ignore"):
            far = np.linalg.norm(place, axis=1) > MAX_TRANSLATION - _TURN_OF_PELVIS
        verdicts.reject(far, "transl_out_of_range")


def in_camera(transl: np.ndarray, cameras: np.ndarray | None) -> np.ndarray:
    """Translations (n, 3) as they are judged, metres: in the camera of a row, up to the turn of
    its pelvis about the origin, which only a body model knows; of the world where a row's camera
    is none, and without cameras."""
    if cameras is None:
        return transl
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (cameras[:, :3, :3] @ transl[:, :, None])[:, :, 0] + cameras[:, :3, 3]
    return np.where(good_extrinsics(cameras)[:, None], moved, transl)


def check_vertices(verdicts: Verdicts, vertices: np.ndarray) -> None:
    """vertices: (n, V, 3) metres."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = vertices.min(axis=1).astype(float), vertices.max(axis=1).astype(float)
        size = (high - low).max(axis=1)
        far = np.abs(np.stack((low, high))).max(axis=(0, 2)) > MAX_TRANSLATION
    finite = np.isfinite(low).all(1) & np.isfinite(high).all(1)
    verdicts.reject(~finite, "non_finite_vertices")
    small, large = MESH_SIZE
    verdicts.reject(~((size >= small) & (size <= large)) | far, "vertices_out_of_range")


def check_camera(verdicts: Verdicts, cam_int: np.ndarray) -> None:
    """cam_int: (n, 3, 3) pixels."""
    verdicts.reject(~good_cameras(cam_int), "bad_camera")


def check_extrinsics(verdicts: Verdicts, cameras: np.ndarray) -> None:
    """cameras: (n, 4, 4) world -> camera."""
    verdicts.reject(~good_extrinsics(cameras), "bad_extrinsics")


def good_extrinsics(cameras: np.ndarray) -> np.ndarray:
    """(n,) bool of (n, 4, 4): finite, a rotation, last row 0 0 0 1."""
    broken = Verdicts.empty(len(cameras))
    check_rotations(broken, cameras[:, None, :3, :3])
    last = (cameras[:, 3] == (0.0, 0.0, 0.0, 1.0)).all(1)
    return (broken.reasons == "") & last & np.isfinite(cameras).all((1, 2))


def good_cameras(cam_int: np.ndarray) -> np.ndarray:
    """(n,) bool: finite, focal lengths > 0, last row 0 0 1."""
    finite = np.isfinite(cam_int).all((1, 2))
    positive = (cam_int[:, 0, 0] > 0) & (cam_int[:, 1, 1] > 0)
    return finite & positive & (cam_int[:, 2] == (0.0, 0.0, 1.0)).all(1)


def check_boxes(
    verdicts: Verdicts, center: np.ndarray, side: np.ndarray, cam_int: np.ndarray | None
) -> None:
    """center: (n, 2) pixels; side: (n,) pixels; cam_int: (n, 3, 3) or None."""
    verdicts.reject(~(np.isfinite(center).all(1) & np.isfinite(side)), "non_finite_box")
    verdicts.reject(side < MIN_BOX, "box_too_small")
    verdicts.reject(side > largest_box(len(side), cam_int), "box_too_large")


def largest_box(rows: int, cam_int: np.ndarray | None) -> np.ndarray:
    """(rows,) pixels: 4 image diagonals, the principal point taken for the image centre."""
    limit = np.full(rows, MAX_BOX)
    if cam_int is None:
        return limit
    with np.errstate(over="ignore", invalid="ignore"):
        diagonal = 2 * np.hypot(cam_int[:, 0, 2], cam_int[:, 1, 2])
    # A principal point at the corner says nothing about the image.
    known = good_cameras(cam_int) & (diagonal > 2)
    return np.where(known, np.minimum(MAX_BOX_DIAGONALS * diagonal, limit), limit)


def check_keypoints(verdicts: Verdicts, keypoints: np.ndarray) -> None:
    """keypoints: (n, k, 3) pixels, confidence; a point of confidence 0 may be anything."""
    confidence = keypoints[:, :, 2]
    broken = ~np.isfinite(keypoints[:, :, :2]).all(2) & (confidence > 0)
    verdicts.reject((broken | ~np.isfinite(confidence)).any(1), "non_finite_keypoints")


def check_rotations(verdicts: Verdicts, matrices: np.ndarray) -> None:
    """matrices: (n, j, 3, 3)."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.einsum("njab,njcb->njac", matrices, matrices) - np.eye(3)
        bad = (np.abs(product) > _ORTHONORMAL) | (np.linalg.det(matrices) < 0)[..., None, None]
    finite = np.isfinite(matrices).all((1, 2, 3))
    verdicts.reject(~finite, "non_finite_pose")
    verdicts.reject(finite & bad.any((1, 2, 3)), "pose_not_rotation")


def check_names(verdicts: Verdicts, names: np.ndarray, image_root: Path | None) -> None:
    """names: (n,) str or bytes, relative to the image root.

    Symbolic links are followed when the root exists; nothing is opened.
    """
    root = Root(image_root) if image_root and image_root.is_dir() else None
    inside = root.holds if root else stays_inside
    text = [image_name(value) for value in names.tolist()]
    bad = np.array([not _well_formed(name) for name in text], bool)
    verdicts.reject(bad, "bad_image_name")
    escapes = [not broken and not inside(name) for name, broken in zip(text, bad, strict=True)]
    verdicts.reject(np.array(escapes, bool), "image_path_escapes")


def image_name(value: str | bytes) -> str:
    """Text of a stored name; undecodable bytes become a character that no check accepts."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _well_formed(name: str) -> bool:
    return not _UNPRINTABLE.search(name) and any(part not in ("", ".") for part in name.split("/"))
