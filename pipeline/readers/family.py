"""Columns of label files -> parameters of SMPL-H and SMPL-X (`skel_fit.bodies.smpl_family`).

A full pose is the root 3, the body 63, in SMPL-X jaw, left eye and right eye 3 each, then the left
and the right hand 45 each: 156 or 165 values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.readers.labels import as_float64, flat
from pipeline.row_checks import Verdicts
from skel_fit.rejections import MAX_ROTATION

SMPLH, SMPLX = "smplh", "smplx"
WIDTHS = {156: SMPLH, 165: SMPLX}
"""Values of a full pose -> whose it is."""
_FULL = {
    SMPLH: (
        ("global_orient", 3), ("body_pose", 63), ("left_hand_pose", 45), ("right_hand_pose", 45),
    ),
    SMPLX: (
        ("global_orient", 3), ("body_pose", 63), ("jaw_pose", 3), ("leye_pose", 3),
        ("reye_pose", 3), ("left_hand_pose", 45), ("right_hand_pose", 45),
    ),
}  # fmt: skip
_FLAT_HAND = "flat_hand_mean"


@dataclass(frozen=True)
class FamilyColumns:
    """Which columns hold what of SMPL-H or SMPL-X; called, it is a `bodies.ParametersOf`.

    full: column of full poses; parts: (parameter, column) where a file has them apart. shift: a
    column of (4, 4) world to camera, of which the shift alone is added to `transl` (BEDLAM).
    flat_hands: hand poses count from the flat hand; else from the mean hand of the model.
    betas_used: so many betas are taken; None: all.
    """

    body: str
    betas: str
    transl: str | None
    full: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    shift: str | None = None
    flat_hands: bool = True
    betas_used: int | None = None

    @property
    def sizes(self) -> dict[str, int | None]:
        """Every column that is needed, as `bodies.BodyLayout.columns`."""
        widths = dict(_FULL[self.body])
        whole = {self.full: sum(widths.values()), self.betas: None, self.transl: 3, self.shift: 16}
        parts = {column: widths[name] for name, column in self.parts}
        return {name: size for name, size in (whole | parts).items() if name}

    def __call__(
        self, fields: Mapping[str, np.ndarray], verdicts: Verdicts
    ) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if self.full:
            pose, start = flat(as_float64(fields[self.full])), 0
            for name, width in _FULL[self.body]:
                found[name] = pose[:, start : start + width]
                start += width
        found |= {name: flat(as_float64(fields[column])) for name, column in self.parts}
        for pose in found.values():
            _check_angles(pose, verdicts)
        found["betas"] = flat(as_float64(fields[self.betas]))[:, : self.betas_used]
        n = len(found["betas"])
        found["transl"] = np.zeros((n, 3))
        if self.transl:
            found["transl"] = as_float64(fields[self.transl]).reshape(n, 3)
        if self.shift:
            found["transl"] = found["transl"] + as_float64(fields[self.shift])[:, :3, 3]
        found[_FLAT_HAND] = np.full(n, self.flat_hands)
        return found


def _check_angles(pose: np.ndarray, verdicts: Verdicts) -> None:
    """pose: (n, 3 k) rotation vectors; longer than two turns: no radians."""
    vectors = pose.reshape(len(pose), -1, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        far = (np.linalg.norm(vectors, axis=2) > MAX_ROTATION).any(axis=1)
    verdicts.reject(~np.isfinite(pose).all(axis=1), "non_finite_pose")
    verdicts.reject(far, "pose_out_of_range")
