"""`hmr-skel status`: where a run stands, read without writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import options
from stages.terminal import aligned, print_json, say
from stages.wording import conceded, counts, duration, rate


def status(directory: options.Directory, as_json: options.AsJson = False) -> None:
    """Counts, failures with reasons, throughput and ETA of a conversion."""
    found = state_of(directory)
    if as_json:
        print_json(found)
    else:
        say(_table(found))


def state_of(directory: Path) -> dict[str, Any]:
    """Counts, failures with reasons, throughput and ETA of a run directory.

    File sizes are compared with the receipts; `hmr-skel verify` also reads the bytes.

    Raises:
        InputError: not a run directory.
    """
    from pipeline.rundir import RunDirectory
    from pipeline.summary import age, summarise, throughput

    run = RunDirectory(directory)
    plan = run.plan()
    states = run.inspect_all(plan, checksums=False, results=True)
    receipts = [state.receipt for state in states if state.receipt is not None]
    summary = summarise(plan, states)
    running = run.is_locked()
    pace = throughput(receipts)
    left = summary.rows - summary.rows_written
    shards = {
        name: sum(state.state == name for state in states)
        for name in ("done", "pending", "failed", "damaged")
    }
    return {
        "subset": plan.name,
        "plan_id": plan.plan_id,
        "complete": summary.complete,
        "running": running,
        "rows": summary.rows,
        "rows_written": summary.rows_written,
        "rejected": dict(summary.rejected),
        "status": dict(summary.status),
        "shards": {"total": plan.shards, **shards},
        "failures": [dict(item) for item in summary.failed],
        "damaged": [
            {"shard": state.shard, "reason": state.reason}
            for state in states
            if state.state == "damaged"
        ],
        "stray": run.strays(plan),
        "unfinished": [
            {"shard": shard, "failures": len(found.failures), "running": bool(found.running)}
            for shard, found in run.unfinished().items()
            if not found.settled().quarantined
        ],
        "concessions": [dict(item) for item in summary.concessions],
        "vertex_error_mean": dict(summary.vertex_error_mean),
        "rows_per_second": pace,
        "eta_seconds": left / pace if running and pace and left else None,
        "seconds_since_last_shard": age(receipts),
        "digest": summary.digest,
        "bytes": summary.bytes,
        "standin": any(model.standin for model in plan.models),
    }


def _table(found: dict[str, Any]) -> str:
    shards = found["shards"]
    state = "complete" if found["complete"] else "running" if found["running"] else "not complete"
    rows = [
        ("subset", found["subset"] + (" (stand-in bodies)" if found["standin"] else "")),
        ("state", state),
        ("rows", f"{found['rows_written']} of {found['rows']}"),
        ("rejected", counts(found["rejected"])),
        ("status", counts(found["status"])),
        (
            "shards",
            ", ".join(f"{shards[name]} {name}" for name in ("done", "pending", "failed", "damaged"))
            + f" of {shards['total']}",
        ),
        ("throughput", rate(found["rows_per_second"])),
        ("ETA", duration(found["eta_seconds"])),
        ("last shard", f"{duration(found['seconds_since_last_shard'])} ago"),
        ("digest", found["digest"] or "-"),
    ]
    rows += [("conceded", text) for text in conceded(found["concessions"])]
    for item in found["failures"]:
        first, stop = item["rows"]
        rows.append(
            ("failed", f"shard {item['shard']} (rows {first} to {stop - 1}): {item['reason']}")
        )
    for item in found["damaged"]:
        rows.append(("damaged", f"shard {item['shard']}: {item['reason']}"))
    if found["stray"]:
        rows.append(("stray", ", ".join(found["stray"])))
    return aligned(rows)
