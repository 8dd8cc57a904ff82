"""HMR-SKEL files, 4D-Humans and HSMR tars, sequences, single-image fits; pickles run nothing."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.readers import open_source
from pipeline.readers.pickles import PickleError, load_pickle
from tests.label_files import (
    Canary,
    amass,
    camerahmr,
    hmr_skel,
    person,
    single_image,
    write_npz,
    write_tar,
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# ---- HMR-SKEL -----------------------------------------------------------------------------------


def test_hmr_skel(tmp_path: Path) -> None:
    members = hmr_skel(9)
    source = open_source(write_npz(tmp_path / "coco-release_skel.npz", members), smpl_gender="male")
    source.check()
    rows = source.read(3, 9)
    assert source.format == "hmr-skel" and (rows.reasons == "").all()
    assert all(same(rows.fields[name], values[3:9]) for name, values in members.items())
    assert same(rows.poses, members["pose_cam"][3:9])
    assert same(rows.transl, members["trans_cam"][3:9])
    assert source.layout.skel_poses == "skel_poses" and source.layout.skel_trans == "skel_trans"


def test_hmr_skel_repacked_from_tars(tmp_path: Path) -> None:
    members = hmr_skel(4)
    for old, new in (("skel_poses", "orig_poses"), ("skel_betas", "orig_betas"),
                     ("gtkps", "keypoints_2d"), ("keypoints3d", "keypoints_3d")):  # fmt: skip
        members[new] = members.pop(old)
    copies = {k: v for k, v in members.items() if k not in ("pose_cam", "shape", "trans_cam")}
    rows = open_source(write_npz(tmp_path / "a.npz", copies)).read(0, 4)
    assert same(rows.poses, members["poses"]) and (rows.reasons == "").all()
    for name in ("poses", "betas", "trans"):
        del copies[name]
    source = open_source(write_npz(tmp_path / "b.npz", copies))
    rows = source.read(0, 4)
    assert set(rows.reasons) == {"no_smpl_pose"} and np.isnan(rows.poses).all()
    assert same(rows.fields["orig_poses"], members["orig_poses"])


def test_hmr_skel_of_wrong_width(tmp_path: Path) -> None:
    members = hmr_skel(4)
    members["skel_poses"] = members["skel_poses"][:, :45]
    with pytest.raises(InputError, match=r"'skel_poses': .*\(rows, 45\), expected .*\(rows, 46\)"):
        open_source(write_npz(tmp_path / "a.npz", members))
    with pytest.raises(InputError, match=r"'skel_poses': missing; .* no orig_poses"):
        open_source(write_npz(tmp_path / "b.npz", camerahmr()), format="hmr-skel")


# ---- tars ---------------------------------------------------------------------------------------


def _images(random: np.random.Generator, prefix: str = "aic-train", hsmr: bool = False) -> dict:
    counts = (1, 0, 3, None, 2, 1)
    return {
        f"{prefix}/{i:06d}": None if n is None else [person(random, hsmr=hsmr) for _ in range(n)]
        for i, n in enumerate(counts)
    }


@pytest.mark.parametrize("hsmr", [False, True])
def test_tars(tmp_path: Path, hsmr: bool) -> None:
    random = np.random.default_rng(5)
    first, second = _images(random, hsmr=hsmr), _images(random, "b/c", hsmr=hsmr)
    folder = tmp_path / "tars"
    write_tar(folder / "000001.tar", second)
    write_tar(folder / "000000.tar", first)
    expected = [
        (f"{i:06d}.tar", f"{key}.jpg", place, dictionary)
        for i, images in enumerate((first, second))
        for key, persons in images.items()
        for place, dictionary in enumerate(persons or [])
    ]
    source = open_source(folder)
    source.check()
    assert source.format == "webdataset" and source.rows == len(expected) == 14
    assert source.files == (folder / "000000.tar", folder / "000001.tar")
    whole = source.read(0, 14)
    for row, (tar, name, place, dictionary) in enumerate(expected):
        fields = {key: value[row] for key, value in whole.fields.items()}
        assert (fields["tar"], fields["imgname"], fields["person"]) == (tar, name, place)
        for key, value in dictionary.items():
            if key != "extra_info":
                assert same(np.asarray(fields[key]), np.asarray(value)), key
        info = dictionary["extra_info"]
        assert fields["extra_info.detection_npz_idx"] == info["detection_npz_idx"]
        loss = info["fitting_loss"].item()["reprojection_loss"]
        assert fields["extra_info.fitting_loss.reprojection_loss"] == loss
        assert same(whole.poses[row], dictionary["body_pose"].astype("f8"))
    assert (whole.reasons == "").all()
    reopened = pickle.loads(pickle.dumps(open_source(folder)))
    for start in range(15):
        for stop in range(start, 15):
            part = reopened.read(start, stop)
            assert all(same(part.fields[k], whole.fields[k][start:stop]) for k in whole.fields)


def test_persons_that_lack_something(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    persons = [person(random) for _ in range(4)]
    persons[0]["has_body_pose"] = np.array(0.0)
    del persons[1]["extra_info"]["fitting_loss"]
    persons[2]["extra_info"]["detection_npz_idx"] = None
    persons[3]["body_pose"][5] = np.nan
    rows = open_source(write_tar(tmp_path / "a.tar", {"x/1": persons})).read(0, 4)
    assert rows.reasons.tolist() == ["no_smpl_pose", "", "", "non_finite_pose"]
    loss = rows.fields["extra_info.fitting_loss.reprojection_loss"]
    assert np.isnan(loss).tolist() == [False, True, False, False]
    assert rows.fields["extra_info.detection_npz_idx"][2] == -1


def test_a_tar_that_changes_is_read_anew(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    path = tmp_path / "a.tar"
    assert open_source(write_tar(path, {"x/1": [person(random)]})).rows == 1
    assert open_source(write_tar(path, {"x/1": [person(random)] * 2})).rows == 2


def _tar_bytes(images: dict) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


_LIST = pickle.dumps([person(np.random.default_rng(0))])
_GOOD = _tar_bytes({f"k/{i}.data.pyd": _LIST for i in range(3)})
_SECOND = _GOOD.find(b"k/1.data.pyd")
BROKEN_TARS = {
    "empty": (b"", "empty"),
    "text": (b"hello" * 200, "not a plain, whole tar"),
    "cut in a member": (_GOOD[: _SECOND + 600], "cut off|end mark"),
    "cut between members": (_GOOD[:_SECOND], "no end mark"),
    "damaged header": (_GOOD[:_SECOND] + b"\xff" * 20 + _GOOD[_SECOND + 20 :], "no end mark"),
    "no labels": (_tar_bytes({"k/1.jpg": b"x"}), "no person"),
    "twice": (_tar_bytes({"k/1.data.pyd": _LIST}) * 1, None),
    "not a list": (_tar_bytes({"k/1.data.pyd": pickle.dumps({"a": 1})}), "'k/1.data.pyd'.*list"),
    "not a pickle": (_tar_bytes({"k/1.data.pyd": b"nonsense"}), "'k/1.data.pyd'.*pickle"),
    "cut pickle": (_tar_bytes({"k/1.data.pyd": _LIST[:500]}), "'k/1.data.pyd'.*pickle"),
    "odd entry": (
        _tar_bytes({"k/1.data.pyd": pickle.dumps([{"center": [1, "a", None]}])}),
        "'center'",
    ),
}


@pytest.mark.parametrize("name", BROKEN_TARS)
def test_a_broken_tar_is_one_line(tmp_path: Path, name: str) -> None:
    data, said = BROKEN_TARS[name]
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    if said is None:
        with tarfile.open(path, "a") as archive:
            archive.addfile(tarfile.TarInfo("k/1.data.pyd"))
        said = "stored twice"
    with pytest.raises(InputError, match=said) as caught:
        open_source(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_tars_and_shapes_that_disagree(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    odd = person(random)
    odd["keypoints_2d"] = odd["keypoints_2d"][:43]
    with pytest.raises(InputError, match=r"'x/2.data.pyd': entry 'keypoints_2d'"):
        open_source(write_tar(tmp_path / "a.tar", {"x/1": [person(random)], "x/2": [odd]}))


# ---- sequences ----------------------------------------------------------------------------------


def test_amass(tmp_path: Path) -> None:
    members = amass(16)  # as many frames as betas
    source = open_source(
        write_npz(tmp_path / "CMU" / "01_01_poses.npz", members),
        format="sequence",  # a choice: found by itself, it is SMPL-H (test_inputs.py)
        smpl_gender="column",
        skel_gender="column",
    )
    rows = source.read(2, 9)
    assert source.format == "sequence" and source.rows == 16 and (rows.reasons == "").all()
    assert same(rows.poses[:, :66], members["poses"][2:9, :66]) and not rows.poses[:, 66:].any()
    assert same(rows.betas, np.tile(members["betas"][:10], (7, 1)))
    assert same(rows.fields["betas"], np.tile(members["betas"], (7, 1)))
    assert same(rows.fields["poses"], members["poses"][2:9])
    assert same(rows.transl, members["trans"][2:9])
    assert set(rows.smpl_gender) == {"male"} and set(rows.fields["mocap_framerate"]) == {120.0}
    assert set(rows.fields["sequence"]) == {"01_01_poses"}
    assert rows.fields["frame"].tolist() == list(range(2, 9))


def test_folder_of_sequences(tmp_path: Path) -> None:
    for i, (name, frames) in enumerate((("b/long_name", 5), ("a", 3), ("b/c", 4))):
        write_npz(tmp_path / "amass" / f"{name}_poses.npz", amass(frames, seed=i))
    write_npz(tmp_path / "amass" / "b" / "shape.npz", {"betas": np.zeros(16)})
    source = open_source(tmp_path / "amass", format="sequence", pattern="**/*_poses.npz")
    source.check()
    rows = source.read(0, 12)
    assert [file.name for file in source.files] == [
        "a_poses.npz", "c_poses.npz", "long_name_poses.npz"]  # fmt: skip
    assert rows.fields["sequence"].tolist() == (
        ["a_poses"] * 3 + ["b/c_poses"] * 4 + ["b/long_name_poses"] * 5
    )
    part = pickle.loads(pickle.dumps(source)).read(2, 8)
    assert all(same(part.fields[name], rows.fields[name][2:8]) for name in rows.fields)
    assert open_source(tmp_path / "amass").rows == 12  # AMASS's shapes are passed over
    write_npz(tmp_path / "amass" / "b" / "other.npz", {"betas": np.zeros(16)})
    with pytest.raises(InputError, match=r"other\.npz: member 'poses': missing"):
        open_source(tmp_path / "amass", format="sequence")
    with pytest.raises(InputError, match="leads out"):
        open_source(tmp_path / "amass", format="sequence", pattern="../**/*")
    odd = amass(4)
    del odd["dmpls"]
    write_npz(tmp_path / "amass" / "z_poses.npz", odd)
    with pytest.raises(InputError, match=r"z_poses\.npz: columns differ .*dmpls"):
        open_source(tmp_path / "amass", format="sequence", pattern="**/*_poses.npz")


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
@pytest.mark.parametrize("tensors", [False, True])
def test_dictionaries(tmp_path: Path, suffix: str, tensors: bool) -> None:
    """Pairs of global_orient and body_pose; no translation; text gender."""
    random = np.random.default_rng(3)
    orient, body = random.normal(0, 0.3, (6, 3)), random.normal(0, 0.3, (6, 69))
    content = {"global_orient": orient, "body_pose": body, "betas": random.normal(size=(1, 10))}
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        write_npz(path, content)
    else:
        kept = {k: torch.tensor(v) for k, v in content.items()} if tensors else content
        path.write_bytes(pickle.dumps({**kept, "gender": "female", "fps": 30}))
    source = open_source(path, smpl_gender="column" if suffix == "pkl" else "neutral")
    rows = source.read(0, 6)
    assert same(rows.poses, np.c_[orient, body]) and not rows.transl.any()
    assert same(rows.betas, np.tile(content["betas"], (6, 1)))
    assert set(rows.smpl_gender) == {"female" if suffix == "pkl" else "neutral"}


def test_axis_angle_wins_over_matrices(tmp_path: Path) -> None:
    fit = single_image(tensors=False)["pred_smpl_parms"].item()
    vectors = np.r_[fit["global_orient_axis_angle"].ravel(), fit["body_pose_axis_angle"].ravel()]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(fit))
    assert same(open_source(tmp_path / "a.pkl").read(0, 1).poses[0], vectors.astype("f8"))
    for name in ("global_orient_axis_angle", "body_pose_axis_angle"):
        del fit[name]
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(fit))
    poses = open_source(tmp_path / "b.pkl").read(0, 1).poses[0]
    np.testing.assert_allclose(poses, vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"betas": np.zeros(10)}, "it lacks poses"),
        ({"poses": np.zeros((3, 72))}, "'betas': missing"),
        ({"poses": np.zeros((0, 72)), "betas": np.zeros(10)}, "0 rows"),
        ({"poses": np.zeros((3, 99)), "betas": np.zeros(10)}, "72 pose values"),
        ({"poses": np.zeros((3, 72)), "betas": np.zeros(9)}, "'betas'.*10 or more"),
        ({"poses": np.zeros((3, 72)), "betas": np.zeros(10), "trans": np.zeros((2, 3))}, "'trans'"),
        ({"poses": np.zeros((3, 72)), "betas": np.zeros(10), "x": None}, "'x'"),
        ({"poses": np.zeros((3, 72)), "betas": np.zeros(10), "v": np.zeros((999, 3))}, "skip: v"),
        ([1, 2], "expected a dictionary"),
    ],
)
def test_a_broken_sequence_is_one_line(tmp_path: Path, content, said: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=said) as caught:
        open_source(path).read(0, 1)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# ---- single images ------------------------------------------------------------------------------


@pytest.mark.parametrize("tensors", [False, True])
def test_single_images(tmp_path: Path, tensors: bool) -> None:
    fits = [single_image(seed=seed, tensors=tensors) for seed in range(3)]
    for seed, fit in enumerate(fits):
        # The order of the members means nothing.
        names = list(fit)[seed:] + list(fit)[:seed]
        write_npz(tmp_path / "fits" / f"{seed}.npz", {name: fit[name] for name in names})
    source = open_source(tmp_path / "fits")
    source.check()
    assert source.format == "single-image" and source.rows == 3
    rows = source.read(0, 3)
    for row, fit in enumerate(fits):
        parms = {k: np.asarray(v) for k, v in fit["pred_smpl_parms"].item().items()}
        parts = (parms["global_orient_axis_angle"], parms["body_pose_axis_angle"])
        pose = np.concatenate([part.ravel() for part in parts])
        assert same(rows.poses[row], pose.astype("f8"))
        assert same(rows.transl[row], fit["pred_cam_t"].astype("f8"))
        assert same(rows.fields["verts"][row], fit["verts"])
        assert all(same(rows.fields[k][row], v[0]) for k, v in parms.items())
    assert (rows.reasons == "").all()
    one = open_source(tmp_path / "fits" / "1.npz")
    assert one.format == "single-image" and same(one.read(0, 1).poses[0], rows.poses[1])


# ---- pickles ------------------------------------------------------------------------------------


class _Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _hostile(canary: Path) -> dict[str, bytes]:
    live = Canary(canary)
    tensor = torch.zeros(3)
    tensor.hidden = live
    array = np.empty(2, object)
    array[:] = [1, live]
    return {
        "plain": pickle.dumps(live),
        "protocol 0": pickle.dumps(live, protocol=0),
        "in a list": pickle.dumps([{"a": (1, live)}]),
        "as a key's value": pickle.dumps({"poses": np.zeros((3, 72)), "betas": live}),
        "object array": pickle.dumps(array),
        "attribute of a tensor": pickle.dumps(tensor),
        "instance": b"(ios\nsystem\n(Vtouch " + str(canary).encode() + b"\ntR.",
        "getattr": pickle.dumps(_Calls(getattr, np.ndarray, "dump")),
        "module": b"cos\nsystem\n(Vtouch " + str(canary).encode() + b"\ntR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10load.__globals__\x93.",
        "persistent": b"Pos.system\n.",
    }


@pytest.mark.parametrize("name", _hostile(Path("x")))
def test_hostile_pickles_run_nothing(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    data = _hostile(canary)[name]
    # What a pickle names is refused where it is named, before anything could be done with it.
    named = name not in ("instance", "persistent")
    with pytest.raises(PickleError, match="refused: the pickle asks for" if named else None):
        load_pickle(data)
    for path, content in (
        (tmp_path / "a.pkl", data),
        (tmp_path / "a.tar", _tar_bytes({"k/1.data.pyd": data})),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError):
            open_source(path)
    assert not canary.exists()


def test_hostile_tensor_storage(tmp_path: Path) -> None:
    """A tensor's storage is a pickle inside the pickle."""
    canary = tmp_path / "canary"
    inner = pickle.dumps(Canary(canary))
    outer = _Calls(torch.storage._load_from_bytes, inner)
    with pytest.raises(PickleError):
        load_pickle(pickle.dumps({"a": outer}))
    fit = single_image()
    fit["pred_smpl_parms"].item()["betas"] = outer
    path = write_npz(tmp_path / "a.npz", fit)
    with pytest.raises(InputError, match="'pred_smpl_parms'"):
        open_source(path)
    assert not canary.exists()


@pytest.mark.parametrize("make", ["tensor beyond", "shared lists", "many tensors", "huge memo"])
def test_pickles_cannot_ask_for_memory(make: str) -> None:
    tensor = torch.arange(4.0)
    good = pickle.dumps(tensor)
    if make == "tensor beyond":
        data = good.replace(b"K\x04\x85", b"K\x09\x85")  # its size, 4 -> 9
        assert data != good
    elif make == "shared lists":
        value: list = [np.zeros(1000)]
        for _ in range(40):
            value = [value, value]
        data = pickle.dumps(value)
        assert isinstance(load_pickle(data), list)  # 2 ** 40 leaves, each converted once
        return
    elif make == "many tensors":
        storage, hooks = torch.zeros(100_000).storage(), OrderedDict()
        rebuild = torch._utils._rebuild_tensor_v2
        calls = [_Calls(rebuild, storage, 0, (100_000,), (1,), False, hooks) for _ in range(200)]
        data = pickle.dumps(calls)
        assert len(data) < 500_000  # for 80 MB
    else:
        data = b"\x80\x04]r\xff\xff\xff\x7f."
        assert load_pickle(data) == []
        return
    with pytest.raises(PickleError):
        load_pickle(data)


_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=12,
)  # fmt: skip


@given(value=_VALUES, protocol=st.integers(0, 5))
def test_plain_values_come_back(value, protocol: int) -> None:
    assert load_pickle(pickle.dumps(value, protocol=protocol)) == value


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arrays_and_tensors_come_back(data) -> None:
    dtype = data.draw(st.sampled_from(["f4", "f8", ">f8", "i8", "u1", "?", "U3", "S2", "f2"]))
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    values = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    values = np.asarray(values, order=data.draw(st.sampled_from("CF")))
    protocol = data.draw(st.integers(0, 5))
    assert same(np.asarray(load_pickle(pickle.dumps(values, protocol=protocol))), values)
    if dtype in ("f4", "f8", "i8", "u1", "?", "f2"):
        tensor = torch.from_numpy(values.copy())
        tensor = tensor.T if tensor.ndim == 2 and data.draw(st.booleans()) else tensor
        if protocol >= 2:
            back = load_pickle(pickle.dumps([tensor, tensor], protocol=protocol))
            assert same(back[0], tensor.numpy()) or np.array_equal(back[0], tensor.numpy())


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_pickles_are_refused_or_plain(data) -> None:
    content = bytearray(pickle.dumps([{"a": torch.arange(3), "b": np.arange(4.0), "c": "x"}]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        load_pickle(bytes(content))
    except PickleError as error:
        assert "\n" not in str(error)


def test_reading_labels_needs_no_torch() -> None:
    code = "import sys, pipeline.readers; print({'torch', 'smplx'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# ---- what it is ---------------------------------------------------------------------------------


def test_unknown_files(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.csv", b"1,2,3", "not a label file"),
        ("b.npz", None, "no known format"),
    ):
        path = tmp_path / name
        if content is None:
            write_npz(path, {"x": np.zeros(3)})
        else:
            path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            open_source(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label file"):
        open_source(tmp_path / "empty")
