"""Files of strangers: claims are checked against the file before any work is done for them."""

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.jobs import to_jax
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_component
from dsd_jax.errors import UserError
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.lora_dialects import DIALECTS, TINY, random_pairs, save

Q = "transformer_blocks.0.attn.to_q"


def header(path: Path, text: str, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
    return path


def entry(shape: object, end: int = 4) -> str:
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [0, end]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"a": {entry([1] * 3000)}}}', r"its entry for 'a' is malformed"),
        (f'{{"a": {entry([2**70, 0], 0)}}}', r"a\.shape\[0\]: a number of 22 digits"),
        (f'{{"{"n" * 5000}": {entry([1])}}}', r"a name in its header has 5000 characters"),
        ('{"a": {"shape": [' + "9" * 5000 + "]}}", r"a\.shape\[0\]: a number of 5000 digits"),
        (
            "{" + ",".join(['"a": 1'] * 200_000) + "}",
            r"its header cannot be read \(the key 'a' is given twice\)",
        ),
        (
            "{" + ",".join(f'"a{i}": {{}}' for i in range(200_001)) + "}",
            r"its header names 200001 tensors, more than 200000",
        ),
        ("[" * 100_000, r"its header cannot be read \(it is nested more than 8 deep\)"),
    ],
    ids=["axes", "huge", "long name", "digits", "repeated", "many", "deep"],
)
def test_headers_are_bounded(tmp_path: Path, text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=message):
        open_weights(header(tmp_path / "x.safetensors", text, b"\0" * 4))
    assert time.process_time() - started < 5


def test_an_announced_header_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(UserError, match=r"announce a header of 1099511627776 bytes"):
        open_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["../x.safetensors", "..", "/etc/passwd", "a/b.safetensors", "x"])
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="names shards outside its folder"):
        open_weights(tmp_path)


def test_an_index_with_a_name_that_no_file_has(tmp_path: Path) -> None:
    name = "m" * 300 + ".safetensors"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="names a file by 312 characters; download the file again"):
        open_weights(tmp_path)


def test_weights_are_regular_files_inside_their_folder(tmp_path: Path) -> None:
    real = save(tmp_path / "real.safetensors", {"a": np.ones(3, np.float32)})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(real)
    with pytest.raises(UserError, match=r"is outside of the folder .*; give the path of the file"):
        open_weights(folder)
    assert open_weights(folder / "model.safetensors").read("a").sum() == 3  # named by the user
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="is not a regular file"):
        open_weights(tmp_path / "pipe.safetensors")


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    save(blobs / "123.safetensors", {"a": np.ones(3, np.float32)})
    (folder / "model.safetensors").symlink_to(blobs / "123.safetensors")
    assert open_weights(folder).read("a").sum() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_layers": 1_000_000},
            r"1000003 blocks are claimed, but the weights have \d+ tensors",
        ),
        ({"num_layers": 10**400}, r"cannot be read as JSON \(num_layers: a number of 401 digits"),
        (
            {"num_attention_heads": 0},
            r"num_attention_heads is 0, expected a whole number from 1 on",
        ),
        (
            {"num_attention_heads": [0] * 5000},
            r"num_attention_heads is \[0, .{95,100}\.\.\., expec",
        ),
        ({"_class_name": None, "model_type": [1]}, r"describes a \[1\]"),
        ({"_class_name": None, "model_type": {"a": 1}}, r"describes a \{'a': 1\}"),
        ({"architectures": 5, "_class_name": None}, r"describes a model of no known kind"),
        ({"_class_name": ["a"]}, r"describes a \['a'\]"),
    ],
)
def test_a_config_is_bounded_by_its_weights(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_model(tmp_path / "x", SMALL.transformer, random_tensors(SMALL.transformer, 0))
    config = flux_to_json(SMALL.transformer) | change
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    started = time.process_time()
    with pytest.raises(UserError, match=message):
        open_component(tmp_path / "x")
    assert time.process_time() - started < 5


def test_a_block_number_is_not_believed(tmp_path: Path) -> None:
    names = ("img_in.weight", "double_blocks.0.img_attn.norm.query_norm.scale")
    tensors = {
        names[0]: np.ones((128, 64), np.float32),
        names[1]: np.ones(128, np.float32),
        "final_layer.linear.weight": np.ones((64, 128), np.float32),
        "double_blocks.99999999.x": np.ones(1, np.float32),
    }
    with pytest.raises(
        UserError, match="100000000 blocks are claimed, but the weights have 4 tens"
    ):
        open_component(save(tmp_path / "x.safetensors", tensors))
    tensors[names[0]] = np.ones(128, np.float32)
    with pytest.raises(UserError, match=r"img_in.weight has shape \[128\], expected 2 axes"):
        open_component(save(tmp_path / "y.safetensors", tensors))


@pytest.mark.parametrize("shape", [[2**62, 0], [0, 2**40], [1, 0, 10**12]])
def test_an_empty_tensor_is_not_gone_over_for_ever(tmp_path: Path, shape: list[int]) -> None:
    claims = json.dumps({"a.diff_b": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    with pytest.raises(UserError, match="more than the file holds"):
        open_weights(header(tmp_path / "x.safetensors", claims))


def test_a_lora_folder_holds_its_own_file(tmp_path: Path) -> None:
    real = save(tmp_path / "real.safetensors", DIALECTS["PEFT"].write(random_pairs(), TINY, None))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").symlink_to(real)
    with pytest.raises(UserError, match="is outside of the folder"):
        read_lora(folder, TINY)
    read_lora(folder / "pytorch_lora_weights.safetensors", TINY)  # named by the user


def test_a_config_is_a_regular_file_of_its_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "x", SMALL.vae, random_tensors(SMALL.vae, 0))
    (tmp_path / "x" / "config.json").rename(tmp_path / "private.json")
    (tmp_path / "x" / "config.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(UserError, match=r"config.json is outside of the folder"):
        open_component(tmp_path / "x")
    (tmp_path / "x" / "config.json").unlink()
    os.mkfifo(tmp_path / "x" / "config.json")
    with pytest.raises(UserError, match="is not a regular file"):
        open_component(tmp_path / "x")


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "device"])
def test_a_conversion_copies_no_private_file(tmp_path: Path, what: str) -> None:
    """Copied files are shared with others."""
    base, private = tmp_path / "base", tmp_path / "private"
    write_model(base / "vae", SMALL.vae, random_tensors(SMALL.vae, 0))
    private.mkdir()
    (private / "id_rsa").write_text("secret")
    if what == "folder":
        (base / "tokenizer").symlink_to(private)
    else:
        (base / "tokenizer").mkdir()
        odd = base / "tokenizer" / "merges.txt"
        if what == "pipe":
            os.mkfifo(odd)
        else:
            odd.symlink_to(private / "id_rsa" if what == "link" else "/dev/zero")
    with pytest.raises(
        UserError, match=r"tokenizer/.* (is outside of the folder|cannot read)|pipe|regu"
    ):
        to_jax(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Settings of adapters


def lora_with(folder: Path, settings: str) -> Path:
    folder.mkdir()
    pairs = random_pairs()
    path = save(folder / "adapter_model.safetensors", DIALECTS["raw PEFT"].write(pairs, TINY, None))
    (folder / "adapter_config.json").write_text(settings)
    return path


def with_patterns(*patterns: str) -> str:
    return json.dumps({"lora_alpha": 4, "alpha_pattern": dict.fromkeys(patterns, 8)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            json.dumps({"lora_alpha": 4, "alpha_pattern": {"((a{999}){999}){999}": 8}}),
            r"is not a LoraConfig",
        ),
        (json.dumps({"lora_alpha": 4, "alpha_pattern": {"a" * 2000: 8}}), r"is not a LoraConfig"),
        ('{"lora_alpha": ' + "9" * 400 + "}", r"lora_alpha: a number of 400 digits"),
        ('{"lora_alpha": 1e400}', r"adapter_config.json: "),
        (json.dumps({"lora_alpha": 4, "alpha_pattern": {"to_q{e<=9}": 8}}), r"is not a LoraConfig"),
        (
            json.dumps({"lora_alpha": 4, "alpha_pattern": {"[[:alpha:]]": 8}}),
            r"is not a LoraConfig",
        ),
        (json.dumps({"lora_alpha": 4, "alpha_pattern": {r"\p{L}": 8}}), r"is not a LoraConfig"),
        (
            json.dumps({"lora_alpha": 4, "alpha_pattern": {"(" * 490 + ")" * 490: 8}}),
            r"is not a LoraConfig",
        ),
        (
            json.dumps({"lora_alpha": 4, "alpha_pattern": {"((a{99,}){99,}){99,}": 8}}),
            r"is not a LoraConfig",
        ),
        (
            json.dumps(
                {"lora_alpha": 4, "alpha_pattern": {f"(x{i}|a{{9}})*b": 8 for i in range(90_000)}}
            ),
            r"matching alpha_pattern takes more than",
        ),
        ('{"lora_alpha": "nan"}', r"is not a LoraConfig"),
        ('{"lora_alpha": "1e400"}', r"is not a LoraConfig"),
        ('{"lora_alpha": [4]}', r"is not a LoraConfig"),
        ('{"lora_alpha": 4, "x": ' + "[" * 1000 + "]" * 1000 + "}", r"nested more than 16 deep"),
    ],
)
def test_settings_of_strangers_take_no_time(tmp_path: Path, settings: str, message: str) -> None:
    path = lora_with(tmp_path / "x", settings)
    started = time.process_time()
    with pytest.raises(UserError, match=message):
        read_lora(path, TINY)
    assert time.process_time() - started < 5


def test_patterns_take_no_exponential_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = r"((\w|\.)+)+[^\w.]"  # a minute and more by Python's own `re`
    path = lora_with(tmp_path / "x", json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 8}}))
    started = time.process_time()
    assert read_lora(path, TINY)[1].alphas == (4.0,)
    assert time.process_time() - started < 5
    monkeypatch.setattr("dsd_jax.convert.lora.settings._PATTERN_SECONDS", -1.0)
    with pytest.raises(UserError, match=r"takes more than -1.0 s, at .*; write plain names of la"):
        read_lora(path, TINY)


def test_patterns_mean_what_peft_means(tmp_path: Path) -> None:
    patterns = {r"to_[qk]": 8.0, r"^transformer_blocks\.1\..*proj": 16.0}
    settings = json.dumps({"lora_alpha": 4, "alpha_pattern": patterns})
    _, report = read_lora(lora_with(tmp_path / "x", settings), TINY)
    assert report.alphas == (4.0, 8.0, 16.0)


def test_a_large_alpha_tensor_is_not_read(tmp_path: Path) -> None:
    tensors = DIALECTS["PEFT"].write(random_pairs(), TINY, None)
    tensors[f"transformer.{Q}.alpha"] = np.ones((1000, 1000), np.float32)
    with pytest.raises(UserError, match=r"to_q.alpha has shape \[1000, 1000\]"):
        read_lora(save(tmp_path / "x.safetensors", tensors), TINY)
