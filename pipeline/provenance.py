"""What made the data: digests of files and code, library versions, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.atomic import canonical_json
from pipeline.errors import InputError

# Code that decides the bytes of a shard. The rest (command line, run directory, reports) may change
# in the middle of a conversion without a new plan.
_CODE = (
    "skel_fit/**/*.py",
    "skel_fit/**/*.yaml",
    "pipeline/readers/**/*.py",
    "pipeline/row_checks.py",
    "pipeline/sequences.py",
    "pipeline/shards.py",
    "pipeline/task.py",
    "pipeline/fitters.py",
)
# The stand-in body is an input: its files are hashed like any model file.
_NOT_CODE = ("skel_fit/default_body/",)
_LIBRARIES = ("h5py", "numba", "numpy", "scipy", "smplx", "torch")


@dataclass(frozen=True)
class FileRecord:
    """Identity of an input file. `name` is its last path component: data may be moved."""

    name: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON form."""
    return sha256_bytes(canonical_json(value))


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file (about 2 GB/s from the page cache)."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileRecord(path.name, os.fstat(stream.fileno()).st_size, digest)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def code_version() -> dict[str, str]:
    """Digest of every source file that decides the bytes of a shard."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in _code_files(root, _CODE):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return {"sha256": digest.hexdigest()}


def software() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {name: _version(name) for name in _LIBRARIES}


def machine(device: str) -> dict[str, Any]:
    """Where a shard was computed; for receipts only, never inside a shard."""
    described: dict[str, Any] = {
        "device": device,
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "hmr-skel": _version("hmr-skel"),
    }
    if device.startswith("cuda"):
        import torch

        described["device_name"] = torch.cuda.get_device_name(torch.device(device))
        described["tf32"] = bool(torch.backends.cuda.matmul.allow_tf32)
    return described


def _code_files(root: Path, patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in root.glob(pattern)}
    return sorted(
        path for path in found if not path.relative_to(root).as_posix().startswith(_NOT_CODE)
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
