"""Training throughput: images/s and memory of a step with the full loss, and of the loader alone.

    python benchmarks/regressor.py [--sizes vit-b vit-h] [--batches 32 64] [--device cuda]
                                   [--compile] [--steps 10] [--data DIR] [--json FILE]

A step is forward, loss (keypoint body included), backward, clipping and AdamW at 256 x 192, bf16
on a GPU, on made-up rows. With --data (a converted dataset with pictures) the loader of that
dataset is timed too: images/s of one process, so that the workers a GPU needs can be read off.
Prints Markdown.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import keypoint_matrix
from skel_fit.model_files import load_skel
from stages.regressor.config import Recipe, load_recipe
from stages.regressor.data.loader import CropDataset, batches
from stages.regressor.data.rows import Place, load_collection
from stages.regressor.network.model import Regressor
from stages.regressor.network.view import View
from stages.regressor.training.losses import Labels, Loss

WARM = 3


def made_up(batch: int, recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, View, Labels]:
    """A batch of plausible numbers."""
    random = torch.Generator().manual_seed(0)
    height, width = recipe.model.input_size
    image = torch.randn(batch, 3, height, width, generator=random)
    cam_int = torch.tensor([[1000.0, 0, 640], [0, 1000, 360], [0, 0, 1]]).expand(batch, 3, 3)
    affine = torch.tensor([[0.64, 0, -282], [0, 0.64, -102]]).expand(batch, 2, 3)
    view = View(torch.tensor([640.0, 360]).expand(batch, 2), torch.full((batch,), 400.0), cam_int,
                affine)  # fmt: skip
    labels = Labels(
        torch.rand(batch, 44, 3, generator=random) - 0.5,
        torch.randn(batch, 44, 3, generator=random) * 0.4,
        torch.randn(batch, 46, generator=random) * 0.3,
        torch.randn(batch, 10, generator=random),
        torch.ones(batch),
        torch.zeros(batch, dtype=torch.bool),
    )
    view = View(*(x.to(device) for x in view))
    return image.to(device), view, Labels(*(x.to(device) for x in labels))


def time_steps(size: str, batch: int, device: torch.device, compiled: bool, steps: int) -> dict:
    """images/s and peak memory of training steps."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    recipe = load_recipe("default", [f"changes/{size}", f"train.precision={precision}"])
    models = default_body_directory()
    body = KeypointBody(load_skel(models, "male"), keypoint_matrix(models)).to(device)
    network = Regressor(recipe.model).to(device).train()
    loss = Loss(recipe.loss, recipe.model, body).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    called = torch.compile(network) if compiled else network
    image, view, labels = made_up(batch, recipe, device)
    box = view.conditioning
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = 0.0
    for k in range(WARM + steps):
        if k == WARM:
            _wait(device)
            began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            estimates = called(image, box)
        loss(estimates, labels, view).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    _wait(device)
    spent = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"size": size, "batch": batch, "compile": compiled, "precision": precision,
            "images_per_second": batch * steps / spent, "memory_gib": memory}  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_loader(directory: Path, rows: int = 256) -> float:
    """images/s of one loader process at the default recipe's crops."""
    recipe = load_recipe("default")
    found = load_collection([Place(directory)], recipe.data)
    dataset = CropDataset(found, recipe.data, recipe.model.crop_size, 0, training=True)
    keys = [[(0, (k * 32 + n) % len(dataset)) for n in range(32)] for k in range(rows // 32)]
    next(iter(batches(dataset, keys, 0)))
    began = time.perf_counter()
    count = sum(len(batch.row) for batch in batches(dataset, keys, 0))
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["vit-b", "vit-h"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{name or 'CPU'}, torch {torch.__version__}\n")
    print("| backbone | batch | compile | precision | images/s | GiB |")
    print("| --- | ---: | --- | --- | ---: | ---: |")
    results = []
    for size in options.sizes:
        for batch in options.batches:
            for compiled in (False, True) if options.compile else (False,):
                row = time_steps(size, batch, device, compiled, options.steps)
                results.append(row)
                memory = "-" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
                print(f"| {size} | {batch} | {'yes' if compiled else 'no'} | {row['precision']} | "
                      f"{row['images_per_second']:.1f} | {memory} |", flush=True)  # fmt: skip
    content = {"device": name, "torch": str(torch.__version__), "steps": results}
    if options.data:
        content["loader_images_per_second"] = time_loader(options.data)
        print(f"\nloader, one process: {content['loader_images_per_second']:.0f} images/s")
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
