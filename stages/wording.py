"""Numbers as words, the same on the terminal and on pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def millimetres(metres: float | None, digits: int = 1) -> str:
    """12.3 from 0.0123; a dash for nothing."""
    return decimal(None if metres is None else metres * 1000, digits)


def decimal(value: float | None, digits: int = 1) -> str:
    """12.3; a dash for nothing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: int) -> str:
    """1,234,567."""
    return f"{value:,}"


def counts(named: Mapping[str, int]) -> str:
    """`limited 3, rejected 2`, or `none`."""
    return ", ".join(f"{name} {count(number)}" for name, number in named.items()) or "none"


def share(value: float | None) -> str:
    """12.3 % from 0.123; small ones are not rounded to nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0 %"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return f"{value * 100:.1f} %"


def size(value: int) -> str:
    """1.2 GB."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def rate(per_second: float | None, unit: str = "rows") -> str:
    """`12.3 rows/s`; `0.022 rows/s`, where one digit would say nothing."""
    if per_second is None:
        return "-"
    slow = 0.0 < per_second < 1.0
    return f"{per_second:.2g} {unit}/s" if slow else f"{per_second:,.1f} {unit}/s"


def duration(seconds: float | None) -> str:
    """1:02:03 from seconds."""
    if seconds is None:
        return "-"
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def conceded(concessions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each row that was left out, and for each shard with smaller blocks."""
    for item in concessions:
        where = f"shard {item['shard']}"
        for row in item["crashed"]:
            yield f"row {row['row']} ({where}) left out: {row['reason']}"
        if item["block_size"] is not None:
            yield f"{where} fitted in blocks of {item['block_size']}, for want of memory"
