"""`hmr-skel calibrate`: measure what standard deviations of angles rest on, for a models folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages import options
from stages.terminal import aligned, say

if TYPE_CHECKING:
    from pipeline.calibration import Pair, Sample
    from pipeline.guard import Inputs
    from skel_fit.calibration import CalibrationFile
    from skel_fit.recipe import FitConfig


def calibrate(
    rows_from: Annotated[
        str | None,
        typer.Argument(
            metavar="[SUBSET|DIR]",
            help="Subset or conversion whose rows to measure on.",
            show_default="the committed motion",
        ),
    ] = None,
    models: options.Models = None,
    stand_in: Annotated[bool, typer.Option("--stand-in", help="Of the licence-free pair.")] = False,
    data_root: options.DataRoot = None,
    rows: Annotated[
        int, typer.Option(min=48, help="Rows a pair of genders is measured on, at most.")
    ] = 1200,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write.", show_default="calibration.npz in the models folder"),
    ] = None,
) -> None:
    """Measure residual fields of two body models; conversions then say how sure each angle is."""
    from pipeline.calibration import measure
    from pipeline.output_files import make_directory
    from skel_fit.calibration import CALIBRATION_FILE, write_calibrations

    folder, samples, config, about = _what(rows_from, models, stand_in, data_root, rows)
    out = out or folder / CALIBRATION_FILE
    _read(rows_from, folder, data_root).check(out)
    found = measure(folder, samples, config, about, say)
    make_directory(out.parent)
    write_calibrations(out, found)
    say(_table(out, found))


def _what(
    rows_from: str | None, models: Path | None, stand_in: bool, data_root: Path | None, rows: int
) -> tuple[Path, dict[Pair, Sample], FitConfig, dict[str, Any]]:
    """Models folder, rows of each pair, how they are fitted, where they come from."""
    from pipeline.calibration import free_motion, pairs_there, rows_of, source_record
    from pipeline.demo import MOTION
    from pipeline.errors import UsageError
    from pipeline.manifest import missing_models, models_directory
    from skel_fit.recipe import FitConfig

    if rows_from is not None:
        if stand_in:
            raise UsageError("--stand-in belongs to the committed motion; rows name their bodies")
        plan, source, folder = _opened(rows_from, models, data_root)
        about = {"rows_of": plan.name, "files": [file.to_json() for file in plan.source_files]}
        return folder, rows_of(plan, source, rows), plan.request.frame, about
    folder = models_directory("default-body" if stand_in else "licensed", models)
    pairs = pairs_there(folder)
    if not pairs:
        raise UsageError(missing_models(folder, "no pair of an SMPL and a SKEL file"))
    sample = free_motion(rows)
    about = {"rows_of": "committed motion", "files": [source_record(MOTION)]}
    return folder, dict.fromkeys(pairs, sample), FitConfig(), about


def _read(rows_from: str | None, folder: Path, data_root: Path | None) -> Inputs:
    """The body models, and the conversion or the label file whose rows are measured on."""
    from pipeline.guard import Inputs
    from pipeline.manifest import data_root as root_of
    from pipeline.manifest import find_source, load_manifest
    from pipeline.rundir import RunDirectory
    from skel_fit.calibration import CALIBRATION_FILE

    inputs = Inputs(*(path for path in folder.iterdir() if path.name != CALIBRATION_FILE))
    if rows_from is None:
        return inputs
    if RunDirectory(Path(rows_from)).plan_path.is_file():
        return inputs.and_dataset(Path(rows_from))
    source = find_source(load_manifest(rows_from), root_of(data_root))
    return inputs.and_files(source)


def _opened(rows_from: str, models: Path | None, data_root: Path | None) -> tuple[Any, Any, Path]:
    """Plan, label file and models of a conversion, or of a subset that was never converted."""
    from pipeline.manifest import data_root as root_of
    from pipeline.manifest import load_manifest
    from pipeline.planning import planned
    from pipeline.rundir import RunDirectory
    from pipeline.task import conversion_models, open_plan_source

    run = RunDirectory(Path(rows_from))
    if run.plan_path.is_file():
        plan = run.plan()
        places = run.places(plan)
        root = data_root or Path(places.get("data_root") or ".")
        source = open_plan_source(plan, _source_file(plan, places, data_root), root)
        return plan, source, conversion_models(plan, places.get("models"), models)
    with planned(load_manifest(rows_from), root_of(data_root), models, say=say) as found:
        source = open_plan_source(found.plan, found.source.path, found.source.data_root)
        assert found.models is not None  # the default fitter has models
        return found.plan, source, found.models


def _source_file(plan: Any, places: Any, data_root: Path | None) -> Path:
    noted = Path(places.get("source") or plan.source_files[0].name)
    if data_root is None:
        return noted
    root = Path(places.get("data_root") or ".")
    return data_root / (noted.relative_to(root) if noted.is_relative_to(root) else noted.name)


def _table(out: Path, found: CalibrationFile) -> str:
    rows = [("file", f"{out} ({out.stat().st_size / 1e3:.0f} kB)")]
    for (smpl, skel), made in found.pairs.items():
        kept = f"{made.rows:,} rows, {len(made.wrenches)} fields kept"
        rows.append((f"{smpl}:{skel}", kept))
    rows.append(("next", "hmr-skel convert: skel_poses_sd and skel_poses_observed"))
    return aligned(rows)
