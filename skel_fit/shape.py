"""Shape across genders and models, in closed form (reference/fitting.md section 5)."""

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
    own = skel.shapedirs.double().reshape(-1, count)
    theirs = smpl.shapedirs.double().reshape(-1, count)
    shift = (smpl.v_template.double() - skel.template.double()).reshape(-1, 1)
    solution = torch.linalg.lstsq(own, torch.cat((theirs, shift), 1)).solution
    return solution[:, :count].contiguous(), solution[:, count].contiguous()
