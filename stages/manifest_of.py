"""`hmr-skel manifest`: the YAML that converts a label file, for a run that can be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import options


def manifest(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A label file, or a folder of them.", exists=True)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The YAML file.", show_default="standard output")
    ] = None,
    data_root: options.DataRoot = None,
    models: options.Models = None,
    up: options.Up = None,
    smpl_gender: options.SmplGender = None,
    skel_gender: options.SkelGender = None,
    option: options.Option = None,
) -> None:
    """Write the manifest of a label file: what `convert FILE` would use."""
    from pipeline.configuration import SUFFIXES
    from pipeline.errors import UsageError
    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from pipeline.own_file import Asked, manifest_yaml

    if out is not None:
        if not out.name.endswith(SUFFIXES):
            raise UsageError(
                f"{out}: other files are not written over: expected a name that ends in "
                f"{' or '.join(SUFFIXES)}"
            )
        Inputs(file).check(out)
    given = tuple(option) if option else None
    found = Asked(str(file), data_root, models, up, smpl_gender, skel_gender, given).own_file()
    text = manifest_yaml(found)
    if out is None:
        print(text, end="")
        return
    write_bytes(out, text.encode())
    print(f"hmr-skel convert {out} --data-root {found.data_root}")
