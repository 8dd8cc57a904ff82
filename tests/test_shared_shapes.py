"""Vertices that count differently, and rows that share a fitted shape."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from skel_fit import FitConfig, FitResult, fit_skel, fit_skel_to_vertices, load_skel, load_smpl
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.skel import SKEL

HAND = JOINT_NAMES.index("hand_l")
ARM = [POSE_NAMES.index(name) for name in ("elbow_flexion_l", "pro_sup_l", "wrist_flexion_l")]
COUNT = 6890


@pytest.fixture(scope="module")
def pair():
    """Male stand-in pair, float32."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male")


def meshes(skel: SKEL, count: int, shapes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Meshes (count, 6890, 3) of small random poses, and their betas: `shapes` of them in turn."""
    generator = torch.Generator().manual_seed(3)
    poses = 0.2 * torch.randn(count, 46, generator=generator)
    poses[:, :3] *= 0.1
    betas = torch.randn(shapes, 10, generator=generator)[torch.arange(count) % shapes]
    return skel(poses, betas, torch.zeros(count, 3)).skin_vertices, betas


def assert_same(first: FitResult, second: FitResult) -> None:
    """Bit for bit."""
    for field in fields(FitResult):
        mine, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine.nan_to_num(-7.0), theirs.nan_to_num(-7.0)), field.name


def test_equal_weights_change_no_bit(pair):
    """Weights that are all one number are no weighting, with SMPL and with bare meshes."""
    skel, smpl = pair
    poses = 0.2 * torch.randn(3, 72, generator=torch.Generator().manual_seed(1))
    rows = (poses, torch.zeros(3, 10), torch.zeros(3, 3))
    weights = np.full(COUNT, 0.5)
    assert_same(fit_skel(skel, smpl, *rows), fit_skel(skel, smpl, *rows, vertex_weights=weights))
    surfaces, betas = meshes(skel, 2, 1)
    assert_same(
        fit_skel_to_vertices(skel, surfaces, betas),
        fit_skel_to_vertices(skel, surfaces, betas, vertex_weights=weights),
    )


@pytest.mark.parametrize("kernels", ["numba", "torch"])
def test_vertices_without_weight_pull_nothing(pair, kernels):
    """A bent hand turns the arm, unless its vertices count nothing: in the last stage too."""
    skel, _ = pair
    surfaces, betas = meshes(skel, 2, 1)
    hand = skel.skin_weights.argmax(dim=1) == HAND
    bent = surfaces.clone()
    bent[:, hand] += torch.tensor([0.03, -0.03, 0.02])
    weights = np.where(hand.numpy(), 0.0, 1.0)
    config = FitConfig(recipe="surface", kernels=kernels, restarts=False)

    def moved(vertex_weights: np.ndarray | None) -> float:
        found = [
            fit_skel_to_vertices(skel, part, betas, config, vertex_weights=vertex_weights)
            for part in (surfaces, bent)
        ]
        assert all(status == "converged" for result in found for status in result.status)
        change = (found[1].poses - found[0].poses)[:, ARM[:2]]
        return float(torch.rad2deg(change.abs().max()))

    assert moved(None) > 1.0
    assert moved(weights) < 0.1


def test_rows_of_an_identity_share_a_shape(pair):
    """One shape an identity, the true one of its meshes, bit-equal whoever else is in the call."""
    skel, _ = pair
    surfaces, betas = meshes(skel, 6, 2)
    turn = axis_angle_to_matrix(torch.tensor([[0.4, 2.0, -1.0]])).float()[0]
    surfaces = surfaces @ turn.T  # the pelvis of another shape is elsewhere: seen when turned
    config = FitConfig(recipe="surface", betas="fit", limits="none", restarts=False)
    start, identity = torch.zeros(6, 10), torch.arange(6) % 2 + 40
    found = fit_skel_to_vertices(skel, surfaces, start, config, identity=identity)
    for k in range(2):
        own = found.betas[k::2]
        assert torch.equal(own, own[:1].expand(3, -1))

    def rest(shape: torch.Tensor) -> torch.Tensor:
        return skel(torch.zeros(6, 46), shape, torch.zeros(6, 3)).skin_vertices

    def distance(shape: torch.Tensor) -> torch.Tensor:
        return (rest(shape) - rest(betas)).norm(dim=2).mean(dim=1)

    assert (distance(start) > 0.025).all()
    assert (distance(found.betas) < 0.001).all()
    again = skel(found.poses, found.betas, found.trans).skin_vertices
    error = (again - surfaces).norm(dim=2).mean(dim=1)
    torch.testing.assert_close(error, found.vertex_error_mean, atol=3e-6, rtol=0)
    alone = fit_skel_to_vertices(skel, surfaces[1::2], start[1::2], config, identity=identity[1::2])
    assert_same(alone, found.take(torch.tensor([1, 3, 5])))


@pytest.mark.parametrize("scale", [1e4, 1e25, 1e160])
def test_meshes_that_no_camera_sees_are_rejected_and_move_no_other(pair, scale):
    skel, _ = pair
    surfaces, betas = meshes(skel, 3, 3)
    surfaces = surfaces.double()
    expected = fit_skel_to_vertices(skel, surfaces, betas)
    surfaces[1] *= scale
    found = fit_skel_to_vertices(skel, surfaces, betas)
    assert found.status[1] == "rejected:vertices_out_of_range"
    assert found.poses[1].isnan().all()
    rest = torch.tensor([0, 2])
    assert_same(found.take(rest), expected.take(rest))


def test_betas_of_another_width_are_refused(pair):
    skel, _ = pair
    surfaces, _ = meshes(skel, 3, 3)
    for shape in ((3, 300), (3, 11), (3, 9), (3, 10, 1), (2, 10)):
        with pytest.raises(ValueError, match=r"betas: expected \(3, 10\)|vertices: expected"):
            fit_skel_to_vertices(skel, surfaces, torch.ones(shape))


def test_wrong_weights_and_identities_are_refused(pair):
    """One line that says what was expected."""
    skel, _ = pair
    surfaces, betas = meshes(skel, 2, 2)
    for weights, words in (
        (np.ones(7), r"vertex_weights: expected \(6890,\), found \(7,\)"),
        (np.full(COUNT, -1.0), "at least 0"),
        (np.zeros(COUNT), "one above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            fit_skel_to_vertices(skel, surfaces, betas, vertex_weights=weights)
    one = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="betas='fit'"):
        fit_skel_to_vertices(skel, surfaces, betas, identity=one)
    config = FitConfig(recipe="surface", betas="fit")
    with pytest.raises(ValueError, match="start from different betas"):
        fit_skel_to_vertices(skel, surfaces, betas, config, identity=one)
