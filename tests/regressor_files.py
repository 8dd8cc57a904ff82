"""Real files for the regressor's tests, made once a session: a converted demo with pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.manifest import load_manifest
from pipeline.run import Request, convert
from skel_fit.default_body import default_body_directory
from stages.regressor.data.demo_pictures import Job, render_demo
from tests.shared import made_once

ROWS = 60
#: A network and a schedule of seconds; body model, losses and data are the real ones.
MICRO = (
    "model.crop_size=64",
    "model.backbone={width: 32, depth: 2, heads: 2, mlp_width: 64, drop_path: 0.2, stem: patch}",
    "model.decoder={layers: 2, width: 32, heads: 2, head_width: 16, mlp_width: 32}",
    "train.batch_size=8",
    "train.epochs=3",
    "train.validate_every=1",
    "train.workers=0",
    "train.pictures=0",
    "train.checkpoint_every=2",
    "optimiser.rate=0.002",
)


@dataclass(frozen=True)
class Demo:
    """data: data root with labels and pictures; shards: the conversion; models: body models."""

    data: Path
    shards: Path
    models: Path


@functools.cache
def demo(base: Path) -> Demo:
    """The demo in small, converted and rendered; to be read only. base: of `made_once`."""
    root = made_once(base, "demo", _make)
    return Demo(root / "data", root / "shards", default_body_directory())


def _make(root: Path) -> None:
    data = root / "data"
    threads = torch.get_num_threads()
    whole = load_manifest("demo")
    source = whole.source.model_copy(update={"rows": ROWS})
    manifest = whole.model_copy(update={"source": source})
    request = Request(manifest=manifest, directory=root / "shards", data_root=data)
    convert(request, lambda event, content: None)
    render_demo(Job(data / "demo" / "demo-release.npz", default_body_directory(), data))
    torch.set_num_threads(threads)
