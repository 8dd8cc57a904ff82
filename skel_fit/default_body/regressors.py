"""Stand-in joint regressors under the official names and shapes.

Source: docs/reference/evaluation.md#keypoints-44, #skel-keypoints and #h36m.

The official files are learned and gated. These rows are put together from the stand-in's own joints
and surface patches, so they mean the same body points, are not negative, sum to 1 and mirror.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..anatomy import LANDMARKS

REGRESSOR_FILES = (
    "SMPL_to_J19.pkl",
    "J_regressor_h36m.npy",
    "J_regressor_SMPL_MALE.pkl",
    "J_regressor_SKEL_mix_MALE.pkl",
)
PATCH = 24  # vertices averaged for a surface point

# Left-side or midline point -> parts (share, what). What: ('smpl', joint), ('skel', joint) or
# ('patch', SMPL joint, offset in metres from it). Limb joints mix the SMPL and the anatomical joint
# because the annotated points of LSP and Human3.6M lie at neither; hips move towards the outside.
_POINTS: dict[str, list[tuple]] = {
    "ankle": [(0.6, "smpl", 7), (0.4, "skel", 8)],
    "knee": [(0.6, "smpl", 4), (0.4, "skel", 7)],
    "hip": [(0.8, "smpl", 1), (0.2, "patch", 1, (0.09, 0.02, 0.0))],
    "wrist": [(0.6, "smpl", 20), (0.4, "skel", 23)],
    "elbow": [(0.6, "smpl", 18), (0.4, "skel", 21)],
    "shoulder": [(0.8, "smpl", 16), (0.2, "patch", 16, (0.0, 0.07, 0.0))],
    "neck": [(0.7, "smpl", 12), (0.3, "patch", 12, (0.0, -0.03, 0.06))],
    "head_top": [(1.0, "patch", 15, (0.0, 0.25, 0.0))],
    "pelvis": [(0.5, "smpl", 0), (0.25, "smpl", 1), (0.25, "smpl", 2)],
    "thorax": [(0.4, "smpl", 12), (0.3, "smpl", 16), (0.3, "smpl", 17)],
    "spine": [(0.5, "smpl", 3), (0.5, "smpl", 6)],
    "jaw": [(0.5, "smpl", 15), (0.5, "landmark", "nose")],
    "head": [(0.5, "smpl", 15), (0.5, "patch", 15, (0.0, 0.25, 0.0))],
}
_J19 = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle", "right wrist",
    "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist",
    "neck", "head_top", "pelvis", "thorax", "spine", "jaw", "head",
)  # fmt: skip
# Rows 1-3 are the left leg, as the published list of 14 joints names them
# (docs/reference/evaluation.md#h36m).
_H36M = (
    "pelvis", "left hip", "left knee", "left ankle", "right hip", "right knee", "right ankle",
    "spine", "thorax", "jaw", "head_top", "left shoulder", "left elbow", "left wrist",
    "right shoulder", "right elbow", "right wrist",
)  # fmt: skip
# SMPL joint -> SKEL joint where both models have the joint; only these rows are mixed.
_MIXED = {0: 0, 1: 6, 2: 1, 4: 7, 5: 2, 7: 8, 8: 3, 16: 20, 17: 15, 18: 21, 19: 16, 20: 23, 21: 18}


def stand_in_regressors(smpl: dict[str, Any], skel: dict[str, Any]) -> dict[str, np.ndarray]:
    """File name -> (rows, 6890) float64.

    smpl: the stand-in SMPL dict that gives positions and rows (neutral for the shared files);
    skel: the male SKEL dict.
    """
    mirror = np.asarray(smpl["vert_sym_idxs"])
    rows_smpl = smpl["J_regressor"].toarray()
    rows_skel = skel["J_regressor_osim"].toarray().astype(float)
    template, joints = smpl["v_template"], smpl["J"]

    def part(what: str, which: Any, offset: tuple[float, ...] = ()) -> np.ndarray:
        if what == "smpl":
            return rows_smpl[which]
        if what == "skel":
            return rows_skel[which]
        row = np.zeros(len(template))
        if what == "landmark":
            row[LANDMARKS[which]] = 1.0
        else:
            distance = np.linalg.norm(template - (joints[which] + np.array(offset)), axis=1)
            row[np.argsort(distance, kind="stable")[:PATCH]] = 1.0 / PATCH
        return row

    def row(name: str) -> np.ndarray:
        side, _, point = name.rpartition(" ")
        total = sum(share * part(*what) for share, *what in _POINTS[point])
        if side == "right":
            total = total[mirror]
        elif not side:
            total = (total + total[mirror]) / 2
        return total / total.sum()

    male = skel["J_regressor"].toarray().astype(float)
    mixed = male.copy()
    for joint, anatomical in _MIXED.items():
        mixed[joint] = (male[joint] + rows_skel[anatomical]) / 2
    matrices = (
        np.stack([row(name) for name in _J19]),
        np.stack([row(name) for name in _H36M]),
        male / male.sum(1, keepdims=True),
        mixed / mixed.sum(1, keepdims=True),
    )
    return dict(zip(REGRESSOR_FILES, matrices, strict=True))
