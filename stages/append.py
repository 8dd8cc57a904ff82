"""`hmr-skel append`: another conversion of the same labels as further columns of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import options
from stages.terminal import aligned, say

if TYPE_CHECKING:
    from pipeline.appended import Append


def append(
    directory: options.Directory,
    other: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="The other conversion, complete.")
    ],
    name: Annotated[str, typer.Option(help="What its columns are called: NAME.skel_poses, ...")],
) -> None:
    """Add another conversion of the same labels as columns; the shards do not change."""
    from pipeline.appending import append_conversion

    say(appended_table(append_conversion(directory, other, name), directory))


def appended_table(made: Append, directory: Path) -> str:
    """What was added, for the terminal."""
    return aligned(
        [
            ("appended", str(directory / "appended" / made.name)),
            ("columns", ", ".join(made.fields)),
            ("digest", made.digest),
        ]
    )
