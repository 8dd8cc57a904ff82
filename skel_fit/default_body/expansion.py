"""The committed asset (`asset.npz`) back to the arrays of the official SMPL and SKEL schemas.

The asset keeps one half of the symmetric body in integers; everything here is plain numpy/scipy and
takes a fraction of a second. `build/pack.py` is the inverse.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import JOINT_NAMES, PARENTS, POSE_NAMES, SKEL_MIRROR, SMPL_MIRROR, SMPL_PARENTS

ASSET = Path(__file__).with_name("asset.npz")
STANDIN_CALIBRATION = Path(__file__).with_name("calibration.npz")
"""Residual fields of the pair, made by `hmr-skel calibrate --stand-in` (`skel_fit.calibration`)."""
STANDIN = (
    "Licence-free stand-in (MakeHuman CC0 body, Rajagopal 2015 MIT bones; see NOTICE of hmr-skel). "
    "Not SMPL, not SKEL: numbers made with it cannot be compared with published ones."
)
STEP = 5e-5  # metres per integer step of templates, correctives and bones
N_VERTICES = 6890
FLIP = np.array([-1.0, 1.0, 1.0])  # mirror of a point: x is left
# Mirror of a flattened (3, 3) rotation: R -> S R S with S = diag(-1, 1, 1).
FLIP_MATRIX = np.outer(FLIP, FLIP).ravel()
GENDERS = {"smpl": ("neutral", "male", "female"), "skel": ("male", "female")}


def asset_sha256() -> str:
    """SHA-256 (hex) of the committed asset."""
    return hashlib.sha256(ASSET.read_bytes()).hexdigest()


def load_asset(path: Path = ASSET) -> dict[str, np.ndarray]:
    """The arrays of an `asset.npz` as stored."""
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def half_vertices(mirror: np.ndarray) -> np.ndarray:
    """The vertices that are stored: of each mirror pair the lower number, and the midline."""
    return np.flatnonzero(mirror >= np.arange(len(mirror)))


def _whole(half: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """(H, 3, ...) vectors of the stored half -> (6890, 3, ...), x = 0 on the midline."""
    kept = half_vertices(mirror)
    sign = FLIP.reshape(1, 3, *[1] * (half.ndim - 2))
    out = np.empty((len(mirror), *half.shape[1:]))
    out[mirror[kept]] = half * sign
    out[kept] = half
    out[mirror == np.arange(len(mirror)), 0] = 0.0
    return out


def _template(asset: dict[str, np.ndarray], gender: str) -> tuple[np.ndarray, np.ndarray]:
    """`v_template` (6890, 3) and `shapedirs` (6890, 3, 10), metres."""
    mirror = asset["mirror"].astype(int)
    vertices = _whole(asset[f"{gender}_template"] * STEP, mirror)
    directions = _whole(asset[f"{gender}_shapedirs"] * asset[f"{gender}_shape_step"], mirror)
    return vertices, directions


def _weights(asset: dict[str, np.ndarray], name: str, joint_mirror: np.ndarray) -> np.ndarray:
    """(6890, 24) skinning weights: rows sum to 1, symmetric."""
    mirror = asset["mirror"].astype(int)
    kept = half_vertices(mirror)
    half = np.zeros((len(kept), 24))
    rows = np.arange(len(kept))[:, None]
    # np.add.at: unused slots point at joint 0 with value 0.
    np.add.at(half, (rows, asset[f"{name}_joint"]), asset[f"{name}_value"].astype(float))
    half /= half.sum(1, keepdims=True)
    weights = np.zeros((len(mirror), 24))
    weights[kept] += half
    weights[mirror[kept]] += half[:, joint_mirror]
    return weights / weights.sum(1, keepdims=True)


def _regressor(asset: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(24, 6890) joint regressor: not negative, rows sum to 1."""
    out = np.zeros((24, N_VERTICES))
    out[asset[f"{name}_joint"], asset[f"{name}_vertex"]] = asset[f"{name}_value"]
    return out / out.sum(1, keepdims=True)


def _correctives(asset: dict[str, np.ndarray]) -> np.ndarray:
    """`posedirs` (6890, 3, 207), metres per entry of R - I."""
    mirror = asset["mirror"].astype(int)
    vertex, joint = asset["corrective_vertex"].astype(int), asset["corrective_joint"].astype(int)
    block = asset["corrective_value"].reshape(-1, 3, 9) * STEP
    out = np.zeros((len(mirror), 23, 3, 9))
    # Stored: the left joint of a pair, and the stored half of joints on the midline.
    out[mirror[vertex], SMPL_MIRROR[joint] - 1] = block * FLIP[:, None] * FLIP_MATRIX
    out[vertex, joint - 1] = block
    return out.transpose(0, 2, 1, 3).reshape(len(mirror), 3, 207)


def _smpl(asset: dict[str, np.ndarray], gender: str) -> dict[str, Any]:
    from scipy.sparse import csc_matrix  # late: a digest needs none

    vertices, directions = _template(asset, gender)
    regressor = _regressor(asset, f"{gender}_regressor")
    tree = np.stack([SMPL_PARENTS, np.arange(24)]).astype(np.int64)
    return {
        "v_template": vertices,
        "f": asset["faces"].astype(np.uint32),
        "shapedirs": directions,
        "posedirs": _correctives(asset),
        "weights": _weights(asset, "smpl_weight", SMPL_MIRROR),
        "J_regressor": csc_matrix(regressor),
        "J": regressor @ vertices,
        "kintree_table": tree.astype(np.uint32),  # root parent: -1 as 4294967295
        "vert_sym_idxs": asset["mirror"].astype(np.int64),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "standin": STANDIN,
    }


def relative_frames(per_joint_rot: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """`apose_rel_transfo` (24, 4, 4) such that nothing is turned or scaled at betas = 0.

    per_joint_rot: (24, 3, 3) bone space -> body frame; joints: (24, 3) rest joints, metres.
    Rotation part: the bone frame seen from its parent's. Three places follow from SKEL's forward
    pass (skel-model.md#bone-orientation) instead of from the tree:
    - hands turn about axes of the *ulna* frame (wrist flexion and deviation fall on the right axes
      although the radius is shown pronated), and their offset is read in that frame as well;
    - the head's offset must point along lumbar -> thorax, the segment SKEL aligns the thorax with.
    """
    out = np.tile(np.eye(4), (24, 1, 1))
    out[0, :3, 3] = joints[0]
    frame_of = np.array(PARENTS)
    frame_of[[18, 23]] = 16, 21
    for joint in range(1, 24):
        frame = per_joint_rot[frame_of[joint]]
        offset = joints[joint] - joints[PARENTS[joint]]
        if joint == 13:
            spine = joints[12] - joints[11]
            offset = spine / np.linalg.norm(spine) * np.linalg.norm(offset)
        out[joint, :3, :3] = frame.T @ per_joint_rot[joint]
        out[joint, :3, 3] = frame.T @ offset
    return out


def _skel(asset: dict[str, np.ndarray], gender: str) -> dict[str, Any]:
    from scipy.sparse import coo_matrix

    vertices, directions = _template(asset, gender)
    # Rounded first: rest joints and frames must belong to the float32 template that is stored.
    vertices = vertices.astype(np.float32)
    anatomical = _regressor(asset, f"{gender}_anatomical").astype(np.float32)
    rotations = asset[f"{gender}_per_joint_rot"]
    joints = anatomical.astype(float) @ vertices.astype(float)
    rest = np.tile(np.eye(4), (24, 1, 1))
    rest[:, :3, :3], rest[:, :3, 3] = rotations, joints
    member, other = asset["bone_joint"].astype(int), asset["bone_other"].astype(int)
    share = asset["bone_share"] / 255.0
    bones = np.arange(len(member))
    shape = (len(member), 24)
    smooth = coo_matrix(
        (np.r_[1 - share, share], (np.r_[bones, bones], np.r_[member, other])), shape=shape
    )
    smooth.sum_duplicates()
    smooth.eliminate_zeros()
    float32 = np.float32
    return {
        "version": "1.1.1",
        "gender": gender,
        "bone_names": list(JOINT_NAMES),
        "joints_name": list(JOINT_NAMES),
        "pose_params_name": list(POSE_NAMES),
        "skin_template_v": vertices,
        "skin_template_f": asset["faces"].astype(np.int64),
        "skel_template_v": (asset[f"{gender}_bones"] * STEP).astype(float32),
        "skel_template_f": asset["bone_faces"].astype(np.int64),
        "shapedirs": directions.astype(float32),
        "posedirs": _correctives(asset).astype(float32),
        "J_regressor": coo_matrix(_regressor(asset, f"{gender}_regressor").astype(float32)),
        "J_regressor_osim": coo_matrix(anatomical),
        "per_joint_rot": rotations.astype(float32),
        "skin_weights": coo_matrix(_weights(asset, "skel_weight", SKEL_MIRROR).astype(float32)),
        "skel_weights": smooth.astype(float32),
        "skel_weights_rigid": coo_matrix((np.ones(len(member), float32), (bones, member)), shape),
        "osim_kintree_table": np.stack([PARENTS, np.arange(24)]).astype(np.int64),
        # Kept by official readers, never used (skel-model.md#skel-files).
        "parameter_mapping": np.zeros((46, 2), np.int64),
        "tpose_transfo": rest.astype(float32),
        "apose_transfo": rest.astype(float32),
        "apose_rel_transfo": relative_frames(rotations, joints).astype(float32),
        "standin": STANDIN,
    }


def default_body_arrays(kind: str, gender: str, asset: Path = ASSET) -> dict[str, Any]:
    """One stand-in model as the dict of the official pickle.

    kind 'smpl' (gender neutral, male, female; schema skel-model.md#smpl-files) or 'skel' (male,
    female; schema #skel-files). Metres, T pose, +x to the subject's left, +y up, +z forward. The
    key `standin` tells readers what it is. asset: another file than the committed one, as `build/`
    makes them. Raises ValueError for any other kind or gender.
    """
    if kind not in GENDERS:
        raise ValueError(f"kind {kind!r}: expected 'smpl' or 'skel'")
    if gender not in GENDERS[kind]:
        raise ValueError(f"{kind} gender {gender!r}: expected one of {', '.join(GENDERS[kind])}")
    return (_smpl if kind == "smpl" else _skel)(load_asset(asset), gender)
