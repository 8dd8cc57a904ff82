"""`hmr-skel import-checkpoint` and `export-checkpoint`: official weights in, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages import options
from stages.terminal import aligned, say
from stages.wording import count

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")]


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Of SKEL-CF, HSMR, HumanFOV or ViTPose.")
    ],
    out: Out,
    layout: Annotated[
        Literal["skel-cf", "hsmr", "human-fov", "vitpose"] | None,
        typer.Option(
            "--as",
            help="What FILE is; human-fov and vitpose are also found inside SKEL-CF's.",
            show_default="told by its names",
        ),
    ] = None,
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option(help="Of SKEL-CF: the moving average, as published, or the raw weights."),
    ] = "ema",
    recipe: Annotated[
        str | None, typer.Option(help="Recipe of the network.", show_default="the published one")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="As in train; for a network of another size.")
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="It was trained on the licence-free body.")
    ] = False,
) -> None:
    """Official weights as a file for predict, evaluate and train."""
    from pipeline.guard import Inputs
    from stages.regressor.network.checkpoints import save_checkpoint
    from stages.regressor.network.official import TITLES, import_official, read_official

    Inputs(file).check(out)
    official = read_official(file, layout=layout, raw=weights == "raw")
    content = import_official(
        official, recipe=recipe, changes=changes or (), standin=True if stand_in else None
    )
    save_checkpoint(out, content)
    network = content["network"]
    lines = [
        ("layout", TITLES[content["imported"]["layout"]]
         + (", moving average" if official.averaged else "")),
        ("weights", f"{count(len(network))} entries, "
                    f"{sum(t.numel() for t in network.values()) / 1e6:.1f} M numbers"),
    ]  # fmt: skip
    if "recipe" in content:
        lines.append(("recipe", content["recipe"]["name"]))
    if official.left_out:
        left = (f"{name} ({n})" if n > 1 else name for name, n in official.left_out.items())
        lines.append(("left out", ", ".join(left)))
    say(aligned([*lines, ("file", str(out))]))


def export_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="best.pt or last.pt, or an imported file.")
    ],
    out: Out,
    fov_checkpoint: options.FovCheckpoint = None,
) -> None:
    """A checkpoint of ours in the layout of the official code."""
    from pipeline.guard import Inputs
    from stages.regressor.network.checkpoints import load_checkpoint, save_plain
    from stages.regressor.network.official import TITLES, export_official, load_human_fov

    Inputs(file, fov_checkpoint).check(out)
    fov = load_human_fov(fov_checkpoint).state_dict() if fov_checkpoint else None
    layout, content = export_official(load_checkpoint(file), file, fov=fov)
    save_plain(out, content)
    lines = [("layout", TITLES[layout]), ("file", str(out))]
    if layout in ("skel-cf", "hsmr"):
        lacking = "skel_model.*" if fov else "cam_model.* and skel_model.*"
        lacking = "skel_model.*" if layout == "hsmr" else lacking
        lines.append(("not in it", f"{lacking}: enough for the readers that are not strict"))
    say(aligned(lines))
