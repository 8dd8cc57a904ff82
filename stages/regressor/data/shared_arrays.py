"""Arrays that loader processes map instead of copying."""

from __future__ import annotations

import numpy as np
import torch

Shared = tuple[torch.Tensor, str, tuple[int, ...]]


def share(array: np.ndarray) -> Shared:
    """Bytes in shared memory (torch passes them to another process by descriptor), dtype, shape."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.tensor(flat).share_memory_(), array.dtype.str, array.shape


def unshared(shared: Shared) -> np.ndarray:
    """The array again, on the same bytes."""
    data, dtype, shape = shared
    return data.numpy().view(dtype).reshape(shape)
