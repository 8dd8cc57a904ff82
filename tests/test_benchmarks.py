"""What the benchmarks compare is what they say: frame sets, the published recipe, changed roots."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from benchmarks import on_gpu
from benchmarks.measure import Pair, residuals, violations
from benchmarks.poses import extreme, own_wide, real
from benchmarks.published_recipe import STAGES, PublishedFit, released_root
from benchmarks.quality import FREE, roots, solve
from skel_fit import anatomy
from skel_fit.fit import fit_skel
from skel_fit.root import root_from_smpl


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.default()


def test_frame_sets_are_the_same_every_time_and_extreme_ones_are_mirrored():
    first, again = extreme(40), extreme(40)
    assert torch.equal(first.poses, again.poses) and torch.equal(first.betas, again.betas)
    sixteen = len(set(first.labels))
    assert first.labels[:sixteen] == first.labels[sixteen : 2 * sixteen]
    kick = [row for row, label in enumerate(first.labels) if label == "high kick"][:2]
    hips = first.poses.view(40, 24, 3)[kick][:, 1:3].norm(dim=2)  # left and right hip
    assert hips[0, 0] > 1.4 > 0.6 > hips[0, 1] and hips[1, 1] > 1.4 > 0.6 > hips[1, 0]
    assert torch.isfinite(real(5).poses).all() and len(real(5)) == 5


def test_own_meshes_come_from_poses_inside_the_limits(pair: Pair):
    meshes = own_wide(pair.skel, 6)
    assert violations(meshes.poses, "default")["angles a row"] == 0
    assert float(meshes.poses[:, 3:].std()) > 0.3  # and far from rest
    with torch.no_grad():
        exact = pair.skel64(meshes.poses, meshes.betas, meshes.trans).skin_vertices
    torch.testing.assert_close(meshes.vertices, exact, atol=2e-6, rtol=0)


def test_violations_count_what_is_outside():
    poses = torch.zeros(2, 46)
    poses[1, anatomy.POSE_NAMES.index("knee_angle_r")] = -0.6
    found = violations(poses, "default")
    assert found["angles a row"] == 0.5 and found["share of rows"] == 0.5
    assert found["largest"] == pytest.approx(0.5, abs=1e-6)


def test_released_root_is_the_copied_triple():
    vectors = np.random.default_rng(2).normal(size=(50, 3))
    expected = Rotation.from_rotvec(vectors).as_euler("XYZ")  # R = Rx Ry Rz
    expected[:, 0] = -vectors[:, 0]
    found = released_root(torch.as_tensor(vectors))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("root", ["exact", "released"])
def test_published_recipe_descends_stage_by_stage(pair: Pair, root: str):
    frames = real(2, 9)
    fit = PublishedFit(pair.skel, pair.smpl, frames, root, iterations=8, steps=1)
    begin = residuals(pair, frames, fit.poses, fit.trans).rms
    start = fit.poses.clone(), fit.trans.clone()
    names = list(fit.run())
    assert names == [stage.name for stage in (STAGES[1:] if root == "exact" else STAGES)]
    end = residuals(pair, frames, fit.poses, fit.trans).rms
    assert (end < 0.5 * begin).all()
    frozen = torch.equal(fit.poses[:, :3], start[0][:, :3]) and torch.equal(fit.trans, start[1])
    assert frozen == (root == "exact")
    assert fit.evaluations >= 8 * len(names) / 2


def test_a_row_seen_from_a_copied_translation_is_that_fit_in_the_world(pair: Pair):
    frames = real(3, 6)
    copied, _ = roots(pair, frames)
    found = solve(pair, frames, FREE, change=copied)
    angles, _ = root_from_smpl(
        pair.skel64, pair.smpl, frames.poses[:, :3], frames.betas, frames.transl
    )
    poses = torch.cat([angles, found.poses[:, 3:46]], dim=1)
    world = residuals(pair, frames, poses, frames.transl)
    np.testing.assert_allclose(found.mean, world.mean, atol=0.01)
    exact = fit_skel(pair.skel, pair.smpl, frames.poses, frames.betas, frames.transl, FREE)
    assert (found.mean > 1e3 * exact.vertex_error_mean.numpy()).all()


def test_on_gpu_runs_without_one_and_a_failed_section_costs_no_other(tmp_path, monkeypatch, capsys):
    def broken(run: on_gpu.Run) -> on_gpu.Table:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setitem(on_gpu.SECTIONS, "training", broken)
    written = tmp_path / "found.json"
    given = ["--device", "cpu", "--quick", "--json", str(written), "--sections"]
    assert on_gpu.main([*given, "training", "forward"]) == 1
    found = json.loads(written.read_text())
    assert found["left out"] == {"training": "RuntimeError: no such kernel"}
    passes = [row["pass"] for row in found["sections"]["forward"]["rows"]]
    assert passes == ["skin", "skin and bones", "skin, forward and backward"]
    assert all(row["meshes/s"] > 0 for row in found["sections"]["forward"]["rows"])
    assert on_gpu.main([*given, "fits", "--minutes", "-1"]) == 1
    assert json.loads(written.read_text())["left out"] == {"fits": "no time left"}
    assert "| skin | 2 |" in capsys.readouterr().out
