"""The run directory: lock, receipts, attempts, failures, and what they add up to.

    plan.json  summary.json  run.json  .lock
    shards/shard-00000.h5    receipts/shard-00000.json
    attempts/shard-00000.json (while a shard is unfinished)   failed/shard-00000.json (quarantined)
    concessions/shard-00000.json (rows that were left out, smaller blocks)

Existence is not completion: a shard is done when its receipt parses, names this plan and matches
the size and SHA-256 of the file. Source: docs/reference/pipeline.md#failures, #resume.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.attempts import MAX_FAILURES, Attempts, Failure, Search
from pipeline.concessions import Concessions, read_concessions, write_concessions
from pipeline.errors import InputError, UsageError
from pipeline.identity_shapes import PARTS_FOLDER, SHAPES_FILE, parts_are_ours
from pipeline.locking import held, is_held
from pipeline.output_files import (
    TEMPORARY_SUFFIX,
    make_directory,
    read_sealed,
    remove,
    sealed_json,
    temporaries,
    write_bytes,
    write_if_changed,
)
from pipeline.plan import Plan, read_plan
from pipeline.provenance import file_record
from pipeline.receipts import (
    Receipt,
    ShardState,
    read_receipt,
    read_results,
    receipt_path,
    shard_path,
)
from pipeline.summary import Summary

FOLDERS = ("shards", "receipts", "attempts", "failed", "concessions")


@dataclass(frozen=True)
class RunDirectory:
    """Paths and durable state of one run."""

    path: Path

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def lock_path(self) -> Path:
        return self.path / ".lock"

    def plan(self) -> Plan:
        """The plan of this directory; `InputError` when there is none."""
        if not self.plan_path.is_file():
            raise InputError(f"{self.path}: not a converted dataset (no plan.json)")
        return read_plan(self.plan_path)

    @contextlib.contextmanager
    def lock(self, *, without: bool = False) -> Iterator[None]:
        """Hold the directory, see `pipeline.locking.held`.

        Raises:
            Locked: another run holds it.
            OutputError: its file system knows no locks.
        """
        busy = "another run is converting into this directory; wait for it or stop it"
        with held(self.lock_path, busy, without=without):
            yield

    def is_locked(self) -> bool:
        """Whether a run is at work, found without writing."""
        return is_held(self.lock_path)

    def check_usable(self) -> None:
        """Refuse to mix a run into a folder that holds something else."""
        if not self.path.exists() or self.plan_path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path}: is a file; give an output directory")
        ours = {".lock", *FOLDERS}
        if parts_are_ours(self.path):
            ours.add(PARTS_FOLDER)
            if (self.path / PARTS_FOLDER).is_dir():  # they stay until a plan names the shapes
                ours.add(SHAPES_FILE)
        other = [
            found.name
            for found in self.path.iterdir()
            if found.name not in ours and not found.name.endswith(".tmp")
        ]
        if other:
            raise UsageError(
                f"{self.path}: holds no plan.json but other files ({other[0]}, ...); "
                "give an empty or new directory"
            )

    def prepare(self) -> None:
        """Make the folders and sweep what dead writers left."""
        for name in FOLDERS:
            make_directory(self.path / name)
        self.sweep()

    def sweep(self) -> None:
        """Remove temporary files. A zombie that still writes one fails to rename: harmless."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            for leftover in temporaries(folder):
                with contextlib.suppress(FileNotFoundError):
                    leftover.unlink()

    def attempts(self, shard: int) -> Attempts:
        """Attempts of a shard, unreported starts included as they stand."""
        path = self._attempts_path(shard)
        try:
            content = read_sealed(path)
            failures = tuple(Failure(**item) for item in content["failures"])
            return Attempts(
                shard,
                failures,
                int(content["lost"]),
                content["running"],
                content.get("searched", False),
            )
        except FileNotFoundError:
            return Attempts(shard)
        except (InputError, KeyError, TypeError, ValueError):
            return Attempts(shard)  # damaged: at worst the shard is tried three times more

    def write_attempts(self, attempts: Attempts, plan: Plan) -> None:
        """Persist; an untouched record is a removed file."""
        path = self._attempts_path(attempts.shard)
        if attempts == Attempts(attempts.shard):
            remove(path)
            return
        start, stop = plan.rows_of(attempts.shard)
        record = asdict(attempts) | {"rows": [start, stop], "plan_id": plan.plan_id}
        write_bytes(path, sealed_json(record))
        if attempts.quarantined:
            count = len(attempts.failures) + attempts.lost
            write_bytes(
                self._failed_path(attempts.shard), sealed_json(record | {"attempts": count})
            )

    def clear_attempts(self, shard: int) -> None:
        remove(self._attempts_path(shard))
        remove(self._failed_path(shard))

    def concessions(self, plan: Plan, shard: int) -> Concessions:
        """What is on record; `InputError` when the record is damaged."""
        return read_concessions(self.path, plan.plan_id, shard)

    def concede(self, plan: Plan, shard: int, given: Concessions) -> None:
        write_concessions(self.path, plan.plan_id, shard, given)

    def conceded(self) -> list[int]:
        """Shards with a record of concessions."""
        return _shard_numbers(self.path / "concessions")

    def unfinished(self) -> dict[int, Attempts]:
        """Every shard with an attempts record."""
        return {shard: self.attempts(shard) for shard in _shard_numbers(self.path / "attempts")}

    def inspect(
        self, plan: Plan, shard: int, *, checksums: bool = True, results: bool = False
    ) -> ShardState:
        """Whether a shard is done, and if not why.

        Args:
            checksums: read the file and compare its SHA-256 (2 GB/s); sizes only otherwise, and
                always where shards have no seal (schema version 1).
            results: also read what `summarise` needs.
        """
        path = receipt_path(self.path, shard)
        if not path.is_file():
            return ShardState(shard, "pending")
        try:
            receipt = read_receipt(path, plan)
        except InputError:
            return ShardState(shard, "damaged", reason=f"receipt {path.name} is damaged")
        problem = self._mismatch(plan, shard, receipt, checksums or not plan.sealed)
        if problem:
            return ShardState(shard, "damaged", reason=problem)
        try:
            conceded = self.concessions(plan, shard)
            found = read_results(self.path, plan, shard) if results else None
        except InputError as error:
            return ShardState(shard, "damaged", reason=str(error))
        if conceded.digest != receipt.concessions:
            reason = "it was made with other concessions than those on record"
            return ShardState(shard, "damaged", reason=reason)
        if found is not None and found.status != dict(receipt.status):
            return ShardState(shard, "damaged", reason="status counts differ from the receipt")
        return ShardState(shard, "done", receipt, results=found, concessions=conceded)

    def inspect_all(
        self, plan: Plan, *, checksums: bool = True, results: bool = False
    ) -> list[ShardState]:
        """State of every shard, quarantine included; see `inspect`."""
        quarantined = {
            shard for shard, found in self.unfinished().items() if found.settled().quarantined
        }
        states = []
        for shard in range(plan.shards):
            state = self.inspect(plan, shard, checksums=checksums, results=results)
            if state.state != "done" and shard in quarantined:
                state = replace(state, state="failed", reason=self._last_failure(shard))
            states.append(state)
        return states

    def strays(self, plan: Plan) -> list[str]:
        """What lies in the folders of shards and belongs to none of this plan, as paths below
        this directory. It is left alone, and never read as data.
        """
        found = []
        for name in FOLDERS:
            suffix = ".h5" if name == "shards" else ".json"
            ours = {f"shard-{shard:05d}{suffix}" for shard in range(plan.shards)}
            folder = self.path / name
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.name not in ours and not path.name.endswith(TEMPORARY_SUFFIX):
                    found.append(f"{name}/{path.name}")
        return found

    def write_summary(self, summary: Summary) -> None:
        write_if_changed(self.summary_path, sealed_json(summary.to_json()))

    def write_plan(self, plan: Plan) -> None:
        """Also where it is there, in other bytes that say the same."""
        write_if_changed(self.plan_path, plan.to_bytes())

    def write_places(self, source: Path, data_root: Path, models: Path | None) -> None:
        """Note where this machine has the inputs, so that `verify` and `report` find them.

        Not part of the plan: folders may move.
        """
        places = {
            "source": str(source),
            "data_root": str(data_root),
            "models": str(models) if models else None,
        }
        write_if_changed(self.path / "run.json", sealed_json(places))

    def places(self, plan: Plan) -> dict[str, str | None]:
        """What `write_places` noted; empty when absent or damaged.

        A hint: what is found there is checked against the plan, and the next run notes it anew.
        """
        try:
            found = read_sealed(self.path / "run.json", required=plan.sealed)
        except (FileNotFoundError, InputError):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str)}

    def _mismatch(self, plan: Plan, shard: int, receipt: Receipt, checksums: bool) -> str:
        if receipt.plan_id != plan.plan_id:
            return "receipt belongs to another plan"
        if (receipt.shard, (receipt.row_start, receipt.row_stop)) != (shard, plan.rows_of(shard)):
            return "receipt belongs to another shard"
        if not sum(receipt.status.values()) == receipt.rows == receipt.row_stop - receipt.row_start:
            return "receipt does not account for its rows"
        path = shard_path(self.path, shard)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return f"{path.name} is missing"
        if size != receipt.bytes:
            return f"{path.name} has {size} bytes, its receipt says {receipt.bytes}"
        if checksums and file_record(path).sha256 != receipt.sha256:
            return f"{path.name} has another SHA-256 than its receipt"
        return ""

    def _last_failure(self, shard: int) -> str:
        attempts = self.attempts(shard).settled()
        if not attempts.failures:
            return f"its process was lost {attempts.lost} times"
        last = attempts.failures[-1]
        return f"{last.kind}: {last.message}"

    def _attempts_path(self, shard: int) -> Path:
        return self.path / "attempts" / f"shard-{shard:05d}.json"

    def _failed_path(self, shard: int) -> Path:
        return self.path / "failed" / f"shard-{shard:05d}.json"


class Ledger:
    """Attempt counting of one run: on disk before the work, corrected after it."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._known: dict[int, Attempts] = {}
        for shard, found in run.unfinished().items():
            if shard >= plan.shards:  # a stray
                continue
            self._known[shard] = found.settled()
            if self._known[shard] != found:
                run.write_attempts(self._known[shard], plan)

    def attempts(self, shard: int) -> Attempts:
        return self._known.get(shard, Attempts(shard))

    def start(self, shard: int, *, isolated: bool) -> int:
        """Record a start; returns the number of this attempt, from 1."""
        self._set(replace(self.attempts(shard), running="apart" if isolated else "here"))
        return len(self.attempts(shard).failures) + 1

    def finish(self, shard: int) -> None:
        self._known.pop(shard, None)
        self._run.clear_attempts(shard)

    def fail(self, shard: int, failure: Failure) -> Attempts:
        before = self.attempts(shard)
        self._set(replace(before, failures=(*before.failures, failure), running=None))
        return self.attempts(shard)

    def searched(self, shard: int, search: Search) -> None:
        """The rows at fault were looked for: found, they take the failures with them.

        Nothing found: one more attempt, since what no row alone brings about may have passed.
        """
        before = self.attempts(shard)
        left = before.failures
        if not search.hopeless:
            left = () if search.found else left[: MAX_FAILURES - 1]
        self._set(replace(before, failures=left, running=None, searched=True))

    def forget(self, shard: int) -> None:
        """The run was stopped, which is no fault of the shard."""
        self._set(replace(self.attempts(shard), running=None))

    def _set(self, attempts: Attempts) -> None:
        self._known[attempts.shard] = attempts
        self._run.write_attempts(attempts, self._plan)


def _shard_numbers(folder: Path) -> list[int]:
    """Shards that have a record in a folder; `RunDirectory.strays` tells of other files."""
    found = (re.fullmatch(r"shard-(\d{5,9})\.json", path.name) for path in folder.glob("*"))
    return sorted(int(name[1]) for name in found if name)
