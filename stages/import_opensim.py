"""`hmr-skel import-opensim`: an OpenSim model with a motion as SKEL parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import UsageError
from stages import options
from stages.terminal import aligned, print_json, say
from stages.wording import count

if TYPE_CHECKING:
    from pipeline.opensim_import import Imported

_SHOWN = 0.05
"""Degrees; a smaller residual is not worth a word on the terminal."""


def import_opensim(
    model: Annotated[Path, typer.Argument(metavar="MODEL.osim", help="An OpenSim model.")],
    motion: Annotated[Path, typer.Argument(metavar="MOTION.mot", help="Its .mot or .sto motion.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="The file to write.")],
    models: options.Models = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Follow with the licence-free body.")
    ] = False,
    gender: Annotated[
        Literal["male", "female"], typer.Option(help="Body that follows a model of others.")
    ] = "male",
    ground: Annotated[
        Literal["camera", "y-up", "z-up", "none"],
        typer.Option(help="Axes of the result for a model of others."),
    ] = "y-up",
    units: Annotated[
        Literal["file", "degrees", "radians"], typer.Option(help="Of the motion's angles.")
    ] = "file",
    as_json: options.AsJson = False,
) -> None:
    """Turn an OpenSim motion into SKEL parameters: own exports exactly, others nearest."""
    from pipeline.guard import Inputs
    from pipeline.opensim_import import import_opensim as read

    if model.suffix.lower() != ".osim" and motion.suffix.lower() == ".osim":
        raise UsageError(f"{model}: is no .osim; the model comes first: {motion} {model}")
    Inputs(model, motion, models).check(out)
    found = read(
        model,
        motion,
        models=lambda: _models(models, stand_in),
        gender=gender,
        ground=ground,
        units=units,
    )
    found.write(out)
    if as_json:
        print_json(_summary(found, out))
    else:
        say(_table(found, out))


def _models(given: Path | None, stand_in: bool) -> Path:
    from pipeline.manifest import models_directory

    return models_directory("default-body" if stand_in else "licensed", given)


def _residuals(found: Imported) -> dict[str, float]:
    import numpy as np

    return {name: float(np.median(values)) for name, values in found.residuals.items()}


def _summary(found: Imported, out: Path) -> dict[str, Any]:
    return {
        "path": str(out),
        "frames": len(found.poses),
        "gender": found.gender,
        "residual_degrees_median": _residuals(found),
        "defaults": list(found.defaults),
        "ignored": list(found.ignored),
        "unmapped": list(found.unmapped),
        "at_rest": list(found.at_rest),
        "model_sha256": found.model_sha256,
    }


def _table(found: Imported, out: Path) -> str:
    own = "an export of ours, undone" if found.model_sha256 else "followed body by body"
    lines = [
        ("file", str(out)),
        ("frames", count(len(found.poses))),
        ("model", f"{own}; gender {found.gender}"),
    ]
    left = [f"{name} {value:.1f}" for name, value in _residuals(found).items() if value > _SHOWN]
    for what, names in (
        ("median residual, degrees", left),
        ("columns that are no coordinate", found.ignored),
        ("coordinates without column, at default", found.defaults),
        ("coordinates that move nothing of ours", found.unmapped),
        ("angles that nothing tells, at rest", found.at_rest),
    ):
        if names:
            lines.append((what, ", ".join(names)))
    return aligned(lines)
