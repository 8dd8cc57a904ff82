"""A converted dataset is data, whoever wrote it; and a flipped bit is never an answer."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.columns import RESULT_COLUMNS
from pipeline.concessions import Concessions
from pipeline.errors import Incomplete, InputError, PlanMismatch
from pipeline.output_files import pretty_json, read_sealed, sealed_json
from pipeline.plan import Plan, read_plan
from pipeline.provenance import sha256_bytes, sha256_json
from pipeline.receipts import Receipt, read_receipt, receipt_path, shard_path
from pipeline.rundir import RunDirectory
from pipeline.shards import root_attributes
from pipeline.summary import summarise
from pipeline.verify import verify
from stages.cli import run as command
from tests.faults.harness import Bench, forge, forge_shard, make_bench, shard_digests

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


def forge_plan(bench: Bench, without: tuple[str, ...] = (), **changes: object) -> Plan:
    """Change a plan and make everything that it hashes agree again."""
    path = bench.out / "plan.json"
    content = json.loads(path.read_text())
    content["plan"] |= changes
    for name in without:
        del content["plan"][name]
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
        forge(path, plan_id=plan.plan_id)
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


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def values(directory: Path) -> dict[str, bytes]:
    dataset = open_dataset(directory)
    return {name: dataset[name].tobytes() for name in dataset.fields}


def test_a_flipped_bit_anywhere_in_a_shard_is_refused(bench: Bench) -> None:
    """HDF5's structures and data, the seal: every 211th byte, default open; nothing gets through.

    tests/faults/flips.py does the same at more places.
    """
    path = shard_path(bench.out, 1)
    whole = path.read_bytes()
    for place in range(0, len(whole), 211):
        flipped(path, place * 8 + place % 8)
        with pytest.raises(InputError, match=r"shard-00001\.h5"):
            values(bench.out)
        path.write_bytes(whole)
    values(bench.out)


def test_a_shard_without_its_seal_is_refused(bench: Bench) -> None:
    """What stock h5py still opens, cut at the end of its HDF5 part and as long as its receipt."""
    path = shard_path(bench.out, 1)
    data = path.read_bytes()
    with h5py.File(path, "r") as file:
        assert file["status"].shape == (SHARD,)  # the seal is no hindrance to others
    path.write_bytes(data[:-16] + bytes(16))
    with pytest.raises(InputError, match="its seal does not match"):
        values(bench.out)


def test_every_flip_of_a_receipt_is_harmless_and_heals(bench: Bench) -> None:
    """No traceback, no other summary, no state that stays: each damaged receipt is made anew."""
    path = receipt_path(bench.out, 2)
    whole, digests = path.read_bytes(), shard_digests(bench.out)
    reference = RunDirectory(bench.out).summary_path.read_bytes()
    plan = RunDirectory(bench.out).plan()
    harmless = 0
    for bit in range(0, 8 * len(whole), 3):
        flipped(path, bit)
        state = RunDirectory(bench.out).inspect(plan, 2, checksums=False)
        if state.state == "done":  # white space: the content is the same
            assert state.receipt == read_receipt_of(whole, path, plan)
            harmless += 1
        else:
            assert state.state == "damaged"
        path.write_bytes(whole)
    assert harmless < len(whole)
    flipped(path, 8 * whole.index(b"rows") + 1)
    with pytest.raises(Incomplete, match=r"receipt shard-00002\.json is damaged"):
        open_dataset(bench.out)
    assert command(["status", str(bench.out)]) == 0
    assert bench.convert().converted == 1
    assert RunDirectory(bench.out).summary_path.read_bytes() == reference
    assert shard_digests(bench.out) == digests and verify(bench.out).ok


def read_receipt_of(data: bytes, path: Path, plan: Plan) -> Receipt:
    path.write_bytes(data)
    return read_receipt(path, plan)


def test_counts_and_errors_are_those_of_the_shards(
    bench: Bench, capsys: pytest.CaptureFixture
) -> None:
    """A receipt with another count and its digest right is damage; percentiles are exact."""
    errors = open_dataset(bench.out)["vertex_error_mean"].astype(np.float64)
    errors = errors[np.isfinite(errors)]
    assert command(["status", str(bench.out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["vertex_error_mean"]
    assert found["median"] == np.median(errors) and found["max"] == errors.max()
    assert found["p95"] == np.quantile(errors, 0.95)
    forge(receipt_path(bench.out, 1), rows=7, status={"converged": 7})
    with pytest.raises(Incomplete, match="does not account for its rows"):
        open_dataset(bench.out)
    forge(receipt_path(bench.out, 1), rows=8, status={"converged": 7, "rejected:no_box": 1})
    assert command(["status", str(bench.out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["shard"] for item in found["damaged"]] == [1] and not found["complete"]
    assert any("shard 1" in text for text in verify(bench.out).problems)


@pytest.mark.parametrize("name", ["summary.json", "run.json"])
def test_damaged_side_files_are_told_and_made_anew(bench: Bench, name: str) -> None:
    path = bench.out / name
    whole = path.read_bytes()
    for damage in (b"", b"[]", b'{"source": [1]}', whole.replace(b"test", b"tesu"), b"\xff\xfe{"):
        path.write_bytes(damage)
        values(bench.out)
        found = verify(bench.out, data_root=bench.data)
        assert found.ok == (name == "run.json")
        assert bench.convert().converted == 0
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"failures": 3}', b"\x00\xff", b"null"])
def test_damaged_attempts_do_not_stop_a_run(bench: Bench, content: bytes) -> None:
    shard_path(bench.out, 1).unlink()
    path = bench.out / "attempts" / "shard-00001.json"
    path.write_bytes(content)
    assert command(["status", str(bench.out)]) == 0
    assert bench.convert().converted == 1
    assert not path.exists()


def replaced(name: str, make: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    """Replaces a column by something else of that name."""

    def change(file: h5py.File) -> None:
        kept = dict(file[name].attrs)
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        made = make(file, shape, dtype)  # type: ignore[call-arg]
        if isinstance(made, h5py.Dataset):
            made.attrs.update(kept)
        elif made is not None:
            file[name] = made

    return change


def external(file: h5py.File, shape: tuple, dtype: np.dtype) -> h5py.Dataset:
    size = int(np.prod(shape)) * dtype.itemsize
    return file.create_dataset("scale", shape, dtype, external=[("/etc/passwd", 0, size)])


def virtual(file: h5py.File, shape: tuple, dtype: np.dtype) -> h5py.Dataset:
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape)
    return file.create_virtual_dataset("scale", layout)


def reference(file: h5py.File, shape: tuple, dtype: np.dtype) -> h5py.Dataset:
    return file.create_dataset("scale", data=np.array([file.ref] * shape[0], h5py.ref_dtype))


def committed(file: h5py.File, shape: tuple, dtype: np.dtype) -> h5py.Dataset:
    file["kept"] = dtype
    return file.create_dataset("scale", shape, file["kept"], chunks=(1,), fletcher32=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *_: h5py.ExternalLink("/tmp/other.h5", "/x"), "is a link to elsewhere"),
        (lambda *_: h5py.SoftLink("/center"), "is a link to elsewhere"),
        (external, "keeps its values in another file"),
        (virtual, "is a view of other files"),
        (reference, "neither numbers nor texts"),
        (committed, "neither numbers nor texts"),
        (lambda f, s, d: f.create_dataset("scale", s, d), "has no checksums"),
        (lambda f, s, d: f.create_dataset("scale", s, d, chunks=s, compression="lzf",
                                          fletcher32=True), "needs a filter"),
        (lambda f, s, d: f.create_group("scale") and None, "is not a column"),
    ],
    ids=["external-link", "soft-link", "external", "virtual", "reference", "committed",
         "contiguous", "filter", "group"],
)  # fmt: skip
def test_values_that_are_not_in_the_shard_are_refused(
    bench: Bench, make: Callable[..., object], message: str
) -> None:
    """Every digest agrees: made so on purpose."""
    forge_shard(bench.out, 1, replaced("scale", make))
    with pytest.raises(InputError, match=message):
        open_dataset(bench.out)["scale"]
    assert any(text.startswith("shard 1: ") for text in verify(bench.out).problems)


def test_data_of_schema_version_1_open_and_are_checked_whole(bench: Bench) -> None:
    """No seal, no digests in receipts: any flip is found when the dataset is opened."""
    old = as_schema_1(bench)
    new = values(bench.out)
    for name in SINCE_1:
        del new[name]
    assert values(old) == new
    found = verify(old, data_root=bench.data)
    assert found.ok, found.problems
    path = shard_path(old, 1)
    whole = path.read_bytes()
    for place in range(0, len(whole), 997):
        flipped(path, place * 8)
        with pytest.raises(Incomplete, match="shard 1"):
            open_dataset(old)
        path.write_bytes(whole)


SINCE_1 = ("vertex_error_alone", "skel_poses_sd", "skel_poses_observed")
"""Columns that the first version had not."""


def as_schema_1(bench: Bench) -> Path:
    """The dataset as the version before wrote it."""
    old = Bench(bench.root.parent / "old")
    shutil.copytree(bench.root, old.root)
    plan = forge_plan(old, ("calibration",), schema_version=1)
    for shard in range(plan.shards):
        path = shard_path(old.out, shard)
        with h5py.File(path, "r+") as file:  # which also cuts what lies behind the HDF5 part
            for name, value in root_attributes(plan, shard).items():
                file.attrs[name] = value
            for name in SINCE_1:
                del file[name]
        data = path.read_bytes()
        receipt = read_sealed(receipt_path(old.out, shard)) | {
            "plan_id": plan.plan_id, "bytes": len(data), "sha256": sha256_bytes(data),
            "error_histogram": {"50": 3}, "error_max": 0.006,
        }  # fmt: skip
        receipt_path(old.out, shard).write_bytes(pretty_json(receipt))
    run = RunDirectory(old.out)
    summary = summarise(plan, run.inspect_all(plan, results=True)).to_json()
    summary["vertex_error_mean"] = {"median": 0.00505, "p95": 0.00655, "max": 0.007}
    run.summary_path.write_bytes(pretty_json(summary))
    return old.out


def test_full_verification_compares_every_row(
    finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One wrong value in one row, every digest right: --full names it, the default its sample."""
    bench = make_bench(tmp_path / "large", 300, 100)
    assert bench.convert().ok
    row = next(r for r in range(100, 200) if r not in verify(bench.out, sample=9).compared)
    assert verify(bench.out, full=True).ok

    def attempt(**changes: object) -> list[str]:
        before = shard_path(bench.out, 1).read_bytes(), receipt_path(bench.out, 1).read_bytes()

        def change(file: h5py.File) -> None:
            for name, value in changes.items():
                file[name][row - 100] = value

        forge_shard(bench.out, 1, change)
        bench.convert()  # a summary that says what the shards say
        assert verify(bench.out, sample=9).ok
        problems = verify(bench.out, full=True).problems
        shard_path(bench.out, 1).write_bytes(before[0])
        receipt_path(bench.out, 1).write_bytes(before[1])
        return list(problems)

    problems = attempt(vertex_error_mean=0.5, vertex_error_max=0.5, vertex_error_arms=0.5)
    for name in ("vertex_error_mean", "vertex_error_max", "vertex_error_arms"):
        assert any(f"residual, '{name}' of row {row}" in text for text in problems), name
    problems = attempt(cam_int=1.0, imgname=b"x", smpl_gender=b"male")
    for name in ("cam_int", "imgname", "smpl_gender"):
        assert any(f"'{name}' differs" in text for text in problems), name
    lies = {"skel_poses": 0.01, "active_limits": True, "vertex_error_unlimited": 0.02}
    for lie in (lies, {"iterations": 8, "start": 1}):  # compared where the rest is equal
        problems = attempt(**lie)
        for name in lie:
            told = f"'{name}' of row {row} is not what a new fit gives"
            assert any(told in text for text in problems), name
    bench.convert()
    assert command(["verify", str(bench.out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not said["full"] and len(said["compared_rows"]) == said["sampled"] + 2
    assert {"vertex_error_head", "cam_int", "status"} <= set(said["compared_columns"])
    assert command(["verify", str(bench.out), "--full"]) == 0
    shown = capsys.readouterr().out
    assert "all 300 rows" in shown and "300 rows in every column: 300 equal bit for bit" in shown


def test_a_row_cannot_be_said_to_be_rejected(bench: Bench) -> None:
    """A good row made a rejected one, or one of another reason, with every digest right."""
    whole = {path: path.read_bytes() for path in bench.out.rglob("*") if path.is_file()}

    def forged(row: int, status: bytes) -> tuple[str, ...]:
        for path, data in whole.items():
            path.write_bytes(data)

        def change(file: h5py.File) -> None:
            for name, column in RESULT_COLUMNS.items():
                if column.rejected is not None:
                    file[name][row] = column.rejected
            file["status"][row] = status

        forge_shard(bench.out, 0, change)
        with h5py.File(shard_path(bench.out, 0)) as file:
            counts = Counter(text.decode() for text in file["status"][:].tolist())
        forge(receipt_path(bench.out, 0), status=counts)
        bench.convert()
        return verify(bench.out).problems

    for row, status, told in (
        (5, b"rejected:bad_camera", "row 5 is 'rejected:bad_camera', label file and records make"),
        (3, b"rejected:bad_camera", "make it rejected:non_finite_pose"),
        (5, b"rejected:crashed", "row 5 is 'rejected:crashed', which is on no record"),
    ):
        assert any(told in text for text in forged(row, status)), status


def forge_dataset(bench: Bench, **changes: object) -> None:
    """Another plan, and shards, receipts and summary that agree with it in every digest."""
    plan = forge_plan(bench, **changes)
    run = RunDirectory(bench.out)
    for path in [*bench.out.glob("shards/*"), *bench.out.glob("receipts/*")]:
        if int(path.stem.removeprefix("shard-")) >= plan.shards:
            path.unlink()
    for shard in range(plan.shards):

        def change(file: h5py.File, shard: int = shard) -> None:
            file.attrs.update(root_attributes(plan, shard))
            for name in set(file) - set(RESULT_COLUMNS) - {item.stored for item in plan.fields}:
                del file[name]

        forge_shard(bench.out, shard, change)
        forge(receipt_path(bench.out, shard), plan_id=plan.plan_id)
    run.write_summary(summarise(plan, run.inspect_all(plan, results=True)))
    assert open_dataset(bench.out).attrs["digest"], "it opens, and says that it is complete"


def test_data_of_an_unknown_fitter_is_not_verified_by_guessing(
    bench: Bench, capsys: pytest.CaptureFixture
) -> None:
    """Readers read it; nobody fits it again, nobody goes on with it."""
    assert verify(bench.out).ok
    forge_dataset(bench, fitter="os:getcwd")
    assert command(["verify", str(bench.out), "--data-root", str(bench.data)]) == 5
    error = capsys.readouterr().err
    assert "fitter 'os:getcwd' is not known here" in error and error.count("\n") == 1
    assert command(["status", str(bench.out)]) == 0 and len(open_dataset(bench.out)) == ROWS
    with pytest.raises(InputError, match=r"fitter 'os:getcwd' is not known"):
        bench.convert(fitter="os:getcwd")
    with pytest.raises(PlanMismatch, match="fitter"):
        bench.convert()


def test_a_plan_cannot_lie_about_its_inputs(bench: Bench) -> None:
    """A plan hashes to its own id whoever wrote it: rows or columns less, other models."""
    plan = json.loads((bench.out / "plan.json").read_text())["plan"]
    model = {"kind": "smpl", "gender": "male", "name": "SMPL_MALE.pkl", "size": 1,
             "sha256": "0", "standin": False}  # fmt: skip
    fields = [item for item in plan["fields"] if item["source"] != "gtkps"]
    for changes, told in (
        ({"models": [model]}, "other things about the body models"),
        ({"models": [], "fields": fields}, "other original columns"),
        ({"rows": 16}, "the plan has 16 rows, the label file 20"),
    ):
        forge_dataset(bench, **changes)
        found = verify(bench.out, data_root=bench.data)
        assert [text for text in found.problems if told in text], found.problems
        assert len(found.problems) == 1


def test_concessions_are_possible_ones(bench: Bench) -> None:
    """A record of blocks that no run concedes: refused as damage, or named before it is obeyed."""
    run = RunDirectory(bench.out)
    plan = run.plan()
    for given in (Concessions(block_size=-4), Concessions(((3, "x"), (1, "y")))):
        run.concede(plan, 1, given)
        with pytest.raises(InputError, match="not a record of concessions"):
            run.concessions(plan, 1)
    given = Concessions(block_size=1 << 40)
    run.concede(plan, 1, given)

    def change(file: h5py.File) -> None:
        file.attrs.update(root_attributes(plan, 1, given))

    forge_shard(bench.out, 1, change)
    forge(receipt_path(bench.out, 1), concessions=given.digest)
    problems = verify(bench.out, full=True).problems
    assert any("no smaller than others" in text for text in problems), problems


def test_code_that_is_not_here_is_not_compared_and_said(
    bench: Bench, capsys: pytest.CaptureFixture
) -> None:
    """What another version fitted cannot be fitted again; --full says so instead of guessing."""
    forge_dataset(bench, code={"sha256": "0"})
    assert command(["verify", str(bench.out), "--full", "--data-root", str(bench.data)]) == 0
    assert "no row: the code of hmr-skel here is not the plan's" in capsys.readouterr().out


def test_columns_hold_what_columns_of_their_name_hold(bench: Bench) -> None:
    def wider(file: h5py.File) -> None:
        kept = dict(file["skel_poses"].attrs) | {"source_dtype": "<f8"}
        values = file["skel_poses"][:].astype(np.float64)
        del file["skel_poses"]
        made = file.create_dataset("skel_poses", data=values, chunks=values.shape, fletcher32=True)
        made.attrs.update(kept)

    def rejected(file: h5py.File) -> None:
        file["active_limits"][3, 4] = True

    for shard, change in ((0, rejected), (1, wider)):
        forge_shard(bench.out, shard, change)
    bench.convert()
    problems = " ".join(verify(bench.out).problems)
    for told in ("shard 0: 'active_limits' of a rejected row", "'skel_poses' is not float32"):
        assert told in problems, problems


HOSTILE_NAME = "a\x1b]0;owned\x07\x1b[2J\r\u202eb"


def test_names_are_printed_without_terminal_escapes(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In plans, receipts, label files, paths; on both streams."""
    run = RunDirectory(bench.out)
    record = {"failures": [{"kind": HOSTILE_NAME, "message": "x", "traceback": ""}] * 3,
              "lost": 0, "running": None}  # fmt: skip
    shard_path(bench.out, 1).unlink()
    (run.path / "attempts" / "shard-00001.json").write_bytes(sealed_json(record))
    np.savez(tmp_path / "labels.npz", **{HOSTILE_NAME: np.zeros(3), "pose": np.zeros(4)})
    (tmp_path / HOSTILE_NAME).mkdir()
    said = ""
    for arguments in (
        ["status", str(bench.out)],
        ["verify", str(bench.out)],
        ["status", str(tmp_path / HOSTILE_NAME)],
        ["lint", str(tmp_path / "labels.npz")],
    ):
        command(arguments)
        out = capsys.readouterr()
        said += out.out + out.err
    assert r"a\x1b]0;owned\x07" in said and r"\u202e" in said
    assert not set(said) & set(HOSTILE_NAME) & set("\x1b\x07\r\u202e")
