"""Stage 1 (`dsd data captions`): samples captions without repeats, each with a clear subject."""

import dataclasses
import hashlib
import heapq
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dsd_jax.data.make.ids import CaptionId
from dsd_jax.data.make.near import NearTexts
from dsd_jax.data.make.parts import Parts, part_of
from dsd_jax.data.make.sources import read_captions
from dsd_jax.data.make.stages import CAPTIONS, Caption, Source, from_json, to_json
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.llm.answers import UNANSWERED, detail_of, user
from dsd_jax.llm.messages import Answer, Ask, Message, Request, Unanswered
from dsd_jax.llm.reading import json_of, problem_of
from dsd_jax.llm.wording import Wording
from dsd_jax.structured import parse_json
from dsd_jax.text.plain import text_fault

__all__ = ["CaptionFilter", "CaptionsConfig", "clean_caption", "sampled"]

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
        source: Tables in any format that `dsd data import` reads, `.txt` files, folders with a
            table, or hub ids of datasets.
        count: Number of captions in the sample.
        seed: Seed of the sample.
        caption_column, url_column: Columns to read. By default LAION's `TEXT` and `URL`, or
            `caption` and `url`.
        split: Split of the source, where it has several.
        min_words, max_letters: Shorter and longer captions are left out.
        similarity: Least share of common letter sequences for two captions to count as one.
        provider: Model that keeps captions with a clear subject. Empty: all captions are kept.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    source: tuple[Path, ...]
    count: int
    seed: int = 0
    caption_column: str | None = None
    url_column: str | None = None
    split: str | None = None
    min_words: int = 2
    max_letters: int = 1_000
    similarity: float = 0.7
    provider: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")
        if not 0 < self.similarity <= 1:
            raise UserError(f"similarity is a share between 0 and 1, got {self.similarity}")


def clean_caption(text: str, config: CaptionsConfig) -> tuple[str, str]:
    """The caption on one line, and the reason why it cannot be used, or an empty one."""
    if len(text) > 10 * config.max_letters:
        return "", "too_long"  # before any work on it
    text = " ".join(html.unescape(text).split())
    if not text:
        return "", "empty"
    if len(text) > config.max_letters:
        return "", "too_long"
    if "\ufffd" in text or text_fault(text):
        return "", "not_utf8"
    if any(unicodedata.category(x) in {"Cc", "Cf", "Co"} and x not in _JOINERS for x in text):
        return "", "control_characters"
    if _FILE_NAME.fullmatch(text) or _words(text) < config.min_words:
        return "", "too_short"
    return text, ""


def _words(text: str) -> int:
    unspaced = sum(unicodedata.category(letter) == "Lo" for letter in text)  # such as Chinese
    return max(len(re.findall(r"[^\W\d_]{2,}", text)), unspaced // 2)


def sampled(parts: Parts, config: CaptionsConfig) -> tuple[list[list[Caption]], Mapping[str, int]]:
    """Reads the sample, which the first worker draws from the source for all workers.

    Returns:
        The rows of each part, `kept`, or `rejected` as near duplicates; and the number of lines of
        the source by outcome.

    Raises:
        UserError: A source cannot be read, or holds no usable caption.
    """
    path = parts.root / CAPTIONS.name / "sample.jsonl"
    if not path.exists():
        rows, drawn = _sample(config)
        counts = json.dumps(drawn, ensure_ascii=False, sort_keys=True)
        write_file(path, "\n".join([counts, *map(to_json, rows), ""]))
    by_part: list[list[Caption]] = [[] for _ in range(parts.count)]
    try:
        with path.open(encoding="utf-8") as file:
            found = parse_json(next(file, ""), f"{path} line 1", dict)
            for line in file:
                row = from_json(CAPTIONS, line)
                by_part[part_of(row.id, parts.count)].append(row)
    except ValueError:
        raise UserError(f"{path} is damaged; remove it and run `dsd data captions` again") from None
    return by_part, found


class _Candidate(NamedTuple):
    """A usable caption; a larger `place` comes earlier in the sample."""

    place: int
    id: CaptionId
    caption: str
    source: Source


def _sample(config: CaptionsConfig) -> tuple[list[Caption], dict[str, int]]:
    limit = config.count + config.count // 4 + 64
    while True:
        candidates, counts = _first(config, limit)
        rows = _without_near(candidates, config)
        kept = sum(row.kept for row in rows)
        if kept == config.count or len(candidates) < limit:
            break
        limit *= 2  # more of them were near duplicates than expected
    if not kept:
        names = ", ".join(str(path) for path in config.source)
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise UserError(f"there is no usable caption in {names} ({found or 'nothing at all'})")
    return rows, counts


def _first(config: CaptionsConfig, limit: int) -> tuple[list[_Candidate], dict[str, int]]:
    """The captions with the smallest hashes, sorted by hash, and counts of the source."""
    counts: Counter[str] = Counter()
    heap: list[tuple[int, str, _Candidate]] = []  # the last of the candidates is on top
    held: set[CaptionId] = set()
    for text, problem, where in read_captions(
        config.source, config.caption_column, config.url_column, config.split
    ):
        counts["read"] += 1
        if text is not None:
            text, problem = clean_caption(text, config)  # noqa: PLW2901 - cleaned
        if problem or text is None:
            counts[problem] += 1
            continue
        name = CaptionId.of(text)
        if name in held:
            counts["repeated"] += 1
            continue
        place = -int(hashlib.sha256(f"{config.seed} {name}".encode()).hexdigest()[:16], 16)
        entry = (place, str(name), _Candidate(place, name, text, where))
        if len(heap) < limit:
            heapq.heappush(heap, entry)
        elif place > heap[0][0]:
            *_, dropped = heapq.heappushpop(heap, entry)
            held.remove(dropped.id)
        else:
            continue
        held.add(name)
    return [one for *_, one in sorted(heap, key=lambda entry: -entry[0])], dict(counts)


def _without_near(candidates: list[_Candidate], config: CaptionsConfig) -> list[Caption]:
    """The rows that make up the sample; near duplicates among them are rejected."""
    near = NearTexts(config.similarity)
    rows: list[Caption] = []
    kept = 0
    for one in candidates:
        if kept == config.count:
            break
        other = near.add(str(one.id), one.caption)
        row = Caption(id=one.id, caption=one.caption, source=one.source, status="kept")
        if other is None:
            kept += 1
        else:
            row = dataclasses.replace(row, status="rejected", reason="near_duplicate", detail=other)
        rows.append(row)
    return rows


@dataclasses.dataclass(frozen=True)
class CaptionFilter:
    """Asks whether a caption names one clear subject, with the texts of `wording`."""

    wording: Wording

    async def __call__(self, row: Caption, ask: Ask) -> Caption:
        """Returns the row, `kept` with its subject, or `rejected` with the model's reason."""
        request = Request(
            stage=CAPTIONS.name,
            item=str(row.id),
            messages=(
                Message("system", (self.wording("system"),)),
                user(self.wording("user", caption=row.caption)),
            ),
            wording=self.wording.id,
            schema=_SCHEMA,
        )
        row = dataclasses.replace(row, wording=self.wording.id)
        try:
            answer = await ask(request)
            judged = _judged(row, answer)
            if judged.status == "undecided":
                judged = _judged(row, await ask(dataclasses.replace(request, sample=1)))
        except Unanswered as error:
            return dataclasses.replace(
                row, status="failed", reason=UNANSWERED, detail=detail_of(error)
            )
        return judged


def _judged(row: Caption, answer: Answer) -> Caption:
    """The row with what an answer says about it."""
    made = dataclasses.replace(row, model=answer.model, status="undecided")
    problem = problem_of(answer)
    if problem:
        return dataclasses.replace(made, reason=problem)
    content = json_of(answer.text) or {}
    clear, subject, reason = (content.get(name) for name in ("clear", "subject", "reason"))
    if not (isinstance(clear, bool) and isinstance(subject, str) and isinstance(reason, str)):
        return dataclasses.replace(made, reason="not_as_asked", detail=answer.text[:500])
    subject = " ".join(subject.split())[:200]
    if clear and subject:
        return dataclasses.replace(made, status="kept", subject=subject, detail=reason[:500])
    return dataclasses.replace(
        made, status="rejected", reason="no_clear_subject", detail=reason[:500]
    )
