"""What made the data: digests of files and code, library versions, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError, PlanMismatch
from pipeline.import_graph import closure, modules_below, source_file
from pipeline.output_files import canonical_json

Purpose = Literal["shard", "regressor"]

# Where the code of a result begins; a package stands for all its modules.
_ENTRIES: dict[Purpose, tuple[str, ...]] = {
    "shard": ("pipeline.task", "pipeline.identities"),
    "regressor": ("stages.regressor",),
}
# Left out for every purpose, with what is in them and what only they import. They plan, find,
# publish or describe, and may change in the middle of a conversion or a training without another
# result.
_DECIDES_NOTHING = (
    "pipeline.output_files",
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
    "stages.wording",
    "stages.regressor.evaluation.page",
    "stages.regressor.evaluation.results",
    "stages.regressor.training.reporting",
    "stages.terminal",
    # The stand-in body is an input: its files are hashed like any model file.
    "skel_fit.default_body",
)
# Files that this code reads while it works and whose content no plan holds.
_READS: dict[Purpose, tuple[str, ...]] = {"shard": ("skel_fit/recipes/*.yaml",), "regressor": ()}
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
    goes stale; a plan names the recipe of its fit, so the recipes count too. Recipes of trainings
    and protocols do not: results store what these say.

    purpose: "shard", the bytes of a converted shard; "regressor", what a training or an evaluation
    of the regressor gives.
    """
    return _version_of({m: path.read_bytes() for m, path in _sources(purpose).items()})


def _sources(purpose: Purpose) -> dict[str, Path]:
    """Module -> file of the code; path below the root -> file for what it reads."""
    return code_files(purpose) | _files_read(purpose)


def _files_read(purpose: Purpose) -> dict[str, Path]:
    found = (path for pattern in _READS[purpose] for path in sorted(_ROOT.glob(pattern)))
    return {path.relative_to(_ROOT).as_posix(): path for path in found}


def _version_of(sources: Mapping[str, bytes]) -> dict[str, str]:
    digest = hashlib.sha256()
    for module, source in sorted(sources.items()):
        digest.update(module.encode() + b"\0" + source + b"\0")
    return {"sha256": digest.hexdigest()}


class OneCode:
    """Holds this process to the code of a plan, whatever is edited while it works.

    Python reads a module when it is first imported, which may be in the middle of a shard. So the
    files are compared with the plan as the process begins, and the file of every module once more
    after it was imported (`check`, before a result counts).

    expected: the digest of the plan. modules: what it covers, as the driver found it: where the
    digest is right, these files import no others, so the search through the imports is spared.

    Raises PlanMismatch where this machine's files are not the plan's.
    """

    def __init__(
        self, purpose: Purpose, expected: Mapping[str, str], modules: Iterable[str]
    ) -> None:
        found_files = {module: source_file(_ROOT, module) for module in modules}
        read = _files_read(purpose)
        self._files = {m: path for m, path in found_files.items() if path is not None} | read
        sources = {module: path.read_bytes() for module, path in self._files.items()}
        found = _version_of(sources)
        if found != dict(expected):
            digests = (value["sha256"][:12] for value in (found, expected))
            raise _other_code("has code {} instead of the plan's {}".format(*digests))
        self._digests = {module: sha256_bytes(source) for module, source in sources.items()}
        self._read = set(read)
        self._unseen = set(sources) - self._read
        self.check()

    def check(self) -> None:
        """Raises PlanMismatch where what was imported or read since is no longer the plan's."""
        new = self._unseen & sys.modules.keys()
        self._unseen -= new
        for name in sorted(new | self._read):
            path = self._files[name]
            if not path.is_file() or sha256_bytes(path.read_bytes()) != self._digests[name]:
                raise _other_code(f"uses {path.name}, which was edited while it ran")


def _other_code(what: str) -> PlanMismatch:
    return PlanMismatch(
        f"this worker ({platform.node()}) {what} (code.sha256); its rows are not written: install "
        "the code of the plan there, or convert into another directory (--out); finished shards "
        "are kept",
        ("code.sha256",),
    )


@cache
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
