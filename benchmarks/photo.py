"""People in rendered pictures: found, landmarks, bodies, angles, intervals.

    python -m benchmarks.photo DIR [--rows 330] [--split actors|demo|train] [--part dev|test]

DIR: folder for the pictures, rendered where they are missing. Rows: `actors`, of actors and
activities of which nothing was learnt (run, kick, cartwheel, backflip), `demo`: its own motion, or
`train`: dance, walk and that motion, each fitted with a prior of the other two, twice as wide, so
that methods can be compared on people whom the prior does not know, without a look at `actors`.
Parts: half seconds of the takes in turn, of another seed each: things are tuned on `dev`
(validation split of the demo) and `test` (its test split) is looked at when nothing changes any
more. Found: somebody past all gates whose landmarks are those of the person (mean error below 30 %
of the label's box); a sure body elsewhere counts as false. PCK: 21 places that labels and landmarks
share, over the side of the label's box. Bodies: the male stand-in for everybody, prior `wide`,
against the label's SMPL mesh: 24 joints, both skins by SMPL's regressor. Angles: against SKEL of
that mesh.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import conditions, markdown_conditions, markdown_table
from pipeline.demo import demo_columns
from pipeline.takes import takes
from skel_fit.anatomy import POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_fit import KeypointFit
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.pose_prior import WIDE, PosePrior
from stages.photo.fitting import Fitter, Lens
from stages.photo.people import Finder
from stages.photo.photographs import Photographs
from stages.photo.results import Subject
from stages.regressor.evaluation.metrics import aligned_point_error, point_error
from tests.photo_pictures import Rendered, rendered
from tools.landmark_shifts import true_unknowns

ON_THE_PERSON = 0.3


SEEDS = {"dev": 9001, "test": 77}
TRAIN_SEED, POSES_SEED = 9103, 31
_RATES = {take.activity: take.fps for take in takes()}
_ANGLES = {
    "knee": ("knee_angle_l", "knee_angle_r"),
    "hip flexion": ("hip_flexion_l", "hip_flexion_r"),
    "elbow": ("elbow_flexion_l", "elbow_flexion_r"),
}
_NINETY = 1.645
_COSTS = (0.0, 0.1, 0.2, 0.4, np.inf)


def actors(rows: int, part: str) -> dict[str, np.ndarray]:
    columns = demo_columns(default_body_directory(), rows=60, seed=SEEDS[part], takes=1600)
    block = np.array([
        int(frame // (0.5 * _RATES.get(activity, 30)))
        for frame, activity in zip(columns["frame"], columns["activity"], strict=True)
    ])  # fmt: skip
    own = (columns["split"] == "test-actors") & (block % 2 == (part == "test"))
    return spread(columns, np.flatnonzero(own), rows)


def demo_rows(rows: int, part: str) -> dict[str, np.ndarray]:
    columns = demo_columns(default_body_directory(), rows=2400, seed=SEEDS[part])
    own = columns["split"] == ("test" if part == "test" else "validation")
    return spread(columns, np.flatnonzero(own), rows)


def train_rows(rows: int, part: str) -> dict[str, np.ndarray]:
    """As many of each activity, where there are; one part. At least 60."""
    columns = demo_columns(default_body_directory(), rows=rows, seed=TRAIN_SEED, takes=2 * rows)
    train = np.flatnonzero(columns["split"] == "train")
    of = columns["activity"][train]
    each = [spread(columns, train[of == a], rows // 3) for a in np.unique(of)]
    return {name: np.concatenate([part[name] for part in each]) for name in columns}


def unknowing(fitter: Fitter) -> dict[str, Fitter]:
    """Activity -> a fitter whose prior is made of the train motion without it."""
    columns = demo_columns(default_body_directory(), rows=1200, seed=POSES_SEED, takes=1600)
    train = np.flatnonzero(columns["split"] == "train")
    columns = {name: values[train] for name, values in columns.items()}
    poses, of = true_unknowns(fitter.skel, columns)[:, :46], columns["activity"]
    return {
        str(activity): Fitter(
            fitter.skel,
            PosePrior.of_poses(poses[of != activity], f"not {activity}").widened(WIDE, "others"),
        )
        for activity in np.unique(of)
    }


def spread(columns: dict[str, np.ndarray], among: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    chosen = among[np.unique(np.linspace(0, len(among) - 1, min(rows, len(among))).astype(int))]
    return {name: values[chosen] for name, values in columns.items()}


def true_joints(pictures: Rendered, row: int) -> torch.Tensor:
    """(1, 24, 3) m of the label's mesh."""
    columns = pictures.columns
    smpl = load_smpl_of(str(columns["gender"][row]))
    pose = torch.as_tensor(columns["pose_cam"][row : row + 1], dtype=torch.float32)
    with torch.no_grad():
        out = smpl(
            betas=torch.as_tensor(columns["shape"][row : row + 1], dtype=torch.float32),
            global_orient=pose[:, :3], body_pose=pose[:, 3:],
            transl=torch.as_tensor(columns["trans_cam"][row : row + 1], dtype=torch.float32),
        )  # fmt: skip
    return (smpl.J_regressor @ out.vertices).double()


_SMPL: dict[str, torch.nn.Module] = {}


def load_smpl_of(gender: str):
    if gender not in _SMPL:
        _SMPL[gender] = load_smpl(default_body_directory(), gender)
    return _SMPL[gender]


def joints_of(fitter: Fitter, poses: np.ndarray, betas: np.ndarray, trans: np.ndarray):
    kind = fitter.skel.template.dtype
    with torch.no_grad():
        skin = fitter.skel(*(torch.as_tensor(v, dtype=kind) for v in (poses, betas, trans)))
    return load_smpl_of("neutral").J_regressor.double() @ skin.skin_vertices.double()


def errors(found: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """MPJPE from the pelvis, PA-MPJPE, mm."""
    moved = [value - value[:, :1] for value in (found, truth)]
    return (
        float(point_error(*moved).mean()),
        float(aligned_point_error(found, truth).mean()),
    )


Seen = tuple[int, Subject, np.ndarray]
"""Row, person, errors of the landmarks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=330)
    parser.add_argument("--split", choices=("actors", "demo", "train"), default="actors")
    parser.add_argument("--part", choices=("dev", "test"), default="test")
    given = parser.parse_args()
    rows_of = {"actors": actors, "demo": demo_rows, "train": train_rows}
    columns = rows_of[given.split](given.rows, given.part)
    pictures = rendered(columns, given.folder / f"{given.split}-{given.part}", workers=2)
    fitter = Fitter(load_skel(default_body_directory(), "male"))
    photographs = Photographs(fitter, Finder())
    began = time.process_time()
    people: list[Seen] = []
    false = 0
    for row in range(len(pictures)):
        mine, others = sorted_out(pictures, row, photographs.people(pictures.picture(row), None))
        people += mine
        false += others
    seconds = (time.process_time() - began) / len(pictures)
    print(markdown_conditions(conditions()))
    print(f"\n{false} bodies where nobody is; {1000 * seconds:.0f} ms of CPU a picture.\n")
    print_tables(pictures, fitter, people, unknowing(fitter) if given.split == "train" else {})


def sorted_out(pictures: Rendered, row: int, people: Sequence[Subject]) -> tuple[list[Seen], int]:
    """Who is the person, and how many are taken for one and are not."""
    mine: list[Seen] = []
    false = 0
    for person in people:
        if not person.reason:
            error = pictures.errors(row, person.marks.pixels[0])
            if np.nanmean(error) < ON_THE_PERSON:
                mine.append((row, person, error))
            else:
                false += 1
    return mine, false


def print_tables(
    pictures: Rendered, fitter: Fitter, people: list[Seen], others: dict[str, Fitter]
) -> None:
    """others: fitters for rows of an activity."""
    columns = pictures.columns
    activity = columns.get("activity", np.full(len(pictures), "demo"))
    table = [report("all", len(pictures), people)]
    names = sorted(set(activity.tolist()))
    for name in names if len(names) > 1 else ():
        own = [item for item in people if activity[item[0]] == name]
        table.append(report(name, int((activity == name).sum()), own))
    print(
        markdown_table(["rows of", "rows", "found %", "PCK@0.05 %", "PCK@0.1 %", "median %"], table)
    )
    true = true_unknowns(fitter.skel, columns)
    lines, trusted = [], []
    for name in ("focal assumed", "focal known"):
        fits: list[tuple[int, KeypointFit]] = []
        for row, person, _ in people:
            fit, own = person.fit, others.get(str(activity[row]), fitter)
            lens = person.lens
            if name == "focal known":
                lens = Lens(columns["cam_int"][row], "known")
            if name == "focal known" or others:
                fit = own.fit(person.marks, lens)
            if fit is not None and np.isfinite(fit.cost[0]):
                fits.append((row, fit))
        scores = np.array([
            errors(joints_of(fitter, fit.poses, fit.betas, fit.trans), true_joints(pictures, row))
            for row, fit in fits
        ])  # fmt: skip
        rows = [row for row, _ in fits]
        away = np.abs(np.concatenate([fit.poses for _, fit in fits]) - true[rows, :46])
        sd = np.concatenate([fit.sd for _, fit in fits])
        observed = np.concatenate([fit.observed for _, fit in fits])[:, 3:]
        held = (away <= _NINETY * sd)[:, 3:]
        costs = np.array([fit.cost[0] for _, fit in fits])
        parts = [(costs >= low) & (costs < high) for low, high in pairwise(_COSTS)]
        trusted.append([
            name, *(f"{100 * held[part].mean():.1f} ({part.sum()})" if part.any() else ""
                    for part in parts),
        ])  # fmt: skip
        pa = scores[:, 1]
        lines.append([
            name, str(len(fits)), f"{pa.mean():.1f}", f"{np.median(pa):.1f}",
            f"{np.percentile(pa, 90):.1f}", f"{scores[:, 0].mean():.0f}",
            *(f"{degrees(away, joint):.1f}" for joint in _ANGLES),
            f"{100 * held.mean():.1f}", f"{100 * held[observed].mean():.1f}",
        ])  # fmt: skip
    heads = ["bodies", "rows", "PA mean mm", "median", "90 %", "MPJPE mean",
             *(f"{joint} deg" for joint in _ANGLES), "90 % hold, all", "observed"]  # fmt: skip
    print()
    print(markdown_table(heads, lines))
    print()
    names = [f"cost {low:g} to {high:g}" for low, high in pairwise(_COSTS)]
    print(markdown_table(["90 % intervals hold, % (rows)", *names], trusted))


def degrees(away: np.ndarray, joint: str) -> float:
    """Median error of a joint's angles, both sides."""
    return float(np.degrees(np.median(away[:, [POSE_NAMES.index(n) for n in _ANGLES[joint]]])))


def report(name: str, rows: int, people: list[Seen]) -> list[str]:
    found = {row for row, _, _ in people}
    error = np.concatenate([e for _, _, e in people] or [np.full(1, np.nan)])
    error = error[np.isfinite(error)]
    return [
        name, str(rows), f"{100 * len(found) / rows:.1f}", f"{100 * (error < 0.05).mean():.1f}",
        f"{100 * (error < 0.1).mean():.1f}", f"{100 * np.median(error):.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
