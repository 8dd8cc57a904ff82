"""Rows of a converted dataset as motion: which are meant, how fast they go, which way is up."""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from pipeline.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.plan import Plan
from pipeline.readers.base import FRAME_RATES, SEQUENCE
from pipeline.up_axis import OPTION, y_is_up

DEFAULT_RATE = 30.0
"""Frames a second of motion that does not say."""


def _range(value: str) -> str:
    if not re.fullmatch(r"\d+:\d+", value):
        raise ValueError("expected A:B, the rows from A up to but without B")
    return value


RowRange = Annotated[str, AfterValidator(_range)]
"""`A:B` as a format's option."""


def chosen_rows(
    dataset: Dataset, kept: NDArray[np.bool_], rows: str | None, sequence: str | None
) -> NDArray[np.int64]:
    """Positions of the rows that `--rows A:B` and `--sequence NAME` mean, among those kept.

    Raises:
        UsageError: no such rows, no fit among them, no such sequence.
    """
    chosen = kept.copy()
    if rows is not None:
        try:
            start, stop = map(int, _range(rows).split(":"))
        except ValueError as error:
            raise UsageError(f"--rows {rows}: {error}") from None
        if not start < stop <= len(dataset):
            raise UsageError(
                f"--rows {rows}: expected A < B <= {len(dataset)}, the rows of {dataset.directory}"
            )
        chosen[:start] = False
        chosen[stop:] = False
        if not chosen.any():
            status = dataset.read("status", start, stop)[0]
            raise UsageError(f"--rows {rows}: no row there has a fit ({status})")
    if sequence is not None:
        if SEQUENCE not in dataset:
            raise UsageError(
                f"--sequence {sequence}: {dataset.directory} has no sequences; use --rows"
            )
        names = dataset[SEQUENCE]
        if not (names == sequence).any():
            known = ", ".join(map(str, np.unique(names)[:5]))
            raise UsageError(f"--sequence {sequence}: there are {known} ...")
        chosen &= names == sequence
    return np.flatnonzero(chosen)


def recorded_rate(dataset: Dataset, rows: NDArray[np.int64]) -> float | None:
    """Frames a second as the labels have them; None where they do not say.

    Raises:
        UsageError: the rows have several.
    """
    for name in FRAME_RATES:
        if name in dataset and dataset[name].ndim == 1:
            rates = np.unique(dataset[name][rows].astype(float))
            if len(rates) == 1 and np.isfinite(rates[0]) and rates[0] > 0:
                return float(rates[0])
            raise UsageError(
                f"{dataset.directory}: column {name!r} holds {len(rates)} frame rates; choose one "
                "sequence at a time, or say --rate HZ"
            )
    return None


def recorded_ground(plan: Plan) -> str:
    """Which way is up in a data set, as its source states or as far as its files tell: `camera`
    (y down), `y-up` or (converted before sources stated it) `z-up`.

    Raises:
        UsageError: they do not.
    """
    stated = plan.source_options.get(OPTION)
    if stated is not None:
        return "y-up" if y_is_up(plan) else "camera"
    names = {item.source for item in plan.fields}
    if names & {"cam_int", "pose_cam", "trans_cam", "cam_trans", "imgname"}:
        return "camera"
    if names & {"mocap_framerate", "mocap_frame_rate"}:  # AMASS: z is up
        return "z-up"
    raise UsageError(
        f"data set {plan.name!r} does not record which way is up; say it: camera (y down), y-up, "
        "z-up or none"
    )


def check_one_person(dataset: Dataset, rows: NDArray[np.int64]) -> None:
    """Refuse rows (n,) that one file of one moving person cannot hold.

    Raises:
        UsageError: no rows, several without sequences, or rows of several sequences.
    """
    if not rows.size:
        raise UsageError(f"{dataset.directory}: no row with a fit is left to export")
    if len(rows) == 1:
        return
    if SEQUENCE not in dataset:
        raise UsageError(
            f"{dataset.directory}: rows are unrelated people; export one, e.g. --rows "
            f"{rows[0]}:{rows[0] + 1}"
        )
    names = np.unique(dataset[SEQUENCE][rows])
    if len(names) > 1:
        raise UsageError(
            f"{dataset.directory}: {len(names)} sequences; one file holds one: "
            f"--sequence {names[0]}"
        )
