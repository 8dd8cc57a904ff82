"""`hmr-skel predict` and the trained network behind it, on real pictures."""

import csv
import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from skel_fit import anatomy
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import keypoint_matrix
from skel_fit.model_files import load_skel
from stages.cli import run as command_line
from stages.drawing.meshes import Part, glb_bytes
from stages.drawing.render import png_bytes
from stages.regressor.config import load_recipe
from stages.regressor.data.crops import CropRule
from stages.regressor.data.images import decode, open_images
from stages.regressor.data.rows import Place, load_collection
from stages.regressor.evaluation import prediction
from stages.regressor.evaluation.predictors import CheckpointPredictor
from stages.regressor.evaluation.query import Query
from stages.regressor.evaluation.trained import Person, TrainedNetwork, crop_rule, fov_input
from stages.regressor.network import camera
from stages.regressor.network.attention import attention_maps
from stages.regressor.network.checkpoints import load_checkpoint, save_checkpoint
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.view import (
    View,
    crop_keypoints,
    full_camera,
    seen_intrinsics,
    seen_pixels,
)
from stages.regressor.network.vit import token_grid
from stages.regressor.training.distributed import Process
from stages.regressor.training.reporting import Reporter
from stages.regressor.training.trainer import Trainer
from stages.regressor.training.validation import validate
from tests.photo_pictures import runners
from tests.regressor_files import MICRO, Demo, demo

GROWN = crop_rule(grow=True)
HERE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.getbasetemp())


def trained_in_a_moment(files: Demo, out: Path, *changes: str) -> Path:
    recipe = load_recipe("tiny", [*MICRO, "train.epochs=1", "data.enlarge_box=true", *changes])
    rows = load_collection([Place(files.shards)], recipe.data)
    Trainer(recipe, rows, files.models, out, HERE, Reporter(None, quiet=True)).run()
    return out / "best.pt"


@pytest.fixture(scope="module")
def checkpoint(files: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_in_a_moment(files, tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def crop_camera(files: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ablation without the full-image camera (regressor.md#ablations)."""
    out = tmp_path_factory.mktemp("predict") / "crop-camera"
    return trained_in_a_moment(files, out, "changes/without-camera")


def labels(files: Demo) -> dict[str, np.ndarray]:
    with np.load(files.data / "demo" / "demo-release.npz") as file:
        return {name: file[name] for name in file.files}


def persons(files: Demo, rows: list[int]) -> list[Person]:
    columns = labels(files)
    side = 200 * columns["scale"]
    return [
        Person(
            (files.data / str(columns["imgname"][k])).read_bytes(), str(columns["imgname"][k]),
            columns["center"][k], np.array([side[k], side[k]]), columns["cam_int"][k],
        )
        for k in rows
    ]  # fmt: skip


# ---- the trained network ------------------------------------------------------------------------


@pytest.mark.parametrize("camera_rule", ["checkpoint", "crop_camera"])
def test_the_network_sees_what_training_saw(
    files: Demo, camera_rule: str, request: pytest.FixtureRequest
) -> None:
    """Scores of the predicted bodies in the full picture are those of the last validation."""
    checkpoint = request.getfixturevalue(camera_rule)
    trained = TrainedNetwork(checkpoint)
    columns = labels(files)
    rows = np.flatnonzero(columns["split"] == "validation").tolist()
    people = persons(files, rows)
    found = trained.predict(people, trained.rule())
    assert found.poses.shape == (len(rows), 46) and found.translation.shape == (len(rows), 3)
    body = KeypointBody(load_skel(files.models, "male"), keypoint_matrix(files.models))
    points = body(found.poses, found.betas).keypoints + found.translation[:, None]
    pixels = camera.project(points, found.cam_int).numpy()
    truth = columns["gtkps"][rows]
    seen = truth[..., 2] > 0
    away = np.linalg.norm(pixels - truth[..., :2], axis=-1)
    side = 200 * columns["scale"][rows] * 4 / 3
    percent = 100 * ((away * seen).sum(1) / seen.sum(1) / side).mean()
    scores = load_checkpoint(checkpoint)["scores"]
    assert percent == pytest.approx(scores["keypoints_2d"], rel=1e-3)
    provenance = trained.provenance()
    assert provenance["standin"] is True and len(provenance["sha256"]) == 64
    json.dumps(dict(provenance))


def test_a_crop_camera_is_the_same_for_every_lens(files: Demo, crop_camera: Path) -> None:
    """1.4, last lines: 5000 px on 256 px of the crop, through its middle; the lens plays no part,
    nor does the side that a protocol tells the network.
    """
    trained = TrainedNetwork(crop_camera)
    assert not trained.uses_intrinsics and trained.focal_source.startswith("crop camera")
    people = persons(files, [2, 5])
    found = trained.predict(people, GROWN)
    side = np.array([person.box[0] * 4 / 3 for person in people])
    assert found.cam_int[:, 0, 0].numpy() == pytest.approx(5000 * side / 256, rel=1e-5)
    centers = np.stack([person.center for person in people])
    assert found.cam_int[:, :2, 2].numpy() == pytest.approx(centers, rel=1e-5)
    unknown = [replace(person, cam_int=np.full((3, 3), np.nan)) for person in people]
    again = trained.predict(unknown, GROWN.model_copy(update={"conditioning": "annotation"}))
    for name, value in found._asdict().items():
        assert torch.equal(getattr(again, name), value), name


@pytest.mark.parametrize("change", ["checkpoint", "crop_camera"])
def test_training_pictures_show_bodies_where_the_keypoints_are(
    files: Demo, change: str, request: pytest.FixtureRequest
) -> None:
    recipe = TrainedNetwork(request.getfixturevalue(change)).recipe
    camera_numbers = torch.tensor([[0.9, 0.1, -0.2], [0.7, -0.1, 0.3]])
    side, size = torch.tensor([200.0, 320.0]), recipe.model.crop_size
    center = torch.tensor([[300.0, 200.0], [150.0, 260.0]])
    affine = torch.zeros(2, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = size / side
    affine[:, :, 2] = size / 2 - (size / side)[:, None] * center
    cam_int = torch.tensor(camera.intrinsics(700.0, 640, 480)).repeat(2, 1, 1)
    view = View(center, side, cam_int, affine)
    points = torch.randn(2, 44, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    seen = crop_keypoints(recipe.model, points, camera_numbers, view)
    translation, cam_int = full_camera(recipe.model, camera_numbers, view)
    matrix = seen_intrinsics(recipe.model, cam_int, view)
    drawn = camera.project(points + translation[:, None], matrix)
    wanted = seen_pixels(recipe.model, seen)
    assert drawn.numpy() == pytest.approx(wanted.numpy(), abs=2e-3)


def test_prediction_and_validation_agree(files: Demo, checkpoint: Path) -> None:
    trained = TrainedNetwork(checkpoint)
    recipe = trained.recipe
    rows = load_collection([Place(files.shards)], recipe.data)
    run = Trainer(recipe, rows, files.models, checkpoint.parent, HERE, Reporter(None, quiet=True))
    scores = validate(trained.network, run.validation_set, run.bodies, recipe, HERE)
    stored = load_checkpoint(checkpoint)["scores"]
    assert scores.pa_mpjpe == pytest.approx(stored["pa_mpjpe"], rel=1e-6)
    assert scores.rows == stored["rows"] == len(run.validation_set)


def test_a_prediction_does_not_depend_on_its_batch(files: Demo, checkpoint: Path) -> None:
    trained = TrainedNetwork(checkpoint)
    rule = trained.rule()
    together = trained.predict(persons(files, list(range(40))), rule)
    alone = trained.predict(persons(files, [37]), rule)
    for name, value in together._asdict().items():
        assert torch.allclose(value[37:38], getattr(alone, name), rtol=1e-4, atol=1e-4), name


def test_crop_rules(files: Demo, checkpoint: Path) -> None:
    """regressor.md#d11: growing, whole pixels and the side told all reach the network."""
    trained = TrainedNetwork(checkpoint)
    assert trained.rule() == GROWN
    rules = (
        GROWN, crop_rule(grow=False), GROWN.model_copy(update={"conditioning": "annotation"}),
        GROWN.model_copy(update={"corners": "integer"}),
    )  # fmt: skip
    found = [trained.predict(persons(files, [3]), rule).translation[0] for rule in rules]
    assert len({tuple(x.tolist()) for x in found}) == 4
    # A box told to be 3/4 as wide means a person 4/3 as far away, all else equal.
    ratio = float(found[2][2] / found[0][2])
    assert 1.1 < ratio < 1.6


def test_intrinsics_without_labels(files: Demo, checkpoint: Path) -> None:
    name = files.data / str(labels(files)["imgname"][0])
    data = name.read_bytes()
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2]
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]
    assumed = TrainedNetwork(checkpoint).intrinsics(picture, "x")
    assert assumed[0, 0] == pytest.approx(np.hypot(width, height))
    assert assumed[:2, 2].tolist() == [width / 2, height / 2]

    class Constant(HumanFOV):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape == (1, 3, 256, 256)
            return torch.tensor([[9.9, 0.7]])  # component 1 counts

    guessed = TrainedNetwork(checkpoint, focal=Constant()).intrinsics(picture, "x")
    assert guessed[0, 0] == pytest.approx(height / (2 * np.tan(0.35)))


def test_field_of_view_input_is_the_whole_picture_on_white_in_rgb() -> None:
    """regressor.md#human-fov: longer side 256, shorter int(), centred on white, RGB order."""
    picture = np.zeros((300, 451, 3), np.uint8)
    picture[..., 0] = 255  # red
    values = fov_input(picture)
    assert values.shape == (3, 256, 256)
    red = (np.array([255.0, 0, 0]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    white = (1 - np.array((0.485, 0.456, 0.406))) / (0.229, 0.224, 0.225)
    rows = np.flatnonzero(np.abs(values[1, :, 128] - red[1]) < 1e-5)
    assert len(rows) == int(300 * 256 / 451) and rows[0] == (256 - len(rows)) // 2
    assert values[:, 0, 0] == pytest.approx(white, rel=1e-4)
    assert values[:, 128, 5] == pytest.approx(red, rel=1e-4)


def test_other_files_are_no_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    content = {k: v for k, v in load_checkpoint(checkpoint).items()
               if k not in ("format", "version")}  # fmt: skip
    cut = tmp_path / "cut.pt"
    network = dict(content["network"])
    network["head.extra"] = network.pop("head.position")
    save_checkpoint(cut, {**content, "network": network})
    with pytest.raises(InputError, match=r"1 missing \(head.position\), 1 unex.*head.extra"):
        TrainedNetwork(cut)
    save_checkpoint(cut, {**content, "recipe": {**content["recipe"], "loss": {}}})
    with pytest.raises(InputError, match=r"recipe inside is not one of this version \(loss\."):
        TrainedNetwork(cut)
    with pytest.raises(InputError, match=r"absent.pt: cannot be read"):
        TrainedNetwork(tmp_path / "absent.pt")
    np.savez(tmp_path / "x.npz", poses=np.zeros(3))
    with pytest.raises(InputError, match=r"x.npz: arrays \(.npz\), expected a checkpoint"):
        TrainedNetwork(tmp_path / "x.npz")


# ---- the verb -----------------------------------------------------------------------------------


def test_predict_writes_parameters_pictures_and_meshes(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    columns = labels(files)
    names = [files.data / str(columns["imgname"][k]) for k in (0, 1)]
    boxes = {}
    for k in (0, 1):
        reach = 100 * columns["scale"][k]
        low, high = columns["center"][k] - reach, columns["center"][k] + reach
        boxes[names[k].name] = [[*low.tolist(), *high.tolist()]] * (k + 1)
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    out = tmp_path / "out"
    words = ["predict", *map(str, names), "--checkpoint", str(checkpoint), "--out", str(out),
             "--boxes", str(tmp_path / "boxes.json"), "--focal", "800"]  # fmt: skip
    assert command_line(words) == 0
    said = capsys.readouterr()
    assert "3 people in 2 pictures" in said.out and "--focal" in said.out
    assert "stand-in body" in said.err
    stems = [name.stem for name in names]
    assert {p.name for p in out.iterdir()} == {
        "predictions.npz", "predictions.json", f"{stems[0]}.overlay.png",
        f"{stems[1]}.overlay.png", f"{stems[0]}.0.glb", f"{stems[1]}.0.glb", f"{stems[1]}.1.glb",
    }  # fmt: skip
    with np.load(out / "predictions.npz") as file:
        results = {name: file[name] for name in file.files}
    document = json.loads((out / "predictions.json").read_text())
    assert len(document["pose_names"]) == 46 and len(document["keypoint_names"]) == 44
    for k, person in enumerate(document["people"]):
        assert person["poses"] == pytest.approx(results["poses"][k].tolist())
        assert person["trans"] == pytest.approx(results["trans"][k].tolist())
    assert np.abs(results["poses"][1] - results["poses"][2]).max() < 1e-4  # one box, given twice
    assert results["cam_int"][:, 0, 0].tolist() == [800.0] * 3

    # The mesh is the posed body of the stored parameters, in glTF's frame.
    skel = load_skel(files.models, "male")
    posed = skel(*(torch.from_numpy(results[n][:1]) for n in ("poses", "betas", "trans")),
                 skeleton=True)  # fmt: skip
    meshes = read_glb((out / f"{stems[0]}.0.glb").read_bytes())
    assert set(meshes) == {"skin", "skeleton"}
    vertices, faces = meshes["skin"]
    wanted = posed.skin_vertices[0].numpy() * (1, -1, -1)
    assert np.abs(vertices - wanted).max() < 1e-4
    assert np.array_equal(faces.reshape(-1, 3), skel.faces.numpy())
    assert np.abs(meshes["skeleton"][0] - posed.skeleton_vertices[0].numpy() * (1, -1, -1)).max() \
        < 1e-4  # fmt: skip

    # The overlay differs from the picture where the body projects, and only there.
    picture = cv2.imread(str(names[0])).astype(int)
    overlay = cv2.imread(str(out / f"{stems[0]}.overlay.png")).astype(int)
    assert overlay.shape == picture.shape
    changed = np.abs(overlay - picture).sum(2) > 0
    pixels = camera.project(posed.skin_vertices, torch.from_numpy(results["cam_int"][:1]))[0]
    low, high = pixels.min(0).values.numpy() - 30, pixels.max(0).values.numpy() + 30
    y, x = np.nonzero(changed)
    assert len(y) > 200 and x.min() > low[0] and x.max() < high[0]
    assert y.min() > low[1] and y.max() < high[1]


def read_glb(data: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small reader of its own: mesh name -> vertices, indices."""
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<II", data[12:20])
    assert kind == 0x4E4F534A
    document = json.loads(data[20 : 20 + size])
    start = 20 + size
    assert struct.unpack("<II", data[start : start + 8])[1] == 0x004E4942
    blob = data[start + 8 :]

    def array(index: int) -> np.ndarray:
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        width = {"VEC3": 3, "SCALAR": 1}[accessor["type"]]
        values = np.frombuffer(blob, dtype, accessor["count"] * width, view["byteOffset"])
        values = values.reshape(-1, width)
        if "min" in accessor:
            assert accessor["min"] == values.min(0).tolist()
            assert accessor["max"] == values.max(0).tolist()
        return values

    meshes = {}
    for mesh in document["meshes"]:
        primitive = mesh["primitives"][0]
        normals = array(primitive["attributes"]["NORMAL"])
        assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-4
        meshes[mesh["name"]] = (
            array(primitive["attributes"]["POSITION"]), array(primitive["indices"])
        )  # fmt: skip
    return meshes


def test_glb_of_a_triangle() -> None:
    part = Part("one", np.array([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]]), np.array([[0, 2, 1]]),
                (1, 0, 0, 1))  # fmt: skip
    data = glb_bytes([part])
    assert data == glb_bytes([part]) and len(data) % 4 == 0
    vertices, faces = read_glb(data)["one"]
    assert vertices.tolist() == [[0, 0, -1], [1, 0, -1], [0, -1, -1]]
    assert faces.flatten().tolist() == [0, 2, 1]


def test_predict_without_boxes_finds_the_people(checkpoint: Path, tmp_path: Path) -> None:
    people = runners()
    grey = tmp_path / "nobody.png"
    grey.write_bytes(png_bytes(np.full((50, 80, 3), 90, np.uint8)))
    words = ["predict", str(people.path(1)), str(grey), "--checkpoint", str(checkpoint),
             "--out", str(tmp_path / "o"), "--save", "npz"]  # fmt: skip
    assert command_line(words) == 0
    with np.load(tmp_path / "o" / "predictions.npz") as file:
        box, whole = file["box"]
    middle, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    side = 200 * people.columns["scale"][1]
    assert np.abs(middle - people.columns["center"][1]).max() < 0.08 * side
    assert size.max() == pytest.approx(side, rel=0.12)
    assert whole.tolist() == [0, 0, 80, 50]  # nobody is found: the whole picture


def test_predict_without_boxes_and_detector_takes_whole_pictures(
    files: Demo, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name = files.data / str(labels(files)["imgname"][0])
    words = ["predict", str(name), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o"),
             "--save", "npz,json"]  # fmt: skip
    assert command_line(words) == 0
    with np.load(tmp_path / "o" / "predictions.npz") as file:
        width, height = labels(files)["image_size"][0]
        assert file["box"].tolist() == [[0, 0, width, height]]
    assert not list((tmp_path / "o").glob("*.glb"))


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ('{"NAME": [[-50, -50, -1, -1]]}', "is empty or outside the picture of"),
        ('{"NAME": [[0, 0, 0, 40]]}', "is empty or outside the picture of"),
        ('{"NAME": [[0, 0, 40, NaN]]}', "is empty or outside the picture of"),
        ('{"NAME": [[0, 0, 40]]}', "a box of NAME has not four numbers"),
        ('{"other.jpg": [[0, 0, 40, 40]]}', "'other.jpg' is not among the pictures given"),
        ("[1, 2]", "expected JSON"),
        ("{}", "holds no boxes"),
        ("image,left,top,right\nNAME,0,0,9\n", "not readable as boxes"),
    ],
)
def test_bad_boxes_are_refused(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, boxes: str,
    text: str,
) -> None:  # fmt: skip
    name = files.data / str(labels(files)["imgname"][0])
    file = tmp_path / ("boxes.csv" if boxes.startswith("image") else "boxes.json")
    file.write_text(boxes.replace("NAME", name.name))
    out = tmp_path / "out"
    words = ["predict", str(name), "--checkpoint", str(checkpoint), "--out", str(out),
             "--boxes", str(file)]  # fmt: skip
    assert command_line(words) == 5
    assert text.replace("NAME", name.name) in capsys.readouterr().err
    assert not out.exists()


def test_boxes_from_csv(files: Demo, checkpoint: Path, tmp_path: Path) -> None:
    name = files.data / str(labels(files)["imgname"][0])
    (tmp_path / "b.csv").write_text(f"image,left,top,right,bottom\n{name.name},10,20,200,300\n")
    words = ["predict", str(name), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o"),
             "--boxes", str(tmp_path / "b.csv"), "--save", "npz,json"]  # fmt: skip
    assert command_line(words) == 0
    with np.load(tmp_path / "o" / "predictions.npz") as file:
        assert file["box"].tolist() == [[10, 20, 200, 300]]


def test_predict_names_what_is_missing(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = str(files.data / str(labels(files)["imgname"][0]))
    (tmp_path / "text.jpg").write_text("no picture")
    base = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]
    for words, code, text in (
        ([str(tmp_path / "absent.jpg"), *base], 5, "absent.jpg: cannot be read"),
        ([str(tmp_path / "text.jpg"), *base], 5, "text.jpg: damaged or not a picture"),
        ([picture, "--checkpoint", picture, "--out", "o"], 5, "damaged, or holds more than"),
        ([picture, *base, "--focal", "-3"], 2, "--focal -3: expected a positive number"),
    ):
        assert command_line(["predict", *words]) == code
        assert text in capsys.readouterr().err


def test_boxes_of_pictures_of_one_name(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = (files.data / str(labels(files)["imgname"][0])).read_bytes()
    names = [tmp_path / folder / "1.jpg" for folder in ("a", "b", "c")]
    for name in names:
        name.parent.mkdir()
        name.write_bytes(picture)
    boxes = tmp_path / "boxes.json"
    words = ["predict", *map(str, names), "--checkpoint", str(checkpoint), "--save", "npz,json",
             "--out", str(tmp_path / "out"), "--boxes", str(boxes)]  # fmt: skip
    boxes.write_text('{"1.jpg": [[0, 0, 90, 90]]}')
    assert command_line(words) == 5
    said = capsys.readouterr().err
    assert "'1.jpg' may be" in said and str(names[0]) in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    boxes.write_text(json.dumps({str(names[1]): [[0, 0, 90, 90], [5, 5, 80, 80]],
                                 str(names[0]): [[1, 1, 70, 70]]}))  # fmt: skip
    assert command_line(words) == 0
    said = capsys.readouterr().out
    assert f"{names[2]}: 0 people" in said and said.count("0 people") == 1
    assert "3 people in 3 pictures" in said
    with np.load(tmp_path / "out" / "predictions.npz") as file:
        assert file["image"].tolist() == [str(names[k]) for k in (0, 1, 1)]
        assert file["box"][:, 2].tolist() == [70, 90, 80]


def test_predict_for_many(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Folders and patterns; a damaged picture costs itself alone, and the exit code says so."""
    monkeypatch.setattr(prediction, "_TOGETHER", 2)  # several rounds
    columns = labels(files)
    sources = [files.data / str(name) for name in columns["imgname"][:3]]
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for k, source in enumerate(sources):
        (folder / f"{k}.jpg").write_bytes(source.read_bytes())
    (folder / "deeper" / "3.png").write_bytes(cv2.imencode(".png", cv2.imread(str(sources[0])))[1])
    (folder / "2b.jpg").write_bytes(sources[0].read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    words = ["predict", str(folder), str(folder / "**" / "*.png"), "--checkpoint", str(checkpoint),
             "--save", "npz,csv,views", "--views", "front,side,top", "--out", str(out)]  # fmt: skip
    assert command_line(words) == 3
    said = capsys.readouterr()
    assert "4 people in 4 pictures" in said.out and "pictures/s" in said.out
    assert "1 of 5 pictures skipped" in said.err and "2b.jpg" in said.err
    assert (out / "skipped.txt").read_text().startswith(f"{folder / '2b.jpg'}\t")
    views = {f"{k}.views.png" for k in (0, 1, 2, 3)}
    assert {p.name for p in out.iterdir()} == {
        "predictions.npz", "predictions.csv", "skipped.txt", *views,
    }  # fmt: skip
    assert cv2.imread(str(out / "0.views.png")).shape == (256, 6 * 256, 3)
    with np.load(out / "predictions.npz") as file:
        found = {name: file[name] for name in file.files}
    good = [folder / f"{k}.jpg" for k in (0, 1, 2)] + [folder / "deeper" / "3.png"]
    assert found["image"].tolist() == list(map(str, good))
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["image"] for row in rows] == found["image"].tolist()
    knee = anatomy.POSE_NAMES.index("knee_angle_r")
    for k, row in enumerate(rows):
        assert float(row["knee_angle_r_deg"]) == pytest.approx(
            np.degrees(found["poses"][k, knee]), rel=1e-4, abs=1e-4
        )
        assert float(row["trans_z_m"]) == pytest.approx(found["trans"][k, 2], rel=1e-4)
    # Nor does what cannot be predicted cost more than itself.
    real = prediction.predict_people

    def fails(trained, body, pictures, *rest):
        if good[1] in pictures:
            raise InputError(f"{good[1]}: no focal length")
        return real(trained, body, pictures, *rest)

    monkeypatch.setattr(prediction, "predict_people", fails)
    again = ["predict", str(folder), *words[3:-1], str(tmp_path / "again")]
    assert command_line(again) == 3
    assert "2 of 4 pictures skipped" in capsys.readouterr().err
    monkeypatch.setattr(prediction, "predict_people", real)
    # A picture's result does not depend on its company, up to rounding.
    words = ["predict", str(good[2]), "--checkpoint", str(checkpoint), "--save", "npz",
             "--out", str(out)]  # fmt: skip
    assert command_line(words) == 0
    assert not (out / "skipped.txt").exists()
    with np.load(out / "predictions.npz") as file:
        assert np.abs(file["poses"][0] - found["poses"][2]).max() < 1e-4
    for bad, code, text in ((str(tmp_path / "*.gif"), 5, "no picture there"),
                            (str(tmp_path), 5, "no picture there")):  # fmt: skip
        assert command_line(["predict", bad, "--checkpoint", str(checkpoint)]) == code
        assert text in capsys.readouterr().err
    words = ["predict", str(folder), "--checkpoint", str(checkpoint), "--save", "obj"]
    assert command_line(words) == 2
    assert "--save obj: expected some of npz, json" in capsys.readouterr().err


def exif_jpeg(picture: np.ndarray, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation tag, written by hand."""
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def test_upright_or_as_stored(
    files: Demo, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/reference/checkpoints.md#exif: predict turns pictures, labels' pictures never turn."""
    # whole pictures: their boxes say which way they lie
    monkeypatch.setattr("stages.predict._finder", lambda: None)
    small = np.zeros((20, 40, 3), np.uint8)
    assert decode(exif_jpeg(small, 6), "x", turned=True).shape == (40, 20, 3)
    assert decode(exif_jpeg(small, 6), "x").shape == (20, 40, 3)
    assert decode(exif_jpeg(small, 6), "x", 2, turned=True).shape == (20, 10, 3)

    picture = cv2.imread(str(files.data / str(labels(files)["imgname"][0])))
    height, width = picture.shape[:2]
    lying = cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE)
    cv2.imwrite(str(tmp_path / "upright.png"), cv2.imdecode(
        np.frombuffer(exif_jpeg(lying, 6), np.uint8), cv2.IMREAD_COLOR))  # fmt: skip
    (tmp_path / "tagged.jpg").write_bytes(exif_jpeg(lying, 6))
    base = ["--checkpoint", str(checkpoint), "--save", "npz,overlay", "--out", str(tmp_path / "o")]
    both = [str(tmp_path / "tagged.jpg"), str(tmp_path / "upright.png")]
    assert command_line(["predict", *both, *base]) == 0
    with np.load(tmp_path / "o" / "predictions.npz") as file:
        assert file["box"].tolist() == [[0, 0, width, height]] * 2
        assert file["poses"][0] == pytest.approx(file["poses"][1], abs=1e-3)
        assert file["cam_int"][0, :2, 2].tolist() == [width / 2, height / 2]
    assert cv2.imread(str(tmp_path / "o" / "tagged.overlay.png")).shape == picture.shape
    assert command_line(["predict", both[0], *base, "--stored-pixels"]) == 0
    with np.load(tmp_path / "o" / "predictions.npz") as file:
        assert file["box"].tolist() == [[0, 0, height, width]]


# ---- layer by layer -----------------------------------------------------------------------------


def test_attention_maps_are_what_the_decoder_used(files: Demo, checkpoint: Path) -> None:
    """docs/reference/checkpoints.md#attention"""
    trained = TrainedNetwork(checkpoint)
    image, view = trained.seen(persons(files, [0, 3]), GROWN)
    network, box = trained.network, view.conditioning
    estimates, weights = attention_maps(network, image, box)
    layers = list(network.head.layers)
    heads, grid = layers[0].cross_attention.heads, token_grid(*image.shape[-2:])
    assert weights.shape == (len(layers), 2, heads, 3, grid[0] * grid[1])
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.equal(estimates.final.code, network(image, box).final.code)
    # softmax times v, through the layer's own output, is what the layer gave.
    tokens = network.backbone(image)
    seen: list[tuple] = []
    attention = layers[-1].cross_attention
    hook = attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    network(image, box)
    hook.remove()
    (_, context), output = seen[0]
    assert torch.equal(context, tokens)
    _, v = attention.to_kv(context).chunk(2, -1)
    mixed = weights[-1] @ v.unflatten(-1, (heads, -1)).transpose(1, 2)
    again = attention.to_out(mixed.transpose(1, 2).flatten(2))
    assert torch.allclose(again, output, atol=1e-5)


def test_layers_are_drawn(files: Demo, checkpoint: Path, tmp_path: Path) -> None:
    name = files.data / str(labels(files)["imgname"][0])
    out = tmp_path / "o"
    words = ["layers", str(name), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert command_line(words) == 0
    layers = TrainedNetwork(checkpoint).recipe.model.decoder.layers
    height, width = TrainedNetwork(checkpoint).recipe.model.input_size
    attention = cv2.imread(str(out / f"{name.stem}.0.attention.png"))
    assert attention.shape == (3 * height, layers * width, 3)
    drawn = cv2.imread(str(out / f"{name.stem}.0.layers.png"))
    assert drawn.shape == (height, (layers + 1) * width, 3)
    assert (out / f"{name.stem}.0.layers.gif").read_bytes()[:6] == b"GIF89a"


def test_cameras_of_the_layers(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """docs/reference/checkpoints.md#layer-cameras: the last layer's is the ordinary result."""
    own = CheckpointPredictor(checkpoint)
    others = own.layer_cameras()
    layers = own._network.recipe.model.decoder.layers
    assert len(others) == 2 * (layers + 1)
    query = batch_of(files, [3, 7], known=True)
    found = {other.name: other(query) for other in others}
    wanted = own(query)
    for kind in ("translation", "scale"):
        assert torch.equal(found[f"{kind} of layer {layers - 1}"].translation, wanted.translation)
        assert not torch.equal(found[f"{kind} of coarse"].translation, wanted.translation)
        assert torch.equal(found[f"{kind} of coarse"].poses, wanted.poses)
    steps = {step.name: step(query) for step in own.layer_estimates()}
    assert list(steps) == ["coarse", *(f"layer {k}" for k in range(layers - 1))]
    for name, step in steps.items():
        scales = found[f"scale of {name}"].translation[:, 2]
        assert torch.equal(step.translation[:, 2], scales), name
    assert not torch.equal(steps["coarse"].poses, wanted.poses)
    # Depth follows the scale alone.
    assert torch.equal(found["translation of coarse"].translation[:, 2], wanted.translation[:, 2])
    words = ["evaluate", "demo", "--shards", str(files.shards), "--worst", "0", "--quiet",
             "--limit", "2", "--checkpoint", str(checkpoint), "--against", str(checkpoint),
             "--layer-cameras", "--layer-estimates", "--out", str(tmp_path / "out")]  # fmt: skip
    assert command_line(words) == 0
    said = capsys.readouterr().out
    assert "scale of layer 0" in said and f"({checkpoint})" in said
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "coarse" in content["protocols"][0]["results"]
    assert command_line(["evaluate", "demo", "--shards", str(files.shards),
                         "--layer-cameras"]) == 2  # fmt: skip


# ---- the network under an evaluation protocol ---------------------------------------------------


def test_evaluation_takes_the_bodies_that_made_the_rows(
    files: Demo, checkpoint: Path, tmp_path: Path, golden_models: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Licensed models lie about; shards and checkpoint are of the stand-in."""
    licensed = tmp_path / "licensed"
    licensed.mkdir()
    for gender in ("male", "female"):
        (licensed / f"skel_{gender}.pkl").symlink_to(golden_models / "skel_male.pkl")
    monkeypatch.setenv("HMR_SKEL_MODELS", str(licensed))
    words = ["evaluate", "demo", "--shards", str(files.shards), "--worst", "0", "--quiet",
             "--out", str(tmp_path / "out")]  # fmt: skip
    scored = [*words, "--checkpoint", str(checkpoint)]
    assert command_line([*scored, "--limit", "2"]) == 0
    assert "licence-free stand-in" in capsys.readouterr().out
    for arguments, what in ((words, f"the shards {files.shards} were converted with"),
                            (scored, "the shards")):  # fmt: skip
        assert command_line([*arguments, "--models", str(licensed)]) == 5
        said = capsys.readouterr().err
        assert f"{licensed}: holds licensed body models, but {what}" in said
        assert said.count("\n") == 1


def test_a_checkpoint_is_not_scored_on_other_bodies_than_its_own(
    files: Demo, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The other way round: nothing says so but the checkpoint."""
    content = {k: v for k, v in load_checkpoint(checkpoint).items()
               if k not in ("format", "version")}  # fmt: skip
    save_checkpoint(tmp_path / "licensed.pt", {**content, "standin": False})
    words = ["evaluate", "demo", "--shards", str(files.shards), "--worst", "0", "--quiet",
             "--out", str(tmp_path / "out"),
             "--checkpoint", str(tmp_path / "licensed.pt")]  # fmt: skip
    assert command_line(words) == 5
    said = capsys.readouterr().err
    assert "the checkpoint" in said and "was trained on licensed body models" in said


def batch_of(files: Demo, rows: list[int], *, known: bool) -> Query:
    people = persons(files, rows)
    cam_int = np.stack([person.cam_int for person in people])
    return Query(
        rows=np.array(rows), names=tuple(person.name for person in people),
        images=open_images(files.data), center=np.stack([p.center for p in people]),
        box=np.stack([p.box for p in people]),
        cam_int=cam_int if known else np.full_like(cam_int, np.nan),
        crop=CropRule(grow_to_aspect=False, corners="integer", conditioning="annotation"),
    )  # fmt: skip


def test_focal_rules(files: Demo, checkpoint: Path, crop_camera: Path) -> None:
    columns, rows = labels(files), [3, 7]
    width, height = columns["image_size"][rows].T
    side = 200 * columns["scale"][rows]
    expected = {
        "labels": columns["cam_int"][rows][:, 0, 0],
        "diagonal": np.hypot(width, height),
        "patch": 5000 / 256 * side * 4 / 3,
        777.0: np.full(2, 777.0),
    }
    words = {"labels": "labels", "diagonal": "picture diagonal (assumed)",
             "patch": "5000 px on a crop of 256", 777.0: "777 px"}  # fmt: skip
    for rule, focal in expected.items():
        predictor = CheckpointPredictor(checkpoint, focal=rule)
        found = predictor(batch_of(files, rows, known=rule == "labels"))
        assert found.cam_int[:, 0, 0].numpy() == pytest.approx(focal, rel=1e-5), rule
        middle = np.stack((width / 2, height / 2), 1)
        middle = {"patch": columns["center"][rows], "labels": columns["cam_int"][rows][:, :2, 2]}\
            .get(rule, middle)  # fmt: skip
        assert found.cam_int[:, :2, 2].numpy() == pytest.approx(middle, rel=1e-5), rule
        assert predictor.provenance()["focal"] == words[rule]
    with pytest.raises(InputError, match=r"row 3 \(.*\): the labels have no intrinsics"):
        CheckpointPredictor(checkpoint)(batch_of(files, rows, known=False))
    own = CheckpointPredictor(crop_camera)
    assert own.focal_source.startswith("crop camera")
    found = own(batch_of(files, rows, known=False))
    assert found.cam_int[:, 0, 0].numpy() == pytest.approx(expected["patch"], rel=1e-5)


def test_crop_rules_under_a_protocol(files: Demo, checkpoint: Path) -> None:
    rules = {
        "recipe": GROWN, "grown": GROWN,
        "square": crop_rule(grow=False),
        "protocol": CropRule(grow_to_aspect=False, corners="integer", conditioning="annotation",
                             pixels="published"),
    }  # fmt: skip
    trained = TrainedNetwork(checkpoint)
    for name, rule in rules.items():
        found = CheckpointPredictor(checkpoint, crop=name)(batch_of(files, [3], known=True))
        wanted = trained.predict(persons(files, [3]), rule)
        assert torch.equal(found.translation, wanted.translation), name


def test_the_field_of_view_network_may_see_bgr(files: Demo, checkpoint: Path) -> None:
    """As in some published runs (evaluation 4.3)."""
    seen = []

    class Watching(HumanFOV):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image[0].numpy())
            return torch.tensor([[0.0, 0.7]])

    name = files.data / str(labels(files)["imgname"][0])
    picture = cv2.imread(str(name))
    for channels in ("rgb", "bgr"):
        predictor = CheckpointPredictor(
            checkpoint, focal="predicted", fov=Watching(), fov_channels=channels
        )
        predictor(batch_of(files, [0], known=False))
        assert ("BGR" in predictor.focal_source) == (channels == "bgr")
    assert np.array_equal(seen[0], fov_input(picture[..., ::-1]))
    assert np.array_equal(seen[1], fov_input(picture))


def test_the_longer_side_of_the_field_of_view_input_is_256() -> None:
    for longer in range(1, 700):
        black = fov_input(np.zeros((1, longer, 3), np.uint8))[0] < 0
        assert black.any(0).sum() == 256, longer
