"""Shapes of the people in labels of other bodies: a stage of its own, before the shards.

Every row needs the shape of its person, whatever shard it is in. So the shapes are found first,
some identities at a time, each part a file that a rerun keeps; together they are `identities.npz`,
whose digest is in the plan. A shape depends on its identity's own rows alone: parts change no bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError, UsageError
from pipeline.identity_shapes import (
    BASIS,
    PART,
    PARTS_FOLDER,
    SHAPES_FILE,
    part_file,
    parts_are_ours,
    read_shapes,
)
from pipeline.output_files import make_directory, remove, temporaries, write_bytes
from pipeline.plan import IdentityRecord, Plan
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.readers.chosen import joined_rows, read_batches, taken
from skel_fit.bodies.identity_shapes import GENDERS, IdentityShapes

if TYPE_CHECKING:
    from pipeline.bodies import Models

_PART_MESHES = 128
"""Meshes of a part, at least: whole identities are put together until there are so many."""
_MISFIT = 0.06
"""Metres: where most shapes fit worse than this, the meshes are not what the map is for."""


@dataclass(frozen=True)
class People:
    """Which rows the shapes of a source's identities are found from.

    names: (k,) int64 identities, in the order of their first rows, so that the file is read
    forwards; rows: of each, in rising order, at most `MOST_MESHES`.
    """

    names: np.ndarray
    rows: tuple[np.ndarray, ...]

    @staticmethod
    def of(source: AnnotationSource, some: int) -> People:
        """All identities of a source, with at most `some` rows spread over those of each."""
        identity = source.identities()
        order = np.argsort(identity, kind="stable")
        names, first = np.unique(identity[order], return_index=True)
        groups = np.split(order, first[1:])
        places = np.argsort([rows[0] for rows in groups]) if len(names) else np.zeros(0, int)
        return People(names[places], tuple(_spread(groups[k], some) for k in places))

    def parts(self) -> list[range]:
        """Ranges of identities that are solved together."""
        ranges, start, meshes = [], 0, 0
        for place, rows in enumerate(self.rows):
            meshes += len(rows)
            if meshes >= _PART_MESHES:
                ranges.append(range(start, place + 1))
                start, meshes = place + 1, 0
        if start < len(self.rows):
            ranges.append(range(start, len(self.rows)))
        return ranges


Report = Callable[[str, dict[str, Any]], None]


Finder = Callable[[Sequence[tuple[int, range]], int, Callable[[int], None]], None]
"""Makes the files of parts, each a number and a range of identities: of so many meshes in all;
told how many people were found each time."""


def solve_identities(
    plan: Plan, source: AnnotationSource, directory: Path, find: Finder, report: Report
) -> Plan:
    """The plan with the shapes of its people, found now as far as parts of them are not there.

    plan: without shapes; its id says whose the parts are. The parts stay until `forget_parts`.
    Raises InputError where shapes fit nothing, UsageError where the folder of the parts is another.
    """
    people = People.of(source, most_meshes())
    parts = people.parts()
    files = [part_file(directory, index) for index in range(len(parts))]
    _begin(plan, directory)
    todo = [(number, part) for number, part in enumerate(parts) if _readable(files[number]) is None]
    count = sum(map(len, parts)) - sum(len(part) for _, part in todo)
    report("identities", {"total": len(people.names), "done": count})
    if todo:
        meshes = sum(len(people.rows[place]) for _, part in todo for place in part)
        find(todo, meshes, lambda done: report("identities_done", {"count": done}))
    report("identities_end", {})
    found = _joined([read_shapes(file) for file in files])
    _check_fit(source, found, report)
    found.write(directory / SHAPES_FILE)
    return replace(plan, identities=IdentityRecord(len(found.names), found.digest()))


def _begin(plan: Plan, directory: Path) -> None:
    """The folder of the parts, with no part of another plan in it."""
    folder = directory / PARTS_FOLDER
    if not parts_are_ours(directory):
        raise UsageError(
            f"{folder}: holds files of yours, and the shapes of people would be written there; "
            "give another output directory, or move them"
        )
    make_directory(folder)
    basis = folder / BASIS
    if not basis.is_file() or basis.read_bytes() != plan.plan_id.encode():
        _remove_ours(directory)
        write_bytes(basis, plan.plan_id.encode())


def forget_parts(directory: Path) -> None:
    """Remove the parts, nothing else: their shapes are in the plan now."""
    folder = directory / PARTS_FOLDER
    if not (folder / BASIS).is_file() or not parts_are_ours(directory):
        return
    _remove_ours(directory)
    with contextlib.suppress(OSError):  # somebody else's files are in it
        folder.rmdir()


def _remove_ours(directory: Path) -> None:
    """The parts before their basis: without it they would look like somebody else's."""
    folder = directory / PARTS_FOLDER
    parts = [file for file in folder.iterdir() if PART.fullmatch(file.name) and file.is_file()]
    for file in (*sorted(parts), *temporaries(folder), folder / BASIS):
        remove(file)


SHAPE_TOLERANCE = {"betas": 1e-3, "offsets": 1e-4, "errors": 2e-5}
"""Coefficients and metres: how far shapes of another kind of machine may be from this one's. On the
machine that found them they are equal bit for bit."""


@dataclass(frozen=True)
class FoundAgain:
    """Shapes of a dataset's people, found a second time: of how many, how many are equal bit for
    bit, and what is wrong with the others."""

    people: int
    exact: int
    problems: tuple[str, ...]


def find_again(
    plan: Plan, source: AnnotationSource, models: Models, stored: IdentityShapes
) -> FoundAgain:
    """The shapes of people against those that are found now. source: the labels alone."""
    people = People.of(source, most_meshes())
    parts = [solve_part(plan, source, models, people, part) for part in people.parts()]
    return _compared(stored, _joined(parts))


def _compared(stored: IdentityShapes, found: IdentityShapes) -> FoundAgain:
    if not np.array_equal(stored.names, found.names):
        count = len(np.setxor1d(stored.names, found.names))
        text = f"{SHAPES_FILE}: {count} people have a shape and no accepted row, or the reverse"
        return FoundAgain(len(found.names), 0, (text,))
    problems, exact = [], np.ones(len(found.names), bool)
    for column in fields(IdentityShapes):
        old, new = (getattr(shapes, column.name) for shapes in (stored, found))
        same = (old == new).reshape(len(old), -1).all(axis=1)
        exact &= same
        if column.name in SHAPE_TOLERANCE:
            off = np.abs(old - new).reshape(len(old), -1).max(axis=1, initial=0.0)
            same = off <= SHAPE_TOLERANCE[column.name]
        elif column.name == "rounds":  # how a shape was found, not what it is
            continue
        if not same.all():
            name = stored.names[np.argmin(same)]
            problems.append(
                f"{SHAPES_FILE}: {column.name} of person {name} are not what is found anew "
                f"({int((~same).sum())} people)"
            )
    return FoundAgain(len(found.names), int(exact.sum()), tuple(problems))


def unsolved(plan: Plan) -> Plan:
    """The plan without the shapes of its people: what they are found from."""
    return replace(plan, identities=None)


def solved(old: Plan, new: Plan, directory: Path) -> Plan:
    """The plan `new`, with the shapes of an earlier run's `old` where both are one plan without
    them and the shapes are there."""
    if old.identities is None or unsolved(old).plan_id != new.plan_id:
        return new
    try:
        same = read_shapes(directory / SHAPES_FILE).digest() == old.identities.sha256
    except InputError:
        same = False
    return old if same else new


def solve_part(
    plan: Plan, source: AnnotationSource, models: Models, people: People, part: Sequence[int]
) -> IdentityShapes:
    """Shapes of some identities, by their places in `people`; one without a usable row has none."""
    groups: dict[tuple[str, str], list[AnnotationRows]] = {}
    for rows in _usable(source, people, part):
        wanted = set(rows.skel_gender.tolist())
        labels = set(rows.smpl_gender.tolist())
        if len(wanted) > 1 or len(labels) > 1:
            raise InputError(
                f"{source.path}: row {rows.source_row[0]}: its person has other genders in other "
                f"rows ({', '.join(sorted(labels | wanted))}); one person has one shape"
            )
        groups.setdefault((labels.pop(), wanted.pop()), []).append(rows)
    # apart by genders: what counts of a mesh is its person's, whoever else is in the part
    return _joined([_solve_group(plan, models, *pair, groups[pair]) for pair in sorted(groups)])


def _solve_group(
    plan: Plan, models: Models, label: str, wanted: str, people: list[AnnotationRows]
) -> IdentityShapes:
    """Shapes of identities of one gender: `label` of their labels' body, `wanted` of SKEL, which
    may be unknown."""
    import torch

    from skel_fit.bodies.identities import UNKNOWN, fit_identity
    from skel_fit.bodies.surface_fit import map_weights

    body = models.source(label)
    needed = GENDERS if wanted == UNKNOWN else (wanted,)
    skels = {gender: models.skel(gender, plan.request.frame.dtype) for gender in needed}
    _, found = models.map(needed[0])
    names, mapped = [], []
    for rows in people:
        assert rows.other is not None
        given = rows.other.parameters
        if body.has_rest:
            mesh = body.rest({"betas": given["betas"].mean(axis=0, keepdims=True)})
        else:
            mesh = body.surface(given)
        mapped.append(found.apply(mesh.double()))
        names += [int(rows.other.identity[0])] * len(mesh)
    masks = body.mask_weights()
    return fit_identity(
        skels,
        torch.cat(mapped),
        np.array(names, np.int64),
        np.full(len(names), wanted),
        at_rest=body.has_rest,
        config=plan.request.frame,
        vertex_weights={
            gender: map_weights(skel, models.map(gender)[1], masks)
            for gender, skel in skels.items()
        },
    )


def _usable(
    source: AnnotationSource, people: People, part: Sequence[int]
) -> Iterator[AnnotationRows]:
    """Accepted rows of each identity: of those chosen, else the first ones that there are."""
    chosen = np.sort(np.concatenate([people.rows[place] for place in part]))
    found = _by_person(read_batches(source, chosen), people.names[part], len(chosen))
    lost = [name for name in people.names[part].tolist() if name not in found]
    if lost:
        every = np.flatnonzero(np.isin(source.identities(), lost))
        found |= _by_person(read_batches(source, every), np.array(lost), most_meshes())
    for name in people.names[part].tolist():
        if name in found:
            yield found[name]


def _by_person(
    batches: Iterable[AnnotationRows], names: np.ndarray, most: int
) -> dict[int, AnnotationRows]:
    """The first accepted rows of each identity, at most so many; of some there may be none."""
    found: dict[int, list[AnnotationRows]] = {name: [] for name in names.tolist()}
    room = dict.fromkeys(found, most)
    for rows in batches:
        assert rows.other is not None
        good = rows.reasons == ""
        for name in np.unique(rows.other.identity[good]).tolist():
            own = np.flatnonzero(good & (rows.other.identity == name))[: room[name]]
            room[name] -= len(own)
            if len(own):
                found[name].append(taken(rows, own))
        if not any(room.values()):
            break
    return {name: joined_rows(parts) for name, parts in found.items() if parts}


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]


def most_meshes() -> int:
    """Meshes of an identity that its shape is found from, at most."""
    from skel_fit.bodies.identities import MOST_MESHES

    return MOST_MESHES


def _joined(parts: list[IdentityShapes]) -> IdentityShapes:
    return IdentityShapes.joined(parts or [IdentityShapes.empty()])


def _check_fit(source: AnnotationSource, shapes: IdentityShapes, report: Report) -> None:
    """Refuse meshes that are something else; say who of the people has a shape that fits badly."""
    if not len(shapes.names):
        return
    median = float(np.median(shapes.error))
    if median > _MISFIT:
        raise InputError(
            f"{source.path}: shapes fit their meshes to {median * 1000:.0f} mm "
            f"only: these are no meshes of {source.body}, or in another unit than metres"
        )
    bad = np.flatnonzero(shapes.error > _MISFIT)
    if len(bad):
        worst = bad[np.argmax(shapes.error[bad])]
        row = int(np.argmax(source.identities() == shapes.names[worst]))
        report(
            "misfits",
            {"count": len(bad), "of": len(shapes.names), "row": row,
             "error": float(shapes.error[worst])},
        )  # fmt: skip


def _readable(file: Path) -> IdentityShapes | None:
    if not file.is_file():
        return None
    try:
        return read_shapes(file)
    except InputError:
        remove(file)
        return None
