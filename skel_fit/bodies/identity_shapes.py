"""Shapes of people who are given as other bodies: the table of them, and its file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from skel_fit.anatomy import NUM_BETAS
from skel_fit.errors import ModelFileError
from skel_fit.strict_npz import DAMAGE, read_strict, write_strict

GENDERS = ("male", "female")
_LARGEST = 1 << 30
_KINDS = {
    "names": ("<i8", (None,)),
    "genders": ("U", (None,)),
    "betas": ("<f8", (None, NUM_BETAS)),
    "offsets": ("<f8", (None, 3)),
    "errors": ("<f8", (None, 2)),
    "meshes": ("<i8", (None,)),
    "rounds": ("<i8", (None,)),
}


@dataclass(frozen=True)
class IdentityShapes:
    """Shapes of k identities, in the order of their numbers.

    names: (k,) int64, rising; genders: (k,) text, male or female: the SKEL body that is nearer, or
    the one that was asked for; betas: (k, 10) float64 of it; offsets: (k, 3) m, SKEL's translation
    on the rest mesh of the source, 0 for posed meshes; errors: (k, 2) m, mean vertex error of the
    shape on its own meshes for male and female, -1 for a gender that was not tried; meshes: (k,)
    how many meshes each rests on; rounds: (k,) accepted steps.
    """

    names: np.ndarray
    genders: np.ndarray
    betas: np.ndarray
    offsets: np.ndarray
    errors: np.ndarray
    meshes: np.ndarray
    rounds: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.names)
        if any(len(getattr(self, part.name)) != count for part in fields(self)):
            raise ValueError("shapes of identities with columns of different lengths")
        if (np.diff(self.names) <= 0).any():
            raise ValueError("numbers of identities that do not rise")
        if not np.isin(self.genders, GENDERS).all():
            raise ValueError("a gender that is not male or female")

    @property
    def error(self) -> np.ndarray:
        """(k,) m: mean vertex error of the chosen gender."""
        return self.errors[np.arange(len(self.names)), (self.genders == "female").astype(int)]

    def places(self, identity: np.ndarray) -> np.ndarray:
        """(n,) where each identity stands. Raises ValueError for one without a shape."""
        found = np.searchsorted(self.names, identity)
        inside = np.minimum(found, max(len(self.names) - 1, 0))
        if not len(self.names) or not np.array_equal(self.names[inside], identity):
            raise ValueError("rows of an identity that has no shape")
        return inside

    def known(self, identity: np.ndarray) -> np.ndarray:
        """(n,) bool: which identities have a shape."""
        return np.isin(identity, self.names)

    @staticmethod
    def empty() -> IdentityShapes:
        """Of nobody."""
        none = np.zeros(0, np.int64)
        return IdentityShapes(
            none, np.zeros(0, "<U6"), np.zeros((0, NUM_BETAS)), np.zeros((0, 3)),
            np.zeros((0, 2)), none, none,
        )  # fmt: skip

    @staticmethod
    def joined(parts: list[IdentityShapes]) -> IdentityShapes:
        """Parts one after the other, in the order of numbers."""
        columns = {
            part.name: np.concatenate([getattr(own, part.name) for own in parts])
            for part in fields(IdentityShapes)
        }
        order = np.argsort(columns["names"], kind="stable")
        return IdentityShapes(**{name: values[order] for name, values in columns.items()})

    def digest(self) -> str:
        """SHA-256 of the content."""
        digest = hashlib.sha256()
        for part in fields(self):
            values = getattr(self, part.name)
            kind = "<U6" if part.name == "genders" else values.dtype.str
            data = np.ascontiguousarray(values, kind).tobytes()
            digest.update(f"{part.name} {kind} {values.shape}\n".encode() + data)
        return digest.hexdigest()

    def take(self, places: np.ndarray) -> IdentityShapes:
        """Some identities."""
        return IdentityShapes(**{p.name: getattr(self, p.name)[places] for p in fields(self)})

    def write(self, path: Path) -> None:
        """Write as npz, whole or not at all; same shapes, same bytes. Raises OSError."""
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        write_strict(path, content | {"genders": self.genders.astype("<U6")})

    @staticmethod
    def read(path: Path) -> IdentityShapes:
        """Read what `write` wrote, of anybody. Raises ModelFileError."""
        try:
            return IdentityShapes(**read_strict(path, _KINDS, _LARGEST))
        except DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise ModelFileError(
                f"{path}: no shapes of identities of hmr-skel, or damaged ({reason}); remove it "
                "and convert again"
            ) from error
