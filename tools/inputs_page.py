"""docs/inputs.md from what the readers say of themselves: `python -m tools.inputs_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.readers.detect import DESCRIBED
from pipeline.readers.formats import Format
from pipeline.row_checks import REASONS

PAGE = Path("docs/inputs.md")
MARK = "<!-- From here on: python -m tools.inputs_page -->\n"
"""What is above it in the page is written by hand."""


def page(head: str) -> str:
    """The text of docs/inputs.md; head: what stands in it above the mark."""
    index = "\n".join(
        f"| [{one.title}](#{_anchor(one)}) | `{one.name}` | {one.files} | {one.body} |"
        for one in DESCRIBED
    )
    reasons = "\n".join(f"| `{name}` | {what} |" for name, what in REASONS.items())
    parts = [
        head + MARK,
        f"| format | name | files | body |\n| --- | --- | --- | --- |\n{index}\n",
        *("\n".join(_section(one)) for one in DESCRIBED),
        "## Why a row is rejected\n\n"
        "Its status is `rejected:` and the reason; the first that applies.\n\n"
        f"| reason | what it means |\n| --- | --- |\n{reasons}\n",
    ]
    return "\n".join(parts)


def _anchor(one: Format) -> str:
    return one.name


def _section(one: Format) -> Iterator[str]:
    yield f'<a id="{_anchor(one)}"></a>\n## {one.title}\n'
    yield f"{one.files}. {one.body}.\n"
    yield "| member | shape | what | |\n| --- | --- | --- | --- |"
    for member in one.members:
        names = ", ".join(f"`{name}`" for name in member.spellings)
        yield f"| {names} | {member.shape} | {member.what} | {'needed' if member.needed else ''} |"
    yield f"\n{one.gives}.\n"
    for name, what in one.options:
        yield f"- option `{name}`: {what}"
    for trap in one.traps:
        yield f"- {trap}"
    stem = one.example.rsplit(".", 1)[0]
    yield f"""
```sh
hmr-skel convert {one.example}{one.asks} --models /path/to/models
hmr-skel verify outputs/{stem}
hmr-skel view outputs/{stem} --out {stem}.html
```
"""


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8").split(MARK)[0]), encoding="utf-8")
