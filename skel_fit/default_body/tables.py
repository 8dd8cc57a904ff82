"""Trees and vertex numbers that both the stand-in and the official files agree on."""

from __future__ import annotations

import numpy as np

from .. import pose_table

SMPL_PARENTS = np.array(pose_table.SMPL_PARENTS)
# Joint on the other side of the body (itself on the midline).
SMPL_MIRROR = np.array(
    [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22]
)

SKEL_JOINTS = pose_table.JOINT_NAMES
SKEL_PARENTS = np.array(pose_table.PARENTS)
SKEL_MIRROR = np.array(
    [0, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 11, 12, 13, 19, 20, 21, 22, 23, 14, 15, 16, 17, 18]
)

# Vertices that other programs address by number; the builder orders the mesh so that the number
# means the same place as on SMPL (numbers only: no geometry is taken from anywhere).
#   smplx and the 44-keypoint layout (evaluation.md 2.1): face, finger tips, toes and heels.
#   SKEL's bone scaling (skel-model.md 3.10): it divides by the distance of the two vertices of a
#   pair along one axis, so the pair must be well apart along it: 410/384 z and 414/384 y of the
#   head, 196/3708 x of the head, 6179/6137 y and 5670/5906 x of the right hand, 3027/3495 and
#   3027/3506 z of the chest.
LANDMARKS = {
    "nose": 332, "right_eye": 6260, "left_eye": 2800, "right_ear": 4071, "left_ear": 583,
    "right_thumb": 6191, "right_index": 5782, "right_middle": 5905, "right_ring": 6016,
    "right_pinky": 6133,
    "left_thumb": 2746, "left_index": 2319, "left_middle": 2445, "left_ring": 2556,
    "left_pinky": 2673,
    "left_big_toe": 3216, "left_small_toe": 3226, "left_heel": 3387,
    "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
    "face_front": 410, "skull_back": 384, "head_top": 414, "left_temple": 196,
    "right_temple": 3708, "right_hand_back": 6179, "right_hand_palm": 6137,
    "right_wrist_top": 5670, "right_middle_end": 5906,
    "thorax_back": 3027, "breastbone": 3495, "breastbone_upper": 3506,
}  # fmt: skip
