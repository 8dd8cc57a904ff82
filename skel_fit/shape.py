"""Shape across genders and models, in closed form (docs/reference/fitting.md#shape-transfer)."""

import numpy as np
import smplx
import torch
from torch import Tensor

from skel_fit.skel import SKEL


def shape_transfer(skel: SKEL, smpl: smplx.SMPL) -> tuple[Tensor, Tensor]:
    """Betas of `skel` whose rest skin is nearest to that of `smpl`: betas_skel = B betas + b.

    Least squares over all vertices of the two shaped templates. Returns B (10, 10) and b (10,),
    float64. For several people: `betas @ B.T + b`. Raises ValueError if the topologies or shape
    spaces differ.
    """
    if skel.shapedirs.shape != smpl.shapedirs.shape:
        raise ValueError(
            "shape transfer: expected one topology and shape space, found SKEL shapedirs "
            f"{tuple(skel.shapedirs.shape)} and SMPL shapedirs {tuple(smpl.shapedirs.shape)}"
        )
    count = skel.shapedirs.shape[-1]
    device = skel.template.device
    own, theirs, template, target = (
        part.detach().cpu().double().numpy().reshape(-1, width)
        for part, width in (
            (skel.shapedirs, count),
            (smpl.shapedirs, count),
            (skel.template, 1),
            (smpl.v_template, 1),
        )
    )
    wanted = np.concatenate((theirs, target - template), axis=1)
    # Sums in a fixed order: a threaded library splits 20670 terms by how busy the machine is, and
    # every converted row depends on the last bit.
    normal, right = _products(own, own), _products(own, wanted)
    solution = torch.as_tensor(np.linalg.solve(normal, right)).to(device)
    return solution[:, :count].contiguous(), solution[:, count].contiguous()


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left^T right without a matrix library: (n, a), (n, b) -> (a, b)."""
    return np.stack([(left[:, k : k + 1] * right).sum(axis=0) for k in range(left.shape[1])])
