"""`hmr-skel lint`: each known defect planted once is found where it is, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo import write_demo
from pipeline.errors import InputError
from skel_fit.default_body import default_body_directory
from stages.cli import run
from stages.inspection.label_defects import CHECKS, CORRUPT_AIC, lint_file
from tests.label_files import amass, hmr_skel, person, write_npz, write_tar


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, Path]:
    models = default_body_directory()
    path = tmp_path_factory.mktemp("demo") / "demo-release.npz"
    return write_demo(path, models, rows=120), models


@pytest.fixture(autouse=True)
def _no_models(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HMR_SKEL_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _members(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file}


def _found(report) -> dict[str, list[int]]:
    return {finding.code: finding.first for finding in report.findings}


def test_clean_labels_have_no_finding(demo) -> None:
    path, models = demo
    report = lint_file(path, models)
    assert report.ok and report.findings == []
    assert (report.rows, report.rejected, report.projected) == (120, 0, 120)


def _spoil_camera(members, row: int) -> None:
    members["cam_int"][row, 0, 2] += 0.3
    members.pop("image_size", None)


SPOILED = {
    "non_finite_pose": lambda m, i: m["pose_cam"].__setitem__((i, 3), np.nan),
    "betas_out_of_range": lambda m, i: m["shape"].__setitem__((i, 2), 6.0),
    "beta_over_3": lambda m, i: m["shape"].__setitem__((i, 2), -3.5),
    "box_too_small": lambda m, i: m["scale"].__setitem__(i, 0.001),
    "box_below_8px": lambda m, i: m["scale"].__setitem__(i, 0.03),
    "box_too_large": lambda m, i: m["scale"].__setitem__(i, 100.0),
    "corrupt_aic_image": lambda m, i: m["imgname"].__setitem__(
        i, f"aic-train-vitpose/{min(CORRUPT_AIC)}.jpg"
    ),
    "image_path_escapes": lambda m, i: m["imgname"].__setitem__(i, "../a.jpg"),
    "keypoints_normalised": lambda m, i: m["gtkps"].__setitem__(
        (i, slice(None), slice(2)), m["gtkps"][i, :, :2] / 1e4
    ),
    "confidence_out_of_range": lambda m, i: m["gtkps"].__setitem__((i, 4, 2), 1.5),
    "keypoints_outside_image": lambda m, i: m["gtkps"].__setitem__((i, 4), (-50, 10, 0.9)),
    "keypoints_outside_box": lambda m, i: m["center"].__iadd__(
        np.eye(len(m["center"]))[i][:, None] * 2000
    ),
    "few_keypoints": lambda m, i: m["gtkps"].__setitem__((i, slice(None), 2), 0.0),
    "behind_camera": lambda m, i: m["trans_cam"].__setitem__((i, 2), -3.0),
    "zero_pose": lambda m, i: m["pose_cam"].__setitem__(i, 0.0),
    "unequal_focal": lambda m, i: m["cam_int"].__setitem__((i, 1, 1), m["cam_int"][i, 1, 1] * 1.2),
    "off_centre_principal_point": _spoil_camera,
    "repeated_pose": lambda m, i: m["pose_cam"].__setitem__(i, m["pose_cam"][i - 1]),
    "projection_mismatch": lambda m, i: m["trans_cam"].__setitem__(
        (i, 0), m["trans_cam"][i, 0] + 1.0
    ),
}


@pytest.mark.parametrize("code", SPOILED)
def test_a_planted_defect_is_found(demo, tmp_path: Path, code: str) -> None:
    path, models = demo
    members = _members(path)
    members["imgname"] = members["imgname"].astype("<U80")
    SPOILED[code](members, 77)
    found = _found(lint_file(write_npz(tmp_path / "a.npz", members), models))
    assert found.pop(code) == [77]
    # A defect may show in more than one way, but only in its row.
    assert all(rows == [77] for rows in found.values()), found


def test_duplicates(demo, tmp_path: Path) -> None:
    members = _members(demo[0])
    doubled = {name: np.concatenate([v, v[5:7]]) for name, v in members.items()}
    found = _found(lint_file(write_npz(tmp_path / "a.npz", doubled)))
    assert found == {"duplicate_row": [120, 121]}


def test_unit_and_defects_of_the_file(demo, tmp_path: Path) -> None:
    members = _members(demo[0])
    members["scale"] = members["scale"] * 200
    report = lint_file(write_npz(tmp_path / "a.npz", members))
    assert report.findings[0].code in ("scale_unit", "box_too_large")
    assert "pixels" in next(f.message for f in report.findings if f.code == "scale_unit")
    members = _members(demo[0])
    del members["trans_cam"]
    assert _found(lint_file(write_npz(tmp_path / "b.npz", members))) == {"no_translation": []}
    skel = hmr_skel(4)
    del skel["keypoints3d"]
    assert "no_3d_keypoints" in _found(lint_file(write_npz(tmp_path / "c.npz", skel)))


def test_other_formats(tmp_path: Path) -> None:
    persons = [person(np.random.default_rng(seed), hsmr=True) for seed in range(3)]
    for place, value in enumerate((100.0, 50_000.0, 100.0)):
        persons[place]["extra_info"]["fitting_loss"].item()["reprojection_loss"] = value
        persons[place]["orig_pve_max"] = (0.01, 0.01, float("nan"))[place]
    found = _found(lint_file(write_tar(tmp_path / "a.tar", {"aic-train/1": persons})))
    assert found["reprojection_loss"] == [1] and found["skel_fit_error"] == [2]
    held = amass(6)
    held["poses"][1:] = held["poses"][0]
    held["betas"][:] = 0.5
    assert lint_file(write_npz(tmp_path / "b.npz", held)).findings == []


def test_command(demo, tmp_path: Path, capsys) -> None:
    path, _ = demo
    assert run(["lint", str(path)]) == 0
    assert "120 rows, 0 rejected" in capsys.readouterr().out
    members = _members(path)
    members["pose_cam"][3] = np.nan
    bad = write_npz(tmp_path / "bad.npz", members)
    assert run(["lint", str(bad), "--json"]) == 5
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["ok"] is False and report["rejected"] == 1 and report["format"] == "camerahmr"
    assert report["findings"][0]["code"] == "non_finite_pose"
    assert report["findings"][0]["first"] == [3]
    assert len(err.splitlines()) == 1 and "non_finite_pose" in err
    write_npz(bad, {name: value[:0] for name, value in _members(path).items()})
    assert run(["lint", str(bad)]) == 5
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "0 rows" in err and "leave this file out" in err
    bad.write_bytes(b"nonsense")
    assert run(["lint", str(bad)]) == 5
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_of_the_command(demo, tmp_path: Path, capsys) -> None:
    path, models = demo
    assert run(["lint", str(path)]) == 0
    assert "not compared with the body (no body models: --models" in capsys.readouterr().out
    assert run(["lint", str(path), "--models", str(models), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["projected"] == 120
    for folder, found in ((tmp_path / "absent", "no such folder"), (tmp_path, "none in it")):
        assert run(["lint", str(path), "--models", str(folder)]) == 5
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        assert f"SMPL_to_J19.pkl, found {found}; " in err and "default-body --out" in err


def test_damaged_bytes_end_lint(demo, tmp_path: Path) -> None:
    data = bytearray(demo[0].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        lint_file(tmp_path / "a.npz")


def test_every_check_is_tested() -> None:
    elsewhere = {"scale_unit", "duplicate_row", "no_translation", "no_3d_keypoints",
                 "reprojection_loss", "skel_fit_error"}  # fmt: skip
    assert set(CHECKS) <= SPOILED.keys() | elsewhere
