"""Configuration files: found by name, read strictly, validated; every problem is one line.

A name is looked up in a folder of the working directory first, then in the package data, so that
users add files of their own beside ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError, UsageError
from skel_fit.strict_yaml import parse_yaml

Model = TypeVar("Model", bound=BaseModel)
SUFFIXES = (".yaml", ".yml")
"""How the path of a configuration file ends."""


@dataclass(frozen=True)
class Catalogue:
    """The YAML files of one kind.

    what: what one file is called in messages; here: the user's folder, relative to the working
    directory; package, folder: where ours lie, as package data.
    """

    what: str
    here: Path
    package: str
    folder: str = ""

    def find(self, name_or_path: str | Path) -> Path:
        """The file that a name or a path means.

        Raises:
            UsageError: there is none; the message lists the names that exist.
        """
        given = str(name_or_path)
        if given.endswith(SUFFIXES):
            path = Path(given)
            if not path.is_file():
                raise UsageError(f"{path}: no such {self.what} file")
            return path
        files = self.files()
        if given not in files:
            known = ", ".join(sorted(files)) or "none"
            file = f"{given}: no such file; " if Path(given).suffix or "/" in given else ""
            raise UsageError(f"{file}no {self.what} '{given}'; known: {known}")
        return files[given]

    def files(self) -> dict[str, Path]:
        """Name (path below its folder, without suffix) -> file; the user's own win."""
        found: dict[str, Path] = {}
        for root in (self._ours(), self.here):
            for path in sorted(root.rglob("*.yaml")):
                found[path.relative_to(root).with_suffix("").as_posix()] = path
        return found

    def _ours(self) -> Path:
        # Installed wheels are unpacked folders: a traversable of package data is a path.
        root = Path(str(resources.files(self.package)))
        return root / self.folder if self.folder else root


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        InputError: unreadable, not YAML, a key given twice, not a mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    return content


def validated(model: type[Model], content: Mapping[str, Any], where: str | os.PathLike) -> Model:
    """The typed configuration; all problems in one line that begins with `where`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{os.fspath(where)}: {problems(error, model)}") from None


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found, in one line: unknown keys by name beside those that `model` has there,
    else key, reason and value."""
    parts = []
    for item in error.errors():
        place = ".".join(str(step) for step in item["loc"]) or "file"
        if item["type"] == "extra_forbidden":
            keys = ", ".join(_keys(model, item["loc"][:-1]))
            parts.append(f"unknown key '{place}'" + (f" (there are {keys})" if keys else ""))
        else:
            found = " ".join(repr(item["input"])[:60].split())
            parts.append(f"{place}: {item['msg']}, found {found}")
    return "; ".join(parts)


def _keys(model: type[BaseModel], place: Iterable[str | int]) -> list[str]:
    """The keys that a configuration has at a place of it."""
    here = [model]
    for step in place:
        fields = [m.model_fields[step] for m in here if step in m.model_fields]
        here = [inner for field in fields for inner in _models_in(field.annotation)] or here
    return sorted({name for m in here for name in m.model_fields})


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a type hint names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
