"""A label file without a manifest: what it is taken for, converted in one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.errors import InputError, UsageError
from pipeline.manifest import load_manifest
from pipeline.own_file import Asked, manifest_yaml
from pipeline.readers import open_source
from pipeline.run import Request, preview
from pipeline.task import open_plan_source
from stages import cli
from tests.faults.harness import label_columns

STAND_IN = Path("default-body")


def standing(width: int) -> np.ndarray:
    """(6, width): upright where z is up, an elbow that bends."""
    poses = np.zeros((6, width))
    poses[:, 0] = np.pi / 2
    poses[:, 50] = np.linspace(0, 0.3, 6)
    return poses


def motion(folder: Path, **changes: object) -> Path:
    """A motion of SMPL of 6 frames, standing in a world where z is up."""
    poses = standing(72)
    members: dict[str, object] = {
        "poses": poses,
        "trans": np.zeros((6, 3)),
        "betas": np.zeros(16),
        "gender": np.array("female"),
        "mocap_framerate": np.array(60.0),
    }
    members |= changes
    path = folder / "my walk.npz"
    np.savez(path, **{name: value for name, value in members.items() if value is not None})
    return path


def test_a_file_is_told_and_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = motion(tmp_path, poses=standing(156))
    monkeypatch.chdir(tmp_path)
    command = ["convert", path.name, "--models", "default-body"]
    assert cli.run(command) == 5  # AMASS: nobody takes its shape for SMPL's unasked
    assert "the stand-in has no model of smplh" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
    assert cli.run([*command, "--option", "body=smpl"]) == 0
    found = capsys.readouterr()
    assert "taken for format 'amass', 6 rows in 1 file" in found.err
    assert "frames of a motion, z is up" in found.err
    assert "the first 10 of 16 betas taken for SMPL's" in found.err
    assert "SMPL+H: fingers left out" in found.err
    assert "hmr-skel verify outputs/my-walk" in found.out
    from pipeline import open_dataset

    dataset = open_dataset(tmp_path / "outputs" / "my-walk")
    assert set(dataset["skel_gender"].tolist()) == {"female"}
    assert float(dataset["vertex_error_mean"].max()) < 0.02


def test_the_manifest_of_a_file_is_the_one_it_is_converted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = motion(tmp_path)
    out = tmp_path / "walk.yaml"
    assert cli.run(["manifest", str(path), "--models", "default-body", "--out", str(out)]) == 0
    assert f"hmr-skel convert {out} --data-root {tmp_path}" in capsys.readouterr().out
    own = Asked(str(path), models=STAND_IN).own_file()
    assert load_manifest(out) == own.manifest
    assert yaml.safe_load(manifest_yaml(own))["source"]["path"] == "my walk.npz"


def test_nobody_fits_real_labels_to_the_stand_in_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HMR_SKEL_MODELS", raising=False)
    with pytest.raises(UsageError, match=r"choose: --models DIR .* --models default-body"):
        Asked(str(motion(tmp_path))).own_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"poses": np.full((6, 72), 90.0)}, "look like degrees"),
        ({"trans": np.full((6, 3), 2500.0)}, "look like millimetres"),
        ({"poses": None, "posez": np.zeros((6, 72))}, r"it lacks .*pose"),
        ({"betas": None}, r"'betas': missing"),
        ({"betas": np.full(16, 50.0)}, "another body model"),
    ],
)
def test_a_near_miss_says_what_is_wrong_and_writes_nothing(
    tmp_path: Path, changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = motion(tmp_path, **changes)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        Asked(str(path), models=STAND_IN).own_file()
    assert "\n" not in str(error.value)
    assert cli.run(["convert", path.name, "--models", "default-body"]) == 5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_poses_without_a_frame_rate_are_rows_on_their_own(tmp_path: Path) -> None:
    own = Asked(str(motion(tmp_path, mocap_framerate=None)), models=STAND_IN).own_file()
    assert own.manifest.fit.sequence is None
    assert "rows on their own" in own.described


def test_angles_of_skel_are_not_taken_for_poses_of_smpl(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="46 are SKEL's angles, under the name skel_poses"):
        Asked(str(motion(tmp_path, poses=np.zeros((6, 46)))), models=STAND_IN).own_file()


def test_genders_follow_the_labels(tmp_path: Path) -> None:
    neutral = Asked(str(motion(tmp_path, gender=np.array("neutral"))), models=STAND_IN).own_file()
    assert (neutral.manifest.genders.smpl, neutral.manifest.genders.skel) == ("column", "male")
    none = Asked(str(motion(tmp_path, gender=None)), models=STAND_IN).own_file()
    assert (none.manifest.genders.smpl, none.manifest.genders.skel) == ("neutral", "male")
    asked = Asked(str(motion(tmp_path)), models=STAND_IN, skel_gender="male").own_file()
    assert (asked.manifest.genders.smpl, asked.manifest.genders.skel) == ("column", "male")


def test_women_among_neutral_rows_are_counted_unless_each_row_says_its_skel(
    tmp_path: Path,
) -> None:
    path, content = tmp_path / "some-release.npz", label_columns(7)
    content["gender"] = np.resize(["neutral", "female", "male"], 7)
    np.savez(path, **content)
    own = Asked(str(path), models=STAND_IN).own_file()
    assert (own.manifest.genders.smpl, own.manifest.genders.skel) == ("column", "male")
    assert "2 female rows too (a column skel_gender says" in own.described
    content["skel_gender"] = np.where(content["gender"] == "female", "female", "male")
    np.savez(path, **content)
    own = Asked(str(path), models=STAND_IN).own_file()
    assert own.manifest.genders.skel == "column" and "female rows" not in own.described


def test_options_of_files_are_refused_beside_a_manifest() -> None:
    with pytest.raises(UsageError, match="--up belongs to a label file"):
        Asked("demo", up="z").found(print)


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_a_camera_that_was_moved_is_not_forgotten(tmp_path: Path, moved: float) -> None:
    """BEDLAM's SMPL labels: the body stands at trans_cam + cam_ext[:3, 3]."""
    path, n = tmp_path / "bedlam.npz", 3
    cam_ext = np.tile(np.eye(4), (n, 1, 1))
    cam_ext[1, 0, 3] = moved
    np.savez(
        path,
        imgname=np.array([f"{row}.jpg" for row in range(n)]),
        center=np.full((n, 2), 100.0),
        scale=np.full(n, 0.5),
        pose_cam=np.zeros((n, 72)),
        shape=np.zeros((n, 10)),
        trans_cam=np.tile([0.0, 0.0, 4.0], (n, 1)),
        cam_int=np.tile([[500.0, 0, 100], [0, 500, 100], [0, 0, 1]], (n, 1, 1)),
        gtkps=np.ones((n, 44, 3)),
        cam_ext=cam_ext,
    )
    own = Asked(str(path), models=STAND_IN).own_file()
    assert own.manifest.source.format == "bedlam"
    with np.load(path) as file:
        wanted = file["trans_cam"] + file["cam_ext"][:, :3, 3]
    assert np.array_equal(open_source(path).read(0, n).transl, wanted)
    if moved:  # the format that knows no cam_ext must not be told to read it
        with pytest.raises(InputError, match=r"'cam_ext': row 1 moves the camera"):
            open_source(path, format="camerahmr")


def test_a_folder_does_not_hide_the_manifest_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    motion(tmp_path / "demo")
    assert Asked("demo").found(print)[0] == load_manifest("demo")
    assert Asked("./demo", models=STAND_IN).own_file().manifest.source.format == "sequence"


def test_plans_of_earlier_versions_keep_their_meaning(tmp_path: Path) -> None:
    """A plan that names no edition was made when `translation` was carried, not read, and no file
    of a folder was passed over; new plans name theirs."""
    folder = tmp_path / "walks"
    folder.mkdir()
    motion(folder, trans=None, translation=np.ones((6, 3)))
    (folder / "my walk.npz").rename(folder / "a.npz")
    (folder / "b_shape.npz").write_bytes((folder / "a.npz").read_bytes())
    own = Asked(str(folder), models=STAND_IN).own_file()
    plan = preview(Request(own.manifest, tmp_path / "out", own.data_root, workers=1)).plan
    assert plan.source_options == {"up": "z", "edition": "2"} and plan.rows == 6
    new = open_plan_source(plan, folder, tmp_path)
    assert (new.read(0, 1).transl == 1).all()
    old = open_plan_source(replace(plan, source_options={"up": "z"}), folder, tmp_path)
    assert old.rows == 12 and not old.read(0, 1).transl.any() and "translation" in old.fields
    with pytest.raises(InputError, match="option edition '3', expected 1, 2"):
        open_source(folder, edition="3")


@pytest.mark.parametrize(("name", "command"), [("x.MP4", "video"), ("x.jpg", "photo")])
def test_pictures_are_sent_to_their_command(tmp_path, name, command):
    """Before anything is said of bodies."""
    (tmp_path / name).write_bytes(b"no labels")
    with pytest.raises(UsageError, match=f"hmr-skel {command} {tmp_path / name}"):
        Asked(str(tmp_path / name)).found(print)
