"""Converted datasets as training rows: what is read, what is left out and why, which split.

Columns are loaded once into read-only arrays; nothing downstream can change a label (6.6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline import open_dataset
from pipeline.errors import InputError
from pipeline.manifest import data_root
from skel_fit.status import rejected_rows
from stages.regressor.config import DataConfig
from stages.regressor.data.images import ImageSource, open_images
from stages.regressor.network.camera import grown_side

Split = Literal["train", "validation", "test"]
_BOX_UNIT = 200.0
_KEYPOINTS = 44
_RESULTS = ("skel_poses", "skel_betas", "skel_gender", "vertex_error_mean", "vertex_error_max",
            "status", "source_row")  # fmt: skip
_NEEDED = ("imgname", "center", "scale", "cam_int", "gtkps")
_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
           "validation": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Training rows, one entry each; arrays are read-only.

    image: name; source: number of the dataset it comes from; source_row: its row there;
    box_center: (N, 2) pixels; box_side: (N,) pixels; cam_int: (N, 3, 3); keypoints: (N, 44, 3)
    pixels and confidence; poses: (N, 46) radians; betas: (N, 10) of `female` or male SKEL;
    weight: (N,) of what comes from the fit; split.
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
    female: np.ndarray
    weight: np.ndarray
    split: np.ndarray

    def __post_init__(self) -> None:
        for item in fields(self):
            getattr(self, item.name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def _shared(self) -> tuple[_Shared, ...]:
        return tuple(_share(getattr(self, item.name)) for item in fields(self))

    def __reduce__(self) -> tuple:
        # Loader processes map one copy of the labels instead of holding one each.
        return _unshared_rows, self._shared

    def take(self, chosen: np.ndarray) -> Rows:
        """Some rows (indices or mask), in order."""
        return Rows(*(getattr(self, item.name)[chosen] for item in fields(self)))

    def of(self, split: Split) -> Rows:
        """The rows of a split."""
        return self.take(self.split == split)

    def label(self, k: int) -> str:
        """How row k is named in messages."""
        return f"row {self.source_row[k]} ({self.image[k]})"


_Shared = tuple[torch.Tensor, str, tuple[int, ...]]


def _share(array: np.ndarray) -> _Shared:
    """Bytes in shared memory (torch passes them to another process by descriptor), dtype, shape."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.tensor(flat).share_memory_(), array.dtype.str, array.shape


def _unshared_rows(*columns: _Shared) -> Rows:
    return Rows(*(data.numpy().view(dtype).reshape(shape) for data, dtype, shape in columns))


@dataclass(frozen=True)
class Place:
    """A converted dataset and where its pictures are (default: what the conversion recorded)."""

    directory: Path
    images: Path | None = None


@dataclass(frozen=True)
class Collection:
    """Rows of several datasets with their pictures.

    skipped: reason -> number of rows left out. digests: dataset digest of each. standin: labels
    were made with the licence-free body. models: folder of body models of the first dataset.
    directories: where each dataset is.
    """

    rows: Rows
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
    parts: list[Rows] = []
    sources: list[ImageSource] = []
    skipped: dict[str, int] = {}
    digests: list[str] = []
    standins: list[bool] = []
    models: Path | None = None
    for number, place in enumerate(places):
        dataset = open_dataset(place.directory)
        images = open_images(place.images or _recorded_images(dataset))
        rows, left_out = _read(dataset, images, number, config)
        for reason, count in left_out.items():
            skipped[reason] = skipped.get(reason, 0) + count
        parts.append(rows)
        sources.append(images)
        digests.append(str(dataset.attrs["digest"]))
        standins.append(bool(dataset.attrs["standin"]))
        if models is None and dataset.attrs["models_directory"]:
            models = Path(dataset.attrs["models_directory"])
    if len(set(standins)) > 1:
        raise InputError(
            f"{places[0].directory}: datasets of stand-in and licensed body models cannot be "
            "trained on together; their shapes mean different things"
        )
    rows = Rows(*(np.concatenate([getattr(p, item.name) for p in parts]) for item in fields(Rows)))
    if not len(rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise InputError(
            f"{places[0].directory}: no usable row ({reasons or 'the dataset is empty'}); "
            f"pictures were looked for in {sources[0].place}"
        )
    return Collection(
        rows, tuple(sources), tuple(digests), standins[0], models, skipped,
        tuple(place.directory for place in places),
    )  # fmt: skip


def _recorded_images(dataset) -> Path:  # type: ignore[no-untyped-def]
    recorded = dataset.attrs["data_root"]
    return (Path(recorded) if recorded else data_root(None)) / dataset.plan.image_root


def _read(
    dataset,
    images: ImageSource,
    number: int,
    config: DataConfig,  # type: ignore[no-untyped-def]
) -> tuple[Rows, dict[str, int]]:
    """Usable rows of one dataset and how many were left out by reason."""
    for name in (*_RESULTS, *_NEEDED):
        if name not in dataset:
            raise InputError(
                f"{dataset.directory}: column '{name}' is missing; training needs shards of "
                "hmr-skel convert from labels with boxes, intrinsics and 2D keypoints"
            )
    names = _texts(dataset["imgname"])
    status = _texts(dataset["status"])
    keypoints = _keypoints(dataset)
    scale = np.asarray(dataset["scale"], np.float64) * _BOX_UNIT
    size = np.repeat(scale[:, None], 2, 1) if scale.ndim == 1 else scale
    center = np.asarray(dataset["center"], np.float64)
    cam_int = np.asarray(dataset["cam_int"], np.float64)
    poses, betas = dataset["skel_poses"], dataset["skel_betas"]
    female = _texts(dataset["skel_gender"]) == "female"
    rejected = rejected_rows(status)
    checks = {
        "rejected by the conversion": rejected,
        "with non-finite labels": ~(
            _finite(poses) & _finite(betas) & _finite(center) & _finite(size) & _finite(cam_int)
            & _finite(np.where(keypoints[..., 2:] > 0, keypoints, 0.0))
        ),
        "with a box below 1 pixel": ~(size.max(1) >= 1.0),
        "with a focal length that is not positive": ~(cam_int[:, (0, 1), (0, 1)] > 0).all(1),
        "with a box far outside the picture": _far_outside(center, size, cam_int),
        "of the other gender": (
            female != (config.gender == "female")
            if config.other_gender == "skip"
            else np.zeros(len(names), bool)
        ),
    }  # fmt: skip
    keep = np.ones(len(names), bool)
    left_out: dict[str, int] = {}
    for reason, bad in checks.items():
        left_out[reason] = int((keep & bad).sum())
        keep &= ~bad
    there = np.zeros(len(names), bool)
    there[keep] = images.has(names[keep].tolist())
    left_out["without a picture"] = int((keep & ~there).sum())
    chosen = np.flatnonzero(there)
    rows = Rows(
        image=names[chosen],
        source=np.full(len(chosen), number),
        source_row=np.asarray(dataset["source_row"])[chosen],
        box_center=center[chosen],
        box_side=np.array(
            [grown_side(w, h, enlarge=config.enlarge_box) for w, h in size[chosen]], np.float64
        ),
        cam_int=cam_int[chosen],
        keypoints=keypoints[chosen],
        poses=poses[chosen].astype(np.float32),
        betas=betas[chosen].astype(np.float32),
        female=female[chosen],
        weight=_weights(dataset, config)[chosen],
        split=_splits(dataset, names, config)[chosen],
    )
    return rows, {reason: count for reason, count in left_out.items() if count}


def _keypoints(dataset) -> np.ndarray:  # type: ignore[no-untyped-def]
    keypoints = np.asarray(dataset["gtkps"], np.float32)
    if keypoints.ndim != 3 or keypoints.shape[1] < _KEYPOINTS or keypoints.shape[2] != 3:
        raise InputError(
            f"{dataset.directory}: column 'gtkps': expected (rows, >={_KEYPOINTS}, 3), found "
            f"{keypoints.shape}"
        )
    keypoints = keypoints[:, :_KEYPOINTS]
    # A point whose confidence is not a number is not visible; it says nothing about other points.
    unknown = ~np.isfinite(keypoints[..., 2])
    return np.where(unknown[..., None], np.float32(0), keypoints) if unknown.any() else keypoints


def _far_outside(center: np.ndarray, size: np.ndarray, cam_int: np.ndarray) -> np.ndarray:
    """The square box does not touch the picture, judged by the principal point in its middle."""
    middle = cam_int[:, :2, 2]
    reach = middle + size.max(1, keepdims=True) / 2
    with np.errstate(invalid="ignore"):
        return (np.abs(center - middle) >= reach).any(1)


def _weights(dataset, config: DataConfig) -> np.ndarray:  # type: ignore[no-untyped-def]
    weight = np.ones(len(dataset), np.float32)
    if config.row_weight == "residual":
        share = np.asarray(dataset["vertex_error_mean"], np.float64) / config.residual_scale
        weight = (1 / (1 + np.nan_to_num(share, nan=np.inf) ** 2)).astype(np.float32)
    if config.max_vertex_error:
        worst = np.asarray(dataset["vertex_error_max"], np.float64)
        weight = np.where(worst <= config.max_vertex_error, weight, 0).astype(np.float32)
    return weight


def _splits(dataset, names: np.ndarray, config: DataConfig) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The labels' own split, else a share of the pictures by the hash of their name."""
    if "split" in dataset:
        given = _texts(dataset["split"])
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


def _texts(values: np.ndarray) -> np.ndarray:
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values


def _finite(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values.reshape(len(values), -1)).all(1)
