"""The Ray executor on a real three-node cluster: same bytes, lost actors, nodes and drivers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import identities
from pipeline.identity_shapes import SHAPES_FILE
from pipeline.own_file import own_file
from pipeline.run import Request, convert
from pipeline.verify import verify
from skel_fit import load_skel
from skel_fit.default_body import default_body_directory
from tests.faults.harness import (
    FAULTY,
    PATIENCE,
    REPOSITORY,
    Bench,
    copy_code,
    leftovers,
    make_bench,
    shard_digests,
    summary,
    wait_for_calls,
    wait_for_row,
    write_manifest,
)

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
OPTIONS = ("--executor", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A head without CPUs and two nodes with one each; `FaultyFit` there obeys one folder."""
    orders = tmp_path_factory.mktemp("orders")
    before = dict(os.environ)
    os.environ["HMR_SKEL_FAULTS"] = str(orders)  # inherited by the nodes and their actors
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.environ["OMP_NUM_THREADS"] = "1"
    started = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    try:
        for _ in range(2):
            started.add_node(**NODE)
        os.environ["RAY_ADDRESS"] = started.address
        yield started, orders
    finally:
        started.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def bench(cluster: tuple[Any, Path], tmp_path: Path) -> Bench:
    for order in cluster[1].iterdir():
        order.unlink()
    return make_bench(tmp_path / "bench", orders=cluster[1])


def reference(bench: Bench) -> dict[str, str]:
    """Digests of an undisturbed local run with the same plan."""
    directory = bench.root / "reference"
    bench.convert(directory=directory, fitter=FAULTY)
    (bench.faults / "calls").unlink()
    return shard_digests(directory)


def check_whole(bench: Bench, expected: dict[str, str]) -> None:
    assert shard_digests(bench.out) == expected
    assert summary(bench.out)["complete"]
    assert leftovers(bench.out) == []
    assert verify(bench.out).ok


def test_same_bytes_as_local(bench: Bench) -> None:
    """Promise P3."""
    expected = reference(bench)
    done = bench.run(*OPTIONS)
    assert done.returncode == 0, done.stderr
    check_whole(bench, expected)
    assert len({pid for pid, _ in bench.calls()}) <= 2


def test_a_killed_actor_loses_nothing(bench: Bench) -> None:
    """Promise P13."""
    expected = reference(bench)
    bench.order("hold-24")
    driver = bench.start(*OPTIONS)
    os.kill(wait_for_row(bench, 24), signal.SIGKILL)
    (bench.faults / "hold-24").unlink()
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, errors
    assert "will be tried again" in errors
    check_whole(bench, expected)


def test_a_row_that_stops_its_actor_costs_one_row(
    cluster: tuple[Any, Path], tmp_path: Path
) -> None:
    """Promise P14: its actor gives no sign of life, is ended and replaced; the row is left out."""
    orders = cluster[1]
    for order in orders.iterdir():
        order.unlink()
    bench = make_bench(tmp_path / "small", 8, 2, (3,), orders, limits={"stall": 3})
    expected = reference(bench)
    bench.order("stop-5")
    done = bench.run(*OPTIONS)
    assert done.returncode == 0, done.stderr
    found = summary(bench.out)
    assert found["complete"] and found["rejected"] == {"crashed": 1, "non_finite_pose": 1}
    (crashed,) = [row for item in found["concessions"] for row in item["crashed"]]
    assert crashed["row"] == 5 and "no sign of life within 3 s" in crashed["reason"]
    (bench.faults / "stop-5").unlink()
    done = bench.run(*OPTIONS, "--retry-failed")
    assert done.returncode == 0, done.stderr
    check_whole(bench, expected)


def test_a_killed_driver_beside_live_actors(bench: Bench) -> None:
    """Promise P15: the actors of the dead driver may still publish."""
    expected = reference(bench)
    bench.order("hold-24")
    driver = bench.start(*OPTIONS)
    wait_for_row(bench, 24)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (bench.faults / "hold-24").unlink()
    time.sleep(0.1)
    done = bench.run(*OPTIONS)
    assert done.returncode == 0, done.stderr
    check_whole(bench, expected)


def test_sigterm_ends_a_ray_run_with_143(bench: Bench) -> None:
    """Promise P17 on Ray, whose own handler would end the driver with another code."""
    bench.order("slow-all", "0.2")
    bench.order("hold-56")  # the last shard: the signal comes in time, however late
    driver = bench.start(*OPTIONS)
    wait_for_calls(bench, 2)
    driver.terminate()
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 143, errors
    assert not list((bench.out / "attempts").iterdir())


def test_what_can_never_fit_is_refused_at_once(bench: Bench) -> None:
    write_manifest(bench.manifest, ray={"num_gpus": 3})
    done = bench.run(*OPTIONS)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("hmr-skel: no Ray node can hold")


def test_a_node_with_other_code_does_not_work(
    cluster: tuple[Any, Path], bench: Bench, tmp_path: Path
) -> None:
    """One run, one code, on a cluster: before, such a node's shards were mixed in, with exit 0."""
    code = copy_code(tmp_path / "code")
    (code / "pipeline" / "columns.py").open("a").write("\n# edited\n")
    os.environ["PYTHONPATH"] = str(code)
    node = cluster[0].add_node(**NODE)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    try:
        bench.order("hold-56")  # the others do not end the run before that node has begun
        done = bench.run("--executor", "ray", "--workers", "3")
        assert done.returncode == 4, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("hmr-skel: this worker") and "code.sha256" in last
    finally:
        cluster[0].remove_node(node)


def test_a_worker_that_cannot_start_ends_the_run(bench: Bench) -> None:
    done = bench.run(*OPTIONS, "--device", "nosuch")
    assert done.returncode == 2
    assert "device 'nosuch' cannot be used" in done.stderr


def test_shapes_of_people_are_found_by_actors(
    cluster: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the driver, and the same bits as in one process."""
    skel = load_skel(default_body_directory(), "male")
    still = torch.zeros(2, 46), torch.zeros(2, 10), torch.tensor([[0.0, 0.0, 3.0], [1.0, 0.0, 3.0]])
    path = tmp_path / "people.npz"
    np.savez(path, vertices=skel(*still).skin_vertices.numpy(), body="smpl")
    found = own_file(path, models="default-body", skel_gender="male")
    monkeypatch.setattr(identities, "_PART_MESHES", 1)
    told: list[int] = []

    def hear(event: str, data: dict[str, Any]) -> None:
        if event == "identities_done":
            told.append(data["count"])

    for executor, workers in (("local", 1), ("ray", 2)):
        if executor == "ray":
            monkeypatch.delattr(identities, "solve_part")
        request = Request(
            found.manifest, tmp_path / executor, tmp_path, executor=executor, workers=workers
        )
        assert convert(request, hear).ok
    assert told == [1, 1, 1, 1]
    one, two = ((tmp_path / name / SHAPES_FILE).read_bytes() for name in ("local", "ray"))
    assert one == two


def test_a_lost_node_loses_nothing(cluster: tuple[Any, Path], bench: Bench) -> None:
    """Promise P13; last, because the node stays away."""
    expected = reference(bench)
    for row in (16, 24):  # one on each node
        bench.order(f"hold-{row}")
    driver = bench.start(*OPTIONS)
    for row in (16, 24):
        wait_for_row(bench, row)
    node = sorted(cluster[0].worker_nodes, key=str)[0]
    cluster[0].remove_node(node, allow_graceful=False)
    for row in (16, 24):
        (bench.faults / f"hold-{row}").unlink()
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, errors
    check_whole(bench, expected)
