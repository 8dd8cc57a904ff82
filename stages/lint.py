"""`hmr-skel lint`: known defects of a label file, as text or JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError
from stages import options
from stages.terminal import print_json, say

if TYPE_CHECKING:
    from stages.inspection.label_defects import LintReport


def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A label file.")],
    as_json: options.AsJson = False,
    models: options.Models = None,
) -> None:
    """Find known defects in a label file."""
    from stages.inspection.label_defects import ERROR, lint_file

    report = lint_file(file, models)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        say(_text(report))
    if not report.ok:
        errors = [finding.code for finding in report.findings if finding.level == ERROR]
        raise InputError(f"{file}: label defects: {', '.join(errors)}")


def _text(report: LintReport) -> str:
    lines = [
        f"{report.file}: {report.format}, {report.rows} rows, {report.rejected} rejected, "
        + (
            f"keypoints of {report.projected} compared with the body"
            if report.projected
            else "keypoints not compared with the body (no body models: --models; or columns are "
            "missing)"
        )
    ]
    for finding in report.findings:
        where = ""
        if finding.rows:
            more = ", ..." if finding.rows > len(finding.first) else ""
            where = f" [rows {', '.join(map(str, finding.first))}{more}]"
        count = f"{finding.rows}" if finding.rows else "file"
        lines.append(f"{finding.level:<8} {count:>9}  {finding.code}: {finding.message}{where}")
    if not report.findings:
        lines.append("nothing found")
    return "\n".join(lines)
