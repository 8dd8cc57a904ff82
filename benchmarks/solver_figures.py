"""Draw the figures of docs/solver.md: what a near root gains, and how sure angles are.

    python -m benchmarks.solver_figures [--rows 64] [--into docs/images]

near-root.png: rows of `real` and `extreme` frames fitted with the frozen and the near root.
standard-deviations.png: SKEL meshes displaced by residual fields of other rows, as in
`benchmarks.intervals`, with the calibration that comes along.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.special import erfinv

from benchmarks.intervals import NINETY, as_result, fitted_again, measured
from benchmarks.measure import Pair, set_threads
from benchmarks.poses import extreme, real
from pipeline.calibration import Sample, free_motion
from skel_fit.anatomy import POSE_NAMES
from skel_fit.calibration import read_calibrations
from skel_fit.default_body import STANDIN_CALIBRATION
from skel_fit.fit import fit_skel, solver_of
from skel_fit.recipe import FitConfig
from skel_fit.uncertainty import angle_uncertainty

SHOWN = 24
"""Angles of the one body whose intervals are drawn."""


def near_root(pair: Pair, rows: int, path: Path) -> None:
    """Mean distance of each row, root frozen and near."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.2, 4.0), layout="constrained")
    for frames, color in ((real(rows), "tab:blue"), (extreme(rows), "tab:orange")):
        given = frames.poses, frames.betas, frames.transl
        errors = [
            1e3 * fit_skel(pair.skel, pair.smpl, *given, FitConfig(recipe=recipe)).vertex_error_mean
            for recipe in ("hierarchical", "hierarchical_near_root")
        ]
        axis.plot(errors[0], errors[1], ".", color=color, label=frames.name)
    top = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([0, top], [0, top], color="0.6", linewidth=0.8)
    axis.set(xlim=(0, top), ylim=(0, top), xlabel="root frozen, mm", ylabel="root near, mm")
    axis.legend(title="mean distance of a row")
    figure.savefig(path, dpi=100)


def standard_deviations(pair: Pair, rows: int, path: Path) -> None:
    """Errors of one body's angles in their intervals; how often intervals of any width hold."""
    from matplotlib import pyplot

    motion = free_motion()
    chosen = np.linspace(0, len(motion.poses) - 1, rows).astype(int)
    sample = Sample(motion.poses[chosen], motion.betas[chosen])
    truth = measured(pair, sample)
    solver = solver_of(pair.skel, pair.smpl, FitConfig())
    found = fitted_again(pair, solver, truth, truth.fields.roll(rows // 2, 0))
    still = torch.zeros(rows, 3, dtype=torch.float64)
    fit = fit_skel(pair.skel, pair.smpl, torch.as_tensor(sample.poses), truth.betas, still)
    result = as_result(fit, found, truth, solver)
    calibration = read_calibrations(STANDIN_CALIBRATION).pairs[pair.smpl.gender, pair.skel.gender]
    sd = angle_uncertainty(pair.skel, pair.smpl, result, None, calibration).sd[:, 3:].double()
    error = (result.poses[:, 3:] - truth.poses[:, 3:46]).double()
    figure, (one, all_) = pyplot.subplots(
        1, 2, figsize=(9.0, 3.8), layout="constrained", width_ratios=(2.2, 1.0)
    )
    # legs and trunk of the first body: the first angles
    degrees = np.degrees(torch.stack([error[0], NINETY * sd[0]])[:, :SHOWN].numpy())
    one.errorbar(range(SHOWN), np.zeros(SHOWN), degrees[1], fmt="none", color="0.6", capsize=3)
    one.plot(degrees[0], ".", color="tab:red")
    one.set_xticks(range(SHOWN), POSE_NAMES[3 : 3 + SHOWN], rotation=90, fontsize=7)
    one.set(ylabel="degrees", title="one body: errors and 90 % intervals")
    levels = np.linspace(0.02, 0.98, 49)
    ratio = (error.abs() / sd).numpy().ravel()
    held = [(ratio <= np.sqrt(2.0) * erfinv(level)).mean() for level in levels]
    all_.plot(levels, levels, color="0.6", linewidth=0.8)
    all_.plot(levels, held, color="tab:red")
    all_.set(xlabel="claimed", ylabel="held", title=f"all angles of {rows} bodies")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Write both figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    set_threads(given.threads)
    pair = Pair.default()
    near_root(pair, given.rows, given.into / "near-root.png")
    standard_deviations(pair, given.rows, given.into / "standard-deviations.png")


if __name__ == "__main__":
    main()
