"""LoRA files against diffusers and PEFT: theirs in ours, ours in theirs, and the same outputs."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict

from dsd_jax.config import FluxConfig, flux_dev
from dsd_jax.convert.jobs import to_torch as convert_to_torch
from dsd_jax.convert.lora.edits import read_mergeables
from dsd_jax.convert.lora.names import vocabulary
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.lora import Adapter
from tests.lora_dialects import DIALECTS, TINY, Pairs, attention_only, random_pairs, save, split
from tests.parity.compare import assert_close, relative_error, to_numpy
from tests.parity.lora_reference import (
    AuthorsPipeline,
    make_pipeline,
    make_transformer,
    run_ours,
    run_theirs,
)

MODEL = 1e-4
CLEARLY = 1e-2  # an adapter changes the output by more than this

ATTENTION = r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
EVERYTHING = (
    r".*(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|linear(_\d)?|(x|context)_embedder"
    r"|net\.0\.proj|net\.2|proj_mlp|proj_out)"
)


@functools.cache
def base_output() -> np.ndarray:
    return run_theirs(make_transformer())


def assert_same_output(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert_close(ours, theirs, MODEL, "velocity")
    assert relative_error(theirs, base_output()) > CLEARLY


# Their files


def save_adapter(model: FluxTransformer2DModel, folder: Path) -> None:
    model.save_lora_adapter(folder)


def save_pipeline(model: FluxTransformer2DModel, folder: Path) -> None:
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model),
        **_collate_lora_metadata({"transformer": model}),
    )


def save_without_header(model: FluxTransformer2DModel, folder: Path) -> None:
    FluxPipeline.save_lora_weights(folder, get_peft_model_state_dict(model))


CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION},
    "all, alpha twice the rank": {"r": 3, "lora_alpha": 6, "target_modules": EVERYTHING},
    "ranks and alphas by pattern": {
        "r": 4,
        "lora_alpha": 2,
        "target_modules": EVERYTHING,
        "rank_pattern": {"^proj_out": 2, "to_q": 6, "^single_transformer_blocks.1.proj_out": 5},
        "alpha_pattern": {"^proj_out": 5, "to_v": 8, "net.2": 3},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ATTENTION},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("how", [save_adapter, save_pipeline])
def test_files_of_diffusers(
    tmp_path: Path, config: str, how: Callable[[FluxTransformer2DModel, Path], None]
) -> None:
    model = make_transformer()
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(init_lora_weights=False, **CONFIGS[config]))
    how(model, tmp_path)
    adapter, _ = read_lora(tmp_path, TINY)
    theirs = run_theirs(model)
    assert_same_output(run_ours([(adapter, 1.0)], merged=False), theirs)
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), theirs)


def test_a_file_without_header_has_scale_one(tmp_path: Path) -> None:
    model = make_transformer()
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(init_lora_weights=False, **CONFIGS["ranks and alphas by pattern"]))
    save_without_header(model, tmp_path)
    again = make_transformer()
    again.load_lora_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    adapter, _ = read_lora(tmp_path, TINY)
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(again))
    assert relative_error(run_theirs(again), run_theirs(model)) > CLEARLY


def test_folders_of_peft(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = CONFIGS["all, alpha twice the rank"]
    model = get_peft_model(make_transformer(), LoraConfig(init_lora_weights=False, **config))
    model.save_pretrained(tmp_path)
    adapter, report = read_lora(tmp_path, TINY)
    assert (report.dialect, report.alphas) == ("raw PEFT", (6.0,))
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(model))


# Our files


def random_adapter(folder: Path, *, condition: bool = False) -> Adapter:
    """All layers, five ranks, an own A for most of q, k and v."""
    tensors: dict[str, np.ndarray] = {}
    for k, name in enumerate(split(random_pairs())):
        a, b = split(random_pairs(rank=2 + k % 5, seed=k % 7))[name]
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b / 2}
    if condition:
        rng = np.random.default_rng(3)
        tensors["c_embedder.weight"] = rng.standard_normal((32, 8)).astype(np.float32)
        tensors["c_embedder.bias"] = rng.standard_normal(32).astype(np.float32)
    return read_lora(save(folder / "random.safetensors", tensors), TINY)[0]


def load_adapter(model: FluxTransformer2DModel, file: Path) -> None:
    """Loads by the header, as the pipeline does."""
    model.load_lora_adapter(file, use_safetensors=True)


def load_without_header(model: FluxTransformer2DModel, file: Path) -> None:
    """Loads by the tensors alone, as diffusers does without knowing of safetensors."""
    model.load_lora_adapter(file)


def load_weights(model: FluxTransformer2DModel, file: Path) -> None:
    make_pipeline(model).load_lora_weights(file)


@pytest.mark.parametrize("how", [load_adapter, load_without_header, load_weights])
@pytest.mark.parametrize("condition", [False, True])
def test_our_files_load_in_diffusers(
    tmp_path: Path, how: Callable[[FluxTransformer2DModel, Path], None], condition: bool
) -> None:
    """Any warning of PEFT fails this test; so does a layer that diffusers does not find."""
    adapter = random_adapter(tmp_path, condition=condition)
    file = write_lora(tmp_path, adapter, TINY)
    model = make_transformer()
    how(model, file)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 50
    assert_same_output(run_ours([(Adapter(adapter.factors), 1.0)], merged=True), run_theirs(model))


def test_the_authors_program_loads_a_folder_of_ours(tmp_path: Path) -> None:
    adapter = Adapter(random_adapter(tmp_path, condition=True).factors)
    write_lora(tmp_path / "out", adapter, TINY)
    model = make_transformer()
    AuthorsPipeline(model).load_lora_weights(str(tmp_path / "out"))
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(model))


def test_the_authors_program_refuses_an_embedding_in_the_lora_file(tmp_path: Path) -> None:
    """The reason why an export keeps it apart; once this passes, `readers.py` is out of date."""
    file = write_lora(tmp_path, random_adapter(tmp_path, condition=True), TINY)
    with pytest.raises(ValueError, match="all LoRA param names contain `'lora'` substring"):
        AuthorsPipeline(make_transformer()).load_lora_weights(file)


def test_who_applies_nothing_of_a_file_with_kohyas_names(tmp_path: Path) -> None:
    """These programs raise no error, so only our notice tells; else `readers.py` is out of date."""
    write_lora(tmp_path / "out", random_adapter(tmp_path), TINY, "kohya")
    authors, adapter = make_transformer(), make_transformer()
    AuthorsPipeline(authors).load_lora_weights(str(tmp_path / "out"))
    load_adapter(adapter, tmp_path / "out" / "pytorch_lora_weights.safetensors")
    for model in (authors, adapter):
        assert not any("lora" in name for name, _ in model.named_parameters())


def test_peft_loads_a_folder_of_ours(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path)
    write_lora(tmp_path / "out", adapter, TINY)
    model = PeftModel.from_pretrained(make_transformer(), tmp_path / "out")
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 50
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(model))
    again, report = read_lora(tmp_path / "out" / "adapter_model.safetensors", TINY)
    assert report.dialect == "raw PEFT"
    for path, factor in adapter.factors.items():
        np.testing.assert_array_equal(again.factors[path], factor)


def test_one_layer_of_an_ambiguous_name(tmp_path: Path) -> None:
    """The last layer alone: its name ends those of other layers; PEFT warns of a doubt."""
    pairs = {"final_layer.linear": random_pairs()["final_layer.linear"]}
    tensors = DIALECTS["PEFT"].write(pairs, TINY, None)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    model = make_transformer()
    load_adapter(model, write_lora(tmp_path, adapter, TINY))
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(model))


def test_a_model_with_a_condition_embedding_takes_it(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path, condition=True)
    model = make_transformer()
    model.c_embedder = torch.nn.Linear(8, 32)
    model.load_lora_adapter(write_lora(tmp_path, adapter, TINY))
    for name in ("weight", "bias"):
        ours = adapter.full[f"cond_in.{'kernel' if name == 'weight' else name}"]
        np.testing.assert_array_equal(to_numpy(model.c_embedder.state_dict()[name]), ours.T)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_two_adapters_at_once(tmp_path: Path) -> None:
    model = make_transformer()
    adapters = []
    for k, scale in enumerate((0.7, -0.4)):
        (tmp_path / str(k)).mkdir()
        pairs = {n: p for n, p in random_pairs(rank=3 + k, seed=k).items() if k == 0 or "mlp" in n}
        tensors = DIALECTS["kohya"].write(pairs, TINY, 2.0)
        adapter, _ = read_lora(save(tmp_path / str(k) / "x.safetensors", tensors), TINY)
        model.load_lora_adapter(write_lora(tmp_path / str(k), adapter, TINY), adapter_name=f"a{k}")
        adapters.append((adapter, scale))
    model.set_adapters(["a0", "a1"], [0.7, -0.4])
    assert_same_output(run_ours(adapters, merged=True), run_theirs(model))


# Other dialects, through diffusers' converters


def in_peft_names(folder: Path, tensors: dict[str, np.ndarray], config: FluxConfig) -> Pairs:
    """Our reading of a file, as layers of diffusers."""
    adapter, _ = read_lora(save(folder / "x.safetensors", tensors), config)
    file = write_lora(folder / "peft.safetensors", adapter, config)
    return as_pairs(safetensors.torch.load_file(file))


def as_pairs(tensors: dict[str, torch.Tensor]) -> Pairs:
    names = [name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name]
    return {
        name.removeprefix("transformer."): (
            to_numpy(tensors[f"{name}.lora_A.weight"]),
            to_numpy(tensors[f"{name}.lora_B.weight"]),
        )
        for name in names
    }


def assert_same_products(ours: Pairs, theirs: Pairs) -> None:
    """B A, on random inputs; layers whose B is zero may be missing in ours."""
    rng = np.random.default_rng(0)
    assert ours.keys() == {name for name, (_, b) in theirs.items() if b.any()}
    for name, (a, b) in ours.items():
        x = rng.standard_normal((a.shape[1], 2)).astype(np.float32)
        assert_close(b @ (a @ x), theirs[name][1] @ (theirs[name][0] @ x), 1e-5, name)


def to_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}


FULL_WIDTH = FluxConfig(double_depth=1, single_depth=1, condition_embed=False)


def test_kohya_as_diffusers_reads_it(tmp_path: Path) -> None:
    """Uses the real width, which diffusers' converter assumes; alpha is not the rank."""
    tensors = DIALECTS["kohya"].write(random_pairs(FULL_WIDTH, rank=2), FULL_WIDTH, 3.0)
    # diffusers forgets the alpha of the last layers.
    tensors |= {
        k: np.array(2, np.float32) for k in tensors if "final_layer" in k and k.endswith("alpha")
    }
    theirs = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(to_torch(tensors))
    assert_same_products(in_peft_names(tmp_path, tensors, FULL_WIDTH), as_pairs(theirs))


@pytest.mark.parametrize("kept", ["", "to_[qk]$|mlp", "to_v$"])
def test_our_kohya_files_as_diffusers_reads_them(tmp_path: Path, kept: str) -> None:
    """Independent factors of q, k, v and mlp, some or all of them."""
    layers = {
        name: split(random_pairs(FULL_WIDTH, rank=2, seed=k), FULL_WIDTH)[name]
        for k, name in enumerate(split(random_pairs(FULL_WIDTH, rank=1), FULL_WIDTH))
        if re.search(kept, name) and (kept or "embed" not in name)
    }
    tensors = {
        f"{name}.lora_{x}.weight": factor
        for name, pair in layers.items()
        for x, factor in zip("AB", pair, strict=True)
    }
    tensors["c_embedder.weight"] = np.ones((3072, 64), np.float32)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), FULL_WIDTH)
    file = write_lora(tmp_path / "kohya.safetensors", adapter, FULL_WIDTH, "kohya")
    read = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(
        safetensors.torch.load_file(file)
    )
    assert_same_products(layers, as_pairs(read))


def test_our_kohya_files_load_in_a_pipeline(tmp_path: Path) -> None:
    """Blocks only: the pipeline drops embedders and last layers of kohya files."""
    pairs = {k: v for k, v in random_pairs().items() if "blocks" in k and "linear1" not in k}
    tensors = DIALECTS["PEFT"].write(pairs, TINY, None)
    adapter, _ = read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
    model = make_transformer()
    file = write_lora(tmp_path / "kohya.safetensors", adapter, TINY, "kohya")
    make_pipeline(model).load_lora_weights(file)
    assert_same_output(run_ours([(adapter, 1.0)], merged=True), run_theirs(model))


def test_xlabs_as_diffusers_reads_it(tmp_path: Path) -> None:
    for dialect in ("XLabs", "XLabs, in ComfyUI"):
        folder = tmp_path / dialect
        folder.mkdir()
        tensors = DIALECTS[dialect].write(random_pairs(), TINY, None)
        theirs = lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers(to_torch(tensors))
        assert_same_products(in_peft_names(folder, tensors, TINY), as_pairs(theirs))


def test_onetrainer_as_diffusers_reads_it(tmp_path: Path) -> None:
    """Attention only; of other layers diffusers' converter makes wrong names."""
    pairs = {k: v for k, v in attention_only(random_pairs()).items() if "_attn." in k}
    tensors = DIALECTS["OneTrainer"].write(pairs, TINY, 6.0)
    theirs = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(to_torch(tensors))
    assert_same_products(in_peft_names(tmp_path, tensors, TINY), as_pairs(theirs))


def test_raw_peft_with_bfl_names_as_diffusers_reads_it(tmp_path: Path) -> None:
    config = FluxConfig(condition_embed=False)
    names = [k for k in random_pairs(FULL_WIDTH, rank=1) if "blocks" in k or "final_layer.l" in k]
    pairs = random_pairs(FULL_WIDTH, rank=1)
    deep: Pairs = {}
    for name in names:
        stack = name.partition(".")[0]
        depth = {"double_blocks": 19, "single_blocks": 38}.get(stack, 1)
        deep |= {
            name.replace(".0.", f".{i}.", 1) if depth > 1 else name: pairs[name]
            for i in range(depth)
        }
    tensors = DIALECTS["raw PEFT, BFL names"].write(deep, config, None)
    theirs = lora_conversion_utils._convert_fal_kontext_lora_to_diffusers(to_torch(tensors))
    assert_same_products(in_peft_names(tmp_path, tensors, config), as_pairs(theirs))


# The real size


@functools.cache
def flux_dev_layers() -> dict[str, tuple[int, ...]]:
    """Name -> [out, in] of every dense layer of FLUX.1-dev, from a module without memory."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def test_every_dense_layer_of_flux_dev_can_be_adapted() -> None:
    ours = {name: dense.shape for name, dense in vocabulary(flux_dev()).diffusers.items()}
    assert ours.pop("c_embedder") == (3072, 64)
    assert ours == flux_dev_layers()


def test_the_attention_of_flux_dev(tmp_path: Path) -> None:
    """The 266 layers of the DSD release, at rank 1: the same names in and out.

    At rank 128 in bfloat16 they have the 418 MB of the released file.
    """
    names = {k: v for k, v in flux_dev_layers().items() if re.fullmatch(ATTENTION, k)}
    assert round(sum(2 * 128 * sum(shape) for shape in names.values()) / 1e6) == 418
    tensors = {}
    for name, (out, inputs) in names.items():
        tensors[f"transformer.{name}.lora_A.weight"] = np.ones((1, inputs), np.float16)
        tensors[f"transformer.{name}.lora_B.weight"] = np.ones((out, 1), np.float16)
    adapter, report = read_lora(save(tmp_path / "x.safetensors", tensors), flux_dev())
    assert (report.linears, report.targets, report.ranks) == (266, "attention", (1,))
    file = write_lora(tmp_path, adapter, flux_dev())
    written = safetensors.torch.load_file(file)
    assert {name: tuple(t.shape) for name, t in written.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


# What only full weights can hold


@pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape")  # PEFT of its own biases
@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_dora_and_biases_as_peft_merges_them(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, kind: True}
    model = get_peft_model(make_transformer(), LoraConfig(init_lora_weights=False, **settings))
    for name, parameter in model.named_parameters():
        if "magnitude" in name or name.endswith("lora_B.default.bias"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path / "adapter")
    make_transformer().save_pretrained(tmp_path / "base")
    adapters, _ = read_mergeables([tmp_path / "adapter"], [], TINY)
    convert_to_torch(tmp_path / "base", tmp_path / "merged", adapters=adapters)
    ours = safetensors.torch.load_file(tmp_path / "merged/diffusion_pytorch_model.safetensors")
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_close(to_numpy(ours[name]), to_numpy(tensor), 1e-5, name)
