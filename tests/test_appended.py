"""Columns that are appended to a converted dataset: refits and audits beside the shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from pipeline import open_dataset
from pipeline.appended import AppendedColumn
from pipeline.appending import append_columns, append_conversion
from pipeline.columns import Meaning
from pipeline.errors import InputError, OutputError, UsageError
from pipeline.output_files import read_sealed, sealed_json
from pipeline.provenance import sha256_bytes
from pipeline.verify import verify
from stages.cli import run as command
from stages.export_formats import export_dataset
from stages.inspection.card import card_text
from tests.demo_rows import convert_labels, fitted_demo
from tests.faults.fitters import TRIVIAL
from tests.faults.harness import label_columns, tree

ROWS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """`out`, `refit` (of the same labels, otherwise cut) and `other` (of other labels)."""
    folder = tmp_path_factory.mktemp("appended")
    for seed, name in ((0, "labels.npz"), (1, "others.npz")):
        columns = label_columns(ROWS, seed)
        columns["gender"] = columns["skel_gender"] = np.full(ROWS, "male")
        columns["pose_cam"][7, 5] = np.nan
        np.savez(folder / name, **columns)
    convert_labels(folder, "labels.npz", TRIVIAL, shard_rows=16)
    convert_labels(folder, "labels.npz", TRIVIAL, "refit", shard_rows=7, fit={"limits": "none"})
    convert_labels(folder, "others.npz", TRIVIAL, "other", shard_rows=16)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A private copy."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def originals(directory: Path) -> dict[str, object]:
    return {name: data for name, data in tree(directory).items()
            if name not in (".lock", "run.json") and "appended" not in str(name)}  # fmt: skip


def test_a_refit_becomes_columns_and_the_shards_stay(folder, capsys):
    out = folder / "out"
    before, digest = originals(out), open_dataset(out).attrs["digest"]
    assert command(["append", str(out), "--from", str(folder / "refit"), "--name", "free"]) == 0
    assert "free.skel_poses" in capsys.readouterr().out
    dataset, refit = open_dataset(out), open_dataset(folder / "refit")
    assert dataset.attrs["digest"] == digest and originals(out) == before
    for name in ("skel_poses", "vertex_error_mean", "status", "active_limits", "start"):
        assert dataset[f"free.{name}"].dtype == refit[name].dtype
        assert dataset[f"free.{name}"].tobytes() == refit[name].tobytes(), name
        picked = dataset[[30, 3, 3]]
        np.testing.assert_array_equal(picked[f"free.{name}"], refit[name][[30, 3, 3]])
    assert dataset[3]["free.status"] == "converged"
    row = dataset.read_shard(1, ("free.status", "status"), slice(2, 4))
    assert list(row) == ["free.status", "status"] and len(row["status"]) == 2
    assert "appended: free (skel_poses, " in repr(dataset)
    (append,) = dataset.appended
    assert append.provenance["plan_id"] == refit.attrs["plan_id"]
    assert append.provenance["differs_in"] == ["fit.limits", "shard_rows"]
    assert verify(out, data_root=folder).ok


def test_everybody_sees_appended_columns(folder):
    out = folder / "out"
    append_conversion(out, folder / "refit", "free")
    export_dataset(out, folder / "p", format="parquet", columns="free.skel_trans,imgname")
    table = parquet.read_table(folder / "p" / "data")
    assert table.column_names == ["free.skel_trans", "imgname"]
    assert table.schema.field("free.skel_trans").metadata[b"unit"] == b"m"
    record = read_sealed(folder / "p" / "export.json")
    assert record["appended"] == {"free": open_dataset(out).appended[0].digest}
    export_dataset(out, folder / "t.csv", format="csv", extra="free.status")
    assert (folder / "t.csv").read_text().splitlines()[0].endswith(",free.status")
    card = card_text(open_dataset(out))
    assert "Columns `free.*` were appended by hmr-skel append" in card
    assert "`free.skel_poses` | (n, 46) | float32 | SKEL joint angles" in card
    assert command(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert 'id="appended-free"' in page and "differs in fit.limits, shard_rows" in page


def test_the_same_columns_are_the_same_bytes(folder):
    append_conversion(folder / "out", folder / "refit", "free")
    first = {name: data[1:] for name, data in tree(folder / "out" / "appended").items()}
    shutil.rmtree(folder / "out" / "appended")
    append_conversion(folder / "out", folder / "refit", "free")
    again = {name: data[1:] for name, data in tree(folder / "out" / "appended").items()}
    assert again == first  # all but the time of writing


def test_columns_of_other_shards_are_refused(folder):
    append_conversion(folder / "out", folder / "refit", "free")
    shutil.copytree(folder / "out" / "appended", folder / "other" / "appended")
    with pytest.raises(InputError, match="free: these columns belong to other shards"):
        open_dataset(folder / "other")
    assert "these columns belong to other shards" in "; ".join(
        verify(folder / "other", data_root=folder).problems
    )


def test_what_cannot_be_appended_is_one_line(folder, capsys):
    out, refit = folder / "out", folder / "refit"

    def said(*arguments: str) -> str:
        assert command(["append", str(out), *arguments]) != 0
        return capsys.readouterr().err

    assert "converts other labels (others.npz, 40 rows)" in said(
        "--from", str(folder / "other"), "--name", "x"
    )
    assert "is the same conversion" in said("--from", str(out), "--name", "x")
    assert "expected letters, digits" in said("--from", str(refit), "--name", "../x")
    append_conversion(out, refit, "free")
    assert "is there already" in said("--from", str(refit), "--name", "free")
    assert command(["audit", str(out / "plan.json"), "--append", "x"]) == 2
    assert "is no converted dataset" in capsys.readouterr().err
    with pytest.raises(UsageError, match="belongs to a converted dataset"):
        export_dataset(out, out / "appended" / "free" / "append.json", format="csv")


def test_an_append_that_fails_leaves_nothing(folder):
    dataset = open_dataset(folder / "out")
    column = AppendedColumn("x", "<f4", (), Meaning("x"))

    def values():
        yield {"x": np.zeros(16, "f4")}
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        append_columns(dataset, "x", (column,), values(), {})
    assert list((folder / "out" / "appended").iterdir()) == []


def with_digest(record: dict) -> dict:
    """A forged record whose digest is right."""
    lines = [record["name"], record["plan_id"]]
    lines += [f"{shard['of']} {shard['sha256']}" for shard in record["shards"]]
    digest = sha256_bytes("".join(f"{line}\n" for line in lines).encode())
    return record | {"digest": digest}


@pytest.mark.parametrize("change", ["plan", "shard", "rows", "name"])
def test_a_record_is_held_to_plan_shards_and_folder(folder, change):
    append_conversion(folder / "out", folder / "refit", "free")
    path = folder / "out" / "appended" / "free" / "append.json"
    record = read_sealed(path)
    if change == "plan":
        record["plan_id"] = "0" * 64
    elif change == "name":
        record["name"] = "other"
    elif change == "shard":
        record["shards"][1]["of"] = "0" * 64
    else:
        record["shards"][1]["rows"] += 1
    path.write_bytes(sealed_json(with_digest(record)))
    said = "not a record" if change == "name" else "belong to other shards"
    with pytest.raises(InputError, match=f"appended/free.*{said}"):
        open_dataset(folder / "out")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def escape(path: Path) -> None:
    record = path.with_name("append.json")
    content = read_sealed(record)
    content["columns"][0]["name"] = "../shards/shard-00000"
    record.write_bytes(sealed_json(content))


@pytest.mark.parametrize("damage", [cut, flip, escape, Path.unlink])
def test_damage_is_found(folder, damage):
    """By every open where sizes and records tell, by `verify` and `checksums` always."""
    append_conversion(folder / "out", folder / "refit", "free")
    damage(folder / "out" / "appended" / "free" / "shard-00001.h5")
    if damage is not flip:
        with pytest.raises(InputError, match="appended/free"):
            open_dataset(folder / "out")
    with pytest.raises(InputError, match="appended/free"):
        open_dataset(folder / "out", checksums=True)
    found = verify(folder / "out", data_root=folder)
    assert not found.ok and "appended/free" in "; ".join(found.problems)


def test_an_audit_of_a_dataset_becomes_columns(tmp_path_factory, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(fitted_demo(tmp_path_factory.getbasetemp()), out)
    assert command(["audit", str(out), "--append", "audit"]) == 0
    said = capsys.readouterr().out
    assert "judged 8" in said and "audit.vertex_error_mean" in said
    dataset = open_dataset(out)
    for name in ("vertex_error_mean", "vertex_error_max"):
        assert np.abs(dataset[f"audit.{name}"] - dataset[name]).max() < 1e-6
    assert dataset["audit.root_error"].max() < 1.0  # radians
    assert (dataset["audit.angles_outside"] == 0).all()
    assert np.isfinite(dataset["audit.vertex_error_centred"]).all()
    assert command(["audit", str(out), "--stand-in"]) == 2
    assert "leave out --stand-in" in capsys.readouterr().err
