"""The stand-in pair as files under the official names, and the user's cache of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import sync_directory, whole_file
from .expansion import GENDERS, STANDIN, asset_sha256, default_body_arrays
from .regressors import REGRESSOR_FILES, stand_in_regressors

RECORD = "default-body.json"  # SHA-256 of every file beside it; written last
FILE_NAMES = (
    *(f"SMPL_{gender.upper()}.pkl" for gender in GENDERS["smpl"]),
    *(f"skel_{gender}.pkl" for gender in GENDERS["skel"]),
    *REGRESSOR_FILES,
)
log = logging.getLogger(__name__)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_default_body(directory: str | os.PathLike[str]) -> list[Path]:
    """Write the stand-in pair into `directory` (made if missing) and return the files.

    SMPL_{NEUTRAL,MALE,FEMALE}.pkl (pickle protocol 2, CSC regressor, uint32 tree with root
    4294967295), skel_{male,female}.pkl (version 1.1.1, COO matrices), SMPL_to_J19.pkl (19, 6890),
    J_regressor_h36m.npy (17, 6890), J_regressor_SMPL_MALE.pkl and J_regressor_SKEL_mix_MALE.pkl
    (24, 6890), and default-body.json with the SHA-256 of each. Each file replaces its old version
    atomically; the same library versions give the same bytes. About 170 MB.
    Raises OSError if the directory cannot be written.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def put(name: str, write: Callable[[BinaryIO], object]) -> None:
        with whole_file(target / name) as stream:
            write(stream)
        written.append(target / name)

    def put_pickle(name: str, content: Any) -> None:
        # Protocol 2 is what the official files use; readers of either Python open it.
        put(name, lambda stream: pickle.dump(content, stream, protocol=2))

    models = {(kind, gender): default_body_arrays(kind, gender)
              for kind in GENDERS for gender in GENDERS[kind]}  # fmt: skip
    for (kind, gender), content in models.items():
        name = f"SMPL_{gender.upper()}.pkl" if kind == "smpl" else f"skel_{gender}.pkl"
        put_pickle(name, content)
    regressors = stand_in_regressors(models["smpl", "neutral"], models["skel", "male"])
    for name, matrix in regressors.items():
        if name.endswith(".npy"):
            put(name, partial(np.save, arr=matrix))
        else:
            put_pickle(name, matrix)
    record = {
        "standin": STANDIN,
        "asset_sha256": asset_sha256(),
        "files": {path.name: _sha256(path) for path in written},
    }
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    put(RECORD, lambda stream: stream.write(text.encode()))
    return written


def _problem(directory: Path) -> str | None:
    """Why the directory is not a complete, undamaged copy (None: it is)."""
    try:
        recorded = json.loads((directory / RECORD).read_text())["files"]
        if set(recorded) != set(FILE_NAMES):
            return f"{RECORD} does not list the expected files"
        for name, digest in recorded.items():
            if _sha256(directory / name) != digest:
                return f"{name} does not match its recorded SHA-256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD} is not readable"
    return None


def default_body_directory() -> Path:
    """A folder with the files of `write_default_body`, in the user's cache.

    $XDG_CACHE_HOME (or ~/.cache)/hmr-skel/default-body-<first 12 digits of the asset's SHA-256>.
    Written on first use, checked against the recorded SHA-256 on every use, replaced when damaged
    (one warning). Safe with any number of processes at once. Raises OSError if the cache cannot be
    written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmr-skel"
    final = cache / f"default-body-{asset_sha256()[:12]}"
    if _problem(final) is None:
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{final.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, even by kill -9
        problem = _problem(final)
        if problem is None:  # another process wrote it while this one waited
            return final
        for leftover in cache.glob(f".{final.name}.*"):  # of killed writers: we hold the lock
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(dir=cache, prefix=f".{final.name}."))
        try:
            write_default_body(staging / "new")
            if final.exists():
                log.warning("%s: %s; writing it again", final, problem)
                # Moved away, not overwritten: whoever has a file open keeps a whole one.
                final.rename(staging / "old")
            (staging / "new").rename(final)
        finally:
            shutil.rmtree(staging)
        sync_directory(cache)
    return final
