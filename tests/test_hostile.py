"""Hostile inputs: each is one line, in less than 1 GB, within seconds."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, OutputError
from pipeline.locking import held
from pipeline.run import parse_shards
from skel_fit.npy_header import read_npy_header
from skel_fit.strict_yaml import parse_yaml
from stages import cli
from tests.faults.harness import TRIVIAL, Bench, make_bench, write_manifest

MEMORY = 1 << 30
SECONDS = 30  # of processor time; a loaded machine needs more on the wall


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path / "bench")


def contained(work: Callable[[], int], log: Path) -> tuple[int, str]:
    """(exit code, standard error) of work in a forked child with limits to memory and time.

    A child that hangs or swells is killed: its exit code is negative.
    """
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(4 * SECONDS)  # what hangs without computing
            code = work()
            sys.stderr.flush()
            os._exit(code)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


def convert(bench: Bench, *options: str) -> tuple[int, str]:
    """A conversion within the limits."""
    arguments = bench.command("--quiet", *options, fitter=TRIVIAL)[3:]
    return contained(lambda: cli.run(arguments), bench.root / "stderr.txt")


def refused(found: tuple[int, str], code: int, *texts: str) -> None:
    assert found[0] == code, found
    assert found[1].startswith("hmr-skel: ") and found[1].count("\n") == 1, found
    assert len(found[1]) < 1000
    for text in texts:
        assert text in found[1], found


# ---- label files --------------------------------------------------------------------------------


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "header",
    [b"(" * 9000, b"[" * 9000, b"-" * 9000, b"{1:" * 3000, b"a" + b".a" * 4400,
     b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"1" * 9000,
     b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"1, " * 2900 + b")}"],
    ids=["parentheses", "brackets", "signs", "braces", "attributes", "digits", "axes"],
)  # fmt: skip
def test_a_header_that_makes_parsers_fail_is_one_line(bench: Bench, header: bytes) -> None:
    with zipfile.ZipFile(bench.labels, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nested.npy", npy(header))
    refused(convert(bench), 5, "labels.npz", "member 'nested'")


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4)), np.zeros(()), np.zeros((2, 3), order="F"), np.zeros(5, "U7"),
     np.zeros((0, 3), ">i2"), np.zeros(2, bool), np.array([{}, 1], object), np.zeros((1,) * 32)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_every_header_of_numpy_is_read(
    tmp_path: Path, array: np.ndarray, version: tuple[int, int]
) -> None:
    with (tmp_path / "a.npy").open("w+b") as stream:
        np.lib.format.write_array(stream, array, version=version)
        stream.seek(0)
        found = read_npy_header(stream)
        assert found == (array.shape, np.isfortran(array), array.dtype)
        assert array.dtype.hasobject or len(stream.read()) == array.nbytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'x': [1]}", "none of plain"),
        (b"x = {'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", "none of plain"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }" + b" " * 20_000, "header of"),
    ],
    ids=["further-entry", "no-dict", "long"],
)
def test_a_header_says_three_things_in_few_words(text: bytes, message: str) -> None:
    data = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(16)
    with pytest.raises(ValueError, match=message):
        read_npy_header(io.BytesIO(data))


def repeated(path: Path, count: int, part: bytes, parts: int, header: bytes) -> None:
    """An npz of `count` equal members, `parts` times `part` each, deflated once."""
    shared = io.BytesIO()
    with (
        zipfile.ZipFile(shared, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
        archive.open("m.npy", "w") as member,
    ):
        member.write(npy(header))
        for _ in range(parts):
            member.write(part)
    one = shared.getvalue()
    entry = one.index(b"PK\x01\x02")
    end = one.index(b"PK\x05\x06")
    content, index = b"", b""
    for k in range(count):
        name = f"m{k:02d}.npy".encode()
        place = struct.pack("<I", len(content))
        directory = one[entry:end]
        head = directory[:28] + struct.pack("<H", len(name)) + directory[30:42] + place
        index += head + name + directory[46 + len("m.npy") :]
        content += one[:26] + struct.pack("<H", len(name)) + one[28:30] + name
        content += one[30 + len("m.npy") : entry]
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(index), len(content), 0)
    path.write_bytes(content + index + tail)


@pytest.mark.parametrize("format", ["sequence", "camerahmr"])
def test_thirty_members_that_expand_below_the_cap_are_a_bomb_together(
    bench: Bench, format: str
) -> None:
    """240 MB of zeros each, 1 MB in the file."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (120000, 250), }\n"
    repeated(bench.labels, 30, bytes(1000 * 250 * 8), 120, header)
    write_manifest(bench.manifest, source={"path": "labels.npz", "format": format})
    refused(convert(bench), 5, "labels.npz", "expand to")


@pytest.mark.parametrize(
    ("order", "format", "message"),
    [("False", "sequence", "at most"), ("True", "camerahmr", "Fortran")],
)
def test_what_must_lie_in_memory_is_bounded_as_a_whole(
    bench: Bench, order: str, format: str, message: str
) -> None:
    """Numbers that deflate 50 times are no bomb; many of them are still too much."""
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    header = f"{{'descr': '<f8', 'fortran_order': {order}, 'shape': (10000, 250), }}\n".encode()
    repeated(bench.labels, 16, noise + bytes(980_000), 20, header)
    with zipfile.ZipFile(bench.labels) as archive:
        assert archive.testzip() is None
    write_manifest(bench.manifest, source={"path": "labels.npz", "format": format})
    refused(convert(bench), 5, "labels.npz", message)


@pytest.mark.parametrize("name", ["labels.npz", "labels.tar", "labels.pkl"])
@pytest.mark.parametrize("format", [None, "camerahmr", "webdataset", "sequence", "single-image"])
def test_a_pipe_as_label_file_is_refused(bench: Bench, name: str, format: str | None) -> None:
    os.mkfifo(bench.data / f"pipe-{name}")
    write_manifest(bench.manifest, source={"path": f"pipe-{name}", "format": format})
    refused(convert(bench), 5, f"pipe-{name}", "not a regular file")
    pipe = str(bench.data / f"pipe-{name}")
    refused(contained(lambda: cli.run(["lint", pipe]), bench.root / "e"), 5, "not a regular file")


# ---- configuration ------------------------------------------------------------------------------


def alias_bomb(levels: int = 40) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (alias_bomb(), "alias"),
        ("a: &a [*a]", "alias"),
        ("name: " + "[" * 50_000, "nested"),
        ("".join(" " * k + "a:\n" for k in range(1200)), "nested"),
        ("1: 2", "no text"),
        ("{[1, 2]: 3}", "no text"),
        ("? {a: b}\n: 3", "no text"),
        ("null: 3", "no text"),
        ("name: 2020-99-99", "not YAML"),
        ("name: " + "9" * 5000, "not YAML"),
        ("name: " + "1:" * 3000 + "1", "64 bits"),
        ("name: 0x" + "f" * 5000, "64 bits"),
        ("name: x\n" * (1 << 18), "characters"),
        ("name: !!python/object/apply:os.system [id]", "not YAML"),
    ],
)
def test_hostile_manifests_are_one_line(bench: Bench, text: str, message: str) -> None:
    bench.manifest.write_text(text)
    refused(convert(bench), 5, "test.yaml", message)
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_a_pipe_as_manifest_is_refused(bench: Bench) -> None:
    bench.manifest.unlink()
    os.mkfifo(bench.manifest)
    refused(convert(bench), 2, "test.yaml")


@pytest.mark.parametrize("shards", ["0-50000000", "0-999999999", "0-" + "9" * 5000, "50000000"])
def test_a_range_of_shards_is_never_counted_out(bench: Bench, shards: str) -> None:
    refused(convert(bench, "--shards", shards), 2, "--shards")
    assert not bench.out.exists()


def test_ranges_may_overlap() -> None:
    assert parse_shards("3-5,4") == (range(3, 6), range(4, 5))


# ---- standard streams ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), ("<&- >&- 2>&-", 0), ("2>&-", 0), (">/dev/full", 74)],
)
def test_closed_streams_are_no_traceback(bench: Bench, redirection: str, code: int) -> None:
    """Closed output is as good as /dev/null; a full one is an error. Data never lands in them."""
    bench.convert()
    command = [sys.executable, "-m", "stages.cli", "status", str(bench.out)]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *command],
        env=bench.environment, cwd=bench.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (code != 0)


def test_a_run_with_closed_streams_writes_the_same_bytes(bench: Bench) -> None:
    """The first files opened get the numbers of closed streams; nothing may be printed there."""
    bench.convert(directory=bench.root / "reference")
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *bench.command(fitter=TRIVIAL)],
        env=bench.environment, cwd=bench.root, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    for path in (bench.root / "reference" / "shards").iterdir():
        assert (bench.out / "shards" / path.name).read_bytes() == path.read_bytes()


# ---- run directories ----------------------------------------------------------------------------


def verb(name: str, *arguments: str | Path) -> tuple[int, str]:
    folder = Path(str(arguments[0]))
    return contained(
        lambda: cli.run([name, *map(str, arguments), "--json"]), folder.parent / "stderr.txt"
    )


def test_a_shard_of_another_plan_is_reported(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.convert()
    whole = (bench.out / "shards" / "shard-00003.h5").read_bytes()
    (bench.out / "shards" / "shard-00099.h5").write_bytes(whole)
    assert cli.run(["status", str(bench.out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stray"] == ["shards/shard-00099.h5"]
    assert cli.run(["status", str(bench.out)]) == 0
    assert "shards/shard-00099.h5" in capsys.readouterr().out
    code = cli.run(["verify", str(bench.out), "--json", "--data-root", str(bench.data)])
    found = json.loads(capsys.readouterr().out)
    assert code == 3 and any("shard-00099.h5" in text for text in found["problems"])
    bench.convert()  # goes on, and leaves it alone
    assert (bench.out / "shards" / "shard-00099.h5").read_bytes() == whole


# ---- locks --------------------------------------------------------------------------------------


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without flock, as some network mounts are."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_the_user_is_told_and_may_insist(bench: Bench, lockless: None) -> None:
    with pytest.raises(OutputError, match="--no-lock") as caught:
        bench.convert()
    assert "no locks" in str(caught.value) and not (bench.out / "plan.json").exists()
    refused(convert(bench), 74, "--no-lock")
    assert bench.convert(no_lock=True).summary.complete
    assert convert(bench, "--no-lock")[0] == 0
    assert verb("status", bench.out)[0] == 0


def test_no_lock_is_asked_for_by_name(tmp_path: Path) -> None:
    with (
        held(tmp_path / ".lock", "busy"),
        pytest.raises(Exception, match="busy"),
        held(tmp_path / ".lock", "busy"),
    ):
        pass
    with held(tmp_path / ".lock", "busy"), held(tmp_path / ".lock", "busy", without=True):
        pass


def test_a_pipe_as_lock_is_no_hang(bench: Bench) -> None:
    bench.convert()
    (bench.out / ".lock").unlink()
    os.mkfifo(bench.out / ".lock")
    assert verb("status", bench.out)[0] == 0


def test_label_files_that_are_no_files(tmp_path: Path) -> None:
    from pipeline.readers import open_source

    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match="regular"):
        open_source(tmp_path, format="webdataset")


CONTENTS = (
    b"", b"[]", b"null", b"{" * 5000, b'{"failures": 3}', b'{"lost": 1e999}', b"\xff\xfe", None,
)  # fmt: skip
"""Of a record of attempts; None: a pipe."""


def put(path: Path, content: bytes | None) -> None:
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_record_costs_attempts_at_most(bench: Bench, content: bytes | None) -> None:
    bench.convert(limit=8)
    put(bench.out / "attempts" / "shard-00002.json", content)
    assert verb("status", bench.out)[0] == 0
    code, error = convert(bench)
    assert code == 0, error


@pytest.mark.parametrize(
    "name", ["shard-0009{}.json", "shard-x{}.json", "shard-9999999999999{}.json"]
)
def test_stray_attempts_stop_nothing(bench: Bench, name: str) -> None:
    """Records of no shard, with every content at once: they are left alone."""
    bench.convert(limit=8)
    strays = [bench.out / "attempts" / name.format(k) for k in range(len(CONTENTS))]
    for path, content in zip(strays, CONTENTS, strict=True):
        put(path, content)
    assert verb("status", bench.out)[0] == 0
    code, error = convert(bench)
    assert code == 0, error
    assert all(path.exists() for path in strays)
