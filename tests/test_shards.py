"""Shard files: bit-exact carriage, determinism, checksums, stock h5py; manifests and plans."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError, PlanMismatch, UsageError
from pipeline.manifest import load_manifest
from pipeline.plan import Plan, check_same_plan, read_plan
from pipeline.provenance import FileRecord
from pipeline.run import parse_shards
from pipeline.shards import build_shard, read_attributes, read_columns, stored_fields

SCALARS = st.one_of(
    hnp.integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.boolean_dtypes(),
    hnp.unicode_string_dtypes(min_len=1, max_len=12),
    hnp.byte_string_dtypes(min_len=1, max_len=12),
)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)


def plan(**changes: object) -> Plan:
    base = Plan(
        name="test",
        rows=20,
        shard_rows=8,
        compression="gzip",
        source_format="camerahmr",
        source_options={},
        source_files=(FileRecord("labels.npz", 10, "ab"),),
        smpl_gender="neutral",
        skel_gender="male",
        image_root="",
        fields=(),
        models_kind="licensed",
        models=(),
        fitter="x:y",
        fit={"limits": "default"},
        code={"sha256": "c0"},
        software={"torch": "1"},
    )
    return dataclasses.replace(base, **changes)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=SCALARS.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    compression=st.sampled_from(["gzip", "none"]),
)
def test_any_column_comes_back_bit_for_bit(
    tmp_path: Path, values: np.ndarray, compression: str
) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(build_shard({"column": values}, {"shard": 0}, compression))
    back = read_columns(path, ["column"])["column"]
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert back.tobytes() == values.tobytes()


def test_same_content_gives_the_same_bytes_in_other_processes() -> None:
    code = (
        "import numpy as np, hashlib, time\n"
        "from pipeline.shards import build_shard\n"
        "columns = {'b': np.arange(700.0).reshape(350, 2), 'a': np.array(['é', 'bc'] * 175)}\n"
        "data = build_shard(columns, {'plan_id': 'p', 'shard': 3}, 'gzip')\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_layout_is_what_the_format_document_says(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    columns = {"x": np.zeros((600, 4), np.float32), "name": np.array(["é"] * 600)}
    path.write_bytes(build_shard(columns, {"shard": 0}, "gzip"))
    with h5py.File(path, "r") as file:
        assert file["x"].chunks == (256, 4)
        assert file["x"].compression == "gzip" and file["x"].compression_opts == 4
        assert file["x"].shuffle and file["x"].fletcher32 and file["name"].fletcher32
        assert file["name"].dtype == np.dtype("S2")  # UTF-8, width of the longest, no heap


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_the_data_is_refused(tmp_path: Path, position: float) -> None:
    path = tmp_path / "shard.h5"
    values = np.random.default_rng(0).normal(size=(2000, 8))
    data = bytearray(build_shard({"x": values}, {"shard": 0}, "none"))
    data[int(len(data) * position)] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard\.h5"):
        read_columns(path, ["x"])


def test_missing_column_and_foreign_shard_are_named(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(build_shard({"x": np.zeros(3)}, {"plan_id": "p", "shard": 1}, "gzip"))
    assert read_attributes(path) == {"plan_id": "p", "shard": 1}
    with pytest.raises(InputError, match="column 'y' is missing"):
        read_columns(path, ["y"])
    with pytest.raises(InputError, match="holds another shard"):
        read_columns(path, ["x"], expect=("p", 2))


def test_original_columns_never_take_a_name_of_ours() -> None:
    given_fields = {
        name: (np.dtype("<f4"), ()) for name in ("status", "source_status", "a/b", "pose_cam", "..")
    }
    stored = {item.source: item.stored for item in stored_fields(given_fields)}
    assert stored["pose_cam"] == "pose_cam"
    assert stored["status"] != "status"
    assert len(set(stored.values())) == len(stored)
    assert all("/" not in name and name not in (".", "..") for name in stored.values())
    with pytest.raises(InputError, match="column 'o'"):
        stored_fields({"o": (np.dtype(object), ())})


def test_shards_partition_the_rows() -> None:
    for rows, shard_rows in ((0, 8), (1, 8), (8, 8), (20, 8), (16, 1)):
        found = plan(rows=rows, shard_rows=shard_rows)
        ranges = [range(*found.rows_of(shard)) for shard in range(found.shards)]
        assert [row for part in ranges for row in part] == list(range(rows))


def test_plan_round_trip_and_every_field_counts(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    first = plan()
    path.write_bytes(first.to_bytes())
    assert read_plan(path) == first
    changes = {
        "rows": 21,
        "shard_rows": 9,
        "compression": "none",
        "source_options": {"a": 1},
        "source_files": (FileRecord("labels.npz", 10, "ff"),),
        "smpl_gender": "male",
        "skel_gender": "female",
        "fitter": "x:z",
        "fit": {"limits": "none"},
        "code": {"sha256": "c1"},
        "software": {"torch": "2"},
    }
    for name, value in changes.items():
        other = plan(**{name: value})
        assert other.plan_id != first.plan_id
        with pytest.raises(PlanMismatch) as caught:
            check_same_plan(first, other, tmp_path)
        assert all(field.startswith(name) for field in caught.value.fields)
        assert name in str(caught.value) and "--out" in str(caught.value)


def test_an_edited_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan().to_bytes().replace(b'"rows": 20', b'"rows": 19'))
    with pytest.raises(InputError, match="damaged or edited"):
        read_plan(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nsource: {path: x.npz}\nshard_row: 3\n", "unknown key 'shard_row' (there are "),
        ("name: a\nname: b\nsource: {path: x.npz}\n", "'name' is given twice"),
        ("name: a\nsource: {path: ../x.npz}\n", "relative to the data root"),
        ("name: a\nsource: {path: /etc/x.npz}\n", "relative to the data root"),
        ("name: a\nsource: {path: x.npz}\nshard_rows: 0\n", "shard_rows"),
        ("name: ../a\nsource: {path: x.npz}\n", "name"),
        ("name: a\nsource: {path: x.npz}\nimage_root: ../x\n", "image_root: "),
        ("name: a\nsource: {path: x.npz}\nimage_root: /x\n", "relative to the data root"),
        ("name: a\nsource: {path: x.npz, rows: 90}\n", "rows given without a generator"),
        ("name: a\nsource: {path: x.npz, seed: 0}\n", "seed given without a generator"),
        ("name: a\nsource: {path: x.npz, generator: demo, rows: 59}\n", "source.rows: "),
        ("name: a\nsource: {path: x.npz, generator: demo, rows: 90.0}\n", "source.rows: "),
        ("name: a\nsource: {path: x.npz, generator: demo, rows: yes}\n", "source.rows: "),
        ("name: a\nsource: {path: x.npz, generator: demo, rows: 9999999}\n", "source.rows: "),
        ("name: a\nsource: {path: x.npz, generator: demo, seed: -1}\n", "source.seed: "),
        ("name: a\nsource: {path: x.npz, generator: demo, seed: '3'}\n", "source.seed: "),
        ("name: a\nsource: {path: x.npz, generator: dance}\n", "source.generator: "),
        ("- 1\n", "expected a mapping"),
        ("a: [\n", "not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
    ],
)
def test_bad_manifests_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_committed_manifest_loads_and_unknown_names_list_them() -> None:
    names = {path.stem for path in (Path(__file__).parents[1] / "manifests").glob("*.yaml")}
    assert {"demo", "demo-large", "coco", "mpii", "aic", "insta1", "insta2"} <= names
    assert {"h36m", "mpi-inf"} <= names
    for name in names:
        assert load_manifest(name).name == name
    with pytest.raises(UsageError, match="coco"):
        load_manifest("cocoo")


def test_shard_selection() -> None:
    assert parse_shards("3,7-9") == (range(3, 4), range(7, 10))
    for bad in ("", "a", "3-", "-3", "9-7", "1,,2", "1.5", "9" * 5000, "١"):
        with pytest.raises(UsageError):
            parse_shards(bad)
