"""What is written of people in pictures: one row a person, as npz, CSV in degrees, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.flat_table import ANGLES
from skel_fit.anatomy import POSE_NAMES
from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.keypoint_fit import KeypointFit
from stages.photo.fitting import Lens, Marks

FITTED, REFUSED, NO_PERSON, UNREADABLE = "fitted", "refused", "no person", "unreadable"
"""Status of a person (the first two) and of a picture."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A person of a picture: what the landmarks are, and the body where one is believed.

    reason: why it is refused, "": it is fitted.
    """

    score: float
    flag: float
    reason: str
    marks: Marks  # one row
    fit: KeypointFit | None  # of one row
    lens: Lens
    stature: float

    @property
    def status(self) -> str:
        return REFUSED if self.reason else FITTED

    def row(self, name: str, number: int) -> Row:
        """All of it, by column; a refused body is NaN."""
        fit = None if self.reason else self.fit
        nothing = np.full(46, np.nan)
        height, width = self.marks.size
        return {
            "image": name,
            "person": number,
            "status": self.status,
            "reason": self.reason,
            "score": self.score,
            "flag": self.flag,
            "cost": float(self.fit.cost[0]) if self.fit is not None else np.nan,
            "image_size": np.array([width, height]),
            "cam_int": self.lens.cam_int,
            "poses": nothing if fit is None else fit.poses[0],
            "poses_sd": nothing if fit is None else fit.sd[0],
            "observed": np.zeros(46, bool) if fit is None else fit.observed[0],
            "on_limit": np.zeros(46, bool) if fit is None else fit.active_limits[0],
            "betas": np.full(10, np.nan) if fit is None else fit.betas[0],
            "trans": np.full(3, np.nan) if fit is None else fit.trans[0],
            "stature": np.nan if fit is None else self.stature,
            "points": np.full((33, 3), np.nan) if fit is None else fit.points[0],
            "landmarks": np.column_stack([self.marks.pixels[0], self.marks.visibility[0]]),
        }


def npz_of(rows: Sequence[Row]) -> bytes:
    """The rows as columns (n, ...)."""
    buffer = io.BytesIO()
    names = rows[0].keys() if rows else ()
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in names}
    np.savez_compressed(buffer, **columns)
    return buffer.getvalue()


_PLAIN = ("image", "person", "status", "reason")
_NUMBERS = ("score", "flag", "cost", "stature")


def csv_of(rows: Iterable[Row], extra: Mapping[str, Sequence[Any]] | None = None) -> bytes:
    """A line a person: angles and their standard deviations in degrees, observed 1 or 0; empty
    where there is no body. extra: further columns after the first ones."""
    extra = extra or {}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [name.removesuffix("_deg") for name in ANGLES]
    table.writerow([
        *_PLAIN, *extra, "score", "flag", "cost", "stature_m", "focal_px",
        *(f"trans_{axis}_m" for axis in "xyz"), *ANGLES, *(f"{name}_sd_deg" for name in names),
        *(f"{name}_observed" for name in names),
    ])  # fmt: skip
    for k, row in enumerate(rows):
        fitted = row["status"] == FITTED
        numbers = [row[name] for name in _NUMBERS] + [row["cam_int"][0, 0], *row["trans"]]
        numbers += [*np.rad2deg(row["poses"]), *np.rad2deg(row["poses_sd"])]
        table.writerow([
            *(row[name] for name in _PLAIN), *(values[k] for values in extra.values()),
            *("" if not np.isfinite(x) else f"{x:.6g}" for x in numbers),
            *(int(x) if fitted else "" for x in row["observed"]),
        ])  # fmt: skip
    return text.getvalue().encode("utf-8", "replace")


def json_of(row: Row, focal_source: str) -> dict[str, Any]:
    """A person as JSON; angles by name in degrees."""
    plain = {name: row[name] for name in _PLAIN}
    numbers = {
        name: round(float(row[name]), 4) if np.isfinite(row[name]) else None for name in _NUMBERS
    }
    camera = {"focal_px": float(row["cam_int"][0, 0]), "focal_source": focal_source}
    person = plain | numbers | {"camera": camera, "image_size": row["image_size"].tolist()}
    person["landmarks"] = dict(
        zip(BLAZEPOSE_NAMES, row["landmarks"].round(2).tolist(), strict=True)
    )
    if row["status"] != FITTED:
        return person
    degrees, sd = np.rad2deg(row["poses"]).round(2), np.rad2deg(row["poses_sd"]).round(2)
    return person | {
        "angles": {
            name: {"degrees": float(degrees[k]), "sd": float(sd[k]),
                   "observed": bool(row["observed"][k]), "on_limit": bool(row["on_limit"][k])}
            for k, name in enumerate(POSE_NAMES)
        },
        "betas": row["betas"].round(5).tolist(),
        "trans": row["trans"].round(5).tolist(),
    }  # fmt: skip
