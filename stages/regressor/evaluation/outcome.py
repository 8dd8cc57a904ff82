"""What a predictor scored under a protocol: a number a row and metric, and their summary."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from torch import Tensor

from stages.regressor.evaluation import metrics
from stages.regressor.evaluation.bootstrap import Estimate, estimate
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.protocols import EvaluationProtocol, limit_name, pck_name

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class RowScores:
    """Some rows of an `Outcome`, as they were computed together; first dimension: the rows."""

    values: Mapping[str, Tensor]
    excess: Mapping[float, Tensor] = field(default_factory=dict)
    hits: Mapping[float, Tensor] = field(default_factory=dict)
    visible: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """One predictor under one protocol.

    row: (N,) rows; reason: (N,) '' if evaluated; values: metric -> (N,) mm, or 0/100 for the
    violation of a limit, or % of the row's own points for PCK; NaN where not evaluated. excess:
    tolerance -> (N, 4) radians. hits: threshold -> (N, 44) bool, visible: (N, 44) bool.
    """

    protocol: EvaluationProtocol
    row: np.ndarray
    sequence: np.ndarray
    reason: np.ndarray
    values: Mapping[str, np.ndarray]
    excess: Mapping[float, np.ndarray]
    hits: Mapping[float, np.ndarray]
    visible: np.ndarray | None

    @classmethod
    def of(
        cls, protocol: EvaluationProtocol, rows: EvalRows, reason: np.ndarray,
        parts: Sequence[RowScores],
    ) -> Outcome:  # fmt: skip
        """The scores of all evaluated rows, in order, beside the rows that are not."""
        place = np.flatnonzero(reason == "")

        def spread(columns: Sequence[Tensor]) -> np.ndarray:
            found = np.concatenate([column.cpu().numpy() for column in columns])
            empty = False if found.dtype == bool else np.nan
            whole = np.full((len(reason), *found.shape[1:]), empty, found.dtype)
            whole[place] = found
            return whole

        def joined(columns: Sequence[Mapping[_Key, Tensor]]) -> dict[_Key, np.ndarray]:
            return {key: spread([column[key] for column in columns]) for key in columns[0]}

        visible = [part.visible for part in parts if part.visible is not None]
        return cls(
            protocol, rows.row, rows.sequence, reason,
            values=joined([part.values for part in parts]),
            excess=joined([part.excess for part in parts]),
            hits=joined([part.hits for part in parts]),
            visible=spread(visible) if visible else None,
        )  # fmt: skip

    @property
    def evaluated(self) -> np.ndarray:
        """(N,) bool."""
        return self.reason == ""

    def summary(self) -> dict[str, Estimate]:
        """Metric -> mean with interval; sequences are drawn, not frames."""
        keep = self.evaluated
        groups = self.sequence[keep]
        result = {}
        for name in self.protocol.metrics:
            threshold = next((t for t in self.hits if name == pck_name(t)), None)
            if threshold is None:
                values = self.values[name][keep]
                counted = np.isfinite(values)
                result[name] = estimate(values, counted, groups)
                continue
            assert self.visible is not None
            share = estimate(self.hits[threshold][keep], self.visible[keep], groups)
            result[name] = share.times(metrics.PERCENT)
        return result

    def limit_statistics(self) -> dict[str, dict[str, float]]:
        """`part>tolerance` -> mean, median and maximum of the excess, radians."""
        result = {}
        for tolerance, excess in self.excess.items():
            kept = excess[self.evaluated]
            for k, part in enumerate(metrics.PART_NAMES):
                column = kept[:, k] if len(kept) else np.array([np.nan])
                result[limit_name(part, tolerance)] = {
                    "mean": float(column.mean()),
                    "median": float(np.median(column)),
                    "maximum": float(column.max()),
                }
        return result
