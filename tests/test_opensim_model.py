"""The exported OpenSim model against our own, through our reader of .osim: no OpenSim needed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import cKDTree

from skel_fit import anatomy, joint_limits
from skel_fit.anatomy import JOINT_NAMES, NUM_JOINTS, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, markers, masses, osim_reader, osim_writer, paths, subject
from skel_fit.skel import SKEL

GENDERS = ("male", "female")


@pytest.fixture(scope="session", params=GENDERS)
def skel(request: pytest.FixtureRequest) -> SKEL:
    return load_skel(default_body_directory(), request.param, dtype=torch.float64)


@pytest.fixture(scope="session")
def shared(skel: SKEL) -> osim_writer.Template:
    return osim_writer.template(skel)


def poses_inside_limits(count: int, seed: int = 0) -> np.ndarray:
    """Uniform inside the `default` limits; the root turns freely, away from its gimbal lock."""
    limits = joint_limits.limits("default").copy()
    limits[:3] = [[-np.pi, np.pi], [-1.4, 1.4], [-np.pi, np.pi]]
    return np.random.default_rng(seed).uniform(limits[:, 0], limits[:, 1], (count, 46))


def extreme_betas(seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).uniform(-3, 3, (1, 10)))


def frames_of_text(text: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bodies of a written model at `values` (n, 49): (n, 24, 3), (n, 24, 3, 3) in ground."""
    model = osim_reader.read_model(text, "written")
    columns = {name: values[:, k] for k, name in enumerate(angles.COORDINATES)}
    frames = model.body_frames(columns, len(values))
    return (
        np.stack([frames[name][0] for name in JOINT_NAMES], 1),
        np.stack([frames[name][1] for name in JOINT_NAMES], 1),
    )


def deviation(
    skel: SKEL,
    shared: osim_writer.Template,
    kind: angles.Angles,
    *,
    joints: tuple[angles.JointAxes, ...] | None = None,
    ground: str = "camera",
    count: int = 100,
) -> tuple[float, float]:
    """Largest distance in metres and largest difference of rotation entries, random poses."""
    betas, turn = extreme_betas(), subject.GROUNDS[ground]
    person = subject.subjects(skel, betas)[0]
    poses = poses_inside_limits(count)
    trans = np.random.default_rng(1).normal(size=(count, 3))
    text = osim_writer.osim_text("person", person, shared, turn, kind, joints=joints)
    values = angles.coordinates(poses, trans, person.root(turn), kind, sequence=False)
    found, turned = frames_of_text(text, values)
    tensors = torch.tensor(poses), betas, torch.tensor(trans)
    position, axes = subject.body_frames(skel, *tensors)
    return (
        float(np.abs(found - position @ turn.T).max()),
        float(np.abs(turned - turn @ axes).max()),
    )


@pytest.mark.parametrize("kind", angles.ANGLES)
@pytest.mark.parametrize("ground", subject.GROUNDS)
def test_the_written_model_moves_like_ours(skel, shared, kind, ground) -> None:
    distance, rotation = deviation(skel, shared, kind, ground=ground)
    assert distance <= 1e-6
    assert rotation <= 1e-5


@pytest.mark.parametrize("kind", angles.ANGLES)
def test_any_model_of_the_schema_can_be_written(golden_skel64, kind) -> None:
    # Synthetic file: learned rotations, A pose and regressors have nothing of a human.
    shared = osim_writer.template(golden_skel64)
    distance, rotation = deviation(golden_skel64, shared, kind)
    assert distance <= 1e-6
    assert rotation <= 1e-5


def test_the_corrected_left_ankle_is_written() -> None:
    folder = default_body_directory()
    skel = load_skel(folder, "male", dtype=torch.float64, corrected_left_ankle=True)
    shared = osim_writer.template(skel)
    assert deviation(skel, shared, "skel")[0] <= 1e-6
    assert deviation(skel, shared, "skel", joints=angles.joint_axes("skel"))[0] > 1e-3


def _changed(kind: angles.Angles, joint: int, **change: object) -> tuple[angles.JointAxes, ...]:
    table = list(angles.joint_axes(kind))
    old = table[joint]
    values = {"dofs": old.dofs, "axes": old.axes, **change}
    table[joint] = angles.JointAxes(joint, values["dofs"], values["axes"])
    return tuple(table)


@pytest.mark.parametrize("kind", angles.ANGLES)
@pytest.mark.parametrize("joint", [1, 15, 11])
def test_a_swapped_axis_order_moves_bodies(skel, shared, kind, joint) -> None:
    row = angles.joint_axes(kind)[joint]
    order = [1, 0, 2]
    swapped = _changed(kind, joint, dofs=tuple(row.dofs[k] for k in order), axes=row.axes[order])
    assert deviation(skel, shared, kind, joints=swapped, count=10)[0] > 1e-3


@pytest.mark.parametrize("kind", angles.ANGLES)
def test_a_wrong_sign_on_the_left_moves_bodies(skel, shared, kind) -> None:
    row = angles.joint_axes(kind)[6]
    for k in range(3):
        signs = np.where(np.arange(3) == k, -1.0, 1.0)[:, None]
        wrong = _changed(kind, 6, axes=row.axes * signs)
        assert deviation(skel, shared, kind, joints=wrong, count=10)[0] > 1e-3


@pytest.mark.parametrize("dropped", [11, 12, 13, 14, 19])
def test_a_dropped_polynomial_moves_bodies(skel, shared, dropped, monkeypatch) -> None:
    kept = subject.Subject.path
    monkeypatch.setattr(
        subject.Subject, "path", lambda s, joint: None if joint == dropped else kept(s, joint)
    )
    assert deviation(skel, shared, "opensim", count=10)[0] > 1e-3


@pytest.mark.parametrize(("angle", "error"), [(1.05, 1e-7), (1.5, 5e-6)])
def test_paths_are_those_of_the_model_also_beyond_its_limits(skel, angle, error) -> None:
    identity = skel.shape(extreme_betas())
    poses = torch.tensor(np.random.default_rng(3).uniform(-angle, angle, (200, 46)))
    wanted = skel.local_translations(poses, identity) - identity.offsets
    for joint in range(NUM_JOINTS):
        lengths, extents = identity.spine_lengths[0].numpy(), identity.scapula_extents[0].numpy()
        path = paths.path(joint, lengths, extents)
        moved = np.zeros((200, 3))
        if path is not None:
            moved = path(*(poses[:, d].numpy() for d in path.dofs))
        assert np.abs(moved - wanted[:, joint].numpy()).max() < error


def test_the_file_has_what_the_format_asks_for(skel, shared) -> None:
    person = subject.subjects(skel, extreme_betas())[0]
    text = osim_writer.osim_text(
        "a <name> & more", person, shared, subject.GROUNDS["z-up"], "opensim", digest="abc"
    )
    model = osim_reader.read_model(text, "written")
    assert sorted(model.bodies) == sorted(JOINT_NAMES)
    assert set(model.coordinates) == set(angles.COORDINATES)
    assert len(angles.COORDINATES) == 49
    limits = joint_limits.limits("default")
    knee = model.coordinates["knee_angle_r"]
    assert (knee.low, knee.high) == tuple(limits[POSE_NAMES.index("knee_angle_r")])
    assert "ConstantCurvature" not in text and "Ellipsoid" not in text
    assert model.notes is not None
    assert model.notes["betas"] == person.betas.tolist()
    assert model.notes["gender"] == skel.gender and model.notes["digest"] == "abc"
    assert text.count("<Marker ") == len(shared.markers) >= 3 * NUM_JOINTS
    assert text.count("<Mesh ") == len(shared.bones)


def test_bones_are_those_of_the_skeleton_mesh(skel, shared) -> None:
    # Rest pose: a bone's own file, scaled as the model says and placed by its body, is our mesh.
    betas = extreme_betas()
    person = subject.subjects(skel, betas)[0]
    zero = torch.zeros(1, 46, dtype=torch.float64)
    mesh = skel(zero, betas, skeleton=True).skeleton_vertices[0].numpy()
    owner = skel.skeleton_weights_rigid.numpy().argmax(1)
    for body, name in enumerate(JOINT_NAMES):
        if name not in shared.bones:
            continue
        lines = shared.bones[name].splitlines()
        points = np.array([[float(x) for x in s.split()[1:]] for s in lines if s[0] == "v"])
        placed = points * person.bone_scale[body] @ person.orientations[body].T
        placed += person.joints[body]
        assert cKDTree(mesh[owner == body]).query(placed)[0].max() < 1e-5


def test_a_model_without_bones_is_refused(golden_skel64, monkeypatch) -> None:
    monkeypatch.setattr(golden_skel64, "skeleton_faces", golden_skel64.skeleton_faces[:0])
    with pytest.raises(ValueError, match="has no bone mesh"):
        osim_writer.template(golden_skel64)


# ---- masses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 3.0, -3.0])
def test_segments_sum_to_the_skin(skel, shared, beta) -> None:
    person = subject.subjects(skel, torch.full((1, 10), beta, dtype=torch.float64))[0]
    segments = masses.segments(person, shared.cut)
    a, b, c = person.vertices[skel.faces.numpy()].transpose(1, 0, 2)
    volume = np.einsum("ma,ma->", a, np.cross(b, c)) / 6
    assert segments.volumes.sum() == pytest.approx(volume, rel=1e-9)
    assert 950 <= segments.masses.sum() / volume <= 1080
    assert (segments.masses >= 0).all()
    for tensor in segments.inertias:
        moments = np.linalg.eigvalsh(tensor)
        assert moments[0] >= 0 and moments[0] + moments[1] >= moments[2] * (1 - 1e-9)


def test_every_body_of_an_ordinary_person_has_mass(skel, shared) -> None:
    person = subject.subjects(skel, torch.zeros(1, 10, dtype=torch.float64))[0]
    segments = masses.segments(person, shared.cut)
    assert (segments.masses > 0.01).all()
    share = dict(zip(JOINT_NAMES, segments.masses / segments.masses.sum(), strict=True))
    # Between Dempster's (0.100), Dumas' (0.123, 0.146) and de Leva's (0.142, 0.148) thighs.
    assert 0.09 < share["femur_r"] < 0.15
    assert 0.04 < share["tibia_l"] < 0.055


def test_moments_of_a_cut_box_are_the_textbook_ones() -> None:
    # A box of 1 x 2 x 3 m, cut at z = 1 into thorax below and head above.
    corners = np.array([[x, y, z] for z in (0, 1, 3) for y in (0, 2) for x in (0, 1)], float)
    quads = [(0, 2, 3, 1), (8, 9, 11, 10)]
    owner = [12, 13]
    for k, body in ((0, 12), (4, 13)):
        quads += [(k, k + 1, k + 5, k + 4), (k + 1, k + 3, k + 7, k + 5)]
        quads += [(k + 3, k + 2, k + 6, k + 7), (k + 2, k, k + 4, k + 6)]
        owner += [body] * 4
    faces = np.array([(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)])
    cut = masses.cuts(faces, np.repeat(owner, 2))
    eye = np.broadcast_to(np.eye(3), (NUM_JOINTS, 3, 3))
    person = subject.Subject(
        betas=np.zeros(10), gender="male", vertices=corners, joints=np.zeros((NUM_JOINTS, 3)),
        orientations=eye, apose=eye, bone_scale=np.ones((NUM_JOINTS, 3)),
        spine_lengths=np.ones(3), scapula_extents=np.ones(2), corrected_left_ankle=False,
    )  # fmt: skip
    found = masses.segments(person, cut)
    assert found.volumes[[12, 13]] == pytest.approx([2.0, 4.0])
    assert found.centres[12] == pytest.approx([0.5, 1.0, 0.5])
    assert found.centres[13] == pytest.approx([0.5, 1.0, 2.0])
    mass = masses.DENSITIES["head"] * 4
    expected = mass / 12 * np.diag([2**2 + 2**2, 1 + 2**2, 1 + 2**2])
    assert found.inertias[13] == pytest.approx(expected, abs=1e-6)


def test_an_open_skin_is_refused(skel) -> None:
    faces = skel.faces.numpy()[:-1]
    with pytest.raises(ValueError, match="expected a closed skin"):
        masses.cuts(faces, np.zeros(len(faces), int))


def test_markers_span_every_body(skel, shared) -> None:
    chosen: markers.Markers = shared.markers
    assert len(set(chosen.names)) == len(chosen.names)
    person = subject.subjects(skel, torch.zeros(1, 10, dtype=torch.float64))[0]
    places = osim_writer.marker_locations(person, chosen)
    for body in range(NUM_JOINTS):
        own = places[chosen.bodies == body]
        assert len(own) >= 3
        spread = np.linalg.svd(own - own.mean(0))[1]
        assert spread[1] > 0.004  # no three on a line


def test_skin_points_are_those_of_the_full_skin(skel) -> None:
    poses = torch.tensor(poses_inside_limits(5))
    trans = torch.tensor(np.random.default_rng(0).normal(size=(5, 3)))
    some = np.array([6000, 3, 411])
    found = subject.skin_points(skel, poses, extreme_betas(), trans, some)
    full = skel(poses, extreme_betas(), trans).skin_vertices[:, some].numpy()
    assert np.abs(found - full).max() < 1e-9


# ---- angles -----------------------------------------------------------------------------------

_AXES = [np.eye(3)[list(order)] for order in ((0, 1, 2), (2, 0, 1), (2, 1, 0), (0, 2, 1))]
_ANGLES = arrays(np.float64, (4, 3), elements=st.floats(-7, 7))


@given(
    values=_ANGLES,
    order=st.sampled_from(range(4)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_decompose_inverts_compose(values, order, signs) -> None:
    axes = _AXES[order] * np.array(signs)[:, None]
    rotation = angles.compose(values, axes)
    found = angles.decompose(rotation, axes)
    assert np.abs(angles.compose(found, axes) - rotation).max() < 1e-9
    assert (np.abs(found[:, 1]) <= np.pi / 2 + 1e-12).all()
    smooth = angles.continuous(found)
    assert np.abs(angles.compose(smooth, axes) - rotation).max() < 1e-9


def test_decompose_at_gimbal_lock_keeps_the_rotation() -> None:
    values = np.array([[0.3, 0.5, -0.4], [0.3, np.pi / 2, -0.4], [0.3, -np.pi / 2, 2.0]])
    rotation = angles.compose(values, _AXES[0])
    found = angles.decompose(rotation, _AXES[0])
    assert np.abs(angles.compose(found, _AXES[0]) - rotation).max() < 1e-9
    assert found[1, 2] == pytest.approx(-0.4)  # as the row before


def test_angles_do_not_jump_through_gimbal_and_whole_turns() -> None:
    time = np.linspace(0, 1, 400)[:, None]
    true = np.concatenate((8 * time, 3.0 * np.sin(4 * time), 0.3 - 9 * time), 1)
    found = angles.continuous(angles.decompose(angles.compose(true, _AXES[1]), _AXES[1]))
    assert np.abs(np.diff(found, axis=0)).max() < 0.1
    assert np.abs(found - true).max() < 1e-9


@pytest.mark.parametrize("kind", angles.ANGLES)
@pytest.mark.parametrize("ground", subject.GROUNDS)
def test_coordinates_go_back_to_skel(skel, kind, ground) -> None:
    person = subject.subjects(skel, extreme_betas())[0]
    root = person.root(subject.GROUNDS[ground])
    start, end = poses_inside_limits(2, seed=5)
    share = np.linspace(0, 1, 50)[:, None]
    poses = (1 - share) * start * 0.8 + share * end * 0.8
    trans = np.random.default_rng(2).normal(size=(50, 3))
    values = angles.coordinates(poses, trans, root, kind)
    back, moved = angles.skel_parameters(values, root, kind)
    turns = np.round((back - poses) / (2 * np.pi)) * 2 * np.pi
    assert np.abs(back - turns - poses).max() < 1e-6
    assert np.abs(back[:, 3:] - poses[:, 3:]).max() < 1e-6  # no whole turns but of the root
    assert np.abs(moved - trans).max() < 1e-9


def test_skel_numbers_are_not_opensim_numbers(skel) -> None:
    # Three-angle joints turn about the same axes in the opposite order.
    person = subject.subjects(skel, extreme_betas())[0]
    root = person.root(subject.GROUNDS["camera"])
    poses, trans = poses_inside_limits(200), np.zeros((200, 3))
    as_skel, as_opensim = (
        np.degrees(angles.coordinates(poses, trans, root, kind, sequence=False))
        for kind in ("skel", "opensim")
    )
    apart = np.median(np.abs((as_skel - as_opensim + 180) % 360 - 180), 0)
    column = angles.COORDINATES.index
    assert apart[column("hip_adduction_r")] > 5 and apart[column("shoulder_r_y")] > 5
    assert apart[column("knee_angle_r")] == 0 and apart[column("lumbar_bending")] == 0


def test_gimbal_rows_are_named() -> None:
    values = np.zeros((4, 49))
    values[2, angles.COORDINATES.index("hip_adduction_r")] = np.radians(89)
    assert {k: v.tolist() for k, v in angles.gimbal_rows(values, "opensim").items()} == {
        "hip_r": [2]
    }


def test_a_row_alone_does_not_depend_on_the_others(skel) -> None:
    person = subject.subjects(skel, extreme_betas())[0]
    root = person.root(subject.GROUNDS["camera"])
    poses = poses_inside_limits(20)
    poses[7, anatomy.POSE_NAMES.index("hip_adduction_r")] = np.pi / 2
    trans = np.zeros((20, 3))
    together = angles.coordinates(poses, trans, root, "opensim", sequence=False)
    for k in range(20):
        alone = angles.coordinates(
            poses[k : k + 1], trans[k : k + 1], root, "opensim", sequence=False
        )
        assert (alone[0] == together[k]).all()
