"""The committed motion as takes: who moves, what they do, at which rate; splits by actor.

Sources and terms: NOTICE 3 and 5. Mapped to SMPL rotations by `tools/default_body`
(docs/reference/default-body.md#takes).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

TAKES = Path(__file__).with_name("demo_takes.npz")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Take:
    """Consecutive frames of one person, SMPL parameters, y up, on a floor at y = 0.

    Attributes:
        name: of the take.
        actor: CMU's subject number, or `backflip` where the source does not say.
        activity: what they do.
        split: train or test. All takes of an actor are in one; nothing is tuned on those of test.
        fps: frames a second.
        poses: (n, 72) axis-angle, radians, float64.
        transl: (n, 3) metres, of the mean neutral body.
        new: not frames of the demo motion.
    """

    name: str
    actor: str
    activity: str
    split: Split
    fps: int
    poses: np.ndarray
    transl: np.ndarray
    new: bool = True

    def frames_at(self, fps: float) -> np.ndarray:
        """Numbers of the frames nearest to another, lower rate."""
        times = np.arange(0.0, len(self.poses), max(self.fps / fps, 1.0))
        return np.unique(np.rint(times).astype(int).clip(max=len(self.poses) - 1))

    def every(self, fps: float) -> Take:
        """The frames nearest to another, lower rate."""
        chosen = self.frames_at(fps)
        rate = min(self.fps, round(fps))
        return Take(
            self.name, self.actor, self.activity, self.split, rate,
            self.poses[chosen], self.transl[chosen], self.new,
        )  # fmt: skip


# name -> actor, activity, split, new. The hop is frames 150 to 744 of the demo motion's own take
# (01_01, 120 a second), by way of another skeleton.
_KNOWN: dict[str, tuple[str, str, Split, bool]] = {
    "dance": ("55", "dance", "train", True),
    "walk": ("07", "walk", "train", True),
    "hop": ("01", "hop", "train", False),
    "kick": ("11", "kick", "test", True),
    "run": ("09", "run", "test", True),
    "cartwheel": ("49", "cartwheel", "test", True),
    "backflip": ("backflip", "backflip", "test", True),
}


@cache
def takes() -> tuple[Take, ...]:
    """The seven takes beside the demo motion, at their own rates."""
    found = []
    with np.load(TAKES, allow_pickle=False) as file:
        step = float(file["step"])
        for name, (actor, activity, split, new) in _KNOWN.items():
            poses = file[f"{name}/poses"].astype(np.float64) * step
            transl = file[f"{name}/transl"].astype(np.float64)
            fps = int(file[f"{name}/fps"])
            found.append(Take(name, actor, activity, split, fps, poses, transl, new))
    return tuple(found)


def take(name: str) -> Take:
    """One of `takes()`. Raises KeyError."""
    return {t.name: t for t in takes()}[name]
