"""The folder of a training run: who works in it, what it is bound to, how a run ended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import PlanMismatch
from pipeline.locking import held
from pipeline.output_files import make_directory, write_json
from pipeline.plan import differences
from stages.regressor.config import Recipe
from stages.regressor.network.checkpoints import load_checkpoint
from stages.regressor.training.distributed import Process
from stages.regressor.training.validation import Scores

LAST, BEST, SUMMARY = "last.pt", "best.pt", "summary.json"
# Settings that may change between a run and its resumption: they do not touch the trajectory.
_FREE = ("train.minutes", "train.workers", "train.pictures", "train.checkpoint_every")
_FREE_UNLESS_SELECTING = ("train.benchmarks", "train.benchmark_rows")
_USEFUL = 0.9
"""Error as a share of the mean pose's from which on a network is of no use."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. step: optimiser steps done; validated, refined: step of the last validation,
    of the last refinement of labels; taught: the lifter has seen its generated labels."""

    step: int = 0
    validated: int = -1
    best: float = math.inf
    best_step: int = -1
    bad_validations: int = 0
    seconds: float = 0.0
    refined: int = -1
    taught: bool = False


@dataclass(frozen=True)
class Result:
    """How a run ended. reason: finished, minutes, patience.

    scores: of the last validation. best: the score that `select` names, millimetres, of the
    weights in best.pt, from the validation after `best_step`; None without a validation split.
    mean_pose: what one pose for every picture scores there. benchmarks: protocol -> metric -> value
    of the last validation. refined: labels that refinements replaced; None: there are none.
    """

    out: Path
    reason: str
    steps: int
    epochs: float
    seconds: float
    scores: Scores | None
    select: str
    best: float | None
    best_step: int
    rows: int
    skipped: dict[str, int]
    mean_pose: Scores | None = None
    benchmarks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    refined: int | None = None

    @property
    def share_of_mean_pose(self) -> float | None:
        """The best score as a share of the mean pose's; None where it is of a benchmark, or where
        there is no validation split."""
        if self.best is None or self.mean_pose is None or ":" in self.select:
            return None
        return self.best / max(self.mean_pose.value(self.select), 1e-9)

    @property
    def useful(self) -> bool | None:
        """Clearly better than the mean pose; None: not known."""
        share = self.share_of_mean_pose
        return None if share is None else share < _USEFUL


class RunFolder:
    """`last.pt`, `best.pt` and `summary.json` of a run in `path`."""

    def __init__(self, path: Path, *, no_lock: bool = False) -> None:
        self.path, self.no_lock = path, no_lock

    @contextlib.contextmanager
    def locked(self, process: Process) -> Iterator[None]:
        """Make the folder and keep other runs out of it; the first process holds the lock.

        Raises:
            Locked: another run works in it.
            OutputError: its file system knows no locks.
        """
        make_directory(self.path)
        if not process.is_first:
            process.wait()
            yield
            return
        busy = "another training run works in this folder; wait for it or give another --out"
        with held(self.path / ".lock", busy, without=self.no_lock):
            process.wait()
            yield

    def resumed(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The content of `last.pt`; None where a run begins.

        Raises:
            PlanMismatch: it belongs to a run of another identity.
        """
        path = self.path / LAST
        if not path.is_file():
            return None
        content = load_checkpoint(path)
        held = content["identity"]
        with contextlib.suppress(ValidationError):  # a recipe of another version differs as it is
            # Read with today's defaults: a key that came later meant its default then.
            held = {**held, "recipe": binding(Recipe.model_validate(content["recipe"]))}
        fields = tuple(differences(held, identity))
        if fields:
            raise PlanMismatch(
                f"{self.path}: holds a run with other {', '.join(fields[:6])}; resume it with its "
                "own recipe and data, give another --out, or remove the folder",
                fields,
            )
        return content

    def save_summary(self, result: Result) -> None:
        """`summary.json`."""
        content = {**asdict(result), "out": str(result.out)}
        if result.mean_pose:
            # its 2D error is not scored, and NaN is no JSON
            content["mean_pose"] = {n: getattr(result.mean_pose, n) for n in ("mpjpe", "pa_mpjpe")}
        content |= {"share_of_mean_pose": result.share_of_mean_pose, "useful": result.useful}
        write_json(self.path / SUMMARY, content)


def binding(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that decide the trajectory."""
    content = recipe.model_dump(mode="json")
    free = _FREE if ":" in recipe.train.select else (*_FREE, *_FREE_UNLESS_SELECTING)
    for place in free:
        section, key = place.split(".")
        content[section].pop(key)
    return content


def describe(result: Result) -> Sequence[tuple[str, str]]:
    """Lines of the closing table."""
    lines = [
        ("stopped", result.reason),
        ("steps", f"{result.steps} ({result.epochs:.1f} epochs of {result.rows} rows)"),
        ("time", f"{result.seconds:.0f} s"),
    ]
    if result.best is not None:
        name = result.select.replace("_", "-").upper()
        share = result.share_of_mean_pose
        of_mean = "" if share is None else f", {100 * share:.0f} % of the mean pose's"
        lines += [(f"best {name}", f"{result.best:.1f} mm at step {result.best_step}{of_mean}")]
    if result.useful is False:
        lines += [("not useful", _not_useful(result))]
    if result.scores:
        lines += [
            ("validation rows", str(result.scores.rows)),
            ("last MPJPE", f"{result.scores.mpjpe:.1f} mm"),
            ("last PA-MPJPE", f"{result.scores.pa_mpjpe:.1f} mm"),
            ("last 2D keypoints", f"{result.scores.keypoints_2d:.1f} % of the box"),
        ]
    if result.refined is not None:
        lines += [("labels refined", f"{result.refined} of {result.rows}")]
    for protocol, values in result.benchmarks.items():
        lines += [(protocol, ", ".join(f"{name} {value:.1f}" for name, value in values.items()))]
    lines += [(f"left out {reason}", str(count)) for reason, count in result.skipped.items()]
    return [*lines, ("weights", str(result.out / BEST))]


def _not_useful(result: Result) -> str:
    """Why nobody should use these weights."""
    share = result.share_of_mean_pose or 0.0
    than = "no better than" if share >= 1 else "hardly better than"
    short = (
        "the run is too short to be useful"
        if result.reason != "patience"
        else "the validations stopped getting better before it learnt anything"
    )
    return f"{than} one mean pose for every picture; after {result.epochs:.1f} epochs {short}"
