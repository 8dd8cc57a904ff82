"""Pictures of people for the tests: rendered rows of other actors, and their exact keypoints."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.demo import demo_columns, npz_bytes
from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.keypoints import NAMES
from stages.regressor.data.demo_pictures import Job, render_demo
from stages.regressor.data.images import decode

SHARED = {
    k: NAMES.index(name.replace("foot index", "big toe"))
    for k, name in enumerate(BLAZEPOSE_NAMES)
    if name.replace("foot index", "big toe") in NAMES
}
"""Landmark -> the label's keypoint at the same place of the body."""


RUNNERS = Path(__file__).parent / "data" / "photo"


@dataclass(frozen=True)
class Rendered:
    """Rows of a label file and their pictures."""

    columns: dict[str, np.ndarray]
    folder: Path

    def __len__(self) -> int:
        return len(self.columns["imgname"])

    def path(self, row: int) -> Path:
        return self.folder / str(self.columns["imgname"][row])

    def picture(self, row: int) -> np.ndarray:
        return decode(self.path(row).read_bytes(), str(self.path(row)))

    def errors(self, row: int, pixels: np.ndarray) -> np.ndarray:
        """Distances of landmarks (33, 2) to the label, over the side of the label's box; NaN where
        the label says nothing."""
        truth = self.columns["gtkps"][row, list(SHARED.values())]
        away = np.linalg.norm(pixels[list(SHARED)] - truth[:, :2], axis=1)
        return np.where(truth[:, 2] > 0, away, np.nan) / (200.0 * self.columns["scale"][row])


def rendered(columns: dict[str, np.ndarray], folder: Path, workers: int = 1) -> Rendered:
    """Render rows into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = folder / "labels.npz"
    labels.write_bytes(npz_bytes(columns))
    render_demo(Job(labels, Path(default_body_directory()), folder), workers=workers)
    return Rendered(columns, folder)


@functools.cache
def runners() -> Rendered:
    """Four committed rows of a run, of an actor that nothing is tuned on (`write_runners`)."""
    with np.load(RUNNERS / "labels.npz", allow_pickle=False) as file:
        return Rendered({name: file[name] for name in file.files}, RUNNERS)


def write_runners() -> None:
    """Make the committed pictures again."""
    columns = demo_columns(default_body_directory(), rows=60, seed=7, takes=240)
    small = columns["image_size"].prod(1) <= 640 * 480
    rows = np.flatnonzero((columns["activity"] == "run") & small)
    columns = {name: values[rows] for name, values in columns.items()}
    columns["imgname"] = np.array([f"runners/{k}.jpg" for k in range(len(rows))])
    rendered(columns, RUNNERS)
    (RUNNERS / "runners" / "pictures.json").unlink()


if __name__ == "__main__":
    write_runners()
