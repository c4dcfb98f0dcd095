"""The summary of a run before its first step, and the note on what a crash would lose."""

import math
from collections.abc import Sequence

import jax
from flax import nnx

from dsd_jax.progress import clock_time
from dsd_jax.sharding import batch_ways
from dsd_jax.terminal import facts_text
from dsd_jax.train.config import DataConfig, RunConfig, TrainConfig
from dsd_jax.train.state import Split

__all__ = ["at_risk", "summary"]

_LONG = 30 * 60  # seconds of work worth a warning


def summary(
    name: str, config: TrainConfig, run: RunConfig, data: DataConfig, pairs: int, split: Split
) -> str:
    """Names parameters, pairs, mesh, precision and save points of a run, a line each.

    Args:
        name: name of the preset.
        config: the recipe.
        run: how and where it runs.
        data: sources of the pairs.
        pairs: number of pairs.
        split: the split model.
    """
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    kind = "canvases" if config.condition else "pictures"
    size = f"{config.height}x{config.width} pixels"
    title = f"{name}: {config.steps:,} steps of {config.batch_size:,} {kind} of {size} on {devices}"
    facts = {
        "trained": f"{_count(split.trained)} in float32{_adapter(config)}",
        "frozen": f"{_count(split.frozen)} in {config.base_dtype}",
        "pairs": f"{pairs:,} from {', '.join(data.data)}",
        "mesh": _mesh(config),
        "saved": _saved(config.steps, run),
        "checked": _checked(run, data),
    }
    return f"{title}\n{facts_text(facts.items(), indent='  ')}"


def at_risk(every: int, steps: int, seconds: float) -> str | None:
    """Warns of the work that a crash would lose; None if that is little.

    Args:
        every: steps between checkpoints.
        steps: steps of the run.
        seconds: seconds of one step.
    """
    lost = min(every, steps)
    if lost * seconds < _LONG:
        return None
    better = max(1, int(_LONG / seconds))
    return (
        f"note: checkpoints are {lost:,} steps apart, about {clock_time(lost * seconds)} h of work "
        f"that a crash would lose; --save_every {better} makes it half an hour"
    )


def _count(state: nnx.State) -> str:
    leaves = jax.tree.leaves(state)
    number = sum(math.prod(leaf.shape) for leaf in leaves)
    return f"{number:,} parameters"


def _adapter(config: TrainConfig) -> str:
    if config.lora is None:
        return ""
    targets = config.lora.targets
    where = targets if isinstance(targets, str) else ", ".join(targets)
    return f": LoRA of rank {config.lora.rank} on {where}" + (
        ", and the condition embedding" if config.condition else ""
    )


def _mesh(config: TrainConfig) -> str:
    mesh = jax.sharding.get_abstract_mesh()
    at_once = config.batch_size // config.optimizer.accumulate
    if mesh.empty or mesh.size == 1:
        return f"one device; {at_once} samples at once"
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{sizes}; {at_once // batch_ways(mesh)} samples at once on each part of the batch"


def _saved(steps: int, run: RunConfig) -> str:
    if run.save_every >= steps:
        return (
            f"at the end, to {run.checkpoints}; a crash loses everything "
            f"(--save_every {max(1, steps // 10)} would save ten times)"
        )
    return (
        f"every {run.save_every:,} steps and at the end, to {run.checkpoints}; a crash loses up to "
        f"{run.save_every:,} steps"
    )


def _checked(run: RunConfig, data: DataConfig) -> str:
    sources: Sequence[str] = [
        *([f"{run.eval_pairs} pairs of {data.eval_data}"] if data.eval_data else []),
        *([f"prompts of {run.sample_prompts}"] if run.sample_prompts else []),
    ]
    if not sources or not run.eval_every:
        return "never; --eval_data HELD_OUT checks on held-out pairs"
    return f"every {run.eval_every:,} steps and at the end, on {' and '.join(sources)}"
