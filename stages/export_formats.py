"""A converted dataset as a file for other programs: every format by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import UsageError
from pipeline.exporters.base import Exported, Exporter, ExportOptions
from pipeline.exporters.csv import Csv
from pipeline.exporters.folders import Copy
from pipeline.exporters.hmr_skel import HmrSkelNpz
from pipeline.exporters.opensim import OpenSim
from pipeline.exporters.parquet import Parquet
from pipeline.exporters.smpl_file import SmplFile
from pipeline.exporters.webdataset import Pictures, WebDataset
from pipeline.guard import Inputs
from pipeline.task import conversion_models
from skel_fit.models import BodyModels
from stages.rigs.exporters import BvhExport, GlbExport
from stages.terminal import Progress


def exporters() -> dict[str, Exporter[Any]]:
    """Every format by the name that `--format` has for it."""
    found: tuple[Exporter[Any], ...] = (
        HmrSkelNpz(_SkelKeypoints),
        OpenSim(_people()),
        GlbExport(),
        BvhExport(),
        Parquet(_card),
        WebDataset(_card, _pictures),
        Csv(),
        SmplFile(),
    )
    return {exporter.name: exporter for exporter in found}


def export_dataset(
    directory: Path,
    out: Path,
    *,
    format: str = HmrSkelNpz.name,
    models: Path | None = None,
    **options: Any,
) -> Exported:
    """Write the file; returns what is in it.

    Args:
        directory: output of a complete conversion.
        out: the file or folder to write.
        format: a key of `exporters()`.
        models: folder with body models, for formats that need bodies; by default where the
            conversion had them.
        options: those of the format; None counts as not given.

    Raises:
        UsageError: no such format, or an option that it does not have.
        Incomplete: the conversion is not complete.
        InputError: no dataset, or models missing.
        OutputError: the file cannot be written.
    """
    known = exporters()
    if format not in known:
        raise UsageError(f"--format {format}: expected {', '.join(known)}")
    chosen = _options(known[format], options)
    Inputs(models, options.get("into"), options.get("images")).and_dataset(directory).check(out)
    return known[format].write(open_dataset(directory), out, chosen, models)


def _card(dataset: Dataset, copy: Copy) -> str:
    from stages.inspection.card import card_text

    return card_text(dataset, copy)


def _pictures(dataset: Dataset, images: Path | None) -> Pictures:
    """Where the pictures are, as training finds them."""
    from stages.regressor.data.images import open_images
    from stages.regressor.data.shards import recorded_images

    return open_images(images or recorded_images(dataset))


def _options(exporter: Exporter[Any], given: dict[str, Any]) -> ExportOptions:
    """The options of a format from those of the command line."""
    told = {name: value for name, value in given.items() if value is not None}
    try:
        return exporter.options.model_validate(told)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if name not in exporter.options.model_fields:
            raise UsageError(
                f"--{name.replace('_', '-')}: format {exporter.name} has no such option"
            ) from None
        raise UsageError(
            f"--{name.replace('_', '-')} {problem['input']}: {problem['msg']}".replace(
                "Input should be", "expected"
            )
        ) from None


def _people() -> Callable[[int, int], None]:
    """Progress of formats that write one person after another: called with done and all."""
    shown: list[Progress] = []

    def tell(done: int, people: int) -> None:
        if not shown:
            shown.append(Progress("export", people, "people"))
        shown[0].update()
        if done == people:
            shown.pop().close()

    return tell


class _SkelKeypoints:
    """The 44 keypoints of the fitted SKEL mesh, by the recipe that our regressor is trained with.

    With them a network that predicts the pose exactly has no keypoint error
    (docs/reference/label-formats.md#hmr-skel-training).
    """

    def __init__(self, dataset: Dataset, models: Path | None) -> None:
        noted = dataset.attrs["models_directory"]
        self._models = BodyModels(conversion_models(dataset.plan, noted, models))
        self._bodies: dict[str, Any] = {}

    def __call__(self, poses: NDArray, betas: NDArray, genders: NDArray) -> NDArray:
        import torch

        points = np.empty((len(poses), 44, 3))
        tensors = [torch.as_tensor(np.asarray(v, np.float64)) for v in (poses, betas)]
        with torch.no_grad():
            # Every row through every body: the size of a call stays the same for any mixture.
            for gender in np.unique(genders):
                found = self._body(str(gender))(*tensors).keypoints.numpy()
                points[genders == gender] = found[genders == gender]
        return points

    def _body(self, gender: str) -> Any:
        from skel_fit.keypoint_body import KeypointBody

        if gender not in self._bodies:
            skel = self._models.model("skel", gender)
            self._bodies[gender] = KeypointBody(skel, self._models.keypoint_matrix())
        return self._bodies[gender]
