"""The bone mesh: every Rajagopal bone placed on the T-posed template, then pushed into the skin.

The right side is placed and mirrored. Directions below are of the body frame (x left, y up,
z forward) unless they are called bone space (x forward, y up, z right).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.spatial import cKDTree

from skel_fit.anatomy import SKEL_MIRROR

from .geometry import rotation_between
from .makehuman import Rig
from .rajagopal import Mesh, Rajagopal
from .skel_side import NOMINAL, bone_frames, forearm_roll
from .topology import CLOSED, FLIP

MARGIN = 0.002  # metres every bone vertex ends inside the skin
FACE_OPENNESS = 0.3  # less open skin of the head is lips, nostrils or ears seen from inside
FINGERS = ("thumb", "index", "middle", "ring", "little")


@dataclass(frozen=True)
class Part:
    """A placed bone: T pose, metres. `other` and `share` (n,): second joint it follows."""

    joint: int
    vertices: np.ndarray
    faces: np.ndarray
    other: int
    share: float = 0.0

    def mirrored(self) -> Part:
        return Part(int(SKEL_MIRROR[self.joint]), self.vertices * FLIP, self.faces[:, ::-1],
                    int(SKEL_MIRROR[self.other]), self.share)  # fmt: skip


@dataclass(frozen=True)
class Body:
    """What the bones are fitted to, one sex: template (6890, 3), faces, openness (6890,) of the
    skin, SMPL weights (6890, 24), SKEL joints (24, 3), rig heads and tails (163, 3)."""

    template: np.ndarray
    faces: np.ndarray
    openness: np.ndarray
    smpl_weights: np.ndarray
    joints: np.ndarray
    heads: np.ndarray
    tails: np.ndarray


@dataclass(frozen=True)
class Skeleton:
    """vertices (n, 3) T pose, metres; faces (m, 3); joint, other (n,) SKEL joints; share (n,) of
    `other` in the smooth weights; frames (24, 3, 3) bone space -> body frame."""

    vertices: np.ndarray
    faces: np.ndarray
    joint: np.ndarray
    other: np.ndarray
    share: np.ndarray
    frames: np.ndarray

    def in_bone_space(self, joints: np.ndarray) -> np.ndarray:
        """(n, 3): each bone in its own frame with its joint (24, 3) at the origin."""
        return np.einsum("vba,vb->va", self.frames[self.joint], self.vertices - joints[self.joint])


def _along(points: np.ndarray, source: tuple[np.ndarray, np.ndarray],
           target: tuple[np.ndarray, np.ndarray], base: np.ndarray,
           across: float | np.floating) -> np.ndarray:  # fmt: skip
    """Map the segment `source` (bone space) onto `target`: turned by `base` and the smallest
    further rotation, scaled along the segment to fit and by `across` sideways."""
    bone, wanted = base @ (source[1] - source[0]), target[1] - target[0]
    stretch = np.linalg.norm(wanted) / np.linalg.norm(bone)
    turned = (points - source[0]) @ (rotation_between(bone, wanted) @ base).T
    unit = wanted / np.linalg.norm(wanted)
    parallel = np.outer(turned @ unit, unit)
    return target[0] + stretch * parallel + across * (turned - parallel)


def _ends(mesh: Mesh, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Proximal and distal end of a long bone; proximal: nearer to the point `previous`."""
    centred = mesh.vertices - mesh.centre
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = centred @ axis
    low, high = along.min(), along.max()
    rim = 0.12 * (high - low)
    ends = [mesh.vertices[along < low + rim].mean(0), mesh.vertices[along > high - rim].mean(0)]
    ends.sort(key=lambda end: float(np.linalg.norm(end - previous)))
    return ends[0], ends[1]


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that take source (n, 3) nearest to target (n, 3)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = (s * sign).sum() / (a**2).sum()
    return scale, rotation, target.mean(0) - scale * source.mean(0) @ rotation.T


class _Builder:
    def __init__(self, source: Rajagopal, rig: Rig, body: Body) -> None:
        self.source, self.rig, self.body = source, rig, body
        self.joints = body.joints
        self.frames = bone_frames(body.joints)
        self.leg_scale = np.linalg.norm(self.joints[1] - self.joints[2]) / np.linalg.norm(
            source.offset["tibia_r"]
        )

    def head(self, name: str) -> np.ndarray:
        return self.body.heads[self.rig.index[f"{name}.R"]]

    def tail(self, name: str) -> np.ndarray:
        return self.body.tails[self.rig.index[f"{name}.R"]]

    def leg(self) -> list[Part]:
        joints, offset = self.joints, self.source.offset
        out = []
        origin = np.zeros(3)
        for name, joint, end in (
            ("r_femur", 1, offset["tibia_r"]),
            ("r_tibia", 2, offset["talus_r"]),
            ("r_fibula", 2, offset["talus_r"]),
            ("r_patella", 2, offset["talus_r"]),
        ):
            mesh = self.source.mesh(name)
            points = mesh.vertices
            if name == "r_patella":  # its own body in the source; here it rides on the tibia
                points = points + np.array([0.045, -0.005, 0])
            segment = (joints[joint], joints[joint + 1])
            placed = _along(points, (origin, end), segment, NOMINAL, self.leg_scale)
            out.append(Part(joint, placed, mesh.faces, joint))
        return out + self._foot()

    def _foot(self) -> list[Part]:
        """Tarsals and metatarsals by one affine map, each toe bone onto its MakeHuman toe bone."""
        offset = self.source.offset
        pieces = self.source.mesh("r_foot").pieces()
        heel = min(pieces, key=lambda p: float(p.vertices[:, 0].min()))
        metatarsals = sorted(pieces, key=lambda p: -float(np.ptp(p.vertices[:, 0])))
        metatarsals = [p for p in metatarsals if p is not heel][:5]
        metatarsals.sort(key=lambda p: float(p.centre[2]))  # big toe (medial) first
        low = heel.vertices.min(0)
        source = [np.array([low[0], low[1], heel.centre[2]]), -offset["calcn_r"]]
        source += [_ends(bone, np.zeros(3))[1] for bone in metatarsals]
        skin = self.body.template[self.body.smpl_weights[:, 8] > 0.5]
        back, sole = skin[:, 2].min(), skin[:, 1].min()
        middle = skin[skin[:, 2] < back + 0.03][:, 0].mean()
        target = [np.array([middle, sole + 0.008, back + 0.009]), self.joints[3]]
        target += [self.head(f"toe{k}-1") for k in range(1, 6)]
        affine = np.linalg.lstsq(np.c_[np.array(source), np.ones(7)], np.array(target), rcond=None)
        matrix = affine[0]

        def place(points: np.ndarray) -> np.ndarray:
            return np.c_[points, np.ones(len(points))] @ matrix

        talus = self.source.mesh("r_talus")
        out = [Part(3, place(talus.vertices - offset["calcn_r"]), talus.faces, 3)]
        out += [Part(4, place(piece.vertices), piece.faces, 4) for piece in pieces]
        width = np.linalg.norm(target[2] - target[6]) / np.linalg.norm(source[2] - source[6])
        return out + self._toes(width, matrix[:3].T)

    def _toes(self, across: float | np.floating, foot: np.ndarray) -> list[Part]:
        """The 14 phalanges; sorted by their side they come toe by toe, proximal to distal."""
        pieces = sorted(self.source.mesh("r_bofoot").pieces(), key=lambda p: float(p.centre[2]))
        u, _, vt = np.linalg.svd(foot)
        base = u @ vt
        out, number = [], 0
        for toe in range(1, 6):
            count = 2 if toe == 1 else 3
            previous = pieces[number].centre - [0.1, 0, 0]
            for k, mesh in enumerate(pieces[number : number + count], start=1):
                ends = _ends(mesh, previous)
                previous = ends[1]
                name = f"toe{toe}-{k}"
                start, stop = self.head(name), self.tail(name)
                if k == count:
                    stop = start + 0.75 * (stop - start)  # the tip is skin and nail
                placed = _along(mesh.vertices, ends, (start, stop), base, 0.9 * across)
                out.append(Part(5, placed, mesh.faces, 5))
            number += count
        return out

    def arm(self) -> list[Part]:
        joints, offset = self.joints, self.source.offset
        arm = self.frames[15]
        origin = np.zeros(3)
        forearm = offset["radius_r"] + offset["hand_r"]
        scale = np.linalg.norm(joints[16] - joints[15]) / np.linalg.norm(offset["ulna_r"])
        humerus = self.source.mesh("humerus_rv")
        ulna = self.source.mesh("ulna_rv")
        radius = self.source.mesh("radius_rv")
        out = [
            Part(15, _along(humerus.vertices, (origin, offset["ulna_r"]),
                            (joints[15], joints[16]), arm, scale), humerus.faces, 15),
            Part(16, _along(ulna.vertices, (origin, forearm), (joints[16], joints[18]), arm, scale),
                 ulna.faces, 16),
        ]  # fmt: skip
        # The radius crosses the ulna: rolled more and more towards the wrist.
        points = _along(radius.vertices, (origin, offset["hand_r"]), (joints[17], joints[18]), arm,
                        scale)  # fmt: skip
        axis = joints[18] - joints[17]
        share = np.clip((points - joints[17]) @ axis / (axis @ axis), 0, 1)
        rolled = [
            joints[17] + forearm_roll(joints, s) @ (p - joints[17])
            for s, p in zip(share, points, strict=True)
        ]
        out.append(Part(17, np.array(rolled), radius.faces, 17))
        return out + self._hand()

    def _hand(self) -> list[Part]:
        """Metacarpals and phalanges onto MakeHuman's finger bones, carpals between them."""
        base = self.frames[18]
        wrist = self.joints[18]
        source_wrist = np.zeros(3)
        fingers: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        for number, finger in enumerate(FINGERS, start=1):
            rig = [f"finger{number}-{k}" for k in (1, 2, 3)]
            names = ["proximal", "medial", "distal"]
            if finger == "thumb":  # its metacarpal is MakeHuman's first thumb bone
                chain = list(zip(["metacarpal1", "thumb_proximal", "thumb_distal"], rig,
                                 strict=True))  # fmt: skip
            else:
                chain = [(f"metacarpal{number}", f"metacarpal{number - 1}")]
                chain += [(f"{finger}_{n}", r) for n, r in zip(names, rig, strict=True)]
            starts = [self.head(bone) for _, bone in chain]
            stops = [*starts[1:], starts[-1] + 0.8 * (self.tail(chain[-1][1]) - starts[-1])]
            fingers[finger] = [
                (name, start, stop)
                for (name, _), start, stop in zip(chain, starts, stops, strict=True)
            ]
        middle = self.source.mesh("metacarpal3_rvs")
        across = np.linalg.norm(fingers["middle"][1][1] - wrist) / np.linalg.norm(
            _ends(middle, source_wrist)[1]
        )
        out = []
        from_, to = [source_wrist], [wrist]
        for placed_chain in fingers.values():
            previous = source_wrist
            for k, (name, start, stop) in enumerate(placed_chain):
                mesh = self.source.mesh(f"{name}_rvs")
                mesh = max(mesh.pieces(), key=lambda p: len(p.vertices))  # drop stray triangles
                ends = _ends(mesh, previous)
                previous = ends[1]
                if k == 0:
                    from_.append(ends[0])
                    to.append(start)
                placed = _along(mesh.vertices, ends, (start, stop), base, 0.9 * across)
                out.append(Part(18, placed, mesh.faces, 18))
        scale, rotation, shift = _similarity(np.array(from_), np.array(to))
        for name in ("pisiform", "lunate", "scaphoid", "triquetrum", "hamate", "capitate",
                     "trapezoid", "trapezium"):  # fmt: skip
            mesh = self.source.mesh(f"{name}_rvs")
            placed = scale * mesh.vertices @ rotation.T + shift
            out.append(Part(18, placed, mesh.faces, 18))
        return out

    def pelvis(self) -> tuple[list[Part], list[Part]]:
        """Midline parts and right-side parts."""
        joints = self.joints
        middle = (joints[1] + joints[6]) / 2
        hip = self.source.offset["femur_r"]
        wide = abs(joints[1][0]) / abs(hip[2])
        tall = 0.5 * wide + 0.5 * self.leg_scale
        anchor = hip * [1, 1, 0]

        def part(name: str) -> Part:
            mesh = self.source.mesh(name)
            placed = middle + (mesh.vertices - anchor) @ NOMINAL.T * [wide, tall, 0.9 * tall]
            return Part(0, placed, mesh.faces, 0)

        return [part("sacrum")], [part("r_pelvis")]

    def trunk(self) -> tuple[list[Part], list[Part]]:
        """Midline parts (spine, ribs, skull, jaw) and right-side parts (scapula, clavicle)."""
        place = self._trunk_map()
        middle = [self._vertebra(piece, place) for piece in self.source.mesh("hat_spine").pieces()]
        right = []
        for piece in self.source.mesh("hat_ribs_scap").pieces():
            n, side = len(piece.vertices), piece.centre[2]
            scapula = n >= 700 and abs(side) > 0.05
            clavicle = 200 < n < 300 and piece.vertices[:, 1].min() > 0.36
            placed = place(piece.vertices)
            if not (scapula or clavicle or n < 10):
                middle.append(Part(12, placed, piece.faces, 12))
            elif side > 0:
                right.append(Part(14, placed, piece.faces, 14))
        for name in ("hat_skull", "hat_jaw"):
            mesh = self.source.mesh(name)
            middle.append(Part(13, place(mesh.vertices), mesh.faces, 13))
        return middle, right

    @staticmethod
    def _vertebra(piece: Mesh, place) -> Part:
        """Each vertebra moves as one, between the joints below and above it."""
        height = piece.vertices[:, 1].mean()  # above the torso origin of the source, metres
        # Joint at each height; equal neighbours: a stretch that follows one joint only.
        heights = np.array([-0.12, 0.03, 0.18, 0.33, 0.47])
        owners = (0, 11, 12, 12, 13)
        above = int(np.clip(np.searchsorted(heights, height), 1, len(heights) - 1))
        t = float(np.clip((height - heights[above - 1]) / np.ptp(heights[above - 1 : above + 1]),
                          0, 1))  # fmt: skip
        lower, upper = owners[above - 1], owners[above]
        if t > 0.5:
            lower, upper, t = upper, lower, 1 - t
        return Part(lower, place(piece.vertices), piece.faces, upper, 0.0 if lower == upper else t)

    def _trunk_map(self):
        """Points of the source's torso frame -> T pose.

        Anchored at the hip and the shoulder line; the neck fades into a map that fits the skull
        between crown, chin, forehead and back of the skin's head.
        """
        joints, offset = self.joints, self.source.offset
        hips = (joints[1] + joints[6]) / 2
        shoulders = (joints[15] + joints[20]) / 2
        # Heights in the torso frame: hip line below, shoulder joints above the torso origin.
        low = offset["femur_r"][1] - offset["torso"][1]
        high = offset["humerus_r"][1]
        tall = (shoulders[1] - hips[1]) / (high - low)
        wide = abs(joints[15][0]) / abs(offset["humerus_r"][2])
        hip_depth = offset["femur_r"][0] - offset["torso"][0]
        skull = self._skull_map()

        def place(points: np.ndarray) -> np.ndarray:
            turned = points @ NOMINAL.T
            t = np.clip((points[:, 1] - low) / (high - low), 0, 1)
            depth = hip_depth + (offset["humerus_r"][0] - hip_depth) * t
            trunk = np.c_[
                turned[:, 0] * wide * 0.92,
                hips[1] + (points[:, 1] - low) * tall,
                hips[2] + (shoulders[2] - hips[2]) * t + 0.012
                + (turned[:, 2] - depth) * wide * 0.81,
            ]  # fmt: skip
            up = np.clip((points[:, 1] - 0.40) / 0.095, 0, 1)[:, None]
            return trunk * (1 - up) + skull(points) * up

        return place

    def _skull_map(self):
        source = np.concatenate([self.source.mesh(n).vertices for n in ("hat_skull", "hat_jaw")])
        low, high = source.min(0), source.max(0)
        head = self.body.template[self.body.smpl_weights[:, 15] > 0.8]
        x, y, z = head.T
        face = (abs(x) < 0.02) & (z > np.percentile(z, 80))
        chin, crown = y[face].min(), y.max()
        level = 0.5 * (crown + chin) + 0.02  # about the eyes
        band = abs(y - level) < 0.03
        brow = (abs(y - level - 0.02) < 0.015) & (abs(x) < 0.03)
        front, back = np.percentile(z[brow], 99), z[band].min()
        temple = np.percentile(abs(x[band & (abs(z - 0.5 * (front + back)) < 0.03)]), 80)
        # Skin thickness: 6 mm at the sides, 8 at chin, 10 at crown, 12 behind, 10 in front.
        scale = np.array(
            [
                (temple - 0.006) / high[2],
                (crown - chin - 0.018) / (high[1] - low[1]),
                (front - back - 0.022) / (high[0] - low[0]),
            ]
        )

        def place(points: np.ndarray) -> np.ndarray:
            turned = points @ NOMINAL.T - [0, low[1], low[0]]
            return turned * scale + [0, chin + 0.008, back + 0.012]

        return place


def _skin_samples(body: Body, spacing: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    """Points every `spacing` metres on the outer skin and their smooth unit normals.

    Cavities and, in the face, whatever lies behind lips and nostrils are left out, so that mouth
    and nose count as filled and the teeth stay where they are.
    """
    corner = body.template[body.faces]
    face_normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals = np.zeros_like(body.template)
    for k in range(3):
        np.add.at(normals, body.faces[:, k], face_normal)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    face = body.smpl_weights[:, 15] > 0.5
    covered = body.openness < np.where(face, FACE_OPENNESS, CLOSED)
    outer = body.faces[~covered[body.faces].any(1)]
    corner = body.template[outer]
    longest = np.linalg.norm(np.roll(corner, -1, axis=1) - corner, axis=2).max(1)
    divisions = np.ceil(longest / spacing).astype(int)
    points, directions = [], []
    for count in np.unique(divisions):
        faces = outer[divisions == count]
        i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        inside = i + j <= count
        shares = np.c_[i[inside], j[inside], count - i[inside] - j[inside]] / count
        points.append(np.einsum("sk,fkc->fsc", shares, body.template[faces]).reshape(-1, 3))
        directions.append(np.einsum("sk,fkc->fsc", shares, normals[faces]).reshape(-1, 3))
    normal = np.concatenate(directions)
    return np.concatenate(points), normal / np.linalg.norm(normal, axis=1, keepdims=True)


def push_inside(vertices: np.ndarray, faces: np.ndarray, body: Body) -> np.ndarray:
    """Bones (n, 3) with every vertex at least `MARGIN` inside the skin.

    The push is spread over the neighbourhood of what sticks out, so a bone yields as a whole
    instead of getting a dent.
    """
    points, normals = _skin_samples(body)
    tree = cKDTree(points)
    n = len(vertices)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    one = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    near = csr_matrix(((one + one.T) > 0).astype(float))
    average = diags(1 / np.maximum(np.asarray(near.sum(1)).ravel(), 1)) @ near

    def push(at: np.ndarray) -> np.ndarray:
        _, nearest = tree.query(at)
        above = ((at - points[nearest]) * normals[nearest]).sum(1) + MARGIN
        return -np.maximum(above, 0)[:, None] * normals[nearest]

    out = vertices.copy()
    for _ in range(12):
        wanted = push(out)
        spread = wanted
        for _ in range(20):
            spread = average @ spread
            stuck = np.linalg.norm(wanted, axis=1) > np.linalg.norm(spread, axis=1)
            spread[stuck] = wanted[stuck]
        out += spread
    for _ in range(5):
        out += push(out)
    return out


def build_skeleton(source: Rajagopal, rig: Rig, body: Body) -> Skeleton:
    """All bones of one sex. The number and order of vertices do not depend on the sex."""
    builder = _Builder(source, rig, body)
    pelvis, hip = builder.pelvis()
    trunk, girdle = builder.trunk()
    right = [*hip, *girdle, *builder.leg(), *builder.arm()]
    parts = [*pelvis, *trunk, *right, *(part.mirrored() for part in right)]
    sizes = [len(part.vertices) for part in parts]
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    faces = np.concatenate([part.faces + k for part, k in zip(parts, start, strict=True)])
    vertices = push_inside(np.concatenate([part.vertices for part in parts]), faces, body)
    return Skeleton(
        vertices,
        faces,
        np.repeat([part.joint for part in parts], sizes),
        np.repeat([part.other for part in parts], sizes),
        np.repeat([part.share for part in parts], sizes),
        builder.frames,
    )
