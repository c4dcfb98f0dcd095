"""Cycles of FLUX.1-dev's blocks on TPUs, as the TPU compiler estimates them, without a TPU.

    pip install libtpu
    python -m benchmarks.speed.tpu_cycles [--chips v5e v6e] [--batches 4 1] [--tables training]

Two frames of 512 x 512 (2,048 image and 512 text tokens), bfloat16. Nothing is run, so no row is a
time: `estimated` adds up what the compiler states, `at peak` charges all that is no product at the
peak of the chip's memory. The compiler says nothing of Pallas kernels; the cycles of attention are
counted from the instruction bundles of its kernels, one bundle a cycle, without waits for memory.
`floor` is the work of the products at the chip's peak. `--tables step` compiles the whole scanned
step, sharded over eight chips, whose loops contain the collectives too. Sampling is the default.
"""

import argparse
import dataclasses
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # the kernels are compiled in other processes
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from benchmarks.memory.sampling_memory import Case, compiled_step
from benchmarks.results import save
from dsd_jax.attention import attention, splash_blocks
from dsd_jax.config import BFLOAT16, Execution, flux_dev
from dsd_jax.cycles import PARTS, Cycles, Operation, Part, operations, summed
from dsd_jax.flux import parted
from dsd_jax.layers import LoraParam
from dsd_jax.lora import add_factors, select
from dsd_jax.models import abstract
from dsd_jax.sharding import MeshConfig
from dsd_jax.stack import map_stack, run_stack
from dsd_jax.topology import CHIPS, Topology, devices_of
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.presets import preset

__all__ = ["block_cycles", "kernel_cycles"]

SECTIONS = {
    "": (
        "Cycles of FLUX's blocks on TPUs",
        """The TPU compiler's estimates for one block, in millions of cycles a chip; nothing was run
on a TPU. `attention` is counted from its kernel's instruction bundles. `at peak` charges everything
but products and attention at the peak of the chip's memory. `share of floor` is the floor divided
by `estimated` and by `at peak`. `all` is the 19 double and 38 single blocks of a step. Sampling
makes the modulations before its first step, so no row holds them.""",
    ),
    "training": (
        "Cycles of FLUX's blocks on TPUs in training",
        """The same for a block in a step of the paper's recipe, as the chip's preset has it: the
forward pass, what is computed again, and the gradient by the inputs and by LoRA factors of rank
512. `floor` leaves out what is computed again. The rows hold the modulations, which training makes
in every pass.""",
    ),
}

PRESETS = {"v5e": "v5e_64", "v5p": "v5p_64", "v6e": "v6e_64"}
KINDS = tuple(PRESETS)
BLOCKS = ("double", "single")
TABLES = ("sampling", "training", "step")
IMG, TXT = 2048, 512
_MARK = re.compile(r"^\s*(0x[0-9a-f]+)\s+(LB|PF|LH|LE|PB):")


def _topology(chip: str) -> Topology:
    return Topology.parse(f"{chip}:{'2x2x1' if chip == 'v5p' else '2x2'}")


def block_cycles(kind: str, chip: str, batch: int) -> Cycles:
    """Compiles one block of sampling for one chip, and adds up its cycles without attention.

    Args:
        kind: one of `BLOCKS`.
        chip: one of `KINDS`.
        batch: canvases on the chip.
    """
    return _summed(block_operations(kind, chip, batch), chip)


def block_operations(
    kind: str, chip: str, batch: int, recipe: TrainConfig | None = None
) -> list[Operation]:
    """Compiles one block for one chip.

    Args:
        kind, chip, batch: as for `block_cycles`.
        recipe: the block's part of a training step with a LoRA. The block then makes its
            modulations; in sampling they are given.
    """
    config = dataclasses.replace(flux_dev(), double_depth=1, single_depth=1)
    execution = Execution(attention="splash", remat=recipe.remat if recipe else "none")
    model = abstract(config, precision=BFLOAT16, execution=execution)
    if recipe is not None:
        assert recipe.lora is not None
        ranks = dict.fromkeys(select(model, recipe.lora.targets), recipe.lora.rank)
        add_factors(model, ranks)
    blocks = model.double_blocks if kind == "double" else model.single_blocks
    graphdef, trained, frozen = nnx.split(blocks, LoraParam, ...)
    sharding = SingleDeviceSharding(devices_of(_topology(chip))[0])

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), tree)

    width, splash = config.width, functools.partial(attention, implementation="splash")
    lengths = (TXT + IMG,) if kind == "single" else (IMG, TXT)
    streams = tuple(array(batch, length, width) for length in lengths)
    vec, pe = array(batch, width), array(2, TXT + IMG, config.head_dim, dtype=jnp.float32)

    def forward(trained: Any, frozen: Any, streams: Any, made: Any, pe: Any) -> Any:
        def step(block: Any, carry: Any, own: Any) -> Any:
            out = block(*carry, own, pe, splash)
            return out if kind == "double" else (out,)

        return run_stack(nnx.merge(graphdef, trained, frozen), step, streams, execution, made)

    def modulations(trained: Any, frozen: Any, vec: Any) -> Any:
        blocks = nnx.merge(graphdef, trained, frozen)
        return map_stack(blocks, lambda block: block.modulations(vec), execution)

    def train(trained: Any, frozen: Any, streams: Any, vec: Any, pe: Any) -> Any:
        made = modulations(trained, frozen, vec)
        out, back = jax.vjp(lambda *x: forward(x[0], frozen, x[1], made, pe), trained, streams)
        return back(out)

    # Layers choose their form by JAX's backend, which is the CPU here.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        if recipe is not None:
            lowered = jax.jit(train).lower(placed(trained), placed(frozen), streams, vec, pe)
        else:
            made = placed(jax.eval_shape(modulations, trained, frozen, vec))
            using = placed(parted(frozen)[1])
            lowered = jax.jit(forward).lower(trained, using, streams, made, pe)
        return operations(lowered.compile().as_text() or "")


def _summed(found: Sequence[Operation], chip: str) -> Cycles:
    return summed(found, CHIPS[chip].gb_per_s / CHIPS[chip].clock_ghz)


def kernel_cycles(chip: str, length: int, *, gradient: bool = False) -> dict[str, int]:
    """Cycles of splash attention for one head of 128 channels, counted in its bundles.

    The kernel's loop runs once for each tile; its bundles are those of the pipeline and the body.

    Args:
        chip: one of `KINDS`.
        length: tokens, queries as well as keys.
        gradient: compile the gradient, of which the forward kernel also returns the sums of rows.

    Returns:
        Those of the kernel "fwd", and of "dkv", the kernel of the gradient.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        words = [sys.executable, "-m", __spec__.name, "--kernel", chip, str(length), str(gradient)]
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
        subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
        blocks, found = splash_blocks(length, length), {}
        tiles = {
            "fwd": (blocks.block_q, blocks.block_kv),
            "dkv": (blocks.block_q_dkv, blocks.block_kv_dkv),
        }
        for path in Path(folder).glob("*splash_mha*final_bundles.txt"):
            if "schedule" not in path.name:
                name = _kernel(path.name)
                q, kv = tiles[name]
                assert q is not None  # `splash_blocks` sets all sizes
                assert kv is not None
                found[name] = _bundles(path) * (length // q) * (length // kv)
        return found


def _kernel(name: str) -> str:
    """Which kernel a file or an operation of this name is of."""
    return "dkv" if "dkv" in name else "fwd"


def _bundles(path: Path) -> int:
    """Bundles from the beginning of the loop to its end."""
    with path.open() as file:
        found = filter(None, map(_MARK.match, file))
        marks = [(int(match.group(1), 16), match.group(2)) for match in found]
    return marks[-1][0] - next(place for place, mark in marks if mark == "LB")


def _compile_kernel(chip: str, length: int, *, gradient: bool) -> None:
    sharding = SingleDeviceSharding(devices_of(_topology(chip))[0])
    x = jax.ShapeDtypeStruct((1, length, 1, 128), jnp.bfloat16, sharding=sharding)

    def run(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, implementation="splash")

    def both(q: Any, k: Any, v: Any) -> Any:
        out, back = jax.vjp(run, q, k, v)
        return back(out)

    jax.jit(both if gradient else run).lower(x, x, x).compile()


def _floor(kind: str, chip: str, batch: int, recipe: TrainConfig | None) -> float:
    """Cycles of a block's products at the chip's peak."""
    config = flux_dev()
    length, width = IMG + TXT, config.width
    linear = 2 * batch * length * 12 * width**2
    core = 4 * batch * length**2 * width
    flops: float = linear + core
    if recipe is not None:
        assert recipe.lora is not None
        adapted = 8 if kind == "double" else 6  # sides of the adapted kernels: q, k, v, and proj
        factors = 2 * batch * length * adapted * width * recipe.lora.rank
        # A frozen kernel has no gradient of its own. Attention's kernel repeats one product.
        flops = 2 * linear + 3 * factors + (1 + 2.5) * core
    return flops / (CHIPS[chip].peak_tflops * 1e3) * CHIPS[chip].clock_ghz


def rows(chips: Sequence[str], batches: Sequence[int], *, training: bool) -> list[dict[str, Any]]:
    """A row for every chip, batch and kind of block, and one for all blocks of the model."""
    config, made = flux_dev(), []
    counts = {"double": config.double_depth, "single": config.single_depth}
    for chip in chips:
        recipe = preset(PRESETS[chip]) if training else None
        kernels = kernel_cycles(chip, IMG + TXT, gradient=training)
        for batch in batches:
            found, floors = {}, {}
            for kind in BLOCKS:
                program = block_operations(kind, chip, batch, recipe)
                cycles, heads = _summed(program, chip), batch * config.num_heads
                core: dict[Part, int] = {
                    "attention": sum(
                        heads * kernels[_kernel(each.name)]
                        for each in program
                        if each.part == "attention"
                    )
                }
                found[kind] = Cycles(cycles.parts | core, cycles.at_peak | core)
                floors[kind] = _floor(kind, chip, batch, recipe)
            shown = [(kind, found[kind], floors[kind]) for kind in BLOCKS]
            floor = sum(counts[kind] * floors[kind] for kind in BLOCKS)
            shown.append(("all", _weighted(found, counts), floor))
            for name, cycles, least in shown:
                made.append({"chip": chip, "block": name, "batch": batch, **_row(cycles, least)})
                print(made[-1], flush=True)
    return made


def _weighted(found: dict[str, Cycles], counts: dict[str, int]) -> Cycles:
    """Adds up so many blocks of each kind."""

    def total(of: Callable[[Cycles], dict[Part, int]]) -> dict[Part, int]:
        return {
            part: sum(n * of(found[kind])[part] for kind, n in counts.items()) for part in PARTS
        }

    return Cycles(total(lambda each: each.parts), total(lambda each: each.at_peak))


def _row(cycles: Cycles, floor: float) -> dict[str, Any]:
    estimated, peak = sum(cycles.parts.values()), sum(cycles.at_peak.values())
    return {
        "floor": _millions(floor),
        **{part: _millions(cycles.parts[part]) for part in PARTS},
        "estimated": _millions(estimated),
        "at peak": _millions(peak),
        "share of floor": f"{floor / estimated:.0%} to {floor / peak:.0%}",
    }


def step_rows(chips: Sequence[str]) -> list[dict[str, Any]]:
    """The whole scanned step on eight chips, an image on each, without attention."""
    scan, made = Execution(scan_layers=True, attention="splash"), []
    for chip in chips:
        shape = "2x2x2" if chip == "v5p" else "2x4"
        case = Case(f"{chip}:{shape}", 8, MeshConfig(fsdp=-1, data=1), scan)
        text = compiled_step(case, guided=False).as_text() or ""
        cycles = _summed(operations(text), chip)
        made.append(
            {
                "chip": chip,
                **{p: _millions(n) for p, n in cycles.parts.items() if p != "attention"},
                "estimated": _millions(sum(cycles.parts.values())),
                "at peak": _millions(sum(cycles.at_peak.values())),
            }
        )
        print(made[-1], flush=True)
    return made


def _millions(cycles: float) -> float:
    return round(cycles / 1e6, 2)


def main() -> None:
    """Prints the tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", nargs="+", default=["v5e", "v6e"], choices=KINDS)
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 1])
    parser.add_argument("--tables", nargs="+", default=["sampling"], choices=TABLES)
    parser.add_argument("--kernel", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kernel is not None:
        chip, length, gradient = given.kernel
        _compile_kernel(chip, int(length), gradient=gradient == "True")
        return
    if "sampling" in given.tables:
        save(__file__, rows(given.chips, given.batches, training=False))
    if "training" in given.tables:
        save(__file__, rows(given.chips, given.batches, training=True), "training")
    if "step" in given.tables:
        save(__file__, step_rows(given.chips), "step")


if __name__ == "__main__":
    main()
