"""People in rendered pictures: found, landmarks, bodies.

    python -m benchmarks.photo DIR [--rows 330] [--split actors|demo]

DIR: folder for the pictures, rendered where they are missing. Rows: `actors`, of actors and
activities of which nothing was learnt (run, kick, cartwheel, backflip), or `demo`, its test split.
Found: somebody past all gates whose landmarks are those of the person (mean error below 30 % of the
label's box); a sure body elsewhere counts as false. PCK: 21 places that labels and landmarks share,
over the side of the label's box. Bodies: the male stand-in for everybody, prior `wide`, against the
label's SMPL mesh: 24 joints, both skins by SMPL's regressor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import conditions, markdown_conditions, markdown_table
from pipeline.demo import demo_columns
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel, load_smpl
from stages.photo.fitting import Fitter, Lens, Marks
from stages.photo.people import Finder
from stages.photo.photographs import Photographs
from stages.photo.results import Subject
from stages.regressor.evaluation.metrics import aligned_point_error, point_error
from tests.photo_pictures import Rendered, rendered

ON_THE_PERSON = 0.3


def actors(rows: int) -> dict[str, np.ndarray]:
    columns = demo_columns(default_body_directory(), rows=60, seed=4242, takes=1200)
    others = np.flatnonzero(columns["split"] == "test-actors")
    chosen = others[np.linspace(0, len(others) - 1, rows).astype(int)]
    return {name: values[chosen] for name, values in columns.items()}


def demo_test(rows: int) -> dict[str, np.ndarray]:
    columns = demo_columns(default_body_directory())
    own = np.flatnonzero(columns["split"] == "test")
    chosen = own[np.linspace(0, len(own) - 1, rows).astype(int)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=330)
    parser.add_argument("--split", choices=("actors", "demo"), default="actors")
    given = parser.parse_args()
    columns = (actors if given.split == "actors" else demo_test)(given.rows)
    pictures = rendered(columns, given.folder / given.split, workers=2)
    fitter = Fitter(load_skel(default_body_directory(), "male"))
    photographs = Photographs(fitter, Finder())
    began = time.process_time()
    people: list[tuple[int, Subject, np.ndarray]] = []
    false = 0
    for row in range(len(pictures)):
        for person in photographs.people(pictures.picture(row), None):
            if person.reason:
                continue
            error = pictures.errors(row, person.marks.pixels[0])
            if np.nanmean(error) < ON_THE_PERSON:
                people.append((row, person, error))
            else:
                false += 1
    seconds = (time.process_time() - began) / len(pictures)
    print(markdown_conditions(conditions()))
    activity = columns.get("activity", np.full(len(pictures), "demo"))
    table = [report("all", len(pictures), people)]
    for name in sorted(set(activity.tolist())) if given.split == "actors" else ():
        own = [item for item in people if activity[item[0]] == name]
        table.append(report(name, int((activity == name).sum()), own))
    print(
        markdown_table(["rows of", "rows", "found %", "PCK@0.05 %", "PCK@0.1 %", "median %"], table)
    )
    print(f"\n{false} bodies where nobody is; {1000 * seconds:.0f} ms of CPU a picture.\n")
    scores: dict[str, list[tuple[float, float]]] = {"focal assumed": [], "focal known": []}
    for row, person, _ in people:
        truth = true_joints(pictures, row)
        fit = person.fit
        assert fit is not None
        own = joints_of(fitter, fit.poses, fit.betas, fit.trans)
        scores["focal assumed"].append(errors(own, truth))
        marks: Marks = person.marks
        known = fitter.fit(marks, Lens(columns["cam_int"][row], "known"), uncertainty=False)
        if np.isfinite(known.cost[0]):
            own = joints_of(fitter, known.poses, known.betas, known.trans)
            scores["focal known"].append(errors(own, truth))
    lines = []
    for name, values in scores.items():
        mpjpe, pa = np.array(values).T
        lines.append([
            name, str(len(pa)), f"{pa.mean():.1f}", f"{np.median(pa):.1f}",
            f"{np.percentile(pa, 90):.1f}", f"{mpjpe.mean():.0f}", f"{np.median(mpjpe):.0f}",
        ])  # fmt: skip
    heads = ["bodies", "rows", "PA mean mm", "median", "90 %", "MPJPE mean", "median"]
    print(markdown_table(heads, lines))


def report(name: str, rows: int, people: list[tuple[int, Subject, np.ndarray]]) -> list[str]:
    found = {row for row, _, _ in people}
    error = np.concatenate([e for _, _, e in people] or [np.full(1, np.nan)])
    error = error[np.isfinite(error)]
    return [
        name, str(rows), f"{100 * len(found) / rows:.1f}", f"{100 * (error < 0.05).mean():.1f}",
        f"{100 * (error < 0.1).mean():.1f}", f"{100 * np.median(error):.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
