"""The data plane: annotation files in, checked SKEL shards out.

from pipeline import open_dataset
dataset = open_dataset("outputs/demo")
poses = dataset["skel_poses"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]


def __getattr__(name: str) -> Any:
    """Load the reader when it is asked for: the console script starts without h5py."""
    if name in __all__:
        return getattr(import_module("pipeline.dataset"), name)
    raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
