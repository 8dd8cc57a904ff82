"""Export, audit and card of converted datasets, through real files and the console entry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline import open_dataset
from pipeline.errors import Incomplete, InputError, OutputError, UsageError
from pipeline.exporters.hmr_skel import BLOCK, HmrSkelOptions, export_hmr_skel
from skel_fit.anatomy import POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.joint_limits import limits
from skel_fit.keypoints import keypoint_matrix
from skel_fit.model_files import load_skel
from skel_fit.root import root_rotation
from skel_fit.rotations import matrix_to_axis_angle
from stages.card import card
from stages.cli import run as command
from stages.export_formats import export_dataset
from stages.inspection.audit import audit
from stages.inspection.audit_summary import findings, summarise
from tests.demo_rows import REAL, convert_labels, fitted_demo
from tests.faults.harness import TRIVIAL, label_columns

ROWS, BAD_ROWS = 40, (3, 17)


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    columns = label_columns(ROWS)
    columns["pose_cam"][list(BAD_ROWS), 5] = np.nan
    columns["gender"] = np.array(["male", "neutral"] * (ROWS // 2))
    columns["skel_gender"] = np.array(["male", "female"] * (ROWS // 2))
    columns["split"] = np.full(ROWS, b"train|<b>`x`")
    columns["scale"] = columns["scale"].astype(np.float32)
    columns["odd|name"] = np.arange(ROWS, dtype=np.uint8)
    return columns


@pytest.fixture(scope="module")
def plain(tmp_path_factory, labels) -> Path:
    """Forty rows, two of them rejected, by a fitter without models."""
    folder = tmp_path_factory.mktemp("plain")
    np.savez(folder / "labels.npz", **labels)
    return convert_labels(folder, "labels.npz", TRIVIAL)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fitted_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def exported(fitted) -> Path:
    path = fitted.parent / "demo-release_skel.npz"
    export_dataset(fitted, path)
    return path


def about_x(degrees: float) -> torch.Tensor:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return torch.tensor([[[1.0, 0, 0], [0, c, -s], [0, s, c]]], dtype=torch.float64)


def members(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


# ---- export -------------------------------------------------------------------------------------


def test_original_columns_are_untouched_and_skel_columns_are_the_dataset(plain, labels, tmp_path):
    path = tmp_path / "a_skel.npz"
    found = export_hmr_skel(open_dataset(plain), path, HmrSkelOptions(rejected="keep"))
    written = members(path)
    for name, values in labels.items():
        assert written[name].dtype == values.dtype, name
        assert written[name].tobytes() == values.tobytes(), name
    dataset = open_dataset(plain)
    for name in ("skel_poses", "skel_betas", "skel_trans"):
        assert written[name].dtype == np.float32
        np.testing.assert_array_equal(written[name], dataset[name])
    assert set(written) == {*labels, "skel_poses", "skel_betas", "skel_trans"}
    assert found.columns == tuple(written)
    assert found.missing == ("keypoints3d",)
    assert found.rows == ROWS


def test_rows_without_a_fit_are_left_out_and_counted(plain, labels, tmp_path):
    path = tmp_path / "a_skel.npz"
    found = export_hmr_skel(open_dataset(plain), path, HmrSkelOptions())
    kept = np.setdiff1d(np.arange(ROWS), BAD_ROWS)
    np.testing.assert_array_equal(members(path)["imgname"], labels["imgname"][kept])
    assert found.left_out == {"rejected:non_finite_pose": 2}
    assert np.isfinite(members(path)["skel_poses"]).all()


def test_rows_beyond_a_bound_are_left_out(plain, labels, tmp_path):
    error = 0.005 + 0.001 * np.abs(labels["shape"][:, 0])  # what the fitter says
    error[list(BAD_ROWS)] = np.inf
    bound = float(np.median(error))
    path = tmp_path / "a_skel.npz"
    found = export_hmr_skel(open_dataset(plain), path, HmrSkelOptions(max_error=bound * 1000))
    np.testing.assert_array_equal(members(path)["pose_cam"], labels["pose_cam"][error <= bound])
    assert found.rows + sum(found.left_out.values()) == ROWS


@pytest.mark.parametrize("rejected", ["drop", "keep"])
def test_export_import_export_is_identical(plain, tmp_path, rejected):
    first, second = tmp_path / "one_skel.npz", tmp_path / "two_skel.npz"
    export_hmr_skel(open_dataset(plain), first, HmrSkelOptions(rejected=rejected))
    again = convert_labels(tmp_path, first.name, TRIVIAL, shard_rows=7)
    assert open_dataset(again).plan.source_format == "hmr-skel"
    export_hmr_skel(open_dataset(again), second, HmrSkelOptions(rejected=rejected))
    assert first.read_bytes() == second.read_bytes()


def test_export_import_export_is_identical_for_real_fits_with_keypoints(exported, tmp_path):
    (tmp_path / exported.name).write_bytes(exported.read_bytes())
    again = convert_labels(tmp_path, exported.name, REAL, models="default-body", shard_rows=5)
    second = tmp_path / "two_skel.npz"
    export_dataset(again, second, keypoints3d="replace")
    one, two = members(exported), members(second)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    export_dataset(again, second)  # keeps the keypoints that came with the labels: the same file
    assert {n: v.tobytes() for n, v in members(second).items()} == {
        n: v.tobytes() for n, v in one.items()
    }


def test_keypoints_are_those_of_the_fitted_mesh(exported):
    written = members(exported)
    models = default_body_directory()
    weights = torch.as_tensor(keypoint_matrix(models))
    assert written["keypoints3d"].shape == (8, 44, 4)
    assert (written["keypoints3d"][:, :, 3] == 1).all()
    for row in range(8):
        skel = load_skel(models, str(written["skel_gender"][row]), dtype=torch.float64)
        poses, betas = (
            torch.as_tensor(written[name][row : row + 1].astype(np.float64))
            for name in ("skel_poses", "skel_betas")
        )
        expected = weights @ skel(poses, betas, torch.zeros(1, 3).double()).skin_vertices[0]
        found = written["keypoints3d"][row, :, :3]
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
        # With the translation they project near the labelled keypoints.
        camera = found + written["skel_trans"][row]
        pixels = (camera @ written["cam_int"][row].T)[:, :2] / camera[:, 2:]
        seen = written["gtkps"][row][:, 2] > 0
        off = np.linalg.norm(pixels - written["gtkps"][row][:, :2], axis=1)[seen]
        height = np.ptp(pixels[:, 1])
        assert np.median(off) < 0.03 * height


def test_the_file_has_what_the_training_reader_takes(exported):
    """The accepted keys and shapes of label-formats.md#hmr-skel-training."""
    written = members(exported)
    n = len(written["imgname"])
    assert written["imgname"].dtype.kind == "U"
    for name, shapes in {
        "center": [(n, 2)], "scale": [(n,), (n, 2)], "skel_poses": [(n, 46)],
        "skel_betas": [(n, 10)], "gtkps": [(n, 44, 3)], "keypoints3d": [(n, 44, 3), (n, 44, 4)],
        "cam_int": [(n, 3, 3)],
    }.items():  # fmt: skip
        assert written[name].shape in shapes, name
        assert np.isfinite(written[name]).all(), name
    assert (written["scale"].reshape(n, -1).max(1) * 200 >= 1).all()


def test_no_row_depends_on_its_block(plain, tmp_path):
    """Whatever else is exported, a row's keypoints come from a call of the same size."""
    sizes = []

    def keypoints(poses, betas, genders):
        sizes.append((len(poses), len(betas), len(genders)))
        return np.repeat(poses[:, None, :3], 44, axis=1)

    path = tmp_path / "a_skel.npz"
    export_hmr_skel(open_dataset(plain), path, HmrSkelOptions(rejected="keep"), keypoints)
    assert set(sizes) == {(BLOCK, BLOCK, BLOCK)}
    written = members(path)
    good = np.setdiff1d(np.arange(ROWS), BAD_ROWS)
    expected = np.repeat(written["skel_poses"][good][:, None, :3], 44, axis=1)
    np.testing.assert_array_equal(written["keypoints3d"][good][:, :, :3], expected)
    assert np.isnan(written["keypoints3d"][list(BAD_ROWS)][:, :, :3]).all()
    assert (written["keypoints3d"][list(BAD_ROWS)][:, :, 3] == 0).all()


def test_a_failed_export_leaves_the_old_file_and_nothing_else(plain, tmp_path):
    path = tmp_path / "a_skel.npz"
    path.write_bytes(b"old")

    def broken(poses, betas, genders):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        export_hmr_skel(open_dataset(plain), path, HmrSkelOptions(), broken)
    assert [p.name for p in tmp_path.iterdir()] == ["a_skel.npz"]
    assert path.read_bytes() == b"old"
    with pytest.raises(OutputError, match="absent"):
        export_hmr_skel(open_dataset(plain), tmp_path / "absent" / "a_skel.npz", HmrSkelOptions())


def test_bad_choices_are_usage_errors(plain, tmp_path, capsys):
    for option, value in (
        ("--format", "xml"), ("--keypoints3d", "some"), ("--rejected", "hide"), ("--max-error", "0")
    ):  # fmt: skip
        assert command(["export", str(plain), "--out", str(tmp_path / "a.npz"), option, value]) == 2
        assert option in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()
    with pytest.raises(UsageError, match="no such option"):
        export_dataset(plain, tmp_path / "a.npz", colour="red")


def test_an_incomplete_dataset_is_not_exported_and_gets_no_card(tmp_path, labels):
    np.savez(tmp_path / "labels.npz", **labels)
    out = convert_labels(tmp_path, "labels.npz", TRIVIAL)
    (out / "shards" / "shard-00001.h5").unlink()
    assert command(["export", str(out), "--out", str(tmp_path / "a.npz")]) == 3
    assert not (tmp_path / "a.npz").exists()
    with pytest.raises(Incomplete):
        card(out)


# ---- audit --------------------------------------------------------------------------------------


def test_audit_of_our_own_export_finds_our_own_residuals(exported, fitted):
    found = audit(exported, standin=True)
    dataset = open_dataset(fitted)
    np.testing.assert_allclose(found.judgement.residual, dataset["vertex_error_mean"], atol=2e-6)
    np.testing.assert_allclose(found.judgement.residual_max, dataset["vertex_error_max"], atol=5e-6)
    assert found.judgement.root_error.max() < 1e-3
    assert found.judgement.translation_error.max() < 1e-5
    assert (found.judgement.residual_centred <= found.judgement.residual + 1e-3).all()
    summary = summarise(found)
    assert summary["judged"] == summary["rows"] == 8
    assert summary["limit_violations"]["rows"] == 0
    assert summary["repeated_labels"] == summary["repeated_fits"] == 0
    assert summary["standin"]
    same = dataset["smpl_gender"] == dataset["skel_gender"]
    assert summary["same_betas"] == same.sum()
    assert findings(summary) == []


def test_audit_measures_what_was_done_to_the_labels(exported, tmp_path):
    columns = members(exported)
    models = default_body_directory()
    skel = load_skel(models, str(columns["skel_gender"][1]), dtype=torch.float64)
    # Row 0: moved by 30 mm, an elbow a whole turn on, which is no violation. Row 1: pelvis turned
    # by 20 degrees. Row 2: a knee bent backwards.
    # Row 3: NaN. Row 4: the label of row 5 repeated, with another fit. Row 6: the fit of row 7.
    columns["skel_trans"][0] += np.float32([0.03, 0.0, 0.0])
    columns["skel_poses"][0, POSE_NAMES.index("elbow_flexion_l")] += np.float32(2 * np.pi)
    turned = root_rotation(skel, torch.as_tensor(columns["skel_poses"][1:2, :3]).double())
    columns["pose_cam"][1, :3] = matrix_to_axis_angle(turned @ about_x(20.0))[0].numpy()
    knee = POSE_NAMES.index("knee_angle_r")
    columns["skel_poses"][2, knee] = limits("default")[knee, 0] - np.radians(30)
    columns["skel_poses"][3, 10] = np.nan
    for name in ("imgname", "center", "scale", "pose_cam"):
        columns[name][4] = columns[name][5]
    columns["skel_poses"][6] = columns["skel_poses"][7]
    path = tmp_path / "bad_skel.npz"
    np.savez(path, **columns)
    found = audit(path, standin=True)
    judged, summary = found.judgement, summarise(found)
    assert summary["rejected"] == {"non_finite_skel": 1}
    at = {int(row): i for i, row in enumerate(judged.row)}
    assert 3 not in at
    assert judged.translation_error[at[0]] == pytest.approx(0.03, abs=1e-5)
    assert judged.root_error[at[1]] == pytest.approx(20.0, abs=1e-3)
    assert summary["limit_violations"]["rows"] == 1
    bent = summary["limit_violations"]["angles"]
    assert set(bent) == {"knee_angle_r"}
    assert bent["knee_angle_r"]["furthest_deg"] == pytest.approx(30.0, abs=1e-3)
    assert summary["repeated_labels"] == 1
    assert summary["repeated_fits"] == 1
    assert summarise(audit(path, standin=True, limits_name="none"))["limit_violations"]["rows"] == 0
    said = " ".join(findings(summary))
    for words in ("1 of 8 rows cannot be judged", "leave the joint limits", "repeat an earlier"):
        assert words in said


def test_audit_without_stored_translations_places_by_the_closed_form(exported, tmp_path):
    columns = members(exported)
    del columns["skel_trans"]
    path = tmp_path / "demo-release-skel-no-trans.npz"
    np.savez(path, **columns)
    found = audit(path, standin=True)
    assert summarise(found)["translation_error_mm"] is None
    np.testing.assert_allclose(
        found.judgement.residual, audit(exported, standin=True).judgement.residual, atol=2e-6
    )
    assert any("No translation is stored" in text for text in findings(summarise(found)))


def test_the_wrong_gender_shows(exported):
    right = summarise(audit(exported, standin=True))["residual_mm"]["mean"]
    wrong = audit(exported, standin=True, smpl_gender="neutral", skel_gender="male")
    assert summarise(wrong)["residual_mm"]["mean"] > 1.2 * right


def test_audit_prints_json_text_and_a_page(exported, tmp_path, capsys):
    page = tmp_path / "audit.html"
    base = ["audit", str(exported), "--stand-in", "--sample", "3"]
    assert command([*base, "--json", "--html", str(page)]) == 0
    assert 'class="legend">distance, mm' in page.read_text()  # what the colours mean
    found = json.loads(capsys.readouterr().out)
    assert found["judged"] == 3
    assert found["rows"] == 8
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4 * 3
    assert "STAND-IN BODY" in text
    assert "<script" not in text
    assert command(base) == 0
    assert "STAND-IN" in capsys.readouterr().out


def test_audit_refuses_what_it_cannot_judge(plain, exported, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="no SKEL labels"):
        audit(plain.parent / "labels.npz", standin=True)
    monkeypatch.chdir(tmp_path)  # no ./models here
    monkeypatch.delenv("HMR_SKEL_MODELS", raising=False)
    assert command(["audit", str(exported)]) == 5
    assert "SKEL v1.1.1" in capsys.readouterr().err
    assert command(["audit", str(tmp_path / "absent.npz"), "--stand-in"]) == 5
    for option, value in (("--limits", "some"), ("--sample", "0")):
        assert command(["audit", str(exported), "--stand-in", option, value]) == 2


def test_a_file_of_rejected_rows_is_judged_without_rows(exported, tmp_path):
    columns = members(exported)
    columns["skel_poses"][:] = np.nan
    np.savez(tmp_path / "none_skel.npz", **columns)
    summary = summarise(audit(tmp_path / "none_skel.npz", standin=True))
    assert summary["judged"] == 0
    assert summary["rejected"] == {"non_finite_skel": 8}
    assert findings(summary) == ["No row has both a valid SMPL and a valid SKEL label."]


# ---- card ---------------------------------------------------------------------------------------

ORDER = [
    "Dataset details", "Uses", "Dataset structure", "Dataset creation",
    "Bias, risks and limitations", "Licence", "Citation", "Dataset card contact",
]  # fmt: skip


def test_the_card_has_the_templates_order_and_the_datas_numbers(fitted):
    card(fitted)
    text = (fitted / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["size_categories"] == ["n<1K"]
    assert "stand-in-body" in meta["tags"]
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == ORDER
    dataset = open_dataset(fitted)
    assert dataset.attrs["digest"] in text
    assert dataset.plan.plan_id in text
    for model in dataset.plan.models:
        assert model.sha256 in text
    for name in dataset.fields:
        assert f"| `{name}` |" in text
    assert "Stand-in body" in text
    mean = np.nanmean(dataset["vertex_error_mean"]) * 1000
    assert f"| all rows | 8 | {mean:.1f} |" in text
    assert command(["verify", str(fitted), "--json"]) == 0  # a card in the folder does no harm


def test_the_card_counts_rejected_rows_and_escapes_names(plain, tmp_path):
    card(plain, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `non_finite_pose` | 2 | NaN or infinity in the pose |" in text
    assert "Stand-in" not in text
    assert "<b>" not in text
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert {line.count("|") for line in table if "`non_finite" not in line} == {9}
