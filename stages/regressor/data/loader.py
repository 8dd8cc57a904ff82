"""Rows to batches: a dataset whose items never change between reads, and a stateless order.

An item is a pure function of its key; the order is a pure function of (seed, epoch). So a run
that is resumed, or has other workers, sees the same batches.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import InputError
from skel_fit.keypoints import MIRROR
from stages.regressor.config import DataConfig
from stages.regressor.data import augment, crops
from stages.regressor.data.crop_cache import CropCache
from stages.regressor.data.mixture import Mixture, repeats
from stages.regressor.data.rows import Collection, TrainingRows
from stages.regressor.network.camera import grown_side
from stages.regressor.network.view import View

Key = tuple[int, ...]
"""Epoch, row; of a mixture also how often this epoch has taken the row before."""


class Batch(NamedTuple):
    """Tensors of a batch; all but `row` are what augmentation left.

    image: (B, 3, H, W) normalised; view; keypoints: (B, 44, 3) crop coordinates and confidence,
    flipped and rolled with the picture; poses (B, 46), betas (B, 10), female (B,): the label as
    stored, not yet flipped or rolled; flip (B,) bool; roll (B,) radians; weight (B,); row (B,);
    focal: (B,) what the network is told the focal length times, 1 where it is told the truth.
    """

    image: Tensor
    view: View
    keypoints: Tensor
    poses: Tensor
    betas: Tensor
    female: Tensor
    flip: Tensor
    roll: Tensor
    weight: Tensor
    row: Tensor
    focal: Tensor

    @property
    def conditioning(self) -> Tensor:
        """(B, 3) what the network is told about the box; the loss has the label's camera."""
        return self.view.conditioning / self.focal[:, None]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        return self._replace(
            view=View(*map(move, self.view)),
            **{k: move(v) for k, v in self._asdict().items() if k != "view"},
        )


class CropDataset(Dataset[dict[str, Any]]):
    """`dataset[(epoch, row)]`: one row as a dict of fresh arrays.

    training: augment. crop_size: side of the square crop, pixels.
    """

    def __init__(
        self, collection: Collection, config: DataConfig, crop_size: int, seed: int,
        *, training: bool,
    ) -> None:  # fmt: skip
        self.rows: TrainingRows = collection.rows
        self.images, self.directories = collection.images, collection.directories
        self.config, self.crop_size = config, crop_size
        self.seed, self.training = seed, training
        self.cache: CropCache | None = None

    def keep_crops(self, path: Path) -> None:
        """Cut pictures from windows in the file `path` from now on, which is made where it is not
        ready (`data.cached_crops`)."""
        self.cache = None  # what follows cuts from the pictures
        cache = CropCache(path, self.rows, self.config, self.crop_size)
        if not cache.ready(self._picture):
            cache.make(self._picture)
        self.cache = cache

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, k: int) -> str:
        """How row k is named in messages; with several datasets also which one."""
        place = f" of {self.directories[self.rows.source[k]]}" if len(self.directories) > 1 else ""
        return self.rows.label(k) + place

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, k, *repeat = key
        rows = self.rows
        random = np.random.default_rng((self.seed, epoch, int(rows.source[k]), k, *repeat))
        keypoints = rows.keypoints[k].astype(np.float64)
        change = augment.Change()
        if self.training:
            change = augment.draw(self.config.augment, keypoints, random)
        crop = self._crop(k, change)
        picture = self._picture(k, crop)
        if self.training:
            picture = augment.photometric(picture, self.config.augment, random)
        focal = augment.focal_factor(self.config.augment, random) if self.training else 1.0
        return {
            "image": crops.normalise(picture, change.factors),
            "box_center": crop.center.astype(np.float32),
            "box_side": np.float32(crop.side),
            "cam_int": rows.cam_int[k].astype(np.float32),
            "affine": crop.affine.astype(np.float32),
            "keypoints": turned_keypoints(keypoints, crop).astype(np.float32),
            "poses": rows.poses[k].copy(),
            "betas": rows.betas[k].copy(),
            "female": bool(rows.female[k]),
            "flip": crop.flip,
            "roll": np.float32(crop.roll),
            "weight": np.float32(rows.weight[k]),
            "row": k,
            "focal": np.float32(focal),
        }

    def _crop(self, k: int, change: augment.Change) -> crops.Crop:
        """The window of row k in the flipped and rolled picture."""
        center, side = self.rows.box_center[k], float(self.rows.box_side[k])
        if change.box is not None:
            center, side = change.box
            side = grown_side(side, side, enlarge=self.config.enlarge_box)
        principal = self.rows.cam_int[k][:2, 2]
        how = self.config.pixels
        turned = crops.Crop(center, side, principal, self.crop_size, change.flip, change.roll)
        moved = crops.apply(turned.turn, center) + side * np.array(change.shift)
        return crops.Crop(
            moved, side * change.scale, principal, self.crop_size, change.flip, change.roll, how
        )

    def _picture(self, k: int, crop: crops.Crop) -> np.ndarray:
        if self.config.blank_images:
            return crops.blank(crop)
        if self.cache is not None:
            return crops.cut_again(self.cache[k], self.cache.window(k), crop)
        name = str(self.rows.image[k])
        source = self.images[self.rows.source[k]]
        try:
            return crops.cut(source.read(name), name, crop)
        except InputError as error:
            raise InputError(f"{self.label(k)}, pictures in {source.place}: {error}") from error


def turned_keypoints(keypoints: np.ndarray, crop: crops.Crop) -> np.ndarray:
    """Pixels and confidence (44, 3) -> crop coordinates ([-0.5, 0.5] inside) of the turned picture.

    A flip also swaps left and right. Points without confidence come out as zero.
    """
    points = crops.apply(crops.compose(crop.affine, crop.turn), keypoints[:, :2])
    result = np.concatenate((points / crop.size - 0.5, keypoints[:, 2:]), 1)
    if crop.flip:
        result = result[list(MIRROR)]
    return np.where(result[:, 2:] > 0, result, 0.0)


class _Sent(Dataset):
    """Rows as they travel from a loader process: bad input as a value, to be raised by the reader.

    An exception that leaves a loader process arrives as a traceback inside a message.
    """

    def __init__(self, dataset: CropDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> dict[str, Any] | InputError:
        try:
            return self.dataset[key]
        except InputError as error:
            return InputError(str(error))


def _collate_sent(items: list[dict[str, Any] | InputError]) -> Batch | InputError:
    """A batch, or the first of its rows' errors."""
    rows: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputError):
            return item
        rows.append(item)
    return collate(rows)


def collate(items: list[dict[str, Any]]) -> Batch:
    """Stack rows into a `Batch`."""
    stacked = {
        name: torch.from_numpy(np.stack([np.asarray(item[name]) for item in items]))
        for name in items[0]
    }
    view = View(*(stacked.pop(name) for name in View._fields))
    return Batch(view=view, **stacked)


class Order:
    """Which rows make up each batch of each process.

    rows: number of training rows; batch: rows per process and forward pass. An epoch is a random
    permutation, cut into global batches of world * batch rows, the rest left out; process `rank`
    takes every world-th row of it, so that the global batch does not depend on world. mixture:
    gives the rows of an epoch instead.
    """

    def __init__(
        self, rows: int, batch: int, seed: int, world: int = 1, rank: int = 0,
        mixture: Mixture | None = None,
    ) -> None:  # fmt: skip
        self.rows = rows if mixture is None else mixture.rows
        self.batch, self.seed, self.mixture = batch, seed, mixture
        self.world, self.rank = world, rank
        if self.batches == 0:
            raise InputError(
                f"{rows} training rows are fewer than one batch of {batch} x {world} processes; "
                "lower train.batch_size"
            )

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.rows // (self.batch * self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Key]]:
        """Keys of the batches of an epoch from batch `start` on."""
        keys: list[Key]
        if self.mixture is not None:
            order = self.mixture.epoch(epoch)
            keys = [(epoch, *pair) for pair in zip(order.tolist(), repeats(order), strict=True)]
        else:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            keys = [(epoch, row) for row in order.tolist()]
        size = self.batch * self.world
        for k in range(start, self.batches):
            yield keys[k * size : (k + 1) * size][self.rank :: self.world]


def batches(
    dataset: CropDataset, keys: Iterator[list[Key]] | list[list[Key]], workers: int
) -> Iterator[Batch]:
    """Batches of lists of keys; workers: processes that read and cut pictures, 0: this one.

    Raises:
        InputError: a picture of the batch is damaged or gone; the message names it and its row.

    Workers come from a fork server that has done nothing but import: OpenCV's threads do not
    survive a fork, a worker forked from here could wait for them forever.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    loader = DataLoader(
        _Sent(dataset),
        batch_sampler=_Listed(keys),
        collate_fn=_collate_sent,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=context,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # a loader must not draw from what stochastic depth draws from
    )
    return _opened(iter(loader))  # reading starts now


def _opened(sent: Iterator[Batch | InputError]) -> Iterator[Batch]:
    for batch in sent:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


class _Listed(torch.utils.data.Sampler):
    def __init__(self, keys: Iterator[list[Key]] | list[list[Key]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)
