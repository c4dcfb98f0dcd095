"""The trainer of a transformer: makes a step from a batch of pairs."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.data.load.encoded import Embedding
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.frames import Canvas
from dsd_jax.parts import FluxParts
from dsd_jax.processes import busy
from dsd_jax.sharding import replicated
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.encode import Encoder
from dsd_jax.train.flops import step_flops, teacher_flops
from dsd_jax.train.model import BASE, Start, first_state, make_trainee, train_state_shapes
from dsd_jax.train.objective import EncodedBatch, MakeObjective, Objective, method_of
from dsd_jax.train.optimizer import learning_rate, make_optimizer
from dsd_jax.train.record import Origin
from dsd_jax.train.state import TrainState
from dsd_jax.train.step import Metrics, guarded, make_step

__all__ = ["StepOptions", "Trainer"]

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of the compiled step. They do not change the numbers of a good batch.

    Attributes:
        skip_bad: leave the state as it is after a batch whose loss is not finite.
        dump: folder for the text of compiled steps.
    """

    skip_bad: bool = False
    dump: Path | None = None


class Trainer:
    """Model, optimiser, encoders and compiled steps on a mesh.

    Args:
        config: the recipe.
        base: weights that training starts from.
        mesh: all devices of the run.
        start: start of the parameters.
        objective: loss; by default that of the recipe, see `method_of`.
        null: embedding of the empty prompt, if the data brings it.
        options: options of the step.

    Raises:
        UserError: base, adapter, mesh and config do not fit together.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: FluxParts,
        mesh: Mesh,
        *,
        start: Start = BASE,
        objective: MakeObjective | None = None,
        null: Embedding | None = None,
        options: StepOptions | None = None,
    ) -> None:
        self.config, self.base, self.mesh = config, base, mesh
        self.options = options or StepOptions()
        self._objective = objective or method_of(config)
        Canvas.from_pixels(config.height, config.width, base.autoencoder.config.downscale)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.trainee = make_trainee(config, base.transformer, mesh, start)
        self.frozen = self.trainee.split.frozen
        # A distillation learns from the model as the run begins, also when the run is resumed.
        self.teacher = (
            jax.tree.map(jnp.copy, self.trainee.split.trained) if config.distill else None
        )
        self._teacher_sha256 = start.adapter.sha256() if config.distill and start.adapter else ""
        self.encoder = Encoder(base, config, mesh, null=null)
        ema = config.optimizer.ema > 0
        self.state_shapes = train_state_shapes(self.trainee.split, self.optimizer, mesh, ema=ema)
        self._compiled: dict[tuple[Size, int], Callable[..., tuple[TrainState, Metrics]]] = {}
        self.compiled_in = 0.0  # seconds that the last step spent on compiling
        self.text_tokens = 0  # of a prompt, known after the first step

    @property
    def origin(self) -> Origin:
        """The transformer that training starts from."""
        digests = self.base.transformer.sha256()
        return Origin(self.base.path, digests, self._teacher_sha256)

    @property
    def stacks(self) -> Mapping[str, int]:
        """Path and depth of the stacks of blocks."""
        return self.trainee.stacks

    def state(self, restore: Callable[[TrainState], TrainState] | None = None) -> TrainState:
        """Makes the state to resume from. Call it once.

        Args:
            restore: makes it from its shapes and shardings; None gives the state before the first
                step.
        """
        split, ema = self.trainee.split, self.config.optimizer.ema > 0
        # The new factors are used up or not needed: in either case they free their memory.
        self.trainee = self.trainee._replace(split=split._replace(trained=self.state_shapes.params))
        if restore is not None:
            return restore(self.state_shapes)
        return first_state(split, self.optimizer, self.mesh, ema=ema)

    def step(self, state: TrainState, batch: PairBatch, step: int) -> tuple[TrainState, Metrics]:
        """Makes one update; `state` is used up.

        Args:
            state: state after `step` updates.
            batch: batch on the mesh.
            step: the same number on the host.
        """
        encoded = self.encoder(batch, step)
        self.text_tokens = encoded.txt.shape[1]
        self.compiled_in = 0.0
        shape = batch.size, self.text_tokens
        if shape not in self._compiled:
            start = time.perf_counter()
            self._compiled[shape] = self._compile(state, encoded, batch.size)
            self.compiled_in = time.perf_counter() - start
        with jax.transfer_guard("disallow"):
            return self._compiled[shape](state, self.frozen, encoded, self.teacher)

    def canvas(self, size: Size) -> Canvas:
        """Canvas for frames of `size` pixels."""
        frames = 2 if self.config.condition else 1
        return Canvas.from_pixels(size[0], frames * size[1], self.base.autoencoder.config.downscale)

    def objective(self, size: Size) -> Objective:
        """Objective for frames of `size` pixels."""
        return self._objective(self.config.flow, self.base.schedule, self.canvas(size))

    def flops(self, size: Size) -> float:
        """FLOPs of a step per sample with frames of `size` pixels, see `dsd_jax.train.flops`."""
        flat = {
            name: nnx.to_flat_state(state)
            for name, state in (("trained", self.trainee.split.trained), ("frozen", self.frozen))
        }
        shapes = {
            name: {".".join(map(str, path)): tuple(variable.shape) for path, variable in own}
            for name, own in flat.items()
        }
        trained = frozenset(shapes["trained"])
        both = shapes["trained"] | shapes["frozen"]
        image = self.canvas(size).tokens
        found = step_flops(both, trained, self.trainee.config, image, self.text_tokens)
        return found.total + teacher_flops(self.config, found)

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step + 1`."""
        with jax.numpy_dtype_promotion("standard"):
            return float(learning_rate(self.config.optimizer, self.config.steps)(step))

    def _compile(
        self, state: TrainState, batch: EncodedBatch, size: Size
    ) -> Callable[..., tuple[TrainState, Metrics]]:
        step = make_step(
            self.trainee.split.graphdef, self.optimizer, self.objective(size), self.config
        )
        where = functools.partial(jax.tree.map, lambda x: x.sharding)
        everywhere = replicated(self.mesh)
        jitted = jax.jit(
            guarded(step) if self.options.skip_bad else step,
            in_shardings=(where(state), where(self.frozen), where(batch), where(self.teacher)),
            out_shardings=(where(state), everywhere),
            donate_argnums=0,
        )
        lowered = jitted.lower(state, self.frozen, batch, self.teacher)
        with busy(f"compiling the step for frames of {size[0]}x{size[1]}"):
            compiled = lowered.compile()
        if self.options.dump is not None and jax.process_index() == 0:
            self.options.dump.mkdir(parents=True, exist_ok=True)
            stem = f"step-{size[0]}x{size[1]}-{self.text_tokens}"
            (self.options.dump / f"{stem}.stablehlo.txt").write_text(lowered.as_text())
            (self.options.dump / f"{stem}.hlo.txt").write_text(compiled.as_text() or "")
        return compiled
