"""What the Makefile would run, as `make -n` prints it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.faults.harness import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(*arguments: str) -> list[str]:
    """The `hmr-skel` lines, with the virtual environment taken as made."""
    ran = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.partition("hmr-skel ")[2] for line in ran.stdout.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("target", ["demo-images", "train"])
def test_pictures_are_rendered_after_the_labels_are_there(target: str) -> None:
    verbs = [line.split()[0] for line in commands(target)]
    assert verbs == ["convert", "demo-images", "train"][: 2 + (target == "train")]


def test_parallel_targets_wait_for_each_other() -> None:
    """`-n` hides a race, so ask for what each rule itself depends on."""
    ran = subprocess.run(["make", "-npq", "train"], cwd=REPOSITORY, capture_output=True, text=True)
    rules = {line.partition(": ")[0]: line.partition(": ")[2].split()
             for line in ran.stdout.splitlines() if ": " in line}  # fmt: skip
    assert rules["demo-images"] == ["convert"]
    assert rules["train"] == ["demo-images"]


def test_only_generated_subsets_are_rendered() -> None:
    verbs = [line.split()[0] for line in commands("train", "SUBSET=coco")]
    assert verbs == ["convert", "train"]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("", ""),
        ("--workers 3", ""),
        ("--workers 3 --data-root '/a b' --quiet", "--data-root '/a b'"),
        ("--data-root=/a --models /m --workers=3", "'--data-root=/a' --models '/m'"),
    ],
)
def test_rendering_takes_the_places_of_the_conversion(given: str, passed: str) -> None:
    convert, render = commands("demo-images", f"ARGS={given}")
    assert convert.split(" --out ")[1].partition(" ")[2].strip() == given
    assert render.partition("--workers 2")[2].strip() == passed
