"""`open_dataset(...)` as Python sees it: rows, views, batches, tables, torch; real shards."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import Dataset, open_dataset
from pipeline.errors import InputError, UsageError
from pipeline.receipts import shard_path
from pipeline.shards import CHUNK_ROWS
from skel_fit.anatomy import POSE_NAMES
from tests.demo_rows import convert_labels
from tests.faults.fitters import TRIVIAL
from tests.faults.harness import label_columns

ROWS, SHARD, BAD_ROWS = 1400, 600, (3, 601)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """1,400 rows in three shards of up to three chunks each; two rows are rejected."""
    folder = tmp_path_factory.mktemp("rows")
    columns = label_columns(ROWS)
    columns["pose_cam"][list(BAD_ROWS), 5] = np.nan
    columns["gender"] = np.array(["male", "neutral"] * (ROWS // 2))
    columns["skel_gender"] = np.array(["male", "female"] * (ROWS // 2))
    columns["split"] = np.array([b"train", b"t\xff"] * (ROWS // 2))
    columns["scale"] = columns["scale"].astype(">f4")
    columns["imgname"] = np.array([f"{'x' * (1 + row // 700)}/{row}.jpg" for row in range(ROWS)])
    np.savez(folder / "labels.npz", **columns)
    return convert_labels(folder, "labels.npz", TRIVIAL, shard_rows=SHARD)


@pytest.fixture
def dataset(folder) -> Dataset:
    return open_dataset(folder)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the width of texts."""
    if expected.dtype.kind not in "SU":
        assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


ORDERS = {
    "slice": slice(595, 1210),
    "every third": slice(None, None, 3),
    "backwards": slice(None, None, -1),
    "negative": slice(-5, None),
    "nothing": slice(7, 7),
    "list": [5, 3, 3, -1, 1399, 0],
    "far apart": np.arange(0, ROWS, 601, dtype=np.uint16),
    "mask": np.arange(ROWS) % 7 == 2,
    "no row": np.zeros(ROWS, bool),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_view_is_what_numpy_makes_of_the_columns(dataset, order):
    view = dataset[order]
    for name in ("source_row", "skel_poses", "imgname", "scale", "split", "status"):
        same(view[name], dataset[name][np.asarray(order) if isinstance(order, list) else order])
    assert len(view) == len(view["source_row"])
    assert view.fields == dataset.fields


@pytest.mark.parametrize("first", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("second", [slice(1, -1, 2), slice(None, None, -1), [0, -1, 0]], ids=str)
def test_a_view_of_a_view_is_a_view(dataset, first, second):
    numbers = np.arange(ROWS)[first]
    if isinstance(second, list) and not len(numbers):
        with pytest.raises(IndexError, match="row 0 of 0"):
            dataset[first][second]
        return
    same(dataset[first][second]["source_row"], numbers[second])


def test_a_row_is_a_dict_of_its_values(dataset):
    row = dataset[-2]
    assert tuple(row) == dataset.fields
    assert row["source_row"] == ROWS - 2
    assert row["imgname"] == f"xx/{ROWS - 2}.jpg" and type(row["imgname"]) is str
    assert type(row["split"]) is bytes
    same(row["skel_poses"], dataset["skel_poses"][-2])
    assert dataset[np.int64(4)]["source_row"] == 4
    assert dataset[10:20][3]["source_row"] == 13


@pytest.mark.parametrize(
    ("key", "error", "said"),
    [
        (ROWS, IndexError, "row 1400 of 1400"),
        (-ROWS - 1, IndexError, "row -1401 of 1400"),
        ([0, ROWS], IndexError, "row 1400 of 1400"),
        (np.ones(3, bool), IndexError, "a mask of 3 for 1400 rows"),
        (1.5, TypeError, "float64 of shape"),
        (True, TypeError, "bool of shape"),
        (np.zeros((2, 2), int), TypeError, r"shape \(2, 2\)"),
        ("absent", KeyError, "no column 'absent'; there are skel_poses"),
    ],
)
def test_what_is_no_row_and_no_column_is_refused(dataset, key, error, said):
    with pytest.raises(error, match=said):
        dataset[key]


def test_iteration_and_batches_are_the_rows_in_order(dataset):
    assert [row["source_row"] for row in dataset[500:900]] == list(range(500, 900))
    batches = list(dataset.batches(256, ("source_row", "imgname")))
    assert [len(batch["imgname"]) for batch in batches] == [256] * 5 + [120]
    same(np.concatenate([batch["source_row"] for batch in batches]), dataset["source_row"])
    assert set(batches[0]) == {"source_row", "imgname"}
    with pytest.raises(ValueError, match="batches of 0 rows"):
        dataset.batches(0)
    with pytest.raises(TypeError, match="several names"):
        dataset.batches(8, "status")
    with pytest.raises(KeyError, match="no column 'x'"):
        dataset.batches(8, ("x",))


def test_a_batch_reads_its_own_chunks_only(dataset, monkeypatch):
    """Memory and time follow what is asked for, not the size of a shard."""
    read = []
    original = sys.modules["pipeline.shard_files"].read_column

    def counting(file, name, rows):
        read.append(rows.stop - rows.start)
        return original(file, name, rows)

    monkeypatch.setattr("pipeline.shard_files.read_column", counting)
    dataset.take(("skel_poses",), np.array([0, 599, 600]))
    assert sum(read) == 3
    read.clear()
    dataset.take(("skel_poses",), np.array([0, CHUNK_ROWS + 1]))
    assert sum(read) == CHUNK_ROWS + 2  # neighbouring chunks are one read


def test_fitted_rows_are_those_that_were_not_rejected(dataset):
    assert np.flatnonzero(~dataset.fitted).tolist() == list(BAD_ROWS)
    assert np.isfinite(dataset[dataset.fitted]["skel_poses"]).all()


def test_it_says_what_it_is(dataset, folder):
    said = repr(dataset)
    assert f"'small' in {folder}: 1400 rows in 3 of 3 shards, no bodies" in said
    assert "status: converged 1398, rejected:non_finite_pose 2" in said
    assert "skel_poses <f4[46]" in said and "source_status <i2" in said
    assert dataset.attrs["digest"] in said
    assert repr(dataset[:3]).startswith("3 rows of Dataset 'small'")


def test_a_table_has_named_angles_in_degrees(dataset):
    table = dataset[[2, 3, 5]].to_pandas(extra=("scale", "split"))
    assert table["source_row"].tolist() == [2, 3, 5]
    assert table["imgname"].tolist() == ["x/2.jpg", "x/3.jpg", "x/5.jpg"]
    assert table["status"].tolist() == ["converged", "rejected:non_finite_pose", "converged"]
    poses, error = dataset["skel_poses"], dataset["vertex_error_mean"]
    for k, name in enumerate(POSE_NAMES):
        degrees = table[f"{name}_deg"].to_numpy()
        np.testing.assert_allclose(degrees, np.rad2deg(poses[[2, 3, 5], k]), rtol=1e-6)
    np.testing.assert_allclose(table["vertex_error_mean_mm"], error[[2, 3, 5]] * 1000, rtol=1e-6)
    assert table["split"].tolist() == ["train", "t\\xff", "t\\xff"]
    assert table["scale"].tolist() == dataset["scale"][[2, 3, 5]].tolist()
    hits = dataset["active_limits"][2]
    assert table["on_limit"][0] == " ".join(np.array(POSE_NAMES)[hits])
    assert len(dataset[:0].to_pandas()) == 0
    assert list(dataset[:0].to_pandas().columns) == list(dataset.to_pandas().columns)
    with pytest.raises(ValueError, match="column 'gtkps' has \\[44, 3\\] values a row"):
        dataset.to_pandas(extra=("gtkps",))


def test_without_pandas_one_line_says_how_to_get_it(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pandas is not installed; pip install 'hmr-skel\[parq"):
        dataset.to_pandas()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_torch_workers_read_the_same_rows(dataset, start):
    """Files that this process has open are used by no other."""
    rows = dataset[dataset.fitted].torch(("skel_poses", "scale", "imgname", "active_limits"))
    first = rows[0]
    assert first["skel_poses"].dtype == torch.float32 and first["scale"].dtype == torch.float32
    assert first["active_limits"].dtype == torch.bool and first["imgname"] == "x/0.jpg"
    loader = DataLoader(
        rows, batch_size=512, num_workers=2 if start == "fork" else 1,
        multiprocessing_context=multiprocessing.get_context(start),
    )  # fmt: skip
    batches = list(loader)
    poses = torch.cat([batch["skel_poses"] for batch in batches])
    same(poses.numpy(), dataset["skel_poses"][dataset.fitted])
    names = [name for batch in batches for name in batch["imgname"]]
    assert names == dataset["imgname"][dataset.fitted].tolist()


def test_torch_refuses_what_it_has_no_type_for(dataset):
    assert len(dataset.torch()) == ROWS
    assert set(dataset.torch()[1]) == {"skel_poses", "skel_betas", "skel_trans"}
    with pytest.raises(IndexError):
        dataset.torch()[ROWS]
    with pytest.raises(KeyError, match="no column 'x'"):
        dataset.torch(("x",))


def test_views_travel_without_their_values(dataset):
    view = dataset[::2]
    view["skel_poses"]
    assert len(pickle.dumps(view)) < 20_000
    same(pickle.loads(pickle.dumps(view))["skel_poses"], dataset["skel_poses"][::2])


def test_a_shard_that_changes_while_it_is_open_is_noticed(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    dataset = open_dataset(copy)
    assert dataset[0]["source_row"] == 0
    path = shard_path(copy, 0)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="its seal does not match"):
        dataset[1]
