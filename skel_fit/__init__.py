"""Body models and the SMPL-to-SKEL fit: tensors in, tensors out.

The public names are imported when first asked for, so that modules without torch stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
    from skel_fit.body_points import BodyPoints, blazepose_points, label_points
    from skel_fit.errors import ModelFileError
    from skel_fit.fit import FitResult, fit_skel, fit_skel_to_vertices
    from skel_fit.joint_limits import limits
    from skel_fit.keypoint_fit import (
        Cameras,
        KeypointFit,
        KeypointFitConfig,
        Places,
        Start,
        fit_skel_to_keypoints,
    )
    from skel_fit.model_files import load_joint_regressor, load_skel, load_smpl, model_file
    from skel_fit.pose_prior import PosePrior, pose_prior
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
    "BodyPoints",
    "Cameras",
    "FitConfig",
    "FitResult",
    "KeypointFit",
    "KeypointFitConfig",
    "ModelFileError",
    "Places",
    "PosePrior",
    "Recipe",
    "SequenceConfig",
    "SkelIdentity",
    "SkelOutput",
    "Stage",
    "Start",
    "angle_uncertainty",
    "blazepose_points",
    "calibrate",
    "fit_sequence",
    "fit_skel",
    "fit_skel_to_keypoints",
    "fit_skel_to_vertices",
    "label_points",
    "limits",
    "load_joint_regressor",
    "load_skel",
    "load_smpl",
    "model_file",
    "pose_prior",
    "root_from_smpl",
    "root_to_smpl",
    "shape_transfer",
]

_HOMES = {
    "anatomy": ("JOINT_NAMES", "POSE_NAMES"),
    "body_points": ("BodyPoints", "blazepose_points", "label_points"),
    "errors": ("ModelFileError",),
    "fit": ("FitResult", "fit_skel", "fit_skel_to_vertices"),
    "joint_limits": ("limits",),
    "keypoint_fit": (
        "Cameras",
        "KeypointFit",
        "KeypointFitConfig",
        "Places",
        "Start",
        "fit_skel_to_keypoints",
    ),
    "model_files": ("load_joint_regressor", "load_skel", "load_smpl", "model_file"),
    "pose_prior": ("PosePrior", "pose_prior"),
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
