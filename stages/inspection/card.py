"""A dataset card in the order of the Hugging Face template.

Everything that can be known is taken from plan, summary, receipts and columns, never typed by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from pipeline.columns import RESULT_COLUMNS, Meaning
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError
from pipeline.exporters.folders import Copy
from pipeline.given_labels import NOT_FITTED
from pipeline.manifest import load_manifest
from pipeline.plan import Plan
from pipeline.row_checks import REASONS
from pipeline.rundir import RunDirectory
from skel_fit.status import Status
from stages.drawing import pages
from stages.inspection.statistics import collect, genders

_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"),
)  # fmt: skip


_ORIGINALS = {
    "imgname": Meaning("image, below the image root"),
    "center": Meaning("middle of the person's box, x and y", "px", "image"),
    "scale": Meaning("side of the box / 200", "200 px", "image", "above 0"),
    "pose_cam": Meaning("SMPL pose, axis-angle, [:3] the root", "rad", "camera"),
    "shape": Meaning("SMPL shape"),
    "trans_cam": Meaning("added to the SMPL output", "m", "camera"),
    "cam_int": Meaning("intrinsics of the whole image", "px", "image"),
    "gtkps": Meaning("keypoints: x, y, confidence", "px", "image", "", "confidence 0"),
    "keypoints3d": Meaning("keypoints: x, y, z, confidence", "m", "camera", "", "confidence 0"),
    "gender": Meaning("body model of the label", "", "", "neutral, male, female"),
}


def card_text(dataset: Dataset, copy: Copy | None = None) -> str:
    """The card, Markdown. copy: of an export; it then says nothing of when and where the data were
    computed, so that the same data have the same card."""
    return pages.page("card.md.j2", context(dataset, copy))


def context(dataset: Dataset, copy: Copy | None = None) -> dict[str, Any]:
    """The values of the card's template."""
    plan, summary = dataset.plan, dataset.summary()
    states = RunDirectory(dataset.directory).inspect_all(plan, checksums=False)
    receipts = [state.receipt for state in states if state.receipt is not None]
    columns = collect(dataset)
    rows = len(dataset)
    counts = {Status(status): n for status, n in summary.status.items()}
    return {
        "front_matter": _front_matter(plan, rows, dataset.attrs["standin"], copy),
        "copy": copy.text if copy else "",
        "plan": plan,
        "description": _description(plan),
        "standin": dataset.attrs["standin"],
        "not_fitted": plan.fitter == NOT_FITTED,
        "digest": dataset.attrs["digest"],
        "rows": rows,
        "fitted": int(columns.fitted.sum()),
        "bytes": summary.bytes,
        "status": {k: n for k, n in counts.items() if not k.is_rejected},
        "rejected": [
            (name, n, REASONS.get(name, "found by the fit"))
            for name, n in sorted(summary.rejected.items())
        ],
        "errors": genders(columns),
        "groups": {
            name: sorted((n, int((codes == i).sum())) for i, n in enumerate(names))
            for name, (codes, names) in columns.groups.items()
            if name in ("split", "pose_source")
        },
        "schema": _schema(dataset),
        "appended": [
            (append.name, append.digest, str(append.provenance.get("made_by", "unknown")))
            for append in dataset.appended
        ],
        "compute_seconds": sum(receipt.seconds for receipt in receipts),
        "devices": sorted(
            {str(r.machine.get("device_name") or r.machine.get("device")) for r in receipts}
        ),
        "dates": _dates([receipt.started for receipt in receipts]),
    }  # fmt: skip


def _front_matter(plan: Plan, rows: int, standin: bool, copy: Copy | None) -> str:
    size = next((name for limit, name in _SIZES if rows < limit), "n>100M")
    return yaml.safe_dump(
        {
            "pretty_name": f"{plan.name}: SMPL labels as SKEL",
            "license": "other",
            "license_name": "source-terms",
            "task_categories": ["keypoint-detection"],
            "tags": ["human-pose", "human-mesh-recovery", "smpl", "skel", "biomechanics"]
            + (["stand-in-body"] if standin else []),
            "size_categories": [size],
            **({"configs": [_files(copy)]} if copy else {}),
        },
        sort_keys=False,
        allow_unicode=True,
    ).strip()


def _files(copy: Copy) -> dict[str, str]:
    return {"config_name": "default", "data_files": copy.data_files}


def _description(plan: Plan) -> str:
    """The manifest's own words, where a manifest of that name is at hand."""
    try:
        found = load_manifest(plan.name)
    except PipelineError:
        return ""
    return _cell(" ".join(found.description.split()))


def _schema(dataset: Dataset) -> list[dict[str, str]]:
    rows = []
    added = {name: column for append in dataset.appended for name, column in append.fields.items()}
    for name, column in (RESULT_COLUMNS | added).items():
        dtype = "text" if column.dtype == "U" else np.dtype(column.dtype).name
        rows.append(_line(name, _shape(column.shape), dtype, column.meaning))
    for item in dataset.plan.fields:
        dtype = {"U": "text", "S": "text (bytes)"}.get(
            np.dtype(item.dtype).kind, np.dtype(item.dtype).name
        )
        meaning = _ORIGINALS.get(item.source, Meaning("as in the label file"))
        rows.append(_line(item.stored, _shape(item.shape), dtype, meaning))
    return rows


def _line(name: str, shape: str, dtype: str, meaning: Meaning) -> dict[str, str]:
    values = {"name": name, "shape": shape, "dtype": dtype, **vars(meaning)}
    return {key: _cell(value) for key, value in values.items()}


def _cell(text: str) -> str:
    """Names come from label files: nothing in them may break the table or add markup."""
    safe = "".join(c if c.isprintable() else " " for c in text)
    return safe.replace("|", "&#124;").replace("<", "&lt;").replace("`", "'")


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(n) for n in ("n", *shape)) + ("," if not shape else "") + ")"


def _dates(started: Sequence[float]) -> str:
    if not started:
        return "unknown"
    first, last = (time.strftime("%Y-%m-%d", time.gmtime(t)) for t in (min(started), max(started)))
    return first if first == last else f"{first} to {last}"
