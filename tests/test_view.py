"""`hmr-skel view`: datasets, sequences and files as pages; wrong input is one line."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from skel_fit import load_skel
from skel_fit.default_body import default_body_directory
from stages.cli import run
from tests.demo_rows import REAL, convert_labels, fitted_demo
from tests.label_files import amass


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two AMASS files, 9 and 4 frames; frame 2 of the first is rejected."""
    folder = tmp_path_factory.mktemp("view-sequences")
    for name, frames in (("walk", 9), ("stand", 4)):
        content = amass(frames, seed=frames)
        content["gender"] = np.array("male")
        content["mocap_framerate"] = np.array(60.0)
        if name == "walk":
            content["poses"][2, 5] = np.nan
        (folder / "amass").mkdir(exist_ok=True)
        np.savez(folder / "amass" / f"{name}_poses.npz", **content)
    return convert_labels(folder, "amass", REAL, models="default-body")


def header(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="header">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found.group(1))


def buffer(page: Path) -> bytes:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert found
    return gzip.decompress(base64.b64decode(found.group(1)))


def stored(page: Path, entry: dict[str, Any]) -> np.ndarray:
    data = buffer(page)[entry["start"] : entry["start"] + entry["bytes"]]
    return np.frombuffer(data, "<" + entry["kind"])


def view(*arguments: object) -> int:
    return run(["view", *map(str, arguments)])


def test_rows_of_people_become_a_page_with_three_layers(rows: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert view(rows, "--out", page, "--rows", "2:6") == 0
    found = header(page)
    assert [layer["name"] for layer in found["layers"]] == ["skin", "bones", "target"]
    assert found["labels"] == ["row 2", "row 3", "row 4", "row 5"]
    assert found["moving"] is False
    from pipeline import open_dataset

    angles = stored(page, found["arrays"]["angles"]).reshape(4, 46)
    expected = np.degrees(open_dataset(rows)["skel_poses"][2:6])
    np.testing.assert_allclose(angles, expected, atol=1e-4)
    assert "alert(1)" not in page.read_text(encoding="utf-8")  # names of the label file


def test_the_layers_are_the_bodies_of_the_dataset(rows: Path, tmp_path: Path) -> None:
    """Unpacked here as the page does it, against the model."""
    import torch

    from pipeline import open_dataset
    from stages.drawing.viewer.encoding import _affine, _Blend

    page = tmp_path / "page.html"
    assert view(rows, "--out", page, "--rows", "0:3", "--no-target") == 0
    layer = header(page)["layers"][0]
    read = {name: stored(page, entry) for name, entry in layer["arrays"].items()}
    first = np.cumsum(read["first"].astype(np.int64)) % 2**32
    affine = _affine(read["quaternions"].reshape(3, 24, 4), read["translations"].reshape(3, 24, 3))
    weights = csr_matrix((read["weight"] / 65535, read["bone"], first))
    blend = _Blend(weights, affine)
    dataset = open_dataset(rows)
    for frame in range(3):
        rest = read["mean"] * layer["mean_step"]
        for k, step in enumerate(layer["component_steps"]):
            factor = read["coefficients"].reshape(3, -1)[frame, k]
            rest = rest + factor * read[f"component_{k}"] * step
        gender = str(dataset["skel_gender"][frame])
        model = load_skel(default_body_directory(), gender)
        truth = model(
            torch.tensor(dataset["skel_poses"][frame : frame + 1]),
            torch.tensor(dataset["skel_betas"][frame : frame + 1]),
            torch.zeros(1, 3),
        )
        difference = blend.apply(frame, rest.reshape(-1, 3)) - truth.skin_vertices[0].numpy()
        assert np.linalg.norm(difference, axis=1).max() < 2e-3


def test_a_sequence_plays_at_its_rate_without_its_rejected_frame(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert view(sequences, "--out", page, "--sequence", "walk_poses") == 0
    found = header(page)
    assert found["moving"] is True and found["rate"] == 60.0 and found["frames"] == 8
    np.testing.assert_allclose(found["times"], np.array([0, 1, 3, 4, 5, 6, 7, 8]) / 60, atol=1e-4)
    assert found["up"] == [0, 1, 0]
    assert "1 rejected left out" in capsys.readouterr().err
    assert view(sequences, "--out", page) == 0  # the first sequence, by name
    assert header(page)["frames"] == 4


def test_a_file_of_parameters_is_shown_too(tmp_path: Path) -> None:
    poses = np.zeros((5, 46), np.float32)
    poses[:, 6] = np.linspace(0, 1, 5)
    np.savez(tmp_path / "walk.npz", skel_poses=poses, betas=np.zeros(10, np.float32),
             trans=np.zeros((5, 3), np.float32))  # fmt: skip
    page = tmp_path / "page.html"
    arguments = (tmp_path / "walk.npz", "--out", page, "--models", "default-body", "--rate", "10")
    assert view(*arguments, "--up", "y-up") == 0
    found = header(page)
    assert found["frames"] == 5 and found["rate"] == 10 and found["up"] == [0, 1, 0]
    assert [layer["name"] for layer in found["layers"]] == ["skin", "bones"]


def test_a_file_says_whose_body_it_is_and_whether_it_is_one_person(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"skel_poses": np.zeros((3, 46)), "betas": np.zeros((3, 10)),
               "trans": np.zeros((3, 3))}  # fmt: skip
    pages = {}
    for name, more, options in (
        ("silent", {}, []),
        ("man", {}, ["--gender", "male"]),
        ("woman", {}, ["--gender", "female"]),
        ("said", {"gender": np.array("female")}, []),
        ("rows", {"skel_gender": np.array(["f", "f", "f"])}, []),
        ("overruled", {"gender": np.array("female")}, ["--gender", "male"]),
    ):
        np.savez(tmp_path / "x.npz", **content | more)
        page = tmp_path / f"{name}.html"
        assert view(tmp_path / "x.npz", "--out", page, "--models", "default-body", *options) == 0
        pages[name] = buffer(page)
    assert pages["silent"] == pages["man"] == pages["overruled"] != pages["woman"]
    assert pages["said"] == pages["rows"] == pages["woman"]
    capsys.readouterr()
    content["betas"][1, 0] = 1.0
    np.savez(tmp_path / "x.npz", **content)
    for options, told in (([], "x: 3 people"), (["--rate", "20"], "x: 3 frames at 20 a second")):
        page = tmp_path / "several.html"
        assert view(tmp_path / "x.npz", "--out", page, "--models", "default-body", *options) == 0
        assert told in capsys.readouterr().err
    np.savez(tmp_path / "x.npz", **content, gender=np.array(["m", "f"]))
    assert view(tmp_path / "x.npz", "--out", page, "--models", "default-body") == 5
    assert "gender: expected one word, or one for each row" in capsys.readouterr().err
    assert view(rows, "--out", tmp_path / "d.html", "--models", "default-body") == 0
    assert view(rows, "--out", tmp_path / "no" / "d.html") == 74
    assert "no does not exist; make it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "3:99"], "expected A < B <= 8"),
        (["--rows", "a"], "expected A:B"),
        (["--rows", "0:2", "--sequence", "x"], "has no sequences"),
        (["--sequence", "x"], "has no sequences"),
    ],
)
def test_wrong_choices_are_one_line(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    page = tmp_path / "page.html"
    assert view(rows, "--out", page, *options) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not page.exists()


def test_an_unknown_sequence_names_those_there_are(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert view(sequences, "--out", tmp_path / "p.html", "--sequence", "run") == 2
    assert "stand_poses, walk_poses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skel_poses": np.zeros((5, 45))}, "poses: expected (5, 46)"),
        ({"trans": np.full((5, 3), np.nan)}, "transl of row 0 is not finite"),
        ({"betas": None}, "no member skel_betas or betas"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    content = {"skel_poses": np.zeros((5, 46)), "betas": np.zeros(10), "trans": np.zeros((5, 3))}
    content = {name: value for name, value in (content | changes).items() if value is not None}
    np.savez(tmp_path / "walk.npz", **content)
    code = view(tmp_path / "walk.npz", "--out", tmp_path / "p.html", "--models", "default-body")
    assert code == 5 and message in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def test_people_of_a_frame_each_are_shown_together() -> None:
    """Files of one person each have sequences of one frame: those of the first rows are shown."""
    from stages.inspection.motion import shown_rows

    class Rows(dict):
        directory = Path("somewhere")

        def __len__(self) -> int:
            return len(self["sequence"])

    still, moving = np.array(["a", "b", "c"]), np.array(["a", "a", "b"])
    choice = shown_rows(Rows(sequence=still), None, None)  # type: ignore[arg-type]
    assert choice.rows.tolist() == [0, 1, 2] and choice.name is None
    choice = shown_rows(Rows(sequence=moving), None, None)  # type: ignore[arg-type]
    assert choice.rows.tolist() == [0, 1] and choice.name == "a"
