"""The rows of a dataset, made again from label file and models and compared with what is stored.

Two ways: some rows against the label file, their errors computed again from the stored bodies; or
every row fitted again by the code and the software that the plan names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.attempts import portion
from pipeline.columns import ERROR_COLUMNS, SKEL_COLUMNS
from pipeline.concessions import Concessions
from pipeline.fitters import DEFAULT_FITTER, Fitter, FitterFactory
from pipeline.plan import Plan
from pipeline.provenance import code_version, software
from pipeline.readers.base import AnnotationRows, AnnotationSource, BodyRows, joined_bodies
from pipeline.receipts import ShardState, shard_path
from pipeline.row_checks import CRASHED, in_camera
from pipeline.shards import open_shard, read_column
from pipeline.task import shard_columns
from pipeline.up_axis import turned
from skel_fit.rejections import smpl_rejections
from skel_fit.status import Status, rejected_rows

RESIDUAL_TOLERANCE = 2e-5
"""Metres between a stored and a recomputed residual: float32 columns, float64 recomputation."""
ROOT_TOLERANCE = 1e-5
"""Radians and metres between a stored and a recomputed root, beside the rounding of the column."""
FIT_TOLERANCE = {
    "skel_poses": 1e-3, "skel_poses_sd": 1e-2, "skel_betas": 1e-3, "skel_trans": 1e-4,
    **dict.fromkeys((*ERROR_COLUMNS, "vertex_error_unlimited", "vertex_error_alone"), 2e-5),
}  # fmt: skip
"""Radians, coefficients, metres: how far a fit of another kind of machine may be from this one's.

On the machine that made them, fits are equal bit for bit."""
_DIAGNOSTICS = ("iterations", "start", "skel_poses_observed")
"""How a fit was found, what its angles rest on. Compared where the row is equal bit for bit
otherwise."""


@dataclass(frozen=True)
class Part:
    """What the comparison of rows of one shard found.

    rows: source rows that were compared; fitted: of how many the errors were computed again from
    the stored body; difference: of an error, metres, at most. again: rows that were fitted again;
    exact: how many of them are equal bit for bit, in every column.
    """

    problems: tuple[str, ...]
    rows: tuple[int, ...] = ()
    fitted: int = 0
    difference: float = 0.0
    again: int = 0
    exact: int = 0


@dataclass
class Recomputation:
    """Where a dataset lies and what makes its rows again. Loads source and models once."""

    directory: Path
    plan: Plan
    source: AnnotationSource
    factory: FitterFactory
    models: Path | None
    device: str
    _fitters: dict[int | None, Fitter] = field(default_factory=dict)

    def sample(self, state: ShardState, fitted: int, rejected: int) -> Part:
        """So many fitted and rejected rows of a shard, evenly spread, against the label file."""
        start, _ = self.plan.rows_of(state.shard)
        with open_shard(self._path(state), sealed=self.plan.sealed) as file:
            without = rejected_rows(read_column(file, "status"))
            chosen = np.union1d(_spread(~without, fitted), _spread(without, rejected))
            if not chosen.size:
                return Part(())
            stored = {name: read_column(file, name, chosen) for name in file}
        rows = [self.source.read(start + row, start + row + 1) for row in chosen.tolist()]
        return self._against_labels(state, stored, rows, np.flatnonzero(~without[chosen]))

    def all_rows(self, state: ShardState) -> Part:
        """Every row of a shard against the label file, and the errors of all that have a fit."""
        stored, rows = self._whole(state)
        good = np.flatnonzero(~rejected_rows(stored["status"]))
        return self._against_labels(state, stored, rows, good)

    def all_rows_again(self, state: ShardState, sample: int) -> Part:
        """Every row of a shard against the label file and a new fit.

        A new fit also gives the errors. They are computed a second time, from the stored body in
        float64, for `sample` rows and for those that are not equal bit for bit.
        """
        stored, rows = self._whole(state)
        made = self._fitted_again(state)
        equal, fitted = _equal_rows(stored, made), ~rejected_rows(stored["status"])
        chosen = fitted & ~equal
        chosen[_spread(fitted, min(sample, int(fitted.sum())))] = True
        part = self._against_labels(state, stored, rows, np.flatnonzero(chosen))
        start, _ = self.plan.rows_of(state.shard)
        problems = [_named(state, text) for text in _differences(stored, made, start)]
        return replace(
            part,
            problems=(*part.problems, *problems),
            again=len(equal),
            exact=int(equal.sum()),
        )

    def _whole(self, state: ShardState) -> tuple[dict[str, np.ndarray], list[AnnotationRows]]:
        start, stop = self.plan.rows_of(state.shard)
        with open_shard(self._path(state), sealed=self.plan.sealed) as file:
            return {name: read_column(file, name) for name in file}, [self.source.read(start, stop)]

    def why_not_again(self) -> str:
        """Why a new fit would say nothing: other code or software than the plan's; else empty."""
        here = software()
        other = [name for name, version in self.plan.software.items() if here.get(name) != version]
        if self.plan.code != code_version("shard"):
            other.insert(0, "the code of hmr-skel")
        return f"{', '.join(other)} here is not the plan's" if other else ""

    def _path(self, state: ShardState) -> Path:
        return shard_path(self.directory, state.shard)

    def _fitter(self, block_size: int | None = None) -> Fitter:
        if block_size not in self._fitters:
            request = self.plan.request
            if block_size is not None:
                request = request.model_copy(update={"block_size": block_size})
            self._fitters[block_size] = self.factory.open(
                self.models, self.device, request, self.plan.calibration
            )
        return self._fitters[block_size]

    def _fitted_again(self, state: ShardState) -> dict[str, np.ndarray]:
        given = state.concessions
        step = portion(self.plan.request.rows_of_block(self.device), 0).step
        return shard_columns(
            self.plan,
            self.source,
            state.shard,
            self._fitter(given.block_size),
            step=given.block_size or step,
            concessions=given,
        )

    def _against_labels(
        self,
        state: ShardState,
        stored: dict[str, np.ndarray],
        rows: Sequence[AnnotationRows],
        good: np.ndarray,
    ) -> Part:
        """good: positions whose errors are computed from the stored bodies."""
        problems = list(_compare(self.plan, stored, rows, state.concessions))
        problems += self._root_problems(stored, rows, good)
        numbers = tuple(stored["source_row"].tolist())
        differences = self._residual_differences(stored, rows, good)
        for name, difference in differences.items():
            if difference.max(initial=0.0) > RESIDUAL_TOLERANCE:
                worst = int(np.argmax(difference))
                problems.append(
                    f"a stored residual, '{name}' of row {numbers[good[worst]]}, is "
                    f"{difference[worst] * 1000:.3f} mm off its recomputation"
                )
        return Part(
            problems=tuple(_named(state, text) for text in problems),
            rows=numbers,
            fitted=len(good),
            difference=max(float(found.max(initial=0.0)) for found in differences.values()),
        )

    def _residual_differences(
        self, stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows], good: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Error column -> difference (len(good),) in metres of stored and recomputed values."""
        differences = {name: np.zeros(len(good)) for name in ERROR_COLUMNS}
        fitter: Any = self._fitter() if len(good) else None
        for genders, own, labels, skel in _bodies_by_pair(stored, rows, good):
            axes = self._axes(rows, good[own])
            again = fitter.residuals(genders, *labels, skel, **axes)
            for name in ERROR_COLUMNS:
                difference = np.abs(stored[name][good[own]].astype(np.float64) - again[name])
                differences[name][own] = np.nan_to_num(difference, nan=np.inf)
        return differences

    def _root_problems(
        self, stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows], good: np.ndarray
    ) -> Iterator[str]:
        """A frozen root is the exact one of the label, a near one inside its trust region."""
        recipe = self.plan.request.frame.resolved_recipe()
        trust = recipe.root_trust
        if self.plan.fitter != DEFAULT_FITTER or (recipe.root_is_free and trust is None):
            return
        turn, move = (0.0, 0.0) if trust is None else (trust.rotation, trust.translation)
        fitter: Any = self._fitter() if len(good) else None
        for genders, own, labels, skel in _bodies_by_pair(stored, rows, good):
            axes = self._axes(rows, good[own])
            angles, shift = fitter.root_departures(genders, *labels, skel, **axes)
            angle, moved = np.abs(angles).max(axis=1), np.abs(shift).max(axis=1)
            slack = ROOT_TOLERANCE + np.spacing(np.abs(skel[2]).max(axis=1).astype(np.float32))
            far = ~((angle <= turn + ROOT_TOLERANCE) & (moved <= move + slack))
            if far.any():
                row = int(np.argmax(far))
                yield (
                    f"the root of row {stored['source_row'][good[own[row]]]} leaves the label's by "
                    f"{angle[row]:.5f} rad and {moved[row] * 1000:.3f} mm; the recipe allows "
                    f"{turn:g} rad and {move * 1000:g} mm ({int(far.sum())} rows)"
                )

    def _axes(self, rows: Sequence[AnnotationRows], chosen: np.ndarray) -> dict[str, np.ndarray]:
        """`up_axis.turned` of `chosen`, positions in all of `rows`."""
        if rows[0].cameras is None:
            return turned(self.plan, rows[0], slice(None))
        cameras = np.concatenate([row.cameras for row in rows if row.cameras is not None])
        return turned(self.plan, replace(rows[0], cameras=cameras), chosen)


_Body = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Poses, betas and translations of some rows, float64."""
_Labels = tuple[_Body] | tuple[BodyRows]
"""What a fitter takes of labels: SMPL's parameters, or another body."""


def _bodies_by_pair(
    stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows], good: np.ndarray
) -> Iterator[tuple[tuple[str, str], np.ndarray, _Labels, _Body]]:
    """Genders, places in `good`, labels and SKEL parameters of the rows that share a model pair."""
    other = joined_bodies(rows)
    labels = [
        np.concatenate([getattr(row, name) for row in rows])
        for name in ("poses", "betas", "transl")
    ]
    fits = [stored[name].astype(np.float64) for name in SKEL_COLUMNS]
    pairs = np.char.add(np.char.add(stored["smpl_gender"], ":"), stored["skel_gender"])[good]
    for pair in np.unique(pairs):
        own = np.flatnonzero(pairs == pair)
        smpl_gender, skel_gender = str(pair).split(":")
        poses, betas, transl = (values[good[own]] for values in labels)
        skel_poses, skel_betas, skel_trans = (values[good[own]] for values in fits)
        smpl, skel = (poses, betas, transl), (skel_poses, skel_betas, skel_trans)
        given: _Labels = (smpl,) if other is None else (other.take(good[own]),)
        yield (smpl_gender, skel_gender), own, given, skel


def expected_reasons(rows: AnnotationRows, concessions: Concessions) -> np.ndarray:
    """(n,) text: why each row has no fit, empty where it has one: for its label, on record, or for
    the SMPL parameters that no fit takes whatever a reader was told to accept."""
    reasons = rows.reasons.astype(object)
    crashed = np.isin(rows.source_row, concessions.rows)
    reasons[crashed & (reasons == "")] = CRASHED
    if rows.other is not None:  # the fit rejects nothing that readers accept
        return reasons.astype(np.str_)
    place = in_camera(rows.transl, rows.cameras)
    for reason, bad in smpl_rejections(rows.poses, rows.betas, place):
        reasons[bad & (reasons == "")] = reason
    return reasons.astype(np.str_)


def _compare(
    plan: Plan,
    stored: dict[str, np.ndarray],
    rows: Sequence[AnnotationRows],
    concessions: Concessions,
) -> Iterator[str]:
    """Original columns bit for bit, genders, and whether and why a row is rejected."""
    for item in plan.fields:
        original = np.concatenate([row.fields[item.source] for row in rows])
        if original.tobytes() != stored[item.stored].tobytes():
            yield f"column '{item.stored}' differs from the label file"
    for name in ("smpl_gender", "skel_gender"):
        if np.concatenate([getattr(row, name) for row in rows]).tolist() != stored[name].tolist():
            yield f"column '{name}' differs from the label file"
    reasons = np.concatenate([expected_reasons(row, concessions) for row in rows]).tolist()
    yield from _compare_given(stored, rows)
    for text, reason, number in zip(
        stored["status"].tolist(), reasons, stored["source_row"].tolist(), strict=True
    ):
        status, expected = Status(text), str(Status.rejected(reason)) if reason else "a fitted row"
        if status.reason != reason:
            yield f"row {number} is '{status}', label file and records make it {expected}"
            return


def _compare_given(stored: dict[str, np.ndarray], rows: Sequence[AnnotationRows]) -> Iterator[str]:
    """Bodies that were taken as they are, against the label file."""
    given = [row.skel for row in rows if row.skel is not None]
    good = ~rejected_rows(stored["status"])
    for name, part in zip(SKEL_COLUMNS, ("poses", "betas", "trans"), strict=True):
        values = [value for skel in given if (value := getattr(skel, part)) is not None]
        if values:
            label = np.concatenate(values)[good].astype(np.float32)
            if not _same_bits(stored[name][good], label).all():
                yield f"column '{name}' is not the SKEL label of the file"


def _equal_rows(
    stored: dict[str, np.ndarray], made: dict[str, np.ndarray], without: Sequence[str] = ()
) -> np.ndarray:
    """(n,) bool: rows that are equal bit for bit in every column but some."""
    equal = np.ones(len(stored["source_row"]), bool)
    for name, values in stored.items():
        if name not in without:
            equal &= _same_bits(values, made[name])
    return equal


def _same_bits(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) bool; false where the columns are of another kind."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return np.zeros(len(left), bool)
    if not left.size:
        return np.ones(len(left), bool)
    one, other = (
        np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
        for values in (left, right)
    )
    return (one == other).all(axis=1)


def _differences(
    stored: dict[str, np.ndarray], made: dict[str, np.ndarray], start: int
) -> Iterator[str]:
    """In which columns which rows are not what a new fit gives."""
    same = _equal_rows(stored, made, without=_DIAGNOSTICS)
    for name, values in stored.items():
        again = made[name]
        if values.dtype != again.dtype or values.shape != again.shape:
            yield (
                f"column '{name}' is {values.dtype} {values.shape}, a new fit gives "
                f"{again.dtype} {again.shape}"
            )
            continue
        if name in FIT_TOLERANCE:
            good = _close(values, again, FIT_TOLERANCE[name])
        else:
            good = _same_bits(values, again)
        if name in _DIAGNOSTICS:
            good |= ~same
        wrong = np.flatnonzero(~good)
        if wrong.size:
            more = f" (and of {wrong.size - 1} more)" if wrong.size > 1 else ""
            first = wrong[0]
            yield f"'{name}' of row {start + first}{more} is not what a new fit gives"


def _close(left: np.ndarray, right: np.ndarray, tolerance: float) -> np.ndarray:
    """(n,) bool: rows that differ by no more than `tolerance`, and are NaN alike."""
    with np.errstate(invalid="ignore"):
        near = np.abs(left.astype(np.float64) - right.astype(np.float64)) <= tolerance
    alike = near | (np.isnan(left) & np.isnan(right)) | (left == right)
    return alike.reshape(len(left), -1).all(axis=1) if left.size else np.ones(len(left), bool)


def _spread(mask: np.ndarray, size: int) -> np.ndarray:
    """`size` of the positions where `mask` (n,) bool holds, from the first to the last."""
    candidates = np.flatnonzero(mask)
    return candidates[np.linspace(0, len(candidates) - 1, size).astype(np.int64)]


def _named(state: ShardState, text: str) -> str:
    return f"shard {state.shard}: {text}"
