"""What a finished shard leaves, bound to the plan and to the bytes of its file; where both lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.concessions import NOTHING, Concessions
from pipeline.errors import InputError
from pipeline.output_files import canonical_json, read_sealed
from pipeline.plan import Plan
from pipeline.shards import read_columns
from skel_fit.status import Status

_SCHEMA_1 = ("error_histogram", "error_max")
"""What receipts of schema version 1 also held: derived from the shard, where it is read now."""


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
    bytes: int
    sha256: str
    attempts: int
    started: float
    seconds: float
    machine: Mapping[str, Any]
    software: Mapping[str, str]
    concessions: str = ""
    """Digest of what the shard was conceded; empty: nothing."""

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
class Results:
    """What a summary needs of a shard's rows, read from the shard."""

    status: Mapping[str, int]
    errors: np.ndarray
    """`vertex_error_mean` of the fitted rows, float32, metres."""


@dataclass(frozen=True)
class ShardState:
    """`done`, `pending`, `failed` (quarantined) or `damaged` with the reason."""

    shard: int
    state: str
    receipt: Receipt | None = None
    reason: str = ""
    results: Results | None = field(default=None, compare=False)
    """Of a done shard, where they were asked for."""
    concessions: Concessions = NOTHING


_RECEIPT = TypeAdapter(Receipt)


def read_receipt(path: Path, plan: Plan) -> Receipt:
    """The receipt in a file.

    Raises:
        InputError: damaged or no receipt.
        FileNotFoundError: no such file.
    """
    value = read_sealed(path, required=plan.sealed)
    if not plan.sealed:
        value = {"concessions": ""} | {k: item for k, item in value.items() if k not in _SCHEMA_1}
    try:
        receipt = _RECEIPT.validate_json(canonical_json(value), strict=True)
        for status in receipt.status:
            Status(status)
    except ValueError:  # pydantic's are ValueErrors
        raise InputError(f"{path}: not a receipt") from None
    if set(value) != set(receipt.to_json()) or min(receipt.status.values(), default=0) < 0:
        raise InputError(f"{path}: not a receipt")
    return receipt


def read_results(directory: Path, plan: Plan, shard: int) -> Results:
    """Statuses and errors of a shard's rows.

    Raises:
        InputError: the shard is damaged.
    """
    columns = read_columns(
        shard_path(directory, shard),
        ("status", "vertex_error_mean"),
        expect=(plan.plan_id, shard),
        sealed=plan.sealed,
    )
    errors = columns["vertex_error_mean"]
    return Results(
        dict(sorted(Counter(columns["status"].tolist()).items())), errors[np.isfinite(errors)]
    )
