"""The tables of docs/reference say what the code does."""

import re
from pathlib import Path

import numpy as np
import pytest

from skel_fit import anatomy, joint_limits, keypoints
from stages.regressor.config import load_recipe

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def text(name: str, after: str = "") -> str:
    """A document from an anchor on, on one line, with plain minus signs."""
    content = (REFERENCE / name).read_text(encoding="utf-8").replace("−", "-")
    return " ".join(content[content.index(f'<a id="{after}">') :].split()) if after else content


def numbers(words: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", words)]


JOINT_ROWS = re.findall(
    r"^\| (\d+) \| (\w+) \| (\S+) \| (\d+)(?:–(\d+))?[^|]* \| ([^|]+) \| (\S+) \|$",
    text("skel-model.md"),
    re.MULTILINE,
)


def test_every_joint_has_a_row() -> None:
    together = {7, 8, 9, 10}  # one row: the right leg's, on the left
    assert {int(row[0]) for row in JOINT_ROWS} == set(range(24)) - together


@pytest.mark.parametrize("row", JOINT_ROWS, ids=lambda row: row[1])
def test_joints_and_their_axes(row: tuple[str, ...]) -> None:
    number, name, parent, first, last, axes, smpl = row
    joint = anatomy.JOINTS[int(number)]
    assert (joint.name, joint.parent) == (name, -1 if parent == "–" else int(parent))
    assert anatomy.DOFS[int(number)] == tuple(range(int(first), int(last or first) + 1))
    assert joint.smpl == (0 if smpl == "–" else int(smpl.strip("()")))
    if "pin" in axes:
        return
    if axes.startswith("("):
        told = [np.array([float(part) for part in axes.strip("()").split(",")])]
        told[0] /= np.linalg.norm(told[0])
    else:
        told = [
            np.array(AXES[part[-1]]) * (-1 if part.startswith("-") else 1)
            for part in axes.split(", ")
        ]
    assert np.allclose([dof.axis for dof in joint.dofs], told, atol=1e-7)


def test_mirror_of_the_angles() -> None:
    words = text("skel-model.md", "mirror")
    negated = numbers(words[words.index("negate") : words.index("An involution")])
    assert negated == np.flatnonzero(anatomy.MIRROR_SIGNS < 0).tolist()


def test_start_joints() -> None:
    words = text("fitting.md", "start")
    assert tuple(numbers(words[words.index(": SMPL") : words.index("[ours]")])) == (
        anatomy.START_SMPL_JOINT
    )


def test_mirror_of_the_keypoints() -> None:
    lists = re.findall(r"`\[([^\]]+)\]`", text("evaluation.md", "keypoints-44-mirror"))
    openpose, extra = lists[:2]
    assert tuple(numbers(openpose)) == keypoints.MIRROR[:25]
    first = numbers(extra.replace("…", ","))[:13]
    assert tuple(25 + k for k in first) == keypoints.MIRROR[25:38]


def test_elevation_limits() -> None:
    low, high = joint_limits.limits("default")[anatomy.POSE_NAMES.index("scapula_elevation_r")]
    assert f"ours is {low:g}…{high:g} on the right" in text("skel-model.md", "elevation-limits")


@pytest.mark.parametrize("size", ["s", "b", "l", "h"])
def test_backbones(size: str) -> None:
    backbone = load_recipe("published", [f"changes/vit-{size}"]).model.backbone
    told = (backbone.width, backbone.depth, backbone.heads, backbone.mlp_width, backbone.drop_path)
    assert f"| {size.upper()} | " + " | ".join(f"{value:g}" for value in told) in text(
        "regressor.md", "vit"
    )


def test_switches_of_the_defects_exist() -> None:
    recipe = load_recipe("default")
    named = set(re.findall(r"\| `((?:model|loss|data|optimiser)\.[\w.]+)`", text("regressor.md")))
    assert len(named) >= 12
    for switch in named:
        value: object = recipe
        for key in switch.split("."):
            value = getattr(value, key)
