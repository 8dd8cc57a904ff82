"""Sources, manifests and processes for the data-plane tests and for `make chaos`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.manifest import load_manifest
from pipeline.output_files import read_sealed, sealed_json
from pipeline.provenance import sha256_bytes
from pipeline.receipts import receipt_path, shard_path
from pipeline.run import Request, Result, convert
from pipeline.seal import with_seal
from tests.faults.fitters import FAULTY, TRIVIAL

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 300
"""Seconds after which what is waited for will never come, on the busiest machine."""


def label_columns(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of a CameraHMR label file; `shape[:, 1] * 1e6` is the row number."""
    generator = np.random.default_rng(seed)
    camera = np.zeros((rows, 3, 3))
    camera[:] = [[800.0, 0, 320], [0, 800.0, 240], [0, 0, 1]]
    keypoints = generator.uniform(50, 400, (rows, 44, 3))
    keypoints[:, :, 2] = generator.uniform(0.3, 1, (rows, 44))
    shape = generator.normal(0, 1, (rows, 10)).clip(-3, 3)
    shape[:, 1] = np.arange(rows) * 1e-6
    transl = np.tile([0.0, 0.2, 5.0], (rows, 1)) + generator.normal(0, 0.1, (rows, 3))
    return {
        "imgname": np.array([f"images/{row % 97:05d}_é.jpg" for row in range(rows)], dtype="<U24"),
        "center": np.tile([320.0, 240.0], (rows, 1)),
        "scale": generator.uniform(0.8, 2, rows),
        "pose_cam": generator.normal(0, 0.3, (rows, 72)),
        "shape": shape,
        "trans_cam": transl,
        "cam_int": camera,
        "gtkps": keypoints,
        "status": np.arange(rows, dtype=np.int16),  # a name of ours
    }


def write_source(
    path: Path, rows: int, *, seed: int = 0, bad_rows: Iterable[int] = (), compressed: bool = False
) -> None:
    """Write a label file; `bad_rows` get a NaN pose."""
    columns = label_columns(rows, seed)
    for row in bad_rows:
        columns["pose_cam"][row, 5] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **columns)


def write_manifest(path: Path, shard_rows: int = 8, **changes: Any) -> Path:
    """A manifest (JSON is YAML) for `labels.npz` in the data root."""
    content = {
        "name": "test",
        "source": {"path": "labels.npz", "format": "camerahmr"},
        "shard_rows": shard_rows,
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


@dataclass(frozen=True)
class Bench:
    """A folder with a source, a manifest and outputs."""

    root: Path
    orders: Path | None = None
    """Folder of the orders when it has to be fixed before the bench exists (Ray nodes)."""
    code: Path = REPOSITORY
    """Folder of the sources that the processes of this bench run."""

    @property
    def manifest(self) -> Path:
        return self.root / "test.yaml"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def labels(self) -> Path:
        return self.data / "labels.npz"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def faults(self) -> Path:
        return self.orders or self.root / "faults"

    def order(self, name: str, text: str = "") -> None:
        """Give an order to `FaultyFit`."""
        (self.faults / name).write_text(text)

    def calls(self) -> list[tuple[int, int]]:
        """(pid, first row) of every call of `FaultyFit`."""
        return [(pid, row) for pid, row, _ in self.sizes()]

    def sizes(self) -> list[tuple[int, int, int]]:
        """(pid, first row, number of rows) of every call of `FaultyFit`."""
        path = self.faults / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]

    def request(self, **changes: Any) -> Request:
        settings: dict[str, Any] = {
            "manifest": load_manifest(self.manifest),
            "directory": self.out,
            "data_root": self.data,
            "fitter": TRIVIAL,
        }
        return Request(**settings | changes)

    def convert(self, **changes: Any) -> Result:
        """Convert in this process."""
        return convert(self.request(**changes), lambda event, data: None)

    def command(self, *options: str, fitter: str = FAULTY, out: Path | None = None) -> list[str]:
        """The command line of a conversion."""
        return [
            *(sys.executable, "-m", "tests.faults.cli", "convert", str(self.manifest)),
            *("--out", str(out or self.out), "--data-root", str(self.data), "--fitter", fitter),
            *options,
        ]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(self.code),
            "HMR_SKEL_FAULTS": str(self.faults),
            "OMP_NUM_THREADS": "1",
        }

    def run(
        self, *options: str, fitter: str = FAULTY, out: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Convert in a process of its own."""
        return self.cli(self.command(*options, fitter=fitter, out=out))

    def cli(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *options: str, fitter: str = FAULTY) -> subprocess.Popen[str]:
        """Start a conversion as the leader of its own process group."""
        return subprocess.Popen(
            self.command(*options, fitter=fitter),
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )


def _hear_interrupts() -> None:
    """A suite that was started with `&` or nohup is deaf to SIGINT, and so were its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def make_bench(
    root: Path,
    rows: int = 60,
    shard_rows: int = 8,
    bad_rows: Iterable[int] = (3, 17),
    orders: Path | None = None,
    code: Path = REPOSITORY,
    **changes: Any,
) -> Bench:
    bench = Bench(root, orders, code)
    bench.faults.mkdir(parents=True, exist_ok=True)
    write_source(bench.labels, rows, bad_rows=[row for row in bad_rows if row < rows])
    write_manifest(bench.manifest, shard_rows, **changes)
    return bench


def wait_for_calls(bench: Bench, count: int) -> None:
    """Until the fitter of a bench was called so often."""
    deadline = time.monotonic() + PATIENCE
    while len(bench.calls()) < count:
        assert time.monotonic() < deadline, "no calls"
        time.sleep(0.02)


def wait_for_row(bench: Bench, first: int) -> int:
    """The process that was given the rows from `first` on, once one was."""
    deadline = time.monotonic() + PATIENCE
    while first not in (begun := {row: pid for pid, row in bench.calls()}):
        assert time.monotonic() < deadline, f"no row {first}"
        time.sleep(0.02)
    return begun[first]


def copy_code(root: Path) -> Path:
    """The rooms and what misbehaves on purpose, free to be edited."""
    skip = shutil.ignore_patterns("__pycache__", "*.npz")
    for room in ("skel_fit", "pipeline", "stages", "manifests", "tests/faults"):
        shutil.copytree(REPOSITORY / room, root / room, ignore=skip)
    shutil.copy(REPOSITORY / "tests" / "__init__.py", root / "tests")
    return root


def shard_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under its final name in `shards/`."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((directory / "shards").glob("shard-*.h5"))
    }


def tree(directory: Path) -> Mapping[str, tuple[int, int, str]]:
    """(mtime, size, SHA-256) of every file below a folder: equal trees mean nothing was written."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mtime_ns,
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


DAMAGES = ("flip", "cut", "empty", "delete")
_TOLD = {"started", "seconds", "attempts", "machine", "content_sha256", "reason"}
"""What records say about how a shard came to be: when, where, how often, by which message."""


def damageable(directory: Path) -> list[Path]:
    """Every file of a run directory but its lock, which is empty: shards and all records."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")


def damage(path: Path, kind: str, place: int) -> None:
    """One of `DAMAGES`. place: of the flipped bit, any number."""
    if kind == "delete":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        bit = place % (8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes({"flip": data, "cut": data[:-1], "empty": b""}[kind])


def outcome(directory: Path) -> dict[str, bytes]:
    """Every byte of a finished run that any history has to end with, by file.

    Whole files; of receipts, records of concessions and the summary all but `_TOLD`.
    """
    found = {str(path.relative_to(directory)): path.read_bytes() for path in damageable(directory)}
    for name in found:
        if name == "summary.json" or name.startswith(("receipts/", "concessions/")):
            content = _without_told(read_sealed(directory / name))
            found[name] = json.dumps(content, sort_keys=True).encode()
    return found


def _without_told(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_told(item) for key, item in value.items() if key not in _TOLD}
    return [_without_told(item) for item in value] if isinstance(value, list) else value


def leftovers(directory: Path) -> list[str]:
    """Temporary files that nobody removed."""
    return [str(path) for path in directory.rglob("*.tmp")]


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def forge_shard(directory: Path, shard: int, change: Callable[[h5py.File], None]) -> None:
    """Change a shard and make every digest that speaks of its bytes agree again."""
    path = shard_path(directory, shard)
    with h5py.File(path, "r+", driver="core", backing_store=False) as file:
        change(file)
        data = with_seal(file)
    path.write_bytes(data)
    forge(receipt_path(directory, shard), sha256=sha256_bytes(data), bytes=len(data))


def forge(path: Path, **changes: Any) -> None:
    """Change a JSON file of ours, and its digest."""
    path.write_bytes(sealed_json(read_sealed(path) | changes))
