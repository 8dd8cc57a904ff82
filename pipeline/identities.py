"""Shapes of the people in labels of other bodies: a stage of its own, before the shards.

Every row needs the shape of its person, whatever shard it is in. So the shapes are found first,
some identities at a time, each part a file that a rerun keeps; together they are `identities.npz`,
whose digest is in the plan. A shape depends on its identity's own rows alone: parts change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.identity_shapes import PARTS_FOLDER, SHAPES_FILE, read_shapes
from pipeline.output_files import make_directory, remove, write_bytes
from pipeline.plan import IdentityRecord, Plan
from pipeline.readers.base import AnnotationRows, AnnotationSource, joined_bodies
from skel_fit.bodies.identity_shapes import IdentityShapes

if TYPE_CHECKING:
    from pipeline.bodies import Models

_PART_MESHES = 128
"""Meshes of a part, at least: whole identities are put together until there are so many."""
_MISFIT = 0.06
"""Metres: where most shapes fit worse than this, the meshes are not what the map is for."""


@dataclass(frozen=True)
class People:
    """Which rows the shapes of a source's identities are found from.

    names: (k,) int64 identities, rising; rows: of each, in rising order, at most `MOST_MESHES`.
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
        return People(names, tuple(_spread(rows, some) for rows in groups))

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


def solve_identities(
    plan: Plan, source: AnnotationSource, models: Models, directory: Path, report: Report
) -> Plan:
    """The plan with the shapes of its people, found now as far as parts of them are not there.

    plan: without shapes; its id says whose the parts are. The parts stay until `forget_parts`.
    Raises InputError where shapes fit nothing.
    """
    people = People.of(source, _most())
    folder = directory / PARTS_FOLDER
    make_directory(folder)
    basis = folder / "basis"
    if not basis.is_file() or basis.read_bytes() != plan.plan_id.encode():
        _clear(folder)
        write_bytes(basis, plan.plan_id.encode())
    parts = people.parts()
    files = [folder / f"part-{index:05d}.npz" for index in range(len(parts))]
    done = [_readable(file) for file in files]
    count = sum(len(part) for part, shapes in zip(parts, done, strict=True) if shapes is not None)
    report("identities", {"total": len(people.names), "done": count})
    for index, part in enumerate(parts):
        if done[index] is not None:
            continue
        shapes = solve_part(plan, source, models, people, part)
        _check_fit(source, shapes)
        shapes.write(files[index])
        done[index] = shapes
        report("identities_done", {"count": len(part)})
    report("identities_end", {})
    found = _joined([shapes for shapes in done if shapes is not None])
    found.write(directory / SHAPES_FILE)
    return replace(plan, identities=IdentityRecord(len(found.names), found.digest()))


def forget_parts(directory: Path) -> None:
    """Remove the parts: their shapes are in the plan now."""
    folder = directory / PARTS_FOLDER
    if folder.is_dir():
        _clear(folder)
        folder.rmdir()


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
    import torch

    from skel_fit.bodies.identities import fit_identity
    from skel_fit.bodies.surface_fit import map_weights

    meshes, names, genders = [], [], []
    at_rest, smpl_gender = False, ""
    for place in part:
        rows = _usable(source, people, place)
        if rows is None:
            continue
        wanted = set(rows.skel_gender.tolist())
        labels = set(rows.smpl_gender.tolist())
        if len(wanted) > 1 or len(labels) > 1:
            raise InputError(
                f"{source.path}: row {rows.source_row[0]}: its person has other genders in other "
                f"rows ({', '.join(sorted(labels | wanted))}); one person has one shape"
            )
        assert rows.other is not None
        smpl_gender = labels.pop()
        body = models.source(smpl_gender)
        at_rest = body.has_rest
        if at_rest:
            shape = {"betas": rows.other.parameters["betas"].mean(axis=0, keepdims=True)}
            meshes.append(body.rest(shape))
        else:
            meshes.append(body.surface(rows.other.parameters))
        names += [int(people.names[place])] * len(meshes[-1])
        genders += [wanted.copy().pop()] * len(meshes[-1])
    if not meshes:
        return IdentityShapes.empty()
    needed = [g for g in ("male", "female") if g in genders or "unknown" in genders]
    skels = {gender: models.skel(gender, plan.request.frame.dtype) for gender in needed}
    body = models.source(smpl_gender)
    _, found = models.map(needed[0])
    mapped = torch.cat([found.apply(mesh) for mesh in meshes])
    return fit_identity(
        skels,
        mapped,
        np.array(names, np.int64),
        np.array(genders),
        at_rest=at_rest,
        config=plan.request.frame,
        vertex_weights=map_weights(skels[needed[0]], found, body.mask_weights()),
    )


def _usable(source: AnnotationSource, people: People, place: int) -> AnnotationRows | None:
    """Accepted rows of an identity: of those chosen, else the first ones that there are."""
    chosen = _read(source, people.rows[place])
    good = np.flatnonzero(chosen.reasons == "")
    if not len(good):
        every = np.flatnonzero(source.identities() == people.names[place])
        accepted = (row for row in every.tolist() if _accepted(source, row))
        first = [row for row, _ in zip(accepted, range(_most()), strict=False)]
        if not first:
            return None
        chosen = _read(source, np.array(first))
        good = np.arange(len(first))
    return _taken(chosen, good)


def _accepted(source: AnnotationSource, row: int) -> bool:
    return bool(source.read(row, row + 1).reasons[0] == "")


def _read(source: AnnotationSource, rows: np.ndarray) -> AnnotationRows:
    """The listed rows, rising."""
    pieces = [source.read(int(run[0]), int(run[-1]) + 1) for run in _runs(rows)]
    if len(pieces) == 1:
        return pieces[0]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("source_row", "poses", "betas", "transl", "smpl_gender", "skel_gender",
                     "reasons")
    }  # fmt: skip
    return AnnotationRows(**joined, fields={}, other=joined_bodies(pieces))


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)


def _taken(rows: AnnotationRows, places: np.ndarray) -> AnnotationRows:
    assert rows.other is not None
    some: dict[str, Any] = {
        name: getattr(rows, name)[places]
        for name in ("source_row", "poses", "betas", "transl", "smpl_gender", "skel_gender",
                     "reasons")
    }  # fmt: skip
    return AnnotationRows(**some, fields={}, other=rows.other.take(places))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]


def _most() -> int:
    from skel_fit.bodies.identities import MOST_MESHES

    return MOST_MESHES


def _joined(parts: list[IdentityShapes]) -> IdentityShapes:
    return IdentityShapes.joined(parts or [IdentityShapes.empty()])


def _check_fit(source: AnnotationSource, shapes: IdentityShapes) -> None:
    if len(shapes.names) and np.median(shapes.error) > _MISFIT:
        raise InputError(
            f"{source.path}: shapes fit their meshes to {np.median(shapes.error) * 1000:.0f} mm "
            f"only: these are no meshes of {source.body}, or in another unit than metres"
        )


def _readable(file: Path) -> IdentityShapes | None:
    if not file.is_file():
        return None
    try:
        return read_shapes(file)
    except InputError:
        remove(file)
        return None


def _clear(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        remove(file)
