"""A trained network ready to use: checkpoint in, SKEL bodies of people in full pictures out.

`hmr-skel predict` uses it as it is; `predictors.CheckpointPredictor` runs it under an evaluation
protocol. Source: docs/reference/regressor.md#human-fov, #camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.provenance import file_record
from stages.regressor.config import Recipe
from stages.regressor.data import crops
from stages.regressor.data.crops import CropRule
from stages.regressor.evaluation.query import Prediction
from stages.regressor.network import camera, representation
from stages.regressor.network.checkpoints import compared, load_checkpoint
from stages.regressor.network.heads import Estimates
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.model import Regressor
from stages.regressor.network.view import View, full_camera

#: The focal length of a network that needs none of the picture's.
CROP_CAMERA = "crop camera of the network (5000 px on a crop of 256)"
#: Which of the estimates of a network counts, (B, ...).
Choice = Callable[[Estimates], Parameters]
Pixels = Literal["continuous", "published"]
_FOV_SIDE = 256
_MAX_BATCH = 32


@dataclass(frozen=True)
class Person:
    """One person in one picture.

    data: the encoded picture; name: for messages; center (2,), box (2,) = width and height: pixels;
    cam_int: (3, 3) intrinsics, pixels; may be NaN where `TrainedNetwork.uses_intrinsics` is false.
    turned: all that is of the upright picture, as its EXIF orientation says.
    """

    data: bytes
    name: str
    center: np.ndarray
    box: np.ndarray
    cam_int: np.ndarray
    turned: bool = False


class ReadyNetwork:
    """A network and what it takes to use it on full pictures.

    network: in evaluation mode, on `device`. focal: HumanFOV network for pictures without
    intrinsics; None: the picture's diagonal is taken, about 53 degrees along it. fov_channels:
    order in which HumanFOV sees the picture; it needs `rgb`, some published runs gave `bgr`
    (evaluation reference 4.3).
    """

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        device: torch.device,
        *,
        standin: bool,
        focal: HumanFOV | None = None,
        fov_channels: Literal["rgb", "bgr"] = "rgb",
    ) -> None:
        self.recipe, self.network, self.device = recipe, network, device
        self.standin = standin
        self.gender = self.recipe.data.gender
        self.name = self.recipe.name
        self._focal = focal.to(self.device) if focal is not None else None
        self._fov_channels = fov_channels

    def provenance(self) -> Mapping[str, Any]:
        """What a result file records."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "gender": self.gender,
            "standin": self.standin,
        }

    @property
    def focal_source(self) -> str:
        """Where the focal length comes from for a picture without intrinsics."""
        if not self.uses_intrinsics:
            return CROP_CAMERA
        if self._focal is None:
            return "picture diagonal (assumed)"
        return "HumanFOV" if self._fov_channels == "rgb" else "HumanFOV on a BGR picture"

    @property
    def uses_intrinsics(self) -> bool:
        """The answer depends on the picture's camera: through the network's own or the box."""
        model = self.recipe.model
        options = model.coarse_to_fine
        told = options.conditioned or (options.coarse and options.conditioned_coarse)
        return model.camera == "full_image" or (model.head == "coarse_to_fine" and told)

    def rule(self) -> CropRule:
        """The crop rule that the network was trained with."""
        return crop_rule(grow=self.recipe.data.enlarge_box, pixels=self.recipe.data.pixels)

    @torch.no_grad()
    def intrinsics(self, picture: np.ndarray, name: str) -> np.ndarray:
        """(3, 3) intrinsics guessed from a whole picture (H, W, 3), uint8 RGB: HumanFOV, else the
        diagonal."""
        height, width = picture.shape[:2]
        focal = math.hypot(width, height)
        if self._focal is not None:
            ordered = picture if self._fov_channels == "rgb" else picture[..., ::-1]
            image = torch.from_numpy(fov_input(ordered))[None].to(self.device)
            focal = camera.focal_from_fov(float(self._focal(image)[0, 1]), height)
            if not (math.isfinite(focal) and focal > 0):
                raise InputError(f"{name}: HumanFOV gives a focal length of {focal}; use --focal")
        return np.array(camera.intrinsics(focal, width, height))

    @torch.no_grad()
    def predict(
        self, persons: Sequence[Person], rule: CropRule, choose: Choice = lambda e: e.final
    ) -> Prediction:
        """Predict people; each result depends on its own picture only (up to rounding).

        choose: which of the network's estimates counts.
        """
        parts = [
            self._predict(persons[start : start + _MAX_BATCH], rule, choose)
            for start in range(0, len(persons), _MAX_BATCH)
        ]
        return Prediction(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))

    def _predict(self, persons: Sequence[Person], rule: CropRule, choose: Choice) -> Prediction:
        image, view = self.seen(persons, rule)
        return self.prediction(choose(self.network(image, view.conditioning)), view)

    def prediction(self, estimate: Parameters, view: View) -> Prediction:
        """Bodies and cameras in the full picture of what the network estimates, (B, ...)."""
        translation, cam_int = full_camera(self.recipe.model, estimate.camera, view)
        return Prediction(
            representation.decode(estimate.code), estimate.betas, translation, cam_int
        )

    def seen(self, persons: Sequence[Person], rule: CropRule) -> tuple[Tensor, View]:
        """What the network is given: (B, 3, H, W) normalised, and where that lies."""
        images, centers, sides, affines = [], [], [], []
        for person in persons:
            crop = _crop(person, rule, self.recipe.model.crop_size)
            if self.recipe.data.blank_images:
                picture = crops.blank(crop)
            else:
                picture = crops.cut(person.data, person.name, crop, turned=person.turned)
            images.append(crops.normalise(picture))
            centers.append(crop.center)
            sides.append(max(person.box) if rule.conditioning == "annotation" else crop.side)
            affines.append(crop.affine)

        def tensor(values: list) -> Tensor:
            return torch.from_numpy(np.stack(values).astype(np.float32)).to(self.device)

        view = View(tensor(centers), tensor(sides), tensor([p.cam_int for p in persons]),
                    tensor(affines))  # fmt: skip
        return tensor(images), view


class TrainedNetwork(ReadyNetwork):
    """That of a checkpoint, `best.pt` or `last.pt`; averaged weights where there are any."""

    network: Regressor

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        focal: HumanFOV | None = None,
        fov_channels: Literal["rgb", "bgr"] = "rgb",
    ) -> None:
        content = load_checkpoint(path)
        recipe, place = _recipe(content, path), torch.device(device)
        super().__init__(
            recipe, _network(recipe, content, path).to(place), place,
            standin=bool(content.get("standin")), focal=focal, fov_channels=fov_channels,
        )  # fmt: skip
        self.path = path
        self._scores = content.get("scores")

    def provenance(self) -> Mapping[str, Any]:
        return {
            "checkpoint": self.path.name,
            "sha256": file_record(self.path).sha256,
            **super().provenance(),
            "validation": self._scores,
        }


def crop_rule(*, grow: bool, pixels: Pixels = "continuous") -> CropRule:
    """Sub-pixel crops whose own side the network is told, as in training."""
    return CropRule(grow_to_aspect=grow, corners="subpixel", conditioning="crop", pixels=pixels)


def patch_intrinsics(person: Person, rule: CropRule) -> np.ndarray:
    """(3, 3): 5000 px on 256 px of the person's crop, through its middle
    (regressor.md#patch-camera)."""
    crop = _crop(person, rule, int(camera.HSMR_CROP))
    focal = camera.HSMR_FOCAL * crop.side / camera.HSMR_CROP
    return np.array(camera.intrinsics(focal, *(2 * crop.center)))


def _crop(person: Person, rule: CropRule, size: int) -> crops.Crop:
    side = camera.grown_side(*map(float, person.box), enlarge=rule.grow_to_aspect)
    center = np.asarray(person.center, np.float64)
    if not (math.isfinite(side) and side >= 1 and np.isfinite(center).all()):
        raise InputError(
            f"{person.name}: box centre {center.tolist()}, size {np.asarray(person.box).tolist()}: "
            "expected finite numbers and at least one pixel"
        )
    if rule.pixels == "published":
        how: Literal["integer", "published"] = (
            "integer" if rule.corners == "integer" else "published"
        )
        return crops.Crop(center, side, center, size, pixels=how)
    if rule.corners == "integer":
        corner = np.round(center - side / 2)
        side = float(round(side))
        center = corner + side / 2
    return crops.Crop(center, side, center, size)  # nothing is turned: any principal point will do


def fov_input(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, 256, 256) float32: the longer side scaled to 256, the other one
    rounded down, centred on white, ImageNet units (regressor.md#human-fov).
    """
    height, width = picture.shape[:2]
    # In floating point, as published: 2048 x 1872 gives 233 rows, not 234.
    if width > height:
        size = _FOV_SIDE, max(int(_FOV_SIDE / (width / height)), 1)
    else:
        size = max(int(_FOV_SIDE * (width / height)), 1), _FOV_SIDE
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    canvas = np.full((_FOV_SIDE, _FOV_SIDE, 3), 255, np.uint8)
    top, left = (_FOV_SIDE - size[1]) // 2, (_FOV_SIDE - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return crops.normalise(canvas)


def _recipe(content: Mapping[str, Any], path: Path) -> Recipe:
    kind = content.get("kind", "regressor")
    if kind != "regressor":
        use = {"human-fov": "--fov-checkpoint", "backbone": "model.backbone.weights of a recipe"}
        raise InputError(f"{path}: holds {kind} weights alone; its place is {use.get(kind, kind)}")
    try:
        return Recipe.model_validate(content["recipe"])
    except (KeyError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("recipe",)}
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: the recipe inside is not one of this version ({where}); use the hmr-skel "
            "that trained it"
        ) from error


def _network(recipe: Recipe, content: Mapping[str, Any], path: Path) -> Regressor:
    network = Regressor(recipe.model)
    tensors = content.get("ema") or content.get("network") or {}
    if differences := compared(network, tensors):
        raise InputError(f"{path}: the weights are not those of its recipe: {differences}")
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()
