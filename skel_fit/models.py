"""The body models and joint regressors of a folder: each loaded once, its file remembered.

The cache is an object that its owner passes on; nothing outlives it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from skel_fit.keypoints import (
    EXTRA_FILES,
    MIX_FILES,
    find_regressor,
    keypoint_matrix,
    smpl_keypoint_matrix,
)

if TYPE_CHECKING:
    from skel_fit.model_files import Kind

Precision = Literal["float32", "float64"]


class BodyModels:
    """What a folder holds, loaded when first used.

    directory: with the SMPL and SKEL files and joint regressors; device: where models live.
    Every method raises ModelFileError for a missing or broken file.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        self.directory = directory
        self.device = device
        self._models: dict[tuple[str, str, str], Any] = {}
        self._matrices: dict[tuple[str, ...], np.ndarray] = {}
        self._files: dict[str, Path] = {}

    def model(self, kind: Kind, gender: str, precision: Precision = "float64") -> Any:
        """The `smplx.SMPL` or `SKEL` of a gender (`model_files.load_smpl`, `load_skel`)."""
        key = (kind, gender, precision)
        if key not in self._models:
            import torch

            from skel_fit.model_files import load_skel, load_smpl

            load = load_skel if kind == "skel" else load_smpl
            model = load(self.directory, gender, dtype=getattr(torch, precision)).to(self.device)
            self._models[key] = model
            self._remember(Path(model.path))
        return self._models[key]

    def regressor(self, names: tuple[str, ...], rows: int) -> np.ndarray:
        """(rows, 6890) float64 of the first of `names` that is there (`find_regressor`)."""
        if names not in self._matrices:
            from skel_fit.model_files import load_joint_regressor

            path = find_regressor(self.directory, names)
            self._matrices[names] = load_joint_regressor(path, rows)
            self._remember(path)
        return self._matrices[names]

    def keypoint_matrix(self) -> np.ndarray:
        """(44, 6890) float64: the keypoints as weights of the SKEL skin."""
        key = ("keypoints",)
        if key not in self._matrices:
            self._matrices[key] = keypoint_matrix(self.directory)
            for names in (MIX_FILES, EXTRA_FILES):
                self._remember(find_regressor(self.directory, names))
        return self._matrices[key]

    def smpl_keypoint_matrix(self) -> np.ndarray:
        """(44, 6890) float64: the keypoints as weights of SMPL's skin, those that are joints empty
        (`keypoints.JOINT_POINTS`)."""
        key = ("smpl keypoints",)
        if key not in self._matrices:
            self._matrices[key] = smpl_keypoint_matrix(self.directory)
            self._remember(find_regressor(self.directory, EXTRA_FILES))
        return self._matrices[key]

    @property
    def standin(self) -> bool:
        """Any model that was loaded is of the licence-free stand-in pair."""
        return any(model.standin for model in self._models.values())

    def digests(self) -> dict[str, str]:
        """File name -> SHA-256 of every file that was used."""
        result = {}
        for name, path in sorted(self._files.items()):
            with path.open("rb") as stream:
                result[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return result

    def _remember(self, path: Path) -> None:
        self._files[path.name] = path
