"""Motions of other bodies than SMPL: `convert FILE` of meshes and parameters with a frame rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline import open_dataset
from pipeline.errors import InputError
from pipeline.own_file import own_file
from pipeline.readers import open_source
from pipeline.run import Request, convert
from pipeline.rundir import RunDirectory
from pipeline.verify import verify
from skel_fit import FitConfig, SequenceConfig, load_skel, load_smpl
from skel_fit.bodies import (
    IdentityShapes,
    SurfaceMap,
    fit_identity,
    fit_skel_to_surface,
    fit_surface_sequence,
)
from skel_fit.bodies.smpl_family import FamilyBody
from skel_fit.bodies.surface_fit import map_weights
from skel_fit.default_body import default_body_directory
from skel_fit.default_body.expansion import default_body_arrays
from skel_fit.sequence import NEIGHBOUR_START, fit_sequence
from tests.foreign_bodies import fake_bodies, fake_smplx_arrays
from tests.test_solver import MOTION

FRAMES = 8
SMALL = FitConfig(block_size=16, recipe="surface")
SAME = np.deg2rad(0.02)
"""What a map may change of an angle."""


@pytest.fixture(scope="module")
def pair():
    """Male stand-in pair."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male")


@pytest.fixture(scope="module")
def fakes(pair):
    return fake_bodies(pair[0].faces.numpy())


@pytest.fixture(scope="module")
def models(fakes, tmp_path_factory) -> Path:
    """The stand-in's files, a fake SMPL-X and the maps of the fakes beside them."""
    folder = tmp_path_factory.mktemp("models")
    for file in default_body_directory().iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "maps").mkdir()
    for name, fake in fakes.items():
        fake.map.write(folder / "maps" / f"{name}.npz")
    arrays = fake_smplx_arrays(default_body_arrays("smpl", "male"), fakes["smplx"], "male")
    np.savez(folder / "SMPLX_MALE.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray]:
    """Consecutive real frames: poses (8,72), hands still, and translations (8,3)."""
    with np.load(MOTION) as file:
        poses, transl = (
            file[name][300 : 300 + FRAMES].astype(np.float64) for name in ("poses", "transl")
        )
    poses[:, 66:] = 0.0
    return poses, transl


def posed(pair, poses: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """SMPL meshes (n, 6890, 3) of mean shape, float32."""
    turns, moved = (torch.as_tensor(values, dtype=torch.float32) for values in (poses, transl))
    body = pair[1](
        global_orient=turns[:, :3],
        body_pose=turns[:, 3:],
        betas=torch.zeros(len(turns), 10),
        transl=moved,
    )
    return body.vertices.numpy()


@pytest.fixture(scope="module")
def meshes(pair, walk) -> np.ndarray:
    return posed(pair, *walk)


def converted(path: Path, out: Path, models: Path, **changes: Any) -> Any:
    """The dataset of a file that `convert` understands by itself, and its manifest."""
    found = own_file(path, models="licensed", skel_gender="male")
    fit = found.manifest.fit.model_copy(update={"block_size": 16, **changes.pop("fit", {})})
    manifest = found.manifest.model_copy(update={"fit": fit, **changes})
    result = convert(
        Request(manifest, out, found.data_root, models, workers=1), lambda event, data: None
    )
    assert result.ok
    return open_dataset(out)


def largest_step(data: Any) -> float:
    return float(np.abs(np.diff(data["skel_poses"][:, 3:], axis=0)).max())


@pytest.fixture(scope="module")
def shapes(pair) -> IdentityShapes:
    """Of the mean body, person 0."""
    rest = posed(pair, np.zeros((1, 72)), np.zeros((1, 3)))
    return fit_identity(
        {"male": pair[0]}, torch.as_tensor(rest), np.zeros(1, int), np.array(["male"]), at_rest=True
    )


def test_a_motion_of_meshes_is_that_of_the_same_smpl_meshes(fakes, models, meshes, tmp_path):
    """A frame rate is enough to make frames a motion; the cut into shards does not show."""
    np.savez(tmp_path / "smpl.npz", vertices=meshes, body="smpl", fps=30)
    mapped = fakes["mhr"].vertices(meshes).astype(np.float32)
    np.savez(tmp_path / "mhr.npz", vertices=mapped, body="mhr", fps=30)
    wanted = converted(tmp_path / "smpl.npz", tmp_path / "1", models)
    plan = RunDirectory(tmp_path / "1").plan()
    assert plan.request.sequence == SequenceConfig() and plan.fit["recipe"] == "surface"
    found = converted(tmp_path / "mhr.npz", tmp_path / "2", models)
    assert np.abs(found["skel_poses"] - wanted["skel_poses"]).max() < SAME
    assert largest_step(found) < 0.5 and (found["status"] == "converged").all()
    assert np.isfinite(found["vertex_error_alone"]).all()
    assert len({row.tobytes() for row in found["skel_betas"]}) == 1

    cut = converted(tmp_path / "mhr.npz", tmp_path / "3", models, shard_rows=5)
    for column in ("skel_poses", "skel_trans", "vertex_error_mean"):
        assert np.array_equal(found[column], cut[column]), column
    checked = verify(tmp_path / "3", data_root=tmp_path, models=models)
    assert checked.ok, checked


def test_a_free_root_is_smoothed_too(pair, meshes, shapes):
    """A pelvis that trembles is steadied: errors stay, the skin's velocity comes nearer to that of
    the meshes, and stored bodies are where the errors say."""
    same = SurfaceMap.same_topology(pair[0].faces.numpy())
    rng = np.random.default_rng(3)
    shaken = meshes + rng.normal(0.0, 0.004, meshes.shape).astype(np.float32)
    weights = np.ones(6890)
    weights[0] = 0.999  # all alike would be no weights, and those of hands weigh otherwise
    found = {
        smoothing: fit_surface_sequence(
            pair[0], shaken, same, 0, shapes, SMALL, SequenceConfig(smoothing=smoothing),
            vertex_weights=weights,
        )
        for smoothing in (0.0, 10.0)
    }  # fmt: skip
    velocity = {}
    for smoothing, fit in found.items():
        given = (torch.as_tensor(values) for values in (fit.poses, fit.betas, fit.trans))
        apart = pair[0](*given).skin_vertices.numpy() - shaken
        error = np.linalg.norm(apart, axis=2).mean(axis=1)
        assert np.abs(error - fit.vertex_error_mean).max() < 3e-6
        velocity[smoothing] = np.square(np.diff(apart, axis=0)).sum(axis=2).mean()
    assert velocity[10.0] < velocity[0.0]
    assert found[10.0].vertex_error_mean.mean() < found[0.0].vertex_error_mean.mean() + 2e-4
    roots = [np.concatenate((fit.poses[:, :3], fit.trans), axis=1) for fit in found.values()]
    assert (np.abs(roots[0] - roots[1]).max(axis=0) > 1e-5).all()


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_a_frame_that_is_no_mesh_moves_no_other(pair, meshes, shapes, smoothing):
    same = SurfaceMap.same_topology(pair[0].faces.numpy())
    config = SequenceConfig(smoothing=smoothing)
    kept = np.arange(FRAMES) != 3
    broken = meshes.copy()
    broken[3, 100] = np.nan
    found = fit_surface_sequence(pair[0], broken, same, 0, shapes, SMALL, config)
    without = fit_surface_sequence(pair[0], meshes[kept], same, 0, shapes, SMALL, config)
    assert found.status[3] == "rejected:non_finite_vertices" and np.isnan(found.poses[3]).all()
    for name in ("poses", "trans", "vertex_error_mean", "alone_error", "iterations"):
        assert np.array_equal(getattr(found, name)[kept], getattr(without, name)), name


def test_neighbours_lead_meshes_out_of_a_wrong_branch(pair, shapes):
    """An arm circles within limits: on their own some frames end in a poor optimum."""
    poses = np.zeros((16, 72))
    turns = np.linspace(0.0, 2.0 * math.pi, 16)[:, None] * np.array((0.0, 1.0, 0.0))
    poses[:, 51:54] = Rotation.from_rotvec(turns).as_rotvec()
    meshes = posed(pair, poses, np.zeros((16, 3)))
    same = SurfaceMap.same_topology(pair[0].faces.numpy())
    alone = fit_skel_to_surface(pair[0], meshes, same, np.zeros(16, int), shapes, SMALL)
    found = fit_surface_sequence(pair[0], meshes, same, 0, shapes, SMALL)
    steps = [np.abs(np.diff(fit.poses[:, 3:], axis=0)).max() for fit in (alone, found)]
    assert steps[0] > 1.0 and steps[1] < steps[0]
    assert (found.start == NEIGHBOUR_START).any()
    assert found.vertex_error_mean.mean() <= alone.vertex_error_mean.mean() + 1e-6


def amass_file(path: Path, walk: tuple[np.ndarray, np.ndarray], **changes: Any) -> None:
    """SMPL-X as AMASS has it, z up."""
    poses, transl = walk
    world = Rotation.from_euler("x", 90, degrees=True)
    full = np.zeros((len(poses), 165))
    full[:, :66] = poses[:, :66]
    full[:, :3] = (world * Rotation.from_rotvec(poses[:, :3])).as_rotvec()
    content = {
        "poses": full, "trans": world.apply(transl), "betas": np.zeros(16), "gender": "male",
        "mocap_frame_rate": 30.0, "surface_model_type": "smplx",
    }  # fmt: skip
    np.savez(path, **(content | changes))


def test_a_motion_of_smplx_parameters_is_that_of_smpl(pair, fakes, models, walk, tmp_path):
    """The root that the label states stays: the sequence is SMPL's, in a world turned upright."""
    amass_file(tmp_path / "walk_stageii.npz", walk)
    found = converted(tmp_path / "walk_stageii.npz", tmp_path / "1", models)
    plan = RunDirectory(tmp_path / "1").plan()
    assert plan.request.sequence is not None and plan.fit["recipe"] == "hierarchical"
    poses, transl = (torch.as_tensor(values) for values in walk)
    shape = torch.zeros(10, dtype=torch.float64)
    body = FamilyBody.load(models, "smplx", "male")
    weights = map_weights(pair[0], fakes["smplx"].map, body.mask_weights())
    config = FitConfig(block_size=16)
    wanted = fit_sequence(*pair, poses, shape, transl, config, vertex_weights=weights)
    off = np.rad2deg(np.abs(found["skel_poses"][:, 3:] - wanted.poses.numpy()[:, 3:]))
    assert off.max() < 0.5 and np.median(off.max(axis=1)) < 0.1 and largest_step(found) < 0.5
    assert np.abs(found["vertex_error_mean"] - wanted.vertex_error_mean.numpy()).max() < 1e-5


def test_rows_of_a_motion_are_those_of_one_person_one_after_the_other(meshes, tmp_path):
    """Taking turns, people are no motions; a sequence of two people is refused."""
    four = {"vertices": meshes[:4], "body": "smpl", "fps": 30.0}
    for people, motion in ((["a", "b", "a", "b"], False), (["a", "a", "b", "b"], True)):
        np.savez(tmp_path / "rows.npz", identity=np.array(people), **four)
        source = open_source(tmp_path / "rows.npz", smpl_gender="male", skel_gender="male")
        assert ("sequence" in source.fields) == motion
        assert source.identities().tolist() == [["a", "b"].index(name) for name in people]
        manifest = own_file(tmp_path / "rows.npz", models="default-body").manifest
        assert (manifest.fit.sequence is not None) == motion
    np.savez(
        tmp_path / "rows.npz",
        identity=np.array(["a", "a", "b", "b"]),
        sequence=np.array(["one"] * 4),
        **four,
    )
    with pytest.raises(InputError, match="person of row 2 differs from row 0 of the same sequence"):
        converted(tmp_path / "rows.npz", tmp_path / "out", default_body_directory())


@pytest.mark.parametrize("rate", ["fast", -5.0, 0.0, np.nan, [30.0, 30.0, np.inf]])
def test_a_frame_rate_is_a_number_above_zero(meshes, walk, tmp_path, rate):
    np.savez(tmp_path / "rows.npz", vertices=meshes[:3], body="smpl", fps=rate)
    amass_file(tmp_path / "walk.npz", walk, mocap_frame_rate=rate)
    for name, member in (("rows.npz", "fps"), ("walk.npz", "mocap_frame_rate")):
        with pytest.raises(InputError, match=rf"{name}: member '{member}'"):
            own_file(tmp_path / name, models="licensed")
