"""Exports: the tensors of every file, their dtypes, and the notices about them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsd_jax.convert.export import LoraForm, convert_lora
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.jobs import to_torch
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.convert.open import open_component
from dsd_jax.convert.readers import lora_notices
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.lora_dialects import save
from tests.random_flux import CONDITIONAL, random_adapter

FULL = random_adapter(CONDITIONAL, full=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16, as FLUX.1-dev is, and a LoRA file with a condition embedding."""
    root = tmp_path_factory.mktemp("export")
    tensors = random_tensors(SMALL.transformer, 0, ml_dtypes.bfloat16)
    write_model(root / "base" / "transformer", SMALL.transformer, tensors)
    write_lora(root / "single.safetensors", FULL, CONDITIONAL)
    return root


def dtypes_in(path: Path) -> dict[str, str]:
    with open_weights(path) as weights:
        return {name: info.dtype.name for name, info in weights.tensors.items()}


def kernel(folder: Path, path: str) -> np.ndarray:
    source = open_component(folder).source
    whole = tuple(slice(0, size) for size in source.shapes[path])
    return source.read(path, whole).astype(np.float32)


# A folder for the authors' program, and one file


def test_the_lora_file_of_a_folder_holds_lora_tensors_alone(root: Path, tmp_path: Path) -> None:
    for layout in ("peft", "kohya"):
        folder = tmp_path / layout
        convert_lora(root / "single.safetensors", str(folder), LoraForm(layout), base=root / "base")
        names = dtypes_in(folder / "pytorch_lora_weights.safetensors")
        assert len(names) > 10
        assert all("lora" in name for name in names)
        assert "c_embedder.weight" in dtypes_in(folder / "transformer")


def test_a_folder_and_its_lora_file_are_read_as_one_adapter(root: Path, tmp_path: Path) -> None:
    convert_lora(root / "single.safetensors", str(tmp_path / "out"), base=root / "base")
    adapter, report = read_lora(tmp_path / "out", CONDITIONAL)
    assert report.notices == ("the condition embedding comes from out/transformer",)
    # It is in float32 there, beside a base in bfloat16, which is as it should be.
    assert open_component(tmp_path / "out" / "transformer").notices == ()
    for path, tensor in {**FULL.factors, **FULL.full}.items():
        np.testing.assert_array_equal({**adapter.factors, **adapter.full}[path], tensor)
    alone, _ = read_lora(tmp_path / "out" / "pytorch_lora_weights.safetensors", CONDITIONAL)
    assert not alone.full


def test_an_embedding_of_another_size_in_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    write_lora(tmp_path, Adapter(FULL.factors), CONDITIONAL)
    (tmp_path / "transformer").mkdir()
    other = {"c_embedder.weight": np.ones((5, 64), np.float32)}
    save(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", other)
    with pytest.raises(UserError, match=r"c_embedder.weight in .* \[5, 64\], expected .* of anoth"):
        read_lora(tmp_path, CONDITIONAL)


def test_an_embedding_is_never_lost_on_the_way(root: Path, tmp_path: Path) -> None:
    lora = root / "single.safetensors"
    for target, base, way in (
        ("out", None, "give that model as --base_path"),
        ("x.safetensors", root / "base", "give a folder as target; or --single_file keeps it"),
    ):
        with pytest.raises(UserError, match=way):
            convert_lora(lora, str(tmp_path / target), base=base)
    assert list(tmp_path.iterdir()) == []
    done = convert_lora(
        lora, str(tmp_path / "x.safetensors"), LoraForm(single_file=True), base=root / "base"
    )
    assert (tmp_path / "x.safetensors").read_bytes() == lora.read_bytes()
    assert any("generate.py and ComfyUI's DSD nodes refuse" in notice for notice in done.notices)


# What is said


def test_what_other_programs_drop_is_said() -> None:
    layers = ["img_in", "double_blocks.0.img_attn.qkv", "final_layer.linear"]
    nothing, sd_scripts, diffusers = lora_notices(layers, "kohya", embedding=False)
    assert nothing.endswith(
        "apply nothing of a file with kohya's names, and do not say so; --layout peft is for them"
    )
    assert sd_scripts == "sd-scripts has no place for final_layer.linear and drops it"
    assert diffusers == (
        "diffusers drops img_in, final_layer.linear of a file with kohya's names; --layout peft "
        "keeps all layers there"
    )
    assert lora_notices(layers[1:2], "kohya", embedding=False) == [nothing]
    assert lora_notices(layers, "peft", embedding=False) == []
    _, kept = lora_notices([], "kohya", embedding=True)
    assert kept.startswith("diffusers up to 0.32 refuse a LoRA file that holds the condition")


def test_a_file_for_black_forest_labs_says_that_nobody_reads_the_reference(
    root: Path, tmp_path: Path
) -> None:
    done = convert_lora(root / "single.safetensors", str(tmp_path / "out"), base=root / "base")
    notices = to_torch(tmp_path / "out/transformer", tmp_path / "x.safetensors", layout="bfl")
    assert any("drop it and with it the reference image" in notice for notice in notices)
    assert any("ComfyUI's DSD nodes read c_embedder" in notice for notice in done.notices)


# Precision


def small(scale: float) -> Adapter:
    """The random adapter, with changes far below bfloat16's resolution of the weights."""
    return Adapter({p: f * (scale if p.endswith("b") else 1) for p, f in FULL.factors.items()})


def test_sums_are_made_in_float32_and_rounded_once(root: Path, tmp_path: Path) -> None:
    base, adapter = root / "base" / "transformer", small(1e-4)
    to_torch(base, tmp_path / "merged", dtype="float32", adapters=[(adapter, 1.0)])
    path = "double_blocks.0.img_attn.qkv.kernel"
    change = kernel(tmp_path / "merged", path) - kernel(base, path)
    a, b = (adapter.factors[f"double_blocks.0.img_attn.qkv.lora_{x}"] for x in "ab")
    expected = np.einsum("dpr,prnh->dpnh", a, b)
    error = np.linalg.norm(change - expected) / np.linalg.norm(expected)
    assert error < 1e-2  # what float32 leaves of a change this small; bfloat16 left nothing
    assert set(dtypes_in(tmp_path / "merged").values()) == {"float32"}


def test_rounding_of_merged_weights_is_measured_and_said(root: Path, tmp_path: Path) -> None:
    base = root / "base" / "transformer"
    for scale, lost in ((1e-4, 90.0), (1.0, 0.0)):
        (notice,) = to_torch(base, tmp_path / f"{scale}", adapters=[(small(scale), 1.0)])
        assert notice.startswith("rounding the merged weights to bfloat16 changes them by ")
        assert float(notice.split(" by ")[1].split(" %")[0]) > lost
    assert to_torch(base, tmp_path / "f", dtype="float32", adapters=[(small(1e-4), 1.0)]) == []


def test_what_was_trained_in_float32_leaves_in_float32(root: Path, tmp_path: Path) -> None:
    convert_lora(root / "single.safetensors", str(tmp_path / "out"), base=root / "base")
    held = dtypes_in(tmp_path / "out" / "transformer")
    assert {held.pop(f"c_embedder.{name}") for name in ("weight", "bias")} == {"float32"}
    assert set(held.values()) == {"bfloat16"}
    exact = kernel(tmp_path / "out" / "transformer", "cond_in.kernel")
    np.testing.assert_array_equal(exact, FULL.full["cond_in.kernel"])
    told = LoraForm(dtype="bfloat16")
    convert_lora(root / "single.safetensors", str(tmp_path / "told"), told, base=root / "base")
    for file in ("transformer", "pytorch_lora_weights.safetensors"):
        assert set(dtypes_in(tmp_path / "told" / file).values()) == {"bfloat16"}


def test_numbers_that_float16_cannot_hold_are_refused(root: Path, tmp_path: Path) -> None:
    large = Adapter({}, {path: 1e6 * tensor for path, tensor in FULL.full.items()})
    with pytest.raises(UserError, match=r"cond_in.kernel has numbers that float16 cannot hold"):
        to_torch(
            root / "base" / "transformer",
            tmp_path / "out",
            dtype="float16",
            adapters=[(large, 1.0)],
        )
    assert list(tmp_path.iterdir()) == []
