"""What existing SKEL labels are worth, judged by their own SMPL columns.

Every row that has both is posed twice. Judged are the root (the closed form of
docs/reference/skel-model.md#root-conversion), the translation, the distance of the two skins, the
joint limits, and repetitions. Known faults of published files:
docs/reference/label-formats.md#hmr-skel-faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.appended import Append, AppendedColumn
from pipeline.appending import append_columns
from pipeline.columns import Meaning
from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.given_labels import LIMIT_TOLERANCE, NON_FINITE
from pipeline.manifest import models_directory
from pipeline.provenance import software
from pipeline.readers import LabelSource, open_source
from pipeline.task import conversion_models
from skel_fit.anatomy import PERIODIC
from skel_fit.joint_limits import LimitsName, excess, limits
from stages.drawing.pictures import Poser
from stages.inspection.dataset_labels import DatasetLabels, Labels
from stages.inspection.repeats import row_hashes
from stages.inspection.statistics import Coder, folders

BLOCK = 64
READ_ROWS = 4096


@dataclass(frozen=True)
class Judgement:
    """One number per judged row; NaN where it cannot be told. Degrees and metres.

    Attributes:
        row: row in the file.
        root_error: angle between the two pelvis orientations, degrees.
        translation_error: distance of `skel_trans` from the closed form, metres; NaN without it.
        residual: mean vertex distance as stored, metres.
        residual_max: largest vertex distance, metres.
        residual_centred: mean vertex distance after removing the mean offset, metres.
        violations: angles outside the limits.
    """

    row: NDArray[np.int64]
    root_error: NDArray[np.float64]
    translation_error: NDArray[np.float64]
    residual: NDArray[np.float64]
    residual_max: NDArray[np.float64]
    residual_centred: NDArray[np.float64]
    violations: NDArray[np.int64]


@dataclass(frozen=True)
class Audit:
    """What `audit` found; `audit_summary.summarise` makes numbers of it."""

    judgement: Judgement
    tally: Tally
    limits: LimitsName
    source: Labels
    poser: Poser


def audit(
    file: Path,
    *,
    models: Path | None = None,
    standin: bool = False,
    smpl_gender: str | None = None,
    skel_gender: str | None = None,
    limits_name: LimitsName = "default",
    sample: int | None = None,
) -> Audit:
    """Judge the SKEL labels in a file against its SMPL labels.

    Args:
        file: HMR-SKEL npz (any spelling) or HSMR tar.
        models: folder with SMPL and SKEL files.
        standin: use the licence-free pair (for files made with it).
        smpl_gender: neutral, male, female or column; by default the member `gender` if there is
            one, else neutral. SKEL-CF's converter reads neutral labels with the male model.
        skel_gender: male, female or column; by default `skel_gender`, else male.
        limits_name: default, published or none.
        sample: judge about so many rows, evenly spread; all by default.

    Raises:
        InputError: no label file, no SKEL labels in it, or no models.
    """
    source = _open(file, smpl_gender, skel_gender)
    layout = source.layout
    if not layout.skel_poses or not layout.skel_betas:
        raise InputError(f"{source.path}: holds no SKEL labels ({source.format}); nothing to audit")
    folder = models_directory("default-body" if standin else "licensed", models)
    return _audit(source, Poser(folder), limits_name, sample)


def audit_dataset(
    dataset: Dataset,
    *,
    models: Path | None = None,
    data_root: Path | None = None,
    limits_name: LimitsName = "default",
    sample: int | None = None,
) -> Audit:
    """Judge the SKEL bodies of a converted dataset against the labels it was made from.

    Raises:
        InputError: label file or models are not to be found, or are others.
    """
    noted = dataset.attrs["models_directory"]
    folder = conversion_models(dataset.plan, noted, models)
    return _audit(DatasetLabels(dataset, data_root), Poser(folder), limits_name, sample)


_ERROR = {"unit": "m", "range": "0 and more", "missing": "NaN: not judged"}
COLUMNS = {
    "root_error": Meaning(
        "angle between the pelvis orientations of label and SKEL body", "rad", "", "0 to pi",
        "NaN: not judged",
    ),
    "translation_error": Meaning("distance of skel_trans from the closed form", **_ERROR),
    "vertex_error_mean": Meaning("mean distance of the skins", **_ERROR),
    "vertex_error_max": Meaning("largest distance of the skins", **_ERROR),
    "vertex_error_centred": Meaning("mean distance without the mean offset", **_ERROR),
    "angles_outside": Meaning("angles beyond their limits", "", "", "0 to 46", "-1: not judged"),
}  # fmt: skip
"""What an audit adds to a dataset (`append_audit`), float32, the last one int16."""


def append_audit(dataset: Dataset, found: Audit, name: str) -> Append:
    """Add an audit of a dataset as columns of the dataset.

    Raises:
        UsageError: the name cannot be used.
        OutputError: cannot be written.
    """
    judged = found.judgement
    values = (
        np.deg2rad(judged.root_error), judged.translation_error, judged.residual,
        judged.residual_max, judged.residual_centred, judged.violations,
    )  # fmt: skip
    whole = {}
    for title, some in zip(COLUMNS, values, strict=True):
        counted = title == "angles_outside"
        whole[title] = np.full(len(dataset), -1 if counted else np.nan, "<i2" if counted else "<f4")
        whole[title][judged.row] = some
    columns = tuple(
        AppendedColumn(title, whole[title].dtype.str, (), meaning)
        for title, meaning in COLUMNS.items()
    )
    stops = np.cumsum(dataset.shard_rows)[:-1]
    parts = zip(*(np.split(column, stops) for column in whole.values()), strict=True)
    provenance = {
        "made_by": "hmr-skel audit",
        "limits": found.limits,
        "judged": len(judged.row),
        "rejected": dict(sorted(found.tally.rejected.items())),
        "models": dataset.plan.to_json()["models"],
        "software": software(),
    }
    by_shard = (dict(zip(whole, part, strict=True)) for part in parts)
    return append_columns(dataset, name, columns, by_shard, provenance)


def _audit(source: Labels, poser: Poser, limits_name: LimitsName, sample: int | None) -> Audit:
    rows = _chosen(source.rows, sample)
    parts: list[Judgement] = []
    tally = Tally(limits(limits_name))
    for start in range(0, source.rows, READ_ROWS):
        stop = min(start + READ_ROWS, source.rows)
        inside = rows[(rows >= start) & (rows < stop)]
        if inside.size:
            parts.append(_judge_part(source, start, stop, inside, poser, tally))
    judgement = Judgement(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Judgement.__dataclass_fields__
        )
    )
    return Audit(judgement, tally, limits_name, source, poser)


class Tally:
    """Counts over the whole file; small but for 16 bytes a row that find repetitions."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        self.table = table
        self.rejected: Counter[str] = Counter()
        self.violations = np.zeros(len(table), np.int64)
        self.furthest = np.zeros(len(table))
        self.same_betas = 0
        self.labels: list[NDArray] = []
        self.fits: list[NDArray] = []
        self.zero_trans = 0
        self.sequences = Coder()
        """The folder of each judged row's picture."""

    def limits(self, poses: NDArray) -> NDArray[np.int64]:
        """(n,) angles beyond their limits."""
        beyond = excess(poses, self.table[:, 0], self.table[:, 1], PERIODIC)
        outside = beyond > LIMIT_TOLERANCE
        self.violations += outside.sum(axis=0)
        if len(poses):
            self.furthest = np.maximum(self.furthest, beyond.max(axis=0))
        return outside.sum(axis=1)


def _open(file: Path, smpl_gender: str | None, skel_gender: str | None) -> LabelSource:
    source = open_source(file)
    smpl = smpl_gender or ("column" if "gender" in source.fields else "neutral")
    skel = skel_gender or ("column" if "skel_gender" in source.fields else "male")
    return open_source(file, smpl_gender=smpl, skel_gender=skel)


def _chosen(rows: int, sample: int | None) -> NDArray[np.int64]:
    if sample is None or sample >= rows:
        return np.arange(rows)
    return np.unique(np.linspace(0, rows - 1, sample).astype(np.int64))


def _judge_part(
    source: Labels, start: int, stop: int, rows: NDArray, poser: Poser, tally: Tally
) -> Judgement:
    layout = source.layout
    read = source.read(start, stop)
    index = rows - start
    assert layout.skel_poses is not None
    assert layout.skel_betas is not None
    poses = read.fields[layout.skel_poses][index].astype(np.float64)
    betas = read.fields[layout.skel_betas][index].reshape(len(index), -1)[:, :10].astype(np.float64)
    trans = None
    if layout.skel_trans:
        trans = read.fields[layout.skel_trans][index].reshape(-1, 3).astype(np.float64)
        tally.zero_trans += int((trans == 0).all(axis=1).sum())
    reasons = read.reasons[index].astype(object)
    finite = np.isfinite(poses).all(axis=1) & np.isfinite(betas).all(axis=1)
    if trans is not None:
        finite &= np.isfinite(trans).all(axis=1)
    reasons[(reasons == "") & ~finite] = NON_FINITE
    good = reasons == ""
    tally.rejected.update(reasons[~good].tolist())
    keep = index[good]
    poses, betas = poses[good], betas[good]
    trans = None if trans is None else trans[good]
    violations = tally.limits(poses)
    tally.same_betas += int((np.abs(betas - read.betas[keep]) < 1e-6).all(axis=1).sum())
    names = [layout.names, layout.center, layout.scale, *layout.poses]
    tally.labels.append(row_hashes([read.fields[name][keep] for name in names if name]))
    tally.fits.append(row_hashes([poses]))
    numbers = np.full((5, len(keep)), np.nan)
    pairs = np.char.add(np.char.add(read.smpl_gender[keep], ":"), read.skel_gender[keep])
    for pair in np.unique(pairs):
        chosen = np.flatnonzero(pairs == pair)
        for block in np.array_split(chosen, -(-len(chosen) // BLOCK)):
            at = keep[block]
            smpl = (read.poses[at], read.betas[at], read.transl[at])
            skel = (poses[block], betas[block], None if trans is None else trans[block])
            numbers[:, block] = _compare(poser, str(pair), smpl, skel)
    root, translation, residual, largest, centred = numbers
    whose = np.zeros(len(keep), np.str_)
    if layout.names:
        whose = folders(read.fields[layout.names][keep])
    tally.sequences.add(whose)
    return Judgement(rows[good], root, translation, residual, largest, centred, violations)


def _compare(
    poser: Poser,
    pair: str,
    smpl_values: tuple[NDArray, NDArray, NDArray],
    skel_values: tuple[NDArray, NDArray, NDArray | None],
) -> NDArray[np.float64]:
    """(5, n): root error (degrees), translation error, residual mean, maximum, centred (metres)."""
    import torch

    from skel_fit.root import root_from_smpl, root_rotation
    from skel_fit.rotations import axis_angle_to_matrix, rotation_angle

    smpl_gender, skel_gender = pair.split(":")
    smpl, skel = poser.model("smpl", smpl_gender), poser.model("skel", skel_gender)
    poses, betas, transl = (torch.as_tensor(value) for value in smpl_values)
    skel_poses, skel_betas = (torch.as_tensor(value) for value in skel_values[:2])
    with torch.no_grad():
        _, expected = root_from_smpl(skel, smpl, poses[:, :3], betas, transl, skel_betas)
        stored = expected if skel_values[2] is None else torch.as_tensor(skel_values[2])
        turn = axis_angle_to_matrix(poses[:, :3]).transpose(1, 2) @ root_rotation(
            skel, skel_poses[:, :3]
        )
        target = smpl(
            betas=betas, global_orient=poses[:, :3], body_pose=poses[:, 3:], transl=transl
        ).vertices
        skin = skel(skel_poses, skel_betas, stored).skin_vertices
        offset = skin - target
        distance = offset.norm(dim=-1)
        centred = (offset - offset.mean(dim=1, keepdim=True)).norm(dim=-1)
        far = (stored - expected).norm(dim=-1)
        if skel_values[2] is None:
            far = torch.full_like(far, torch.nan)
        numbers = (
            torch.rad2deg(rotation_angle(turn)),
            far,
            distance.mean(1),
            distance.amax(1),
            centred.mean(1),
        )
    return torch.stack(numbers).numpy()
