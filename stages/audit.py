"""`hmr-skel audit`: what are existing SKEL labels worth, judged by their own SMPL columns?

Every row that has both is posed twice. Judged are the root (closed form of
reference/skel-model.md 7.3), the translation, the distance of the two skins, the joint limits, and
repetitions. Known faults of published files: reference/datasets.md 2.2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import write_bytes
from pipeline.errors import InputError, UsageError
from pipeline.fitters import models_directory
from pipeline.readers import LabelSource, open_source
from skel_fit.anatomy import PERIODIC, POSE_NAMES
from skel_fit.joint_limits import excess, limits
from stages.convert import aligned
from stages.drawing import charts, pages, pictures
from stages.drawing.pictures import Person, Poser

BLOCK = 64
READ_ROWS = 4096
LIMIT_TOLERANCE = 1e-3
"""Radians beyond a limit that still count as on it."""
WITHIN_MM = (5, 10, 15, 20, 30, 50, 100)
FIRST_BATCH = 30_000
"""Rows that the published converter fits with the schedule it was meant to have (2.2)."""
WORST_ROWS = 5


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
    """What `audit` found. `summary` is what `--json` prints."""

    judgement: Judgement
    summary: dict[str, Any]
    source: LabelSource
    poser: Poser


def run_audit(
    file: Path,
    *,
    models: Path | None = None,
    standin: bool = False,
    smpl_gender: str | None = None,
    skel_gender: str | None = None,
    limits_name: str = "default",
    sample: int | None = None,
    as_json: bool = False,
    html: Path | None = None,
) -> None:
    """Audit `file`, print the result, write the page if asked for; see `audit`."""
    found = audit(
        file,
        models=models,
        standin=standin,
        smpl_gender=smpl_gender,
        skel_gender=skel_gender,
        limits_name=limits_name,
        sample=sample,
    )
    if html is not None:
        write_bytes(html, _page(found).encode("utf-8"))
    print(json.dumps(found.summary, sort_keys=True) if as_json else _table(found.summary))


def audit(
    file: Path,
    *,
    models: Path | None = None,
    standin: bool = False,
    smpl_gender: str | None = None,
    skel_gender: str | None = None,
    limits_name: str = "default",
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
    if limits_name not in ("default", "published", "none"):
        raise UsageError(f"--limits {limits_name}: expected default, published or none")
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample}: expected at least 1")
    source = _open(file, smpl_gender, skel_gender)
    layout = source.layout
    if not layout.skel_poses or not layout.skel_betas:
        raise InputError(f"{source.path}: holds no SKEL labels ({source.format}); nothing to audit")
    folder = models_directory("default-body" if standin else "licensed", models)
    poser = Poser(folder)
    rows = _chosen(source.rows, sample)
    parts: list[Judgement] = []
    tally = _Tally(limits(limits_name))  # type: ignore[arg-type]
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
    summary = _summary(source, judgement, tally, limits_name, poser)
    return Audit(judgement, summary, source, poser)


class _Tally:
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
    source: LabelSource, start: int, stop: int, rows: NDArray, poser: Poser, tally: _Tally
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
    reasons[(reasons == "") & ~finite] = "non_finite_skel"
    good = reasons == ""
    tally.rejected.update(reasons[~good].tolist())
    keep = index[good]
    poses, betas = poses[good], betas[good]
    trans = None if trans is None else trans[good]
    violations = tally.limits(poses)
    tally.same_betas += int((np.abs(betas - read.betas[keep]) < 1e-6).all(axis=1).sum())
    names = [layout.names, layout.center, layout.scale, *layout.poses]
    tally.labels.append(_digests([read.fields[name][keep] for name in names if name]))
    tally.fits.append(_digests([poses]))
    numbers = np.full((5, len(keep)), np.nan)
    pairs = np.char.add(np.char.add(read.smpl_gender[keep], ":"), read.skel_gender[keep])
    for pair in np.unique(pairs):
        chosen = np.flatnonzero(pairs == pair)
        for block in np.array_split(chosen, -(-len(chosen) // BLOCK)):
            at = keep[block]
            smpl = (read.poses[at], read.betas[at], read.transl[at])
            skel = (poses[block], betas[block], None if trans is None else trans[block])
            numbers[:, block] = _compare(poser, str(pair), smpl, skel)
    root, moved, mean, largest, centred = numbers
    return Judgement(rows[good], root, moved, mean, largest, centred, violations)


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


def _digests(columns: list[NDArray]) -> NDArray:
    """(n,) 16-byte digests of the rows of some columns."""
    n = len(columns[0])
    flat = [np.ascontiguousarray(c).reshape(n, int(np.prod(c.shape[1:]))) for c in columns]
    rows = (b"".join(c[i].tobytes() for c in flat) for i in range(n))
    digests = [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype=[("high", "<u8"), ("low", "<u8")])


def _repeated(parts: list[NDArray]) -> int:
    """Rows that equal an earlier one."""
    every = np.concatenate(parts) if parts else np.zeros(0, "V16")
    return len(every) - len(np.unique(every))


def _summary(
    source: LabelSource, judged: Judgement, tally: _Tally, limits_name: str, poser: Poser
) -> dict[str, Any]:
    rows = len(judged.row)
    worst = np.argsort(-judged.residual, kind="stable")[:WORST_ROWS]
    summary: dict[str, Any] = {
        "file": str(source.path),
        "format": source.format,
        "rows": source.rows,
        "judged": rows,
        "rejected": dict(sorted(tally.rejected.items())),
        "standin": poser.standin(),
        "root_error_deg": _spread(judged.root_error),
        "translation_error_mm": _spread(judged.translation_error * 1000),
        "residual_mm": _spread(judged.residual * 1000),
        "residual_max_mm": _spread(judged.residual_max * 1000),
        "residual_centred_mm": _spread(judged.residual_centred * 1000),
        "within_mm": {
            str(mm): float((judged.residual * 1000 <= mm).mean()) if rows else None
            for mm in WITHIN_MM
        },
        "limits": limits_name,
        "limit_violations": {
            "rows": int((judged.violations > 0).sum()),
            "angles": {
                name: {"rows": int(n), "furthest_deg": float(np.degrees(tally.furthest[i]))}
                for i, (name, n) in enumerate(zip(POSE_NAMES, tally.violations, strict=True))
                if n
            },
        },
        "repeated_labels": _repeated(tally.labels),
        "repeated_fits": _repeated(tally.fits),
        "same_betas": tally.same_betas,
        "zero_trans": tally.zero_trans,
        "worst_rows": [
            {"row": int(judged.row[i]), "residual_mm": float(judged.residual[i] * 1000)}
            for i in worst
        ],
    }
    later = judged.row >= FIRST_BATCH
    if later.any() and not later.all():
        summary["first_batch_residual_mm"] = _spread(judged.residual[~later] * 1000)
        summary["later_residual_mm"] = _spread(judged.residual[later] * 1000)
    return summary


def _spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    median, p95, p99 = (float(v) for v in np.quantile(values, (0.5, 0.95, 0.99)))
    return {
        "mean": float(values.mean()),
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": float(values.max()),
    }


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What a user of the labels should know, in sentences; empty when nothing stands out."""
    found = []
    rows = summary["judged"]
    if not rows:
        return ["No row has both a valid SMPL and a valid SKEL label."]
    rejected = sum(summary["rejected"].values())
    if rejected:
        found.append(f"{rejected:,} of {summary['rows']:,} rows cannot be judged.")
    root = summary["root_error_deg"]
    if root["p95"] > 1.0:
        found.append(
            f"The pelvis is turned away from the SMPL one by more than {root['p95']:.1f} degrees "
            "in 5 % of the rows; the closed form has no error."
        )
    moved = summary["translation_error_mm"]
    if moved is None:
        found.append("No translation is stored; residuals use the closed form.")
    elif summary["zero_trans"] > rows // 2:
        found.append(f"skel_trans is zero in {summary['zero_trans']:,} rows.")
    elif moved["p95"] > 10.0:
        found.append(f"Translations differ by more than {moved['p95']:.0f} mm in 5 % of the rows.")
    far = 1.0 - summary["within_mm"]["50"]
    if far > 0:
        found.append(
            f"{pages.share(far)} of the rows are more than 50 mm off their SMPL mesh on average: "
            "failed fits are in the file."
        )
    outside = summary["limit_violations"]["rows"]
    if outside:
        found.append(f"{outside:,} rows leave the joint limits ({summary['limits']}).")
    if summary["repeated_labels"]:
        found.append(f"{summary['repeated_labels']:,} rows repeat an earlier label.")
    if summary["repeated_fits"] > summary["repeated_labels"]:
        found.append(
            f"{summary['repeated_fits']:,} rows have exactly the SKEL pose of another row."
        )
    if "later_residual_mm" in summary:
        first, later = (
            summary[k]["median"] for k in ("first_batch_residual_mm", "later_residual_mm")
        )
        if later > 1.2 * first:
            found.append(
                f"Rows from {FIRST_BATCH:,} on are worse (median {later:.1f} mm) than those before "
                f"({first:.1f} mm): the converter's schedule slips after its first batch."
            )
    return found


def _table(summary: dict[str, Any]) -> str:
    def line(values: Mapping[str, float] | None, unit: str) -> str:
        if values is None:
            return "-"
        return "  ".join(f"{name} {value:.2f}" for name, value in values.items()) + f" {unit}"

    rejected = ", ".join(f"{reason} {n:,}" for reason, n in summary["rejected"].items())
    within = summary["within_mm"]
    rows = [
        ("file", f"{summary['file']} ({summary['format']})"),
        ("rows", f"{summary['rows']:,}, judged {summary['judged']:,}"),
        ("not judged", rejected or "none"),
        ("bodies", "STAND-IN, not SMPL and SKEL" if summary["standin"] else "licensed"),
        ("root error", line(summary["root_error_deg"], "deg")),
        ("translation", line(summary["translation_error_mm"], "mm")),
        ("residual", line(summary["residual_mm"], "mm")),
        ("centred", line(summary["residual_centred_mm"], "mm")),
        ("worst vertex", line(summary["residual_max_mm"], "mm")),
        ("rows within", "  ".join(f"{mm} mm {pages.share(v)}" for mm, v in within.items())),
        ("limits", f"{summary['limit_violations']['rows']:,} rows outside ({summary['limits']})"),
        ("repeated", f"labels {summary['repeated_labels']:,}, fits {summary['repeated_fits']:,}"),
        ("betas", f"{summary['same_betas']:,} rows with those of SMPL"),
        ("worst rows", ", ".join(f"{w['row']} ({w['residual_mm']:.0f} mm)"
                                 for w in summary["worst_rows"]) or "-"),
    ]  # fmt: skip
    rows += [("finding", text) for text in findings(summary)]
    return aligned(rows)


def _page(found: Audit) -> str:
    summary, judged = found.summary, found.judgement
    return pages.page(
        "audit.html.j2",
        {
            "summary": summary,
            "findings": findings(summary),
            "histograms": [
                chart
                for chart in (
                    _histogram(judged.residual * 1000, "mean vertex distance, mm"),
                    _histogram(judged.root_error, "root error, degrees"),
                    _histogram(judged.translation_error * 1000, "translation error, mm"),
                )
                if chart is not None
            ],
            "measures": [
                ("root error, °", summary["root_error_deg"]),
                ("translation error, mm", summary["translation_error_mm"]),
                ("mean vertex distance, mm", summary["residual_mm"]),
                ("the same, centred, mm", summary["residual_centred_mm"]),
                ("worst vertex, mm", summary["residual_max_mm"]),
            ],
            "angles": sorted(
                summary["limit_violations"]["angles"].items(), key=lambda item: -item[1]["rows"]
            ),
            "shown": [_portrait(found, item["row"]) for item in summary["worst_rows"][:3]],
        },
    )


def _histogram(values: NDArray[np.float64], label: str) -> Any:
    values = values[np.isfinite(values)]
    if not values.size or values.max() < 0.05:  # nothing that the axis could show
        return None
    top = max(float(np.quantile(values, 0.995)) * 1.05, 1e-3)
    edges = np.linspace(0.0, top, 61)
    counts, _ = np.histogram(np.minimum(values, top), bins=edges)
    marks = {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
    return charts.histogram(counts, edges, marks, label)


def _portrait(found: Audit, row: int) -> dict[str, Any]:
    source, layout = found.source, found.source.layout
    read = source.read(row, row + 1)
    assert layout.skel_poses is not None
    assert layout.skel_betas is not None
    betas = read.fields[layout.skel_betas].reshape(1, -1)[0, :10]
    stored = read.fields[layout.skel_trans][0] if layout.skel_trans else read.transl[0]
    bodies = found.poser.bodies(
        Person(
            row=row,
            skel=(read.fields[layout.skel_poses][0], betas, stored),
            skel_gender=str(read.skel_gender[0]),
            smpl=(read.poses[0], read.betas[0], read.transl[0]),
            smpl_gender=str(read.smpl_gender[0]),
            cam_int=read.fields[layout.cam_int][0] if layout.cam_int else None,
        )
    )
    index = int(np.flatnonzero(found.judgement.row == row)[0])
    drawn = [
        ("SMPL label", pictures.target_picture(bodies, 280)),
        ("SKEL label", pictures.skin_picture(bodies, 280)),
        ("distance", pictures.distance_picture(bodies, 280)),
        ("skeleton", pictures.skeleton_picture(bodies, 280)),
    ]
    return {
        "row": row,
        "residual": float(found.judgement.residual[index]),
        "peak": float(found.judgement.residual_max[index]),
        "root": float(found.judgement.root_error[index]),
        "pictures": [(caption, pages.data_uri(image)) for caption, image in drawn],
    }
