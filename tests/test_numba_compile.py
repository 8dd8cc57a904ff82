"""Machine code on disk: never that of other sources. A missing numba is said with its price."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skel_fit import numba_compile
from skel_fit.recipe import FitConfig
from skel_fit.solver import engine
from skel_fit.solver.kernels_torch import TorchKernels

INNER = "from numba import njit\n\n\n@njit\ndef inner(x):\n    return x + {}\n"
OUTER = """
from skel_fit.numba_compile import kernel
from numba_inner import inner


@kernel()
def outer(x):
    return inner(x)
"""
PROGRAM = """
import pathlib, sys
from skel_fit import numba_compile
here = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(here))
numba_compile.__file__ = str(here / "numba_compile.py")
from numba_outer import outer
print(outer(1), sum(outer.stats.cache_hits.values()), numba_compile.cache_folder())
"""


def run(folder: Path) -> list[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(folder / "user")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_edit_in_another_file_is_seen_and_an_unchanged_one_found_again(tmp_path: Path) -> None:
    (tmp_path / "numba_outer.py").write_text(OUTER)
    (tmp_path / "numba_inner.py").write_text(INNER.format(1))
    result, hits, first = run(tmp_path)
    assert (result, hits) == ("2", "0")
    assert Path(first).parent == tmp_path / "__pycache__"
    assert run(tmp_path)[:2] == ["2", "1"]
    (tmp_path / "numba_inner.py").write_text(INNER.format(5))
    result, hits, second = run(tmp_path)
    assert (result, hits) == ("6", "0"), "numba alone would serve the old machine code"
    assert first != second


def test_without_any_writable_folder_code_stays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "numba_outer.py").write_text(OUTER)
    (tmp_path / "numba_inner.py").write_text(INNER.format(1))
    for name in ("__pycache__", "user"):  # no folder can be made below a file
        (tmp_path / name).write_text("")
    assert run(tmp_path) == ["2", "0", "None"]


def test_every_file_of_kernels_counts(tmp_path: Path) -> None:
    (tmp_path / "solver").mkdir()
    known = {numba_compile.sources_digest(tmp_path)}
    for name in ("numba_new.py", "solver/numba_new.py", "anatomy.py", "solver/tables.py"):
        (tmp_path / name).write_text("")
        known.add(numba_compile.sources_digest(tmp_path))
    assert len(known) == 5


def test_a_missing_numba_is_said_with_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skel_fit.solver.kernels_numba", None)
    with pytest.warns(UserWarning, match=r"numba cannot be imported.*twentieth of the rate"):
        found = engine._kernels(FitConfig(), torch.device("cpu"))
    assert found is TorchKernels
    with pytest.raises(ImportError):
        engine._kernels(FitConfig(kernels="numba"), torch.device("cpu"))
