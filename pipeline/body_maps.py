"""Maps between bodies as files: made from correspondences of others, listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.guard import Inputs
from pipeline.output_files import make_directory
from skel_fit.bodies.map_files import FOLDER, map_files
from skel_fit.bodies.surface_map import SurfaceMap
from skel_fit.errors import ModelFileError

if TYPE_CHECKING:
    from skel_fit.skel import SKEL


def add_map(
    file: Path, models: Path, *, faces: Path | None, body: str | None, licence: str | None
) -> tuple[Path, SurfaceMap]:
    """Make a map of a correspondence file, in the folder `maps` beside the users' models.

    Correspondences of others lead to SMPL's vertices, so the folder must hold the licensed SKEL.

    Raises InputError: one line with the file and what is wrong.
    """
    from skel_fit.bodies.correspondences import read_correspondence, to_map
    from skel_fit.model_files import load_skel

    try:
        found = read_correspondence(file, faces)
        skel = _skel(models, load_skel)
        if skel.standin:
            raise ModelFileError(
                f"{models}: holds the licence-free stand-in, whose vertices are not SMPL's; {file} "
                "leads to SMPL's: give --models DIR with the licensed SKEL"
            )
        made = to_map(
            file,
            found,
            skel.faces.numpy(),
            source=body,
            licence=licence or f"that of {file.name}",
            models=models,
        )
    except ModelFileError as error:
        raise InputError(str(error)) from error
    path = models / FOLDER / f"{made.source}.npz"
    Inputs(file, *([faces] if faces else [])).check(path)
    make_directory(path.parent)
    made.write(path)
    return path, made


def described_maps(models: Path) -> list[tuple[str, str]]:
    """A line about each map. Raises InputError: a file of the folder is no map."""
    from skel_fit.model_files import load_skel

    try:
        skel = _skel(models, load_skel)
        lines = []
        for path in map_files(models):
            found = SurfaceMap.read(path)
            try:
                found.check_target(skel)
                fits = "fits the SKEL of this folder"
            except ValueError:
                fits = "is for another SKEL than this folder's"
            text = f"{found.source_vertices} vertices, {fits}, licence: {found.licence} ({path})"
            lines.append((found.source, text))
    except ModelFileError as error:
        raise InputError(str(error)) from error
    own = "SKEL's own triangles: no map is needed"
    return [*lines, ("smpl, smplh, skel", own)]


def _skel(models: Path, load: Callable[[Path, str], SKEL]) -> SKEL:
    try:
        return load(models, "male")
    except ModelFileError:
        return load(models, "female")
