"""Calibrations of a models folder: on which rows they are measured, what of them a plan uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.demo import GENDER_PAIRS, demo_motion, mirror_poses
from pipeline.errors import InputError
from pipeline.given_labels import NOT_FITTED
from pipeline.plan import Plan
from pipeline.provenance import file_record
from pipeline.readers.base import AnnotationSource

if TYPE_CHECKING:
    from skel_fit.calibration import CalibrationFile
    from skel_fit.recipe import FitConfig

ROWS = 1200
"""Rows a pair of genders is measured on, at most."""
_SEED = 911
_NOISE = 0.2  # rad, of a joint of a frame that is moved at random
_STEADY = (0, 10, 11, 22, 23)  # joints that are not: root, toes, hands

Pair = tuple[str, str]
"""SMPL gender, SKEL gender."""


@dataclass(frozen=True)
class Sample:
    """SMPL bodies that a pair is measured on, float64."""

    poses: np.ndarray  # (n, 72) rad
    betas: np.ndarray  # (n, 10)


def free_motion(rows: int = ROWS) -> Sample:
    """Frames of the committed motion, a third each as they are, mirrored, and with every joint
    moved at random; each with a shape of its own."""
    from scipy.spatial.transform import Rotation  # late: most commands do without

    draw = np.random.default_rng(_SEED)
    motion = demo_motion()
    frames = motion[np.linspace(0, len(motion) - 1, rows).astype(int)]
    kind = np.arange(rows) % 3
    frames[kind == 1] = mirror_poses(frames[kind == 1])
    noise = draw.normal(0.0, _NOISE, (rows, 24, 3))
    noise[:, list(_STEADY)] = 0.0
    noise[kind != 2] = 0.0
    moved = Rotation.from_rotvec(noise.reshape(-1, 3)) * Rotation.from_rotvec(frames.reshape(-1, 3))
    betas = np.clip(draw.normal(size=(rows, 10)), -2.5, 2.5)
    return Sample(moved.as_rotvec().reshape(rows, 72).round(8), betas.round(6))


def rows_of(plan: Plan, source: AnnotationSource, rows: int = ROWS) -> dict[Pair, Sample]:
    """Accepted rows of a label file by their pair of bodies, evenly spread.

    Raises InputError: there are none.
    """
    found: dict[Pair, list[tuple[np.ndarray, np.ndarray]]] = {}
    stride = max(1, source.rows // (4 * rows))
    for start in range(0, source.rows, plan.shard_rows):
        part = source.read(start, min(start + plan.shard_rows, source.rows))
        for row in range(-start % stride, len(part.source_row), stride):
            if part.reasons[row] == "":
                pair = str(part.smpl_gender[row]), str(part.skel_gender[row])
                found.setdefault(pair, []).append((part.poses[row], part.betas[row]))
    if not found:
        raise InputError(f"{source.path}: every row is rejected; nothing to calibrate on")
    samples = {}
    for pair, members in sorted(found.items()):
        chosen = np.unique(np.linspace(0, len(members) - 1, rows).astype(int))
        poses, betas = (np.stack([members[i][k] for i in chosen]) for k in (0, 1))
        samples[pair] = Sample(poses.astype(np.float64), betas.astype(np.float64))
    return samples


def measure(
    models: Path,
    samples: Mapping[Pair, Sample],
    config: FitConfig,
    provenance: Mapping[str, Any],
    say: Callable[[str], None] = lambda text: None,
) -> CalibrationFile:
    """Calibrate pairs of bodies of a folder.

    Raises InputError: a pair has too few rows. ModelFileError: a body is absent or broken.
    """
    import torch

    from skel_fit.calibration import CalibrationFile, body_digest
    from skel_fit.models import BodyModels
    from skel_fit.uncertainty import calibrate

    held, pairs = BodyModels(models), {}
    bodies: dict[str, str] = {}
    for (smpl_gender, skel_gender), sample in samples.items():
        smpl = held.model("smpl", smpl_gender, "float32")
        skel = held.model("skel", skel_gender, "float32")
        say(f"measuring {smpl_gender}:{skel_gender} on {len(sample.poses):,} rows")
        poses, betas = torch.as_tensor(sample.poses), torch.as_tensor(sample.betas)
        try:
            pairs[smpl_gender, skel_gender] = calibrate(skel, smpl, poses, betas, config)
        except ValueError as error:
            raise InputError(f"{smpl_gender}:{skel_gender}: {error}") from error
        bodies |= {
            f"smpl {smpl_gender}": body_digest(smpl),
            f"skel {skel_gender}": body_digest(skel),
        }
    about = dict(provenance) | {"fit": config.model_dump(mode="json"), "standin": held.standin}
    return CalibrationFile(pairs, bodies, about)


def pairs_there(models: Path) -> list[Pair]:
    """Pairs of genders of which a folder has both bodies."""
    from skel_fit.errors import ModelFileError
    from skel_fit.model_files import model_file

    found = []
    for smpl, skel, _ in GENDER_PAIRS:
        try:
            model_file(models, "smpl", smpl)
            model_file(models, "skel", skel)
        except ModelFileError:
            continue
        found.append((smpl, skel))
    return found


def why_unknown(plan: Plan, pairs: Iterable[str]) -> dict[str, str]:
    """Pair `smpl:skel` of a dataset -> why its angles have no standard deviation."""
    found = {}
    for pair in sorted(set(pairs)):
        if plan.fitter == NOT_FITTED:
            found[pair] = "these labels were not fitted"
        elif plan.body is not None:
            found[pair] = f"labels of {plan.body.name}: calibrations are of SMPL and SKEL"
        elif plan.calibration is None:
            found[pair] = "converted without a calibration (hmr-skel calibrate makes one)"
        elif pair not in plan.calibration.pairs:
            found[pair] = f"{plan.calibration.name} has no calibration of these two bodies"
        elif plan.calibration.root_is_free != plan.request.resolved_recipe().root_is_free:
            found[pair] = f"{plan.calibration.name} was measured with another treatment of the root"
    return found


def source_record(path: Path) -> dict[str, Any]:
    """What a calibration says about a file that it was measured on."""
    return file_record(path).to_json()
