"""Where shard tasks run. Every executor runs the same `ShardWorker`; only receipts come back."""

from __future__ import annotations

from pipeline.executors.base import Died, Executor, Finished, Outcome, Raised, Survived

__all__ = ["Died", "Executor", "Finished", "Outcome", "Raised", "Survived"]
