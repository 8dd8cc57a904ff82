"""The .osim text of a person: 24 bodies, 24 CustomJoints, 49 coordinates, markers, bone meshes.

A body's axes are those of its SKEL bone, its origin is its joint. For joint i on parent p

    B_p^T B_i = (K_p^T K_i Ra_i^T) Rp_i(q) Ra_i,     position of i in p: K_p^T (o_i + C_i(q))

so the parent offset frame is the bracket, the child offset frame Ra_i^T, the rotations are those of
`angles`, and the translations C_i those of `paths`, along body axes seen from the offset frame.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import JOINT_NAMES, NUM_JOINTS, POSE_NAMES
from skel_fit.opensim import masses
from skel_fit.opensim.angles import (
    COORDINATES,
    TRANSLATIONS,
    Angles,
    JointAxes,
    joint_axes,
    ranges,
)
from skel_fit.opensim.markers import MARKERS_PER_BODY, Markers, markers
from skel_fit.opensim.paths import Path
from skel_fit.opensim.subject import Subject
from skel_fit.skel import SKEL

DOCUMENT_VERSION = 40500
GEOMETRY = "Geometry"
"""Folder of the bone meshes, beside the .osim file."""
NOTES_MARK = "hmr-skel "
"""What the notes in the file's `credits` start with; JSON follows."""
NOTES_VERSION = 1
_GRAVITY = "0 -9.80665 0"


@dataclass(frozen=True)
class Template:
    """What all people of one SKEL model share.

    Attributes:
        markers: of the skin. cut: the skin cut into bodies, None where it is not closed: bodies
            then have no mass.
        bones: body -> text of its .obj file, in bone space, unscaled; no entry without a bone.
    """

    markers: Markers
    cut: masses.Cuts | None
    bones: Mapping[str, str]


def template(skel: SKEL, markers_per_body: int = MARKERS_PER_BODY) -> Template:
    """Markers, cuts and bone meshes of a model.

    Raises:
        ValueError: the model has no bone mesh.
    """
    weights = skel.skin_weights.detach().cpu().double().numpy()
    points = skel.template.detach().cpu().double().numpy()
    bones = _bones(skel)
    if not bones:
        raise ValueError(
            f"{skel.path}: has no bone mesh (skel_template_v, skel_template_f are empty); OpenSim "
            "export needs one, take a SKEL file that has it"
        )
    faces = skel.faces.cpu().numpy()
    joints = skel.joint_regressor.detach().cpu().double().numpy() @ points
    owner = masses.owners(faces, weights, points, joints)
    return Template(
        markers=markers(points, weights, faces, owner, markers_per_body),
        cut=masses.cuts(faces, owner) if masses.is_closed(faces) else None,
        bones=bones,
    )


def _bones(skel: SKEL) -> dict[str, str]:
    """Each bone as a Wavefront text; faces between bones, which share no frame, are left out."""
    points = skel.skeleton_template.detach().cpu().double().numpy()
    faces = skel.skeleton_faces.cpu().numpy()
    if not len(points) or not len(faces):
        return {}
    owner = skel.skeleton_weights_rigid.detach().cpu().numpy().argmax(1)
    texts = {}
    for body in range(NUM_JOINTS):
        own = faces[(owner[faces] == body).all(1)]
        if len(own):
            used, numbered = np.unique(own, return_inverse=True)
            numbered = numbered.reshape(own.shape) + 1
            lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in points[used].tolist()]
            lines += [f"f {a} {b} {c}" for a, b, c in numbered.tolist()]
            texts[JOINT_NAMES[body]] = "\n".join(lines) + "\n"
    return texts


def notes(subject: Subject, ground: NDArray, angles: Angles, **more: Any) -> dict[str, Any]:
    """What a file says about itself, for `import-opensim`: JSON values.

    `pelvis_*` undo the root's re-decomposition without the SKEL model at hand.
    """
    root = subject.root(ground)
    return {
        "version": NOTES_VERSION,
        "gender": subject.gender,
        "betas": subject.betas.tolist(),
        "angles": angles,
        "ground": np.asarray(ground).tolist(),
        "corrected_left_ankle": subject.corrected_left_ankle,
        "pelvis_orientation": root.orientation.tolist(),
        "pelvis_apose": root.apose.tolist(),
        "pelvis_rest": root.rest.tolist(),
        **more,
    }


def osim_text(
    name: str,
    subject: Subject,
    shared: Template,
    ground: NDArray,
    angles: Angles,
    *,
    joints: Sequence[JointAxes] | None = None,
    geometry: str = GEOMETRY,
    **more: Any,
) -> str:
    """The model file of one person.

    name: of the model; ground: (3, 3) from the axes of the data to OpenSim's ground; joints: the
    tables of `joint_axes`, by default those of `angles`; geometry: folder of the bone meshes,
    relative to the file; more: JSON values for the notes, such as the digest of the SKEL file.
    """
    table = joints or joint_axes(angles, corrected_left_ankle=subject.corrected_left_ankle)
    cut = shared.cut
    properties = masses.without_mass() if cut is None else masses.segments(subject, cut)
    bounds = ranges(angles)
    note = NOTES_MARK + json.dumps(notes(subject, ground, angles, **more), sort_keys=True)
    bodies = (
        _body(k, subject, properties, JOINT_NAMES[k] in shared.bones, geometry)
        for k in range(NUM_JOINTS)
    )
    joint_texts = (_joint(row, subject, ground, angles, bounds) for row in table)
    return "".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?>\n',
            f'<OpenSimDocument Version="{DOCUMENT_VERSION}">',
            f'\n<Model name={quoteattr(name)}>\n<Ground name="ground"/>\n',
            f"<credits>{escape(note)}</credits>\n",
            f"<gravity>{_GRAVITY}</gravity>\n",
            "<length_units>meters</length_units>\n<force_units>N</force_units>\n",
            _set("BodySet", bodies),
            _set("JointSet", joint_texts),
            _set("MarkerSet", _marker_texts(subject, shared.markers)),
            "</Model>\n</OpenSimDocument>\n",
        )
    )


def _set(kind: str, members: Iterable[str]) -> str:
    return f'<{kind} name="{kind.lower()}">\n<objects>\n{"".join(members)}</objects>\n</{kind}>\n'


def numbers(values: Iterable[float]) -> str:
    """Numbers as text that reads back to the same bits."""
    return " ".join(repr(float(v) + 0.0) for v in values)


def _body(
    body: int, subject: Subject, properties: masses.Segments, has_bone: bool, geometry: str
) -> str:
    name = JOINT_NAMES[body]
    tensor = properties.inertias[body]
    inertia = (*np.diag(tensor), tensor[0, 1], tensor[0, 2], tensor[1, 2])
    mesh = ""
    if has_bone:
        path = PurePosixPath(geometry) / f"{name}.obj"
        mesh = (
            f'<attached_geometry><Mesh name="{name}_bone"><mesh_file>{path}</mesh_file>'
            f"<scale_factors>{numbers(subject.bone_scale[body])}</scale_factors>"
            "<Appearance><color>0.95 0.93 0.87</color></Appearance></Mesh></attached_geometry>\n"
        )
    return (
        f'<Body name="{name}">\n{mesh}<mass>{numbers([properties.masses[body]])}</mass>\n'
        f"<mass_center>{numbers(properties.centres[body])}</mass_center>\n"
        f"<inertia>{numbers(inertia)}</inertia>\n</Body>\n"
    )


def _joint(
    row: JointAxes, subject: Subject, ground: NDArray, angles: Angles, bounds: NDArray
) -> str:
    apose = subject.apose[row.joint]
    if row.joint:
        parent = f"/bodyset/{JOINT_NAMES[row.parent]}"
        position, orientation = subject.joint_frame(row.joint)
        along = apose @ subject.orientations[row.joint].T
        child = apose.T
    else:
        parent, position = "/ground", np.zeros(3)
        if angles == "opensim":
            orientation, child = np.eye(3), np.eye(3)
        else:
            orientation, child = ground @ subject.orientations[0] @ apose.T, apose.T
        along = orientation.T
    default = ground @ subject.joints[0]
    names = [POSE_NAMES[d] for d in row.dofs] + list(TRANSLATIONS if row.joint == 0 else ())
    members = (
        _coordinate(name, bounds, default[TRANSLATIONS.index(name)] if name in TRANSLATIONS else 0)
        for name in names
    )
    return (
        f'<CustomJoint name="{row.name}">\n'
        f"<socket_parent_frame>{row.name}_parent</socket_parent_frame>\n"
        f"<socket_child_frame>{row.name}_child</socket_child_frame>\n"
        f"<coordinates>\n{''.join(members)}</coordinates>\n<frames>\n"
        f"{_frame(row.name + '_parent', parent, position, orientation)}"
        f"{_frame(row.name + '_child', f'/bodyset/{row.body}', np.zeros(3), child)}"
        f"</frames>\n<SpatialTransform>\n{_rotations(row)}"
        f"{_translations(row.joint, subject.path(row.joint), along)}"
        "</SpatialTransform>\n</CustomJoint>\n"
    )


def _coordinate(name: str, bounds: NDArray, default: float) -> str:
    low_high = bounds[COORDINATES.index(name)]
    return (
        f'<Coordinate name="{name}"><default_value>{numbers([default])}</default_value>'
        f"<range>{numbers(low_high)}</range><clamped>false</clamped><locked>false</locked>"
        "</Coordinate>\n"
    )


def _frame(name: str, parent: str, position: NDArray, orientation: NDArray) -> str:
    return (
        f'<PhysicalOffsetFrame name="{name}"><socket_parent>{parent}</socket_parent>'
        f"<translation>{numbers(position)}</translation>"
        f"<orientation>{numbers(body_fixed_xyz(orientation))}</orientation></PhysicalOffsetFrame>\n"
    )


def body_fixed_xyz(rotation: NDArray) -> tuple[float, float, float]:
    """(a, b, c) with Rx(a) Ry(b) Rz(c) = rotation (3, 3), radians: OpenSim's `orientation`."""
    b = np.arctan2(rotation[0, 2], np.hypot(rotation[0, 0], rotation[0, 1]))
    c = np.arctan2(-rotation[0, 1], rotation[0, 0])
    # What the other two leave, right also where a and c are not unique.
    a = np.arctan2(
        rotation[2, 0] * np.sin(c) + rotation[2, 1] * np.cos(c),
        rotation[1, 0] * np.sin(c) + rotation[1, 1] * np.cos(c),
    )
    return float(a), float(b), float(c)


_LINEAR = '<LinearFunction name="function"><coefficients>1 0</coefficients></LinearFunction>'
_ZERO = '<Constant name="function"><value>0</value></Constant>'


def _axis(name: str, coordinates: Sequence[str], axis: NDArray, function: str) -> str:
    return (
        f'<TransformAxis name="{name}"><coordinates>{" ".join(coordinates)}</coordinates>'
        f"<axis>{numbers(axis)}</axis>{function}</TransformAxis>\n"
    )


def _rotations(row: JointAxes) -> str:
    """Three axes; OpenSim wants independent ones also where nothing turns."""
    axes = list(row.axes)
    texts = [
        _axis(f"rotation{k + 1}", [POSE_NAMES[d]], axes[k], _LINEAR) for k, d in enumerate(row.dofs)
    ]
    for k in range(len(axes), 3):
        axes.append(_independent(axes))
        texts.append(_axis(f"rotation{k + 1}", [], axes[k], _ZERO))
    return "".join(texts)


def _independent(axes: Sequence[NDArray]) -> NDArray[np.float64]:
    """The coordinate axis that lies least in the space of `axes` (one or two)."""
    if len(axes) == 1:
        return np.eye(3)[int(np.abs(axes[0]).argmin())]
    return np.eye(3)[int(np.abs(np.cross(axes[0], axes[1])).argmax())]


def _translations(joint: int, path: Path | None, along: NDArray) -> str:
    texts = []
    for k in range(3):
        coordinates: Sequence[str] = ()
        function = _ZERO
        if joint == 0:
            coordinates, function = (TRANSLATIONS[k],), _LINEAR
        elif path is not None:
            coordinates, function = _polynomial(path, k)
        texts.append(_axis(f"translation{k + 1}", coordinates, along[:, k], function))
    return "".join(texts)


def _polynomial(path: Path, axis: int) -> tuple[Sequence[str], str]:
    """Coordinates and function along one axis: PolynomialFunction where one angle is enough."""
    table = path.coefficients[axis]
    names = [POSE_NAMES[d] for d in path.dofs]
    degree = len(table) - 1
    if not table[:, 1:].any():
        return names[:1], _one_variable(table[:, 0])
    if not table[1:].any():
        return names[1:], _one_variable(table[0])
    # OpenSim's order: x^i y^j for i = 0..degree, for j = 0..degree - i.
    listed = [table[i, j] for i in range(degree + 1) for j in range(degree + 1 - i)]
    return names, (
        f'<MultivariatePolynomialFunction name="function"><coefficients>{numbers(listed)}'
        f"</coefficients><dimension>2</dimension><order>{degree}</order>"
        "</MultivariatePolynomialFunction>"
    )


def _one_variable(coefficients: NDArray) -> str:
    highest_first = numbers(coefficients[::-1])
    return (
        f'<PolynomialFunction name="function"><coefficients>{highest_first}</coefficients>'
        "</PolynomialFunction>"
    )


def marker_locations(subject: Subject, chosen: Markers) -> NDArray[np.float64]:
    """Markers at rest in the axes of their bodies: (m, 3) metres."""
    points = subject.vertices[chosen.vertices] - subject.joints[chosen.bodies]
    return np.einsum("mab,ma->mb", subject.orientations[chosen.bodies], points)


def _marker_texts(subject: Subject, chosen: Markers) -> Iterable[str]:
    locations = marker_locations(subject, chosen)
    for name, body, location in zip(chosen.names, chosen.bodies, locations, strict=True):
        yield (
            f'<Marker name="{name}"><socket_parent_frame>/bodyset/{JOINT_NAMES[body]}'
            f"</socket_parent_frame><location>{numbers(location)}</location>"
            "<fixed>true</fixed></Marker>\n"
        )


__all__ = ["Template", "marker_locations", "notes", "osim_text", "template"]
