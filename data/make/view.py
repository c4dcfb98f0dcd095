"""Writes a web page with grids and their boxes, pairs, prompts and every answer of the judge.

The page is one file. Captions and words of models are not trusted: all of them are escaped, and the
page's own policy allows no script but its own.
"""

import base64
import hashlib
import heapq
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsd_jax.data.make.ids import CaptionId, GridId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    Box,
    Caption,
    CutGrid,
    Description,
    Grid,
    Judgement,
    Pair,
    Prompt,
    R_co,
    Stage,
    Turn,
)
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.images import open_image
from dsd_jax.page import SMALL, STYLE, data_uri, safe

__all__ = ["write_page"]

_FOLDER = Path(__file__).parent
_STEPS = {
    "step_1": "subject",
    "step_2": "described",
    "step_3": "decided",
    "scores": "scores",
    "grid": "groups",
}


class _Shown(NamedTuple):
    """A pair of a grid, or the grid itself if it made no pairs, with all rows about it so far."""

    row: Pair | CutGrid | Grid
    judgement: Judgement | None = None
    description: Description | None = None


class _Card(NamedTuple):
    """A grid and everything that was made from it."""

    grid: Grid
    caption: Caption | None
    prompt: Prompt | None
    pairs: Sequence[_Shown]


def write_page(parts: Parts, output: Path, limit: int, title: str) -> tuple[int, int]:
    """Writes the page.

    Args:
        parts: work folder, whose finished parts are shown.
        output: file to write.
        limit: most grids on the page; if there are more, those with the smallest hashes,
            which is a random sample.
        title: title of the page.

    Returns:
        Number of grids on the page, and number of all grids.

    Raises:
        UserError: there are no grids yet, or the file cannot be written.
    """
    chosen, total = _sample(parts, limit)
    if not chosen:
        raise UserError(f"{parts.root} has no finished part of `grids` to look at")
    pictures: list[str] = []
    cards: list[str] = []
    tasks: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number, card in enumerate(_cards(parts, chosen)):
        size = _add_picture(parts, card.grid.id, number, pictures)
        tasks[card.grid.task] += 1
        shown = [_pair(pair, number, size) for pair in card.pairs]
        for _, verdict, reason in shown:
            verdicts[verdict] += 1
            reasons[reason] += bool(reason)
        cards.append(_card(card, number, size, [pair for pair, _, _ in shown]))
    script = (_FOLDER / "view.js").read_text(encoding="utf-8")
    template = string.Template((_FOLDER / "view.html").read_text(encoding="utf-8"))
    what = f"{len(cards):,} of {total:,} grids, a sample" if total > len(cards) else "All grids"
    page = template.substitute(
        style=STYLE,
        policy=_policy(script),
        title=safe(title),
        note=f"{what}; rows with every status, kept and rejected.",
        tasks=_options(tasks),
        verdicts=_options(verdicts),
        reasons=_options(+reasons),
        pictures="\n".join(pictures),
        cards="\n".join(cards),
        script=script,
    )
    write_file(output, page.encode("utf-8", "replace"))
    return len(cards), total


def _policy(script: str) -> str:
    """Content policy: nothing is loaded, and no script runs but ours; styles hold the pictures."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        f"'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _sample(parts: Parts, limit: int) -> tuple[dict[int, set[GridId]], int]:
    """Ids of grids by part, and the number of all grids."""
    total = 0
    heap: list[tuple[int, str, int, GridId]] = []
    for part in range(parts.count):
        if not parts.done(GRIDS, part):
            continue
        for row in parts.read(GRIDS, part):
            total += 1
            name = str(row.id)
            place = -int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
            push = heapq.heappush if len(heap) < limit else heapq.heappushpop
            push(heap, (place, name, part, row.id))
    chosen: dict[int, set[GridId]] = {}
    for *_, part, grid in heap:
        chosen.setdefault(part, set()).add(grid)
    return chosen, total


def _read(parts: Parts, stage: Stage[R_co], part: int) -> list[R_co]:
    return parts.read(stage, part) if parts.done(stage, part) else []


def _cards(parts: Parts, chosen: Mapping[int, set[GridId]]) -> Iterator[_Card]:
    for part, names in sorted(chosen.items()):
        captions: dict[CaptionId, Caption] = {row.id: row for row in _read(parts, CAPTIONS, part)}
        prompts = {row.id: row for row in _read(parts, PROMPTS, part)}
        judgements = {row.id: row for row in _read(parts, JUDGEMENTS, part)}
        descriptions = {row.id: row for row in _read(parts, DESCRIPTIONS, part)}
        pairs: dict[GridId, list[_Shown]] = {}
        for row in _read(parts, PAIRS, part):
            if isinstance(row, Pair):
                shown = _Shown(row, judgements.get(row.id), descriptions.get(row.id))
                pairs.setdefault(row.grid_id, []).append(shown)
            else:
                pairs[row.id] = [_Shown(row)]
        for grid in parts.read(GRIDS, part):
            if grid.id in names:
                yield _Card(
                    grid,
                    captions.get(grid.id.caption),
                    prompts.get(grid.id.prompt),
                    pairs.get(grid.id, [_Shown(grid)]),
                )


def _add_picture(parts: Parts, grid: GridId, number: int, pictures: list[str]) -> tuple[int, int]:
    """Adds the style with a small copy of a grid; returns width and height of the original."""
    try:
        image = open_image(parts.picture(grid).read_bytes())
    except (UserError, OSError):
        return 0, 0
    size = image.size
    sharp = "; image-rendering: pixelated" if max(size) <= SMALL else ""
    pictures.append(f".g{number} {{ background-image: url({data_uri(image)}){sharp} }}")
    return size


def _card(card: _Card, number: int, size: tuple[int, int], pairs: Iterable[str]) -> str:
    source = card.caption.source if card.caption else None
    facts = {
        "caption": card.caption and card.caption.caption,
        "subject": card.prompt and card.prompt.subject,
        "prompt": card.prompt and card.prompt.prompt,
        "task": card.grid.task,
        "route": card.grid.route,
        "seed": card.grid.seed,
        "source": source and (source.url or source.file),
    }
    picture = ""
    if all(size):
        width, height = size
        boxes = "".join(_outline(n, box, size) for n, box in sorted(_boxes(card).items()))
        ratio = f"aspect-ratio: {width} / {height}"
        picture = (
            f'<a class="grid g{number}" href="#grid-{number}" style="{ratio}" '
            f'aria-label="Enlarge the grid">{boxes}</a>'
        )
    return (
        f'<article data-task="{safe(card.grid.task)}">'
        f'<figure id="grid-{number}" style="--ratio: {size[0] / max(1, size[1]):.3f}">{picture}'
        f"<figcaption>{safe(card.grid.id)}</figcaption>"
        '<a class="close" href="#closed">close</a></figure>'
        f"<div>{_facts(facts)}{''.join(pairs)}</div></article>"
    )


def _boxes(card: _Card) -> dict[int, Box]:
    """The box of each panel, by its number."""
    found: dict[int, Box] = {}
    for shown in card.pairs:
        if isinstance(shown.row, Pair):
            found[shown.row.id.reference] = shown.row.reference_box
            found[shown.row.id.target] = shown.row.target_box
    return found


def _outline(number: int, box: Box, size: tuple[int, int]) -> str:
    left, top, right, bottom = box
    width, height = size
    place = {
        "left": left / width,
        "top": top / height,
        "width": (right - left) / width,
        "height": (bottom - top) / height,
    }
    style = "; ".join(f"{name}: {100 * share:.3f}%" for name, share in place.items())
    return f'<i data-n="{safe(number)}" style="{style}"></i>'


def _pair(shown: _Shown, number: int, size: tuple[int, int]) -> tuple[str, str, str]:
    """A pair as HTML, its verdict and its reason."""
    row, judged = shown.row, shown.judgement
    last = judged or row
    if judged:
        verdict: str = judged.verdict or judged.status
    else:
        verdict = "not judged" if row.kept else f"{row.status} before the judge"
    reason = last.reason or ""
    panels = ends = ""
    if isinstance(row, Pair):
        ends = f"{row.id.reference} → {row.id.target}{_lights(row)}"
        if all(size):
            panels = "".join(
                _panel(box, size, number) for box in (row.reference_box, row.target_box)
            )
    badge = f'<span class="badge {safe(last.status)}">{safe(verdict)}</span>'
    why = "" if reason == verdict else reason
    told = " · ".join(filter(None, (why, last.detail, _scores(judged))))
    where = f'<span class="where">{safe(ends)} {safe(told)}</span>'
    words = _words(shown.description)
    text = (
        f'<div class="pair" data-verdict="{safe(verdict)}" data-reason="{safe(reason)}">'
        f'<a class="panels" href="#grid-{number}" aria-label="Enlarge the grid">{panels}</a>'
        f"<div>{badge}{where}{words}{_turns(judged)}</div></div>"
    )
    return text, verdict, reason


def _lights(pair: Pair) -> str:
    """The lights of a pair that were asked for, such as ` left, lamp → night`."""
    if pair.reference_light is None or pair.target_light is None:
        return ""
    lights = pair.reference_light, pair.target_light
    return " " + " → ".join(", ".join(names.values()) for names in lights)


def _panel(box: Box, size: tuple[int, int], number: int) -> str:
    """A panel, as a window onto the grid's picture."""
    left, top, right, bottom = box
    style = [f"aspect-ratio: {right - left} / {bottom - top}"]
    scales, places = [], []
    for start, stop, side in ((left, right, size[0]), (top, bottom, size[1])):
        scales.append(f"{100 * side / (stop - start):.3f}%")
        places.append(f"{100 * start / max(1, side - (stop - start)):.3f}%")
    style += [f"background-size: {' '.join(scales)}", f"background-position: {' '.join(places)}"]
    return f'<div class="panel g{number}" style="{"; ".join(style)}"></div>'


def _scores(judged: Judgement | None) -> str:
    scores = (judged and judged.scores) or {}
    return ", ".join(f"{aspect.replace('_', ' ')} {mark}" for aspect, mark in scores.items())


def _words(description: Description | None) -> str:
    """The texts of a pair."""
    if description is None:
        return ""
    return "".join(
        f'<p class="words"><b>{arrow} {kind}</b> {safe(text)}</p>'
        for words, arrow in ((description.forward, "→"), (description.reverse, "←"))
        if words is not None
        for kind, text in (("caption", words.caption), ("instruction", words.instruction))
        if text
    )


def _turns(judged: Judgement | None) -> str:
    if judged is None or not judged.turns:
        return ""
    model = judged.model or ""
    return (
        f"<details><summary>{len(judged.turns)} answers of the judge {safe(model)}</summary>"
        f"{_facts([_turn(turn) for turn in judged.turns])}</details>"
    )


def _turn(turn: Turn) -> tuple[str, str]:
    step = turn.step.rpartition(".")[2]  # without the task that has a text of its own
    title = _STEPS.get(step, step) + (" (again)" if turn.sample else "")
    return title, turn.answer if turn.finish == "stop" else f"[{turn.finish}] {turn.answer}"


def _facts(facts: Mapping[str, object] | Sequence[tuple[str, object]]) -> str:
    pairs = facts.items() if isinstance(facts, Mapping) else facts
    lines = (
        f'<dt>{safe(name)}</dt><dd dir="auto">{safe(value)}</dd>'
        for name, value in pairs
        if value not in (None, "")
    )
    return f"<dl>{''.join(lines)}</dl>"


def _options(counts: Counter[str]) -> str:
    return "".join(
        f'<option value="{safe(name)}">{safe(name)} ({count:,})</option>'
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
