"""Direct fit against the marker route: `python -m benchmarks.markers` (needs the extra `biomech`).

A known SKEL motion gives a skin; noise is added; then (a) `fit_skel_to_vertices`, and (b) virtual
markers on the same skin through OpenSim's InverseKinematicsTool on the exported model of the same
person. Both know the shape. The exported model counts its coordinates as SKEL does, so that the
errors of both are differences of the same 46 angles.

Noise is drawn in two ways, both with the given standard deviation along each axis: independent for
every vertex, which averages out over 6,890 of them and flatters a fit to all; and smooth over the
skin, as soft tissue and the errors of estimated meshes are, which does not.
"""

import argparse
import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.poses import MOTION
from skel_fit.anatomy import DOFS, JOINT_NAMES, POSE_NAMES
from skel_fit.fit import fit_skel, fit_skel_to_vertices
from skel_fit.opensim import angles, osim_writer, subject, tables
from skel_fit.opensim.markers import Markers
from skel_fit.recipe import FitConfig

MILLIMETRES = (0, 5, 10)
KINDS = ("independent", "smooth")
MARKERS = (60, 120)
ASKED_DEGREES = 0.5
SMOOTH_OVER = 0.08
"""Metres of the rest skin over which smooth noise stays alike (scale of its Gaussian kernel)."""
_WAVES = 256
_FIRST_FRAME, _STEP = 200, 2
_BLOCK = 64
"""Rows that the solver takes at once."""
_PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "markers.png"
#: Three of five markers are kept of the large bodies, two of the others: 60 in all.
_LARGE = ("pelvis", "femur_r", "femur_l", "tibia_r", "tibia_l", "lumbar_body", "thorax", "head",
          "humerus_r", "humerus_l", "ulna_r", "ulna_l")  # fmt: skip
_IK = """<?xml version="1.0"?><OpenSimDocument Version="40500"><InverseKinematicsTool name="ik">
<model_file>{model}</model_file><marker_file>{markers}</marker_file><constraint_weight>Inf
</constraint_weight><accuracy>1e-05</accuracy><time_range>-1 1e6</time_range>
<report_errors>false</report_errors><output_motion_file>{out}</output_motion_file>
<IKTaskSet><objects>{tasks}</objects></IKTaskSet></InverseKinematicsTool></OpenSimDocument>"""


@dataclass(frozen=True)
class Truth:
    """poses (n, 46), trans (n, 3), skin (n, v, 3): of one person, body frame axes, m and rad."""

    poses: NDArray[np.float64]
    trans: NDArray[np.float64]
    skin: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """A method on one kind of noise: errors (n, 46) in degrees; frames a processor second."""

    method: str
    kind: str
    millimetres: int
    errors: NDArray[np.float64]
    rate: float

    def of(self, dofs: Sequence[int]) -> tuple[float, float]:
        """Median and 95th percentile over frames and some angles."""
        chosen = self.errors[:, list(dofs)]
        return float(np.median(chosen)), float(np.percentile(chosen, 95))


def main() -> None:
    """Print the section of docs/benchmarks.md and draw its figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--picture", type=Path, default=_PICTURE)
    given = parser.parse_args()
    opensim = importlib.import_module("opensim")  # not the benchmark beside this one
    opensim.Logger.setLevelString("Error")
    opensim.Logger.removeFileSink()
    measure.set_threads(1)  # threads that wait for each other would count as work
    conditions = measure.conditions(opensim=opensim.GetVersion(), frames=given.frames)
    pair = measure.Pair.default()
    betas = torch.tensor(np.random.default_rng(7).normal(size=(1, 10)))
    truth = known_motion(pair, betas, given.frames)
    person = subject.subjects(pair.skel64, betas)[0]
    outcomes = []
    for kind in KINDS:
        for millimetres in MILLIMETRES:
            if kind != KINDS[0] and not millimetres:
                continue  # no noise is of no kind
            shift = noise(kind, person.vertices, given.frames, millimetres / 1000)
            skin = truth.skin + shift
            name = kind if millimetres else "none"
            outcomes.append(_direct(pair, truth, betas, skin, name, millimetres))
            for count in MARKERS:
                outcomes.append(
                    _markers(opensim, pair, person, truth, skin, count, name, millimetres)
                )
    _print(conditions, outcomes)
    _draw(outcomes, given.picture)


def known_motion(pair: measure.Pair, betas: torch.Tensor, frames: int) -> Truth:
    """Consecutive frames of the committed motion as exact SKEL poses of one person."""
    with np.load(MOTION) as motion:
        rows = slice(_FIRST_FRAME, _FIRST_FRAME + _STEP * frames, _STEP)
        poses = torch.as_tensor(motion["poses"][rows].astype(np.float64))
    zeros = torch.zeros(frames, 3, dtype=torch.float64)
    fit = fit_skel(
        pair.skel, pair.smpl, poses, betas.expand(frames, -1), zeros, FitConfig()
    )  # any plausible motion: from here on it is the truth
    found, trans = fit.poses.double(), fit.trans.double()
    with torch.no_grad():
        skin = pair.skel64(found, betas.expand(frames, -1), trans).skin_vertices
    return Truth(found.numpy(), trans.numpy(), skin.numpy())


def noise(kind: str, rest: NDArray, frames: int, size: float) -> NDArray[np.float64]:
    """(frames, v, 3) metres, standard deviation `size` along each axis, each frame drawn anew.

    Smooth: a Gaussian random field over the rest skin (v, 3) by random Fourier features.
    """
    draw = np.random.default_rng([frames, int(size * 1e4), KINDS.index(kind)])
    if kind == "independent":
        return draw.normal(0.0, 1.0, (frames, len(rest), 3)) * size
    waves = draw.normal(0.0, 1 / SMOOTH_OVER, (_WAVES, 3))
    phase = rest @ waves.T
    basis = np.concatenate((np.cos(phase), np.sin(phase)), 1) / np.sqrt(_WAVES)
    return size * np.einsum("vk,nkc->nvc", basis, draw.normal(size=(frames, 2 * _WAVES, 3)))


def _direct(
    pair: measure.Pair,
    truth: Truth,
    betas: torch.Tensor,
    skin: NDArray,
    kind: str,
    millimetres: int,
) -> Outcome:
    # Whole blocks, for the speed: a part of one costs as much. Rows do not depend on each other.
    rows = np.resize(np.arange(len(skin)), -(-len(skin) // _BLOCK) * _BLOCK)
    target, shape = torch.tensor(skin[rows]), betas.expand(len(rows), -1)

    config = FitConfig(recipe="surface", block_size=_BLOCK)

    def fit() -> NDArray[np.float64]:
        return fit_skel_to_vertices(pair.skel, target, shape, config).poses.double().numpy()

    if not millimetres:
        fit()  # tables and kernels are made once
    clock = measure.Clock()
    found = clock.call(fit)[: len(skin)]
    rate = len(rows) / clock.cpu
    return Outcome("direct fit", kind, millimetres, _apart(found, truth.poses), rate)


def _markers(
    opensim: Any,
    pair: measure.Pair,
    person: subject.Subject,
    truth: Truth,
    skin: NDArray,
    count: int,
    kind: str,
    millimetres: int,
) -> Outcome:
    shared = osim_writer.template(pair.skel64, markers_per_body=5)
    chosen = some_markers(shared.markers, count)
    ground = _upright_at_start(truth, person)
    frames = len(skin)
    times = np.arange(frames) * _STEP / 30
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, trc, out, setup = (folder / n for n in ("m.osim", "m.trc", "ik.mot", "ik.xml"))
        model.write_text(osim_writer.osim_text("person", person, shared, ground, "skel"))
        trc.write_text(
            tables.trc_text("m", times, chosen.names, skin[:, chosen.vertices] @ ground.T)
        )
        tasks = "".join(
            f'<IKMarkerTask name="{marker}"><apply>true</apply><weight>1</weight></IKMarkerTask>'
            for marker in chosen.names
        )
        setup.write_text(_IK.format(model=model, markers=trc, out=out, tasks=tasks))
        clock = measure.Clock()
        with _silence():
            clock.call(_inverse_kinematics(opensim, setup))
        motion = tables.read_motion(out.read_text(), str(out))
    turns = [column not in angles.TRANSLATIONS for column in motion.columns]
    values = tables.radians(motion, turns, str(out), "degrees")
    found = np.stack([values[:, motion.columns.index(name)] for name in POSE_NAMES], 1)
    rate = frames / clock.cpu
    apart = _apart(found, truth.poses)
    return Outcome(f"{count} markers, OpenSim IK", kind, millimetres, apart, rate)


def _inverse_kinematics(opensim: Any, setup: Path) -> Callable[[], None]:
    def run() -> None:
        tool = opensim.InverseKinematicsTool(str(setup))
        if not tool.run():
            raise RuntimeError(f"{setup}: inverse kinematics failed")

    return run


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The tool prints each model past Python's `sys.stdout`."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def some_markers(every: Markers, count: int) -> Markers:
    """All 120 markers, or 60: the first of each body, which lie farthest apart."""
    if count == len(every):
        return every
    keep = [
        k
        for k, (name, body) in enumerate(zip(every.names, every.bodies, strict=True))
        if int(name.rsplit("_", 1)[1]) <= (3 if JOINT_NAMES[body] in _LARGE else 2)
    ]
    if len(keep) != count:
        raise ValueError(f"expected {count} markers, chose {len(keep)}")
    names = tuple(every.names[k] for k in keep)
    return Markers(names, every.bodies[keep], every.vertices[keep])


def _upright_at_start(truth: Truth, person: subject.Subject) -> NDArray[np.float64]:
    """Ground in which the first frame has the model's default pose at the root.

    The tool starts there; without it a person who looks the other way could find a wrong minimum.
    """
    row = angles.joint_axes("skel")[0]
    turned = angles.compose(truth.poses[:1, list(row.dofs)], row.axes)[0]
    to_body = person.orientations[0] @ person.apose[0].T
    return subject.GROUNDS["y-up"] @ (to_body @ turned @ to_body.T).T


def _apart(found: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Differences of angles (n, 46) in degrees, whole turns left out."""
    return np.degrees(np.abs((found - truth + np.pi) % (2 * np.pi) - np.pi))


# --- what is printed -------------------------------------------------------------------------

_BODY = tuple(range(3, len(POSE_NAMES)))
"""Angles of joints; the root's are left out, a `Outcome` has them as its pelvis."""


def _groups() -> dict[str, list[int]]:
    """Joint, both sides together -> its angles."""
    groups: dict[str, list[int]] = {}
    for joint, name in enumerate(angles.JOINT_LABELS):
        plain = name.removesuffix("_r").removesuffix("_l").replace("_", " ")
        groups.setdefault(plain, []).extend(DOFS[joint])
    return groups


def _print(conditions: dict[str, object], outcomes: Sequence[Outcome]) -> None:
    print(measure.markdown_conditions(conditions), "\n")
    rows: list[tuple[object, ...]] = []
    for one in outcomes:
        median, p95 = one.of(_BODY)
        rows.append((one.millimetres, one.kind, one.method, median, p95, one.rate))
    head = ("noise, mm", "kind", "method", "median, degrees", "p95", "frames a CPU second")
    print(measure.markdown_table(head, rows), "\n")
    at = [one for one in outcomes if one.millimetres in (0, MILLIMETRES[1])]
    rows = [
        (name, *("{:.2g} / {:.2g}".format(*one.of(dofs)) for one in at))
        for name, dofs in _groups().items()
    ]
    labels = [
        f"{one.method}, {f'{one.millimetres} mm {one.kind}' if one.millimetres else 'no noise'}"
        for one in at
    ]
    print(measure.markdown_table(("joint", *labels), rows))
    for one in at:
        if one.method == "direct fit" and one.millimetres:
            median = one.of(_BODY)[0]
            met = "met" if median <= ASKED_DEGREES else "**not met**"
            print(f"\nDirect fit, {one.kind}: {median:.3g} <= {ASKED_DEGREES} degrees: {met}.")


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.6))
    methods = list(dict.fromkeys(one.method for one in outcomes))
    for method, colour in zip(methods, ("#1b7837", "#d6604d", "#4393c3"), strict=True):
        for kind, style in zip(KINDS, ("-", "--"), strict=True):
            line = [o for o in outcomes if o.method == method and o.kind in (kind, "none")]
            left.plot(
                [o.millimetres for o in line],
                [o.of(_BODY)[0] for o in line],
                style, color=colour, marker="o", markersize=4, label=f"{method}, {kind}",
            )  # fmt: skip
    left.axhline(ASKED_DEGREES, color="grey", linewidth=0.8)
    left.set_yscale("log")
    left.set_xlabel("noise, mm along each axis")
    left.set_ylabel("median angle error, degrees")
    left.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    groups = _groups()
    place = np.arange(len(groups))
    for k, (method, colour) in enumerate(
        zip(methods, ("#1b7837", "#d6604d", "#4393c3"), strict=True)
    ):
        one = next(
            o
            for o in outcomes
            if (o.method, o.millimetres, o.kind) == (method, MILLIMETRES[1], KINDS[1])
        )
        heights = [one.of(dofs)[0] for dofs in groups.values()]
        right.bar(place + (k - 1) * 0.27, heights, 0.27, color=colour, label=method)
    right.set_xticks(place, list(groups), rotation=60, ha="right", fontsize=8)
    right.set_ylabel("median, degrees")
    right.set_title(f"{MILLIMETRES[1]} mm of smooth noise, by joint", fontsize=9)
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
