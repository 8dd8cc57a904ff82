"""The whole chain, from the fetched sources to the full arrays that `pack.py` stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skel_fit.anatomy import SKEL_MIRROR, SMPL_MIRROR

from .bones import Body, build_skeleton
from .correctives import fit_correctives
from .fetch import Sources
from .landmarks import find_landmarks, vertex_order
from .makehuman import N_BODY, Rig, read_base, read_targets
from .motion import smpl_motion
from .rajagopal import Rajagopal
from .shapes import SEXES, principal_shapes, sample_bodies
from .skel_side import skel_joints, skel_near, skel_weights
from .smpl_side import fit_regressor, smpl_near, smpl_weights
from .topology import build_topology
from .tpose import t_pose

# The body that the decimation measures its errors on: the middle of every axis.
AVERAGE = {axis: 0.5 for axis in ("gender", "muscle", "weight", "proportions", "cupsize",
                                  "firmness")} | {"age": 0.0, "height": 0.41}  # fmt: skip
AVERAGE |= dict.fromkeys(("african", "asian", "caucasian"), 1 / 3)


def build_body(sources: Sources, say: Callable[[str], None]) -> dict[str, Any]:
    """The arrays `pack` asks for, in the final vertex order. About four minutes on one core."""
    base = read_base(sources.makehuman)
    rig = Rig(sources.makehuman, base)
    targets = read_targets(sources.makehuman, len(base.vertices))
    say(f"{len(targets.names)} targets, {len(rig.names)} rig bones")
    posed = t_pose(rig, targets.shape(base.vertices, AVERAGE), np.arange(N_BODY))
    topology = build_topology(rig, base, posed.vertices)
    mirror = topology.mirror
    say(f"{len(topology.keep)} vertices, {len(topology.faces)} faces, "
        f"{topology.internal.sum()} in cavities")  # fmt: skip

    weights = smpl_weights(rig, topology.keep, mirror)
    anatomical = skel_weights(rig, topology.keep, mirror)
    source = Rajagopal(sources.rajagopal)
    out: dict[str, Any] = {"smpl_weights": weights, "skel_weights": anatomical}
    for sex, gender in SEXES.items():
        samples = sample_bodies(rig, base, targets, topology, gender)
        template, directions = principal_shapes(samples.vertices)
        regressor = fit_regressor(
            samples.vertices, samples.joints, smpl_near(weights), mirror, SMPL_MIRROR
        )
        miss = np.linalg.norm(regressor @ samples.vertices - samples.joints, axis=2)
        height = np.ptp(samples.vertices[..., 1], axis=1)
        say(f"{sex}: height {height.mean():.3f} +- {height.std():.3f} m")
        betas = _betas(samples.vertices, template, directions)
        lost = samples.vertices - template - np.einsum("vck,sk->svc", directions, betas)
        share = 1 - (lost**2).sum() / ((samples.vertices - template) ** 2).sum()
        lost = np.linalg.norm(lost, axis=2).mean() * 1e3
        say(f"{sex}: ten directions explain {share:.4f}, {lost:.1f} mm are left")
        say(f"{sex}: joints within {miss.mean() * 1e3:.1f} mm, at worst {miss.max() * 1e3:.0f} mm")
        out |= {
            f"{sex}_template": template,
            f"{sex}_shapedirs": directions,
            f"{sex}_regressor": regressor,
        }
        if gender is None:
            continue
        joints = np.array([skel_joints(rig, heads) for heads in samples.heads])
        regressor = fit_regressor(
            samples.vertices, joints, skel_near(anatomical), mirror, SKEL_MIRROR
        )
        miss = np.linalg.norm(regressor @ samples.vertices - joints, axis=2)
        say(f"{sex}: anatomical joints within {miss.mean() * 1e3:.1f} mm on average")
        rest = regressor @ template
        body = Body(template, topology.faces, topology.openness, weights, rest,
                    samples.heads.mean(0), samples.tails.mean(0))  # fmt: skip
        skeleton = build_skeleton(source, rig, body)
        say(f"{sex}: {len(skeleton.vertices)} bone vertices, {len(skeleton.faces)} faces")
        out |= {
            f"{sex}_anatomical": regressor,
            f"{sex}_per_joint_rot": skeleton.frames,
            f"{sex}_bones": skeleton.in_bone_space(rest),
            "bone_faces": skeleton.faces,
            "bone_joint": skeleton.joint,
            "bone_other": skeleton.other,
            "bone_share": skeleton.share,
        }

    neutral = out["neutral_template"]
    joints = out["neutral_regressor"] @ neutral
    posedirs, report = fit_correctives(neutral, topology.faces, weights, joints, mirror)
    for line in report:
        say(line)
    order = vertex_order(find_landmarks(neutral, weights, joints, rig, topology), len(neutral))
    number = np.empty(len(order), int)
    number[order] = np.arange(len(order))
    out |= {
        "faces": number[topology.faces],
        "mirror": number[mirror[order]],
        "posedirs": posedirs[order],
        "smpl_weights": weights[order],
        "skel_weights": anatomical[order],
    }
    for sex, gender in SEXES.items():
        for name in ("template", "shapedirs"):
            out[f"{sex}_{name}"] = out[f"{sex}_{name}"][order]
        for name in ("regressor",) if gender is None else ("regressor", "anatomical"):
            out[f"{sex}_{name}"] = out[f"{sex}_{name}"][:, order]
    return out


def _betas(vertices: np.ndarray, template: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(S, 10) coordinates of bodies (S, 6890, 3); the directions are orthogonal."""
    flat = directions.reshape(-1, directions.shape[2])
    return (vertices - template).reshape(len(vertices), -1) @ flat / (flat**2).sum(0)


def build_motion(sources: Sources, body: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `pipeline/demo_motion.npz`, for the neutral body of `build_body`."""
    joints = body["neutral_regressor"] @ body["neutral_template"]
    return smpl_motion(sources.asf, sources.amc, joints)
