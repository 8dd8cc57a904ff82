"""Photographs in, SKEL bodies out: the work of `hmr-skel photo`, a picture at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.output_files import write_bytes, write_json
from skel_fit.keypoint_fit import KeypointFit, Start
from stages.drawing.meshes import glb_bytes
from stages.drawing.overlays import Posed, pose_bodies
from stages.drawing.render import png_bytes
from stages.photo.fitting import (
    CLEAR_COST,
    MOST_COST,
    MOST_COST_AGAIN,
    Fitter,
    Lens,
    Marks,
    refusals,
    shown_bones,
)
from stages.photo.people import Finder, Sighting, Verdict
from stages.photo.pictures import Painter, draw_landmarks
from stages.photo.results import (
    FITTED,
    NO_PERSON,
    UNREADABLE,
    Row,
    Subject,
    csv_of,
    json_of,
    npz_of,
)
from stages.regressor.data.boxes import read_file
from stages.regressor.data.images import decode
from stages.regressor.evaluation.prediction import body_parts, stems, views_picture

KINDS = ("npz", "csv", "json", "overlay", "views", "glb")
NUMBERS = ("people.npz", "people.csv", "people.json")
PICTURES = ("*.overlay.png", "*.views.png", "*.glb")
"""What is written into the folder: names, and patterns of names."""
_VIEWS = ("front", "side")


class Network(Protocol):
    """Bodies of people by a trained network: (n, 46) poses and (n, 10) betas."""

    def __call__(
        self, data: bytes, name: str, marks: Marks, lens: Lens
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Wish:
    """What to make. out: folder; save: of `KINDS`; focal: px, None: assumed; turned: upright, as
    the EXIF orientation says; notes: what the JSON file says of how it was made."""

    out: Path
    save: frozenset[str]
    focal: float | None = None
    turned: bool = True
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """rows: people, refused ones too; pictures: status and line of each; sources: where the focal
    length of each row is from."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[Path, tuple[str, str]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)


class Photographs:
    """Fits everybody in photographs."""

    def __init__(self, fitter: Fitter, finder: Finder, network: Network | None = None) -> None:
        self._fitter, self._finder, self._network = fitter, finder, network
        self._painter = Painter(fitter.skel)

    def run(
        self, images: Sequence[Path], wish: Wish, progress: Callable[[int, str], None]
    ) -> Outcome:
        """Every picture in turn; pictures, meshes and numbers are written as wished."""
        outcome = Outcome()
        named = stems(images)
        for image in images:
            try:
                data = read_file(image)
                picture = decode(data, str(image), turned=wish.turned)
            except InputError as error:
                outcome.pictures[image] = UNREADABLE, str(error)
                progress(1, "")
                continue
            people = self.people(picture, wish.focal, data, str(image))
            status, line = told(people, picture.shape[:2])
            outcome.pictures[image] = status, f"{image}: {line}"
            for number, person in enumerate(people):
                outcome.rows.append(person.row(str(image), number))
                outcome.sources.append(person.lens.source)
            self._write_pictures(picture, people, wish, named[image])
            progress(1, line)
        write_numbers(outcome, wish)
        return outcome

    def people(
        self, picture: np.ndarray, focal: float | None, data: bytes = b"", name: str = ""
    ) -> list[Subject]:
        """Everybody in a picture (H, W, 3) uint8 RGB, from left to right, refused ones too."""
        size = (picture.shape[0], picture.shape[1])
        lens = Lens.of(size, focal)

        def judge(seen: Sequence[Sighting]) -> list[Verdict]:
            marks = Marks.of([person.landmarks for person in seen], size)
            fit = self._fitter.fit(marks, lens, uncertainty=False)
            reasons = refusals(fit, marks, limits(seen))
            return [
                Verdict(reason, float(cost), not reason and bool(cost <= CLEAR_COST))
                for reason, cost in zip(reasons, fit.cost, strict=True)
            ]

        seen = self._finder.find(picture, judge)
        if not seen:
            return []
        marks = Marks.of([person.landmarks for person in seen], size)
        fit = self._fitter.fit(marks, lens)
        taken = np.flatnonzero([not person.refusal for person in seen])
        if self._network is not None and taken.size:
            fit = self._from_network(fit, marks, lens, taken, data, name)
        reasons = refusals(fit, marks, limits(seen))
        stature = self._fitter.stature(fit.betas)
        return [
            Subject(
                person.score, person.landmarks.flag, person.refusal or reasons[k],
                marks.rows(slice(k, k + 1)), row_of(fit, k), lens, float(stature[k]),
            )
            for k, person in enumerate(seen)
        ]  # fmt: skip

    def _from_network(
        self, fit: KeypointFit, marks: Marks, lens: Lens, taken: np.ndarray, data: bytes, name: str
    ) -> KeypointFit:
        """Searched once more from what the network says; of two answers the one that fits better
        to landmarks and prior."""
        assert self._network is not None
        poses, betas = self._network(data, name, marks.rows(taken), lens)
        start = Start(poses, betas, fit.trans[taken])
        other = self._fitter.fit(marks.rows(taken), lens, start)
        better = other.energy < fit.energy[taken]
        rows = [row_of(fit, k) for k in range(len(marks))]
        for k in np.flatnonzero(better):
            rows[int(taken[k])] = row_of(other, int(k))
        return joined(rows)

    def _write_pictures(
        self, picture: np.ndarray, people: Sequence[Subject], wish: Wish, stem: str
    ) -> None:
        fitted = [person for person in people if not person.reason]
        bodies = self.bodies(fitted)
        path = wish.out / stem
        if "overlay" in wish.save and bodies:
            write_bytes(Path(f"{path}.overlay.png"), png_bytes(self.drawn(picture, fitted, bodies)))
        if "views" in wish.save and bodies:
            views = [views_picture(body, _VIEWS) for body in bodies]
            write_bytes(Path(f"{path}.views.png"), png_bytes(np.concatenate(views)))
        if "glb" in wish.save:
            for number, body in zip(numbers_of(people), bodies, strict=True):
                write_bytes(Path(f"{path}.{number}.glb"), glb_bytes(body_parts(body)))

    def bodies(self, people: Sequence[Subject]) -> list[Posed]:
        """Their meshes."""
        if not people:
            return []
        kind = self._fitter.skel.template.dtype
        values = [
            torch.as_tensor(np.concatenate([getattr(p.fit, name) for p in people]), dtype=kind)
            for name in ("poses", "betas", "trans")
        ]
        return pose_bodies(self._fitter.skel, *values)

    def drawn(
        self, picture: np.ndarray, people: Sequence[Subject], bodies: Sequence[Posed]
    ) -> np.ndarray:
        """The picture with all bodies, the farthest first, and their landmarks."""
        depths = [float(p.fit.trans[0, 2]) for p in people if p.fit is not None]
        for k in np.argsort(depths, kind="stable")[::-1]:
            person = people[k]
            shown = shown_bones(person.marks)[0]
            picture = self._painter.body(picture, bodies[k], person.lens.cam_int, shown)
        for person in people:
            counted = person.marks.weights[0] > 0
            picture = draw_landmarks(picture, person.marks.pixels[0], counted)
        return picture


def limits(people: Sequence[Sighting]) -> list[float]:
    """What the body of each may cost."""
    return [MOST_COST_AGAIN if person.again else MOST_COST for person in people]


def told(people: Sequence[Subject], size: tuple[int, ...]) -> tuple[str, str]:
    """Status and line of a picture."""
    fitted = [person for person in people if not person.reason]
    refused = [person for person in people if person.reason]
    also = ""
    if refused:
        likeliest = max(refused, key=lambda person: person.score * person.flag)
        also = f"; {len(refused)} refused, the likeliest: {likeliest.reason}"
    if not fitted:
        small = " (the picture is too small)" if min(size[:2]) < 16 else ""
        return NO_PERSON, f"no person found{small}{also}"
    cut = [person for person in fitted if not person.marks.inside.all()]
    parts = ", partly outside the picture" if cut else ""
    if cut and len(fitted) > 1:
        parts = f", {len(cut)} of them partly outside the picture"
    who = "1 person" if len(fitted) == 1 else f"{len(fitted)} people"
    return FITTED, f"{who}{parts}{also}"


def numbers_of(people: Sequence[Subject]) -> list[int]:
    """Numbers of those with a body."""
    return [number for number, person in enumerate(people) if not person.reason]


def row_of(fit: KeypointFit, k: int) -> KeypointFit:
    """One row of a fit."""
    return replace(fit, **{
        name: value[k : k + 1] for name, value in vars(fit).items() if name != "prior"
    })  # fmt: skip


def joined(fits: Sequence[KeypointFit]) -> KeypointFit:
    """Rows of several fits in one."""
    names = [name for name in vars(fits[0]) if name not in ("prior", "status")]
    columns: dict[str, Any] = {n: np.concatenate([getattr(f, n) for f in fits]) for n in names}
    return replace(fits[0], status=[s for f in fits for s in f.status], **columns)


def write_numbers(outcome: Outcome, wish: Wish) -> None:
    """`people.npz`, `people.csv`, `people.json`, as wished."""
    rows = outcome.rows
    if "npz" in wish.save and rows:
        write_bytes(wish.out / NUMBERS[0], npz_of(rows))
    if "csv" in wish.save:
        write_bytes(wish.out / NUMBERS[1], csv_of(rows))
    if "json" in wish.save:
        pairs = zip(rows, outcome.sources, strict=True)
        write_json(wish.out / NUMBERS[2], {
            **wish.notes,
            "pictures": {
                str(path): {"status": status, "line": line}
                for path, (status, line) in outcome.pictures.items()
            },
            "people": list(_people(pairs)),
        })  # fmt: skip


def _people(pairs: Any) -> Iterator[dict[str, Any]]:
    for row, source in pairs:
        yield json_of(row, source)
