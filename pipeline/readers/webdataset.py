"""4D-Humans and HSMR training tars: `<key>.data.pyd` lists of person dicts beside the images.

Source: docs/reference/label-formats.md#webdataset. One row a person, in the order of the tars'
names and of their members. `data.pyd` is a pickle and read without running anything. Added columns:
`tar`, `imgname` (name of the image member), `person` (place in the list). Entries of nested dicts
(extra_info) become columns with dotted names; where a person lacks an entry that others have, the
column holds NaN, -1 or an empty text.

What an image's list holds is only known after unpickling it, so opening reads every list once and
keeps an index of each tar in the user's cache, made again when size or time of the tar change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import InputError, OutputError
from pipeline.output_files import canonical_json, make_directory, write_bytes
from pipeline.paths import check_regular
from pipeline.readers.base import FieldSpec
from pipeline.readers.formats import Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import first_of
from pipeline.readers.pickles import PickleError, load_pickle
from pipeline.readers.reloaded import as_array
from pipeline.readers.tables import JoinedTable, Table

FORMAT = "webdataset"
LABELS = "data.pyd"
IMAGES = ("jpg", "jpeg", "png")
DESCRIBED = Format(
    name=FORMAT,
    title="4D-Humans and HSMR tars",
    files="`.tar` with `KEY.data.pyd` beside the pictures, or a folder of them",
    body="SMPL, neutral; HSMR's: SKEL too",
    members=(
        Member("body_pose", "(72)", "axis-angle, radians; absent: the row is rejected", False),
        Member("betas", "(10)", "SMPL's shape", needed=False),
        Member("center", "(2)", "middle of the box, pixels", needed=False),
        Member("scale", "(2)", "width and height of the box / 200", needed=False),
        Member("keypoints_2d", "(44, 3)", "pixels and confidence", needed=False),
        Member("has_body_pose", "0-d", "0: rejected as `no_smpl_pose`", needed=False),
        Member("has_betas", "0-d", "0: rejected as `no_smpl_betas`", needed=False),
        Member("orig_poses", "(46)", "SKEL's angles (HSMR)", needed=False),
        Member("orig_betas", "(10)", "SKEL's shape (HSMR)", needed=False),
    ),
    gives="One row a person: every entry of its dictionary, `tar`, `imgname`, `person`",
    traps=("There is no translation: bodies stand in the origin.",),
    example="000000.tar",
)
_INDEX_VERSION = 1
_MAX_LIST = 256 << 20  # bytes of one image's labels
log = logging.getLogger(__name__)


def open_webdataset(path: Path, options: LabelOptions) -> LabelSource:
    """A tar of 4D-Humans or HSMR, or all tars of a folder."""
    files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .tar file in this folder")
    parts = [TarTable(file) for file in files]
    table: Table = parts[0] if len(parts) == 1 else _joined(path, parts)
    specs = table.specs
    layout = Layout(
        poses=("body_pose",) if "body_pose" in specs else (),
        betas=first_of(specs, ("betas",)),
        names="imgname",
        center=first_of(specs, ("center",)),
        scale=first_of(specs, ("scale",)),
        keypoints=first_of(specs, ("keypoints_2d",)),
        has_pose=first_of(specs, ("has_body_pose",)),
        has_betas=first_of(specs, ("has_betas",)),
        skel_poses=first_of(specs, ("orig_poses",)),
        skel_betas=first_of(specs, ("orig_betas",)),
    )
    return LabelSource(FORMAT, table, layout, options)


def _joined(path: Path, parts: list[TarTable]) -> Table:
    """Tars as one table: an entry that only some have is a column of all."""
    merged: dict[str, FieldSpec] = {}
    for part in parts:
        for name, spec in part.specs.items():
            merged[name] = _merge(f"{part.path}", name, merged.get(name), spec)
    for name in merged:
        if any(name in part.optional or name not in part.specs for part in parts):
            merged[name] = FieldSpec(_nullable(merged[name].dtype), merged[name].shape)
    for part in parts:
        part.specs = dict(merged)
    return JoinedTable(path, parts)


@dataclass(frozen=True)
class _Image:
    """One image's labels within a tar."""

    name: str
    offset: int
    size: int
    persons: int


@dataclass(frozen=True)
class _Index:
    images: tuple[_Image, ...]
    columns: dict[str, tuple[str, tuple[int, ...], int]]
    """name -> (dtype, shape, persons that have it)."""
    unlabelled: int
    """Images without a list."""


class TarTable(Table):
    """The persons of one tar."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.path, self.files = path, (path,)
        self._index = _cached_index(path)
        self._starts = np.cumsum([0] + [image.persons for image in self._index.images])
        self.rows = int(self._starts[-1])
        if self.rows == 0:
            raise InputError(f"{path}: no person in it; expected members <key>.{LABELS}")
        own = {name: (np.dtype(d), tuple(s), n) for name, (d, s, n) in self._index.columns.items()}
        self.optional = {name for name, (_, _, n) in own.items() if n < self.rows}
        self.specs = {
            name: FieldSpec(_nullable(d) if name in self.optional else d, s)
            for name, (d, s, _) in own.items()
        }
        for name, values in self._places(slice(0, 0)).items():
            if name in self.specs:
                raise InputError(f"{path}: entry '{name}' of a person has the name of our column")
            self.specs[name] = FieldSpec(values.dtype, ())

    @property
    def unlabelled(self) -> int:
        """Images in the tar that have no labels."""
        return self._index.unlabelled

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        names = tuple(names or self.specs)
        first = max(int(np.searchsorted(self._starts, start, side="right")) - 1, 0)
        last = int(np.searchsorted(self._starts, stop, side="left"))
        persons: list[dict[str, np.ndarray]] = []
        with self.path.open("rb") as stream:
            for image in self._index.images[first:last]:
                persons += _persons(self.path, image.name, _bytes(stream, image))
        skip = start - int(self._starts[first])
        persons = persons[skip : skip + stop - start]
        places = self._places(slice(start, stop))
        return {
            name: places[name].astype(self.specs[name].dtype)
            if name in places
            else _column(persons, name, self.specs[name])
            for name in names
        }

    def check(self) -> None:
        """Read all lists again: they must be what the index says."""
        if _make_index(self.path) != self._index:
            raise InputError(f"{self.path}: changed while it was read; run again")

    def _places(self, rows: slice) -> dict[str, np.ndarray]:
        counts = [image.persons for image in self._index.images]
        first = max(int(np.searchsorted(self._starts, rows.start, side="right")) - 1, 0)
        last = int(np.searchsorted(self._starts, rows.stop, side="left"))
        width = max(len(image.name) for image in self._index.images)
        images = self._index.images[first:last]
        names = np.repeat(
            np.array([image.name for image in images], f"<U{width}"), counts[first:last]
        )
        person = np.concatenate([np.arange(n) for n in counts[first:last]] or [np.arange(0)])
        skip = rows.start - int(self._starts[first])
        chosen = slice(skip, skip + rows.stop - rows.start)
        tar = np.full(rows.stop - rows.start, self.path.name)
        return {"imgname": names[chosen], "tar": tar, "person": person[chosen].astype(np.int64)}


# ---- index --------------------------------------------------------------------------------------


def _cached_index(path: Path) -> _Index:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    identity = f"{_INDEX_VERSION}\0{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "hmr-skel" / "tar-index" / f"{name}.json"
    try:
        return _index_from_json(json.loads(kept.read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not readable (%s); making it again", kept, error)
    index = _make_index(path)
    try:
        make_directory(kept.parent)
        write_bytes(kept, canonical_json(asdict(index)))
    except (OSError, OutputError) as error:
        log.warning("the index of %s is not kept: %s", path, error)
    return index


def _index_from_json(value: Any) -> _Index:
    return _Index(
        tuple(_Image(**image) for image in value["images"]),
        {name: (str(d), tuple(s), int(n)) for name, (d, s, n) in value["columns"].items()},
        int(value["unlabelled"]),
    )


def _make_index(path: Path) -> _Index:
    groups = _groups(path)
    images: list[_Image] = []
    specs: dict[str, FieldSpec] = {}
    counts: dict[str, int] = {}
    with path.open("rb") as stream:
        for key, members in groups.items():
            if LABELS not in members:
                continue
            extension = next((e for e in IMAGES if e in members), IMAGES[0])
            offset, size = members[LABELS]
            image = _Image(f"{key}.{extension}", offset, size, 0)
            persons = _persons(path, image.name, _bytes(stream, image))
            images.append(_Image(image.name, offset, size, len(persons)))
            for person in persons:
                for name, value in person.items():
                    spec = FieldSpec(value.dtype, value.shape)
                    where = f"{path}: member '{key}.{LABELS}'"
                    specs[name] = _merge(where, name, specs.get(name), spec)
                    counts[name] = counts.get(name, 0) + 1
    unlabelled = sum(LABELS not in members for members in groups.values())
    columns = {name: (spec.dtype.str, spec.shape, counts[name]) for name, spec in specs.items()}
    return _Index(tuple(images), columns, unlabelled)


def _groups(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key -> extension -> (offset, size) of the tar's regular files, in order."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                key, extension = _split(member.name)
                if extension in groups.setdefault(key, {}):
                    raise InputError(f"{path}: member '{member.name}': stored twice")
                if member.offset_data + member.size > size:
                    raise InputError(f"{path}: member '{member.name}': cut off; copy it again")
                if extension == LABELS and member.size > _MAX_LIST:
                    raise InputError(
                        f"{path}: member '{member.name}': {member.size} bytes of labels, at most "
                        f"{_MAX_LIST} are read"
                    )
                groups[key][extension] = (member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a plain, whole tar file ({reason})") from error
    with path.open("rb") as stream:
        stream.seek(end)
        mark = stream.read(tarfile.BLOCKSIZE)
    # tarfile takes a cut or a damaged header in the middle for the end.
    if mark != bytes(tarfile.BLOCKSIZE):
        raise InputError(f"{path}: no end mark, so rows may be missing; copy the file again")
    return groups


def _split(name: str) -> tuple[str, str]:
    """Key and extension as webdataset splits them: at the first dot of the last path part."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _bytes(stream: Any, image: _Image) -> bytes:
    stream.seek(image.offset)
    return stream.read(image.size)


# ---- persons ------------------------------------------------------------------------------------


def _persons(path: Path, image: str, data: bytes) -> list[dict[str, np.ndarray]]:
    where = f"{path}: member '{PurePosixPath(image).with_suffix('')}.{LABELS}'"
    try:
        content = load_pickle(data)
    except PickleError as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{where}: expected a list of dictionaries, one a person")
    return [_flat(where, person) for person in content]


def _flat(where: str, person: dict, prefix: str = "") -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for key, value in person.items():
        name = f"{prefix}{key}"
        if value is None:
            continue
        if isinstance(value, dict):
            result |= _flat(where, value, f"{name}.")
        else:
            result[name] = as_array(where, name, value)
    return result


def _column(persons: list[dict[str, np.ndarray]], name: str, spec: FieldSpec) -> np.ndarray:
    kind = spec.dtype.kind
    empty: Any = "" if kind in "SU" else np.nan if kind in "fc" else -1
    if kind in "ub":
        empty = 0  # never kept: a column that lacks values is not of these kinds
    values = np.full((len(persons), *spec.shape), empty, spec.dtype)
    for row, person in enumerate(persons):
        if name in person:
            values[row] = person[name]
    return values


def _nullable(dtype: np.dtype) -> np.dtype:
    """The type that also holds -1 for `missing`."""
    if dtype.kind == "b":
        return np.dtype(np.int8)
    return np.promote_types(dtype, np.int8) if dtype.kind == "u" else dtype


def _merge(where: str, name: str, known: FieldSpec | None, spec: FieldSpec) -> FieldSpec:
    if known is None or known == spec:
        return spec
    if known.shape == spec.shape:
        text = known.dtype.kind in "SU"
        if text == (spec.dtype.kind in "SU") and (not text or known.dtype.kind == spec.dtype.kind):
            return FieldSpec(np.promote_types(known.dtype, spec.dtype), spec.shape)
    raise InputError(
        f"{where}: entry '{name}': {spec.dtype} of shape {spec.shape}, persons before have "
        f"{known.dtype} of {known.shape}"
    )
