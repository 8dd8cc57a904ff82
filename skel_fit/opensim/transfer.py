"""Carrying a motion from the bodies of one model to the coordinates of another.

Bodies of the same name have the same axes: SKEL's bones follow the gait models of the OpenSim
family. Where the other model has one `torso` for lumbar body, thorax, scapulae and, mostly, head,
it follows our thorax, both taken as parallel at rest. For every body with a counterpart the joints
between it and the nearest ancestor with a counterpart are solved for the relative rotation: exactly
where there are three free angles, else as near as they come, and what is left is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import JOINT_NAMES
from skel_fit.opensim.angles import continuous, decompose, within
from skel_fit.opensim.osim_reader import GROUND, ForeignJoint, ForeignModel
from skel_fit.opensim.subject import GROUNDS, Subject

#: Bodies of other models that follow a body of ours with another name.
TORSO, THORAX, HEAD = "torso", "thorax", "head"

Frames = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""body -> positions (n, 3), axes (n, 3, 3) in ground."""

_ITERATIONS = 30
_GRID = {1: 145, 2: 37, 3: 19}
"""Starting points an angle, for so many angles."""
_NO_RANGE = 100.0
"""Radians; a range wider than this is none."""
_CONVERGED = 1e-10
_BLOCK = 512
"""Rows solved at once; keeps the table of starts small."""


@dataclass(frozen=True)
class Carried:
    """A motion on another model.

    Attributes:
        values: coordinate -> (n,) radians or metres, of all coordinates of the model.
        residuals: body -> (n,) degrees between its wanted and its reached relative rotation.
        distance: (n,) metres between the wanted and the reached place of the root body.
        without_counterpart: bodies of the model that nothing moves, by name.
        held: coordinates that stay at their default: locked, or without counterpart.
    """

    values: Mapping[str, NDArray[np.float64]]
    residuals: Mapping[str, NDArray[np.float64]]
    distance: NDArray[np.float64]
    without_counterpart: tuple[str, ...]
    held: tuple[str, ...]


def alignments(subject: Subject) -> dict[str, NDArray[np.float64]]:
    """From the axes of our thorax and head to those of a `torso` model: body -> (3, 3).

    At rest the other model's torso and head are upright: x forward, y up, z right.
    """
    upright = GROUNDS["y-up"].T
    bodies = (THORAX, HEAD)
    return {b: subject.orientations[JOINT_NAMES.index(b)].T @ upright for b in bodies}


def named_for(model_bodies: Sequence[str], ours: Frames, subject: Subject) -> Frames:
    """Frames of our bodies under the names, and with the axes, of another model's bodies."""
    frames = dict(ours)
    if TORSO in model_bodies and THORAX not in model_bodies:
        for body, turn in alignments(subject).items():
            position, axes = frames[body]
            frames[body] = position, axes @ turn
        frames[TORSO] = frames.pop(THORAX)
    return {name: frames[name] for name in model_bodies if name in frames}


def named_for_skel(theirs: Frames, subject: Subject) -> Frames:
    """Inverse of `named_for`: frames of another model's bodies as those of ours."""
    frames = dict(theirs)
    if TORSO in frames and THORAX not in frames:
        frames[THORAX] = frames.pop(TORSO)
        for body, turn in alignments(subject).items():
            if body in frames:
                position, axes = frames[body]
                frames[body] = position, axes @ turn.T
    return {name: frame for name, frame in frames.items() if name in JOINT_NAMES}


def carry(
    frames: Frames, model: ForeignModel, *, sequence: bool = True, still: Sequence[str] = ()
) -> Carried:
    """Coordinates of `model` at which its bodies are turned as in `frames`.

    frames: wanted axes and places of some of its bodies, by its names; sequence: rows follow one
    another in time, angles stay on one branch; still: bodies without counterpart whose joints stay
    at their default also where they could help.

    Raises:
        ValueError: no body of the model has a counterpart.
    """
    if not any(body in frames for body in model.bodies):
        raise ValueError(
            f"model {model.name!r}: no body has a counterpart; its bodies are "
            f"{', '.join(model.bodies[:8])} ..."
        )
    count = len(next(iter(frames.values()))[0])
    values: dict[str, NDArray[np.float64]] = {}
    residuals: dict[str, NDArray[np.float64]] = {}
    dependent = {coupler.dependent for coupler in model.couplers}
    free = {name for name, c in model.coordinates.items() if not c.locked} - dependent
    identity = np.broadcast_to(np.eye(3), (count, 3, 3))
    for body in model.bodies:
        if body not in frames:
            continue
        chain = _chain(model, body, frames)
        start = chain[0].parent
        above = identity if start == GROUND else frames[start][1]
        wanted = above.transpose(0, 2, 1) @ frames[body][1]
        moving = [joint for joint in chain if joint is chain[-1] or joint.child not in still]
        names = [
            c.name
            for joint in moving
            for c in joint.coordinates
            if c.name in free and _turns(joint, c.name)
        ]
        found = _solve(model, chain, names, wanted, sequence)
        values |= {name: found[:, k] for k, name in enumerate(names)}
        reached = _relative(model, chain, names, found)
        residuals[body] = _angle_between(reached, wanted)
    distance = _place_root(model, frames, values, free, count)
    full = model.completed(values, count)
    return Carried(
        values=full,
        residuals=residuals,
        distance=distance,
        without_counterpart=tuple(b for b in model.bodies if b not in frames),
        held=tuple(
            name for name in model.coordinates if name not in values and name not in dependent
        ),
    )


def _chain(model: ForeignModel, body: str, frames: Frames) -> list[ForeignJoint]:
    """Joints from the nearest ancestor with a wanted frame (or the ground) to `body`."""
    chain = [model.joint_of(body)]
    while (above := chain[0].parent) not in frames and above != GROUND:
        chain.insert(0, model.joint_of(above))
    return chain


def _turns(joint: ForeignJoint, name: str) -> bool:
    return any(name in axis.coordinates for axis in joint.rotations)


def _relative(
    model: ForeignModel, chain: Sequence[ForeignJoint], names: Sequence[str], q: NDArray
) -> NDArray[np.float64]:
    """Rotation across a chain at q (n, len(names)), other coordinates by coupler or default."""
    values: dict[str, NDArray] = {name: q[:, k] for k, name in enumerate(names)}
    values = model.completed(values, len(q)) if model.couplers else _with_defaults(chain, values, q)
    result = chain[0].rotation(values)
    for joint in chain[1:]:
        result = result @ joint.rotation(values)
    return result


def _with_defaults(
    chain: Sequence[ForeignJoint], values: dict[str, NDArray], q: NDArray
) -> dict[str, NDArray]:
    """Values of all coordinates of a chain: given or default. Never empty."""
    defaults = {c.name: np.full(len(q), c.default) for joint in chain for c in joint.coordinates}
    return {"": np.zeros(len(q)), **defaults, **values}


def _solve(
    model: ForeignModel,
    chain: Sequence[ForeignJoint],
    names: Sequence[str],
    wanted: NDArray,
    sequence: bool,
) -> NDArray[np.float64]:
    """Values (n, len(names)) at which the chain turns as nearly as possible like `wanted`."""
    if not names:
        return np.zeros((len(wanted), 0))
    limits = [(model.coordinates[name].low, model.coordinates[name].high) for name in names]
    low, high = np.array(limits).T
    # Files write ranges such as -99999 for none.
    low, high = np.where(low < -_NO_RANGE, -np.inf, low), np.where(high > _NO_RANGE, np.inf, high)
    exact = _closed_form(chain, names, wanted, low, high, sequence)
    if exact is not None:
        return exact
    parts = [
        _nearest(model, chain, names, wanted[k : k + _BLOCK], low, high)
        for k in range(0, len(wanted), _BLOCK)
    ]
    found = np.concatenate(parts)
    return np.unwrap(found, axis=0) if sequence else found


def _closed_form(
    chain: Sequence[ForeignJoint],
    names: Sequence[str],
    wanted: NDArray,
    low: NDArray,
    high: NDArray,
    sequence: bool,
) -> NDArray[np.float64] | None:
    """Three angles about three orthogonal axes of a single joint; None for any other chain."""
    joint = chain[0]
    used = [axis.coordinates for axis in joint.rotations]
    if len(chain) > 1 or len(names) != 3 or len(used) != 3 or any(len(u) != 1 for u in used):
        return None
    order = [u[0] for u in used]
    lines = [axis.linear for axis in joint.rotations]
    axes = np.stack([axis.direction for axis in joint.rotations])
    if sorted(order) != sorted(names) or not np.allclose(axes @ axes.T, np.eye(3), atol=1e-6):
        return None
    if any(line is None for line in lines):
        return None
    slope, offset = np.array([line for line in lines if line is not None]).T
    axes = np.linalg.svd(axes)[0] @ np.linalg.svd(axes)[2]
    angles = decompose(joint.parent_frame[1].T @ wanted @ joint.child_frame[1], axes)
    at = [list(names).index(name) for name in order]
    ends = np.stack((low[at], high[at])) * slope + offset
    if sequence:
        angles = within(continuous(angles), ends.min(0), ends.max(0))
    result = np.empty_like(angles)
    result[:, at] = (angles - offset) / slope
    return result


def _nearest(
    model: ForeignModel,
    chain: Sequence[ForeignJoint],
    names: Sequence[str],
    wanted: NDArray,
    low: NDArray,
    high: NDArray,
) -> NDArray[np.float64]:
    """Least squares over the entries of the rotation: best of a grid, then Levenberg-Marquardt."""
    default = np.array([model.coordinates[name].default for name in names])
    q = np.tile(default, (len(wanted), 1))
    if points := _GRID.get(len(names)):
        spans = [
            np.linspace(max(a, -np.pi), min(b, np.pi), points)
            for a, b in zip(low, high, strict=True)
        ]
        grid = np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, len(names))
        turned = _relative(model, chain, names, grid).reshape(-1, 9)
        q = grid[(wanted.reshape(-1, 9) @ turned.T).argmax(1)]
    damping = np.full(len(wanted), 1e-6)
    error = _relative(model, chain, names, q) - wanted
    cost = np.square(error).sum((1, 2))
    for _ in range(_ITERATIONS):
        jacobian = _jacobian(model, chain, names, q)
        normal = np.einsum("nek,nel->nkl", jacobian, jacobian)
        gradient = np.einsum("nek,ne->nk", jacobian, error.reshape(-1, 9))
        normal = normal + damping[:, None, None] * np.eye(len(names))
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        tried = q - step
        new_error = _relative(model, chain, names, tried) - wanted
        new_cost = np.square(new_error).sum((1, 2))
        better = new_cost <= cost
        q = np.where(better[:, None], tried, q)
        error = np.where(better[:, None, None], new_error, error)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 20), 1e-12, 1e6)
        if np.abs(step).max() < _CONVERGED:
            break
    return q


def _jacobian(
    model: ForeignModel, chain: Sequence[ForeignJoint], names: Sequence[str], q: NDArray
) -> NDArray[np.float64]:
    """Central differences: (n, 9, len(names))."""
    step = 1e-6
    columns = []
    for k in range(len(names)):
        shift = np.zeros(len(names))
        shift[k] = step
        difference = _relative(model, chain, names, q + shift) - _relative(
            model, chain, names, q - shift
        )
        columns.append(difference.reshape(-1, 9) / (2 * step))
    return np.stack(columns, -1)


def _angle_between(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Degrees between rotations (n, 3, 3): accurate for small angles, too."""
    chord = np.sqrt(np.square(first - second).sum((1, 2)) / 8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def _place_root(
    model: ForeignModel,
    frames: Frames,
    values: dict[str, NDArray],
    free: set[str],
    count: int,
) -> NDArray[np.float64]:
    """Set the coordinates that move the first body with a counterpart; (n,) metres left."""
    body = next(body for body in model.bodies if body in frames)
    chain = _chain(model, body, frames)
    names = [
        c.name
        for joint in chain
        for c in joint.coordinates
        if c.name in free and not _turns(joint, c.name)
    ]

    def place(moves: Mapping[str, NDArray]) -> NDArray:
        return model.body_frames({**values, **moves}, count)[body][0]

    still = {name: np.zeros(count) for name in names}
    origin = place(still)
    if names:
        columns = [place({**still, name: np.ones(count)}) - origin for name in names]
        matrix = np.stack(columns, -1)
        moved = (np.linalg.pinv(matrix) @ (frames[body][0] - origin)[..., None])[..., 0]
        values |= {name: moved[:, k] for k, name in enumerate(names)}
    return np.linalg.norm(place({}) - frames[body][0], axis=1)
