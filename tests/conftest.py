"""Fixtures shared by the test suite. No licensed data: model files are made from seeds."""

import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Before numpy and torch are loaded. The suite is spread over processes, one a core: threads of
# theirs would wait for each other, awake, which takes most of the time. What threads do is asked by
# tests that set their number (test_crew.py, test_real_fit.py, test_demo.py).
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

from skel_fit.model_files import load_skel, load_smpl

GOLDEN = Path(__file__).parent / "data" / "golden"
GOLDEN_SEED = 11

LONG = (
    "test_faults", "test_fit", "test_keypoint_fit", "test_uncertainty", "test_render",
    "test_package", "test_protocols", "test_ray", "test_regressor_training", "test_run",
    "test_solver", "test_official_checkpoints", "test_real_fit", "test_trust", "test_sequence",
    "test_hostile", "test_bodies_pipeline", "test_cli", "test_default_body", "test_joint_limits",
    "test_regressor_predict", "test_upload", "test_viewer", "test_generated", "test_report",
)  # fmt: skip
"""Files that take longest. They come first, so that no process is left alone with one at the end;
no two that wait for processes of their own stand side by side. While one process kills conversions
that need no kernels, the other compiles them all, each once; then comes what copies them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by `LONG`, for `make test`."""
    place = {name: k for k, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


# Same examples on every run, and no assertion on time.
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def asset_maker() -> ModuleType:
    """The committed generator of synthetic model files, as a module."""
    path = GOLDEN / "make_synthetic_skel_asset.py"
    spec = importlib.util.spec_from_file_location("make_synthetic_skel_asset", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden_skel_dict(asset_maker: ModuleType) -> dict:
    """Contents of the golden SKEL file (do not change it: copy)."""
    return asset_maker.build(GOLDEN_SEED)


@pytest.fixture(scope="session")
def golden_smpl_dict(asset_maker: ModuleType, golden_skel_dict: dict) -> dict:
    """Contents of the matching SMPL file (do not change it: copy)."""
    return asset_maker.build_smpl(golden_skel_dict, GOLDEN_SEED)


@pytest.fixture(scope="session")
def golden_models(
    tmp_path_factory: pytest.TempPathFactory, golden_skel_dict: dict, golden_smpl_dict: dict
) -> Path:
    """Folder with skel_male.pkl and SMPL_MALE.pkl, synthetic, seed 11."""
    folder = tmp_path_factory.mktemp("golden_models")
    (folder / "skel_male.pkl").write_bytes(pickle.dumps(golden_skel_dict, protocol=4))
    (folder / "SMPL_MALE.pkl").write_bytes(pickle.dumps(golden_smpl_dict, protocol=2))
    return folder


@pytest.fixture(scope="session")
def golden_skel(golden_models: Path):
    """SKEL of the golden file, float32."""
    return load_skel(golden_models, "male")


@pytest.fixture(scope="session")
def golden_skel64(golden_models: Path):
    """SKEL of the golden file, float64."""
    return load_skel(golden_models, "male", dtype=torch.float64)


@pytest.fixture(scope="session")
def golden_smpl(golden_models: Path):
    """SMPL layer that matches `golden_skel`, float32."""
    return load_smpl(golden_models, "male")


@pytest.fixture(scope="session")
def golden_smpl64(golden_models: Path):
    """SMPL layer that matches `golden_skel64`, float64."""
    return load_smpl(golden_models, "male", dtype=torch.float64)


@pytest.fixture(scope="session")
def golden_arrays() -> Callable[[str], dict[str, np.ndarray]]:
    """Reader of a committed golden npz by its stem."""

    def read(stem: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{stem}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return read
