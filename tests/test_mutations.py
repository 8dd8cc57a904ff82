"""The list of mutations is current: `make mutants` finds every text and every test."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache

import pytest

from tests.faults.mutants import REPOSITORY
from tests.faults.mutations import MUTATIONS

PROMISES = {f"P{n}" for n in range(1, 26)} | {f"T{n}" for n in range(1, 10)}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_text_is_there_once_and_every_test_exists(mutation) -> None:
    for edit in mutation.edits:
        text = (REPOSITORY / edit.file).read_text()
        assert text.count(edit.old) == 1, edit
        ast.parse(text.replace(edit.old, edit.new))
        assert edit.new != edit.old
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert re.sub(r"\[.*", "", name) in functions(file), test


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text())
    return {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}


def test_every_promise_is_broken_at_least_once() -> None:
    broken = Counter(mutation.promise for mutation in MUTATIONS)
    assert set(broken) == PROMISES
    names = Counter(mutation.name for mutation in MUTATIONS)
    assert max(names.values()) == 1
