"""Plans a recipe for hardware that you do not have yet, and searches for suitable meshes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from jax.sharding import Mesh

from dsd_jax.aot import Job, Plan, compile_job
from dsd_jax.config import Execution, FluxConfig, flux_dev
from dsd_jax.errors import UserError
from dsd_jax.extras import advice
from dsd_jax.infer.job import SampleSize, sample_job
from dsd_jax.sharding import MeshConfig
from dsd_jax.terminal import facts_text
from dsd_jax.topology import Topology
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.job import attention_for, canvas_of, forward_flops, train_job

__all__ = ["Question", "candidates", "cheaper", "make_plan", "plans_of", "report", "searched"]


@dataclasses.dataclass(frozen=True)
class Question:
    """A step to plan, and the hardware to plan it for.

    Attributes:
        topology: the hardware.
        config: the recipe.
        job: the training step, or one sampling step of `batch_size` images.
        guided: sample with true guidance, in three passes.
        encoded: train on encoded data, with neither VAE nor text encoders in memory.
    """

    topology: Topology
    config: TrainConfig
    job: Literal["train", "sample"] = "train"
    guided: bool = False
    encoded: bool = False


def make_plan(question: Question, flux: FluxConfig | None = None) -> Plan:
    """Compiles the step for the topology.

    Args:
        question: the step and the hardware.
        flux: size of the model; by default FLUX.1-dev's.
    """
    config = question.config
    flux = flux or flux_dev(condition_embed=config.condition)

    def train(mesh: Mesh) -> Job:
        return train_job(config, flux, mesh, encoded=question.encoded)

    def sample(mesh: Mesh) -> Job:
        execution = Execution(scan_layers=config.scan_layers, attention=attention_for(mesh))
        canvas, text = canvas_of(config), config.max_sequence_length
        size = SampleSize(config.batch_size, canvas, text, question.guided, config.weights)
        forward = forward_flops(flux, canvas.tokens, text)
        return sample_job(flux, mesh, size, execution, forward)

    build = train if question.job == "train" else sample
    return compile_job(build, question.topology, config.mesh)


def plans_of(question: Question, say: Callable[[str], None]) -> list[tuple[str, Plan]]:
    """Plans as configured; if that does not fit, tries cheaper settings until one does.

    Args:
        question: the step and the hardware.
        say: called with each change that is tried.
    """
    plans = [("as configured", make_plan(question))]
    if plans[0][1].fits or question.job != "train":
        return plans
    for change, config in cheaper(question.config):
        say(f"does not fit; trying {change}")
        plans.append((change, make_plan(dataclasses.replace(question, config=config))))
        if plans[-1][1].fits:
            break
    return plans


def searched(question: Question, say: Callable[[str], None]) -> list[tuple[str, Plan]]:
    """Plans every candidate; sorts by fit, then by the compiler's cycles for a step.

    Where no compiler states cycles, the least collective traffic comes first.

    Args:
        question: the step and the hardware.
        say: called with each candidate that is tried.
    """
    made = []
    for change, config in candidates(question.config, question.topology.chips):
        say(f"trying {change}")
        made.append((change, make_plan(dataclasses.replace(question, config=config))))
    return sorted(made, key=lambda item: (not item[1].fits, *_cost(item[1])))


def _cost(plan: Plan) -> tuple[float, float]:
    cycles = plan.estimate.mcycles if plan.estimate else 0
    return cycles, sum(plan.collectives.values())


def cheaper(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Yields changes that need less memory, each on top of the last, the fastest first."""
    for remat in ("attention+qkv", "attention", "full"):
        order = ("none", "dots", "attention+qkv", "attention", "full")
        if order.index(remat) > order.index(config.remat):
            config = dataclasses.replace(config, remat=remat)
            yield f"--remat {remat}", config
    if config.mesh.fsdp == 1:
        config = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=-1))
        yield "--mesh.data 1 --mesh.fsdp -1", config
    for _ in range(6):
        accumulate = config.optimizer.accumulate * 2
        if config.batch_size % accumulate:
            return
        optimizer = dataclasses.replace(config.optimizer, accumulate=accumulate)
        config = dataclasses.replace(config, optimizer=optimizer)
        yield f"--optimizer.accumulate {accumulate}", config


def candidates(config: TrainConfig, chips: int) -> Iterator[tuple[str, TrainConfig]]:
    """Yields meshes and rematerialisation policies worth compiling for a number of chips.

    A canvas is shared by as few chips as the batch allows.

    Raises:
        UserError: the batch cannot be spread over so many chips.
    """
    rows = next((r for c in (1, 2, 4, 8, 16) if (r := _rows(config, chips, c))), 0)
    if not rows:
        raise UserError(
            f"a batch of {config.batch_size} cannot be spread over {chips} chips, with at most 16 "
            "to a sample; give another --batch_size"
        )
    for fsdp in sorted({1, 4, 8, rows}):
        if rows % fsdp:
            continue
        mesh = MeshConfig(data=rows // fsdp, fsdp=fsdp, context=chips // rows)
        for remat in ("attention", "full"):
            label = f"data {mesh.data} x fsdp {fsdp} x context {mesh.context}, remat {remat}"
            yield label, dataclasses.replace(config, mesh=mesh, remat=remat)


def _rows(config: TrainConfig, chips: int, context: int) -> int:
    """Number of groups of `context` chips that share the batch evenly; 0 if they cannot."""
    rows = chips // context
    return (
        0 if chips % context or config.batch_size % (config.optimizer.accumulate * rows) else rows
    )


def report(plans: Sequence[tuple[str, Plan]]) -> str:
    """Writes plans as text: the verdict, and memory, work and traffic of a chip."""
    return "\n".join(_reported(change, plan) for change, plan in plans)


def _reported(change: str, plan: Plan) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1)
    facts = [
        ("settings", change),
        ("mesh", mesh or "one device"),
        ("memory", f"{plan.total} of {plan.available} GiB per chip, by {plan.source}"),
        *((f"  {name}", f"{size:8.2f} GiB") for name, size in plan.memory.items()),
        ("work", f"{plan.tflops} TFLOP per chip and step"),
        ("time", f"at least {plan.step_floor_s} s per step, at the peak of the chip"),
    ]
    if plan.estimate is not None:
        found = plan.estimate
        by_compiler = f"{found.mcycles:,.0f} million cycles, {found.seconds:.2f} s per step"
        at_peak = f"{found.mcycles_at_peak:,.0f} million cycles, {found.seconds_at_peak:.2f} s"
        facts.append(("estimate", f"{by_compiler}, by the TPU compiler; not measured"))
        facts.append(("", f"{at_peak}, if all but products ran at the peak of the memory"))
    if plan.collectives:
        facts.append(("traffic", "between chips, per chip and step"))
        facts += [(f"  {op}", f"{size:8.3f} GiB") for op, size in plan.collectives.items()]
    if plan.source == "arithmetic":
        facts.append(("compiler", f"not asked: {advice('plan-gpu')}"))
    if plan.problem:
        facts.append(("compiler", plan.problem))
    verdict = "fits" if plan.fits else "does not fit"
    return f"{plan.topology}: {verdict}\n{facts_text(facts, indent='  ')}"
