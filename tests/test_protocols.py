"""Protocols as data, running them, and what the evaluation prints."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from pipeline.errors import InputError, UsageError
from pipeline.manifest import load_manifest
from pipeline.run import Request, convert
from skel_fit.default_body import default_body_directory
from skel_fit.keypoints import SmplKeypoints
from skel_fit.rotations import axis_angle_to_matrix
from stages.cli import run as run_cli
from stages.regressor.config import load_recipe
from stages.regressor.data.images import open_images
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_readers import read_eval_rows
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.metrics import fit_similarity
from stages.regressor.evaluation.page import evaluation_page, worst_rows
from stages.regressor.evaluation.predictors import MeanPose, SkelLabels
from stages.regressor.evaluation.protocols import EvaluationProtocol, load_protocol, protocol_files
from stages.regressor.evaluation.query import Query
from stages.regressor.evaluation.results import ProtocolResult, as_json, columns_of, table
from stages.regressor.evaluation.scoring import (
    floor_values,
    label_violations,
    run_protocol,
    skip_reasons,
)
from stages.regressor.evaluation.stored import FittedPredictions, StoredPredictions
from stages.regressor.network.checkpoints import save_checkpoint
from stages.regressor.network.model import Regressor
from tests.faults.harness import TRIVIAL, label_columns, write_manifest

PUBLISHED = {
    "3dpw-chmr", "3dpw-hmr2", "emdb", "spec-syn", "h36m-p2", "moyo", "moyo-hard", "coco",
    "lsp-extended", "posetrack",
}  # fmt: skip
J14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
LSP14 = (*range(25, 37), 37, 43)


def protocol(name: str, **changes) -> EvaluationProtocol:
    """A shipped protocol with top-level keys changed."""
    content = load_protocol(name).model_dump(mode="json") | changes
    return EvaluationProtocol.model_validate(content)


# --- the files -----------------------------------------------------------------------------------


def test_every_protocol_of_the_reference_is_there():
    assert PUBLISHED | {"demo", "demo-skel"} <= set(protocol_files())
    for name in PUBLISHED:
        found = load_protocol(name)
        assert found.name == name
        assert found.published
        assert any(row.column for row in found.published)


@pytest.mark.parametrize("name", sorted(protocol_files()))
def test_every_file_is_a_protocol(name):
    assert load_protocol(name).metrics


@pytest.mark.parametrize(
    ("name", "truth", "prediction", "pick", "root", "unit", "metrics"),
    [
        ("3dpw-chmr", "h36m_17", "h36m_17", J14, (0,), "200px", "mpjpe pve pa_mpjpe pa_pve"),
        ("3dpw-hmr2", "labels_44", "keypoints_44", LSP14, (39,), "px", "mpjpe pa_mpjpe"),
        ("h36m-p2", "labels_44", "keypoints_44", LSP14, (39,), "px", "mpjpe pa_mpjpe"),
        ("emdb", "smpl_neutral_24", "smpl_neutral_24", None, (1, 2), "200px",
         "mpjpe pve pa_mpjpe pa_pve"),
        ("spec-syn", "h36m_17", "h36m_17", None, (1, 2), "200px",
         "mpjpe pve pa_mpjpe pa_pve mpjpe@pelvis pve@pelvis"),
        ("moyo", "posed_joints", "smpl_male_24", None, (0,), "px", "mpjpe pve pa_mpjpe pa_pve"),
        ("moyo-hard", "posed_joints", "smpl_male_24", None, (0,), "px",
         "mpjpe pve pa_mpjpe pa_pve"),
        ("coco", "labels_44", "keypoints_44", None, None, "px", ""),
        ("lsp-extended", "labels_44", "keypoints_44", None, None, "px", ""),
        ("posetrack", "labels_44", "keypoints_44", None, None, "px", ""),
    ],
)  # fmt: skip
def test_definitions(name, truth, prediction, pick, root, unit, metrics):
    found = load_protocol(name)
    assert (found.joints.truth, found.joints.prediction) == (truth, prediction)
    assert found.joints.pick == pick
    assert (found.roots[0].joints if found.roots else None) == root
    assert found.source.scale_unit == unit
    assert " ".join(found.point_metrics) == metrics
    two_d = name in ("coco", "lsp-extended", "posetrack")
    assert (found.pck is not None) == two_d
    if two_d:
        assert found.pck.thresholds == (0.05, 0.1)
        assert found.pck.min_confidence == 0.5
    assert (found.joint_limits is not None) == name.startswith("moyo")


def test_published_numbers_by_method():
    def row(name: str, method: str, source: str) -> dict:
        rows = [r for r in load_protocol(name).published
                if r.method == method and source in r.source]  # fmt: skip
        assert len(rows) == 1
        return rows[0].values

    assert row("3dpw-hmr2", "HSMR", "Table 1") == {"mpjpe": 81.5, "pa_mpjpe": 54.8}
    assert row("3dpw-chmr", "SKEL-CF", "Table 2") == {"mpjpe": 61.5, "pa_mpjpe": 38.7, "pve": 73.5}
    assert row("emdb", "CameraHMR", "Table 2") == {"mpjpe": 73.2, "pa_mpjpe": 43.9, "pve": 85.6}
    assert row("spec-syn", "SKEL-CF", "Table 2")["pve"] == 83.4
    assert row("h36m-p2", "HSMR", "Table 1") == {"mpjpe": 50.4, "pa_mpjpe": 32.9}
    assert row("coco", "HSMR", "Table 1") == {"pck@0.05": 85, "pck@0.1": 96}
    assert row("lsp-extended", "HMR2.0", "Table 1") == {"pck@0.05": 53, "pck@0.1": 82}
    assert row("posetrack", "PARE", "Table 1") == {"pck@0.05": 79, "pck@0.1": 93}
    assert row("moyo-hard", "SKEL-CF", "Table 2")["mpjpe"] == 90
    moyo = row("moyo", "HSMR", "Table 1")
    assert (moyo["pve"], moyo["pa_pve"], moyo["right_knee>10"]) == (120.1, 90.7, 4.5)
    quoted = [r for r in load_protocol("3dpw-chmr").published if r.method == "HSMR"]
    assert not quoted[0].comparable  # measured under the other protocol


def test_a_protocol_is_added_by_one_file(tmp_path, monkeypatch):
    content = yaml.safe_load(protocol_files()["emdb"].read_text())
    content |= {"name": "my-set", "published": []}
    add_protocol(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    assert load_protocol("my-set").dataset == "EMDB"
    path = tmp_path / "configs" / "protocols" / "my-set.yaml"
    assert load_protocol(path) == load_protocol("my-set")


def add_protocol(working: Path, content: dict) -> None:
    folder = working / "configs" / "protocols"
    folder.mkdir(parents=True)
    (folder / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rot": 1}, "unknown key 'rot'"),
        ({"source": {"format": "moyo", "files": ["a.npz"], "scale_unit": "m"}}, "scale_unit"),
        ({"source": {"format": "moyo", "files": ["../a.npz"], "scale_unit": "px"}}, "relative"),
        ({"joints": {"truth": "h36m_17", "prediction": "smpl_male_24"}}, "different size"),
        ({"joints": {"truth": "labels_44", "prediction": "keypoints_44"}}, "labels_44 goes with"),
        ({"joints": {"truth": "h36m_17", "prediction": "h36m_17", "pick": [17]}}, "beyond the 17"),
        ({"roots": [{"key": "a", "about": "b", "joints": [24]}]}, "roots.a: a position is beyond"),
        ({"roots": []}, "alignment root needs roots"),
        ({"published": [{"method": "x", "source": "y", "values": {"pck@0.05": 1}}]},
         "pck@0.05 not among the metrics"),
        ({"published": [{"method": "x", "source": "y", "values": {}, "column": True,
                         "comparable": False}]}, "not comparable gets none"),
        ({"published": [{"method": "x", "source": "y", "values": {}, "column": True},
                        {"method": "x", "source": "z", "values": {}, "column": True}]},
         "two columns of one method"),
        ({"alignment": [], "vertices": False}, "nothing to measure"),
        ({"name": "Bad Name"}, "small letters"),
    ],
)  # fmt: skip
def test_wrong_protocols_are_refused_in_one_line(tmp_path, change, message):
    content = yaml.safe_load(protocol_files()["emdb"].read_text()) | {"published": []} | change
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message) as caught:
        load_protocol(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(UsageError, match=r"no protocol '3dpw'; known: .*3dpw-chmr, .*moyo"):
        load_protocol("3dpw")


# --- running them --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory, golden_skel_dict, golden_smpl_dict) -> Path:
    """Synthetic models of all genders with random regressors; not the stand-in. Few faces have a
    surface: each of a random mesh covers half a picture, and 13,776 take seconds to draw."""
    folder = tmp_path_factory.mktemp("models")
    faces = golden_smpl_dict["f"].copy()
    faces[400:] = faces[400:, :1]
    smpl = pickle.dumps(golden_smpl_dict | {"f": faces}, protocol=2)
    skel = pickle.dumps(golden_skel_dict | {"skin_template_f": faces.astype(np.int64)}, protocol=4)
    for gender in ("MALE", "FEMALE", "NEUTRAL"):
        (folder / f"SMPL_{gender}.pkl").write_bytes(smpl)
    for gender in ("male", "female"):
        (folder / f"skel_{gender}.pkl").write_bytes(skel)
    random = np.random.default_rng(0)
    for name, count in (("J_regressor_h36m.npy", 17), ("J_regressor_SMPL_MALE.pkl", 24),
                        ("J_regressor_SKEL_mix_MALE.pkl", 24),
                        ("SMPL_to_J19.pkl", 19)):  # fmt: skip
        matrix = np.zeros((count, 6890))
        for row in matrix:
            row[random.integers(0, 6890, 8)] = 1 / 8
        if name.endswith(".npy"):
            np.save(folder / name, matrix)
        else:
            (folder / name).write_bytes(matrix.dumps())
    return folder


@pytest.fixture(scope="module")
def bodies(models) -> EvaluationBodies:
    return EvaluationBodies(models)


def label_rows(count: int = 5) -> EvalRows:
    """Rows with every kind of label."""
    random = np.random.default_rng(7)
    cam_int = np.tile([[900.0, 0, 320], [0, 900.0, 240], [0, 0, 1]], (count, 1, 1))
    return EvalRows(
        row=np.arange(count) + 100,
        name=np.array([f"video/{k}.png" for k in range(count)]),
        center=random.uniform(250, 350, (count, 2)),
        box=random.uniform(100, 300, (count, 2)),
        sequence=np.array([f"v{k // 2}" for k in range(count)]),
        gender=np.array((["male", "female", ""] * count)[:count]),
        cam_int=cam_int,
        reason=np.full(count, "", "<U40"),
        poses=random.normal(0, 0.3, (count, 72)),
        betas=random.normal(size=(count, 10)),
        transl=random.normal((0, 0, 4), 1, (count, 3)),
        keypoints_2d=np.concatenate((random.uniform(150, 450, (count, 44, 2)),
                                     random.uniform(0, 1, (count, 44, 1))), 2),
        keypoints_3d=random.normal(0, 0.4, (count, 44, 3)),
        skel_poses=random.normal(0, 0.3, (count, 46)),
        skel_betas=random.normal(size=(count, 10)),
        skel_trans=random.normal((0, 0, 4), 0.3, (count, 3)),
        skel_gender=np.array((["male", "female"] * count)[:count]),
    )  # fmt: skip


def stored(path: Path, rows: EvalRows, **changes) -> StoredPredictions:
    """Predictions near the SKEL labels, as another program would write them."""
    random = np.random.default_rng(8)
    members = {
        "row": rows.row[::-1],
        "poses": (rows.skel_poses + random.normal(0, 0.1, rows.skel_poses.shape))[::-1],
        "betas": rows.skel_betas[::-1],
        "cam_t": rows.skel_trans[::-1],
        "focal": np.full(len(rows), 900.0),
        **changes,
    }
    np.savez(path, **members)
    return StoredPredictions(path)


def test_skel_labels_agree_with_themselves(bodies):
    outcome = run_protocol(load_protocol("demo-skel"), label_rows(), SkelLabels(label_rows()),
                           bodies)  # fmt: skip
    for name in ("mpjpe", "pve", "pa_mpjpe", "pa_pve"):
        assert outcome.summary()[name].value < 1e-6


@pytest.mark.parametrize("name", ["3dpw-chmr", "emdb", "spec-syn", "moyo", "3dpw-hmr2", "demo"])
def test_errors_equal_a_plain_computation(tmp_path, models, bodies, name):
    """Body by body in numpy, from the protocol's words rather than its code."""
    chosen, rows = load_protocol(name), label_rows()
    predictor = stored(tmp_path / "p.npz", rows)
    outcome = run_protocol(chosen, rows, predictor, bodies, batch_size=2)
    read = {"h36m_17": np.load(models / "J_regressor_h36m.npy")}
    for key in ("J_regressor_SMPL_MALE", "J_regressor_SKEL_mix_MALE", "SMPL_to_J19"):
        read[key] = np.load(models / f"{key}.pkl", allow_pickle=True)
    smpl, skel = bodies.model("smpl", "neutral"), bodies.model("skel", "male")
    read["neutral"] = smpl.J_regressor.numpy()
    with np.load(tmp_path / "p.npz") as file:
        given = {key: torch.from_numpy(file[key][::-1].copy()) for key in ("poses", "betas")}
    for k in range(len(rows)):
        skin = skel(given["poses"][k : k + 1], given["betas"][k : k + 1]).skin_vertices[0].numpy()
        posed = smpl(
            betas=torch.from_numpy(rows.betas[k : k + 1]),
            global_orient=torch.from_numpy(rows.poses[k : k + 1, :3]),
            body_pose=torch.from_numpy(rows.poses[k : k + 1, 3:]),
        )
        mesh = posed.vertices[0].numpy()
        if name in ("3dpw-chmr", "spec-syn"):
            p, g = read["h36m_17"] @ skin, read["h36m_17"] @ mesh
        elif name in ("emdb", "demo"):
            p, g = read["neutral"] @ skin, read["neutral"] @ mesh
        elif name == "moyo":
            p, g = read["J_regressor_SMPL_MALE"] @ skin, posed.joints[0, :24].numpy()
        else:
            j45 = np.concatenate((read["J_regressor_SKEL_mix_MALE"] @ skin, skin[[332] * 21]))
            p = np.concatenate((j45[:25], read["SMPL_to_J19"] @ skin))  # only 25-43 compared
            g = rows.keypoints_3d[k]
        root = {"3dpw-chmr": [0], "emdb": [1, 2], "spec-syn": [1, 2], "moyo": [0], "demo": [0],
                "3dpw-hmr2": [39]}[name]  # fmt: skip
        used = {"3dpw-chmr": list(J14), "3dpw-hmr2": list(LSP14)}.get(name, list(range(len(p))))
        p_root, g_root = p[root].mean(0), g[root].mean(0)

        def far(a, b):
            return 1000 * np.linalg.norm(a - b, axis=1).mean()

        expected = {"mpjpe": far((p - p_root)[used], (g - g_root)[used])}
        aligned = fit_similarity(torch.from_numpy(p[used])[None], torch.from_numpy(g[used])[None])
        moved = aligned(torch.from_numpy(p[used])[None])[0].numpy()
        expected["pa_mpjpe"] = far(moved, g[used])
        if chosen.vertices:
            expected["pve"] = far(skin - p_root, mesh - g_root)
        if name == "spec-syn":
            expected["mpjpe@pelvis"] = far(p - p[0], g - g[0])
        for metric, value in expected.items():
            assert outcome.values[metric][k] == pytest.approx(value, rel=1e-7), (metric, k)


def test_moving_the_whole_body_changes_nothing_but_pck(tmp_path, bodies):
    rows, chosen = label_rows(), load_protocol("demo")
    near = run_protocol(chosen, rows, stored(tmp_path / "a.npz", rows), bodies)
    far = run_protocol(
        chosen, rows, stored(tmp_path / "b.npz", rows, cam_t=rows.skel_trans[::-1] + 0.5),
        bodies,
    )  # fmt: skip
    np.testing.assert_array_equal(near.values["mpjpe"], far.values["mpjpe"])
    assert not np.array_equal(near.values["keypoint_l2"], far.values["keypoint_l2"])


def test_rows_do_not_depend_on_their_batch_or_order(tmp_path, bodies):
    rows, chosen = label_rows(7), load_protocol("demo")
    predictor = stored(tmp_path / "p.npz", rows)
    whole = run_protocol(chosen, rows, predictor, bodies, batch_size=7)
    turned = run_protocol(chosen, rows.take(np.arange(7)[::-1]), predictor, bodies, batch_size=2)
    for name, values in whole.values.items():
        np.testing.assert_allclose(turned.values[name][::-1], values, rtol=1e-9, atol=1e-9)


def test_pck_of_projected_labels(tmp_path, bodies):
    """Labels made by projecting the prediction itself, some shifted by a known share of the box."""
    rows = label_rows(4)
    predictor = stored(tmp_path / "p.npz", rows, focal=np.full(4, 700.0))
    chosen = load_protocol("coco")
    with np.load(tmp_path / "p.npz") as file:
        poses, betas, cam_t = (torch.from_numpy(file[name][::-1].copy())
                               for name in ("poses", "betas", "cam_t"))  # fmt: skip
    skin = bodies.model("skel", "male")(poses, betas).skin_vertices
    points = (bodies.matrix("keypoints_44") @ skin + cam_t[:, None]).numpy()
    pixels = 700 * points[..., :2] / points[..., 2:] + rows.cam_int[:, None, :2, 2]
    side = rows.box.max(1)[:, None]
    pixels[..., 0] += 0.09 * side  # beyond 0.05, within 0.1
    pixels[0, :, 0] -= 0.09 * side[0]  # first row exact
    confidence = np.ones((4, 44, 1))
    confidence[:, 5] = 0.5  # not above 0.5: not annotated
    confidence[0, 6] = 0
    keypoints = np.concatenate((pixels, confidence), 2)
    outcome = run_protocol(chosen, replace(rows, keypoints_2d=keypoints), predictor, bodies)
    found = outcome.summary()
    # 42 keypoints are right in 1 of 4 rows, one (6) in 0 of 3, one (5) does not count.
    assert found["pck@0.05"].value == pytest.approx(100 * (42 * 0.25 + 0) / 43)
    assert found["pck@0.1"].value == pytest.approx(100)
    assert outcome.values["pck@0.05"].tolist() == pytest.approx([100, 0, 0, 0])


def test_floor_of_mixed_joint_definitions(bodies):
    rows = label_rows()
    assert floor_values(load_protocol("emdb"), rows, bodies) is None
    floor = floor_values(load_protocol("moyo"), rows, bodies, batch_size=2)
    assert floor["pve"] > 0  # the root itself is another point
    assert floor["pa_pve"] < 1e-6  # but the mesh is perfect
    assert floor["mpjpe"] > floor["pa_mpjpe"] > 0


def test_limits_of_predictions_and_labels(tmp_path, bodies):
    rows = label_rows(4)
    poses = np.zeros((4, 46))
    poses[:, 6] = np.radians([144.9, 145.1, 155.1, 165.1])  # right knee, limit 135
    predictor = stored(tmp_path / "p.npz", rows, poses=poses[::-1])
    outcome = run_protocol(load_protocol("moyo"), rows, predictor, bodies)
    found = outcome.summary()
    assert [found[f"right_knee>{t}"].value for t in (10, 20, 30)] == [75, 50, 25]
    assert found["left_elbow>10"].value == 0
    statistics = outcome.limit_statistics()["right_knee>10"]
    assert np.degrees(statistics["maximum"]) == pytest.approx(20.1)
    bent = rows.skel_poses.copy()
    bent[:, 13] = np.radians([-15, 0, 0, 0])
    labels = replace(rows, skel_poses=bent)
    assert label_violations(load_protocol("demo-skel"), labels)["left_knee>10"] == 25


def pictures(folder: Path, names: list[str], size: tuple[int, int] = (640, 480)) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_boxes_with_nothing_of_the_picture_are_skipped(tmp_path, kind):
    rows = label_rows(8)
    names = np.array([f"{k}.{kind}" for k in range(8)])
    width, height = 333, 217
    center = np.array([(100.0, 100), (width + 51, 100), (width + 49, 100), (-51, 100), (-49, 100),
                       (100, height + 31), (100, -30), (100, -29)])  # fmt: skip
    rows = replace(rows, name=names, center=center, box=np.tile((100.0, 60), (8, 1)))
    pictures(tmp_path, names.tolist(), (width, height))
    out = "box_outside_image"
    found = skip_reasons(rows, open_images(tmp_path)).tolist()
    assert found == ["", out, "", out, "", out, out, ""]


def test_skipped_rows_are_counted_and_not_averaged(tmp_path, bodies):
    rows = label_rows()
    reason = np.array(["", "non_finite_pose", "", "", ""], "<U40")
    rows = replace(rows, reason=reason, poses=np.where(reason[:, None] == "", rows.poses, np.nan))
    pictures(tmp_path / "images", [rows.name[k] for k in (0, 2, 3)])
    found = skip_reasons(rows, open_images(tmp_path / "images"))
    assert found.tolist() == ["", "non_finite_pose", "", "", "image_missing"]
    outcome = run_protocol(
        load_protocol("emdb"), rows, stored(tmp_path / "p.npz", rows), bodies, reason=found
    )
    assert outcome.summary()["mpjpe"].rows == 3
    assert np.isfinite(outcome.values["mpjpe"]).tolist() == [True, False, True, True, False]
    with pytest.raises(InputError, match=r"no row can be evaluated.*5 gone"):
        run_protocol(load_protocol("emdb"), rows, SkelLabels(rows), bodies,
                     reason=np.full(5, "gone"))  # fmt: skip


def test_bad_predictions_stop_the_run(tmp_path, bodies):
    rows, chosen = label_rows(), load_protocol("emdb")
    broken = rows.skel_betas[::-1].copy()
    broken[1] = np.nan
    with pytest.raises(InputError, match=r"'betas' of row 103 \(video/3.png\) is not finite"):
        run_protocol(chosen, rows, stored(tmp_path / "nan.npz", rows, betas=broken), bodies)
    fewer = {name: value[:4] for name, value in
             (("row", rows.row), ("poses", rows.skel_poses), ("betas", rows.skel_betas),
              ("cam_t", rows.skel_trans), ("focal", np.ones(5)))}  # fmt: skip
    with pytest.raises(InputError, match="no prediction for row 104"):
        run_protocol(chosen, rows, stored(tmp_path / "few.npz", rows, **fewer), bodies)
    with pytest.raises(InputError, match=r"'poses': expected numbers of shape \(M, 46\)"):
        stored(tmp_path / "wide.npz", rows, poses=np.zeros((5, 70)))
    with pytest.raises(InputError, match="'row': a row is there twice"):
        stored(tmp_path / "twice.npz", rows, row=np.zeros(5, int))
    unknown = replace(rows, cam_int=np.full_like(rows.cam_int, np.nan))
    with pytest.raises(InputError, match="has to return cam_int"):
        run_protocol(load_protocol("coco"), unknown, stored(tmp_path / "p.npz", rows), bodies)


# --- SMPL predictions ----------------------------------------------------------------------------


def smpl_file(path: Path, rows: EvalRows, **changes) -> Path:
    """The labels' own SMPL bodies, as another program would write them."""
    members = {"pose": rows.poses, "betas": rows.betas, "trans": rows.transl,
               "cam_int": rows.cam_int, **changes}  # fmt: skip
    np.savez(path, **{name: value for name, value in members.items() if value is not None})
    return path


@pytest.mark.parametrize("name", ["3dpw-chmr", "emdb", "moyo", "demo"])
def test_smpl_predictions_equal_to_the_truth_are_perfect(tmp_path, bodies, name):
    """Also under MOYO, whose joints are others for SKEL; limits are those of SMPL's joints."""
    rows = replace(label_rows(4), gender=np.full(4, "neutral"))
    chosen = load_protocol(name)
    outcome = run_protocol(
        chosen, rows, StoredPredictions(smpl_file(tmp_path / "p.npz", rows), rows), bodies
    )
    for metric in chosen.point_metrics:
        assert outcome.values[metric].max() < 1e-3, metric  # rows of a float32 regressor
    if chosen.joint_limits:
        found, expected = outcome.summary(), label_violations(chosen, rows)
        assert max(expected.values()) > 0
        assert {name: found[name].value for name in expected} == pytest.approx(expected)


def test_keypoints_of_smpl_predictions_are_smpls_own(tmp_path, models, bodies):
    """Joints where the skeleton has them, not where a regressor of the skin would."""
    rows, chosen = label_rows(4), load_protocol("3dpw-hmr2")
    known = SmplKeypoints.load(models, "neutral").keypoints(
        rows.poses.reshape(4, 24, 3), rows.betas
    )
    pixels = np.einsum("bij,bkj->bki", rows.cam_int, known + rows.transl[:, None])
    pixels = np.concatenate((pixels[..., :2] / pixels[..., 2:], np.ones((4, 44, 1))), 2)
    rows = replace(rows, keypoints_3d=known, keypoints_2d=pixels)
    predictor = StoredPredictions(smpl_file(tmp_path / "p.npz", rows), rows, projects=True)
    assert run_protocol(chosen, rows, predictor, bodies).values["mpjpe"].max() < 1e-6
    seen = run_protocol(load_protocol("coco"), rows, predictor, bodies)
    assert seen.values["keypoint_l2"].max() < 1e-15


def test_usual_spellings_of_smpl_predictions(tmp_path):
    """One body written in every way that public programs write it."""
    rows = label_rows(3)
    matrices = axis_angle_to_matrix(torch.from_numpy(rows.poses).view(3, 24, 3)).numpy()
    parts = {"global_orient": matrices[:, :1], "body_pose": matrices[:, 1:]}
    files = {
        "flat": smpl_file(tmp_path / "flat.npz", rows),
        "rows": smpl_file(tmp_path / "rows.npz", rows, pose=rows.poses[::-1],
                          betas=rows.betas[::-1], trans=rows.transl[::-1],
                          cam_int=rows.cam_int[::-1], row=rows.row[::-1]),
        "joints": smpl_file(tmp_path / "joints.npz", rows, pose=None, thetas=rows.poses.reshape(
            3, 24, 3), trans=None, pred_cam_t=rows.transl[:, None], cam_int=None,
            focal_length=np.array(900.0)),
        "matrices": smpl_file(tmp_path / "matrices.npz", rows, pose=None, **parts),
        "nested": smpl_file(tmp_path / "nested.npz", rows, pose=None, betas=None,
                            smpl_params=np.array({**parts, "betas": rows.betas})),
    }  # fmt: skip
    for name, path in files.items():
        predictor = StoredPredictions(path, rows, projects=True)
        assert (predictor.body, predictor.gender) == ("smpl", "neutral")
        answer = predictor(query_of(rows))
        given = (rows.poses, rows.betas, rows.transl, rows.cam_int)
        for found, expected in zip(answer, given, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=name)
    smpl_file(tmp_path / "female.npz", rows, gender=np.array(["f", "f", "f"]))
    assert StoredPredictions(tmp_path / "female.npz", rows).gender == "female"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose": np.zeros((3, 24, 2))}, r"'pose': expected numbers of shape \(M, 46\)"),
        ({"pose": None}, r"'poses': is missing; .*the file has betas"),
        ({"pose": np.full((3, 24, 3, 3), 0.3)}, "a matrix of entry 0 is no rotation"),
        ({"betas": np.zeros((3, 11))}, r"'betas': expected numbers of shape \(3, 10\)"),
        ({"trans": None}, "'cam_t': is missing; 2D points"),
        ({"pose": np.zeros((2, 72)), "betas": np.zeros((2, 10)), "trans": np.zeros((2, 3)),
          "cam_int": None}, "'row': is missing, and the protocol has 3 rows"),
        ({"row": np.array([0.5, 1, 2])}, "'row': expected whole numbers"),
        ({"imgname": np.array(["a.png", "b.png", "c.png"])}, "entry 0 is of a.png, row 100"),
        ({"gender": np.array("any")}, "expected one of male, female, neutral, column, found any"),
        ({"focal": np.zeros((3, 3)), "cam_int": None}, r"'focal': expected numbers of shape"),
    ],
)  # fmt: skip
def test_wrong_smpl_predictions_are_one_line(tmp_path, changes, message):
    rows = label_rows(3)
    path = smpl_file(tmp_path / "p.npz", rows, **changes)
    with pytest.raises(InputError, match=message) as caught:
        StoredPredictions(path, rows, projects=True)
    assert "\n" not in str(caught.value)


def test_two_stages_in_one_command(tmp_path, models, capsys):
    """SMPL predictions, the same after a fit of SKEL, and the fitted file read back."""
    from tests.test_eval_readers import camerahmr

    members = camerahmr()
    count = len(members["imgname"])
    np.savez(tmp_path / "labels.npz", **members)
    random = np.random.default_rng(3)
    betas = random.normal(size=(count, 10))
    betas[1, 2] = 7.0  # nobody has this shape
    poses = 0.2 * random.normal(size=(count, 72))
    np.savez(tmp_path / "rival.npz", pose=poses, betas=betas, cam_t=np.ones((count, 3)))
    arguments = ["evaluate", "emdb", "--labels", str(tmp_path / "labels.npz"), "--models",
                 str(models), "--worst", "1", "--quiet", "--predictions"]  # fmt: skip
    out = tmp_path / "out"
    assert run_cli([*arguments, str(tmp_path / "rival.npz"), "--skel-fit", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "rival + SKEL fit" in text and "(1 fit: betas_out_of_range)" in text
    found = json.loads((out / "evaluation.json").read_text())["protocols"][0]
    results = found["results"]
    own, fitted = (results[n]["metrics"]["pve"] for n in ("rival", "rival + SKEL fit"))
    assert own["rows"] == fitted["rows"] == count - 1
    provenance = results["rival + SKEL fit"]["provenance"]
    assert provenance["of"]["body"] == "smpl"
    # The skins differ by no more than the fit's own error, which is not nothing.
    assert 0 < provenance["fit_vertex_error_mean_mm"] < 60
    assert abs(fitted["value"] - own["value"]) < provenance["fit_vertex_error_mean_mm"]
    with np.load(out / "fitted-emdb.npz") as file:
        assert file["poses"].shape == (count - 1, 46)
    again = tmp_path / "again"
    kept = {name: value[[0, *range(2, count)]] for name, value in members.items()}
    np.savez(tmp_path / "labels.npz", **kept)
    with np.load(out / "fitted-emdb.npz") as file:
        np.savez(tmp_path / "fitted.npz", **{n: file[n] for n in file.files if n != "row"})
    assert run_cli([*arguments, str(tmp_path / "fitted.npz"), "--out", str(again)]) == 0
    repeated = json.loads((again / "evaluation.json").read_text())["protocols"][0]["results"]
    assert repeated["fitted"]["metrics"]["pve"]["value"] == pytest.approx(fitted["value"])
    assert run_cli([*arguments, str(tmp_path / "fitted.npz"), "--skel-fit", "--out", "x"]) == 2
    assert "these are SKEL bodies" in capsys.readouterr().err


def test_skels_own_joints_are_not_compared_with_smpls(tmp_path, bodies):
    rows = label_rows(3)
    predictor = StoredPredictions(smpl_file(tmp_path / "p.npz", rows), rows)
    with pytest.raises(InputError, match="compares with SKEL's own joints, SMPL has others"):
        run_protocol(load_protocol("demo-skel"), rows, predictor, bodies)
    fitted = FittedPredictions(predictor, load_protocol("demo-skel"), rows, bodies)
    assert run_protocol(load_protocol("demo-skel"), rows, fitted, bodies).evaluated.all()


def test_mean_pose_is_the_mean_of_the_labels():
    rows = label_rows(6)
    poses = rows.skel_poses.copy()
    poses[:, 0] = [3.0, -3.0, 3.1, -3.1, np.pi, np.pi]  # across the half turn
    mean = MeanPose.of_labels(replace(rows, skel_poses=poses), "here")
    found = mean(query_of(rows))
    assert abs(found.poses[0, 0].item()) == pytest.approx(np.pi, abs=1e-9)
    males = rows.skel_betas[rows.skel_gender == "male"].mean(0)
    np.testing.assert_allclose(found.betas[0], males)
    assert mean.gender == "male"
    # The body's origin is in the middle of the box.
    pixel = found.cam_int @ found.translation[..., None]
    np.testing.assert_allclose((pixel[:, :2] / pixel[:, 2:])[..., 0], rows.center)


def query_of(rows: EvalRows) -> Query:
    return Query(
        rows.row, tuple(rows.name), None, rows.center, rows.box, rows.cam_int,
        load_protocol("demo").crop,
    )  # fmt: skip


# --- what is printed -----------------------------------------------------------------------------


def finished(tmp_path, bodies, chosen: EvaluationProtocol) -> ProtocolResult:
    rows = label_rows()
    predictors = (stored(tmp_path / "mine.npz", rows), MeanPose.published())
    outcomes = {p.name: run_protocol(chosen, rows, p, bodies) for p in predictors}
    return ProtocolResult(
        protocol=chosen, rows=rows, bodies=bodies, images=None, predictors=predictors,
        outcomes=outcomes, floor=floor_values(chosen, rows, bodies), violations=None,
        complete=True, summaries={n: o.summary() for n, o in outcomes.items()},
    )  # fmt: skip


def test_published_numbers_stand_beside_licensed_results_only(tmp_path, bodies):
    result = finished(tmp_path, bodies, load_protocol("moyo-hard"))
    heading, lines = columns_of(result)
    assert heading == ["", "mine", "mean pose", "% of mean pose", "floor",
                       "published: CameraHMR", "published: HSMR", "published: SKEL-CF"]  # fmt: skip
    assert lines[0][-3:] == ["96.0", "120.0", "90.0"]
    text = table([result])
    assert "WARNING" not in text
    assert "published count is 9725" in text
    page = evaluation_page([result], worst=0)
    assert "published: SKEL-CF" in page
    assert "STAND-IN" not in page

    standin = replace(result, rows=replace(result.rows, standin=True))
    heading, _ = columns_of(standin)
    assert not any("published" in cell for cell in heading)
    text = table([standin])
    assert text.startswith("WARNING: Evaluated on the licence-free stand-in body")
    page = evaluation_page([standin], worst=0)
    results, _, apart = page.partition("NOT COMPARABLE")
    assert "STAND-IN BODY" in results
    assert "SKEL-CF, arXiv" not in results
    assert "SKEL-CF, arXiv" in apart
    recorded = as_json([standin], 32)
    assert recorded["warning"]
    assert recorded["protocols"][0]["published"]["warning"]


def test_a_predictor_without_use_is_said_to_be_one(tmp_path, bodies):
    result = finished(tmp_path, bodies, load_protocol("emdb"))
    ours, mean = (result.summaries[name] for name in ("mine", "mean pose"))
    better = {name: replace(e, value=0.99 * mean[name].value) for name, e in ours.items()}
    assert "NOTE" not in table([replace(result, summaries={"mine": better, "mean pose": mean})])
    worse = better | {"pa_pve": replace(ours["pa_pve"], value=1.48 * mean["pa_pve"].value)}
    text = table([replace(result, summaries={"mine": worse, "mean pose": mean})])
    assert "NOTE: mine is no better than one mean pose for every picture (PA-PVE)" in text


def test_numbers_copied_from_another_protocol_get_no_column(tmp_path, bodies):
    heading, _ = columns_of(finished(tmp_path, bodies, load_protocol("3dpw-chmr")))
    assert "published: HSMR" not in heading
    assert "published: SKEL-CF" in heading


def test_worst_rows_are_those_of_the_scored_predictor(tmp_path, bodies):
    result = finished(tmp_path, bodies, load_protocol("emdb"))
    values = result.outcomes["mine"].values["mpjpe"]
    order = np.argsort(values)
    assert worst_rows(result, 2) == [
        (order[2], "median row"), (order[4], "worst 1"), (order[3], "worst 2")
    ]  # fmt: skip


# --- the verb, end to end ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Twenty converted rows of a trivial fit, three segments; five of eight test images exist."""
    folder = tmp_path_factory.mktemp("shards")
    columns = label_columns(20)
    columns["imgname"] = np.array([f"images/{row:02d}.png" for row in range(20)])
    columns["pose_cam"][:, 0] += np.pi
    columns["split"] = np.where(np.arange(20) < 12, b"train", b"test")
    columns["segment"] = np.arange(20) // 4
    columns["gender"] = np.array(["male", "female"] * 10)
    columns["skel_gender"] = columns["gender"]
    columns["shape"][13, 4] = np.nan  # rejected by the conversion
    np.savez(folder / "labels.npz", **columns)
    (folder / "images").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    for row in (12, 13, 14, 15, 17, 19):
        cv2.imwrite(str(folder / "images" / f"{row:02d}.png"), picture)
    manifest = write_manifest(folder / "test.yaml", genders={"smpl": "column", "skel": "column"})
    request = Request(
        manifest=load_manifest(manifest), directory=folder / "out", data_root=folder,
        fitter=TRIVIAL,
    )  # fmt: skip
    convert(request, lambda event, data: None)
    return folder / "out"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained network in the format of `hmr-skel train`."""
    torch.manual_seed(0)
    recipe = load_recipe("tiny")
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, {
        "recipe": recipe.model_dump(mode="json"), "gender": recipe.data.gender, "standin": True,
        "network": Regressor(recipe.model).state_dict(), "progress": {"step": 0}, "scores": None,
    })  # fmt: skip
    return path


def test_the_verb_on_a_checkpoint(tmp_path, shards, checkpoint, capsys):
    out = tmp_path / "results"
    assert run_cli(["evaluate", "demo", "--shards", str(shards), "--checkpoint", str(checkpoint),
                    "--models", str(default_body_directory()), "--out", str(out), "--worst", "1",
                    "--quiet"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert text.startswith("WARNING: Evaluated on the licence-free stand-in body")
    assert "5 rows, 3 skipped (2 image_missing, 1 non_finite_betas)" in text
    recorded = json.loads((out / "evaluation.json").read_text())
    assert recorded["standin"]
    found = recorded["protocols"][0]
    assert found["rows"] == {
        "read": 8, "evaluated": 5, "skipped": {"image_missing": 2, "non_finite_betas": 1},
        "published_count": None,
    }  # fmt: skip
    assert {name for name in found["models"]} >= {"SMPL_MALE.pkl", "skel_male.pkl"}
    ours, mean, label = (found["results"][name]["metrics"]["mpjpe"]
                         for name in ("tiny", "mean pose", "SKEL label"))  # fmt: skip
    assert ours["low"] < ours["value"] < ours["high"]
    assert {ours["rows"], mean["rows"], label["rows"]} == {5}
    share = found["percent_of_mean_pose"]["mpjpe"]
    assert share == pytest.approx(100 * ours["value"] / mean["value"])
    with np.load(out / "rows-demo.npz") as file:
        assert np.nanmean(file["tiny/mpjpe"]) == pytest.approx(ours["value"])
        assert file["row"].tolist() == list(range(12, 20))
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/png") == 2 * 4  # median and worst: picture, keypoints, two views
    assert "STAND-IN BODY" in page


def test_the_verb_without_a_checkpoint_needs_no_images(tmp_path, shards, capsys):
    arguments = ["evaluate", "demo-skel", "--shards", str(shards), "--models",
                 str(default_body_directory()), "--out", str(tmp_path), "--worst", "0",
                 "--limit", "3", "--quiet"]  # fmt: skip
    assert run_cli(arguments) == 0
    assert "2 rows, 1 skipped (1 non_finite_betas), NOT ALL ROWS" in capsys.readouterr().out
    first = (tmp_path / "evaluation.json").read_bytes()
    assert run_cli(arguments) == 0
    assert (tmp_path / "evaluation.json").read_bytes() == first


def test_the_verb_on_label_files_with_stored_predictions(tmp_path, models, capsys):
    from tests.test_eval_readers import camerahmr, hmr2, moyo

    labels = tmp_path / "data" / "eval-labels"
    labels.mkdir(parents=True)
    np.savez(labels / "emdb_test.npz", **camerahmr())
    np.savez(labels / "moyo_v2.npz", **moyo({"a": 6}, cameras=("YOGI_Cam_01",)))
    np.savez(labels / "h36m_val_p2.npz", **hmr2())
    rows = replace(label_rows(6), row=np.arange(6))
    stored(tmp_path / "mine.npz", rows)
    assert run_cli(["evaluate", "emdb", "moyo", "h36m-p2", "--data-root", str(tmp_path / "data"),
                    "--predictions", str(tmp_path / "mine.npz"), "--models", str(models),
                    "--out", str(tmp_path / "out"), "--worst", "1", "--quiet"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "WARNING" not in text
    assert text.count("published: SKEL-CF") == 3
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["protocols"]
    assert [item["rows"]["evaluated"] for item in found] == [6, 6, 6]
    assert found[1]["floor"]["pa_pve"] == pytest.approx(0, abs=1e-6)
    assert found[0]["files"].keys() == {str(labels / "emdb_test.npz")}
    assert found[2]["models"].keys() >= {"SMPL_to_J19.pkl", "J_regressor_SKEL_mix_MALE.pkl"}


@pytest.mark.parametrize("focal", ["auto", "protocol", "850"])
def test_label_files_without_intrinsics_score_a_checkpoint(tmp_path, checkpoint, focal):
    arguments, out = two_d_labels(tmp_path, checkpoint), tmp_path / "out"
    assert run_cli([*arguments, "--focal", focal, "--crop", "square", "--out", str(out)]) == 0
    found = json.loads((out / "evaluation.json").read_text())["protocols"][0]
    provenance = found["results"]["tiny"]["provenance"]
    words = {"auto": "picture diagonal (assumed)", "protocol": "5000 px on a crop of 256",
             "850": "850 px"}  # fmt: skip
    assert provenance["focal"] == words[focal]
    assert provenance["crop"] == "square"
    assert f"crop: square; focal length: {words[focal]}" in (out / "evaluation.html").read_text()
    assert found["results"]["tiny"]["metrics"]["pck@0.1"]["rows"] == 6


def two_d_labels(folder: Path, checkpoint: Path) -> list[str]:
    """Arguments that score a checkpoint on six pictures without intrinsics."""
    from tests.test_eval_readers import hmr2

    keypoints = np.random.default_rng(0).uniform(0, 900, (6, 25, 3))
    members = hmr2(body_keypoints_2d=keypoints)
    np.savez(folder / "coco_val.npz", **members)
    pictures(folder / "images", [name.decode() for name in members["imgname"]], (1000, 1000))
    return ["evaluate", "coco", "--labels", str(folder / "coco_val.npz"), "--images",
            str(folder / "images"), "--checkpoint", str(checkpoint), "--worst", "0",
            "--quiet"]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--focal", "labels"], 5, "the labels have no intrinsics; choose --focal diagonal"),
        (["--focal", "predicted"], 2, "needs --fov-checkpoint"),
        (["--focal", "long"], 2, "--focal long: expected auto, protocol, labels"),
        (["--focal", "-3"], 2, "--focal -3: expected auto, protocol, labels"),
    ],
)
def test_focal_lengths_that_cannot_be(tmp_path, checkpoint, capsys, options, code, message):
    arguments = [*two_d_labels(tmp_path, checkpoint), "--out", str(tmp_path / "out"), *options]
    assert run_cli(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_focal_is_refused_without_a_checkpoint(tmp_path, capsys):
    """Before any file is looked for: the baselines alone would not use it."""
    out = tmp_path / "out"
    assert run_cli(["evaluate", "demo", "--shards", str(tmp_path), "--focal", "long",
                    "--out", str(out)]) == 2  # fmt: skip
    assert "--focal long: expected auto" in capsys.readouterr().err
    assert not out.exists()


def test_published_focal_rules():
    """evaluation.md#colour-order and evaluation.md#focal."""
    bgr = {name for name in PUBLISHED if load_protocol(name).fov_channels == "bgr"}
    assert bgr == {"moyo", "moyo-hard", "coco", "h36m-p2"}
    patch = {name for name in PUBLISHED if load_protocol(name).focal == "patch"}
    assert patch == {"3dpw-hmr2", "coco", "h36m-p2", "lsp-extended", "posetrack"}


def test_one_added_file_is_evaluated_with_columns_of_its_own(tmp_path, monkeypatch, models, capsys):
    """A new data set: its YAML, its label file and predictions; nothing in the code knows it."""
    from tests.test_eval_readers import camerahmr

    source = {"format": "camerahmr", "files": ["new/labels.npz"], "scale_unit": "200px"}
    add_protocol(tmp_path, {
        "name": "my-set", "dataset": "Mine", "family": "ours", "about": "A new one.",
        "source": source, "truth": {"body": "smpl"},
        "joints": {"truth": "h36m_17", "prediction": "h36m_17", "pick": [1, 2, 4, 5]},
        "roots": [{"key": "pelvis", "about": "H36M joint 0", "joints": [0]}],
        "alignment": ["root", "similarity"], "vertices": True,
        "crop": {"grow_to_aspect": False, "corners": "subpixel", "conditioning": "crop"},
        "focal": "labels",
        "published": [
            {"method": "Theirs", "source": "T, Table 1", "values": {"mpjpe": 71.5}, "column": True},
            {"method": "Ablation", "source": "T, Table 2", "values": {"mpjpe": 88.25}},
        ],
    })  # fmt: skip
    (tmp_path / "data" / "new").mkdir(parents=True)
    np.savez(tmp_path / "data" / "new" / "labels.npz", **camerahmr())
    rows = replace(label_rows(6), row=np.arange(6))
    predictor = stored(tmp_path / "mine.npz", rows)
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "my-set", "--data-root", "data", "--predictions", "mine.npz",
                 "--models", str(models), "--out", "out", "--worst", "1", "--quiet"]  # fmt: skip
    assert run_cli(arguments) == 0
    text = capsys.readouterr().out
    assert "my-set (ours): 6 rows" in text
    line = next(line for line in text.splitlines() if line.startswith("MPJPE"))
    assert line.endswith("71.5")
    assert "published: Theirs" in text and "Ablation" not in text
    assert "Ablation" in (tmp_path / "out" / "evaluation.html").read_text()
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["protocols"][0]
    chosen = load_protocol("my-set")
    labels = read_eval_rows(chosen, tmp_path / "data" / "new" / "labels.npz")
    again = run_protocol(chosen, labels, predictor, EvaluationBodies(models)).summary()
    ours = found["results"]["mine"]["metrics"]
    assert set(ours) == {"mpjpe", "pve", "pa_mpjpe", "pa_pve"}
    for name, value in ours.items():
        assert value["value"] == pytest.approx(again[name].value)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 2, "no protocol 'nothing'; known:"),
        (["demo"], 2, "give it with --shards"),
        (["emdb"], 5, "eval-labels/emdb_test.npz: no label file for protocol emdb"),
        (["emdb", "coco", "--labels", "x.npz"], 2, "go with a single protocol"),
        (["demo", "--crop", "round"], 2, "'round' is not one of"),
        (["demo", "--fov-channels", "red"], 2, "'red' is not one of"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert run_cli(["evaluate", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_moyo_hard_verb(tmp_path, capsys):
    from tests.test_eval_readers import moyo

    np.savez(tmp_path / "moyo_v2.npz", **moyo({"a": 8}))
    arguments = ["moyo-hard", str(tmp_path / "moyo_v2.npz"), "--out", str(tmp_path / "hard.npz")]
    assert run_cli(arguments) == 5
    assert "4 rows of 1 sequences with camera YOGI_Cam_01, expected 9725" in capsys.readouterr().err
    assert run_cli([*arguments, "--expected", "0"]) == 0
    assert "4 rows of 1 sequences" in capsys.readouterr().out
    assert run_cli([*arguments, "--expected", "0", "--rounding", "up"]) == 2
