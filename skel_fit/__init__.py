"""Body models and the SMPL-to-SKEL fit: tensors in, tensors out."""

from skel_fit.errors import ModelFileError
from skel_fit.fit import FitResult, fit_skel, fit_skel_to_vertices
from skel_fit.model_files import load_skel, load_smpl, model_file
from skel_fit.pose_table import JOINT_NAMES, POSE_NAMES, limits
from skel_fit.recipe import FitConfig, Recipe, Stage
from skel_fit.root import root_from_smpl, root_to_smpl
from skel_fit.sequence import SequenceConfig, fit_sequence
from skel_fit.shape import shape_transfer
from skel_fit.skel import SKEL, SkelIdentity, SkelOutput

__all__ = [
    "JOINT_NAMES",
    "POSE_NAMES",
    "SKEL",
    "FitConfig",
    "FitResult",
    "ModelFileError",
    "Recipe",
    "SequenceConfig",
    "SkelIdentity",
    "SkelOutput",
    "Stage",
    "fit_sequence",
    "fit_skel",
    "fit_skel_to_vertices",
    "limits",
    "load_skel",
    "load_smpl",
    "model_file",
    "root_from_smpl",
    "root_to_smpl",
    "shape_transfer",
]
