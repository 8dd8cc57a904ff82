"""The SKEL body model: 46 anatomical angles, 10 betas, translation -> skin, joints, bones.

Source: docs/reference/skel-model.md, whose anchors are cited as "(#chain)".
Body frame: x to the subject's left, y up, z forward; bone space: x forward, y up, z right.

On a CPU, float32 and enough rows, one pass of compiled code does the skin (`skinning.py`); the
operations here are its twin.
Memory: no tensor with a 4x4 (or 3x4) matrix per vertex is kept beyond one chunk of the batch.
Layout: vertices are kept component-major, (B, 3, V), until the end, so every pass is contiguous.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from skel_fit import anatomy, kinematics
from skel_fit.anatomy import NUM_BETAS, NUM_JOINTS, NUM_POSES, PARENTS, POSE_FEATURE_SOURCES
from skel_fit.kinematics import HEAD, LUMBAR, RADIUS_L, RADIUS_R, THORAX, ULNA_L, ULNA_R
from skel_fit.posing import PosedBones, RestBones, posed_bones
from skel_fit.rotations import safe_norm
from skel_fit.skeleton import Skeleton, numpy_of, skeleton_tables
from skel_fit.skinning import BoneWeights, asks_gradient, can_skin, skin

NUM_VERTICES = 6890
NUM_FACES = 13776

NUM_POSE_FEATURES = 207

HAND_R, HAND_L = 18, 23

# Bone sizes measured on the skin (#bone-scales): joint, bone dimension, body axis, two vertices.
# The left hand uses the right hand's vertices, as the published model does.
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
class SkelFrames:
    """What the bones need of a shape; depends on the betas only. Body frame, metres."""

    joints: Tensor  # (B, 24, 3) rest joints J
    offsets: Tensor  # (B, 24, 3) o_i = J_i - J_parent(i), o_0 = J_0
    orientations: Tensor  # (B, 24, 3, 3) bone orientation K_i at rest
    bases: Tensor  # (B, 24, 3, 3) K_i Ra_i^T: local rotation R_i = basis Rp_i basis^T
    lengths: Tensor  # (B, 5) arcs of lumbar, thorax and head; width and height of the scapula paths

    @property
    def spine_lengths(self) -> Tensor:
        """(B, 3) arcs of lumbar, thorax, head."""
        return self.lengths[:, :3]

    @property
    def scapula_extents(self) -> Tensor:
        """(B, 2) width and height of the scapula paths."""
        return self.lengths[:, 3:]

    def __len__(self) -> int:
        return self.joints.shape[0]

    def rows(self, index: Tensor | slice) -> Self:
        """Those of some rows."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class SkelIdentity(SkelFrames):
    """Everything that depends on the betas only; reuse it for all poses of a person.

    Body frame, metres. B may be 1 and is then shared by all poses.
    """

    betas: Tensor  # (B, 10)
    vertices: Tensor  # (B, 6890, 3) shaped rest skin


@dataclass(frozen=True)
class SkelOutput:
    """Result of the forward pass, body (or camera) frame, metres."""

    skin_vertices: Tensor  # (B, 6890, 3)
    joints: Tensor  # (B, 24, 3)
    joint_orientations: Tensor  # (B, 24, 3, 3)
    skeleton_vertices: Tensor | None  # (B, Nk, 3)


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
    _template_flat: Tensor  # (3V,) component-major, as the bases below
    _joint_template: Tensor
    _joint_basis: Tensor
    _bone_directions: Tensor
    _basis: Tensor  # (3V, F + 10): correctives, then betas
    _rigid_points: Tensor
    _blended_points: Tensor
    _blended_rigid_weights: Tensor
    _blended_weights: Tensor
    _bone_unsort: Tensor
    _bone_points: Tensor
    _extent_first: Tensor
    _extent_second: Tensor
    _extents: Tensor
    _apose_lengths: Tensor

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
        self._skeleton: Skeleton[np.ndarray] | None = None  # made when first needed

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
        self._floats("_joint_template", (regressor @ template).reshape(-1))
        joint_basis = np.einsum("jv,vck->jck", regressor, directions)
        self._floats("_joint_basis", joint_basis.reshape(-1, NUM_BETAS))

    def _derive_tree(self, arrays: SkelArrays) -> None:
        """Children (#tree) and template directions of the bones."""
        # The first column whose stored parent is i; 0 means leaf. The root's own entry is used as
        # stored, so that a file that writes 0 there has a leaf pelvis, as in the published model.
        stored = arrays.kintree_parents.astype(np.int64).tolist()
        child = tuple(stored.index(i) if i in stored else 0 for i in range(NUM_JOINTS))
        self._child: tuple[int, ...] = child
        directions = kinematics.bone_directions(arrays.per_joint_rot, arrays.apose_trans)
        self._floats("_bone_directions", directions)

    def _derive_correctives(self, arrays: SkelArrays) -> None:
        """Corrective basis in component-major order, without the columns of unused SMPL joints."""
        used = [k for k, source in enumerate(POSE_FEATURE_SOURCES) if source >= 0]
        self._feature_joints = tuple(POSE_FEATURE_SOURCES[k] for k in used)
        columns = [9 * k + e for k in used for e in range(9)]
        offsets = arrays.posedirs.transpose(1, 0, 2).reshape(-1, NUM_POSE_FEATURES)[:, columns]
        shapes = arrays.shapedirs.transpose(1, 0, 2).reshape(-1, NUM_BETAS)
        self._floats("_basis", np.concatenate((offsets, shapes), 1))
        self._bone_weights = BoneWeights.of(arrays.skin_weights)

    def _derive_bones(self, arrays: SkelArrays) -> None:
        """Bone vertices sorted into rigid ones, a run for each bone, and blended ones."""
        rigid, smooth = arrays.skeleton_weights_rigid, arrays.skeleton_weights
        bone = rigid.argmax(1)
        one_hot = np.eye(NUM_JOINTS)[bone]
        is_rigid = (rigid == one_hot).all(1) & (smooth == one_hot).all(1)
        order: list[np.ndarray] = []
        self._bone_runs: list[tuple[int, int, int]] = []
        for b in range(NUM_JOINTS):
            members = np.flatnonzero(is_rigid & (bone == b))
            if len(members):
                start = sum(len(part) for part in order)
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
        # The same in one pass: a vertex blends pairs of (bone of the pose, bone at rest).
        moved, still = np.nonzero((smooth != 0).T.astype(np.float64) @ (rigid != 0))
        self._bone_pairs = moved.tolist(), still.tolist()
        self._pair_weights = BoneWeights.of(smooth[:, moved] * rigid[:, still])
        self._floats("_bone_points", points.T.reshape(1, -1))

        # Template extents that the measured bone scales divide by (#bone-scales).
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

    @property
    def _shape_basis(self) -> Tensor:
        return self._basis[:, -NUM_BETAS:]

    # ---- shape ------------------------------------------------------------------------------

    def shape(self, betas: Tensor) -> SkelIdentity:
        """Everything that depends on betas (B, 10) only; reusable for many poses.

        Anchors #rest, #bone-orientation.
        """
        frames = self._frames(betas)
        flat = torch.addmm(self._template_flat, betas, self._shape_basis.t())
        return SkelIdentity(
            **{field.name: getattr(frames, field.name) for field in fields(frames)},
            betas=betas,
            vertices=flat.view(-1, 3, NUM_VERTICES).transpose(1, 2),
        )

    def _frames(self, betas: Tensor) -> SkelFrames:
        self._check("betas", betas, (NUM_BETAS,))
        # The small part in float64: rounding of the rest joints and bone orientations would be the
        # largest part of the error of the posed mesh.
        joints = torch.addmm(
            self._joint_template.double(), betas.double(), self._joint_basis.double().t()
        ).view(-1, NUM_JOINTS, 3)
        offsets = kinematics.rest_offsets(joints)
        turns = kinematics.bone_turns(self._bone_directions.double(), offsets)
        orientations = turns @ self.per_joint_rot.double()
        bases = orientations @ self.apose_rot.double().transpose(1, 2)
        return SkelFrames(
            joints=joints.to(self.dtype),
            offsets=offsets.to(self.dtype),
            orientations=orientations.to(self.dtype),
            bases=bases.to(self.dtype),
            lengths=kinematics.moving_lengths(joints).to(self.dtype),
        )

    def bone_scale(self, identity: SkelIdentity) -> Tensor:
        """Bone scales sigma (B, 24, 3): front-back, up-down, left-right (#bone-scales)."""
        lengths = self._apose_lengths[1:]
        known = lengths > 0  # a bone of template length zero keeps its size
        ratio = safe_norm(identity.offsets[:, 1:]) / torch.where(known, lengths, 1.0)
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
        """Rp_j in bone space (#joint-rotation): poses (B, 46), radians -> (B, 24, 3, 3)."""
        self._check("poses", poses, (NUM_POSES,))
        return kinematics.joint_rotations(poses, self.axes)

    def local_translations(self, poses: Tensor, identity: SkelFrames) -> Tensor:
        """Local translations t_i (#local-translation), body axes: (B, 24, 3)."""
        return kinematics.local_offsets(poses, identity.offsets, identity.lengths)

    def bone_transforms(
        self, poses: Tensor, identity: SkelFrames, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward kinematics (#local-rotation to #chain), without `trans`.

        poses: (B, 46); identity of B or 1 rows; turns: (B, 24, 3, 3) joint rotations to use instead
        of those of `poses` (which then only bend the spine and slide the scapulae). Returns the
        world rotations G (B, 24, 3, 3), the world joint positions (B, 24, 3) and the local
        rotations R_i (B, 24, 3, 3).
        """
        bases = identity.bases
        turns = self.joint_rotations(poses) if turns is None else turns
        local = bases @ turns @ bases.transpose(-1, -2)
        offsets = self.local_translations(poses, identity)
        rotations, positions = kinematics.chain(local, offsets, PARENTS)
        return rotations, positions, local

    def pose_features(self, local_rotations: Tensor) -> Tensor:
        """R - I of SMPL joints 1..23 as the correctives see them (#correctives): (B, 207)."""
        return kinematics.pose_features(local_rotations, POSE_FEATURE_SOURCES)

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
        batch = poses.shape[0]
        given = betas if betas is not None else identity
        assert given is not None
        if len(given) not in (1, batch):
            raise ValueError(
                f"SKEL: expected betas or identity of 1 or {batch} rows (as poses), "
                f"found {len(given)}"
            )
        if trans is None:
            trans = poses.new_zeros(batch, 3)
        self._check("trans", trans, (3,))
        if trans.shape[0] != batch:
            raise ValueError(f"SKEL: expected trans of {batch} rows, found {trans.shape[0]}")
        with torch.autocast(poses.device.type, enabled=False):
            return self._posed(poses, given, trans, skeleton)

    def _posed(
        self, poses: Tensor, given: Tensor | SkelIdentity, trans: Tensor, skeleton: bool
    ) -> SkelOutput:
        """given: betas or an identity."""
        inputs = (poses, trans, *_tensors(given))
        fused = can_skin(inputs)
        if skeleton or not fused:
            given = given if isinstance(given, SkelIdentity) else self.shape(given)
        compiled = fused and not asks_gradient(_tensors(given))
        bones = (self._bones_compiled if compiled else self._bones_by_torch)(poses, given)
        if isinstance(given, Tensor):
            # The rest shape is linear in the betas, as the correctives are in their features.
            rest = self._template_flat[None]
        else:
            rest = given.vertices.transpose(1, 2).flatten(1)
        if fused:
            posed = skin(
                bones.moving, rest, bones.affine, trans, self._basis, self._bone_weights, self._skin
            )
        else:
            basis = self._basis[:, : bones.moving.shape[1]]
            parts = [
                self._skin(bones.moving[rows], rest[own], bones.affine[rows], trans[rows], basis)
                for rows, own in _chunks(poses, len(rest))
            ]
            posed = _join(parts, poses, NUM_VERTICES)
        mesh = None
        if skeleton:
            assert isinstance(given, SkelIdentity)
            mesh = self._bone_mesh(self._bones_at_rest(given), bones.affine, trans, compiled)
        return SkelOutput(
            skin_vertices=posed,
            joints=bones.positions + trans[:, None],
            joint_orientations=bones.orientations,
            skeleton_vertices=mesh,
        )

    def _bones_by_torch(self, poses: Tensor, given: Tensor | SkelIdentity) -> PosedBones:
        frames = self._frames(given) if isinstance(given, Tensor) else given
        rotations, positions, local = self.bone_transforms(poses, frames)
        moving = kinematics.pose_features(local, self._feature_joints)
        if isinstance(given, Tensor):
            moving = torch.cat((moving, given.expand(len(poses), -1)), 1)
        return PosedBones(
            positions,
            rotations @ frames.orientations,
            kinematics.skinning_transforms(rotations, positions, frames.joints),
            moving,
        )

    def _bones_compiled(self, poses: Tensor, given: Tensor | SkelIdentity) -> PosedBones:
        """Twin of `_bones_by_torch`."""
        if self._skeleton is None:
            self._skeleton = skeleton_tables(self)
        shape: Tensor | RestBones
        if isinstance(given, Tensor):
            self._check("betas", given, (NUM_BETAS,))
            shape = given
        else:
            shape = RestBones.of_tensors(given.joints, given.bases, given.lengths)
        sources = np.asarray(self._feature_joints, np.int64)

        def twin(poses: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            bones = self._bones_by_torch(poses, given)
            return bones.positions, bones.orientations, bones.affine, bones.moving

        return posed_bones(self._skeleton, sources, numpy_of(self.apose_rot), poses, shape, twin)

    def _skin(
        self, moving: Tensor, rest: Tensor, affine: Tensor, trans: Tensor, basis: Tensor
    ) -> Tensor:
        """Skin of one chunk (#correctives, #skin): (b, 6890, 3)."""
        points = torch.addmm(rest, moving, basis.t())
        points = points.view(-1, 3, NUM_VERTICES)
        posed = _blend(self.skin_weights, affine, points)
        return (posed + trans[..., None]).transpose(1, 2).contiguous()

    def _bones_at_rest(self, identity: SkelIdentity) -> Tensor:
        """Affine map of each bone from its own frame to the rest pose: (B or 1, 24, 3, 4)."""
        scaled = identity.orientations * self.bone_scale(identity)[:, :, None, :]
        return torch.cat((scaled, identity.joints[..., None]), -1)

    def _bone_mesh(self, rest: Tensor, affine: Tensor, trans: Tensor, compiled: bool) -> Tensor:
        """Bone mesh (B, Nk, 3) of bones at rest (B or 1, 24, 3, 4) and their motion."""
        if compiled and not asks_gradient((rest, affine, trans)):
            moved, still = self._bone_pairs
            turn, placed = affine[:, moved], rest[:, still]
            maps = turn[..., :3] @ placed
            maps[..., 3] += turn[..., 3]
            points, weights = self._bone_points, self._pair_weights
            nothing, basis = affine.new_zeros(len(affine), 0), points.new_zeros(points.shape[1], 0)
            return skin(nothing, points, maps, trans, basis, weights, self._skin)
        parts = [
            self._bones(rest[own], affine[rows], trans[rows])
            for rows, own in _chunks(affine, len(rest))
        ]
        return _join(parts, affine, len(self.skeleton_template))

    def _bones(self, rest: Tensor, affine: Tensor, trans: Tensor) -> Tensor:
        """Bone mesh of one chunk (#bone-scales): (b, Nk, 3).

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


def _tensors(given: Tensor | SkelIdentity) -> tuple[Tensor, ...]:
    """Those of betas or of an identity."""
    if isinstance(given, Tensor):
        return (given,)
    return tuple(getattr(given, field.name) for field in fields(given))


def _chunks(poses: Tensor, shapes: int) -> list[tuple[slice, slice]]:
    """Rows that are worked on at once, and those of their shapes."""
    size = _CHUNK_CPU if poses.device.type == "cpu" else _CHUNK_ACCELERATOR
    rows = [slice(start, start + size) for start in range(0, len(poses), size)]
    return [(one, one if shapes > 1 else slice(None)) for one in rows]


def _join(parts: list[Tensor], like: Tensor, vertices: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else like.new_zeros(0, vertices, 3)
