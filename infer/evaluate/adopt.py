"""Adopts the images of any method: finds the case of each, and checks that they are what they say.

Images stay where they are. What is wrong with a folder is listed in `import.json` of the run:

    missing     no file belongs to this image of a case
    corrupt     the file cannot be read as a picture
    duplicate   several files claim to be the same image, so none is taken
    swapped     the image belongs to another case, so far as can be known (`_compare_names`)

These four are holes: the images are not in the run. The rest is only worth knowing:

    extra       pictures that belong to no case
    rephrased   the method says that it was given another text; images are scored by the prompt of
                the case
    repeated    images of several cases, or several images of a case, are equal byte for byte
    blank       images of one colour, which safety filters put in place of others
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dsd_jax.errors import UserError, and_more
from dsd_jax.files import file_sha256, write_file
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.benches.names import method_word
from dsd_jax.infer.evaluate.cases import Case, read_cases
from dsd_jax.infer.evaluate.layouts import Found, Layout, find_images
from dsd_jax.infer.evaluate.runs import Image, write_run
from dsd_jax.progress import progress
from dsd_jax.structured import read_bytes
from dsd_jax.threads import in_order

__all__ = ["HOLES", "Adopted", "Finding", "Kind", "adopt"]

Kind = Literal[
    "missing", "corrupt", "duplicate", "swapped", "extra", "rephrased", "repeated", "blank"
]
HOLES: tuple[Kind, ...] = ("missing", "corrupt", "duplicate", "swapped")
"""Findings that leave an import incomplete."""

REPORT = "import.json"
_SIDE = 16  # pixels of the thumbnails by which references are told apart
_NEAR = 24.0  # largest mean difference of two thumbnails of one picture, in levels of 256
_LONGEST_TEXT = 1 << 16  # bytes
_SEED = re.compile(r"(?:^|_)seed_?(\d+)(?:_|$)")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that was found about an image.

    Attributes:
        kind: What was found.
        case: Id of the case that the image stands for; empty if it stands for none.
        sample: Number of the image among those of its case.
        paths: The files.
        reason: What else is known.
    """

    kind: Kind
    case: str = ""
    sample: int = 0
    paths: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        what = self.case or ", ".join(self.paths)
        return f"{what}: {self.reason}" if self.reason else what


@dataclasses.dataclass(frozen=True)
class Adopted:
    """The outcome of an import.

    Attributes:
        layout: Layout of the folder.
        images: Images that can be used.
        findings: What was found about the folder.
        report: File that lists the findings.
        written: The run was written.
    """

    layout: Layout
    images: Sequence[Image]
    findings: Sequence[Finding]
    report: Path
    written: bool

    @property
    def holes(self) -> int:
        """Number of images that are missing or cannot be used."""
        return len({(each.case, each.sample) for each in self.findings if each.kind in HOLES})

    @property
    def kinds(self) -> dict[Kind, list[Finding]]:
        """Findings by kind, for the kinds that there are."""
        return {
            kind: own
            for kind in get_args(Kind)
            if (own := [finding for finding in self.findings if finding.kind == kind])
        }


@dataclasses.dataclass(frozen=True)
class _Read:
    """A picture that was found, after it was opened.

    Attributes:
        found: Its place and its case.
        sha256: Digest of the file.
        size: Width and height in pixels.
        blank: It has one colour.
        text: Prompt that the method says it was given.
        source: Thumbnail of the reference that the method says it was given.
    """

    found: Found
    sha256: str
    size: tuple[int, int]
    blank: bool
    text: str | None
    source: np.ndarray | None

    @property
    def case(self) -> str:
        """Id of its case; only pictures of a case are read."""
        return self.found.case or ""

    def finding(self, kind: Kind, reason: str = "") -> Finding:
        """A finding about it."""
        return Finding(kind, self.case, self.found.sample, (os.fspath(self.found.path),), reason)


def adopt(
    method: str,
    folder: Path,
    cases_path: Path,
    output_dir: Path,
    *,
    layout: Layout = "auto",
    partial: bool = False,
) -> Adopted:
    """Makes a run of the images in a folder.

    Args:
        method: Name of the method in tables. In a folder of several methods of the DreamBench++
            archive it also says which one is meant.
        folder: Folder of the images, or a table of them.
        cases_path: Cases that they were made for.
        output_dir: Folder of the run.
        layout: Layout of the images; auto finds it.
        partial: Write the run even if it has holes.

    Raises:
        UserError: There are no images, a file of the method cannot be read, or see `write_run`.
    """
    cases = read_cases(cases_path)
    folder = _method_folder(folder, method)
    layout, found = find_images(folder, cases, layout)
    single, findings = _claims(found, cases)
    by_id = {case.id: case for case in cases}
    read, corrupt = _read_all(single)
    equal = _compare_equal(read, by_id)
    named = _compare_names(read, by_id)
    findings += [*corrupt, *equal, *named]
    wrong = {path for each in findings if each.kind == "swapped" for path in each.paths}
    kept = [each for each in read if os.fspath(each.found.path) not in wrong]
    images = [
        Image(each.case, found.sample, found.path.absolute(), each.sha256, found.seed)
        for each in kept
        for found in [each.found]
    ]
    complete = not any(finding.kind in HOLES for finding in findings)
    adopted = Adopted(layout, images, findings, output_dir / REPORT, complete or partial)
    if adopted.written:
        write_run(output_dir, method, cases, images, _settings(folder, adopted, kept))
    lists = {kind: [_line(each) for each in own] for kind, own in adopted.kinds.items()}
    head = {"method": method, "folder": os.fspath(folder.absolute()), "layout": layout}
    write_file(adopted.report, json.dumps(head | lists, indent=1, ensure_ascii=False) + "\n")
    return adopted


def _line(finding: Finding) -> dict[str, object]:
    fields = dataclasses.asdict(finding)
    return {name: value for name, value in fields.items() if name != "kind" and value != ""}


def _settings(folder: Path, adopted: Adopted, kept: Sequence[_Read]) -> dict[str, object]:
    sizes = Counter(f"{width}x{height}" for width, height in (each.size for each in kept))
    seed = _SEED.search(folder.name)
    return {
        "made_by": "import",
        "folder": os.fspath(folder.absolute()),
        "layout": adopted.layout,
        "sizes": dict(sizes.most_common()),
        "found": {kind: len(own) for kind, own in adopted.kinds.items()},
    } | ({"seed": int(seed[1])} if seed else {})


def _claims(found: Sequence[Found], cases: Sequence[Case]) -> tuple[list[Found], list[Finding]]:
    """Files that are alone with their case and number, and findings about the others."""
    claimed: defaultdict[tuple[str, int], list[Found]] = defaultdict(list)
    findings = []
    for each in found:
        if each.case is None:
            findings.append(Finding("extra", paths=(os.fspath(each.path),)))
        else:
            claimed[each.case, each.sample].append(each)
    findings += [
        Finding("missing", case.id, sample)
        for case in cases
        for sample in range(case.samples)
        if (case.id, sample) not in claimed
    ]
    for (name, sample), files in claimed.items():
        if len(files) > 1:
            paths = tuple(os.fspath(each.path) for each in files)
            findings.append(Finding("duplicate", name, sample, paths, "several files claim it"))
    return [files[0] for files in claimed.values() if len(files) == 1], findings


def _method_folder(folder: Path, method: str) -> Path:
    """The folder of a method among those of the archive, or the folder itself.

    Raises:
        UserError: There is no folder, or none of the several methods in it is meant.
    """
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; give the folder with the images of {method}")
    if not folder.is_dir() or (folder / "tgt_image").is_dir():
        return folder
    several = sorted(path.parent for path in folder.glob("*/tgt_image") if path.is_dir())
    if not several:
        return folder
    word = method_word(method)
    meant = [
        path
        for path in several
        if path.name == method or (word is not None and method_word(path.name) == word)
    ]
    if len(meant) == 1:
        return meant[0]
    raise UserError(
        f"{folder} holds the images of several methods, and {len(meant) or 'none'} of them is "
        f"{method}: {and_more([path.name for path in meant or several])}; give the folder of one"
    )


def _read_all(found: Sequence[Found]) -> tuple[list[_Read], list[Finding]]:
    """Opens all pictures; findings are those that cannot be read."""
    read, corrupt = [], []
    with progress("import", len(found), "images") as advance:
        for each, future in in_order(_read, found, threads=os.cpu_count() or 1):
            try:
                read.append(future.result())
            except UserError as error:
                paths = (os.fspath(each.path),)
                corrupt.append(Finding("corrupt", each.case or "", each.sample, paths, str(error)))
            advance(1)
    return read, corrupt


def _read(found: Found) -> _Read:
    picture, text, source = open_image(found.path), found.text, None
    if found.source is not None:
        with contextlib.suppress(UserError):  # the image itself may be fine
            source = _thumbnail(found.source)
    if isinstance(text, Path):
        text = read_bytes(text, _LONGEST_TEXT).decode(errors="replace")
    return _Read(
        found,
        file_sha256(found.path),
        picture.size,
        len(picture.getcolors(1) or []) == 1,
        text,
        source,
    )


def _compare_equal(read: Sequence[_Read], cases: Mapping[str, Case]) -> Iterator[Finding]:
    """Finds images that are equal byte for byte, and blank ones.

    A method that returns the reference repeats itself over the prompts of a subject, and one that
    gets the text alone repeats itself over the subjects of a prompt. An image of two cases that
    have neither in common was put in the wrong place at least once.
    """
    equal: defaultdict[str, list[_Read]] = defaultdict(list)
    for each in read:
        if each.blank:
            yield each.finding("blank")
        else:
            equal[each.sha256].append(each)
    for group in equal.values():
        if len(group) == 1:
            continue
        own = [cases[each.case] for each in group]
        if any(
            a.subject != b.subject and a.prompt != b.prompt
            for a, b in itertools.combinations(own, 2)
        ):
            for each in group:
                others = and_more([case.id for case in own if case.id != each.case], 3)
                yield each.finding("swapped", f"the same file stands for {others}")
        else:
            first = group[0]
            names = and_more([case.id for case in own[1:]], 3)
            paths = tuple(os.fspath(each.found.path) for each in group)
            reason = f"the same file stands for {names}"
            yield Finding("repeated", first.case, first.found.sample, paths, reason)


def _compare_names(read: Sequence[_Read], cases: Mapping[str, Case]) -> Iterator[Finding]:
    """Finds images whose own reference or text is that of another case, and other texts.

    An image itself does not say which case it was made for. Two files of the DreamBench++ tree do:
    `src_image`, the reference that the method was given, and `text`. A reference may have been
    scaled and compressed again, so thumbnails are compared, and the image is in the wrong place if
    the reference of another subject is by far the nearest. A text is that of another case if it is
    equal to its prompt, but not to that of its own; any other text is a rephrased prompt. Where a
    folder has no such files, only equal images can be found.
    """
    prompts = {_words(case.prompt): case.id for case in cases.values()}
    subjects = {case.subject: case.reference.path for case in cases.values()}
    names, thumbnails = list(subjects), np.empty((0, _SIDE, _SIDE, 3), np.float32)
    if any(each.source is not None for each in read):
        thumbnails = np.stack([_thumbnail(path) for path in subjects.values()])
    for each in read:
        case = cases[each.case]
        if each.text is not None and _words(each.text) != _words(case.prompt):
            if other := prompts.get(_words(each.text)):
                yield each.finding("swapped", f"its text is the prompt of {other}")
                continue
            yield each.finding("rephrased", each.text.strip())
        if each.source is not None:
            away = np.abs(thumbnails - each.source).mean((1, 2, 3))
            nearest = int(away.argmin())
            if away[nearest] < min(_NEAR, away[names.index(case.subject)] / 2):
                reason = f"its src_image is the reference of {names[nearest]}"
                yield each.finding("swapped", reason)


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _thumbnail(path: Path) -> np.ndarray:
    """A picture as 16 x 16 pixels, `[16, 16, 3]`, 0 to 255, whatever its shape."""
    return np.asarray(open_image(path).resize((_SIDE, _SIDE)), np.float32)
