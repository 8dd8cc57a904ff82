"""`hmr-skel calibrate` on the rows of a conversion, and calibrations of anybody."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.demo import demo_columns, npz_bytes
from skel_fit.calibration import (
    CALIBRATION_FILE,
    read_calibrations,
    write_calibrations,
)
from skel_fit.default_body import STANDIN_CALIBRATION, default_body_directory
from skel_fit.errors import ModelFileError
from stages import cli
from tests.demo_rows import convert_labels
from tests.faults.fitters import TRIVIAL
from tests.test_own_file import motion


def test_rows_of_a_conversion_calibrate_its_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = default_body_directory()
    columns = demo_columns(models)
    men = np.flatnonzero((columns["gender"] == "male") & (columns["skel_gender"] == "male"))[:60]
    some = {name: values[men] for name, values in columns.items()}
    (tmp_path / "labels.npz").write_bytes(npz_bytes(some))
    run = convert_labels(tmp_path, "labels.npz", TRIVIAL)
    out = tmp_path / CALIBRATION_FILE
    command = ["calibrate", str(run), "--models", str(models), "--rows", "50", "--out", str(out)]
    assert cli.run(command) == 0, capsys.readouterr().err
    made = read_calibrations(out)
    assert {pair: calibration.rows for pair, calibration in made.pairs.items()} == {
        ("male", "male"): 50
    }
    assert made.provenance["files"][0]["name"] == "labels.npz"

    few = ["calibrate", str(run), "--models", str(models), "--rows", "47", "--out", str(out)]
    assert cli.run(few) == 2


def test_a_damaged_calibration_is_one_line(tmp_path: Path) -> None:
    whole = Path(STANDIN_CALIBRATION).read_bytes()
    path = tmp_path / CALIBRATION_FILE
    draw = np.random.default_rng(4)
    for trial in range(40):
        data = bytearray(whole)
        if trial % 2:
            data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
        else:
            data = data[: int(draw.integers(len(data)))]
        path.write_bytes(data)
        try:
            read = read_calibrations(path)
        except ModelFileError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:  # a bit that says nothing, such as a date of the archive
            for pair, made in read_calibrations(Path(STANDIN_CALIBRATION)).pairs.items():
                np.testing.assert_array_equal(read.pairs[pair].wrenches, made.wrenches)
                np.testing.assert_array_equal(read.pairs[pair].pulls, made.pulls)


def test_a_calibration_of_other_bodies_gives_nan_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(default_body_directory(), models)
    own = read_calibrations(Path(STANDIN_CALIBRATION))
    others = replace(own, bodies=dict.fromkeys(own.bodies, "0" * 64))
    write_calibrations(models / CALIBRATION_FILE, others)
    out = tmp_path / "out"
    command = ["convert", str(motion(tmp_path)), "--models", str(models), "--out", str(out)]
    assert cli.run(command) == 0
    said = capsys.readouterr().out
    assert "skel_poses_sd is NaN, converted without a calibration" in said
    dataset = open_dataset(out)
    assert np.isnan(dataset["skel_poses_sd"]).all()
    assert np.isfinite(dataset["skel_poses"]).all()
