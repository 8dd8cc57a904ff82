"""Full arrays -> the compact asset: half of the symmetric body, integers, sparse entries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from skel_fit.anatomy import SMPL_MIRROR
from skel_fit.default_body.expansion import STEP, half_vertices

WEIGHT_UNITS = 65535
CORRECTIVE_FLOOR = 5e-4  # metres per entry of R - I: smaller blocks are not stored


def _integers(values: np.ndarray, step: float | np.ndarray) -> np.ndarray:
    scaled = np.round(values / step)
    if np.abs(scaled).max() > np.iinfo(np.int16).max:
        raise ValueError("value outside the 16-bit range of the asset")
    return scaled.astype(np.int16)


def _weights(name: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    """(H, 24) rows -> the joints and shares of the entries that are not zero."""
    slots = int((weights > 0).sum(1).max())
    order = np.argsort(-weights, axis=1, kind="stable")[:, :slots]
    value = np.round(np.take_along_axis(weights, order, 1) * WEIGHT_UNITS).astype(np.uint16)
    return {
        f"{name}_joint": np.where(value > 0, order, 0).astype(np.uint8),
        f"{name}_value": value,
    }


def _regressor(name: str, regressor: np.ndarray) -> dict[str, np.ndarray]:
    joint, vertex = np.nonzero(regressor > 1e-4)
    return {
        f"{name}_joint": joint.astype(np.uint8),
        f"{name}_vertex": vertex.astype(np.uint16),
        f"{name}_value": regressor[joint, vertex].astype(np.float16),
    }


def _correctives(posedirs: np.ndarray, mirror: np.ndarray) -> dict[str, np.ndarray]:
    blocks = posedirs.reshape(-1, 3, 23, 9).transpose(0, 2, 1, 3).reshape(-1, 23, 27)
    stored = np.abs(blocks).max(2) > CORRECTIVE_FLOOR
    half = np.isin(np.arange(len(mirror)), half_vertices(mirror))
    for joint in range(1, 24):
        if SMPL_MIRROR[joint] < joint:
            stored[:, joint - 1] = False  # the right side is the mirror of the left
        elif SMPL_MIRROR[joint] == joint:
            stored[:, joint - 1] &= half
    vertex, column = np.nonzero(stored)
    return {
        "corrective_vertex": vertex.astype(np.uint16),
        "corrective_joint": (column + 1).astype(np.uint8),
        "corrective_value": _integers(blocks[stored], STEP),
    }


def pack(body: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `asset.npz`.

    body: `faces` (13776, 3), `mirror` (6890,), `smpl_weights` and `skel_weights` (6890, 24),
    `posedirs` (6890, 3, 207), `bone_faces`, `bone_joint`, `bone_other`, `bone_share`; for each sex
    `{sex}_template`, `_shapedirs`, `_regressor`, and for male and female `_anatomical`,
    `_per_joint_rot`, `_bones` (bone space, metres). Everything in the final vertex order.
    """
    mirror = body["mirror"]
    half = half_vertices(mirror)
    out: dict[str, np.ndarray] = {
        "faces": body["faces"].astype(np.uint16),
        "mirror": mirror.astype(np.uint16),
        **_weights("smpl_weight", body["smpl_weights"][half]),
        **_weights("skel_weight", body["skel_weights"][half]),
        **_correctives(body["posedirs"], mirror),
        "bone_faces": body["bone_faces"].astype(np.uint16),
        "bone_joint": body["bone_joint"].astype(np.uint8),
        "bone_other": body["bone_other"].astype(np.uint8),
        "bone_share": np.round(body["bone_share"] * 255).astype(np.uint8),
    }
    for sex in ("neutral", "male", "female"):
        directions = body[f"{sex}_shapedirs"][half]
        step = np.abs(directions).max((0, 1)) / 32000
        out[f"{sex}_template"] = _integers(body[f"{sex}_template"][half], STEP)
        out[f"{sex}_shapedirs"] = _integers(directions, step)
        out[f"{sex}_shape_step"] = step
        out |= _regressor(f"{sex}_regressor", body[f"{sex}_regressor"])
    for sex in ("male", "female"):
        out |= _regressor(f"{sex}_anatomical", body[f"{sex}_anatomical"])
        out[f"{sex}_per_joint_rot"] = body[f"{sex}_per_joint_rot"]
        out[f"{sex}_bones"] = _integers(body[f"{sex}_bones"], STEP)
    return out


def write_asset(path: Path, body: dict[str, Any]) -> None:
    """`pack(body)` as a compressed npz (numpy writes no dates, so equal arrays: equal bytes)."""
    # numpy types its keyword arguments as those of its own options, not as arrays.
    np.savez_compressed(path, **pack(body))  # type: ignore[arg-type]
