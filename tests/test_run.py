"""Conversion, reading back, verification, refusals: through the public interfaces, real files."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import open_dataset, readers
from pipeline import run as run_module
from pipeline.attempts import Attempts, Search
from pipeline.errors import Incomplete, InputError, PlanMismatch, UsageError
from pipeline.fitters import registered_fitter
from pipeline.plan import ModelRecord
from pipeline.provenance import code_files, sha256_bytes
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.run import convert, preview
from pipeline.rundir import RunDirectory
from pipeline.task import Job, ShardWorker, SourceLocation
from pipeline.verify import spread, verify
from tests.faults.harness import (
    Bench,
    forge_shard,
    label_columns,
    make_bench,
    shard_digests,
    summary,
    tree,
    write_manifest,
    write_source,
)

ROWS, SHARD = 60, 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A finished conversion; tests copy it before they touch it."""
    bench = make_bench(tmp_path_factory.mktemp("finished"), ROWS, SHARD)
    result = bench.convert()
    assert result.ok and result.summary.complete
    return bench


@pytest.fixture
def bench(finished: Bench, tmp_path: Path) -> Bench:
    """A private copy of the finished conversion."""
    shutil.copytree(finished.root, tmp_path / "copy")
    copy = Bench(tmp_path / "copy")
    assert copy.convert().converted == 0  # notes where the inputs are now
    return copy


def test_rows_in_are_rows_out_and_originals_are_untouched(finished: Bench) -> None:
    dataset = open_dataset(finished.out)
    originals = label_columns(ROWS)
    assert len(dataset) == ROWS
    assert np.array_equal(dataset["source_row"], np.arange(ROWS))
    originals["pose_cam"][[3, 17], 5] = np.nan
    for name, values in originals.items():
        stored = "source_status" if name == "status" else name
        assert dataset[stored].dtype == values.dtype
        assert dataset[stored].tobytes() == values.tobytes(), name
    rejected = np.isin(np.arange(ROWS), [3, 17])
    assert (dataset["status"][rejected] == "rejected:non_finite_pose").all()
    assert (dataset["status"][~rejected] == "converged").all()
    assert np.isnan(dataset["skel_poses"][rejected]).all()
    assert np.isfinite(dataset["skel_poses"][~rejected]).all()
    expected = (originals["pose_cam"][:, :46] * 0.5).astype(np.float32)
    assert np.array_equal(dataset["skel_poses"][~rejected], expected[~rejected])
    found = summary(finished.out)
    assert found["rejected"] == {"non_finite_pose": 2}
    assert found["rows"] == found["rows_written"] == ROWS


def test_dataset_reads_ranges_chunks_and_survives_pickling(finished: Bench) -> None:
    dataset = open_dataset(finished.out, checksums=True)
    whole = dataset["gtkps"]
    for start, stop in ((0, ROWS), (0, 0), (5, 21), (8, 16), (59, 60)):
        assert np.array_equal(dataset.read("gtkps", start, stop), whole[start:stop])
    parts = [part["gtkps"] for part in dataset.chunks(["gtkps"])]
    assert np.array_equal(np.concatenate(parts), whole)
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again["imgname"], dataset["imgname"])
    assert again.attrs["digest"] == summary(finished.out)["digest"]
    with pytest.raises(KeyError, match="no column 'nothing'"):
        dataset["nothing"]
    with pytest.raises(ValueError, match="read-only"):
        whole[0] = 0


def test_one_row(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "one", 1, bad_rows=())
    result = bench.convert()
    assert result.ok and result.summary.complete and result.summary.rows == 1
    assert open_dataset(bench.out)["skel_poses"].shape == (1, 46)
    found = verify(bench.out)
    assert found.ok and len(found.compared) == 1


class EmptySource(AnnotationSource):
    """A source of zero rows, whatever the file holds."""

    def __init__(self, source: AnnotationSource) -> None:
        self.format, self.path, self.files = source.format, source.path, source.files
        self.fields, self.rows = source.fields, 0

    def read(self, start: int, stop: int) -> AnnotationRows:
        raise AssertionError("there is nothing to read")

    def check(self) -> None:
        pass


def test_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tmp_path / "none", 1, bad_rows=())
    monkeypatch.setattr(
        readers,
        "open_source",
        lambda *a, _open=readers.open_source, **k: EmptySource(_open(*a, **k)),
    )
    result = bench.convert()
    assert result.ok and result.summary.complete and result.summary.rows == 0
    dataset = open_dataset(bench.out)
    assert len(dataset) == 0
    assert dataset["skel_poses"].shape == (0, 46) and dataset["gtkps"].shape == (0, 44, 3)
    assert dataset["imgname"].dtype == np.dtype("<U24")
    assert verify(bench.out).ok


def test_bytes_do_not_depend_on_workers_or_order(finished: Bench, tmp_path: Path) -> None:
    two = tmp_path / "two"
    finished.convert(directory=two, workers=2)
    pieces = tmp_path / "pieces"
    for chosen in ((range(5, 6),), (range(7, 8), range(1)), (range(1, 4),)):
        result = finished.convert(directory=pieces, shards=chosen)
        assert result.ok and not result.summary.complete
        assert summary(pieces)["digest"] is None
    finished.convert(directory=pieces)
    reference = shard_digests(finished.out)
    assert shard_digests(two) == reference
    assert shard_digests(pieces) == reference
    assert (two / "summary.json").read_bytes() == (finished.out / "summary.json").read_bytes()
    assert (pieces / "summary.json").read_bytes() == (finished.out / "summary.json").read_bytes()


def test_limit_converts_whole_shards_and_is_not_complete(finished: Bench, tmp_path: Path) -> None:
    result = finished.convert(directory=tmp_path / "limited", limit=9)
    assert result.ok and result.rows_converted == 16
    assert not result.summary.complete
    with pytest.raises(Incomplete, match="6 of 8 shards"):
        open_dataset(tmp_path / "limited")
    part = open_dataset(tmp_path / "limited", allow_incomplete=True)
    assert np.array_equal(part["source_row"], np.arange(16))


def test_a_finished_run_touches_nothing(bench: Bench) -> None:
    before = tree(bench.out)
    result = bench.convert()
    assert result.ok and result.converted == 0 and result.skipped == 8
    assert tree(bench.out) == before


def test_compression_changes_the_plan_but_not_the_data(finished: Bench, tmp_path: Path) -> None:
    plain = make_bench(tmp_path / "plain", ROWS, SHARD, compression="none")
    plain.convert()
    left, right = open_dataset(finished.out), open_dataset(plain.out)
    assert left.fields == right.fields
    for name in left.fields:
        assert left[name].tobytes() == right[name].tobytes()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_is_found_and_only_it_is_redone(bench: Bench) -> None:
    """Promise P5."""
    reference = shard_digests(bench.out)
    shards = sorted((bench.out / "shards").iterdir())
    receipts = sorted((bench.out / "receipts").iterdir())
    flip(shards[0])
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].write_bytes(b"")
    shards[3].unlink()
    swap, other = shards[4].read_bytes(), shards[5].read_bytes()
    shards[4].write_bytes(other)
    shards[5].write_bytes(swap)
    receipts[6].write_bytes(receipts[7].read_bytes())
    found = verify(bench.out)
    assert not found.ok
    named = {int(text.split(":")[0].removeprefix("shard ")) for text in found.problems
             if text.startswith("shard")}  # fmt: skip
    assert named == {0, 1, 2, 3, 4, 5, 6}
    intact = {path: path.stat().st_mtime_ns for path in (shards[7], receipts[7])}
    result = bench.convert()
    assert result.converted == 7 and result.ok
    assert shard_digests(bench.out) == reference
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in intact.items())
    assert verify(bench.out).ok


def test_whole_shards_of_other_places_are_not_taken(bench: Bench, tmp_path: Path) -> None:
    """Promise P5: file and receipt agree, but belong to another shard or to another plan."""
    reference = shard_digests(bench.out)
    other = make_bench(tmp_path / "other", ROWS, SHARD, bad_rows=())
    other.convert()
    for folder, ending in (("shards", "h5"), ("receipts", "json")):
        here, there = bench.out / folder, other.out / folder
        shutil.copy(here / f"shard-00005.{ending}", here / f"shard-00004.{ending}")
        shutil.copy(there / f"shard-00001.{ending}", here / f"shard-00001.{ending}")
    named = {text.split(":")[0] for text in verify(bench.out).problems if "shard " in text}
    assert named == {"shard 1", "shard 4"}
    assert bench.convert().converted == 2
    assert shard_digests(bench.out) == reference


def test_a_changed_input_is_never_mixed_in(bench: Bench) -> None:
    """Promise P6, source and manifest; tests/test_shards.py has every plan field."""
    before = tree(bench.out)
    write_manifest(bench.manifest, SHARD, fit={"limits": "none"})
    with pytest.raises(PlanMismatch, match=r"fit\.limits") as caught:
        bench.convert()
    assert caught.value.fields == ("fit.limits",)
    write_manifest(bench.manifest, SHARD)
    write_source(bench.labels, ROWS, seed=1)
    with pytest.raises(PlanMismatch, match="source_files"):
        bench.convert()
    with pytest.raises(InputError, match="is not the label file"):
        verify(bench.out)
    assert tree(bench.out) == before


def test_a_source_that_changes_during_the_run_is_noticed(finished: Bench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "changing", ROWS, SHARD)
    seen = []

    def report(event: str, data: dict) -> None:
        seen.append(event)
        if event == "shard_done" and data["shard"] == 2:
            write_source(bench.labels, ROWS, seed=1)

    with pytest.raises(InputError, match="changed while it was being converted"):
        convert(bench.request(), report)
    assert "shard_failed" not in seen  # no fault of any shard
    assert not list((bench.out / "attempts").iterdir())


def test_a_plan_that_came_just_before_the_lock_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise P6: another run with another plan was quicker, after this one had looked."""
    bench = make_bench(tmp_path / "race", 16, SHARD)
    slower = bench.request()
    write_manifest(bench.manifest, SHARD, compression="none")
    reference: dict[str, str] = {}
    make_directory = run_module.make_directory

    def overtaken(path: Path) -> None:
        if not reference:
            reference["begun"] = ""
            assert bench.convert().ok
            reference.update(shard_digests(bench.out))
        make_directory(path)

    monkeypatch.setattr(run_module, "make_directory", overtaken)
    with pytest.raises(PlanMismatch, match="compression"):
        convert(slower, lambda event, data: None)
    assert reference.pop("begun") == "" and shard_digests(bench.out) == reference
    assert verify(bench.out).ok


def test_a_worker_with_other_software_or_models_does_not_work(
    finished: Bench, tmp_path: Path
) -> None:
    """Promise P6 on a node of a cluster: the plan's versions, the plan's model files, or nothing.

    A plan of other versions and files stands for the node that has these.
    """
    plan = RunDirectory(finished.out).plan()
    job = Job(
        plan=plan,
        directory=tmp_path,
        source=SourceLocation(finished.labels, finished.data, ()),
        models=tmp_path,
        fitter=registered_fitter(plan.fitter),
        modules=tuple(code_files("shard")),
    )
    ShardWorker(job, lambda beat: None)
    software = plan.software | {"numpy": "1.0"}
    with pytest.raises(InputError, match=r"instead of 1\.0; install the same versions"):
        ShardWorker(replace(job, plan=replace(plan, software=software)), lambda beat: None)
    model = ModelRecord("smpl", "male", "SMPL_MALE.pkl", 4, sha256_bytes(b"SMPL"), False)
    (tmp_path / model.name).write_bytes(b"SMPl")
    with pytest.raises(InputError, match="not the file of the plan"):
        ShardWorker(replace(job, plan=replace(plan, models=(model,))), lambda beat: None)


def test_dying_between_receipt_and_bookkeeping_leaves_no_record(bench: Bench) -> None:
    run = RunDirectory(bench.out)
    run.write_attempts(Attempts(2, running="here"), run.plan())
    assert bench.convert().converted == 0
    assert run.unfinished() == {}


def test_a_row_that_fails_once_is_not_left_out() -> None:
    """Promise P14: what happens once may be anything; a row alone has to end badly twice."""
    search = Search(0, 4)
    while search.part != (0, 1):
        search.ended_badly("hit")
    search.ended_badly("hit")
    assert search.part == (0, 1), "tried again"
    search.survived()
    for _ in range(2):
        search.ended_badly("hit")
    while search.part is not None:
        search.survived()
    assert search.found == {1: "hit"}


def test_a_finished_row_does_not_depend_on_bad_neighbours(finished: Bench, tmp_path: Path) -> None:
    """Promise P10: rejected rows change nothing about the others."""
    clean = make_bench(tmp_path / "clean", ROWS, SHARD, bad_rows=())
    clean.convert()
    dirty, good = open_dataset(finished.out), open_dataset(clean.out)
    kept = dirty["status"] == "converged"
    assert kept.sum() == ROWS - 2
    for name in ("skel_poses", "skel_betas", "skel_trans", "vertex_error_mean"):
        assert np.array_equal(dirty[name][kept], good[name][kept])


def test_a_missing_receipt_is_not_success(bench: Bench) -> None:
    """Promise P24."""
    (bench.out / "receipts" / "shard-00002.json").unlink()
    with pytest.raises(Incomplete):
        open_dataset(bench.out)
    assert "shard 2: not converted" in verify(bench.out).problems
    result = bench.convert(shards=(range(1),))
    assert not result.summary.complete and summary(bench.out)["missing"] == [2]


def test_verify_recomputes_residuals_and_compares_originals(bench: Bench) -> None:
    """A wrong number is found even when every checksum was made to match."""

    def change(file: h5py.File) -> None:
        file["vertex_error_mean"][:] += 0.001
        file["cam_int"][1, 0, 0] += 1

    forge_shard(bench.out, 3, change)
    bench.convert()  # writes the summary that these receipts add up to
    problems = verify(bench.out).problems
    assert any("shard 3" in text and "residual" in text for text in problems)
    assert any("shard 3" in text and "'cam_int' differs" in text for text in problems)


def test_sample_is_spread_over_every_shard() -> None:
    assert spread([8, 8, 8], 256) == [8, 8, 8]
    assert spread([1000, 1000, 2], 256) == [127, 127, 2]
    assert sum(spread([100] * 1000, 256)) >= 256 and min(spread([100] * 1000, 256)) == 1
    assert spread([], 256) == []


def test_preview_counts_equal_the_run_and_write_nothing(bench: Bench) -> None:
    """Promise P20."""
    (bench.out / "shards" / "shard-00001.h5").unlink()
    before = tree(bench.root)
    found = preview(bench.request())
    assert found.todo == (1,) and len(found.done) == 7 and len(found.damaged) == 1
    assert tree(bench.root) == before
    assert bench.convert().converted == len(found.todo)


def test_a_preview_of_nothing_makes_no_folder(finished: Bench, tmp_path: Path) -> None:
    found = preview(finished.request(directory=tmp_path / "new"))
    assert len(found.todo) == 8 and not (tmp_path / "new").exists()


def test_a_folder_with_other_files_is_refused(finished: Bench, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"precious\.txt"):
        finished.convert(directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_missing_source_names_path_and_spellings(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "missing")
    write_manifest(bench.manifest, source={"path": "a-release.npz", "spellings": ["b.npz"]})
    with pytest.raises(InputError, match=r"a-release\.npz.*b\.npz.*--data-root"):
        bench.convert()
    assert not bench.out.exists()


def test_a_source_link_out_of_the_data_root_is_refused(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "link")
    shutil.move(bench.labels, tmp_path / "outside.npz")
    bench.labels.symlink_to(tmp_path / "outside.npz")
    with pytest.raises(InputError, match="leads out of the data root"):
        bench.convert()


def test_missing_licensed_models_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.fitters import DEFAULT_FITTER

    bench = make_bench(tmp_path / "models")
    monkeypatch.delenv("HMR_SKEL_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in (None, tmp_path / "empty"):
        with pytest.raises(InputError) as caught:
            bench.convert(fitter=DEFAULT_FITTER, models=folder)
        for part in ("skel_male.pkl", "SMPL_NEUTRAL.pkl", "--models", "hmr-skel convert demo"):
            assert part in str(caught.value)
        assert not bench.out.exists()
