"""What a training run says while it runs: progress, TensorBoard scalars and pictures.

On a terminal a bar with ETA, elsewhere plain lines; only the first process speaks.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from stages.drawing import overlays
from stages.regressor.config import Recipe
from stages.regressor.data.crops import seen_picture
from stages.regressor.data.loader import CropDataset, batches
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

_LINE_SECONDS = 30.0
_SCALAR_STEPS = 10


class Reporter:
    """Progress to `stream` (None: silent) and events to the folder `log` (None: none)."""

    def __init__(self, log: Path | None, stream: TextIO | None = sys.stderr) -> None:
        self._log, self._stream = log, stream
        self._writer: Any = None
        self._bar: Any = None
        self._total = self._first = self._last = 0
        self._began = self._said = 0.0
        self._rows = 0
        self._waited = self._spent = 0.0

    def start(self, step: int, total: int) -> None:
        """The run begins, or goes on, at `step` of `total`."""
        self._total, self._first, self._last = total, step, step
        self._began = self._said = time.monotonic()
        if self._log is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._log), purge_step=step + 1)
        if self._stream is not None and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=step, unit="step", file=self._stream,
                             smoothing=0.05, desc="train")  # fmt: skip

    def stop(self) -> None:
        """The run ends, well or not."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def step(
        self, step: int, terms: LossTerms, rate: float, norm: float, waited: float, rows: int
    ) -> None:
        """An optimiser step is done; waited: seconds it spent waiting for rows."""
        self._rows += rows
        self._waited += waited
        self._last = step
        now = time.monotonic()
        speak = self._bar is None and now - self._said >= _LINE_SECONDS
        write = self._writer is not None and (step % _SCALAR_STEPS == 0 or step == self._total)
        if not (speak or write or self._bar is not None):
            return
        total = float(terms.total.detach())
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {total:.3f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif speak:
            self._say(f"step {step}/{self._total}: loss {total:.4f}, {self._pace(step, now)}")
            self._said = now
        if write:
            self._scalars(step, {
                "loss/total": total, "run/rate": rate, "run/gradient_norm": norm,
                "run/rows_per_second": self._rows / max(now - self._began, 1e-9),
                "run/share_waiting_for_rows": self._waited / max(now - self._began, 1e-9),
                **{f"loss/{name}": float(value) for name, value in terms.terms.items()},
            })  # fmt: skip

    def validation(self, step: int, scores: Scores, better: bool) -> None:
        """A validation is done."""
        self._say(
            f"step {step}/{self._total}: validation MPJPE {scores.mpjpe:.1f} mm, PA-MPJPE "
            f"{scores.pa_mpjpe:.1f} mm, 2D {scores.keypoints_2d:.1f} % of the box"
            + (" (best)" if better else "")
        )
        if self._writer is not None:
            self._scalars(step, {
                "validation/mpjpe_mm": scores.mpjpe,
                "validation/pa_mpjpe_mm": scores.pa_mpjpe,
                "validation/keypoints_2d_percent": scores.keypoints_2d,
            })  # fmt: skip

    def pictures(
        self, step: int, network: nn.Module, dataset: CropDataset, bodies: RunBodies, recipe: Recipe
    ) -> None:
        """Predictions over some validation pictures, evenly chosen."""
        if self._writer is None:
            return
        count = min(recipe.train.pictures, len(dataset))
        rows = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
        sheet = prediction_sheet(network, dataset, rows, bodies, recipe)
        self._writer.add_image("validation/predictions", sheet, step, dataformats="HWC")

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _pace(self, step: int, now: float) -> str:
        spent = max(now - self._began, 1e-9)
        steps = step - self._first
        left = (self._total - step) * spent / max(steps, 1)
        return f"{self._rows / spent:.1f} rows/s, {left / 60:.0f} min left"

    def _say(self, text: str) -> None:
        if self._stream is None:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)


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
    batch = next(iter(batches(dataset, [[(0, k) for k in rows]], 0))).to(device)
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
