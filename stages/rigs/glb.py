"""A rig as binary glTF 2.0 with skin, joints, morph targets and one animation.

Pose correctives, and what four weights a vertex leave out, become morph targets: principal
components of the rest surface (`encoding`), animated with the joints. glTF is y up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pygltflib import (
    ARRAY_BUFFER,
    ELEMENT_ARRAY_BUFFER,
    FLOAT,
    GLTF2,
    UNSIGNED_BYTE,
    UNSIGNED_INT,
    Accessor,
    Animation,
    AnimationChannel,
    AnimationChannelTarget,
    AnimationSampler,
    Asset,
    Attributes,
    Buffer,
    BufferView,
    Material,
    Mesh,
    Node,
    PbrMetallicRoughness,
    Primitive,
    Scene,
    Skin,
)
from scipy.spatial.transform import Rotation

from skel_fit import JOINT_NAMES
from stages.drawing.render import BONE_COLOR, SKIN_COLOR, vertex_normals
from stages.drawing.viewer.encoding import Surface, low_rank_rest
from stages.rigs.rig import Rig, strongest

WEIGHTS = 4
"""Bones a vertex, as every program reads them."""
_SIZES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype("<f4"),
    UNSIGNED_BYTE: np.dtype("u1"),
    UNSIGNED_INT: np.dtype("<u4"),
}


@dataclass(frozen=True)
class Glb:
    """The bytes of a .glb, and how far its skin is from ours: (mean, largest), metres."""

    data: bytes
    deviation: tuple[float, float]


def glb(rig: Rig, name: str, notes: dict[str, Any]) -> Glb:
    """Write a rig whose world is y up.

    notes: what `asset.extras` says of the file besides the deviation.
    """
    builder = _Builder()
    joints = _joint_nodes(builder, rig)
    skin = _skinned(builder, rig, rig.skin, "skin", (*SKIN_COLOR, 0.55), joints)
    _skinned(builder, rig, rig.bones, "bones", (*BONE_COLOR, 1.0), joints)
    _animate(builder, rig, joints, skin.node, skin.coefficients)
    deviation = _deviation(skin, rig)
    builder.file.asset = Asset(
        version="2.0",
        generator="hmr-skel",
        extras=notes
        | {
            "frames_per_second": rig.rate,
            "skin_deviation_mean_mm": round(1000 * deviation[0], 3),
            "skin_deviation_max_mm": round(1000 * deviation[1], 3),
            "axes": "y up, metres; rest pose: SKEL zero pose, joints parallel to the body",
        },
    )
    builder.file.scenes = [Scene(name=name, nodes=[joints[0], *builder.roots])]
    builder.file.scene = 0
    return Glb(builder.bytes(), deviation)


@dataclass(frozen=True)
class _Bound:
    """A surface in the file: its node, rest points, morph targets and their weights (F, C)."""

    node: int
    rest: NDArray[np.float64]
    components: NDArray[np.float64]
    coefficients: NDArray[np.float32]
    weights: NDArray[np.float64]


class _Builder:
    """A glTF document and its binary part."""

    def __init__(self) -> None:
        self.file = GLTF2()
        self.roots: list[int] = []
        self._blob = bytearray()

    def accessor(self, values: NDArray, component: int, kind: str, target: int | None) -> int:
        """Append an array, one element a row; returns the number of its accessor."""
        data = np.ascontiguousarray(values, dtype=_DTYPES[component]).reshape(-1, _SIZES[kind])
        raw = data.tobytes()
        self.file.bufferViews.append(
            BufferView(buffer=0, byteOffset=len(self._blob), byteLength=len(raw), target=target)
        )
        self._blob += raw + b"\0" * (-len(raw) % 4)
        bounds: dict[str, Any] = {}
        if component == FLOAT and kind in ("VEC3", "SCALAR"):
            bounds = {"min": data.min(axis=0).tolist(), "max": data.max(axis=0).tolist()}
        self.file.accessors.append(
            Accessor(
                bufferView=len(self.file.bufferViews) - 1,
                componentType=component,
                count=len(data),
                type=kind,
                **bounds,
            )
        )
        return len(self.file.accessors) - 1

    def node(self, node: Node) -> int:
        self.file.nodes.append(node)
        return len(self.file.nodes) - 1

    def bytes(self) -> bytes:
        self.file.buffers = [Buffer(byteLength=len(self._blob))]
        self.file.set_binary_blob(bytes(self._blob))
        return b"".join(self.file.save_to_bytes())


def _joint_nodes(builder: _Builder, rig: Rig) -> list[int]:
    """The tree at rest; nodes are in the order of the joints."""
    for joint, name in enumerate(JOINT_NAMES):
        parent = rig.parents[joint]
        offset = rig.rest[joint] - (rig.rest[parent] if parent >= 0 else 0)
        children = [k for k, above in enumerate(rig.parents) if above == joint]
        builder.node(Node(name=name, translation=offset.tolist(), children=children))
    return list(range(len(JOINT_NAMES)))


def _skinned(
    builder: _Builder,
    rig: Rig,
    surface: Surface,
    name: str,
    color: tuple[float, float, float, float],
    joints: list[int],
) -> _Bound:
    weights = strongest(surface.weights, WEIGHTS)
    rest, components, coefficients = low_rank_rest(replace(surface, weights=weights))
    normals = vertex_normals(rest, surface.faces)
    # Blender clamps weights of morph targets below zero and above one: they run from 0 to 1 here.
    lowest, span = coefficients.min(axis=0), np.ptp(coefficients, axis=0)
    span[span == 0] = 1
    rest = rest + np.tensordot(lowest, components, axes=(0, 0))
    components = components * span[:, None, None]
    coefficients = (coefficients - lowest) / span
    order = np.argsort(-weights, axis=1, kind="stable")[:, :WEIGHTS]
    strength = np.take_along_axis(weights, order, axis=1)
    order[strength == 0] = 0
    normals[np.linalg.norm(normals, axis=1) < 0.5] = (0.0, 0.0, 1.0)
    attributes = Attributes(
        POSITION=builder.accessor(rest, FLOAT, "VEC3", ARRAY_BUFFER),
        NORMAL=builder.accessor(normals, FLOAT, "VEC3", ARRAY_BUFFER),
        JOINTS_0=builder.accessor(order, UNSIGNED_BYTE, "VEC4", ARRAY_BUFFER),
        WEIGHTS_0=builder.accessor(strength, FLOAT, "VEC4", ARRAY_BUFFER),
    )
    targets = [
        Attributes(POSITION=builder.accessor(item, FLOAT, "VEC3", ARRAY_BUFFER))
        for item in components
    ]
    builder.file.materials.append(
        Material(
            name=name,
            pbrMetallicRoughness=PbrMetallicRoughness(
                baseColorFactor=list(color), metallicFactor=0.0, roughnessFactor=0.8
            ),
            alphaMode="BLEND" if color[3] < 1 else "OPAQUE",
            doubleSided=True,
        )
    )
    primitive = Primitive(
        attributes=attributes,
        indices=builder.accessor(surface.faces.ravel(), UNSIGNED_INT, "SCALAR",
                                 ELEMENT_ARRAY_BUFFER),
        material=len(builder.file.materials) - 1,
        targets=[vars(target) for target in targets] or None,
    )  # fmt: skip
    builder.file.meshes.append(
        Mesh(name=name, primitives=[primitive], weights=(-lowest / span).tolist() or None)
    )
    if not builder.file.skins:
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
        inverse[:, :3, 3] = -rig.rest
        # glTF stores matrices column by column.
        matrices = builder.accessor(inverse.transpose(0, 2, 1), FLOAT, "MAT4", None)
        builder.file.skins.append(
            Skin(name="SKEL", joints=joints, skeleton=joints[0], inverseBindMatrices=matrices)
        )
    node = builder.node(Node(name=name, mesh=len(builder.file.meshes) - 1, skin=0))
    builder.roots.append(node)
    return _Bound(node, rest, components, coefficients, weights)


def _animate(
    builder: _Builder, rig: Rig, joints: list[int], skin: int, coefficients: NDArray[np.float32]
) -> None:
    """One clip: rotations of all joints, translations of those that shift, morph weights."""
    rotations, translations = rig.local()
    times = builder.accessor(np.arange(len(rig)) / rig.rate, FLOAT, "SCALAR", None)
    animation = Animation(name="motion", samplers=[], channels=[])

    def add(node: int, path: str, values: NDArray, kind: str) -> None:
        output = builder.accessor(values, FLOAT, kind, None)
        animation.samplers.append(AnimationSampler(input=times, output=output))
        animation.channels.append(
            AnimationChannel(
                sampler=len(animation.samplers) - 1,
                target=AnimationChannelTarget(node=node, path=path),
            )
        )

    for joint in joints:
        add(joint, "rotation", continuous_quaternions(rotations[:, joint]), "VEC4")
        moved = translations[:, joint]
        if np.abs(moved - builder.file.nodes[joint].translation).max() > 1e-7:
            add(joint, "translation", moved, "VEC3")
    if coefficients.shape[1]:
        add(skin, "weights", coefficients.reshape(-1, 1), "SCALAR")
    builder.file.animations = [animation]


def continuous_quaternions(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F, 4) x, y, z, w of (F, 3, 3), without sign jumps, so that interpolation stays short."""
    found = Rotation.from_matrix(rotations).as_quat()
    signs = np.sign(np.einsum("fi,fi->f", found[1:], found[:-1]))
    signs[signs == 0] = 1
    found[1:] *= np.cumprod(signs)[:, None]
    return found


def _deviation(skin: _Bound, rig: Rig) -> tuple[float, float]:
    """Distance of the file's skin to ours over all frames, in the file's single precision."""
    total, largest = 0.0, 0.0
    components = skin.components.astype(np.float32)
    for frame in range(len(rig)):
        rest = skin.rest.astype(np.float32) + np.tensordot(
            skin.coefficients[frame], components, axes=(0, 0)
        )
        turned, moved = rig.skin.rotations[frame], rig.skin.translations[frame]
        maps = np.concatenate([turned, moved[..., None]], axis=-1).reshape(len(turned), 12)
        blend = (skin.weights @ maps).reshape(-1, 3, 4)
        found = np.einsum("vij,vj->vi", blend[:, :, :3], rest) + blend[:, :, 3]
        distance = np.linalg.norm(found - rig.skin.vertices[frame], axis=1)
        total += float(distance.mean())
        largest = max(largest, float(distance.max()))
    return total / len(rig), largest
