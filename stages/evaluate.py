"""`hmr-skel evaluate`: protocols against a checkpoint and baselines; a table, JSON and a page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.errors import UsageError
from stages import options
from stages.terminal import Progress, say

if TYPE_CHECKING:
    from stages.regressor.evaluation.eval_rows import EvalRows
    from stages.regressor.evaluation.protocols import EvaluationProtocol
    from stages.regressor.evaluation.query import Predictor
    from stages.regressor.evaluation.results import ProtocolResult


@dataclass(frozen=True)
class Request:
    """What to evaluate. Paths that are None are looked for where the protocol says."""

    protocols: Annotated[
        list[str], typer.Argument(metavar="PROTOCOL...", help="Names, or YAML files.")
    ] = field(default_factory=lambda: ["demo"])
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="best.pt of a training folder, or an imported file.", show_default="baselines only"
        ),
    ] = None
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions of another program, SKEL or SMPL, npz.")
    ] = None
    skel_fit: Annotated[
        bool,
        typer.Option(
            "--skel-fit", help="Also SMPL predictions after a fit of SKEL: two-stage baselines."
        ),
    ] = False
    shards: Annotated[
        Path | None, typer.Option(help="Converted dataset, for protocols on shards.")
    ] = None
    labels: Annotated[
        Path | None, typer.Option(help="Label file.", show_default="where the protocol says")
    ] = None
    images: Annotated[Path | None, typer.Option(help="Folder or tar file with the pictures.")] = (
        None
    )
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation")
    data_root: options.DataRoot = None
    models: options.Models = None
    device: options.Device = "cpu"
    crop: Annotated[
        Literal["recipe", "protocol", "grown", "square"],
        typer.Option(help="Crop rule of a checkpoint; recipe: its own."),
    ] = "recipe"
    focal: Annotated[
        str,
        typer.Option(
            help="Focal length for a checkpoint: labels, predicted, patch, diagonal, protocol or "
            "pixels; auto: predicted with --fov-checkpoint, else labels, else diagonal."
        ),
    ] = "auto"
    fov_checkpoint: options.FovCheckpoint = None
    fov_channels: options.FovChannels = "rgb"
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32
    limit: Annotated[int | None, typer.Option(min=1, help="First N rows only.")] = None
    worst: Annotated[int, typer.Option(min=0, help="Worst rows to draw.")] = 6
    layer_cameras: Annotated[
        bool,
        typer.Option("--layer-cameras", help="Also the final body under the camera of each layer."),
    ] = False
    layer_estimates: Annotated[
        bool,
        typer.Option("--layer-estimates", help="Also each estimate before the last one."),
    ] = False
    against: Annotated[
        Path | None, typer.Option(help="A second checkpoint, beside the first one.")
    ] = None
    quiet: options.Quiet = False


@options.command_line(Request)
def evaluate(request: Request) -> None:
    """Score a checkpoint, or stored predictions, and baselines under evaluation protocols."""
    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory, write_bytes, write_json
    from stages.regressor.evaluation import results as found
    from stages.regressor.evaluation import setting
    from stages.regressor.evaluation.page import evaluation_page
    from stages.regressor.evaluation.protocols import load_protocol
    from stages.regressor.evaluation.stored import FittedPredictions

    if request.focal not in setting.FOCAL_WORDS:
        setting.pixels(request.focal)  # also where there is no checkpoint to use it
    if len(request.protocols) > 1 and (request.labels or request.images):
        raise UsageError("--labels and --images go with a single protocol")
    if request.images is not None and not request.images.exists():
        raise UsageError(f"--images {request.images}: no such folder or tar file")
    protocols = [load_protocol(name) for name in request.protocols]
    out = request.out
    numbers, shown = out / "evaluation.json", out / "evaluation.html"
    rows = [out / f"rows-{protocol.name}.npz" for protocol in protocols]
    fitted = [out / f"fitted-{protocol.name}.npz" for protocol in protocols]
    if request.skel_fit and request.predictions is None:
        raise UsageError("--skel-fit: give SMPL predictions with --predictions")
    inputs = Inputs(
        request.checkpoint, request.predictions, request.labels, request.images, request.models,
        request.fov_checkpoint, request.against, *(Path(name) for name in request.protocols),
    )  # fmt: skip
    inputs = inputs.and_dataset(request.shards) if request.shards else inputs
    inputs.check(numbers, shown, *rows, *(fitted if request.skel_fit else ()))
    results = [_evaluate(protocol, request) for protocol in protocols]
    make_directory(out)
    write_json(numbers, found.as_json(results, request.batch_size))
    for result, path, bodies in zip(results, rows, fitted, strict=True):
        write_bytes(path, found.rows_npz(result))
        for predictor in result.predictors:
            if isinstance(predictor, FittedPredictions):
                write_bytes(bodies, predictor.file())
    page = evaluation_page(results, worst=request.worst)
    write_bytes(shown, page.encode("utf-8"))
    say(found.table(results))
    say(f"\n{shown}")


def _evaluate(protocol: EvaluationProtocol, request: Request) -> ProtocolResult:
    import numpy as np

    from pipeline.manifest import data_root
    from stages.regressor.evaluation import setting
    from stages.regressor.evaluation.bodies import EvaluationBodies
    from stages.regressor.evaluation.eval_readers import read_eval_rows
    from stages.regressor.evaluation.results import ProtocolResult
    from stages.regressor.evaluation.scoring import (
        floor_values,
        label_violations,
        run_protocol,
        skip_reasons,
    )
    from stages.regressor.evaluation.stored import FittedPredictions, StoredPredictions

    root = data_root(request.data_root)
    path = setting.find_labels(protocol, shards=request.shards, labels=request.labels, root=root)
    below = root / protocol.source.images if protocol.source.images else None
    everything = rows = read_eval_rows(protocol, path, request.images or below)
    if request.limit is not None and request.limit < len(rows):
        rows = rows.take(np.arange(request.limit))
    stored = None
    if request.predictions is not None:
        projects = protocol.pck is not None
        stored = StoredPredictions(request.predictions, everything, projects=projects)
    predictors = _predictors(protocol, request, rows, path, stored)
    bodies = EvaluationBodies(setting.find_models(request.models, rows, predictors), request.device)
    setting.check_bodies(protocol, bodies, rows, predictors, path)
    needs_images = any(predictor.uses_images for predictor in predictors)
    images = setting.open_pictures(rows, needs_images, protocol)
    rows = replace(rows, reason=skip_reasons(rows, images if needs_images else None))
    if stored is not None and request.skel_fit:
        fitted = FittedPredictions(stored, protocol, rows, bodies)
        predictors.insert(predictors.index(stored) + 1, fitted)
        rows = replace(rows, reason=fitted.reason)
    usable = int((rows.reason == "").sum())
    outcomes = {}
    with Progress(protocol.name, usable * len(predictors), "rows", quiet=request.quiet) as progress:
        for predictor in predictors:
            outcomes[predictor.name] = run_protocol(
                protocol, rows, predictor, bodies, images=images, reason=rows.reason.copy(),
                batch_size=request.batch_size, progress=progress.update,
            )  # fmt: skip
    return ProtocolResult(
        protocol=protocol,
        rows=rows,
        bodies=bodies,
        images=images,
        predictors=tuple(predictors),
        outcomes=outcomes,
        floor=floor_values(protocol, rows, bodies, request.batch_size),
        violations=label_violations(protocol, rows),
        complete=len(rows) == len(everything),
        summaries={name: outcome.summary() for name, outcome in outcomes.items()},
    )


def _predictors(
    protocol: EvaluationProtocol,
    request: Request,
    rows: EvalRows,
    path: Path,
    stored: Predictor | None,
) -> list[Predictor]:
    """What is scored, then the baselines that the protocol allows."""
    from stages.regressor.evaluation import setting
    from stages.regressor.evaluation.predictors import CheckpointPredictor, SkelLabels
    from stages.regressor.network.official import load_human_fov

    found: list[Predictor] = []
    if (request.layer_cameras or request.layer_estimates) and request.checkpoint is None:
        raise UsageError("--layer-cameras, --layer-estimates: give a --checkpoint")
    for weights in (request.checkpoint, request.against):
        if weights is None:
            continue
        fov, channels = request.fov_checkpoint, request.fov_channels
        focal = setting.focal_rule(protocol, request.focal, fov is not None, rows)
        found.append(
            CheckpointPredictor(
                weights, device=request.device, crop=request.crop, focal=focal,
                fov=load_human_fov(fov) if focal == "predicted" and fov else None,
                fov_channels=protocol.fov_channels if channels == "protocol" else channels,
            )
        )  # fmt: skip
        last = found[-1]
        assert isinstance(last, CheckpointPredictor)
        if any(other.name == last.name for other in found[:-1]):
            last.name = f"{last.name} ({weights})"
        if request.layer_cameras and weights is request.checkpoint:
            found += last.layer_cameras()
        if request.layer_estimates and weights is request.checkpoint:
            found += last.layer_estimates()
    if stored is not None:
        found.append(stored)
    found.append(setting.mean_pose(protocol, rows, path))
    if rows.skel_poses is not None and protocol.truth.body != "skel":
        found.append(SkelLabels(rows))
    names = [predictor.name for predictor in found]
    if len(set(names)) < len(names):
        raise UsageError(f"two predictors of one name: {', '.join(names)}")
    return found
