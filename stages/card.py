"""`hmr-skel card`: a dataset card for a converted dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import options
from stages.terminal import say


def card(
    directory: options.Directory,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write.", show_default="DIR/README.md")
    ] = None,
) -> None:
    """Write a dataset card for a converted dataset."""
    from pipeline.dataset import open_dataset
    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from stages.inspection.card import card_text

    path = out or directory / "README.md"
    Inputs().and_dataset(directory).check(path)
    write_bytes(path, card_text(open_dataset(directory)).encode("utf-8"))
    say(path)
