"""Rows of a converted dataset as a dataset of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.errors import InputError
from pipeline.positions import RowReader, positions_of


class TorchRows(Dataset[dict[str, Any]]):
    """`rows[k]`: column -> tensor (text: str or bytes). See `dataset_view.Rows.torch`.

    A DataLoader fetches the rows of a batch at once, and torch's own `default_collate` stacks them.
    """

    def __init__(self, rows: RowReader, columns: Sequence[str]) -> None:
        self._rows = rows
        self.columns = tuple(columns)
        for name, values in rows.take(self.columns, range(0)).items():
            if values.dtype.kind not in "SU":
                _tensor(name, values)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows, read together."""
        found = self._rows.take(self.columns, positions_of(numbers, len(self)))
        parts = {
            name: values.tolist() if values.dtype.kind in "SU" else _tensor(name, values)
            for name, values in found.items()
        }
        # Tensors of their own: a view would carry the whole batch through the queue of a worker.
        return [
            {
                name: part[k].clone() if isinstance(part, torch.Tensor) else part[k]
                for name, part in parts.items()
            }
            for k in range(len(numbers))
        ]


def _tensor(name: str, values: np.ndarray) -> torch.Tensor:
    """A tensor of the same type; big-endian numbers become the machine's."""
    try:
        return torch.from_numpy(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))
    except TypeError:
        raise InputError(
            f"column '{name}': torch has no {values.dtype}; leave it out of the columns"
        ) from None
