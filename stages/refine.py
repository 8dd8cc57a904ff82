"""`hmr-skel refine`: labels refined by their pictures' keypoints, where that can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stages import options
from stages.terminal import Progress, aligned, say

if TYPE_CHECKING:
    from pipeline.refining import Refined


def refine(
    directory: options.Directory,
    name: Annotated[
        str, typer.Option(help="What its columns are called: NAME.skel_poses, ...")
    ] = "refined",
    acceptance: Annotated[
        Literal["held-out", "published"],
        typer.Option(
            help="Which refined labels are taken: those that predict keypoints they have not "
            "seen; or nearly all, as published, which makes good labels worse.",
        ),
    ] = "held-out",
    gain: Annotated[
        float, typer.Option(help="Share by which the held-out error must fall, 0 up to 1.")
    ] = 0.1,
    prior: Annotated[
        Literal["motion", "wide", "limits"], typer.Option(help="How people hold themselves.")
    ] = "wide",
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    models: options.Models = None,
) -> None:
    """Refine SKEL labels by the keypoints of their pictures; the stored ones stay beside them."""
    from pipeline.errors import UsageError
    from pipeline.refining import refine_dataset
    from skel_fit.refinement import RefineConfig

    try:
        config = RefineConfig(gain=gain, seed=seed, acceptance=acceptance)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    progress: list[Progress] = []

    def done(rows: int, all_rows: int) -> None:
        if not progress:
            progress.append(Progress("refine", all_rows, "rows"))
        progress[0].update(rows)

    made = refine_dataset(directory, name, config, prior, models, done)
    for shown in progress:
        shown.close()
    say(refined_table(made, directory))


def refined_table(made: Refined, directory: Path) -> str:
    """What became of the labels, for the terminal."""
    rows = sum(made.outcomes.values())
    lines = [
        (outcome, f"{count} ({100 * count / max(rows, 1):.1f} %)")
        for outcome, count in sorted(made.outcomes.items(), key=lambda item: -item[1])
    ]
    return aligned(
        [
            ("labels", str(rows)),
            *lines,
            ("prior", str(made.append.provenance["prior"])),
            ("appended", str(directory / "appended" / made.append.name)),
            ("columns", ", ".join(made.append.fields)),
        ]
    )
