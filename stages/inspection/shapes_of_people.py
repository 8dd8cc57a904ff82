"""The people of a dataset of another body than SMPL, with how well their shapes fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.dataset import Dataset
from pipeline.identity_shapes import plan_shapes
from skel_fit.bodies.identity_shapes import IdentityShapes
from stages.inspection.statistics import Columns

SHOWN = 20


@dataclass(frozen=True)
class PersonShape:
    """name: number of the person in the labels; first: their first row here, None without one;
    rows: how many; shape, posed: m, mean vertex error of the shape and of the fitted rows."""

    name: int
    first: int | None
    gender: str
    rows: int
    meshes: int
    shape: float
    posed: float


@dataclass(frozen=True)
class PeopleTable:
    """total: people; by_gender: how many of each; shown: those whose shapes fit worst."""

    total: int
    by_gender: tuple[tuple[str, int], ...]
    median: float
    shown: tuple[PersonShape, ...]


def people_table(dataset: Dataset, columns: Columns) -> PeopleTable | None:
    """None: labels of SMPL, or nobody has a shape. Raises InputError: the shapes are not there."""
    shapes = plan_shapes(dataset.plan, dataset.directory)
    if shapes is None or not len(shapes.names):
        return None
    place = _whose(dataset, columns, shapes)
    worst = np.argsort(-shapes.error, kind="stable")[:SHOWN]
    genders, counts = np.unique(shapes.genders, return_counts=True)
    return PeopleTable(
        len(shapes.names),
        tuple(zip(genders.tolist(), counts.tolist(), strict=True)),
        float(np.median(shapes.error)),
        tuple(_person(dataset, columns, shapes, place, who) for who in worst.tolist()),
    )


def _whose(dataset: Dataset, columns: Columns, shapes: IdentityShapes) -> np.ndarray:
    """(n,) place of each row's person, told by gender and betas; -1: not fitted."""
    kinds = zip(shapes.genders.tolist(), shapes.betas.astype(np.float32), strict=True)
    known = {(gender, betas.tobytes()): place for place, (gender, betas) in enumerate(kinds)}
    genders = dataset["skel_gender"].tolist()
    betas = dataset["skel_betas"].astype(np.float32)
    found = [known.get((g, b.tobytes()), -1) for g, b in zip(genders, betas, strict=True)]
    return np.where(columns.fitted, np.array(found, np.int64), -1)


def _person(
    dataset: Dataset, columns: Columns, shapes: IdentityShapes, place: np.ndarray, who: int
) -> PersonShape:
    rows = np.flatnonzero(place == who)
    return PersonShape(
        name=int(shapes.names[who]),
        first=int(dataset["source_row"][rows[0]]) if len(rows) else None,
        gender=str(shapes.genders[who]),
        rows=len(rows),
        meshes=int(shapes.meshes[who]),
        shape=float(shapes.error[who]),
        posed=float(columns.error[rows].mean(dtype=np.float64)) if len(rows) else float("nan"),
    )
