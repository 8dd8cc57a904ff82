"""The console script: exit codes, one-line errors, status, locks, dry runs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import termios
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from stages import cli
from tests.faults.harness import (
    PATIENCE,
    REPOSITORY,
    TRIVIAL,
    Bench,
    label_columns,
    make_bench,
    shard_digests,
    summary,
    tree,
    wait_for_row,
    write_manifest,
    write_source,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = make_bench(tmp_path_factory.mktemp("cli"))
    done = bench.run("--log-json", "log.jsonl", fitter=TRIVIAL)
    assert done.returncode == 0, done.stderr
    assert "digest" in done.stdout and "verify" in done.stdout
    return bench


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """A command line in this process: (exit code, stdout, stderr)."""
    code = cli.run([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def convert(bench: Bench, *options: str | Path) -> list[str | Path]:
    return [*bench.command(*map(str, options), fitter=TRIVIAL)[3:]]


def one_line(text: str) -> bool:
    return text.startswith("hmr-skel: ") and text.count("\n") == 1


def test_help_is_quick_and_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for verb in ("convert", "status", "verify", "report", "default-body", "lint"):
        assert verb in out
    script = "import sys; from stages import cli; cli.run(['--help']); print(sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for module in ("torch", "ray", "h5py", "numba", "numpy"):
        assert f"'{module}'" not in found.stdout


def test_the_stand_in_goes_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = run(capsys, "default-body", "--out", tmp_path / "notes.txt")
    assert code == 2 and one_line(err) and "notes.txt: no folder" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"hmr-skel {version('hmr-skel')}\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("hmr-skel ", "convert"),
        ("hmr-skel evaluate --crop ", "square"),
        ("hmr-skel export --keypoints3d ", "replace"),
    ],
)
def test_the_shell_completes_verbs_and_choices(words: str, offered: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env={**os.environ, "_HMR_SKEL_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(words.count(" "))},
    )  # fmt: skip
    assert offered in done.stdout.split()


def test_status_and_verify_agree_in_text_and_json(
    finished: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "verify", finished.out, "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and found["problems"] == []
    assert found["rows"] == 60 and found["sampled"] == 58
    assert found["digest"] == summary(finished.out)["digest"]
    code, out, _ = run(capsys, "verify", finished.out)
    assert code == 0 and found["digest"] in out
    code, out, _ = run(capsys, "status", finished.out, "--json")
    state = json.loads(out)
    assert code == 0 and state["complete"] and not state["running"]
    assert state["rejected"] == {"non_finite_pose": 2} and state["rows_per_second"] > 0
    code, out, _ = run(capsys, "status", finished.out)
    assert code == 0 and "complete" in out and "non_finite_pose 2" in out


def test_event_log_tells_the_run(finished: Bench) -> None:
    events = [json.loads(line) for line in (finished.root / "log.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "start" and events[0]["rows"] == 60
    assert sum(event.get("rows", 0) for event in events if event["event"] == "shard_done") == 60
    assert events[-1]["event"] == "end" and events[-1]["complete"]


def test_local_runs_do_not_import_ray_and_one_worker_is_one_process(tmp_path: Path) -> None:
    """Promise P18."""
    bench = make_bench(tmp_path / "small", 20)
    bench.order("slow-all", "0.01")
    script = (
        "import sys\nimport tests.faults.fitters\nfrom stages import cli\n"
        f"code = cli.run({bench.command()[3:]!r})\n"
        "assert 'ray' not in sys.modules\nassert 'multiprocessing.popen_spawn_posix' not in "
        "sys.modules\nsys.exit(code)"
    )
    done = bench.cli([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    assert len({pid for pid, _ in bench.calls()}) == 1


def test_usage_errors_are_2(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (
        ["convert", "no-such-subset"],
        convert(finished, "--executor", "slurm"),
        convert(finished, "--shards", "9-3"),
        convert(finished, "--shards", "99"),
        convert(finished, "--workers", "0"),
        convert(finished, "--no-such-option"),
        ["convert"],
        ["dance"],
    ):
        code, _, err = run(capsys, *options)
        assert code == 2, (options, err)
        assert "Traceback" not in err


def test_another_plan_is_4_and_names_the_field(
    finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    bench = Bench(tmp_path / "copy")
    write_manifest(bench.manifest, shard_rows=9)
    before = tree(bench.out)
    code, _, err = run(capsys, *convert(bench))
    assert code == 4 and one_line(err) and "shard_rows" in err and "--out" in err
    assert tree(bench.out) == before


def test_missing_and_broken_inputs_are_5_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise P9, the plane's part; tests/test_readers*.py has every broken file."""
    bench = make_bench(tmp_path / "broken")
    whole = bench.labels.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"hello\n"):
        bench.labels.write_bytes(content)
        code, _, err = run(capsys, *convert(bench))
        assert code == 5 and one_line(err) and "labels.npz" in err, err
        assert not bench.out.exists()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    bench.labels.write_bytes(flipped)
    code, _, err = run(capsys, *convert(bench))
    assert code == 5 and one_line(err) and "CRC" in err
    bench.labels.unlink()
    code, _, err = run(capsys, *convert(bench))
    assert code == 5 and one_line(err) and "--data-root" in err
    assert not bench.out.exists()
    for verb in ("status", "verify"):
        code, _, err = run(capsys, verb, tmp_path)
        assert code == 5 and one_line(err) and "plan.json" in err


def test_damage_is_3(finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    bench = Bench(tmp_path / "copy")
    (bench.out / "shards" / "shard-00004.h5").write_bytes(b"short")
    code, out, err = run(capsys, "verify", bench.out, "--json", "--data-root", bench.data)
    found = json.loads(out)
    assert code == 3 and one_line(err) and not found["ok"]
    assert any(text.startswith("shard 4:") for text in found["problems"])
    code, out, _ = run(capsys, "status", bench.out, "--json")
    state = json.loads(out)
    assert code == 0 and not state["complete"] and state["shards"]["damaged"] == 1


def test_dry_run_and_status_work_on_a_read_only_folder(
    finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise P20."""
    shutil.copytree(finished.root, tmp_path / "copy")
    bench = Bench(tmp_path / "copy")
    (bench.out / "shards" / "shard-00001.h5").unlink()
    before = tree(bench.root)
    folders = [bench.out, *(path for path in bench.out.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        code, out, _ = run(capsys, *convert(bench, "--dry-run"))
        assert code == 0 and "to do    1" in out
        assert run(capsys, "status", bench.out)[0] == 0
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert tree(bench.root) == before
    code, out, _ = run(capsys, *convert(bench, "--quiet"))
    assert code == 0 and "1 converted now, 7 done before" in out


def test_usage_errors_say_where_to_read_on(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (("export", "x"), "Missing option '--out'; see hmr-skel export --help"),
        (("nope",), "No such command 'nope'; see hmr-skel --help"),
        (("evaluate", "demo", "--images", "nowhere"), "--images nowhere: no such folder"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and one_line(err) and told in err


def test_what_the_system_refuses_is_named(
    finished: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "there/.lock")

    monkeypatch.setattr("pipeline.dataset.open_dataset", denied)
    code, _, err = run(capsys, "view", finished.out, "--out", tmp_path / "page.html")
    assert code == 74 and one_line(err)
    assert "there/.lock: Permission denied; change the rights" in err and "Errno" not in err


def test_a_second_run_is_75_at_once_and_changes_nothing(tmp_path: Path) -> None:
    """Promise P16."""
    bench = make_bench(tmp_path / "locked")
    bench.order("hold-8")
    first = bench.start()
    wait_for_row(bench, 8)
    before = tree(bench.out)
    second = bench.run()
    assert first.poll() is None, "the first run must still hold the lock"
    after = tree(bench.out)
    for name, found in before.items():  # the first run goes on and may add files
        if not name.startswith("attempts"):
            assert after[name] == found
    assert second.returncode == 75 and one_line(second.stderr)
    (bench.faults / "hold-8").unlink()
    assert first.wait(PATIENCE) == 0


def test_progress_is_plain_lines_without_a_terminal_and_quiet_is_quiet(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "lines", 20)
    loud = bench.run()
    assert "test: 20 rows in 3 shards" in loud.stderr and "\r" not in loud.stderr
    shutil.rmtree(bench.out)
    assert bench.run("--quiet").stderr == ""


def test_partial_runs_end_with_0_and_not_complete(tmp_path: Path) -> None:
    """Promise P24, the subset that the user asked for."""
    bench = make_bench(tmp_path / "part")
    done = bench.run("--shards", "1,3-4")
    assert done.returncode == 0, done.stderr
    assert sorted(shard_digests(bench.out)) == [f"shard-0000{n}.h5" for n in (1, 3, 4)]
    found = summary(bench.out)
    assert not found["complete"] and found["missing"] == [0, 2, 5, 6, 7]
    done = bench.run("--limit", "10")
    assert done.returncode == 0 and not summary(bench.out)["complete"]
    assert bench.run().returncode == 0 and summary(bench.out)["complete"]


def test_a_compressed_source_gives_the_same_data(finished: Bench, tmp_path: Path) -> None:
    from pipeline import open_dataset

    bench = make_bench(tmp_path / "deflated")
    write_source(bench.labels, 60, bad_rows=(3, 17), compressed=True)
    assert bench.run(fitter=TRIVIAL).returncode == 0
    left, right = open_dataset(finished.out), open_dataset(bench.out)
    for name in left.fields:
        assert np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f")


@pytest.mark.parametrize(
    ("column", "factor", "words"),
    [("pose_cam", 180 / np.pi, "degrees"), ("trans_cam", 1000.0, "millimetres")],
)
def test_all_rows_rejected_is_a_failure_that_names_the_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, factor: float, words: str
) -> None:
    bench = make_bench(tmp_path / "units", 20)
    columns = label_columns(20)
    columns["trans_cam"][:, 2] += 3
    columns[column] = columns[column] * factor
    np.savez(bench.labels, **columns)
    code, out, err = run(capsys, *convert(bench, "--quiet"))
    assert code == 5 and one_line(err) and words in err and "all 20 rows" in err
    assert "20" in out, "the table is printed all the same"
    assert run(capsys, *convert(bench, "--quiet"))[0] == 5, "a rerun says so again"


def test_a_dry_run_asks_for_labels_before_it_asks_for_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "convert", "coco", "--dry-run", "--data-root", tmp_path)
    assert code == 5 and one_line(err)
    assert "coco-release.npz" in err and "skel.is.tue" not in err


def test_a_person_sees_the_rows_of_a_shard_pass(tmp_path: Path) -> None:
    """On a terminal: a first line before anything is read, then progress inside the one shard."""
    bench = make_bench(tmp_path / "watched", 200, 200, fit={"block_size": 1})
    bench.order("slow-all", "0.5")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        bench.command(), cwd=bench.root, env=bench.environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(ours, 4096):
            text += part
    os.close(ours)
    assert process.wait(60) == 0
    assert text.startswith(b"converting ")
    seen = {int(found) for found in re.findall(rb"\| (\d+)(?:\.0)?/200", text)}
    assert len(seen - {0, 200}) >= 2, text.decode()
    assert b"rows/s" in text


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_workers_use_the_machine_unless_the_job_is_small(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "auto", 4200, 2100)
    bench.order("hold-0")  # so that no worker does it all
    driver = bench.start()
    for row in (0, 2100):
        wait_for_row(bench, row)
    (bench.faults / "hold-0").unlink()
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, errors
    assert len({pid for pid, _ in bench.calls()}) == 2
    small = make_bench(tmp_path / "small", 40, 8)
    small.order("slow-all", "0")
    assert small.run("--workers", "auto").returncode == 0
    assert len({pid for pid, _ in small.calls()}) == 1
