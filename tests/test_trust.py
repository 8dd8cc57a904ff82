"""A converted dataset is data, whoever wrote it; and a flipped bit is never an answer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline import open_dataset
from pipeline.atomic import pretty_json
from pipeline.errors import InputError
from pipeline.plan import Plan, read_plan
from pipeline.provenance import sha256_json
from pipeline.verify import verify
from stages.cli import run as command
from tests.faults.harness import Bench, make_bench

ROWS, SHARD = 20, 8
READERS = ("verify", "status", "report", "card")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = make_bench(tmp_path_factory.mktemp("trust"), ROWS, SHARD)
    assert bench.convert().ok
    return bench


@pytest.fixture
def bench(finished: Bench, tmp_path: Path) -> Bench:
    """A private copy of the finished conversion."""
    shutil.copytree(finished.root, tmp_path / "copy")
    copy = Bench(tmp_path / "copy")
    assert copy.convert().converted == 0  # notes where the inputs are now
    return copy


def forge_plan(bench: Bench, **changes: object) -> Plan:
    """Change a plan and make everything that it hashes agree again."""
    path = bench.out / "plan.json"
    content = json.loads(path.read_text())
    content["plan"] |= changes
    content["plan_id"] = sha256_json(content["plan"])
    path.write_bytes(pretty_json(content))
    return read_plan(path)


def test_no_verb_imports_or_calls_what_a_file_names(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A plan that names code, its hash right: nothing is imported, the refusal is a line."""
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    plan = forge_plan(bench, fitter="payload:Fit")
    for path in (bench.out / "receipts").iterdir():
        path.write_bytes(pretty_json(json.loads(path.read_text()) | {"plan_id": plan.plan_id}))
    for verb in READERS:
        assert command([verb, str(bench.out)]) in (0, 3, 5)
    open_dataset(bench.out, allow_incomplete=True)
    capsys.readouterr()
    assert "payload" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "20"},
        {"shard_rows": 0},
        {"rows": -1},
        {"source_files": [{"name": "../../etc/passwd", "size": 1, "sha256": "0"}]},
        {"models": [{"kind": "smpl", "gender": "male", "name": "/etc/passwd", "size": 1,
                     "sha256": "0", "standin": False}]},
        {"image_root": "../.."},
        {"fields": [{"stored": "a/b", "source": "a", "dtype": "<f4", "shape": []}]},
        {"fields": [{"stored": "a", "source": "a", "dtype": "O", "shape": []}]},
        {"fields": [{"stored": "a", "source": "a", "dtype": "nonsense", "shape": []}]},
        {"fields": "abc"},
        {"schema_version": [2]},
        {"fit": 3},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_a_forged_plan_is_one_line(
    bench: Bench, change: dict, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(InputError):
        forge_plan(bench, **change)
    for verb in READERS:
        assert command([verb, str(bench.out)]) == 5
        assert capsys.readouterr().err.count("\n") == 1


def test_data_of_an_unknown_fitter_is_not_verified_by_guessing(bench: Bench) -> None:
    from pipeline.fitters import registered_fitter

    with pytest.raises(InputError, match=r"fitter 'os:getcwd' is not known"):
        registered_fitter("os:getcwd")
    assert verify(bench.out).ok
