"""Text tables of OpenSim: .mot and .sto (coordinates), .trc (markers), .csv, written and read.

Writing is one formatted string for all numbers. Reading is strict: these files come from anywhere,
and a table that is read half right is worse than none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skel_fit.opensim.angles import COORDINATES, TRANSLATIONS

#: Decimals of degrees and metres: 1e-9 degrees, a nanometre.
_DECIMALS = 9
#: A header line of our own .mot files, which OpenSim skips.
WRITER = "writer=hmr-skel"


@dataclass(frozen=True)
class Motion:
    """A table of coordinates over time.

    Attributes:
        name: from the file. times: (n,) seconds, strictly increasing.
        columns: names. values: (n, len(columns)), as in the file.
        in_degrees: what the file says of its rotational columns.
        ours: written by this package.
    """

    name: str
    times: NDArray[np.float64]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    in_degrees: bool
    ours: bool


def mot_text(
    name: str,
    times: NDArray,
    values: NDArray,
    columns: Sequence[str] = COORDINATES,
    rotational: Sequence[bool] | None = None,
) -> str:
    """A .mot file: values (n, k) in radians and metres, written in degrees and metres.

    times: (n,) seconds, strictly increasing. rotational: which columns are angles; by default all
    but `pelvis_tx, _ty, _tz`.

    Raises:
        ValueError: times that do not increase, or a value that is not finite.
    """
    factors = _factors(columns, rotational)
    table = np.column_stack((times, values * factors))
    _check(name, times, table)
    labels = "\t".join(("time", *columns))
    return (
        f"{_one_line(name)}\nversion=1\nnRows={len(table)}\nnColumns={table.shape[1]}\n"
        f"inDegrees=yes\n{WRITER}\nendheader\n{labels}\n{_rows(table, chr(9))}"
    )


def csv_text(
    times: NDArray,
    values: NDArray,
    flags: Sequence[str],
    columns: Sequence[str] = COORDINATES,
    rotational: Sequence[bool] | None = None,
) -> str:
    """A .csv file: time in seconds, angles in degrees, translations in metres, then `gimbal`.

    flags: (n,) text of the last column, names of joints without commas.
    """
    table = np.column_stack((times, values * _factors(columns, rotational)))
    _check("csv", times, table)
    rows = _rows(table, ",").splitlines()
    header = ",".join(("time", *columns, "gimbal"))
    return "\n".join(
        (header, *(f"{row},{flag}" for row, flag in zip(rows, flags, strict=True)), "")
    )


def trc_text(name: str, times: NDArray, names: Sequence[str], points: NDArray) -> str:
    """A .trc file of markers: points (n, m, 3) in OpenSim's ground, metres."""
    count = len(points)
    flat = points.reshape(count, -1)
    table = np.column_stack((times, flat))
    _check(name, times, table)
    rate = repr(float((count - 1) / (times[-1] - times[0]))) if count > 1 else "1.0"
    head = (
        f"PathFileType\t4\t(X/Y/Z)\t{_one_line(name)}\n"
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\t"
        f"OrigNumFrames\n{rate}\t{rate}\t{count}\t{len(names)}\tm\t{rate}\t1\t{count}\n"
    )
    labels = "Frame#\tTime\t" + "".join(f"{marker}\t\t\t" for marker in names).rstrip("\t") + "\n"
    axes = "\t\t" + "\t".join(f"X{k}\tY{k}\tZ{k}" for k in range(1, len(names) + 1)) + "\n\n"
    rows = _rows(table, "\t").splitlines()
    body = "".join(f"{k}\t{row}\n" for k, row in enumerate(rows, 1))
    return head + labels + axes + body


def _factors(columns: Sequence[str], rotational: Sequence[bool] | None) -> NDArray[np.float64]:
    turns = [c not in TRANSLATIONS for c in columns] if rotational is None else list(rotational)
    return np.where(turns, 180 / np.pi, 1.0)


def _check(name: str, times: NDArray, table: NDArray) -> None:
    if len(times) > 1 and not (np.diff(times) > 0).all():
        row = int(np.flatnonzero(~(np.diff(times) > 0))[0]) + 1
        raise ValueError(f"{name}: expected increasing time, row {row} does not increase")
    bad = ~np.isfinite(table).all(1)
    if bad.any():
        raise ValueError(f"{name}: row {int(np.flatnonzero(bad)[0])} holds a number not finite")


def _rows(table: NDArray, separator: str) -> str:
    line = separator.join([f"%.{_DECIMALS}f"] * table.shape[1]) + "\n"
    return (line * len(table)) % tuple(table.ravel().tolist())


def _one_line(name: str) -> str:
    return re.sub(r"[\x00-\x1f]", " ", name)


def read_motion(text: str, where: str) -> Motion:
    """Parse a .mot or .sto file.

    where: what error messages start with.

    Raises:
        ValueError: one line: not such a table, ragged, a number not finite, a column twice, time
            that does not increase, units not stated.
    """
    lines = text.splitlines()
    end = next((k for k, line in enumerate(lines[:200]) if line.strip() == "endheader"), None)
    if end is None:
        raise ValueError(f"{where}: expected a .mot or .sto table; there is no line 'endheader'")
    pairs = [line.split("=", 1) for line in lines[:end] if "=" in line]
    header = {key.strip().lower(): value.strip() for key, value in pairs}
    body = [line for line in lines[end + 1 :] if line.strip()]
    if len(body) < 2:
        raise ValueError(f"{where}: the table has no rows")
    labels = body[0].split()
    if labels[0].lower() != "time":
        raise ValueError(f"{where}: expected 'time' as the first column, found {labels[0]!r}")
    _check_labels(labels, where)
    values = _numbers(body[1:], len(labels), where)
    stated = header.get("nrows", header.get("datarows"))
    if stated is not None and stated != str(len(values)):
        raise ValueError(f"{where}: the header says {stated} rows, there are {len(values)}")
    units = header.get("indegrees", "").lower()
    if units not in ("yes", "no"):
        raise ValueError(f"{where}: expected inDegrees=yes or no in the header, found {units!r}")
    return Motion(
        name=lines[0].strip(),
        times=values[:, 0],
        columns=tuple(_coordinate_name(label) for label in labels[1:]),
        values=values[:, 1:],
        in_degrees=units == "yes",
        ours=WRITER in (line.strip() for line in lines[:end]),
    )


def _coordinate_name(label: str) -> str:
    """`/jointset/hip_r/hip_flexion_r/value` -> `hip_flexion_r`, other labels as they are."""
    parts = label.strip("/").split("/")
    return parts[-2] if len(parts) > 2 and parts[-1] == "value" else label


def _check_labels(labels: Sequence[str], where: str) -> None:
    names = [_coordinate_name(label) for label in labels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: column {twice[0]!r} is there twice")


def _numbers(rows: Sequence[str], width: int, where: str) -> NDArray[np.float64]:
    table = np.empty((len(rows), width))
    for k, row in enumerate(rows):
        cells = row.split()
        if len(cells) != width:
            raise ValueError(f"{where}: row {k} has {len(cells)} numbers, expected {width}")
        try:
            table[k] = [float(cell) for cell in cells]
        except ValueError:
            raise ValueError(f"{where}: row {k} holds something that is no number") from None
    _check(where, table[:, 0], table)
    return table


#: Angles of a motion that never exceed one turn when taken as radians are suspicious as degrees.
_RADIANS_AT_MOST = 2 * np.pi
_MOVES_AT_LEAST = 0.2


def radians(
    motion: Motion, rotational: Sequence[bool], where: str, units: str = "file"
) -> NDArray[np.float64]:
    """The motion's values with its rotational columns in radians.

    rotational: (k,) which columns are angles; units: `file` (what the header says), `degrees` or
    `radians`.

    Raises:
        ValueError: the header says degrees, but all angles look like radians.
    """
    if units not in ("file", "degrees", "radians"):
        raise ValueError(f"units: expected file, degrees or radians; found {units!r}")
    turns = np.asarray(rotational, bool)
    degrees = motion.in_degrees if units == "file" else units == "degrees"
    if degrees and units == "file" and not motion.ours and turns.any():
        largest = float(np.abs(motion.values[:, turns]).max())
        if _MOVES_AT_LEAST < largest <= _RADIANS_AT_MOST:
            raise ValueError(
                f"{where}: inDegrees=yes, but no angle exceeds {largest:.3g}: these look like "
                "radians; correct the header, or say --units degrees if they are degrees"
            )
    return motion.values * np.where(turns & degrees, np.pi / 180, 1.0)


__all__ = [
    "Motion", "csv_text", "mot_text", "radians", "read_motion", "trc_text",
]  # fmt: skip
