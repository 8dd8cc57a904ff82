"""The anatomy against the sources' lists and the model's own symmetry."""

import numpy as np
import pytest
import torch

from skel_fit import anatomy as table


def test_names_and_tree_are_those_of_the_file(golden_skel_dict):
    assert list(table.POSE_NAMES) == golden_skel_dict["pose_params_name"]
    assert list(table.JOINT_NAMES) == golden_skel_dict["joints_name"]
    assert list(table.PARENTS[1:]) == golden_skel_dict["osim_kintree_table"][0, 1:].tolist()
    assert list(table.JOINT_OF_DOF) == golden_skel_dict["parameter_mapping"].tolist()


def test_angles_are_consumed_in_joint_order_without_gaps():
    assert [d for dofs in table.DOFS for d in dofs] == list(range(46))
    counts = [3, 3, 1, 1, 1, 1, 3, 1, 1, 1, 1, 3, 3, 3, 3, 3, 1, 1, 2, 3, 3, 1, 1, 2]
    assert [len(dofs) for dofs in table.DOFS] == counts


def test_axes_are_unit_and_signed():
    np.testing.assert_allclose(np.linalg.norm(table.AXES, axis=1), 1, atol=1e-15)
    index = table.POSE_NAMES.index
    np.testing.assert_array_equal(table.AXES[index("hip_adduction_l")], [-1, 0, 0])
    np.testing.assert_array_equal(table.AXES[index("knee_angle_r")], [0, 0, -1])
    np.testing.assert_array_equal(table.AXES[index("scapula_elevation_l")], [0, 0, 1])
    np.testing.assert_allclose(
        table.AXES[index("subtalar_angle_r")], [0.787180, 0.604747, -0.120948], atol=5e-7
    )
    np.testing.assert_allclose(
        table.AXES[index("ankle_angle_r")], [-0.105014, -0.174022, 0.979126], atol=5e-7
    )


@pytest.mark.parametrize("corrected", [False, True])
def test_mirror_agrees_with_the_axes(corrected):
    # Mirroring the body (bone space: z -> -z) turns a rotation about a by q into one about
    # (-ax, -ay, az) by q; the table must say the same by permuting and negating angles.
    axes = table.axes(corrected_left_ankle=corrected)
    mirrored = axes * [-1, -1, 1]
    from_table = axes[table.MIRROR_PERMUTATION] * table.MIRROR_SIGNS[:, None]
    error = np.abs(mirrored - from_table).max(axis=1)
    ankles = [7, 14]
    others = [d for d in range(46) if d not in ankles]
    assert error[others].max() < 1e-5  # the toes' published angles mirror to 7e-6
    if corrected:
        assert error[ankles].max() < 1e-12
    else:
        assert error[ankles].min() > 0.2


def test_mirror_is_an_involution_and_swaps_sides():
    poses = np.random.default_rng(0).normal(size=46)

    def mirror(q):
        return q[table.MIRROR_PERMUTATION] * table.MIRROR_SIGNS

    np.testing.assert_array_equal(mirror(mirror(poses)), poses)
    sides = {"r": "l", "l": "r"}
    for d, name in enumerate(table.POSE_NAMES):
        parts = [sides.get(part, part) for part in name.split("_")]
        assert table.POSE_NAMES[table.MIRROR_PERMUTATION[d]] == "_".join(parts)


def test_corrective_sources():
    sources = (6, 1, 11, 7, 2, 12, 9, 4, -1, 10, 5, -1, 19, 14, 13, 20, 15, 21, 16, 23, 18, -1, -1)
    assert sources == table.POSE_FEATURE_SOURCES
    assert table.SMPL_JOINT_FOR_SKEL == (
        0, 2, 5, 8, 8, 11, 1, 4, 7, 7, 10, 3, 6, 15, 14, 17, 19, 0, 21, 13, 16, 18, 0, 20,
    )  # fmt: skip
    assert table.START_SMPL_JOINT == (
        0, 2, 5, 8, 8, 11, 1, 4, 7, 7, 10, 3, 9, 15, 14, 17, 19, 21, 21, 13, 16, 18, 20, 20,
    )  # fmt: skip


def test_mirrors_swap_sides_and_keep_the_trees():
    for mirror, parents in (
        (table.SKEL_MIRROR, table.PARENTS),
        (table.SMPL_MIRROR, table.SMPL_PARENTS),
    ):
        assert mirror[mirror].tolist() == list(range(24))
        assert [parents[mirror[j]] for j in range(1, 24)] == mirror[list(parents[1:])].tolist()
    assert table.SMPL_MIRROR[[0, 1, 4, 7, 16, 20]].tolist() == [0, 2, 5, 8, 17, 21]
    assert table.SKEL_MIRROR[[0, 1, 5, 13, 14, 18]].tolist() == [0, 6, 10, 13, 19, 23]


def test_groups_of_angles_and_joints():
    assert sorted(d for group in table.PARAMETER_GROUPS.values() for d in group) == list(range(49))
    assert tuple(range(17, 26)) == table.SPINE_DOFS
    assert table.SCAPULA_DOFS == (26, 27, 28, 36, 37, 38)
    assert table.ANKLE_JOINTS == (3, 8) and table.HAND_JOINTS == (18, 23)
    joints = table.BALL_JOINTS + table.HINGE_JOINTS + table.HAND_JOINTS
    assert sorted(joints) == list(range(24))
    regions = [table.REGIONS[k] for k in table.REGION_OF_JOINT]
    assert dict(zip(table.JOINT_NAMES, regions, strict=True))["head"] == "head"
    assert regions == [regions[j] for j in table.SKEL_MIRROR]


def test_periodic_angles_are_those_whose_whole_turn_changes_nothing(golden_skel64):
    identity = golden_skel64.shape(torch.zeros(2, 10, dtype=torch.float64))
    for d in range(46):
        poses = torch.full((2, 46), 0.1, dtype=torch.float64)
        poses[1, d] += 2 * np.pi
        moved = golden_skel64.local_translations(poses, identity)
        assert torch.allclose(moved[0], moved[1], atol=1e-12) == bool(table.PERIODIC[d])
