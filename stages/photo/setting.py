"""What `photo` and `video` start from: body model, fitter, lens, a trained network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.manifest import MODELS_VARIABLE, STAND_IN, is_stand_in, models_directory
from skel_fit.model_files import load_skel
from skel_fit.pose_prior import PriorName, pose_prior
from stages.photo.fitting import HEIGHTS, Fitter, Lens, Marks
from stages.photo.people import BOX

if TYPE_CHECKING:
    from stages.regressor.evaluation.trained import TrainedNetwork


@dataclass(frozen=True)
class Setting:
    """What bodies are made with. notes: what result files say of it."""

    fitter: Fitter
    notes: dict[str, Any]
    trained: TrainedNetwork | None = None

    @property
    def standin(self) -> bool:
        return bool(self.fitter.skel.standin)


def check_numbers(focal: float | None, height: float | None) -> None:
    """Raises UsageError for what no camera and no person has."""
    if focal is not None and not 1.0 <= focal < 1e6:
        raise UsageError(f"--focal {focal:g}: expected pixels, 1 to 1,000,000")
    if height is not None and not HEIGHTS[0] <= height <= HEIGHTS[1]:
        raise UsageError(f"--height {height:g}: expected metres, {HEIGHTS[0]:g} to {HEIGHTS[1]:g}")


def body_folder(given: Path | None) -> Path:
    """The models folder: as given, else $HMR_SKEL_MODELS, else ./models, else the stand-in, which
    results say. Raises InputError: the folder that is meant does not exist."""
    nowhere = given is None and not os.environ.get(MODELS_VARIABLE) and not Path("models").is_dir()
    return models_directory(STAND_IN if nowhere else "licensed", given)


def make_setting(
    models: Path | None,
    gender: str,
    prior: PriorName,
    height: float | None,
    checkpoint: Path | None,
    device: str,
) -> Setting:
    """Load the body model, or that of a checkpoint with its network.

    Raises:
        InputError, ModelFileError: a file is missing or broken.
    """
    trained = None
    if checkpoint is None and device != "cpu":
        raise UsageError(f"--device {device}: of the network only, which --checkpoint names")
    if checkpoint is not None:
        from stages.regressor.evaluation.prediction import load_body
        from stages.regressor.evaluation.trained import TrainedNetwork

        trained = TrainedNetwork(checkpoint, device=device)
        _, skel = load_body(trained, None if is_stand_in(models) else models)
        gender = trained.gender
    else:
        skel = load_skel(body_folder(models), gender)
    belief = pose_prior(prior)
    fitter = Fitter(skel, belief, height)
    notes = {
        "model": {"gender": gender, "standin": bool(skel.standin)},
        "prior": belief.name,
        "height_m": height,
        "checkpoint": dict(trained.provenance()) if trained else None,
        "units": "angles: degrees; trans, stature: metres, camera frame (x right, y down, z "
                 "forward); landmarks: pixels and visibility",
    }  # fmt: skip
    return Setting(fitter, notes, trained)


@dataclass(frozen=True)
class NetworkStart:
    """Bodies by a trained network, where fits may start."""

    trained: TrainedNetwork
    turned: bool = True

    def __call__(
        self, data: bytes, name: str, marks: Marks, lens: Lens
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n, 46) poses and (n, 10) betas of the people in an encoded picture."""
        from stages.regressor.evaluation.trained import Person

        persons = []
        for pixels, inside in zip(marks.pixels, marks.inside, strict=True):
            low, high = pixels[inside].min(0), pixels[inside].max(0)
            side = np.maximum((high - low) * BOX, 2.0)
            persons.append(Person(data, name, (low + high) / 2, side, lens.cam_int, self.turned))
        found = self.trained.predict(persons, self.trained.rule())
        return found.poses.double().numpy(), found.betas.double().numpy()
