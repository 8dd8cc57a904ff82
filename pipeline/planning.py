"""From a manifest to a plan: find, check and hash every input. Writes nothing but a demo source."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bodies import BodyFit, Models, check_surfaces, factory_for
from pipeline.calibration import why_unknown
from pipeline.errors import InputError
from pipeline.fitters import DEFAULT_FITTER, registered_fitter
from pipeline.manifest import Manifest, find_source, models_directory
from pipeline.output_files import make_directory
from pipeline.plan import BodyRecord, Plan
from pipeline.provenance import code_version, file_record, software
from pipeline.readers.base import SMPL, AnnotationSource
from pipeline.readers.chosen import first_accepted
from pipeline.sequences import check_sequences
from pipeline.shards import stored_fields
from pipeline.task import SourceLocation, as_fitted, check_unchanged, locate
from pipeline.up_axis import OPTION
from skel_fit.recipe import check_sequence

_SMPL_GENDERS = ("neutral", "male", "female")
_SKEL_GENDERS = ("male", "female")
_TRIED = 3
"""Rows that a map is tried on."""


@dataclass(frozen=True)
class Planned:
    """A plan and where this machine has its inputs."""

    plan: Plan
    source: SourceLocation
    models: Path | None
    unsure: Mapping[str, str]
    """Pair `smpl:skel` -> why its angles will have no standard deviation."""


@contextmanager
def planned(
    manifest: Manifest,
    data_root: Path,
    models: Path | None,
    *,
    fitter: str = DEFAULT_FITTER,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Planned]:
    """Plan a subset.

    Args:
        manifest: what to convert.
        data_root: folder with label files.
        models: `--models`, or None for the default places.
        fitter: the registered name of a `FitterFactory`.
        dry_run: make an absent generated source in a temporary folder instead of the data root;
            it is gone when the context ends.
        say: told what is about to take long.

    Raises:
        InputError: an input is missing or broken; one line that says what to do.
    """
    if manifest.source.generator is None:
        find_source(manifest, data_root)  # before anybody is asked for licensed models
    needed = registered_fitter(fitter).needs_models
    directory = models_directory(manifest.models, models) if needed else None
    with _root_with_source(manifest, data_root, models, dry_run, say) as root:
        yield _plan(manifest, root, directory, fitter, say)


def _plan(
    manifest: Manifest,
    root: Path,
    models: Path | None,
    fitter: str,
    say: Callable[[str], None],
) -> Planned:
    from pipeline.readers import open_source

    factory = registered_fitter(fitter)  # its own: it holds models, which end with the planning
    options: dict[str, Any] = dict(manifest.source.options)
    labels = open_source(
        find_source(manifest, root),
        format=manifest.source.format,
        data_root=root,
        smpl_gender=manifest.genders.smpl,
        skel_gender=manifest.genders.skel,
        image_root=manifest.image_root,
        **options,
    )
    source = as_fitted(labels, fitter)
    factory = factory_for(source, fitter)
    fit = fit_of(manifest, source)
    if manifest.fit.sequence is not None:
        check_sequences(source)
    location = locate(source, root)
    size = sum(size for _, size, _ in location.stats) / 1e6
    say(f"checking and hashing {source.path.name} ({size:,.0f} MB)")
    source.check()
    if source.up is not None:  # also where it is the default: the plan says it
        options[OPTION] = source.up
    options |= labels.recorded
    files = tuple(file_record(Path(path)) for path in source.files)
    fields = {name: (np.dtype(spec.dtype), spec.shape) for name, spec in source.fields.items()}
    if factory.needs_models:
        say("loading and hashing the body models")
    genders = manifest.genders
    pairs = gender_pairs(source, genders.smpl, genders.skel, manifest.shard_rows)
    body = None
    if isinstance(factory, BodyFit):
        body = checked_body(factory, source, models, pairs)
    plan = Plan(
        name=manifest.name,
        rows=source.rows,
        shard_rows=manifest.shard_rows,
        compression=manifest.compression,
        source_format=source.format,
        source_options=options,
        source_files=files,
        smpl_gender=manifest.genders.smpl,
        skel_gender=manifest.genders.skel,
        image_root=manifest.image_root,
        fields=tuple(stored_fields(fields)),
        models_kind=manifest.models,
        models=factory.models(models, pairs),
        fitter=fitter,
        fit=fit,
        code=code_version("shard"),
        software=software(),
        calibration=factory.calibration(models, pairs),
        body=body,
    )
    check_unchanged(location)
    unsure = why_unknown(plan, (":".join(pair) for pair in pairs)) if factory.needs_models else {}
    return Planned(plan, location, models, unsure)


def gender_pairs(source: AnnotationSource, smpl: str, skel: str, step: int) -> set[tuple[str, str]]:
    """The (smpl, skel) pairs of models that the accepted rows need.

    smpl, skel: genders, or `column`: read from the rows, `step` at a time, until every pair that
    the source names was met. Only then is it known that, say, no neutral model is wanted.
    """
    if source.body != SMPL:
        return source.gender_pairs() or set()
    if smpl != "column" and skel != "column":
        return {(smpl, skel)}
    pairs: set[tuple[str, str]] = set()
    named = source.gender_pairs()
    for start in range(0, source.rows, step):
        if named is not None and pairs >= named:
            break
        rows = source.read(start, min(start + step, source.rows))
        good = rows.reasons == ""
        pairs |= set(
            zip(rows.smpl_gender[good].tolist(), rows.skel_gender[good].tolist(), strict=True)
        )
    for smpl, skel in sorted(pairs):
        if smpl not in _SMPL_GENDERS or skel not in _SKEL_GENDERS:
            raise InputError(f"{source.path}: no body models for gender pair {smpl}, {skel}")
    return pairs


def fit_of(manifest: Manifest, source: AnnotationSource) -> dict[str, Any]:
    """The fit of a plan: what the manifest asks for, with recipe `surface` for bare meshes, which
    state no root that a recipe could keep.

    Raises InputError: a fit that these labels cannot have.
    """
    asked = manifest.fit
    if source.body == SMPL:
        if asked.sequence is not None:
            try:
                check_sequence(asked)
            except ValueError as error:
                raise InputError(f"{source.path}: fit: {error}") from None
        return asked.to_json()
    if asked.betas != "auto":
        raise InputError(
            f"{source.path}: each person in labels of {source.body} has one fitted shape; leave "
            "out 'betas'"
        )
    if source.vertices is not None and not asked.resolved_recipe().root_is_free:
        if "recipe" in asked.model_fields_set:
            raise InputError(
                f"{source.path}: recipe {asked.recipe!r} keeps the root of the labels, but bare "
                "meshes state none; use recipe surface, or none"
            )
        asked = asked.model_copy(update={"recipe": "surface"})
    return asked.to_json()


def checked_body(
    factory: BodyFit, source: AnnotationSource, models: Path | None, pairs: set[tuple[str, str]]
) -> BodyRecord:
    """The body of the labels with its map, tried on a few rows.

    Raises InputError: no map, or one that does not fit these labels.
    """
    gender = min(skel if skel != "unknown" else "male" for _, skel in pairs) if pairs else "male"
    record = factory.record(models, gender)
    assert models is not None
    held = Models(models, factory.body, factory.vertices)
    check_surfaces(source, held, gender, first_accepted(source, _TRIED))
    return record


@contextmanager
def _root_with_source(
    manifest: Manifest,
    root: Path,
    models: Path | None,
    dry_run: bool,
    say: Callable[[str], None],
) -> Iterator[Path]:
    """The data root, with the generated source in it: as it should be, or an InputError."""
    if manifest.source.generator is None:
        yield root
        return
    if (root / manifest.source.path).exists():
        find_generated(manifest, root)
        yield root
        return
    directory = models_directory(manifest.models, models)
    say(f"generating {manifest.source.path}")
    if dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            _generate(manifest, Path(temporary), directory)
            yield Path(temporary)
        return
    _generate(manifest, root, directory)
    yield root


def find_generated(manifest: Manifest, root: Path) -> Path:
    """The label file of a manifest with a generator.

    Raises:
        InputError: absent, or generated with other rows or another seed than the manifest's.
    """
    from pipeline.demo import check_demo

    path = find_source(manifest, root)
    check_demo(path, **manifest.source.generated)
    return path


def _generate(manifest: Manifest, root: Path, models: Path) -> None:
    from pipeline.demo import write_demo

    path = root / manifest.source.path
    make_directory(path.parent)
    write_demo(path, models, **manifest.source.generated)
