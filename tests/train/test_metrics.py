"""The logs of a run, its watch for trouble, and its FLOPs."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dsd_jax.config import FLOAT32, Execution, flux_dev
from dsd_jax.errors import UserError
from dsd_jax.lora import add_factors, select
from dsd_jax.models import abstract
from dsd_jax.train.flops import peak_tflops, step_flops
from dsd_jax.train.metrics import Journal, Log, Watch, memory, read_metrics
from dsd_jax.train.plot import plot_run
from dsd_jax.weights import param_shapes
from tests.tiny_flux import TINY, abstract_flux, flux_inputs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo', '{"step": 4}', "\0\0\0"])
def test_a_journal_goes_on_behind_its_step(tmp_path: Path, torn: str):
    path = tmp_path / "run" / "metrics.jsonl"
    journal = Journal(path, -1)
    for step in range(1, 4):
        journal.write(step, loss=1 / step)
    journal.close()
    with path.open("a") as file:
        file.write(torn)
    again = Journal(path, 2)
    again.write(3, loss=7.0)
    again.close()
    assert lines(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 7.0},
    ]
    empty = Journal(path, -1)
    assert empty.count() == 0
    empty.close()


def test_a_log_writes_files_and_events(tmp_path: Path):
    with Log(tmp_path, -1, tensorboard=True) as log:
        log.batch(1, ["pair-0", "pair-7"])
        log.metrics(1, {"loss": 0.5, "grad_norm": 2.0})
        log.skipped(2, ["pair-3"])
        log.picture(2, "samples", np.zeros((4, 6, 3), np.uint8))
        assert log.skips == 1
    assert lines(tmp_path / "batch_ids.jsonl") == [{"step": 1, "ids": ["pair-0", "pair-7"]}]
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "grad_norm": 2.0}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert {b"loss", b"grad_norm", b"samples"} <= {
        name for name in (b"loss", b"grad_norm", b"samples") if name in events.read_bytes()
    }
    with Log(tmp_path, 2) as log:
        assert log.skips == 1


def test_wandb_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; `pip install wandb`, or leave"):
        Log(tmp_path, -1, tensorboard=False, wandb="project")


def test_watch():
    watch = Watch(10.0)
    assert watch.problem({"loss": 1.0, "grad_norm": math.inf}) == "grad_norm is inf"
    assert watch.problem({"loss": math.nan}) == "loss is nan"
    assert watch.problem({"loss": 1e9}) is None  # too early to tell
    for _ in range(40):
        assert watch.problem({"loss": 0.5}) is None
    assert watch.problem({"loss": 4.9}) is None
    assert watch.problem({"loss": 6.0}) == "the loss is 6, 12.0 times its running median"
    patient = Watch(0)
    assert not any(patient.problem({"loss": loss}) for loss in [0.5] * 40 + [1e6])


def test_memory_is_told_where_the_backend_tells_it():
    class Device:
        def __init__(self, used: int) -> None:
            self.used = used

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_in_use": self.used * 2**30, "peak_bytes_in_use": 3 * 2**30}

    assert memory([Device(1), Device(2)]) == {"memory_gib": 2.0, "memory_peak_gib": 3.0}
    assert memory(jax.local_devices()) == {}


# Curves


def test_curves(tmp_path: Path):
    with Log(tmp_path, -1, tensorboard=False) as log:
        for step in range(10, 60, 10):
            log.metrics(step, {"loss": 1 / step, "grad_norm": 2.0, "learning_rate": 1e-4})
            log.metrics(step, {"eval/loss": 2 / step})
    plot_run(tmp_path, tmp_path / "pictures" / "curves.png")
    with Image.open(tmp_path / "pictures" / "curves.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("P").getcolors() or []) > 10
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["curves.png"]
    assert read_metrics(tmp_path)[1] == {"step": 10, "eval/loss": 0.2}


def test_no_curves(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no metrics.jsonl"):
        plot_run(tmp_path, tmp_path / "curves.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(UserError, match=r"is empty so far; wait until the run has logged a step"):
        plot_run(tmp_path, tmp_path / "curves.png")


# FLOPs


def test_forward_flops_are_those_of_the_matrix_products():
    """Against XLA's own count, which has a few percent of norms and activations on top."""
    model = abstract_flux(attention="xla")
    inputs = flux_inputs(batch=1, txt_length=16)
    graphdef, state = nnx.split(model)
    compiled = jax.jit(lambda state, kwargs: nnx.merge(graphdef, state)(**kwargs)).lower(
        state, inputs
    )
    counted = (compiled.compile().cost_analysis() or {})["flops"]
    image, text = inputs["canvas"].tokens, 16
    flops = step_flops(param_shapes(model), frozenset(), TINY, image, text)
    assert flops.frozen + flops.attention == pytest.approx(counted, rel=0.1)
    assert flops.frozen + flops.attention < counted


@functools.cache
def flux_flops(targets: str | None) -> tuple[float, float, float]:
    """FLOPs of FLUX.1-dev on a canvas of 512 x 1024 pixels: frozen, trained, attention."""
    model = abstract(flux_dev(), precision=FLOAT32, execution=Execution(scan_layers=True))
    shapes = param_shapes(model)
    trained = frozenset(shapes)
    if targets is not None:
        add_factors(model, dict.fromkeys(select(model, targets), 512))
        trained = frozenset(param_shapes(model).keys() - shapes.keys())
    flops = step_flops(param_shapes(model), trained, flux_dev(), 2048, 512)
    return flops.frozen, flops.trained, flops.attention


def test_flops_of_the_paper():
    frozen, trained, attention = flux_flops("attention")
    # 12 D^2 parameters in every block for each of the tokens it works on.
    per_token = 2 * 12 * 3072**2
    assert frozen == pytest.approx(57 * 2560 * per_token, rel=0.005)
    assert attention == 57 * 4 * 2560**2 * 3072
    # 266 pairs of factors [3072, 512] and [512, 3072].
    double, single = 19 * 4, 38 * 3
    tokens = double * (2048 + 512) + single * 2560
    assert trained == 2 * 2 * 3072 * 512 * tokens


def test_flops_do_not_depend_on_the_layout():
    scanned, unrolled = (
        step_flops(param_shapes(abstract_flux(scan_layers=scan)), frozenset(), TINY, 24, 8)
        for scan in (True, False)
    )
    assert scanned == unrolled


def test_full_training_takes_three_forwards():
    frozen, trained, attention = flux_flops(None)
    assert frozen == 0
    flops = step_flops(
        param_shapes(abstract_flux()), frozenset(param_shapes(abstract_flux())), TINY, 24, 8
    )
    assert flops.total == 3 * (flops.trained + flops.attention)
    paper = flux_flops("attention")
    assert trained == pytest.approx(paper[0], rel=1e-9)
    assert attention == paper[2]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("cpu", None),
    ],
)
def test_peaks(kind: str, peak: float | None):
    assert peak_tflops(kind) == peak
