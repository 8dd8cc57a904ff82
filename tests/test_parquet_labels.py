"""SAM 3D Body's parquet labels: parameters of MHR, posed by the TorchScript file of the user."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.own_file import Asked
from pipeline.readers import open_source
from pipeline.readers.sam3d import pinhole

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SAM = Path(__file__).parent / "data" / "bodies" / "img_subj01.npz"
STAND_IN = Path("default-body")


class _Mhr(torch.nn.Module):
    """MHR's signature and axes: one real body that moves, turns about y and grows."""

    def __init__(self, base: torch.Tensor) -> None:
        super().__init__()
        self.base = base

    def forward(self, shape: torch.Tensor, model: torch.Tensor, face: torch.Tensor):
        turn, size = model[:, 4, None], (1.0 + 0.1 * shape[:, :1]) + 0.0 * face[:, :1]
        x, y, z = self.base[:, 0], self.base[:, 1], self.base[:, 2]
        turned = torch.stack((turn.cos() * x + turn.sin() * z, y + 0.0 * turn,
                              turn.cos() * z - turn.sin() * x), dim=2)  # fmt: skip
        return turned * size[:, :, None] + 10.0 * model[:, None, :3], torch.zeros(1, 127, 8)


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    with np.load(SAM) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real) -> Path:
    place = tmp_path_factory.mktemp("labels")
    base = torch.as_tensor(real["pred_vertices"] * (100, -100, -100)).float()
    torch.jit.script(_Mhr(base)).save(str(place / "mhr_model.pt"))
    return place


def columns(real: dict[str, np.ndarray], rows: int = 6) -> dict[str, Any]:
    """As the published code reads them; row 2 is not valid, the others are the real body."""
    focal, centre, _ = pinhole(real["pred_keypoints_3d"] + real["pred_cam_t"],
                               real["pred_keypoints_2d"])  # fmt: skip
    model = np.zeros((rows, 204))
    model[:, :3] = real["pred_cam_t"] * (10, -10, -10)
    points = np.c_[real["pred_keypoints_2d"], np.ones(70)]
    return {
        "dataset": ["coco"] * rows,
        "image": [f"train2014/{k}.jpg" for k in range(rows)],
        "person_id": np.arange(rows),
        "keypoints_2d": [points.tolist()] * rows,
        "model_params": model.tolist(),
        "shape_params": np.zeros((rows, 45)).tolist(),
        "mhr_valid": [k != 2 for k in range(rows)],
        "bbox": [real["bbox"].tolist()] * rows,
        "bbox_format": ["xyxy"] * rows,
        "cam_int": [[[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]]] * rows,
        "mask_cnts": [b""] * rows,
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    parquet.write_table(arrow.table(content), path, row_group_size=4)
    return path


def test_labels_are_the_meshes_of_the_outputs(folder: Path, real) -> None:
    """The same body as parameters and as an output of SAM 3D Body: one mesh, one camera."""
    path = write(folder / "000000.parquet", columns(real))
    source = open_source(path, mhr="mhr_model.pt", skel_gender="nearest", data_root=folder)
    source.check()
    assert (source.format, source.rows, source.vertices) == ("sam-3d-body-labels", 6, 18_439)
    assert source.files == (path, folder / "mhr_model.pt")
    rows = pickle.loads(pickle.dumps(source)).read(1, 6)
    output = open_source(SAM).read(0, 1)
    assert rows.reasons.tolist() == ["", "mhr_invalid", "", "", ""]
    assert rows.other is not None and output.other is not None
    meshes = rows.other.parameters["vertices"]
    assert np.abs(meshes[[0, 2, 3, 4]] - output.other.parameters["vertices"]).max() < 1e-5
    assert rows.fields["imgname"].tolist() == [f"train2014/{k}.jpg" for k in range(1, 6)]
    for name in ("cam_int", "center", "scale"):
        assert np.allclose(rows.fields[name], output.fields[name]), name
    alone = source.read(4, 5)
    assert alone.other is not None
    assert np.array_equal(alone.other.parameters["vertices"][0], meshes[3])
    own = Asked(str(path), models=STAND_IN, option=("mhr=mhr_model.pt",)).own_file()
    assert own.manifest.source.options == {"mhr": "mhr_model.pt"}
    assert "mhr (meshes of 18439 vertices, 6 people)" in own.described


def _short(content: dict) -> None:
    content["model_params"] = [row[:200] for row in content["model_params"]]


def _ragged(content: dict) -> None:
    content["model_params"][1] = content["model_params"][1][:200]


def _empty_place(content: dict) -> None:
    content["shape_params"][1] = None


def _text(content: dict) -> None:
    content["model_params"] = ["a"] * 6


def _metres(content: dict) -> None:
    content["model_params"] = (np.array(content["model_params"]) / 10).tolist()


def _flipped(content: dict) -> None:
    model = np.array(content["model_params"])
    model[:, 1] *= -1
    content["model_params"] = model.tolist()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_short, r"'model_params': .*\(rows, 200\), expected 204 numbers a row"),
        (_ragged, "'model_params': rows of different lengths"),
        (_empty_place, "'shape_params': nothing in 1 places"),
        (_text, "'model_params'"),
        (lambda c: c.pop("cam_int"), "'cam_int': missing"),
        (lambda c: c.update(bbox=["a"] * 6), "'bbox'"),
        (_metres, "'keypoints_2d': they lie beside the projected bodies"),
        (_flipped, "'keypoints_2d': they lie beside the projected bodies"),
    ],
)
def test_labels_that_are_none_are_one_line(folder: Path, real, spoil, said: str) -> None:
    content = columns(real)
    spoil(content)
    path = write(folder / "spoilt.parquet", content)
    with pytest.raises(InputError, match=said) as caught:
        open_source(path, mhr="mhr_model.pt").check()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_is_no_model_or_no_parquet_is_one_line(folder: Path, real, tmp_path: Path) -> None:
    path = write(folder / "000001.parquet", columns(real))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "linear.pt"))
    (folder / "junk.pt").write_bytes(b"junk")
    for model, said in (
        ("", r"parameters of MHR; .* --option mhr=FILE .*an npz of vertices, body='mhr'"),
        ("absent.pt", "option mhr: no file"),
        ("linear.pt", "linear.pt: not MHR's TorchScript model"),
        ("junk.pt", "junk.pt: not MHR's TorchScript model"),
        ("../outside.pt", "leads out of|no file"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            open_source(path, mhr=model, data_root=folder).read(0, 1)
        assert "\n" not in str(caught.value)
    data = path.read_bytes()
    for spoilt in (data[:-40], b"PAR1" + bytes(40) + b"PAR1", data[:200] + data[400:]):
        (tmp_path / "a.parquet").write_bytes(spoilt)
        with pytest.raises(InputError, match="not a whole parquet file") as caught:
            open_source(tmp_path / "a.parquet", mhr="mhr_model.pt")
        assert "\n" not in str(caught.value)
