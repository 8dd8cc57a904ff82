"""The wheel and the sdist: built, installed away from the checkout, used from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from numba.core.caching import _CacheLocator

from pipeline.import_graph import ROOMS
from pipeline.provenance import code_version
from tests.faults.harness import REPOSITORY

DATA = {".yaml", ".npz", ".j2", ".js", ".typed", ".tflite"}
SMALL = """
name: small
source: {generator: demo, path: demo/small-release.npz, rows: 60}
genders: {smpl: column, skel: column}
models: default-body
shard_rows: 40
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel built from that sdist."""
    root = tmp_path_factory.mktemp("built")
    source = root / "source"
    source.mkdir()
    for room in ROOMS:
        shutil.copytree(
            REPOSITORY / room, source / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", root / "dist", source]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return root / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


class Installed:
    """A virtual environment with the wheel alone, which finds our dependencies beside itself."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.bin, self.here = root / "env" / "bin", root / "empty"
        self.here.mkdir()
        run(sys.executable, "-m", "venv", "--without-pip", root / "env")
        run(
            *(sys.executable, "-m", "pip", "--python", self.bin / "python", "install"),
            *("--quiet", "--no-index", "--no-deps", "--no-compile", wheel),
        )
        self.packages = next((root / "env" / "lib").glob("python*/site-packages"))
        # Only the folder: the .pth files in it, such as that of the editable install, do not act.
        dependencies = sysconfig.get_path("purelib")
        (self.packages / "dependencies.pth").write_text(f"{dependencies}\n")
        self._take_compiled_kernels()

    def _take_compiled_kernels(self) -> None:
        """Numba's, where the checkout has them: they are bound to the age of the source file.
        Those of the solver lie in folders named by what they are; the renderer's do not."""
        kept = (path for room in ROOMS for path in (REPOSITORY / room).rglob("*.nb[ic]"))
        for index in kept:
            cache = next(folder for folder in index.parents if folder.name == "__pycache__")
            folder = cache.parent
            source = folder / f"{index.name.partition('.')[0]}.py"
            if not source.is_file():
                continue
            here = self.packages / folder.relative_to(REPOSITORY)
            place = here / "__pycache__"
            if index.parent != cache:
                own = _CacheLocator.get_suitable_cache_subpath(str(here / source.name))
                place = place / index.parents[1].name / own
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(index, place)
            shutil.copystat(source, here / source.name)

    def __call__(self, *command: str | Path) -> str:
        """Standard output of a program of the environment, run in the empty folder."""
        return run(self.bin / command[0], *command[1:], cwd=self.here)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    hidden = {"PYTHONPATH", "HMR_SKEL_DATA", "HMR_SKEL_MODELS", "PIP_REQUIRE_VIRTUALENV"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_has_every_file_of_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    paths = (path for room in ROOMS for path in (REPOSITORY / room).rglob("*"))
    expected = {
        path.relative_to(REPOSITORY).as_posix() for path in paths if path.suffix in DATA | {".py"}
    }
    assert names == expected
    assert {f"{room}/py.typed" for room in ROOMS} <= names


def test_the_sdist_has_what_the_wheel_has_and_the_licences(built: Path, wheel: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= names
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert inside <= names
    assert licences == {"LICENSE", "NOTICE"}


def test_the_installed_code_is_not_the_checkout(installed: Installed) -> None:
    script = (
        "import json, skel_fit; from pipeline.provenance import code_version as c;"
        "print(json.dumps([skel_fit.__file__, c('shard'), c('regressor')]))"
    )
    file, shard, regressor = json.loads(installed("python", "-c", script))
    assert Path(file).is_relative_to(installed.packages)
    assert shard == code_version("shard")
    assert regressor == code_version("regressor")


def test_verbs_run_from_an_empty_folder(installed: Installed) -> None:
    """A user's manifest beside ours; recipes, protocols, templates and bodies from the wheel."""
    (installed.here / "manifests").mkdir()
    (installed.here / "manifests" / "small.yaml").write_text(SMALL)

    installed("hmr-skel", "convert", "small", "--quiet")
    out = "outputs/small"
    assert json.loads(installed("hmr-skel", "status", out, "--json"))["rows_written"] == 60
    verbs = (
        ("verify", out),
        ("report", out),
        ("card", out),
        ("export", out, "--out", "small.npz"),
        ("lint", "data/demo/small-release.npz"),
    )
    # in one process: each would load torch anew
    script = f"from stages import cli; print([cli.run(list(verb)) for verb in {verbs!r}])"
    assert installed("python", "-c", script).splitlines()[-1] == "[0, 0, 0, 0, 0]"
    assert "</html>" in (installed.here / out / "report.html").read_text()


def test_the_installed_recipes_protocols_and_manifests_are_found(installed: Installed) -> None:
    script = """
from pipeline.manifest import load_manifest
from stages.regressor.config import load_recipe
from stages.regressor.evaluation.protocols import load_protocol
print(load_manifest("coco").name, load_recipe("published").name, load_protocol("emdb").name)
"""
    assert installed("python", "-c", script).split() == ["coco", "published", "emdb"]


def test_importing_the_mathematics_is_light() -> None:
    script = "import skel_fit, sys; print(*{'torch', 'numba', 'scipy', 'smplx'} & set(sys.modules))"
    assert run(sys.executable, "-c", script, cwd=REPOSITORY).split() == []
    script += "; skel_fit.fit_skel; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", script, cwd=REPOSITORY).split() == ["True"]
