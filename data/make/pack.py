"""Stage 7: kept and described pairs to a pair store, every record with the way it came."""

import contextlib
import dataclasses
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from PIL import Image

from dsd_jax.data.make.crops import Pictures
from dsd_jax.data.make.parts import STAGES, Parts, Row
from dsd_jax.data.make.statistics import Tally, ledger_totals, source_counts, tally
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.store import Manifest, PairStore, card
from dsd_jax.data.pairs.writer import SHARD_BYTES, PairWriter
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.progress import progress
from dsd_jax.threads import in_order

__all__ = ["DATASET", "PackConfig", "pack"]

DATASET = "dataset"  # folder within the root
_LAST = "caption"
_Kept = list[tuple[dict[str, Row], str]]
"""Kept pairs of a grid: the rows that led to each, and its id."""
_INTRODUCTION = """A language model wrote prompts for grids of four panels with one subject, a
text-to-image model painted them, and a vision-language model judged pairs of panels and described
them. What was not kept, and why:"""


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """`[pack]`.

    Attributes:
        size: height and width that panels are resized to; None: as they were cropped.
        shard_bytes: size of a shard.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    size: tuple[int, int] | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 16:
            raise UserError(f"size is a height and a width of at least 16 pixels, got {self.size}")


def pack(parts: Parts, config: PackConfig, pictures: Pictures, settings: Mapping[str, Any]) -> int:
    """Writes `root/dataset`; goes on where it was stopped.

    Args:
        parts: with every stage finished.
        config: of this stage.
        pictures: the panels of pairs.
        settings: of every stage, for the dataset card.

    Returns:
        Number of records.

    Raises:
        UserError: a stage is not finished, nothing was kept, or the folder cannot be written.
    """
    for stage in STAGES:
        parts.require(stage)
    tallies = {stage: tally(parts, stage) for stage in STAGES}
    if not tallies[_LAST].kept:
        raise UserError(f"no pair was kept; `dsd data stats {parts.root}` shows where they went")
    origin = _origin(parts, config, tallies, settings)
    path = parts.root / DATASET
    with PairWriter(path, origin=origin, shard_bytes=config.shard_bytes) as writer:
        before = writer.position or 0
        if not writer.complete:
            _copy(parts, config, pictures, writer, before, tallies[_LAST].kept)
    write_file(path / "README.md", _card(PairStore.open(path).manifest, tallies))
    return writer.count


def _copy(
    parts: Parts,
    config: PackConfig,
    pictures: Pictures,
    writer: PairWriter,
    before: int,
    total: int,
) -> None:
    def records(grid: _Kept) -> list[PairRecord]:
        return _records(grid, pictures([made["pairs"] for made, _ in grid]), config.size)

    grids = (grid for part in range(parts.count) for grid in _grids_of(parts, part))
    with (
        progress("pack", total, "pairs") as advance,
        contextlib.closing(
            in_order(records, itertools.islice(grids, before, None), threads=os.cpu_count() or 1)
        ) as done,
    ):
        for number, (grid, result) in enumerate(done, start=before + 1):
            if made := result.result():
                writer.add(*made, position=number)
            advance(len(grid))


def _grids_of(parts: Parts, part: int) -> Iterator[_Kept]:
    """The kept pairs of a part, those of a grid together."""
    rows = {stage: {row["id"]: row for row in parts.read(stage, part)} for stage in STAGES}
    kept = sorted(name for name, row in rows[_LAST].items() if row["status"] == "kept")
    for grid, names in itertools.groupby(kept, key=lambda name: name.rpartition("-")[0]):
        story = {
            "captions": rows["captions"][grid.partition("-")[0]],
            "prompts": rows["prompts"][grid.rpartition("-")[0]],
            "grids": rows["grids"][grid],
        }
        found = []
        for name in names:
            words = rows[_LAST][name]
            if f"{grid}-{name[-1]}{name[-2]}" in rows["pairs"]:
                # Pairs were made in both directions, and each has been judged for itself.
                words = {key: value for key, value in words.items() if key != "reverse"}
            own = {"pairs": rows["pairs"][name], "judge": rows["judge"][name], _LAST: words}
            found.append(({**story, **own}, name))
        yield found


def _records(
    grid: _Kept, panels: list[tuple[bytes, bytes]], size: tuple[int, int] | None
) -> list[PairRecord]:
    """The records of a grid's pairs: each in the directions that there are words for."""
    found = []
    for (made, name), shown in zip(grid, panels, strict=True):
        images = [_resized(panel, size) for panel in shown]
        for way, own in (("forward", name), ("reverse", name[:-2] + name[:-3:-1])):
            words = made[_LAST].get(way, {})
            reference, target = images if way == "forward" else images[::-1]
            if words.get("caption") or words.get("instruction"):
                found.append(
                    PairRecord.from_images(
                        id=own,
                        reference=reference,
                        target=target,
                        caption=words.get("caption", ""),
                        instruction=words.get("instruction", ""),
                        subject=made["prompts"]["subject"],
                        task=made["prompts"]["task"],
                        provenance=_provenance(made, way),
                    )
                )
    return found


def _provenance(made: Mapping[str, Row], way: str) -> dict[str, Any]:
    """From the caption to the words of the judge."""
    words = made[_LAST]

    def of(stage: str, *names: str) -> Row:
        return {name: made[stage][name] for name in names if name in made[stage]}

    return {
        "caption": of("captions", "id", "caption", "source", "subject"),
        "prompt": of("prompts", "id", "prompt", "model", "wording"),
        "grid": of("grids", "id", "seed", "sha256"),
        "pair": {
            name: value
            for name, value in made["pairs"].items()
            if name not in {"status", "reason", "detail"}
        },
        "judge": of("judge", "mode", "verdict", "scores", "model", "wording", "turns"),
        "words": {
            "way": way,
            "wording": words["wording"],
            **{name: value for name, value in words[way].items() if name.endswith("_model")},
        },
    }


def _resized(panel: bytes, size: tuple[int, int] | None) -> bytes:
    if size is None:
        return panel
    with Image.open(io.BytesIO(panel)) as image:  # our own crop
        height, width = size
        return png_bytes(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def _origin(
    parts: Parts, config: PackConfig, tallies: Mapping[str, Tally], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the dataset was made from; the same whatever happened on the way."""
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
        "yields": {stage: _yields(each) for stage, each in tallies.items()},
        "models": {
            stage: dict(sorted(each.models.items()))
            for stage, each in tallies.items()
            if each.models
        },
        "costs": costs,
    }


def _yields(counts: Tally) -> dict[str, Any]:
    reasons: dict[str, dict[str, int]] = {}
    for (status, reason), count in sorted(counts.reasons.items()):
        reasons.setdefault(status, {})[reason] = count
    return {"rows": counts.rows, "kept": counts.kept, **reasons}


def _lines(counts: Mapping[str, int]) -> str:
    """What became of the lines of the captions' source, as a sentence."""
    lost = [f"{what} {count:,}" for what, count in counts.items() if what != "read" and count]
    return f"Of {counts.get('read', 0):,} lines of the source: {', '.join(lost) or 'none lost'}."


def _card(manifest: Manifest, tallies: Mapping[str, Tally]) -> str:
    """The dataset card: that of any pair store, and before it how the pairs were made."""
    origin = manifest.origin
    lines = ["| stage | rows | kept | |", "| --- | --- | --- | --- |"]
    for stage, counts in tallies.items():
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
