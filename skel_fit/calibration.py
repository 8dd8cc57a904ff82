"""`Calibration`: residual fields of a model pair, and the file that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from skel_fit.solver.sandwich import Fields


@dataclass(frozen=True)
class Calibration:
    """Residual fields of one model pair under one treatment of the root."""

    wrenches: np.ndarray  # (K,24,6) `sandwich.Fields`, float32
    pulls: np.ndarray  # (K,207) float32
    noise: float  # m^2, variance of an independent displacement of a vertex / number of vertices
    rows: int  # rows that it was measured on
    root_is_free: bool

    def fields(self, device: torch.device) -> Fields:
        """The fields as float64 tensors."""
        import torch

        from skel_fit.solver.sandwich import Fields

        return Fields(
            *(
                torch.as_tensor(part, dtype=torch.float64, device=device)
                for part in (self.wrenches, self.pulls)
            )
        )
