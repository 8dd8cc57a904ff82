"""The real fit through the plane, on the stand-in bodies: bytes do not depend on threads."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from pipeline import open_dataset
from pipeline.demo import write_demo
from pipeline.fitters import DEFAULT_FITTER
from pipeline.verify import verify
from skel_fit.default_body import default_body_directory
from tests.faults.harness import Bench, forge_shard, shard_digests, write_manifest


def test_same_bytes_from_one_process_and_from_two(tmp_path: Path) -> None:
    """Promise P3: one process with a thread a core, against two with one thread each.

    Rows of all gender pairs: neutral shapes pass through the closed-form transfer. Long matrix sums
    move in their last bits with the number of threads, unless that is fixed.
    """
    bench = Bench(tmp_path)
    bench.faults.mkdir()
    bench.data.mkdir()
    write_demo(bench.labels, default_body_directory(), rows=60)
    write_manifest(
        bench.manifest, 10, models="default-body", genders={"smpl": "column", "skel": "column"}
    )
    environment = {"OMP_NUM_THREADS": str(os.cpu_count())}
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--limit", "20", "--quiet")
    command = ["env", *(f"{name}={value}" for name, value in environment.items())]
    done = bench.cli([*command, *bench.command(*options, fitter=DEFAULT_FITTER, out=one)])
    assert done.returncode == 0, done.stderr
    done = bench.run(*options, "--workers", "2", fitter=DEFAULT_FITTER, out=two)
    assert done.returncode == 0, done.stderr
    assert len(shard_digests(one)) == 2
    assert shard_digests(one) == shard_digests(two)
    found = verify(one, full=True)
    assert found.again == found.exact == 20, "a new fit gives the same bits"
    assert found.fitted == 20 and found.largest_residual_difference < 1e-5
    assert not [text for text in found.problems if "limited" in text]
    stored = open_dataset(one, allow_incomplete=True)["vertex_error_unlimited"][10:20]
    for asked, words in (
        (False, "vertex_error_unlimited is not where limits may cost"),
        (True, "is not limited, which its errors say"),
    ):
        row = int((np.isfinite(stored) == asked).argmax())
        forge_shard(one, 1, lambda f, row=row: f["vertex_error_unlimited"].__setitem__(row, 0.001))
        assert any(f"row {10 + row}: {words}" in text for text in verify(one).problems)
    forge_shard(one, 0, lambda f: f["skel_trans"].__setitem__((4, 1), f["skel_trans"][4, 1] + 3e-5))
    assert any("the root of row 4 leaves the label's" in text for text in verify(one).problems)


def test_a_near_root_is_verified_against_its_trust_region(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.data.mkdir()
    write_demo(bench.labels, default_body_directory(), rows=60)
    write_manifest(
        bench.manifest,
        10,
        models="default-body",
        genders={"smpl": "column", "skel": "column"},
        fit={"recipe": "hierarchical_near_root", "block_size": 16},
    )
    bench.convert(fitter=DEFAULT_FITTER, limit=10)
    found = verify(bench.out)
    assert found.fitted == 10 and found.largest_residual_difference < 1e-5
    assert {text[-13:] for text in found.problems} == {"not converted"}

    def moved(file: h5py.File) -> None:
        file["skel_poses"][3, 0] += 0.2

    forge_shard(bench.out, 0, moved)
    words = "the recipe allows 0.0872665 rad and 15 mm (1 rows)"
    assert any("root of row 3 " in text and words in text for text in verify(bench.out).problems)
