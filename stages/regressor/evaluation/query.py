"""What a predictor is asked, and what it has to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from stages.regressor.data.crops import CropRule
from stages.regressor.data.images import ImageSource

Gender = Literal["male", "female", "neutral", "column"]
Body = Literal["skel", "smpl"]


@dataclass(frozen=True)
class Query:
    """Rows that a predictor is asked for. Pixels are those of the full image.

    Attributes:
        rows: (B,) int64 rows of the label file or dataset.
        names: image names; images: where they are read by name (`images.ImageSource`), None if
            the predictor uses none.
        center, box: (B, 2) box centre and annotated (w, h), before any growth.
        cam_int: (B, 3, 3) intrinsics of the labels, NaN where there are none. A predictor that
            brings its own focal length ignores them, as the published ones do
            (docs/reference/evaluation.md#focal).
        crop: the protocol's crop rule.
    """

    rows: np.ndarray
    names: tuple[str, ...]
    images: ImageSource | None
    center: np.ndarray
    box: np.ndarray
    cam_int: np.ndarray
    crop: CropRule

    def __len__(self) -> int:
        return len(self.rows)


class Prediction(NamedTuple):
    """poses: radians, (B, 46) of SKEL, or (B, 72) of SMPL, axis-angle; betas (B, 10); translation
    (B, 3) metres, added to the posed body, in the frame of the camera cam_int (B, 3, 3), pixels of
    the full image; its principal point may be NaN where nothing is projected.
    """

    poses: Tensor
    betas: Tensor
    translation: Tensor
    cam_int: Tensor


class Predictor(Protocol):
    """Anything that predicts SKEL or SMPL bodies.

    name: column heading; uses_images: rows without an image are then skipped (and counted); body,
    gender: the model that its parameters mean, gender `column`: that of the row's label of this
    body; provenance: plain values for the result file.
    """

    name: str
    uses_images: bool
    body: Body
    gender: Gender

    def provenance(self) -> Mapping[str, Any]: ...

    def __call__(self, query: Query) -> Prediction: ...
