"""The folder of a training run: who works in it, what it is bound to, how a run ended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Progress:
    """Where a run is. step: optimiser steps done; validated: step of the last validation."""

    step: int = 0
    validated: int = -1
    best: float = math.inf
    best_step: int = -1
    bad_validations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a run ended. reason: finished, minutes, patience.

    scores: of the last validation. best: the score that `select` names, millimetres, of the
    weights in best.pt, from the validation after `best_step`; None without a validation split.
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
        write_json(self.path / SUMMARY, {**asdict(result), "out": str(result.out)})


def binding(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that decide the trajectory."""
    content = recipe.model_dump(mode="json")
    for place in _FREE:
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
        lines += [(f"best {name}", f"{result.best:.1f} mm at step {result.best_step}")]
    if result.scores:
        lines += [
            ("validation rows", str(result.scores.rows)),
            ("last MPJPE", f"{result.scores.mpjpe:.1f} mm"),
            ("last PA-MPJPE", f"{result.scores.pa_mpjpe:.1f} mm"),
            ("last 2D keypoints", f"{result.scores.keypoints_2d:.1f} % of the box"),
        ]
    lines += [(f"left out {reason}", str(count)) for reason, count in result.skipped.items()]
    return [*lines, ("weights", str(result.out / BEST))]
