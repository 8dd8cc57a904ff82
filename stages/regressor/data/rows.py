"""Converted datasets as training rows: what is read, what is left out and why, which split.

Columns are loaded once into read-only arrays; nothing downstream can change a label
(docs/reference/regressor.md#d14).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline import Dataset, open_dataset
from pipeline.errors import InputError
from skel_fit.keypoints import NUM_KEYPOINTS
from skel_fit.status import rejected_rows
from stages.regressor.config import DataConfig
from stages.regressor.data.image_names import known_rule, resolved
from stages.regressor.data.images import ImageSource, open_images
from stages.regressor.data.shards import column, recorded_images, texts
from stages.regressor.data.shared_arrays import Shared, share, unshared
from stages.regressor.network.camera import grown_side

Split = Literal["train", "validation", "test"]
_BOX_UNIT = 200.0
_RESULTS = ("skel_poses", "skel_betas", "skel_trans", "skel_gender", "vertex_error_mean",
            "vertex_error_max", "status", "source_row")  # fmt: skip
_NEEDED = ("imgname", "center", "scale", "cam_int", "gtkps")
_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
           "validation": "validation", "test": "test", "test-actors": "test"}  # fmt: skip


@dataclass(frozen=True)
class TrainingRows:
    """Training rows, one entry each; arrays are read-only.

    image: name; source: number of the dataset it comes from; source_row: its row there;
    box_center: (N, 2) pixels; box_side: (N,) pixels; cam_int: (N, 3, 3); keypoints: (N, 44, 3)
    pixels and confidence; poses: (N, 46) radians; betas: (N, 10) of `female` or male SKEL;
    trans: (N, 3) metres, camera frame; weight: (N,) of what comes from the fit; split.
    """

    image: np.ndarray
    source: np.ndarray
    source_row: np.ndarray
    box_center: np.ndarray
    box_side: np.ndarray
    cam_int: np.ndarray
    keypoints: np.ndarray
    poses: np.ndarray
    betas: np.ndarray
    trans: np.ndarray
    female: np.ndarray
    weight: np.ndarray
    split: np.ndarray

    def __post_init__(self) -> None:
        for item in fields(self):
            getattr(self, item.name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def _shared(self) -> tuple[Shared, ...]:
        return tuple(share(getattr(self, item.name)) for item in fields(self))

    def __reduce__(self) -> tuple:
        # Loader processes map one copy of the labels instead of holding one each.
        return _unshared_rows, self._shared

    @classmethod
    def joined(cls, parts: Sequence[TrainingRows]) -> TrainingRows:
        """The rows of all parts, in order."""
        names = [item.name for item in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, chosen: np.ndarray) -> TrainingRows:
        """Some rows (indices or mask), in order."""
        return TrainingRows(*(getattr(self, item.name)[chosen] for item in fields(self)))

    def of(self, split: Split) -> TrainingRows:
        """The rows of a split."""
        return self.take(self.split == split)

    def label(self, k: int) -> str:
        """How row k is named in messages."""
        return f"row {self.source_row[k]} ({self.image[k]})"


def _unshared_rows(*columns: Shared) -> TrainingRows:
    return TrainingRows(*map(unshared, columns))


@dataclass(frozen=True)
class Place:
    """A converted dataset and where its pictures are (default: what the conversion recorded).

    names: rule of its pictures' names (`image_names`); `auto`: as they are where one of them is
    there, else the rule known for the data set.
    """

    directory: Path
    images: Path | None = None
    names: str = "auto"


@dataclass(frozen=True)
class Collection:
    """Rows of several datasets with their pictures.

    skipped: reason -> number of rows left out. digests: dataset digest of each. standin: labels
    were made with the licence-free body. models: folder of body models of the first dataset.
    directories: where each dataset is.
    """

    rows: TrainingRows
    images: tuple[ImageSource, ...]
    digests: tuple[str, ...]
    standin: bool
    models: Path | None
    skipped: dict[str, int] = field(default_factory=dict)
    directories: tuple[Path, ...] = ()

    def of(self, split: Split) -> Collection:
        """The same pictures, rows of one split."""
        return replace(self, rows=self.rows.of(split))


def load_collection(places: Sequence[Place], config: DataConfig) -> Collection:
    """Read the rows of converted datasets.

    Raises:
        InputError: not a dataset, a column is missing, no usable row, pictures not found.
    """
    datasets = [open_dataset(place.directory) for place in places]
    standin = _one_kind_of_body(datasets)
    parts: list[TrainingRows] = []
    sources: list[ImageSource] = []
    skipped: Counter[str] = Counter()
    for number, (place, dataset) in enumerate(zip(places, datasets, strict=True)):
        images = open_images(place.images or recorded_images(dataset))
        rows, left_out = _read(dataset, images, number, config, place.names)
        skipped.update(left_out)
        parts.append(rows)
        sources.append(images)
    rows = TrainingRows.joined(parts)
    if not len(rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise InputError(
            f"{places[0].directory}: no usable row ({reasons or 'the dataset is empty'}); "
            f"pictures were looked for in {sources[0].place}"
        )
    folders = (dataset.attrs["models_directory"] for dataset in datasets)
    return Collection(
        rows=rows,
        images=tuple(sources),
        digests=tuple(str(dataset.attrs["digest"]) for dataset in datasets),
        standin=standin,
        models=next((Path(folder) for folder in folders if folder), None),
        skipped=dict(skipped),
        directories=tuple(place.directory for place in places),
    )


def _one_kind_of_body(datasets: Sequence[Dataset]) -> bool:
    """Whether the labels are of the stand-in body; refuses a mixture."""
    kinds = {bool(dataset.attrs["standin"]) for dataset in datasets}
    if len(kinds) > 1:
        raise InputError(
            f"{datasets[0].directory}: datasets of stand-in and licensed body models cannot be "
            "trained on together; their shapes mean different things"
        )
    return kinds.pop()


def _read(
    dataset: Dataset, images: ImageSource, number: int, config: DataConfig, naming: str
) -> tuple[TrainingRows, dict[str, int]]:
    """Usable rows of one dataset and how many were left out by reason."""
    values = {
        name: column(
            dataset, name, "training needs shards of hmr-skel convert from labels with boxes, "
            "intrinsics and 2D keypoints",
        )
        for name in (*_RESULTS, *_NEEDED)
    }  # fmt: skip
    names = values["imgname"]
    keypoints = _keypoints(dataset, values["gtkps"])
    size = values["scale"].astype(np.float64).reshape(len(names), -1) * _BOX_UNIT
    size = np.broadcast_to(size, (len(names), 2))
    center, cam_int = (values[name].astype(np.float64) for name in ("center", "cam_int"))
    female = values["skel_gender"] == "female"
    confident = np.where(keypoints[..., 2:] > 0, keypoints, 0.0)
    numbers = (values["skel_poses"], values["skel_betas"], center, size, cam_int, confident)
    other_gender = female != (config.gender == "female")
    checks = {
        "rejected by the conversion": rejected_rows(values["status"]),
        "with non-finite labels": ~np.logical_and.reduce([_finite(x) for x in numbers]),
        "with a box below 1 pixel": ~(size.max(1) >= 1.0),
        "with a focal length that is not positive": ~(cam_int[:, (0, 1), (0, 1)] > 0).all(1),
        "with a box far outside the picture": _far_outside(center, size, cam_int),
        "of the other gender": other_gender & (config.other_gender == "skip"),
    }
    rule = _rule(naming, dataset, names, images)
    paths = resolved(rule, names)
    chosen, left_out = _chosen(paths, checks, images)
    lost = left_out.get("without a picture", 0)
    if lost and not len(chosen):
        raise InputError(
            f"{dataset.directory}: no usable row ({lost} without a picture): none of its pictures "
            f"was found, they were looked for in {images.place} (the first: {paths[0]}, names "
            f"'{rule}'); give --images, or --image-names"
        )
    rows = TrainingRows(
        image=paths[chosen],
        source=np.full(len(chosen), number),
        source_row=values["source_row"][chosen],
        box_center=center[chosen],
        box_side=np.array(
            [grown_side(w, h, enlarge=config.enlarge_box) for w, h in size[chosen]], np.float64
        ),
        cam_int=cam_int[chosen],
        keypoints=keypoints[chosen],
        poses=values["skel_poses"][chosen].astype(np.float32),
        betas=values["skel_betas"][chosen].astype(np.float32),
        trans=values["skel_trans"][chosen].astype(np.float32),
        female=female[chosen],
        weight=_weights(values["vertex_error_mean"], values["vertex_error_max"], config)[chosen],
        split=_splits(dataset, names, config)[chosen],
    )
    return rows, left_out


def _rule(naming: str, dataset: Dataset, names: np.ndarray, images: ImageSource) -> str:
    """The rule of picture names; `auto`: plain where that finds one, else the known one."""
    if naming != "auto":
        return naming
    known = known_rule(str(dataset.attrs["subset"]))
    if known == "plain" or images.has(names.tolist()).any():
        return "plain"
    return known


def _chosen(
    names: np.ndarray, checks: Mapping[str, np.ndarray], images: ImageSource
) -> tuple[np.ndarray, dict[str, int]]:
    """Indices of the rows that pass and have a picture; the others by their first reason."""
    keep = np.ones(len(names), bool)
    left_out: dict[str, int] = {}
    for reason, bad in checks.items():
        left_out[reason] = int((keep & bad).sum())
        keep &= ~bad
    there = np.zeros(len(names), bool)
    there[keep] = images.has(names[keep].tolist())
    left_out["without a picture"] = int((keep & ~there).sum())
    return np.flatnonzero(there), {reason: n for reason, n in left_out.items() if n}


def _keypoints(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    if stored.ndim != 3 or stored.shape[1] < NUM_KEYPOINTS or stored.shape[2] != 3:
        raise InputError(
            f"{dataset.directory}: column 'gtkps': expected (rows, >={NUM_KEYPOINTS}, 3), found "
            f"{stored.shape}"
        )
    keypoints = stored[:, :NUM_KEYPOINTS].astype(np.float32)
    # A point whose confidence is not a number is not visible; it says nothing about other points.
    unknown = ~np.isfinite(keypoints[..., 2])
    return np.where(unknown[..., None], np.float32(0), keypoints) if unknown.any() else keypoints


def _far_outside(center: np.ndarray, size: np.ndarray, cam_int: np.ndarray) -> np.ndarray:
    """The square box does not touch the picture, judged by the principal point in its middle."""
    middle = cam_int[:, :2, 2]
    reach = middle + size.max(1, keepdims=True) / 2
    with np.errstate(invalid="ignore"):
        return (np.abs(center - middle) >= reach).any(1)


def _weights(mean_error: np.ndarray, worst: np.ndarray, config: DataConfig) -> np.ndarray:
    weight = np.ones(len(worst), np.float32)
    if config.row_weight == "residual":
        share = mean_error.astype(np.float64) / config.residual_scale
        weight = (1 / (1 + np.nan_to_num(share, nan=np.inf) ** 2)).astype(np.float32)
    if config.max_vertex_error:
        kept = worst.astype(np.float64) <= config.max_vertex_error
        weight = np.where(kept, weight, 0).astype(np.float32)
    return weight


def _splits(dataset: Dataset, names: np.ndarray, config: DataConfig) -> np.ndarray:
    """The labels' own split, else a share of the pictures by the hash of their name."""
    if "split" in dataset:
        given = texts(dataset["split"])
        unknown = sorted(set(given.tolist()) - _SPLITS.keys())
        if unknown:
            raise InputError(
                f"{dataset.directory}: column 'split' holds {unknown[0]!r}; expected "
                f"{', '.join(_SPLITS)}"
            )
        return np.array([_SPLITS[name] for name in given.tolist()], "<U10")
    held: dict[str, bool] = {}
    for name in set(names.tolist()):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        held[name] = int.from_bytes(digest[:8], "big") < config.validation * 2.0**64
    return np.array(["validation" if held[n] else "train" for n in names.tolist()], "<U10")


def _finite(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values.reshape(len(values), -1)).all(1)
