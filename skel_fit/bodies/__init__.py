"""Bodies that are not SMPL: their surfaces in SKEL's topology, their shapes, and the fit to them.

The public names are imported when first asked for: `surface_map` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skel_fit.bodies.identities import fit_identity
    from skel_fit.bodies.identity_shapes import IdentityShapes
    from skel_fit.bodies.source_body import SourceBody, SourceRoot
    from skel_fit.bodies.surface_fit import fit_skel_to_surface
    from skel_fit.bodies.surface_map import SurfaceMap, faces_sha256
    from skel_fit.bodies.surface_sequence import fit_surface_sequence
    from skel_fit.bodies.weights import surface_weights

__all__ = [
    "IdentityShapes",
    "SourceBody",
    "SourceRoot",
    "SurfaceMap",
    "faces_sha256",
    "fit_identity",
    "fit_skel_to_surface",
    "fit_surface_sequence",
    "surface_weights",
]

_HOMES = {
    "identities": ("fit_identity",),
    "identity_shapes": ("IdentityShapes",),
    "source_body": ("SourceBody", "SourceRoot"),
    "surface_fit": ("fit_skel_to_surface",),
    "surface_sequence": ("fit_surface_sequence",),
    "surface_map": ("SurfaceMap", "faces_sha256"),
    "weights": ("surface_weights",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"skel_fit.bodies.{module}"), name)
    raise AttributeError(f"module 'skel_fit.bodies' has no attribute {name!r}")
