"""How much each vertex of the skin counts where the source is another body.

Fingers move in other bodies and not in SKEL: they must not turn the arm. The palm counts in their
place, so that a hand has as much say in where it is as in a fit to SMPL: where fingers alone were
left out, hands lay some 2 cm beside those of their bodies. Faces have expressions, and
correspondences of eyes and mouths are poor. Both are told from SKEL's own geometry, so that no
file of SMPL is needed.
"""

from __future__ import annotations

import numpy as np

from skel_fit.anatomy import JOINTS
from skel_fit.skel import SKEL

FACE_WEIGHT = 0.2
_PALM = (0.25, 0.5)
"""Share of the hand's length from which on a vertex begins to count less, and counts nothing."""
_THUMB = (0.1, 0.15)
"""The same for the distance in front of the hand's middle line."""
_NAMES = [joint.name for joint in JOINTS]


def surface_weights(skel: SKEL) -> np.ndarray:
    """(6890,) float64: 0 for fingers, 0.2 for the face, else 1, but the palms together as much as
    all vertices of their hands; from the rest pose of the model."""
    template = skel.template.detach().cpu().double().numpy()
    weights = skel.skin_weights.detach().cpu().double().numpy()
    joints = skel.joint_regressor.detach().cpu().double().numpy() @ template
    counts = np.ones(len(template))
    for name in ("hand_r", "hand_l"):
        bone = _NAMES.index(name)
        own = weights[:, bone] > 0.5
        place = template - joints[bone]
        reach = np.abs(place[own, 0]).max()
        palm = _falling(np.abs(place[:, 0]) / reach, _PALM)
        thumb = _falling(place[:, 2] / reach, _THUMB)
        counts[own] *= (palm * thumb)[own]
        counts[own] *= own.sum() / counts[own].sum()
    head = _NAMES.index("head")
    own = weights[:, head] > 0.5
    place = template - joints[head]
    front, top = place[own, 2].max(), place[own, 1].max()
    face = own & (place[:, 2] > 0.45 * front) & (place[:, 1] < 0.65 * top)
    counts[face] *= FACE_WEIGHT
    return counts


def _falling(values: np.ndarray, between: tuple[float, float]) -> np.ndarray:
    """1 below, 0 above, linear between."""
    first, last = between
    return np.clip((last - values) / (last - first), 0.0, 1.0)
