"""Verify a finished dataset: every byte, every row; residuals of a sample, or of every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.columns import ERROR_COLUMNS, SKEL_COLUMNS, Column, result_columns
from pipeline.errors import InputError
from pipeline.fitters import DEFAULT_FITTER, Fitter, registered_fitter
from pipeline.output_files import read_sealed
from pipeline.plan import Plan
from pipeline.provenance import file_record
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.receipts import ShardState, shard_path
from pipeline.rundir import RunDirectory
from pipeline.shards import column_of, open_shard, read_column, root_attributes
from pipeline.summary import summarise
from pipeline.task import conversion_models, open_plan_source
from pipeline.up_axis import turn_of
from skel_fit.recipe import FitConfig
from skel_fit.status import Status, costly_rows, limited_rows, rejected_rows

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
    compared: tuple[int, ...]
    """Source rows whose values were compared with label file and models, ascending."""
    fitted: int
    """How many of them have a fit, whose errors were computed again."""
    full: bool
    """Whether every row of every shard was."""
    columns: tuple[str, ...]
    """What was compared of these rows: `status` stands for the reason of a rejected one."""
    largest_residual_difference: float
    """Metres."""


def verify(
    directory: Path,
    *,
    data_root: Path | None = None,
    models: Path | None = None,
    device: str = "cpu",
    sample: int = SAMPLE_ROWS,
    full: bool = False,
) -> Verification:
    """Re-read every shard, account for every row, compare rows with label file and models.

    Of the compared rows every original column, the genders and the reasons of rejected rows are
    read again from the label file, every error and region error computed again. Not computed again:
    the fit itself, hence `vertex_error_unlimited`, `iterations`, `start` and `active_limits`.

    Args:
        directory: the run directory.
        data_root, models: where the inputs are now; by default where the conversion had them.
        device: where residuals are recomputed.
        sample: fitted rows to compare, spread over every shard (all if there are fewer).
        full: compare every row, rejected ones too.

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
    compared: list[int] = []
    fitted, largest = 0, 0.0
    if done:
        source = _find_source(run, plan, data_root)
        fitter = _open_fitter(run, plan, models, device)
        intact = [state for state in done if not _named(problems, state.shard)]
        for part in _compare_rows(run.path, plan, intact, source, fitter, None if full else sample):
            problems += part.problems
            compared += part.rows
            fitted += part.fitted
            largest = max(largest, part.difference)
    return Verification(
        ok=not problems and summary.complete,
        rows=summary.rows_written,
        digest=summary.digest,
        problems=tuple(problems),
        compared=tuple(compared),
        fitted=fitted,
        full=full,
        columns=(
            *ERROR_COLUMNS,
            *("status", "smpl_gender", "skel_gender", "source_row"),
            *(item.stored for item in plan.fields),
        ),
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
    results = result_columns(plan.schema_version)
    shapes = {name: column.shape for name, column in results.items()}
    shapes |= {item.stored: item.shape for item in plan.fields}
    unknown = sorted(set(file) ^ set(shapes))
    if unknown:
        yield f"column '{unknown[0]}' is missing or unknown"
        return
    columns = {}
    for name, shape in shapes.items():
        found = column_of(file, name).shape  # before it is read: it may claim any size
        if found != (stop - start, *shape):
            yield f"column '{name}' has shape {found}, expected {(stop - start, *shape)}"
            return
        values = read_column(file, name)
        if name in results:
            columns[name] = values
    for item in plan.fields:
        if file[item.stored].attrs["source_dtype"] != item.dtype:
            yield f"column '{item.stored}' is not {item.dtype} as in the label file"
    if not np.array_equal(columns["source_row"], np.arange(start, stop)):
        yield f"source_row is not {start} to {stop - 1}"
    assert state.receipt is not None
    if dict(Counter(columns["status"].tolist())) != dict(state.receipt.status):
        yield "status counts differ from the receipt"
    yield from _check_results(results, columns)
    if plan.fitter == DEFAULT_FITTER and "limited_gain" in plan.fit:  # older plans: another rule
        yield from _check_limited(plan.request.frame, columns)


def _check_limited(config: FitConfig, columns: dict[str, np.ndarray]) -> Iterator[str]:
    """The status says `limited` where errors and limits do; who pays for limits has both errors."""
    error, unlimited = (
        columns[name].astype(np.float64) for name in ("vertex_error_mean", "vertex_error_unlimited")
    )
    on_limit = np.asarray(columns["active_limits"].any(axis=1))
    limited = limited_rows(config, error, unlimited, on_limit)
    told = columns["status"] == Status.LIMITED
    asked = costly_rows(config, error, on_limit) & ~rejected_rows(columns["status"])
    for wrong, what in (
        (asked != np.isfinite(unlimited), "vertex_error_unlimited is not where limits may cost"),
        (unlimited > error, "vertex_error_unlimited is above vertex_error_mean"),
        (told & ~limited, "is limited, which its errors do not say"),
        (limited & ~told, "is not limited, which its errors say"),
    ):
        if wrong.any():
            row = int(columns["source_row"][np.argmax(wrong)])
            yield f"row {row}: {what} ({int(wrong.sum())} rows)"


def _check_results(results: Mapping[str, Column], columns: dict[str, np.ndarray]) -> Iterator[str]:
    """Fitted rows are finite, rejected rows NaN."""
    rejected = rejected_rows(columns["status"])
    for name, column in results.items():
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


@dataclass(frozen=True)
class _Part:
    """What the comparison of some rows of a shard found."""

    problems: list[str]
    rows: list[int]
    fitted: int
    difference: float


def _compare_rows(
    directory: Path,
    plan: Plan,
    states: Sequence[ShardState],
    source: AnnotationSource,
    fitter: Fitter,
    total: int | None,
) -> Iterator[_Part]:
    """Compare `total` fitted rows, spread over the shards; None: every row."""
    fitted = [s.receipt.rows - s.receipt.rejected for s in states if s.receipt is not None]
    sizes = fitted if total is None else spread(fitted, total)
    for state, size in zip(states, sizes, strict=True):
        start, stop = plan.rows_of(state.shard)
        with open_shard(shard_path(directory, state.shard), sealed=plan.sealed) as file:
            if total is None:
                chosen = np.arange(stop - start)
                rows = [source.read(start, stop)]
            else:
                candidates = np.flatnonzero(~rejected_rows(read_column(file, "status")))
                chosen = candidates[np.linspace(0, len(candidates) - 1, size).astype(np.int64)]
                rows = [source.read(start + int(row), start + int(row) + 1) for row in chosen]
            if not chosen.size:
                continue
            stored = {name: read_column(file, name, chosen) for name in file}
        problems = list(_compare(plan, stored, rows))
        good = np.flatnonzero(~rejected_rows(stored["status"]))
        differences = _recompute(plan, fitter, stored, rows, good)
        for name, difference in differences.items():
            if difference.max(initial=0.0) > RESIDUAL_TOLERANCE:
                worst = int(np.argmax(difference))
                problems.append(
                    f"a stored residual, '{name}' of row {start + int(chosen[good[worst]])}, is "
                    f"{difference[worst] * 1000:.3f} mm off its recomputation"
                )
        yield _Part(
            problems=[f"shard {state.shard}: {text}" for text in problems],
            rows=(start + chosen).tolist(),
            fitted=len(good),
            difference=max(float(found.max(initial=0.0)) for found in differences.values()),
        )


def _compare(
    plan: Plan, stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows]
) -> Iterator[str]:
    """Original columns bit for bit, genders, and why a row is rejected."""
    for item in plan.fields:
        original = np.concatenate([row.fields[item.source] for row in rows])
        if original.tobytes() != stored[item.stored].tobytes():
            yield f"column '{item.stored}' differs from the label file"
    for name in ("smpl_gender", "skel_gender"):
        if np.concatenate([getattr(row, name) for row in rows]).tolist() != stored[name].tolist():
            yield f"column '{name}' differs from the label file"
    reasons = np.concatenate([row.reasons for row in rows]).tolist()
    for status, reason, number in zip(
        stored["status"].tolist(), reasons, stored["source_row"].tolist(), strict=True
    ):
        expected = Status.rejected(reason) if reason else None
        if expected is not None and status != expected:
            yield f"row {number} is '{status}', the label file makes it '{expected}'"
            return


def _recompute(
    plan: Plan,
    fitter: Fitter,
    stored: dict[str, np.ndarray],
    rows: Sequence[AnnotationRows],
    good: np.ndarray,
) -> dict[str, np.ndarray]:
    """Error column -> difference (len(good),) in metres of stored and recomputed values."""
    poses, betas, transl = (
        np.concatenate([getattr(row, name) for row in rows])
        for name in ("poses", "betas", "transl")
    )
    skel_poses, skel_betas, skel_trans = (stored[name].astype(np.float64) for name in SKEL_COLUMNS)
    pairs = np.char.add(np.char.add(stored["smpl_gender"], ":"), stored["skel_gender"])[good]
    differences = {name: np.zeros(len(good)) for name in ERROR_COLUMNS}
    turn = turn_of(plan)
    turned = {} if turn is None else {"turn": turn}
    for pair in np.unique(pairs):
        own = np.flatnonzero(pairs == pair)
        chosen = good[own]
        smpl_gender, skel_gender = str(pair).split(":")
        again = fitter.residuals(
            (smpl_gender, skel_gender),
            (poses[chosen], betas[chosen], transl[chosen]),
            (skel_poses[chosen], skel_betas[chosen], skel_trans[chosen]),
            **turned,
        )
        for name in ERROR_COLUMNS:
            difference = np.abs(stored[name][chosen].astype(np.float64) - again[name])
            differences[name][own] = np.nan_to_num(difference, nan=np.inf)
    return differences


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
