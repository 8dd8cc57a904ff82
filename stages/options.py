"""What the command lines of several verbs share.

A verb with few options is a function with them; one with many has a frozen dataclass whose fields
are its options, and takes one value of it (`command_line`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Output directory of a conversion.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder with label files and images.", show_default="$HMR_SKEL_DATA or ./data"
    ),
]
Models = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR|default-body",
        help="Folder with body models, or default-body: the licence-free stand-in.",
        show_default="$HMR_SKEL_MODELS or ./models",
    ),
]
Up = Annotated[
    str | None,
    typer.Option(
        help="Which way is up in FILE: z, y or y-down.", show_default="z in AMASS, else not stated"
    ),
]
SmplGender = Annotated[
    str | None,
    typer.Option(
        help="Body model of FILE's labels: neutral, male, female or column.",
        show_default="its column gender, else neutral",
    ),
]
SkelGender = Annotated[
    str | None,
    typer.Option(
        help="SKEL model wanted for FILE: male, female, column or nearest.",
        show_default="its column gender, else male",
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Option of FILE's reader, e.g. frame=world (docs/inputs.md); may be repeated.",
        show_default="none",
    ),
]
Device = Annotated[str, typer.Option(help="Torch device, e.g. cpu or cuda.")]
FitDevice = Annotated[str, typer.Option(help="Torch device of the fit, e.g. cpu or cuda.")]
Images = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE...", help="Pictures, folders of them, patterns in quotes."),
]
StoredPixels = Annotated[
    bool, typer.Option("--stored-pixels", help="Leave pictures as stored: no EXIF turn.")
]
TrainedCheckpoint = Annotated[
    Path, typer.Option(help="best.pt of a training folder, or an imported file.")
]
Boxes = Annotated[
    Path | None,
    typer.Option(
        help="Boxes of people, JSON or CSV: docs/regressor.md#boxes.", show_default="whole pictures"
    ),
]
FovCheckpoint = Annotated[
    Path | None, typer.Option(help="HumanFOV weights (cam_model_cleaned.ckpt).")
]
FovChannels = Annotated[
    Literal["rgb", "bgr", "protocol"],
    typer.Option(help="What HumanFOV sees; protocol: as published."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NoLock = Annotated[
    bool,
    typer.Option("--no-lock", help="Take no lock, on file systems that have none (no other run!)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]

_Request = TypeVar("_Request", bound="DataclassInstance")


def command_line(
    request: type[_Request],
) -> Callable[[Callable[[_Request], None]], Callable[..., None]]:
    """Make a function of one dataclass a typer command with the fields as its parameters."""
    hints = get_type_hints(request, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=_default(field),
        )
        for field in fields(request)
    ]

    def decorate(run: Callable[[_Request], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            run(request(**values))

        command.__name__, command.__doc__ = run.__name__, run.__doc__
        command.__dict__["__signature__"] = inspect.Signature(parameters)  # what typer reads
        command.__annotations__ = {}
        return command

    return decorate


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
