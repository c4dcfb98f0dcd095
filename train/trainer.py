"""The programs of a run: one object that takes a batch of pairs and makes a step."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsd_jax.data.load.encoded import Embedding
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.frames import Canvas
from dsd_jax.lora import Adapter
from dsd_jax.parts import FluxParts
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.encode import Encoder
from dsd_jax.train.flops import step_flops
from dsd_jax.train.model import abstract_state, first_state, make_trainee
from dsd_jax.train.optimizer import learning_rate, make_optimizer
from dsd_jax.train.record import Origin
from dsd_jax.train.state import TrainState
from dsd_jax.train.step import EncodedBatch, Metrics, Step, make_step

__all__ = ["Trainer", "guarded"]

Size = tuple[int, int]


def guarded(step: Step) -> Step:
    """The step, but numbers that are not finite leave all but the counter as it was."""

    def run(
        state: TrainState, frozen: nnx.State, batch: EncodedBatch
    ) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, frozen, batch)
        good = jnp.isfinite(jnp.stack(jax.tree.leaves(metrics))).all()
        kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
        return kept._replace(step=new.step), metrics

    return run


class Trainer:
    """Model, optimiser, encoders and compiled steps on a mesh.

    Args:
        config: the recipe.
        base: what training starts from.
        mesh: all devices of the run.
        adapter: where the factors start; None: new ones.
        from_scratch: random base weights.
        null: embedding of the empty prompt, if the data brings it.
        skip_bad: make steps that a bad batch cannot spoil.
        dump: folder for the text of compiled steps.
        compiler_options: of XLA.

    Raises:
        UserError: base, adapter, mesh and config do not fit together.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: FluxParts,
        mesh: Mesh,
        *,
        adapter: Adapter | None = None,
        from_scratch: bool = False,
        null: Embedding | None = None,
        skip_bad: bool = False,
        dump: Path | None = None,
        compiler_options: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.base, self.mesh = config, base, mesh
        self._skip_bad, self._dump = skip_bad, dump
        self.compiler_options = compiler_options
        Canvas.from_pixels(config.height, config.width, base.autoencoder.config.downscale)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.trainee = make_trainee(
            config, base.transformer, mesh, adapter=adapter, from_scratch=from_scratch
        )
        self.frozen = self.trainee.split.frozen
        self.encoder = Encoder(base, config, mesh, null=null, compiler_options=compiler_options)
        ema = config.optimizer.ema > 0
        self.state_shapes = abstract_state(self.trainee.split, self.optimizer, mesh, ema=ema)
        self._compiled: dict[tuple[Size, int], Callable[..., tuple[TrainState, Metrics]]] = {}
        self.compiled_in = 0.0  # seconds that the last step spent on compiling
        self.text_tokens = 0  # of a prompt, known after the first step

    @property
    def origin(self) -> Origin:
        """The transformer that training starts from."""
        return Origin(self.base.path, self.base.transformer.sha256())

    @property
    def stacks(self) -> Mapping[str, int]:
        """Path and depth of the stacks of blocks."""
        return self.trainee.stacks

    def state(self, restore: Callable[[TrainState], TrainState] | None = None) -> TrainState:
        """The state to go on from; may be asked for once.

        Args:
            restore: makes it from its shapes and shardings; None: the state before the first step.
        """
        split, ema = self.trainee.split, self.config.optimizer.ema > 0
        # The new factors are used up or not needed: in either case they free their memory.
        self.trainee = self.trainee._replace(split=split._replace(trained=self.state_shapes.params))
        if restore is not None:
            return restore(self.state_shapes)
        return first_state(split, self.optimizer, self.mesh, ema=ema)

    def step(self, state: TrainState, batch: PairBatch, step: int) -> tuple[TrainState, Metrics]:
        """One update; `state` is used up.

        Args:
            state: of `step` updates.
            batch: on the mesh.
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
            return self._compiled[shape](state, self.frozen, encoded)

    def canvas(self, size: Size) -> Canvas:
        """The canvas for frames of `size` pixels."""
        frames = 2 if self.config.condition else 1
        return Canvas.from_pixels(size[0], frames * size[1], self.base.autoencoder.config.downscale)

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
        return step_flops(both, trained, self.trainee.config, image, self.text_tokens).total

    def learning_rate(self, step: int) -> float:
        """Of the update that follows `step` updates."""
        with jax.numpy_dtype_promotion("standard"):
            return float(learning_rate(self.config.optimizer, self.config.steps)(step))

    def _compile(
        self, state: TrainState, batch: EncodedBatch, size: Size
    ) -> Callable[..., tuple[TrainState, Metrics]]:
        config = self.config
        step = make_step(
            self.trainee.split.graphdef,
            self.optimizer,
            config,
            self.base.schedule,
            self.canvas(size),
        )
        where = functools.partial(jax.tree.map, lambda x: x.sharding)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        jitted = jax.jit(
            guarded(step) if self._skip_bad else step,
            in_shardings=(where(state), where(self.frozen), where(batch)),
            out_shardings=(where(state), everywhere),
            donate_argnums=0,
        )
        lowered = jitted.lower(state, self.frozen, batch)
        compiled = lowered.compile(self.compiler_options)
        if self._dump is not None and jax.process_index() == 0:
            self._dump.mkdir(parents=True, exist_ok=True)
            stem = f"step-{size[0]}x{size[1]}-{self.text_tokens}"
            (self._dump / f"{stem}.stablehlo.txt").write_text(lowered.as_text())
            (self._dump / f"{stem}.hlo.txt").write_text(compiled.as_text() or "")
        return compiled
