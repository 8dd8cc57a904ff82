"""Measures where the landmark network puts its points on a SKEL body: `body_points._SHIFTS`.

    python -m tools.landmark_shifts DIR

DIR: folder for rendered pictures of the train actors (dance, walk, the demo's train split), made
where they are missing. Bodies: the male stand-in, converted from the labels. Least squares over
the distances in the picture, errors above a few per cent counting less and less (Cauchy); left and
right as one. Prints millimetres at rest of the left point, and the median distance before and
after, in per cent of the person's size, on rows that were not used.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.demo import demo_columns
from skel_fit import fit_skel, load_skel, load_smpl
from skel_fit.body_points import BLAZEPOSE_NAMES, BodyPoints, blazepose_points
from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_fit import Cameras, KeypointFitConfig, Problem
from skel_fit.pose_prior import pose_prior
from skel_fit.skel import SKEL
from stages.photo.landmarks import Landmarker, Region
from tests.photo_pictures import Rendered, rendered

SEED, ROWS = 9002, 320
_ROOM, _SCALE, _ROUNDS, _LEAST_VISIBLE = 1.25, 0.015, 10, 0.5


def train_rows() -> dict[str, np.ndarray]:
    columns = demo_columns(default_body_directory(), rows=300, seed=SEED, takes=400)
    train = np.flatnonzero(columns["split"] == "train")
    chosen = train[np.linspace(0, len(train) - 1, ROWS).astype(int)]
    return {name: values[chosen] for name, values in columns.items()}


def true_unknowns(skel: SKEL, columns: dict[str, np.ndarray]) -> np.ndarray:
    """(n, 59) SKEL of the labels' meshes."""
    found = np.zeros((len(columns["gender"]), 59))
    for gender in np.unique(columns["gender"]):
        rows = np.flatnonzero(columns["gender"] == gender)
        pose, shape, trans = (
            torch.as_tensor(columns[k][rows]) for k in ("pose_cam", "shape", "trans_cam")
        )
        fit = fit_skel(skel, load_smpl(default_body_directory(), str(gender)), pose, shape, trans)
        found[rows] = np.concatenate([fit.poses, fit.trans, fit.betas], 1)
    return found


def places(skel: SKEL, points: BodyPoints, unknowns: np.ndarray) -> np.ndarray:
    """(n, 33, 3) m."""
    n = len(unknowns)
    problem = Problem.of(
        skel, points, np.zeros((n, 33, 2)), np.ones((n, 33)), Cameras.assumed(100, 100), None, None,
        pose_prior("wide"), KeypointFitConfig(),
    )  # fmt: skip
    return problem.search(unknowns, 0).points


def looked_at(pictures: Rendered, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (n, 33, 2) and visibility, looked for where the person is."""
    landmarker = Landmarker()
    pixels, visible = np.zeros((len(pictures), 33, 2)), np.zeros((len(pictures), 33))
    for row in range(len(pictures)):
        hips = true[row, [23, 24]].mean(0)
        along = true[row, [11, 12]].mean(0) - hips
        reach = np.linalg.norm(true[row] - hips, axis=1).max() / max(np.linalg.norm(along), 1e-6)
        found = landmarker(pictures.picture(row), Region.around(hips, hips + along * reach), 2)
        pixels[row], visible[row] = found.pixels, found.visibility
    return pixels, visible


def main() -> int:
    pictures = rendered(train_rows(), Path(sys.argv[1]))
    columns = pictures.columns
    skel, points = load_skel(default_body_directory(), "male"), blazepose_points(shifted=False)
    unknowns = true_unknowns(skel, columns)
    at = places(skel, points, unknowns)
    slopes = np.stack(
        [
            (places(skel, replace(points, shifts=points.shifts + axis), unknowns) - at)
            for axis in np.eye(3)
        ],
        -1,
    )  # (n, 33, 3, 3) m a metre
    camera = columns["cam_int"]

    def project(where: np.ndarray) -> np.ndarray:
        flat = np.einsum("nij,nkj->nki", camera, where)
        return flat[..., :2] / flat[..., 2:]

    true = project(at)
    pixels, visible = looked_at(pictures, true)
    inside = ((true >= 0) & (true < columns["image_size"][:, None])).all(-1)
    size = np.ptp(true, axis=1).max(-1)[:, None, None]
    focal = camera[:, 0, 0, None, None, None]
    z = at[..., 2, None, None]
    lens = np.zeros((*at.shape[:2], 2, 3))
    lens[..., 0, 0] = lens[..., 1, 1] = 1.0
    lens[..., 0, 2], lens[..., 1, 2] = -at[..., 0] / at[..., 2], -at[..., 1] / at[..., 2]
    rows = lens @ slopes * focal / z / size[..., None]
    misses = (pixels - true) / size
    used = inside & (visible > _LEAST_VISIBLE)
    half = np.arange(len(at)) % 2 == 0
    names = dict.fromkeys(
        name.partition(" ")[2] or name
        for name, weight in zip(BLAZEPOSE_NAMES, points.weights, strict=True) if weight
    )  # fmt: skip
    for name in names:
        pair = [k for k, n in enumerate(BLAZEPOSE_NAMES)
                if name in (n, n.partition(" ")[2])]  # fmt: skip
        signs = [np.array([-1.0 if BLAZEPOSE_NAMES[k].startswith("right") else 1.0, 1, 1])
                 for k in pair]  # fmt: skip

        def solved(chosen: np.ndarray, pair=pair, signs=signs) -> np.ndarray:
            a = np.concatenate([rows[chosen & used[:, k], k] * s
                                for k, s in zip(pair, signs, strict=True)])  # fmt: skip
            b = np.concatenate([misses[chosen & used[:, k], k] for k in pair])
            shift = np.zeros(3)
            for _ in range(_ROUNDS):
                left = np.linalg.norm(b - a @ shift, axis=1)
                weight = 1.0 / (1.0 + (left / _SCALE) ** 2)
                normal = np.einsum("n,nci,ncj->ij", weight, a, a)
                shift = np.linalg.solve(normal, np.einsum("n,nci,nc->i", weight, a, b))
            return shift

        first, whole = solved(half), solved(np.ones(len(at), bool))
        if name == "nose":
            whole[0] = 0.0
        held = [np.linalg.norm(misses[~half & used[:, k], k]
                               - rows[~half & used[:, k], k] @ (first * s), axis=1)
                for k, s in zip(pair, signs, strict=True)]  # fmt: skip
        before = [np.linalg.norm(misses[~half & used[:, k], k], axis=1) for k in pair]
        print(
            f'    "{name}": ({", ".join(f"{x:.0f}" for x in 1000 * whole)}),  # '
            f"{100 * np.median(np.concatenate(before)):.2f} -> "
            f"{100 * np.median(np.concatenate(held)):.2f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
