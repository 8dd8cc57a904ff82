"""Rotation mappings against scipy, and the compiled twins against the float ones."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from skel_fit import kinematics, numba_kinematics, rotations
from skel_fit.solver import numba_start

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int = 8) -> Rotation:
    return Rotation.random(count, random_state=seed)


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, np.float64))


def near(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


@given(seeds, st.sampled_from(list(permutations(range(3)))))
def test_euler_angles_are_those_of_scipy(seed, order):
    turn = drawn(seed)
    found = rotations.euler_from_matrix(tensor(turn.as_matrix()), order)
    near(found, turn.as_euler("".join("XYZ"[axis] for axis in order)), 1e-9)
    many = tensor(turn.as_matrix())[:, None].expand(-1, 2, 3, 3)
    both = rotations.euler_from_matrix(many, torch.tensor([order, order[::-1]]))
    near(both[:, 0], found)
    near(both[:, 1], rotations.euler_from_matrix(tensor(turn.as_matrix()), order[::-1]))


@given(seeds, st.sampled_from(list(permutations(range(3)))), st.floats(0, 1e-3), st.booleans())
def test_euler_angles_give_the_rotation_back_next_to_gimbal_lock(seed, order, away, up):
    draw = np.random.default_rng(seed)
    angles = draw.uniform(-np.pi, np.pi, (4, 3))
    angles[:, 1] = (np.pi / 2 - away) * (1 if up else -1)
    letters = "".join("XYZ"[axis] for axis in order)
    matrix = tensor(Rotation.from_euler(letters, angles).as_matrix()).requires_grad_()
    found = rotations.euler_from_matrix(matrix, order)
    found.sum().backward()
    assert torch.isfinite(matrix.grad).all()
    again = Rotation.from_euler(letters, found.detach().numpy()).as_matrix()
    near(again, matrix.detach(), 3e-7)


@given(seeds, st.booleans())
def test_nearest_rotation_maximises_the_trace_and_never_mirrors(seed, mirrored):
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(4, 3, 3))
    matrix[np.linalg.det(matrix) < 0, 0] *= -1
    if mirrored:
        matrix[:, 0] *= -1
    best, values = (part.numpy() for part in rotations.nearest_rotation(tensor(matrix)))
    near(best @ best.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4, 3, 3)))
    near(np.linalg.det(best), np.ones(4))
    reached = np.einsum("nij,nij->n", best, matrix)
    near(reached, values.sum(1), 1e-9)
    others = drawn(seed, 50).as_matrix()
    assert (np.einsum("mij,nij->nm", others, matrix) <= reached[:, None] + 1e-9).all()


@given(seeds)
def test_six_numbers_single_axes_and_angles(seed):
    turn = drawn(seed)
    matrix = tensor(turn.as_matrix())
    near(rotations.gram_schmidt(matrix[:, :2].flatten(1) * 3.0), matrix)
    near(rotations.rotation_angle(matrix), turn.magnitude(), 1e-9)
    angle = tensor(np.random.default_rng(seed).uniform(-np.pi, np.pi, 8))
    axis = rotations.unit(matrix[0, 0])
    about = rotations.rotation_about_axis(axis, angle)
    near(about, Rotation.from_rotvec(angle[:, None] * axis).as_matrix())
    near(rotations.rotation_of_cosine_sine(axis, angle.cos(), angle.sin()), about)
    near(rotations.angle_about_axis(about, axis), angle, 1e-9)
    near(rotations.skew(rotations.axial(matrix)), matrix - matrix.transpose(1, 2))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-5, 0.0199, 0.0201, 1.0, -3.0])
def test_sinc_and_its_slope(angle):
    at = tensor(angle).requires_grad_()
    rotations.sinc(at).backward()
    near(rotations.sinc_slope(at.detach()), at.grad, 1e-13)
    near(rotations.sinc(at).detach(), np.sinc(angle / np.pi))


def test_wrapped_angles_keep_pi():
    angles = tensor([np.pi, -np.pi, 3 * np.pi, 0.0, 7.0, -7.0])
    near(rotations.wrap_angle(angles), [np.pi, np.pi, np.pi, 0, 7 - 2 * np.pi, 2 * np.pi - 7])


# ---- compiled twins -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from([1e-9, 1e-3, 1.0, 3.0]))
def test_compiled_rotations(seed, size):
    draw = np.random.default_rng(seed)
    vector = size * draw.normal(size=3)
    made = np.empty((3, 3))
    numba_kinematics.axis_angle_to_matrix(*vector, made)
    # smplx adds 1e-8 to the components of the angle, and so does the twin of SMPL's bodies
    near(made, rotations.axis_angle_to_matrix(tensor(vector)), 5e-8)
    axis, angle = draw.normal(size=3), float(size * draw.normal())
    axis /= np.linalg.norm(axis)
    numba_kinematics.rotation_about_axis(axis, angle, made)
    near(made, rotations.rotation_about_axis(tensor(axis), tensor(angle)))
    source, target = draw.normal(size=(2, 3))
    for end in (target, source, 1e-3 * target):
        numba_kinematics.minimal_rotation(source, end, made)
        near(made, rotations.minimal_rotation(tensor(source), tensor(end)), 1e-9)
    near(
        numba_start.wrap_angle(10 * angle),
        rotations.wrap_angle(tensor(10 * angle)),
    )
    product = np.empty((3, 3))
    left, right = draw.normal(size=(2, 3, 3))
    numba_kinematics.multiply(left, right, product)
    near(product, left @ right)
    numba_kinematics.multiply_transposed(left, right, product)
    near(product, left @ right.T)


@pytest.mark.parametrize("angle", [0.0, 1e-9, -1e-4, 0.0199, -0.0201, 0.3, 1.5])
def test_compiled_arc(angle):
    near(
        numba_kinematics.arc(0.2, angle),
        [
            *kinematics.arc(tensor(0.2), tensor(angle)),
            *kinematics.arc_slope(tensor(0.2), tensor(angle)),
        ],
        1e-13,
    )
