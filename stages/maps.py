"""`hmr-skel maps`: correspondences between bodies, beside the users' models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import options
from stages.terminal import aligned, say

maps = typer.Typer(no_args_is_help=True, help="Maps from other bodies to SKEL's skin.")


@maps.command()
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="mhr2smpl_mapping.npz, a deftrafo .pkl, or .pt.")
    ],
    models: options.Models = None,
    faces: Annotated[
        Path | None,
        typer.Option(help="PLY with the source's triangles.", show_default="MHR's beside FILE"),
    ] = None,
    body: Annotated[
        str | None, typer.Option(help="Name of the source.", show_default="told from its size")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of FILE, kept in the map.", show_default="that FILE has one"),
    ] = None,
) -> None:
    """Turn a correspondence file to SMPL into a map in the models folder, checked."""
    from pipeline.body_maps import add_map
    from pipeline.manifest import models_directory

    folder = models_directory("licensed", models)
    path, found = add_map(file, folder, faces=faces, body=body, licence=licence)
    known = "from the files" if found.knows_source_faces else "not known, counted only"
    say(
        aligned(
            [
                ("map", str(path)),
                ("from", f"{found.source}, {found.source_vertices} vertices"),
                ("triangles", f"of the source: {known}; of SKEL: {found.target_faces_sha256[:12]}"),
                ("licence", found.licence),
                ("next", f"hmr-skel convert FILE --models {folder}"),
            ]
        )
    )


@maps.command(name="list")
def list_maps(models: options.Models = None) -> None:
    """The maps that a models folder has, and those that are shipped."""
    from pipeline.body_maps import described_maps
    from pipeline.manifest import STAND_IN, models_directory

    say(aligned(described_maps(models_directory(STAND_IN, models))))
