"""Ray actors: one shard a call, at most one call in flight each, receipts only.

Ray's own retries are off, because they hide how often a shard killed its process; we count. Facts
behind every choice: docs/reference/pipeline.md#ray. `ray` is imported by this module only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.errors import UsageError
from pipeline.executors.base import Body
from pipeline.executors.pool import Answer, Lost, Pool, Worker
from pipeline.manifest import Resources
from pipeline.task import Job

_OBJECT_STORE_BYTES = 128 << 20


@dataclass
class _Actor:
    handle: Any
    call: Any


class RayActors(Pool[_Actor]):
    """Actors, each with `resources`.

    Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UsageError: no node can ever hold one actor.
    """

    where = "Ray workers"
    advice = "see `ray status` for what the cluster lacks; rerun to resume"

    def __init__(self, job: Job, workers: int, resources: Resources) -> None:
        super().__init__(workers)
        self._job = job
        self._resources = resources
        self._started_ray = False
        self._connect()
        try:
            self._check_fits()
            self._class: Any = ray.remote(
                max_restarts=0,
                max_task_retries=0,
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus or 0,
            )(Body)
            self.fill()
        except BaseException:
            self.close()
            raise

    def start(self) -> _Actor:
        handle = self._class.remote(self._job)
        # An actor without room stays pending for ever: its answer says that it has some.
        return _Actor(handle, handle.prepare.remote())

    def send(self, handle: _Actor, shard: int, attempt: int) -> None:
        handle.call = handle.handle.run.remote(shard, attempt)

    def answers(
        self, workers: Sequence[Worker[_Actor]], timeout: float
    ) -> Iterator[tuple[Worker[_Actor], Answer]]:
        calls = {w.handle.call: w for w in workers if w.handle.call is not None}
        if not calls:
            time.sleep(timeout)
            return
        try:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        except SystemError as error:  # how what a signal handler raises leaves Ray's C code
            raise error.__cause__ or error from None
        for call in done:
            calls[call].handle.call = None
            yield calls[call], _answer(call)

    def stop(self, handles: Sequence[_Actor]) -> None:
        for actor in handles:
            with contextlib.suppress(Exception):  # dead, or its node is: both are what we want
                ray.kill(actor.handle, no_restart=True)

    def close(self) -> None:
        super().close()
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        handler = signal.getsignal(signal.SIGTERM)
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else local),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"Ray at {address or 'this machine'}: {reason}") from error
        self._started_ray = True
        # Ray installs its own handler, which would end the driver with another exit code.
        if handler is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, handler)

    def _check_fits(self) -> None:
        gpus = self._resources.num_gpus or 0
        if gpus > 1 and gpus != int(gpus):
            raise UsageError(f"ray.num_gpus is {gpus}: above 1 Ray takes whole GPUs only")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= self._resources.num_cpus and node.get("GPU", 0) >= gpus
            for node in nodes
        ):
            have = "; ".join(
                f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
            )
            raise UsageError(
                f"no Ray node can hold one worker of {self._resources.num_cpus:g} CPUs and "
                f"{gpus:g} GPUs; the nodes have {have or 'nothing'}; change `ray:` in the manifest"
            )


def _answer(call: Any) -> Answer:
    try:
        return ray.get(call)
    except OutOfMemoryError:  # not a RayActorError
        return Lost("killed by Ray's memory monitor (out of memory)")
    except RayActorError as error:
        return Lost(f"the actor or its node is gone ({_last_line(error)})")
    except RayTaskError as error:
        return Lost(f"Ray could not run the task: {error.cause}")
    except RayError as error:
        return Lost(f"Ray: {type(error).__name__}")


def _last_line(error: Exception) -> str:
    """The line that says why: Ray puts tracebacks and colours before it."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else type(error).__name__
