"""Which of our modules a module imports, read from the source: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOMS = ("skel_fit", "pipeline", "stages", "manifests")


def source_file(root: Path, module: str) -> Path | None:
    """File of one of our modules below `root`, the folder that holds the rooms; None: not ours."""
    if module.split(".")[0] not in ROOMS:
        return None
    place = root.joinpath(*module.split("."))
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def modules_below(root: Path, module: str) -> list[str]:
    """A module and, when it is a package, every module in it; sorted.

    Raises:
        ValueError: no such module.
    """
    path = source_file(root, module)
    if path is None:
        raise ValueError(f"no module {module} below {root}")
    files = path.parent.rglob("*.py") if path.name == "__init__.py" else [path]
    parts = (file.relative_to(root).with_suffix("").parts for file in files)
    return sorted(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)


def closure(
    root: Path, entries: Iterable[str], follow: Callable[[str], bool] = lambda module: True
) -> dict[str, Path]:
    """Module -> file of everything that the entries import, at whatever depth and indentation.

    A module brings the packages around it, as importing does. Imports for type checkers alone do
    not count; a name that a package hands out lazily does, when it is imported from there.

    follow: False leaves a module out, and what only it imports.
    """
    read = cache(_statements)  # for this call alone: a file may be edited before the next
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module in found or not follow(module):
            continue
        path = source_file(root, module)
        if path is None:
            continue
        found[module] = path
        waiting += _imported(root, path, read)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return found


_Statement = ast.Import | ast.ImportFrom
_Read = Callable[[Path], "list[tuple[_Statement, bool]]"]
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
"""Where statements hold statements. No expression holds one: to look there takes longer than all
the rest, and every conversion waits for this search."""


def _statements(path: Path) -> list[tuple[_Statement, bool]]:
    """Import statements of a file, and whether only type checkers read them."""
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), types=False))


def _imported(root: Path, path: Path, read: _Read) -> Iterator[str]:
    for statement, types in read(path):
        if types:
            continue
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        else:
            package = _package(root, path, statement)
            yield package
            yield from (_home(root, package, alias.name, read) for alias in statement.names)


def _imports(tree: ast.AST, types: bool) -> Iterator[tuple[_Statement, bool]]:
    for node in (node for block in _BLOCKS for node in getattr(tree, block, ())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, types
        else:
            yield from _imports(node, types or (isinstance(node, ast.If) and _for_types(node.test)))


def _for_types(test: ast.expr) -> bool:
    names = (getattr(part, "id", getattr(part, "attr", None)) for part in ast.walk(test))
    return "TYPE_CHECKING" in names


def _package(root: Path, path: Path, statement: ast.ImportFrom) -> str:
    """Where `from ... import` looks, absolute."""
    around = path.relative_to(root).parent.parts
    above = around[: len(around) + 1 - statement.level] if statement.level else ()
    return ".".join((*above, *([statement.module] if statement.module else ())))


def _home(root: Path, package: str, name: str, read: _Read) -> str:
    """The module that `from package import name` loads."""
    if source_file(root, f"{package}.{name}"):
        return f"{package}.{name}"
    path = source_file(root, package)
    if path is None or path.name != "__init__.py":
        return package
    for statement, _ in read(path):
        if isinstance(statement, ast.ImportFrom) and name in {a.name for a in statement.names}:
            return _package(root, path, statement)
    return package
