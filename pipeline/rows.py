"""Rows for training, with a PyTorch `DataLoader`: from memory, or streamed in block-shuffled order.

HDF5 row by row is slow for its call cost (docs/reference/pipeline.md#random-rows), so whole
columns are loaded, or, beyond a memory budget, random blocks of 256 rows are mixed sixteen at a
time.

    loader = DataLoader(Rows(ds, names), batch_size=64, shuffle=True, collate_fn=identity)
    loader = DataLoader(RowStream(ds, names, batch=64), batch_size=None, num_workers=2)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.dataset import Dataset
from pipeline.shards import CHUNK_ROWS, read_column
from pipeline.task import shard_path

MIXED_BLOCKS = 16
_OPEN_FILES = 8
"""HDF5 2 caches 8 MB a column of every open file (pipeline.md#hdf5-handles): keep few of them."""

Batch = dict[str, np.ndarray]


def identity(batch: Batch) -> Batch:
    """`collate_fn` for `Rows`: its batches are whole already."""
    return batch


class Rows(TorchDataset[Batch]):
    """Columns in memory. A list of indices gives a batch at once, one index a batch of one row.

    Args:
        dataset: from `open_dataset`.
        names: columns to load; every chunk's checksum is compared on the way.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self._columns = {name: dataset[name] for name in names}
        self._length = len(dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        return {name: values[chosen] for name, values in self._columns.items()}


class RowStream(IterableDataset[Batch]):
    """One epoch of all rows in random order, each once, for data beyond memory.

    Workers share the blocks among them. Files are opened by the process that reads, so the stream
    may be pickled, forked, and iterated again; `set_epoch` gives another order.

    Args:
        dataset: from `open_dataset`.
        names: columns.
        batch: rows a batch; a worker's last one may be smaller.
        seed: of the order.
    """

    def __init__(
        self, dataset: Dataset, names: Sequence[str], batch: int, *, seed: int = 0
    ) -> None:
        dataset.check_names(names)
        self._dataset = dataset
        self._names = tuple(names)
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order; call it before the loader starts its workers."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        blocks = [
            (index, start)
            for index, rows in enumerate(self._dataset.shard_rows)
            for start in range(0, rows, CHUNK_ROWS)
        ]
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(blocks))
        mine = [blocks[position] for position in order[worker::workers]]
        mixer = np.random.default_rng((self._seed, self._epoch, worker))
        files = _Files(self._dataset)
        try:
            for first in range(0, len(mine), MIXED_BLOCKS):
                parts = [self._block(files, *item) for item in mine[first : first + MIXED_BLOCKS]]
                mixed = {name: np.concatenate([p[name] for p in parts]) for name in self._names}
                rows = mixer.permutation(len(mixed[self._names[0]]))
                for start in range(0, len(rows), self._batch):
                    chosen = rows[start : start + self._batch]
                    yield {name: values[chosen] for name, values in mixed.items()}
        finally:
            files.close()

    def _block(self, files: _Files, index: int, start: int) -> Batch:
        file = files.get(index)
        rows = slice(start, start + CHUNK_ROWS)
        return {name: read_column(file, name, rows) for name in self._names}


class _Files:
    """A few open shards, least recently used out first."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._open: OrderedDict[int, h5py.File] = OrderedDict()

    def get(self, index: int) -> h5py.File:
        if index not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            path = shard_path(self._dataset.directory, self._dataset.shard_numbers[index])
            # Blocks are whole chunks and never read twice: no chunk cache.
            self._open[index] = h5py.File(path, "r", rdcc_nbytes=0)
        self._open.move_to_end(index)
        return self._open[index]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
