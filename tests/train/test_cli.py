"""`dsd train` as it is typed: presets, flags, refusals, and one run from data to exported files."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from dsd_jax.cli import main as dsd
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_component, open_flux
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter, LoraConfig
from dsd_jax.parts import Component
from dsd_jax.processes import ClusterConfig, join
from dsd_jax.runs import read_trained
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train import launch
from dsd_jax.train.config import DataConfig, RunConfig, TrainConfig, task_shares
from dsd_jax.train.data import open_data
from dsd_jax.train.model import Start, make_trainee
from dsd_jax.train.presets import PRESETS, paper, preset, tiny
from dsd_jax.train.sheet import cells
from dsd_jax.weights import TensorSource
from tests.random_flux import CONDITIONAL, compile_once, random_adapter
from tests.tiny_pairs import write_pairs
from tests.tiny_run import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compile_once(tmp_path_factory)
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def flags(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run on one device with short prompts."""
    monkeypatch.setattr(launch, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    return [
        "--data", str(world / "pairs"), "--base_path", str(world / "flux"),
        "--height", "32", "--width", "64", "--max_sequence_length", "8", "--no_tensorboard",
    ]  # fmt: skip


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command line that is refused."""
    assert dsd(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


# Presets


def test_presets_are_recipes():
    assert set(PRESETS) >= {"tiny", "paper", "h200", "v5e_64", "v5p_64", "v6e_64"}
    assert set(PRESETS) >= {"depth", "relight", "multi", "grid_teacher", "full"}
    for name, make in PRESETS.items():
        assert isinstance(preset(name), TrainConfig)
        assert make.__doc__
    recipe = paper()
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.targets, recipe.batch_size) == (512, "attention", 160)
    assert (recipe.optimizer.learning_rate, recipe.steps) == (1e-4, 100_000)


def test_presets_for_several_tasks_say_their_shares():
    multi = preset("multi").tasks
    assert multi is not None
    assert task_shares(multi) == {"identity": 4, "relight": 3, "depth": 2, "instruction": 1}
    assert preset("relight").tasks == ("relight=1",)
    assert paper().tasks is None


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        (("relihgt=1",), "there is no task 'relihgt'.*; did you mean 'relight'"),
        (("relight",), "tasks take TASK=SHARE with a share above 0, got 'relight'"),
        (("relight=-1",), "with a share above 0, got 'relight=-1'"),
        (("relight=1", "relight=2"), "tasks has 'relight' twice"),
        ((), "tasks needs a task such as relight=1"),
    ],
)
def test_shares_of_tasks_are_checked(tasks: tuple[str, ...], complaint: str):
    with pytest.raises(UserError, match=complaint):
        dataclasses.replace(paper(), tasks=tasks)


@pytest.mark.parametrize(
    ("name", "devices"),
    [("paper", 8), ("h200", 8), ("v5e_64", 64), ("v5p_64", 64), ("v6e_64", 64), ("full", 8)],
)
def test_presets_divide_over_their_devices(name: str, devices: int):
    recipe = preset(name)
    data, fsdp, tensor, context = recipe.mesh.sizes(devices)
    assert data * fsdp * tensor * context == devices
    assert recipe.batch_size == 160
    assert recipe.batch_size % (recipe.optimizer.accumulate * data * fsdp) == 0


def test_preset_typo(capsys: pytest.CaptureFixture[str]):
    message = refused(["train", "papr", "--data", "pairs"], capsys)
    assert message.startswith("error: unknown preset 'papr'; choose one of paper, h200, ")
    assert message.endswith("; did you mean 'paper'?")
    message = refused(["train", "--data", "pairs"], capsys)
    assert message.startswith("error: `dsd train` takes a preset first, then flags; presets: paper")


def test_help_lists_presets_and_their_values(capsys: pytest.CaptureFixture[str]):
    assert dsd(["train"]) == 0
    out = capsys.readouterr().out
    for name in PRESETS:
        assert f"\n  {name} " in out
    with pytest.raises(SystemExit):
        dsd(["train", "depth", "--help"])
    out = capsys.readouterr().out
    words = re.sub(r"[\s│]+", " ", out)
    assert "--lora.rank INT Rank of the factors. (default: 128)" in words
    assert "--optimizer.learning_rate FLOAT" in out


# What is refused


def test_data_that_cannot_be_used(
    world: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refuse(*words: str) -> str:
        return refused(["train", "tiny", *flags, "--output_dir", str(tmp_path), *words], capsys)

    nothing = tmp_path / "nothing"
    message = refuse("--data", str(nothing))
    assert message == (
        f"error: there is no dataset folder {nothing}; make one with `dsd data import`"
    )
    nothing.mkdir()
    assert "has no dataset.json: it is not a dataset folder" in refuse("--data", str(nothing))
    write_pairs(tmp_path / "empty", 1)
    manifest = tmp_path / "empty" / "dataset.json"
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(held | {"count": 0, "shards": []}))
    assert "is empty: it holds no records" in refuse("--data", str(tmp_path / "empty"))
    manifest.write_text(json.dumps(held | {"schema": 99}))
    message = refuse("--data", str(tmp_path / "empty"))
    assert "has schema version 99, but this program knows versions up to 1" in message
    assert "install a newer dsd-jax" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width", "63"], "width must be even, it holds two frames; got 63"),
        (["--height", "40"], "height and width must be positive multiples of 16 pixels, got 40x64"),
        (["--mesh.data", "3"], "a mesh of {'data': 3, 'fsdp': 1, 'tensor': 1, 'context': 1} does"),
        (
            ["--batch_size", "6", "--optimizer.accumulate", "4"],
            "6 is not divisible by accumulate 4",
        ),
        (["--lora.targets", "atention"], "did you mean 'attention'?"),
        (["--optimizer.name", "adam"], "unknown optimizer 'adam'"),
        (["--remat", "ful"], "unknown rematerialisation policy 'ful'"),
        (["--save_every", "0"], "save_every must be at least 1, got 0"),
        (["--profile", "5", "2"], "profile takes the first and the last step, got (5, 2)"),
        (["--process_id", "1"], "give coordinator_address, num_processes and process_id together"),
        (["--encoded", "a", "b"], "1 datasets but 2 encoded folders; give one for each, or none"),
        (["--base_path", "/nowhere"], "/nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_that_cannot_be_used(
    flags: list[str],
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    words = ["train", "tiny", *flags, "--output_dir", str(tmp_path / "run"), *words]
    assert message in refused(words, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("mask", "0110", "error: the first step of a step_mask must be a 1, got 0110"),
        ("mask", "none.toml", "or a file of `dsd mask`; there is no file 'none.toml'"),
        (
            "i_guidance",
            "1",
            "error: distill.i_guidance must be a number above 1, got 1.0: at 1 the",
        ),
        ("steps", "2", "error: distill.steps must be at least 3, since true guidance begins with"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused_at_once(
    flag: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--data", "pairs", "--output_dir", str(tmp_path / "run"), f"--distill.{flag}", value]
    assert message in refused(["train", "distill", *words], capsys)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_mesh(
    world: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError, match=r"a batch of 6 does not divide over the 8 parts of the"):
        open_data(
            DataConfig((str(world / "pairs"),)),
            dataclasses.replace(tiny(), batch_size=6),
            make_mesh(MeshConfig()),
            open_flux(world / "flux"),
        )


def test_processes_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("connection refused\nand a long story")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    join(ClusterConfig())  # alone: nothing to join
    with pytest.raises(UserError, match=r"cannot join the other processes: connection refused; "):
        join(ClusterConfig("localhost:1", 2, 0))
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match=r"give --coordinator_address HOST:PORT"):
        join(ClusterConfig())


# An adapter to start from


def test_training_starts_from_an_adapter():
    from dsd_jax.toy.making.random_pipeline import random_tensors

    base = random_tensors(CONDITIONAL, 0)

    weights = Component("nowhere", CONDITIONAL, TensorSource(base), "diffusers")
    adapter = random_adapter(CONDITIONAL, full=True)
    config = dataclasses.replace(tiny(), lora=LoraConfig(rank=4))
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    trainee = make_trainee(config, weights, mesh, Start(adapter))
    factor = trainee.split.trained["double_blocks"]["img_attn"]["qkv"]["lora_b"][...]
    np.testing.assert_array_equal(factor[1], adapter.factors["double_blocks.1.img_attn.qkv.lora_b"])
    assert factor.sharding.spec[2] == "fsdp"  # rank 4 on fsdp 4; two more ways do not divide it
    condition = trainee.split.trained["cond_in"]["kernel"][...]
    np.testing.assert_array_equal(condition, adapter.full["cond_in.kernel"])

    wide = dataclasses.replace(config, lora=LoraConfig(rank=8))
    with pytest.raises(UserError, match=r"adapter has rank 4, the run rank 8; give --lora.rank 4"):
        make_trainee(wide, weights, mesh, Start(adapter))
    scaled = dataclasses.replace(config, lora=LoraConfig(rank=4, alpha=8))
    with pytest.raises(UserError, match=r"so alpha must be the rank; leave out --lora.alpha"):
        make_trainee(scaled, weights, mesh, Start(adapter))
    some = {p: f for p, f in adapter.factors.items() if p.startswith("double_blocks")}
    with pytest.raises(UserError, match=r"disagree about single_blocks.qkv; give the targets"):
        make_trainee(config, weights, mesh, Start(Adapter(some)))
    everything = dataclasses.replace(config, lora=None)
    with pytest.raises(UserError, match=r"cannot start a training of all parameters; merge it"):
        make_trainee(everything, weights, mesh, Start(adapter))


# A run, and what becomes of it


def test_from_data_to_files(
    world: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    words = [
        "train", "tiny", *flags, "--output_dir", str(run), "--steps", "2", "--lora.rank", "4",
        "--lora.alpha", "8", "--eval_data", str(world / "held"), "--eval_every", "2",
        "--eval_samples", "2", "--eval_steps", "2", "--log_every", "1", "--dump_hlo",
        "--peak_tflops", "0.1", "--sample_prompts", str(tmp_path / "prompts.txt"),
    ]  # fmt: skip
    (tmp_path / "prompts.txt").write_text("a cat on a boat\n\na cat in the snow\na cat at night")
    assert dsd(words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-3:] == [
        f"2 steps done; the last is saved in {run / 'checkpoints'}",
        f"curves and samples: {run / 'run.html'}",
        f"export it: dsd convert lora {run} {run}-export",
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 2]
    assert 0 < rows[-2]["mfu"] < 1
    for step in (0, 2):
        # Two pairs, and beside each its sampled canvas; three prompts with borrowed references.
        pairs, prompts = (cells(run / name / f"{step:08d}.png") for name in ("samples", "prompts"))
        assert (pairs.shape, prompts.shape) == ((2, 4, 32, 32, 3), (3, 3, 32, 32, 3))
        np.testing.assert_array_equal(prompts[:2, 0], pairs[:, 0])
        np.testing.assert_array_equal(prompts[2, 0], pairs[0, 0])
    assert "stablehlo" in next((run / "hlo").glob("step-32x32-*.stablehlo.txt")).read_text()
    assert "ENTRY" in next((run / "hlo").glob("step-32x32-*[0-9].hlo.txt")).read_text()

    assert "tiny: 2 steps of 8 canvases of 32x64 pixels on" in said.err
    assert "  pairs    8 from " in said.err
    told = " ".join(said.err.split())  # the summary is wrapped
    assert "a crash loses everything (--save_every 1 would save ten times)" in told
    for line in ("loading the transformer ...", "compiling the step for frames of 32x32 ..."):
        assert line in said.err

    assert dsd(["train", "--config", str(run / "run.toml")]) == 0  # nothing left to do
    assert "going on from step 2" in capsys.readouterr().err
    assert len(rows) == len((run / "metrics.jsonl").read_text().splitlines())

    assert dsd(["convert", "lora", str(run), str(tmp_path / "out")]) == 0
    trained, record = read_trained(run / "checkpoints")
    assert record["preset"] == "tiny"
    adapter, report = read_lora(tmp_path / "out", CONDITIONAL)
    assert (report.ranks, report.targets) == ((4,), "attention")
    for path, factor in adapter.factors.items():
        expected = trained[path] * (2 if path.endswith("lora_b") else 1)  # alpha / rank
        np.testing.assert_array_equal(factor, expected, err_msg=path)
    for path, tensor in adapter.full.items():
        np.testing.assert_array_equal(tensor, trained[path])
    transformer = open_component(tmp_path / "out" / "transformer")
    np.testing.assert_array_equal(
        transformer.source.read("cond_in.bias", (slice(None),)), trained["cond_in.bias"]
    )
    assert dsd(["convert", "lora", str(run), str(tmp_path / "one"), "--merge"]) == 0
    merged, plain = (
        open_component(tmp_path / name / "transformer").source.read(
            "single_blocks.0.qkv.kernel", (slice(None),) * 4
        )
        for name in ("one", "out")
    )
    a, b = (adapter.factors[f"single_blocks.0.qkv.lora_{letter}"] for letter in "ab")
    product = np.einsum("dpr,prnh->dpnh", a, b)
    np.testing.assert_allclose(merged - plain, product, atol=1e-6)
    assert not (tmp_path / "one" / "pytorch_lora_weights.safetensors").exists()

    capsys.readouterr()
    other = ["convert", "lora", str(run), str(tmp_path / "x.safetensors")]
    assert "step 2 of run holds a condition embedding, which other" in refused(other, capsys)
    other = ["convert", "lora", str(run), str(tmp_path / "x"), "--merge", "--rank", "2"]
    assert "--rank 2 writes a LoRA; --merge gives a transformer without" in refused(other, capsys)
    lora = str(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    other = ["convert", "lora", lora, str(tmp_path / "y"), "--merge"]
    assert "--step and --merge are for the folder of a training run" in refused(other, capsys)


def test_run_settings():
    run = RunConfig(Path("out"))
    assert run.checkpoints == "out/checkpoints"
    assert dataclasses.replace(run, checkpoint_dir="gs://b/r").checkpoints == "gs://b/r"
