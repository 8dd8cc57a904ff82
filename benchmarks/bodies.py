"""Bodies that are not SMPL: every row of the acceptance table of docs/bodies.md, with its bar.

    python -m benchmarks.bodies [--sam DIR] [--anny DIR] [--rows 24] [--only NAME ...] [--json FILE]

Bodies of SMPL-X's and MHR's topologies are made from the stand-in (their exact maps are known),
poses are demo rows. --sam: folder with SAM 3D Body outputs, else the two of the tests. --anny:
folder that the package anny 0.6.2 can be imported from, after `pip install --no-deps --target DIR
anny==0.6.2 roma safetensors warp-lang==1.19.*` (no dependency of ours; its first call builds models
for minutes); without it those rows are not measured. --only: the parts with these names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import conditions, markdown_conditions, markdown_table, set_threads
from pipeline.readers import open_source
from skel_fit import FitConfig, fit_skel, fit_skel_to_vertices, load_skel, load_smpl
from skel_fit.anatomy import POSE_NAMES
from skel_fit.bodies import IdentityShapes, SurfaceMap, fit_identity, fit_skel_to_surface
from skel_fit.bodies.map_files import find_map
from skel_fit.bodies.smpl_family import FamilyBody
from skel_fit.bodies.surface_fit import map_weights
from skel_fit.default_body import default_body_directory
from skel_fit.default_body.expansion import default_body_arrays
from tests.foreign_bodies import MHR_VERTICES, SMPLX_VERTICES, fake_body, fake_smplx_arrays

SAM = Path(__file__).parents[1] / "tests" / "data" / "bodies"
Row = tuple[str, str, str, bool | None]
"""What, bar, measured, met; None: not measured."""


def main() -> None:
    arguments = _arguments()
    set_threads(1)
    bench = Bench(arguments.rows)
    rows: list[Row] = []
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "permuted": bench.permuted,
        "sam": lambda: sam_outputs(arguments.sam),
        "identities": bench.identity_against_rows,
        "hands": bench.hands,
        "rate": bench.rate,
        "anny": lambda: anny_bodies(arguments.anny),
    }
    for name, part in parts.items():
        for row in part() if name in (arguments.only or parts) else ():
            print(" | ".join(map(str, row)), file=sys.stderr, flush=True)
            rows.append(row)
    about = conditions()
    print(markdown_conditions(about))
    table = [(what, bar, found, _word(met)) for what, bar, found, met in rows]
    print(markdown_table(("what", "bar", "measured", "met"), table))
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": about, "rows": rows}, indent=1))


def _word(met: bool | None) -> str:
    return "not measured" if met is None else ("yes" if met else "**no**")


class Bench:
    """Demo poses of one man and the same as bodies of other topologies."""

    def __init__(self, rows: int) -> None:
        folder = default_body_directory()
        self.skel, self.smpl = load_skel(folder, "male"), load_smpl(folder, "male")
        faces = self.skel.faces.numpy()
        self.fakes = {
            "smplx": fake_body("smplx", faces, SMPLX_VERTICES, 1),
            "mhr": fake_body("mhr", faces, MHR_VERTICES, 2),
        }
        self.same = SurfaceMap.same_topology(faces)
        from pipeline.demo import demo_columns

        columns = demo_columns(folder)
        step = len(columns["pose_cam"]) // rows
        some = slice(0, step * rows, step)
        rng = np.random.default_rng(0)
        self.poses = columns["pose_cam"][some].reshape(rows, 72).astype(np.float64)
        self.poses[:, 66:] = 0.0
        self.transl = columns["trans_cam"][some].astype(np.float64)
        self.people = np.arange(rows) % max(1, rows // 8)
        shapes = rng.normal(0.0, 0.8, (rows, 10))
        self.betas = shapes[self.people]
        self.meshes = self._smpl(self.poses, self.betas, self.transl)
        count = self.people.max() + 1
        self.rest = self._smpl(np.zeros((count, 72)), shapes[:count], np.zeros((count, 3)))

    def _smpl(self, poses: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
        given = [torch.as_tensor(v, dtype=torch.float32) for v in (poses, betas, transl)]
        found = self.smpl(
            global_orient=given[0][:, :3], body_pose=given[0][:, 3:], betas=given[1],
            transl=given[2],
        )  # fmt: skip
        return found.vertices.double().numpy()

    def shapes_of(self, rest: np.ndarray, weights: np.ndarray | None = None) -> IdentityShapes:
        return fit_identity(
            {"male": self.skel},
            torch.as_tensor(rest),
            np.arange(len(rest)),
            np.full(len(rest), "male"),
            at_rest=True,
            vertex_weights=weights,
        )

    @cached_property
    def shapes(self) -> IdentityShapes:
        """Of the people, from their rest meshes."""
        return self.shapes_of(self.rest)

    def permuted(self) -> Iterator[Row]:
        wanted = fit_skel_to_surface(self.skel, self.meshes, self.same, self.people, self.shapes)
        for name, fake in self.fakes.items():
            own = self.shapes_of(fake.map.apply(fake.vertices(self.rest)))
            given = fake.vertices(self.meshes).astype(np.float32)
            found = fit_skel_to_surface(self.skel, given, fake.map, self.people, own)
            angle = np.rad2deg(np.abs(found.poses - wanted.poses).max())
            error = np.abs(found.vertex_error_mean - wanted.vertex_error_mean).max() * 1e3
            yield (
                f"{name}-like body, permuted, against the SMPL mesh ({len(given)} rows)",
                "angles ≤ 0.02°, residuals ≤ 0.01 mm",
                f"{angle:.4f}°, {error:.5f} mm",
                bool(angle <= 0.02 and error <= 0.01),
            )

    def identity_against_rows(self) -> Iterator[Row]:
        """MHR-like meshes of another shape space: the women's shapes seen by the man's body."""
        meshes = self._women()
        weights = map_weights(self.skel, self.same)
        clock = time.process_time()
        shapes = fit_identity(
            {"male": self.skel},
            torch.as_tensor(meshes),
            self.people,
            np.full(len(meshes), "male"),
            at_rest=False,
            vertex_weights=weights,
        )
        found_shapes = time.process_time() - clock
        clock = time.process_time()
        shared = fit_skel_to_surface(self.skel, meshes, self.same, self.people, shapes)
        by_identity = time.process_time() - clock
        clock = time.process_time()
        config = FitConfig(recipe="surface", betas="fit")
        zero = torch.zeros(len(meshes), 10)
        alone = fit_skel_to_vertices(
            self.skel, torch.as_tensor(meshes), zero, config, vertex_weights=weights
        )
        by_row = time.process_time() - clock
        gain = (shared.vertex_error_mean.mean() - float(alone.vertex_error_mean.mean())) * 1e3
        ratio, people = by_row / by_identity, len(shapes.names)
        whole = by_row / (by_identity + found_shapes)
        yield (
            f"identity betas against betas per row ({len(meshes)} rows, {people} people)",
            "within 0.6 mm, ≥ 4 times faster",
            f"{gain:.2f} mm, {ratio:.1f} times ({whole:.1f} with the shapes, "
            f"{people / found_shapes:.2f} people a CPU second)",
            bool(gain <= 0.6 and ratio >= 4.0),
        )
        limited = np.mean([status == "limited" for status in shared.status])
        yield (
            "false `limited` (poses that the stand-in holds, shapes of the other sex)",
            "≤ 2 %",
            f"{100 * limited:.1f} %",
            bool(limited <= 0.02),
        )

    def _women(self) -> np.ndarray:
        smpl = load_smpl(default_body_directory(), "female")
        given = [
            torch.as_tensor(v, dtype=torch.float32) for v in (self.poses, self.betas, self.transl)
        ]
        found = smpl(
            global_orient=given[0][:, :3], body_pose=given[0][:, 3:], betas=given[1],
            transl=given[2],
        )  # fmt: skip
        return found.vertices.double().numpy()

    def hands(self) -> Iterator[Row]:
        """A fist in place of a flat hand, SMPL-X from its parameters."""
        import tempfile

        fake = self.fakes["smplx"]
        with tempfile.TemporaryDirectory() as folder:
            arrays = fake_smplx_arrays(default_body_arrays("smpl", "male"), fake, "male")
            np.savez(Path(folder) / "SMPLX_MALE.npz", **arrays)
            body = FamilyBody.load(Path(folder), "smplx", "male")
        given = {
            "global_orient": self.poses[:, :3],
            "body_pose": self.poses[:, 3:66],
            "betas": self.betas,
            "transl": self.transl,
        }
        rows = len(self.poses)
        fist = given | {
            name: np.tile((0.0, 0.0, sign * 0.9), (rows, 15))
            for name, sign in (("left_hand_pose", -1.0), ("right_hand_pose", 1.0))
        }
        flat, closed = (
            fit_skel_to_surface(
                self.skel, body.surface(pose), fake.map, self.people, self.shapes,
                FitConfig(recipe="surface"), mask_weights=body.mask_weights(),
            )
            for pose in (given, fist)
        )  # fmt: skip
        hand = ("wrist", "pro_sup")
        above = [k for k, name in enumerate(POSE_NAMES) if not name.startswith(hand)]
        moved = torch.rad2deg((flat.poses - closed.poses)[:, above].abs().max())
        yield (
            "hand pose of the source moves angles from the elbow up (fist against flat)",
            "≤ 0.1°",
            f"{float(moved):.3f}°",
            bool(moved <= 0.1),
        )

    def rate(self) -> Iterator[Row]:
        """Processor time of SMPL-X vertices with a map against SMPL parameters, in turn."""
        fake = self.fakes["smplx"]
        many = np.arange(320) % len(self.poses)
        meshes = fake.vertices(self.meshes)[many].astype(np.float32)
        smpl = [torch.as_tensor(v[many]) for v in (self.poses, self.betas, self.transl)]
        people = self.people[many]
        ratios, speed = [], []
        for turn in range(10):
            clock = time.process_time()
            fit_skel(self.skel, self.smpl, *smpl)
            theirs = time.process_time() - clock
            clock = time.process_time()
            fit_skel_to_surface(self.skel, meshes, fake.map, people, self.shapes)
            ours = time.process_time() - clock
            if turn:  # the first one compiles and warms
                ratios.append(theirs / ours)
                speed.append((len(many) / theirs, len(many) / ours))
        share, (slow, fast) = statistics.median(ratios), np.median(speed, axis=0)
        yield (
            "rate of SMPL-X vertices with a map, of the SMPL rate (median of nine turns)",
            "≥ 80 %",
            f"{100 * share:.0f} % ({fast:.0f} and {slow:.0f} rows a CPU second; turns "
            f"{100 * min(ratios):.0f} to {100 * max(ratios):.0f} %)",
            bool(share >= 0.8),
        )


def sam_outputs(folder: Path) -> Iterator[Row]:
    """Real SAM 3D Body outputs with the shipped map, both genders tried."""
    source = open_source(folder, skel_gender="nearest")
    rows = source.read(0, source.rows)
    assert rows.other is not None
    models = default_body_directory()
    skels = {gender: load_skel(models, gender) for gender in ("male", "female")}
    _, found = find_map(models, "mhr", skels["male"])
    surfaces = rows.other.parameters["vertices"]
    weights = map_weights(skels["male"], found)
    everyone = np.arange(source.rows)
    shapes = fit_identity(
        skels,
        torch.as_tensor(found.apply(surfaces)),
        everyone,
        np.full(source.rows, "unknown"),
        at_rest=False,
        vertex_weights=weights,
    )
    errors, statuses = np.zeros(source.rows), []
    for gender, skel in skels.items():
        own = np.flatnonzero(shapes.genders == gender)
        if not len(own):
            continue
        fit = fit_skel_to_surface(skel, surfaces[own], found, own, shapes)
        errors[own] = fit.vertex_error_mean
        statuses += list(fit.status)
    each = ", ".join(f"{error * 1e3:.1f}" for error in errors)
    converged = sum(status == "converged" for status in statuses)
    yield (
        f"{source.rows} real SAM 3D Body outputs",
        "each ≤ 18 mm, all converged",
        f"{each} mm, {converged} of {source.rows} converged ({', '.join(shapes.genders)})",
        bool(errors.max() <= 0.018 and converged == source.rows),
    )
    points = rows.fields["pred_keypoints_3d"] + rows.fields["pred_cam_t"][:, None]
    seen = points.astype(np.float64) @ rows.fields["cam_int"].swapaxes(1, 2)
    off = seen[..., :2] / seen[..., 2:] - rows.fields["pred_keypoints_2d"]
    worst = float(np.linalg.norm(off, axis=2).max())
    yield ("their keypoints, projected", "≤ 0.01 px", f"{worst:.5f} px", worst <= 0.01)


def anny_bodies(folder: Path | None) -> Iterator[Row]:
    """Anny's people, by the exact map."""
    if folder is None:
        yield ("Anny's people", "see benchmarks/anny_bodies.py", "give --anny", None)
        return
    if not (folder / "anny").is_dir():
        raise SystemExit(f"{folder}: no package anny; unpack its wheel there (see anny_bodies.py)")
    from benchmarks.anny_bodies import measure

    yield from measure(folder)


def _arguments() -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sam", type=Path, default=SAM)
    parser.add_argument("--anny", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
