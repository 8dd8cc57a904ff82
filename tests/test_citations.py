"""Every citation and link resolves inside the repository (docs/reference/README.md#citation-rule).

A citation is `NAME.md` or `NAME.md#anchor` anywhere in code, configuration or documents; a link is
the target of a markdown link. Facts of docs/reference are cited by explicit anchors, other
documents by the headings' slugs.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "skel_fit", "pipeline", "stages", "tools", "manifests", "benchmarks", "tests", "docs",
    ".github",
)  # fmt: skip
SUFFIXES = (".py", ".yaml", ".yml", ".toml", ".md", ".j2", ".html", ".txt", ".cfg")
REFERENCE = Path("docs/reference")
PLACEHOLDERS = ("DIR", "FILE", "NAME")

CITATION = re.compile(r"(?<![\w/.*-])(?P<path>[\w./-]*[\w-]\.md)\b(?!\.\w)(?:#(?P<anchor>[\w-]+))?")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
ANCHOR = re.compile(r'<a id="([\w-]+)"></a>')
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"(?:\.\./)?\bshared/(?:reference|golden)\b|(?<!docs/)\breference/[\w-]+")
#: Numbers of sections, items and tables that say nothing of the document.
SECTION = re.compile(
    r"(?i:\b(?:sections?|appendix|table|items?) (?:\d|[A-Z]\b))|§|\.md\W{1,3}\d"
    r"|\([1-9]\.\d{1,2}(?: step \d+)?[):;,]|(?:^|\") ?[1-9]\.\d{1,2}: "
)
#: After these words the numbers are a paper's own.
PAPER = re.compile(r"(?i:\b(?:paper|HSMR|SKEL-CF|arXiv|al\.|Winter)\b.*)")
#: `#anchor` alone: of the document that the same docstring or comment named last.
SHORT = re.compile(rf"{CITATION.pattern}|(?<![\w/&#])#(?P<short>[a-z][\w-]*)")


def files(root: Path) -> list[Path]:
    """Everything that can cite: the rooms and the documents at the top."""
    found = [path for path in root.iterdir() if path.is_file()]
    for room in ROOMS:
        found += (path for path in (root / room).rglob("*") if path.is_file())
    return sorted(
        path for path in found if path.suffix in SUFFIXES or path.name in ("Makefile", "NOTICE")
    )


@cache
def anchors(document: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Explicit anchors of a document, and the slugs of its headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    slugs: set[str] = set()
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        slugs.add(slug)
    return frozenset(ANCHOR.findall(text)), frozenset(slugs)


def missing_anchor(root: Path, document: Path, anchor: str | None) -> bool:
    if not anchor:
        return False
    explicit, slugs = anchors(document)
    in_reference = document.is_relative_to((root / REFERENCE).resolve())
    return anchor not in (explicit if in_reference else explicit | slugs)


def resolved(root: Path, citing: Path, path: str) -> Path | None:
    """The file that a citation means: below the root; a bare name also in the documents."""
    places = [root] if "/" in path else [root / REFERENCE, root / "docs", citing.parent, root]
    if citing.is_relative_to(root / "docs"):
        places.append(citing.parent)
    for place in places:
        found = (place / path).resolve()
        if found.is_file() and found.is_relative_to(root.resolve()):
            return found
    return None


def problems(root: Path) -> list[str]:
    """One line for each citation or link that leads nowhere, or outside."""
    found = []
    for path in files(root):
        if path.resolve() == Path(__file__).resolve():
            continue  # what it forbids stands in it
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(root)
        if path.suffix == ".md":
            found += (f"{where}: {line}" for line in _links(root, path, text))
            text = LINK.sub("]", text)
        for match in CITATION.finditer(text):
            name, anchor = match["path"], match["anchor"]
            if set(PLACEHOLDERS) & {*Path(name).parts, Path(name).stem}:
                continue
            document = resolved(root, path, name)
            if document is None:
                found.append(f"{where}: {match[0]}: no such document in the repository")
            elif missing_anchor(root, document, anchor):
                found.append(f"{where}: {match[0]}: no such anchor")
        found += (f"{where}: {m[0]}: outside the repository" for m in OUTSIDE.finditer(text))
        for words in _prose(path, text):
            found += (f"{where}: {line}" for line in _short_forms(root, path, words))
            found += (f"{where}: {line}" for line in _bare_numbers(words))
    return found


def _links(root: Path, path: Path, text: str) -> Iterator[str]:
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        document = (path.parent / place).resolve() if place else path.resolve()
        if not document.exists() or not document.is_relative_to(root.resolve()):
            yield f"link {target}: no such file in the repository"
        elif document.suffix == ".md" and missing_anchor(root, document, anchor):
            yield f"link {target}: no such anchor"


def _short_forms(root: Path, path: Path, words: str) -> Iterator[str]:
    """`#anchor` in a docstring or comment, after a citation of its document."""
    if path.suffix == ".md":
        return
    document = None
    for match in SHORT.finditer(words):
        if match["path"]:
            document = resolved(root, path, match["path"])
        elif document and missing_anchor(root, document, match["short"]):
            yield f"{match[0]} of {document.name}: no such anchor"


def _bare_numbers(words: str) -> Iterator[str]:
    """Section numbers without a document in comments, docstrings and prose."""
    for line in words.splitlines():
        for match in SECTION.finditer(PAPER.sub("", line)):
            yield f"{match[0]!r} in {line.strip()[:80]!r}: a bare number, cite an anchor"


def _prose(path: Path, text: str) -> Iterator[str]:
    if path.suffix == ".py":
        yield from _docstrings(ast.parse(text))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.string
    elif path.suffix in (".yaml", ".yml"):
        yield "\n".join(line.partition("#")[2] for line in text.splitlines())
    elif path.suffix == ".md":
        yield text


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text


def test_every_citation_and_link_resolves() -> None:
    assert problems(ROOT) == []


def test_anchors_are_unique() -> None:
    for document in (ROOT / REFERENCE).glob("*.md"):
        counted = Counter(ANCHOR.findall(document.read_text(encoding="utf-8")))
        assert [name for name, count in counted.items() if count > 1] == [], document


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository whose citations all resolve."""
    (tmp_path / REFERENCE).mkdir(parents=True)
    (tmp_path / "skel_fit").mkdir()
    (tmp_path / REFERENCE / "model.md").write_text('<a id="root"></a>\n## The root\n')
    (tmp_path / "docs/solver.md").write_text("[x](reference/model.md#root)\n## A b\n")
    (tmp_path / "skel_fit/a.py").write_text(
        '"""docs/reference/model.md#root, model.md, docs/solver.md#a-b, #a-b."""\nX = (4.4)\n'
    )
    assert problems(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("skel_fit/a.py", '"""docs/reference/model.md#gone."""', "model.md#gone: no such anchor"),
        ("skel_fit/a.py", '"""docs/reference/model.md#the-root."""', "no such anchor"),
        ("skel_fit/a.py", '"""docs/reference/other.md."""', "other.md: no such document"),
        ("skel_fit/a.py", '"""reference/model.md#root."""', "no such document"),
        ("skel_fit/a.py", '"""Source: reference/model."""', "outside the repository"),
        ("skel_fit/a.py", '"""../shared/reference/model.md."""', "no such document"),
        ("skel_fit/a.py", '"""As published (3.4)."""', "a bare number"),
        ("skel_fit/a.py", "X = 1  # leaves (3.4 step 4): pelvis", "a bare number"),
        ("skel_fit/a.py", '"""Source: section 7."""', "a bare number"),
        ("skel_fit/a.yaml", "a: 1  # item 25", "a bare number"),
        (
            "docs/a.md",
            "[x](reference/model.md#gone)",
            "link reference/model.md#gone: no such anchor",
        ),
        ("docs/a.md", "[x](nothing.md)", "link nothing.md: no such file"),
        ("docs/a.md", "[x](../../elsewhere.md)", "no such file"),
        ("docs/a.md", "[x](#here)", "link #here: no such anchor"),
        ("docs/a.md", "see `reference/gone.md`", "no such document"),
    ],
)
def test_what_leads_nowhere_is_named(repository: Path, file: str, text: str, told: str) -> None:
    (repository / file).write_text(text + "\n")
    (line,) = {entry for entry in problems(repository) if told in entry}
    assert line.startswith(file)


def test_a_paper_may_be_cited_by_its_own_sections(repository: Path) -> None:
    (repository / "skel_fit/a.py").write_text('"""HSMR, arXiv 2503.21751, Table 1 (joints)."""\n')
    assert problems(repository) == []
