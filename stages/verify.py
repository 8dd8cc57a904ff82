"""`hmr-skel verify`: check a dataset and say what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import Incomplete
from pipeline.verify import verify
from stages.convert import aligned


def run_verify(
    directory: Path,
    *,
    data_root: Path | None = None,
    models: Path | None = None,
    device: str = "cpu",
    as_json: bool = False,
) -> None:
    """Verify and print; JSON keys `ok`, `rows`, `digest`, `problems` and the sample's figures.

    Raises:
        Incomplete: something is wrong or missing.
    """
    found = verify(directory, data_root=data_root, models=models, device=device)
    if as_json:
        print(
            json.dumps(
                {
                    "ok": found.ok,
                    "rows": found.rows,
                    "digest": found.digest,
                    "problems": list(found.problems),
                    "sampled": found.sampled,
                    "largest_residual_difference": found.largest_residual_difference,
                },
                sort_keys=True,
            )
        )
    else:
        rows = [
            ("result", "ok" if found.ok else f"{len(found.problems)} problems"),
            ("rows", str(found.rows)),
            ("digest", found.digest or "-"),
            (
                "recomputed",
                f"{found.sampled} rows, residuals within "
                f"{found.largest_residual_difference * 1e6:.2f} µm",
            ),
            *(("problem", text) for text in found.problems),
        ]
        print(aligned(rows))
    if not found.ok:
        raise Incomplete(f"{directory}: {len(found.problems)} problems; rerun hmr-skel convert")
