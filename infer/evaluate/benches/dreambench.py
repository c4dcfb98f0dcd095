"""DreamBench, the dataset of DreamBooth (Ruiz et al., CVPR 2023): 30 subjects with 25 prompts each.

    dataset/SUBJECT/NN.jpg                four to six photographs
    dataset/prompts_and_classes.txt       prompts with gaps, and the class of each subject

The original protocol asks for four images of each prompt, and compares them with all photographs.
Methods without training get one photograph; which one, Kosmos-G has chosen and UNO repeats.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.benches.source import (
    ENDINGS,
    Source,
    check_count,
    check_released,
    picture,
    text_lines,
    visible,
)
from dsd_jax.infer.evaluate.cases import Case, Picture

__all__ = ["read_dreambench", "read_dreambench_once"]


class _Subject(NamedTuple):
    """A subject: its class, the photograph that one-image methods get, and those that there are."""

    name: str
    reference: int
    photographs: int
    sha256: str  # see `check_released`; of google/dreambooth at 4f887af

    @property
    def is_live(self) -> bool:
        return self.name in ("cat", "dog")


_SUBJECTS: Mapping[str, _Subject] = {
    "backpack": _Subject("backpack", 2, 6, "6218c6a5904d1ea4"),
    "backpack_dog": _Subject("backpack", 2, 5, "bd9f6151e7500b48"),
    "bear_plushie": _Subject("stuffed animal", 3, 5, "f183d523edd8b5c5"),
    "berry_bowl": _Subject("bowl", 2, 6, "d579a9a34249b2ff"),
    "can": _Subject("can", 1, 6, "68d85f991c3cdb22"),
    "candle": _Subject("candle", 2, 5, "69062aa35a529a77"),
    "cat": _Subject("cat", 4, 5, "79177b28dde026e9"),
    "cat2": _Subject("cat", 2, 5, "6e24488264456511"),
    "clock": _Subject("clock", 3, 6, "0ad89149e9d7be68"),
    "colorful_sneaker": _Subject("sneaker", 1, 5, "5028ae7975442874"),
    "dog": _Subject("dog", 2, 5, "1841cdf3fde6fdd2"),
    "dog2": _Subject("dog", 2, 6, "be636ca60adc594f"),
    "dog3": _Subject("dog", 5, 6, "9ae12159d2a838be"),
    "dog5": _Subject("dog", 0, 5, "10b5cf0d5dbe650a"),
    "dog6": _Subject("dog", 2, 5, "122567b5019de781"),
    "dog7": _Subject("dog", 1, 5, "66a61707de59f1b3"),
    "dog8": _Subject("dog", 4, 5, "4a2cee8cfc3bf42f"),
    "duck_toy": _Subject("toy", 1, 4, "94dd91122371e798"),
    "fancy_boot": _Subject("boot", 2, 6, "66e85d820ec4fa34"),
    "grey_sloth_plushie": _Subject("stuffed animal", 4, 5, "2714966221afec63"),
    "monster_toy": _Subject("toy", 4, 5, "8ff1ec0974b02830"),
    "pink_sunglasses": _Subject("glasses", 4, 6, "3c9ededb7f35099b"),
    "poop_emoji": _Subject("toy", 0, 5, "303bb516101d1241"),
    "rc_car": _Subject("toy", 3, 5, "b969001e4d17c01e"),
    "red_cartoon": _Subject("cartoon", 0, 4, "f6748a588fcc8fac"),
    "robot_toy": _Subject("toy", 0, 5, "eb114b573b9c9b60"),
    "shiny_sneaker": _Subject("sneaker", 1, 6, "ca7e616a92db9830"),
    "teapot": _Subject("teapot", 4, 5, "89a244d2654e86bf"),
    "vase": _Subject("vase", 2, 6, "6d849b693dd8a81b"),
    "wolf_plushie": _Subject("stuffed animal", 4, 5, "d59b7cbd7d2afa51"),
}
_FILE = "prompts_and_classes.txt"
_PROMPTS = 25
_TEMPLATE = re.compile(r"'(.*\{1\}.*)'\.format\(")
_SAMPLES = 4


def read_dreambench_once(source: Source) -> list[Case]:
    """Reads the 750 cases of the protocol with one photograph and one image of each prompt.

    The targets are the other photographs: what is nearer to the reference than to them was copied.

    Raises:
        UserError: A photograph or the file of prompts is missing or damaged, or a count differs.
    """
    return _read(source, "dreambench-750")


def read_dreambench(source: Source) -> list[Case]:
    """Reads the 750 cases of the original protocol, each of which asks for four images.

    All photographs are references. The first, which one-image methods get, is the same as in the
    other protocol, and the targets are all others.

    Raises:
        UserError: See `read_dreambench_once`.
    """
    made = []
    for case in _read(source, "dreambench-3000"):
        references = (*case.references, *case.targets)
        made.append(dataclasses.replace(case, references=references, samples=_SAMPLES))
    return made


def _read(source: Source, bench: str) -> list[Case]:
    root = source.root / "dataset" if (source.root / "dataset").is_dir() else source.root
    if not (root / _FILE).is_file():
        raise UserError(f"{root} has no {_FILE}; give a clone of github.com/google/dreambooth")
    objects, live = _prompts(root / _FILE)
    cases, groups = [], {}
    for name, subject in _SUBJECTS.items():
        paths = list(visible(root / name, *ENDINGS))
        check_count("photographs", root / name, len(paths), subject.photographs)
        pictures = list(map(picture, paths))
        groups[name] = pictures, subject.sha256
        prompts = live if subject.is_live else objects
        cases += [
            _case(bench, name, index, template, pictures) for index, template in enumerate(prompts)
        ]
    if source.released:
        check_released(groups, root)
    return cases


def _case(bench: str, name: str, index: int, template: str, pictures: list[Picture]) -> Case:
    subject = _SUBJECTS[name]
    reference = pictures[subject.reference]
    return Case(
        id=f"{name}-{index:02d}",
        bench=bench,
        subject=name,
        # The first gap is for the rare word of methods that train, with a space after it.
        prompt=template.replace("{0} ", "").replace("{1}", subject.name),
        references=(reference,),
        targets=tuple(each for each in pictures if each is not reference),
        category="live" if subject.is_live else "object",
        prompt_index=index,
        prompt_class=_class(index, live=subject.is_live),
        subject_text=subject.name,
    )


def _class(index: int, *, live: bool) -> str:
    """The kind of a prompt: another scene, something to wear, or another property."""
    if index >= 20:
        return "property"
    return "accessory" if live and index >= 10 else "scene"


def _prompts(path: Path) -> tuple[list[str], list[str]]:
    """Prompts of objects and of live subjects, with gaps."""
    found = _TEMPLATE.findall("\n".join(text_lines(path)))
    check_count("prompts", path, len(found), 2 * _PROMPTS)
    return found[:_PROMPTS], found[_PROMPTS:]
