"""DreamBench++ (Peng et al., ICLR 2025): 150 subjects with nine prompts each.

    images/{live_subject/animal,live_subject/human,object,style}/NN.jpg
    captions/…/NN.txt       the name of the subject, then a prompt a line

The categories are those of the folders. Official scripts look for the name of a category in ids
such as `live_subject_animal_00_kitten`, which an object called `stuffed animal` has too.
"""

from pathlib import Path

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.benches.source import (
    ENDINGS,
    Source,
    check_count,
    file_name,
    picture,
    text_lines,
    visible,
)
from dsd_jax.infer.evaluate.cases import Case

__all__ = ["FOLDERS", "data_folder", "read_dreambench_plus"]

FOLDERS = {
    "animal": "live_subject/animal",
    "human": "live_subject/human",
    "object": "object",
    "style": "style",
}
"""Folder of each category."""
_COUNTS = {"animal": 45, "human": 20, "object": 65, "style": 20}
_CLASSES = (*["photorealistic"] * 4, *["style"] * 3, *["imaginative"] * 2)


def read_dreambench_plus(source: Source) -> list[Case]:
    """Reads the 1350 cases.

    Their ids are the keys of the official ratings, `live_subject_animal_00_kitten-3`.

    Raises:
        UserError: A picture or a file of prompts is missing or damaged, or a count differs.
    """
    root = data_folder(source.root)
    cases = []
    for category, folder in FOLDERS.items():
        images = {path.stem: path for path in visible(root / "images" / folder, *ENDINGS)}
        captions = {path.stem: path for path in visible(root / "captions" / folder, ".txt")}
        if lone := sorted(images.keys() ^ captions.keys()):
            raise UserError(
                f"{root}: {and_more([f'{folder}/{stem}' for stem in lone])} have a picture or a "
                "file of prompts, but not both; the download is incomplete"
            )
        check_count(f"pictures in images/{folder}", root, len(images), _COUNTS[category])
        for stem, path in sorted(images.items()):
            cases += _cases(category, path, captions[stem])
    return cases


def data_folder(root: Path) -> Path:
    """The folder that holds `images` and `captions`: the one that was given, or `data` in it.

    Raises:
        UserError: There is none.
    """
    for folder in (root, root / "data"):
        if (folder / "images").is_dir() and (folder / "captions").is_dir():
            return folder
    raise UserError(
        f"{root} has no folders images and captions; unpack data.zip of DreamBench++ and give the "
        "folder that has them"
    )


def _cases(category: str, image: Path, captions: Path) -> list[Case]:
    """The nine cases of a subject."""
    name, *prompts = text_lines(captions)
    check_count("prompts", captions, len(prompts), len(_CLASSES))
    if not image.stem.isdecimal():
        raise UserError(f"{image} must be called by a number, such as 00.jpg")
    prefix = FOLDERS[category].replace("/", "_")
    subject = f"{prefix}_{image.stem}_{file_name(name.lower())}"
    reference = picture(image)
    return [
        Case(
            id=f"{subject}-{index}",
            bench="dreambench++",
            subject=subject,
            prompt=prompt,
            references=(reference,),
            category=category,
            prompt_index=index,
            prompt_class=kind,
            subject_text=name,
        )
        for index, (prompt, kind) in enumerate(zip(prompts, _CLASSES, strict=True))
    ]
