"""Reading .osim files of any origin: bodies, joints, coordinates, couplers, and where they go.

Both layouts are read: joints inside bodies (OpenSim 3) and joints with their own frames (4).
Muscles, geometry and everything else is ignored. A file is data from anywhere: document types and
entities are refused, and so is any joint or function that would have to be guessed.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skel_fit.opensim.angles import compose
from skel_fit.opensim.functions import Function, find_function, function
from skel_fit.opensim.osim_writer import NOTES_MARK

GROUND = "ground"
_MOST_CHARACTERS = 200_000_000
_X, _Y, _Z = np.eye(3)


@dataclass(frozen=True)
class Coordinate:
    """name; default and range in radians or metres; locked: the file holds it at its default."""

    name: str
    default: float
    low: float
    high: float
    locked: bool


@dataclass(frozen=True)
class Axis:
    """One of a joint's six axes: direction, the coordinates it depends on, and how."""

    direction: NDArray[np.float64]
    coordinates: tuple[str, ...]
    function: Function
    linear: tuple[float, float] | None  # slope and offset, where it is a line in one coordinate


@dataclass(frozen=True)
class ForeignJoint:
    """A joint: frames on both bodies as (translation, rotation), three rotations, translations."""

    name: str
    kind: str
    parent: str
    child: str
    parent_frame: tuple[NDArray[np.float64], NDArray[np.float64]]
    child_frame: tuple[NDArray[np.float64], NDArray[np.float64]]
    coordinates: tuple[Coordinate, ...]
    rotations: tuple[Axis, ...]
    translations: tuple[Axis, ...]

    def rotation(self, values: Mapping[str, NDArray]) -> NDArray[np.float64]:
        """B_parent^T B_child at coordinate values (n,) each: (n, 3, 3)."""
        count = len(next(iter(values.values())))
        angles = np.stack([_value(axis, values, count) for axis in self.rotations], 1)
        axes = np.stack([axis.direction for axis in self.rotations])
        return self.parent_frame[1] @ compose(angles, axes) @ self.child_frame[1].T

    def position(self, values: Mapping[str, NDArray]) -> NDArray[np.float64]:
        """Origin of the child body in the parent body: (n, 3)."""
        count = len(next(iter(values.values())))
        moved = np.zeros((count, 3))
        for axis in self.translations:
            moved = moved + _value(axis, values, count)[:, None] * axis.direction
        at_joint = moved @ self.parent_frame[1].T + self.parent_frame[0]
        return at_joint - self.rotation(values) @ self.child_frame[0]


def _value(axis: Axis, values: Mapping[str, NDArray], count: int) -> NDArray:
    if not axis.coordinates:
        return axis.function(np.zeros((count, 1)))
    return axis.function(np.stack([values[name] for name in axis.coordinates], 1))


@dataclass(frozen=True)
class Coupler:
    """dependent = scale * function(independent)."""

    dependent: str
    independent: tuple[str, ...]
    function: Function
    scale: float


@dataclass(frozen=True)
class ForeignModel:
    """What a motion means: the joints of a file in an order in which parents come first.

    Attributes:
        name: of the model. joints: parents first. couplers: enforced ones.
        notes: what our own export wrote about itself, else None.
    """

    name: str
    joints: tuple[ForeignJoint, ...]
    couplers: tuple[Coupler, ...]
    notes: Mapping[str, Any] | None
    coordinates: Mapping[str, Coordinate] = field(init=False)

    def __post_init__(self) -> None:
        found = {c.name: c for joint in self.joints for c in joint.coordinates}
        object.__setattr__(self, "coordinates", found)

    @property
    def bodies(self) -> tuple[str, ...]:
        """Names of all bodies that a joint moves."""
        return tuple(joint.child for joint in self.joints)

    def joint_of(self, body: str) -> ForeignJoint:
        """The joint that moves `body`."""
        return next(joint for joint in self.joints if joint.child == body)

    def is_rotational(self, name: str) -> bool:
        """Whether a coordinate turns something: what .mot files write in degrees."""
        joint = next(j for j in self.joints if any(c.name == name for c in j.coordinates))
        return any(name in axis.coordinates for axis in joint.rotations)

    def completed(self, values: Mapping[str, NDArray], count: int) -> dict[str, NDArray]:
        """Values (count,) of all coordinates: given, else by a coupler, else the default."""
        result = {
            name: np.asarray(values[name], np.float64)
            if name in values
            else np.full(count, c.default)
            for name, c in self.coordinates.items()
        }
        for coupler in self.couplers:
            independent = np.stack([result[name] for name in coupler.independent], 1)
            result[coupler.dependent] = coupler.scale * coupler.function(independent)
        return result

    def body_frames(
        self, values: Mapping[str, NDArray], count: int
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Forward kinematics: body -> positions (count, 3), axes (count, 3, 3) in ground.

        The ground is in it too. values: radians and metres, (count,) each.
        """
        full = {"": np.zeros(count), **self.completed(values, count)}
        zero, eye = np.zeros((count, 3)), np.broadcast_to(np.eye(3), (count, 3, 3))
        frames: dict[str, tuple[NDArray, NDArray]] = {GROUND: (zero, eye)}
        for joint in self.joints:
            position, axes = frames[joint.parent]
            shift = np.einsum("nab,nb->na", axes, joint.position(full))
            frames[joint.child] = (position + shift, axes @ joint.rotation(full))
        return frames


def read_model(text: str, where: str) -> ForeignModel:
    """Parse a .osim file.

    where: what error messages start with.

    Raises:
        ValueError: one line: no model, a joint or function that is not read, two coordinates of one
            name, a body without a way to the ground.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{where}: {len(text):,} characters; a model has fewer")
    if re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise ValueError(f"{where}: has a document type or entities, which no model needs")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{where}: no XML ({error})") from None
    model = root.find("Model") if root.tag == "OpenSimDocument" else None
    if model is None:
        raise ValueError(f"{where}: expected an <OpenSimDocument> with a <Model>")
    joints = [*_joints_of_version_4(model, where), *_joints_of_version_3(model, where)]
    if not joints:
        raise ValueError(f"{where}: the model has no joints")
    names = [c.name for joint in joints for c in joint.coordinates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: two coordinates are named {twice[0]!r}")
    return ForeignModel(
        name=model.get("name", ""),
        joints=tuple(_parents_first(joints, where)),
        couplers=tuple(_couplers(model, set(names), where)),
        notes=_notes(model, where),
    )


def _notes(model: ElementTree.Element, where: str) -> Mapping[str, Any] | None:
    text = (model.findtext("credits") or "").strip()
    if not text.startswith(NOTES_MARK):
        return None
    try:
        found = json.loads(text[len(NOTES_MARK) :])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: the notes of our export (<credits>) are damaged")
    return found


def _parents_first(joints: Sequence[ForeignJoint], where: str) -> list[ForeignJoint]:
    children = [joint.child for joint in joints]
    twice = sorted({name for name in children if children.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: body {twice[0]!r} is moved by two joints")
    known, ordered, left = {GROUND}, [], list(joints)
    while left:
        ready = [joint for joint in left if joint.parent in known]
        if not ready:
            raise ValueError(f"{where}: joint {left[0].name!r} hangs on nothing")
        ordered += ready
        known |= {joint.child for joint in ready}
        left = [joint for joint in left if joint.child not in known]
    return ordered


# ---- the two layouts --------------------------------------------------------------------------


def _joints_of_version_4(model: ElementTree.Element, where: str) -> list[ForeignJoint]:
    joints = []
    for element in model.findall("JointSet/objects/*"):
        at = f"{where}: joint {element.get('name')!r}"
        frames = {
            frame.get("name", ""): frame for frame in element.findall("frames/PhysicalOffsetFrame")
        }
        parent, parent_frame = _socket(element, "socket_parent_frame", frames, at)
        child, child_frame = _socket(element, "socket_child_frame", frames, at)
        coordinates = [_coordinate(c, at) for c in element.findall("coordinates/Coordinate")]
        joints.append(_joint(element, parent, child, parent_frame, child_frame, coordinates, at))
    return joints


def _socket(
    joint: ElementTree.Element, tag: str, frames: Mapping[str, ElementTree.Element], at: str
) -> tuple[str, tuple[NDArray, NDArray]]:
    """Body and offset frame that a joint's socket names."""
    path = (joint.findtext(tag) or "").strip()
    name = path.rsplit("/", 1)[-1]
    frame = frames.get(name)
    if frame is None:
        if not name:
            raise ValueError(f"{at}: no <{tag}>")
        return name, (np.zeros(3), np.eye(3))
    body = (frame.findtext("socket_parent") or "").strip().rsplit("/", 1)[-1]
    if not body:
        raise ValueError(f"{at}: frame {name!r} without <socket_parent>")
    return body, (_vector(frame, "translation", at), _orientation(frame, "orientation", at))


def _joints_of_version_3(model: ElementTree.Element, where: str) -> list[ForeignJoint]:
    joints = []
    for body in model.findall("BodySet/objects/Body"):
        for element in body.findall("Joint/*"):
            at = f"{where}: joint {element.get('name')!r}"
            if (element.findtext("reverse") or "false").strip().lower() == "true":
                raise ValueError(f"{at}: is reversed, which is not read")
            parent = (element.findtext("parent_body") or "").strip()
            parent_frame = (
                _vector(element, "location_in_parent", at),
                _orientation(element, "orientation_in_parent", at),
            )
            child_frame = (
                _vector(element, "location", at),
                _orientation(element, "orientation", at),
            )
            found = element.findall("CoordinateSet/objects/Coordinate")
            coordinates = [_coordinate(c, at) for c in found]
            child = body.get("name", "")
            joints.append(
                _joint(element, parent, child, parent_frame, child_frame, coordinates, at)
            )
    return joints


def _vector(
    element: ElementTree.Element, tag: str, at: str, default: Sequence[float] = (0, 0, 0)
) -> NDArray[np.float64]:
    text = element.findtext(tag)
    if text is None or not text.strip():
        return np.array(default, np.float64)
    try:
        values = np.array([float(part) for part in text.split()])
    except ValueError:
        values = np.array([np.nan])
    if len(values) != len(default) or not np.isfinite(values).all():
        raise ValueError(
            f"{at}: expected {len(default)} numbers in <{tag}>, found {text.strip()!r}"
        )
    return values


def _orientation(element: ElementTree.Element, tag: str, at: str) -> NDArray[np.float64]:
    return compose(_vector(element, tag, at)[None], np.eye(3))[0]


def _coordinate(element: ElementTree.Element, at: str) -> Coordinate:
    low, high = (
        _vector(element, "range", at, (-np.inf, np.inf))
        if element.find("range") is not None
        else (-np.inf, np.inf)
    )
    return Coordinate(
        name=element.get("name", ""),
        default=float(_vector(element, "default_value", at, (0.0,))[0]),
        low=float(low),
        high=float(high),
        locked=(element.findtext("locked") or "false").strip().lower() == "true",
    )


# ---- joint types ------------------------------------------------------------------------------

#: Types whose coordinates are angles about body-fixed axes, in this order, then translations.
_ROTATIONS: dict[str, tuple[NDArray, ...]] = {
    "WeldJoint": (),
    "PinJoint": (_Z,),
    "UniversalJoint": (_X, _Y),
    "GimbalJoint": (_X, _Y, _Z),
    "FreeJoint": (_X, _Y, _Z),
    "SliderJoint": (),
    "PlanarJoint": (_Z,),
}
_TRANSLATIONS: dict[str, tuple[NDArray, ...]] = {
    "FreeJoint": (_X, _Y, _Z),
    "SliderJoint": (_X,),
    "PlanarJoint": (_X, _Y),
}
JOINT_KINDS = ("CustomJoint", *_ROTATIONS, "EllipsoidJoint", "ConstantCurvatureJoint")


def _joint(
    element: ElementTree.Element,
    parent: str,
    child: str,
    parent_frame: tuple[NDArray, NDArray],
    child_frame: tuple[NDArray, NDArray],
    coordinates: Sequence[Coordinate],
    at: str,
) -> ForeignJoint:
    kind = element.tag
    if kind == "CustomJoint":
        rotations, translations = _spatial_transform(element, coordinates, at)
    elif kind in _ROTATIONS:
        axes = (*_ROTATIONS[kind], *_TRANSLATIONS.get(kind, ()))
        if len(axes) != len(coordinates):
            raise ValueError(f"{at}: a {kind} has {len(axes)} coordinates, not {len(coordinates)}")
        both = [
            Axis(axis, (c.name,), _itself, (1.0, 0.0))
            for axis, c in zip(axes, coordinates, strict=True)
        ]
        turns = len(_ROTATIONS[kind])
        rotations, translations = tuple(both[:turns]), tuple(both[turns:])
    elif kind in ("EllipsoidJoint", "ConstantCurvatureJoint"):
        if len(coordinates) != 3:
            raise ValueError(f"{at}: a {kind} has 3 coordinates, not {len(coordinates)}")
        names = tuple(c.name for c in coordinates)
        made = _ellipsoid if kind == "EllipsoidJoint" else _constant_curvature
        rotations, translations = made(element, names, at)
    else:
        raise ValueError(f"{at}: type {kind} is not read; expected one of {', '.join(JOINT_KINDS)}")
    if not rotations:
        rotations = (Axis(_Z, (), _nothing, None),)
    return ForeignJoint(
        name=element.get("name", ""),
        kind=kind,
        parent=parent,
        child=child,
        parent_frame=parent_frame,
        child_frame=child_frame,
        coordinates=tuple(coordinates),
        rotations=rotations,
        translations=translations,
    )


def _ellipsoid(
    element: ElementTree.Element, names: tuple[str, ...], at: str
) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """R = Rx Ry Rz; the place on the ellipsoid is, along each axis, its radius times that of R e_z.

    docs/opensim.md#ellipsoid-and-constant-curvature-joints.
    """
    radii = _needed(element, "radii_x_y_z", 3, at)

    def place(along: int) -> Function:
        return lambda q: radii[along] * compose(q, np.eye(3))[:, along, 2]

    rotations = tuple(
        Axis(axis, (name,), _itself, (1.0, 0.0))
        for axis, name in zip((_X, _Y, _Z), names, strict=True)
    )
    return rotations, _moves(names, place)


#: OpenSim 4.6 holds the angles of a ConstantCurvatureJoint inside this range ...
_MOST_BENT = np.pi / 2 - 0.01
#: ... and draws it straight where the end leans more than this sine from the start.
_LEANS_MOST = 0.999


def _constant_curvature(
    element: ElementTree.Element, names: tuple[str, ...], at: str
) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """R = Rx Rz Ry of the angles from straight; the place is the end of one arc of given length.

    docs/opensim.md#ellipsoid-and-constant-curvature-joints.
    """
    neutral = _vector(element, "neutral_angle_x_z_y", at)
    length = _needed(element, "length", 1, at)[0]

    def bent(q: NDArray) -> NDArray:
        return np.clip(q + neutral[: q.shape[1]], -_MOST_BENT, _MOST_BENT)

    def turn(k: int) -> Function:
        return lambda q: np.clip(q[:, 0] + neutral[k], -_MOST_BENT, _MOST_BENT)

    def place(along: int) -> Function:
        def value(q: NDArray) -> NDArray:
            # The direction of the end, and the angle that it leans by.
            tip = compose(bent(q)[:, :2], np.stack((_X, _Z)))[:, :, 1]
            sine = np.hypot(tip[:, 0], tip[:, 2])
            lean = np.arctan2(sine, tip[:, 1])
            chord = np.sinc(lean / 2 / np.pi)  # of an arc of length 1
            # The chord leans by half of it; along `tip` without its y, of length `sine`.
            if along == 1:
                arc = chord * np.cos(lean / 2)
            else:
                arc = chord * tip[:, along] / (2 * np.cos(lean / 2))
            return length * np.where(sine > _LEANS_MOST, tip[:, along], arc)

        return value

    rotations = tuple(
        Axis(axis, (name,), turn(k), (1.0, float(neutral[k])))
        for k, (axis, name) in enumerate(zip((_X, _Z, _Y), names, strict=True))
    )
    return rotations, _moves(names, place)


def _moves(names: tuple[str, ...], place: Callable[[int], Function]) -> tuple[Axis, ...]:
    """Translations along x, y, z that depend on all coordinates of the joint."""
    return tuple(Axis(axis, names, place(k), None) for k, axis in enumerate((_X, _Y, _Z)))


def _needed(element: ElementTree.Element, tag: str, count: int, at: str) -> NDArray[np.float64]:
    """Sizes that have no default; negative ones mirror (left shoulders are written so)."""
    values = _vector(element, tag, at, (0.0,) * count)
    if not values.all():
        raise ValueError(f"{at}: a {element.tag} needs <{tag}> of {count} numbers other than 0")
    return values


def _itself(q: NDArray) -> NDArray:
    return q[:, 0]


def _nothing(q: NDArray) -> NDArray:
    return np.zeros(len(q))


def _spatial_transform(
    element: ElementTree.Element, coordinates: Sequence[Coordinate], at: str
) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    known = {c.name for c in coordinates}
    axes: dict[str, Axis] = {}
    for axis in element.findall("SpatialTransform/TransformAxis"):
        name = axis.get("name", "")
        used = tuple((axis.findtext("coordinates") or "").split())
        if missing := [c for c in used if c not in known]:
            raise ValueError(f"{at}: axis {name} names {missing[0]!r}, no coordinate of the joint")
        direction = _vector(axis, "axis", at, (0, 0, 0))
        length = np.linalg.norm(direction)
        if not length > 0:
            raise ValueError(f"{at}: axis {name} has no direction")
        found = find_function(axis)
        # Without a function an axis is its coordinate, or nothing where it has none.
        made = function(found, f"{at}, axis {name}") if found is not None else None
        axes[name] = Axis(
            direction / length,
            used,
            made or (_itself if used else _nothing),
            _line(found, made) if len(used) == 1 else None,
        )
    wanted = [f"{part}{k}" for part in ("rotation", "translation") for k in (1, 2, 3)]
    if missing := [name for name in wanted if name not in axes]:
        raise ValueError(f"{at}: no <TransformAxis> {missing[0]!r}")
    listed = [axes[name] for name in wanted]
    return tuple(listed[:3]), tuple(listed[3:])


def _line(element: ElementTree.Element | None, made: Function | None) -> tuple[float, float] | None:
    """Slope and offset of a function of one coordinate, None where it is no line."""
    if element is None or made is None:
        return 1.0, 0.0
    if element.tag != "LinearFunction":
        return None
    start, end = made(np.array([[0.0], [1.0]]))
    return (float(end - start), float(start)) if end != start else None


def _couplers(model: ElementTree.Element, known: set[str], where: str) -> list[Coupler]:
    found = []
    for element in model.iter("CoordinateCouplerConstraint"):
        at = f"{where}: constraint {element.get('name')!r}"
        off = (element.findtext("isEnforced") or "true").strip().lower() == "false" or (
            element.findtext("isDisabled") or "false"
        ).strip().lower() == "true"
        inner = find_function(element)
        dependent = (element.findtext("dependent_coordinate_name") or "").strip()
        independent = tuple((element.findtext("independent_coordinate_names") or "").split())
        if off or inner is None:
            continue
        if missing := [name for name in (dependent, *independent) if name not in known]:
            raise ValueError(f"{at}: names {missing[0]!r}, no coordinate of the model")
        scale = float(_vector(element, "scale_factor", at, (1.0,))[0])
        found.append(Coupler(dependent, independent, function(inner, at), scale))
    return found
