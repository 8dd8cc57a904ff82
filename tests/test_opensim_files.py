"""Export to OpenSim and import from it, through files: folders, index, refusals."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import InputError, OutputError, UsageError
from pipeline.exporters.opensim import OpenSim, OpenSimOptions, read_mot, read_osim
from pipeline.opensim_import import import_opensim
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, subject
from stages import cli
from tests.demo_rows import fitted_demo
from tests.test_opensim_tables import old_model
from tests.test_sequence import convert_amass, write_amass


@functools.cache
def two_sequences(base: Path) -> Dataset:
    """Two short sequences of the demo motion, converted; give `getbasetemp()` as `base`."""
    folder = base / "two-sequences"
    write_amass(folder / "amass" / "S1" / "walk_poses.npz", range(200, 212), 1)
    female = np.array("female")
    write_amass(folder / "amass" / "S2" / "b_poses.npz", range(400, 406), 2, gender=female)
    return open_dataset(convert_amass(folder, "out"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return two_sequences(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Rows of pictures, each a person of its own."""
    return open_dataset(fitted_demo(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def exported(sequences: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "motions"
    OpenSim().write(sequences, out, OpenSimOptions(), None)
    return out


def index_of(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def our_frames(dataset: Dataset, rows: list[int], gender: str) -> tuple[np.ndarray, np.ndarray]:
    """Bodies of dataset rows by the SKEL model itself: axes of the data."""
    skel = load_skel(default_body_directory(), gender, dtype=torch.float64)
    poses, betas, trans = (
        torch.tensor(dataset[name][rows].astype(np.float64))
        for name in ("skel_poses", "skel_betas", "skel_trans")
    )
    return subject.body_frames(skel, poses, betas[:1], trans)


def file_frames(folder: Path, entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """Bodies of an exported motion on its exported model: OpenSim's ground."""
    model, motion = read_osim(folder / entry["osim"]), read_mot(folder / entry["mot"])
    turns = np.array([model.is_rotational(name) for name in motion.columns])
    values = np.where(turns, np.radians(motion.values), motion.values)
    columns = {name: values[:, k] for k, name in enumerate(motion.columns)}
    frames = model.body_frames(columns, len(values))
    return (
        np.stack([frames[name][0] for name in JOINT_NAMES], 1),
        np.stack([frames[name][1] for name in JOINT_NAMES], 1),
    )


def test_each_sequence_is_a_model_a_motion_markers_and_a_table(sequences, exported) -> None:
    index = index_of(exported)
    files = index["files"]
    assert [entry["gender"] for entry in files] == ["male", "female"]
    assert [entry["rows"] for entry in files] == [list(range(12)), list(range(12, 18))]
    assert index["axes"] == "y-up" and index["digest"] == sequences.attrs["digest"]
    for entry in files:
        assert {"osim", "mot", "trc", "csv", "rows", "gender", "ground", "angles"} <= set(entry)
        position, axes = file_frames(exported, entry)
        ground = np.array(entry["ground"])
        wanted, turned = our_frames(sequences, entry["rows"], entry["gender"])
        assert np.abs(position - wanted @ ground.T).max() < 1e-6
        assert np.abs(axes - ground @ turned).max() < 1e-5
        motion = read_mot(exported / entry["mot"])
        assert motion.times == pytest.approx(np.arange(len(entry["rows"])) / 30, abs=1e-8)
        bones = exported / "Geometry" / entry["gender"]
        assert len(list(bones.glob("*.obj"))) == 24


@pytest.mark.parametrize(
    ("ground", "up"), [("camera", (0, -1, 0)), ("y-up", (0, 1, 0)), ("z-up", (0, 0, 1))]
)
def test_up_in_the_data_is_up_in_opensim(ground, up) -> None:
    turn = subject.GROUNDS[ground]
    assert np.linalg.det(turn) == 1 and (turn @ up == (0, 1, 0)).all()


def test_marker_files_hold_the_fitted_skin(sequences, exported) -> None:
    entry = index_of(exported)["files"][0]
    lines = (exported / entry["trc"]).read_text().splitlines()
    names = [name for name in lines[3].split("\t")[2:] if name]
    table = np.array([[float(x) for x in line.split("\t")] for line in lines[6:]])
    assert table.shape == (12, 2 + 3 * len(names)) and len(names) == 72
    skel = load_skel(default_body_directory(), "male", dtype=torch.float64)
    row = entry["rows"][4]
    skin = skel(
        *(
            torch.tensor(sequences[name][row : row + 1].astype(np.float64))
            for name in ("skel_poses", "skel_betas", "skel_trans")
        )
    ).skin_vertices[0]
    points = table[4, 2:].reshape(-1, 3) @ np.array(entry["ground"])
    assert np.sqrt(np.square(skin.numpy()[None] - points[:, None]).sum(2).min(1)).max() < 1e-6


@pytest.mark.parametrize("kind", angles.ANGLES)
def test_own_exports_come_back(sequences, tmp_path, kind) -> None:
    out = tmp_path / "out"
    OpenSim().write(sequences, out, OpenSimOptions(angles=kind, ground="camera"), None)
    for entry in index_of(out)["files"]:
        found = import_opensim(out / entry["osim"], out / entry["mot"])
        poses, trans = sequences["skel_poses"][entry["rows"]], sequences["skel_trans"]
        apart = (found.poses - poses + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(apart).max() < 1e-6
        assert np.abs(found.trans - trans[entry["rows"]]).max() < 1e-6
        assert (found.betas == sequences["skel_betas"][entry["rows"][0]]).all()
        assert found.gender == entry["gender"] and not found.ignored and not found.defaults
        records = sequences.plan.models
        assert found.model_sha256 in {r.sha256 for r in records if r.kind == "skel"}
        found.write(tmp_path / "back.npz")
        with np.load(tmp_path / "back.npz") as file:
            assert file["skel_poses"].shape == poses.shape and file["gender"] == entry["gender"]


def test_each_picture_is_a_person_of_its_own(images, tmp_path) -> None:
    out = tmp_path / "out"
    told = OpenSim().write(images, out, OpenSimOptions(rows="3:6"), None)
    index = index_of(out)
    fitted = [r for r in (3, 4, 5) if not images["status"][r].startswith("rejected")]
    assert [entry["rows"] for entry in index["files"]] == [[r] for r in fitted]
    assert told.rows == len(fitted) and index["axes"] == "camera" and index["one_row_each"]
    for entry in index["files"]:
        position, _ = file_frames(out, entry)
        ground = np.array(entry["ground"])
        wanted, _ = our_frames(images, entry["rows"], entry["gender"])
        assert np.abs(position - wanted @ ground.T).max() < 1e-6


def test_a_sequence_is_chosen_by_name(sequences, tmp_path) -> None:
    name = str(sequences["sequence"][-1])
    OpenSim().write(sequences, tmp_path / "one", OpenSimOptions(sequence=name), None)
    (entry,) = index_of(tmp_path / "one")["files"]
    assert entry["rows"] == list(range(12, 18)) and "/" not in entry["osim"]
    OpenSim().write(sequences, tmp_path / "part", OpenSimOptions(rows="4:14", rate=60), None)
    first, second = index_of(tmp_path / "part")["files"]
    assert first["rows"] == list(range(4, 12)) and second["rows"] == [12, 13]
    # Time is that of the sequence, not of the excerpt.
    times = read_mot(tmp_path / "part" / first["mot"]).times
    assert times == pytest.approx(np.arange(4, 12) / 60, abs=1e-8)


def test_the_same_data_give_the_same_bytes_and_replace_an_older_export(
    sequences, exported, tmp_path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(exported, out)
    (out / "left_over.mot").write_text("of an older export")
    OpenSim().write(sequences, out, OpenSimOptions(), None)
    assert not (out / "left_over.mot").exists()
    for path in exported.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(exported)).read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


@pytest.fixture(scope="module")
def carried(sequences: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with another model and the first sequence on it; what the export said."""
    folder = tmp_path_factory.mktemp("into")
    (folder / "other.osim").write_text(old_model())
    name = str(sequences["sequence"][0])
    options = OpenSimOptions(into=folder / "other.osim", sequence=name)
    return folder, OpenSim().write(sequences, folder / "out", options, None).attention


def test_a_motion_goes_into_another_model(sequences, carried) -> None:
    folder, told = carried
    entry = index_of(folder / "out")["files"][0]
    assert entry["angles"] == "into" and not list((folder / "out").glob("*.osim"))
    assert entry["residual_degrees"]["femur_r"]["max"] < 1e-3
    motion = read_mot(folder / "out" / entry["mot"])
    assert set(motion.columns) == {"flex", "add", "rot", *(f"p{k}" for k in range(6))}
    model = read_osim(folder / "other.osim")
    turns = [model.is_rotational(name) for name in motion.columns]
    values = np.where(turns, np.radians(motion.values), motion.values)
    frames = model.body_frames(dict(zip(motion.columns, values.T, strict=True)), len(values))
    wanted, turned = our_frames(sequences, entry["rows"], "male")
    ground = np.array(entry["ground"])
    assert np.abs(frames["pelvis"][0] - wanted[:, 0] @ ground.T).max() < 1e-6
    for body in ("pelvis", "femur_r"):
        ours = ground @ turned[:, JOINT_NAMES.index(body)]
        assert np.abs(frames[body][1] - ours).max() < 1e-6
    assert "none above 0.05" in told


def test_foreign_motion_becomes_the_nearest_skel(sequences, carried, tmp_path) -> None:
    folder, _ = carried
    entry = index_of(folder / "out")["files"][0]
    path = folder / "out" / entry["mot"]
    text = path.read_text().replace("\tflex", "\tsomething_else")
    (tmp_path / "odd.mot").write_text(text)
    kinds = {"models": default_body_directory, "gender": "male", "ground": "z-up"}
    found = import_opensim(folder / "other.osim", path, **kinds)
    rows = entry["rows"]
    hip = [POSE_NAMES.index(f"hip_{name}_r") for name in ("flexion", "adduction")]
    apart = found.poses[:, hip] - sequences["skel_poses"][rows][:, hip]
    # The shape is not that of the sequence, and the thigh's rest direction is part of the shape.
    assert np.degrees(np.abs(apart)).max() < 6
    assert max(r.max() for r in found.residuals.values()) < 1e-3
    assert "knee_angle_r" in found.at_rest and (found.betas == 0).all()
    odd = import_opensim(folder / "other.osim", tmp_path / "odd.mot", **kinds)
    assert odd.ignored == ("something_else",) and odd.defaults == ("flex",)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "5:5"}, "expected A < B"),
        ({"rows": "0:9999"}, "expected A < B <= 18"),
        ({"sequence": "nobody"}, "there are S1/walk_poses, S2/b_poses"),
    ],
)
def test_rows_that_are_not_there_are_refused(sequences, tmp_path, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        OpenSim().write(sequences, tmp_path / "out", OpenSimOptions(**options), None)
    assert not list(tmp_path.iterdir())


def test_rejected_rows_and_names_of_no_sequence_are_refused(images, tmp_path) -> None:
    bad = np.flatnonzero(np.char.startswith(images["status"], "rejected"))
    if len(bad):
        with pytest.raises(UsageError, match="no row there has a fit"):
            rows = f"{bad[0]}:{bad[0] + 1}"
            OpenSim().write(images, tmp_path / "out", OpenSimOptions(rows=rows), None)
    with pytest.raises(UsageError, match="has no sequences"):
        OpenSim().write(images, tmp_path / "out", OpenSimOptions(sequence="a"), None)
    assert not list(tmp_path.iterdir())


def test_many_people_need_a_choice(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.exporters.opensim.MOST_MODELS", 2)
    with pytest.raises(UsageError, match="choose with --rows"):
        OpenSim().write(images, tmp_path / "out", OpenSimOptions(), None)
    OpenSim().write(images, tmp_path / "out", OpenSimOptions(rows="0:4"), None)


def test_a_folder_of_something_else_is_left_alone(sequences, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only_copy.txt").write_text("words")
    with pytest.raises(OutputError, match="exists and is no export"):
        OpenSim().write(sequences, tmp_path / "thesis", OpenSimOptions(), None)
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis", "only_copy.txt"]


def test_a_failure_leaves_nothing_half_written(sequences, exported, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def fail(done: int, people: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OpenSim(fail).write(sequences, out, OpenSimOptions(angles="skel"), None)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_motions_of_another_model_and_damaged_notes_are_refused(exported, tmp_path, capsys) -> None:
    entry = index_of(exported)["files"][0]
    osim, mot = exported / entry["osim"], exported / entry["mot"]
    (tmp_path / "other.osim").write_text(old_model())
    with pytest.raises(InputError, match="none of its columns is a coordinate"):
        import_opensim(tmp_path / "other.osim", mot)
    assert cli.run(["import-opensim", str(mot), str(osim), "--out", str(tmp_path / "x.npz")]) == 2
    assert "is no .osim; the model comes first" in capsys.readouterr().err
    damaged = tmp_path / "damaged.osim"
    text = osim.read_text()
    damaged.write_text(text.replace('"pelvis_rest": [', '"pelvis_rest": [1.0, '))
    with pytest.raises(InputError, match="damaged at 'pelvis_rest'"):
        import_opensim(damaged, mot)
    damaged.write_text(text.replace('"betas": [', '"betas": {'))
    with pytest.raises(InputError, match="notes of our export"):
        import_opensim(damaged, mot)
    damaged.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        import_opensim(damaged, mot)
    with pytest.raises(InputError, match="cannot be read"):
        import_opensim(tmp_path / "absent.osim", mot)


def test_a_model_without_notes_needs_a_skel_model(exported, tmp_path) -> None:
    (tmp_path / "other.osim").write_text(old_model())
    (tmp_path / "m.mot").write_text("m\nnRows=1\ninDegrees=yes\nendheader\ntime\tflex\n0\t30\n")
    with pytest.raises(InputError, match="a SKEL model is needed"):
        import_opensim(tmp_path / "other.osim", tmp_path / "m.mot")


# ---- the command line ---------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_export_and_import_by_the_command_line(sequences, tmp_path, capsys) -> None:
    out = tmp_path / "osim"
    name = str(sequences["sequence"][0])
    command = ("export", sequences.directory, "--format", "opensim", "--out", out)
    code, said, _ = run(capsys, *command, "--sequence", name, "--angles", "skel")
    assert code == 0 and "12" in said
    (entry,) = index_of(out)["files"]
    assert entry["angles"] == "skel"
    back = tmp_path / "back.npz"
    files = (out / entry["osim"], out / entry["mot"])
    code, said, _ = run(capsys, "import-opensim", *files, "--out", back, "--json")
    assert code == 0 and json.loads(said)["frames"] == 12
    with np.load(back) as file:
        apart = file["skel_poses"] - sequences["skel_poses"][:12]
    assert np.abs((apart + np.pi) % (2 * np.pi) - np.pi).max() < 1e-6


def test_a_motion_of_others_by_the_command_line(tmp_path, capsys) -> None:
    model, motion, out = (tmp_path / name for name in ("o.osim", "m.mot", "b.npz"))
    model.write_text(old_model())
    motion.write_text("m\nnRows=1\ninDegrees=yes\nendheader\ntime\tflex\textra\n0\t30\t1\n")
    command = ("import-opensim", model, motion, "--out", out)
    code, said, _ = run(capsys, *command, "--stand-in", "--gender", "female")
    assert code == 0 and "extra" in said and "knee_angle_r" in said
    with np.load(out) as file:
        assert file["gender"] == "female" and np.isfinite(file["skel_poses"]).all()
        assert file["ignored"].tolist() == ["extra"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"model": old_model().replace("CustomJoint", "BallJoint")}, 5, "BallJoint is not read"),
        ({"model": old_model(names=("flex", "flex", "rot"))}, 5, "are named 'flex'"),
        ({"motion": "0\t30\n0\t31"}, 5, "does not increase"),
        ({"motion": "0\t0.3\n1\t0.5"}, 5, "look like radians"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path, capsys, change, code, message
) -> None:
    (tmp_path / "o.osim").write_text(change.get("model", old_model()))
    rows = change.get("motion", "0\t30\n1\t31")
    (tmp_path / "m.mot").write_text(f"m\nnRows=2\ninDegrees=yes\nendheader\ntime\tflex\n{rows}\n")
    files = (tmp_path / "o.osim", tmp_path / "m.mot")
    found, _, said = run(capsys, "import-opensim", *files, "--out", tmp_path / "out.npz")
    assert found == code and message in said
    assert said.startswith("hmr-skel: ") and said.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_options_of_other_formats_are_refused(sequences, tmp_path, capsys) -> None:
    command = ("export", sequences.directory, "--out", tmp_path / "out")
    code, _, said = run(capsys, *command, "--rows", "0:3")
    assert code == 2 and "--rows: format hmr-skel-npz has no such option" in said
    opensim = (*command, "--format", "opensim")
    for wrong, message in (
        (("--rows", "a:b"), "--rows a:b"),
        (("--rate", "0"), "--rate 0"),
        (("--keypoints3d", "add"), "--keypoints3d: format opensim has no such option"),
        (("--rejected", "keep"), "--rejected keep"),
        (("--into", tmp_path / "absent.osim"), "cannot be read"),
    ):
        code, _, said = run(capsys, *opensim, *wrong)
        assert code in (2, 5) and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
