"""Refined labels: taken only where they predict keypoints they have not seen; as columns beside."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pipeline import open_dataset
from skel_fit import load_skel
from skel_fit.body_points import BodyPoints, label_points
from skel_fit.default_body import default_body_directory
from skel_fit.joint_limits import limits
from skel_fit.keypoint_fit import Cameras, KeypointFitConfig, Problem, Start
from skel_fit.keypoints import keypoint_matrix
from skel_fit.pose_prior import pose_prior
from skel_fit.refinement import RefineConfig, Refinement, folds, refine_labels
from stages.cli import run as command
from tests.demo_rows import fitted_demo

ROWS = 24
LENS = np.array([[900.0, 0.0, 480.0], [0.0, 900.0, 350.0], [0.0, 0.0, 1.0]])


@functools.cache
def body():
    return load_skel(default_body_directory(), "male", dtype=torch.float64)


@functools.cache
def points() -> BodyPoints:
    return label_points(keypoint_matrix(default_body_directory()))


@dataclass(frozen=True)
class Case:
    true: Start
    stored: Start
    pixels: np.ndarray
    damaged: np.ndarray  # (n,) bool


@functools.cache
def case() -> Case:
    """Half of the labels right, half damaged by 20 degrees; keypoints with 1 % noise, one error
    for the points of one place."""
    random, (low, high) = np.random.default_rng(2), limits("default").T
    prior = pose_prior("motion")
    poses = np.zeros((ROWS, 46))
    poses[:, :3] = [0.0, np.pi, 0.0]
    poses[:, 2] = random.uniform(-3, 3, ROWS)
    poses[:, 3:] = random.multivariate_normal(prior.mean, prior.covariance * 0.5, ROWS)
    poses = np.clip(
        poses, np.where(np.isfinite(low), low, -9), np.where(np.isfinite(high), high, 9)
    )
    true = Start(poses, random.normal(size=(ROWS, 10)) * 0.4, np.tile([0.0, 0.0, 4.5], (ROWS, 1)))
    damaged = np.arange(ROWS) % 2 == 1
    noise = np.radians(20.0) * random.normal(size=(ROWS, 46)) * damaged[:, None]
    noise[:, :3] *= 0.5
    stored = Start(poses + noise, true.betas, true.trans)
    seen = places(true)
    pixels = (seen @ LENS.T)[..., :2] / seen[..., 2:]
    errors = random.normal(size=(ROWS, points().groups.max() + 1, 2)) * 3.0
    return Case(true, stored, pixels + errors[:, points().groups], damaged)


def places(bodies: Start) -> np.ndarray:
    n = len(bodies.poses)
    problem = Problem.of(
        body(), points(), np.zeros((n, 44, 2)), np.ones((n, 44)), Cameras(LENS), None, None,
        pose_prior("motion"), KeypointFitConfig(),
    )  # fmt: skip
    at = np.concatenate([bodies.poses, bodies.trans, bodies.betas], axis=1)
    return problem.search(at, 0).points


@functools.cache
def refined(acceptance: str) -> Refinement:
    it = case()
    return refine_labels(
        body(), points(), it.stored, it.pixels, np.ones((ROWS, 44)), Cameras(LENS),
        RefineConfig(acceptance=acceptance, sigma_2d=0.01),  # type: ignore[arg-type]
    )  # fmt: skip


def error(poses: np.ndarray, betas: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """(n,) mm, mean distance to the true points, middle of the hips at one place."""
    mine, true = places(Start(poses, betas, trans)), places(case().true)
    mine, true = (p - p[:, [9, 12]].mean(1, keepdims=True) for p in (mine, true))
    return 1000.0 * np.linalg.norm(mine - true, axis=2).mean(1)


def test_damaged_labels_are_repaired_and_good_ones_stay():
    it, found = case(), refined("held-out")
    before = error(it.stored.poses, it.stored.betas, it.stored.trans)
    after = error(found.poses, found.betas, found.trans)
    assert found.accepted[it.damaged].mean() >= 0.8
    assert not found.accepted[~it.damaged].any()
    assert after[it.damaged].mean() < 0.8 * before[it.damaged].mean()
    for name in ("poses", "betas", "trans"):
        kept = getattr(found, name)[~found.accepted]
        assert np.array_equal(kept, getattr(it.stored, name)[~found.accepted])
    assert [o == "refined" for o in found.outcome] == found.accepted.tolist()


def test_published_acceptance_makes_good_labels_worse():
    it, found = case(), refined("published")
    after = error(found.poses, found.betas, found.trans)
    assert found.accepted[~it.damaged].mean() > 0.8
    assert after[~it.damaged].mean() > 10.0


def test_folds_keep_places_together_and_leave_each_out_once():
    parts = folds(points(), 4)
    assert np.array_equal(sum(part.astype(int) for part in parts), np.ones(44, int))
    for part in parts:
        for group in range(points().groups.max() + 1):
            assert len(set(part[points().groups == group])) == 1
    assert not all(map(np.array_equal, parts, folds(points(), 5)))


def test_a_row_depends_on_no_other():
    it, whole = case(), refined("held-out")
    index = np.array([7, 2])
    part = refine_labels(
        body(), points(),
        Start(it.stored.poses[index], it.stored.betas[index], it.stored.trans[index]),
        it.pixels[index], np.ones((2, 44)), Cameras(LENS), RefineConfig(sigma_2d=0.01),
    )  # fmt: skip
    for name in ("poses", "betas", "trans", "stored_error", "refined_error"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[index])


def test_rows_that_cannot_be_fitted_keep_their_label():
    it, weights = case(), np.ones((4, 44))
    weights[0] = 0.0
    pixels = it.pixels[:4].copy()
    pixels[1, 3] = np.nan
    stored = Start(*(v[:4].copy() for v in (it.stored.poses, it.stored.betas, it.stored.trans)))
    stored.trans[2, 2] = -4.0  # behind the camera
    found = refine_labels(body(), points(), stored, pixels, weights, Cameras(LENS))
    assert found.outcome[:3] == ["not fitted"] * 3
    assert np.array_equal(found.poses[:3], stored.poses[:3])
    with pytest.raises(ValueError, match="gain"):
        RefineConfig(gain=1.0)
    with pytest.raises(ValueError, match="held-out or published"):
        RefineConfig(acceptance="always")  # type: ignore[arg-type]


def test_the_verb_appends_columns_and_keeps_the_originals(tmp_path_factory, tmp_path, capsys):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(fitted_demo(tmp_path_factory.getbasetemp()), out)
    shards = {path: path.read_bytes() for path in sorted(out.rglob("*.h5"))}
    before = open_dataset(out)["skel_poses"]
    assert command(["refine", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no better" in said and "refined.skel_poses" in said
    found = open_dataset(out)
    assert (
        found["refined.outcome"].tolist().count("no better") >= 7
    )  # exact keypoints, exact labels
    kept = found["refined.outcome"] != "refined"
    assert np.array_equal(found["refined.skel_poses"][kept], before[kept])
    assert np.array_equal(found["skel_poses"], before)
    assert {path: path.read_bytes() for path in shards} == shards
    assert command(["refine", str(out)]) == 2  # the name is taken
    assert "is there already" in capsys.readouterr().err
    assert command(["refine", str(out), "--name", "b", "--acceptance", "always"]) == 2
    assert "'held-out', 'published'" in capsys.readouterr().err
    assert command(["refine", str(out), "--name", "b", "--prior", "narrow"]) == 2
    assert command(["verify", str(out)]) == 0
