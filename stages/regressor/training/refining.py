"""Labels refined while a network trains: its own estimate, fitted to the keypoints of the picture,
becomes the label where it is believed (docs/reference/checkpoints.md#refinement).

The fit and the test are those of `hmr-skel refine`; here the search starts from the network's
estimate instead of the stored label. Nothing is random but the choice of rows, a function of (seed,
step), so a resumed run refines what the uninterrupted one would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skel_fit.body_points import BodyPoints, label_points
from skel_fit.keypoint_fit import Cameras, Start
from skel_fit.models import BodyModels
from skel_fit.pose_prior import PosePrior, pose_prior
from skel_fit.refinement import OUTCOMES, RefineConfig, refine_labels
from stages.regressor.config import Recipe
from stages.regressor.data.loader import CropDataset, Key, batches
from stages.regressor.data.rows import TrainingRows
from stages.regressor.network import representation
from stages.regressor.network.view import full_camera
from stages.regressor.training.bodies import RunBodies, shape_map
from stages.regressor.training.distributed import Process
from stages.regressor.training.validation import autocast

_BATCH = 64
_CHOICE = 0x5E1F  # apart from the seeds of order and augmentation
_WIDTHS = {"poses": 46, "betas": 10, "trans": 3}


@dataclass(frozen=True)
class RefinedLabels:
    """Labels (M, ...) that replaced those of the training rows `rows` (M,), rising."""

    rows: np.ndarray
    poses: np.ndarray
    betas: np.ndarray
    trans: np.ndarray

    @classmethod
    def none(cls) -> RefinedLabels:
        """Nothing refined yet."""
        parts = (np.zeros((0, width), np.float32) for width in _WIDTHS.values())
        return cls(np.zeros(0, np.int64), *parts)

    @classmethod
    def of(cls, content: dict[str, Tensor]) -> RefinedLabels:
        """From a checkpoint."""
        return cls(*(content[name].numpy() for name in ("rows", *_WIDTHS)))

    def content(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("rows", *_WIDTHS)}

    def updated(self, later: RefinedLabels) -> RefinedLabels:
        """These with later ones on top."""
        kept = ~np.isin(self.rows, later.rows)
        rows = np.concatenate((self.rows[kept], later.rows))
        order = np.argsort(rows)
        columns = (
            np.concatenate((getattr(self, n)[kept], getattr(later, n)))[order] for n in _WIDTHS
        )
        return RefinedLabels(rows[order], *columns)

    def applied(self, rows: TrainingRows) -> TrainingRows:
        """Training rows with these labels; a label that was believed counts fully."""
        columns: dict[str, Any] = {name: getattr(rows, name).copy() for name in _WIDTHS}
        for name, values in columns.items():
            values[self.rows] = getattr(self, name)
        weight = rows.weight.copy()
        weight[self.rows] = 1.0
        return replace(rows, **columns, weight=weight)


class Refiner:
    """Refines the labels of a training set. dataset: as it was converted, without augmentation."""

    def __init__(
        self, recipe: Recipe, dataset: CropDataset, bodies: RunBodies, models: Path,
        process: Process,
    ) -> None:  # fmt: skip
        self.recipe, self.dataset, self.bodies, self.process = recipe, dataset, bodies, process
        config = recipe.refinement
        self._config = RefineConfig(gain=config.gain, acceptance=config.acceptance)
        self._prior: PosePrior = pose_prior(config.prior)
        self._held = BodyModels(models)
        self._points: BodyPoints = label_points(self._held.keypoint_matrix())

    def refined(
        self, network: nn.Module, labels: TrainingRows, step: int
    ) -> tuple[RefinedLabels, Counter[str]]:
        """Labels that are taken, and how many became what; the rows are shared among the processes.

        network: in evaluation mode; labels: those of now.
        """
        chosen = self._chosen(step)
        mine = np.arange(self.process.rank, len(chosen), self.process.world)
        width = sum(_WIDTHS.values())
        # columns: outcome + 1, poses, betas, trans; a row of zeros is another process's
        table = np.zeros((len(chosen), 1 + width))
        for place, start in self._estimates(network, chosen[mine]):
            rows = chosen[mine][place]
            table[mine[place]] = self._of(start, labels.take(rows))
        table = self.process.sum(torch.from_numpy(table)).cpu().numpy()
        names = [OUTCOMES[k] for k in table[:, 0].astype(int) - 1]
        taken = table[:, 0] == 1 + OUTCOMES.index("refined")
        parts = np.split(
            table[taken, 1:].astype(np.float32), np.cumsum(list(_WIDTHS.values()))[:-1], 1
        )
        return RefinedLabels(chosen[taken], *parts), Counter(names)

    def _chosen(self, step: int) -> np.ndarray:
        """Which rows a refinement after `step` looks at, rising."""
        count, wanted = len(self.dataset), self.recipe.refinement.rows
        if not wanted or wanted >= count:
            return np.arange(count)
        random = np.random.default_rng((self.recipe.train.seed, _CHOICE, step))
        return np.sort(random.permutation(count)[:wanted])

    @torch.no_grad()
    def _estimates(
        self, network: nn.Module, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Start]]:
        """What the network says of rows: their places in `rows` and bodies of its own gender."""
        device = self.process.device
        keys: list[list[Key]] = [
            [(0, int(k)) for k in rows[start : start + _BATCH]]
            for start in range(0, len(rows), _BATCH)
        ]
        done = 0
        for batch in batches(self.dataset, keys, self.recipe.train.workers):
            batch = batch.to(device)
            with autocast(device, self.recipe):
                final = network(batch.image, batch.conditioning).final
            trans, own = full_camera(self.recipe.model, final.camera, batch.view)
            trans = _seen_alike(trans.double(), own.double(), batch.view.cam_int.double())
            values = (representation.decode(final.code), final.betas, trans)
            start = Start(*(x.double().cpu().numpy() for x in values))
            yield np.arange(done, done + len(batch.row)), start
            done += len(batch.row)

    def _of(self, start: Start, labels: TrainingRows) -> np.ndarray:
        """Rows of the table of `refined`."""
        table = np.zeros((len(labels), 1 + sum(_WIDTHS.values())))
        for female in np.unique(labels.female).tolist():
            index = np.flatnonzero(labels.female == female)
            skel = self._held.model("skel", "female" if female else "male")
            part = labels.take(index)
            stored = Start(*(x.astype(np.float64) for x in (part.poses, part.betas, part.trans)))
            begin = Start(start.poses[index], start.betas[index], start.trans[index])
            if female != (self.bodies.gender == "female"):
                begin = replace(begin, betas=self._converted(begin.betas, skel))
            seen = part.keypoints.astype(np.float64)
            found = refine_labels(
                skel, self._points, stored, seen[..., :2], seen[..., 2].clip(0.0, 1.0),
                Cameras(part.cam_int.astype(np.float64)[:, None]), self._config, self._prior,
                start=begin,
            )  # fmt: skip
            outcome = np.array([1 + OUTCOMES.index(name) for name in found.outcome])
            table[index] = np.column_stack((outcome, found.poses, found.betas, found.trans))
        return table

    def _converted(self, betas: np.ndarray, skel: Any) -> np.ndarray:
        """Betas of the network's SKEL as those of the label's, rest skins as near as can be."""
        matrix, offset = (
            x.numpy() for x in shape_map(self._held.model("skel", self.bodies.gender), skel)
        )
        return betas @ matrix.T + offset


def _seen_alike(trans: Tensor, own: Tensor, cam_int: Tensor) -> Tensor:
    """(B, 3) where a body is under the label's camera as large and at the same place of the picture
    as at `trans` under the network's `own`: HSMR's looks through another focal length."""
    pixels = (own @ (trans / trans[:, 2:])[..., None])[:, :2, 0]
    depth = trans[:, 2] * cam_int[:, 0, 0] / own[:, 0, 0]
    aside = (pixels - cam_int[:, :2, 2]) / cam_int[:, (0, 1), (0, 1)]
    return torch.cat((aside * depth[:, None], depth[:, None]), -1)
