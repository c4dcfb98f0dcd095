"""The benchmarks by name."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.benches.dreambench import read_dreambench, read_dreambench_once
from dsd_jax.infer.evaluate.benches.dreambench_plus import read_dreambench_plus
from dsd_jax.infer.evaluate.benches.multiid import read_multiid
from dsd_jax.infer.evaluate.benches.omnicontext import read_omnicontext
from dsd_jax.infer.evaluate.benches.pairs import read_pairs
from dsd_jax.infer.evaluate.benches.source import Source, picture
from dsd_jax.infer.evaluate.benches.table import read_table
from dsd_jax.infer.evaluate.benches.toy import changed_toys, read_toy
from dsd_jax.infer.evaluate.benches.xverse import read_xverse
from dsd_jax.infer.evaluate.cases import Case, Picture, write_cases

__all__ = ["BENCHES", "Bench", "BenchName", "counts", "prepare"]

BenchName = Literal[
    "dreambench++",
    "dreambench-750",
    "dreambench-3000",
    "omnicontext",
    "xverse",
    "multiid",
    "pairs",
    "toy",
    "jsonl",
]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A benchmark that can be prepared.

    Attributes:
        title: What it is called.
        expects: What each folder of `--root` holds.
        read: Makes its cases; raises a UserError where files are missing or damaged, or where
            counts that are known differ.
        counted: The counts of its cases are known and were checked by `read`.
        changed: Draws pictures whose subject differs from a case's in a known number of attributes,
            if the benchmark can.
    """

    title: str
    expects: tuple[str, ...]
    read: Callable[[Source], list[Case]]
    counted: bool = True
    changed: Callable[[Case, np.random.Generator], Iterator[tuple[int, Image.Image]]] | None = None


_DREAMBENCH = ("a clone of github.com/google/dreambooth",)
BENCHES: dict[BenchName, Bench] = {
    "dreambench++": Bench(
        "DreamBench++", ("the unpacked data.zip of DreamBench++",), read_dreambench_plus
    ),
    "dreambench-750": Bench(
        "DreamBench, one reference and one image each", _DREAMBENCH, read_dreambench_once
    ),
    "dreambench-3000": Bench("DreamBench, four images each", _DREAMBENCH, read_dreambench),
    "omnicontext": Bench(
        "OmniContext, one subject",
        ("the dataset OmniGen2/OmniContext",),
        read_omnicontext,
        counted=False,
    ),
    "xverse": Bench(
        "XVerseBench, one subject",
        ("a clone of github.com/bytedance/XVerse", "the unpacked data.zip of DreamBench++"),
        read_xverse,
    ),
    "multiid": Bench(
        "MultiID-Bench, one person",
        ("the folder that its hf2bench.py wrote",),
        read_multiid,
        counted=False,
    ),
    "pairs": Bench(
        "held-out pairs",
        ("a folder that `dsd data export --format folder` wrote",),
        read_pairs,
        counted=False,
    ),
    "toy": Bench("toy world", (), read_toy, counted=False, changed=changed_toys),
    "jsonl": Bench("table of cases", ("a table, or a folder with one",), read_table, counted=False),
}


def prepare(
    name: BenchName, source: Source, output: Path, mask_dir: Path | None = None
) -> list[Case]:
    """Reads a benchmark and writes its cases.

    Args:
        name: Name of the benchmark.
        source: Its folders.
        output: Cases file to write.
        mask_dir: Folder of masks, laid out as the folders of the benchmark are: the mask of
            `DIR/a/b.jpg` is `MASKS/a/b.png`. Pictures without a mask keep none.

    Raises:
        UserError: A folder is missing, or see `Bench.read`.
    """
    bench = BENCHES[name]
    if len(source.roots) != len(bench.expects):
        wanted = " and ".join(bench.expects)
        raise UserError(
            f"{name} reads {wanted}; give --root {' '.join('DIR' for _ in bench.expects)}, got "
            f"{len(source.roots)} folders"
            if wanted
            else f"{name} reads no files; leave --root out"
        )
    for root, expected in zip(source.roots, bench.expects, strict=True):
        if not root.exists():
            raise UserError(f"there is no file or folder {root}; {name} reads {expected}")
    cases = bench.read(source)
    if mask_dir is not None:
        roots = [root if root.is_dir() else root.parent for root in source.roots]
        cases = _with_masks(cases, [*roots, source.pictures], mask_dir)
    places: dict[tuple[str, int], str] = {}
    for case in cases:
        first = places.setdefault((case.subject, case.prompt_index), case.id)
        if first != case.id:
            raise UserError(
                f"cases {first} and {case.id} both have prompt {case.prompt_index} of the subject "
                f"{case.subject}; number the prompts of a subject"
            )
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise UserError(f"the ids of cases must differ, but {and_more(twice)} stand there twice")
    write_cases(output, cases)
    return cases


def counts(cases: list[Case]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of what was prepared: a row for each category, and a sum."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.category or "all", []).append(case)
    if len(groups) > 1:
        groups["all"] = cases
    columns = ["category", "subjects", "cases", "images", "references", "targets", "masks"]
    return columns, [[name, *map(str, _counted(group))] for name, group in groups.items()]


def _counted(cases: list[Case]) -> list[int]:
    references = {each for case in cases for each in case.references}
    targets = {each for case in cases for each in case.targets}
    return [
        len({case.subject for case in cases}),
        len(cases),
        sum(case.samples for case in cases),
        len(references),
        len(targets),
        sum(each.mask is not None for each in references | targets),
    ]


def _with_masks(cases: list[Case], roots: Sequence[Path], mask_dir: Path) -> list[Case]:
    masked: dict[Picture, Picture] = {}

    def with_mask(given: Picture) -> Picture:
        if given not in masked:
            root = next(
                (each for each in roots if given.path.is_relative_to(each.absolute())),
                given.path.parent,
            )
            below = given.path.relative_to(root.absolute())
            mask = mask_dir / below.with_suffix(".png")
            masked[given] = picture(given.path, mask) if mask.exists() else given
        return masked[given]

    made = [
        dataclasses.replace(
            case,
            references=tuple(map(with_mask, case.references)),
            targets=tuple(map(with_mask, case.targets)),
        )
        for case in cases
    ]
    if not any(each.mask for each in masked.values()):
        raise UserError(
            f"{mask_dir} has a mask for no picture; that of {roots[0]}/a/b.jpg is "
            f"{mask_dir}/a/b.png"
        )
    return made
