"""Body models and the SMPL-to-SKEL fit: tensors in, tensors out.

The public names are imported when first asked for, so that modules without torch stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
    from skel_fit.errors import ModelFileError
    from skel_fit.fit import FitResult, fit_skel, fit_skel_to_vertices
    from skel_fit.joint_limits import limits
    from skel_fit.model_files import load_joint_regressor, load_skel, load_smpl, model_file
    from skel_fit.recipe import FitConfig, Recipe, SequenceConfig, Stage
    from skel_fit.root import root_from_smpl, root_to_smpl
    from skel_fit.sequence import fit_sequence
    from skel_fit.shape import shape_transfer
    from skel_fit.skel import SKEL, SkelIdentity, SkelOutput
    from skel_fit.uncertainty import AngleUncertainty, angle_uncertainty, calibrate

__all__ = [
    "JOINT_NAMES",
    "POSE_NAMES",
    "SKEL",
    "AngleUncertainty",
    "FitConfig",
    "FitResult",
    "ModelFileError",
    "Recipe",
    "SequenceConfig",
    "SkelIdentity",
    "SkelOutput",
    "Stage",
    "angle_uncertainty",
    "calibrate",
    "fit_sequence",
    "fit_skel",
    "fit_skel_to_vertices",
    "limits",
    "load_joint_regressor",
    "load_skel",
    "load_smpl",
    "model_file",
    "root_from_smpl",
    "root_to_smpl",
    "shape_transfer",
]

_HOMES = {
    "anatomy": ("JOINT_NAMES", "POSE_NAMES"),
    "errors": ("ModelFileError",),
    "fit": ("FitResult", "fit_skel", "fit_skel_to_vertices"),
    "joint_limits": ("limits",),
    "model_files": ("load_joint_regressor", "load_skel", "load_smpl", "model_file"),
    "recipe": ("FitConfig", "Recipe", "SequenceConfig", "Stage"),
    "root": ("root_from_smpl", "root_to_smpl"),
    "sequence": ("fit_sequence",),
    "shape": ("shape_transfer",),
    "skel": ("SKEL", "SkelIdentity", "SkelOutput"),
    "uncertainty": ("AngleUncertainty", "angle_uncertainty", "calibrate"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"skel_fit.{module}"), name)
    raise AttributeError(f"module 'skel_fit' has no attribute {name!r}")
