"""Writes tiny tokenisers in the layout of FLUX.1-dev's folder."""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from dsd_jax.toy.words import WORDS as WORLD

__all__ = ["CLIP_VOCAB", "T5_VOCAB", "WORDS", "clip_ids", "t5_ids", "write_tiny_tokenizers"]

_COMMON = (
    "a an the this that of on in at with and photo painting character subject cat dog robot "
    "red green blue yellow sitting standing holding chair table beach forest snow night city "
    "same left right grid two four small large spotted striped"
).split()
WORDS = list(dict.fromkeys([*_COMMON, *WORLD]))
"""Each is one token of T5 and of CLIP, which also parts words at their hyphens."""
_END = "</w>"  # of a CLIP token that ends a word


def _byte_letters() -> list[str]:
    """The 256 printable letters by which byte-level BPE writes the 256 bytes (as GPT-2 does)."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


@functools.cache
def _clip_vocab() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of byte-level BPE, learned until every word is one token.

    Merges apply in the order in which they were learned. If all merges of one word came before
    those of the next, they would split the later words. The `tokenizers` trainer settles ties by
    chance, and these ids belong to weights that ship, so here the greater pair wins.
    """
    letters = _byte_letters()
    words = [[*word[:-1], word[-1] + _END] for word in dict.fromkeys("-".join(WORDS).split("-"))]
    merges = []
    while pairs := Counter(pair for word in words for pair in itertools.pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
    tokens = [*letters, *(letter + _END for letter in letters), *map("".join, merges)]
    # Last, so that the end token has the largest id: CLIP's legacy rule looks for that.
    return [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"], merges


def _t5_vocab() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -5.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    letters = [(chr(code), -10.0 - 0.01 * i) for i, code in enumerate(range(33, 127))]
    return [*special, ("▁", -8.0), *words, *letters]


CLIP_VOCAB = len(_clip_vocab()[0])
"""Size of the CLIP vocabulary; start and end token are the last two ids."""
T5_VOCAB = len(_t5_vocab())
"""Size of the T5 vocabulary; padding is 0, the end token is 1."""


def clip_ids(words: Sequence[str]) -> list[int]:
    """Ids of words that are one token of CLIP each."""
    tokens, _ = _clip_vocab()
    return [tokens.index(word + _END) for word in words]


def t5_ids(words: Sequence[str]) -> list[int]:
    """Ids of words that are one token of T5 each."""
    tokens = [token for token, _ in _t5_vocab()]
    return [tokens.index(f"▁{word}") for word in words]


def write_tiny_tokenizers(folder: Path, *, t5_length: int = 512) -> None:
    """Writes `tokenizer/` (CLIP: byte-level BPE) and `tokenizer_2/` (T5: unigram), a few KB.

    Args:
        folder: Folder of the pipeline.
        t5_length: Tokens that T5's tokeniser pads a prompt to.
    """
    _write_clip(folder / "tokenizer")
    _write_t5(folder / "tokenizer_2", t5_length)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _write_clip(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = _clip_vocab()
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special},
    )


def _write_t5(folder: Path, length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(Unigram(_t5_vocab(), unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "model_max_length": length, "extra_ids": 0, **special},
    )
