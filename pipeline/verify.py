"""Verify a finished dataset: every byte, every row; a sample of the values, or all made again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.appended import damages
from pipeline.bodies import BodyFit, Models, factory_of
from pipeline.calibration import why_unknown
from pipeline.columns import ERROR_COLUMNS, RESULT_COLUMNS, Column, result_columns
from pipeline.errors import InputError
from pipeline.fitters import DEFAULT_FITTER
from pipeline.given_labels import NOT_FITTED, given_status, on_limits
from pipeline.identities import FoundAgain, find_again, unsolved
from pipeline.identity_shapes import SHAPES_FILE, IdentifiedSource, read_shapes
from pipeline.output_files import read_sealed
from pipeline.plan import Plan
from pipeline.planning import gender_pairs
from pipeline.provenance import code_version, file_record
from pipeline.readers.base import AnnotationSource
from pipeline.receipts import ShardState, shard_path
from pipeline.recomputation import Part, Recomputation
from pipeline.row_checks import CRASHED
from pipeline.rundir import RunDirectory
from pipeline.shards import (
    column_attributes,
    column_of,
    open_shard,
    read_column,
    root_attributes,
    stored_fields,
)
from pipeline.summary import summarise
from pipeline.task import conversion_models, open_plan_source
from skel_fit.calibration import OBSERVED
from skel_fit.recipe import FitConfig
from skel_fit.status import Status, costly_rows, limited_rows, rejected_rows

SAMPLE_ROWS = 256


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
    """Of how many the errors were computed again from the stored body."""
    full: bool
    """Whether every row of every shard was."""
    columns: tuple[str, ...]
    """What was compared of these rows: `status` stands for whether and why one is rejected, where
    rows were not fitted again."""
    largest_residual_difference: float
    """Metres."""
    again: int
    """Rows that were fitted again and compared in every column."""
    exact: int
    """How many of these are equal bit for bit; the others are within `FIT_TOLERANCE`, or a
    problem."""
    not_again: str
    """Why rows were not fitted again; empty where they were."""
    people: int = 0
    """People of labels of another body than SMPL whose shapes were found again."""
    exact_people: int = 0
    """How many of these shapes are equal bit for bit; the others are within
    `identities.SHAPE_TOLERANCE`, or a problem."""


def verify(
    directory: Path,
    *,
    data_root: Path | None = None,
    models: Path | None = None,
    device: str = "cpu",
    sample: int = SAMPLE_ROWS,
    full: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Re-read every shard, account for every row, compare rows with label file and models.

    Of the compared rows every original column, the genders, whether and why they are rejected are
    read again from the label file, every error and region error computed again from the stored
    body. That a stored body is what the fit gives, and `vertex_error_unlimited`,
    `vertex_error_alone`, `active_limits`, `iterations` and `start`, only a new fit can tell: with
    `full`, where code and software are those of the plan.

    Args:
        directory: the run directory.
        data_root, models: where the inputs are now; by default where the conversion had them.
        device: where rows are computed again.
        sample: fitted rows to compare, spread over every shard, and as many rejected ones (all if
            there are fewer).
        full: compare every row, and fit it again; find the shapes of people again.
        report: told how many rows of how many were compared.

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
    if summary.complete:
        problems += damages(run.path, plan, done)
    parts: list[Part] = []
    shapes = FoundAgain(0, 0, ())
    not_again = "" if full else "a sample is not"
    if done:
        made = _recomputation(run, plan, data_root, models, device)
        problems += _check_plan(made)
        intact = [state for state in done if not _named(problems, state.shard)]
        not_again = not_again or made.why_not_again()
        for part in _compared(made, intact, sample, full, not not_again):
            parts.append(part)
            report(sum(len(part.rows) for part in parts), plan.rows)
        if full and plan.identities is not None and not not_again:
            shapes = _shapes_again(made)
            problems += shapes.problems
    problems += [text for part in parts for text in part.problems]
    again = sum(part.again for part in parts)
    return Verification(
        ok=not problems and summary.complete,
        rows=summary.rows_written,
        digest=summary.digest,
        problems=tuple(problems),
        compared=tuple(row for part in parts for row in part.rows),
        fitted=sum(part.fitted for part in parts),
        full=full,
        columns=_columns(plan, bool(again)),
        largest_residual_difference=max((part.difference for part in parts), default=0.0),
        again=again,
        exact=sum(part.exact for part in parts),
        not_again=not_again,
        people=shapes.people,
        exact_people=shapes.exact,
    )


def _columns(plan: Plan, again: bool) -> tuple[str, ...]:
    """What is compared of a row, fitted again or not."""
    originals = tuple(item.stored for item in plan.fields)
    if again:
        return (*result_columns(plan.schema_version), *originals)
    return (*ERROR_COLUMNS, "status", "smpl_gender", "skel_gender", "source_row", *originals)


def _compared(
    made: Recomputation, states: Sequence[ShardState], sample: int, full: bool, again: bool
) -> Iterator[Part]:
    """Compare `sample` fitted rows and as many rejected ones, spread over the shards; or all."""
    rejected = [s.receipt.rejected for s in states if s.receipt is not None]
    fitted = [s.receipt.rows - s.receipt.rejected for s in states if s.receipt is not None]
    sizes = zip(states, spread(fitted, sample), spread(rejected, sample), strict=True)
    for state, some, without in sizes:
        if not full:
            yield made.sample(state, some, without)
        elif again:
            yield made.all_rows_again(state, some)
        else:
            yield made.all_rows(state)


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
    yield from _check_kinds(file, plan, columns)
    if not np.array_equal(columns["source_row"], np.arange(start, stop)):
        yield f"source_row is not {start} to {stop - 1}"
    assert state.receipt is not None
    if dict(Counter(columns["status"].tolist())) != dict(state.receipt.status):
        yield "status counts differ from the receipt"
    if dict(state.receipt.software) != plan.software:
        yield "its receipt names other software than the plan"
    yield from _check_results(results, columns)
    block_size = state.concessions.block_size or 0
    if block_size >= plan.request.rows_of_block("cuda"):
        yield f"its record concedes blocks of {block_size} rows, which are no smaller than others"
    crashed = columns["source_row"][columns["status"] == str(Status.rejected(CRASHED))].tolist()
    for row in [row for row in crashed if row not in state.concessions.rows][:1]:
        yield f"row {row} is '{Status.rejected(CRASHED)}', which is on no record"
    if plan.fitter == DEFAULT_FITTER and "limited_gain" in plan.fit:  # older plans: another rule
        yield from _check_limited(plan.request.frame, columns)
    if plan.fitter == NOT_FITTED:
        yield from _check_given(plan.request.frame, columns)
    if plan.fitter == DEFAULT_FITTER and plan.schema_version >= 3:
        yield from _check_observed(plan, columns)


def _check_kinds(file: h5py.File, plan: Plan, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Columns have the dtype that they should have, and say so; result columns say what they hold.

    What they hold is described by the code of the plan, which may not be that of this program.
    """
    dtypes = {item.stored: np.dtype(item.dtype) for item in plan.fields}
    for name, values in columns.items():  # texts are as wide as their longest
        column = RESULT_COLUMNS[name]
        dtypes[name] = values.dtype if column.is_text else np.dtype(column.dtype)
    described = plan.code == code_version("shard")
    for name, dtype in dtypes.items():
        expected, found = column_attributes(name, dtype), dict(file[name].attrs)
        if not described:
            expected.pop("description", None)
            found.pop("description", None)
        if found != expected:
            yield f"column '{name}' is not {dtype}, or is described as something else"


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


def _check_given(config: FitConfig, columns: dict[str, np.ndarray]) -> Iterator[str]:
    """What is said of labels that were not fitted is what their columns say."""
    given = ~rejected_rows(columns["status"])
    poses = columns["skel_poses"][given].astype(np.float64)
    rows = columns["source_row"][given]
    status = given_status(poses, columns["vertex_error_max"][given], config.limits)
    on = on_limits(poses, config.limits)
    for wrong, what in (
        (status != columns["status"][given], "status is not what angles and errors say"),
        ((on != columns["active_limits"][given]).any(axis=1), "active_limits are not its angles'"),
    ):
        if wrong.any():
            yield f"row {rows[np.argmax(wrong)]}: {what} ({int(wrong.sum())} rows)"


def _check_observed(plan: Plan, columns: dict[str, np.ndarray]) -> Iterator[str]:
    """What an angle rests on is one of the known things, its limit where it lies on it; standard
    deviations are where a calibration is, and what an angle inside its limits can have."""
    observed, sd = columns["skel_poses_observed"], columns["skel_poses_sd"]
    fitted = ~rejected_rows(columns["status"])
    pairs = np.char.add(np.char.add(columns["smpl_gender"], ":"), columns["skel_gender"])
    unknown = np.isin(pairs, list(why_unknown(plan, pairs.tolist())))
    known = fitted[:, None] & ~unknown[:, None] & (observed != OBSERVED["label"])
    limit = (observed == OBSERVED["limit"]) != columns["active_limits"]
    for wrong, what in (
        (
            fitted[:, None] & ((observed < 0) | (observed > 3)),
            "skel_poses_observed is none of 0 to 3",
        ),
        (fitted[:, None] & limit, "skel_poses_observed is not 2 where active_limits is true"),
        (np.isfinite(sd) != known, "skel_poses_sd is not where a calibration is"),
        (known & ~((sd >= 0.0) & (sd < 2.0)), "skel_poses_sd is none"),
    ):
        if wrong.any():
            row = int(columns["source_row"][np.argmax(wrong.any(axis=1))])
            yield f"row {row}: {what} ({int(wrong.any(axis=1).sum())} rows)"


def _check_results(results: Mapping[str, Column], columns: dict[str, np.ndarray]) -> Iterator[str]:
    """Fitted rows are finite, rejected rows have the value of rejected rows."""
    rejected = rejected_rows(columns["status"])
    for name, column in results.items():
        if column.rejected is None or not column.fitted:
            continue
        values = columns[name].reshape(len(rejected), -1)
        empty = column.empty(1).reshape(1, -1)
        if column.finite and not np.isfinite(values[~rejected]).all():
            yield f"'{name}' of a fitted row is not finite"
        if not ((values == empty) | (np.isnan(values) & np.isnan(empty)))[rejected].all():
            yield f"'{name}' of a rejected row is not {column.rejected}"


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


def _recomputation(
    run: RunDirectory, plan: Plan, data_root: Path | None, models: Path | None, device: str
) -> Recomputation:
    factory = factory_of(plan, run.path)
    source = find_source(run, plan, data_root)
    directory = None
    if factory.needs_models:
        directory = conversion_models(plan, run.places(plan).get("models"), models)
    return Recomputation(run.path, plan, source, factory, directory, device)


def _shapes_again(made: Recomputation) -> FoundAgain:
    """The shapes of the people, from the labels alone."""
    plan, source = made.plan, made.source
    assert isinstance(source, IdentifiedSource) and plan.body is not None and made.models
    stored = read_shapes(made.directory / SHAPES_FILE)
    models = Models(made.models, plan.body.name, plan.body.vertices)
    return find_again(unsolved(plan), source.labels, models, stored)


def _check_plan(made: Recomputation) -> Iterator[str]:
    """What a plan says about label file and models, which its hash does not prove."""
    plan, source = made.plan, made.source
    if source.rows != plan.rows:
        yield f"the plan has {plan.rows} rows, the label file {source.rows}"
        return
    fields = {name: (np.dtype(spec.dtype), spec.shape) for name, spec in source.fields.items()}
    if plan.schema_version > 1 and tuple(stored_fields(fields)) != plan.fields:
        yield "the plan has other original columns than the label file"
    pairs = gender_pairs(source, plan.smpl_gender, plan.skel_gender, plan.shard_rows)
    same = made.factory.models(made.models, pairs) == plan.models
    if plan.calibration is not None:  # a later one says nothing about this plan
        same &= made.factory.calibration(made.models, pairs) == plan.calibration
    if isinstance(made.factory, BodyFit):
        gender = next(model.gender for model in plan.models if model.kind == "skel")
        same &= made.factory.record(made.models, gender) == plan.body
    if not same:
        yield "the plan says other things about the body models than their files"


def find_source(run: RunDirectory, plan: Plan, data_root: Path | None) -> AnnotationSource:
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
    source = open_plan_source(plan, noted, root, run.path)
    if tuple(file_record(Path(path)) for path in source.files) != plan.source_files:
        raise InputError(f"{noted}: is not the label file that was converted; restore it")
    return source


def _named(problems: Sequence[str], shard: int) -> bool:
    return any(text.startswith(f"shard {shard}:") for text in problems)
