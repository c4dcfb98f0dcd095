"""Times one training step of FLUX with LoRA: ours and that of diffusers + PEFT, in the same run.

    python -m benchmarks.speed.train_step                  # CPU: width 1024, 4 + 8 blocks, float32
    python -m benchmarks.speed.train_step --preset gpu     # 12 B parameters, rank 512, bfloat16

Both sides start from the same random weights and factors and get the same noise and times; their
losses must agree in every step that is timed. A step is forward and
backward with every block rematerialised, clipping and AdamW; LoRA on the attention projections, and
the condition embedding in full. PyTorch runs a plain loop over diffusers' transformer with PEFT and
gradient checkpointing, as it is and through `torch.compile`. `mfu` counts matrix products by
`dsd_jax.train.flops` (never what is rematerialised) against the rate of a large matrix product on
the same device, measured in the same run.
"""

import argparse
import dataclasses
import functools
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig as PeftConfig

from benchmarks.results import save
from benchmarks.speed.sampling_step import peak_flops, to_ours
from dsd_jax.config import FluxConfig
from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.flow import Schedule
from dsd_jax.frames import Canvas
from dsd_jax.lora import Adapter, LoraConfig
from dsd_jax.parts import Component
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train.config import OptimizerConfig, TrainConfig
from dsd_jax.train.flops import step_flops
from dsd_jax.train.model import Start, first_state, make_trainee
from dsd_jax.train.objective import Customise, EncodedBatch
from dsd_jax.train.optimizer import make_optimizer
from dsd_jax.train.step import make_step
from dsd_jax.weights import WeightSource

SECTIONS = {
    "cpu": (
        "The training step on a CPU",
        "Against a PyTorch and PEFT loop in the same run.",
    ),
    "day": (
        "The training step on a GPU, in a quarter of an hour",
        "FLUX.1-dev at full size with rank 512, scanned, against PyTorch and PEFT in the same run.",
    ),
    "gpu": (
        "The training step on a GPU",
        "FLUX.1-dev at full size with rank 512, against a PyTorch and PEFT loop in the same run.",
    ),
}

TARGETS = r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)

Trainer = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Model, precision and sizes for one kind of device."""

    flux: FluxConfig
    dtype: str
    rank: int
    canvas: Canvas
    text: int
    batch: int
    layouts: tuple[tuple[bool, str], ...]  # scanned or not, rematerialisation policy
    tolerance: float

    @property
    def device(self) -> str:
        return "cpu" if self.dtype == "float32" else "cuda"

    def objective(self) -> Customise:
        """The loss."""
        return Customise(self.recipe().flow, Schedule(), self.canvas)

    def recipe(self, *, scan_layers: bool = True, remat: str = "full") -> TrainConfig:
        return TrainConfig(
            steps=1000,
            batch_size=self.batch,
            lora=LoraConfig(self.rank),
            optimizer=OPTIMIZER,
            remat=remat,
            scan_layers=scan_layers,
            base_dtype="float32" if self.dtype == "float32" else "bfloat16",
        )


def presets() -> dict[str, Preset]:
    """A model to try the script with, a mid-size one for a CPU, the real one for a GPU."""
    cpu = Preset(
        flux=FluxConfig(num_heads=8, double_depth=4, single_depth=8),
        dtype="float32",
        rank=64,
        canvas=Canvas(32, 64),  # two frames of 256 x 256 pixels: 512 tokens
        text=128,
        batch=1,
        layouts=((True, "full"), (False, "full"), (True, "attention")),
        tolerance=1e-5,
    )
    small = FluxConfig(num_heads=2, double_depth=1, single_depth=2, txt_width=64, vec_width=32)
    gpu = Preset(
        flux=FluxConfig(),
        dtype="bfloat16",
        rank=512,
        canvas=Canvas(64, 128),  # two frames of 512 x 512 pixels: 2,048 tokens
        text=512,
        batch=4,
        layouts=((False, "full"), (True, "full"), (False, "attention")),
        tolerance=2e-2,
    )
    return {
        "small": dataclasses.replace(cpu, flux=small, rank=8, canvas=Canvas(16, 32), text=32),
        "cpu": cpu,
        "gpu": gpu,
        "day": dataclasses.replace(gpu, layouts=((True, "full"),)),
    }


def make_batch(preset: Preset) -> EncodedBatch:
    """Random numbers; nothing dropped."""
    rng = np.random.default_rng(1)
    flux, tokens, batch = preset.flux, preset.canvas.tokens, preset.batch

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), preset.dtype)

    return EncodedBatch(
        x_0=normal(batch, tokens, flux.in_channels),
        img_cond=normal(batch, tokens, flux.in_channels),
        txt=normal(batch, preset.text, flux.txt_width),
        vec=normal(batch, flux.vec_width),
        drop_text=jnp.zeros(batch, bool),
        drop_image=jnp.zeros(batch, bool),
        null_txt=normal(preset.text, flux.txt_width),
        null_vec=normal(flux.vec_width),
    )


# PyTorch


class Embedder(torch.nn.Module):
    """The image embedding with the condition's beside it."""

    def __init__(self, x: torch.nn.Linear, c: torch.nn.Linear, condition: torch.Tensor) -> None:
        super().__init__()
        self.x, self.c, self.condition = x, c, condition

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.x(tokens) + self.c(self.condition)


def torch_base(preset: Preset) -> FluxTransformer2DModel:
    """diffusers' transformer with random weights and a condition embedding."""
    plain = dataclasses.replace(preset.flux, condition_embed=False)
    json = {k: v for k, v in flux_to_json(plain).items() if not k.startswith("_")}
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, preset.dtype))
    try:
        with torch.device(preset.device):
            model = FluxTransformer2DModel(**json)
            model.c_embedder = torch.nn.Linear(preset.flux.in_channels, preset.flux.width)
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False)


def add_lora(model: FluxTransformer2DModel, preset: Preset) -> Adapter:
    """Random factors by PEFT, float32 like the condition embedding; the same as our adapter."""
    torch.manual_seed(1)
    rank = preset.rank
    model.add_adapter(
        PeftConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False)
    )
    model.c_embedder.float().requires_grad_(True)
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
        if parameter.requires_grad:
            plain = name.replace(".default", "")
            tensors[f"transformer.{plain}"] = parameter.detach().cpu().contiguous()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        safetensors.torch.save_file(tensors, file)
        return read_lora(file, preset.flux)[0]


def torch_trainer(model: FluxTransformer2DModel, preset: Preset, *, compiled: bool) -> Trainer:
    """A function that makes a step with our draws of that number and returns the loss."""
    device, kind = preset.device, getattr(torch, preset.dtype)
    batch = make_batch(preset)

    def move(x: Any, dtype: torch.dtype = kind) -> torch.Tensor:
        return torch.tensor(np.asarray(x, np.float32)).to(device, dtype)

    condition, txt, vec = (move(x) for x in (batch.img_cond, batch.txt, batch.vec))
    x_0 = move(batch.x_0, torch.float32)
    ids = move(preset.canvas.image_ids)
    model.x_embedder = Embedder(model.x_embedder, model.c_embedder, condition)
    model.enable_gradient_checkpointing()
    model.train()
    run = torch.compile(model) if compiled else model
    trained = [p for p in model.parameters() if p.requires_grad]
    c = OPTIMIZER
    optimizer = torch.optim.AdamW(
        trained, c.learning_rate, (c.b1, c.b2), weight_decay=c.weight_decay, fused=True
    )
    seed = jax.random.key(preset.recipe().seed)

    def step(number: int) -> float:
        drawn = preset.objective().draw(jax.random.fold_in(seed, number), batch.x_0)
        noise, t = (move(x, torch.float32) for x in drawn)
        img = (1 - t)[:, None, None] * x_0 + t[:, None, None] * noise
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            predicted = run(
                hidden_states=img.to(kind),
                timestep=t.to(kind),
                guidance=torch.ones_like(t),
                pooled_projections=vec,
                encoder_hidden_states=txt,
                txt_ids=torch.zeros(preset.text, 3, device=device, dtype=kind),
                img_ids=ids,
                return_dict=False,
            )[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise - x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, c.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# Ours


def our_trainer(
    source: WeightSource, adapter: Adapter, preset: Preset, *, scan_layers: bool, remat: str
) -> Trainer:
    """The same function for our trainer."""
    recipe, mesh = preset.recipe(scan_layers=scan_layers, remat=remat), make_mesh(MeshConfig(1))
    split = make_trainee(
        recipe, Component("", preset.flux, source, "memory"), mesh, Start(adapter)
    ).split
    optimizer = make_optimizer(recipe.optimizer, recipe.steps)
    batch, states = make_batch(preset), [first_state(split, optimizer, mesh, ema=False)]
    program = make_step(split.graphdef, optimizer, preset.objective(), recipe)
    compiled = jax.jit(program, donate_argnums=0).lower(states[0], split.frozen, batch).compile()

    def step(number: int) -> float:
        state = states.pop()._replace(step=jnp.int32(number))
        state, metrics = compiled(state, split.frozen, batch)
        states.append(state)
        return float(metrics.loss)

    return step


# Comparison


def flops(source: WeightSource, adapter: Adapter, preset: Preset) -> float:
    """FLOPs of a step."""
    trained = {
        path: array.shape for path, array in (*adapter.factors.items(), *adapter.full.items())
    }
    image = preset.canvas.tokens
    shapes = {**source.shapes, **trained}
    one = step_flops(shapes, frozenset(trained), preset.flux, image, preset.text)
    return preset.batch * one.total


def main() -> None:
    """Compares, times, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="cpu", choices=list(presets()))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    preset = presets()[arguments.preset]
    peak = peak_flops(preset.dtype)
    model = torch_base(preset)
    source = to_ours(model, preset.flux)
    adapter = add_lora(model, preset)
    del model
    work = flops(source, adapter, preset)
    rows: list[dict[str, Any]] = []
    expected: list[float] = []

    def add(name: str, make: Callable[[], Trainer]) -> None:
        gc.collect()
        begin = time.monotonic()
        step = make()
        losses, times = [step(0)], []
        setup = time.monotonic() - begin
        for number in range(1, arguments.repeats + 1):
            begin = time.monotonic()
            losses.append(step(number))
            times.append(time.monotonic() - begin)
        expected[:] = expected or losses
        error = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
        if error > preset.tolerance:
            raise SystemExit(f"{name}: losses {losses} disagree with {expected}")
        seconds = statistics.median(times)
        rows.append(
            {
                "model": name,
                "ms": round(1000 * seconds),
                "samples/s": round(preset.batch / seconds, 3),
                "mfu": round(work / seconds / peak, 3),
                "vs eager": round((rows[0]["ms"] if rows else 1000 * seconds) / 1000 / seconds, 2),
                "vs compiled": round(rows[1]["ms"] / 1000 / seconds, 2) if rows[1:] else "",
                "setup s": round(setup, 1),
                "loss error": f"{error:.1e}",
            }
        )
        print(rows[-1], flush=True)

    def theirs(*, compiled: bool) -> Trainer:
        model = torch_base(preset)
        add_lora(model, preset)
        return torch_trainer(model, preset, compiled=compiled)

    add("diffusers + PEFT", functools.partial(theirs, compiled=False))
    add("diffusers + PEFT, compiled", functools.partial(theirs, compiled=True))
    for scan_layers, remat in preset.layouts:
        name = f"ours {'scanned' if scan_layers else 'unrolled'}, remat {remat}"
        make = functools.partial(
            our_trainer, source, adapter, preset, scan_layers=scan_layers, remat=remat
        )
        add(name, make)
    settings = dataclasses.asdict(preset) | {"peak_gflops": round(peak / 1e9)}
    if arguments.preset in SECTIONS:
        save(__file__, rows, arguments.preset, **settings)


if __name__ == "__main__":
    main()
