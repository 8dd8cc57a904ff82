"""WebDataset: tar files that pair every picture with the people in it.

    images/a.jpg     the picture, byte for byte
    images/a.json    {"image": "images/a.jpg", "people": [{"skel_poses": [...], ...}, ...]}

A member of a tar has the name that the labels have for the picture, so that training finds it there
(`hmr-skel train --images FOLDER`). WebDataset ends the name of a sample at its first dot, so a
further dot becomes %2E, and % becomes %25.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.exporters.base import Exported, ExportOptions, Selection, readable
from pipeline.exporters.folders import Card, Copy, chosen_columns, export_folder
from pipeline.output_files import canonical_json
from pipeline.paths import stays_inside

NAME = "imgname"
_READ_ROWS = 2048
"""Rows whose labels are in memory together; more only where one picture has more people."""


class Pictures(Protocol):
    """Bytes of pictures by the name that the labels have for them."""

    place: str

    def has(self, names: Sequence[str]) -> np.ndarray:
        """(n,) bool: which pictures exist."""
        ...

    def read(self, name: str) -> bytes:
        """The encoded picture; `InputError` when it cannot be read."""
        ...


class WebDatasetOptions(ExportOptions):
    """columns: names, separated by commas; all by default. per_file: pictures of a tar file.
    images: folder or tar file with the pictures; by default where the conversion had them."""

    columns: str | None = None
    per_file: int = Field(1000, ge=1)
    images: Path | None = None


@dataclass(frozen=True)
class WebDataset:
    """The format `webdataset`: a folder of tar files. The same data give the same bytes.

    pictures: (dataset, --images) -> where the pictures are.
    """

    card: Card
    pictures: Callable[[Dataset, Path | None], Pictures]
    name: ClassVar[str] = "webdataset"
    options: ClassVar[type[ExportOptions]] = WebDatasetOptions

    def write(
        self, dataset: Dataset, path: Path, options: WebDatasetOptions, models: Path | None
    ) -> Exported:
        del models
        if NAME not in dataset:
            raise InputError(
                f"{dataset.directory}: no column '{NAME}', so no pictures to pair with labels"
            )
        columns = chosen_columns(dataset, options.columns)
        _check_types(dataset, columns)
        pictures = self.pictures(dataset, options.images)
        groups = _Groups.of(Selection.of(dataset, options), pictures)
        files = max(1, -(-len(groups) // options.per_file))
        card = self.card(dataset, _copy(groups, files))
        with export_folder(path, self.name, groups.selection, columns, card) as folder:
            for k in range(files):
                target = folder / f"{dataset.plan.name}-{k:06d}.tar"
                first = k * options.per_file
                stop = min(first + options.per_file, len(groups))
                with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
                    for name, people in groups.read(columns, first, stop):
                        _add(archive, name, pictures.read(name), people)
        taken = groups.selection
        return Exported(path, taken.rows, taken.left_out, columns)


@dataclass(frozen=True)
class _Groups:
    """Rows by picture. Pictures come in the order of their first row; 24 bytes a row.

    order: positions in the selection, picture by picture. starts: (pictures + 1,) into it.
    """

    selection: Selection
    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, selection: Selection, pictures: Pictures) -> _Groups:
        """Raises InputError where no picture is found."""
        left_out = Counter(selection.left_out)
        there, keys = [np.zeros(0, bool)], [np.zeros(0, "V16")]
        for (stored,) in selection.chunks(NAME):
            names = [_text(name) for name in stored.tolist()]
            found = np.array(pictures.has(names), bool) & [stays_inside(name) for name in names]
            named = np.array([_extension(name) != "" for name in names], bool)
            left_out["without a picture"] += int((~found).sum())
            left_out["with a picture whose name has no extension"] += int((found & ~named).sum())
            there.append(found & named)
            keys.append(np.array([_key(name) for name in names], "V16"))
        kept = selection.kept.copy()
        mask = np.concatenate(there)
        kept[kept] = mask
        if not kept.any():
            raise InputError(
                f"{selection.dataset.directory}: no row to export has a picture in "
                f"{pictures.place}; give --images DIR"
            )
        reasons = {reason: n for reason, n in sorted(left_out.items()) if n}
        _, first, which = np.unique(
            np.concatenate(keys)[mask], return_index=True, return_inverse=True
        )
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        order = np.argsort(rank[which], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(rank[which]))])
        return cls(replace(selection, kept=kept, left_out=reasons), order, starts)

    def read(
        self, columns: Sequence[str], first: int, stop: int
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(name, people) of pictures from first up to but without stop."""
        view = self.selection.view
        start = first
        while start < stop:
            end = int(np.searchsorted(self.starts, self.starts[start] + _READ_ROWS, "right")) - 1
            end = min(max(end, start + 1), stop)
            starts = self.starts[start : end + 1]
            start = end
            rows = self.order[starts[0] : starts[-1]]
            values = view.take((*dict.fromkeys((*columns, NAME)),), rows)
            names = [_text(name) for name in values[NAME].tolist()]
            cells = {name: _plain(values[name]) for name in columns}
            for begin, end in zip(starts - starts[0], starts[1:] - starts[0], strict=False):
                people = [
                    {name: column[k] for name, column in cells.items()} for k in range(begin, end)
                ]
                yield names[begin], people


def _add(archive: tarfile.TarFile, name: str, picture: bytes, people: list[dict[str, Any]]) -> None:
    stem, extension = name[: -len(_extension(name))], _extension(name)
    folder, slash, base = stem.rpartition("/")
    key = folder + slash + base.replace("%", "%25").replace(".", "%2E")
    labels = canonical_json({"image": readable(name), "people": people})
    for member, data in ((key + extension, picture), (f"{key}.json", labels)):
        info = tarfile.TarInfo(member)
        info.size, info.mode = len(data), 0o644
        archive.addfile(info, io.BytesIO(data))


def _plain(values: np.ndarray) -> list[Any]:
    """The rows of a column as JSON values. What is no number is null; float32 as short as it can
    be and still be the same float32."""
    flat = values.reshape(-1)
    if flat.dtype.kind in "SU":
        cells: list[Any] = [readable(text) for text in flat.tolist()]
    elif flat.dtype.kind == "f" and flat.dtype.itemsize < 8:
        cells = [float(text) for text in flat.astype(np.str_).tolist()]
    else:
        cells = flat.tolist()
    if flat.dtype.kind == "f":
        for k in np.flatnonzero(~np.isfinite(flat)).tolist():
            cells[k] = None
    nested = np.empty(len(cells), object)
    nested[:] = cells
    return nested.reshape(values.shape).tolist()


def _check_types(dataset: Dataset, columns: Sequence[str]) -> None:
    for name, values in dataset.take(columns, range(0)).items():
        kind, width = values.dtype.kind, values.dtype.itemsize
        if kind not in "biufSU" or (kind == "f" and width > 8):
            raise InputError(
                f"{dataset.directory}: column '{name}' ({values.dtype}) has no place in JSON; "
                "choose others with --columns"
            )


def _copy(groups: _Groups, files: int) -> Copy:
    text = (
        f"This copy holds {groups.selection.rows} rows of {len(groups)} pictures in {files} "
        f"WebDataset tar file{'s' if files > 1 else ''}: each picture, byte for byte, with a JSON "
        "of the people in it. Camera frame: x right, y down, z forward."
    )
    return Copy(text, "*.tar")


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _text(value: str | bytes) -> str:
    """As `row_checks` and training read a name: bytes are UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _extension(name: str) -> str:
    """`.jpg`, with its dot; empty where a name has none."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return dot + extension if stem and extension else ""
