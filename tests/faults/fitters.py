"""Fitters without body models: a cheap deterministic one, and one that misbehaves on command.

The latter reads its orders from the folder in HMR_SKEL_FAULTS, because it runs in spawned workers
and Ray actors.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.columns import REGION_COLUMNS
from pipeline.fitters import register_fitter
from pipeline.plan import ModelRecord
from skel_fit.recipe import FitRequest
from skel_fit.signs import alive

FAULTS_VARIABLE = "HMR_SKEL_FAULTS"
TRIVIAL, FAULTY = "trivial", "faulty"
"""Their registered names; import this module before a plan with them is read."""


class TrivialFit:
    """Pose columns are simple elementwise functions of the SMPL pose: exact on every machine."""

    needs_models = False

    def models(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> tuple[ModelRecord, ...]:
        return ()

    def calibration(self, directory: Path | None, pairs: Iterable[tuple[str, str]]) -> None:
        return None

    def open(
        self, directory: Path | None, device: str, request: FitRequest, calibration: None
    ) -> TrivialFitter:
        return TrivialFitter()


class TrivialFitter:
    def fit(
        self,
        genders: tuple[str, str],
        poses: np.ndarray,
        betas: np.ndarray,
        transl: np.ndarray,
        progress: object = None,
    ) -> dict[str, np.ndarray]:
        n = len(poses)
        errors = self.residuals(genders, (poses, betas, transl), (poses, betas, transl))
        return {
            "skel_poses": (poses[:, :46] * 0.5).astype(np.float32),
            "skel_betas": betas.astype(np.float32),
            "skel_trans": transl.astype(np.float32),
            **{name: values.astype(np.float32) for name, values in errors.items()},
            "vertex_error_unlimited": np.full(n, np.nan, np.float32),
            "vertex_error_alone": np.full(n, np.nan, np.float32),
            "active_limits": poses[:, :46] > 1.0,
            "skel_poses_sd": np.full((n, 46), np.nan, np.float32),
            "skel_poses_observed": np.ones((n, 46), np.int8),
            "iterations": np.full(n, 7, np.int32),
            "start": np.zeros(n, np.int8),
            "status": np.array(["converged"] * n),
        }

    def residuals(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> dict[str, np.ndarray]:
        mean = 0.005 + 0.001 * np.abs(smpl[1][:, 0])
        regions = dict.fromkeys(REGION_COLUMNS.values(), mean)
        return {"vertex_error_mean": mean, "vertex_error_max": 3 * mean, **regions}


class FaultyFit(TrivialFit):
    """Trivial, but obeys orders in the folder HMR_SKEL_FAULTS.

    An order is a file `KIND-ROW`: when a source row is among the rows to fit, do KIND: `kill`
    (SIGKILL to itself), `raise` (ValueError), `memory` (MemoryError), `slow` (sleep for the seconds
    in the file), `signs` (the same four times, with a sign of life each), `hold` (wait until the
    file is gone), `hang` (never come back), `native` (the same, and keep Python's lock), `stop`
    (SIGSTOP to itself), `greedy` (take as many MB a row of the call as the file says, of 1 GB that
    the process may have). `KIND-all` holds for every call. Test sources hold the row number in
    `betas[:, 1] * 1e6`. Every call appends `pid first-row rows` to the file `calls`.
    """

    def open(
        self, directory: Path | None, device: str, request: FitRequest, calibration: None
    ) -> TrivialFitter:
        return FaultyFitter(Path(os.environ[FAULTS_VARIABLE]))


class FaultyFitter(TrivialFitter):
    def __init__(self, orders: Path) -> None:
        self._orders = orders

    def fit(
        self,
        genders: tuple[str, str],
        poses: np.ndarray,
        betas: np.ndarray,
        transl: np.ndarray,
        progress: object = None,
    ) -> dict[str, np.ndarray]:
        rows = np.round(betas[:, 1] * 1e6).astype(int).tolist()
        with (self._orders / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {rows[0]} {len(rows)}\n")
        for order in sorted(self._orders.glob("*-*")):
            kind, _, key = order.name.partition("-")
            if key != "all" and int(key) not in rows:
                continue
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "raise":
                raise ValueError(f"told to fail at row {key}")
            elif kind == "memory":
                raise MemoryError("told to run out of memory")
            elif kind == "hold":
                end = time.monotonic() + 600  # of whoever should remove it nothing is left
                while order.exists() and time.monotonic() < end:
                    time.sleep(0.01)
            elif kind == "hang":
                while True:
                    time.sleep(1)
            elif kind == "native":
                ctypes.PyDLL(None).pause()
            elif kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif kind == "greedy":
                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
                np.empty((len(rows), int(order.read_text()) << 20), np.uint8)
            elif kind == "slow":
                time.sleep(float(order.read_text()))
            elif kind == "signs":
                for _ in range(4):
                    time.sleep(float(order.read_text()))
                    alive()
        return super().fit(genders, poses, betas, transl)


register_fitter(TRIVIAL, TrivialFit)
register_fitter(FAULTY, FaultyFit)
