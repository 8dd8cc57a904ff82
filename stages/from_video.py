"""`hmr-skel video`: moving SKEL bodies, with error bars, of the people in a video."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import Incomplete, UsageError
from stages import options
from stages.from_photo import BodyModels, Focal, Gender, Height, Prior, chosen, tell_standin
from stages.terminal import Progress, say
from stages.wording import duration

if TYPE_CHECKING:
    from stages.photo.setting import Setting
    from stages.photo.several import Fitted, Recording, Together
    from stages.photo.videos import Person

KINDS = ("npz", "csv", "film", "view", "opensim")


@dataclass(frozen=True)
class VideoRequest:
    """Which video, and what to write where."""

    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="A video; several of the same moments with --calibration."
        ),
    ]
    out: Annotated[Path, typer.Option(help="Folder for the results; a rerun goes on in it.")] = (
        Path("video")
    )
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Cameras of several videos: Qualisys .qca.txt or OpenCV .toml.",
            show_default="one camera, unknown",
        ),
    ] = None
    refine_cameras: Annotated[
        bool, typer.Option("--refine-cameras", help="Adjust the cameras by the people's joints.")
    ] = False
    up: Annotated[
        Literal["z", "y", "y-down"] | None,
        typer.Option(help="Which way is up in the calibration.", show_default="as people stand"),
    ] = None
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
    if request.calibration is None:
        if len(request.files) > 1:
            raise UsageError(f"{len(request.files)} videos need --calibration FILE")
        if request.refine_cameras or request.up:
            raise UsageError("--refine-cameras and --up need --calibration FILE")
        _one_camera(request, save)
        return
    if len(request.files) < 2:
        raise UsageError("--calibration: expected two videos or more; one has --focal")
    if request.focal is not None:
        raise UsageError("--focal: the calibration says it")
    _several_cameras(request, request.calibration, save)


def _one_camera(request: VideoRequest, save: frozenset[str]) -> None:
    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory, write_bytes, write_json
    from stages.photo import setting, videos
    from stages.photo.fitting import Lens
    from stages.photo.people import Finder

    (source,) = request.files
    out, began = request.out, time.monotonic()
    written = [out / name for name in (videos.RECORD, videos.FILM, videos.FRAMES)]
    Inputs(source, request.models).check(*written, *sorted(out.glob("person-*")))
    reader = videos.check_video(source)
    finder = Finder()
    made = setting.make_setting(
        request.models, request.gender, request.prior, request.height, None, "cpu"
    )
    make_directory(out)
    lens = Lens.of(reader.info.size, request.focal)
    notes: list[str] = []
    parts = videos.Parts(out, videos.video_key(source))
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
            out, person, source.name, lens, watched.times, rate, save
        )
    write_bytes(out / videos.FRAMES, videos.frames_csv(people, watched.times, rate))
    taken = [person for person in people if not person.reason]
    if "film" in save and taken:
        with Progress("film", len(watched.times), "frames", quiet=request.quiet) as progress:
            videos.write_film(
                videos.check_video(source), out / videos.FILM, taken, made.fitter, lens,
                rate, request.film_side, request.codec, progress.update,
            )  # fmt: skip
    for person in taken:
        _hand_on(request, made, person, rate, save, notes, "camera")
    seconds = time.monotonic() - began
    write_json(out / videos.RECORD, {
        **made.notes, "video": source.name, "frames": len(watched.times), "rate": rate,
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
        say(f"{source}: no person found in {len(watched.times)} frames")
    say(f"{len(taken)} people in {len(watched.times)} frames, {duration(seconds)}, "
        f"{pace:.1f} frames/s -> {out}")  # fmt: skip
    if watched.ended_early:
        raise Incomplete(f"{source}: {watched.ended_early}")


def _hand_on(
    request: VideoRequest, made: Setting, person: Person | Together, rate: float,
    save: frozenset[str], notes: list[str], axes: str,
) -> None:  # fmt: skip
    """The page and the OpenSim files of somebody; the page needs the npz."""
    import numpy as np

    from stages.photo import handing_on, setting

    path = request.out / f"person-{person.number}.npz"
    if not path.is_file():
        return
    if "view" in save:
        folder = setting.body_folder(request.models)
        note = handing_on.write_view(
            path.with_suffix(".html"), path, folder, request.gender, rate, axes
        )
        if note:
            notes.append(f"person {person.number}: {note}")
    if "opensim" in save:
        with np.load(path, allow_pickle=False) as file:
            handing_on.write_opensim(
                request.out / f"person-{person.number}.opensim", f"person-{person.number}",
                made.fitter.skel, file["poses"], person.betas, file["trans"], file["seconds"],
                axes,
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


# ---- several cameras -----------------------------------------------------------------------------


def _several_cameras(request: VideoRequest, calibration: Path, save: frozenset[str]) -> None:
    from pipeline.guard import Inputs
    from pipeline.output_files import make_directory, write_bytes, write_json
    from stages.photo import setting, several, videos
    from stages.photo.people import Finder

    out, began = request.out, time.monotonic()
    films = several.film_names(len(request.files))
    written = [out / name for name in (videos.RECORD, videos.FRAMES, *films)]
    Inputs(*request.files, calibration, request.models).check(
        *written, *sorted(out.glob("person-*"))
    )
    recording = several.Recording.of(request.files, calibration)
    finder = Finder()
    made = setting.make_setting(
        request.models, request.gender, request.prior, request.height, None, "cpu"
    )
    make_directory(out)
    count = len(recording.files)
    with Progress("follow", recording.frames * count, "frames", quiet=request.quiet) as progress:
        watched, times, rate, notes = several.watch(recording, finder, out, progress.update)
    tracks = several.people_of(recording, watched, len(times), calibration, notes)
    with Progress("fit", len(times) * len(tracks), "bodies", quiet=request.quiet) as progress:
        fitted = several.fit_people(
            tracks, recording, watched, len(times), rate, made.fitter, request.up,
            request.refine_cameras, progress.update,
        )  # fmt: skip
    names = " ".join(file.name for file in recording.files)
    counts = {
        person.number: several.write_person(out, person, names, made.fitter, times, rate, save)
        for person in fitted.people
    }
    everybody = [person.person() for person in fitted.people]
    write_bytes(out / videos.FRAMES, videos.frames_csv(everybody, times, rate))
    taken = [person for person in fitted.people if not person.reason]
    if "film" in save and taken:
        with Progress("film", len(times) * count, "frames", quiet=request.quiet) as progress:
            for view, name in enumerate(films):
                several.write_film(
                    recording, fitted, view, out / name, made.fitter, rate, request.film_side,
                    request.codec, progress.update,
                )  # fmt: skip
    for person in taken:
        _hand_on(request, made, person, rate, save, notes, "y-up")
    write_json(out / videos.RECORD, {
        **made.notes, "units": several.UNITS, "calibration": calibration.name,
        "frames": len(times), "rate": rate, "notes": notes,
        **several.told_of_cameras(recording, fitted),
        "people": [several.told_of(person, counts[person.number]) for person in fitted.people],
    })  # fmt: skip
    _say_several(recording, fitted, counts, notes)
    tell_standin(made.standin)
    seconds = time.monotonic() - began
    pace = count * len(times) / max(seconds, 1e-9)
    if not fitted.people:
        say(f"no person found in {len(times)} frames of {count} cameras")
    say(f"{len(taken)} people in {len(times)} frames of {count} cameras, {duration(seconds)}, "
        f"{pace:.1f} pictures/s -> {out}")  # fmt: skip
    if early := [each.ended_early for each in watched if each.ended_early]:
        raise Incomplete(f"{early[0]} (see {out / videos.RECORD})")


def _say_several(
    recording: Recording, fitted: Fitted, counts: dict[int, dict[str, int]], notes: list[str]
) -> None:
    import numpy as np

    names = ", ".join(
        f"{file.name}: {camera.name}"
        for file, camera in zip(recording.files, recording.cameras, strict=True)
    )
    say(f"cameras {recording.matched}: {names}")
    if fitted.adjustment is not None:
        before, after = (
            float(np.nanmedian(met.distances))
            for met in (fitted.adjustment.before, fitted.adjustment.after)
        )
        moved = 1000.0 * float(fitted.adjustment.moved.max())
        turned = float(np.degrees(fitted.adjustment.turned.max()))
        say(f"cameras adjusted by the people's joints: {before:.1f} -> {after:.1f} px (median); "
            f"moved by up to {moved:.0f} mm, turned by up to {turned:.1f} degrees")  # fmt: skip
    if np.isfinite(fitted.off[0]):
        stated = "as stated" if fitted.axes.stated else "as people stand"
        say(f"joints meet their pixels within {fitted.off[0]:.1f} px (median; 90 %: "
            f"{fitted.off[1]:.1f}); {fitted.axes.up} is up in the calibration, {stated}; bodies "
            "are written with y up")  # fmt: skip
    for person in fitted.people:
        seen = " ".join(str(view) for view in person.views)
        if person.reason:
            say(f"person {person.number} (cameras {seen}): refused, {person.reason}")
            continue
        each = ", ".join(
            f"{count} frames {status}" for status, count in sorted(counts[person.number].items())
        )
        swapped = sum(int(shared.sides.sum()) for _, shared in person.segments)
        also = f"; left and right put right in {swapped} views of frames" if swapped else ""
        say(f"person {person.number} (cameras {seen}): {each}{also}")
    for note in notes:
        say(note, file=sys.stderr)
