"""SKEL against golden numbers of the published implementation, against body-models and itself."""

import copy
import pickle

import numpy as np
import pytest
import torch
from body_models.skel.torch import SKEL as PeerSkel
from hypothesis import given, settings
from hypothesis import strategies as st

from skel_fit import anatomy, skinning
from skel_fit.model_files import load_skel

GOLDEN_TOLERANCE = 2e-5
OWN_TOLERANCE = 1e-6


def bodies(batch, deviation=0.5, seed=0, dtype=torch.float32, shape=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (
        (deviation * torch.randn(batch, 46, generator=generator)).to(dtype),
        (shape * torch.randn(batch, 10, generator=generator)).to(dtype),
        torch.randn(batch, 3, generator=generator).to(dtype),
    )


@pytest.fixture(scope="module")
def tensors(golden_arrays):
    arrays = golden_arrays("skel_golden_inputs")
    return lambda dtype: tuple(
        torch.tensor(arrays[key], dtype=dtype) for key in ("poses", "betas", "trans")
    )


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def skel(request, golden_skel, golden_skel64):
    return golden_skel if request.param is torch.float32 else golden_skel64


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance)


def test_golden_outputs(skel, tensors, golden_arrays):
    golden = golden_arrays("skel_golden_outputs")
    out = skel(*tensors(skel.dtype), skeleton=True)
    assert out.skin_vertices.dtype == skel.dtype and out.skin_vertices.shape == (8, 6890, 3)
    assert out.skeleton_vertices.shape == (8, len(skel.skeleton_template), 3)
    assert_close(out.skin_vertices[:, ::7], golden["skin_verts"], GOLDEN_TOLERANCE)
    assert_close(out.skeleton_vertices[:, ::50], golden["skel_verts"], GOLDEN_TOLERANCE)
    assert_close(out.joints, golden["joints"], GOLDEN_TOLERANCE)
    assert_close(out.joint_orientations, golden["joints_ori"], GOLDEN_TOLERANCE)


def test_golden_intermediates(skel, tensors, golden_arrays):
    golden = golden_arrays("skel_golden_intermediates")
    poses, betas, _ = tensors(skel.dtype)
    identity = skel.shape(betas)
    assert_close(identity.vertices[:, ::7], golden["v_shaped"], GOLDEN_TOLERANCE)
    assert_close(identity.joints, golden["joints_rest"], GOLDEN_TOLERANCE)
    assert_close(identity.orientations, golden["bone_orient"], GOLDEN_TOLERANCE)
    assert_close(skel.joint_rotations(poses), golden["joint_rot"], GOLDEN_TOLERANCE)
    assert_close(skel.bone_scale(identity), golden["bone_scale"], GOLDEN_TOLERANCE)


def test_golden_pose_offsets(golden_skel64, tensors, golden_arrays):
    poses, betas, _ = tensors(torch.float64)
    _, _, local = golden_skel64.bone_transforms(poses, golden_skel64.shape(betas))
    features = golden_skel64.pose_features(local)
    offsets = torch.einsum("vcf,bf->bvc", golden_skel64.posedirs, features)[:, ::35]
    expected = golden_arrays("skel_golden_intermediates")["pose_offsets"]
    assert_close(offsets, expected, GOLDEN_TOLERANCE)


@pytest.mark.parametrize("deviation", [0.0, 1e-6, 1e-4, 1e-2, 0.3, 1.0])
def test_float32_is_within_a_micrometre_of_float64(golden_skel, golden_skel64, deviation):
    poses, betas, _ = bodies(48, deviation, seed=3)
    single = golden_skel(poses, betas, skeleton=True)
    double = golden_skel64(poses.double(), betas.double(), skeleton=True)
    for name in ("skin_vertices", "joints", "skeleton_vertices"):
        assert_close(getattr(single, name), getattr(double, name).numpy(), OWN_TOLERANCE)


def test_golden_inputs_in_float32_are_within_a_micrometre(golden_skel, golden_skel64, tensors):
    poses, betas, _ = tensors(torch.float32)
    single = golden_skel(poses, betas, skeleton=True)
    double = golden_skel64(poses.double(), betas.double(), skeleton=True)
    for name in ("skin_vertices", "joints", "skeleton_vertices"):
        assert_close(getattr(single, name), getattr(double, name).numpy(), OWN_TOLERANCE)


def test_double_converts_the_module(golden_skel, golden_skel64):
    poses, betas, trans = bodies(4, dtype=torch.float64)
    found = copy.deepcopy(golden_skel).double()(poses, betas, trans, True)
    expected = golden_skel64(poses, betas, trans, True)
    assert found.skin_vertices.dtype == torch.float64
    assert_close(found.skin_vertices, expected.skin_vertices.numpy(), OWN_TOLERANCE)
    assert_close(found.skeleton_vertices, expected.skeleton_vertices.numpy(), OWN_TOLERANCE)


def test_agrees_with_body_models(golden_models, golden_skel64):
    # An independent implementation without the skeleton mesh; float32.
    peer = PeerSkel(model_path=golden_models / "skel_male.pkl", gender="male")
    poses, betas, trans = bodies(16, 0.7, seed=5)
    body = torch.cat((poses[:, :23], poses[:, 26:]), 1)
    head = poses[:, 23:26]
    ours = golden_skel64(poses.double(), betas.double(), trans.double())
    skin = peer.forward_vertices(body, head, shape=betas, global_translation=trans)
    chain = peer.forward_skeleton(body, head, shape=betas, global_translation=trans)
    assert_close(skin, ours.skin_vertices.numpy(), 5e-6)
    assert_close(chain[..., :3, 3], ours.joints.numpy(), 5e-6)
    # Its rotations are those of the chain, which start from the identity at rest.
    rest = golden_skel64.shape(betas.double()).orientations
    assert_close(chain[..., :3, :3] @ rest.float(), ours.joint_orientations.numpy(), 1e-5)


# ---- the published quirks, each by what it means ------------------------------------------------


def test_rest_pose_is_the_shaped_template(golden_skel64):
    _, betas, trans = bodies(2, dtype=torch.float64)
    out = golden_skel64(torch.zeros(2, 46, dtype=torch.float64), betas, trans)
    rest = golden_skel64.shape(betas)
    weights = golden_skel64.skin_weights.sum(1)
    assert_close(weights, np.ones(6890), 1e-12)
    assert_close(out.skin_vertices, (rest.vertices + trans[:, None]).numpy(), 1e-12)
    assert_close(out.joint_orientations, rest.orientations.numpy(), 1e-12)


def test_pelvis_joint_never_moves_with_the_pose(golden_skel64):
    poses, betas, trans = bodies(5, 1.0, dtype=torch.float64)
    out = golden_skel64(poses, betas, trans)
    expected = golden_skel64.shape(betas).joints[:, 0] + trans
    assert_close(out.joints[:, 0], expected.numpy(), 1e-12)


def test_calcaneus_not_talus_drives_the_foot_correctives(golden_skel64):
    _, betas, _ = bodies(1, dtype=torch.float64)
    identity = golden_skel64.shape(betas)

    def features(name):
        poses = torch.zeros(1, 46, dtype=torch.float64)
        poses[0, anatomy.POSE_NAMES.index(name)] = 0.5
        return golden_skel64.pose_features(golden_skel64.bone_transforms(poses, identity)[2])

    for side in "rl":
        assert features(f"ankle_angle_{side}").abs().max() < 1e-12
        assert features(f"subtalar_angle_{side}").abs().max() > 0.1


def test_left_ankle_is_not_mirrored_unless_asked(golden_models, golden_skel64):
    corrected = load_skel(golden_models, "male", dtype=torch.float64, corrected_left_ankle=True)
    poses, _, _ = bodies(3, dtype=torch.float64)
    plain, fixed = golden_skel64.joint_rotations(poses), corrected.joint_rotations(poses)
    changed = (plain - fixed).abs().amax((0, 2, 3)) > 1e-3
    assert changed.nonzero().flatten().tolist() == [anatomy.JOINT_NAMES.index("talus_l")]
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    same = torch.full((1, 46), 0.4, dtype=torch.float64)
    right, left = corrected.joint_rotations(same)[0, [3, 8]]
    assert_close(left, (mirror @ right @ mirror).numpy(), 1e-12)


def test_left_hand_is_scaled_by_the_right_hand(golden_skel64):
    _, betas, _ = bodies(3, shape=2.0, dtype=torch.float64)
    scale = golden_skel64.bone_scale(golden_skel64.shape(betas))
    np.testing.assert_array_equal(scale[:, 18].numpy(), scale[:, 23].numpy())
    np.testing.assert_array_equal(scale[:, [5, 10]].numpy(), np.ones((3, 2, 3)))


def test_spine_lengths_are_positive_even_upside_down(golden_skel_dict, tmp_path):
    data = dict(golden_skel_dict)
    order = np.arange(24)
    order[[12, 13]] = [13, 12]  # head joint below the thorax joint
    data["J_regressor_osim"] = data["J_regressor_osim"].toarray()[order]
    (tmp_path / "skel_male.pkl").write_bytes(pickle.dumps(data))
    skel = load_skel(tmp_path, "male")
    identity = skel.shape(torch.zeros(1, 10))
    rise = identity.joints[0, 13, 1] - identity.joints[0, 12, 1]
    assert rise < 0 and identity.spine_lengths[0, 2] == -rise


def test_spine_arc_is_smooth_through_zero(golden_skel64):
    _, betas, _ = bodies(1, dtype=torch.float64)
    identity = golden_skel64.shape(betas)
    angles = torch.tensor([0.0, 1e-9, 0.99e-5, 1.01e-5, 9.99e-3, 1.001e-2], dtype=torch.float64)
    poses = torch.zeros(len(angles), 46, dtype=torch.float64)
    poses[:, 17] = angles
    height = identity.spine_lengths[0, 0]
    found = golden_skel64.local_translations(poses, identity)[:, 11] - identity.offsets[:, 11]
    with np.errstate(invalid="ignore"):
        sideways = -height.numpy() * angles.numpy() / 2  # leading term
    assert_close(found[:, 0], sideways * (1 - angles.numpy() ** 2 / 12), 1e-12)
    assert_close(found[:, 1], -height.numpy() * angles.numpy() ** 2 / 6, 1e-10)


# ---- batches, identities, options ---------------------------------------------------------------


@given(batch=st.integers(1, 80), pick=st.integers(0, 79), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_a_row_does_not_depend_on_its_batch(golden_skel64, batch, pick, seed):
    poses, betas, trans = bodies(batch, seed=seed, dtype=torch.float64)
    row = slice(pick % batch, pick % batch + 1)
    many = golden_skel64(poses, betas, trans)
    alone = golden_skel64(poses[row], betas[row], trans[row])
    assert_close(many.skin_vertices[row], alone.skin_vertices.numpy(), 1e-13)
    assert_close(many.joints[row], alone.joints.numpy(), 1e-13)


def test_identity_is_reusable_and_shared(golden_skel):
    poses, betas, trans = bodies(40)
    identity = golden_skel.shape(betas)
    full = golden_skel(poses, betas, trans, True)
    cached = golden_skel(poses, trans=trans, skeleton=True, identity=identity)
    assert_close(cached.skin_vertices, full.skin_vertices.numpy(), OWN_TOLERANCE)
    assert torch.equal(full.skeleton_vertices, cached.skeleton_vertices)
    one = golden_skel(poses, identity=identity.rows(slice(2, 3)), trans=trans, skeleton=True)
    repeated = golden_skel(poses, betas[2:3].expand(40, -1), trans, True)
    assert_close(one.skin_vertices, repeated.skin_vertices.numpy(), OWN_TOLERANCE)
    assert_close(one.skeleton_vertices, repeated.skeleton_vertices.numpy(), OWN_TOLERANCE)
    with pytest.raises(AttributeError):
        identity.joints = identity.offsets


def test_translation_is_added_last_and_optional(golden_skel):
    poses, betas, trans = bodies(3)
    placed, plain = golden_skel(poses, betas, trans, True), golden_skel(poses, betas, None, True)
    for name in ("skin_vertices", "joints", "skeleton_vertices"):
        expected = (getattr(plain, name) + trans[:, None]).numpy()
        assert_close(getattr(placed, name), expected, OWN_TOLERANCE)
    assert golden_skel(poses, betas).skeleton_vertices is None


def test_empty_batch(golden_skel):
    out = golden_skel(*(t[:0] for t in bodies(1)), skeleton=True)
    assert out.skin_vertices.shape == (0, 6890, 3) and out.joints.shape == (0, 24, 3)
    assert out.skeleton_vertices.shape == (0, len(golden_skel.skeleton_template), 3)


def test_checkpoints_never_hold_the_model(golden_skel):
    assert list(golden_skel.state_dict()) == [] and list(golden_skel.parameters()) == []


def test_bad_input_is_named(golden_skel):
    poses, betas, trans = bodies(2)
    with pytest.raises(ValueError, match=r"poses \(B, 46\), found \(2, 45\)"):
        golden_skel(poses[:, :45], betas, trans)
    with pytest.raises(ValueError, match=r"betas \(B, 10\), found \(2, 9\)"):
        golden_skel(poses, betas[:, :9], trans)
    with pytest.raises(ValueError, match=r"poses as torch\.float32"):
        golden_skel(poses.double(), betas, trans)
    with pytest.raises(ValueError, match="1 or 2 rows"):
        golden_skel(poses, bodies(3)[1], trans)
    with pytest.raises(ValueError, match="trans of 2 rows, found 1"):
        golden_skel(poses, betas, trans[:1])
    with pytest.raises(ValueError, match="either betas or identity"):
        golden_skel(poses)


def test_torchs_default_dtype_changes_nothing(golden_skel):
    generator = torch.Generator().manual_seed(0)
    poses = 0.3 * torch.randn(20, 46, generator=generator)
    betas, trans = torch.zeros(20, 10), torch.zeros(20, 3)

    def made() -> list[torch.Tensor]:
        own = poses.clone().requires_grad_()
        skin = golden_skel(own, betas, trans).skin_vertices
        skin.square().sum().backward()
        return [skin.detach(), own.grad, golden_skel(poses, betas, trans).joints]

    expected = made()
    torch.set_default_dtype(torch.float64)
    try:
        found = made()
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)


def test_no_autocast_inside(golden_skel):
    poses, betas, trans = bodies(2)
    expected = golden_skel(poses, betas, trans).skin_vertices
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = golden_skel(poses, betas, trans).skin_vertices
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerator_agrees(golden_models, golden_skel64):
    poses, betas, trans = bodies(600)
    skel = load_skel(golden_models, "male").cuda()
    found = skel(poses.cuda(), betas.cuda(), trans.cuda() * 0, True)
    expected = golden_skel64(poses.double(), betas.double(), trans.double() * 0, True)
    assert_close(found.skin_vertices.cpu(), expected.skin_vertices.numpy(), OWN_TOLERANCE)
    assert_close(found.skeleton_vertices.cpu(), expected.skeleton_vertices.numpy(), OWN_TOLERANCE)


# ---- gradients ----------------------------------------------------------------------------------


def projected(skel, skeleton=True):
    """A few fixed random combinations of all outputs, so that gradcheck stays small."""
    generator = torch.Generator().manual_seed(9)

    def weights(n):
        return torch.randn(n * 3, 4, generator=generator, dtype=torch.float64) / n**0.5

    skin, bones = weights(6890), weights(len(skel.skeleton_template))
    joints = weights(24)

    def function(poses, betas, trans):
        out = skel(poses, betas, trans, skeleton)
        parts = [out.skin_vertices.flatten(1) @ skin, out.joints.flatten(1) @ joints]
        if skeleton:
            parts.append(out.skeleton_vertices.flatten(1) @ bones)
        return torch.cat(parts, 1)

    return function


@pytest.mark.parametrize("deviation", [0.0, 0.4])
def test_gradcheck(golden_skel64, deviation):
    inputs = [t.requires_grad_() for t in bodies(1, deviation, dtype=torch.float64)]
    assert torch.autograd.gradcheck(projected(golden_skel64), inputs, atol=1e-6, rtol=1e-5)


def test_gradients_are_finite_at_the_golden_poses(golden_skel, tensors):
    # Sample 0 is rest, sample 6 has exact zeros and angles below 1e-5.
    poses, betas, trans = (t.clone().requires_grad_() for t in tensors(torch.float32))
    out = golden_skel(poses, betas, trans, True)
    total = out.skin_vertices.square().sum() + out.skeleton_vertices.square().sum()
    (total + out.joint_orientations.square().sum()).backward()
    for leaf in (poses, betas, trans):
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() > 0


def test_forward_mode_jacobian_works(golden_skel64):
    poses, betas, _ = bodies(1, dtype=torch.float64)

    def joints(q):
        return golden_skel64(q[None], betas).joints[0]

    forward = torch.func.jacfwd(joints)(poses[0])
    backward = torch.autograd.functional.jacobian(joints, poses[0])
    assert_close(forward, backward.numpy(), 1e-12)


@pytest.fixture(scope="module")
def degenerate_skel(golden_skel_dict, tmp_path_factory):
    """File with bones of length zero (head on thorax, radius on ulna) and a turned-over one."""
    data = dict(golden_skel_dict)
    regressor = data["J_regressor_osim"].toarray()
    regressor[13], regressor[18] = regressor[12], regressor[17]
    regressor[4] = regressor[3]
    data["J_regressor_osim"] = regressor
    transforms = data["apose_rel_transfo"].copy()
    transforms[2, :3, 3] *= -1  # the template femur points the other way
    data["apose_rel_transfo"] = transforms
    path = tmp_path_factory.mktemp("degenerate") / "skel_male.pkl"
    path.write_bytes(pickle.dumps(data))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_with_degenerate_bones(degenerate_skel, dtype):
    skel = load_skel(degenerate_skel, "male", dtype=dtype)
    poses, betas, trans = (t.requires_grad_() for t in bodies(3, 0.3, dtype=dtype))
    out = skel(poses, betas, trans, True)
    loss = sum(
        t.square().sum() for t in (out.skin_vertices, out.skeleton_vertices, out.joint_orientations)
    )
    loss.backward()
    for tensor in (loss, poses.grad, betas.grad, trans.grad):
        assert torch.isfinite(tensor).all()
    # As published: the orientation of a bone without direction is the zero matrix.
    talus = skel.shape(betas).orientations[:, 3]
    assert torch.equal(talus, torch.zeros_like(talus))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_parallel_and_opposite_bones_are_not_turned(golden_skel_dict, tmp_path, sign):
    # Exactly (anti)parallel template and target directions: published result is the identity.
    data = dict(golden_skel_dict)
    base = np.tile(np.eye(3), (24, 1, 1))
    data["per_joint_rot"] = base
    regressor = np.zeros((24, 6890))
    regressor[np.arange(24), np.arange(24)] = 1
    data["J_regressor_osim"] = regressor
    template = data["skin_template_v"].copy()
    template[:24] = 0
    template[2] = [0, -0.5, 0]  # knee straight below the hip
    data["skin_template_v"] = template
    transforms = data["apose_rel_transfo"].copy()
    transforms[2, :3, 3] = [0, -0.4 * sign, 0]
    data["apose_rel_transfo"] = transforms
    path = tmp_path / "skel_male.pkl"
    path.write_bytes(pickle.dumps(data))
    skel = load_skel(path, "male", dtype=torch.float64)
    betas = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    femur = skel.shape(betas).orientations[0, 1]
    assert_close(femur, np.eye(3), 0)
    femur.square().sum().backward()
    assert torch.isfinite(betas.grad).all()


def test_root_stored_as_zero_makes_the_pelvis_a_leaf(golden_skel_dict, tmp_path, golden_skel64):
    data = dict(golden_skel_dict)
    tree = data["osim_kintree_table"].copy()
    tree[0, 0] = 0
    data["osim_kintree_table"] = tree
    (tmp_path / "skel_male.pkl").write_bytes(pickle.dumps(data))
    leaf = load_skel(tmp_path, "male", dtype=torch.float64)
    _, betas, _ = bodies(2, dtype=torch.float64)
    plain, changed = (m.bone_scale(m.shape(betas)) for m in (golden_skel64, leaf))
    assert (plain[:, 0] != 1).all()
    np.testing.assert_array_equal(changed[:, 0].detach().numpy(), np.ones((2, 3)))
    np.testing.assert_array_equal(changed[:, 1:].numpy(), plain[:, 1:].numpy())


# ---- the skin in one pass on a CPU --------------------------------------------------------------


def _posed(skel, rows: int, shapes: int, *, by_identity: bool) -> list[torch.Tensor]:
    """Skin of random bodies and the gradients of poses, betas and translation."""
    generator = torch.Generator().manual_seed(rows)
    poses = (0.4 * torch.randn(rows, 46, generator=generator)).requires_grad_()
    betas = torch.randn(shapes, 10, generator=generator).requires_grad_()
    trans = torch.randn(rows, 3, generator=generator).requires_grad_()
    given = {"identity": skel.shape(betas)} if by_identity else {"betas": betas}
    skin = skel(poses, trans=trans, **given).skin_vertices
    pull = torch.randn(skin.shape, generator=generator)
    gradients = torch.autograd.grad((skin * pull).sum(), (poses, betas, trans))
    return [skin.detach(), *gradients]


@pytest.mark.parametrize("by_identity", [False, True])
@pytest.mark.parametrize(("rows", "shapes"), [(16, 16), (37, 1), (260, 260)])
def test_the_skin_in_one_pass_is_that_of_torch(golden_skel, monkeypatch, rows, shapes, by_identity):
    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: 1, True: 1})
    assert skinning.can_skin((torch.zeros(rows, 1),))
    found = _posed(golden_skel, rows, shapes, by_identity=by_identity)
    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: rows + 1, True: rows + 1})
    expected = _posed(golden_skel, rows, shapes, by_identity=by_identity)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("skeleton", [False, True])
@pytest.mark.parametrize("shapes", [1, 70])
@pytest.mark.parametrize("by_identity", [False, True])
def test_compiled_bones_are_those_of_torch(golden_skel, monkeypatch, shapes, by_identity, skeleton):
    generator = torch.Generator().manual_seed(7)
    poses = torch.randn(70, 46, generator=generator)
    betas = torch.randn(shapes, 10, generator=generator)
    trans = torch.randn(70, 3, generator=generator)
    given = {"identity": golden_skel.shape(betas)} if by_identity else {"betas": betas}
    found = golden_skel(poses, trans=trans, skeleton=skeleton, **given)
    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: 71, True: 71})
    expected = golden_skel(poses, trans=trans, skeleton=skeleton, **given)
    names = ["skin_vertices", "joints", "joint_orientations", *["skeleton_vertices"] * skeleton]
    for name in names:
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize("shapes", [1, 70])
@pytest.mark.parametrize(("by_identity", "correctives"), [(False, 1.0), (True, 1.0), (True, 100.0)])
def test_compiled_bones_have_the_gradients_of_torch(
    golden_skel, monkeypatch, shapes, by_identity, correctives
):
    """Correctives move skin by millimetres: only larger ones show small errors of their share."""
    skel = copy.deepcopy(golden_skel)
    skel._basis *= correctives
    generator = torch.Generator().manual_seed(8)
    poses = torch.randn(70, 46, generator=generator)
    betas = torch.randn(shapes, 10, generator=generator)
    trans = torch.randn(70, 3, generator=generator)
    given = {"identity": skel.shape(betas)} if by_identity else {"betas": betas}
    names = ("skin_vertices", "joints", "joint_orientations")
    pulls = [torch.randn(70, n, 3, 3, generator=generator) for n in (6890, 24, 24)]

    def gradients(name: str, pull: torch.Tensor) -> list[torch.Tensor]:
        leaves = [poses.clone().requires_grad_(), trans.clone().requires_grad_()]
        found = getattr(skel(leaves[0], trans=leaves[1], **given), name)
        pull = pull if found.ndim == 4 else pull[..., 0]
        made = torch.autograd.grad((found * pull).sum(), leaves, allow_unused=True)
        return [gradient for gradient in made if gradient is not None]

    found = [gradients(name, pull) for name, pull in zip(names, pulls, strict=True)]
    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: 71, True: 71})
    expected = [gradients(name, pull) for name, pull in zip(names, pulls, strict=True)]
    for name, mine, theirs in zip(names, found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            largest = float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest, msg=name)


def test_the_skin_in_one_pass_has_second_derivatives(golden_skel, monkeypatch) -> None:
    def second() -> torch.Tensor:
        poses = torch.linspace(-0.5, 0.5, 46).repeat(16, 1).requires_grad_()
        square = golden_skel(poses, torch.zeros(1, 10)).skin_vertices.square().sum()
        (slope,) = torch.autograd.grad(square, poses, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), poses)[0]

    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: 1, True: 1})
    found = second()
    monkeypatch.setattr(skinning, "LEAST_ROWS", {False: 99, True: 99})
    expected = second()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_who_asks_for_more_than_gradients_gets_the_operations_of_torch(golden_skel) -> None:
    poses, betas = torch.zeros(64, 46), torch.zeros(1, 10)
    tangent = torch.zeros(64, 46)
    assert skinning.can_skin((poses,))
    tangent[:, 0] = 1.0

    def skin(q: torch.Tensor) -> torch.Tensor:
        return golden_skel(q, betas).skin_vertices

    slope = torch.func.jvp(skin, (poses,), (tangent,))[1]
    step = (skin(poses + 1e-3 * tangent) - skin(poses - 1e-3 * tangent)) / 2e-3
    torch.testing.assert_close(slope, step, rtol=0, atol=1e-3)
    assert not skinning.can_skin((poses.double(),))
    assert not skinning.can_skin((poses[:15],))
    assert skinning.can_skin((poses[:32].requires_grad_(),))


def test_a_row_of_the_skin_does_not_depend_on_its_neighbours(golden_skel) -> None:
    poses, betas, trans = bodies(70, 0.4)
    whole = golden_skel(poses, betas, trans, skeleton=True)
    part = golden_skel(poses[37:56], betas[37:56], trans[37:56], skeleton=True)
    for name in ("skin_vertices", "joints", "skeleton_vertices"):
        assert torch.equal(getattr(whole, name)[37:56], getattr(part, name)), name


def test_a_row_of_the_skin_does_not_depend_on_the_number_of_threads(golden_skel) -> None:
    generator = torch.Generator().manual_seed(5)
    poses = 0.4 * torch.randn(70, 46, generator=generator)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(golden_skel(poses, torch.zeros(1, 10)).skin_vertices)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
