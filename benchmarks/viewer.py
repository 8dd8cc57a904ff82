"""How large viewer pages and rigs are, and what their packing moves: `python -m benchmarks.viewer`.

The first frames of the demo motion, fitted as a sequence without smoothing, on the stand-in pair.
`--glb FILE` keeps the rig and FILE.npz with the true vertices, for `blender_reads.py`.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from benchmarks.poses import MOTION
from skel_fit import FitConfig, SequenceConfig, fit_sequence, joint_limits, load_skel
from skel_fit.anatomy import POSE_NAMES
from skel_fit.default_body import default_body_directory
from stages.drawing.viewer.bodies import Parameters, skel_surfaces, smpl_surface
from stages.drawing.viewer.page import Curves, Scene, scene_page
from stages.rigs.bvh import bvh
from stages.rigs.glb import glb
from stages.rigs.rig import rig_of

RATE = 30.0


def main() -> None:
    """Print the section of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--glb", type=Path)
    given = parser.parse_args()
    pair = measure.Pair.default("male")
    skel, smpl = fitted(pair, given.frames)
    surfaces = [*skel_surfaces({"male": pair.skel}, skel), smpl_surface({"male": pair.smpl}, smpl)]
    scene = scene_of(skel, surfaces)
    rows = []
    for what, shown in (("skin and bones", surfaces[:2]), ("with target", surfaces)):
        began = time.process_time()
        page = scene_page(replace(scene, surfaces=tuple(shown)))
        spent = time.process_time() - began
        size = len(page.html.encode()) / 1e6
        worst = ", ".join(
            f"{name} {1000 * mean:.2f} / {1000 * largest:.2f}"
            for name, (mean, largest) in page.deviations.items()
        )
        rows.append((f"page, {what}", f"{size:.2f}", worst, f"{spent:.1f}"))
    model = load_skel(default_body_directory(), "male", dtype=torch.float64)
    rig = rig_of({"male": model}, skel, RATE)
    began = time.process_time()
    made = glb(rig, "demo", {})
    mean, largest = made.deviation
    rows.append(("glb", f"{len(made.data) / 1e6:.2f}", f"skin {1000 * mean:.2f} / "
                 f"{1000 * largest:.2f}", f"{time.process_time() - began:.1f}"))  # fmt: skip
    rows.append(("bvh", f"{len(bvh(rig)) / 1e6:.2f}", "", ""))
    print(measure.markdown_conditions(measure.conditions(frames=given.frames)))
    head = ("file", "MB", "deviation mean / largest, mm", "processor seconds")
    print(measure.markdown_table(head, rows))
    if given.glb is not None:
        given.glb.write_bytes(made.data)
        np.savez(given.glb.with_suffix(".npz"), skin=rig.skin.vertices, bones=rig.bones.vertices)


def fitted(pair: measure.Pair, frames: int) -> tuple[Parameters, Parameters]:
    """SKEL and SMPL parameters of the first frames of the demo motion."""
    motion = np.load(MOTION)
    poses = torch.as_tensor(motion["poses"][:frames].reshape(frames, 72), dtype=torch.float32)
    transl = torch.as_tensor(motion["transl"][:frames], dtype=torch.float32)
    betas = torch.zeros(frames, 10)
    found = fit_sequence(
        pair.skel, pair.smpl, poses, betas, transl, FitConfig(), SequenceConfig(smoothing=0.0)
    )
    genders = ("male",) * frames
    return (
        Parameters(found.poses.numpy(), found.betas.numpy(), found.trans.numpy(), genders),
        Parameters(poses.numpy(), betas.numpy(), transl.numpy(), genders),
    )


def scene_of(skel: Parameters, surfaces: list) -> Scene:
    """The scene as `hmr-skel view` makes it."""
    frames = len(skel)
    low, high = np.degrees(joint_limits.limits("default")).T
    curves = Curves(
        tuple(POSE_NAMES), np.degrees(skel.poses), low, high, np.zeros((frames, 46), bool), None,
        (6, 9, 13, 16),
    )  # fmt: skip
    times = np.arange(frames) / RATE
    return Scene(
        title="demo motion", about="", labels=tuple(f"{t:.2f} s" for t in times), times=times,
        unit="seconds", rate=RATE, surfaces=tuple(surfaces), roots=skel.transl,
        up=np.array([0, 1.0, 0]), front=np.array([0, 0, 1.0]), curves=curves, independent=False,
        standin=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
