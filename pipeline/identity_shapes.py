"""Shapes of the people of a dataset of other bodies: their file beside its plan, who has one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.output_files import TEMPORARY_SUFFIX
from pipeline.plan import Plan
from pipeline.readers.base import AnnotationRows, AnnotationSource
from skel_fit.bodies.identity_shapes import IdentityShapes
from skel_fit.errors import ModelFileError

SHAPES_FILE = "identities.npz"
PARTS_FOLDER = "identities"
"""Folder of the shapes that are found so far, while they are being found."""
BASIS = "basis"
"""File in it: the id of the plan, without shapes, that the parts are of."""
PART = re.compile(r"part-\d{5,}\.npz")
_PLAN_ID = re.compile(rb"[0-9a-f]{64}")


def part_file(directory: Path, index: int) -> Path:
    """A part of the shapes of a run."""
    return directory / PARTS_FOLDER / f"part-{index:05d}.npz"


def parts_are_ours(directory: Path) -> bool:
    """Whether the folder of the parts of a run is a conversion's: absent, empty or with its basis.

    Anything else there is somebody's own folder of that name.
    """
    folder, basis = directory / PARTS_FOLDER, directory / PARTS_FOLDER / BASIS
    if not folder.is_dir():
        return not folder.exists()
    if basis.is_file():
        with basis.open("rb") as stream:
            return _PLAN_ID.fullmatch(stream.read(65)) is not None
    return all(file.name.endswith(TEMPORARY_SUFFIX) for file in folder.iterdir())


class IdentifiedSource(AnnotationSource):
    """The rows of another source, each with the SKEL gender of its person."""

    def __init__(self, source: AnnotationSource, shapes: IdentityShapes) -> None:
        self._source, self._shapes = source, shapes
        self.format, self.path, self.files = source.format, source.path, source.files
        self.rows, self.fields, self.up, self.body = (
            source.rows, source.fields, source.up, source.body,
        )  # fmt: skip

    @property
    def labels(self) -> AnnotationSource:
        """The rows as their file has them."""
        return self._source

    def check(self) -> None:
        self._source.check()

    def identities(self) -> np.ndarray:
        return self._source.identities()

    def gender_pairs(self) -> set[tuple[str, str]] | None:
        return self._source.gender_pairs()

    @property
    def vertices(self) -> int | None:
        return self._source.vertices

    def read(self, start: int, stop: int) -> AnnotationRows:
        rows = self._source.read(start, stop)
        assert rows.other is not None
        known = self._shapes.known(rows.other.identity)
        lost = (rows.reasons == "") & ~known
        if lost.any():
            row = start + int(np.argmax(lost))
            raise InputError(f"{self.path}: row {row}: its person has no shape in {SHAPES_FILE}")
        genders = rows.skel_gender.astype("<U7")
        places = self._shapes.places(rows.other.identity[known])
        genders[known] = self._shapes.genders[places]
        return replace(rows, skel_gender=genders)


def read_shapes(path: Path) -> IdentityShapes:
    """The shapes in a file. Raises InputError."""
    try:
        return IdentityShapes.read(path)
    except ModelFileError as error:
        raise InputError(str(error)) from error


def plan_shapes(plan: Plan, directory: Path) -> IdentityShapes | None:
    """The shapes that a plan names; None where it names none.

    Raises InputError: the file is absent, damaged or not the plan's.
    """
    if plan.identities is None:
        return None
    path = directory / SHAPES_FILE
    if not path.is_file():
        raise InputError(
            f"{path}: absent; it holds the shapes of the {plan.identities.count} people of this "
            "dataset: copy it there, or convert again"
        )
    shapes = read_shapes(path)
    if shapes.digest() != plan.identities.sha256:
        raise InputError(f"{path}: not the shapes of the plan; restore it, or convert again")
    return shapes


def identified(source: AnnotationSource, plan: Plan, directory: Path) -> AnnotationSource:
    """The source with the shapes of its people, where the plan has some. Raises InputError."""
    shapes = plan_shapes(plan, directory)
    return source if shapes is None else IdentifiedSource(source, shapes)
