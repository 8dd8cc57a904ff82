"""What made the data: digests of files and code, library versions, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.atomic import canonical_json
from pipeline.errors import InputError
from pipeline.import_graph import closure, modules_below

Purpose = Literal["shard", "regressor"]

# Where the code of a result begins; a package stands for all its modules.
_ENTRIES: dict[Purpose, tuple[str, ...]] = {
    "shard": ("pipeline.task",),
    "regressor": ("stages.regressor",),
}
# Left out for every purpose, with what is in them and what only they import. They plan, find,
# publish or describe, and may change in the middle of a conversion or a training without another
# result.
_DECIDES_NOTHING = (
    "pipeline.atomic",
    "pipeline.configuration",
    "pipeline.errors",
    "pipeline.extras",
    "pipeline.manifest",
    "pipeline.plan",
    "pipeline.provenance",
    "pipeline.receipts",
    "pipeline.rundir",
    "pipeline.summary",
    "stages.drawing.charts",
    "stages.drawing.meshes",
    "stages.drawing.pages",
    "stages.drawing.pictures",
    "stages.formats",
    "stages.regressor.evaluation.page",
    "stages.regressor.evaluation.results",
    "stages.regressor.training.reporting",
    "stages.terminal",
    # The stand-in body is an input: its files are hashed like any model file.
    "skel_fit.default_body",
)
_ROOT = Path(__file__).resolve().parent.parent
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


@cache
def code_version(purpose: Purpose) -> dict[str, str]:
    """Digest of every source file that decides a result of this kind, as the process began.

    Found by following the imports from where such a result is computed, so that no list of files
    goes stale. Recipes and protocols are not code: results store what these say.

    purpose: "shard", the bytes of a converted shard; "regressor", what a training or an evaluation
    of the regressor gives.
    """
    digest = hashlib.sha256()
    for module, path in sorted(code_files(purpose).items()):
        digest.update(module.encode() + b"\0" + path.read_bytes() + b"\0")
    return {"sha256": digest.hexdigest()}


def code_files(purpose: Purpose) -> dict[str, Path]:
    """Module -> source file of what `code_version` hashes."""
    entries = [m for entry in _ENTRIES[purpose] for m in modules_below(_ROOT, entry)]
    return closure(_ROOT, entries, follow=lambda module: not _idle(module))


def _idle(module: str) -> bool:
    return any(module == left or module.startswith(f"{left}.") for left in _DECIDES_NOTHING)


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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
