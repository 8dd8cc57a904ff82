"""Readers of other projects' files, and the page about them: docs/inputs.md."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.own_file import Asked
from pipeline.readers import FORMATS, open_source
from pipeline.readers.detect import DESCRIBED
from pipeline.readers.joblib_files import load_pickle_file
from pipeline.readers.pickles import PickleError
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_smpl
from skel_fit.root import turned_smpl
from stages import cli
from tests import foreign_files as foreign
from tests.label_files import Canary
from tools.inputs_page import MARK, PAGE, page

STAND_IN = Path("default-body")


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def npz(path: Path, members: dict) -> Path:
    np.savez(path, **members)
    return path


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def write(folder: Path, format: str, content: Any = None) -> Path:
    """A file of a format under the name of its example."""
    name = next(one.example for one in DESCRIBED if one.name == format)
    make, writer = {
        "3dpw": (foreign.threedpw, foreign.write_python2),
        "emdb": (foreign.emdb, pickled),
        "wham": (foreign.wham, foreign.write_joblib),
        "smpl-file": (foreign.smpl_file, foreign.write_smpl),
        "amass": (foreign.amass, npz),
        "moyo": (foreign.moyo, pickled),
        "bedlam": (foreign.bedlam, npz),
        "gvhmr": (foreign.gvhmr, saved),
        "prompthmr": (foreign.prompthmr, foreign.write_joblib),
    }[format]
    return writer(folder / name, make() if content is None else content)


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_is_what_the_readers_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text.split(MARK)[0])
    assert {one.name for one in DESCRIBED} == set(FORMATS)


@pytest.mark.parametrize(
    "format",
    ["3dpw", "emdb", "wham", "smpl-file", "amass", "moyo", "bedlam", "gvhmr", "prompthmr"],
)
def test_members_of_the_page_are_those_that_are_needed(tmp_path: Path, format: str) -> None:
    """Without a needed member the file is refused by its name, without another it is read."""
    described = next(one for one in DESCRIBED if one.name == format)
    for member in described.members:
        content = getattr(foreign, format.replace("3dpw", "threedpw").replace("-", "_"))()
        *places, last = member.name.replace("mocap_framerate | ", "").split(".")
        place = content
        for part in places:
            place = place[{"ID": 3 if format == "wham" else 4}.get(part, part)]
        place.pop(last, None)
        path = write(tmp_path, format, content)
        options = {"template": "model"} if format == "moyo" else {}
        if not member.needed:
            source = open_source(path, format=format, **options)
            assert (source.read(0, source.rows).reasons == "").any(), member.name
            continue
        with pytest.raises(InputError, match=rf"{last}(\.0)?'") as error:
            open_source(path, format=format, **options)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


# ---- what is read -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smpl():
    return load_smpl(default_body_directory(), "female", dtype=torch.float64)


def posed(smpl, poses: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
    values = [torch.as_tensor(v, dtype=torch.float64) for v in (poses, betas, transl)]
    with torch.no_grad():
        return smpl(
            global_orient=values[0][:, :3], body_pose=values[0][:, 3:], betas=values[1],
            transl=values[2],
        ).vertices.numpy()  # fmt: skip


@pytest.mark.parametrize("format", ["3dpw", "emdb"])
def test_bodies_of_a_world_come_into_the_camera(tmp_path: Path, format: str, smpl) -> None:
    source = open_source(write(tmp_path, format))
    assert source.format == format and source.up == "y-down"
    rows = source.read(1, source.rows)
    assert rows.cameras is not None
    world = posed(smpl, rows.poses, rows.betas, rows.transl)
    wanted = (
        np.einsum("nij,nvj->nvi", rows.cameras[:, :3, :3], world) + rows.cameras[:, None, :3, 3]
    )
    tensors = [torch.as_tensor(v) for v in (rows.poses[:, :3], rows.betas, rows.transl)]
    orient, transl = turned_smpl(smpl, *tensors, torch.as_tensor(rows.cameras[:, :3]))
    moved = posed(smpl, np.c_[orient.numpy(), rows.poses[:, 3:]], rows.betas, transl.numpy())
    assert np.abs(moved - wanted).max() < 1e-7
    assert rows.transl.shape == transl.shape and np.abs(transl.numpy() - rows.transl).max() > 1
    assert set(rows.reasons) == {"", {"3dpw": "no_camera_pose", "emdb": "no_smpl_pose"}[format]}


def test_3dpw(tmp_path: Path) -> None:
    content = foreign.threedpw()
    source = open_source(write(tmp_path, "3dpw"), smpl_gender="column", skel_gender="column")
    rows = source.read(0, 8)
    assert np.array_equal(rows.poses, np.concatenate(content["poses"]))
    assert rows.fields["sequence"].tolist() == [
        f"downtown_walking_00/{person}" for person in (0, 1) for _ in range(4)
    ]
    assert rows.smpl_gender.tolist() == ["male"] * 4 + ["female"] * 4
    assert rows.fields["imgname"][5] == "imageFiles/street_00/image_00001.jpg"
    assert rows.reasons.tolist() == [""] * 5 + ["no_camera_pose"] + [""] * 2
    world = open_source(source.path, frame="world", up="y")
    rows = world.read(0, 8)
    assert world.up == "y" and rows.cameras is None and set(rows.reasons) == {""}


def test_a_world_with_a_frame_rate_is_a_motion_and_a_camera_is_not(tmp_path: Path) -> None:
    path = str(write(tmp_path, "3dpw"))
    camera = Asked(path, models=STAND_IN).own_file()
    assert camera.manifest.fit.sequence is None and "in the camera's axes" in camera.described
    world = Asked(path, models=STAND_IN, option=("frame=world",)).own_file()
    assert world.manifest.fit.sequence is not None
    assert world.manifest.source.options == {"frame": "world"}


def test_a_world_is_converted_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The errors of rows that were moved into cameras, computed again from the world's labels."""
    path = write(tmp_path, "3dpw")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["convert", path.name, "--models", "default-body"]) == 0
    assert cli.run(["verify", "outputs/downtown_walking_00"]) == 0
    from pipeline import open_dataset

    dataset = open_dataset(tmp_path / "outputs" / "downtown_walking_00")
    fitted = dataset.fitted
    assert fitted.sum() == 7
    assert float(dataset["vertex_error_mean"][fitted].max()) < 0.02
    assert (dataset["skel_trans"][fitted][:, 2] > 3).all()  # in front of the camera
    assert cli.run(["audit", "outputs/downtown_walking_00"]) == 5
    assert "moved into cameras" in capsys.readouterr().err


def test_a_translation_is_judged_once_and_in_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """900 m in a world that a camera is 200 m behind: too far. 1.2 km in a world that a camera is
    1.2 km in: not far. What the reader says is what the fit does, and what `verify` expects."""
    content = foreign.threedpw()
    cameras = np.tile(np.eye(4), (4, 1, 1))
    trans = np.zeros((4, 3))
    for row, (world, shift) in enumerate(((900.0, 200.0), (1200.0, -1195.0), (5.0, 994.0))):
        trans[row, 2], cameras[row, 2, 3] = world, shift
    cameras[3, 0, 0], trans[3, 2] = np.nan, 1200.0
    content |= {"cam_poses": cameras, "trans": [trans, trans]}
    for name in ("poses", "betas", "trans", "genders", "campose_valid", "poses2d"):
        content[name] = content[name][:1]
    path = write(tmp_path, "3dpw", content)
    far = "transl_out_of_range"
    assert open_source(path).read(0, 4).reasons.tolist() == [far, "", far, far]
    monkeypatch.chdir(tmp_path)
    assert cli.run(["convert", path.name, "--models", "default-body"]) == 0
    assert cli.run(["verify", "outputs/downtown_walking_00"]) == 0


def test_emdb(tmp_path: Path) -> None:
    content = foreign.emdb()
    source = open_source(write(tmp_path, "emdb"), smpl_gender="column", skel_gender="column")
    rows = source.read(0, 4)
    smpl = content["smpl"]
    assert np.array_equal(rows.poses, np.c_[smpl["poses_root"], smpl["poses_body"]])
    assert rows.reasons.tolist() == ["", "", "no_smpl_pose", ""]
    assert set(rows.smpl_gender) == {"female"}
    assert rows.fields["imgname"][3] == "images/00003.jpg"
    assert np.array_equal(rows.fields["cam_int"][0], foreign.CAM_INT)


@pytest.mark.parametrize("alignment", [16, None])
def test_wham(tmp_path: Path, alignment: int | None) -> None:
    content = foreign.wham()
    path = foreign.write_joblib(tmp_path / "wham_output.pkl", content, alignment=alignment)
    source = open_source(path)
    rows = source.read(0, 8)
    assert source.format == "wham"
    assert np.array_equal(rows.poses[4:], content[3]["pose"].astype(np.float64))
    assert np.array_equal(rows.transl[4:], content[3]["trans"].astype(np.float64))
    assert rows.fields["frame"].tolist() == [10, 11, 12, 13] * 2
    assert rows.fields["track"].tolist() == ["0"] * 4 + ["3"] * 4
    world = open_source(path, frame="world").read(0, 8)
    assert np.array_equal(world.transl[:4], content[0]["trans_world"].astype(np.float64))


def test_smpl_file(tmp_path: Path) -> None:
    members = foreign.smpl_file()
    source = open_source(write(tmp_path, "smpl-file"), smpl_gender="column")
    rows = source.read(0, 4)
    assert source.format == "smpl-file" and source.up is None
    assert np.array_equal(rows.poses, members["bodyPose"].reshape(4, 72).astype(np.float64))
    assert set(rows.smpl_gender) == {"female"} and set(rows.fields["fps"]) == {30.0}
    only = {name: members[name] for name in ("smplVersion", "shapeParameters")}
    bare = open_source(foreign.write_smpl(tmp_path / "a.smpl", only)).read(0, 1)
    assert not bare.poses.any() and set(bare.smpl_gender) == {"neutral"}


@pytest.mark.parametrize("body", ["smplh", "smplx"])
def test_amass(tmp_path: Path, body: str) -> None:
    content = foreign.amass(body=body)
    source = open_source(npz(tmp_path / "anything.npz", content), smpl_gender="column")
    rows = source.read(0, 4)
    assert source.format == "amass" and rows.body == body and source.up == "z"
    assert rows.other is not None and set(rows.smpl_gender) == {"female"}
    parameters = rows.other.parameters
    pose, start = content["poses"], 66 if body == "smplh" else 75
    assert np.array_equal(parameters["body_pose"], pose[:, 3:66])
    assert np.array_equal(parameters["left_hand_pose"], pose[:, start : start + 45])
    assert np.array_equal(parameters["right_hand_pose"], pose[:, start + 45 :])
    assert parameters["betas"].shape == (4, 16) and parameters["flat_hand_mean"].all()
    assert source.identities().tolist() == [0] * 4
    as_smpl = open_source(source.path, body="smpl")
    rows = as_smpl.read(0, 4)
    assert rows.body == "smpl" and np.array_equal(rows.poses[:, :66], pose[:, :66])
    assert not rows.poses[:, 66:].any()
    own = Asked(str(source.path), models=STAND_IN, option=("body=smpl",)).own_file()
    assert "the first 10 of 16 betas taken for SMPL's" in own.described


def test_moyo_has_a_template_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, "moyo")
    with pytest.raises(InputError, match=r"'v_template_fname': .*template=model"):
        open_source(path)
    rows = open_source(path, template="model").read(0, 4)
    assert rows.other is not None and rows.other.parameters["betas"].shape == (4, 16)


def test_bedlam_stands_at_its_shift(tmp_path: Path, smpl) -> None:
    """Joints of the parameters that are read, projected, are where gtkps are; without the shift of
    cam_ext they are not."""
    content = foreign.bedlam()
    poses = content["pose_cam"].copy()
    poses[3] = 0
    body = np.pad(poses[:, 3:66], ((0, 0), (0, 6)))
    wanted = joints(smpl, poses[:, :3], body, content["shape"], content["trans_cam"])
    wanted += content["cam_ext"][:, None, :3, 3]
    content["gtkps"][:, :22] = projected(wanted[:, :22])
    source = open_source(write(tmp_path, "bedlam", content), smpl_gender="column")
    rows = source.read(0, 8)
    assert source.format == "bedlam" and rows.other is not None and rows.body == "smplx"
    assert rows.reasons.tolist() == [""] * 3 + ["non_finite_pose"] + [""] * 4
    assert source.identities().tolist() == [0] * 4 + [1] * 4
    good, found = rows.reasons == "", rows.other.parameters
    body = np.pad(found["body_pose"], ((0, 0), (0, 6)))
    for shift, bar in ((0.0, True), (content["cam_ext"][0, :3, 3], False)):
        posed = joints(smpl, found["global_orient"], body, found["betas"], found["transl"] - shift)
        off = projected(posed[good, :22]) - content["gtkps"][good, :22]
        assert (np.abs(off).max() <= 1.0) == bar


def joints(smpl, orient, body, betas, transl) -> np.ndarray:
    names = ("global_orient", "body_pose", "betas", "transl")
    values = (torch.as_tensor(v, dtype=torch.float64) for v in (orient, body, betas, transl))
    with torch.no_grad():
        return smpl(**dict(zip(names, values, strict=True))).joints[:, :24].numpy()


def projected(points: np.ndarray) -> np.ndarray:
    pixels = points @ foreign.CAM_INT.T
    return pixels[..., :2] / pixels[..., 2:]


def test_bedlam_of_smpl(tmp_path: Path) -> None:
    content = foreign.bedlam(width=72)
    source = open_source(npz(tmp_path / "a.npz", content))
    rows = source.read(0, 8)
    assert rows.body == "smpl" and source.format == "bedlam"
    assert np.array_equal(rows.transl, content["trans_cam"] + content["cam_ext"][:, :3, 3])


def test_eleven_numbers_have_two_meanings(tmp_path: Path) -> None:
    content = foreign.bedlam(betas=11)
    path = npz(tmp_path / "a.npz", content)
    assert open_source(path).read(0, 1).other.parameters["betas"].shape == (1, 10)  # all zero
    content["shape"][2, 10] = 0.5
    npz(path, content)
    with pytest.raises(InputError, match=r"'shape': 11 numbers, of two meanings.*eleventh=kid"):
        open_source(path)
    rows = open_source(path, eleventh="component").read(0, 8)
    assert rows.other.parameters["betas"].shape == (8, 11) and rows.reasons[2] == ""
    rows = open_source(path, eleventh="kid").read(0, 8)
    assert rows.other.parameters["betas"].shape == (8, 10)
    assert rows.reasons.tolist()[:4] == ["", "", "kid_shape", "non_finite_pose"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "shape",
            np.zeros((8, 12)),
            r"'shape': float64 of shape \(8, 12\), expected .*\(rows, 16\)",
        ),
        ("cam_ext", foreign.bedlam()["cam_ext"].transpose(0, 2, 1), "'cam_ext': transposed"),
        ("pose_cam", np.array([np.zeros(165)] * 7 + [None], object), "'pose_cam': Python objects"),
        ("trans_cam", np.zeros((8, 2)), "'trans_cam'"),
        ("pose_cam", np.zeros((8, 159)), "'pose_cam': 159 values a row, expected 165"),
    ],
)
def test_bedlam_that_is_wrong_is_one_line(
    tmp_path: Path, name: str, value: np.ndarray, said: str
) -> None:
    path = npz(tmp_path / "a.npz", foreign.bedlam() | {name: value})
    with pytest.raises(InputError, match=said) as error:
        Asked(str(path), models=STAND_IN).own_file()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_gvhmr(tmp_path: Path) -> None:
    content = foreign.gvhmr()
    source = open_source(write(tmp_path, "gvhmr"))
    rows = source.read(0, 4)
    assert source.format == "gvhmr" and source.up == "y-down" and rows.body == "smplx"
    found, wanted = rows.other.parameters, content["smpl_params_incam"]
    for name in ("body_pose", "betas", "global_orient", "transl"):
        assert np.array_equal(found[name], wanted[name].double().numpy()), name
    assert not found["flat_hand_mean"].any()
    assert np.array_equal(rows.fields["cam_int"][0], foreign.CAM_INT)
    world = open_source(source.path, frame="world")
    assert world.up == "y"
    expected = content["smpl_params_global"]["transl"].double().numpy()
    assert np.array_equal(world.read(0, 4).other.parameters["transl"], expected)


@pytest.mark.parametrize("tensors", [False, True])
def test_prompthmr(tmp_path: Path, tensors: bool) -> None:
    source = open_source(write(tmp_path, "prompthmr", foreign.prompthmr(tensors=tensors)))
    rows = source.read(0, 8)
    assert source.format == "prompthmr" and rows.body == "smplx" and (rows.reasons == "").all()
    pose = np.concatenate([foreign.smplx_pose(seed=seed) for seed in (0, 1)])
    assert np.abs(rows.other.parameters["body_pose"] - pose[:, 3:66]).max() < 1e-6
    assert rows.fields["frame"].tolist() == [5, 6, 7, 8] * 2
    assert source.identities().tolist() == [0] * 4 + [1] * 4
    world = open_source(source.path, frame="world").read(0, 8)
    assert np.array_equal(world.other.parameters["body_pose"], pose[:, 3:66])


def test_smpl_file_of_smplx(tmp_path: Path) -> None:
    rows = open_source(foreign.write_smpl(tmp_path / "a.smpl", foreign.smplx_file())).read(0, 4)
    pose = foreign.smplx_pose().astype(np.float32)
    assert rows.body == "smplx" and np.array_equal(
        rows.other.parameters["jaw_pose"], pose[:, 66:69]
    )
    assert np.array_equal(rows.other.parameters["right_hand_pose"], pose[:, 120:])


@pytest.mark.parametrize(
    ("names", "betas", "transl"),
    [
        (("poses",), "betas", "trans"),
        (("root_orient", "pose_body"), "betas", "trans"),
        (("smpl_pose",), "smpl_shape", "translation"),
        (("pose",), "shape", "transl"),
        (("root_pose", "body_pose"), "betas", "translation"),
    ],
)
def test_plain_poses_under_the_usual_names(
    tmp_path: Path, names: tuple[str, ...], betas: str, transl: str
) -> None:
    body = foreign.bodies()
    parts = [body["poses"]] if len(names) == 1 else np.split(body["poses"], [3], axis=1)
    members = dict(zip(names, parts, strict=True))
    np.savez(tmp_path / "a.npz", **members, **{betas: body["betas"], transl: body["trans"]})
    source = open_source(tmp_path / "a.npz")
    rows = source.read(0, 4)
    assert source.format == "sequence" and (rows.reasons == "").all()
    assert np.array_equal(rows.poses, body["poses"])
    assert np.array_equal(rows.transl, body["trans"])


# ---- what is refused ----------------------------------------------------------------------------


def transposed(content: dict) -> dict:
    content["cam_poses"] = content["cam_poses"].transpose(0, 2, 1)
    return content


def ragged(content: dict) -> dict:
    content["trans"][1] = [[0.0, 0.0, 0.0], [0.0, 0.0]]
    return content


def objects(content: dict) -> dict:
    content["poses"][0] = np.array([None, 1, 2, 3], object)
    return content


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (transposed, r"'cam_poses': transposed \(frame 0"),
        (ragged, r"'trans\.1': neither numbers nor text of one shape"),
        (objects, r"'poses\.0': neither numbers nor text"),
        (lambda c: {**c, "poses": []}, "'poses': expected a list"),
        (
            lambda c: {**c, "cam_poses": c["cam_poses"][:2]},
            r"'cam_poses': .*expected .*\(4, 4, 4\)",
        ),
        (lambda c: {**c, "betas": [np.zeros(3)] * 2}, r"'betas\.0': 3 numbers, expected 10"),
    ],
)
def test_3dpw_that_is_wrong_is_one_line(tmp_path: Path, spoil: Any, said: str) -> None:
    path = write(tmp_path, "3dpw", spoil(foreign.threedpw()))
    with pytest.raises(InputError, match=said) as error:
        Asked(str(path), models=STAND_IN).own_file()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("format", ["3dpw", "emdb", "wham"])
def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, format: str) -> None:
    canary = tmp_path / "it ran"
    content = getattr(foreign, format.replace("3dpw", "threedpw"))()
    content["extra"] = Canary(canary)
    path = pickled(tmp_path / "a.pkl", content)
    with pytest.raises(InputError, match="refused") as error:
        open_source(path)
    assert not canary.exists() and "\n" not in str(error.value)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match=r"refused: the pickle asks for os\.system"):
        open_source(path)


def test_joblib_files_that_are_not_plain_arrays(tmp_path: Path) -> None:
    import gzip
    import zlib

    good = write(tmp_path, "wham").read_bytes()
    path = tmp_path / "a.pkl"
    for compress, name in ((zlib.compress, "zlib"), (gzip.compress, "gzip")):
        path.write_bytes(compress(good))
        with pytest.raises(InputError, match=rf"compressed \({name}\).*numpy\.savez"):
            open_source(path)
    path.write_bytes(good[: len(good) - 400_000])
    with pytest.raises(InputError, match=r"reaches beyond the end|not a readable pickle"):
        open_source(path)
    path.write_bytes(good.replace(b"NumpyArrayWrapper", b"NDArrayWrapper\0\0\0"))
    with pytest.raises(InputError, match=r"refused: the pickle asks for joblib\..*numpy\.savez"):
        open_source(path)
    path.write_bytes(good.replace(b"numpy_array_alignment_bytes", b"numpy_array_alignment_bytez"))
    with pytest.raises(InputError):
        open_source(path)
    objects = {0: {**foreign.wham()[0], "extra": np.array([None, "a"], object)}}
    foreign.write_joblib(path, objects)
    with pytest.raises(InputError, match=r"array of Python objects in a joblib file.*numpy\.savez"):
        open_source(path)


def test_joblib_arrays_stay_in_the_file(tmp_path: Path) -> None:
    """A file larger than what may be read as objects, most of it an array that nobody wants."""
    content = foreign.wham()
    path = foreign.write_joblib(tmp_path / "a.pkl", content)
    loaded = load_pickle_file(path)
    assert loaded[0]["verts"].flags.f_contiguous and not loaded[0]["verts"].flags.owndata
    assert not loaded[0]["verts"].flags.writeable
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(PickleError):
        load_pickle_file(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"smplVersion": np.array(5, np.int32)}, "a SKEL body already"),
        ({"smplVersion": np.array(99, np.int32)}, "'smplVersion': 99, expected 0 to 7"),
        ({"frameCount": np.array(7, np.int32)}, r"'bodyPose': .*\(4, 24, 3\), expected"),
        ({"frameCount": np.array(2**31 - 1, np.int32)}, "'frameCount'"),
        ({"vertexOffsets": np.ones((6890, 3), np.float32)}, "'vertexOffsets': not zero"),
        ({"bodyPose": np.array([[1], "a"], object)}, "'bodyPose'"),
    ],
)
def test_smpl_files_that_are_wrong(tmp_path: Path, changes: dict, said: str) -> None:
    path = foreign.write_smpl(tmp_path / "a.smpl", foreign.smpl_file() | changes)
    with pytest.raises(InputError, match=said) as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_options_of_a_reader_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "emdb")
    with pytest.raises(InputError, match="option frame 'wrold', expected camera or world"):
        open_source(path, frame="wrold")
    with pytest.raises(InputError, match="option up 'z', but bodies are wanted in the camera"):
        open_source(path, up="z")


def test_files_of_torch_that_are_wrong(tmp_path: Path) -> None:
    import zipfile

    path = write(tmp_path, "gvhmr")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickle_name = next(name for name in parts if name.endswith("data.pkl"))
    key = next(name for name in parts if name.endswith("data/0"))

    def spoilt(**changes: bytes | None) -> Path:
        wanted = {**parts, **{pickle_name if k == "pickle" else key: v for k, v in changes.items()}}
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for name, data in wanted.items():
                if data is not None:
                    archive.writestr(name, data)
        return tmp_path / "b.pt"

    assert open_source(spoilt()).rows == 4
    for changes, said in (
        ({"key": None}, "a tensor without its numbers"),
        ({"key": parts[key][:-4]}, "missing numbers"),
        ({"pickle": b"cos\nsystem\n(S'true'\ntR."}, r"refused: the pickle asks for os\.system"),
        ({"pickle": parts[pickle_name][:40]}, "not a readable pickle"),
    ):
        with pytest.raises(InputError, match=said) as error:
            open_source(spoilt(**changes))
        assert "\n" not in str(error.value)


def test_a_table_of_pandas_is_refused_with_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "agora.pkl"
    path.write_bytes(b"cpandas.core.frame\nDataFrame\n)\x81.")
    with pytest.raises(InputError, match=r"asks for pandas\..*numpy\.savez where pandas is.*agora"):
        open_source(path)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"poses": np.zeros((4, 77, 3)), "joint_names": np.array(["a"]),
             "identity_coeffs": np.zeros((1, 5))},
            "parameters of SOMA.*an npz of vertices",
        ),
        ({"smpl_params_incam": np.zeros(3), "betas": np.zeros(10)}, "it lacks"),
        ({"vertices": np.zeros((4, 10475, 3))}, "for format vertices it lacks body"),
        ({"pose_cam": np.zeros((4, 165)), "imgname": np.array(["a"] * 4)}, "'shape': missing"),
        ({"poses": np.zeros(72), "betas": np.zeros(10)}, r"one pose is \(1, 72\)"),
    ],
)  # fmt: skip
def test_near_misses_of_npz_files(tmp_path: Path, members: dict, said: str) -> None:
    path = npz(tmp_path / "a.npz", members)
    with pytest.raises(InputError, match=said) as error:
        Asked(str(path), models=STAND_IN).own_file()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_translations_in_another_unit_make_giants(tmp_path: Path) -> None:
    content = foreign.bedlam(width=72)
    path = npz(tmp_path / "a.npz", content)
    assert Asked(str(path), models=STAND_IN).own_file().manifest.source.format == "bedlam"
    content["trans_cam"] = content["trans_cam"] * 100
    content["cam_ext"][:, :3, 3] *= 100
    npz(path, content)
    with pytest.raises(InputError, match=r"would be 16. m large.* look like centimetres") as error:
        Asked(str(path), models=STAND_IN).own_file()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.pkl", "a.pt"])
def test_damaged_bytes_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02junk")
    with pytest.raises(InputError, match="not a readable pickle of data"):
        open_source(tmp_path / name)


def test_lint_knows_other_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = foreign.bedlam()
    content["pose_cam"][3] = content["pose_cam"][0]
    content["pose_cam"][3, 8] += 0.01
    path = npz(tmp_path / "a.npz", content)
    assert cli.run(["lint", str(path)]) == 0
    assert "nothing found" in capsys.readouterr().out
    content["pose_cam"][3] = content["pose_cam"][0]
    npz(path, content)
    cli.run(["lint", str(path)])
    assert "repeated_pose: exactly the pose of an earlier row" in capsys.readouterr().out


def test_rows_of_another_body_are_drawn_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their SMPL columns are NaN; a page of them is a page of SKEL alone."""
    from stages.inspection import people

    class Rows:
        body = "smplx"

    monkeypatch.setattr(people, "_stored_targets", lambda *_: None)
    monkeypatch.setattr(people, "_source_rows", lambda *_: Rows())
    assert people.targets(None, 0, 3, None) is None
