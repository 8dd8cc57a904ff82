"""Small files that are read whole: opened for their columns, read again when rows are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.paths import check_regular
from pipeline.readers.joblib_files import load_pickle_file
from pipeline.readers.npz import MAX_HELD_BYTES, NpzFile
from pipeline.readers.pickles import PickleError, load_object_member
from pipeline.readers.tables import MemoryTable, Table
from pipeline.readers.torch_files import is_torch_file, load_torch_file

MAX_CONSTANT = 4096  # bytes; what holds for every row is repeated in every row


class ReloadedTable(Table):
    """A file that `load` turns into a table. Holds no rows: thousands of them fit in memory."""

    def __init__(self, path: Path, load: Callable[[Path], MemoryTable]) -> None:
        table = load(path)
        self.path, self.files, self.rows, self.specs = path, (path,), table.rows, table.specs
        self._load = load

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        return self._load(self.path).read(start, stop, names)

    def check(self) -> None:
        self._load(self.path)


def read_content(path: Path) -> dict[str, Any]:
    """name -> plain value of an npz file or of a pickled dict; nothing in it is run.

    Raises InputError.
    """
    with _opened(path) as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    if is_zip and is_torch_file(path):
        return _mapping(path, load_torch_file)
    if is_zip or path.suffix == ".npz":
        file = NpzFile(path)
        size = sum(member.size for member in file.members.values())
        if size > MAX_HELD_BYTES:
            raise InputError(f"{path}: {size} bytes of arrays, at most {MAX_HELD_BYTES} are read")
        return {
            name: load_object_member(file, name) if member.dtype.hasobject else file.whole(name)
            for name, member in file.members.items()
        }
    return _mapping(path, load_pickle_file)


def _mapping(path: Path, load: Callable[[Path], Any]) -> dict[str, Any]:
    try:
        content = load(path)
    except PickleError as error:
        raise InputError(f"{path}: {error}{_remedy(str(error))}") from error
    if not isinstance(content, dict):
        one = isinstance(content, list) and bool(content) and isinstance(content[0], dict)
        hint = "; save the people one by one, with numpy.savez(FILE, **person)" if one else ""
        raise InputError(f"{path}: a pickled {type(content).__name__}, expected a dictionary{hint}")
    return {str(name): value for name, value in content.items()}


def _remedy(refusal: str) -> str:
    """What to do about a class that is not read, as far as it is known whose it is."""
    if "asks for pandas." in refusal:
        return (
            "; a table of pandas, such as AGORA's, cannot be read as data: save its columns with "
            "numpy.savez where pandas is, or take BEDLAM's agora*.npz (docs/inputs.md#bedlam)"
        )
    if "asks for " in refusal and "numpy.savez" not in refusal:
        return "; save its arrays with numpy.savez where they were made (docs/inputs.md)"
    return ""


def as_array(where: str, name: str, value: Any) -> np.ndarray:
    """A plain value as an array of numbers or text; InputError for anything else."""
    if isinstance(value, bool | int | float | str | bytes | list | tuple):
        try:
            value = np.array(value)
        except ValueError:
            value = None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufSUc":
        raise InputError(f"{where}: member '{name}': neither numbers nor text of one shape")
    return value


def rows_and_constants(
    path: Path, content: dict[str, Any], rows: int, constant: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays with `rows` first, and what holds for every row (all in `constant` does)."""
    columns: dict[str, np.ndarray] = {}
    constants: dict[str, np.ndarray] = {}
    for name, value in content.items():
        array = as_array(f"{path}", name, value)
        if array.ndim and array.shape[0] == rows and name not in constant:
            columns[name] = array
            continue
        if array.nbytes > MAX_CONSTANT:
            raise InputError(
                f"{path}: member '{name}': shape {array.shape}, expected {rows} rows; leave it out "
                f"with the option skip: {name}"
            )
        constants[name] = array
    return columns, constants


def _opened(path: Path):
    check_regular(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
