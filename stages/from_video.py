"""`hmr-skel video`: moving SKEL bodies, with error bars, of the people in a video."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import Incomplete
from stages import options
from stages.from_photo import BodyModels, Focal, Gender, Height, Prior, chosen, tell_standin
from stages.terminal import Progress, say
from stages.wording import duration

if TYPE_CHECKING:
    from stages.photo.setting import Setting
    from stages.photo.videos import Person, Watched

KINDS = ("npz", "csv", "film", "view", "opensim")


@dataclass(frozen=True)
class VideoRequest:
    """Which video, and what to write where."""

    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video.")]
    out: Annotated[Path, typer.Option(help="Folder for the results; a rerun goes on in it.")] = (
        Path("video")
    )
    focal: Focal = None
    height: Height = None
    gender: Gender = "male"
    prior: Prior = "wide"
    models: BodyModels = None
    save: Annotated[
        str, typer.Option(help="What to write: npz, csv, film, view, opensim; with commas.")
    ] = "npz,csv,film,view,opensim"
    film_side: Annotated[
        int, typer.Option(min=64, max=4096, help="Longer side of the film, at most, pixels.")
    ] = 1280
    codec: Annotated[
        Literal["vp8", "vp9"],
        typer.Option(help="Of the film; vp9 is smaller and takes far longer."),
    ] = "vp8"
    quiet: options.Quiet = False


@options.command_line(VideoRequest)
def video(request: VideoRequest) -> None:
    """Smooth SKEL motion with standard deviations, an overlay film, OpenSim files of a video."""
    from stages.photo import setting

    setting.check_numbers(request.focal, request.height)
    save = frozenset(chosen(request.save, KINDS))

    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory, write_bytes, write_json
    from stages.photo import videos
    from stages.photo.fitting import Lens
    from stages.photo.people import Finder

    out, began = request.out, time.monotonic()
    written = [out / name for name in (videos.RECORD, videos.FILM, videos.FRAMES)]
    Inputs(request.file, request.models).check(*written, *sorted(out.glob("person-*")))
    reader = videos.check_video(request.file)
    finder = Finder()
    made = setting.make_setting(
        request.models, request.gender, request.prior, request.height, None, "cpu"
    )
    make_directory(out)
    lens = Lens.of(reader.info.size, request.focal)
    notes: list[str] = []
    parts = videos.Parts(out, videos.video_key(request.file))
    with Progress("follow", reader.info.frames, "frames", quiet=request.quiet) as progress:
        watched = videos.watch(reader, finder, parts, progress.update)
    reader.close()
    rate = videos.rate_of(watched, reader, notes)
    total = sum(len(each["frame"]) for each in watched.people.values())
    with Progress("fit", total, "bodies", quiet=request.quiet) as progress:
        people = videos.fit_people(watched, made.fitter, lens, rate, progress.update)
    counts: dict[str, dict[str, int]] = {}
    for person in people:
        name = f"person-{person.number}"
        counts[name] = videos.write_person(
            out, person, request.file.name, lens, watched.times, rate, save
        )
    write_bytes(out / videos.FRAMES, videos.frames_csv(people, watched.times, rate))
    taken = [person for person in people if not person.reason]
    if "film" in save and taken:
        with Progress("film", len(watched.times), "frames", quiet=request.quiet) as progress:
            videos.write_film(
                videos.check_video(request.file), out / videos.FILM, taken, made.fitter, lens,
                rate, request.film_side, request.codec, progress.update,
            )  # fmt: skip
    for person in taken:
        _hand_on(request, made, person, watched, rate, save, notes)
    seconds = time.monotonic() - began
    write_json(out / videos.RECORD, {
        **made.notes, "video": request.file.name, "frames": len(watched.times), "rate": rate,
        "focal_px": lens.focal, "focal_source": lens.source, "ended_early": watched.ended_early,
        "notes": notes, "people": [_told(person, counts) for person in people],
    })  # fmt: skip
    for person in people:
        say(_line(person, counts[f"person-{person.number}"]))
    for note in notes:
        say(note, file=sys.stderr)
    tell_standin(made.standin)
    pace = len(watched.times) / max(seconds, 1e-9)
    if not taken:
        say(f"{request.file}: no person found in {len(watched.times)} frames")
    say(f"{len(taken)} people in {len(watched.times)} frames, {duration(seconds)}, "
        f"{pace:.1f} frames/s -> {out}")  # fmt: skip
    if watched.ended_early:
        raise Incomplete(f"{request.file}: {watched.ended_early}")


def _hand_on(
    request: VideoRequest, made: Setting, person: Person, watched: Watched, rate: float,
    save: frozenset[str], notes: list[str],
) -> None:  # fmt: skip
    """The page and the OpenSim files of somebody; the page needs the npz."""
    import numpy as np

    from stages.photo import handing_on, setting

    path = request.out / f"person-{person.number}.npz"
    if not path.is_file():
        return
    if "view" in save:
        folder = setting.body_folder(request.models)
        note = handing_on.write_view(path.with_suffix(".html"), path, folder, request.gender, rate)
        if note:
            notes.append(f"person {person.number}: {note}")
    if "opensim" in save:
        with np.load(path, allow_pickle=False) as file:
            handing_on.write_opensim(
                request.out / f"person-{person.number}.opensim", f"person-{person.number}",
                made.fitter.skel, file["poses"], person.betas, file["trans"], file["seconds"],
            )  # fmt: skip


def _told(person: Person, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {
        "person": person.number,
        "reason": person.reason,
        "stature_m": round(person.stature, 4),
        "betas": person.betas.round(5).tolist(),
        "frames": counts[f"person-{person.number}"],
        "exchanged_frames": sum(int(motion.swapped.sum()) for _, motion in person.segments),
    }


def _line(person: Person, counts: dict[str, int]) -> str:
    if person.reason:
        return f"person {person.number}: refused, {person.reason}"
    swapped = sum(int(motion.swapped.sum()) for _, motion in person.segments)
    also = f"; left and right put right in {swapped} frames" if swapped else ""
    each = ", ".join(f"{count} frames {status}" for status, count in sorted(counts.items()))
    return f"person {person.number}: {each}{also}"
