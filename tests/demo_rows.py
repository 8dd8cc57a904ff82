"""A few demo rows, really fitted with the stand-in pair once a session."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from pipeline.demo import demo_columns, npz_bytes
from pipeline.fitters import DEFAULT_FITTER
from pipeline.manifest import load_manifest
from pipeline.run import Request, convert
from skel_fit.default_body import default_body_directory

REAL = DEFAULT_FITTER
EVIL = "images/<script>alert(1)</script>&.jpg"
EVIL_SPLIT = "<img src=x onerror=alert(1)>"


def convert_labels(folder: Path, source: str, fitter: str, out: str = "out", **changes) -> Path:
    """Convert `folder/source` into `folder/out` in this process; `changes` go to the manifest.
    A folder `amass` is taken for SMPL's."""
    content = {
        "name": "small",
        "source": {"path": source} | ({"format": "sequence"} if source == "amass" else {}),
        "genders": {"smpl": "column", "skel": "column"},
        "shard_rows": 16,
        **changes,
    }
    manifest = folder / f"{out}.yaml"
    manifest.write_text(json.dumps(content))
    request = Request(
        manifest=load_manifest(manifest), directory=folder / out, data_root=folder, fitter=fitter
    )
    convert(request, lambda event, data: None)
    return folder / out


@functools.cache
def fitted_demo(base: Path) -> Path:
    """Eight demo rows of all gender pairs with hostile names; give `getbasetemp()` as `base`."""
    folder = base / "fitted-demo"
    folder.mkdir()
    columns = {n: v[::300] for n, v in demo_columns(default_body_directory()).items()}
    columns["imgname"] = np.full(8, EVIL)
    columns["split"] = np.full(8, EVIL_SPLIT)
    (folder / "labels.npz").write_bytes(npz_bytes(columns))
    return convert_labels(folder, "labels.npz", REAL, models="default-body")
