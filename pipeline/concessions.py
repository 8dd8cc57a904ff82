"""What a shard was conceded so that it could be done: rows left out, smaller blocks. On record.

A concession changes the bytes of its shard, so it is part of the shard's identity: it stands in the
file, and its digest in the receipt. The same plan and the same concessions give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.output_files import read_sealed, remove, sealed_json, write_bytes
from pipeline.provenance import sha256_json


@dataclass(frozen=True)
class Concessions:
    """crashed: (source row, why) of rows that killed or hung their process, or raised; increasing.

    block_size: rows computed together, where fewer than the plan says had to do; else None.
    """

    crashed: tuple[tuple[int, str], ...] = ()
    block_size: int | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(row for row, _ in self.crashed)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes bytes; empty: nothing was conceded."""
        if not self.crashed and self.block_size is None:
            return {}
        return {"block_size": self.block_size, "crashed": list(self.rows)}

    @property
    def digest(self) -> str:
        """SHA-256 of the identity; empty where there is none."""
        return sha256_json(self.identity) if self.identity else ""


NOTHING = Concessions()


def concessions_path(directory: Path, shard: int) -> Path:
    return directory / "concessions" / f"shard-{shard:05d}.json"


def write_concessions(directory: Path, plan_id: str, shard: int, given: Concessions) -> None:
    """Put them on record; none: no record."""
    path = concessions_path(directory, shard)
    if not given.identity:
        remove(path)
        return
    record = {
        "plan_id": plan_id,
        "shard": shard,
        "block_size": given.block_size,
        "crashed": [{"row": row, "reason": reason} for row, reason in given.crashed],
    }
    write_bytes(path, sealed_json(record))


def read_concessions(directory: Path, plan_id: str, shard: int) -> Concessions:
    """Those of a shard.

    Raises:
        InputError: the record is damaged, or another shard's.
    """
    path = concessions_path(directory, shard)
    if not path.exists():
        return NOTHING
    content = read_sealed(path)
    try:
        owner = (content["plan_id"], content["shard"])
        crashed = tuple((int(item["row"]), str(item["reason"])) for item in content["crashed"])
        size = content["block_size"]
        given = Concessions(crashed, None if size is None else int(size))
        possible = list(given.rows) == sorted(set(given.rows)) and (size is None or size >= 1)
    except (AttributeError, KeyError, TypeError, ValueError):
        possible = False
    if not possible:
        raise InputError(f"{path}: not a record of concessions")
    if owner != (plan_id, shard):
        raise InputError(f"{path}: belongs to another shard")
    return given
