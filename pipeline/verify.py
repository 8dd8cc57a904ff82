"""Verify a finished dataset: every byte, every row, and a sample of the fits done again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.atomic import read_sealed
from pipeline.columns import RESULT_COLUMNS, SKEL_COLUMNS
from pipeline.errors import InputError
from pipeline.fitters import Fitter, registered_fitter
from pipeline.plan import Plan
from pipeline.provenance import file_record
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.receipts import ShardState, shard_path
from pipeline.rundir import RunDirectory
from pipeline.shards import open_shard, read_column, root_attributes
from pipeline.summary import summarise
from pipeline.task import conversion_models, open_plan_source
from skel_fit.status import rejected_rows

SAMPLE_ROWS = 256
RESIDUAL_TOLERANCE = 2e-5
"""Metres between a stored and a recomputed residual: float32 columns, float64 recomputation."""


@dataclass(frozen=True)
class Verification:
    """`ok` is true when the dataset is complete and nothing is wrong with it."""

    ok: bool
    rows: int
    digest: str | None
    problems: tuple[str, ...]
    sampled: int
    largest_residual_difference: float


def verify(
    directory: Path,
    *,
    data_root: Path | None = None,
    models: Path | None = None,
    device: str = "cpu",
    sample: int = SAMPLE_ROWS,
) -> Verification:
    """Re-read every shard, account for every row, recompute the residuals of a sample.

    Args:
        directory: the run directory.
        data_root, models: where the inputs are now; by default where the conversion had them.
        device: where residuals are recomputed.
        sample: rows to recompute, spread over every shard (all rows if there are fewer).

    Raises:
        InputError: not a converted dataset, or the source or the models are not to be found.
    """
    run = RunDirectory(directory)
    plan = run.plan()
    states = run.inspect_all(plan, results=True)
    problems = [
        f"shard {state.shard}: {state.reason or 'not converted'}"
        for state in states
        if state.state != "done"
    ]
    done = [state for state in states if state.state == "done"]
    for state in done:
        problems += [f"shard {state.shard}: {text}" for text in _check_shard(run.path, plan, state)]
    summary = summarise(plan, states)
    problems += _check_summary(run, plan, summary.to_json())
    problems += [f"{name}: belongs to no shard of the plan; remove it" for name in run.strays(plan)]
    sampled, largest = 0, 0.0
    if done:
        source = _find_source(run, plan, data_root)
        fitter = _open_fitter(run, plan, models, device)
        intact = [state for state in done if not _named(problems, state.shard)]
        checks = _check_sample(run.path, plan, intact, source, fitter, sample)
        for found, size, difference in checks:
            problems += found
            sampled += size
            largest = max(largest, difference)
    return Verification(
        ok=not problems and summary.complete,
        rows=summary.rows_written,
        digest=summary.digest,
        problems=tuple(problems),
        sampled=sampled,
        largest_residual_difference=largest,
    )


def spread(capacities: Sequence[int], total: int) -> list[int]:
    """How many rows to take from each shard: as even as the shards allow, `total` in all."""
    taken = [0] * len(capacities)
    while sum(taken) < min(total, sum(capacities)):
        room = [index for index, capacity in enumerate(capacities) if taken[index] < capacity]
        share = max(1, -(-(total - sum(taken)) // len(room)))
        for index in room:
            taken[index] = min(capacities[index], taken[index] + share)
    return taken


def _check_shard(directory: Path, plan: Plan, state: ShardState) -> Iterator[str]:
    """What is wrong inside a shard whose bytes match its receipt."""
    path = shard_path(directory, state.shard)
    try:
        with open_shard(path, sealed=plan.sealed) as file:
            yield from _check_attributes(file, plan, state)
            yield from _check_columns(file, plan, state)
    except InputError as error:
        yield str(error)


def _check_attributes(file: h5py.File, plan: Plan, state: ShardState) -> Iterator[str]:
    expected = root_attributes(plan, state.shard, state.concessions)
    for name in sorted(expected.keys() | set(file.attrs)):
        if name not in expected or name not in file.attrs or file.attrs[name] != expected[name]:
            yield f"root attribute '{name}' is not what the plan says"


def _check_columns(file: h5py.File, plan: Plan, state: ShardState) -> Iterator[str]:
    start, stop = plan.rows_of(state.shard)
    shapes = {name: column.shape for name, column in RESULT_COLUMNS.items()}
    shapes |= {item.stored: item.shape for item in plan.fields}
    unknown = sorted(set(file) ^ set(shapes))
    if unknown:
        yield f"column '{unknown[0]}' is missing or unknown"
        return
    columns = {}
    for name, shape in shapes.items():
        values = read_column(file, name)
        if values.shape != (stop - start, *shape):
            yield f"column '{name}' has shape {values.shape}, expected {(stop - start, *shape)}"
        if name in RESULT_COLUMNS:
            columns[name] = values
    for item in plan.fields:
        if file[item.stored].attrs["source_dtype"] != item.dtype:
            yield f"column '{item.stored}' is not {item.dtype} as in the label file"
    if not np.array_equal(columns["source_row"], np.arange(start, stop)):
        yield f"source_row is not {start} to {stop - 1}"
    assert state.receipt is not None
    if dict(Counter(columns["status"].tolist())) != dict(state.receipt.status):
        yield "status counts differ from the receipt"
    yield from _check_results(columns)


def _check_results(columns: dict[str, np.ndarray]) -> Iterator[str]:
    """Fitted rows are finite, rejected rows NaN."""
    rejected = rejected_rows(columns["status"])
    for name, column in RESULT_COLUMNS.items():
        if column.rejected is None or not np.isnan(column.rejected):
            continue
        values = columns[name].reshape(len(rejected), -1)
        if column.finite and not np.isfinite(values[~rejected]).all():
            yield f"'{name}' of a fitted row is not finite"
        if not np.isnan(values[rejected]).all():
            yield f"'{name}' of a rejected row is not NaN"


def _check_summary(run: RunDirectory, plan: Plan, expected: dict[str, Any]) -> Iterator[str]:
    if not run.summary_path.is_file():
        yield "summary.json is missing; rerun the conversion"
        return
    try:
        written = read_sealed(run.summary_path, required=plan.sealed)
    except InputError as error:
        yield str(error)
        return
    expected = json.loads(json.dumps(expected))
    if not plan.sealed:  # of schema version 1, percentiles came from bins of 0.1 mm
        written["vertex_error_mean"] = expected["vertex_error_mean"]
    if written != expected:
        yield "summary.json does not say what the shards say; rerun the conversion"


def _check_sample(
    directory: Path,
    plan: Plan,
    states: Sequence[ShardState],
    source: AnnotationSource,
    fitter: Fitter,
    total: int,
) -> Iterator[tuple[list[str], int, float]]:
    """(problems, rows, largest difference) of the sampled rows of each shard."""
    fitted = [s.receipt.rows - s.receipt.rejected for s in states if s.receipt is not None]
    for state, size in zip(states, spread(fitted, total), strict=True):
        if not size:
            continue
        with open_shard(shard_path(directory, state.shard), sealed=plan.sealed) as file:
            status = read_column(file, "status")
            candidates = np.flatnonzero(~rejected_rows(status))
            chosen = candidates[np.linspace(0, len(candidates) - 1, size).astype(np.int64)]
            stored = {name: read_column(file, name, chosen) for name in file}
        start, _ = plan.rows_of(state.shard)
        rows = [source.read(start + int(row), start + int(row) + 1) for row in chosen]
        problems = [f"shard {state.shard}: {text}" for text in _compare(plan, stored, rows)]
        difference = _recompute(fitter, stored, rows)
        if difference > RESIDUAL_TOLERANCE:
            problems.append(
                f"shard {state.shard}: a stored residual is {difference * 1000:.3f} mm off "
                "its recomputation"
            )
        yield problems, size, difference


def _compare(
    plan: Plan, stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows]
) -> Iterator[str]:
    """Original columns, bit for bit, and the genders."""
    for item in plan.fields:
        original = np.concatenate([row.fields[item.source] for row in rows])
        if original.tobytes() != stored[item.stored].tobytes():
            yield f"column '{item.stored}' differs from the label file"
    for name in ("smpl_gender", "skel_gender"):
        if [str(getattr(row, name)[0]) for row in rows] != stored[name].tolist():
            yield f"column '{name}' differs from the label file"


def _recompute(
    fitter: Fitter, stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows]
) -> float:
    """Largest difference (m) between stored and recomputed residuals."""
    poses, betas, transl = (
        np.concatenate([getattr(row, name) for row in rows])
        for name in ("poses", "betas", "transl")
    )
    skel_poses, skel_betas, skel_trans = (stored[name].astype(np.float64) for name in SKEL_COLUMNS)
    pairs = list(zip(stored["smpl_gender"].tolist(), stored["skel_gender"].tolist(), strict=True))
    largest = 0.0
    for pair in sorted(set(pairs)):
        chosen = np.array([index for index, found in enumerate(pairs) if found == pair])
        mean, peak = fitter.residuals(
            pair,
            (poses[chosen], betas[chosen], transl[chosen]),
            (skel_poses[chosen], skel_betas[chosen], skel_trans[chosen]),
        )
        for name, again in (("vertex_error_mean", mean), ("vertex_error_max", peak)):
            difference = np.abs(stored[name][chosen].astype(np.float64) - again)
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max()))
    return largest


def _find_source(run: RunDirectory, plan: Plan, data_root: Path | None) -> AnnotationSource:
    """The label file, checked to be the one that was converted."""
    places = run.places(plan)
    noted = Path(places.get("source") or plan.source_files[0].name)
    root = Path(places.get("data_root") or ".")
    if data_root is not None:
        noted = data_root / (noted.relative_to(root) if noted.is_relative_to(root) else noted.name)
        root = data_root
        if not noted.exists():  # a fetched copy does not know the folder below the root
            noted = next(iter(sorted(root.rglob(noted.name))), noted)
    if not noted.exists():
        raise InputError(
            f"{noted}: the label file that was converted is not there; "
            "give --data-root so that residuals can be recomputed"
        )
    source = open_plan_source(plan, noted, root)
    if tuple(file_record(Path(path)) for path in source.files) != plan.source_files:
        raise InputError(f"{noted}: is not the label file that was converted; restore it")
    return source


def _open_fitter(run: RunDirectory, plan: Plan, models: Path | None, device: str) -> Fitter:
    factory = registered_fitter(plan.fitter)
    directory = None
    if factory.needs_models:
        directory = conversion_models(plan, run.places(plan).get("models"), models)
    return factory.open(directory, device, plan.request)


def _named(problems: Sequence[str], shard: int) -> bool:
    return any(text.startswith(f"shard {shard}:") for text in problems)
