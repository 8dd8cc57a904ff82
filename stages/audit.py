"""`hmr-skel audit`: what are existing SKEL labels worth, judged by their own SMPL columns?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.errors import UsageError
from stages import options
from stages.append import appended_table
from stages.terminal import aligned, print_json, say
from stages.wording import counts, share

if TYPE_CHECKING:
    from pipeline.appended import Append
    from stages.inspection.audit import Audit


def audit(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="A file with SKEL labels, or a converted dataset."),
    ],
    models: options.Models = None,
    data_root: options.DataRoot = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Judge with the licence-free pair.")
    ] = False,
    smpl_gender: Annotated[
        str | None,
        typer.Option(help="neutral, male, female or column.", show_default="told from FILE"),
    ] = None,
    skel_gender: Annotated[
        str | None, typer.Option(help="male, female or column.", show_default="told from FILE")
    ] = None,
    limits: Annotated[
        Literal["default", "published", "none"], typer.Option(help="Table of joint limits.")
    ] = "default",
    sample: Annotated[
        int | None, typer.Option(min=1, help="Judge about so many rows, evenly spread.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures, and NAME-bodies.html.")
    ] = None,
    append: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="DIR: add the verdicts to it as columns."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Judge existing SKEL labels against their own SMPL columns."""
    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from stages.inspection.audit_summary import audit_page, findings, summarise

    if html is not None:
        beside = html.with_name(f"{html.stem}-bodies.html")
        Inputs(file, models).check(html, beside)
    told = {"models": models, "limits_name": limits, "sample": sample}
    of_a_file = {"standin": stand_in, "smpl_gender": smpl_gender, "skel_gender": skel_gender}
    found, made = _judged(file, told, of_a_file, data_root, append)
    summary = summarise(found)
    if html is not None:
        page, bodies = audit_page(found, summary, beside.name)
        if bodies is not None:
            write_bytes(beside, bodies.encode("utf-8"))
        write_bytes(html, page.encode("utf-8"))
    if as_json:
        print_json(summary)
    else:
        say(_table(summary, findings(summary)))
    if made is not None:
        say(appended_table(made, file), file=sys.stderr if as_json else sys.stdout)


def _judged(
    file: Path,
    told: Mapping[str, Any],
    of_a_file: Mapping[str, Any],
    data_root: Path | None,
    append: str | None,
) -> tuple[Audit, Append | None]:
    """The audit of a label file or of a converted dataset, there with what was appended.

    of_a_file: options that a dataset has answered.
    """
    from pipeline.appended import check_name
    from pipeline.dataset import open_dataset
    from stages.inspection.audit import append_audit, audit_dataset
    from stages.inspection.audit import audit as judge

    if not (file / "plan.json").is_file():
        if append is not None:
            raise UsageError(f"--append {append}: {file} is no converted dataset")
        return judge(file, **told, **of_a_file), None
    given = [name for name, value in of_a_file.items() if value]
    if given:
        raise UsageError(f"{file}: the plan says which bodies it has; leave out --{given[0]}"
                         .replace("standin", "stand-in").replace("_", "-"))  # fmt: skip
    if append is not None:
        check_name(file, append)
    dataset = open_dataset(file)
    found = audit_dataset(dataset, data_root=data_root, **told)
    return found, None if append is None else append_audit(dataset, found, append)


def _table(summary: Mapping[str, Any], findings: Sequence[str]) -> str:
    def line(values: Mapping[str, float] | None, unit: str) -> str:
        if values is None:
            return "-"
        return "  ".join(f"{name} {value:.2f}" for name, value in values.items()) + f" {unit}"

    within = summary["within_mm"]
    rows = [
        ("file", f"{summary['file']} ({summary['format']})"),
        ("rows", f"{summary['rows']:,}, judged {summary['judged']:,}"),
        ("not judged", counts(summary["rejected"])),
        ("bodies", "STAND-IN, not SMPL and SKEL" if summary["standin"] else "licensed"),
        ("root error", line(summary["root_error_deg"], "deg")),
        ("translation", line(summary["translation_error_mm"], "mm")),
        ("residual", line(summary["residual_mm"], "mm")),
        ("centred", line(summary["residual_centred_mm"], "mm")),
        ("worst vertex", line(summary["residual_max_mm"], "mm")),
        ("rows within", "  ".join(f"{mm} mm {share(v)}" for mm, v in within.items())),
        ("limits", f"{summary['limit_violations']['rows']:,} rows outside ({summary['limits']})"),
        ("repeated", f"labels {summary['repeated_labels']:,}, fits {summary['repeated_fits']:,}"),
        ("betas", f"{summary['same_betas']:,} rows with those of SMPL"),
        ("worst rows", ", ".join(f"{w['row']} ({w['residual_mm']:.0f} mm)"
                                 for w in summary["worst_rows"]) or "-"),
    ]  # fmt: skip
    rows += [("finding", text) for text in findings]
    return aligned(rows)
