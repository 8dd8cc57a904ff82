"""`hmr-skel convert`: progress, closing table, event log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import Incomplete, OutputError
from pipeline.plan import Plan
from pipeline.run import Preview, Request, Result, convert, preview

PLAIN_INTERVAL = 30.0
"""Seconds between progress lines when stderr is no terminal."""


def run_convert(
    request: Request, *, dry_run: bool = False, quiet: bool = False, log_json: Path | None = None
) -> None:
    """Convert and print the closing table.

    Raises:
        Incomplete: a shard that was asked for is not done.
        PipelineError: as `pipeline.run.convert`.
    """
    if dry_run:
        print(_preview_table(preview(request), request))
        return
    with _event_log(log_json) as log, _progress(quiet) as progress:

        def report(event: str, data: dict[str, Any]) -> None:
            progress(event, data)
            if event != "tick":
                log(event, data)

        result = convert(request, report)
        log("end", {"complete": result.summary.complete, "digest": result.summary.digest})
    print(_table(result, request))
    if not result.ok:
        raise Incomplete(_what_is_missing(result, request))


def rows_per_second(rows: float | None) -> str:
    return "-" if rows is None else f"{rows:,.1f} rows/s"


def duration(seconds: float | None) -> str:
    """1:02:03 from seconds."""
    if seconds is None:
        return "-"
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def aligned(rows: list[tuple[str, str]]) -> str:
    """Two columns of text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@contextmanager
def _event_log(path: Path | None) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """JSON lines, one event each, appended and flushed as they happen."""
    if path is None:
        yield lambda event, data: None
        return
    try:
        stream = path.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened for the log: {error.strerror}") from error
    with stream:

        def write(event: str, data: dict[str, Any]) -> None:
            record = {"time": round(time.time(), 3), "event": event, **data}
            stream.write(json.dumps(record, sort_keys=True) + "\n")
            stream.flush()

        yield write


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    if quiet:
        yield lambda event, data: None
    elif sys.stderr.isatty():
        bars = _Bars()
        try:
            yield bars.report
        finally:
            bars.close()
    else:
        yield _Lines(sys.stderr).report


class _Bars:
    """Rows with rate and ETA of this run, and shards, on a terminal."""

    def __init__(self) -> None:
        self._rows: Any = None
        self._shards: Any = None
        self._failed = 0
        self._running = 0

    def report(self, event: str, data: dict[str, Any]) -> None:
        from tqdm import tqdm

        if event == "start":
            self._failed = data["shards_failed"]
            self._rows = tqdm(
                total=data["rows"],
                initial=data["rows_done"],
                unit=" rows",
                unit_scale=True,
                desc=data["subset"],
                smoothing=0.05,
            )
            self._shards = tqdm(
                total=data["shards"], initial=data["shards_done"], unit=" shards", desc="shards"
            )
        elif event == "damaged":
            tqdm.write(f"shard {data['shard']} is redone: {data['reason']}", file=sys.stderr)
        elif event in ("shard_failed", "shard_quarantined"):
            self._failed += event == "shard_quarantined"
            tqdm.write(_failure_line(event, data), file=sys.stderr)
        elif event == "shard_done":
            self._rows.update(data["rows"])
            self._shards.update(1)
        elif event == "tick":
            self._running = data["running"]
            self._shards.set_postfix_str(
                f"{self._running} running, {self._failed} failed", refresh=False
            )
            self._rows.refresh()
            self._shards.refresh()

    def close(self) -> None:
        for bar in (self._shards, self._rows):
            if bar is not None:
                bar.close()


class _Lines:
    """Plain lines: at the start, on trouble, and at most every 30 seconds in between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start: dict[str, Any] = {}
        self._rows = self._shards = 0
        self._clock = self._last = time.monotonic()

    def report(self, event: str, data: dict[str, Any]) -> None:
        if event == "start":
            self._start = data
            self._clock = self._last = time.monotonic()
            self._say(
                f"{data['subset']}: {data['rows']} rows in {data['shards']} shards, "
                f"{data['shards_done']} done, {data['shards_failed']} failed"
            )
        elif event == "damaged":
            self._say(f"shard {data['shard']} is redone: {data['reason']}")
        elif event in ("shard_failed", "shard_quarantined"):
            self._say(_failure_line(event, data))
        elif event == "shard_done":
            self._rows += data["rows"]
            self._shards += 1
        elif event == "tick" and time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            self._say(self._line(data["running"]))

    def _line(self, running: int) -> str:
        done = self._start["rows_done"] + self._rows
        rate = self._rows / (self._last - self._clock)
        left = (self._start["rows"] - done) / rate if rate else None
        return (
            f"{done}/{self._start['rows']} rows, {rows_per_second(rate)}, ETA {duration(left)}, "
            f"{self._start['shards_done'] + self._shards}/{self._start['shards']} shards, "
            f"{running} running"
        )

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _failure_line(event: str, data: dict[str, Any]) -> str:
    start, stop = data["rows"]
    end = "given up" if event == "shard_quarantined" else "will be tried again"
    return (
        f"shard {data['shard']} (rows {start} to {stop - 1}), attempt {data['attempt']}: "
        f"{data['reason']}; {end}"
    )


def _table(result: Result, request: Request) -> str:
    summary = result.summary
    errors = summary.vertex_error_mean
    rejected = ", ".join(f"{reason} {n}" for reason, n in summary.rejected.items()) or "none"
    rate = result.rows_converted / result.seconds if result.rows_converted else None
    rows = [
        ("subset", summary.name + (" (stand-in bodies)" if result.standin else "")),
        ("rows in", f"{summary.rows}"),
        ("rows written", f"{summary.rows_written}"),
        ("rejected", rejected),
        (
            "shards",
            f"{result.converted} converted now, {result.skipped} done before, "
            f"{len(summary.failed)} failed, {len(summary.missing)} pending",
        ),
        ("time", f"{duration(result.seconds)} ({rows_per_second(rate)})"),
        (
            "vertex error",
            "  ".join(f"{name} {_millimetres(errors[name])}" for name in ("median", "p95", "max")),
        ),
        ("bytes", f"{summary.bytes:,}"),
        ("digest", summary.digest or "- (not complete)"),
        ("next", _next(result, request)),
    ]
    return aligned(rows)


def _millimetres(metres: float | None) -> str:
    return "-" if metres is None else f"{metres * 1000:.2f} mm"


def _next(result: Result, request: Request) -> str:
    if result.summary.complete:
        return f"hmr-skel verify {request.directory}"
    if result.summary.failed:
        return f"hmr-skel status {request.directory}"
    return "the same command without --limit and --shards"


def _what_is_missing(result: Result, request: Request) -> str:
    summary = result.summary
    if summary.failed:
        first = summary.failed[0]
        return (
            f"{request.directory}: {len(summary.failed)} shards failed "
            f"(shard {first['shard']}: {first['reason']}); rerun with --retry-failed"
        )
    return f"{request.directory}: {len(summary.missing)} shards are not done; rerun"


def _preview_table(found: Preview, request: Request) -> str:
    plan: Plan = found.plan
    models = ", ".join(model.name for model in plan.models) or "none"
    if any(model.standin for model in plan.models):
        models += " (stand-in)"
    return aligned(
        [
            ("subset", plan.name),
            ("output", str(request.directory)),
            ("source", ", ".join(file.name for file in plan.source_files)),
            ("models", models),
            ("rows", f"{plan.rows}"),
            ("shards", f"{plan.shards} of {plan.shard_rows} rows"),
            ("done", f"{len(found.done)}"),
            ("to do", f"{len(found.todo)}"),
            ("failed", f"{len(found.failed)}"),
            ("damaged", f"{len(found.damaged)}"),
            ("plan", plan.plan_id),
        ]
    )
