"""The fit while another program takes one of its cores.

    python -m benchmarks.shared_core [--rows 1024] [--threads 2] [--turns 7]

Turns with all cores free and with one busy process alternate, so both see the same machine. The
busy process computes without end at the same priority; the system decides where it runs. Prints
Markdown. The bar is half of the free rate.
"""

import argparse
import multiprocessing
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

from benchmarks.fit import ours
from benchmarks.measure import (
    Clock,
    Pair,
    conditions,
    markdown_conditions,
    markdown_table,
    set_threads,
)
from benchmarks.poses import real
from skel_fit.recipe import FitConfig

BAR = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    set_threads(options.threads)
    pair, frames, config = Pair.default(device="cpu"), real(options.rows), FitConfig(block_size=64)
    told = conditions(threads=options.threads)
    ours(pair, frames, config)  # kernels are there, memory is touched
    free, shared = Clock(), Clock()
    for _ in range(options.turns):
        free.call(lambda: ours(pair, frames, config))
        other = _busy()
        shared.call(lambda: ours(pair, frames, config))
        other.terminate()
        other.join()
    share = free.wall / shared.wall
    print(markdown_conditions(told))
    print()
    rows = [
        (name, options.rows / clock.wall, 1e3 * clock.cpu / options.rows)
        for name, clock in (("cores free", free), ("one core taken", shared))
    ]
    print(markdown_table(("while", "rows/s", "CPU ms a row"), rows))
    print()
    print(
        f"Share of the free rate: {share:.2f} (bar {BAR:g}: {'met' if share > BAR else 'missed'})"
    )


def _busy() -> BaseProcess:
    """A process that computes until it is ended; it has begun."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_spin, args=(begun,), daemon=True)
    process.start()
    begun.wait()
    return process


def _spin(begun: Event) -> None:
    begun.set()
    while True:
        pass


if __name__ == "__main__":
    main()
