"""Official checkpoint files: SKEL-CF, HSMR, HumanFOV, ViTPose; their names and ours.

Source: docs/reference/checkpoints.md. Every entry of a file is taken, left out under a name that
says what it is, or an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, UsageError
from pipeline.provenance import file_record
from stages.regressor.config import ModelConfig, Recipe, load_recipe
from stages.regressor.network.checkpoints import (
    FORMAT,
    KeyDifferences,
    compared,
    differing,
    load_checkpoint,
)
from stages.regressor.network.foreign_files import read_foreign
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.model import Regressor
from stages.regressor.network.vit import ViT

LayoutName = Literal["skel-cf", "hsmr", "human-fov", "vitpose"]
TITLES: Mapping[LayoutName, str] = {
    "skel-cf": "SKEL-CF", "hsmr": "HSMR", "human-fov": "HumanFOV", "vitpose": "ViTPose",
}  # fmt: skip
RECIPES: Mapping[str, str] = {"skel-cf": "published", "hsmr": "published-baseline"}
KINDS: Mapping[LayoutName, str] = {
    "skel-cf": "regressor", "hsmr": "regressor", "human-fov": "human-fov", "vitpose": "backbone",
}  # fmt: skip
NOTE = "hmr_skel"
"""Entry that our exports add, which the official readers pass over: on which bodies it was made."""

_EMA, _RAW = "ema_model", "model"
_CONTAINERS = ("state_dict", "model_state_dict", _RAW, "network")
_FOV = "cam_model."
_LEFT_OUT: Mapping[LayoutName, tuple[str, ...]] = {
    "skel-cf": (_FOV, "skel_model."),
    "hsmr": ("skel_model.", "discriminator."),
    "human-fov": (),
    "vitpose": ("keypoint_head.", "cls_token"),
}
_VITS = {384: "changes/vit-s", 768: "changes/vit-b", 1024: "changes/vit-l", 1280: "changes/vit-h"}
_PREFIXES = ("module.", "model.", "backbone.")
_MEANS = ("head.mean_code", "head.mean_betas", "head.mean_camera")

# Ours -> theirs, the first pattern that matches; docs/reference/checkpoints.md#names.
_LAYER = (
    (r"self_attention\.norm\.", "0.norm."),
    (r"self_attention\.to_qkv\.", "0.fn.to_qkv."),
    (r"self_attention\.to_out\.", "0.fn.to_out.0."),
    (r"cross_attention\.norm\.", "1.norm."),
    (r"cross_attention\.to_q\.", "1.fn.to_q."),
    (r"cross_attention\.to_kv\.", "1.fn.to_kv."),
    (r"cross_attention\.to_out\.", "1.fn.to_out.0."),
    (r"feed_forward\.0\.", "2.norm."),
    (r"feed_forward\.1\.", "2.fn.net.0."),
    (r"feed_forward\.3\.", "2.fn.net.3."),
)
_NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "skel-cf": (
        (r"head\.mean_code$", "decoder.mean_poses"),
        (r"head\.mean_betas$", "decoder.mean_betas"),
        (r"head\.mean_camera$", "decoder.mean_cam"),
        (r"head\.position$", "decoder.transformer.pos_embedding"),
        *((rf"head\.layers\.(\d+)\.{ours}", rf"decoder.transformer.layers.\1.{theirs}")
          for ours, theirs in _LAYER),
        (r"head\.read_out\.code\.", "decoder.poses_decoder."),
        (r"head\.read_out\.betas\.", "decoder.betas_decoder."),
        (r"head\.read_out\.camera\.", "decoder.cam_decoder."),
        (r"head\.embed\.code\.", "decoder.to_pose_embedding."),
        (r"head\.embed\.betas\.", "decoder.to_betas_embedding."),
        (r"head\.embed\.camera\.", "decoder.to_cam_embedding."),
        (r"backbone\.", "backbone."),
    ),
    "hsmr": (
        (r"head\.mean_code$", "head.init_poses"),
        (r"head\.mean_betas$", "head.init_betas"),
        (r"head\.mean_camera$", "head.init_cam"),
        (r"head\.position$", "head.transformer.pos_embedding"),
        (r"head\.to_token\.", "head.transformer.to_token_embedding."),
        *((rf"head\.layers\.(\d+)\.{ours}", rf"head.transformer.transformer.layers.\1.{theirs}")
          for ours, theirs in _LAYER),
        (r"head\.read_out\.code\.", "head.poses_decoder."),
        (r"head\.read_out\.betas\.", "head.betas_decoder."),
        (r"head\.read_out\.camera\.", "head.cam_decoder."),
        (r"backbone\.", "backbone."),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Official:
    """Weights of an official file under their own names, prefixes of the container stripped.

    layout: None where it is none of ours; averaged: they are the moving average; left_out: what of
    the file was not taken -> how many entries; standin: what our own export says, else None.
    """

    path: Path
    layout: LayoutName | None
    tensors: dict[str, Tensor]
    averaged: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    standin: bool | None = None


# ---- reading ------------------------------------------------------------------------------------


def read_official(path: Path, *, layout: LayoutName | None = None, raw: bool = False) -> Official:
    """The weights of an official file.

    layout: what it is, None: told by its names. HumanFOV is also found inside a SKEL-CF file. raw:
    SKEL-CF's raw weights instead of their moving average, which is what it publishes.

    Raises:
        InputError: not readable as data, no weights in it, raw weights only and not asked for, an
        entry among the weights that is no dense tensor or not finite.
    """
    content = read_foreign(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: expected a mapping of tensors, found {type(content).__name__}; no official "
            "checkpoint"
        )
    name, weights = _container(content, path, raw)
    told = _told(weights)
    chosen = layout or told
    if told == "skel-cf" and name == _RAW and not raw:
        raise InputError(
            f"{path}: holds raw weights only ('{_RAW}' without '{_EMA}'); the published results "
            "are those of the average; take the raw ones with --weights raw"
        )
    left: Counter[str] = Counter(str(key) for key in content if key != name and name is not None)
    if name == _EMA:
        left.update(key for key in weights if not key.startswith(f"{_RAW}."))
        weights = {
            key.removeprefix(f"{_RAW}."): value
            for key, value in weights.items()
            if key.startswith(f"{_RAW}.")
        }
    if chosen == "vitpose":
        weights = _bare_vit(weights, path, left)
    elif chosen == "human-fov" and told == "skel-cf":
        left.update("other parts" for key in weights if not key.startswith(_FOV))
        weights = {k.removeprefix(_FOV): v for k, v in weights.items() if k.startswith(_FOV)}
    taken = {}
    for key, value in weights.items():
        prefix = next((p for p in _LEFT_OUT[chosen] if key.startswith(p)), None) if chosen else None
        if prefix:
            left[f"{prefix.rstrip('.')}.*"] += 1
        else:
            taken[key] = _checked(key, value, path)
    note = content.get(NOTE)
    standin = note.get("standin") if isinstance(note, Mapping) else None
    left.pop(NOTE, None)
    return Official(path, chosen, taken, name == _EMA, dict(left),
                    standin if isinstance(standin, bool) else None)  # fmt: skip


def _container(
    content: Mapping[Any, Any], path: Path, raw: bool
) -> tuple[str | None, dict[str, Any]]:
    """The mapping of weights and the name it has in the file; None: the file itself."""
    if content.get("format") == FORMAT:
        kind = content.get("kind", "regressor")
        raise InputError(f"{path}: is a file of hmr-skel ({kind}) already; use it as it is")
    wanted = (_RAW,) if raw else (_EMA, *_CONTAINERS)
    for name in wanted:
        value = content.get(name)
        if isinstance(value, Mapping):
            return name, {str(key): entry for key, entry in value.items()}
        if name in content and not isinstance(value, Tensor):
            raise InputError(
                f"{path}: '{name}' holds {type(value).__name__}, expected a mapping of tensors"
            )
    if raw:
        raise InputError(f"{path}: no raw weights ('{_RAW}') in it; leave --weights raw out")
    if not any(isinstance(value, Tensor) for value in content.values()):
        held = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise InputError(
            f"{path}: holds no weights (only: {held}); an official checkpoint has them under "
            f"{', '.join((_EMA, *_CONTAINERS))}, or bare"
        )
    return None, {str(key): value for key, value in content.items()}


def _told(names: Mapping[str, Any]) -> LayoutName | None:
    """Which layout names are of."""
    bare = {name.removeprefix(f"{_RAW}.") for name in names}

    def some(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in bare)

    if some("decoder."):
        return "skel-cf"
    if some("head.") and some("backbone."):
        return "hsmr"
    if some("backbone.stage2.", "fc3."):
        return "human-fov"
    if any(name.endswith("patch_embed.proj.weight") for name in bare):
        return "vitpose"
    return None


def _bare_vit(weights: Mapping[str, Any], path: Path, left: Counter[str]) -> dict[str, Any]:
    """Names of a ViT without prefixes; of a file with more in it, those of its `backbone.`."""
    result: dict[str, Any] = {}
    stripped = {}
    for name in weights:
        short = name
        while short.startswith(_PREFIXES[:2]):
            short = short.split(".", 1)[1]
        stripped[name] = short
    whole = any(short.startswith("backbone.") for short in stripped.values())
    for name, short in stripped.items():
        if whole and not short.startswith("backbone."):
            left[f"{short.split('.', 1)[0]}.*"] += 1
            continue
        short = short.removeprefix("backbone.")
        if short in result:
            raise InputError(f"{path}: two entries for {short}; expected one ViT in the file")
        result[short] = weights[name]
    return result


def _checked(name: str, value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise InputError(
            f"{path}: '{name}' among the weights is no dense tensor; nothing is taken from it"
        )
    if value.is_floating_point():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: '{name}' holds values that are not finite")
        return value.float()
    return value


# ---- a network of ours from it ------------------------------------------------------------------


def wanted_tensors(layout: LayoutName, model: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes (on the meta device) that a file of a layout has for a network."""
    with torch.device("meta"):
        if layout == "human-fov":
            return HumanFOV().state_dict()
        if layout == "vitpose":
            return ViT(model.backbone, *model.input_size).state_dict()
        own = Regressor(model).state_dict()
    return {
        official_name(layout, name): tensor[None] if name in _MEANS else tensor
        for name, tensor in own.items()
    }


def official_name(layout: str, name: str) -> str:
    """What `name` of our regressor is called in a layout.

    Raises:
        KeyError: it has no such part.
    """
    for ours, theirs in _NAMES[layout]:
        if re.match(ours, name):
            return re.sub(f"^{ours}", theirs, name)
    raise KeyError(name)


def recipe_of(official: Official, name: str | None, changes: Sequence[str]) -> Recipe:
    """The recipe of the network in a file: the layout's published one, for the ViT that is there.

    name, changes: instead, as in `load_recipe`.
    """
    layout = official.layout
    base = name or RECIPES.get(layout or "", "published")
    own: list[str] = []
    if not changes and name is None:
        embedding = official.tensors.get("backbone.pos_embed", official.tensors.get("pos_embed"))
        width = embedding.shape[-1] if embedding is not None and embedding.ndim else 0
        own += [_VITS[width]] if width in _VITS else []
    if layout == "hsmr" and name is None:
        # Its decoder does not grow with the ViT; its demo and evaluation enlarge the box.
        own += ["model.decoder.width=1024", "data.enlarge_box=true"]
    return load_recipe(base, [*own, *changes])


def import_official(
    official: Official, *, recipe: str | None = None, changes: Sequence[str] = (),
    standin: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of a checkpoint of ours (`checkpoints.save_checkpoint`).

    standin: the network was trained on the licence-free body; None: what the file says, else no.

    Raises:
        InputError: names or shapes are not those of the layout; the line says how they differ.
        UsageError: a recipe of another head than the layout's.
    """
    layout = official.layout or _nearest(official)
    chosen = recipe_of(official, recipe, changes)
    head = {"skel-cf": "coarse_to_fine", "hsmr": "single_token"}.get(layout)
    if head and chosen.model.head != head:
        raise UsageError(
            f"{official.path}: is {TITLES[layout]}'s, whose head is {head}; recipe {chosen.name} "
            f"has {chosen.model.head}"
        )
    _accept(official, layout, wanted_tensors(layout, chosen.model), chosen.model)
    about = {
        "layout": layout, "averaged": official.averaged, "file": official.path.name,
        "sha256": file_record(official.path).sha256, "left_out": official.left_out,
    }  # fmt: skip
    content: dict[str, Any] = {"kind": KINDS[layout], "imported": about}
    if layout == "human-fov":
        return {**content, "network": official.tensors}
    if layout == "vitpose":
        network = {f"backbone.{name}": tensor for name, tensor in official.tensors.items()}
        return {**content, "network": network}
    with torch.device("meta"):
        names = Regressor(chosen.model).state_dict()
    network = {name: official.tensors[official_name(layout, name)] for name in names}
    for name in _MEANS:
        network[name] = network[name][0]
    made_on = official.standin if standin is None else standin
    return {
        **content,
        "recipe": chosen.model_dump(mode="json"),
        "standin": bool(made_on),
        "network": network,
        "ema": {},
        "scores": None,
    }


def _nearest(official: Official) -> LayoutName:
    """The layout that shares most names with a file of none."""
    shared = {
        layout: len(official.tensors.keys()
                    & wanted_tensors(layout, load_recipe(RECIPES.get(layout, "published")).model))
        for layout in TITLES
    }  # fmt: skip
    return max(shared, key=lambda layout: shared[layout])


def _accept(
    official: Official, layout: LayoutName, wanted: Mapping[str, Tensor], model: ModelConfig
) -> None:
    differences = differing(wanted, official.tensors)
    if not differences:
        return
    title = TITLES[official.layout] if official.layout else "no official checkpoint known here"
    raise InputError(
        f"{official.path}: looks like {title}; compared with {TITLES[layout]}: {differences}"
        f"{_hint(official.tensors, layout, model, differences)}"
    )


def _hint(
    tensors: Mapping[str, Tensor], layout: str, model: ModelConfig, differences: KeyDifferences
) -> str:
    """What to do where it is the size that differs."""
    if layout == "human-fov" or not differences.shapes:
        return ""
    embedding = tensors.get("backbone.pos_embed", tensors.get("pos_embed"))
    if embedding is None or embedding.ndim != 3:
        return ""
    found, width = embedding.shape[-1], model.backbone.width
    if found == width:
        return "; name the recipe that it was made with (--recipe, --set)"
    known = f": --set {_VITS[found]}" if found in _VITS else " (--set model.backbone=...)"
    return f"; its width is {found}, the recipe's {width}{known}"


# ---- parts for other networks -------------------------------------------------------------------


def load_vitpose(backbone: nn.Module, path: Path) -> None:
    """Load a ViT strictly from ViTPose's file, or any backbone from SKEL-CF, HSMR or ours.

    Raises:
        InputError: not a tensor file, a missing or unknown key, a wrong shape (another ViT size).
    """
    own = _own_network(path, "backbone.")
    found = own if own is not None else read_official(path, layout="vitpose").tensors
    differences = compared(backbone, found)
    if differences:
        what = "pyramid"
        if isinstance(backbone, ViT):
            what = f"ViT ({len(backbone.blocks)} blocks, width {backbone.size.width})"
        raise InputError(
            f"{path}: not this {what}: {differences}; choose the backbone "
            "and input size that the file was made for"
        )
    backbone.load_state_dict(found)


def load_start(network: Regressor, path: Path) -> None:
    """Load a whole network from a checkpoint of ours, trained or imported, strictly.

    Raises:
        InputError: not such a file, or the weights of another network.
    """
    own = _own_network(path, "")
    if own is None:
        raise InputError(
            f"{path}: no checkpoint of hmr-skel; hmr-skel import-checkpoint makes one of an "
            "official file"
        )
    if differences := compared(network, own):
        raise InputError(f"{path}: not the weights of this recipe's network: {differences}")
    network.load_state_dict(own)


def load_human_fov(path: Path) -> HumanFOV:
    """HumanFOV from its published file, from inside SKEL-CF's, or imported; frozen, for evaluation.

    Raises:
        InputError: the keys or shapes are not HumanFOV's; the line says which layout the file
            looks like and which keys differ.
    """
    with torch.device("meta"):
        network = HumanFOV()
    own = _own_network(path, "")
    if own is None:
        official = read_official(path, layout="human-fov")
        told = _told(official.tensors)
        tensors = official.tensors
        looks = f"looks like {TITLES[told]}" if told else "looks like no official checkpoint"
    else:
        tensors, looks = own, "a file of hmr-skel"
    if differences := compared(network, tensors):
        raise InputError(
            f"{path}: {looks}; its keys differ from HumanFOV's: {differences}; use --focal or "
            "label intrinsics instead"
        )
    network.load_state_dict({k: v.clone() for k, v in tensors.items()}, assign=True)
    return network.requires_grad_(False).eval()


def _own_network(path: Path, prefix: str) -> dict[str, Tensor] | None:
    """Entries of a file of ours below a prefix, which is stripped; None: not a file of ours."""
    content = read_foreign(path)
    if not (isinstance(content, Mapping) and content.get("format") == FORMAT):
        return None
    own = load_checkpoint(path)  # with all that is asked of files of ours
    tensors = own.get("ema") or own.get("network") or {}  # the average, as predict and export take
    return {
        name.removeprefix(prefix): _checked(name, tensor, path)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


# ---- back to the official layout ----------------------------------------------------------------


def export_official(
    content: Mapping[str, Any], path: Path, *, fov: Mapping[str, Tensor] | None = None
) -> tuple[LayoutName, dict[str, Any]]:
    """The layout of a checkpoint of ours, and the official file's content (`save_plain`).

    content: of `checkpoints.load_checkpoint`; the average where there is one. fov: HumanFOV's
    weights, which SKEL-CF's strict readers expect.

    Raises:
        InputError: a network that the published code cannot build.
    """
    tensors = content.get("ema") or content.get("network") or {}
    kind = content.get("kind", "regressor")
    if kind == "human-fov":
        return "human-fov", {"state_dict": dict(tensors)}
    if kind == "backbone":
        return "vitpose", {
            "state_dict": {name.removeprefix("backbone."): t for name, t in tensors.items()}
        }
    recipe = Recipe.model_validate(content["recipe"])
    _exportable(recipe, path)
    layout: LayoutName = "hsmr" if recipe.model.head == "single_token" else "skel-cf"
    named = {
        official_name(layout, name): tensor[None] if name in _MEANS else tensor
        for name, tensor in tensors.items()
    }
    note = {NOTE: {"standin": bool(content.get("standin")), "recipe": recipe.name}}
    if layout == "hsmr":
        return layout, {"state_dict": named, **note}
    named |= {f"{_FOV}{name}": tensor for name, tensor in (fov or {}).items()}
    step = int((content.get("progress") or {}).get("step", 0))
    averaged = {f"{_RAW}.{name}": tensor for name, tensor in named.items()}
    return layout, {
        _RAW: named, _EMA: {**averaged, "updates": torch.tensor(step)}, "epoch": 0, **note,
    }  # fmt: skip


def _exportable(recipe: Recipe, path: Path) -> None:
    """Refuse what the published networks have not."""
    model = recipe.model
    theirs = load_recipe("published").model.coarse_to_fine
    found = []
    if model.head == "coarse_to_fine":
        found += [
            f"model.coarse_to_fine.{name}: {value}"
            for name, value in model.coarse_to_fine.model_dump().items()
            if name != "zero_init" and value != getattr(theirs, name)
        ]
    if model.pose == "angles" and model.head == "coarse_to_fine":
        found.append("model.pose: angles")
    if model.head == "pooled":
        found.append("model.head: pooled")
    if model.camera != ("crop" if model.head == "single_token" else "full_image"):
        found.append(f"model.camera: {model.camera}")
    if model.backbone.stem != "patch":
        found.append(f"model.backbone.stem: {model.backbone.stem}")
    if model.scale_floor:
        found.append(f"model.scale_floor: {model.scale_floor}")
    if model.heatmaps:
        found.append("model.heatmaps: true")
    found += [f"model.{part}" for part in ("pyramid", "lifter") if getattr(model, part) is not None]
    if recipe.data.gender != "male":
        found.append(f"data.gender: {recipe.data.gender}")
    if found:
        raise InputError(
            f"{path}: the published code has no network with {', '.join(found)}; only networks of "
            "recipe published or published-baseline (any size) can be exported"
        )
