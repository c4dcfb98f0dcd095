"""Stage 1: reference captions, a sample without repeats, and whether they name a clear subject."""

import dataclasses
import hashlib
import heapq
import html
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.data.make.answers import failed, json_of, problem_of, user
from dsd_jax.data.make.near import NearTexts
from dsd_jax.data.make.parts import Parts, Row, part_of
from dsd_jax.data.make.sources import read_captions
from dsd_jax.data.make.wording import Wording
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.llm.messages import Answer, Ask, Message, Request, Unanswered

__all__ = ["CaptionFilter", "CaptionsConfig", "caption_id", "clean_caption", "sampled"]

STAGE = "captions"
_JOINERS = "\u200c\u200d"  # invisible, but part of how some scripts and emoji are written
_FILE_NAME = re.compile(r"\S+\.[A-Za-z0-9]{2,4}")
_SCHEMA = {
    "type": "object",
    "properties": {
        "clear": {"type": "boolean"},
        "subject": {"type": "string"},
        "reason": {"type": "string"},
    },
    "required": ["clear", "subject", "reason"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """`[captions]`.

    Attributes:
        source: files (.parquet, .jsonl, .csv, .txt) or folders of Parquet files.
        count: captions in the sample.
        seed: of the sample.
        caption_column, url_column: default: LAION's `TEXT` and `URL`, or `caption` and `url`.
        min_words, max_letters: shorter and longer captions are left out.
        similarity: share of common letter runs from which two captions count as one.
        provider: that tells captions with a clear subject from others; empty: all are taken.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    source: tuple[Path, ...]
    count: int
    seed: int = 0
    caption_column: str | None = None
    url_column: str | None = None
    min_words: int = 2
    max_letters: int = 1_000
    similarity: float = 0.7
    provider: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")
        if not 0 < self.similarity <= 1:
            raise UserError(f"similarity is a share between 0 and 1, got {self.similarity}")


def caption_id(caption: str) -> str:
    """16 hex digits that two captions share if they differ in case and spaces alone."""
    normal = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
    return hashlib.sha256(normal.encode()).hexdigest()[:16]


def clean_caption(text: str, config: CaptionsConfig) -> tuple[str, str]:
    """The caption on one line, and why it cannot be used (or nothing)."""
    if len(text) > 10 * config.max_letters:
        return "", "too_long"  # before anything is done with it
    text = " ".join(html.unescape(text).split())
    if not text:
        return "", "empty"
    if len(text) > config.max_letters:
        return "", "too_long"
    if "\ufffd" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        return "", "not_utf8"
    if any(unicodedata.category(x) in {"Cc", "Cf", "Co"} and x not in _JOINERS for x in text):
        return "", "control_characters"
    if _FILE_NAME.fullmatch(text) or _words(text) < config.min_words:
        return "", "too_short"
    return text, ""


def _words(text: str) -> int:
    unspaced = sum(unicodedata.category(letter) == "Lo" for letter in text)  # such as Chinese
    return max(len(re.findall(r"[^\W\d_]{2,}", text)), unspaced // 2)


def sampled(parts: Parts, config: CaptionsConfig) -> tuple[list[list[Row]], dict[str, int]]:
    """The sample and the counts of the source, read once for all workers.

    Whoever comes first reads the source and leaves the sample in the stage's folder.

    Returns:
        For every part its rows, `kept`, or `rejected` as near duplicates; and how many lines of
        the source were what.

    Raises:
        UserError: a source cannot be read, or holds no usable caption.
    """
    path = parts.root / STAGE / "sample.jsonl"
    if not path.exists():
        rows, counts = _sample(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(item, ensure_ascii=False, sort_keys=True) for item in (counts, *rows)]
        write_file(path, "\n".join([*lines, ""]))
    with path.open(encoding="utf-8") as file:
        counts = json.loads(next(file))
        by_part: list[list[Row]] = [[] for _ in range(parts.count)]
        for line in file:
            row = json.loads(line)
            by_part[part_of(row["id"], parts.count)].append(row)
    return by_part, counts


def _sample(config: CaptionsConfig) -> tuple[list[Row], dict[str, int]]:
    limit = config.count + config.count // 4 + 64
    while True:
        candidates, counts = _least(config, limit)
        rows = _without_near(candidates, config)
        kept = sum(row["status"] == "kept" for row in rows)
        if kept == config.count or len(candidates) < limit:
            break
        limit *= 2  # more of them were near duplicates than was allowed for
    if not kept:
        names = ", ".join(str(path) for path in config.source)
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise UserError(f"there is no usable caption in {names} ({found or 'nothing at all'})")
    return rows, counts


def _least(config: CaptionsConfig, limit: int) -> tuple[list[Row], dict[str, int]]:
    """The captions with the smallest hashes, in the order of these, and counts of the source."""
    counts: Counter[str] = Counter()
    heap: list[tuple[int, str, dict[str, Any]]] = []  # the largest of the smallest on top
    held: set[str] = set()
    for text, problem, where in read_captions(
        config.source, config.caption_column, config.url_column
    ):
        counts["read"] += 1
        if text is not None:
            text, problem = clean_caption(text, config)  # noqa: PLW2901 - cleaned
        if problem or text is None:
            counts[problem] += 1
            continue
        name = caption_id(text)
        if name in held:
            counts["repeated"] += 1
            continue
        place = -int(hashlib.sha256(f"{config.seed} {name}".encode()).hexdigest()[:16], 16)
        row = {"id": name, "caption": text, "source": where}
        if len(heap) < limit:
            heapq.heappush(heap, (place, name, row))
        elif place > heap[0][0]:
            _, dropped, _ = heapq.heappushpop(heap, (place, name, row))
            held.remove(dropped)
        else:
            continue
        held.add(name)
    return [row for _, _, row in sorted(heap, key=lambda entry: -entry[0])], dict(counts)


def _without_near(candidates: list[Row], config: CaptionsConfig) -> list[Row]:
    """Candidates up to the one that completes the sample; near duplicates are told."""
    near = NearTexts(config.similarity)
    rows: list[Row] = []
    kept = 0
    for row in candidates:
        if kept == config.count:
            break
        other = near.add(row["id"], row["caption"])
        if other is None:
            kept += 1
            rows.append({**row, "status": "kept"})
        else:
            rows.append({**row, "status": "rejected", "reason": "near_duplicate", "detail": other})
    return rows


@dataclasses.dataclass(frozen=True)
class CaptionFilter:
    """Asks whether a caption names one clear subject, in the words of `wording`."""

    wording: Wording

    async def __call__(self, row: Row, ask: Ask) -> Row:
        """The row, `kept` with its subject, or `rejected` with the reason that was given."""
        request = Request(
            stage=STAGE,
            item=row["id"],
            messages=(
                Message("system", (self.wording("system"),)),
                user(self.wording("user", caption=row["caption"])),
            ),
            wording=self.wording.id,
            schema=_SCHEMA,
        )
        row = {**row, "wording": self.wording.id}
        try:
            answer = await ask(request)
            outcome = _outcome(answer)
            if outcome["status"] == "undecided":
                answer = await ask(dataclasses.replace(request, sample=1))
                outcome = _outcome(answer)
        except Unanswered as error:
            return {**row, **failed(error)}
        return {**row, "model": answer.model, **outcome}


def _outcome(answer: Answer) -> Row:
    problem = problem_of(answer)
    if problem:
        return {"status": "undecided", "reason": problem}
    content = json_of(answer.text) or {}
    clear, subject, reason = (content.get(name) for name in ("clear", "subject", "reason"))
    if not (isinstance(clear, bool) and isinstance(subject, str) and isinstance(reason, str)):
        return {"status": "undecided", "reason": "not_as_asked", "detail": answer.text[:500]}
    subject = " ".join(subject.split())[:200]
    if clear and subject:
        return {"status": "kept", "subject": subject, "detail": reason[:500]}
    return {"status": "rejected", "reason": "no_clear_subject", "detail": reason[:500]}
