"""What a training run says while it runs: progress, scalars and pictures for TensorBoard and, where
asked, Weights & Biases.

Only the first process speaks. Without TensorBoard a run says so and goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.extras import require
from stages import wording
from stages.drawing import overlays
from stages.regressor.config import Recipe
from stages.regressor.data.crops import seen_picture
from stages.regressor.data.loader import CropDataset, Key, batches
from stages.regressor.network import representation
from stages.regressor.network.view import (
    crop_keypoints,
    full_camera,
    seen_intrinsics,
    seen_pixels,
)
from stages.regressor.training.bodies import RunBodies
from stages.regressor.training.losses import LossTerms
from stages.regressor.training.validation import Scores, autocast
from stages.terminal import Progress

_SCALAR_STEPS = 10


class Reporter:
    """Progress on stderr unless `quiet`, and events to the folder `log` (None: none).

    wandb: project of Weights & Biases that gets the same scalars and pictures; config: what the
    run is, for it.
    """

    def __init__(
        self, log: Path | None, *, quiet: bool = False, wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._log, self._quiet = log, quiet
        self._wandb, self._config = wandb, dict(config or {})
        self._writer: Any = None
        self._run: Any = None
        self._progress = Progress("train", 0, "steps", quiet=True)
        self._began = 0.0
        self._rows = 0
        self._waited = 0.0

    def start(self, step: int, total: int) -> None:
        """The run begins, or goes on, at `step` of `total`."""
        self._began = time.monotonic()
        self._progress = Progress("train", total, "steps", done=step, quiet=self._quiet)
        if self._log is not None and self._wandb is not None:
            self._run = self._opened_run(self._log.parent, self._wandb)
        if self._log is not None:
            try:
                require("tensorboard", "tensorboard")
            except UsageError as error:
                self._progress.say(f"no TensorBoard events: {error}")
                return
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._log), purge_step=step + 1)

    def _opened_run(self, folder: Path, project: str) -> Any:
        """A run of Weights & Biases: the same one whenever this folder is trained in."""
        wandb = require("wandb", "wandb")
        number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        run = wandb.init(
            project=project, id=number, name=folder.name, dir=str(folder), resume="allow",
            config=self._config,
        )  # fmt: skip
        # A resumed run may begin before its last logged step, which its own counter forbids.
        run.define_metric("*", step_metric="step")
        return run

    @property
    def _writing(self) -> bool:
        """Somebody records scalars."""
        return self._writer is not None or self._run is not None

    def stop(self) -> None:
        """The run ends, well or not."""
        self._progress.close()
        if self._run is not None:
            self._run.finish()
        if self._writer is not None:
            self._writer.close()

    def step(
        self, step: int, terms: LossTerms, rate: float, norm: float, waited: float, rows: int
    ) -> None:
        """An optimiser step is done; waited: seconds it spent waiting for rows."""
        self._rows += rows
        self._waited += waited
        last = step == self._progress.total
        write = self._writing and (step % _SCALAR_STEPS == 0 or last)
        speak = self._progress.due
        # Reading the loss waits for the device, so only when somebody sees it.
        total = float(terms.total.detach()) if write or speak else float("nan")
        spent = max(time.monotonic() - self._began, 1e-9)
        note = f"loss {total:.4f}, {wording.rate(self._rows / spent)}" if speak else ""
        self._progress.update(step - self._progress.done, note)
        if write:
            self._scalars(step, {
                "loss/total": total, "run/rate": rate, "run/gradient_norm": norm,
                "run/rows_per_second": self._rows / spent,
                "run/share_waiting_for_rows": self._waited / spent,
                **{f"loss/{name}": float(value) for name, value in terms.terms.items()},
            })  # fmt: skip

    def validation(self, step: int, scores: Scores, better: bool) -> None:
        """A validation is done."""
        self._progress.say(
            f"step {step}/{self._progress.total}: validation MPJPE {scores.mpjpe:.1f} mm, PA-MPJPE "
            f"{scores.pa_mpjpe:.1f} mm, 2D {scores.keypoints_2d:.1f} % of the box"
            + (" (best)" if better else "")
        )
        if self._writing:
            self._scalars(step, {
                "validation/mpjpe_mm": scores.mpjpe,
                "validation/pa_mpjpe_mm": scores.pa_mpjpe,
                "validation/keypoints_2d_percent": scores.keypoints_2d,
            })  # fmt: skip

    def refined(self, step: int, outcomes: Mapping[str, int]) -> None:
        """Labels are refined."""
        rows = max(sum(outcomes.values()), 1)
        shown = ", ".join(
            f"{n} {name}" for name, n in sorted(outcomes.items(), key=lambda x: -x[1])
        )
        self._progress.say(f"step {step}/{self._progress.total}: labels looked at: {shown}")
        if self._writing:
            share = 100 * outcomes.get("refined", 0) / rows
            self._scalars(step, {"refinement/refined_percent": share})

    def benchmarks(self, step: int, found: Mapping[str, Mapping[str, float]]) -> None:
        """Benchmarks are scored."""
        for protocol, values in found.items():
            shown = [f"{name} {value:.1f}" for name, value in values.items() if ">" not in name]
            self._progress.say(f"step {step}/{self._progress.total}: {protocol} {', '.join(shown)}")
            if self._writing:
                self._scalars(step, {f"{protocol}/{n}": value for n, value in values.items()})

    def pictures(
        self, step: int, network: nn.Module, dataset: CropDataset, bodies: RunBodies, recipe: Recipe
    ) -> None:
        """Predictions over some validation pictures, evenly chosen."""
        if not self._writing:
            return
        count = min(recipe.train.pictures, len(dataset))
        rows = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
        sheet = prediction_sheet(network, dataset, rows, bodies, recipe)
        if self._writer is not None:
            self._writer.add_image("validation/predictions", sheet, step, dataformats="HWC")
        if self._run is not None:
            image = require("wandb", "wandb").Image(sheet)
            self._run.log({"step": step, "validation/predictions": image})

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._run is not None:
            self._run.log({"step": step, **values})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


@torch.no_grad()
def prediction_sheet(
    network: nn.Module, dataset: CropDataset, rows: list[int], bodies: RunBodies, recipe: Recipe
) -> np.ndarray:
    """(H, W, 3) uint8: a column per row: the crop with predicted (orange) and labelled (green)
    limbs, and the predicted body with its skeleton over the crop.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    keys: list[Key] = [(0, k) for k in rows]
    batch = next(iter(batches(dataset, [keys], 0))).to(device)
    with autocast(device, recipe):
        final = network(batch.image, batch.conditioning).final
    network.train(training)
    angles = representation.decode(final.code)
    points = bodies.own(angles, final.betas, representation.rotations(final.code)).keypoints
    seen = crop_keypoints(recipe.model, points, final.camera, batch.view)
    labelled, predicted = (
        seen_pixels(recipe.model, found).double().cpu().numpy() for found in (batch.keypoints, seen)
    )
    translation, picture_camera = full_camera(recipe.model, final.camera, batch.view)
    seen_camera = seen_intrinsics(recipe.model, picture_camera, batch.view)
    posed = overlays.pose_bodies(bodies.own.skel, angles, final.betas, translation)
    columns = []
    for k, (body, cam_int) in enumerate(zip(posed, seen_camera.double().cpu(), strict=True)):
        picture = seen_picture(batch.image[k])
        limbs = overlays.draw_limbs(picture, labelled[k], overlays.LABELLED)
        limbs = overlays.draw_limbs(limbs, predicted[k], overlays.PREDICTED)
        drawn = overlays.draw_body(picture, body, cam_int.numpy())
        columns.append(np.concatenate((limbs, drawn)))
    return np.concatenate(columns, 1)
