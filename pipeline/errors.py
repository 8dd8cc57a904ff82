"""Errors a user can act on. Each carries the exit code that the console script ends with.

Messages are one line: which file, which row or member, what was expected, what to do.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error below; `exit_code` is what `hmr-skel` returns."""

    exit_code = 1


class UsageError(PipelineError):
    """The command line or the manifest asks for something impossible."""

    exit_code = 2


class Incomplete(PipelineError):
    """Shards failed, are missing or are damaged."""

    exit_code = 3


class PlanMismatch(PipelineError):
    """The output directory belongs to another plan. `fields` names what differs."""

    exit_code = 4

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.fields)


class InputError(PipelineError):
    """A label file, an image name or a model file is missing, broken or not understood."""

    exit_code = 5


class OutputError(PipelineError):
    """Writing failed: disk full, permission, input/output error."""

    exit_code = 74


class Locked(PipelineError):
    """Another run holds the output directory."""

    exit_code = 75
