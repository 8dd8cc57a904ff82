"""`convert --no-fit`: SKEL labels taken as they are, judged, sharded, trained on."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.given_labels import NOT_FITTED
from pipeline.verify import verify
from skel_fit.joint_limits import limits
from stages.cli import run as command
from stages.export_formats import export_dataset
from stages.inspection.card import card_text
from stages.regressor.config import load_recipe
from stages.regressor.data.rows import Place, load_collection
from tests.demo_rows import convert_labels, fitted_demo
from tests.faults.harness import forge_shard
from tests.pictures import tiny_jpeg

NAN, FAR, BENT, BETA = 1, 2, 4, 6
KNEE = 6


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fitted_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def members(fitted, tmp_path_factory) -> dict[str, np.ndarray]:
    """A label file as others publish them, of eight fitted rows; four of them spoilt."""
    path = tmp_path_factory.mktemp("members") / "a_skel.npz"
    export_dataset(fitted, path, keypoints3d="none")
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name].copy() for name in file.files}
    columns["skel_poses"][NAN, 9] = np.nan
    columns["skel_trans"][FAR] += (0, 0, 0.061)
    columns["skel_poses"][BENT, KNEE] = limits("default")[KNEE, 1] + 0.01
    columns["skel_betas"][BETA, 0] = 9
    columns["imgname"] = np.array([f"p/{row}.jpg" for row in range(8)])
    columns["split"] = np.full(8, "train")
    return columns


def given(folder: Path, members: dict[str, np.ndarray], out: str = "given", **changes) -> Path:
    np.savez(folder / "a_skel.npz", **members)
    return convert_labels(
        folder, "a_skel.npz", NOT_FITTED, out, models="default-body", image_root="img", **changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, members) -> Path:
    return given(tmp_path_factory.mktemp("given"), members)


def test_bodies_are_those_of_the_file_and_the_status_is_the_audit_s(folder, members, fitted):
    dataset, before = open_dataset(folder), open_dataset(fitted)
    expected = ["audited"] * 8
    expected[NAN], expected[BETA] = "rejected:non_finite_skel", "rejected:skel_out_of_range"
    expected[FAR] = expected[BENT] = "doubtful"
    assert dataset["status"].tolist() == expected
    kept = dataset.fitted
    for name in ("skel_poses", "skel_betas", "skel_trans"):
        assert dataset[name][kept].tobytes() == members[name][kept].tobytes()
        assert dataset[f"source_{name}"].tobytes() == members[name].tobytes()
        assert np.isnan(dataset[name][~kept]).all()
    untouched = [row for row in range(8) if row not in (NAN, FAR, BENT, BETA)]
    # The fit computes its errors in other kernels: the same to a micrometre.
    for name in ("vertex_error_mean", "vertex_error_max", "vertex_error_arms"):
        difference = dataset[name][untouched] - before[name][untouched]
        assert np.abs(difference).max() < 1e-6, name
    np.testing.assert_array_equal(
        dataset["active_limits"][untouched], before["active_limits"][untouched]
    )
    assert dataset["active_limits"][BENT, KNEE]
    assert np.isnan(dataset["vertex_error_unlimited"]).all()
    assert set(dataset["start"].tolist()) == {-1} and set(dataset["iterations"].tolist()) == {0}
    assert dataset.plan.fitter == "not_fitted"


def test_without_a_translation_the_closed_form_places_the_body(members, tmp_path, fitted):
    without = {name: values for name, values in members.items() if name != "skel_trans"}
    dataset = open_dataset(given(tmp_path, without))
    expected = open_dataset(fitted)["skel_trans"]
    good = [row for row in range(8) if row not in (NAN, BETA)]
    assert dataset["status"][FAR] == "audited"
    assert np.abs(dataset["skel_trans"][good] - expected[good]).max() < 0.02


def test_verify_knows_bodies_and_statuses_of_the_file(folder, tmp_path):
    found = verify(folder, full=True)
    assert found.ok and (found.again, found.exact) == (8, 8)

    def problems(**changes: tuple[object, object]) -> str:
        """After changing rows: column -> (rows, values)."""
        copy = tmp_path / next(iter(changes))
        shutil.copytree(folder, copy)

        def change(file):
            for name, (rows, values) in changes.items():
                file[name][rows] = values

        forge_shard(copy, 0, change)
        return "; ".join(verify(copy).problems)

    said = problems(
        status=([0, FAR], [b"doubtful", b"audited"]), active_limits=(BENT, np.zeros(46, bool))
    )
    assert "row 0: status is not what angles and errors say (2 rows)" in said
    assert "row 4: active_limits are not its angles' (1 rows)" in said
    other = problems(skel_betas=(0, np.full(10, 0.5, "f4")))
    assert "column 'skel_betas' is not the SKEL label of the file" in other


def test_training_takes_the_rows_and_the_card_says_that_nothing_was_fitted(folder):
    for row in range(8):
        path = folder.parent / "img" / f"p/{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_jpeg(row))
    collection = load_collection([Place(folder)], load_recipe("tiny").data)
    assert collection.skipped["rejected by the conversion"] == 2
    assert FAR in collection.rows.source_row and NAN not in collection.rows.source_row
    card = card_text(open_dataset(folder))
    assert "Nothing was fitted" in card and "least squares" not in card
    assert "doubtful: 2 rows" in card


def test_the_command_in_other_shards_and_what_it_refuses(folder, members, tmp_path, capsys):
    np.savez(tmp_path / "a_skel.npz", **members)
    np.savez(tmp_path / "plain.npz", **{k: v for k, v in members.items() if "skel_" not in k})
    for name in ("a_skel", "plain"):
        content = {
            "name": name,
            "source": {"path": f"{name}.npz"},
            "genders": {"smpl": "column", "skel": "column" if name == "a_skel" else "male"},
            "models": "default-body",
            "image_root": "img",
            "shard_rows": 3,
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))

    def convert(name: str, *options: str) -> int:
        out = str(tmp_path / name)
        manifest = str(tmp_path / f"{name}.yaml")
        return command(["convert", manifest, "--out", out, "--data-root", str(tmp_path), *options])

    assert convert("a_skel", "--no-fit") == 0
    assert "nothing fitted" in capsys.readouterr().out
    one, other = open_dataset(folder), open_dataset(tmp_path / "a_skel")
    for name in one.fields:
        if one[name].dtype.kind == "U":
            assert one[name].tolist() == other[name].tolist()
        else:
            assert one[name].tobytes() == other[name].tobytes(), name
    assert convert("a_skel") == 4
    assert re.search("differing: .*fitter", capsys.readouterr().err)
    assert convert("plain", "--no-fit") == 5
    said = capsys.readouterr().err
    assert "plain.npz: holds no SKEL labels (camerahmr)" in said and "without --no-fit" in said
    assert not (tmp_path / "plain").exists()


def test_a_file_without_smpl_poses_cannot_be_judged(members, tmp_path):
    """The repacked flavour: every row is rejected, and says so."""
    content = {k: v for k, v in members.items() if not k.startswith("pose_cam")}
    dataset = open_dataset(given(tmp_path, content))
    assert Counter(dataset["status"].tolist()) == {"rejected:no_smpl_pose": 8}
