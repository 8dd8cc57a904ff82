"""`hmr-skel evaluate`: protocols against a checkpoint and baselines; a table, JSON and a page.

Published numbers stand in columns of their own, and only beside results on the licensed bodies:
on the stand-in pair they would compare different bodies, so there they go to a part of the page
that says so.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.atomic import make_directory, write_bytes, write_json
from pipeline.errors import InputError, UsageError
from pipeline.fitters import models_directory
from pipeline.manifest import data_root
from pipeline.provenance import code_version, software
from stages.convert import PLAIN_INTERVAL
from stages.regressor.data.images import ImageSource, open_images
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.bootstrap import Estimate
from stages.regressor.evaluation.eval_readers import read_eval_rows, read_shards
from stages.regressor.evaluation.eval_rows import EvalRows
from stages.regressor.evaluation.moyo_hard import ROUNDINGS, build_moyo_hard
from stages.regressor.evaluation.outcome import Outcome
from stages.regressor.evaluation.predictors import (
    CROP_RULES,
    CheckpointPredictor,
    FocalRule,
    MeanPose,
    SkelLabels,
    StoredPredictions,
)
from stages.regressor.evaluation.protocols import (
    EvaluationProtocol,
    Published,
    load_protocol,
)
from stages.regressor.evaluation.query import Predictor
from stages.regressor.evaluation.scoring import (
    PRECISION,
    floor_values,
    label_violations,
    reason_counts,
    run_protocol,
    skip_reasons,
)
from stages.regressor.network.hrnet import load_human_fov

SCHEMA = 1
STANDIN_WARNING = (
    "Evaluated on the licence-free stand-in body, not on SMPL and SKEL. These numbers compare only "
    "with each other; never set them beside published ones."
)
CHANNELS = ("rgb", "bgr", "protocol")
MEAN_POSE = MeanPose.name


@dataclass(frozen=True)
class Request:
    """What to evaluate. Paths that are None are looked for where the protocol says.

    checkpoint, predictions: what to score; neither scores the baselines alone. shards: converted
    dataset, for protocols on shards. labels: label file, for a single protocol. images: folder or
    tar file, for a single protocol. crop, focal: rules for a checkpoint (`focal_rule`). fov:
    HumanFOV weights for its focal length; fov_channels: order of the picture that HumanFOV sees.
    limit: first rows only, which the result says. worst: pictures on the page.
    """

    protocols: tuple[str, ...]
    out: Path
    checkpoint: Path | None = None
    predictions: Path | None = None
    shards: Path | None = None
    labels: Path | None = None
    images: Path | None = None
    data_root: Path | None = None
    models: Path | None = None
    device: str = "cpu"
    crop: Literal["recipe", "protocol", "grown", "square"] = "recipe"
    focal: str = "auto"
    fov: Path | None = None
    fov_channels: Literal["rgb", "bgr", "protocol"] = "rgb"
    batch_size: int = 32
    limit: int | None = None
    worst: int = 6
    quiet: bool = False


@dataclass(frozen=True)
class ProtocolResult:
    """One protocol: outcomes by predictor name, in order, the scored one first."""

    protocol: EvaluationProtocol
    rows: EvalRows
    bodies: EvaluationBodies
    images: ImageSource | None
    predictors: tuple[Predictor, ...]
    outcomes: Mapping[str, Outcome]
    floor: Mapping[str, float] | None
    violations: Mapping[str, float] | None
    complete: bool
    summaries: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    @property
    def standin(self) -> bool:
        """The licence-free bodies took part."""
        return (
            self.bodies.standin
            or bool(self.rows.standin)
            or any(getattr(predictor, "standin", False) for predictor in self.predictors)
        )

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> rows left out; the same for every predictor."""
        return reason_counts(next(iter(self.outcomes.values())).reason)


def evaluate(request: Request) -> list[ProtocolResult]:
    """Evaluate, print the table, write `evaluation.json`, `evaluation.html` and per-row npz files.

    Raises:
        UsageError: options that do not go together, unknown protocol.
        InputError, ModelFileError: a file is missing or broken, no row can be evaluated.
    """
    if not request.protocols:
        raise UsageError("name at least one protocol, e.g. demo")
    if request.focal not in _FOCAL_WORDS:
        _pixels(request.focal)  # also where there is no checkpoint to use it
    if len(request.protocols) > 1 and (request.labels or request.images):
        raise UsageError("--labels and --images go with a single protocol")
    for option, given, choices in (
        ("--crop", request.crop, CROP_RULES), ("--fov-channels", request.fov_channels, CHANNELS),
    ):  # fmt: skip
        if given not in choices:
            raise UsageError(f"{option} {given}: expected {', '.join(choices)}")
    protocols = [load_protocol(name) for name in request.protocols]
    results = [_evaluate(protocol, request) for protocol in protocols]
    make_directory(request.out)
    write_json(request.out / "evaluation.json", as_json(results, request))
    for result in results:
        _write_rows(request.out / f"rows-{result.protocol.name}.npz", result)
    from stages.evaluation_page import evaluation_page

    page = evaluation_page(results, worst=request.worst)
    write_bytes(request.out / "evaluation.html", page.encode("utf-8"))
    print(table(results))
    print(f"\n{request.out / 'evaluation.html'}")
    return results


def moyo_hard(source: Path, out: Path, *, camera: str, rounding: str, expected: int | None) -> None:
    """Build MOYO-HARD and say what it has; see `moyo_hard.build_moyo_hard`."""
    if rounding not in ROUNDINGS:
        raise UsageError(f"--rounding {rounding}: expected {', '.join(ROUNDINGS)}")
    built = build_moyo_hard(
        source, out, camera=camera, rounding=rounding, expected_rows=expected or None
    )
    counts = ", ".join(f"{how} {count}" for how, count in built.counts.items())
    print(f"{out}: {len(built.rows)} rows of {built.sequences} sequences, camera {camera}")
    print(f"rows by rounding: {counts}")


# --- one protocol --------------------------------------------------------------------------------


def _evaluate(protocol: EvaluationProtocol, request: Request) -> ProtocolResult:
    path = find_labels(protocol, request)
    rows = read_eval_rows(protocol, path, _images_place(protocol, request))
    everything = len(rows)
    if request.limit is not None and request.limit < len(rows):
        rows = rows.take(np.arange(request.limit))
    predictors = _predictors(protocol, request, rows, path)
    bodies = EvaluationBodies(find_models(request, rows, predictors), request.device)
    _check_bodies(bodies, rows, predictors, path)
    needs_images = any(predictor.uses_images for predictor in predictors)
    images = _open_images(rows, needs_images, protocol)
    rows = replace(rows, reason=skip_reasons(rows, images if needs_images else None))
    usable = int((rows.reason == "").sum())
    outcomes = {}
    with _progress(protocol.name, usable * len(predictors), request.quiet) as tick:
        for predictor in predictors:
            outcomes[predictor.name] = run_protocol(
                protocol, rows, predictor, bodies, images=images, reason=rows.reason.copy(),
                batch_size=request.batch_size, progress=tick,
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
        complete=len(rows) == everything,
        summaries={name: outcome.summary() for name, outcome in outcomes.items()},
    )


def find_labels(protocol: EvaluationProtocol, request: Request) -> Path:
    """The protocol's label file or shard directory.

    Raises:
        UsageError: shards are needed and not given; InputError: the file is not there.
    """
    if protocol.source.format == "shards":
        if request.shards is None:
            raise UsageError(
                f"protocol {protocol.name} evaluates a converted dataset: give it with --shards"
            )
        return request.shards
    if request.labels is not None:
        return request.labels
    root = data_root(request.data_root)
    for name in protocol.source.files:
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"{root / protocol.source.files[0]}: no label file for protocol {protocol.name}; expected "
        f"{' or '.join(protocol.source.files)} below {root}, or give it with --labels"
    )


def find_models(request: Request, rows: EvalRows, predictors: Sequence[Predictor]) -> Path:
    """--models, else the folder that made the shards, else the stand-in pair where shards or
    checkpoint were made with it, else HMR_SKEL_MODELS, else ./models.
    """
    if request.models is None:
        if rows.models is not None and rows.models.is_dir():
            return rows.models
        if rows.standin or any(getattr(p, "standin", False) for p in predictors):
            return models_directory("default-body", None)
    return models_directory("licensed", request.models)


def _check_bodies(
    bodies: EvaluationBodies, rows: EvalRows, predictors: Sequence[Predictor], path: Path
) -> None:
    """Refuse shards or a checkpoint of the stand-in on licensed bodies, and the reverse."""
    made = [(f"the shards {path} were converted with", rows.standin)]
    made += [
        (f"the checkpoint {predictor.path} was trained on", predictor.standin)
        for predictor in predictors
        if isinstance(predictor, CheckpointPredictor)
    ]
    made = [(what, standin) for what, standin in made if standin is not None]
    if not made:
        return
    # Loaded by the first prediction in any case.
    gender = predictors[0].skel_gender
    if gender == "column":
        assert rows.skel_gender is not None
        gender = str(rows.skel_gender[0])
    here = bool(bodies.model("skel", gender).standin)
    kind = {True: "the stand-in body", False: "licensed body models"}
    for what, standin in made:
        if standin != here:
            raise InputError(
                f"{bodies.folder}: holds {kind[here]}, but {what} {kind[standin]}; its numbers "
                "would mean other bodies; give the matching --models"
            )


def _images_place(protocol: EvaluationProtocol, request: Request) -> Path | None:
    if request.images is not None:
        return request.images
    if protocol.source.images:
        return data_root(request.data_root) / protocol.source.images
    return None


def _open_images(rows: EvalRows, needed: bool, protocol: EvaluationProtocol) -> ImageSource | None:
    """The images; without need for them (baselines) missing ones only cost the page's pictures."""
    if rows.images is None:
        if needed:
            raise InputError(
                f"protocol {protocol.name}: no folder of images is known; give it with --images"
            )
        return None
    if not needed and not rows.images.exists():
        return None
    return open_images(rows.images)


def _predictors(
    protocol: EvaluationProtocol, request: Request, rows: EvalRows, path: Path
) -> list[Predictor]:
    found: list[Predictor] = []
    if request.checkpoint is not None:
        focal = focal_rule(protocol, request, rows)
        channels = request.fov_channels
        found.append(
            CheckpointPredictor(
                request.checkpoint, device=request.device, crop=request.crop, focal=focal,
                fov=load_human_fov(request.fov) if focal == "predicted" and request.fov else None,
                fov_channels=protocol.fov_channels if channels == "protocol" else channels,
            )
        )  # fmt: skip
    if request.predictions is not None:
        found.append(StoredPredictions(request.predictions))
    found.append(_mean_pose(protocol, rows, path))
    if rows.skel_poses is not None and protocol.truth.body != "skel":
        found.append(SkelLabels(rows))
    names = [predictor.name for predictor in found]
    if len(set(names)) < len(names):
        raise UsageError(f"two predictors of one name: {', '.join(names)}")
    return found


_FOCAL_WORDS = ("auto", "protocol", "labels", "predicted", "patch", "diagonal")


def focal_rule(protocol: EvaluationProtocol, request: Request, rows: EvalRows) -> FocalRule:
    """What --focal means here: `labels`, `predicted`, `patch`, `diagonal`, pixels; `protocol`: that
    of the published runs; `auto`: predicted with --fov-checkpoint, else of the labels, and for
    label files without intrinsics the picture's diagonal, as `hmr-skel predict` does.

    Raises:
        UsageError: not one of these, or predicted without weights.
    """
    given = protocol.focal if request.focal == "protocol" else request.focal
    if given == "auto":
        if request.fov is not None:
            return "predicted"
        known = np.isfinite(rows.cam_int[rows.reason == ""]).all((1, 2))
        return "labels" if known.any() else "diagonal"
    if given == "predicted" and request.fov is None:
        raise UsageError(
            f"--focal {request.focal}: protocol {protocol.name}: a predicted focal length needs "
            "--fov-checkpoint; or choose labels, diagonal, patch or a number of pixels"
        )
    if given in ("labels", "predicted", "patch", "diagonal"):
        return given  # type: ignore[return-value]
    return _pixels(given)


def _pixels(given: str) -> float:
    """A focal length as a number of pixels, or UsageError."""
    try:
        pixels = float(given)
    except ValueError:
        pixels = math.nan
    if not (math.isfinite(pixels) and pixels > 0):
        raise UsageError(
            f"--focal {given}: expected auto, protocol, labels, predicted, patch, diagonal or a "
            "positive number of pixels"
        )
    return pixels


def _mean_pose(protocol: EvaluationProtocol, rows: EvalRows, path: Path) -> MeanPose:
    """Of the training split where the data has one, else the published one."""
    if protocol.source.format == "shards" and protocol.source.split is not None:
        train = read_shards(path, split="train", scale_unit=protocol.source.scale_unit)
        return MeanPose.of_labels(train, "training split")
    return MeanPose.published()


# --- numbers out ---------------------------------------------------------------------------------


def metric_label(name: str) -> str:
    """`pa_mpjpe` -> `PA-MPJPE, mm`; `left_knee>10` -> `left knee > 10°, %`."""
    if ">" in name:
        part, _, degrees = name.partition(">")
        return f"{part.replace('_', ' ')} > {degrees}°, %"
    if name.startswith("pck"):
        return f"{name.upper()}, %"
    if name == "keypoint_l2":
        return "keypoint L2, box²"
    kind, _, root = name.partition("@")
    label = kind.upper().replace("_", "-")
    return f"{label}, {root} root, mm" if root else f"{label}, mm"


def number(value: float, name: str) -> str:
    """A value of a metric as printed."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.5f}" if name == "keypoint_l2" else f"{value:.1f}"


def main_published(result: ProtocolResult) -> list[Published]:
    """Published rows that get a column, as the file orders them: none beside stand-in results."""
    return [] if result.standin else [row for row in result.protocol.published if row.column]


def share_of_mean_pose(result: ProtocolResult) -> dict[str, float]:
    """Error of the scored predictor in percent of the mean pose's, for metrics in mm."""
    scored = next(iter(result.summaries))
    if scored == MEAN_POSE:
        return {}
    ours, mean = result.summaries[scored], result.summaries[MEAN_POSE]
    return {
        name: 100 * ours[name].value / mean[name].value
        for name in result.protocol.point_metrics
        if mean[name].value > 0
    }


def columns_of(result: ProtocolResult) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of a protocol's table; intervals only for the scored predictor."""
    share = share_of_mean_pose(result)
    published = main_published(result)
    heading = ["", *result.summaries]
    heading += ["% of mean pose"] if share else []
    heading += ["floor"] if result.floor else []
    heading += [f"published: {row.method}" for row in published]
    lines = []
    for name in result.protocol.metrics:
        line = [metric_label(name)]
        for place, summary in enumerate(result.summaries.values()):
            found = summary[name]
            text = number(found.value, name)
            if place == 0 and math.isfinite(found.low):
                text += f" [{number(found.low, name)}, {number(found.high, name)}]"
            line.append(text)
        line += [f"{share[name]:.0f}" if name in share else ""] if share else []
        if result.floor:
            line.append(number(result.floor[name], name) if name in result.floor else "")
        line += [number(row.values.get(name, math.nan), name) for row in published]
        lines.append(line)
    return heading, lines


def headline(result: ProtocolResult) -> str:
    """What a protocol's numbers mean, in one line."""
    usable = int((result.rows.reason == "").sum())
    skipped = result.skipped
    text = f"{result.protocol.name} ({result.protocol.family}): {usable} rows"
    if skipped:
        parts = ", ".join(f"{count} {name}" for name, count in skipped.items())
        text += f", {sum(skipped.values())} skipped ({parts})"
    if not result.complete:
        text += ", NOT ALL ROWS (--limit)"
    expected = result.protocol.source.rows
    if expected is not None and result.complete and len(result.rows) != expected:
        text += f", published count is {expected}"
    roots = "; ".join(root.about for root in result.protocol.roots[:1])
    how = getattr(result.predictors[0], "how", "")
    parts = [text, how, PRECISION, f"root: {roots}" if roots else ""]
    return "; ".join(part for part in parts if part)


def table(results: Sequence[ProtocolResult]) -> str:
    """All protocols as one text table."""
    parts: list[str] = []
    if any(result.standin for result in results):
        parts += [f"WARNING: {STANDIN_WARNING}", ""]
    grids = [columns_of(result) for result in results]
    rows = [row for heading, lines in grids for row in (heading, *lines)]
    most = max(len(row) for row in rows)
    widths = [max((len(row[k]) for row in rows if k < len(row)), default=0) for k in range(most)]
    for result, (heading, lines) in zip(results, grids, strict=True):
        parts.append(headline(result))
        for row in (heading, *lines):
            cells = [f"{cell:<{widths[0]}}" if k == 0 else f"{cell:>{widths[k]}}"
                     for k, cell in enumerate(row)]  # fmt: skip
            parts.append("  ".join(cells).rstrip())
        parts.append("")
    return "\n".join(parts).rstrip()


def as_json(results: Sequence[ProtocolResult], request: Request) -> dict[str, Any]:
    """Everything as plain values; NaN becomes null."""
    standin = any(result.standin for result in results)
    return _plain(
        {
            "schema": SCHEMA,
            "standin": standin,
            "warning": STANDIN_WARNING if standin else None,
            "code": code_version("regressor"),
            "software": software(),
            "batch_size": request.batch_size,
            "protocols": [_protocol_json(result) for result in results],
        }
    )


def _protocol_json(result: ProtocolResult) -> dict[str, Any]:
    return {
        "name": result.protocol.name,
        "definition": result.protocol.data(),
        "precision": PRECISION,
        "files": dict(result.rows.files),
        "models": result.bodies.digests(),
        "standin": result.standin,
        "complete": result.complete,
        "rows": {
            "read": len(result.rows),
            "evaluated": int((result.rows.reason == "").sum()),
            "skipped": result.skipped,
            "published_count": result.protocol.source.rows,
        },
        "results": {
            predictor.name: {
                "provenance": dict(predictor.provenance()),
                "metrics": {n: asdict(e) for n, e in result.summaries[predictor.name].items()},
                "limit_excess_radians": result.outcomes[predictor.name].limit_statistics(),
            }
            for predictor in result.predictors
        },
        "percent_of_mean_pose": share_of_mean_pose(result),
        "floor": result.floor,
        "label_violations": result.violations,
        "published": {
            "warning": STANDIN_WARNING if result.standin else None,
            "rows": [row.model_dump(mode="json") for row in result.protocol.published],
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _write_rows(path: Path, result: ProtocolResult) -> None:
    """Per-row values, for paired comparisons: `row`, `reason`, `<predictor>/<metric>`."""
    import io

    arrays: dict[str, np.ndarray] = {"row": result.rows.row, "reason": result.rows.reason}
    for name, outcome in result.outcomes.items():
        arrays |= {f"{name}/{metric}": values for metric, values in outcome.values.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


@contextmanager
def _progress(name: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if quiet:
        yield lambda rows: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=name, unit="row", file=sys.stderr) as bar:
            yield bar.update
    else:
        done, last = 0, time.monotonic()

        def tick(rows: int) -> None:
            nonlocal done, last
            done += rows
            if time.monotonic() - last > PLAIN_INTERVAL or done == total:
                last = time.monotonic()
                print(f"{name}: {done} of {total} rows", file=sys.stderr)

        yield tick
