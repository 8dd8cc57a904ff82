"""Which source files a result is bound to: real packages, imported for real."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import provenance
from pipeline.import_graph import closure, modules_below, source_file
from tests.faults.harness import REPOSITORY

ROOMS = ("skel_fit", "pipeline", "stages", "manifests")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The rooms' sources, free to be changed."""
    for room in ROOMS:
        shutil.copytree(
            REPOSITORY / room,
            tmp_path / room,
            ignore=shutil.ignore_patterns("__pycache__", "*.npz"),
        )
    return tmp_path


def digests(root: Path) -> dict[str, str]:
    script = (
        "import json; from pipeline.provenance import code_version as c;"
        "print(json.dumps({p: c(p)['sha256'] for p in ('shard', 'regressor')}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env={"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("skel_fit.rotations", {"shard", "regressor"}),
        (
            "skel_fit.solver.engine",
            {"shard", "regressor"},
        ),  # SMPL predictions are fitted and scored
        ("pipeline.identities", {"shard"}),
        ("pipeline.readers.webdataset", {"shard", "regressor"}),
        ("stages.regressor.training.losses", {"regressor"}),
        ("stages.regressor.network.vit", {"regressor"}),
        ("stages.regressor.evaluation.metrics", {"regressor"}),
        ("stages.drawing.render", {"regressor"}),
        ("stages.drawing.pages", set()),
        ("stages.cli", set()),
        ("pipeline.upload", {"regressor"}),
        ("pipeline.rundir", set()),
    ],
)
def test_a_changed_file_changes_the_digests_of_what_depends_on_it(
    copy: Path, module: str, changed: set[str]
) -> None:
    before = {p: provenance.code_version(p)["sha256"] for p in ("shard", "regressor")}
    path = source_file(copy, module)
    assert path is not None
    path.write_text(path.read_text() + "\n# changed\n")
    after = digests(copy)
    assert {p for p in before if after[p] != before[p]} == changed


def test_what_python_loads_is_what_was_found() -> None:
    """Import the training and the evaluation in a fresh process: nothing of ours is missed."""
    entries = modules_below(REPOSITORY, "stages.regressor")
    script = (
        "import importlib, json, sys;"
        f"[importlib.import_module(m) for m in {entries!r}];"
        "print(json.dumps(sorted(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {m for m in json.loads(ran.stdout) if m.split(".")[0] in ROOMS}
    assert loaded <= set(closure(REPOSITORY, entries))


@pytest.mark.parametrize("purpose", ["shard", "regressor"])
def test_a_result_depends_on_no_verb(purpose: provenance.Purpose) -> None:
    verbs = {f"stages.{path.stem}" for path in (REPOSITORY / "stages").glob("[a-z]*.py")}
    assert not verbs & set(provenance.code_files(purpose))


def test_every_module_that_is_left_out_exists() -> None:
    for module in provenance._DECIDES_NOTHING:
        assert source_file(REPOSITORY, module), module


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_closure_reads_every_form_of_import(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pipeline/__init__.py": "",
            "pipeline/entry.py": (
                "import pipeline.plain\nfrom pipeline import named\nfrom . import near\n"
                "from .sub import leaf\nfrom skel_fit import lazy_name\nimport numpy\n"
                "from typing import TYPE_CHECKING\n"
                "def later():\n    from pipeline.late import x\n"
                "if TYPE_CHECKING:\n    from pipeline.types_only import T\n"
                "if True:\n    import pipeline.indented as other\n"
            ),
            **{
                f"pipeline/{name}.py": ""
                for name in ("plain", "named", "near", "late", "types_only", "indented", "unused")
            },
            "pipeline/sub/__init__.py": "",
            "pipeline/sub/leaf.py": "from .. import named\nfrom ..late import x\n",
            "skel_fit/__init__.py": (
                "if TYPE_CHECKING:\n    from skel_fit.home import lazy_name\n"
                "    from skel_fit.elsewhere import other\n"
            ),
            "skel_fit/home.py": "",
            "skel_fit/elsewhere.py": "",
        },
    )
    found = closure(tmp_path, ["pipeline.entry"])
    names = ["entry", "plain", "named", "near", "late", "indented", "sub", "sub.leaf"]
    assert set(found) == {
        "pipeline", "skel_fit", "skel_fit.home", *(f"pipeline.{name}" for name in names)
    }  # fmt: skip
    assert found["pipeline.sub"] == tmp_path / "pipeline/sub/__init__.py"


def test_a_module_that_is_not_followed_hides_what_only_it_imports(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pipeline/__init__.py": "",
            "pipeline/a.py": "import pipeline.b\nimport pipeline.c\n",
            "pipeline/b.py": "import pipeline.c\nimport pipeline.d\n",
            "pipeline/c.py": "import pipeline.a\n",
            "pipeline/d.py": "",
        },
    )
    found = closure(tmp_path, ["pipeline.a"], follow=lambda module: module != "pipeline.b")
    assert set(found) == {"pipeline", "pipeline.a", "pipeline.c"}


def test_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no module pipeline\.gone"):
        modules_below(tmp_path, "pipeline.gone")


@pytest.mark.parametrize(
    "edited", ["pipeline/shards.py", "skel_fit/recipes/full.yaml", "skel_fit/default_body/files.py"]
)
def test_one_code_sees_what_is_edited_while_it_works(copy: Path, edited: str) -> None:
    """What is imported already may be edited; what is read later, or was never the plan's, not."""
    script = (
        "import sys; from pathlib import Path; from pipeline import provenance as p, errors\n"
        "plan = p.code_version('shard'); \n"
        "one = p.OneCode('shard', plan, p.code_files('shard')); one.check()\n"
        f"path = Path({edited!r}); path.write_text(path.read_text() + '\\n# edited\\n')\n"
        "if path.suffix == '.py':\n"
        "    __import__(path.with_suffix('').as_posix().replace('/', '.'))\n"
        "def fails(work):\n"
        "    try: work()\n"
        "    except errors.PlanMismatch as error: return path.name in str(error) or 'instead' in "
        "str(error)\n"
        "print(fails(one.check), fails(lambda: p.OneCode('shard', plan, p.code_files('shard'))))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=copy, env={"PYTHONPATH": str(copy)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    decides = "default_body" not in edited
    assert ran.stdout.split() == [str(decides or None), str(decides or None)]
