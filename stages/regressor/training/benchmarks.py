"""Named evaluation protocols that a network is scored under while it trains.

The same rows, bodies and metrics as `hmr-skel evaluate`, without intervals. Nothing here draws a
random number, so a run trains to the same weights with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError, UsageError
from stages.regressor.config import Recipe
from stages.regressor.data.images import ImageSource
from stages.regressor.evaluation import setting
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_readers import read_eval_rows
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.metrics import PERCENT
from stages.regressor.evaluation.outcome import Outcome
from stages.regressor.evaluation.predictors import NetworkPredictor
from stages.regressor.evaluation.protocols import EvaluationProtocol, load_protocol, pck_name
from stages.regressor.evaluation.scoring import run_protocol, skip_reasons
from stages.regressor.evaluation.trained import ReadyNetwork
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.official import load_human_fov
from stages.regressor.training.distributed import Process

Found = dict[str, dict[str, float]]
"""Protocol -> metric -> value."""


@dataclass(frozen=True)
class Places:
    """Where benchmarks are. data: label file or converted dataset of a protocol; images: their
    folder or tar; root: data root of all others; shards: of protocols on shards; fov: weights of
    HumanFOV, which then says every focal length, of pictures with fov_channels."""

    data: Mapping[str, Path]
    images: Mapping[str, Path]
    root: Path
    shards: Path
    fov: Path | None = None
    fov_channels: Literal["rgb", "bgr", "protocol"] = "rgb"


@dataclass(frozen=True)
class Benchmark:
    """A protocol with the rows that are scored. fov, fov_channels: see `ReadyNetwork`; cameras:
    picture -> (3, 3) intrinsics that one validation has found, for those that follow."""

    protocol: EvaluationProtocol
    rows: EvalRows
    images: ImageSource
    bodies: EvaluationBodies
    fov: HumanFOV | None = None
    fov_channels: Literal["rgb", "bgr"] = "rgb"
    cameras: dict[str, np.ndarray] = field(default_factory=dict)


def open_benchmarks(
    recipe: Recipe, places: Places, models: Path, standin: bool
) -> tuple[Benchmark, ...]:
    """Those of `train.benchmarks`.

    Raises:
        UsageError: no such protocol, or a place of one that is not among them.
        InputError: label file, pictures or weights are missing, no row can be used, other bodies.
    """
    names = recipe.train.benchmarks
    for name in (*places.data, *places.images):
        if name not in names:
            raise UsageError(
                f"'{name}' is none of the recipe's train.benchmarks ({', '.join(names) or 'empty'})"
            )
    if places.fov is not None and not names:
        raise UsageError("--fov-checkpoint: for train.benchmarks, and the recipe has none")
    bodies = EvaluationBodies(models)
    fov = load_human_fov(places.fov) if places.fov is not None else None
    found = tuple(_opened(name, recipe, places, bodies, standin, fov) for name in names)
    selected, _, metric = recipe.train.select.partition(":")
    for benchmark in found:
        known = benchmark.protocol.point_metrics  # errors: lower is better
        if metric and benchmark.protocol.name == selected and metric not in known:
            raise UsageError(
                f"train.select {recipe.train.select}: expected one of {', '.join(known) or 'none'}"
            )
    return found


def _opened(
    name: str, recipe: Recipe, places: Places, bodies: EvaluationBodies, standin: bool,
    fov: HumanFOV | None,
) -> Benchmark:  # fmt: skip
    protocol = load_protocol(name)
    given = places.data.get(name)
    path = setting.find_labels(
        protocol, shards=given or places.shards, labels=given, root=places.root
    )
    below = places.root / protocol.source.images if protocol.source.images else None
    rows = read_eval_rows(protocol, path, places.images.get(name) or below)
    if rows.standin is not None and rows.standin != standin:
        kind = {True: "the stand-in body", False: "licensed body models"}
        raise InputError(
            f"{path}: benchmark {name} was converted with {kind[rows.standin]}, the run has "
            f"{kind[standin]}"
        )
    images = setting.open_pictures(rows, True, protocol)
    assert images is not None
    rows = replace(rows, reason=skip_reasons(rows, images))
    usable = np.flatnonzero(rows.reason == "")
    if not len(usable):
        raise InputError(f"{path}: no row of benchmark {name} can be used")
    wanted = recipe.train.benchmark_rows
    if wanted and wanted < len(usable):
        usable = usable[np.linspace(0, len(usable) - 1, wanted).astype(int)]
    rows = rows.take(usable)
    unknown = int((~np.isfinite(rows.cam_int).all((1, 2))).sum())
    if fov is None and 0 < unknown < len(rows):  # said now, not after an epoch
        raise InputError(
            f"{path}: {unknown} of {len(rows)} rows of benchmark {name} have no intrinsics; give "
            "all rows theirs, or none: then the picture's diagonal is taken; or --fov-checkpoint"
        )
    channels = protocol.fov_channels if places.fov_channels == "protocol" else places.fov_channels
    return Benchmark(protocol, rows, images, bodies, fov, channels)


def score_benchmarks(
    benchmarks: Sequence[Benchmark], network: nn.Module, recipe: Recipe, standin: bool,
    process: Process,
) -> Found:  # fmt: skip
    """Score `network` (in evaluation mode); the rows are shared among the processes."""
    found = {}
    for benchmark in benchmarks:
        ready = ReadyNetwork(
            recipe, network, process.device, standin=standin, focal=benchmark.fov,
            fov_channels=benchmark.fov_channels,
        )  # fmt: skip
        found[benchmark.protocol.name] = _score(benchmark, ready, process)
    return found


def _score(benchmark: Benchmark, ready: ReadyNetwork, process: Process) -> dict[str, float]:
    protocol = benchmark.protocol
    rows = benchmark.rows.take(np.arange(process.rank, len(benchmark.rows), process.world))
    outcome = None
    if len(rows):
        focal = setting.focal_rule(protocol, "auto", benchmark.fov is not None, benchmark.rows)
        predictor = NetworkPredictor(ready, focal=focal, cameras=benchmark.cameras)
        outcome = run_protocol(
            protocol, rows, predictor, benchmark.bodies, images=benchmark.images, reason=rows.reason
        )
    names = protocol.metrics
    shares = process.sum(torch.stack([_share(outcome, name) for name in names])).cpu()
    values = {}
    for name, (right, counted) in zip(names, shares.unbind(0), strict=True):
        there = counted > 0
        value = (right[there] / counted[there]).mean() if there.any() else torch.tensor(torch.nan)
        values[name] = float(value) * (PERCENT if name.startswith("pck") else 1.0)
    return values


def _share(outcome: Outcome | None, name: str) -> Tensor:
    """(2, 44) sums and counts: of each keypoint for PCK, else in the first column alone."""
    result = torch.zeros(2, 44, dtype=torch.float64)
    if outcome is None:
        return result
    threshold = next((t for t in outcome.hits if name == pck_name(t)), None)
    if threshold is None:
        values = outcome.values[name]
        known = np.isfinite(values)
        result[0, 0], result[1, 0] = float(values[known].sum()), float(known.sum())
    else:
        assert outcome.visible is not None
        result[0] = torch.as_tensor(outcome.hits[threshold].sum(0, dtype=np.float64))
        result[1] = torch.as_tensor(outcome.visible.sum(0, dtype=np.float64))
    return result
