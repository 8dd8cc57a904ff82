"""`hmr-skel convert`: progress, closing table, event log."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import Incomplete, OutputError
from stages import options
from stages.terminal import Progress, aligned, say
from stages.wording import conceded, counts, duration, millimetres, rate

if TYPE_CHECKING:
    from pipeline.run import Preview, Request, Result


_PATIENCE = 1.0
_PATIENCE_OF_FILES = 5.0
"""Seconds without a word after which it is said what takes so long: to a person, to a log."""


def _worker_count(text: str) -> int | None:
    """`auto`: None."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text}: expected auto or a number from 1")
    return int(text)


def convert(
    subset: Annotated[
        str,
        typer.Argument(
            metavar="SUBSET|FILE",
            help="A name in manifests/, a YAML file, or a label file or folder of your own.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output directory.", show_default="outputs/SUBSET")
    ] = None,
    data_root: options.DataRoot = None,
    models: options.Models = None,
    up: options.Up = None,
    smpl_gender: options.SmplGender = None,
    skel_gender: options.SkelGender = None,
    option: options.Option = None,
    device: options.FitDevice = "cpu",
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Who runs shards.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            parser=_worker_count,
            metavar="N|auto",
            help="Worker processes or Ray actors.",
            show_default="auto: what the machine, or the cluster, has use for",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Convert the first N rows, rounded up to shards.")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="Convert these shards, e.g. 3,7-9.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try shards again that failed three times.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    no_fit: Annotated[
        bool,
        typer.Option(
            "--no-fit", help="Take the SKEL labels of the file as they are: audit and shard them."
        ),
    ] = False,
    no_lock: options.NoLock = False,
    quiet: options.Quiet = False,
    log_json: Annotated[
        Path | None, typer.Option(help="Append events to this file, one JSON object a line.")
    ] = None,
    upload: Annotated[
        str | None, typer.Option(help="Also copy finished shards there, e.g. s3://bucket/coco.")
    ] = None,
    fitter: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Convert a subset to SKEL shards, or resume where an earlier run stopped."""
    with closing(Shown(quiet)) as shown:
        shown.begin(f"converting {subset}")
        from pipeline.own_file import Asked

        given = tuple(option) if option else None
        asked = Asked(subset, data_root, models, up, smpl_gender, skel_gender, given)
        manifest, root, models = asked.found(shown.tell)
        directory = out or Path("outputs") / manifest.name
        if not (dry_run or no_lock):
            _refuse_if_locked(directory)  # before torch is imported and inputs are hashed

        from pipeline.fitters import DEFAULT_FITTER
        from pipeline.given_labels import NOT_FITTED
        from pipeline.guard import Inputs
        from pipeline.run import Request, parse_shards, preview

        request = Request(
            manifest=manifest,
            directory=directory,
            data_root=root,
            models=models,
            device=device,
            executor=executor,
            workers=workers,
            limit=limit,
            shards=parse_shards(shards) if shards else None,
            retry_failed=retry_failed,
            no_lock=no_lock,
            fitter=fitter or (NOT_FITTED if no_fit else DEFAULT_FITTER),
            upload=upload,
        )
        if log_json is not None:
            spellings = (manifest.source.path, *manifest.source.spellings)
            sources = [request.data_root / name for name in spellings]
            Inputs(Path(subset), *sources, models).and_dataset(directory).check(log_json)
        if dry_run:
            say(_preview_table(preview(request, shown.explain), request))
        else:
            _run(request, shown, log_json)


def _run(request: Request, shown: Shown, log_json: Path | None) -> None:
    """Convert and print the closing table.

    Raises:
        Incomplete: a shard that was asked for is not done.
        InputError: every row was rejected.
        PipelineError: as `pipeline.run.convert`.
    """
    from pipeline.row_checks import check_some_accepted
    from pipeline.run import convert

    with _event_log(log_json) as log:

        def report(event: str, data: dict[str, Any]) -> None:
            shown.report(event, data)
            if event not in ("tick", "note"):
                log(event, data)

        result = convert(request, report)
        shown.close()
        log("end", {"complete": result.summary.complete, "digest": result.summary.digest})
    say(_table(result, request))
    if not result.ok:
        raise Incomplete(_what_is_missing(result, request))
    check_some_accepted(result.summary.rows_written, result.summary.rejected)


def _refuse_if_locked(directory: Path) -> None:
    from pipeline.rundir import RunDirectory

    run_directory = RunDirectory(directory)
    if run_directory.is_locked():
        with run_directory.lock():  # raises Locked
            pass


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


class Shown:
    """The events of a run as progress: rows, with shards, workers and failures beside them.

    What takes longer than a second (in a log, five) without a word is explained.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._watched = sys.stderr.isatty()
        self._patience = _PATIENCE if self._watched else _PATIENCE_OF_FILES
        self._progress: Progress | None = None
        self._people: Progress | None = None
        self._shards = self._done = self._failed = 0
        self._fitting = False
        self._rows_done = 0
        self._waiting: threading.Timer | None = None
        self._doing, self._since = "", time.monotonic()

    def begin(self, text: str) -> None:
        """The first line: at once on a terminal; elsewhere when nothing else comes first."""
        if self._watched:
            self._say(text)
        else:
            self.explain(text)

    def report(self, event: str, data: dict[str, Any]) -> None:
        self._stop_waiting()
        if event == "note":
            self.explain(data["text"])
        elif event == "identities":
            self._say(f"shapes of {data['total']} people, {data['done']} found before")
            self._people = Progress(
                "shapes", data["total"], "people", done=data["done"], quiet=self._quiet
            )
        elif self._people is not None and event == "identities_done":
            self._people.update(data["count"])
        elif self._people is not None and event == "identities_end":
            self._say(self._people.summed_up())
            self._people.close()
            self._people = None
        elif event == "misfits":
            self._say(
                f"shapes of {data['count']} of {data['of']} people fit their meshes badly, worst "
                f"row {data['row']}'s person: {1000 * data['error']:.0f} mm; look at these rows"
            )
        elif event == "damaged":  # comes before the start
            self._say(f"shard {data['shard']} is redone: {data['reason']}")
        elif event == "start":
            self._shards, self._done = data["shards"], data["shards_done"]
            self._failed, self._rows_done = data["shards_failed"], data["rows_done"]
            self._progress = Progress(
                data["subset"], data["rows"], "rows", done=data["rows_done"], quiet=self._quiet
            )
            self._say(
                f"{data['subset']}: {data['rows']} rows in {data['shards']} shards, "
                f"{data['shards_done']} done, {data['shards_failed']} failed"
            )
        elif self._progress is not None and event == "shard_done":
            self._done += 1
            self._rows_done += data["rows"]
        elif self._progress is not None and event == "tick":
            self._tick(self._progress, data)
        elif event == "shard_quarantined":
            self._failed += 1
        line = _LINES.get(event)
        if line is not None:
            self._say(line(data))

    def tell(self, text: str) -> None:
        """Say it now."""
        self._stop_waiting()
        self._say(text)

    def close(self) -> None:
        self._stop_waiting()
        if self._people is not None:
            self._people.close()
        if self._progress is not None:
            self._progress.update(self._rows_done - self._progress.done)
            self._progress.close()

    def _tick(self, progress: Progress, data: dict[str, Any]) -> None:
        """How far all workers are; what they do instead of fitting, where that takes long."""
        doing = "" if "fitting" in data["doing"] else ", ".join(data["doing"])
        if not doing and not self._fitting:
            self._fitting = True
            progress.begin()
        if doing != self._doing:
            self._doing, self._since = doing, time.monotonic()
        elif doing and time.monotonic() - self._since > self._patience:
            self._say(doing)
            self._since = math.inf  # once
        note = f"{self._done}/{self._shards} shards, {self._failed} failed"
        reached = self._rows_done + data["rows"]
        progress.update(reached - progress.done, f"{note}, {data['running']} running")

    def explain(self, text: str) -> None:
        """Say it if it takes long."""
        self._stop_waiting()
        if not self._quiet:
            self._waiting = threading.Timer(self._patience, self._say, (text,))
            self._waiting.daemon = True
            self._waiting.start()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)
        elif not self._quiet:
            say(text, file=sys.stderr)


def _failure_line(data: dict[str, Any], end: str) -> str:
    start, stop = data["rows"]
    return (
        f"shard {data['shard']} (rows {start} to {stop - 1}), attempt {data['attempt']}: "
        f"{data['reason']}; {end}"
    )


def _search_line(data: dict[str, Any]) -> str:
    first, stop = data["rows"]
    return f"shard {data['shard']}: looking for the rows at fault among {first} to {stop - 1}"


def _crash_line(data: dict[str, Any]) -> str:
    return (
        f"row {data['row']} (shard {data['shard']}) is left out: {data['reason']}; "
        "--retry-failed tries it again"
    )


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "shard_failed": lambda data: _failure_line(data, "will be tried again"),
    "shard_quarantined": lambda data: _failure_line(data, "given up"),
    "search": _search_line,
    "row_crashed": _crash_line,
    "upload_failed": lambda data: f"upload of {data['name']}: {data['reason']}",
}


def _table(result: Result, request: Request) -> str:
    summary = result.summary
    errors = summary.vertex_error_mean
    pace = result.rows_converted / result.seconds if result.rows_converted else None
    rows = [
        ("subset", summary.name + (" (stand-in bodies)" if result.standin else "")),
        *([("labels", "as they are in the file, nothing fitted")] if _not_fitted(request) else []),
        ("rows in", f"{summary.rows}"),
        ("rows written", f"{summary.rows_written}"),
        ("rejected", counts(summary.rejected)),
        *(("conceded", text) for text in conceded(summary.concessions)),
        (
            "shards",
            f"{result.converted} converted now, {result.skipped} done before, "
            f"{len(summary.failed)} failed, {len(summary.missing)} pending",
        ),
        ("time", f"{duration(result.seconds)} ({rate(pace)})"),
        (
            "vertex error",
            "  ".join(
                f"{name} {millimetres(errors[name], 2)} mm" for name in ("median", "p95", "max")
            ),
        ),
        *(
            ("deviations", f"{pair}: skel_poses_sd is NaN, {why}")
            for pair, why in result.unsure.items()
            if not _not_fitted(request)
        ),
        ("bytes", f"{summary.bytes:,}"),
        ("digest", summary.digest or "- (not complete)"),
        ("next", _next(result, request)),
    ]
    return aligned(rows)


def _not_fitted(request: Request) -> bool:
    from pipeline.given_labels import NOT_FITTED

    return request.fitter == NOT_FITTED


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
    plan = found.plan
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
