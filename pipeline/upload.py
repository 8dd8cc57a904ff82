"""Copying finished shards to an object store (S3 and whatever else fsspec speaks).

The run directory on a local disk stays the truth: locks, fsync and rename do not exist on object
stores. The plan and the shapes of its people come first; a shard is uploaded once its receipt is
written, then the receipt; `summary.json` last. A
remote copy is therefore complete when its summary says so, and every object in it is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from pipeline.concessions import concessions_path
from pipeline.errors import (
    Incomplete,
    InputError,
    OutputError,
    PipelineError,
    PlanMismatch,
    UsageError,
)
from pipeline.extras import install_hint
from pipeline.identity_shapes import SHAPES_FILE, plan_shapes
from pipeline.output_files import make_directory, published
from pipeline.paths import is_inside, stays_inside
from pipeline.plan import Plan
from pipeline.provenance import sha256_bytes
from pipeline.receipts import ShardState, receipt_path, shard_path
from pipeline.rundir import RunDirectory

_BLOCK = 1 << 20
_OBJECTS = re.compile(
    r"(plan|summary|run)\.json|shards/shard-\d{5,}\.h5|(receipts|concessions)/shard-\d{5,}\.json|"
    + re.escape(SHAPES_FILE)
)
"""What a dataset consists of; other objects beside it are none of ours."""
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
        filesystem, root = _connect(url)
        mirror = cls(run, plan, url, filesystem, str(root).rstrip("/"))
        mirror._claim()
        return mirror

    def shard(self, shard: int) -> None:
        """Upload a finished shard, then its receipt."""
        self._put(shard_path(self.run.path, shard))
        left_out = concessions_path(self.run.path, shard)
        if left_out.is_file():
            self._put(left_out)
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
        shapes = self.run.path / SHAPES_FILE
        if self.plan.identities is not None and not self._same(shapes):
            self._put(shapes)

    def _is_there(self, state: ShardState) -> bool:
        receipt = receipt_path(self.run.path, state.shard)
        if self._read(self._remote(receipt)) != receipt.read_bytes():
            return False
        return self._same(shard_path(self.run.path, state.shard))

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
        if not self._same(local):
            raise OutputError(f"{self.url}: {local.name} arrived with other bytes; rerun")

    def _read(self, remote: str) -> bytes | None:
        try:
            return self.filesystem.cat_file(remote)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be read: {_one_line(error)}") from error

    def _same(self, local: Path) -> bool:
        try:
            return _same(self.filesystem, self._remote(local), local, self.beat)
        except Exception as error:  # every store has its own
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


def fetch(
    url: str, directory: Path, report: Callable[[int, int], None] = lambda done, of: None
) -> list[ShardState]:
    """Copy a remote dataset into a local folder, or go on with that; every byte is checked.

    report: called with (objects done, objects in all). Returns the state of every shard: `done` or,
    where the upload is not complete, `pending`.

    Raises:
        InputError: nothing there, an object name that leads out of the folder, or no shapes of the
            plan's people.
        UsageError: `directory` holds something else.
        Incomplete: a shard is not what its receipt says.
    """
    filesystem, root = _connect(url)
    root = root.rstrip("/")
    run = RunDirectory(directory)
    try:
        plan = filesystem.cat_file(f"{root}/{run.plan_path.name}")
        names = [found.removeprefix(root).lstrip("/") for found in filesystem.find(root)]
    except FileNotFoundError:
        raise InputError(f"{url}: no plan.json; not a converted dataset") from None
    except Exception as error:  # every store has its own
        raise InputError(f"{url}: cannot be read: {_one_line(error)}") from error
    begun = run.plan_path.is_file() and run.plan_path.read_bytes() == plan
    if directory.exists() and any(directory.iterdir()) and not begun:
        raise UsageError(f"{directory}: not empty; give a new folder")
    for name in names:
        if not stays_inside(name) or not is_inside(directory / name, directory):
            raise InputError(f"{url}: object name {name!r} leads out of the folder")
    # The plan first, so that a broken copy is known as one; the summary last.
    ours = sorted(filter(_OBJECTS.fullmatch, names), key=lambda n: (n != "plan.json", "/" not in n))
    for done, name in enumerate(ours):
        report(done, len(ours))
        _get(filesystem, f"{root}/{name}", directory / name, url)
    report(len(ours), len(ours))
    found = run.plan()
    plan_shapes(found, directory)
    states = run.inspect_all(found)
    bad = [state for state in states if state.state == "damaged"]
    if bad:
        raise Incomplete(f"{directory}: shard {bad[0].shard}: {bad[0].reason}; fetch again")
    return states


def cached(url: str) -> Path:
    """A checked local copy of a remote dataset, in the user's cache; fetched on first use.

    Raises: as `fetch`.
    """
    filesystem, root = _connect(url)
    remote = {}
    for name in ("plan.json", "summary.json"):
        try:
            remote[name] = filesystem.cat_file(f"{root.rstrip('/')}/{name}")
        except FileNotFoundError:
            if name == "plan.json":
                raise InputError(f"{url}: no plan.json; not a converted dataset") from None
        except Exception as error:  # every store has its own
            raise InputError(f"{url}: cannot be read: {_one_line(error)}") from error
    key = sha256_bytes(url.encode() + b"\0" + remote["plan.json"])[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmr-skel"
    run = RunDirectory(cache / "datasets" / key)
    if run.summary_path.is_file() and run.summary_path.read_bytes() == remote.get("summary.json"):
        states = run.inspect_all(run.plan(), checksums=False)
        if all(state.state == "done" for state in states):
            return run.path
    fetch(url, run.path)
    return run.path


def _connect(url: str) -> tuple[Any, str]:
    """File system and path of an fsspec URL."""
    try:
        filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        hint = install_hint("s3") if url.startswith("s3") else "install its package"
        raise UsageError(f"{url}: {_one_line(error)}; {hint}") from error
    except ValueError as error:
        raise UsageError(f"{url}: {_one_line(error)}") from error
    return filesystem, str(root)


def _get(filesystem: Any, remote: str, local: Path, url: str) -> None:
    """Copy one object, unless the file has its bytes already."""
    try:
        if local.is_file() and _same(filesystem, remote, local):
            return
        make_directory(local.parent)
        with published(local) as stream, filesystem.open(remote, "rb") as source:
            shutil.copyfileobj(source, stream, _BLOCK)
    except PipelineError:
        raise
    except Exception as error:  # every store has its own
        raise InputError(f"{url}: {remote} cannot be read: {_one_line(error)}") from error


def _same(
    filesystem: Any, remote: str, local: Path, beat: Callable[[], None] = lambda: None
) -> bool:
    """Whether an object holds the bytes of a file. Read back where the store's tag is no MD5."""
    filesystem.invalidate_cache()
    try:
        found = filesystem.info(remote)
    except FileNotFoundError:
        return False
    if found["size"] != local.stat().st_size:
        return False
    with local.open("rb") as stream:
        if str(found.get("ETag", "")).strip('"') == hashlib.file_digest(stream, "md5").hexdigest():
            return True
    with local.open("rb") as ours, filesystem.open(remote, "rb") as theirs:
        while block := ours.read(_BLOCK):
            beat()
            if theirs.read(len(block)) != block:
                return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
