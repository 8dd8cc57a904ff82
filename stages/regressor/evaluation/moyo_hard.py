"""MOYO-HARD: which rows of MOYO it is, and the file made of them.

Source: docs/reference/label-formats.md#eval-moyo and the SKEL-CF supplement, which leaves the
camera's folder and the rounding of the cuts open.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import InputError
from pipeline.output_files import make_directory, write_bytes
from stages.regressor.evaluation.label_files import MOYO_SPELLING, LabelFile

MOYO_HARD_ROWS = 9725
MOYO_HARD_SEQUENCES = 29
Rounding = Literal["floor", "ceil", "nearest", "slice"]
ROUNDINGS: tuple[Rounding, ...] = ("floor", "ceil", "nearest", "slice")


@dataclass(frozen=True)
class MoyoHard:
    """What was built. counts: rows that each rounding gives for the chosen camera."""

    rows: np.ndarray
    sequences: int
    cameras: tuple[str, ...]
    counts: Mapping[Rounding, int]


def select_moyo_hard(
    names: Sequence[str], images: Sequence[str], *, camera: str, rounding: Rounding
) -> MoyoHard:
    """Rows of MOYO-HARD: one camera, the middle half of every video, in frame order.

    names, images: sequence name and image path `<sequence>/<camera>/<frame>.jpg` of each row. The
    paper (SKEL-CF supplement) says "camera #1" and "first and last 25 %" and no more, so both are
    options. rounding of a cut at n / 4 frames: `floor`, `ceil` or `nearest` (halves up) frames off
    either end; `slice`: frames floor(n/4) to floor(3n/4), as an index range would.

    Raises:
        InputError: no image of that camera, or a path that is not of this form.
    """
    videos: dict[str, list[tuple[tuple[int, str], int]]] = {}
    cameras: set[str] = set()
    for row, (name, image) in enumerate(zip(names, images, strict=True)):
        parts = image.split("/")
        if len(parts) < 3:
            raise InputError(
                f"row {row}: image path '{image}', expected <sequence>/<camera>/<frame>"
            )
        cameras.add(parts[-2])
        if parts[-2] == camera:
            videos.setdefault(name, []).append((_frame_key(parts[-1]), row))
    if not videos:
        raise InputError(
            f"no image of camera '{camera}'; the file has {', '.join(sorted(cameras))}"
        )
    kept: dict[Rounding, list[int]] = {}
    for how in ROUNDINGS:
        kept[how] = [
            row
            for name in sorted(videos)
            for _, row in sorted(videos[name])[slice(*middle_half(len(videos[name]), how))]
        ]
    return MoyoHard(
        rows=np.array(kept[rounding], np.int64),
        sequences=len(videos),
        cameras=tuple(sorted(cameras)),
        counts={how: len(rows) for how, rows in kept.items()},
    )


def middle_half(frames: int, rounding: Rounding) -> tuple[int, int]:
    """First frame kept and first one dropped after it, of a video of `frames` frames."""
    if rounding == "slice":
        return frames // 4, 3 * frames // 4
    cut = {"floor": frames // 4, "ceil": -(-frames // 4), "nearest": (frames + 2) // 4}[rounding]
    return cut, max(cut, frames - cut)


def build_moyo_hard(
    source: Path,
    destination: Path,
    *,
    camera: str = "YOGI_Cam_01",
    rounding: Rounding = "floor",
    expected_rows: int | None = MOYO_HARD_ROWS,
) -> MoyoHard:
    """Write the rows of MOYO-HARD out of a MOYO npz, every column as it was.

    expected_rows: the published count as a check; None: any count will do.

    Raises:
        InputError: broken source, or another count than expected; then nothing is written.
    """
    columns = LabelFile(source, spelling=MOYO_SPELLING)
    chosen = select_moyo_hard(
        columns.texts("names").tolist(), columns.texts("imgname").tolist(),
        camera=camera, rounding=rounding,
    )  # fmt: skip
    if expected_rows is not None and len(chosen.rows) != expected_rows:
        counts = ", ".join(f"{how} {count}" for how, count in chosen.counts.items())
        raise InputError(
            f"{source}: {len(chosen.rows)} rows of {chosen.sequences} sequences with camera "
            f"{camera}, expected {expected_rows} of {MOYO_HARD_SEQUENCES}; roundings give "
            f"{counts}; cameras are {', '.join(chosen.cameras)}; choose others, or pass "
            "--expected 0 to write it all the same"
        )
    smpl = columns.mapping("smpl")

    def kept(value: Any) -> Any:
        per_row = isinstance(value, np.ndarray) and value.shape[:1] == (columns.rows,)
        return value[chosen.rows] if per_row else value

    arrays: dict[str, np.ndarray] = {}
    for name, member in columns.members.items():
        if name == "smpl":
            values: Any = {key: kept(value) for key, value in smpl.items()}
        elif member.dtype.hasobject and not member.shape:
            values = columns.content(name)
        else:
            values = kept(columns.raw(name))
        arrays[name] = values if isinstance(values, np.ndarray) else np.array(values, object)
    _save_npz(destination, arrays)
    return chosen


def _frame_key(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name.rpartition(".")[0] if c.isdigit())
    return (int(digits) if digits else -1, name)


def _save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file, whole or absent, the same bytes for the same arrays."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            # Protocol of the published files; the dict of arrays needs pickling to be written.
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=True)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    make_directory(path.parent)
    write_bytes(path, content.getvalue())
