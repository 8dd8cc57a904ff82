"""What became of a row: one vocabulary for labels and fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from skel_fit.recipe import FitConfig

#: numpy and torch alike.
_Array = TypeVar("_Array", np.ndarray, "Tensor")

_REJECTED = "rejected:"
_WITH_A_BODY = ("converged", "limited", "max_iter", "audited", "doubtful")


class Status(str):
    """What became of a row: `converged`, `limited`, `max_iter`, `audited`, `doubtful` or
    `rejected:<reason>`.

    It is the text that is stored, so it compares, sorts and travels as one.

    converged: the solver settled. limited: the target lies outside the joint limits
    (`limited_rows`). max_iter: neither. audited, doubtful: not fitted, the label's own SKEL body,
    which stood up to its audit or did not. rejected: no body; the row's results are NaN.

    Raises ValueError for any other text.
    """

    __slots__ = ()
    CONVERGED: Status
    LIMITED: Status
    MAX_ITER: Status
    AUDITED: Status
    DOUBTFUL: Status

    def __new__(cls, text: str) -> Status:
        known = text in _WITH_A_BODY
        if not known and not (text.startswith(_REJECTED) and len(text) > len(_REJECTED)):
            raise ValueError(
                f"{text!r} is no row status; expected {', '.join(_WITH_A_BODY)} or "
                "rejected:<reason>"
            )
        return super().__new__(cls, text)

    @classmethod
    def rejected(cls, reason: str) -> Status:
        """The status of a row that is rejected for `reason`."""
        return cls(f"{_REJECTED}{reason}")

    @property
    def reason(self) -> str:
        """Why the row was rejected; empty for a fitted row."""
        return self.removeprefix(_REJECTED) if self.is_rejected else ""

    @property
    def is_rejected(self) -> bool:
        return self.startswith(_REJECTED)


(
    Status.CONVERGED, Status.LIMITED, Status.MAX_ITER, Status.AUDITED, Status.DOUBTFUL
) = map(Status, _WITH_A_BODY)  # fmt: skip


def costly_rows(config: FitConfig, error: _Array, on_limit: _Array) -> _Array:
    """(n,) bool: rows that limits may cost much, so that they are fitted without limits too.

    error: (n,) mean vertex error, m; on_limit: (n,) bool, any angle on a limit.
    """
    return on_limit & (error > config.limited_above)


def limited_rows(config: FitConfig, error: _Array, unlimited: _Array, on_limit: _Array) -> _Array:
    """(n,) bool: rows that are `limited`: costly ones whose mean error falls by more than
    `config.limited_gain` without limits.

    unlimited: (n,) mean vertex error without limits, m, NaN where nobody asked. Errors are float64
    holding the stored float32 values, so that a reader of the columns comes to the same answer.
    """
    return costly_rows(config, error, on_limit) & (error - unlimited > config.limited_gain)


def rejected_rows(status: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows of a status column (n,) of text have no fit."""
    return np.char.startswith(status, _REJECTED)


def rejection_reasons(status: np.ndarray) -> np.ndarray:
    """(n,) text: why each row of a status column was rejected; empty for fitted rows."""
    return np.array([Status(text).reason for text in status.tolist()], np.str_)
