"""XVerseBench (Chen et al., 2025), its 90 cases with one subject.

The list and the pictures of people lie in a clone of github.com/bytedance/XVerse; animals and
objects are pictures of DreamBench++, and nine more objects are its pictures of people, renumbered.
"""

import re
from collections import Counter
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256
from dsd_jax.infer.evaluate.benches.dreambench_plus import FOLDERS, data_folder
from dsd_jax.infer.evaluate.benches.source import Source, check_count, picture
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.rows import lookup
from dsd_jax.structured import read_json

__all__ = ["read_xverse"]

_LIST = "eval/tools/XVerseBench_single.json"
_LIST_SHA256 = "82ff28ec57e025cb20a5b6e096b8287745e8d1141dd241a0448dd30a41fbb3ec"
_COUNTS = {"object": 41, "animal": 29, "human": 20}
_PICTURE = re.compile(r".*/(object|animal|human)/((\d\d)_.+)")
_OBJECTS = 65  # of DreamBench++; what comes after them are its people
_PEOPLE = ("00", "05", "06", "09", "12", "13", "14", "16", "17")


def read_xverse(source: Source) -> list[Case]:
    """Reads the 90 cases.

    Raises:
        UserError: The list or a picture is missing or damaged, a count differs, or the list is not
            the one that was released.
    """
    clone, dreambench = source.root, data_folder(source.roots[1])
    path = clone / _LIST
    if not path.is_file():
        raise UserError(
            f"{clone} has no {_LIST}; give a clone of github.com/bytedance/XVerse first"
        )
    if source.released and file_sha256(path) != _LIST_SHA256:
        raise UserError(
            f"{path} is not the list that was released; restore it, or accept it with "
            "--other_pictures"
        )
    cases = [
        _case(entry, f"{path} entry {number}", clone, dreambench)
        for number, entry in enumerate(read_json(path, list))
    ]
    found = Counter(case.category for case in cases)
    for category, expected in _COUNTS.items():
        check_count(f"cases of {category}", path, found[category], expected)
    return cases


def _case(entry: object, where: str, clone: Path, dreambench: Path) -> Case:
    given = lookup({"entry": entry}, "entry.modulation.0.src_inputs")
    prompt, index = (lookup({"entry": entry}, f"entry.{name}") for name in ("prompt", "index"))
    if not (isinstance(given, list) and len(given) == 1 and isinstance(prompt, str)):
        raise UserError(f"{where} has no prompt, or not one subject")
    name, words = (lookup({"given": given[0]}, f"given.{key}") for key in ("image_path", "caption"))
    found = _PICTURE.fullmatch(str(name))
    if found is None:
        raise UserError(f"{where}: the picture {name} is no object, animal or human")
    category, file, number = found.groups()
    return Case(
        id=f"{category}_{number}",
        bench="xverse",
        subject=f"{category}_{number}",
        prompt=prompt,
        references=(picture(_path(category, file, number, clone, dreambench)),),
        category=category,
        subject_text=re.sub(r"^(an?|the) ", "", str(words or "")),
        tags={"index": str(index)},
    )


def _path(category: str, file: str, number: str, clone: Path, dreambench: Path) -> Path:
    """Place of a picture that the list calls `object/65_anime space ranger.jpg`."""
    if category == "human":
        return clone / "assets" / "XVerseBench" / "human" / file
    if category == "object" and int(number) >= _OBJECTS:
        category, number = "human", _PEOPLE[int(number) - _OBJECTS]
    return dreambench / "images" / FOLDERS[category] / f"{number}.jpg"
