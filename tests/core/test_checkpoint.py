"""Orbax checkpoints: every bit comes back, and nothing is left of what failed."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from flax import nnx

from dsd_jax import checkpoint
from dsd_jax.checkpoint import OrbaxSource, is_checkpoint, save_params
from dsd_jax.errors import UserError
from dsd_jax.models import model_shardings
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.weights import materialise
from tests.tiny_flux import abstract_flux, random_tensors

RNG = np.random.default_rng(0)
TENSORS = {
    "img_in.kernel": RNG.standard_normal((16, 24), np.float32),
    "img_in.bias": RNG.standard_normal(24).astype(ml_dtypes.bfloat16),
    "double_blocks.0.qkv.kernel": RNG.standard_normal((6, 3, 2, 4)).astype(ml_dtypes.bfloat16),
    "double_blocks.10.qkv.kernel": RNG.standard_normal((6, 3, 2, 4)).astype(np.float16),
    "scalar.scale": np.float32(3.5) * np.ones(()),
}


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def whole(tensor: np.ndarray) -> tuple[slice, ...]:
    return (slice(None),) * tensor.ndim


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is written on its own, so that errors come between writes."""
    monkeypatch.setattr(checkpoint, "BATCH_BYTES", 1)


@pytest.mark.usefixtures("_small_batches")
def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "params"
    save_params(path, TENSORS.items(), {"sha256": {"a.safetensors": "0f"}, "layers": [1, 2]})
    source = OrbaxSource(path)
    assert source.shapes == {name: tensor.shape for name, tensor in TENSORS.items()}
    assert source.dtypes == {name: tensor.dtype for name, tensor in TENSORS.items()}
    assert source.metadata == {"sha256": {"a.safetensors": "0f"}, "layers": [1, 2]}
    for name, tensor in TENSORS.items():
        read = source.read(name, whole(tensor))
        assert read.dtype == tensor.dtype
        np.testing.assert_array_equal(bits(read), bits(tensor), err_msg=name)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("dtype", "words"), [(ml_dtypes.bfloat16, np.uint16), (np.float32, np.uint32)]
)
def test_every_bit_pattern_survives(tmp_path: Path, dtype: type, words: type) -> None:
    """Payloads of NaN, both zeros, subnormals, infinities."""
    size = np.dtype(words).itemsize
    patterns: np.ndarray = RNG.integers(0, 256, 2**16 * size, np.uint8).view(words)
    patterns[: 2**16 // 8] |= words(np.array(np.inf, dtype).view(words))  # mostly NaN
    patterns[-2:] = [0, 1 << (8 * size - 1)]
    tensor: np.ndarray = patterns.view(dtype).reshape(256, 256)
    with np.errstate(invalid="ignore"):  # bfloat16's isnan warns of the NaN it finds
        assert np.isnan(tensor).sum() > 1000
    save_params(tmp_path / "params", [("all.kernel", tensor)])
    read = OrbaxSource(tmp_path / "params").read("all.kernel", whole(tensor))
    np.testing.assert_array_equal(bits(read), bits(tensor))


def test_slices_and_strided_tensors(tmp_path: Path) -> None:
    tensor = RNG.standard_normal((5, 12, 8)).astype(np.float32).transpose(2, 0, 1)[::2]
    save_params(tmp_path / "params", [("a.kernel", tensor)])
    source = OrbaxSource(tmp_path / "params")
    for index in (
        (slice(1, 3), slice(None), slice(2, 7)),
        (slice(0, 4, None), slice(4, 5), slice(0, 12)),
        (slice(2, 2), slice(None), slice(None)),
    ):
        np.testing.assert_array_equal(source.read("a.kernel", index), tensor[index])


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_params("out/params", TENSORS.items())
    source = OrbaxSource("out/params")
    monkeypatch.chdir("/")
    tensor = TENSORS["img_in.kernel"]
    np.testing.assert_array_equal(source.read("img_in.kernel", whole(tensor)), tensor)


def test_a_model_from_a_checkpoint(tmp_path: Path) -> None:
    """Written per layer; read scanned, onto a mesh."""
    tensors = random_tensors()
    save_params(tmp_path / "params", tensors.items())
    model = abstract_flux(scan_layers=True)
    model = materialise(
        model,
        OrbaxSource(tmp_path / "params"),
        stacks=model.stacks,
        shardings=model_shardings(model, make_mesh(MeshConfig(2, 2, 2))),
    )
    for layer in range(3):
        np.testing.assert_array_equal(
            model.single_blocks.mlp_in.kernel[...][layer],
            tensors[f"single_blocks.{layer}.mlp_in.kernel"],
        )
    assert len(jax.tree.leaves(nnx.state(model))[0].sharding.device_set) == 8


# Refusals


def failing(error: BaseException) -> Iterator[tuple[str, np.ndarray]]:
    yield from list(TENSORS.items())[:3]
    raise error


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize(
    "error", [UserError("the source is torn"), OSError("bad sector"), KeyboardInterrupt("stop")]
)
def test_an_error_of_the_source_leaves_nothing_and_comes_through(
    tmp_path: Path, error: BaseException
) -> None:
    """Neighbours of a similar name stay."""
    neighbours = [tmp_path / name for name in ("params-old", "params.txt", "params.partial")]
    for neighbour in neighbours:
        neighbour.mkdir()
    with pytest.raises(type(error), match=str(error)):
        save_params(tmp_path / "params", failing(error))
    assert sorted(tmp_path.iterdir()) == sorted(neighbours)


def test_existing_destination(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    with pytest.raises(UserError, match="params exists already; remove it or choose another"):
        save_params(tmp_path / "params", TENSORS.items())
    assert not list((tmp_path / "params").iterdir())


def test_destination_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        save_params(tmp_path / "file" / "params", TENSORS.items())
    assert "cannot write" in str(error.value)
    assert "GB free); nothing was left behind" in str(error.value)


def test_destination_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match=r"cannot write /proc/none/params: .*; nothing was left"):
        save_params("/proc/none/params", TENSORS.items())


@pytest.fixture
def _files_of_100_kb() -> Iterator[None]:
    """The system refuses to write longer files, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_files_of_100_kb")
def test_disk_that_takes_no_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A message, not the tracebacks of Orbax' threads."""
    tensor = RNG.standard_normal((300, 300))
    with pytest.raises(UserError, match=r"cannot write .*params: File too large \(.* GB free\)"):
        save_params(tmp_path / "params", [("a.kernel", tensor)])
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err


def make_nothing(path: Path) -> Path:
    return path


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def make_file(path: Path) -> Path:
    path.write_text("weights")
    return path


def make_unfinished(path: Path) -> Path:
    ocp.partial.save(path, {"a": np.ones(3)})
    (left,) = path.parent.iterdir()
    return left


@pytest.mark.parametrize("make", [make_nothing, make_folder, make_file, make_unfinished])
def test_what_is_no_checkpoint(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "params")
    assert not is_checkpoint(path)
    with pytest.raises(UserError, match="is not a finished Orbax checkpoint; write one with `dsd"):
        OrbaxSource(path)


def test_leftovers_of_a_killed_process_do_not_get_in(tmp_path: Path) -> None:
    make_unfinished(tmp_path / "params")
    save_params(tmp_path / "params", TENSORS.items())
    assert OrbaxSource(tmp_path / "params").shapes.keys() == TENSORS.keys()
    assert list(tmp_path.iterdir()) == [tmp_path / "params"]
