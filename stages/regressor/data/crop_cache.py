"""Crops of the training rows in one file, so that an epoch decodes no pictures.

The window of a row is its box, `data.cached_crops` times larger and with as many times more pixels;
what augmentation asks for is cut from it. The file belongs to a run (`crops.npy` in its folder), is
whole or absent, and is made anew where it is of other rows, boxes or settings, or where pictures
changed: some of its windows are cut again and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.output_files import published
from stages.regressor.config import DataConfig
from stages.regressor.data.crops import Crop
from stages.regressor.data.rows import TrainingRows

FILE = "crops.npy"
_VERSION = 1
_COMPARED = 16


class CropCache:
    """`cache[k]`: window of row k, (size, 3/4 size, 3) uint8 RGB; `window(k)`: where it lies.

    rows: of the training set, as they were before labels were refined; crop_size: of the network.
    """

    def __init__(self, path: Path, rows: TrainingRows, config: DataConfig, crop_size: int) -> None:
        self.path, self._rows, self._config = path, rows, config
        self.size = round(crop_size * config.cached_crops / 4) * 4
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, k: int) -> np.ndarray:
        if self._map is None:
            self._map = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(self._map[k])

    def __getstate__(self) -> dict:
        # Loader processes map the file themselves.
        return self.__dict__ | {"_map": None}

    def window(self, k: int) -> Crop:
        """The crop of row k that the cache holds."""
        side = float(self._rows.box_side[k]) * self._config.cached_crops
        principal = self._rows.cam_int[k][:2, 2]
        return Crop(self._rows.box_center[k], side, principal, self.size)

    def ready(self, cut: Callable[[int, Crop], np.ndarray]) -> bool:
        """The file is there and is of these rows and pictures. cut: row, crop -> picture."""
        try:
            key = self._key_path.read_text("utf-8")
            held = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return False
        if key != self.key or held.shape != self._shape or held.dtype != np.uint8:
            return False
        chosen = np.unique(np.linspace(0, len(self) - 1, min(_COMPARED, len(self))).astype(int))
        return all(np.array_equal(held[k], cut(k, self.window(k))) for k in chosen.tolist())

    def make(self, cut: Callable[[int, Crop], np.ndarray]) -> None:
        """Write the file.

        Raises:
            InputError: a picture is damaged or gone; OutputError: the folder, or the disk.
        """
        self._map = None
        self._key_path.unlink(missing_ok=True)
        with published(self.path, int(np.prod(self._shape))) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for k in range(len(self)):
                stream.write(np.ascontiguousarray(cut(k, self.window(k))).tobytes())
        with published(self._key_path) as stream:
            stream.write(self.key.encode("utf-8"))

    def remove(self) -> None:
        """Take the file away."""
        self._map = None
        for path in (self._key_path, self.path):
            path.unlink(missing_ok=True)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self), self.size, self.size * 3 // 4, 3)

    @property
    def _key_path(self) -> Path:
        return self.path.with_name(self.path.name + ".key")

    @property
    def key(self) -> str:
        """Digest of everything but the pictures that decides the content."""
        rows = self._rows
        digest = hashlib.sha256(json.dumps([_VERSION, self._shape, self._config.cached_crops])
                                .encode())  # fmt: skip
        for values in (rows.source, rows.source_row, rows.box_center, rows.box_side):
            digest.update(np.ascontiguousarray(values).tobytes())
        digest.update("\0".join(rows.image.tolist()).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
