"""Fake official checkpoints from small networks: names, shapes, containers of the real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from stages.regressor.config import Recipe, load_recipe
from stages.regressor.network import hrnet
from stages.regressor.network.hrnet import HumanFOV
from stages.regressor.network.model import Regressor
from tests.regressor_files import MICRO

SIZE = MICRO[:3]
LAYER = {
    "self_attention.norm": "0.norm", "self_attention.to_qkv": "0.fn.to_qkv",
    "self_attention.to_out": "0.fn.to_out.0", "cross_attention.norm": "1.norm",
    "cross_attention.to_q": "1.fn.to_q", "cross_attention.to_kv": "1.fn.to_kv",
    "cross_attention.to_out": "1.fn.to_out.0", "feed_forward.0": "2.norm",
    "feed_forward.1": "2.fn.net.0", "feed_forward.3": "2.fn.net.3",
}  # fmt: skip
SKEL_CF = {
    "mean_code": "decoder.mean_poses", "mean_betas": "decoder.mean_betas",
    "mean_camera": "decoder.mean_cam", "position": "decoder.transformer.pos_embedding",
    "read_out.code": "decoder.poses_decoder", "read_out.betas": "decoder.betas_decoder",
    "read_out.camera": "decoder.cam_decoder", "embed.code": "decoder.to_pose_embedding",
    "embed.betas": "decoder.to_betas_embedding", "embed.camera": "decoder.to_cam_embedding",
    "layers": "decoder.transformer.layers",
}  # fmt: skip
HSMR = {
    "mean_code": "head.init_poses", "mean_betas": "head.init_betas",
    "mean_camera": "head.init_cam", "position": "head.transformer.pos_embedding",
    "to_token": "head.transformer.to_token_embedding", "read_out.code": "head.poses_decoder",
    "read_out.betas": "head.betas_decoder", "read_out.camera": "head.cam_decoder",
    "layers": "head.transformer.transformer.layers",
}  # fmt: skip


def recipe(layout: str) -> Recipe:
    """The published recipe of a layout at the size of the tests."""
    name = {"skel-cf": "published", "hsmr": "published-baseline"}[layout]
    return load_recipe(name, list(SIZE))


def random_network(recipe: Recipe, seed: int) -> Regressor:
    """All weights random, gains and means too, so that any mix-up shows."""
    network = Regressor(recipe.model).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        value += 0.05 * torch.randn(value.shape, generator=draw)
    return network


def official(network: Regressor, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights under official names: written out here again, as a check of ours."""
    result = {}
    for name, value in network.state_dict().items():
        if name.startswith("head."):
            short = name.removeprefix("head.")
            ours = next(key for key in names if short.startswith(f"{key}.") or short == key)
            rest = short.removeprefix(ours)
            if ours == "layers":
                _, number, inner = rest.split(".", 2)
                part = next(key for key in LAYER if inner.startswith(f"{key}."))
                rest = f".{number}.{LAYER[part]}{inner.removeprefix(part)}"
            name = names[ours] + rest
            value = value[None] if ours.startswith("mean") else value
        result[name] = value.clone()
    return result


def foreign_config() -> Any:
    """What `cfg` is: an object of a class that the reader does not have."""
    package, module = ModuleType("omegaconf"), ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self) -> None:
            self.content = {"TRAIN": [1, 2]}

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    sys.modules.update({"omegaconf": package, "omegaconf.dictconfig": module})
    return DictConfig()


def save(path: Path, content: dict[str, Any], *, zipped: bool = True) -> Path:
    """Save, then take the foreign modules away again."""
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        for name in ("omegaconf", "omegaconf.dictconfig"):
            sys.modules.pop(name, None)
    return path


def skel_cf_content(network: Regressor) -> dict[str, Any]:
    """The dict of a `best.pth`: averaged and other raw weights, optimiser, configuration."""
    weights = official(network, SKEL_CF)
    indices = torch.tensor([[0, 1], [2, 0]])
    sparse = torch.sparse_coo_tensor(indices, torch.ones(2), (2, 3), check_invariants=True)
    weights |= {
        "cam_model.fc3.bias": torch.zeros(2),
        "cam_model.backbone.conv1.weight": torch.zeros(4, 3, 3, 3),
        "skel_model.J_regressor": sparse,
        "skel_model.skin_f": torch.zeros(4, 3, dtype=torch.int64),
        "skel_model.joints_dict.0.nb_dof": torch.tensor(3),
    }
    raw = {name: value if value.is_sparse else value + 1 for name, value in weights.items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    averaged = {f"model.{name}": value for name, value in weights.items()}
    return {
        "model": raw, "ema_model": {**averaged, "updates": torch.tensor(7)},
        "optimizer": optimiser.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 3,
        "cfg": foreign_config(),
    }  # fmt: skip


def hsmr_content(network: Regressor) -> dict[str, Any]:
    """The dict of an `hsmr.ckpt`."""
    weights = official(network, HSMR) | {"skel_model.skin_f": torch.zeros(4, 3, dtype=torch.int64)}
    return {
        "state_dict": weights, "epoch": 1, "global_step": 9, "callbacks": {},
        "pytorch-lightning_version": "2.0.0", "optimizer_states": [], "lr_schedulers": [],
    }  # fmt: skip


def small_human_fov(monkeypatch: pytest.MonkeyPatch) -> HumanFOV:
    """HumanFOV with few channels; the number of entries and their names are the real one's."""
    monkeypatch.setattr(hrnet, "STAGE_WIDTHS", ((2, 4), (2, 4, 6), (2, 4, 6, 8)))
    monkeypatch.setattr(hrnet, "STEM", 4)
    network = HumanFOV(hidden=1024)
    draw = torch.Generator().manual_seed(5)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value += 0.1 * torch.rand(value.shape, generator=draw)
    torch.nn.init.constant_(network.fc3.bias, 0.9)
    return network.requires_grad_(False).eval()
