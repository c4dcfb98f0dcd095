import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.config import BFLOAT16, FLOAT32, ClipConfig, Execution, T5Config
from dsd_jax.errors import UserError
from dsd_jax.sharding import CLIP_RULES, T5_RULES, MeshConfig, make_mesh, param_shardings
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.t5 import T5Encoder
from dsd_jax.weights import param_shapes
from tests.tiny_modules import random_module

T5 = T5Config(vocab=64, width=16, depth=2, num_heads=4, head_dim=8, mlp_width=32)
CLIP = ClipConfig(vocab=64, width=16, depth=2, num_heads=4, mlp_width=32)


def random_ids(batch: int, length: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (batch, length), 0, 64)


def t5(execution: Execution | None = None) -> T5Encoder:
    return random_module(
        lambda rngs: T5Encoder(T5, precision=FLOAT32, execution=execution, rngs=rngs)
    )


def clip(config: ClipConfig = CLIP) -> ClipTextEncoder:
    return random_module(lambda rngs: ClipTextEncoder(config, precision=FLOAT32, rngs=rngs))


def test_t5_sharded_over_heads_equals_one_device() -> None:
    model, ids = t5(Execution(scan_layers=True)), random_ids(4, 12)
    expected = jax.jit(model.__call__)(ids)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    graphdef, state = nnx.split(model)
    shardings = param_shardings(param_shapes(model), T5_RULES, mesh, list(model.stacks))
    flat = nnx.to_flat_state(state)
    placed = nnx.from_flat_state(
        (path, variable.replace(jax.device_put(variable[...], shardings[".".join(map(str, path))])))
        for path, variable in flat
    )
    spec = placed["blocks"]["attn"]["q"]["kernel"][...].sharding.spec
    assert tuple(spec) == (None, "fsdp", "tensor", None)
    with jax.set_mesh(mesh):
        hidden = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids))(placed, ids)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_t5_parameters_of_the_published_size_have_their_rules(scan: bool) -> None:
    execution = Execution(scan_layers=scan)
    model = nnx.eval_shape(
        lambda: T5Encoder(T5Config(), precision=BFLOAT16, execution=execution, rngs=nnx.Rngs(0))
    )
    shapes = param_shapes(model)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_762_310_656
    param_shardings(shapes, T5_RULES, make_mesh(MeshConfig(fsdp=2, tensor=4)), list(model.stacks))


def test_clip_parameters_of_the_published_size() -> None:
    model = nnx.eval_shape(
        lambda: ClipTextEncoder(ClipConfig(), precision=BFLOAT16, rngs=nnx.Rngs(0))
    )
    shapes = param_shapes(model)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 123_060_480
    param_shardings(shapes, CLIP_RULES, make_mesh(), list(model.stacks))


def test_t5_attends_in_both_directions_and_clip_only_back() -> None:
    ids = random_ids(1, 12)
    changed = ids.at[0, 6].set((ids[0, 6] + 1) % 64)
    encode = jax.jit(t5().__call__)
    moved = np.abs(encode(ids) - encode(changed)).max(-1)[0]
    assert (moved > 0).all()
    read = jax.jit(clip().__call__)
    moved = np.abs(read(ids).hidden - read(changed).hidden).max(-1)[0]
    assert (moved[:6] == 0).all()
    assert (moved[6:] > 0).all()


def test_pooled_is_the_hidden_state_of_the_end_token() -> None:
    ids = jnp.asarray([[60, 5, 63, 9, 62, 63], [60, 62, 4, 7, 63, 63]])
    hidden, pooled = clip()(ids)  # the legacy rule: first of the largest ids
    np.testing.assert_array_equal(pooled, hidden[jnp.arange(2), jnp.asarray([2, 4])])
    hidden, pooled = clip(dataclasses.replace(CLIP, eos_token_id=62))(ids)
    np.testing.assert_array_equal(pooled, hidden[jnp.arange(2), jnp.asarray([4, 1])])


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(UserError, match="activation 'relu'; only gelu, gelu_tanh, quick_gelu are"):
        clip(dataclasses.replace(CLIP, activation="relu"))
