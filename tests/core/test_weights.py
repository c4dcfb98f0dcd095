"""Weights from a source to devices: values, places, dtypes, and no needless read."""

import collections
import threading
from collections.abc import Mapping

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dsd_jax.config import BFLOAT16, Execution
from dsd_jax.errors import UserError
from dsd_jax.flux import Flux
from dsd_jax.lora import LoraConfig, initialise, merge
from dsd_jax.models import abstract, model_shardings
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.stack import layer_paths
from dsd_jax.types import Shape
from dsd_jax.weights import Index, Layered, TensorSource, WeightSource, Zeros, empty, materialise
from tests.tiny_flux import TINY, abstract_flux, random_tensors

MESHES = {
    "fsdp=8": MeshConfig(1, 8),
    "mixed": MeshConfig(2, 2, 2),
    "context": MeshConfig(1, 2, 2, 2),
}


class Recorder:
    """Counts how often every element of every tensor is read."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.source = TensorSource(tensors)
        self.counts = {path: np.zeros(tensor.shape, int) for path, tensor in tensors.items()}
        self._lock = threading.Lock()

    @property
    def shapes(self) -> dict[str, Shape]:
        return self.source.shapes

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return self.source.dtypes

    def read(self, path: str, index: Index) -> np.ndarray:
        with self._lock:
            self.counts[path][index] += 1
        return self.source.read(path, index)


def per_layer(model: Flux) -> dict[str, np.ndarray]:
    """The model's parameters by per-layer path."""
    found: dict[str, np.ndarray] = {}
    for parts, variable in nnx.to_flat_state(nnx.state(model)):
        path = ".".join(map(str, parts))
        layers = layer_paths(path, model.stacks)
        value = np.asarray(variable[...])
        found |= {path: value} if layers == [path] else dict(zip(layers, value, strict=True))
    return found


def assert_same(found: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == tensors.keys()
    for path, tensor in tensors.items():
        np.testing.assert_array_equal(found[path], tensor, err_msg=path)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_every_value_arrives(scan_layers: bool) -> None:
    tensors = random_tensors()
    model = abstract_flux(scan_layers=scan_layers)
    model = materialise(model, TensorSource(tensors), stacks=model.stacks)
    assert_same(per_layer(model), tensors)
    assert {len(v.sharding.device_set) for v in jax.tree.leaves(nnx.state(model))} == {1}


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("mesh", MESHES)
def test_every_value_arrives_on_a_mesh(mesh: str, scan_layers: bool) -> None:
    """Every value lies in its place and is read once, however many devices keep a copy."""
    recorder = Recorder(random_tensors())
    model = abstract_flux(scan_layers=scan_layers)
    shardings = model_shardings(model, make_mesh(MESHES[mesh]))
    model = materialise(model, recorder, stacks=model.stacks, shardings=shardings)
    assert_same(per_layer(model), recorder.source.tensors)
    for parts, variable in nnx.to_flat_state(nnx.state(model)):
        assert variable[...].sharding == shardings[".".join(map(str, parts))]
    for path, counts in recorder.counts.items():
        np.testing.assert_array_equal(counts, 1, err_msg=path)


def test_layers_are_read_straight_into_their_stack() -> None:
    """A copy of each layer would cost memory and time; adapters before the base change nothing."""

    class Direct(Recorder):
        def read(self, path: str, index: Index) -> np.ndarray:
            assert "_blocks." not in path, path
            return super().read(path, index)

        def fill(self, path: str, index: Index, out: np.ndarray) -> None:
            out[...] = super().read(path, index)

    base = Direct(random_tensors())
    own = {"single_blocks.1.mlp_in.bias": np.full(128, 7, np.float32)}
    model = abstract_flux(scan_layers=True)
    model = materialise(model, Layered(TensorSource(own), base), stacks=model.stacks)
    assert_same(per_layer(model), {**base.source.tensors, **own})


def test_cast_to_the_dtype_of_the_model() -> None:
    tensors = random_tensors()
    model = abstract(TINY, precision=BFLOAT16, execution=Execution(scan_layers=True))
    model = materialise(model, TensorSource(tensors), stacks=model.stacks)
    expected = {path: tensor.astype(ml_dtypes.bfloat16) for path, tensor in tensors.items()}
    assert_same(per_layer(model), expected)


def aligned(tensor: np.ndarray) -> np.ndarray:
    """A copy that starts where a cache line does; JAX may use such memory as it is."""
    memory = np.empty(tensor.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    copy[...] = tensor
    return copy


def test_the_source_is_not_written_to() -> None:
    """Merging donates kernels; their memory must not be the caller's."""
    tensors = {path: aligned(tensor) for path, tensor in random_tensors().items()}
    model = abstract_flux()
    model = materialise(model, TensorSource(tensors), stacks=model.stacks)
    initialise(model, LoraConfig(rank=2, targets=r".*\.mlp_in"), nnx.Rngs(0))
    for block in model.single_blocks:
        block.mlp_in.lora_b[...] += 1
    before = np.asarray(model.single_blocks[1].mlp_in.kernel[...]).copy()
    merge(model)
    assert np.abs(model.single_blocks[1].mlp_in.kernel[...] - before).max() > 0.1
    assert_same(tensors, random_tensors())


def refusal(source: WeightSource) -> str:
    model = abstract_flux(scan_layers=True)
    with pytest.raises(UserError) as error:
        materialise(model, source, stacks=model.stacks)
    return str(error.value)


def test_missing_and_misshapen_parameters_are_told_at_once() -> None:
    tensors = random_tensors()
    del tensors["double_blocks.1.img_mlp.in_layer.kernel"]
    tensors["img_in.kernel"] = tensors["img_in.kernel"].T
    assert refusal(TensorSource(tensors)) == (
        "these weights do not fit the model:"
        "\n  missing: double_blocks.1.img_mlp.in_layer.kernel (64, 128)"
        "\n  wrong shape: img_in.kernel is (64, 16), the model needs (16, 64)"
    )


def test_long_lists_are_cut() -> None:
    message = refusal(TensorSource({}))
    count = len(random_tensors())
    assert message.count("missing: ") == 8
    assert f"and {count - 8} more" in message


def test_an_error_of_the_source_comes_through() -> None:
    class Broken(Recorder):
        def read(self, path: str, index: Index) -> np.ndarray:
            if path == "txt_in.bias":
                raise UserError("the file is torn")
            return super().read(path, index)

    assert refusal(Broken(random_tensors())) == "the file is torn"


def test_earlier_sources_win() -> None:
    tensors = random_tensors()
    own = {"img_in.bias": np.full(64, 7, np.float32)}
    zeros = Zeros({"cond_in.kernel": (16, 64), "img_in.bias": (64,)}, ml_dtypes.bfloat16)
    layered = Layered(TensorSource(own), zeros, TensorSource(tensors))
    assert layered.shapes == TensorSource(tensors).shapes
    whole = (slice(None),)
    np.testing.assert_array_equal(layered.read("img_in.bias", whole), own["img_in.bias"])
    np.testing.assert_array_equal(
        layered.read("cond_in.kernel", (slice(2, 4), slice(None))), np.zeros((2, 64))
    )
    np.testing.assert_array_equal(layered.read("txt_in.bias", whole), tensors["txt_in.bias"])
    assert layered.dtypes["cond_in.kernel"] == ml_dtypes.bfloat16
    assert collections.Counter(layered.dtypes.values())[np.dtype(np.float32)] == len(tensors) - 1


@pytest.mark.parametrize("shape", [(1000, 70), (), (0, 3)])
def test_a_cpu_device_takes_over_the_memory_of_a_new_array(shape: tuple[int, ...]) -> None:
    array = empty(shape, ml_dtypes.bfloat16)
    array[...] = 1
    held = jax.device_put(array, jax.devices("cpu")[0])
    assert held.shape == shape
    assert (np.asarray(held) == 1).all()
    if array.size > 1:
        assert held.unsafe_buffer_pointer() == array.ctypes.data
