"""The console script `hmr-skel`: verbs, exit codes, one-line errors.

Exit codes: 0 done; 1 a bug; 2 usage; 3 shards failed, missing or damaged; 4 another plan; 5 bad or
missing input; 74 input/output error; 75 locked; 130 Ctrl-C; 143 SIGTERM.

Verbs import what they need when they run, so that `--help` and refusals are immediate.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.errors import PipelineError, UsageError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Turn SMPL-annotated image datasets into SKEL datasets.",
    pretty_exceptions_enable=False,
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Output directory of a conversion.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder with label files and images. [default: $HMR_SKEL_DATA or ./data]"),
]
Models = Annotated[
    Path | None,
    typer.Option(help="Folder with body models. [default: $HMR_SKEL_MODELS or ./models]"),
]
Device = Annotated[str, typer.Option(help="Torch device of the fit, e.g. cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`: nothing may treat it as a failed shard."""


@app.command()
def convert(
    subset: Annotated[
        str, typer.Argument(metavar="SUBSET", help="A name in manifests/ or a YAML file.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output directory. [default: outputs/SUBSET]")
    ] = None,
    data_root: DataRoot = None,
    models: Models = None,
    device: Device = "cpu",
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes or Ray actors.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Convert the first N rows, rounded up to shards.")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="Convert these shards, e.g. 3,7-9.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try shards again that failed three times.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    log_json: Annotated[
        Path | None, typer.Option(help="Append events to this file, one JSON object a line.")
    ] = None,
    upload: Annotated[
        str | None, typer.Option(help="Also copy finished shards there, e.g. s3://bucket/coco.")
    ] = None,
    fitter: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Convert a subset to SKEL shards, or resume where an earlier run stopped."""
    from pipeline.manifest import data_root as find_data_root
    from pipeline.manifest import load_manifest

    if executor not in ("local", "ray"):
        raise UsageError(f"--executor {executor}: expected local or ray")
    manifest = load_manifest(subset)
    directory = out or Path("outputs") / manifest.name
    if not dry_run:
        _refuse_if_locked(directory)  # before torch is imported and inputs are hashed

    from pipeline.fitters import DEFAULT_FITTER
    from pipeline.run import Request, parse_shards
    from stages.convert import run_convert

    request = Request(
        manifest=manifest,
        directory=directory,
        data_root=find_data_root(data_root),
        models=models,
        device=device,
        executor=executor,
        workers=workers,
        limit=limit,
        shards=parse_shards(shards) if shards else None,
        retry_failed=retry_failed,
        fitter=fitter or DEFAULT_FITTER,
        upload=upload,
    )
    run_convert(request, dry_run=dry_run, quiet=quiet, log_json=log_json)


@app.command()
def status(directory: Directory, as_json: AsJson = False) -> None:
    """Counts, failures with reasons, throughput and ETA of a conversion."""
    from stages.status import print_status

    print_status(directory, as_json)


@app.command()
def verify(
    directory: Directory,
    as_json: AsJson = False,
    data_root: DataRoot = None,
    models: Models = None,
    device: Device = "cpu",
) -> None:
    """Re-read every shard, account for every row, recompute residuals of a sample."""
    from stages.verify import run_verify

    run_verify(directory, data_root=data_root, models=models, device=device, as_json=as_json)


@app.command()
def report(
    directory: Directory,
    models: Models = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also write a PNG of a few people: target, skin, skeleton.")
    ] = None,
) -> None:
    """Write DIR/report.html: residuals, limits, pictures."""
    from stages.report import report as write_report

    write_report(directory, models=models, picture=picture)


@app.command()
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    format: Annotated[str, typer.Option(help="hmr-skel-npz: what SKEL-CF reads.")] = "hmr-skel-npz",
    keypoints3d: Annotated[
        str | None,
        typer.Option(help="add (where the labels have none), replace or none. [default: add]"),
    ] = None,
    rejected: Annotated[
        str | None, typer.Option(help="Rows without a fit: drop or keep. [default: drop]")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Leave out rows with a mean error above this, mm.")
    ] = None,
    models: Models = None,
    as_json: AsJson = False,
) -> None:
    """Write a converted dataset as a label file for other training code."""
    from stages.export import export as run

    run(
        directory,
        out,
        format=format,
        models=models,
        keypoints3d=keypoints3d,
        rejected=rejected,
        max_error=max_error,
        as_json=as_json,
    )


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file with SKEL labels.")],
    models: Models = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Judge with the licence-free pair.")
    ] = False,
    smpl_gender: Annotated[
        str | None, typer.Option(help="neutral, male, female or column. [default: told from FILE]")
    ] = None,
    skel_gender: Annotated[
        str | None, typer.Option(help="male, female or column. [default: told from FILE]")
    ] = None,
    limits: Annotated[str, typer.Option(help="default, published or none.")] = "default",
    sample: Annotated[
        int | None, typer.Option(help="Judge about so many rows, evenly spread.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge existing SKEL labels against their own SMPL columns."""
    from stages.audit import run_audit

    run_audit(
        file,
        models=models,
        standin=stand_in,
        smpl_gender=smpl_gender,
        skel_gender=skel_gender,
        limits_name=limits,
        sample=sample,
        as_json=as_json,
        html=html,
    )


@app.command()
def card(
    directory: Directory,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. [default: DIR/README.md]")
    ] = None,
) -> None:
    """Write a dataset card for a converted dataset."""
    from stages.card import card as run

    run(directory, out)


@app.command("default-body")
def default_body(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files, made if missing.")],
) -> None:
    """Write the licence-free stand-in body models into a folder."""
    from stages.default_body import default_body as write

    write(out)


@app.command()
def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A label file.")],
    as_json: AsJson = False,
    models: Models = None,
) -> None:
    """Find known defects in a label file."""
    from stages.lint import lint as run

    run(file, as_json, models)


@app.command("demo-images")
def demo_images(
    subset: Annotated[str, typer.Argument(metavar="SUBSET", help="A generated subset.")] = "demo",
    data_root: DataRoot = None,
    models: Models = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Render the pictures of the demo labels into the data root; rerun to complete."""
    from stages.demo_images import run_demo_images

    run_demo_images(subset, root=data_root, models=models, workers=workers, quiet=quiet)


@app.command()
def train(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Outputs of conversions.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; given again: resume.")],
    recipe: Annotated[str, typer.Option(help="A name, or a YAML file.")] = "default",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A recipe to merge on top, or key.path=value; repeatable."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder, tar or folder of tars with the pictures; one for each DIR."),
    ] = None,
    models: Models = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun one GPU each.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Train a regressor on converted datasets, or resume where an earlier run stopped."""
    from stages.train import run_train

    run_train(
        directories, out, recipe=recipe, changes=changes or (), images=images or (),
        models=models, device=device, quiet=quiet,
    )  # fmt: skip


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    checkpoint: Annotated[Path, typer.Option(help="best.pt of a training folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    boxes: Annotated[
        Path | None, typer.Option(help="JSON or CSV of person boxes. [default: whole pictures]")
    ] = None,
    focal: Annotated[float | None, typer.Option(help="Focal length, pixels.")] = None,
    fov_checkpoint: Annotated[
        Path | None, typer.Option(help="HumanFOV weights (cam_model_cleaned.ckpt).")
    ] = None,
    models: Models = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    meshes: Annotated[bool, typer.Option(help="Also write a GLB per person.")] = True,
) -> None:
    """SKEL parameters, overlay pictures and meshes of the people in pictures."""
    from stages.predict import run_predict

    run_predict(
        images, checkpoint, out, boxes=boxes, focal=focal, fov_checkpoint=fov_checkpoint,
        models=models, device=device, meshes=meshes,
    )  # fmt: skip


@app.command()
def evaluate(
    protocols: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROTOCOL...", help="Names, or YAML files. [default: demo]"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="best.pt of a training folder. [default: baselines only]")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Predictions of another program, npz.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Converted dataset, for protocols on shards.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Label file. [default: where the protocol says]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or tar file with the pictures.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation"),
    data_root: DataRoot = None,
    models: Models = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    crop: Annotated[
        str,
        typer.Option(help="Crop rule of a checkpoint: recipe (its own), protocol, grown, square."),
    ] = "recipe",
    focal: Annotated[
        str,
        typer.Option(
            help="Focal length for a checkpoint: labels, predicted, patch, diagonal, protocol or "
            "pixels; auto: predicted with --fov-checkpoint, else labels, else diagonal."
        ),
    ] = "auto",
    fov_checkpoint: Annotated[
        Path | None, typer.Option(help="HumanFOV weights (cam_model_cleaned.ckpt).")
    ] = None,
    fov_channels: Annotated[
        str, typer.Option(help="What HumanFOV sees: rgb, bgr or protocol (as published).")
    ] = "rgb",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="First N rows only.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Worst rows to draw.")] = 6,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Score a checkpoint, or stored predictions, and baselines under evaluation protocols."""
    from stages.evaluate import Request
    from stages.evaluate import evaluate as run_evaluate

    run_evaluate(
        Request(
            tuple(protocols or ("demo",)), out, checkpoint=checkpoint, predictions=predictions,
            shards=shards, labels=labels, images=images, data_root=data_root, models=models,
            device=device, crop=crop, focal=focal, fov=fov_checkpoint,
            fov_channels=fov_channels, batch_size=batch_size, limit=limit, worst=worst,
            quiet=quiet,
        )
    )  # fmt: skip


@app.command("moyo-hard")
def moyo_hard(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="MOYO label file, npz.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    camera: Annotated[
        str, typer.Option(help="Folder of the front camera; the source leaves it open.")
    ] = "YOGI_Cam_01",
    rounding: Annotated[
        str, typer.Option(help="Of a quarter of a video: floor, ceil, nearest or slice.")
    ] = "floor",
    expected: Annotated[
        int, typer.Option(min=0, help="Number of rows that must come out; 0: any.")
    ] = 9725,
) -> None:
    """Make MOYO-HARD (one camera, middle half of every video) out of a MOYO label file."""
    from stages.evaluate import moyo_hard as build

    build(source, out, camera=camera, rounding=rounding, expected=expected)


def main() -> NoReturn:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    # Read when numpy is imported, which is later. Its sums would depend on the number of cores.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` closed the pipe; nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code."""
    try:
        result = app(arguments, prog_name="hmr-skel", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return _interrupted() if code == 130 else code  # what typer makes of Ctrl-C
    except PipelineError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Terminated:
        return _say("terminated; the same command resumes", 143)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if hasattr(error, "show"):  # typer's usage errors; their base class is not public
            error.show()
            return 2
        if type(error).__name__ == "ModelFileError":  # without importing skel_fit to say no
            return _say(str(error), 5)
        if isinstance(error, OSError):
            return _say(str(error), 74)
        raise


def _interrupted() -> int:
    return _say("interrupted; the same command resumes", 130)


def _say(text: str, code: int) -> int:
    print(f"hmr-skel: {' '.join(text.split())}", file=sys.stderr)
    return code


def _refuse_if_locked(directory: Path) -> None:
    from pipeline.rundir import RunDirectory

    run_directory = RunDirectory(directory)
    if run_directory.is_locked():
        with run_directory.lock():  # raises Locked
            pass


def _terminate(number: int, frame: object) -> None:
    raise Terminated


if __name__ == "__main__":
    main()
