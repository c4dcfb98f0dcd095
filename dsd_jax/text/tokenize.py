"""Prompts to token ids, with the two tokenisers of FLUX read from a local folder.

The tokenisers are those of transformers, which is imported when they are loaded, not before.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.inside import open_inside
from dsd_jax.types import Int

__all__ = ["TextIds", "Tokenizer", "Tokenizers", "clean_prompt", "clip_tokenizer", "token_ids"]

CLIP_FOLDER, T5_FOLDER = "tokenizer", "tokenizer_2"
# Each tokeniser reads any one of these sets of files.
CLIP_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
T5_FILES = (("tokenizer.json",), ("spiece.model",))
_MOST_BYTES = 1 << 28  # of one file; T5's tokenizer.json has 2 MB
_LEAST_TOKENS = 2  # fewer leave no room for a word


def clean_prompt(prompt: str) -> str:
    """Strips the prompt and deletes line breaks, as the released program does.

    They are not replaced by spaces: words on both sides of a line break become one.
    """
    return prompt.strip().replace("\n", "").replace("\r", "")


@dataclasses.dataclass(frozen=True)
class TextIds:
    """Token ids of prompts, int32, and the end of each prompt that was cut off (or None)."""

    clip: Int[np.ndarray, "B L_clip"]
    t5: Int[np.ndarray, "B L_t5"]
    clip_cut: list[str | None]
    t5_cut: list[str | None]


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers tokeniser that is used here."""

    pad_token_id: int | None
    model_max_length: int

    def __call__(self, text: list[str], **options: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """CLIP's and T5's tokeniser, and how many tokens each model takes."""

    clip: Tokenizer
    t5: Tokenizer
    clip_length: int = 77
    t5_length: int = 512

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        clip_length: int | None = None,
        t5_length: int | None = None,
    ) -> "Tokenizers":
        """Reads `tokenizer/` (CLIP) and `tokenizer_2/` (T5) of a FLUX folder in diffusers layout.

        Never uses the network.

        Args:
            folder: folder of the pipeline.
            clip_length, t5_length: tokens of every prompt, at most what the tokenisers state;
                default: 77 and 512, as in FLUX.1-dev.

        Raises:
            UserError: a folder or file is missing, or its content is not that of a tokeniser; a
                length below 2, which leaves no room for a word, or one that T5 does not take.
        """
        for length in (clip_length, t5_length):
            if length is not None and not (isinstance(length, int) and length >= _LEAST_TOKENS):
                raise UserError(f"max_sequence_length must be at least 2, got {length!r}")
        clip, t5 = (_inside(Path(folder), name) for name in (CLIP_FOLDER, T5_FOLDER))
        _check_files(t5, T5_FILES)
        own = clip_tokenizer(clip)

        with _explain(t5):
            t5_tokenizer = _library().T5TokenizerFast.from_pretrained(
                str(t5), local_files_only=True
            )
        _check_length(t5, t5_tokenizer)
        stated = t5_tokenizer.model_max_length
        # The default of a configuration is no wish of the user, so a smaller model may cut it.
        if t5_length is not None and t5_length > stated and t5_length != cls.t5_length:
            raise UserError(
                f"max_sequence_length {t5_length} is more than the {stated} tokens that the "
                f"tokeniser in {t5} states; give at most {stated}"
            )
        return cls(
            own,
            t5_tokenizer,
            min(own.model_max_length, clip_length or cls.clip_length),
            min(stated, t5_length or cls.t5_length),
        )

    def encode(self, prompts: list[str]) -> TextIds:
        """Ids of cleaned prompts, padded or cut to each model's length."""
        prompts = [clean_prompt(prompt) for prompt in prompts]
        clip, clip_cut = token_ids(self.clip, prompts, self.clip_length)
        t5, t5_cut = token_ids(self.t5, prompts, self.t5_length)
        return TextIds(clip, t5, clip_cut, t5_cut)

    def count_clip_tokens(self, text: str) -> int:
        """Number of CLIP tokens of a cleaned text, start and end included."""
        return len(self.clip([clean_prompt(text)], verbose=False)["input_ids"][0])


def _library() -> Any:
    """transformers, whose import takes seconds."""
    # Its tokenisers need no PyTorch, so that it is not worth a warning if there is none.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # noqa: PLC0415 - see above

    return transformers


def clip_tokenizer(folder: Path) -> Tokenizer:
    """Reads CLIP's tokeniser from the folder that holds its files.

    Raises:
        UserError: A file is missing, or its content is not that of a tokeniser.
    """
    _check_files(folder, CLIP_FILES)

    with _explain(folder):
        tokenizer: Tokenizer = _library().CLIPTokenizerFast.from_pretrained(
            str(folder), local_files_only=True
        )
    _check_length(folder, tokenizer)
    return tokenizer


def token_ids(
    tokenizer: Tokenizer, prompts: list[str], length: int
) -> tuple[Int[np.ndarray, "B L"], list[str | None]]:
    """Ids padded or cut to one length, and the end of each prompt that found no room (or None)."""
    ids = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    cut: list[str | None] = []
    if not prompts:
        return ids, cut
    # Tokenised without limit, to tell where in the text the limit falls.
    encoded = tokenizer(prompts, return_offsets_mapping=True, verbose=False)
    for row, prompt, own, offsets in zip(
        ids, prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        if len(own) <= length:
            row[: len(own)] = own
            cut.append(None)
        else:
            row[:] = [*own[: length - 1], own[-1]]  # both tokenisers end with an end token
            cut.append(prompt[offsets[length - 1][0] :].strip())
    return ids, cut


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_dir():
        raise UserError(
            f"{folder} has no folder {name}/; give a FLUX.1 folder in diffusers layout, with "
            f"{CLIP_FOLDER}/ and {T5_FOLDER}/ beside transformer/"
        )
    return path


def _check_files(path: Path, choices: tuple[tuple[str, ...], ...]) -> None:
    expected = " or ".join(" + ".join(files) for files in choices)
    if not any(all((path / file).is_file() for file in files) for files in choices):
        raise UserError(f"{path} is not a tokeniser: expected {expected}; download it again")
    for file in path.iterdir():  # transformers reads those that it knows by name
        if not file.is_dir():
            _check_file(path, file.name)


def _check_file(folder: Path, name: str) -> None:
    """Refuses a pipe, whose opening would wait, a link out of the folder, and a huge file."""
    try:
        with open_inside(folder, name) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise UserError(f"{folder / name} has more than {_MOST_BYTES:,} bytes")
    except OSError as error:
        raise UserError(f"cannot read {folder / name}: {error.strerror}") from None


def _check_length(path: Path, tokenizer: Any) -> None:
    stated = tokenizer.model_max_length
    if not isinstance(stated, int | float) or not stated >= _LEAST_TOKENS:
        raise UserError(
            f"{path} states a model_max_length of {str(stated)[:80]!r}, expected a number of "
            "tokens; download it again"
        )


@contextlib.contextmanager
def _explain(path: Path) -> Iterator[None]:
    """Turns the exceptions of tokeniser libraries about bad files into one kind of error."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot read the tokeniser in {path}: {reason}; download it again"
        ) from error
