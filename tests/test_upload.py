"""Uploading to an object store: a real S3 server (moto) started here, and plain folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.errors import Incomplete, InputError, OutputError, PlanMismatch, UsageError
from pipeline.upload import fetch
from pipeline.verify import verify
from stages import cli
from tests.faults.harness import (
    PATIENCE,
    TRIVIAL,
    Bench,
    make_bench,
    shard_digests,
    wait_for_row,
    write_manifest,
)

BUCKET = "s3://skel"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """moto's S3 server in a process of its own; the environment points every client to it."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    port_file = tmp_path_factory.mktemp("moto") / "port"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer('127.0.0.1', 0)\nserver.start()\n"
        "host, port = server.get_host_and_port()\n"
        f"Path({str(port_file)!r}).write_text(str(port))\n"
        "sys.stdin.read()"  # ends with this process
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (port_file.exists() and port_file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port_file.read_text()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/moto-api/").close()
    fsspec.filesystem("s3").mkdir("skel")
    try:
        yield process
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.kill()
        process.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path / "bench")


def remote_files(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    return {path.removeprefix(root).lstrip("/"): filesystem.cat_file(path)
            for path in filesystem.find(root)}  # fmt: skip


def check_same(bench: Bench, url: str) -> None:
    found = remote_files(url)
    shards = {name for name in found if name.startswith("shards/")}
    assert len(shards) == 8
    for name, data in found.items():
        assert (bench.out / name).read_bytes() == data
    assert {"plan.json", "summary.json", "receipts/shard-00000.json"} <= set(found)


def test_s3_copy_is_whole_resumes_and_comes_back(
    server: subprocess.Popen[bytes], bench: Bench, tmp_path: Path
) -> None:
    url = f"{BUCKET}/whole"
    bench.convert(upload=url, limit=20)
    assert not json.loads(remote_files(url)["summary.json"])["complete"]
    bench.convert(upload=url)
    check_same(bench, url)
    filesystem = fsspec.filesystem("s3")
    filesystem.rm("skel/whole/shards/shard-00003.h5")
    filesystem.pipe_file("skel/whole/receipts/shard-00005.json", b"{}")
    bench.convert(upload=url)
    check_same(bench, url)
    fetch(url, tmp_path / "back")
    assert shard_digests(tmp_path / "back") == shard_digests(bench.out)
    found = verify(tmp_path / "back", data_root=bench.data)
    assert not [text for text in found.problems if "shard" in text]


def test_another_plan_and_unknown_places_are_refused(
    server: subprocess.Popen[bytes], bench: Bench
) -> None:
    url = f"{BUCKET}/claimed"
    bench.convert(upload=url, limit=8)
    write_manifest(bench.manifest, shard_rows=9)
    with pytest.raises(PlanMismatch, match="another plan"):
        bench.convert(upload=url, directory=bench.root / "other")
    with pytest.raises(OutputError, match="s3://absent"):
        bench.convert(upload="s3://absent/x", directory=bench.root / "other")
    with pytest.raises(UsageError, match="nosuch"):
        bench.convert(upload="nosuch://x", directory=bench.root / "other")


def test_a_store_that_dies_ends_the_run_and_a_rerun_catches_up(
    server: subprocess.Popen[bytes], bench: Bench
) -> None:
    url = f"{BUCKET}/dies"
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    bench.convert(upload=url, limit=8)
    os.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        done = bench.run("--upload", url, fitter=TRIVIAL)
        assert done.returncode == 74, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"hmr-skel: {url}: ")
    finally:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        fsspec.filesystem("s3").clear_instance_cache()
    bench.convert(upload=url)
    check_same(bench, url)


def test_a_plain_folder_gets_renamed_files(bench: Bench, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'mirror'}"
    bench.convert(upload=url)
    check_same(bench, url)
    assert not list((tmp_path / "mirror").rglob("*.tmp"))


def test_a_stuck_upload_is_given_up_and_the_conversion_is_kept(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The store accepts connections and says nothing more. Before, the run waited for ever."""
    bench = make_bench(tmp_path / "bench", limits={"upload": 5})
    bench.order("hold-8")
    url = f"{BUCKET}/stuck"
    driver = bench.start("--upload", url, "--log-json", "log.jsonl")
    wait_for_row(bench, 8)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        (bench.faults / "hold-8").unlink()
        _, errors = driver.communicate(timeout=PATIENCE)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert driver.returncode == 74, errors
    assert "was given up after 3 attempts" in errors.splitlines()[-1]
    assert "no sign of life within 5 s" in errors
    assert len(shard_digests(bench.out)) == 8, "the conversion went on"
    assert json.loads((bench.out / "summary.json").read_text())["complete"]
    done = bench.run("--upload", url)
    assert done.returncode == 0 and "0 converted now" in done.stdout, done.stderr
    check_same(bench, url)


def test_other_bytes_of_the_same_size_are_noticed(
    server: subprocess.Popen[bytes], bench: Bench
) -> None:
    url = f"{BUCKET}/flipped"
    bench.convert(upload=url)
    name = "shards/shard-00002.h5"
    damaged = bytearray((bench.out / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    fsspec.filesystem("s3").pipe_file(f"skel/flipped/{name}", bytes(damaged))
    bench.convert(upload=url)
    check_same(bench, url)


def test_an_upload_that_arrives_changed_ends_the_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that keeps the size and not the bytes; plain folders have no tag, so it is read."""
    kind = fsspec.get_filesystem_class("file")
    put = kind.put_file

    def flipping(self: Any, local: str, remote: str, **options: Any) -> None:
        put(self, local, remote, **options)
        if local.endswith("shard-00001.h5"):
            data = bytearray(Path(remote).read_bytes())
            data[-1] ^= 1
            Path(remote).write_bytes(data)

    monkeypatch.setattr(kind, "put_file", flipping)
    with pytest.raises(OutputError, match=r"shard-00001\.h5 arrived with other bytes"):
        bench.convert(upload=f"file://{tmp_path / 'mirror'}")


def test_fetch_is_a_verb_goes_on_and_checks(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror, back = tmp_path / "mirror", tmp_path / "back"
    url = f"file://{mirror}"
    bench.convert(upload=url)
    (mirror / "notes.txt").write_text("not ours")
    assert cli.run(["fetch", url, str(back), "--quiet"]) == 0
    assert "8 of 8 shards" in capsys.readouterr().out
    assert shard_digests(back) == shard_digests(bench.out) and not (back / "notes.txt").exists()
    (back / "shards/shard-00003.h5").unlink()  # as if it had been stopped
    damaged = bytearray((back / "shards/shard-00004.h5").read_bytes())
    damaged[100] ^= 1
    (back / "shards/shard-00004.h5").write_bytes(damaged)
    assert cli.run(["fetch", url, str(back), "--quiet"]) == 0
    assert shard_digests(back) == shard_digests(bench.out)
    (mirror / "shards/shard-00004.h5").write_bytes(damaged)
    assert cli.run(["fetch", url, str(back), "--quiet"]) == 3
    assert "shard 4" in capsys.readouterr().err
    assert cli.run(["fetch", url, str(bench.data), "--quiet"]) == 2
    assert cli.run(["fetch", f"file://{tmp_path / 'absent'}", str(tmp_path / "x")]) == 5
    assert cli.run(["fetch", "nosuch://x", str(tmp_path / "x")]) == 2


def test_no_object_name_leads_out_of_the_folder(bench: Bench, tmp_path: Path) -> None:
    """Promise P12: names of a store are anybody's."""
    bench.convert()
    memory = fsspec.filesystem("memory")
    memory.pipe("/evil/plan.json", bench.out.joinpath("plan.json").read_bytes())
    memory.store["/evil/shards/../../../escaped.json"] = memory.store["/evil/plan.json"]
    with pytest.raises(InputError, match="leads out"):
        fetch("memory://evil", tmp_path / "deep" / "er" / "back")
    assert not list(tmp_path.rglob("escaped.json"))
    (tmp_path / "linked").mkdir()
    memory.rm("/evil", recursive=True)


def test_a_url_opens_as_a_dataset(
    server: subprocess.Popen[bytes], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{BUCKET}/opened"
    bench.convert(upload=url, limit=20)
    with pytest.raises(Incomplete):
        open_dataset(url)
    assert len(open_dataset(url, allow_incomplete=True)) == 24
    bench.convert(upload=url)
    ours = open_dataset(bench.out)
    for again in (False, True):  # fetched, then from the cache
        found = open_dataset(url)
        assert found.attrs["digest"] == ours.attrs["digest"]
        np.testing.assert_array_equal(found["skel_poses"], ours["skel_poses"])
        if not again:
            fsspec.filesystem("s3").rm("skel/opened/shards", recursive=True)
    with pytest.raises(InputError, match=r"no plan\.json"):
        open_dataset(f"{BUCKET}/nothing")
