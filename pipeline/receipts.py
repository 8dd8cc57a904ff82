"""What a finished shard leaves, bound to the plan and to the bytes of its file; where both lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from skel_fit.status import Status

HISTOGRAM_BIN = 1e-4
"""Width in metres of the bins in which receipts count `vertex_error_mean`."""


@dataclass(frozen=True)
class Receipt:
    """What a finished shard leaves, bound to the plan and to the bytes of the file."""

    plan_id: str
    shard: int
    row_start: int
    row_stop: int
    rows: int
    status: Mapping[str, int]
    """Rows by status; `rejected:<reason>` among them."""
    error_histogram: Mapping[str, int]
    """Fitted rows by `vertex_error_mean`, bin index (0.1 mm) -> count."""
    error_max: float
    """Largest `vertex_error_mean`, metres; 0 without fitted rows."""
    bytes: int
    sha256: str
    attempts: int
    started: float
    seconds: float
    machine: Mapping[str, Any]
    software: Mapping[str, str]

    @property
    def rejected(self) -> int:
        return sum(n for status, n in self.status.items() if Status(status).is_rejected)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def shard_path(directory: Path, shard: int) -> Path:
    return directory / "shards" / f"shard-{shard:05d}.h5"


def receipt_path(directory: Path, shard: int) -> Path:
    return directory / "receipts" / f"shard-{shard:05d}.json"


@dataclass(frozen=True)
class ShardState:
    """`done`, `pending`, `failed` (quarantined) or `damaged` with the reason."""

    shard: int
    state: str
    receipt: Receipt | None = None
    reason: str = ""


def histogram(errors: np.ndarray) -> dict[str, int]:
    finite = errors[np.isfinite(errors)].astype(np.float64)
    bins, counts = np.unique((finite / HISTOGRAM_BIN).astype(np.int64), return_counts=True)
    return {str(int(b)): int(n) for b, n in zip(bins, counts, strict=True)}


def largest(errors: np.ndarray) -> float:
    finite = errors[np.isfinite(errors)]
    return float(finite.max()) if finite.size else 0.0


def receipt_from_json(value: Any) -> Receipt:
    """Parse a receipt; `InputError` when it is not one."""
    try:
        receipt = Receipt(**value)
        for status in receipt.status:
            Status(status)
        return receipt
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"not a receipt: {error}") from None
