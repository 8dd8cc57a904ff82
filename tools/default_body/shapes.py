"""Random adults in T pose and the ten shape directions learned from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skel_fit.anatomy import SMPL_MIRROR

from .makehuman import BaseMesh, Rig, Targets
from .smpl_side import PELVIS, smpl_joints
from .topology import FLIP, Topology
from .tpose import t_pose

N_SAMPLES = 250
N_DIRECTIONS = 10
# Standard deviation of each local axis: 2-3 cm of leg, arm and trunk length, some of girth.
LOCAL_DEVIATION = {
    "torso length": 0.25,
    "torso width": 0.4,
    "v shape": 0.5,
    "waist": 0.5,
    "hip width": 0.4,
    "leg length": 0.2,
    "arm length": 0.2,
}
# MakeHuman's gender axis: 0 male, 1 female.
SEXES: dict[str, float | None] = {"neutral": None, "male": 0.0, "female": 1.0}


def draw_phenotype(rng: np.random.Generator, gender: float | None) -> dict[str, float]:
    """One random adult; `gender` None: anywhere between male and female.

    The height axis is narrow on purpose: its ends are bodies of 1.2 m and 2.4 m.
    """

    def normal(mean: float, deviation: float, low: float = 0.0, high: float = 1.0) -> float:
        return float(np.clip(rng.normal(mean, deviation), low, high))

    out = {
        "gender": float(rng.uniform(0, 1)) if gender is None else gender,
        "age": float(rng.beta(1.2, 2.0)),
        "muscle": normal(0.5, 0.22),
        "weight": normal(0.55, 0.27),
        "height": normal(0.41, 0.04, 0.27, 0.55),
        "proportions": normal(0.5, 0.2),
        "cupsize": normal(0.45, 0.2),
        "firmness": normal(0.5, 0.2),
    }
    out |= {axis: normal(0.0, size, -1.0) for axis, size in LOCAL_DEVIATION.items()}
    ancestry = rng.dirichlet([1, 1, 1])
    return out | dict(zip(("african", "asian", "caucasian"), map(float, ancestry), strict=True))


@dataclass(frozen=True)
class Samples:
    """Adults of one sex: vertices (S, 6890, 3), rig heads and tails (S, 163, 3), SMPL joints
    (S, 24, 3); symmetric, pelvis joint at `PELVIS`, metres."""

    vertices: np.ndarray
    heads: np.ndarray
    tails: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class EyeSockets:
    """The bag behind the eyelids: its vertices per side, and the eyeball's helper vertices.

    Pulling the bag's floor onto the front of the eyeball gives the body eyes instead of holes.
    """

    socket: tuple[np.ndarray, np.ndarray]
    eyeball: tuple[np.ndarray, np.ndarray]

    @classmethod
    def find(cls, base: BaseMesh, topology: Topology) -> EyeSockets:
        sockets, balls = [], []
        kept = base.vertices[topology.keep]
        for side in "lr":
            faces = base.groups[f"helper-{side}-eye"]
            ball = np.unique(np.concatenate([np.array(face) for face in faces]))
            centre, radius = _sphere(base.vertices[ball])
            near = np.linalg.norm(kept - centre, axis=1) < 1.35 * radius
            sockets.append(np.flatnonzero(near & topology.internal))
            balls.append(ball)
        return cls((sockets[0], sockets[1]), (balls[0], balls[1]))

    def fill(self, vertices: np.ndarray, shaped: np.ndarray) -> None:
        """Move the socket vertices of `vertices` (6890, 3) in place.

        shaped: (19158, 3) the mesh before T-posing, whose head T-posing leaves where it is.
        """
        for socket, ball in zip(self.socket, self.eyeball, strict=True):
            centre, radius = _sphere(shaped[ball])
            across = vertices[socket, :2] - centre[:2]
            # 0.97: the eyeball must stay behind the lids.
            depth = np.sqrt(np.maximum((0.97 * radius) ** 2 - (across**2).sum(1), 0))
            vertices[socket, 2] = np.maximum(vertices[socket, 2], centre[2] + depth)


def _sphere(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of the bounding box of an eyeball mesh."""
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, float((high - low).max() / 2)


def sample_bodies(
    rig: Rig, base: BaseMesh, targets: Targets, topology: Topology, gender: float | None
) -> Samples:
    """`N_SAMPLES` adults; the same random numbers for every sex."""
    rng = np.random.default_rng(0)
    eyes = EyeSockets.find(base, topology)
    vertices, heads, tails, joints = [], [], [], []
    for _ in range(N_SAMPLES):
        shaped = targets.shape(base.vertices, draw_phenotype(rng, gender))
        posed = t_pose(rig, shaped, topology.keep)
        skin = posed.vertices
        eyes.fill(skin, shaped)
        skin = (skin + skin[topology.mirror] * FLIP) / 2
        head = (posed.heads + posed.heads[rig.mirror] * FLIP) / 2
        tail = (posed.tails + posed.tails[rig.mirror] * FLIP) / 2
        joint = smpl_joints(rig, head)
        joint = (joint + joint[SMPL_MIRROR] * FLIP) / 2
        shift = PELVIS - joint[0]
        vertices.append(skin + shift)
        heads.append(head + shift)
        tails.append(tail + shift)
        joints.append(joint + shift)
    return Samples(*(np.array(x) for x in (vertices, heads, tails, joints)))


def principal_shapes(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (6890, 3) and ten directions (6890, 3, 10) scaled so that betas are N(0, 1).

    Signs: beta 0 makes taller; each other one is positive where it moves the left half most.
    """
    mean = vertices.mean(0)
    flat = (vertices - mean).reshape(len(vertices), -1)
    _, singular, components = np.linalg.svd(flat, full_matrices=False)
    scale = singular[:N_DIRECTIONS] / np.sqrt(len(vertices) - 1)
    directions = (components[:N_DIRECTIONS] * scale[:, None]).reshape(N_DIRECTIONS, -1, 3)
    left = directions[:, mean[:, 0] >= 0].reshape(N_DIRECTIONS, -1)
    sign = np.sign(np.take_along_axis(left, np.abs(left).argmax(1)[:, None], 1))[:, 0]
    head, foot = mean[:, 1].argmax(), mean[:, 1].argmin()
    sign[0] = np.sign(directions[0, head, 1] - directions[0, foot, 1])
    return mean, (directions * sign[:, None, None]).transpose(1, 2, 0)
