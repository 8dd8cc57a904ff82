"""What evaluation scores, each a `query.Predictor`: checkpoint, baselines; `stored.py` has results
of other programs.

A checkpoint has to beat the mean pose; the SKEL labels bound what training on them can reach.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError, UsageError
from stages.regressor.data.crops import CropRule
from stages.regressor.data.images import ImageSource, decode, picture_size
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.query import Body, Gender, Prediction, Query
from stages.regressor.evaluation.stored import Stored
from stages.regressor.evaluation.trained import (
    Choice,
    Person,
    ReadyNetwork,
    TrainedNetwork,
    patch_intrinsics,
)
from stages.regressor.network.camera import (
    HSMR_CROP,
    HSMR_FOCAL,
    full_image_translation,
    grown_side,
    intrinsics,
)
from stages.regressor.network.heads import Estimates
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.mean_parameters import BETAS, CAMERA, POSES, Parameters

FocalRule = Literal["labels", "predicted", "patch", "diagonal"] | float
CROP_RULES = ("recipe", "protocol", "grown", "square")


class NetworkPredictor:
    """A network under a protocol.

    crop: cut boxes as the network was trained (`recipe`) or as the protocol's published runs did;
    `grown` to 192:256 or the raw `square`. focal: of the labels, where a row without one stops the
    evaluation; `predicted` by fov; `patch`: 5000 px on 256 px of the crop; the picture's
    `diagonal`; or pixels. A network with a crop camera has no use for any of them. cameras: picture
    -> (3, 3) intrinsics by `focal` that are known already; what is found is added.
    """

    uses_images = True
    body: Body = "skel"

    def __init__(
        self,
        network: ReadyNetwork,
        *,
        crop: Literal["recipe", "protocol", "grown", "square"] = "recipe",
        focal: FocalRule = "labels",
        cameras: dict[str, np.ndarray] | None = None,
    ) -> None:
        self._network = network
        self.name = self._network.name
        self.gender: Gender = self._network.gender
        self.standin = self._network.standin
        self._crop, self._focal = crop, focal
        self._choose: Choice = lambda estimates: estimates.final
        self._cameras = {} if cameras is None else cameras

    @property
    def focal_source(self) -> str:
        """Where the focal length comes from, in words."""
        if not self._network.uses_intrinsics or self._focal in ("predicted", "diagonal"):
            return self._network.focal_source
        if self._focal == "patch":
            return "5000 px on a crop of 256"
        return "labels" if self._focal == "labels" else f"{self._focal:g} px"

    @property
    def how(self) -> str:
        """Crop and focal length for the headline."""
        return f"crop: {self._crop}; focal length: {self.focal_source}"

    def provenance(self) -> Mapping[str, Any]:
        return {
            **self._network.provenance(),
            "crop": self._crop,
            "focal": self.focal_source,
        }

    def __call__(self, query: Query) -> Prediction:
        rule = self._rule(query)
        persons = [self._person(query, k, rule) for k in range(len(query))]
        return self._network.predict(persons, rule, self._choose)

    def _rule(self, query: Query) -> CropRule:
        if self._crop == "recipe":
            return self._network.rule()
        if self._crop == "protocol":
            return query.crop.model_copy(update={"pixels": "published"})
        return self._network.rule().model_copy(update={"grow_to_aspect": self._crop == "grown"})

    def _person(self, query: Query, k: int, rule: CropRule) -> Person:
        assert query.images is not None
        name = query.names[k]
        data = query.images.read(name)
        person = Person(data, name, query.center[k], query.box[k], np.full((3, 3), np.nan))
        if not self._network.uses_intrinsics:
            return person
        if self._focal == "patch":
            return replace(person, cam_int=patch_intrinsics(person, rule))
        if self._focal != "labels":
            if name not in self._cameras:  # several people share a picture
                self._cameras[name] = self._of_picture(query.images, name, data)
            return replace(person, cam_int=self._cameras[name])
        if not np.isfinite(query.cam_int[k]).all():
            raise InputError(
                f"row {query.rows[k]} ({name}): the labels have no intrinsics; choose --focal "
                "diagonal, patch, a number of pixels, or predicted with --fov-checkpoint"
            )
        return replace(person, cam_int=query.cam_int[k])

    def _of_picture(self, images: ImageSource, name: str, data: bytes) -> np.ndarray:
        if isinstance(self._focal, float):
            return np.array(intrinsics(self._focal, *picture_size(images, name)))
        return self._network.intrinsics(decode(data, name), name)


class CheckpointPredictor(NetworkPredictor):
    """The network of `best.pt` or `last.pt` under a protocol; fov_channels: see `ReadyNetwork`.

    Raises:
        InputError: see `TrainedNetwork`.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        crop: Literal["recipe", "protocol", "grown", "square"] = "recipe",
        focal: FocalRule = "labels",
        fov: HumanFOV | None = None,
        fov_channels: Literal["rgb", "bgr"] = "rgb",
    ) -> None:
        if focal == "predicted" and fov is None:
            raise UsageError("a predicted focal length needs the weights of HumanFOV")
        trained = TrainedNetwork(
            path, device=device, focal=fov if focal == "predicted" else None,
            fov_channels=fov_channels,
        )  # fmt: skip
        super().__init__(trained, crop=crop, focal=focal)
        self.path = path

    def layer_cameras(self) -> list[CheckpointPredictor]:
        """The final body under the camera of each estimate: its (tx, ty) with the final
        scale, and its scale with the final (tx, ty) (docs/reference/checkpoints.md#layer-cameras).
        """
        options = self._network.recipe.model
        layers = options.decoder.layers
        if options.head != "coarse_to_fine" or options.coarse_to_fine.state == "single_readout":
            raise UsageError(f"{self.path}: one estimate alone; --layer-cameras needs layers")
        places: list[tuple[str, int | None]] = [(f"layer {k}", k) for k in range(layers)]
        if options.coarse_to_fine.coarse:
            places.insert(0, ("coarse", None))
        return [
            self._choosing(
                f"{kind} of {about}", functools.partial(_camera_of, place, kind == "scale")
            )
            for kind in ("translation", "scale")
            for about, place in places
        ]

    def layer_estimates(self) -> list[CheckpointPredictor]:
        """Each estimate before the last one, as it is: the coarse one, those of the layers."""
        options = self._network.recipe.model
        count = 0
        if options.head == "coarse_to_fine" and options.coarse_to_fine.state != "single_readout":
            count = options.decoder.layers - 1
        found = [self._choosing(f"layer {k}", functools.partial(_layer, k)) for k in range(count)]
        if options.head == "coarse_to_fine" and options.coarse_to_fine.coarse:
            found.insert(0, self._choosing("coarse", _coarse))
        if not found:
            raise UsageError(f"{self.path}: one estimate alone; --layer-estimates needs several")
        return found

    def _choosing(self, name: str, choose: Choice) -> CheckpointPredictor:
        other = copy.copy(self)
        other.name, other._choose = name, choose
        return other


def _coarse(estimates: Estimates) -> Parameters:
    assert estimates.coarse is not None
    return estimates.coarse


def _layer(place: int, estimates: Estimates) -> Parameters:
    return Parameters(*(part[place] for part in estimates.layers))


def _camera_of(place: int | None, scale: bool, estimates: Estimates) -> Parameters:
    """The final estimate with scale, or translation, of the coarse one (None) or of a layer."""
    final = estimates.final
    camera = _coarse(estimates).camera if place is None else estimates.layers.camera[place]
    s, txy = (camera[:, :1], final.camera[:, 1:]) if scale else (final.camera[:, :1], camera[:, 1:])
    return final._replace(camera=torch.cat((s, txy), -1))


class MeanPose:
    """The same pose and shape for every picture, in the middle of the box.

    poses: (46,) radians; betas: (10,) of the SKEL of `gender`; origin: where they come from.
    """

    name = "mean pose"
    uses_images = False
    body: Body = "skel"

    def __init__(self, poses: np.ndarray, betas: np.ndarray, gender: Gender, origin: str) -> None:
        self.gender: Gender = gender
        self._poses = torch.as_tensor(np.asarray(poses, np.float64))
        self._betas = torch.as_tensor(np.asarray(betas, np.float64))
        self._origin = origin

    @classmethod
    def published(cls) -> MeanPose:
        """SKEL-CF's initial values (docs/reference/regressor.md#mean-parameters), male."""
        return cls(np.array(POSES), np.array(BETAS), "male", "SKEL-CF's initial values")

    @classmethod
    def of_labels(cls, rows: EvalRows, origin: str) -> MeanPose:
        """Mean of SKEL labels: each angle on the circle; betas of the more frequent gender.

        Raises:
            InputError: no usable SKEL label.
        """
        keep = rows.reason == ""
        if rows.skel_poses is None or rows.skel_gender is None or not keep.any():
            raise InputError(f"{origin}: no SKEL label to take the mean pose from")
        assert rows.skel_betas is not None
        poses = rows.skel_poses[keep]
        females = (rows.skel_gender[keep] == "female").mean()
        gender: Gender = "female" if females > 0.5 else "male"
        own = keep & (rows.skel_gender == gender)
        mean = np.arctan2(np.sin(poses).mean(0), np.cos(poses).mean(0))
        return cls(mean, rows.skel_betas[own].mean(0), gender, origin)

    def provenance(self) -> Mapping[str, Any]:
        return {"kind": "mean-pose", "from": self._origin}

    def __call__(self, query: Query) -> Prediction:
        n = len(query)
        side = torch.tensor(
            [grown_side(w, h, enlarge=query.crop.grow_to_aspect) for w, h in query.box],
            dtype=torch.float64,
        )
        center = torch.as_tensor(query.center, dtype=torch.float64)
        cam_int = _box_camera(query.cam_int, center, side)
        camera = torch.tensor(CAMERA, dtype=torch.float64).expand(n, 3)
        return Prediction(
            poses=self._poses.expand(n, -1),
            betas=self._betas.expand(n, -1),
            translation=full_image_translation(camera, center, side, cam_int),
            cam_int=cam_int,
        )


def _box_camera(cam_int: np.ndarray, center: Tensor, side: Tensor) -> Tensor:
    """The labels' intrinsics; where there are none, focal 5000 on the 256-pixel patch."""
    given = torch.as_tensor(cam_int, dtype=torch.float64)
    own = torch.zeros_like(given)
    own[:, 0, 0] = own[:, 1, 1] = HSMR_FOCAL / HSMR_CROP * side
    own[:, :2, 2] = center
    own[:, 2, 2] = 1.0
    known = torch.isfinite(given).all(-1).all(-1)
    return torch.where(known[:, None, None], given, own)


class SkelLabels:
    """The SKEL labels of the rows themselves: the fit's own error, which bounds what is learnt.

    Raises InputError when called for a row without a label.
    """

    name = "SKEL label"
    uses_images = False
    body: Body = "skel"
    gender: Gender = "column"

    def __init__(self, rows: EvalRows) -> None:
        if rows.skel_poses is None or rows.skel_betas is None or rows.skel_trans is None:
            raise InputError("these rows have no SKEL labels")
        self._stored = Stored(
            rows.row, rows.skel_poses, rows.skel_betas, rows.skel_trans, rows.cam_int
        )

    def provenance(self) -> Mapping[str, Any]:
        return {"kind": "skel-labels"}

    def __call__(self, query: Query) -> Prediction:
        return self._stored.answer(query, "the SKEL labels")
