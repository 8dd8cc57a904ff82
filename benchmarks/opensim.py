"""How fast models and motions are written for OpenSim: `python -m benchmarks.opensim`.

One core, processor time. A model: the .osim text of a person whose SKEL model is loaded, masses
included. A frame: angles re-decomposed, made continuous, and written as a line of .mot.
"""

import argparse

import numpy as np
import torch

from benchmarks import measure
from skel_fit import joint_limits
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, osim_writer, subject, tables

MODEL_MS, FRAMES_PER_SECOND = 30.0, 10_000.0


def main() -> None:
    """Print the section of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    measure.set_threads(1)
    skel = load_skel(default_body_directory(), "male", dtype=torch.float64)
    shared = osim_writer.template(skel)
    ground = subject.GROUNDS["camera"]
    betas = torch.tensor(np.random.default_rng(0).normal(size=(given.repeats, 10)))

    models, shapes = measure.Clock(), measure.Clock()
    people = []
    for k in range(given.repeats):
        people.append(shapes.call(lambda k=k: subject.subjects(skel, betas[k : k + 1])[0]))
        models.call(
            lambda person=people[-1]: osim_writer.osim_text("p", person, shared, ground, "opensim")
        )
    root = people[0].root(ground)
    poses, trans = motion(given.frames)
    times = np.arange(given.frames) / 30
    motions: dict[str, measure.Clock] = {kind: measure.Clock() for kind in angles.ANGLES}
    for _ in range(5):
        for kind, clock in motions.items():
            clock.call(
                lambda kind=kind: tables.mot_text(
                    "m", times, angles.coordinates(poses, trans, root, kind)
                )
            )
    model_ms = (models.cpu + shapes.cpu) * 1000
    rows = [
        ("a model, ms", f"{model_ms:.1f}", f"<= {MODEL_MS:g}", met(model_ms <= MODEL_MS)),
        ("of it, the shape, ms", f"{shapes.cpu * 1000:.1f}", "", ""),
    ]
    for kind, clock in motions.items():
        rate = given.frames / clock.cpu
        rows.append(
            (f"frames of .mot a second, angles {kind}", f"{rate:,.0f}",
             f">= {FRAMES_PER_SECOND:,.0f}", met(rate >= FRAMES_PER_SECOND))
        )  # fmt: skip
    print(measure.markdown_conditions(measure.conditions()))
    print(measure.markdown_table(("what", "measured", "asked", "met"), rows))


def motion(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth motion inside the limits: poses (frames, 46), trans (frames, 3)."""
    limits = joint_limits.limits("default").copy()
    limits[:3] = [-1.2, 1.2]
    middle, half = limits.mean(1), (limits[:, 1] - limits[:, 0]) / 2
    rng = np.random.default_rng(0)
    phase, speed = rng.uniform(0, 6, 46), rng.uniform(0.2, 2, 46)
    time_ = np.arange(frames)[:, None] / 30
    return middle + 0.8 * half * np.sin(phase + speed * time_), np.sin(time_ * [[0.1, 0.2, 0.3]])


def met(yes: bool) -> str:
    """A word for a bar."""
    return "yes" if yes else "**no**"


if __name__ == "__main__":
    main()
