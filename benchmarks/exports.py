"""What exports and torch datasets cost: CPU seconds, and memory over the rows.

    python -m benchmarks.exports [--rows 10000 40000]

Each export runs in a process of its own; memory is its highest resident set above that before the
export began. Labels as those of the data-plane tests, three people a picture, pictures of 6 kB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from pipeline import open_dataset
from stages.export_formats import export_dataset
from tests.demo_rows import convert_labels
from tests.faults.fitters import TRIVIAL
from tests.faults.harness import label_columns
from tests.pictures import tiny_jpeg

FORMATS = ("parquet", "webdataset", "csv", "torch")


def make(folder: Path, rows: int) -> Path:
    columns = label_columns(rows)
    columns["gender"] = columns["skel_gender"] = np.full(rows, "male")
    columns["imgname"] = np.array([f"p{row // 9000}/{row // 3:06d}.jpg" for row in range(rows)])
    np.savez(folder / "labels.npz", **columns)
    for k, name in enumerate(np.unique(columns["imgname"]).tolist()):
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_jpeg(k % 20))
    return convert_labels(folder, "labels.npz", TRIVIAL, image_root="pictures", shard_rows=8192)


def measure(directory: Path, format: str) -> None:
    """CPU seconds and MB of one export; prints them."""
    dataset = open_dataset(directory)
    dataset.take(dataset.fields, range(8))
    before, start = peak(), time.process_time()
    if format == "torch":
        for _ in DataLoader(dataset.torch(), batch_size=256, shuffle=True):
            pass
    else:
        export_dataset(directory, directory.parent / format, format=format)
    print(f"{time.process_time() - start:.2f} {peak() - before:.0f}")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), given.measure[1])
        return
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            out = make(Path(folder), rows)
            for format in FORMATS:
                command = [sys.executable, "-m", "benchmarks.exports", "--measure", f"{out}"]
                seconds, memory = subprocess.check_output([*command, format], text=True).split()
                rate = rows / float(seconds)
                print(f"{rows} rows, {format}: {rate:,.0f} rows a CPU second, {memory} MB more")


if __name__ == "__main__":
    main()
