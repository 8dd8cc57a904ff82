"""The console script `hmr-skel`: its verbs, exit codes, one-line errors.

Exit codes: 0 done; 1 a bug; 2 usage; 3 shards failed, missing or damaged; 4 another plan; 5 bad or
missing input; 74 input/output error; 75 locked; 130 Ctrl-C; 143 SIGTERM.

Each verb is a module that owns its command line and imports what it needs when it runs, so that
`--help` and refusals are immediate.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from pipeline.errors import PipelineError
from stages.append import append
from stages.audit import audit
from stages.calibrate import calibrate
from stages.card import card
from stages.convert import convert
from stages.default_body import default_body
from stages.demo_images import demo_images
from stages.evaluate import evaluate
from stages.export import export
from stages.fetch import fetch
from stages.from_photo import photo
from stages.from_video import video
from stages.import_checkpoint import export_checkpoint, import_checkpoint
from stages.import_opensim import import_opensim
from stages.layers import layers
from stages.lint import lint
from stages.manifest_of import manifest
from stages.maps import maps
from stages.moyo_hard import moyo_hard
from stages.predict import predict
from stages.refine import refine
from stages.report import report
from stages.status import status
from stages.train import train
from stages.verify import verify
from stages.view import view

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for verb in (
    convert, status, verify, report, calibrate, export, import_opensim, audit, append, card,
    default_body, lint, demo_images, fetch, manifest, train, predict, evaluate, layers,
    import_checkpoint, export_checkpoint, moyo_hard, view, refine, photo,
    video,
):  # fmt: skip
    app.command()(verb)
app.add_typer(maps, name="maps")


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`: nothing may treat it as a failed shard."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"hmr-skel {version('hmr-skel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    """Turn SMPL-annotated image datasets into SKEL datasets."""


def main() -> NoReturn:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_standard_streams()
    # Read when numpy is imported, which is later. Its sums would depend on the number of cores.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        # Whatever is still in the buffer would fail again while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head` closed the pipe: nothing to say
            code = _say(f"standard output: {error.strerror}", 74)
    local = sys.modules.get("pipeline.executors.local")
    if local is not None and local.threads_left():
        sys.stderr.flush()
        os._exit(code)  # a hung row cannot be asked to end, and may hold what tidying up needs
    sys.exit(code)


def _open_standard_streams() -> None:
    """Where the caller closed one (`>&-`), the next file opened would get its number, and what is
    printed would land in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        stream = os.fdopen(number, "w" if number else "r", closefd=False)
        setattr(sys, name, stream)


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
        # typer's usage errors, whose base class is not public
        if hasattr(error, "show") and hasattr(error, "format_message"):
            if type(error).__name__ != "NoArgsIsHelpError":
                return _say(_usage(error.format_message(), error), 2)
            error.show()
            return 2
        if type(error).__name__ == "ModelFileError":  # without importing skel_fit to say no
            return _say(str(error), 5)
        if isinstance(error, OSError):
            return _say(_of_system(error), 74)
        raise


def _usage(message: str, error: Exception) -> str:
    """A usage error of typer's, and where to read on."""
    place = getattr(getattr(error, "ctx", None), "command_path", None)
    return f"{message.rstrip('.')}; see {place} --help" if place else message


def _of_system(error: OSError) -> str:
    """What the system refused, by the file's name."""
    if error.filename is None or not error.strerror:
        return str(error)
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    advice = "; change the rights of its folder, or give another place" if denied else ""
    return f"{os.fsdecode(error.filename)}: {error.strerror}{advice}"


def _interrupted() -> int:
    return _say("interrupted; the same command resumes", 130)


def _say(text: str, code: int) -> int:
    from stages.terminal import say

    say(f"hmr-skel: {' '.join(text.split())}", file=sys.stderr)
    return code


def _terminate(number: int, frame: object) -> None:
    raise Terminated


if __name__ == "__main__":
    main()
