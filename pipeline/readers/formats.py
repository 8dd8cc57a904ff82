"""What a reader says of its format: members, options, traps. docs/inputs.md is made of it.

`tools/inputs_page.py` writes the page, `tests/test_inputs.py` compares it, and the messages about
missing members come from the same lists.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """A member of a label file. name: with dots where it lies in a dictionary; several spellings
    separated by ` | `. shape: as in the page. what: unit, frame and meaning. needed: without it
    the file is refused."""

    name: str
    shape: str
    what: str
    needed: bool = True

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its names, the first is tried first."""
        return tuple(self.name.split(" | "))


@dataclass(frozen=True)
class Format:
    """A label format.

    name: what manifests call it. title: of its section. files: which files. body: whose parameters
    it holds. members: what is read; everything else is carried or left out as `rest` says.
    options: name -> what it does. gives: columns and rows of the dataset that are not members.
    traps: sentences. example: a file name; asks: options that a conversion of it needs.
    """

    name: str
    title: str
    files: str
    body: str
    members: tuple[Member, ...]
    gives: str
    example: str
    options: tuple[tuple[str, str], ...] = ()
    traps: tuple[str, ...] = ()
    asks: str = ""

    @property
    def option_names(self) -> tuple[str, ...]:
        """Options that its reader takes."""
        return tuple(name for name, _ in self.options)

    def missing(self, names: Collection[str]) -> list[str]:
        """Needed top-level members that are not among `names`."""
        lacking: list[str] = []
        for member in self.members:
            tops = [spelling.split(".")[0].split(" + ")[0] for spelling in member.spellings]
            if member.needed and not any(top in names for top in tops) and tops[0] not in lacking:
                lacking.append(tops[0])
        return lacking


SKIP = ("skip", "members to leave out, separated by commas")
PATTERN = ("pattern", "which files of a folder, e.g. `**/*_poses.npz`")
UP = ("up", "which way is up: `z`, `y` or `y-down` (a camera's axes); also `--up`")
FRAME = ("frame", "`camera` (default) or `world`: where the bodies are wanted")
