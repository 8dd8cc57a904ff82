"""Rigs: glTF and BVH files read back by other libraries and posed again, against our bodies."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import bvhio
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from pipeline import open_dataset
from pipeline.columns import SKEL_COLUMNS
from skel_fit import JOINT_NAMES, load_skel
from skel_fit.default_body import default_body_directory
from stages.cli import run
from stages.drawing.viewer.bodies import Parameters
from stages.rigs.bvh import bvh
from stages.rigs.glb import glb
from stages.rigs.rig import Rig, rig_of, strongest
from tests.demo_rows import REAL, convert_labels, fitted_demo
from tests.label_files import amass

FRAMES = 6


@pytest.fixture(scope="module")
def given() -> Parameters:
    random = np.random.default_rng(5)
    ends = random.uniform(-0.5, 0.5, (2, 46))
    share = np.linspace(0, 1, FRAMES)[:, None]
    betas = np.repeat(random.normal(0, 1, (1, 10)), FRAMES, axis=0)
    transl = np.column_stack([share, 1 + 0 * share, -share])
    return Parameters(ends[0] + share * (ends[1] - ends[0]), betas, transl, ("male",) * FRAMES)


@pytest.fixture(scope="module")
def rig(given: Parameters) -> Rig:
    models = {"male": load_skel(default_body_directory(), "male", dtype=torch.float64)}
    return rig_of(models, given, rate=25.0)


@pytest.fixture(scope="module")
def truth(given: Parameters) -> Any:
    model = load_skel(default_body_directory(), "male", dtype=torch.float64)
    values = (torch.as_tensor(v) for v in (given.poses, given.betas, given.transl))
    return model(*values, skeleton=True)


class Reader:
    """A glTF 2.0 binary read with the standard library alone, and posed as the standard says."""

    def __init__(self, data: bytes) -> None:
        length = struct.unpack("<I", data[12:16])[0]
        self.json = json.loads(data[20 : 20 + length])
        self.blob = data[28 + length :]

    def array(self, number: int) -> np.ndarray:
        accessor = self.json["accessors"][number]
        view = self.json["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5121: "u1", 5125: "<u4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        start = view.get("byteOffset", 0)
        values = np.frombuffer(self.blob[start : start + view["byteLength"]], dtype)
        assert len(values) == accessor["count"] * width
        return values.reshape(-1, width) if width > 1 else values

    def channels(self) -> dict[tuple[int, str], np.ndarray]:
        animation = self.json["animations"][0]
        found = {}
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            key = (channel["target"]["node"], channel["target"]["path"])
            found[key] = self.array(sampler["output"])
        return found

    def vertices(self, name: str, frame: int) -> np.ndarray:
        nodes, channels = self.json["nodes"], self.channels()
        number = next(k for k, node in enumerate(nodes) if node["name"] == name)
        mesh = self.json["meshes"][nodes[number]["mesh"]]["primitives"][0]
        world: dict[int, np.ndarray] = {}

        def walk(node: int, above: np.ndarray) -> None:
            local = np.eye(4)
            if (node, "rotation") in channels:
                local[:3, :3] = Rotation.from_quat(channels[node, "rotation"][frame]).as_matrix()
            moved = channels.get((node, "translation"))
            local[:3, 3] = nodes[node]["translation"] if moved is None else moved[frame]
            world[node] = above @ local
            for child in nodes[node].get("children", []):
                walk(child, world[node])

        walk(self.json["skins"][0]["joints"][0], np.eye(4))
        rest = self.array(mesh["attributes"]["POSITION"]).astype(np.float64)
        weights = channels.get((number, "weights"))
        for k, target in enumerate(mesh.get("targets") or []):
            count = len(mesh["targets"])
            rest = rest + weights.reshape(-1, count)[frame, k] * self.array(target["POSITION"])
        skin = self.json["skins"][0]
        inverse = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        maps = np.stack([world[j] @ inverse[k] for k, j in enumerate(skin["joints"])])
        joints = self.array(mesh["attributes"]["JOINTS_0"])
        strength = self.array(mesh["attributes"]["WEIGHTS_0"])
        homogeneous = np.column_stack([rest, np.ones(len(rest))])
        return np.einsum("vk,vkij,vj->vi", strength, maps[joints], homogeneous)[:, :3]


def test_the_file_posed_as_gltf_says_is_our_body(rig: Rig, truth: Any) -> None:
    written = glb(rig, "walk", {"about": "a test"})
    reader = Reader(written.data)
    for frame in range(FRAMES):
        skin = reader.vertices("skin", frame) - truth.skin_vertices[frame].numpy()
        bones = reader.vertices("bones", frame) - truth.skeleton_vertices[frame].numpy()
        assert np.linalg.norm(skin, axis=1).max() <= written.deviation[1] + 2e-5
        assert np.linalg.norm(bones, axis=1).max() < 1e-3
    assert written.deviation[1] < 3e-3
    extras = reader.json["asset"]["extras"]
    assert extras["skin_deviation_max_mm"] == round(1000 * written.deviation[1], 3)
    assert extras["about"] == "a test"


def test_another_library_reads_meshes_and_names(rig: Rig) -> None:
    scene = trimesh.load(io.BytesIO(glb(rig, "walk", {}).data), file_type="glb")
    assert sorted(scene.geometry) == ["bones", "skin"]
    assert len(scene.geometry["skin"].vertices) == 6890
    assert set(JOINT_NAMES) <= set(scene.graph.nodes)


def test_weights_of_morph_targets_run_from_zero_to_one(rig: Rig) -> None:
    """Blender clamps them there."""
    reader = Reader(glb(rig, "walk", {}).data)
    found = [values for (_, path), values in reader.channels().items() if path == "weights"]
    assert len(found) == 1
    assert found[0].min() == pytest.approx(0.0) and found[0].max() == pytest.approx(1.0)
    skin = next(mesh for mesh in reader.json["meshes"] if mesh["name"] == "skin")
    assert all(0 <= value <= 1 for value in skin["weights"])  # without animation: the mean shape


def test_the_clip_lasts_as_long_as_the_motion(rig: Rig) -> None:
    reader = Reader(glb(rig, "walk", {}).data)
    times = reader.array(reader.json["animations"][0]["samplers"][0]["input"])
    np.testing.assert_allclose(times, np.arange(FRAMES) / 25, atol=1e-6)


def test_quaternions_do_not_change_sign_between_frames() -> None:
    from stages.rigs.glb import continuous_quaternions

    angles = np.linspace(0, 4 * np.pi, 60)
    turned = Rotation.from_rotvec(np.outer(angles, [0, 1.0, 0])).as_matrix()
    steps = np.linalg.norm(np.diff(continuous_quaternions(turned), axis=0), axis=1)
    assert steps.max() < 0.2


def test_bvh_read_by_another_library_has_our_joints(rig: Rig, truth: Any, tmp_path: Any) -> None:
    path = tmp_path / "walk.bvh"
    path.write_text(bvh(rig))
    root = bvhio.readAsHierarchy(str(path))
    joints = {joint.Name: joint for joint, _, _ in root.layout()}
    for frame in range(FRAMES):
        root.loadPose(frame)
        for k, name in enumerate(JOINT_NAMES):
            found = np.array(joints[name].PositionWorld) / 100
            assert np.linalg.norm(found - truth.joints[frame, k].numpy()) < 2e-5
    container = bvhio.readAsBvh(str(path))
    assert container.FrameCount == FRAMES and container.FrameTime == pytest.approx(1 / 25)


def test_a_turned_rig_is_the_turned_body(rig: Rig) -> None:
    turn = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    turned = rig.turned(turn)
    skin = Reader(glb(turned, "walk", {}).data).vertices("skin", 2)
    distance = np.linalg.norm(skin - rig.skin.vertices[2] @ turn.T, axis=1)
    assert distance.max() < 3e-3


def test_the_strongest_weights_add_up_to_one() -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(24, 0.3), 50)
    kept = strongest(weights, 4)
    assert ((kept > 0).sum(axis=1) <= 4).all()
    np.testing.assert_allclose(kept.sum(axis=1), 1)
    assert (np.argmax(kept, axis=1) == np.argmax(weights, axis=1)).all()


# --- through the command line --------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rig-sequences")
    (folder / "amass").mkdir()
    for name in ("run", "walk"):
        content = amass(5, seed=len(name)) | {"mocap_framerate": np.array(50.0)}
        np.savez(folder / "amass" / f"{name}.npz", **content)
    return convert_labels(folder, "amass", REAL, models="default-body")


def export(*arguments: object) -> int:
    return run(["export", *map(str, arguments)])


def test_a_sequence_is_exported_y_up_at_its_rate(sequences: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.glb"
    assert export(sequences, "--format", "glb", "--sequence", "walk", "--out", out) == 0
    reader = Reader(out.read_bytes())
    dataset = open_dataset(sequences)
    rows = np.flatnonzero(dataset["sequence"] == "walk")
    times = reader.array(reader.json["animations"][0]["samplers"][0]["input"])
    np.testing.assert_allclose(times, np.arange(len(rows)) / 50, atol=1e-6)
    gender = str(dataset["skel_gender"][rows[0]])
    model = load_skel(default_body_directory(), gender, dtype=torch.float64)
    columns = (dataset[name][rows].astype(np.float64) for name in SKEL_COLUMNS)
    up = model(*(torch.as_tensor(values) for values in columns)).skin_vertices.numpy()
    np.testing.assert_array_equal(dataset.to_source @ [0, 1, 0], [0, 0, 1])  # turned, z was up
    for frame in range(len(rows)):
        distance = np.linalg.norm(reader.vertices("skin", frame) - up[frame], axis=1)
        assert distance.max() < 3e-3
    assert reader.json["asset"]["extras"]["standin"] is True


def test_bvh_through_the_command_line(sequences: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.bvh"
    arguments = ("--format", "bvh", "--sequence", "run", "--rate", "25", "--out", out)
    assert export(sequences, *arguments) == 0
    found = bvhio.readAsBvh(str(out))
    assert found.FrameCount == 5 and found.FrameTime == pytest.approx(1 / 25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "glb"], "2 sequences; one file holds one"),
        (["--format", "glb", "--sequence", "fly"], "there are run, walk"),
        (["--format", "bvh", "--rows", "4:99"], "expected A < B <= 10"),
        (["--format", "bvh", "--rows", "x"], "expected A:B"),
        (["--format", "glb", "--rejected", "keep"], "no pose to export"),
        (["--format", "glb", "--angles", "skel"], "has no such option"),
    ],
)
def test_what_a_rig_cannot_be_is_one_line(
    sequences: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert export(sequences, *arguments, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not out.exists()


def test_unrelated_people_are_no_motion(tmp_path_factory: Any, tmp_path: Path, capsys: Any) -> None:
    rows = fitted_demo(tmp_path_factory.getbasetemp())
    out = tmp_path / "one.glb"
    assert export(rows, "--format", "glb", "--out", out) == 2
    assert "unrelated people" in capsys.readouterr().err
    assert export(rows, "--format", "glb", "--rows", "1:2", "--out", out) == 0
    assert Reader(out.read_bytes()).vertices("skin", 0)[:, 1].min() < 0  # y up, in camera space
