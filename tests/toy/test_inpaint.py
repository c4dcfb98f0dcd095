"""The loss that teaches a text-to-image model to paint beside a given picture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.frames import FluxInputs
from dsd_jax.toy.making.inpaint import Inpaint
from dsd_jax.train.objective import Losses, Teach
from tests.tiny_flux import CANVAS
from tests.tiny_training import RECIPE, make_batch, trainee


def fast_jit(function: Any) -> Any:
    return jax.jit(function)


def test_a_given_frame_is_less_noisy_and_bears_no_loss() -> None:
    """The left halves of two samples have times of their own."""
    batch, (graphdef, trained, frozen) = make_batch(4, condition=False), trainee().split
    objective = Inpaint(RECIPE.flow, Schedule(), CANVAS)
    noise, t = map(np.asarray, objective.draw(jax.random.key(0), batch.x_0))
    x_0 = np.asarray(batch.x_0)
    t_left = t * np.asarray([1, 0, 0.5, 1], np.float32)
    left = np.tile([True] * 3 + [False] * 3, CANVAS.tokens // 6)
    given = np.asarray([False, True, True, False])[:, None] & left
    times = np.where(left, t_left[:, None], t[:, None])[..., None]
    inputs = FluxInputs(
        txt=jnp.where(batch.drop_text[:, None, None], batch.null_txt, batch.txt),
        vec=jnp.where(batch.drop_text[:, None], batch.null_vec, batch.vec),
        guidance=jnp.full(4, RECIPE.flow.guidance, jnp.float32),
    )

    @fast_jit
    def predict(trained: Any, frozen: Any, x_t: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, trained, frozen)(x_t, jnp.asarray(t), inputs, CANVAS)

    @fast_jit
    def found(trained: Any, frozen: Any) -> Losses:
        model = nnx.merge(graphdef, trained, frozen)
        own = (jnp.asarray(x) for x in (noise, t, t_left))
        return objective.beside(model, batch, *own)

    velocity = np.asarray(predict(trained, frozen, (1 - times) * x_0 + times * noise))
    error = np.square(velocity - (noise - x_0))[~given]
    np.testing.assert_allclose(found(trained, frozen).loss, error.mean(), rtol=1e-5)


def test_some_samples_are_given_a_frame_and_the_others_are_taught() -> None:
    batch, (graphdef, trained, frozen) = make_batch(4, condition=False), trainee().split
    teach, inpaint = (
        Teach(RECIPE.flow, Schedule(), CANVAS),
        Inpaint(RECIPE.flow, Schedule(), CANVAS),
    )

    @fast_jit
    def losses(trained: Any, frozen: Any, key: jax.Array) -> list[jax.Array]:
        model = nnx.merge(graphdef, trained, frozen)
        nothing = Inpaint(RECIPE.flow, Schedule(), CANVAS, share=0.0)
        return [objective(model, batch, key).loss for objective in (teach, nothing, inpaint)]

    taught, nothing_given, given = losses(trained, frozen, jax.random.key(3))
    assert float(nothing_given) == pytest.approx(float(taught), rel=1e-6)
    assert abs(float(given) - float(taught)) > 1e-4


@pytest.mark.parametrize(("name", "value"), [("share", 1.0), ("noise", -0.1)])
def test_shares_outside_their_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"inpaint {name} must lie in \[0, 1\), got {value}"):
        Inpaint(RECIPE.flow, Schedule(), CANVAS, **{name: value})
