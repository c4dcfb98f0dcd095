"""Stage 7 (`dsd data pack`): writes the described pairs as a dataset, with their provenance."""

import contextlib
import dataclasses
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from PIL import Image

from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.ids import PairId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    Caption,
    Description,
    Grid,
    Judgement,
    Pair,
    Prompt,
    Stage,
    StageRow,
    Words,
    plain,
)
from dsd_jax.data.make.statistics import Yield, ledger_totals, source_counts, yield_of
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.store import Manifest, PairStore, card
from dsd_jax.data.pairs.writer import SHARD_BYTES, PairWriter
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.marks import mark_png
from dsd_jax.progress import Advance, progress
from dsd_jax.threads import in_order

__all__ = ["DATASET", "PackConfig", "pack"]

DATASET = "dataset"
"""Folder of the dataset within the work folder."""
_INTRODUCTION = """A language model wrote prompts for grids of four panels with one subject, a
text-to-image model painted them, and a vision-language model judged pairs of panels and described
them. What was not kept, and why:"""


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """`[pack]`.

    Attributes:
        size: Height and width that panels are resized to. None keeps the size that was cropped.
        shard_bytes: Size of a shard.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    size: tuple[int, int] | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 16:
            raise UserError(f"size is a height and a width of at least 16 pixels, got {self.size}")


@dataclasses.dataclass(frozen=True)
class _History:
    """A kept pair: the rows that led to it."""

    caption: Caption
    prompt: Prompt
    grid: Grid
    pair: Pair
    judgement: Judgement
    description: Description

    def ways(self, both_judged: bool) -> Iterator[tuple[str, PairId, Words]]:
        """The directions that have texts: name, id and texts of each.

        Args:
            both_judged: Whether the reverse is a pair of its own with its own judgement.
        """
        if self.description.forward:
            yield "forward", self.pair.id, self.description.forward
        if self.description.reverse and not both_judged:
            yield "reverse", self.pair.id.flipped(), self.description.reverse


def pack(
    parts: Parts,
    config: PackConfig,
    pictures: Pictures,
    settings: Mapping[str, Mapping[str, object]],
) -> int:
    """Writes the dataset into the work folder; resumes if it was stopped.

    Args:
        parts: Work folder in which every stage is finished.
        config: Settings of this stage.
        pictures: Crops the panels of pairs.
        settings: Settings of every stage, for the dataset card.

    Returns:
        Number of records.

    Raises:
        UserError: A stage is not finished, nothing was kept, or the folder cannot be written.
    """
    for stage in STAGES:
        parts.require(stage)
    yields = {stage: yield_of(parts, stage) for stage in STAGES}
    kept = yields[DESCRIPTIONS].kept
    if not kept:
        raise UserError(f"no pair was kept; `dsd data stats {parts.root}` shows where they went")
    origin = _origin(parts, config, yields, settings)
    path = parts.root / DATASET
    with PairWriter(path, origin=origin, shard_bytes=config.shard_bytes) as writer:
        if not writer.complete:
            with progress("pack", kept, "pairs") as advance:
                _copy(parts, config, pictures, writer, advance)
    write_file(path / "README.md", _card(PairStore.open(path).manifest, yields))
    return writer.count


def _copy(
    parts: Parts, config: PackConfig, pictures: Pictures, writer: PairWriter, advance: Advance
) -> None:
    """Adds the records of all grids, in order, from the grid at which an earlier run stopped."""

    def records(grid: _Grid) -> list[PairRecord]:
        return _records(grid, pictures([one.pair for one in grid.kept]), config.size)

    before = writer.position or 0
    grids = (grid for part in range(parts.count) for grid in _grids_of(parts, part))
    left = itertools.islice(grids, before, None)
    with contextlib.closing(in_order(records, left, threads=os.cpu_count() or 1)) as done:
        for number, (grid, result) in enumerate(done, start=before + 1):
            if made := result.result():
                writer.add(*made, position=number)
            advance(len(grid.kept))


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The kept pairs of a grid, and the ids of all its pairs."""

    kept: Sequence[_History]
    pairs: AbstractSet[PairId]


def _grids_of(parts: Parts, part: int) -> Iterator[_Grid]:
    """The grids of a part that have kept pairs."""
    captions = {row.id: row for row in parts.read(CAPTIONS, part)}
    prompts = {row.id: row for row in parts.read(PROMPTS, part)}
    grids = {row.id: row for row in parts.read(GRIDS, part)}
    pairs = {row.id: row for row in parts.read(PAIRS, part) if isinstance(row, Pair)}
    judgements = {row.id: row for row in parts.read(JUDGEMENTS, part)}
    kept = parts.kept(DESCRIPTIONS, part)
    for grid, rows in itertools.groupby(kept, key=lambda row: row.id.grid):
        histories = [
            _History(
                captions[grid.caption],
                prompts[grid.prompt],
                grids[grid],
                pairs[row.id],
                judgements[row.id],
                row,
            )
            for row in rows
        ]
        yield _Grid(histories, pairs.keys())


def _records(
    grid: _Grid, panels: list[tuple[bytes, bytes]], size: tuple[int, int] | None
) -> list[PairRecord]:
    """The records of a grid: each kept pair, in the directions that have texts."""
    found = []
    for one, shown in zip(grid.kept, panels, strict=True):
        images = [mark_png(_resized(panel, size)) for panel in shown]
        for way, name, words in one.ways(one.pair.id.flipped() in grid.pairs):
            reference, target = images if name == one.pair.id else images[::-1]
            found.append(
                PairRecord.from_images(
                    id=str(name),
                    reference=reference,
                    target=target,
                    caption=words.caption or "",
                    instruction=words.instruction or "",
                    subject=one.prompt.subject or "",
                    task=one.prompt.task,
                    provenance=_provenance(one, way, words),
                )
            )
    return found


def _provenance(one: _History, way: str, words: Words) -> dict[str, object]:
    """The provenance of a record: everything from the caption to the judge's answers."""
    models = {"caption_model": words.caption_model, "instruction_model": words.instruction_model}
    return {
        "caption": _fields(one.caption, "id", "caption", "source", "subject"),
        "prompt": _fields(one.prompt, "id", "prompt", "model", "wording"),
        "grid": _fields(one.grid, "id", "seed", "sha256"),
        "pair": {
            name: value
            for name, value in plain(one.pair).items()
            if name not in {"status", "reason", "detail"}
        },
        "judge": _fields(one.judgement, "mode", "verdict", "scores", "model", "wording", "turns"),
        "words": {
            "way": way,
            "wording": one.description.wording,
            **{name: model for name, model in models.items() if model is not None},
        },
    }


def _fields(row: StageRow, *names: str) -> dict[str, object]:
    content = plain(row)
    return {name: content[name] for name in names if name in content}


def _resized(panel: bytes, size: tuple[int, int] | None) -> bytes:
    if size is None:
        return panel
    with Image.open(io.BytesIO(panel)) as image:  # our own crop
        height, width = size
        return png_bytes(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def _origin(
    parts: Parts,
    config: PackConfig,
    yields: Mapping[Stage[StageRow], Yield],
    settings: Mapping[str, Mapping[str, object]],
) -> dict[str, Any]:
    """The origin of the dataset. It does not depend on how often the run was stopped."""
    costs = {
        stage: {
            "questions": seen.questions,
            "tokens_in": seen.input,
            "tokens_out": seen.output,
            "dollars": round(seen.cost, 4),
        }
        for stage, seen in ledger_totals(parts.root).items()
    }
    return {
        "source": "dsd data make",
        "parts": parts.count,
        "size": config.size,
        "settings": dict(settings),
        "lines": dict(sorted(source_counts(parts.root).items())),
        "yields": {stage.name: _yields(each) for stage, each in yields.items()},
        "models": {
            stage.name: dict(sorted(each.models.items()))
            for stage, each in yields.items()
            if each.models
        },
        "costs": costs,
    }


def _yields(counts: Yield) -> dict[str, object]:
    reasons: dict[str, dict[str, int]] = {}
    for (status, reason), count in sorted(counts.reasons.items()):
        reasons.setdefault(status, {})[reason] = count
    return {"rows": counts.rows, "kept": counts.kept, **reasons}


def _lines(counts: Mapping[str, int]) -> str:
    """A sentence about the lines of the captions' source."""
    lost = [f"{what} {count:,}" for what, count in counts.items() if what != "read" and count]
    return f"Of {counts.get('read', 0):,} lines of the source: {', '.join(lost) or 'none lost'}."


def _card(manifest: Manifest, yields: Mapping[Stage[StageRow], Yield]) -> str:
    """The usual dataset card, with a section on how the pairs were made."""
    origin = manifest.origin
    lines = ["| stage | rows | kept | |", "| --- | --- | --- | --- |"]
    for stage, counts in yields.items():
        why: Counter[str] = Counter()
        for (_, reason), count in counts.reasons.items():
            why[reason] += count
        told = ", ".join(f"{reason} {count:,}" for reason, count in why.most_common(6))
        share = f"{100 * counts.kept / counts.rows:.1f} %" if counts.rows else ""
        lines.append(f"| {stage} | {counts.rows:,} | {counts.kept:,} ({share}) | {told} |")
    spent = ["| stage | questions | tokens in | tokens out | dollars |", "| --- |" + " --- |" * 4]
    for stage, cost in origin["costs"].items():
        counted = (f"{cost[name]:,}" for name in ("questions", "tokens_in", "tokens_out"))
        spent.append(f"| {stage} | {' | '.join(counted)} | {cost['dollars']:,.2f} |")
    models = [
        f"- {stage}: {name} ({count:,})"
        for stage, counts in origin["models"].items()
        for name, count in counts.items()
    ]
    wordings = [
        f"- {stage}: `{chosen['wording']}`"
        for stage, chosen in origin["settings"].items()
        if "wording" in chosen
    ]
    blocks = [
        "## How the pairs were made",
        _INTRODUCTION,
        "\n".join(lines),
        _lines(origin["lines"]),
        "Models that answered, with the number of rows:",
        "\n".join(models),
        "Wordings:",
        "\n".join(wordings),
        "Costs of the answers that were used:",
        "\n".join(spent),
    ]
    head, mark, rest = card(manifest).partition("## Format")
    return head + "\n\n".join(itertools.chain(blocks, [mark + rest]))
