"""What evaluation found: the result of a protocol, as text, JSON and arrays.

Published numbers stand in columns of their own, and only beside results on the licensed bodies:
on the stand-in pair they would compare different bodies, so there they go to a part of the page
that says so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from pipeline.provenance import code_version, software
from stages.regressor.data.images import ImageSource
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.bootstrap import Estimate
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.outcome import Outcome
from stages.regressor.evaluation.predictors import MeanPose
from stages.regressor.evaluation.protocols import EvaluationProtocol, Published
from stages.regressor.evaluation.query import Predictor
from stages.regressor.evaluation.scoring import PRECISION, reason_counts
from stages.terminal import grid
from stages.wording import decimal

SCHEMA = 1
STANDIN_WARNING = (
    "Evaluated on the licence-free stand-in body, not on SMPL and SKEL. These numbers compare only "
    "with each other; never set them beside published ones."
)
MEAN_POSE = MeanPose.name


@dataclass(frozen=True)
class ProtocolResult:
    """One protocol: outcomes by predictor name, in order, the scored one first."""

    protocol: EvaluationProtocol
    rows: EvalRows
    bodies: EvaluationBodies
    images: ImageSource | None
    predictors: tuple[Predictor, ...]
    outcomes: Mapping[str, Outcome]
    floor: Mapping[str, float] | None
    violations: Mapping[str, float] | None
    complete: bool
    summaries: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    @property
    def standin(self) -> bool:
        """The licence-free bodies took part."""
        return (
            self.bodies.standin
            or bool(self.rows.standin)
            or any(getattr(predictor, "standin", False) for predictor in self.predictors)
        )

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> rows left out; the same for every predictor."""
        return reason_counts(next(iter(self.outcomes.values())).reason)


def metric_label(name: str) -> str:
    """`pa_mpjpe` -> `PA-MPJPE, mm`; `left_knee>10` -> `left knee > 10°, %`."""
    if ">" in name:
        part, _, degrees = name.partition(">")
        return f"{part.replace('_', ' ')} > {degrees}°, %"
    if name.startswith("pck"):
        return f"{name.upper()}, %"
    if name == "keypoint_l2":
        return "keypoint L2, box²"
    kind, _, root = name.partition("@")
    label = kind.upper().replace("_", "-")
    return f"{label}, {root} root, mm" if root else f"{label}, mm"


def number(value: float, name: str) -> str:
    """A value of a metric as printed."""
    return decimal(value, 5 if name == "keypoint_l2" else 1)


def main_published(result: ProtocolResult) -> list[Published]:
    """Published rows that get a column, as the file orders them: none beside stand-in results."""
    return [] if result.standin else [row for row in result.protocol.published if row.column]


def share_of_mean_pose(result: ProtocolResult) -> dict[str, float]:
    """Error of the scored predictor in percent of the mean pose's, for metrics in mm."""
    scored = next(iter(result.summaries))
    if scored == MEAN_POSE:
        return {}
    ours, mean = result.summaries[scored], result.summaries[MEAN_POSE]
    return {
        name: 100 * ours[name].value / mean[name].value
        for name in result.protocol.point_metrics
        if mean[name].value > 0
    }


def not_useful(result: ProtocolResult) -> list[str]:
    """A line where the scored predictor errs as much as one pose for every picture."""
    share = share_of_mean_pose(result)
    bad = [metric_label(name).removesuffix(", mm") for name, value in share.items() if value >= 100]
    if not bad:
        return []
    scored = next(iter(result.summaries))
    return [
        f"NOTE: {scored} is no better than one mean pose for every picture ({', '.join(bad)}): not "
        "of use; a network like this was trained too short"
    ]


def columns_of(result: ProtocolResult) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of a protocol's table; intervals only for the scored predictor."""
    share = share_of_mean_pose(result)
    published = main_published(result)
    heading = ["", *result.summaries]
    heading += ["% of mean pose"] if share else []
    heading += ["floor"] if result.floor else []
    heading += [f"published: {row.method}" for row in published]
    lines = []
    for name in result.protocol.metrics:
        line = [metric_label(name)]
        for place, summary in enumerate(result.summaries.values()):
            found = summary[name]
            text = number(found.value, name)
            if place == 0 and math.isfinite(found.low):
                text += f" [{number(found.low, name)}, {number(found.high, name)}]"
            line.append(text)
        line += [f"{share[name]:.0f}" if name in share else ""] if share else []
        if result.floor:
            line.append(number(result.floor[name], name) if name in result.floor else "")
        line += [number(row.values.get(name, math.nan), name) for row in published]
        lines.append(line)
    return heading, lines


def headline(result: ProtocolResult) -> str:
    """What a protocol's numbers mean, in one line."""
    usable = int((result.rows.reason == "").sum())
    skipped = result.skipped
    text = f"{result.protocol.name} ({result.protocol.family}): {usable} rows"
    if skipped:
        reasons = ", ".join(f"{count} {name}" for name, count in skipped.items())
        text += f", {sum(skipped.values())} skipped ({reasons})"
    if not result.complete:
        text += ", NOT ALL ROWS (--limit)"
    expected = result.protocol.source.rows
    if expected is not None and result.complete and len(result.rows) != expected:
        text += f", published count is {expected}"
    roots = "; ".join(root.about for root in result.protocol.roots[:1])
    how = getattr(result.predictors[0], "how", "")
    parts = [text, how, PRECISION, f"root: {roots}" if roots else ""]
    return "; ".join(part for part in parts if part)


def table(results: Sequence[ProtocolResult]) -> str:
    """All protocols as one text table."""
    parts: list[str] = []
    if any(result.standin for result in results):
        parts += [f"WARNING: {STANDIN_WARNING}", ""]
    grids = [columns_of(result) for result in results]
    lines = iter(grid([row for heading, lines in grids for row in (heading, *lines)]))
    for result, (_, body) in zip(results, grids, strict=True):
        parts += [headline(result), *islice(lines, 1 + len(body)), *not_useful(result), ""]
    return "\n".join(parts).rstrip()


def as_json(results: Sequence[ProtocolResult], batch_size: int) -> dict[str, Any]:
    """Everything as plain values; NaN becomes null."""
    standin = any(result.standin for result in results)
    return _plain(
        {
            "schema": SCHEMA,
            "standin": standin,
            "warning": STANDIN_WARNING if standin else None,
            "code": code_version("regressor"),
            "software": software(),
            "batch_size": batch_size,
            "protocols": [_protocol_json(result) for result in results],
        }
    )


def _protocol_json(result: ProtocolResult) -> dict[str, Any]:
    return {
        "name": result.protocol.name,
        "definition": result.protocol.data(),
        "precision": PRECISION,
        "files": dict(result.rows.files),
        "models": result.bodies.digests(),
        "standin": result.standin,
        "complete": result.complete,
        "rows": {
            "read": len(result.rows),
            "evaluated": int((result.rows.reason == "").sum()),
            "skipped": result.skipped,
            "published_count": result.protocol.source.rows,
        },
        "results": {
            predictor.name: {
                "provenance": dict(predictor.provenance()),
                "metrics": {n: asdict(e) for n, e in result.summaries[predictor.name].items()},
                "limit_excess_radians": result.outcomes[predictor.name].limit_statistics(),
            }
            for predictor in result.predictors
        },
        "percent_of_mean_pose": share_of_mean_pose(result),
        "floor": result.floor,
        "label_violations": result.violations,
        "published": {
            "warning": STANDIN_WARNING if result.standin else None,
            "rows": [row.model_dump(mode="json") for row in result.protocol.published],
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def rows_npz(result: ProtocolResult) -> bytes:
    """Per-row values, for paired comparisons: `row`, `reason`, `<predictor>/<metric>`."""
    arrays: dict[str, Any] = {"row": result.rows.row, "reason": result.rows.reason}
    for name, outcome in result.outcomes.items():
        arrays |= {f"{name}/{metric}": values for metric, values in outcome.values.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
