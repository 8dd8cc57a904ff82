"""What the seal of a shard costs: CPU seconds of the check beside those of reading the shard.

    python -m benchmarks.seal [--rows 8192]

Medians of pairs, page cache warm, one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.receipts import shard_path
from pipeline.seal import check_seal, sealed_extents
from pipeline.shards import open_shard, read_column
from tests.faults.harness import make_bench


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def read(path: Path) -> None:
    with open_shard(path) as file:
        for name in file:
            read_column(file, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder) / "bench", given.rows, given.rows, bad_rows=())
        bench.convert()
        path = shard_path(bench.out, 0)
        size = path.stat().st_size
        chunks = sum(last - first for first, last in sealed_extents(path))
        read(path)
        pairs = [(cpu(lambda: check_seal(path)), cpu(lambda: read(path)))
                 for _ in range(given.pairs)]  # fmt: skip
    seal, whole = (statistics.median(pair[k] for pair in pairs) for k in (0, 1))
    share = statistics.median(a / b for a, b in pairs)
    print(f"shard of {given.rows} rows, {size:,} bytes, {size - chunks:,} outside the chunks")
    print(f"seal {1e3 * seal:.2f} ms, reading all columns {1e3 * whole:.1f} ms: {share:.2%}")


if __name__ == "__main__":
    main()
