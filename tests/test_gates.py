"""The gates of `make lint` close: each is given something that it must refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.import_graph import ROOMS
from tests.faults.harness import REPOSITORY

BIN = Path(sys.executable).parent
IGNORE = re.compile(r"#\s*(?:type:\s*ignore|noqa)(?P<code>\[[\w, -]+\]|:\s*\w+)?(?P<rest>.*)")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The rooms and their configuration, free to be spoiled."""
    for room in (*ROOMS, "tools"):
        shutil.copytree(
            REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def contracts(root: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "lint-imports", "--no-cache"]
    return subprocess.run(
        command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("skel_fit/root.py", "import pipeline.errors", "The rooms import one way"),
        ("pipeline/task.py", "from stages import convert", "The rooms import one way"),
        ("skel_fit/root.py", "import h5py", "The mathematics knows no files"),
        ("skel_fit/rotations.py", "import skel_fit.skel", "No circles"),
    ],
)
def test_a_wrong_import_is_refused(copy: Path, file: str, line: str, broken: str) -> None:
    path = copy / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    ran = contracts(copy)
    assert ran.returncode == 1
    refused = [text for text in ran.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(broken) for text in refused), ran.stdout


def test_no_unexplained_ignore() -> None:
    """An ignored finding names its code and says why: on its line, or in a comment just above."""
    bare = []
    for room in (*ROOMS, "tools"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            lines = ["", *path.read_text(encoding="utf-8").splitlines()]
            for number, line in enumerate(lines):
                found = IGNORE.search(line)
                above = lines[number - 1].strip().startswith("#") if number else False
                if found and not (found["code"] and (found["rest"].strip(" #") or above)):
                    bare.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}")
    assert not bare, "\n".join(bare)


def test_an_extra_that_there_is_not_is_refused() -> None:
    """pip warns of it and goes on; `make setup EXTRAS=...` does not."""

    def asked(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.extras", *names]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    assert asked("biomech", "photo").returncode == 0
    refused = asked("biomech", "nosuch")
    assert refused.returncode == 1 and "no extra nosuch; there are biomech, " in refused.stderr
