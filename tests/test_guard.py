"""Outputs never destroy inputs, and what killed writers leave is swept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo import write_demo
from pipeline.errors import OutputError, UsageError
from pipeline.guard import Inputs
from pipeline.output_files import published, whole_folder, write_bytes
from skel_fit.default_body import default_body_directory
from stages import cli
from stages.regressor.data import demo_pictures
from tests.faults.crash import run_in_child
from tests.faults.harness import Bench, make_bench, tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = make_bench(tmp_path_factory.mktemp("guard") / "bench")
    bench.convert()
    return bench


@pytest.fixture
def bench(finished: Bench, tmp_path: Path) -> Bench:
    """A finished conversion, and three further names of its label file and of a shard."""
    bench = make_bench(tmp_path / "bench")
    bench.convert()
    for name, path in (("label", bench.labels), ("shard", bench.out / "shards/shard-00001.h5")):
        (tmp_path / f"{name}-link").symlink_to(path)
        (tmp_path / f"{name}-hard").hardlink_to(path)
    (tmp_path / "folder").symlink_to(bench.out)
    return bench


def targets(bench: Bench) -> Iterator[Path]:
    """What no verb may write over, under all its names."""
    top = bench.root.parent
    yield from (bench.labels, bench.labels.parent / ".." / "data" / "labels.npz")
    yield from (top / "label-link", top / "label-hard", top / "shard-link", top / "shard-hard")
    yield from (top / "folder" / "plan.json", top / "folder" / "shards" / "shard-00002.h5")
    yield from (bench.out / name for name in ("summary.json", "run.json", ".lock"))
    yield bench.out / "receipts" / "shard-00000.json"


VERBS: dict[str, Callable[[Bench, Path], list[str]]] = {
    "export": lambda b, out: ["export", f"{b.out}", "--out", f"{out}", "--keypoints3d", "none"],
    "export glb": lambda b, out: ["export", f"{b.out}", "--out", f"{out}", "--format", "glb"],
    "export csv": lambda b, out: ["export", f"{b.out}", "--out", f"{out}", "--format", "csv"],
    "export parquet": lambda b, out: ["export", f"{b.out}", "--out", f"{out}",
                                      "--format", "parquet"],
    "export opensim": lambda b, out: ["export", f"{b.out}", "--out", f"{out}",
                                      "--format", "opensim"],
    "card": lambda b, out: ["card", f"{b.out}", "--out", f"{out}"],
    "report": lambda b, out: ["report", f"{b.out}", "--picture", f"{out}"],
    "view": lambda b, out: ["view", f"{b.out}", "--out", f"{out}"],
    "audit": lambda b, out: ["audit", f"{b.labels}", "--stand-in", "--html", f"{out}"],
    "moyo-hard": lambda b, out: ["moyo-hard", f"{b.labels}", "--out", f"{out}"],
    "import-opensim": lambda b, out: ["import-opensim", f"{b.labels}", f"{b.labels}",
                                      "--out", f"{out}"],
    "calibrate": lambda b, out: ["calibrate", f"{b.out}", "--rows", "48", "--out", f"{out}",
                                 "--models", f"{default_body_directory()}"],
    "manifest": lambda b, out: ["manifest", f"{b.labels}", "--models", "default-body",
                                "--out", f"{out}"],
    "convert": lambda b, out: ["convert", f"{b.manifest}", "--out", f"{b.out}",
                               "--data-root", f"{b.data}", "--log-json", f"{out}"],
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_over_what_it_reads(
    bench: Bench, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {str(path): path.read_bytes() for path in targets(bench)}
    links = [path.readlink() for path in bench.root.parent.iterdir() if path.is_symlink()]
    for target in targets(bench):
        if target.name == "shard-hard" and verb in ("audit", "moyo-hard", "import-opensim"):
            continue  # they read no shards, and the shard would keep its other name
        code = cli.run(VERBS[verb](bench, target))
        error = capsys.readouterr().err
        assert code == 2, (target, error)
        assert "not written over" in error and error.count("\n") == 1, error
    assert {str(path): path.read_bytes() for path in targets(bench)} == before
    assert [p.readlink() for p in bench.root.parent.iterdir() if p.is_symlink()] == links


def test_the_pages_of_a_dataset_are_no_way_around(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.out / "report.html").symlink_to(bench.labels)
    (bench.out / "README.md").hardlink_to(bench.labels)
    before = tree(bench.root)
    for verb in ("report", "card"):
        assert cli.run([verb, str(bench.out)]) == 2
        assert "not written over" in capsys.readouterr().err
    assert tree(bench.root) == before


def test_folders_of_results_spare_what_was_read(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """train, evaluate and predict write fixed names into a folder; those may be inputs."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("predictions.npz", "a.overlay.png", "best.pt", "rows-demo.npz"):
        (folder / name).write_bytes(b"precious")
    picture, checkpoint = folder / "a.overlay.png", folder / "best.pt"
    before = tree(tmp_path)
    commands = [
        ["predict", picture, "--checkpoint", tmp_path / "none.pt", "--out", folder],
        ["predict", folder / "predictions.npz", "--checkpoint", checkpoint, "--out", folder],
        ["evaluate", "demo", "--predictions", folder / "rows-demo.npz", "--out", folder],
        ["train", bench.out, "--out", bench.out],
        ["train", bench.out, "--images", checkpoint, "--out", folder],
    ]
    for command in commands:
        code = cli.run([str(part) for part in command])
        error = capsys.readouterr().err
        assert code == 2 and "not written over" in error and error.count("\n") == 1, (
            command,
            error,
        )
    assert tree(tmp_path) == before


def test_official_model_files_are_not_replaced_by_the_stand_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(b"licensed")
    assert cli.run(["default-body", "--out", str(tmp_path)]) == 2
    assert "SMPL_NEUTRAL.pkl" in capsys.readouterr().err
    assert (tmp_path / "SMPL_NEUTRAL.pkl").read_bytes() == b"licensed"


def test_new_and_own_files_are_written(bench: Bench, tmp_path: Path) -> None:
    """The guard refuses nothing else: new files, and older results, are replaced."""
    out = tmp_path / "exported.npz"
    for _ in range(2):
        assert cli.run(VERBS["export"](bench, out)) == 0
        assert cli.run(["card", str(bench.out)]) == 0
    Inputs(bench.data, None).check(out, tmp_path / "absent")
    with pytest.raises(UsageError):
        Inputs(bench.data).check(bench.labels)


# ---- what killed writers leave ------------------------------------------------------------------


def die_while_writing(path: Path) -> None:
    def work() -> None:
        with published(path) as stream:
            stream.write(b"half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(work) == -signal.SIGKILL


def die_while_filling(path: Path, rename: bool = False) -> None:
    def work() -> None:
        if rename:
            first = Path.rename

            def once(self: Path, target: Path) -> Path:
                first(self, target)
                os.kill(os.getpid(), signal.SIGKILL)
                return target

            Path.rename = once  # type: ignore[method-assign, assignment]
        with whole_folder(path, "mark") as folder:
            (folder / "mark").write_text("new")
            if not rename:
                os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(work) == -signal.SIGKILL


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_leftovers_are_swept_by_the_next_writer(tmp_path: Path) -> None:
    die_while_writing(tmp_path / "a.npz")
    die_while_filling(tmp_path / "models")
    assert len(leftovers(tmp_path)) == 2
    write_bytes(tmp_path / "other.html", b"whole")
    assert leftovers(tmp_path) == []
    die_while_writing(tmp_path / "a.npz")
    with whole_folder(tmp_path / "models", "mark") as folder:
        (folder / "mark").write_text("x")
    assert leftovers(tmp_path) == []


def test_who_still_writes_is_left_alone(tmp_path: Path) -> None:
    with published(tmp_path / "slow") as stream, whole_folder(tmp_path / "f", "mark") as folder:
        stream.write(b"slow")
        (folder / "mark").write_text("x")
        assert run_in_child(lambda: write_bytes(tmp_path / "quick", b"quick")) == 0
        assert len(leftovers(tmp_path)) == 2
    assert (tmp_path / "slow").read_bytes() == b"slow" and (tmp_path / "f" / "mark").exists()
    assert leftovers(tmp_path) == []


def test_the_only_copy_of_an_older_folder_is_kept(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "f", "mark") as folder:
        (folder / "mark").write_text("old")
    die_while_filling(tmp_path / "f", rename=True)  # between the two renames
    write_bytes(tmp_path / "other", b"")
    kept = [tmp_path / name / "mark" for name in leftovers(tmp_path) if ".old." in name]
    assert [path.read_text() for path in kept] == ["old"]
    with whole_folder(tmp_path / "f", "mark") as folder:
        (folder / "mark").write_text("newer")
    assert leftovers(tmp_path) == []


def test_files_of_others_are_no_leftovers(tmp_path: Path) -> None:
    for name in (".a.tmp", ".a.1-2.tmp", "a.abcdef-1-00000000.tmp", ".a.000000-1-00000000.tmp"):
        (tmp_path / name).write_text("theirs")
    write_bytes(tmp_path / "b", b"")
    assert len(list(tmp_path.iterdir())) == 5


# ---- demo-images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo-release.npz"
    return write_demo(path, default_body_directory(), rows=240)


def render_command(job: demo_pictures.Job) -> list[str]:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from stages.regressor.data.demo_pictures import Job, render_demo\n"
        "if __name__ == '__main__':\n"
        "    from pipeline.errors import PipelineError\n"
        "    try:\n"
        "        render_demo(Job(*map(Path, sys.argv[1:4])), workers=2,\n"
        "                    report=lambda done, of: print(done, flush=True))\n"
        "    except PipelineError as error:\n"
        "        sys.exit(f'one line: {error}')\n"
    )
    return [sys.executable, "-c", script, *map(str, (job.labels, job.models, job.root))]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_rendering_ends_in_a_line_and_leaves_nobody(
    labels: Path, tmp_path: Path, victim: str
) -> None:
    job = demo_pictures.Job(labels, default_body_directory(), tmp_path / "pictures")
    process = subprocess.Popen(
        render_command(job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers: list[int] = []
    deadline = time.monotonic() + 120
    while len(workers) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        workers = [pid for pid in children(process.pid) if is_worker(pid)]
    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    if victim == "worker":
        assert process.returncode == 1 and "Traceback" not in errors, errors
        assert "one line: " in errors and "killed" in errors
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def test_pictures_never_replace_the_labels(labels: Path, tmp_path: Path) -> None:
    shutil.copy(labels, tmp_path / "demo-release.npz")
    job = demo_pictures.Job(tmp_path / "demo-release.npz", default_body_directory(), tmp_path)
    name = next(iter(demo_pictures._columns(job.labels)["imgname"].tolist()))
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).hardlink_to(job.labels)
    before = job.labels.read_bytes()
    with pytest.raises(UsageError, match="not written over"):
        demo_pictures.render_demo(job)
    assert job.labels.read_bytes() == before and (tmp_path / name).exists()


def test_a_broken_writer_is_still_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_bytes(tmp_path / "absent" / "a", b"")
