"""From the name of a picture in a label file to its path below the folder of pictures.

Label files were written beside folders laid out otherwise; each data set has its rule
(docs/reference/checkpoints.md#picture-names).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.errors import UsageError

_INSTA = "insta-train/"
_DIGITS = 4


def _insta(name: str) -> str:
    parts = name.split("/")
    if len(parts) > 2:
        groups = parts[2].split("_")
        if len(groups) > 2:
            parts[2] = "_".join((groups[0], groups[1][:2], groups[2][:2], groups[-1]))
    stem, dot, suffix = parts[-1].rpartition(".")
    if stem.isdecimal():
        parts[-1] = f"{int(stem):0{_DIGITS}d}{dot}{suffix}"
    return "/".join(parts).replace(_INSTA, "", 1)


_RULES: Mapping[str, Callable[[str], str]] = {
    "plain": lambda name: name,
    "basename": lambda name: name.rpartition("/")[2],
    "insta": _insta,
}
#: Rules of published label files, by the start of the data set's name; the first that fits.
_KNOWN = (("coco", "basename"), ("mpii", "basename"), ("aic", "strip:aic-train/"),
          ("insta", "insta"), ("h36m", "suffix:.jpg"), ("mpi", "suffix:.jpg"))  # fmt: skip
WORDS = ("plain", "basename", "insta", "strip:PREFIX", "suffix:.jpg", "auto")


def known_rule(dataset: str) -> str:
    """The rule of a data set by its name; `plain` where none is known."""
    return next((rule for start, rule in _KNOWN if dataset.lower().startswith(start)), "plain")


def resolved(rule: str, names: np.ndarray) -> np.ndarray:
    """Names (N,) under a rule: `plain`, `basename`, `insta`, `strip:PREFIX`, `suffix:.jpg`.

    Raises:
        UsageError: no such rule.
    """
    if not len(names):
        return names
    change = _RULES.get(rule) or _with_text(*rule.partition(":"))
    if change is None:
        raise UsageError(f"picture names '{rule}': expected {', '.join(WORDS)}")
    made = {name: change(name) for name in set(names.tolist())}
    return np.array([made[name] for name in names.tolist()], dtype=np.str_)


def _with_text(kind: str, colon: str, text: str) -> Callable[[str], str] | None:
    """The rules `strip:TEXT` and `suffix:TEXT`."""

    def strip(name: str) -> str:
        return name.replace(text, "", 1)

    def suffix(name: str) -> str:
        return name + text

    return {"strip": strip, "suffix": suffix}.get(kind) if colon else None
