"""Anny's people (Apache-2.0, anny 0.6.2) as foreign shapes: no dependency, named by a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.demo import demo_motion
from pipeline.takes import takes
from skel_fit import load_skel
from skel_fit.bodies import fit_identity, fit_skel_to_surface
from skel_fit.bodies.map_files import find_map
from skel_fit.bodies.surface_fit import map_weights
from skel_fit.default_body import default_body_directory
from skel_fit.rotations import axis_angle_to_matrix

Row = tuple[str, str, str, bool | None]
"""What, bar, measured, met; None: no bar."""

PEOPLE = 64
_BONES = {
    "Hips": 0, "Spine1": 3, "Spine2": 6, "Chest": 9, "Neck1": 12, "Head": 15, "LeftLeg": 1,
    "RightLeg": 2, "LeftShin": 4, "RightShin": 5, "LeftFoot": 7, "RightFoot": 8,
    "LeftShoulder": 13, "RightShoulder": 14, "LeftArm": 16, "RightArm": 17, "LeftForeArm": 18,
    "RightForeArm": 19, "LeftHand": 20, "RightHand": 21,
}  # fmt: skip
"""Bone of Anny's rig `soma` -> SMPL joint with the same meaning."""
_NOISY = (1, 2, 4, 5, 16, 17, 18, 19, 3, 6)


class Anny:
    """Random adults of one topology of the package, the same ones every time.

    motion: (F, 72) SMPL poses, rad, whose frames they take."""

    def __init__(self, folder: Path, topology: str, motion: np.ndarray) -> None:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # behind our own packages
        import anny

        self.body = anny.Anny(topology=topology, rig="soma", local_changes="none")
        rng = np.random.default_rng(0)
        self.phenotypes = {
            name: np.clip(rng.normal(0.5, 0.2, PEOPLE), 0.0, 1.0)
            for name in ("gender", "muscle", "weight", "proportions")
        }
        self.phenotypes["age"] = rng.uniform(0.5, 0.95, PEOPLE)
        self.phenotypes["height"] = rng.uniform(0.25, 0.65, PEOPLE)
        self.poses = _poses(rng, motion)

    def posed(self) -> np.ndarray:
        """(64, V, 3) m, in poses of the motion with noise."""
        return _surfaces(self.body, self.phenotypes, self.poses)

    def rest(self) -> np.ndarray:
        """(64, V, 3) m, T pose."""
        return _surfaces(self.body, self.phenotypes, np.zeros_like(self.poses))


def measure(folder: Path) -> Iterator[Row]:
    """Rest and posed fits of sex-matched bodies by the exact map, and the map of SOMA against it:
    walking, and in the demo's motion, which climbs, sits and hangs by its arms.

    folder: where the package anny 0.6.2 and what it needs (roma, safetensors, warp-lang) lie."""
    walk = next(take.poses for take in takes() if take.name == "walk")
    for what, motion, barred in (("walk", walk, True), ("demo", demo_motion(), False)):
        yield from _measured(folder, f"frames of {what} with noise", motion, barred=barred)


def _measured(folder: Path, what: str, motion: np.ndarray, *, barred: bool) -> Iterator[Row]:
    models = default_body_directory()
    exact, soma = (Anny(folder, topology, motion) for topology in ("makehuman", "soma"))
    women = exact.phenotypes["gender"] > 0.5
    rest, posed, wrapped = exact.rest(), exact.posed(), soma.posed()
    angles, away = [], []
    for gender, own in (("female", np.flatnonzero(women)), ("male", np.flatnonzero(~women))):
        skel = load_skel(models, gender)
        _, number = find_map(models, "makehuman", skel)
        _, closest = find_map(models, "soma", skel)
        people = np.arange(len(own))
        meshes = number.apply(rest[own].astype(np.float64))
        shapes = fit_identity(
            {gender: skel}, torch.as_tensor(meshes), people, np.full(len(own), gender),
            at_rest=True, vertex_weights=map_weights(skel, number),
        )  # fmt: skip
        fit = fit_skel_to_surface(skel, posed[own], number, people, shapes)
        still, moved = shapes.error.mean() * 1e3, fit.vertex_error_mean.mean() * 1e3
        done = sum(status == "converged" for status in fit.status)
        good = bool(still <= 8.5 and moved <= 16.5 and done == len(own))
        judged = barred and gender == "female"
        yield (
            f"{len(own)} {gender} Anny bodies, sex-matched, identity betas, exact map, {what}",
            "rest ≤ 8.5 mm; posed ≤ 16.5 mm, all converged" if judged else "report",
            f"rest {still:.1f}, posed {moved:.1f} mm, {done} of {len(own)} converged, "
            f"start 0 wins {int((fit.start == 0).sum())}",
            good if judged else None,
        )
        counts = number.vertex_weight > 0.0
        apart = closest.apply(wrapped[own]) - number.apply(posed[own])
        away.append(np.linalg.norm(apart, axis=2)[:, counts].ravel() * 1e3)
        other = fit_skel_to_surface(skel, wrapped[own], closest, people, shapes)
        angles.append(np.rad2deg(np.abs(other.poses - fit.poses)[:, 3:]).ravel())
    off, turned = np.concatenate(away), np.concatenate(angles)
    found = off.mean(), np.quantile(off, 0.95), np.median(turned), np.quantile(turned, 0.95)
    yield (
        f"map of SOMA on the same {len(women)} posed bodies, against the exact one, {what}",
        "mean ≤ 0.7, p95 ≤ 2.0 mm; angles median ≤ 0.1°, p95 ≤ 0.4°",
        f"mean {found[0]:.2f}, p95 {found[1]:.2f}, max {off.max():.0f} mm; angles median "
        f"{found[2]:.3f}°, p95 {found[3]:.2f}°",
        bool(found[0] <= 0.7 and found[1] <= 2.0 and found[2] <= 0.1 and found[3] <= 0.4),
    )


def _surfaces(body: Any, phenotypes: dict[str, np.ndarray], poses: np.ndarray) -> np.ndarray:
    """Vertices (n, V, 3), metres."""
    names = list(body.bone_labels)
    matrices = torch.eye(4).repeat(PEOPLE, len(names), 1, 1)
    local = axis_angle_to_matrix(torch.as_tensor(poses)).float()
    for bone, joint in _BONES.items():
        matrices[:, names.index(bone), :3, :3] = local[:, joint]
    given = {name: torch.as_tensor(values).float() for name, values in phenotypes.items()}
    with torch.no_grad():
        found = body(pose_parameters=matrices, phenotype_kwargs=given)["vertices"]
    return found.numpy()


def _poses(rng: np.random.Generator, motion: np.ndarray) -> np.ndarray:
    """Frames of a motion with noise on ten joints and a random root, (n, 24, 3) rad."""
    frames = np.arange(PEOPLE) * (len(motion) // PEOPLE)
    poses = motion[frames].reshape(PEOPLE, 24, 3).astype(np.float64)
    poses[:, 22:] = 0.0
    poses[:, list(_NOISY)] += rng.normal(0.0, 0.25, (PEOPLE, len(_NOISY), 3))
    poses[:, 0] = rng.normal(0.0, 0.5, (PEOPLE, 3))
    return poses
