"""What the benchmarks share: exact residuals, timing, the conditions of a run, Markdown tables."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.poses import Frames
from skel_fit import anatomy, joint_limits
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.skel import SKEL

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SLACK = 1e-4
"""Radians beyond a limit that count as a violation."""


@dataclass(frozen=True)
class Pair:
    """The two models of one gender, float32, and SKEL in float64."""

    skel: SKEL
    smpl: torch.nn.Module
    skel64: SKEL

    @staticmethod
    def default(gender: str = "male", device: str = "cpu") -> "Pair":
        """The licence-free pair; the float64 model stays on the CPU."""
        folder = default_body_directory()
        return Pair(
            load_skel(folder, gender).to(device),
            load_smpl(folder, gender).to(device),
            load_skel(folder, gender, dtype=torch.float64),
        )


T = TypeVar("T")


@dataclass
class Clock:
    """Wall and processor seconds (all threads) of each call. Waits for a GPU where there is one."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def call(self, work: Callable[[], T]) -> T:
        """Run the work and note its time."""
        synchronise()
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        synchronise()
        self.cpus.append(time.process_time() - cpu)
        self.walls.append(time.perf_counter() - wall)
        return result

    @property
    def wall(self) -> float:
        """Median wall seconds of a call."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """Median processor seconds of a call, all threads."""
        return statistics.median(self.cpus)


def set_threads(count: int) -> None:
    """Threads of torch; the solver spreads its rows over as many."""
    torch.set_num_threads(count)


def synchronise() -> None:
    """Wait for the GPU, if work may be running on one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Residuals:
    """Distances of fitted skins to their targets after an exact forward pass, in millimetres."""

    mean: np.ndarray  # (n,) over the vertices
    largest: np.ndarray  # (n,)
    rms: np.ndarray  # (n,)

    def summary(self) -> dict[str, float]:
        """Distribution over the rows: of the mean distance, the RMS and the largest distance."""
        return {
            "mean": float(self.mean.mean()),
            "median": float(np.median(self.mean)),
            "p95": float(np.percentile(self.mean, 95)),
            "max": float(self.mean.max()),
            "rms": float(np.sqrt(np.mean(self.rms**2))),
            "worst vertex": float(self.largest.max()),
        }


@torch.no_grad()
def smpl_vertices(smpl: torch.nn.Module, frames: Frames) -> Tensor:
    """(n, V, 3) m, float64 parameters through the float32 layer, translation left out."""
    single = frames.poses.float()
    betas, device = frames.betas.float(), smpl.v_template.device
    out = smpl(
        betas=betas.to(device),
        global_orient=single[:, :3].to(device),
        body_pose=single[:, 3:].to(device),
    )
    return out.vertices.double().cpu()


@torch.no_grad()
def residuals(
    pair: Pair, frames: Frames, poses: Tensor, trans: Tensor, betas: Tensor | None = None
) -> Residuals:
    """Residuals of SKEL poses (n, 46) and trans (n, 3), m, against the SMPL surfaces."""
    poses, trans = poses.cpu(), trans.cpu()
    betas = frames.betas if betas is None else betas.double().cpu()
    parts = []
    for part in torch.arange(len(frames)).split(16):
        target = smpl_vertices(pair.smpl, frames.rows(slice(int(part[0]), int(part[-1]) + 1)))
        shift = trans[part].double() - frames.transl[part]
        skin = pair.skel64(poses[part].double(), betas[part], shift).skin_vertices
        parts.append((skin - target).norm(dim=2))
    apart = torch.cat(parts).numpy() * 1e3
    return Residuals(apart.mean(axis=1), apart.max(axis=1), np.sqrt((apart**2).mean(axis=1)))


def violations(poses: Tensor, table: joint_limits.LimitsName) -> dict[str, float]:
    """How poses (n, 46) leave the limits: angles a row, share of rows, largest excess in rad."""
    low, high = (torch.as_tensor(side) for side in joint_limits.limits(table).T)
    periodic = torch.as_tensor(anatomy.PERIODIC.copy())
    outside = joint_limits.excess(poses.double(), low, high, periodic)
    beyond = outside > LIMIT_SLACK
    return {
        "angles a row": float(beyond.sum(dim=1).double().mean()),
        "share of rows": float(beyond.any(dim=1).double().mean()),
        "largest": float(outside.max()),
    }


def conditions(**more: object) -> dict[str, object]:
    """Machine, versions and commit of a run."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),) * 3
    found: dict[str, object] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load average at start": [round(value, 2) for value in load],
        "python": platform.python_version(),
        "commit": _commit(),
        "models": "licence-free default pair, male",
    }
    for name in ("torch", "numpy", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | more


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Commit of the working tree, with a mark where it has changes."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip()


def markdown_conditions(found: dict[str, object]) -> str:
    """One paragraph."""
    return "Conditions: " + "; ".join(f"{name} {value}" for name, value in found.items()) + "."


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers with four significant digits."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}"
