"""`python -m tools.default_body --work DIR`: fetch, build, write the committed files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from skel_fit.default_body.expansion import ASSET

from .fetch import fetch
from .pack import write_asset
from .recipe import build_body, build_motion

MOTION = Path(__file__).parents[2] / "pipeline/demo_motion.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads (190 MB)")
    parser.add_argument("--asset", type=Path, default=ASSET, help="default: the committed file")
    parser.add_argument("--motion", type=Path, default=MOTION, help="default: the committed file")
    options = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    sources = fetch(options.work)
    body = build_body(sources, say)
    write_asset(options.asset, body)
    # numpy types its keyword arguments as those of its own options, not as arrays.
    np.savez_compressed(options.motion, **build_motion(sources, body))  # type: ignore[arg-type]
    for path in (options.asset, options.motion):
        say(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
