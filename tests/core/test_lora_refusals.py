"""Adapters of another model are refused, and every reason is told at once."""

from collections.abc import Mapping

import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter, MergedSource, combine, select
from dsd_jax.weights import TensorSource
from tests.tiny_flux import abstract_flux, random_adapter, random_tensors

FITTING = {"double_blocks.0.img_attn.qkv": 2, "single_blocks.1.linear2": 3, "time_in.in_layer": 2}


def changed(factors: Mapping[str, np.ndarray | None], ranks: Mapping[str, int]) -> Adapter:
    """A fitting adapter with some factors replaced, or taken away (None)."""
    own = {**random_adapter(ranks, name="style").factors, **factors}
    return Adapter({path: value for path, value in own.items() if value is not None}, name="style")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


MISFITS = {
    "another model": (
        changed({"blocks.0.attn.lora_a": normal(8, 2), "blocks.0.attn.lora_b": normal(2, 8)}, {}),
        "style: the model has no blocks.0.attn",
    ),
    "one layer too many": (
        changed({"single_blocks.3.mlp_in.lora_b": normal(2, 128)}, {"img_in": 2}),
        "style: the model has no single_blocks.3.mlp_in",
    ),
    "another width": (
        changed({"img_in.lora_b": normal(2, 96)}, {"img_in": 2}),
        "style: img_in.lora_b is (2, 96), expected (2, 64)",
    ),
    "other heads": (
        changed({"single_blocks.1.qkv.lora_b": normal(3, 2, 8, 8)}, {"single_blocks.1.qkv": 2}),
        "style: single_blocks.1.qkv.lora_b is (3, 2, 8, 8), expected (3, 2, 4, 16)",
    ),
    "ranks that differ": (
        changed({"img_in.lora_a": normal(16, 3)}, {"img_in": 2}),
        "style: img_in.lora_a is (16, 3), expected (16, 2)",
    ),
    "no lora_a": (
        changed({"img_in.lora_a": None}, {"img_in": 2}),
        "style: img_in has a lora_b, but no lora_a",
    ),
    "half a joined Linear": (
        changed({"single_blocks.0.linear2.lora_a_mlp": None}, {"single_blocks.0.linear2": 2}),
        "style: single_blocks.0.linear2 has a lora_b, but no lora_a_mlp",
    ),
    "no lora_b": (
        changed({"img_in.lora_b": None}, {"img_in": 2, "txt_in": 2}),
        "style: img_in.lora_a has no lora_b beside it",
    ),
}


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("case", MISFITS)
def test_adapters_that_do_not_fit(case: str, scan_layers: bool) -> None:
    adapter, message = MISFITS[case]
    model = abstract_flux(scan_layers=scan_layers)
    with pytest.raises(UserError, match=r"^this LoRA is for another model:\n  ") as error:
        combine(model, [(random_adapter(FITTING), 1.0), (adapter, 1.0)], model.stacks)
    assert message in str(error.value)


def test_everything_wrong_is_told_at_once() -> None:
    model = abstract_flux()
    both = [(MISFITS["another model"][0], 1.0), (MISFITS["another width"][0], 1.0)]
    with pytest.raises(UserError) as error:
        combine(model, both, model.stacks)
    assert str(error.value).count("style: ") == 2
    many = random_adapter(dict.fromkeys(select(abstract_flux(), "attention"), 2))
    wrong = Adapter({path: value[..., :1, :] for path, value in many.factors.items()}, name="all")
    with pytest.raises(UserError, match=r"and \d+ more"):
        combine(model, [(wrong, 1.0)], model.stacks)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (MISFITS["another width"][0], "img_in.kernel is (16, 64), the adapter is for (16, 96)"),
        (MISFITS["another model"][0], "these weights have no blocks.0.attn.kernel"),
        (
            Adapter({}, {"cond_in.bias": normal(32)}, "style"),
            "cond_in.bias is (64,), the adapter is for (32,)",
        ),
        (Adapter({}, {"cond.bias": normal(32)}, "style"), "these weights have no cond.bias"),
    ],
)
def test_merged_source_refuses_what_does_not_fit(adapter: Adapter, message: str) -> None:
    with pytest.raises(UserError, match=r"^this LoRA is for another model:\n  ") as error:
        MergedSource(TensorSource(random_tensors()), [(adapter, 1.0)])
    assert f"style: {message}" in str(error.value)
