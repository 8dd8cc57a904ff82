"""`hmr-skel audit`: what are existing SKEL labels worth, judged by their own SMPL columns?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stages import options
from stages.terminal import aligned, print_json, say
from stages.wording import counts, share


def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file with SKEL labels.")],
    models: options.Models = None,
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
    as_json: options.AsJson = False,
) -> None:
    """Judge existing SKEL labels against their own SMPL columns."""
    from pipeline.guard import Inputs
    from pipeline.output_files import write_bytes
    from stages.inspection.audit import audit as judge
    from stages.inspection.audit_summary import audit_page, findings, summarise

    if html is not None:
        beside = html.with_name(f"{html.stem}-bodies.html")
        Inputs(file, models).check(html, beside)
    found = judge(
        file,
        models=models,
        standin=stand_in,
        smpl_gender=smpl_gender,
        skel_gender=skel_gender,
        limits_name=limits,
        sample=sample,
    )
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
