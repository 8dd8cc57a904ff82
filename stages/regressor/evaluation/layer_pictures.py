"""What each layer of a decoder looks at and estimates, as pictures of a person's crop."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from pipeline.errors import InputError
from skel_fit.skel import SKEL
from stages.drawing.overlays import Posed, draw_body, pose_bodies
from stages.drawing.pictures import side_by_side
from stages.regressor.data.crops import seen_picture
from stages.regressor.evaluation.trained import Person, TrainedNetwork
from stages.regressor.network.attention import attention_maps
from stages.regressor.network.heads import Estimates
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.view import View, seen_intrinsics
from stages.regressor.network.vit import token_grid

_SHARE = 0.5  # of the map in the blended picture
_FRAME_MS = 500


class PersonLayers:
    """One person's crop with the estimates and attention of every layer.

    Raises:
        InputError: the network has one estimate and no decoder.
    """

    def __init__(self, trained: TrainedNetwork, skel: SKEL, person: Person) -> None:
        image, view = trained.seen([person], trained.rule())
        estimates, weights = attention_maps(trained.network, image, view.conditioning)
        if not len(weights):
            raise InputError(f"{trained.path}: its network has no decoder to look into")
        self.crop = seen_picture(image[0])
        #: (T, Q, rows, columns): mean over heads; each map sums to 1.
        self.maps = weights[:, 0].mean(1).unflatten(-1, token_grid(*image.shape[-2:])).cpu().numpy()
        self._bodies = _bodies(trained, skel, estimates, view)

    def attention_picture(self) -> np.ndarray:
        """A row a token (pose, betas, camera), a column a layer, (Q H, T W, 3) uint8."""
        rows = [
            side_by_side([blended(self.crop, layer[token]) for layer in self.maps])
            for token in range(self.maps.shape[1])
        ]
        return np.concatenate(rows)

    def frames(self) -> list[np.ndarray]:
        """The body of each estimate over the crop: coarse, then layer by layer."""
        return [draw_body(self.crop, body, cam_int) for body, cam_int in self._bodies]


def _bodies(
    trained: TrainedNetwork, skel: SKEL, estimates: Estimates, view: View
) -> list[tuple[Posed, np.ndarray]]:
    """Posed body and intrinsics of the crop, of each estimate."""
    steps = [] if estimates.coarse is None else [estimates.coarse]
    count = len(estimates.layers.code)
    steps += [Parameters(*(part[k] for part in estimates.layers)) for k in range(count)]
    result = []
    for step in steps:
        found = trained.prediction(step, view)
        cam_int = seen_intrinsics(trained.recipe.model, found.cam_int, view)[0]
        (body,) = pose_bodies(skel, *(_cpu(x) for x in found[:3]))
        result.append((body, cam_int.double().cpu().numpy()))
    return result


def _cpu(values: Tensor) -> Tensor:
    return values.detach().cpu()


def blended(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A map (rows, columns) over a picture: bilinear, from its least to its largest value."""
    height, width = picture.shape[:2]
    large = cv2.resize(weights.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    spread = max(float(large.max() - large.min()), 1e-12)
    grey = ((large - large.min()) / spread * 255).round().astype(np.uint8)
    colors = cv2.applyColorMap(grey, cv2.COLORMAP_JET)[..., ::-1]
    return (_SHARE * colors + (1 - _SHARE) * picture).round().astype(np.uint8)


def gif_bytes(frames: Sequence[np.ndarray]) -> bytes:
    """Pictures of one size as an endless animation."""
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGRA) for frame in frames]
    animation.durations = [_FRAME_MS] * len(frames)
    done, data = cv2.imencodeanimation(".gif", animation)
    assert done
    return np.asarray(data, np.uint8).tobytes()
