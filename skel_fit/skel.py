"""The SKEL body model: 46 anatomical angles, 10 betas, translation -> skin, joints, bones.

Source: reference/skel-model.md sections 2 and 3 (its numbers are quoted as "3.4" and so on).
Body frame: x to the subject's left, y up, z forward; bone space: x forward, y up, z right.

Memory: no tensor with a 4x4 (or 3x4) matrix per vertex is kept beyond one chunk of the batch.
Layout: vertices are kept component-major, (B, 3, V), until the end, so every pass is contiguous.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skel_fit import anatomy
from skel_fit.anatomy import NUM_JOINTS, NUM_POSES, PARENTS, POSE_FEATURE_SOURCES
from skel_fit.rotations import sinc, skew

NUM_VERTICES = 6890
NUM_FACES = 13776
NUM_BETAS = 10
NUM_POSE_FEATURES = 207

PELVIS, LUMBAR, THORAX, HEAD = 0, 11, 12, 13
SCAPULA_R, ULNA_R, RADIUS_R, HAND_R = 14, 16, 17, 18
SCAPULA_L, ULNA_L, RADIUS_L, HAND_L = 19, 21, 22, 23

# Joints whose orientation does not follow the shape (3.4 step 4): pelvis and the leaves.
_FIXED_ORIENTATION = (0, 5, 10, 13, 18, 23)
_TURNED = tuple(j for j in range(NUM_JOINTS) if j not in _FIXED_ORIENTATION)

# Bone sizes measured on the skin (3.10): joint, bone dimension, body axis, two vertices. The left
# hand uses the right hand's vertices, as the published model does.
_MEASURED_SCALES = (
    (HEAD, 0, 2, 410, 384),
    (HEAD, 1, 1, 414, 384),
    (HEAD, 2, 0, 196, 3708),
    (HAND_R, 0, 1, 6179, 6137),
    (HAND_R, 1, 0, 5670, 5906),
    (HAND_L, 0, 1, 6179, 6137),
    (HAND_L, 1, 0, 5670, 5906),
)
_THORAX_DEPTHS = ((2, 3027, 3495), (2, 3027, 3506))

# Bodies whose vertices are worked on at once: keeps the blended transforms in the cache (CPU)
# or below a few hundred MB (accelerators).
_CHUNK_CPU = 32
_CHUNK_ACCELERATOR = 512


@dataclass(frozen=True)
class SkelArrays:
    """Checked contents of a SKEL file as numpy arrays (`model_files.load_skel` makes it)."""

    template: np.ndarray  # (6890, 3) metres
    faces: np.ndarray  # (13776, 3)
    shapedirs: np.ndarray  # (6890, 3, 10)
    posedirs: np.ndarray  # (6890, 3, 207)
    joint_regressor: np.ndarray  # (24, 6890)
    skin_weights: np.ndarray  # (6890, 24)
    per_joint_rot: np.ndarray  # (24, 3, 3) bone space -> body frame
    apose_rot: np.ndarray  # (24, 3, 3)
    apose_trans: np.ndarray  # (24, 3)
    kintree_parents: np.ndarray  # (24,) row 0 of the tree as stored
    skeleton_template: np.ndarray  # (Nk, 3), each bone in its own frame
    skeleton_faces: np.ndarray  # (Fk, 3)
    skeleton_weights: np.ndarray  # (Nk, 24)
    skeleton_weights_rigid: np.ndarray  # (Nk, 24)
    gender: str
    path: Path
    standin: bool


@dataclass(frozen=True)
class SkelIdentity:
    """Everything that depends on the betas only; reuse it for all poses of a person.

    Body frame, metres. B may be 1 and is then shared by all poses.
    """

    betas: Tensor  # (B, 10)
    vertices: Tensor  # (B, 6890, 3) shaped rest skin
    joints: Tensor  # (B, 24, 3) rest joints J
    offsets: Tensor  # (B, 24, 3) o_i = J_i - J_parent(i), o_0 = J_0
    orientations: Tensor  # (B, 24, 3, 3) bone orientation K_i at rest
    bases: Tensor  # (B, 24, 3, 3) K_i Ra_i^T: local rotation R_i = basis Rp_i basis^T
    spine_lengths: Tensor  # (B, 3) lumbar, thorax, head
    scapula_extents: Tensor  # (B, 2) width W, height H

    def __len__(self) -> int:
        return self.betas.shape[0]

    def rows(self, index: Tensor | slice) -> "SkelIdentity":
        """The identities of some rows."""
        return SkelIdentity(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class SkelOutput:
    """Result of the forward pass, body (or camera) frame, metres."""

    skin_vertices: Tensor  # (B, 6890, 3)
    joints: Tensor  # (B, 24, 3)
    joint_orientations: Tensor  # (B, 24, 3, 3)
    skeleton_vertices: Tensor | None  # (B, Nk, 3)


def _safe_norm(vector: Tensor) -> Tensor:
    """Length over the last dimension; the gradient at zero is zero instead of NaN."""
    square = (vector * vector).sum(-1)
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, torch.ones_like(square), square).sqrt())


def _minimal_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation from the direction of `source` (..., 3) to that of `target` (..., 3).

    Returns (..., 3, 3). As published (3.4): identity for exactly parallel and exactly opposite
    vectors, the zero matrix where a vector has length zero. Gradients are finite in all cases.
    """
    source_length, target_length = _safe_norm(source), _safe_norm(target)
    defined = (source_length > 0) & (target_length > 0)
    a = source / torch.where(source_length > 0, source_length, 1.0)[..., None]
    b = target / torch.where(target_length > 0, target_length, 1.0)[..., None]
    v = torch.linalg.cross(a, b)
    cosine = (a * b).sum(-1)
    # (1 - c) / s^2 = 1 / (1 + c); the first form is the accurate one for obtuse angles.
    acute = cosine > 0
    square = (v * v).sum(-1).clamp(min=1e-30)
    obtuse_factor = (1 - cosine) / torch.where(acute, torch.ones_like(square), square)
    acute_factor = 1 / torch.where(acute, 1 + cosine, torch.ones_like(cosine))
    factor = torch.where(acute, acute_factor, obtuse_factor)[..., None, None]
    cross = skew(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return (eye + cross + factor * (cross @ cross)) * defined[..., None, None]


def _blend(weights: Tensor, affine: Tensor, points: Tensor) -> Tensor:
    """Linear blend of affine maps: weights (n, 24), affine (B, 24, 3, 4), points (B or 1, 3, n).

    Returns sum_j w_j (affine_j [point; 1]) as (B, 3, n).
    """
    batch, joints = affine.shape[:2]
    columns = affine.permute(0, 3, 2, 1).reshape(batch * 12, joints)
    maps = (columns @ weights.t()).view(batch, 4, 3, -1)
    out = torch.addcmul(maps[:, 3], maps[:, 0], points[:, None, 0])
    out = torch.addcmul(out, maps[:, 1], points[:, None, 1])
    return torch.addcmul(out, maps[:, 2], points[:, None, 2])


class SKEL(nn.Module):
    """SKEL as a module without trainable parameters.

    Buffers are not persistent: a checkpoint of a network that holds a SKEL never contains the
    (licensed) model. Attributes: `template (6890, 3)`, `shapedirs (6890, 3, 10)`,
    `posedirs (6890, 3, 207)`, `joint_regressor (24, 6890)`, `skin_weights (6890, 24)`,
    `faces (13776, 3)`, `skeleton_template (Nk, 3)`, `skeleton_faces`, `skeleton_weights (Nk, 24)`,
    `skeleton_weights_rigid (Nk, 24)`, `per_joint_rot (24, 3, 3)`, `apose_rot (24, 3, 3)`,
    `apose_trans (24, 3)`, `axes (46, 3)`; `parents`, `gender`, `path`, `standin`.
    """

    template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    joint_regressor: Tensor
    skin_weights: Tensor
    faces: Tensor
    skeleton_template: Tensor
    skeleton_faces: Tensor
    skeleton_weights: Tensor
    skeleton_weights_rigid: Tensor
    per_joint_rot: Tensor
    apose_rot: Tensor
    apose_trans: Tensor
    axes: Tensor

    def __init__(
        self,
        arrays: SkelArrays,
        *,
        dtype: torch.dtype = torch.float32,
        corrected_left_ankle: bool = False,
    ) -> None:
        super().__init__()
        self.gender = arrays.gender
        self.path = arrays.path
        self.standin = arrays.standin
        self.corrected_left_ankle = corrected_left_ankle
        self.parents: tuple[int, ...] = PARENTS
        self._dtype = dtype
        for name in (
            "template", "shapedirs", "posedirs", "joint_regressor", "skin_weights",
            "per_joint_rot", "apose_rot", "apose_trans", "skeleton_template",
            "skeleton_weights", "skeleton_weights_rigid",
        ):  # fmt: skip
            self._floats(name, getattr(arrays, name))
        self._floats("axes", anatomy.axes(corrected_left_ankle=corrected_left_ankle))
        self._ints("faces", arrays.faces)
        self._ints("skeleton_faces", arrays.skeleton_faces)
        self._derive_shape(arrays)
        self._derive_tree(arrays)
        self._derive_correctives(arrays)
        self._derive_bones(arrays)

    # ---- construction -----------------------------------------------------------------------

    def _floats(self, name: str, array: np.ndarray) -> None:
        tensor = torch.tensor(np.ascontiguousarray(array), dtype=self._dtype)
        self.register_buffer(name, tensor, persistent=False)

    def _ints(self, name: str, array: object) -> None:
        tensor = torch.tensor(np.asarray(array, dtype=np.int64))
        self.register_buffer(name, tensor, persistent=False)

    def _derive_shape(self, arrays: SkelArrays) -> None:
        """Shape basis in component-major order, and the rest joints as functions of the betas."""
        template = arrays.template.astype(np.float64)
        directions = arrays.shapedirs.astype(np.float64)
        regressor = arrays.joint_regressor.astype(np.float64)
        self._floats("_template_flat", template.T.reshape(-1))
        self._floats("_shape_basis", directions.transpose(1, 0, 2).reshape(-1, NUM_BETAS))
        self._floats("_joint_template", (regressor @ template).reshape(-1))
        joint_basis = np.einsum("jv,vck->jck", regressor, directions)
        self._floats("_joint_basis", joint_basis.reshape(-1, NUM_BETAS))

    def _derive_tree(self, arrays: SkelArrays) -> None:
        """Index tables: children (3.1), levels of the chain, slots of the angles."""
        # The first column whose stored parent is i; 0 means leaf. The root's own entry is used as
        # stored, so that a file that writes 0 there has a leaf pelvis, as in the published model.
        stored = arrays.kintree_parents.astype(np.int64).tolist()
        child = tuple(stored.index(i) if i in stored else 0 for i in range(NUM_JOINTS))
        self._child: tuple[int, ...] = child
        self._ints("_parent_of_others", PARENTS[1:])
        self._ints("_child_of_turned", [child[j] for j in _TURNED])
        self._ints("_turned", _TURNED)
        self._ints("_fixed", _FIXED_ORIENTATION)
        self._ints("_turned_first", np.argsort((*_TURNED, *_FIXED_ORIENTATION)))

        levels: list[list[int]] = [[0]]
        while len(members := [j for j in range(NUM_JOINTS) if PARENTS[j] in levels[-1]]):
            levels.append(members)
        self._levels = len(levels)
        for k in range(1, len(levels)):
            self._ints(f"_level_{k}", levels[k])
            self._ints(f"_above_{k}", [levels[k - 1].index(PARENTS[j]) for j in levels[k]])
        walked = [j for level in levels for j in level]
        self._ints("_unwalk", np.argsort(walked))

        slots = np.full((NUM_JOINTS, 3), NUM_POSES)  # 46 is an angle that is always zero
        for joint, dofs in enumerate(anatomy.DOFS):
            slots[joint, : len(dofs)] = dofs
        self._ints("_dof_slots", slots.reshape(-1))
        axes = anatomy.axes(corrected_left_ankle=self.corrected_left_ankle)
        axes = np.concatenate((axes, np.zeros((1, 3))))
        cross = np.zeros((NUM_POSES + 1, 3, 3))
        cross[:, [2, 0, 1], [1, 2, 0]] = axes
        cross[:, [1, 2, 0], [2, 0, 1]] = -axes
        self._floats("_axis_cross", cross)
        self._floats("_axis_cross_squared", cross @ cross)

        template_direction = arrays.apose_trans[list(child)].astype(np.float64)
        template_direction[ULNA_R] += template_direction[RADIUS_R]
        template_direction[ULNA_L] += template_direction[RADIUS_L]
        directions = np.einsum("jab,jb->ja", arrays.per_joint_rot, template_direction)
        self._floats("_bone_directions", directions[list(_TURNED)])

    def _derive_correctives(self, arrays: SkelArrays) -> None:
        """Corrective basis in component-major order, without the columns of unused SMPL joints."""
        used = [k for k, source in enumerate(POSE_FEATURE_SOURCES) if source >= 0]
        self._ints("_feature_joints", [POSE_FEATURE_SOURCES[k] for k in used])
        columns = [9 * k + e for k in used for e in range(9)]
        basis = arrays.posedirs.transpose(1, 0, 2).reshape(-1, NUM_POSE_FEATURES)[:, columns]
        self._floats("_offset_basis", basis)

    def _derive_bones(self, arrays: SkelArrays) -> None:
        """Bone vertices sorted into rigid ones, a run for each bone, and blended ones."""
        rigid, smooth = arrays.skeleton_weights_rigid, arrays.skeleton_weights
        bone = rigid.argmax(1)
        one_hot = np.eye(NUM_JOINTS)[bone]
        is_rigid = (rigid == one_hot).all(1) & (smooth == one_hot).all(1)
        order = []
        self._bone_runs: list[tuple[int, int, int]] = []
        for b in range(NUM_JOINTS):
            members = np.flatnonzero(is_rigid & (bone == b))
            if len(members):
                start = sum(map(len, order))
                self._bone_runs.append((b, start, start + len(members)))
                order.append(members)
        blended = np.flatnonzero(~is_rigid)
        rigid_order = np.concatenate([*order, np.zeros(0, dtype=np.int64)])
        points = arrays.skeleton_template
        homogeneous = np.concatenate((points[rigid_order], np.ones((len(rigid_order), 1))), 1)
        self._floats("_rigid_points", homogeneous)
        self._floats("_blended_points", points[blended].T[None])
        self._floats("_blended_rigid_weights", rigid[blended])
        self._floats("_blended_weights", smooth[blended])
        self._ints("_bone_unsort", np.argsort(np.concatenate((rigid_order, blended))))

        # Template extents that the measured bone scales divide by (3.10).
        pairs = [(k, v1, v2) for _, _, k, v1, v2 in _MEASURED_SCALES] + list(_THORAX_DEPTHS)
        axis, first, second = (np.array(column) for column in zip(*pairs, strict=True))
        self._ints("_extent_first", axis * NUM_VERTICES + first)
        self._ints("_extent_second", axis * NUM_VERTICES + second)
        template = arrays.template.astype(np.float64)
        self._floats("_extents", template[first, axis] - template[second, axis])
        lengths = np.linalg.norm(arrays.apose_trans.astype(np.float64), axis=1)
        self._floats("_apose_lengths", lengths)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the model's tensors (and of what it expects)."""
        return self.template.dtype

    @property
    def device(self) -> torch.device:
        """Device of the model's tensors."""
        return self.template.device

    # ---- shape ------------------------------------------------------------------------------

    def shape(self, betas: Tensor) -> SkelIdentity:
        """Everything that depends on betas (B, 10) only (3.2-3.4); reusable for many poses."""
        self._check("betas", betas, (NUM_BETAS,))
        batch = betas.shape[0]
        flat = torch.addmm(self._template_flat, betas, self._shape_basis.t())
        # The small part in float64: rounding of the rest joints and bone orientations would be the
        # largest part of the error of the posed mesh.
        joints = torch.addmm(
            self._joint_template.double(), betas.double(), self._joint_basis.double().t()
        ).view(batch, NUM_JOINTS, 3)
        offsets = torch.cat(
            (joints[:, :1], joints[:, 1:] - joints[:, self._parent_of_others]), dim=1
        )
        orientations = self._bone_orientations(offsets)
        bases = orientations @ self.apose_rot.double().transpose(1, 2)
        spine_y = joints[:, :, 1]
        spine = [(LUMBAR, PELVIS), (THORAX, LUMBAR), (HEAD, THORAX)]
        lengths = torch.stack([(spine_y[:, a] - spine_y[:, b]).abs() for a, b in spine], -1)
        extents = torch.stack(
            (
                _safe_norm(joints[:, SCAPULA_L] - joints[:, SCAPULA_R]),
                _safe_norm(joints[:, THORAX] - joints[:, LUMBAR]),
            ),
            -1,
        )
        return SkelIdentity(
            betas=betas,
            vertices=flat.view(batch, 3, NUM_VERTICES).transpose(1, 2),
            joints=joints.to(self.dtype),
            offsets=offsets.to(self.dtype),
            orientations=orientations.to(self.dtype),
            bases=bases.to(self.dtype),
            spine_lengths=lengths.to(self.dtype),
            scapula_extents=extents.to(self.dtype),
        )

    def _bone_orientations(self, offsets: Tensor) -> Tensor:
        """K_i (3.4) in the dtype of the offsets: (B, 24, 3) -> (B, 24, 3, 3)."""
        directions = list(offsets[:, self._child_of_turned].unbind(1))
        position = {joint: k for k, joint in enumerate(_TURNED)}
        for ulna, radius in ((ULNA_R, RADIUS_R), (ULNA_L, RADIUS_L)):
            directions[position[ulna]] = directions[position[ulna]] + directions[position[radius]]
        # The thorax follows the lumbar-thorax segment; its template direction does not (a quirk
        # of the published model).
        directions[position[THORAX]] = directions[position[LUMBAR]]
        target = torch.stack(directions, 1)
        base = self.per_joint_rot.to(offsets.dtype)
        source = self._bone_directions.to(offsets.dtype).expand_as(target)
        turned = _minimal_rotation(source, target) @ base[self._turned]
        both = torch.cat((turned, base[self._fixed].expand(offsets.shape[0], -1, 3, 3)), 1)
        return both[:, self._turned_first]

    def bone_scale(self, identity: SkelIdentity) -> Tensor:
        """Bone scales sigma (B, 24, 3): front-back, up-down, left-right of bone space (3.10)."""
        lengths = self._apose_lengths[1:]
        known = lengths > 0  # a bone of template length zero keeps its size
        ratio = _safe_norm(identity.offsets[:, 1:]) / torch.where(known, lengths, 1.0)
        ratio = torch.where(known, ratio, 1.0)
        one = torch.ones_like(ratio[:, 0])
        sigma: list[list[Tensor]] = []
        for j in range(NUM_JOINTS):
            scale = ratio[:, self._child[j] - 1] if self._child[j] > 0 else one
            sigma.append([scale, scale, scale])
        sigma[ULNA_R], sigma[ULNA_L] = list(sigma[RADIUS_R]), list(sigma[RADIUS_L])
        sigma[THORAX] = list(sigma[LUMBAR])
        rise = self.apose_trans[LUMBAR, 1].abs()
        lumbar = identity.offsets[:, LUMBAR, 1].abs() / torch.where(rise > 0, rise, 1.0)
        sigma[LUMBAR] = [torch.where(rise > 0, lumbar, 1.0)] * 3
        measured = self._measured_ratios(identity.vertices)
        for k, (joint, dimension, *_) in enumerate(_MEASURED_SCALES):
            sigma[joint][dimension] = measured[:, k]
        depth = torch.minimum(measured[:, -2], measured[:, -1])
        sigma[THORAX][0] = depth
        sigma[LUMBAR][0] = depth
        return torch.stack([torch.stack(row, -1) for row in sigma], 1)

    def _measured_ratios(self, vertices: Tensor) -> Tensor:
        """Signed extents of the shaped skin over those of the template: (B, 9)."""
        flat = vertices.transpose(1, 2).flatten(1)
        extents = flat[:, self._extent_first] - flat[:, self._extent_second]
        known = self._extents != 0
        return torch.where(known, extents / torch.where(known, self._extents, 1.0), 1.0)

    # ---- pose -------------------------------------------------------------------------------

    def joint_rotations(self, poses: Tensor) -> Tensor:
        """Rp_j in bone space (2.3): poses (B, 46), radians -> (B, 24, 3, 3)."""
        self._check("poses", poses, (NUM_POSES,))
        sine = torch.sin(poses)[..., None, None]
        half = torch.sin(poses * 0.5)[..., None, None]
        eye = torch.eye(3, dtype=poses.dtype, device=poses.device)
        cross, squared = self._axis_cross[:NUM_POSES], self._axis_cross_squared[:NUM_POSES]
        single = eye + sine * cross + 2 * half * half * squared
        single = torch.cat((single, eye.expand(poses.shape[0], 1, 3, 3)), 1)
        single = single[:, self._dof_slots].view(-1, NUM_JOINTS, 3, 3, 3)
        return single[:, :, 2] @ single[:, :, 1] @ single[:, :, 0]

    def local_translations(self, poses: Tensor, identity: SkelIdentity) -> Tensor:
        """Local translations t_i (3.6), body axes: (B, 24, 3)."""
        arcs = self._spine_arcs(poses, identity.spine_lengths)
        right, left = self._scapula_paths(poses, identity.scapula_extents)
        offsets = identity.offsets.expand(poses.shape[0], -1, -1)
        return torch.cat(
            (
                offsets[:, :LUMBAR],
                offsets[:, LUMBAR:SCAPULA_R] + arcs,
                (offsets[:, SCAPULA_R] + right)[:, None],
                offsets[:, SCAPULA_R + 1 : SCAPULA_L],
                (offsets[:, SCAPULA_L] + left)[:, None],
                offsets[:, SCAPULA_L + 1 :],
            ),
            dim=1,
        )

    @staticmethod
    def _spine_arcs(poses: Tensor, lengths: Tensor) -> Tensor:
        """C(bending, extension) - C(0, 0) of lumbar, thorax and head: (B, 3, 3).

        The end of an arc of length l and angle a is l (a/2 sinc^2(a/2), sinc a), which keeps its
        digits at small angles, unlike l (1 - cos a)/a.
        """
        angles = poses[:, 17:26].view(-1, 3, 3)[:, :, :2]  # bending, extension; no twist
        half = sinc(angles / 2)
        sideways = lengths[..., None] * angles / 2 * half * half
        rise = lengths * (sinc(angles) - 1).sum(-1)
        return torch.stack((-sideways[..., 0], rise, -sideways[..., 1]), -1)

    @staticmethod
    def _scapula_paths(poses: Tensor, extents: Tensor) -> tuple[Tensor, Tensor]:
        """S(abduction, elevation) - S(0, 0) of the right and left scapula: (B, 3) each."""
        width, height = extents[:, 0] / 4, extents[:, 1] / 2
        quarter = math.pi / 4
        paths = []
        for abduction, elevation, side in (
            (poses[:, 26], poses[:, 27], -1.0),
            (-poses[:, 36], -poses[:, 37], 1.0),
        ):
            reach = torch.cos(elevation - quarter) * torch.cos(abduction) - math.cos(quarter)
            drop = torch.sin(elevation - quarter) + math.sin(quarter)
            paths.append(
                torch.stack(
                    (side * width * reach, -height * drop, width * torch.sin(abduction)), -1
                )
            )
        return paths[0], paths[1]

    def bone_transforms(
        self, poses: Tensor, identity: SkelIdentity
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward kinematics (3.5-3.7), without `trans`.

        poses: (B, 46); identity of B or 1 rows. Returns the world rotations G (B, 24, 3, 3), the
        world joint positions (B, 24, 3) and the local rotations R_i (B, 24, 3, 3).
        """
        bases = identity.bases
        local = bases @ self.joint_rotations(poses) @ bases.transpose(-1, -2)
        steps = torch.cat((local, self.local_translations(poses, identity)[..., None]), -1)
        world = [steps[:, :1]]
        for k in range(1, self._levels):
            above = world[-1][:, getattr(self, f"_above_{k}")]
            moved = above[..., :3] @ steps[:, getattr(self, f"_level_{k}")]
            world.append(torch.cat((moved[..., :3], moved[..., 3:] + above[..., 3:]), -1))
        chain = torch.cat(world, 1)[:, self._unwalk]
        return chain[..., :3], chain[..., 3], local

    def pose_features(self, local_rotations: Tensor) -> Tensor:
        """R - I of SMPL joints 1..23 as the correctives see them (3.8): (B, 207)."""
        eye = torch.eye(3, dtype=local_rotations.dtype, device=local_rotations.device)
        moved = local_rotations - eye
        rows = [
            moved[:, source] if source >= 0 else torch.zeros_like(moved[:, 0])
            for source in POSE_FEATURE_SOURCES
        ]
        return torch.stack(rows, 1).flatten(1)

    def forward(
        self,
        poses: Tensor,
        betas: Tensor | None = None,
        trans: Tensor | None = None,
        skeleton: bool = False,
        *,
        identity: SkelIdentity | None = None,
    ) -> SkelOutput:
        """Pose the body.

        poses: (B, 46) radians; betas: (B or 1, 10), or `identity` from `shape(betas)`; trans:
        (B, 3) metres, added last (zero if absent); skeleton: also pose the bone mesh.
        Raises ValueError for other shapes, dtypes or devices than the model's.
        """
        self._check("poses", poses, (NUM_POSES,))
        if (betas is None) == (identity is None):
            raise ValueError("SKEL: expected either betas or identity, found both or neither")
        with torch.autocast(poses.device.type, enabled=False):
            if identity is None:
                identity = self.shape(betas)
            batch = poses.shape[0]
            if len(identity) not in (1, batch):
                raise ValueError(
                    f"SKEL: expected betas or identity of 1 or {batch} rows (as poses), "
                    f"found {len(identity)}"
                )
            if trans is None:
                trans = poses.new_zeros(batch, 3)
            self._check("trans", trans, (3,))
            if trans.shape[0] != batch:
                raise ValueError(f"SKEL: expected trans of {batch} rows, found {trans.shape[0]}")
            return self._posed(poses, identity, trans, skeleton)

    def _posed(
        self, poses: Tensor, identity: SkelIdentity, trans: Tensor, skeleton: bool
    ) -> SkelOutput:
        rotations, positions, local = self.bone_transforms(poses, identity)
        shift = positions - (rotations @ identity.joints[..., None]).squeeze(-1)
        affine = torch.cat((rotations, shift[..., None]), -1)
        eye = torch.eye(3, dtype=poses.dtype, device=poses.device)
        features = (local - eye)[:, self._feature_joints].flatten(1)
        shaped = identity.vertices.transpose(1, 2).flatten(1)
        bones = self._bones_at_rest(identity) if skeleton else None

        skin_parts, bone_parts = [], []
        chunk = _CHUNK_CPU if poses.device.type == "cpu" else _CHUNK_ACCELERATOR
        for start in range(0, poses.shape[0], chunk):
            rows = slice(start, start + chunk)
            own = rows if len(identity) > 1 else slice(None)
            skin = self._skin(features[rows], shaped[own], affine[rows], trans[rows])
            skin_parts.append(skin)
            if bones is not None:
                bone_parts.append(self._bones(bones[own], affine[rows], trans[rows]))
        return SkelOutput(
            skin_vertices=_join(skin_parts, poses, NUM_VERTICES),
            joints=positions + trans[:, None],
            joint_orientations=rotations @ identity.orientations,
            skeleton_vertices=(
                _join(bone_parts, poses, len(self.skeleton_template)) if skeleton else None
            ),
        )

    def _skin(self, features: Tensor, shaped: Tensor, affine: Tensor, trans: Tensor) -> Tensor:
        """Skin of one chunk (3.8, 3.9): (b, 6890, 3)."""
        points = torch.addmm(shaped, features, self._offset_basis.t())
        points = points.view(-1, 3, NUM_VERTICES)
        posed = _blend(self.skin_weights, affine, points)
        return (posed + trans[..., None]).transpose(1, 2).contiguous()

    def _bones_at_rest(self, identity: SkelIdentity) -> Tensor:
        """Affine map of each bone from its own frame to the rest pose: (B or 1, 24, 3, 4)."""
        scaled = identity.orientations * self.bone_scale(identity)[:, :, None, :]
        return torch.cat((scaled, identity.joints[..., None]), -1)

    def _bones(self, rest: Tensor, affine: Tensor, trans: Tensor) -> Tensor:
        """Bone mesh of one chunk (3.10): (b, Nk, 3).

        A vertex that follows one bone needs one matrix product for the whole bone; only those
        along the spine are blended.
        """
        batch = affine.shape[0]
        moved = affine[..., :3] @ rest
        shift = moved[..., 3:] + affine[..., 3:] + trans[:, None, :, None]
        moved = torch.cat((moved[..., :3], shift), -1)
        columns = moved.permute(1, 3, 0, 2).reshape(NUM_JOINTS, 4, batch * 3)
        parts = [
            (self._rigid_points[start:stop] @ columns[bone]).view(-1, batch, 3)
            for bone, start, stop in self._bone_runs
        ]
        if self._blended_points.shape[-1]:
            still = _blend(self._blended_rigid_weights, rest, self._blended_points)
            posed = _blend(self._blended_weights, affine, still) + trans[..., None]
            parts.append(posed.permute(2, 0, 1))
        return torch.cat(parts)[self._bone_unsort].transpose(0, 1).contiguous()

    def _check(self, name: str, tensor: Tensor, tail: tuple[int, ...]) -> None:
        if tensor.ndim != 1 + len(tail) or tuple(tensor.shape[1:]) != tail:
            expected = ", ".join(map(str, ("B", *tail)))
            raise ValueError(f"SKEL: expected {name} ({expected}), found {tuple(tensor.shape)}")
        if tensor.dtype != self.dtype or tensor.device != self.device:
            raise ValueError(
                f"SKEL: expected {name} as {self.dtype} on {self.device} (the model's), found "
                f"{tensor.dtype} on {tensor.device}; use skel.to(...) or {name}.to(...)"
            )


def _join(parts: list[Tensor], like: Tensor, vertices: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else like.new_zeros(0, vertices, 3)
