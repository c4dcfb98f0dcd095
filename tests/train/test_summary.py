"""The summary of a run before it starts, and the work that a crash would lose."""

from pathlib import Path

import jax
import pytest

from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train.config import DataConfig, RunConfig
from dsd_jax.train.summary import at_risk, summary
from tests.tiny_training import RECIPE, trainee


def lines(run: RunConfig, data: DataConfig) -> list[str]:
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        return summary("tiny", RECIPE, run, data, 1234, trainee().split).splitlines()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_summary_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *facts = lines(RunConfig(Path("out")), DataConfig(("pairs",)))
    assert max(map(len, facts)) <= 80
    assert "           (--save_every 2 would save ten times)" in facts


def test_a_run_says_what_it_is_about_to_do() -> None:
    run = RunConfig(Path("out"), save_every=5, eval_every=10)
    first, *rest = lines(run, DataConfig(("pairs#identity",), eval_data="held"))
    assert first.startswith("tiny: 20 steps of 8 canvases of 512x1024 pixels on 8 x ")
    trained, frozen, pairs, mesh, saved, checked = rest
    assert (
        "parameters in float32: LoRA of rank 8 on attention, and the condition embedding" in trained
    )
    assert frozen.endswith("parameters in float32")
    assert pairs == "  pairs    1,234 from pairs#identity"
    assert "data 2, fsdp 4, tensor 1, context 1; 1 samples at once" in mesh
    assert saved.endswith(
        "every 5 steps and at the end, to out/checkpoints; a crash loses up to 5 steps"
    )
    assert checked.endswith("every 10 steps and at the end, on 16 pairs of held")


def test_a_run_that_never_saves_says_so() -> None:
    *_, saved, checked = lines(RunConfig(Path("out")), DataConfig(("pairs",)))
    assert "at the end, to out/checkpoints; a crash loses everything" in saved
    assert "--save_every 2 would save ten times" in saved
    assert "never; --eval_data HELD_OUT" in checked


@pytest.mark.parametrize(
    ("every", "seconds", "expected"),
    [
        (500, 60.0, "about 8:20 h of work that a crash would lose; --save_every 30 makes it half"),
        (500, 1.0, None),
        (10_000, 0.5, "checkpoints are 10,000 steps apart, about 1:23 h"),
        (500, 3600.0, "--save_every 1 makes it half"),
    ],
)
def test_much_work_at_risk_is_said(every: int, seconds: float, expected: str | None) -> None:
    note = at_risk(every, 100_000, seconds)
    if expected is None:
        assert note is None
    else:
        assert note is not None
        assert expected in note
