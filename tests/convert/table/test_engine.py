"""The engine on a small table: refusals with their messages, slices, order, memory."""

import collections
import dataclasses
import re
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsd_jax.convert.table import engine
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Rule, linear
from dsd_jax.errors import UserError

RULES = (
    *linear("embed", "in", "e c -> c e", "e -> e"),
    *linear("extra", "extra_in", "e c -> c e", "e -> e"),
    *linear("layers.{i}.q", "blocks.{i}.qkv", "(n h) d -> d 0 n h", "(n h) -> 0 n h"),
    *linear("layers.{i}.k", "blocks.{i}.qkv", "(n h) d -> d 1 n h", "(n h) -> 1 n h"),
    *linear("layers.{i}.v", "blocks.{i}.qkv", "(n h) d -> d 2 n h", "(n h) -> 2 n h"),
    Rule("layers.{i}.fused.weight", "blocks.{i}.first.kernel", "(~two e + m) d -> d two e"),
    Rule("layers.{i}.fused.weight", "blocks.{i}.second.kernel", "(~two e + m) d -> d m"),
)
DIMS = {"n": 2, "h": 3, "d": 6, "e": 6, "c": 4, "m": 5, "two": 2}


def make_table(depth: int = 2, **changes: Any) -> Table:
    table = Table("test model", RULES, DIMS, {"blocks": depth}, absent=("extra_in",))
    return dataclasses.replace(table, **changes)


class Memory:
    """Tensors in memory that note which rows were read."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.rows_read: collections.Counter[str] = collections.Counter()

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        part = self.tensors[name][slice(None) if rows is None else rows]
        self.rows_read[name] += len(part)
        return part.copy()


def random_tensors(table: Table, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype) for name, shape in table.their_shapes.items()
    }


# Bad tables


def test_rows_must_cover_everything_exactly_once() -> None:
    with pytest.raises(ValueError, match=r"do not cover blocks.0.qkv.kernel .* exactly once"):
        make_table(rules=[rule for rule in RULES if ".k" not in rule.theirs])
    with pytest.raises(ValueError, match=r"do not cover layers.0.fused.weight .* exactly once"):
        make_table(rules=[rule for rule in RULES if "second" not in rule.ours])
    twice = Rule("layers.{i}.other", "blocks.{i}.second.kernel", "m d -> d m")
    with pytest.raises(ValueError, match=r"do not cover blocks.0.second.kernel .* exactly once"):
        make_table(rules=[*RULES, twice])
    other_shape = Rule("embed.weight", "more", "e d -> e d")
    with pytest.raises(ValueError, match=r"the rules disagree on the shape of embed.weight"):
        make_table(rules=[*RULES, other_shape])


# Both directions


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_there_and_back_is_bit_exact(dtype: Any) -> None:
    table = make_table()
    theirs = random_tensors(table, dtype)
    source = table.check(Memory(theirs))
    ours = dict(source.iter_ours())
    assert {name: array.shape for name, array in ours.items()} == table.our_shapes
    assert source.dtypes == {name: array.dtype for name, array in ours.items()}
    back = dict(table.iter_theirs(ours.__getitem__))
    assert list(back) == list(table.their_shapes)
    for name, tensor in theirs.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].tobytes() == tensor.tobytes()


def test_values_go_where_the_rules_say() -> None:
    table = make_table()
    theirs = random_tensors(table)
    source = table.check(Memory(theirs))
    q, k, v = (theirs[f"layers.1.{name}.weight"] for name in "qkv")
    fused = np.stack([w.reshape(2, 3, 6).transpose(2, 0, 1) for w in (q, k, v)], 1)
    np.testing.assert_array_equal(source.read("blocks.1.qkv.kernel"), fused)
    second, first = theirs["layers.0.fused.weight"][:6], theirs["layers.0.fused.weight"][6:12]
    expected = np.stack([first.T, second.T], 1)
    np.testing.assert_array_equal(source.read("blocks.0.first.kernel"), expected)


@pytest.mark.parametrize("by_xla", [True, False])
def test_large_transpositions_take_the_fast_path_correctly(
    by_xla: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_xla:  # JAX_PLATFORMS may leave the CPU out
        monkeypatch.setattr(engine, "_cpu", lambda: None)
    dims = {"n": 2, "h": 70, "d": 300, "m": 67}
    rules = [
        Rule("a", "q", "(n h + m) d -> d n h"),
        Rule("a", "mlp", "(n h + m) d -> d m"),
        Rule("b", "out", "d (n h) -> n h d"),
    ]
    table = Table("large", rules, dims)
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e5m2):
        theirs = random_tensors(table, dtype)
        source = table.check(Memory(theirs))
        a, b = theirs["a"], theirs["b"]
        assert (source.read("q") == a[:140].reshape(2, 70, 300).transpose(2, 0, 1)).all()
        assert (source.read("mlp") == a[140:].T).all()
        assert (source.read("out") == b.reshape(300, 2, 70).transpose(1, 2, 0)).all()
        back = dict(table.iter_theirs(source.read))
        assert all(back[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_slices_equal_slices_of_the_whole() -> None:
    table = make_table()
    source = table.check(Memory(random_tensors(table)))
    rng = np.random.default_rng(3)
    for path, shape in source.shapes.items():
        whole = source.read(path)
        for _ in range(10):
            ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in ends)
            np.testing.assert_array_equal(source.read(path, index), whole[index])
            for dtype in (np.float32, np.float16):  # the dtype of the file, and another one
                out = np.full([i.stop - i.start for i in index], np.nan, dtype)
                source.fill(path, index, out)
                np.testing.assert_array_equal(out, whole[index].astype(dtype))
        np.testing.assert_array_equal(source.read(path, (slice(1, None),)), whole[1:])


def test_a_slice_reads_only_the_rows_it_needs() -> None:
    table = make_table()
    memory = Memory(random_tensors(table))
    source = table.check(memory)
    source.read("blocks.0.qkv.kernel", (slice(None), slice(1, 3), slice(1, 2)))
    assert memory.rows_read == {"layers.0.k.weight": 3, "layers.0.v.weight": 3}
    memory.rows_read.clear()
    source.read("blocks.0.second.kernel")
    assert memory.rows_read == {"layers.0.fused.weight": 5}


def test_steps_in_a_slice_are_an_error() -> None:
    table = make_table()
    source = table.check(Memory(random_tensors(table)))
    with pytest.raises(ValueError, match=r"only slices of step 1"):
        source.read("in.kernel", (slice(0, 4, 2),))


def test_ours_come_in_the_order_of_the_file() -> None:
    table = make_table()
    theirs = dict(reversed(random_tensors(table).items()))
    order = [path for path, _ in table.check(Memory(theirs)).iter_ours()]
    assert order[0].startswith("blocks.1.")
    assert order[-1] == "in.kernel"


def test_export_reads_each_parameter_once_and_holds_few() -> None:
    table = make_table(depth=20)
    rng = np.random.default_rng(0)
    refs: list[weakref.ref[np.ndarray]] = []
    read: list[str] = []
    most = 0

    def read_ours(path: str) -> np.ndarray:
        nonlocal most
        array = rng.standard_normal(table.our_shapes[path])
        refs.append(weakref.ref(array))
        read.append(path)
        most = max(most, sum(ref() is not None for ref in refs))
        return array

    for _ in table.iter_theirs(read_ours):
        pass
    assert sorted(read) == sorted(table.our_shapes)
    assert most <= 3


def test_casting_on_the_way() -> None:
    table = make_table()
    theirs = random_tensors(table)
    source = table.check(Memory(theirs))
    ours = dict(source.iter_ours(ml_dtypes.bfloat16))
    assert {array.dtype.name for array in ours.values()} == {"bfloat16"}
    back = dict(table.iter_theirs(ours.__getitem__, np.float32))
    for name, tensor in theirs.items():
        assert back[name].dtype == np.float32
        expected = tensor.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(back[name], expected)


def test_specs_for_the_writer() -> None:
    table = make_table(depth=1)
    specs = table.their_specs(ml_dtypes.bfloat16)
    assert specs["layers.0.fused.weight"] == ((17, 6), np.dtype(ml_dtypes.bfloat16))
    dtypes = dict.fromkeys(table.our_shapes, np.float32) | {"in.bias": np.float16}
    specs = table.their_specs(dtypes)
    assert specs["embed.bias"] == ((6,), np.dtype(np.float16))
    with pytest.raises(ValueError, match=r"parts of layers.0.fused.weight have different dtypes"):
        table.their_specs(dtypes | {"blocks.0.first.kernel": np.float16})


def test_a_parameter_of_wrong_shape_is_not_exported() -> None:
    table = make_table()
    with pytest.raises(ValueError, match=r"in.kernel has shape \[2\], expected \[4, 6\]"):
        next(table.iter_theirs(lambda _: np.ones(2)))


# Refusals


def refused(table: Table, tensors: dict[str, np.ndarray], **options: Any) -> str:
    with pytest.raises(UserError) as error:
        table.check(Memory(tensors), **options)
    return str(error.value)


def test_unknown_tensors_with_a_hint() -> None:
    table = make_table()
    tensors = random_tensors(table)
    tensors["layers.0.fused.wieght"] = tensors.pop("layers.0.fused.weight")
    tensors["nonsense"] = np.ones(3)
    message = refused(table, tensors)
    assert message.startswith("these weights do not fit the test model; check that both are of")
    assert "2 unknown: layers.0.fused.wieght (did you mean layers.0.fused.weight?)" in message
    assert re.search(r"; nonsense\n", message)
    assert "1 missing: layers.0.fused.weight" in message


def test_unexpected_tensors_belong_to_another_size() -> None:
    tensors = random_tensors(make_table(depth=3)) | {"extra.bias": np.ones(6)}
    message = refused(make_table(depth=2), tensors)
    assert "unknown" not in message
    assert "8 unexpected in a model of this size: layers.2.q.weight; " in message
    assert "extra.bias" in message


def test_missing_tensors_list_a_few_and_count_all() -> None:
    table = make_table()
    tensors = {"embed.bias": np.ones(6, np.float32)}
    message = refused(table, tensors)
    assert "15 missing: embed.weight; layers.0.q.weight; " in message
    assert message.endswith("and 7 more")


def test_two_spellings_of_one_tensor() -> None:
    table = make_table(respell=lambda name: name.replace(".base_layer.", "."))
    tensors = random_tensors(table)
    tensors["layers.0.q.base_layer.weight"] = tensors.pop("layers.0.q.weight")
    table.check(Memory(tensors))
    tensors["layers.0.q.weight"] = tensors["layers.0.q.base_layer.weight"]
    message = refused(table, tensors)
    assert "1 given twice: layers.0.q.weight and layers.0.q.base_layer.weight" in message


def test_wrong_shapes_and_dtypes() -> None:
    table = make_table()
    tensors = random_tensors(table)
    tensors["embed.weight"] = tensors["embed.weight"].T
    tensors["embed.bias"] = np.arange(6)
    tensors["layers.1.k.weight"] = tensors["layers.1.k.weight"].astype(np.float16)
    message = refused(table, tensors)
    assert "3 of wrong shape or dtype: embed.weight has shape [4, 6], expected [6, 4]; " in message
    assert "embed.bias is int64, expected a floating-point dtype" in message
    assert "blocks.1.qkv.kernel would be made of parts in float16 and float32" in message


def test_a_dtype_can_be_demanded() -> None:
    table = make_table()
    tensors = random_tensors(table)
    table.check(Memory(tensors), dtype=np.float32)
    tensors["embed.bias"] = tensors["embed.bias"].astype(np.float16)
    assert "embed.bias is float16, expected float32" in refused(table, tensors, dtype=np.float32)
    assert table.check(Memory(tensors)).notices == ()  # every tensor keeps its own, which is fine


def test_every_refusal_is_in_one_message() -> None:
    table = make_table(respell=lambda name: name.removeprefix("model."))
    tensors = random_tensors(table)
    tensors["model.embed.bias"] = tensors["embed.bias"]
    tensors["what"] = np.ones(2)
    tensors["layers.7.q.weight"] = np.ones((6, 6), np.float32)
    del tensors["layers.0.v.bias"]
    tensors["layers.0.k.bias"] = np.ones(5, np.float32)
    lines = refused(table, tensors).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "1 unknown",
        "1 unexpected in a model of this size",
        "1 given twice",
        "1 missing",
        "1 of wrong shape or dtype",
    ]


def test_another_model_altogether() -> None:
    message = refused(make_table(), {"unet.conv_in.weight": np.ones((3, 3))})
    assert message == (
        "these are not the weights of a test model: they have names such as unet.conv_in.weight, "
        "expected embed.weight, embed.bias, layers.0.q.weight; check that this is the right file"
    )


def test_ignored_tensors_make_one_notice() -> None:
    table = make_table(ignored=((r"\.lora_[AB]\.", "stray LoRA tensors"),))
    tensors = random_tensors(table)
    tensors |= {f"layers.0.q.lora_{x}.default.weight": np.ones((2, 2)) for x in "AB"}
    assert table.check(Memory(tensors)).notices == ("2 tensors left aside: stray LoRA tensors",)


def test_tied_names_must_agree() -> None:
    table = make_table(tied={"embed.copy": "embed.weight"})
    tensors = random_tensors(table)
    both = tensors | {"embed.copy": tensors["embed.weight"].copy()}
    first = table.check(Memory(both)).read("in.kernel")
    only = {name: tensor for name, tensor in both.items() if name != "embed.weight"}
    np.testing.assert_array_equal(table.check(Memory(only)).read("in.kernel"), first)
    both["embed.copy"][-1, -1] += 1
    message = refused(table, both)
    assert "embed.weight and embed.copy, which should be equal but differ" in message


def test_a_module_that_the_weights_lack_is_named() -> None:
    table = make_table(absent=())
    tensors = random_tensors(make_table(), ml_dtypes.bfloat16)
    assert "2 missing: extra.weight; extra.bias" in refused(table, tensors)
    tensors["extra.bias"] = np.ones(6, ml_dtypes.bfloat16)
    assert "1 missing: extra.weight" in refused(table, tensors)
