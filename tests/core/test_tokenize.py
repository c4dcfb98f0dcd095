import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers

from dsd_jax.errors import UserError
from dsd_jax.text.tokenize import Tokenizers, clean_prompt
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.making.tokenizers import CLIP_VOCAB, T5_VOCAB, WORDS, write_tiny_tokenizers
from dsd_jax.toy.words import T5_LENGTH

PROMPTS = [
    "a photo of the red cat, sitting on a table",
    "",
    "Ünïcode 🐈 and CAPITALS: it's 2 robots!",
    "literal <|endoftext|> and </s> inside",
    "spotted robot " * 60,
    "x" * 700,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("FLUX.1-dev")
    write_tiny_tokenizers(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> Tokenizers:
    return Tokenizers.load(folder)


def reference_ids(folder: Path, name: str, length: int) -> np.ndarray:
    """The ids that the diffusers pipeline passes to the text encoder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name, local_files_only=True)
    return tokenizer(
        PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    ).input_ids


def test_ids_are_those_of_the_reference(folder: Path, tokenizers: Tokenizers) -> None:
    ids = tokenizers.encode(PROMPTS)
    assert ids.clip.dtype == ids.t5.dtype == np.dtype(np.int32)
    assert ids.clip.shape == (len(PROMPTS), 77)
    assert ids.t5.shape == (len(PROMPTS), 512)
    np.testing.assert_array_equal(ids.clip, reference_ids(folder, "tokenizer", 77))
    np.testing.assert_array_equal(ids.t5, reference_ids(folder, "tokenizer_2", 512))
    assert ids.clip.max() == CLIP_VOCAB - 1
    assert ids.t5.max() < T5_VOCAB


def test_other_lengths(folder: Path) -> None:
    tokenizers = Tokenizers.load(folder, clip_length=9, t5_length=20)
    ids = tokenizers.encode(PROMPTS)
    np.testing.assert_array_equal(ids.clip, reference_ids(folder, "tokenizer", 9))
    np.testing.assert_array_equal(ids.t5, reference_ids(folder, "tokenizer_2", 20))


def test_no_more_tokens_than_the_tokeniser_states_and_room_for_a_word(folder: Path) -> None:
    assert Tokenizers.load(folder, t5_length=512).t5_length == 512
    with pytest.raises(UserError, match="max_sequence_length 4000 is more than the 512 tokens"):
        Tokenizers.load(folder, t5_length=4000)
    assert Tokenizers.load(toy_flux_path(), t5_length=512).t5_length == T5_LENGTH  # the default
    with pytest.raises(
        UserError, match=f"max_sequence_length 77 is more than the {T5_LENGTH} tokens"
    ):
        Tokenizers.load(toy_flux_path(), t5_length=77)
    with pytest.raises(UserError, match="max_sequence_length must be at least 2, got 0"):
        Tokenizers.load(folder, t5_length=0)


def test_what_is_cut_is_told_in_the_words_of_the_prompt(tokenizers: Tokenizers) -> None:
    long = "Spotted ROBOT " * 37 + "and A Cat, on the Beach"
    # 37 x 2 words and "and" fill the 75 places between start and end.
    assert tokenizers.encode([long, "a cat"]).clip_cut == ["A Cat, on the Beach", None]
    assert tokenizers.encode(["a cat", "cat " * 600]).t5_cut == [None, " ".join(["cat"] * 89)]


def test_a_prompt_that_just_fits_is_not_cut(tokenizers: Tokenizers) -> None:
    for words, cut in ((75, None), (76, "robot")):
        ids = tokenizers.encode([" ".join(["robot"] * words)])
        assert ids.clip_cut == [cut]
    for words, cut in ((511, None), (512, "robot")):
        ids = tokenizers.encode([" ".join(["robot"] * words)])
        assert ids.t5_cut == [cut]


def test_line_breaks_are_deleted_and_ends_stripped(tokenizers: Tokenizers) -> None:
    assert clean_prompt(" \n a red\r\ncat \n") == "a redcat"
    ids = tokenizers.encode(["  a photo of\n a\r cat\n"])
    same = tokenizers.encode(["a photo of a cat"])
    np.testing.assert_array_equal(ids.t5, same.t5)
    np.testing.assert_array_equal(ids.clip, same.clip)


def test_count_clip_tokens(tokenizers: Tokenizers) -> None:
    assert tokenizers.count_clip_tokens("") == 2
    assert tokenizers.count_clip_tokens("a photo of\n the dog") == 7
    assert tokenizers.count_clip_tokens("dog " * 200) == 202


def test_no_prompts(tokenizers: Tokenizers) -> None:
    ids = tokenizers.encode([])
    assert (ids.clip.shape, ids.t5.shape, ids.clip_cut) == ((0, 77), (0, 512), [])


def test_t5_from_its_sentencepiece_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    target = tmp_path / "tokenizer_2"
    target.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(np.roll(WORDS, i)) for i in range(60)]),
        model_prefix=str(target / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    ids = Tokenizers.load(tmp_path).encode(["a red cat"])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(target / "spiece.model"))
    expected = [*pieces.encode("a red cat"), 1]
    assert ids.t5[0, : len(expected)].tolist() == expected
    assert not ids.t5[0, len(expected) :].any()


def test_loading_and_encoding_open_no_connection(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len(Tokenizers.load(folder).encode(PROMPTS).t5) == len(PROMPTS)


def test_transformers_is_imported_only_when_tokenisers_are_loaded() -> None:
    """The quickstart imports every room; without torch, transformers would warn at once."""
    code = "import sys, dsd_jax.quickstart.run; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere has no folder tokenizer/; give a FLUX.1 folder"):
        Tokenizers.load(tmp_path / "nowhere")


def test_missing_t5_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"has no folder tokenizer_2/"):
        Tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer/merges.txt", r"tokenizer is not a tokeniser: expected tokenizer.json or vocab"),
        ("tokenizer_2/tokenizer.json", r"expected tokenizer.json or spiece.model; download it"),
    ],
)
def test_missing_file(folder: Path, tmp_path: Path, name: str, message: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(UserError, match=message):
        Tokenizers.load(copy)


@pytest.mark.parametrize("name", ["tokenizer/vocab.json", "tokenizer_2/tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", json.dumps({"version": "1.0"}), "version https://g"])
def test_broken_file(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=r"cannot read the tokeniser in .*; download it again"):
        Tokenizers.load(copy)


@pytest.mark.parametrize("stated", ["x", None, -5, 1, True])
def test_an_odd_length_is_named(folder: Path, tmp_path: Path, stated: object) -> None:
    shutil.copytree(folder, tmp_path / "flux")
    config = tmp_path / "flux" / "tokenizer_2" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": stated}))
    if stated is None:
        assert Tokenizers.load(tmp_path / "flux").t5_length == 512  # it states none
        return
    with pytest.raises(UserError, match=r"tokenizer_2 states a model_max_length of "):
        Tokenizers.load(tmp_path / "flux")


def test_files_lie_in_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "flux")
    odd = tmp_path / "flux" / "tokenizer" / "added_tokens.json"
    os.mkfifo(odd)
    with pytest.raises(UserError, match="is not a regular file"):
        Tokenizers.load(tmp_path / "flux")
    odd.unlink()
    odd.symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"added_tokens.json is outside of the folder"):
        Tokenizers.load(tmp_path / "flux")
