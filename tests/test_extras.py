"""Packages that only some users have: what a verb says and does without them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.extras import require
from stages.regressor.training.reporting import Reporter


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError) as caught:
        require("tensorboard", "tensorboard")
    said = str(caught.value)
    assert said == "tensorboard is not installed; pip install 'hmr-skel[tensorboard]'"
    assert require("json", "anything").loads("1") == 1


def test_training_goes_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    reporter = Reporter(tmp_path / "tensorboard")
    reporter.start(0, 10)
    reporter.stop()
    assert "no TensorBoard events: tensorboard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "tensorboard").exists()
