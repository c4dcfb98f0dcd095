"""Cycles of FLUX.1-dev's blocks on TPUs, as the TPU compiler estimates them, without a TPU.

    pip install libtpu
    python -m benchmarks.speed.tpu_cycles [--chips v5e v6e] [--batches 4 1] [--backward] [--step]

Two frames of 512 x 512 (2,048 image and 512 text tokens), bfloat16. Nothing is run, so no row is a
time: `estimated` adds up what the compiler states, `at peak` charges all that is no product at the
peak of the chip's memory. The compiler says nothing of Pallas kernels; the cycles of attention are
counted from the instruction bundles of its kernels, one bundle a cycle, without waits for memory.
`floor` is the work of the products at the chip's peak. `--step` also compiles the whole scanned
step, sharded over eight chips, whose loops contain the collectives too.
"""

import argparse
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
from dsd_jax.blocks import DoubleBlock, SingleBlock
from dsd_jax.config import BFLOAT16, Execution, flux_dev
from dsd_jax.cycles import PARTS, Cycles, Part, operations, summed
from dsd_jax.flux import parted
from dsd_jax.sharding import MeshConfig
from dsd_jax.topology import CHIPS, Topology, devices_of

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
    "backward": (
        "Cycles of FLUX's blocks on TPUs, with their gradients",
        """The same for a block and its gradient by inputs and weights. The rows hold the
modulations, which training makes in every pass.""",
    ),
}

KINDS = ("v5e", "v5p", "v6e")
BLOCKS = {"double": DoubleBlock, "single": SingleBlock}
IMG, TXT = 2048, 512
_MARK = re.compile(r"^\s*(0x[0-9a-f]+)\s+(LB|PF|LH|LE|PB):")


def _topology(chip: str) -> Topology:
    return Topology.parse(f"{chip}:{'2x2x1' if chip == 'v5p' else '2x2'}")


def block_cycles(kind: str, chip: str, batch: int, *, backward: bool = False) -> Cycles:
    """Compiles one block for one chip, and adds up its cycles without attention.

    Args:
        kind: "double" or "single".
        chip: one of `KINDS`.
        batch: canvases on the chip.
        backward: take the gradient by inputs and weights, not the output. The block then makes
            its modulations, as it does in training; in sampling they are given.
    """
    config, sharding = flux_dev(), SingleDeviceSharding(devices_of(_topology(chip))[0])
    make = BLOCKS[kind]
    block = nnx.eval_shape(lambda: make(config, precision=BFLOAT16, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(block)

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), tree)

    width, splash = config.width, functools.partial(attention, implementation="splash")
    lengths = (TXT + IMG,) if kind == "single" else (IMG, TXT)
    streams = tuple(array(batch, length, width) for length in lengths)
    vec, pe = array(batch, width), array(2, TXT + IMG, config.head_dim, dtype=jnp.float32)

    def sampled(state: Any, streams: Any, modulations: Any, pe: Any) -> Any:
        return nnx.merge(graphdef, state)(*streams, modulations, pe, splash)

    def modulations(state: Any, vec: Any) -> Any:
        model: Any = nnx.merge(graphdef, state)
        return model.modulations(vec)

    def trained(state: Any, streams: Any, vec: Any, pe: Any) -> Any:
        def run(*given: Any) -> Any:
            state, streams, vec = given
            return sampled(state, streams, modulations(state, vec), pe)

        out, back = jax.vjp(run, state, streams, vec)
        return back(out)

    # Layers choose their form by JAX's backend, which is the CPU here.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        if backward:
            compiled = jax.jit(trained).lower(placed(state), streams, vec, pe).compile()
        else:
            using, made = parted(state)[1], jax.eval_shape(modulations, state, vec)
            compiled = jax.jit(sampled).lower(placed(using), streams, placed(made), pe).compile()
    return summed(
        operations(compiled.as_text() or ""), CHIPS[chip].gb_per_s / CHIPS[chip].clock_ghz
    )


def kernel_cycles(chip: str, length: int, *, backward: bool = False) -> int:
    """Cycles of splash attention for one head of 128 channels, counted in its bundles.

    The kernel's loop runs once for each tile; its bundles are those of the pipeline and the body.

    Args:
        chip: one of `KINDS`.
        length: tokens, queries as well as keys.
        backward: add the kernel of the gradient.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        words = [sys.executable, "-m", __spec__.name, "--kernel", chip, str(length), str(backward)]
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
        subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
        found = [
            path
            for path in Path(folder).glob("*splash_mha*final_bundles.txt")
            if "schedule" not in path.name
        ]
        blocks = splash_blocks(length, length)
        total = 0
        for path in found:
            dkv = "dkv" in path.name
            q, kv = (
                (blocks.block_q_dkv, blocks.block_kv_dkv)
                if dkv
                else (blocks.block_q, blocks.block_kv)
            )
            assert q is not None  # `splash_blocks` sets all sizes
            assert kv is not None
            total += _bundles(path) * (length // q) * (length // kv)
        return total


def _bundles(path: Path) -> int:
    """Bundles from the beginning of the loop to its end."""
    with path.open() as file:
        found = filter(None, map(_MARK.match, file))
        marks = [(int(match.group(1), 16), match.group(2)) for match in found]
    return marks[-1][0] - next(place for place, mark in marks if mark == "LB")


def _compile_kernel(chip: str, length: int, *, backward: bool) -> None:
    sharding = SingleDeviceSharding(devices_of(_topology(chip))[0])
    x = jax.ShapeDtypeStruct((1, length, 1, 128), jnp.bfloat16, sharding=sharding)

    def run(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, implementation="splash")

    def gradient(q: Any, k: Any, v: Any) -> Any:
        out, back = jax.vjp(run, q, k, v)
        return back(out)

    jax.jit(gradient if backward else run).lower(x, x, x).compile()


def _floor(chip: str, batch: int, *, backward: bool) -> float:
    """Cycles of a block's products at the chip's peak; both kinds have as many."""
    config = flux_dev()
    length, width = IMG + TXT, config.width
    linear = 2 * batch * length * 12 * width**2
    core = 4 * batch * length**2 * width
    # The gradient takes two products for each; attention's kernel also repeats one of its two.
    flops = 3 * linear + (1 + 2.5) * core if backward else linear + core
    return flops / (CHIPS[chip].peak_tflops * 1e3) * CHIPS[chip].clock_ghz


def rows(chips: Sequence[str], batches: Sequence[int], *, backward: bool) -> list[dict[str, Any]]:
    """A row for every chip, batch and kind of block, and one for all blocks of the model."""
    config, made = flux_dev(), []
    counts = {"double": config.double_depth, "single": config.single_depth}
    for chip in chips:
        kernel = config.num_heads * kernel_cycles(chip, IMG + TXT, backward=backward)
        for batch in batches:
            floor = _floor(chip, batch, backward=backward)
            core: dict[Part, int] = {"attention": batch * kernel}
            found = {}
            for kind in BLOCKS:
                cycles = block_cycles(kind, chip, batch, backward=backward)
                found[kind] = Cycles(cycles.parts | core, cycles.at_peak | core)
            shown = [(kind, cycles, floor) for kind, cycles in found.items()]
            shown.append(("all", _weighted(found, counts), floor * sum(counts.values())))
            for name, cycles, least in shown:
                block = name + (" with gradient" if backward else "")
                made.append({"chip": chip, "block": block, "batch": batch, **_row(cycles, least)})
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
        cycles = summed(operations(text), CHIPS[chip].gb_per_s / CHIPS[chip].clock_ghz)
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
    parser.add_argument("--backward", action="store_true", help="also with gradients")
    parser.add_argument("--step", action="store_true", help="also the whole step")
    parser.add_argument("--kernel", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kernel is not None:
        chip, length, backward = given.kernel
        _compile_kernel(chip, int(length), backward=backward == "True")
        return
    save(__file__, rows(given.chips, given.batches, backward=False))
    if given.backward:
        save(__file__, rows(given.chips, given.batches, backward=True), "backward")
    if given.step:
        save(__file__, step_rows(given.chips), "step")


if __name__ == "__main__":
    main()
