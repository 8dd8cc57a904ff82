"""Everything that needs a GPU, in one call and with nothing to download.

    bash benchmarks/on_gpu.sh [--json FILE]
    bash benchmarks/on_gpu.sh --device cpu --quick

Fits a second by block size, launches of a block, agreement of GPU and CPU with branch switches,
forward and backward passes of the body, training steps of ViT-B and ViT-H. Prints
Markdown and writes JSON (on-gpu.json) after each section. A section that fails says why in one line
and the others run; one that would begin after --minutes (7) is left out and named. --device cpu
--quick runs all of it in small: that tests the script and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Pair, conditions, markdown_conditions, markdown_table, synchronise
from benchmarks.poses import Frames, extreme, real
from skel_fit.fit import FitResult, fit_skel
from skel_fit.recipe import FitConfig

AGREE_MM, SWITCH_MM, SHARE_BAR = 0.01, 0.3, 0.99
FITS_BAR, FITS_AIM, LAUNCH_BAR = 10_000, 100_000, 300
Table = tuple[Sequence[str], list[Sequence[Any]]]


class Run:
    """What all sections share: device, sizes, body models."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = torch.device(device), quick
        self.pair = Pair.default(device=device)
        self.cpu = Pair.default()
        self.on_gpu = self.device.type == "cuda"

    def fit(self, pair: Pair, frames: Frames, config: FitConfig) -> FitResult:
        """From SMPL parameters to judged results."""
        return fit_skel(pair.skel, pair.smpl, frames.poses, frames.betas, frames.transl, config)

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """The least wall seconds of a call; the first, which compiles, is not counted."""
        work()
        found = []
        for _ in range(1 if self.quick else repeats):
            synchronise()
            begin = time.perf_counter()
            work()
            synchronise()
            found.append(time.perf_counter() - begin)
        return min(found)


def fits(run: Run) -> Table:
    """Fits a second by block size; four blocks a call."""
    sizes = (16,) if run.quick else (512, 1024, 2048, 4096, 8192)
    rows = []
    for size in sizes:
        frames = real(size if run.quick else 4 * size, 5)
        config = FitConfig(block_size=size)
        took = run.seconds(lambda f=frames, c=config: run.fit(run.pair, f, c), 3)
        rate = len(frames) / took
        rows.append((size, len(frames), rate, verdict(run, rate >= FITS_BAR), rate / FITS_AIM))
    head = ("block", "rows", "fits/s", f">= {FITS_BAR:,}", f"share of {FITS_AIM:,}")
    return head, rows


def launches(run: Run) -> Table:
    """What the profiler sees of one block: kernels on the device, calls of the host."""
    size = 16 if run.quick else 2048
    frames, config = real(size, 6), FitConfig(block_size=size, restarts=False)
    run.fit(run.pair, frames, config)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run.fit(run.pair, frames, config)
    events = profile.key_averages()
    kernels = sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
    calls = sum(
        e.count for e in events if e.key.startswith(("cudaLaunch", "cuLaunch", "cudaGraph"))
    )
    waits = sum(e.count for e in events if "Synchronize" in e.key)
    rows = [
        ("kernels on the device", kernels, verdict(run, kernels <= LAUNCH_BAR)),
        ("launches by the host", calls, ""),
        ("waits for the device", waits, ""),
        ("operators of torch", sum(e.count for e in events if e.key.startswith("aten::")), ""),
    ]
    return ("a call of one block", "count", f"<= {LAUNCH_BAR}"), rows


def agreement(run: Run) -> Table:
    """The same rows on a CPU (without a GPU: numba's kernels against torch's), rows with other
    branches counted: an angle elsewhere by 0.3 rad or a residual by 0.3 mm."""
    rows = []
    other = FitConfig() if run.on_gpu else FitConfig(kernels="torch", block_size=16)
    count = 8 if run.quick else 512
    for frames in (real(count, 7), extreme(count, 8)):
        theirs = run.fit(run.cpu, frames, FitConfig())
        mine = run.fit(run.pair, frames, other)
        apart = 1e3 * (mine.vertex_error_mean.cpu() - theirs.vertex_error_mean).abs()
        angles = (mine.poses.cpu() - theirs.poses).abs().amax(dim=1)
        near = float((apart <= AGREE_MM).float().mean())
        switches = int(((angles > 0.3) | (apart > SWITCH_MM)).sum())
        rows.append(
            (
                frames.name,
                count,
                near,
                verdict(run, near >= SHARE_BAR),
                float(apart.max()),
                switches,
            )
        )
    head = (
        "frames", "rows", f"within {AGREE_MM} mm", f">= {SHARE_BAR:.0%}", "largest, mm",
        "branch switches",
    )  # fmt: skip
    return head, rows


def forward(run: Run) -> Table:
    """The body model, skin only and with bones, without and with gradients."""
    skel, rows = run.pair.skel, []
    for batch in (2,) if run.quick else (32, 256, 2048):
        draw = torch.Generator().manual_seed(0)
        poses = (0.4 * torch.randn(batch, 46, generator=draw)).to(run.device)
        betas = torch.randn(batch, 10, generator=draw).to(run.device)
        trans = torch.zeros(batch, 3, device=run.device)

        def plain(bones: bool, given: tuple[torch.Tensor, ...] = (poses, betas, trans)) -> None:
            with torch.no_grad():
                skel(*given, bones)

        def both(given: tuple[torch.Tensor, ...] = (poses, betas, trans)) -> None:
            pose = given[0].detach().requires_grad_()
            skel(pose, *given[1:]).skin_vertices.square().sum().backward()

        for name, work in (
            ("skin", lambda plain=plain: plain(False)),
            ("skin and bones", lambda plain=plain: plain(True)),
            ("skin, forward and backward", both),
        ):
            took = run.seconds(work, 10)
            rows.append((name, batch, 1e3 * took, batch / took))
    return ("pass", "batch", "ms", "meshes/s"), rows


def training(run: Run) -> Table:
    """Steps of the regressor with the whole loss, bf16 on a GPU."""
    from benchmarks.regressor import time_steps

    sizes = (("tiny", 1),) if run.quick else (("vit-b", 64), ("vit-h", 32), ("vit-h", 64))
    rows = []
    for size, batch in sizes:
        found = time_steps(size, batch, run.device, False, 1 if run.quick else 10)
        memory = found["memory_gib"]
        rows.append((size, batch, found["images_per_second"], "" if memory is None else memory))
    return ("backbone", "batch", "images/s", "GiB"), rows


SECTIONS: dict[str, Callable[[Run], Table]] = {
    "fits": fits,
    "launches": launches,
    "agreement": agreement,
    "forward": forward,
    "training": training,
}


def verdict(run: Run, met: bool) -> str:
    """For a table; a CPU is not judged by the bars of a GPU."""
    return ("yes" if met else "**no**") if run.on_gpu else "no GPU"


def main(given: Sequence[str] | None = None) -> int:
    """0 where every section ran."""
    options = parser().parse_args(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch sees none here; --device cpu --quick tries the script without one")
        return 2
    begin = time.monotonic()
    run = Run(options.device, options.quick)
    name = torch.cuda.get_device_name(run.device) if run.on_gpu else "none, a test of the script"
    told = conditions(device=options.device, gpu=name)
    content: dict[str, Any] = {"conditions": told, "sections": {}, "left out": {}}
    print(f"## On a GPU: `bash benchmarks/on_gpu.sh`\n\n{markdown_conditions(told)}\n", flush=True)
    for title in options.sections or SECTIONS:
        started = time.monotonic()
        if started - begin > 60 * options.minutes:
            content["left out"][title] = "no time left"
            print(f"{title}: left out, {options.minutes:g} minutes are over\n", flush=True)
            break
        try:
            head, rows = SECTIONS[title](run)
        except Exception as error:  # one section must not cost the others their turn
            content["left out"][title] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{title}: {content['left out'][title]}\n", flush=True)
        else:
            took = time.monotonic() - started
            lines = [dict(zip(head, row, strict=True)) for row in rows]
            content["sections"][title] = {"seconds": took, "rows": lines}
            print(f"{title} ({took:.0f} s)\n\n{markdown_table(head, rows)}\n", flush=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    missing = [t for t in options.sections or SECTIONS if t not in content["sections"]]
    content["left out"] |= {t: "no time left" for t in missing if t not in content["left out"]}
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if content["left out"] else 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    made.add_argument("--minutes", type=float, default=7.0, help="no section begins later")
    made.add_argument("--sections", nargs="+", choices=list(SECTIONS))
    made.add_argument("--json", type=Path, default=Path("on-gpu.json"))
    return made


if __name__ == "__main__":
    raise SystemExit(main())
