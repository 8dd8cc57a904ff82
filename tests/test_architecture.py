"""docs/architecture.md names every module once, with what it is the home of, and nothing else."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("skel_fit", "pipeline", "stages", "tools")
DOCUMENT = Path("docs/architecture.md")

FOLDER = re.compile(r"^#+ `([\w/]+)/`")
ROW = re.compile(r"^\| `([\w/]+\.py)` \| *(.*?) *\|$")
MENTION = re.compile(r"`([\w/]+\.py)`")


def modules(root: Path) -> set[str]:
    """Python files of the rooms; an `__init__.py` counts if it holds more than a docstring."""
    found = {path for room in ROOMS for path in (root / room).rglob("*.py")}
    return {
        path.relative_to(root).as_posix()
        for path in found
        if path.name != "__init__.py" or _has_code(path)
    }


def _has_code(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(
        not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)) for part in body
    )


def listed(document: str) -> list[tuple[str, str]]:
    """(module, home) of every row of the tables, the folder from the heading above."""
    folder, rows = "", []
    for line in document.splitlines():
        if heading := FOLDER.match(line):
            folder = heading[1]
        elif row := ROW.match(line):
            rows.append((f"{folder}/{row[1]}", row[2]))
    return rows


def problems(root: Path) -> list[str]:
    """What the document lacks, doubles or invents."""
    document = (root / DOCUMENT).read_text(encoding="utf-8")
    rows, there = listed(document), modules(root)
    counted = Counter(name for name, _ in rows)
    return [
        *(f"{name}: has no row in {DOCUMENT}" for name in sorted(there - counted.keys())),
        *(f"{name}: has a row, but is no module" for name in sorted(counted.keys() - there)),
        *(f"{name}: has {count} rows" for name, count in sorted(counted.items()) if count > 1),
        *(f"{name}: the row says nothing" for name, home in rows if not home),
        *(
            f"`{name}` means {len(found)} modules"
            for name, found in sorted(_mentions(document, there).items())
            if len(found) != 1 and not (root / name).is_file()
        ),
    ]


def _mentions(document: str, modules: set[str]) -> dict[str, list[str]]:
    """Modules named in the text outside the tables -> what the name can mean."""
    prose = "\n".join(line for line in document.splitlines() if not line.startswith(("|", "#")))
    return {
        name: [module for module in modules if f"/{module}".endswith(f"/{name}")]
        for name in MENTION.findall(prose)
    }


def test_architecture_lists_exactly_the_modules() -> None:
    assert problems(ROOT) == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two modules and their document."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "skel_fit/__init__.py").write_text('"""A package without code."""\n')
    (tmp_path / "skel_fit/a.py").write_text("A = 1\n")
    (tmp_path / "stages/b.py").write_text("B = 1\n")
    (tmp_path / DOCUMENT).write_text(
        "`stages/b.py` calls `a.py`.\n"
        "## `skel_fit/`\n| `a.py` | A |\n## `stages/`\n| `b.py` | B |\n"
    )
    assert problems(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("skel_fit/new.py", "", "skel_fit/new.py: has no row"),
        ("skel_fit/__init__.py", "A = 1", "skel_fit/__init__.py: has no row"),
        (DOCUMENT, "| `gone.py` | G |", "stages/gone.py: has a row, but is no module"),
        (DOCUMENT, "| `b.py` | B |", "stages/b.py: has 2 rows"),
        (DOCUMENT, "then `gone.py`", "`gone.py` means 0 modules"),
        ("stages/a.py", "", "`a.py` means 2 modules"),
    ],
)
def test_what_differs_is_named(repository: Path, file: str, text: str, told: str) -> None:
    path = repository / file
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}{text}\n")
    assert any(line.startswith(told) for line in problems(repository))


def test_a_row_without_a_home_is_named(repository: Path) -> None:
    path = repository / DOCUMENT
    path.write_text(path.read_text().replace("| B |", "| |"))
    assert problems(repository) == ["stages/b.py: the row says nothing"]
