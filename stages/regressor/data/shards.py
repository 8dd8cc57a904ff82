"""What training and evaluation both read from a converted dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import Dataset
from pipeline.errors import InputError
from pipeline.manifest import data_root


def column(dataset: Dataset, name: str, needed_for: str) -> np.ndarray:
    """A column; text as str.

    Raises:
        InputError: it is missing; says what it is needed for.
    """
    if name not in dataset:
        raise InputError(f"{dataset.directory}: column '{name}' is missing; {needed_for}")
    return texts(dataset[name])


def texts(values: np.ndarray) -> np.ndarray:
    """Stored bytes as text; undecodable ones become a character that no picture has."""
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values


def recorded_images(dataset: Dataset) -> Path:
    """Where the conversion found the pictures, or the data root of now where it has not said."""
    recorded = dataset.attrs["data_root"]
    return (Path(recorded) if recorded else data_root(None)) / dataset.plan.image_root
