"""Each demonstration from end to end, small; and at full length what it promises (slow)."""

import json

import pytest
import torch

from gradlogp import demos

pytestmark = pytest.mark.usefixtures("as_user", "float32")
NAMES = ("stars", "digits", "mixture")


@pytest.fixture
def float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_leaves_a_whole_report(name, tmp_path, monkeypatch):
    monkeypatch.setattr(demos.digits, "GENERATED", 200)
    monkeypatch.setattr(demos.stars, "GENERATED", 500)
    monkeypatch.setattr(demos.stars, "HELD_OUT_SCORED", 50)
    monkeypatch.setattr(demos.mixture, "GENERATED", 500)
    monkeypatch.setattr(demos.mixture, "CHAINS", 50)
    result = getattr(demos, name).run(tmp_path / name, steps=3, quiet=True)
    assert result.report.read_text().startswith("<!doctype html>")
    numbers = json.loads((tmp_path / name / "numbers.json").read_text())
    assert len(numbers["rows"]) == len(result.rows)
    assert not result.passed  # three steps learn nothing, and the report says so
    assert len(list((tmp_path / name).glob("*-dark.png"))) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_demonstration_promises(name, tmp_path):
    result = getattr(demos, name).run(tmp_path / name, quiet=True)
    failed = [row for row in result.rows if row.verdict is False]
    assert not failed
