"""`hmr-skel verify`: check a dataset and say what is wrong with it."""

from __future__ import annotations

from pipeline.errors import Incomplete
from stages import options
from stages.terminal import aligned, print_json


def verify(
    directory: options.Directory,
    as_json: options.AsJson = False,
    data_root: options.DataRoot = None,
    models: options.Models = None,
    device: options.FitDevice = "cpu",
) -> None:
    """Re-read every shard, account for every row, recompute residuals of a sample."""
    from pipeline.verify import verify as check

    found = check(directory, data_root=data_root, models=models, device=device)
    largest = found.largest_residual_difference
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "rows": found.rows,
                "digest": found.digest,
                "problems": list(found.problems),
                "sampled": found.sampled,
                "largest_residual_difference": largest,
            }
        )
    else:
        rows = [
            ("result", "ok" if found.ok else f"{len(found.problems)} problems"),
            ("rows", str(found.rows)),
            ("digest", found.digest or "-"),
            ("recomputed", f"{found.sampled} rows, residuals within {largest * 1e6:.2f} µm"),
            *(("problem", text) for text in found.problems),
        ]
        print(aligned(rows))
    if not found.ok:
        raise Incomplete(f"{directory}: {len(found.problems)} problems; rerun hmr-skel convert")
