"""A checkpoint as an evaluation `Predictor`: which crop, whose focal length, pictures by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.regressor.hrnet import HumanFOV
from stages.regressor.predictor import CheckpointPredictor, CropRule, Person
from stages.regressor.protocols import Batch


class EvaluatedCheckpoint:
    """The network of `best.pt` or `last.pt` under a protocol.

    crop: cut boxes as the network was trained (`recipe`) or as the protocol's published runs did.
    fov: network that makes the intrinsics from the picture, as the published runs do; None: those
    of the labels, and a row without them stops the evaluation.

    Raises:
        InputError: see `predictor.CheckpointPredictor`.
    """

    uses_images = True

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        crop: Literal["recipe", "protocol"] = "recipe",
        fov: HumanFOV | None = None,
    ) -> None:
        self._network = CheckpointPredictor(path, device=device, focal=fov)
        self.name = self._network.name
        self.skel_gender: Literal["male", "female", "column"] = self._network.gender
        self.standin = self._network.standin
        self._crop, self._predict_focal = crop, fov is not None
        self._cameras: dict[str, np.ndarray] = {}

    def provenance(self) -> Mapping[str, Any]:
        return {
            **self._network.provenance(),
            "crop": self._crop,
            "focal": "HumanFOV" if self._predict_focal else "labels",
        }

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        rule = self._network.rule()
        if self._crop == "protocol":
            published = batch.crop
            rule = CropRule(
                enlarge=published.grow_to_aspect,
                whole_pixels=published.corners == "integer",
                told=published.conditioning,
            )
        persons = [self._person(batch, k) for k in range(len(batch))]
        found = self._network.predict(persons, rule)
        return {
            "poses": found.poses,
            "betas": found.betas,
            "cam_t": found.translation,
            "cam_int": torch.from_numpy(np.stack([person.cam_int for person in persons])),
        }

    def _person(self, batch: Batch, k: int) -> Person:
        assert batch.images is not None
        name = batch.names[k]
        data = batch.images.read(name)
        cam_int = batch.cam_int[k]
        if self._predict_focal:
            if name not in self._cameras:  # several people share a picture
                self._cameras[name] = self._network.intrinsics(data, name)
            cam_int = self._cameras[name]
        elif not np.isfinite(cam_int).all():
            raise InputError(
                f"row {batch.rows[k]} ({name}): the labels have no intrinsics; give the weights of "
                "a field-of-view network with --fov-checkpoint"
            )
        return Person(data, name, batch.center[k], batch.box[k], cam_int)
