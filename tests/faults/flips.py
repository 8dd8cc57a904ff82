"""Single-bit flips of all that a dataset and a checkpoint consist of: python -m tests.faults.flips.

Each flip is one of: *refused* (an error in one line, or the shard counted as damaged), *same* (all
values, the summary and the content are what they were: white space of JSON), *wrong* (another
answer without an error), *crashed* (any other exception). Wrong and crashed must stay 0.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from pipeline import open_dataset
from pipeline.errors import PipelineError
from pipeline.receipts import receipt_path, shard_path
from pipeline.rundir import RunDirectory
from pipeline.seal import sealed_extents
from pipeline.summary import summarise
from stages.regressor.network.checkpoints import load_checkpoint, save_checkpoint
from tests.faults.harness import make_bench

SHARD = 1


def answer(directory: Path) -> bytes:
    """Everything that readers get from a dataset: all values, counts and errors."""
    return values(directory) + counts(directory)


def values(directory: Path) -> bytes:
    """All values of a dataset."""
    dataset = open_dataset(directory)
    return b"".join(dataset[name].tobytes() for name in dataset.fields)


def counts(directory: Path) -> bytes:
    """Counts and errors of a dataset, as its summary has them."""
    plan, run = open_dataset(directory).plan, RunDirectory(directory)
    states = run.inspect_all(plan, checksums=False, results=True)
    return json.dumps(summarise(plan, states).to_json(), sort_keys=True).encode()


def campaign(path: Path, bits: Iterable[int], ask: Callable[[], object]) -> Counter[str]:
    """Flip each bit of a file in turn, ask, and put the file back."""
    whole = path.read_bytes()
    right = ask()
    found: Counter[str] = Counter()
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found["same" if ask() == right else "wrong"] += 1
        except PipelineError:
            found["refused"] += 1
        except Exception as error:
            found["crashed"] += 1
            print(f"{path.name}, bit {bit}: {type(error).__name__}: {error}")
    path.write_bytes(whole)
    return found


def checkpoint_answer(path: Path) -> str:
    content = load_checkpoint(path)
    return repr({**content, "network": {k: v.tolist() for k, v in content["network"].items()}})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    total: Counter[str] = Counter()

    def report(name: str, path: Path, places: list[int], ask: Callable[[], object]) -> None:
        chosen = generator.sample(places, min(given.flips, len(places)))
        found = campaign(path, chosen, ask)
        total.update(found)
        counts = ", ".join(f"{kind} {found[kind]}" for kind in ("refused", "same"))
        print(f"{name}: {len(chosen)} flips: {counts}, wrong {found['wrong']}, "
              f"crashed {found['crashed']}", flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder) / "bench", 20, 8)
        assert bench.convert().ok
        shard = shard_path(bench.out, SHARD)
        inside = {
            bit for first, last in sealed_extents(shard) for bit in range(8 * first, 8 * last)
        }
        every = range(8 * shard.stat().st_size)

        def ask() -> bytes:
            return answer(bench.out)

        report("shard, HDF5 structures and seal", shard, [b for b in every if b not in inside], ask)
        report("shard, chunks of data", shard, sorted(inside), ask)
        receipt = receipt_path(bench.out, SHARD)
        for path in (receipt, bench.out / "plan.json", bench.out / "run.json"):
            report(path.name, path, list(range(8 * path.stat().st_size)), ask)
        weights = Path(folder) / "last.pt"
        save_checkpoint(weights, {"network": {"a": torch.arange(256.0)}, "progress": {"step": 1}})
        report("checkpoint", weights, list(range(8 * weights.stat().st_size)),
               lambda: checkpoint_answer(weights))  # fmt: skip
    return int(total["wrong"] + total["crashed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
