"""A trained network as a `Predictor`: crop, network, SKEL parameters, camera of the full image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import InputError
from pipeline.provenance import file_record
from stages.regressor import camera as cameras
from stages.regressor import crops, representation
from stages.regressor.checkpoints import load_checkpoint
from stages.regressor.config import Recipe
from stages.regressor.hrnet import load_human_fov
from stages.regressor.images import ImageSource, decode
from stages.regressor.loader import BLANK
from stages.regressor.model import Regressor
from stages.regressor.protocols import Batch, Crop

#: (image source, names) -> (B, 3, 3) intrinsics; how a field-of-view network is plugged in.
Intrinsics = Callable[[ImageSource, tuple[str, ...]], Tensor]


class CheckpointPredictor:
    """The network of `best.pt` or `last.pt` (of the latter the moving average, if it keeps one).

    crop: cut boxes as the network was trained (`recipe`) or as the protocol's published runs did.
    intrinsics: makes cameras from the pictures; None: those of the labels.
    Results do not depend on the batch beyond float32 rounding of the network.

    Raises:
        InputError: not a checkpoint of ours, a recipe of another version, weights that do not fit.
    """

    uses_images = True

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        crop: Literal["recipe", "protocol"] = "recipe",
        intrinsics: Intrinsics | None = None,
    ) -> None:
        content = load_checkpoint(path)
        try:
            self.recipe = Recipe.model_validate(content["recipe"])
            weights = content.get("ema") or content["network"]
            self._step = content["progress"]["step"]
            self.skel_gender: Literal["male", "female", "column"] = content["gender"]
            self.standin = bool(content["standin"])
        except KeyError as error:
            raise InputError(f"{path}: the checkpoint has no {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path}: its recipe does not fit: {place}: {first['msg']}") from error
        self.network = Regressor(self.recipe.model)
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{path}: weights do not fit its recipe: {reason}") from error
        self._device = torch.device(device)
        self.network.to(self._device).eval()
        self.name = self.recipe.name
        self._path, self._crop, self._intrinsics = path, crop, intrinsics

    def provenance(self) -> Mapping[str, Any]:
        return {
            "kind": "checkpoint",
            "file": str(self._path),
            "sha256": file_record(self._path).sha256,
            "recipe": self.recipe.name,
            "step": self._step,
            "crop": self._crop,
            "focal": "labels" if self._intrinsics is None else "predicted",
        }

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.images is not None
        enlarge = self.recipe.data.enlarge_box
        rule = batch.crop
        if self._crop == "recipe":
            rule = Crop(grow_to_aspect=enlarge, corners="subpixel", conditioning="crop")
        windows = [self._window(batch, k, rule) for k in range(len(batch))]
        pictures = np.stack([self._picture(batch, k, w) for k, w in enumerate(windows)])
        center = torch.as_tensor(np.stack([w.center for w in windows]))
        cropped = torch.tensor([w.side for w in windows], dtype=torch.float64)
        told = cropped
        if rule.conditioning == "annotation":
            told = torch.as_tensor(batch.box.max(1).astype(np.float64))
        cam_int = self._cameras(batch)
        box = cameras.box_conditioning(center, told, cam_int)
        estimate = self.network(
            torch.from_numpy(pictures).to(self._device), box.float().to(self._device)
        ).final
        camera = estimate.camera.double().cpu()
        if self.recipe.model.camera == "crop":
            # The crop camera is a full-image one with its principal point in the box centre.
            translation = cameras.crop_translation(camera)
            cam_int = _centred(cameras.HSMR_FOCAL / cameras.HSMR_CROP * cropped, center)
        else:
            translation = cameras.full_image_translation(camera, center, told, cam_int)
        return {
            "poses": representation.decode(estimate.code.double()).cpu(),
            "betas": estimate.betas.double().cpu(),
            "cam_t": translation,
            "cam_int": cam_int,
        }

    def _window(self, batch: Batch, k: int, rule: Crop) -> crops.Crop:
        width, height = batch.box[k]
        side = cameras.grown_side(width, height, enlarge=rule.grow_to_aspect)
        center = np.asarray(batch.center[k], np.float64)
        if rule.corners == "integer":
            low, high = np.round(center - side / 2), np.round(center + side / 2)
            center, side = (low + high) / 2, float((high - low).max())
        return crops.Crop(center, float(side), center, self.recipe.model.crop_size)

    def _picture(self, batch: Batch, k: int, window: crops.Crop) -> np.ndarray:
        assert batch.images is not None
        if self.recipe.data.blank_images:
            height, width = self.recipe.model.input_size
            return crops.normalise(np.full((height, width, 3), BLANK, np.uint8))
        name = batch.names[k]
        return crops.normalise(crops.cut(batch.images.read(name), name, window))

    def _cameras(self, batch: Batch) -> Tensor:
        if self._intrinsics is not None:
            assert batch.images is not None
            return self._intrinsics(batch.images, batch.names).double()
        cam_int = torch.as_tensor(batch.cam_int, dtype=torch.float64)
        if torch.isnan(cam_int).any() and self.recipe.model.camera == "full_image":
            first = int(torch.isnan(cam_int).flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"row {batch.rows[first]}: the labels have no intrinsics; this network needs them "
                "or a field-of-view network (--fov-checkpoint)"
            )
        return cam_int


def _centred(focal: Tensor, center: Tensor) -> Tensor:
    """(B, 3, 3) intrinsics from focal lengths (B,) and principal points (B, 2)."""
    cam_int = torch.zeros(len(focal), 3, 3, dtype=torch.float64)
    cam_int[:, 0, 0] = cam_int[:, 1, 1] = focal
    cam_int[:, :2, 2] = center
    cam_int[:, 2, 2] = 1.0
    return cam_int


class FieldOfView:
    """Intrinsics from HumanFOV: f = H / (2 tan(vfov / 2)), principal point in the middle.

    weights: its checkpoint (`hrnet.load_human_fov`). The whole picture goes in, its longer side
    256 pixels on a white square, RGB (reference/regressor.md 1.3).
    """

    SIDE = 256

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._network = load_human_fov(weights).to(device)
        self._device = torch.device(device)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: ImageSource, names: tuple[str, ...]) -> Tensor:
        for name in names:
            if name not in self._known:  # several people share a picture
                picture = decode(images.read(name), name)
                height, width = picture.shape[:2]
                square = torch.from_numpy(crops.normalise(white_square(picture, self.SIDE)))
                fov = float(self._network(square[None].to(self._device))[0, 1])
                focal = cameras.focal_from_fov(fov, height)
                self._known[name] = torch.tensor(
                    cameras.intrinsics(focal, width, height), dtype=torch.float64
                )
        return torch.stack([self._known[name] for name in names])


def white_square(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 shrunk to a longer side of `side` pixels, centred on white."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(int(width * factor), 1), max(int(height * factor), 1))
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas
