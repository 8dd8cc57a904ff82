"""`hmr-skel verify`: check a dataset and say what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import Incomplete
from stages import options
from stages.terminal import Progress, aligned, print_json, say

if TYPE_CHECKING:
    from pipeline.verify import Verification

_SHOWN = 12


def verify(
    directory: options.Directory,
    as_json: options.AsJson = False,
    data_root: options.DataRoot = None,
    models: options.Models = None,
    device: options.FitDevice = "cpu",
    full: Annotated[
        bool, typer.Option("--full", help="Compare every row, and fit it again.")
    ] = False,
) -> None:
    """Re-read every shard, account for every row, recompute residuals of a sample."""
    from pipeline.verify import verify as check

    with Progress("verify", 0, "rows", quiet=not full) as progress:

        def report(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.done)

        found = check(
            directory, data_root=data_root, models=models, device=device, full=full, report=report
        )
    largest = found.largest_residual_difference
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "rows": found.rows,
                "digest": found.digest,
                "problems": list(found.problems),
                "sampled": found.fitted,
                "compared_rows": list(found.compared),
                "compared_columns": list(found.columns),
                "full": found.full,
                "fitted_again": found.again,
                "bit_equal": found.exact,
                "not_fitted_again": found.not_again,
                "people_found_again": found.people,
                "people_bit_equal": found.exact_people,
                "largest_residual_difference": largest,
            }
        )
    else:
        rows = [
            ("result", "ok" if found.ok else f"{len(found.problems)} problems"),
            ("rows", str(found.rows)),
            ("digest", found.digest or "-"),
            ("compared", _what(found)),
            ("columns", ", ".join(found.columns)),
            ("recomputed", f"{found.fitted} rows, residuals within {largest * 1e6:.2f} µm"),
            ("fitted again", _again(found)),
            *([("shapes again", _people(found))] if found.people else []),
            *(("problem", text) for text in found.problems),
        ]
        say(aligned(rows))
    if not found.ok:
        raise Incomplete(f"{directory}: {len(found.problems)} problems; rerun hmr-skel convert")


def _what(found: Verification) -> str:
    """Which rows were compared with the label file and the models."""
    if found.full:
        return f"all {len(found.compared)} rows of the shards that are done"
    shown = [str(row) for row in found.compared]
    if len(shown) > _SHOWN:
        shown = [*shown[: _SHOWN - 2], "...", shown[-1]]
    return (
        f"{len(found.compared)} of {found.rows} rows: {found.fitted} fitted and "
        f"{len(found.compared) - found.fitted} rejected ones, evenly spread over those of each "
        f"shard (rows {', '.join(shown) or '-'}; all in --json); every row: --full"
    )


def _people(found: Verification) -> str:
    """How far the shapes of people were checked."""
    other = found.people - found.exact_people
    return f"{found.people} people: {found.exact_people} equal bit for bit, {other} not"


def _again(found: Verification) -> str:
    """How far the fits themselves were checked."""
    if not found.full:
        return "no row: whether a stored body is the best one, --full tells"
    if found.not_again:
        return f"no row: {found.not_again}; install what the plan names to compare the fits too"
    return (
        f"{found.again} rows in every column: {found.exact} equal bit for bit, "
        f"{found.again - found.exact} not"
    )
