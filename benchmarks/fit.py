"""The solver against its slow twin and the published recipe: speed and residuals, one process.

    python -m benchmarks.fit [--rows 1024] [--threads 2] [--device cpu] [--quick] [--no-published]
                             [--json FILE] [--picture FILE]

Every method gets the same SMPL parameters and is judged by the same exact forward pass. The slow
methods run in pieces; between two pieces each of our variants and the floor take their turn, so
all of them see the same load. Prints Markdown; --json writes the same numbers and every row's
residual. Below 6 minutes on two quiet cores.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure import (
    Clock,
    Pair,
    Residuals,
    conditions,
    markdown_conditions,
    markdown_table,
    residuals,
    set_threads,
    synchronise,
    violations,
)
from benchmarks.poses import Frames, extreme, real
from benchmarks.published_recipe import PublishedFit, Root
from skel_fit.fit import FitResult, fit_skel
from skel_fit.recipe import FitConfig
from skel_fit.solver.dense import DenseProblem
from skel_fit.solver.engine import Solver

FLOOR_ROWS = 256
BATCHES = (1, 20, 64, 256, 1024)
MAX_REPEATS = 9
COST_BAR, COST_STRETCH, RATIO_BAR, SINGLE_BAR_MS, STAGING_BAR = 20.0, 12.0, 500.0, 30.0, 1.5
BAR_FIELDS = ("bar", "measured", "asked", "met")
GPU_BAR, GPU_STRETCH = 10_000.0, 50_000.0


@dataclass
class Variant:
    """One way to call our solver; `rows` a call, taken in turn from the frames."""

    name: str
    config: FitConfig
    rows: int
    clock: Clock = field(default_factory=Clock)
    turn: int = 0

    def call(self, pair: Pair, frames: Frames) -> None:
        """Fit the next rows and note the time."""
        begin = (self.turn * self.rows) % max(1, len(frames) - self.rows + 1)
        part = frames.rows(slice(begin, begin + self.rows))
        self.clock.call(lambda: ours(pair, part, self.config))
        self.turn += 1

    @property
    def seconds(self) -> float:
        """Wall seconds a row."""
        return self.clock.wall / self.rows


@dataclass
class Rival:
    """A slow method on a batch of frames: its pieces, its time, and where it ended."""

    name: str
    frames: Frames
    pieces: Iterator[object]
    result: Callable[[], tuple[Tensor, Tensor]]  # poses (n, 46), trans (n, 3)
    evaluations: Callable[[], int]
    clock: Clock = field(default_factory=Clock)

    def advance(self) -> bool:
        """One more piece; False at the end."""
        return self.clock.call(lambda: next(self.pieces, None)) is not None

    @property
    def seconds(self) -> float:
        """Wall seconds a row, all pieces together."""
        return sum(self.clock.walls) / len(self.frames)

    @property
    def cpu(self) -> float:
        """Processor seconds a row."""
        return sum(self.clock.cpus) / len(self.frames)


def ours(pair: Pair, frames: Frames, config: FitConfig) -> FitResult:
    """From SMPL parameters to judged result."""
    return fit_skel(pair.skel, pair.smpl, frames.poses, frames.betas, frames.transl, config)


def variants(rows: int, device: str) -> list[Variant]:
    """Our solver at several batch sizes, and other recipes and limits at one."""
    made = []
    batches = [b for b in BATCHES if b <= rows] if device == "cpu" else [1, min(rows, 256), rows]
    for batch in dict.fromkeys(batches):
        size = min(batch, 64) if device == "cpu" else batch
        made.append(Variant("hierarchical", FitConfig(block_size=size), batch))
    size = 64 if device == "cpu" else rows
    many = min(rows, 256) if device == "cpu" else rows
    made.append(Variant("full", FitConfig(recipe="full", block_size=size), many))
    made.append(Variant("hierarchical, no limits", FitConfig(limits="none", block_size=size), many))
    return made


def published(pair: Pair, frames: Frames, root: Root, steps: int) -> Rival:
    """The published recipe on one batch."""
    fit = PublishedFit(pair.skel, pair.smpl, frames, root, steps=steps)
    name = f"published, root {root}, {frames.name}"
    return Rival(name, frames, fit.run(), lambda: (fit.poses, fit.trans), lambda: fit.evaluations)


def slow_twin(pair: Pair, frames: Frames, steps: int) -> Rival:
    """The dense twin, from the pose where our coarse stages start, without limits."""
    solver = Solver.of(pair.skel, pair.smpl, FitConfig(recipe="full", limits="none"))
    goal = solver.smpl_goal(frames.poses, frames.betas)
    problem = DenseProblem.of(pair.skel64, solver, -1, goal, frames.betas)
    first = ours(pair, frames, FitConfig(limits="none"))
    state = {"poses": torch.zeros(len(frames), 49, dtype=torch.float64), "steps": 0}
    rotations = goal(torch.arange(len(frames))).rotations
    free = torch.full((49,), torch.inf, dtype=torch.float64)
    branch = torch.zeros(24, dtype=torch.int64)
    state["poses"] = solver.kernels.start(
        rotations, solver.kernels.identity(frames.betas), -free, free, branch
    )

    def pieces() -> Iterator[int]:
        for step in range(steps):
            before = state["poses"]
            state["poses"], _ = problem.minimise(before, steps=2)
            state["steps"] += 2
            if (state["poses"] - before).abs().max() < 1e-4:
                return
            yield step + 1

    def result() -> tuple[Tensor, Tensor]:
        # root and translation are frozen in closed form: ours are its own
        poses = torch.cat([first.poses[:, :3].double(), state["poses"][:, 3:46]], dim=1)
        return poses, first.trans

    return Rival(f"slow twin, {frames.name}", frames, pieces(), result, lambda: state["steps"])


def floor(device: str) -> Callable[[], Tensor]:
    """The corrective matrix product of 256 rows: (20670 x 207) by (207 x 256)."""
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(20670, 207, generator=draw).to(device)
    right = torch.randn(207, FLOOR_ROWS, generator=draw).to(device)
    return lambda: left @ right


def interleave(
    pair: Pair, frames: Frames, ours_: list[Variant], rivals: list[Rival], device: str
) -> Clock:
    """Everything in turn until the rivals are done and each of ours has enough repeats."""
    product, floor_clock = floor(device), Clock()
    for variant in ours_:  # first calls compile and build tables: not counted
        ours(pair, frames.rows(slice(0, variant.rows)), variant.config)
    product()
    running = list(rivals)
    for turn in itertools.count():
        running = [rival for rival in running if rival.advance()]
        variant = ours_[turn % len(ours_)]
        if len(variant.clock.walls) < MAX_REPEATS:
            variant.call(pair, frames)
            for _ in range(3):
                floor_clock.call(product)
        if not running and all(len(v.clock.walls) >= 3 for v in ours_):
            return floor_clock


# --- where the time goes -------------------------------------------------------------------


class Parts(TorchFunctionMode):
    """Time of the solver's matrix products, told apart by the matrix on their left."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.names = {id(solver.smpl_side.basis): "target"}
        for plan in solver.plans:
            self.names[id(plan.vertices.basis)] = "correctives"
            self.names[id(plan.vertices.moment_basis)] = "shape moments"
        self.columns = solver.plans[-1].vertices.pose_basis.shape[1]
        self.inside = 0.0  # seconds of the parts within the part that is timed

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul):
            return function(*args, **(kwargs or {}))
        name = self.names.get(id(args[0])) or self.names.get(id(args[1]), "other products")
        if args[0].dim() == 2 and args[0].shape[0] == self.columns:
            name = "correctives"  # the transposed product of the gradient
        return self.time(name, lambda: function(*args, **(kwargs or {})))

    def time(self, name: str, work: Callable[[], object]) -> object:
        """Run the work and add its time to a part, less that of parts within."""
        synchronise()
        before, self.inside = self.inside, 0.0
        begin = time.perf_counter()
        result = work()
        synchronise()
        took = time.perf_counter() - begin
        self.seconds[name] += took - self.inside
        self.inside = before + took
        return result


PART_OF_KERNEL = {
    "pose_smpl": "target",
    "skinned": "target",
    "identity": "kinematics and start",
    "start": "kinematics and start",
    "evaluate": "kinematics and start",
    "evidence": "exact passes",
    "minimise": "inner steps",
    "judged": "final residual",
    "extra_energy": "final residual",
}


class TimedKernels:
    """The solver's kernels with a stop watch around each."""

    def __init__(self, kernels: object, parts: Parts) -> None:
        self._kernels, self._parts = kernels, parts

    def __getattr__(self, name: str) -> object:
        method = getattr(self._kernels, name)
        if name not in PART_OF_KERNEL:
            return method
        return lambda *args: self._parts.time(PART_OF_KERNEL[name], lambda: method(*args))


def breakdown(pair: Pair, frames: Frames, config: FitConfig) -> dict[str, float]:
    """Seconds a row of each part of a fit, the rest (bookkeeping) last."""
    solver = Solver.of(pair.skel, pair.smpl, config)
    device = pair.skel.template.device
    poses, betas = frames.poses.to(device), frames.betas.to(device)
    solver.solve(solver.smpl_goal(poses, betas), betas)
    parts = Parts(solver)
    solver = replace(solver, kernels=TimedKernels(solver.kernels, parts))
    goal = solver.smpl_goal(poses, betas)
    clock = Clock()
    with parts:
        clock.call(lambda: solver.solve(goal, betas))
    found = {name: value / len(frames) for name, value in parts.seconds.items()}
    return found | {"bookkeeping": clock.wall / len(frames) - sum(found.values())}


# --- report --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Residuals and limit violations of one method on one frame set."""

    method: str
    frames: str
    rows: int
    distances: Residuals
    outside: dict[str, float]


def judge_ours(pair: Pair, frames: Frames) -> list[Judged]:
    """Our default, the same without limits, and the one-stage recipe."""
    found = []
    for name, config in (
        ("ours", FitConfig()),
        ("ours, no limits", FitConfig(limits="none")),
        ("ours, full, no limits", FitConfig(recipe="full", limits="none")),
    ):
        fit = ours(pair, frames, config)
        distances = residuals(pair, frames, fit.poses, fit.trans, fit.betas)
        outside = violations(fit.poses.cpu(), "default")
        found.append(Judged(name, frames.name, len(frames), distances, outside))
    return found


def judge_rival(pair: Pair, rival: Rival) -> Judged:
    """Where a rival ended."""
    poses, trans = rival.result()
    return Judged(
        rival.name.rpartition(",")[0],
        rival.frames.name,
        len(rival.frames),
        residuals(pair, rival.frames, poses, trans),
        violations(poses, "default"),
    )


def speed_rows(ours_: list[Variant], rivals: list[Rival], per_row: float) -> list[tuple]:
    """fits/s, CPU seconds and the cost in floors of every method."""
    best = min(v.seconds for v in ours_ if v.name == "hierarchical")
    rows = [
        (
            f"ours, {v.name}", v.rows, len(v.clock.walls), 1 / v.seconds,
            1e3 * v.seconds, 1e3 * v.clock.cpu / v.rows, v.seconds / per_row, v.seconds / best,
        )
        for v in ours_
    ]  # fmt: skip
    rows += [
        (
            r.name, len(r.frames), 1, 1 / r.seconds, 1e3 * r.seconds, 1e3 * r.cpu,
            r.seconds / per_row, r.seconds / best,
        )
        for r in rivals
    ]  # fmt: skip
    return rows


def bars(ours_: list[Variant], rivals: list[Rival], per_row: float, device: str) -> list[tuple]:
    """The bars of the solver issue with what was measured."""
    default = [v for v in ours_ if v.name == "hierarchical"]
    best = min(default, key=lambda v: v.seconds)
    found: list[tuple] = []
    if device == "cpu":
        cost = best.seconds / per_row
        found.append(
            ("cost of a row in corrective products", cost, f"<= {COST_BAR:g}", cost <= COST_BAR)
        )
        found.append(("the same, stretch", cost, f"<= {COST_STRETCH:g}", cost <= COST_STRETCH))
    else:
        rate = 1 / best.seconds
        found.append(("fits/s", rate, f">= {GPU_BAR:,.0f}", rate >= GPU_BAR))
        found.append(("the same, stretch", rate, f">= {GPU_STRETCH:,.0f}", rate >= GPU_STRETCH))
    twenty = [r for r in rivals if r.name.startswith("published") and len(r.frames) == 20]
    for rival in twenty:
        ratio = rival.seconds / best.seconds
        found.append((f"{rival.name}, batch 20, against ours", ratio, ">= 500", ratio >= RATIO_BAR))
        cpu = rival.cpu / (best.clock.cpu / best.rows)
        found.append(("the same in CPU seconds", cpu, ">= 500", cpu >= RATIO_BAR))
    single = [v for v in default if v.rows == 1]
    if single and device == "cpu":
        took = 1e3 * single[0].seconds
        found.append(("a single row, ms", took, f"< {SINGLE_BAR_MS:g}", took < SINGLE_BAR_MS))
    full = next(v for v in ours_ if v.name == "full")
    same = next((v for v in default if v.rows == full.rows), None)
    if same:
        staging = same.seconds / full.seconds
        found.append(
            ("hierarchical against full", staging, f"<= {STAGING_BAR:g}", staging <= STAGING_BAR)
        )
    return found


def main() -> None:
    arguments = parser().parse_args()
    set_threads(arguments.threads)
    pair = Pair.default(device=arguments.device)
    frames = real(arguments.rows)
    rivals = [] if arguments.no_published else make_rivals(pair, arguments.quick)
    ours_ = variants(arguments.rows, arguments.device)
    told = conditions(device=arguments.device, threads=arguments.threads)
    floor_clock = interleave(pair, frames, ours_, rivals, arguments.device)
    per_row = floor_clock.wall / FLOOR_ROWS
    count = 20 if arguments.quick else 160
    judged = [j for f in (real(count, 7), extreme(count)) for j in judge_ours(pair, f)]
    for same in {(r.frames.name, len(r.frames)): r.frames for r in rivals}.values():
        judged += judge_ours(pair, same)
    judged += [judge_rival(pair, rival) for rival in rivals]
    judged.sort(key=lambda j: (j.rows >= 100, j.frames, j.rows, j.method))
    size = 64 if arguments.device == "cpu" else arguments.rows
    part = frames.rows(slice(0, min(arguments.rows, 256 if arguments.device == "cpu" else 1 << 20)))
    parts = breakdown(pair, part, FitConfig(block_size=size))
    report(told, ours_, rivals, floor_clock, per_row, judged, parts, arguments)


def make_rivals(pair: Pair, quick: bool) -> list[Rival]:
    """The slow methods: the published recipe at batch 20 (both roots; extreme poses with the exact
    root) and 1, and the slow twin on two rows."""
    steps = 1 if quick else 10
    batch, hard = real(20, 4), extreme(20, 5)
    made = [published(pair, batch, "released", steps), published(pair, batch, "exact", steps)]
    made.append(slow_twin(pair, batch.rows(slice(0, 20, 10)), 1 if quick else 6))
    if not quick:
        made.append(published(pair, hard, "exact", steps))
        made.append(published(pair, batch.rows(slice(10, 11)), "released", steps))
    return made


def report(
    told: dict[str, object],
    ours_: list[Variant],
    rivals: list[Rival],
    floor_clock: Clock,
    per_row: float,
    judged: list[Judged],
    parts: dict[str, float],
    arguments: argparse.Namespace,
) -> None:
    """Markdown on stdout, JSON and the picture where asked for."""
    speed = speed_rows(ours_, rivals, per_row)
    checks = bars(ours_, rivals, per_row, arguments.device)
    total = sum(parts.values())
    print("## Fit: `python -m benchmarks.fit`\n")
    print(markdown_conditions(told) + "\n")
    print(
        f"Floor: one (20670 x 207) by (207 x {FLOOR_ROWS}) product takes "
        f"{1e3 * floor_clock.wall:.2f} ms, {1e6 * per_row:.1f} us a row "
        f"(median of {len(floor_clock.walls)}).\n"
    )
    verdicts = [(*check[:3], "yes" if check[3] else "**no**") for check in checks]
    print(markdown_table(BAR_FIELDS, verdicts) + "\n")
    head = ("method", "batch", "calls", "fits/s", "ms a row", "CPU ms a row", "floors", "x ours")
    print(markdown_table(head, speed) + "\n")
    if rivals:
        counts = ", ".join(f"{r.evaluations()} ({r.name}, {len(r.frames)})" for r in rivals)
        print(f"Evaluations (twin: steps): {counts}.\n")
    print("Where our time goes (hierarchical, default limits), a row:\n")
    head = ("part", "us", "share", "floors")
    rows = [(n, 1e6 * s, f"{s / total:.0%}", s / per_row) for n, s in _ordered(parts)]
    print(markdown_table(head, [*rows, ("sum", 1e6 * total, "100%", total / per_row)]) + "\n")
    print("Vertex distance after an exact forward pass in float64, mm; limits: `default`.\n")
    head = (
        "frames", "rows", "method", "mean", "median", "p95", "max", "RMS", "worst vertex",
        "angles outside, a row", "largest, rad",
    )  # fmt: skip
    rows = [
        (
            j.frames, j.rows, j.method, *j.distances.summary().values(),
            j.outside["angles a row"], j.outside["largest"],
        )
        for j in judged
    ]  # fmt: skip
    print(markdown_table(head, rows))
    if arguments.json:
        content = {
            "conditions": told,
            "floor_s_per_row": per_row,
            "bars": [dict(zip(BAR_FIELDS, check, strict=True)) for check in checks],
            "speed": speed,
            "breakdown_s_per_row": parts,
            "residuals_mm": [
                {
                    "method": j.method,
                    "frames": j.frames,
                    "summary": j.distances.summary(),
                    "outside": j.outside,
                    "mean": j.distances.mean.tolist(),
                    "rms": j.distances.rms.tolist(),
                }
                for j in judged
            ],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.picture:
        picture(judged, arguments.picture)


def _ordered(parts: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda item: -item[1])


def picture(judged: list[Judged], path: Path) -> None:
    """Residuals row by row: the published recipe against ours on the same targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    shown = [j for j in judged if j.rows == 20]
    sets = sorted({j.frames for j in shown}, reverse=True)
    figure, axes = pyplot.subplots(1, len(sets), figsize=(4.6 * len(sets), 3.4), squeeze=False)
    styles = {
        "published, root released": ("tab:red", "x"),
        "published, root exact": ("tab:orange", "+"),
        "ours, no limits": ("tab:blue", "."),
        "ours": ("tab:green", "o"),
    }
    for axis, name in zip(axes[0], sets, strict=True):
        rows = {j.method: j.distances.mean for j in shown if j.frames == name}
        order = np.argsort(rows["ours, no limits"])
        for method, (colour, marker) in styles.items():
            if method not in rows:
                continue
            label = f"{method} ({rows[method].mean():.2f} mm)"
            hollow = {"markerfacecolor": "none"} if marker == "o" else {}
            axis.plot(
                rows[method][order], marker, color=colour, label=label, markersize=6, **hollow
            )
        axis.set(title=f"{name} frames", xlabel="person, sorted by our residual")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("mean vertex distance, mm")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--rows", type=int, default=1024, help="frames for the speed of our solver")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--device", default="cpu")
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    made.add_argument("--no-published", action="store_true", help="leave the slow methods out")
    made.add_argument("--json", type=Path)
    made.add_argument("--picture", type=Path)
    return made


if __name__ == "__main__":
    main()
