"""What became of a row: one vocabulary for labels and fits."""

from __future__ import annotations

import numpy as np

_REJECTED = "rejected:"


class Status(str):
    """What became of a row: `converged`, `limited`, `max_iter` or `rejected:<reason>`.

    It is the text that is stored, so it compares, sorts and travels as one.

    converged: the solver settled. limited: mean error above `FitConfig.limited_above` with active
    limits, so the target lies outside the joint limits. max_iter: neither. rejected: no fit; the
    row's results are NaN.

    Raises ValueError for any other text.
    """

    __slots__ = ()
    CONVERGED: Status
    LIMITED: Status
    MAX_ITER: Status

    def __new__(cls, text: str) -> Status:
        known = text in ("converged", "limited", "max_iter")
        if not known and not (text.startswith(_REJECTED) and len(text) > len(_REJECTED)):
            raise ValueError(
                f"{text!r} is no row status; expected converged, limited, max_iter or "
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


Status.CONVERGED, Status.LIMITED, Status.MAX_ITER = map(
    Status, ("converged", "limited", "max_iter")
)


def rejected_rows(status: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows of a status column (n,) of text have no fit."""
    return np.char.startswith(status, _REJECTED)


def rejection_reasons(status: np.ndarray) -> np.ndarray:
    """(n,) text: why each row of a status column was rejected; empty for fitted rows."""
    return np.array([Status(text).reason for text in status.tolist()], np.str_)
