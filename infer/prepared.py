"""The images that a pipeline is asked for, checked before anything large is read or computed."""

import dataclasses
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import Frame, Source, open_frame, to_array
from dsd_jax.infer.arguments import check_count
from dsd_jax.infer.settings import Settings, check_seed
from dsd_jax.inside import open_regular
from dsd_jax.text.plain import check_text
from dsd_jax.text.tokenize import TextIds, Tokenizers
from dsd_jax.types import Float32

__all__ = [
    "Images",
    "Prepared",
    "Texts",
    "check_texts",
    "open_frames",
    "prepare",
    "read_latents",
    "seeds_of",
]

Texts: TypeAlias = str | Sequence[str]
Images: TypeAlias = Source | Sequence[Source]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Images to sample, in order: one text, one seed and perhaps one reference each.

    Attributes:
        texts: prompt of every image.
        frames: reference of every image, cropped and resized, in [-1, 1]; None without references.
        seeds: seed of every image, uint32.
        settings: checked.
        prompts: every distinct prompt once, the negative one included if it counts.
        ids: tokens of `prompts`.
        notices: notices for the user about each image, one sentence each.
    """

    texts: list[str]
    frames: Float32[np.ndarray, "N h w 3"] | None
    seeds: np.ndarray
    settings: Settings
    prompts: list[str]
    ids: TextIds
    notices: list[list[str]]

    def only(self, row: int) -> "Prepared":
        """One of the images, alone."""
        one = slice(row, row + 1)
        return dataclasses.replace(
            self,
            texts=self.texts[one],
            frames=None if self.frames is None else self.frames[one],
            seeds=self.seeds[one],
            notices=self.notices[one],
        )


def prepare(
    tokenizers: Tokenizers,
    texts: Sequence[str],
    frames: Sequence[Frame] | None,
    seeds: np.ndarray,
    settings: Settings,
) -> Prepared:
    """Tokenises the texts.

    Args:
        tokenizers: tokenisers of the pipeline.
        texts: prompt of every image.
        frames: reference of every image, cropped and resized, or None.
        seeds: seed of every image.
        settings: checked.

    Raises:
        UserError: an empty text.
    """
    check_texts(texts)
    negative = [settings.negative_prompt] if settings.true_guidance else []
    prompts = list(dict.fromkeys([*texts, *negative]))
    ids = tokenizers.encode(prompts)
    said = {
        prompt: [
            f"text cut at {limit} {name} tokens; left out: {cut!r}"
            for name, limit, cut in (
                ("T5", tokenizers.t5_length, t5_cut),
                ("CLIP", tokenizers.clip_length, clip_cut),
            )
            if cut
        ]
        for prompt, t5_cut, clip_cut in zip(prompts, ids.t5_cut, ids.clip_cut, strict=True)
    }
    of_all = [notice for prompt in negative for notice in said[prompt]] + _without_effect(settings)
    of_each = [
        [*said[text], *of_all, *(frames[i].notices if frames else ())]
        for i, text in enumerate(texts)
    ]
    return Prepared(
        texts=list(texts),
        frames=None if frames is None else np.stack([to_array(frame.image) for frame in frames]),
        seeds=seeds,
        settings=settings,
        prompts=prompts,
        ids=ids,
        notices=of_each,
    )


def check_texts(texts: Sequence[str]) -> None:
    """Refuses texts that are empty or cannot be stored.

    Raises:
        UserError: one is empty, or UTF-8 cannot hold it.
    """
    for i, text in enumerate(texts):
        check_text(text, "the text")
        if not text.strip():
            raise UserError(f"text {i} is empty; describe the image that is wanted")


def _without_effect(settings: Settings) -> list[str]:
    if settings.true_guidance:
        return []
    default = Settings()
    return [
        f"{name}={value!r} has no effect: i_guidance is not above 1"
        for name in ("i_guidance", "t_guidance", "negative_prompt", "guidance_every")
        if (value := getattr(settings, name)) != getattr(default, name)
    ]


def open_frames(image: Images | None, count: int, settings: Settings) -> list[Frame] | None:
    """Opens and crops the references of `count` texts, each file once.

    Args:
        image: one reference for all texts, one each, or None.
        count: number of texts.
        settings: checked.

    Raises:
        UserError: not as many images as texts, or one that cannot be read.
    """
    if image is None:
        return None
    height, width = settings.size[0], settings.size[1] // 2
    if isinstance(image, str | Path | bytes | Image.Image):
        return [open_frame(image, height, width)] * count
    if not isinstance(image, list | tuple):
        raise UserError(
            "image must be a path, a PIL image, or a list with one for every text, got "
            f"{type(image).__name__}"
        )
    if len(image) != count:
        raise UserError(f"{count} texts but {len(image)} images; give one image, or one per text")
    return [open_frame(item, height, width) for item in image]


def seeds_of(seed: int | Sequence[int] | np.ndarray, texts: int, num_images: int) -> np.ndarray:
    """Makes the seed of every image: seed + j for image j of a text, or a seed given for each.

    Raises:
        UserError: no images, not as many seeds as images, or one that does not fit 32 bits.
    """
    num_images = check_count("num_images", num_images)
    total = texts * num_images
    given = np.asarray(seed).tolist()
    if not isinstance(given, list):
        given = [check_seed(given) + i for i in range(num_images)] * texts
    if len(given) != total:
        raise UserError(f"{total} images but {len(given)} seeds; give one seed, or one per image")
    return np.asarray([check_seed(s) for s in given], np.uint32)


# Errors of NumPy about damaged files.
_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, TypeError, ValueError, OverflowError, MemoryError),
    tokenize.TokenError,
)


def read_latents(path: Path) -> np.ndarray:
    """Reads an array from an `.npy` file, which cannot claim more than it holds.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        open_regular(path).close()
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the latents {path} as .npy: {reason}") from None
