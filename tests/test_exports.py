"""Parquet, WebDataset and CSV of converted datasets, read back by other people's code."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from pipeline import open_dataset
from pipeline.errors import InputError, OutputError, UsageError
from pipeline.output_files import read_sealed
from pipeline.provenance import file_record
from skel_fit.anatomy import POSE_NAMES
from stages.cli import run as command
from stages.export_formats import export_dataset
from stages.regressor.config import load_recipe
from stages.regressor.data.rows import Place, load_collection
from tests.demo_rows import convert_labels
from tests.faults.fitters import TRIVIAL
from tests.faults.harness import label_columns
from tests.foreign_files import smpl_file, write_smpl
from tests.pictures import tiny_jpeg

ROWS, BAD_ROWS = 60, (3, 17)
NO_PICTURE = 5
NAMES = [f"set.1/a{k}.jpg" for k in range(18)] + ["b.0%2E1.jpg", "b.0.2.jpg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixty rows of twenty pictures, in four shards; one picture is not there."""
    folder = tmp_path_factory.mktemp("exports")
    columns = label_columns(ROWS)
    columns["pose_cam"][list(BAD_ROWS), 5] = np.nan
    columns["gender"] = np.array(["male", "neutral"] * (ROWS // 2))
    columns["skel_gender"] = np.array(["male", "female"] * (ROWS // 2))
    columns["imgname"] = np.array([NAMES[(row * 7) % 20] for row in range(ROWS)])
    columns["scale"] = columns["scale"].astype(">f4")
    columns["note"] = np.array([b"plain", b'n\xff, "q"'] * (ROWS // 2))
    columns["pair"] = np.array([["a", "\ud800b"]] * ROWS)
    np.savez(folder / "labels.npz", **columns)
    for k, name in enumerate(NAMES):
        if k != NO_PICTURE:
            path = folder / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny_jpeg(k))
    return convert_labels(folder, "labels.npz", TRIVIAL, image_root="pictures")


@pytest.fixture(scope="module")
def dataset(folder):
    return open_dataset(folder)


@pytest.fixture(scope="module")
def kept() -> np.ndarray:
    return np.setdiff1d(np.arange(ROWS), BAD_ROWS)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- Parquet ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parquet") / "out"
    export_dataset(folder, out, format="parquet", per_file=25)
    return out


def test_parquet_has_every_column_as_it_is(dataset, tables, kept):
    names = sorted(path.name for path in (tables / "data").iterdir())
    assert names == [f"small-{k:05d}-of-00003.parquet" for k in range(3)]
    table = parquet.read_table(tables / "data")
    assert tuple(table.column_names) == dataset.fields
    for name in dataset.fields:
        column = table[name].combine_chunks()
        expected = dataset[name][kept]
        if name == "pair":
            assert column.to_pylist()[0] == ["a", "\\ud800b"]
        elif expected.dtype.kind in "SU":
            assert column.to_pylist() == expected.tolist(), name
        else:
            while hasattr(column, "flatten") and column.type.num_fields:
                column = column.flatten()
            found = column.to_numpy(zero_copy_only=False)
            assert found.dtype == expected.dtype.newbyteorder("="), name
            assert found.tobytes() == expected.astype(found.dtype).tobytes(), name


def test_parquet_carries_the_card_and_what_a_column_means(folder, dataset, tables):
    schema = parquet.read_schema(tables / "data" / "small-00000-of-00003.parquet")
    assert schema.metadata[b"card"].decode() == (tables / "README.md").read_text()
    facts = json.loads(schema.metadata[b"hmr_skel"])
    assert facts["digest"] == dataset.attrs["digest"] and facts["plan"]["rows"] == ROWS
    assert schema.field("skel_trans").metadata[b"unit"] == b"m"
    card = (tables / "README.md").read_text()
    assert "data_files: data/*.parquet" in card
    assert "This copy holds 58 rows in 3 Parquet files" in card
    assert "computed 20" not in card


def test_the_record_names_every_file(dataset, tables):
    record = read_sealed(tables / "export.json")
    assert record["digest"] == dataset.attrs["digest"]
    assert record["rows"] == 58 and record["left_out"] == {"rejected:non_finite_pose": 2}
    found = {item["name"]: item["sha256"] for item in record["files"]}
    written = set(tree(tables)) - {"export.json"}
    assert set(found) == written
    assert all(file_record(tables / name).sha256 == sha for name, sha in found.items())


def test_some_columns_and_rejected_rows(folder, tmp_path, dataset):
    out = tmp_path / "out"
    options = {"columns": "status, skel_poses", "rejected": "keep"}
    exported = export_dataset(folder, out, format="parquet", **options)
    table = parquet.read_table(out / "data")
    assert table.column_names == ["status", "skel_poses"] == list(exported.columns)
    assert table["status"].to_pylist() == dataset["status"].tolist()
    assert np.isnan(table["skel_poses"].to_pylist()[3]).all()
    with pytest.raises(UsageError, match="--columns x: there are skel_poses"):
        export_dataset(folder, out, format="parquet", columns="x")


def test_types_without_a_place_are_named(tmp_path):
    columns = label_columns(4) | {"wave": np.ones(4, np.complex64), "none": np.ones((4, 0))}
    columns["gender"] = columns["skel_gender"] = np.full(4, "male")
    np.savez(tmp_path / "labels.npz", **columns)
    out = convert_labels(tmp_path, "labels.npz", TRIVIAL)
    for wanted in ("wave", "none"):
        with pytest.raises(InputError, match=f"column '{wanted}' .* has no place in Parquet"):
            export_dataset(out, tmp_path / "p", format="parquet", columns=wanted)
    assert not (tmp_path / "p").exists()


# ---- WebDataset ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tars(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tars") / "out"
    export_dataset(folder, out, format="webdataset", per_file=8)
    return out


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Grouped as WebDataset groups: by the name up to the first dot of its last part."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                above, slash, base = member.name.rpartition("/")
                key, _, extension = base.partition(".")
                stream = archive.extractfile(member)
                assert stream is not None and member.mtime == 0
                sample = found.setdefault(above + slash + key, {})
                assert extension not in sample
                sample[extension] = stream.read()
    return found


def test_every_picture_comes_with_the_people_in_it(dataset, tars):
    found = samples(tars)
    rows = []
    for sample in found.values():
        labels = json.loads(sample["json"])
        assert sample["jpg"] == tiny_jpeg(NAMES.index(labels["image"]))
        for person in labels["people"]:
            rows.append(person["source_row"])
            assert person["imgname"] == labels["image"]
            for name in ("skel_poses", "gtkps", "scale", "status", "vertex_error_mean"):
                expected = dataset[name][person["source_row"]]
                if expected.dtype.kind == "U":
                    assert person[name] == expected
                else:
                    again = np.array(person[name], expected.dtype)
                    assert again.tobytes() == expected.tobytes(), name
            assert person["vertex_error_unlimited"] is None
            assert person["note"] in ("plain", 'n\\xff, "q"')
    expected = [
        row for row in range(ROWS)
        if row not in BAD_ROWS and (row * 7) % 20 != NO_PICTURE
    ]  # fmt: skip
    assert sorted(rows) == expected
    assert [len(samples_of) for samples_of in found.values()] == [2] * 19
    assert sorted(path.name for path in tars.glob("*.tar")) == [
        f"small-{k:06d}.tar" for k in range(3)
    ]


def test_training_reads_the_pictures_from_the_tars(folder, tars):
    apart = load_collection([Place(folder)], load_recipe("tiny").data)
    packed = load_collection([Place(folder, tars)], load_recipe("tiny").data)
    np.testing.assert_array_equal(packed.rows.image, apart.rows.image)
    assert {"b.0%2E1.jpg", "b.0.2.jpg"} <= set(packed.rows.image.tolist())
    for name in set(packed.rows.image.tolist()):
        assert packed.images[0].read(name) == apart.images[0].read(name)


def test_what_is_left_out_is_counted(folder, tmp_path):
    exported = export_dataset(folder, tmp_path / "out", format="webdataset", rejected="keep")
    assert exported.left_out == {"without a picture": 3}
    assert exported.rows == ROWS - 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no row to export has a picture in .*empty; give --im"):
        export_dataset(folder, tmp_path / "no", format="webdataset", images=tmp_path / "empty")


@pytest.mark.parametrize("format", ["parquet", "webdataset", "csv"])
def test_the_same_data_give_the_same_bytes(folder, tmp_path, format):
    options = {"images": folder.parent / "pictures"} if format == "webdataset" else {}
    again = convert_labels(
        folder.parent, "labels.npz", TRIVIAL, f"again-{format}", image_root="pictures"
    )
    export_dataset(folder, tmp_path / "one", format=format, **options)
    export_dataset(again, tmp_path / "two", format=format, **options)
    if format == "csv":
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    else:
        assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_an_export_replaces_an_export_and_nothing_else(folder, tars, tmp_path):
    out = tmp_path / "out"
    export_dataset(folder, out, format="webdataset")
    export_dataset(folder, out, format="parquet")
    assert not list(out.glob("*.tar"))
    before = tree(folder)
    with pytest.raises(OutputError, match="is no export"):
        export_dataset(folder, folder, format="parquet")
    with pytest.raises(UsageError, match="is read here and is not written over"):
        export_dataset(folder, tars, format="webdataset", images=tars)
    with pytest.raises(OutputError, match="is no export"):
        export_dataset(folder, folder.parent / "pictures", format="parquet")
    assert tree(folder) == before


def test_an_export_that_fails_leaves_the_older_one(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_dataset(folder, out, format="webdataset")
    before = tree(out)
    pictures = tmp_path / "pictures" / "set.1"
    pictures.mkdir(parents=True)
    (pictures / "a1.jpg").mkdir()
    with pytest.raises(InputError, match=r"a1.jpg: cannot be read"):
        export_dataset(folder, out, format="webdataset", images=tmp_path / "pictures")
    assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ---- CSV ----------------------------------------------------------------------------------------


def test_csv_has_named_angles_in_degrees(folder, dataset, tmp_path, kept, capsys):
    out = tmp_path / "out.csv"
    arguments = ["export", str(folder), "--format", "csv", "--out", str(out), "--extra", "note"]
    assert command(arguments) == 0
    assert "58" in capsys.readouterr().out
    with out.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["source_row"]) for line in lines] == kept.tolist()
    poses = dataset["skel_poses"][kept].astype(np.float64)
    for k, name in enumerate(POSE_NAMES):
        degrees = np.array([line[f"{name}_deg"] for line in lines]).astype(np.float32)
        np.testing.assert_array_equal(degrees, np.rad2deg(poses[:, k]).astype(np.float32))
    assert {line["vertex_error_unlimited_mm"] for line in lines} == {""}
    assert {line["note"] for line in lines} == {"plain", 'n\\xff, "q"'}
    assert command([*arguments[:-1], "gtkps"]) == 2
    assert "--extra gtkps: column 'gtkps' has [44, 3] values a row" in capsys.readouterr().err
    assert command([*arguments[:-2], "--columns", "status"]) == 2
    assert "--columns: format csv has no such option" in capsys.readouterr().err


# ---- .smpl --------------------------------------------------------------------------------------


def test_smpl_file_holds_one_moving_person(tmp_path):
    for name, gender in (("walk", 2), ("run", 1)):
        members = smpl_file(5) | {"gender": np.array(gender, np.int32)}
        members["bodyPose"][1:2, 3, 0] = np.nan if name == "walk" else 0
        (tmp_path / "takes").mkdir(exist_ok=True)
        write_smpl(tmp_path / "takes" / f"{name}.smpl", members)
    folder = convert_labels(tmp_path, "takes", TRIVIAL)
    out = tmp_path / "a.smpl"
    with pytest.raises(UsageError, match="2 sequences; one file holds one: --sequence run"):
        export_dataset(folder, out, format="smpl")
    assert not out.exists()
    found = export_dataset(folder, out, format="smpl", sequence="walk")
    assert found.rows == 4 and "1 frames without a fit are left out" in found.attention
    dataset = open_dataset(folder)
    rows = np.flatnonzero((dataset["sequence"] == "walk") & dataset.fitted)
    with np.load(out, allow_pickle=False) as file:
        assert (file["smplVersion"], file["gender"], file["frameCount"]) == (5, 2, 4)
        assert file["frameRate"] == 30 and file["frameRate"].dtype == np.float32
        assert np.array_equal(file["bodyPose"], dataset["skel_poses"][rows])
        assert np.array_equal(file["bodyTranslation"], dataset["skel_trans"][rows])
        assert np.array_equal(file["shapeParameters"], dataset["skel_betas"][rows[0]])
    data = out.read_bytes()
    export_dataset(folder, out, format="smpl", sequence="walk")
    assert out.read_bytes() == data
    with pytest.raises(UsageError, match="--rejected keep"):
        export_dataset(folder, out, format="smpl", rejected="keep")
