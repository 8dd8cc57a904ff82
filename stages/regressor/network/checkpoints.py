"""Checkpoint files: tensors and plain types only, read with `weights_only=True`, atomic writes.

A checkpoint of ours is a mapping with the keys of `FORMAT`; foreign files (ViTPose, HumanFOV) give
their tensors through `load_tensors`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.atomic import published
from pipeline.errors import InputError

FORMAT = "hmr-skel-regressor"
VERSION = 1
_CONTAINERS = ("state_dict", "model", "model_state_dict", "network")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors, numbers, text, lists, dicts) so that the file is whole or absent.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    with published(path) as stream:
        try:
            torch.save({"format": FORMAT, "version": VERSION, **content}, stream)
        except RuntimeError as error:
            # torch reports a failed write (disk full) as a RuntimeError of its zip writer.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Raises:
        InputError: no such file, damaged, not tensors and plain types, another format or version.
    """
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of hmr-skel train; expected the file last.pt or best.pt "
            "of a training folder"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: checkpoint version {content.get('version')!r}, expected {VERSION}; "
            "train again or use the hmr-skel that wrote it"
        )
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint: bare, under `state_dict` or `model`, or of ours (`network`).

    Raises:
        InputError: no such file, damaged, refused (holds more than tensors), no tensors.
    """
    content: Any = _load(path)
    for name in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of tensors, found {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors; expected a state dict")
    return tensors


@dataclass(frozen=True)
class KeyDifferences:
    """How the entries of a file differ from those of a network. False where they do not."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        """Each kind counted, a few named."""
        return (
            f"{len(self.missing)} missing{_some(self.missing)}, {len(self.unexpected)} "
            f"unexpected{_some(self.unexpected)}, {len(self.shapes)} of another shape"
            f"{_some(self.shapes)}"
        )


def compared(network: nn.Module, tensors: Mapping[str, Tensor]) -> KeyDifferences:
    """What a strict load of `tensors` into `network` would stumble over."""
    wanted = network.state_dict()
    return KeyDifferences(
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - wanted.keys())),
        shapes=tuple(
            f"{name}: expected {tuple(wanted[name].shape)}, found {tuple(tensors[name].shape)}"
            for name in sorted(wanted.keys() & tensors.keys())
            if wanted[name].shape != tensors[name].shape
        ),
    )


def _some(names: Sequence[str], most: int = 4) -> str:
    """A few of the names in brackets, for an error line."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})"


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:140]
        raise InputError(
            f"{path}: damaged, or holds more than tensors and plain types (which is refused): "
            f"{reason}"
        ) from error
