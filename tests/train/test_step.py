"""The loss and the step: what is trained, by which loss, and that a mesh changes neither."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsd_jax.config import FluxConfig
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.frames import Canvas, FluxInputs
from dsd_jax.sharding import LOGICAL_TO_MESH, MeshConfig, make_mesh
from dsd_jax.train.config import FlowConfig, OptimizerConfig, TrainConfig
from dsd_jax.train.model import Start, first_state, make_trainee
from dsd_jax.train.objective import (
    Customise,
    EncodedBatch,
    Objective,
    Teach,
    frame_weights,
)
from dsd_jax.train.optimizer import OPTIMIZERS, make_optimizer
from dsd_jax.train.state import Split, TrainState, state_shardings
from dsd_jax.train.step import Metrics, Step, make_step
from dsd_jax.weights import TensorSource
from tests.tiny_flux import CANVAS, TINY, random_tensors
from tests.tiny_training import (
    RECIPE,
    flat,
    in_memory,
    make_batch,
    one_device,
    trainee,
)

TOKENS = CANVAS.tokens
# Hands the gradients of a step back as its state, and changes nothing.
GRADIENTS = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _state, _params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def customise(flow: FlowConfig) -> Customise:
    return Customise(flow, Schedule(), CANVAS)


def teach(flow: FlowConfig) -> Teach:
    return Teach(flow, Schedule(), CANVAS)


def compiled(split: Split, config: TrainConfig, optimizer: Any, **options: Any) -> Step:
    step = make_step(split.graphdef, optimizer, customise(config.flow), config)
    return jax.jit(step, **options)


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def key_of(step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(RECIPE.seed), step)


@functools.cache
def split() -> Split:
    return trainee().split


@functools.cache
def on_one_device() -> tuple[Step, TrainState]:
    """The step of `RECIPE`, and a state before it."""
    optimizer = make_optimizer(RECIPE.optimizer, RECIPE.steps)
    state = first_state(trainee().split, optimizer, one_device(), ema=True)
    return compiled(split(), RECIPE, optimizer), state


def run(state: TrainState, batch: EncodedBatch | None = None) -> tuple[TrainState, Metrics]:
    return on_one_device()[0](state, split().frozen, batch or make_batch())


def drawn_loss(
    trained: Any, graphdef: Any, frozen: Any, objective: Objective, batch: EncodedBatch, key: Any
) -> Any:
    """The loss outside the step, and the losses of both frames."""
    losses = objective(nnx.merge(graphdef, trained, frozen), batch, key)
    return losses.loss, losses[1:]


def fast_jit(function: Any, *static: str) -> Any:
    return jax.jit(function, static_argnames=static)


loss_of = fast_jit(drawn_loss, "graphdef", "objective")
value_and_grad = fast_jit(jax.value_and_grad(drawn_loss, has_aux=True), "graphdef", "objective")


def reference_gradients(batch: EncodedBatch, key: jax.Array) -> tuple[Any, dict[str, np.ndarray]]:
    """The loss with its parts, and its gradients by path."""
    loss, grads = value_and_grad(
        split().trained, split().graphdef, split().frozen, customise(RECIPE.flow), batch, key
    )
    return loss, flat(grads)


# The loss


def predict(graphdef: Any, trained: Any, frozen: Any, inputs: dict[str, Any]) -> jax.Array:
    model = nnx.merge(graphdef, trained, frozen)
    rest = {name: inputs[name] for name in inputs.keys() - {"img", "t"}}
    return model(inputs["img"], inputs["t"], FluxInputs(**rest), CANVAS)


@pytest.mark.parametrize(
    ("weights", "guidance"), [((1.0, 1.0), 1.0), ((1.0, 3.0), 3.5), ((0.0, 2.0), 1.0)]
)
def test_loss_by_hand(weights: tuple[float, float], guidance: float) -> None:
    """Mean squared error of the velocity, frame by frame; dropped inputs are the null ones."""
    flow = FlowConfig(reference_weight=weights[0], target_weight=weights[1], guidance=guidance)
    batch = make_batch(4)
    noise, t = map(np.asarray, customise(flow).draw(key_of(0), batch.x_0))
    x_0 = np.asarray(batch.x_0)
    assert batch.drop_text.tolist() == [False, False, True, True]
    assert batch.drop_image.tolist() == [False, True, False, True]
    null_txt, null_vec, null = batch.null_txt, batch.null_vec, np.zeros_like(x_0[0])
    txt, vec, cond = batch.txt, batch.vec, batch.img_cond
    assert cond is not None
    velocity = fast_jit(predict, "graphdef")(
        *split(),
        {
            "img": np.stack([(1 - t[i]) * x_0[i] + t[i] * noise[i] for i in range(4)]),
            "txt": np.stack([txt[0], txt[1], null_txt, null_txt]),
            "vec": np.stack([vec[0], vec[1], null_vec, null_vec]),
            "img_cond": np.stack([cond[0], null, cond[2], null]),
            "t": t,
            "guidance": np.full(4, guidance, np.float32),
        },
    )
    error = ((velocity - (noise - x_0)) ** 2).reshape(4, CANVAS.height // 2, CANVAS.width // 2, -1)
    left, right = np.split(np.asarray(error), 2, axis=2)
    graphdef, trained, frozen = split()
    loss, parts = loss_of(trained, graphdef, frozen, customise(flow), batch, key_of(0))
    np.testing.assert_allclose(parts, [left.mean(), right.mean()], rtol=1e-5)
    expected = (weights[0] * left.mean() + weights[1] * right.mean()) / sum(weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert relative(left.mean(), right.mean()) > 1e-3


def test_loss_without_condition() -> None:
    """A teacher's: over the whole canvas, and the condition embedding has no part in it."""
    batch, model = make_batch(4, condition=False), trainee().split
    losses = []
    for factor in (1.0, 2.0):
        cond = jax.tree.map(lambda x, f=factor: f * x, model.trained["cond_in"])
        trained = nnx.State({**model.trained, "cond_in": cond})
        graphdef, _, frozen = model
        loss, parts = loss_of(trained, graphdef, frozen, teach(RECIPE.flow), batch, key_of(0))
        assert float(loss) == float(parts[0]) == float(parts[1])
        losses.append(float(loss))
    assert losses[0] == losses[1]


def test_frame_weights() -> None:
    weights = np.asarray(frame_weights(Canvas(4, 8))).reshape(2, 2, 4)
    np.testing.assert_array_equal(weights[0], [[2, 2, 0, 0]] * 2)
    np.testing.assert_array_equal(weights[1], [[0, 0, 2, 2]] * 2)


def test_a_fresh_adapter_starts_as_the_base_model() -> None:
    """With the default initialisation the first loss is that of the model without condition."""
    tensors = random_tensors()
    tensors |= {k: np.zeros_like(v) for k, v in tensors.items() if k.startswith("cond_in")}

    def build(config: FluxConfig) -> Split:
        weights = in_memory(config, TensorSource(tensors))
        recipe = dataclasses.replace(RECIPE, condition=config.condition_embed)
        return make_trainee(recipe, weights, one_device()).split

    def loss(model: Split, batch: EncodedBatch) -> float:
        graphdef, trained, frozen = model
        objective = teach(RECIPE.flow) if batch.img_cond is None else customise(RECIPE.flow)
        return float(loss_of(trained, graphdef, frozen, objective, batch, key_of(0))[0])

    student, batch = build(TINY), make_batch()
    teacher = build(dataclasses.replace(TINY, condition_embed=False))
    base = loss(teacher, batch._replace(img_cond=None))
    assert loss(student, batch) == pytest.approx(base, rel=1e-6)
    start = flat(student.trained)
    assert all(not array.any() for path, array in start.items() if "lora_a" not in path)
    assert all(array.all() for path, array in start.items() if "lora_a" in path)
    assert relative(loss(split(), batch), base) > 1e-3


def test_a_new_condition_embedding_reads_pictures_as_the_canvas_is_read() -> None:
    """But one that the base brings stays as it is."""
    config = dataclasses.replace(RECIPE, condition_init="image")
    tensors = random_tensors()
    brought = tensors["cond_in.kernel"]
    zero = tensors | {k: np.zeros_like(v) for k, v in tensors.items() if k.startswith("cond_in")}
    sharded = make_mesh(MeshConfig(data=1, fsdp=8))
    for base, wanted, mesh in (
        (zero, tensors["img_in.kernel"], one_device()),
        (zero, tensors["img_in.kernel"], sharded),
        (tensors, brought, one_device()),
    ):
        made = make_trainee(config, in_memory(TINY, TensorSource(base)), mesh)
        np.testing.assert_array_equal(flat(made.split.trained)["cond_in.kernel"], wanted)
        first_state(made.split, make_optimizer(config.optimizer, 1), mesh, ema=False)
        assert flat(made.split.frozen)["img_in.kernel"].any()  # its memory is its own
    with pytest.raises(UserError, match="condition_init is for training with condition"):
        dataclasses.replace(config, condition=False)


def test_from_scratch_no_velocity_is_predicted() -> None:
    """Modulations and the last Linear are zero (adaLN-Zero), so the loss is that of zeros."""
    config = dataclasses.replace(RECIPE, lora=None)
    weights = in_memory(TINY, TensorSource(random_tensors()))
    split = make_trainee(config, weights, one_device(), Start(from_scratch=True)).split
    batch = make_batch()
    noise, t = jax.random.normal(jax.random.key(0), batch.x_0.shape), jnp.full(8, 0.3)

    def loss(trained: Any, frozen: Any) -> jax.Array:
        model = nnx.merge(split.graphdef, trained, frozen)
        return customise(config.flow).at(model, batch, noise, t).loss

    found = fast_jit(loss)(split.trained, split.frozen)
    assert float(found) == pytest.approx(float(jnp.square(noise - batch.x_0).mean()), rel=1e-5)
    drawn = [path for path, array in flat(split.trained).items() if array.std() > 0]
    assert any("qkv.kernel" in path for path in drawn)
    assert any("mlp.in_layer.kernel" in path for path in drawn)


# The step


def test_randomness_is_of_seed_and_step() -> None:
    """A state at step 5 takes the step that any other run with this seed takes."""
    state = on_one_device()[1]
    for number in (0, 5):
        loss = run(state._replace(step=jnp.int32(number)))[1].loss
        (expected, _), _ = reference_gradients(make_batch(), key_of(number))
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert run(state)[1].loss != loss


def test_only_the_adapter_and_the_condition_embedding_are_trained() -> None:
    state = on_one_device()[1]
    trained, rest = flat(state.params), flat(split().frozen)
    assert trained.keys() == SPECS.keys()
    assert not any(".lora_" in path or path.startswith("cond_in") for path in rest)
    new, _ = run(state)
    assert int(new.step) == 1
    for path, array in flat(new.params).items():
        assert 1e-5 < relative(array, trained[path]) < 1, path
    moments = jax.tree.leaves(new.opt_state)
    assert sum(x.size for x in moments if x.ndim) == 2 * sum(x.size for x in trained.values())


def test_trained_parameters_are_float32_whatever_the_base() -> None:
    half = dataclasses.replace(RECIPE, base_dtype="bfloat16")
    model = trainee(half).split
    assert {x.dtype for x in jax.tree.leaves(model.trained)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(model.frozen)} == {jnp.dtype("bfloat16")}
    full = trainee(dataclasses.replace(half, lora=None)).split
    assert {x.dtype for x in jax.tree.leaves(full.trained)} == {jnp.dtype("float32")}
    assert len(flat(full.trained)) == len(flat(split().frozen)) + 2
    assert not jax.tree.leaves(full.frozen)


def test_metrics() -> None:
    """Gradients before clipping, parameters after the step."""
    state = on_one_device()[1]
    new, metrics = run(state)
    (loss, parts), grads = reference_gradients(make_batch(), key_of(0))
    np.testing.assert_allclose(metrics[:3], [loss, *parts], rtol=1e-5)
    norm = sum(float(np.square(grad, dtype=np.float64).sum()) for grad in grads.values()) ** 0.5
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert float(metrics.grad_norm) > RECIPE.optimizer.clip
    assert float(metrics.param_norm) == pytest.approx(float(optax.tree.norm(new.params)), rel=1e-5)


def gradients_of_step(config: TrainConfig) -> tuple[dict[str, np.ndarray], Metrics]:
    """Gradients of the first step, by path."""
    model = trainee(config).split
    state = first_state(model, GRADIENTS, one_device(), ema=False)
    step = compiled(model, config, GRADIENTS)
    state, metrics = step(state, model.frozen, make_batch())
    return flat(state.opt_state), metrics


def test_a_base_in_eight_bits_gives_the_gradients_of_the_numbers_that_it_stands_for() -> None:
    """They differ from those of the exact base by no more than rounding to eight bits explains."""
    coded = trainee(dataclasses.replace(RECIPE, weights="int8")).split
    codes, numbers = flat(coded.frozen), []
    for path, exact in nnx.to_flat_state(split().frozen):
        name, variable = ".".join(map(str, path)), exact
        if f"{name}_scale" in codes:
            scale = codes[f"{name}_scale"]  # [layers, *out] beside codes [layers, *in, *out]
            inputs = range(1, 1 + codes[name].ndim - scale.ndim)
            number = codes[name].astype(np.float32) * np.expand_dims(scale, tuple(inputs))
            variable = exact.replace(jnp.asarray(number))
        numbers.append((path, variable))
    assert len(codes) > len(numbers)

    def gradients(model: Split) -> dict[str, np.ndarray]:
        objective, key = customise(RECIPE.flow), key_of(0)
        return flat(
            value_and_grad(
                model.trained, model.graphdef, model.frozen, objective, make_batch(), key
            )[1]
        )

    found = gradients(coded)
    same = gradients(split()._replace(frozen=nnx.from_flat_state(numbers)))
    _, of_base = reference_gradients(make_batch(), key_of(0))
    for name, grad in found.items():
        assert relative(grad, same[name]) < 1e-5, name
        assert 1e-4 < relative(grad, of_base[name]) < 0.05, name


def test_eight_bits_are_a_base_for_a_lora_alone() -> None:
    with pytest.raises(UserError, match="int8 weights are frozen, so a training of all parameters"):
        dataclasses.replace(RECIPE, weights="int8", lora=None)
    weights = in_memory(TINY, TensorSource(random_tensors()))
    config = dataclasses.replace(RECIPE, weights="int8")
    with pytest.raises(UserError, match="not for a training of all parameters or from scratch"):
        make_trainee(config, weights, one_device(), Start(from_scratch=True))


def test_accumulation_is_the_mean_of_micro_batches() -> None:
    """Every fourth sample is a micro-batch, with draws of its own."""
    accumulate = dataclasses.replace(RECIPE.optimizer, accumulate=4)
    found, metrics = gradients_of_step(dataclasses.replace(RECIPE, optimizer=accumulate))
    batch, losses = make_batch(), []
    sums: dict[str, Any] = dict.fromkeys(SPECS, 0.0)
    for i in range(4):
        own = {k: v[i::4] for k, v in batch._asdict().items() if not k.startswith("null")}
        key = jax.random.fold_in(key_of(0), i)
        (loss, _), grads = reference_gradients(batch._replace(**own), key)
        losses.append(float(loss))
        sums = {path: sums[path] + grad for path, grad in grads.items()}
    assert float(metrics.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    for path, grad in found.items():
        assert relative(grad, sums[path] / 4) < 1e-5, path


def test_averaged_parameters() -> None:
    state = on_one_device()[1]
    expected = flat(state.params)
    for _ in range(3):
        state, _ = run(state)
        expected = {p: 0.9 * expected[p] + 0.1 * new for p, new in flat(state.params).items()}
    assert state.ema is not None
    for path, average in flat(state.ema).items():
        np.testing.assert_allclose(average, expected[path], rtol=1e-5, atol=1e-7)
        assert relative(average, flat(state.params)[path]) > 1e-4


def test_rematerialisation_and_layout_change_nothing() -> None:
    _, expected = reference_gradients(make_batch(), key_of(0))
    config = dataclasses.replace(RECIPE, remat="full", scan_layers=False)
    unrolled, _ = gradients_of_step(config)
    for path, grad in expected.items():
        stack, _, rest = path.partition(".")
        layers = [unrolled[f"{stack}.{i}.{rest}"] for i in range(len(grad)) if "_blocks" in stack]
        assert relative(np.stack(layers) if layers else unrolled[path], grad) < 1e-5, path


# Meshes

R, F, T = ("fsdp", "data"), ("fsdp",), ("tensor",)
# Of the scanned layout on a mesh with all axes.
SPECS = {
    "cond_in.kernel": P(None, F),
    "cond_in.bias": P(),
    "double_blocks.img_attn.qkv.lora_a": P(None, None, None, R),
    "double_blocks.img_attn.qkv.lora_b": P(None, None, R, T, None),
    "double_blocks.img_attn.proj.lora_a": P(None, T, None, R),
    "double_blocks.img_attn.proj.lora_b": P(None, R, None),
    "double_blocks.txt_attn.qkv.lora_a": P(None, None, None, R),
    "double_blocks.txt_attn.qkv.lora_b": P(None, None, R, T, None),
    "double_blocks.txt_attn.proj.lora_a": P(None, T, None, R),
    "double_blocks.txt_attn.proj.lora_b": P(None, R, None),
    "single_blocks.qkv.lora_a": P(None, None, None, R),
    "single_blocks.qkv.lora_b": P(None, None, R, T, None),
}
MESHES = {
    "data=8": MeshConfig(8, 1, 1, 1),  # the base replicated
    "fsdp=8": MeshConfig(1, 8, 1, 1),
    "fsdp=4, tensor=2": MeshConfig(1, 4, 2, 1),
    "data=2, fsdp=2, context=2": MeshConfig(2, 2, 1, 2),
    "data=2, tensor=2, context=2": MeshConfig(2, 1, 2, 2),
}
LONG = dataclasses.replace(
    RECIPE,
    batch_size=16,
    remat="full",
    optimizer=dataclasses.replace(RECIPE.optimizer, accumulate=2),
)
LOSS, UPDATE = 2e-6, 1e-4  # relative errors allowed; seen: 2.3e-7 and 3.3e-6


def train(config: TrainConfig, mesh: Mesh) -> tuple[TrainState, list[float]]:
    """The state after a run, and the losses."""
    model = trainee(config, mesh).split
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = first_state(model, optimizer, mesh, ema=True)
    everywhere = NamedSharding(mesh, P())
    batches = [make_batch(config.batch_size, seed=i) for i in range(config.steps)]
    rows = jax.tree.map(lambda _: NamedSharding(mesh, P(LOGICAL_TO_MESH["batch"])), batches[0])
    rows = rows._replace(null_txt=everywhere, null_vec=everywhere)
    where = jax.tree.map(lambda x: x.sharding, state)
    step = compiled(model, config, optimizer, donate_argnums=0, out_shardings=(where, everywhere))
    losses = []
    with jax.set_mesh(mesh):
        for batch in batches:
            state, metrics = step(state, model.frozen, jax.device_put(batch, rows))
            losses.append(float(metrics.loss))
    return state, losses


@functools.cache
def expected_run() -> tuple[TrainState, list[float]]:
    return train(LONG, one_device())


@pytest.mark.parametrize(
    "name",
    # Each axis is in a mesh that CI has time for.
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("data=8", "fsdp=8") else [])
        for name in MESHES
    ],
)
def test_a_mesh_changes_nothing(name: str) -> None:
    """20 steps on 8 devices as on one; parameters, moments and averages lie as the table says."""
    state, losses = train(LONG, make_mesh(MESHES[name]))
    expected, expected_losses = expected_run()
    np.testing.assert_allclose(losses, expected_losses, rtol=LOSS)
    start = flat(split().trained)
    for ours, theirs in ((state.params, expected.params), (state.ema, expected.ema)):
        one = flat(theirs)
        for path, array in flat(ours).items():
            assert relative(array - start[path], one[path] - start[path]) < UPDATE, path
    adam = state.opt_state[1][0]
    for tree in (state.params, adam.mu, adam.nu, state.ema):
        assert tree is not None
        found = {".".join(map(str, keys)): value for keys, value in nnx.to_flat_state(tree)}
        assert found.keys() == SPECS.keys()
        for path, variable in found.items():
            array = variable[...]
            wanted = NamedSharding(array.sharding.mesh, SPECS[path])
            assert array.sharding.is_equivalent_to(wanted, array.ndim), (path, array.sharding)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_as_their_parameters(name: str) -> None:
    """Everything that an optimiser keeps has a place, and no two arrays share memory."""
    mesh = make_mesh(MESHES["fsdp=4, tensor=2"])
    optimizer = make_optimizer(OptimizerConfig(name=name), 20)
    shape, everywhere = (256, 4, 136), NamedSharding(mesh, P())
    sharding = NamedSharding(mesh, P(F, None, T))
    where = nnx.State({"a": nnx.Param(sharding)})
    value = jax.device_put(jnp.ones(shape), sharding)
    trained = nnx.State({"a": nnx.Param(value)})
    model = Split(split().graphdef, trained, nnx.State({}))
    shardings = state_shardings(trained, where, optimizer, mesh, ema=True)
    state = first_state(model, optimizer, mesh, ema=True)
    for sharding, array in zip(*map(jax.tree.leaves, (shardings, state)), strict=True):
        wanted = NamedSharding(mesh, P(F, None, T)) if array.shape == shape else everywhere
        assert sharding == wanted
        assert array.sharding.is_equivalent_to(wanted, array.ndim)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)(state)
    assert float(doubled.params["a"][0, 0, 0]) == 2
