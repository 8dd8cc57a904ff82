"""Forward pass of SKEL against `body-models`: speed and float32 error on one file, interleaved.

    python benchmarks/forward.py [--models DIR --gender male] [--batches 1 32 256] [--repeats 7]
                                 [--threads 2] [--rivals eager compiled warp] [--clock wall]
                                 [--json FILE]

Without --models the licence-free synthetic file of tests/data/golden is made (24,752 bone
vertices). Prints Markdown; --json writes the same numbers with the conditions. Each repeat runs
every implementation once before the next repeat. Bars are judged by the ratio of medians; the
ratio of the best times stands beside it, for machines that are not quiet.

The rival runs eagerly, compiled by torch (`compiled`, a minute of compilation, a C++ compiler) and
with its Warp kernels (`warp`, pip install warp-lang); ours runs as users run it, eagerly. On a busy
machine take `--threads 1 --clock cpu`: seconds of the processor, without those of others.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from body_models.skel.torch import SKEL as PeerSkel
from torch import Tensor

from skel_fit.model_files import load_skel, model_file
from skel_fit.skel import SKEL

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = ROOT / "tests" / "data" / "golden" / "make_synthetic_skel_asset.py"
BARS = {
    ("skin, no grad", 32): 2.0,
    ("skin, no grad", 256): 4.0,
    ("skin, forward + backward", 32): 1.7,
}
BONES_BAR, BONES_BATCH, ERROR_BAR = 3.0, 32, 1e-6
# Against the fastest of the rivals that ran, at these batches, with and without backward.
BEST_BAR, BEST_BATCHES = 1.3, (32, 256)
RIVALS = ("eager", "compiled", "warp")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Row:
    """One line of the result: seconds a call (median), ratios and the bar."""

    what: str
    batch: int
    ours_s: float
    other_s: float
    other: str
    ratio: float  # other_s / ours_s, or ours_s / other_s where the bar is an upper bound
    best_ratio: float  # the same from the best times
    bar: str
    met: bool | None


@dataclass(frozen=True)
class Times:
    """Seconds a call."""

    median: float
    best: float


@dataclass(frozen=True)
class Bodies:
    """Random people: poses (B, 46) rad, betas (B, 10), trans (B, 3) m."""

    poses: Tensor
    betas: Tensor
    trans: Tensor

    @staticmethod
    def random(batch: int, deviation: float = 0.4, seed: int = 0) -> "Bodies":
        generator = torch.Generator().manual_seed(seed)
        return Bodies(
            deviation * torch.randn(batch, 46, generator=generator),
            torch.randn(batch, 10, generator=generator),
            torch.randn(batch, 3, generator=generator),
        )


def ours(skel: SKEL, bodies: Bodies, skeleton: bool = False) -> Tensor:
    out = skel(bodies.poses, bodies.betas, bodies.trans, skeleton)
    return out.skin_vertices if out.skeleton_vertices is None else out.skeleton_vertices


def peer(forward_vertices: Callable[..., Tensor], bodies: Bodies) -> Tensor:
    poses = bodies.poses
    body = torch.cat((poses[:, :23], poses[:, 26:]), 1)
    return forward_vertices(
        body, poses[:, 23:26], shape=bodies.betas, global_translation=bodies.trans
    )


def rival_passes(path: Path, gender: str, names: list[str]) -> dict[str, Callable[..., Tensor]]:
    """`forward_vertices` of body-models in each of its modes."""
    passes: dict[str, Callable[..., Tensor]] = {}
    for name in names:
        kernels = {"kernel_backend": "warp"} if name == "warp" else {}
        forward = PeerSkel(model_path=path, gender=gender, **kernels).forward_vertices
        passes[name] = torch.compile(forward) if name == "compiled" else forward
    return passes


def with_backward(forward: Callable[[Bodies], Tensor], bodies: Bodies) -> Tensor:
    poses = bodies.poses.detach().requires_grad_()
    trans = bodies.trans.detach().requires_grad_()
    loss = forward(Bodies(poses, bodies.betas, trans)).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (poses, trans))])


def interleaved(
    calls: dict[str, Callable[[], Tensor]],
    repeats: int,
    clock: Callable[[], float],
    seconds: float = 0.25,
) -> dict[str, Times]:
    """Seconds of a clock a call of each, after a warm-up; one turn each per repeat."""
    counts = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        counts[name] = max(1, round(seconds / (clock() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            for _ in range(counts[name]):
                call()
            times[name].append((clock() - start) / counts[name])
    return {name: Times(statistics.median(v), min(v)) for name, v in times.items()}


def speed_rows(
    skel: SKEL,
    rivals: dict[str, Callable[..., Tensor]],
    batches: list[int],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    rows = []
    for batch in batches:
        bodies = Bodies.random(batch)
        with torch.no_grad():
            times = interleaved(
                {
                    "ours": lambda b=bodies: ours(skel, b),
                    **{k: lambda b=bodies, f=f: peer(f, b) for k, f in rivals.items()},
                    "bones": lambda b=bodies: ours(skel, b, True),
                },
                repeats,
                clock,
            )
        bones, skin = times.pop("bones"), times["ours"]
        rows += compared("skin, no grad", batch, times)
        backward = interleaved(
            {
                "ours": lambda b=bodies: with_backward(lambda x: ours(skel, x), b),
                **{
                    k: lambda b=bodies, f=f: with_backward(lambda x: peer(f, x), b)
                    for k, f in rivals.items()
                },
            },
            repeats,
            clock,
        )
        rows += compared("skin, forward + backward", batch, backward)
        cost = bones.median / skin.median
        bar = BONES_BAR if batch == BONES_BATCH else None
        rows.append(
            Row(
                "skin + bones against skin", batch, bones.median, skin.median, "our skin", cost,
                bones.best / skin.best, f"<= {bar:g}" if bar else "",
                cost <= bar if bar else None,
            )
        )  # fmt: skip
    return rows


def compared(what: str, batch: int, times: dict[str, Times]) -> list[Row]:
    """Ours against each rival; the fastest of them carries the bar where several ran."""
    mine = times["ours"]
    rivals = {name: t for name, t in times.items() if name != "ours"}
    fastest = min(rivals, key=lambda name: rivals[name].median)
    rows = []
    for name, theirs in rivals.items():
        bar = BARS.get((what, batch)) if name == "eager" else None
        if name == fastest and len(rivals) > 1 and batch in BEST_BATCHES:
            bar = max(bar or 0.0, BEST_BAR)
        ratio = theirs.median / mine.median
        rows.append(
            Row(
                what, batch, mine.median, theirs.median, f"body-models, {name}", ratio,
                theirs.best / mine.best, f">= {bar:g}" if bar else "",
                ratio >= bar if bar else None,
            )
        )  # fmt: skip
    return rows


def errors(path: Path, gender: str, rival: Callable[..., Tensor]) -> dict[str, dict[str, float]]:
    """Largest float32 differences in metres, by pose deviation, trans = 0."""
    single = load_skel(path, gender)
    double = load_skel(path, gender, dtype=torch.float64)
    found = {}
    for deviation in (0.0, 1e-4, 1e-2, 0.2, 0.5, 1.0):
        bodies = Bodies.random(64, deviation)
        zero = torch.zeros_like(bodies.trans)
        with torch.no_grad():
            a = single(bodies.poses, bodies.betas, zero, True)
            b = double(bodies.poses.double(), bodies.betas.double(), zero.double(), True)
            theirs = peer(rival, Bodies(bodies.poses, bodies.betas, zero))
        found[f"{deviation:g}"] = {
            "skin": (a.skin_vertices - b.skin_vertices).abs().max().item(),
            "joints": (a.joints - b.joints).abs().max().item(),
            "bones": (a.skeleton_vertices - b.skeleton_vertices).abs().max().item(),
            "body-models skin": (theirs - b.skin_vertices).abs().max().item(),
        }
    return found


def conditions(threads: int, path: Path, skel: SKEL) -> dict[str, object]:
    names = ("torch", "numpy", "body-models")
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),) * 3
    return {
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load average at start": [round(x, 2) for x in load],
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "dtype": "float32",
        "device": str(skel.device),
        "file": path.name,
        "bone vertices": len(skel.skeleton_template),
        "betas": "one set for each mesh",
    }


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def markdown(where: dict[str, object], rows: list[Row], found: dict[str, dict[str, float]]) -> str:
    lines = ["## Forward pass", "", "| condition | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in where.items()]
    lines += [
        "",
        "| what | batch | ours, ms | ours, meshes/s | against | its ms | ratio | "
        "best | bar | met |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        met = "" if r.met is None else ("yes" if r.met else "**no**")
        lines.append(
            f"| {r.what} | {r.batch} | {1e3 * r.ours_s:.2f} | {r.batch / r.ours_s:.0f} | "
            f"{r.other} | {1e3 * r.other_s:.2f} | {r.ratio:.2f} | "
            f"{r.best_ratio:.2f} | {r.bar} | {met} |"
        )
    keys = list(next(iter(found.values())))
    lines += [
        "",
        f"Largest float32 error against our float64, micrometres (bar: ours <= "
        f"{ERROR_BAR * 1e6:g}), 64 bodies:",
        "",
        "| pose deviation, rad | " + " | ".join(keys) + " |",
        "| --- |" + " --- |" * len(keys),
    ]
    for deviation, values in found.items():
        cells = " | ".join(f"{1e6 * values[key]:.2f}" for key in keys)
        lines.append(f"| {deviation} | {cells} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="SKEL file or folder")
    parser.add_argument("--gender", default="male", choices=("male", "female"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rivals", nargs="+", default=["eager"], choices=RIVALS)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = args.models
        if models is None:
            models = Path(folder)
            command = [sys.executable, str(GENERATOR), "--seed", "11", "--out", folder]
            subprocess.run([*command, "--gender", args.gender], check=True, capture_output=True)
        path = model_file(models, "skel", args.gender)
        skel = load_skel(path, args.gender)
        rivals = rival_passes(path, args.gender, args.rivals)
        where = conditions(args.threads, path, skel) | {"clock": args.clock}
        found = errors(path, args.gender, rival_passes(path, args.gender, ["eager"])["eager"])
        rows = speed_rows(skel, rivals, args.batches, args.repeats, CLOCKS[args.clock])
    print(markdown(where, rows, found))
    if args.json:
        result = {"conditions": where, "speed": [asdict(r) for r in rows], "errors_m": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
