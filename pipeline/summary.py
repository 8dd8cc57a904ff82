"""What the shards of a run add up to: counts, digest, percentiles, rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.plan import Plan
from pipeline.provenance import sha256_bytes
from pipeline.receipts import Receipt, Results, ShardState
from skel_fit.status import Status


@dataclass(frozen=True)
class Summary:
    """The reconciled whole. Same data, same summary: it holds no time."""

    plan_id: str
    name: str
    complete: bool
    rows: int
    rows_written: int
    status: Mapping[str, int]
    rejected: Mapping[str, int]
    shards_total: int
    shards: tuple[Mapping[str, Any], ...]
    failed: tuple[Mapping[str, Any], ...]
    missing: tuple[int, ...]
    concessions: tuple[Mapping[str, Any], ...]
    """Shards with rows that were left out, or smaller blocks, and why."""
    digest: str | None
    vertex_error_mean: Mapping[str, float | None]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(plan: Plan, states: Iterable[ShardState]) -> Summary:
    """Reconcile: every row of the source in exactly one finished shard, or not complete.

    states: of every shard, with the results of those that are done: counts and errors are those of
    the shards, whatever the receipts say.
    """
    states = list(states)
    receipts = [state.receipt for state in states if state.receipt is not None]
    results = [state.results for state in states if state.results is not None]
    status: Counter[str] = Counter()
    for found in results:
        status.update(found.status)
    written = sum(receipt.rows for receipt in receipts)
    accounted = sum(status.values()) == written == plan.rows
    complete = accounted and len(receipts) == plan.shards
    return Summary(
        plan_id=plan.plan_id,
        name=plan.name,
        complete=complete,
        rows=plan.rows,
        rows_written=written,
        status=dict(sorted(status.items())),
        rejected={
            Status(name).reason: count
            for name, count in sorted(status.items())
            if Status(name).is_rejected
        },
        shards_total=plan.shards,
        shards=tuple(
            {"shard": r.shard, "rows": r.rows, "bytes": r.bytes, "sha256": r.sha256}
            for r in receipts
        ),
        failed=tuple(
            {
                "shard": state.shard,
                "rows": list(plan.rows_of(state.shard)),
                "reason": state.reason,
            }
            for state in states
            if state.state == "failed"
        ),
        missing=tuple(s.shard for s in states if s.state in ("pending", "damaged")),
        concessions=tuple(
            {
                "shard": state.shard,
                "block_size": state.concessions.block_size,
                "crashed": [
                    {"row": row, "reason": reason} for row, reason in state.concessions.crashed
                ],
            }
            for state in states
            if state.concessions.identity
        ),
        digest=dataset_digest(plan, [r.sha256 for r in receipts]) if complete else None,
        vertex_error_mean=_percentiles(results),
        bytes=sum(receipt.bytes for receipt in receipts),
    )


def dataset_digest(plan: Plan, shard_digests: Iterable[str]) -> str:
    """SHA-256 over the plan id and the shards' SHA-256 in order, one hexadecimal line each."""
    lines = "".join(f"{digest}\n" for digest in (plan.plan_id, *shard_digests))
    return sha256_bytes(lines.encode("ascii"))


def throughput(receipts: Iterable[Receipt], window: float = 1800.0) -> float | None:
    """Rows per second over the shards that ended in the last `window` seconds of work."""
    ended = sorted((r.started + r.seconds, r.started, r.rows) for r in receipts)
    if not ended:
        return None
    last = ended[-1][0]
    recent = [item for item in ended if item[0] > last - window]
    seconds = last - min(started for _, started, _ in recent)
    return sum(rows for _, _, rows in recent) / seconds if seconds > 0 else None


def age(receipts: Iterable[Receipt]) -> float | None:
    """Seconds since the last shard was finished."""
    ends = [receipt.started + receipt.seconds for receipt in receipts]
    return time.time() - max(ends) if ends else None


def _percentiles(results: Sequence[Results]) -> dict[str, float | None]:
    """Median, 95th percentile and maximum of `vertex_error_mean`, metres: of the values themselves.

    Percentiles between two values are interpolated (numpy's default).
    """
    errors = np.concatenate([np.zeros(0, np.float32), *(found.errors for found in results)])
    if not errors.size:
        return {"median": None, "p95": None, "max": None}
    median, p95 = np.quantile(errors.astype(np.float64), (0.5, 0.95))
    return {"median": float(median), "p95": float(p95), "max": float(errors.max())}
