"""The parts of a condition: paths, shapes, and the tensors of a file with it."""

from flax import nnx

from dsd_jax.condition import CANVAS
from dsd_jax.weights import param_shapes
from tests.tiny_flux import TINY, abstract_flux


def test_the_condition_owns_the_parameters_that_it_adds() -> None:
    shapes = param_shapes(abstract_flux())
    own = {path: shape for path, shape in shapes.items() if CANVAS.owns(path)}
    assert own == CANVAS.shapes(TINY)
    assert CANVAS.owns(CANVAS.module)
    assert not CANVAS.owns(f"{CANVAS.module}_other.kernel")


def test_weights_with_the_condition_are_recognised() -> None:
    assert CANVAS.is_in(param_shapes(abstract_flux()))
    assert not CANVAS.is_in(["img_in.kernel"])


def test_an_adapter_leaves_the_condition_alone() -> None:
    from dsd_jax.lora import select

    chosen = select(abstract_flux(), "all")
    assert "img_in" in chosen
    assert CANVAS.module not in chosen
    assert isinstance(abstract_flux().cond_in, nnx.Module)
