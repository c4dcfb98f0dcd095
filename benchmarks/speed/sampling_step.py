"""Times one sampling step of FLUX: ours and diffusers', eager and compiled, in the same run.

    python -m benchmarks.speed.sampling_step  # CPU: width 1024, 4 + 8 blocks, float32
    python -m benchmarks.speed.sampling_step --preset gpu  # 12 B, bfloat16, batch 1 and 8
    python -m benchmarks.speed.sampling_step --preset small  # tries the script; saves nothing

Both sides have the same random weights and inputs (two frames of 512 x 512: 2,048 image tokens,
512 text tokens), and must agree before anything is timed. The step is the transformer and the Euler
update; `guided` is the three passes of true guidance, which diffusers takes one after another.
`mfu` counts the model's matrix products against the rate of a large matrix product on the same
device, measured in the same run.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from flax import nnx

from benchmarks.results import measure, save
from dsd_jax.config import PRECISIONS, Execution, FluxConfig, default_execution
from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.infer.guidance import FIRST_STEP, TrueGuidance
from dsd_jax.infer.sampler import Carry, Kind, Sampler, SamplerInputs, Step
from dsd_jax.models import abstract, load
from dsd_jax.quantise import WeightKind
from dsd_jax.weights import TensorSource

SECTIONS = {
    "cpu": (
        "The sampling step on a CPU",
        """Width 1024, 4 + 8 blocks, 2,048 + 512 tokens, float32, against diffusers in the same run.
`mfu` divides by the rate of one product, measured before the rows: it passes 1 if the machine was
slower at that moment.""",
    ),
    "day": (
        "The sampling step on a GPU, in a quarter of an hour",
        "FLUX.1-dev at full size in bfloat16 and int8, against diffusers in the same run.",
    ),
    "gpu": (
        "The sampling step on a GPU",
        "FLUX.1-dev at full size in bfloat16, against diffusers in the same run.",
    ),
}

TWO_FRAMES = Canvas(64, 128)  # of 512 x 512 pixels: 2,048 tokens
QUANTISED = 0.1  # relative error of an update with quantised weights
T_CUR, T_NEXT, GUIDANCE = 0.7, 0.65, 3.5


@dataclasses.dataclass(frozen=True)
class Preset:
    """Model and sizes for one kind of device."""

    config: FluxConfig
    dtype: str
    batches: tuple[int, ...]
    guided: tuple[bool, ...]
    executions: tuple[Execution, ...]
    tolerance: float
    canvas: Canvas = TWO_FRAMES
    text: int = 512
    quantised: tuple[WeightKind, ...] = ()  # also timed, with the first of the executions

    @property
    def device(self) -> str:
        return "cpu" if self.dtype == "float32" else "cuda"


def presets() -> dict[str, Preset]:
    """Models to try the script with, for a CPU, and at full size for an accelerator."""
    plain = FluxConfig(condition_embed=False)
    scanned = Execution(scan_layers=True)
    tiny = dataclasses.replace(
        plain, num_heads=2, double_depth=1, single_depth=2, txt_width=64, vec_width=32
    )
    gpu = Preset(
        plain, "bfloat16", (1, 8), (False, True), (default_execution("gpu"), scanned), 2e-2
    )
    return {
        "small": Preset(
            tiny,
            "float32",
            (1,),
            (False, True),
            (scanned,),
            1e-4,
            canvas=Canvas(16, 32),
            text=32,
            quantised=("int8",),
        ),
        "cpu": Preset(
            dataclasses.replace(plain, num_heads=8, double_depth=4, single_depth=8),
            "float32",
            (1,),
            (False,),
            (Execution(), scanned, dataclasses.replace(scanned, attention="xla")),
            1e-4,
        ),
        "gpu": gpu,
        # One hour of a rented GPU holds much; a quarter of one, this.
        "day": dataclasses.replace(gpu, executions=(scanned,), quantised=("int8",)),
    }


def flops(preset: Preset, batch: int) -> float:
    """Matrix-product FLOPs of a forward pass: 12 D^2 parameters per token in any block."""
    config, tokens = preset.config, preset.canvas.tokens + preset.text
    depth = config.double_depth + config.single_depth
    per_token = 2 * 12 * config.width**2 + 4 * tokens * config.width
    return batch * depth * tokens * per_token


def peak_flops(dtype: str) -> float:
    """FLOP/s of an 8192 (CPU: 2048) cube matrix product on this device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return 2 * size**3 / measure(lambda: product(a, b).block_until_ready(), 10)


def torch_model(preset: Preset) -> FluxTransformer2DModel:
    """diffusers' transformer with random weights, made on the device."""
    json = {k: v for k, v in flux_to_json(preset.config).items() if not k.startswith("_")}
    torch.manual_seed(0)
    with torch.device(preset.device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, preset.dtype))
        try:
            return FluxTransformer2DModel(**json).eval()
        finally:
            torch.set_default_dtype(default)


@dataclasses.dataclass(frozen=True)
class _InMemory:
    """torch's tensors as the conversion tables read them."""

    tensors: dict[str, torch.Tensor]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        tensor = self.tensors[name].detach().cpu()
        tensor = tensor if rows is None else tensor[rows]
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()


def to_ours(model: FluxTransformer2DModel, config: FluxConfig) -> TensorSource:
    """The same weights by our names."""
    table, theirs = flux_diffusers(config), _InMemory(dict(model.state_dict()))
    tensors: dict[str, np.ndarray] = {}
    for name, shape in table.our_shapes.items():
        pieces = table.by_ours[name]
        first = theirs.read(pieces[0].theirs)
        out = np.empty(shape, first.dtype)
        for piece in pieces:
            out[piece.our_box] = piece.read(theirs.read(piece.theirs))
        tensors[name] = out
    return TensorSource(tensors)


def inputs(preset: Preset, batch: int) -> dict[str, np.ndarray]:
    """Random inputs, float32."""
    rng, config = np.random.default_rng(1), preset.config
    shapes = {
        "img": (batch, preset.canvas.tokens, config.in_channels),
        "txt": (batch, preset.text, config.txt_width),
        "vec": (batch, config.vec_width),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def torch_step(
    model: Callable[..., Any], arrays: dict[str, np.ndarray], preset: Preset, passes: int
) -> Callable[[], torch.Tensor]:
    """One step of the peer as a function without arguments."""
    device, kind = preset.device, getattr(torch, preset.dtype)
    img, txt, vec = (torch.tensor(arrays[k]).to(device, kind) for k in ("img", "txt", "vec"))
    ids = torch.tensor(np.asarray(preset.canvas.image_ids)).to(device, kind)
    ones = torch.ones(img.shape[0], device=device)
    scale = 1.5

    @torch.no_grad()
    def step() -> torch.Tensor:
        outs = [
            model(
                hidden_states=img,
                timestep=(ones * T_CUR).to(kind),
                guidance=ones * GUIDANCE,
                pooled_projections=vec,
                encoder_hidden_states=txt,
                txt_ids=torch.zeros(preset.text, 3, device=device, dtype=kind),
                img_ids=ids,
                return_dict=False,
            )[0]
            for _ in range(passes)
        ]
        velocity = outs[0]
        if passes == 3:
            velocity = outs[0] + scale * (outs[1] - outs[0]) + scale * (outs[2] - outs[1])
        out = img.float() + (T_NEXT - T_CUR) * velocity.float()
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return step


def our_step(sampler: Sampler, arrays: dict[str, np.ndarray], *, guided: bool) -> Any:
    """(compiled step, its arguments)."""
    batch = arrays["img"].shape[0]
    txt, vec = jnp.asarray(arrays["txt"]), jnp.asarray(arrays["vec"])
    scale = jnp.full(batch, GUIDANCE)
    guidance = TrueGuidance(txt, vec, scale, scale) if guided else None
    condition = jnp.asarray(arrays["img"]) if guided else None
    own = SamplerInputs(FluxInputs(txt, vec, scale, condition), guidance)
    # The last step of as many as make it a guided one.
    times = np.float32([T_CUR] * (FIRST_STEP + 1 if guided else 1) + [T_NEXT])
    kind: Kind = "guided" if guided else "plain"
    programs, step = sampler.programs, Step(jnp.int32(0), *jnp.float32([T_CUR, T_NEXT]))

    def run(making: nnx.State, using: nnx.State, img: jax.Array, own: SamplerInputs) -> Carry:
        # Sampling computes all modulations before the first step; here they are part of the step,
        # as they are in diffusers.
        made = programs.modulations(making, own, jnp.asarray(times))[-1]
        return programs.step(using, Carry(img, ()), own, made, step, kind=kind)

    # Without donation, so that the same input serves every repetition.
    arguments = sampler.making, sampler.using, jnp.asarray(arrays["img"]), own
    return jax.jit(run).lower(*arguments).compile(), arguments


def _wait(compiled: Any, arguments: tuple[Any, ...]) -> jax.Array:
    return jax.block_until_ready(compiled(*arguments))


def agree(ours: np.ndarray, theirs: torch.Tensor, img: np.ndarray, bound: float) -> float:
    """Relative error of the update itself; raises above the bound."""
    mine, peer = ours.astype(np.float64) - img, theirs.double().cpu().numpy() - img
    error = float(np.linalg.norm(mine - peer) / np.linalg.norm(peer))
    if error > bound:
        raise SystemExit(f"ours and diffusers disagree: {error:.2e} > {bound:.0e}")
    return error


def main() -> None:
    """Checks, times, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="cpu", choices=list(presets()))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    preset = presets()[arguments.preset]
    peer = torch_model(preset)
    source = to_ours(peer, preset.config)
    peak = peak_flops(preset.dtype)
    precision = PRECISIONS[preset.dtype]
    compiled_peer = torch.compile(peer)
    rows: list[dict[str, Any]] = []

    def add(name: str, guided: bool, seconds: float, setup: float, error: float = 0) -> None:
        work = flops(preset, batch) * (3 if guided else 1)
        base = [r for r in rows if (r["batch"], r["guided"]) == (batch, guided)]
        rows.append(
            {
                "model": name,
                "batch": batch,
                "guided": guided,
                "ms": round(1000 * seconds, 1),
                "mfu": round(work / seconds / peak, 3),
                "vs_eager": round(base[0]["ms"] / 1000 / seconds, 2) if base else 1.0,
                "vs_compiled": round(base[1]["ms"] / 1000 / seconds, 2) if len(base) > 1 else "",
                "setup_s": round(setup, 1),
                "error": f"{error:.1e}",
            }
        )
        print(rows[-1], flush=True)

    for batch in preset.batches:
        arrays = inputs(preset, batch)
        theirs = torch_step(peer, arrays, preset, 1)()
        for guided in preset.guided:
            for name, model in (("diffusers", peer), ("diffusers compiled", compiled_peer)):
                step = torch_step(model, arrays, preset, 3 if guided else 1)
                start = time.monotonic()
                step()
                setup = time.monotonic() - start
                add(name, guided, measure(step, arguments.repeats), setup)
            variants: list[tuple[Execution, WeightKind | None]] = [
                *((execution, None) for execution in preset.executions),
                *((preset.executions[0], kind) for kind in preset.quantised),
            ]
            for execution, kind in variants:
                config = dataclasses.replace(preset.config, condition_embed=guided)
                base = source
                if guided:
                    shape = (config.in_channels, config.width)
                    zero = np.zeros(shape, source.tensors["img_in.kernel"].dtype)
                    base = TensorSource(
                        {**source.tensors, "cond_in.kernel": zero, "cond_in.bias": zero[0]}
                    )
                model = load(
                    abstract(config, precision=precision, execution=execution, weights=kind), base
                )
                sampler = Sampler(model, preset.canvas)
                start = time.monotonic()
                compiled, args = our_step(sampler, arrays, guided=guided)
                setup = time.monotonic() - start
                seconds = measure(functools.partial(_wait, compiled, args), arguments.repeats)
                out = np.asarray(compiled(*args)[0])
                bound = preset.tolerance if kind is None else QUANTISED
                error = agree(out, theirs, arrays["img"], bound)
                name = "ours scanned" if execution.scan_layers else "ours unrolled"
                if execution.attention != "auto":
                    name += f", {execution.attention} attention"
                if kind is not None:
                    name += f", {kind}"
                add(name, guided, seconds, setup, error)
                del model, sampler, compiled, args
    if arguments.preset in SECTIONS:
        save(__file__, rows, arguments.preset, peak_gflops=round(peak / 1e9))


if __name__ == "__main__":
    main()
