"""Copying finished shards to an object store (S3 and whatever else fsspec speaks).

The run directory on a local disk stays the truth: locks, fsync and rename do not exist on object
stores. A shard is uploaded once its receipt is written, then the receipt; `summary.json` last. A
remote copy is therefore complete when its summary says so, and every object in it is whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from pipeline.errors import InputError, OutputError, PlanMismatch, UsageError
from pipeline.extras import install_hint
from pipeline.paths import is_inside
from pipeline.plan import Plan
from pipeline.receipts import ShardState, receipt_path, shard_path
from pipeline.rundir import RunDirectory

_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}
"""Stores on which an object appears whole or not at all; elsewhere we rename."""


@dataclass(frozen=True)
class Mirror:
    """The remote copy of one run directory.

    Args:
        run: the local run directory.
        plan: its plan.
        url: remote folder, e.g. `s3://bucket/skel/coco`.
    """

    run: RunDirectory
    plan: Plan
    url: str
    filesystem: Any
    root: str
    beat: Callable[[], None] = lambda: None
    """Called whenever an upload gets on."""

    @classmethod
    def open(cls, url: str, run: RunDirectory, plan: Plan) -> Mirror:
        """Connect, and claim the remote folder for this plan.

        Raises:
            UsageError: fsspec does not know the URL, or its package is not installed.
            PlanMismatch: the folder holds another plan.
            OutputError: not reachable.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        except ImportError as error:
            hint = install_hint("s3") if url.startswith("s3") else "install its package"
            raise UsageError(f"--upload {url}: {_one_line(error)}; {hint}") from error
        except ValueError as error:
            raise UsageError(f"--upload {url}: {_one_line(error)}") from error
        mirror = cls(run, plan, url, filesystem, str(root).rstrip("/"))
        mirror._claim()
        return mirror

    def shard(self, shard: int) -> None:
        """Upload a finished shard, then its receipt."""
        self._put(shard_path(self.run.path, shard))
        self._put(receipt_path(self.run.path, shard))

    def catch_up(self, states: Iterable[ShardState]) -> int:
        """Upload finished shards that are not there, or not these; returns how many."""
        late = [s.shard for s in states if s.state == "done" and not self._is_there(s)]
        for shard in late:
            self.shard(shard)
        return len(late)

    def summary(self) -> None:
        """Upload `summary.json`: the last object of a finished run."""
        self._put(self.run.summary_path)

    def _claim(self) -> None:
        remote = self._read(self._remote(self.run.plan_path))
        if remote is None:
            self._put(self.run.plan_path)
        elif remote != self.run.plan_path.read_bytes():
            raise PlanMismatch(
                f"{self.url}: holds another plan; give another --upload URL or empty it"
            )

    def _is_there(self, state: ShardState) -> bool:
        assert state.receipt is not None
        receipt = receipt_path(self.run.path, state.shard)
        if self._read(self._remote(receipt)) != receipt.read_bytes():
            return False
        return self._size(self._remote(shard_path(self.run.path, state.shard))) == (
            state.receipt.bytes
        )

    def _put(self, local: Path) -> None:
        remote = self._remote(local)
        size = local.stat().st_size
        self.beat()
        try:
            if self._is_atomic():
                self.filesystem.put_file(str(local), remote, callback=_Beats(self.beat))
            else:
                folder, _, name = remote.rpartition("/")
                temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
                self.filesystem.makedirs(folder, exist_ok=True)
                self.filesystem.put_file(str(local), temporary, callback=_Beats(self.beat))
                self.filesystem.mv(temporary, remote)
        except Exception as error:  # every store has its own
            raise OutputError(
                f"{self.url}: cannot upload {local.name} ({size} bytes): {_one_line(error)}; "
                "rerun, finished shards are kept"
            ) from error
        if self._size(remote) != size:
            raise OutputError(f"{self.url}: {local.name} arrived with another size; rerun")

    def _read(self, remote: str) -> bytes | None:
        try:
            return self.filesystem.cat_file(remote)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be read: {_one_line(error)}") from error

    def _size(self, remote: str) -> int | None:
        self.filesystem.invalidate_cache()
        try:
            return self.filesystem.info(remote)["size"]
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be read: {_one_line(error)}") from error

    def _is_atomic(self) -> bool:
        protocol = self.filesystem.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return bool(names & _ATOMIC_PUT)

    def _remote(self, local: Path) -> str:
        return f"{self.root}/{local.relative_to(self.run.path).as_posix()}"


class _Beats(Callback):
    """fsspec tells it about bytes that were sent."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__()
        self._beat = beat

    def call(self, *arguments: object, **options: object) -> None:
        self._beat()


def fetch(url: str, directory: Path) -> None:
    """Copy a remote dataset into a new local folder; `hmr-skel verify` then checks every byte.

    Raises:
        InputError: nothing there.
        UsageError: `directory` is not empty.
    """
    filesystem, root = fsspec.core.url_to_fs(url)
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory}: not empty; give a new folder")
    if not filesystem.exists(f"{root}/plan.json"):
        raise InputError(f"{url}: no plan.json; not a converted dataset")
    directory.mkdir(parents=True, exist_ok=True)
    for remote in filesystem.find(root):
        local = directory / remote.removeprefix(root).lstrip("/")
        if not is_inside(local, directory):
            raise InputError(f"{url}: object name {remote!r} leads out of the folder")
        local.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(remote, str(local))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
