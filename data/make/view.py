"""A page to look at: grids with their boxes, pairs, prompts and every word of the judge.

The page is one file. What models and captions say is foreign: all of it is escaped, and the page's
own policy lets no script run but the one that it came with.
"""

import base64
import hashlib
import heapq
import html
import io
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dsd_jax.data.make.crops import boxes_of, grid_file
from dsd_jax.data.make.parts import STAGES, Parts, Row
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.images import open_image

__all__ = ["write_page"]

_FOLDER = Path(__file__).parent
_THUMBNAIL = 480  # pixels of a grid's longer side
_QUALITY = 82
_STEPS = {
    "step_1": "subject",
    "step_2": "described",
    "step_3": "identical?",
    "scores": "scores",
    "grid": "groups",
}


class _Grid(NamedTuple):
    """A grid and what was made of it."""

    id: str
    rows: Mapping[str, Row]  # of captions, prompts, grids
    pairs: Sequence[Mapping[str, Row]]  # of pairs, judge, caption


def write_page(parts: Parts, output: Path, limit: int, title: str) -> tuple[int, int]:
    """Writes the page.

    Args:
        parts: what is finished of them is shown.
        output: file to write.
        limit: grids at most; of more, those with the smallest hashes, which is a fair sample.
        title: of the page.

    Returns:
        Grids on the page, and grids that there are.

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
    for number, grid in enumerate(_joined(parts, chosen)):
        size = _add_picture(parts, grid.id, number, pictures)
        tasks[str(grid.rows.get("prompts", {}).get("task", ""))] += 1
        shown = [
            _pair(pair, number, size) for pair in grid.pairs or [{"pairs": grid.rows["grids"]}]
        ]
        for _, verdict, reason in shown:
            verdicts[verdict] += 1
            reasons[reason] += bool(reason)
        cards.append(_card(grid, number, size, [pair for pair, _, _ in shown]))
    script = (_FOLDER / "view.js").read_text(encoding="utf-8")
    template = string.Template((_FOLDER / "view.html").read_text(encoding="utf-8"))
    what = f"{len(cards):,} of {total:,} grids, a sample" if total > len(cards) else "All grids"
    page = template.substitute(
        policy=_policy(script),
        title=html.escape(title),
        note=f"{what}; rows with every status, kept and rejected.",
        tasks=_options(tasks),
        verdicts=_options(verdicts),
        reasons=_options(+reasons),
        pictures="\n".join(pictures),
        cards="\n".join(cards),
        script=script,
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    write_file(output, page.encode("utf-8", "replace"))
    return len(cards), total


def _policy(script: str) -> str:
    """Nothing is loaded, and no script runs but ours; styles hold positions and pictures."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        f"'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _sample(parts: Parts, limit: int) -> tuple[dict[int, set[str]], int]:
    """Ids of grids by part, and how many grids there are."""
    total = 0
    heap: list[tuple[int, str, int]] = []
    for part in range(parts.count):
        if not parts.done("grids", part):
            continue
        for row in parts.read("grids", part):
            total += 1
            place = -int(hashlib.sha256(row["id"].encode()).hexdigest()[:16], 16)
            push = heapq.heappush if len(heap) < limit else heapq.heappushpop
            push(heap, (place, row["id"], part))
    chosen: dict[int, set[str]] = {}
    for _, name, part in heap:
        chosen.setdefault(part, set()).add(name)
    return chosen, total


def _joined(parts: Parts, chosen: Mapping[int, set[str]]) -> Iterator[_Grid]:
    for part, names in sorted(chosen.items()):
        rows = {
            stage: {row["id"]: row for row in parts.read(stage, part)}
            if parts.done(stage, part)
            else {}
            for stage in STAGES
        }
        pairs: dict[str, list[Mapping[str, Row]]] = {}
        for name in sorted(rows["pairs"]):
            held = {s: rows[s][name] for s in ("pairs", "judge", "caption") if name in rows[s]}
            pairs.setdefault(rows["pairs"][name].get("grid_id", name), []).append(held)
        for name in sorted(names):
            prompt = name.rpartition("-")[0]
            ids = {"captions": name.partition("-")[0], "prompts": prompt, "grids": name}
            own = {stage: rows[stage][key] for stage, key in ids.items() if key in rows[stage]}
            yield _Grid(name, own, pairs.get(name, []))


def _add_picture(parts: Parts, grid: str, number: int, pictures: list[str]) -> tuple[int, int]:
    """Adds the style with a small copy of a grid; width and height of the original."""
    try:
        image = open_image(grid_file(parts, grid).read_bytes())
    except (UserError, OSError):
        return 0, 0
    size = image.size
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    pictures.append(f".g{number} {{ background-image: url(data:image/jpeg;base64,{data}); }}")
    return size


def _card(grid: _Grid, number: int, size: tuple[int, int], pairs: Iterable[str]) -> str:
    task = str(grid.rows.get("prompts", {}).get("task", ""))
    caption = grid.rows.get("captions", {})
    facts = {
        "caption": caption.get("caption"),
        "subject": grid.rows.get("prompts", {}).get("subject"),
        "prompt": grid.rows.get("prompts", {}).get("prompt"),
        "task": task,
        "seed": grid.rows.get("grids", {}).get("seed"),
        "source": caption.get("source", {}).get("url") or caption.get("source", {}).get("file"),
    }
    picture = ""
    if all(size):
        width, height = size
        boxes = "".join(_outline(n, box, size) for n, box in sorted(_boxes(grid).items()))
        ratio = f"aspect-ratio: {width} / {height}"
        picture = f'<div class="grid g{number}" style="{ratio}">{boxes}</div>'
    return (
        f'<article data-task="{_safe(task)}"><figure>{picture}'
        f"<figcaption>{_safe(grid.id)}</figcaption></figure>"
        f"<div>{_facts(facts)}{''.join(pairs)}</div></article>"
    )


def _boxes(grid: _Grid) -> dict[str, tuple[int, int, int, int]]:
    """Panel number to its box."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for pair in grid.pairs:
        if boxes := boxes_of(pair["pairs"]):
            ends = pair["pairs"]["id"].rpartition("-")[2]
            found |= dict(zip(ends, boxes, strict=True))
    return found


def _outline(number: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    left, top, right, bottom = box
    width, height = size
    place = {
        "left": left / width,
        "top": top / height,
        "width": (right - left) / width,
        "height": (bottom - top) / height,
    }
    style = "; ".join(f"{name}: {100 * share:.3f}%" for name, share in place.items())
    return f'<i data-n="{_safe(number)}" style="{style}"></i>'


def _pair(rows: Mapping[str, Row], number: int, size: tuple[int, int]) -> tuple[str, str, str]:
    """A pair, its verdict and its reason."""
    pair, judged, words = rows["pairs"], rows.get("judge"), rows.get("caption")
    last = judged or pair
    status = str(last["status"])
    if judged:
        verdict = str(judged.get("verdict") or status)
    else:
        verdict = "not judged" if status == "kept" else f"{status} before the judge"
    reason = str(last.get("reason", ""))
    panels = ""
    if all(size) and (boxes := boxes_of(pair)):
        panels = "".join(_panel(box, size, number) for box in boxes)
    badge = f'<span class="badge {_safe(status)}">{_safe(verdict)}</span>'
    told = " · ".join(str(x) for x in (reason, last.get("detail"), _scores(judged)) if x)
    where = f'<span class="where">{_safe(_ends(pair))} {_safe(told)}</span>'
    text = (
        f'<div class="pair" data-verdict="{_safe(verdict)}" data-reason="{_safe(reason)}">'
        f'<div class="panels">{panels}</div><div>{badge}{where}{_words(words)}{_turns(judged)}'
        "</div></div>"
    )
    return text, verdict, reason


def _ends(pair: Row) -> str:
    return " → ".join(pair["id"][-2:]) if boxes_of(pair) else ""


def _panel(box: tuple[int, int, int, int], size: tuple[int, int], number: int) -> str:
    """A panel, as a window onto the grid's picture."""
    left, top, right, bottom = box
    style = [f"aspect-ratio: {right - left} / {bottom - top}"]
    scales, places = [], []
    for start, stop, side in ((left, right, size[0]), (top, bottom, size[1])):
        scales.append(f"{100 * side / (stop - start):.3f}%")
        places.append(f"{100 * start / max(1, side - (stop - start)):.3f}%")
    style += [f"background-size: {' '.join(scales)}", f"background-position: {' '.join(places)}"]
    return f'<div class="panel g{number}" style="{"; ".join(style)}"></div>'


def _scores(judged: Row | None) -> str:
    scores = (judged or {}).get("scores", {})
    return ", ".join(f"{aspect} {mark}" for aspect, mark in scores.items())


def _words(words: Row | None) -> str:
    """What the describing stage wrote."""
    return "".join(
        f'<p class="words"><b>{arrow} {kind}</b> {_safe(text)}</p>'
        for way, arrow in (("forward", "→"), ("reverse", "←"))
        for kind in ("caption", "instruction")
        if (text := (words or {}).get(way, {}).get(kind))
    )


def _turns(judged: Row | None) -> str:
    turns = (judged or {}).get("turns", [])
    if not turns:
        return ""
    facts = [
        (
            _STEPS.get(turn["step"], turn["step"]) + (" (again)" if turn["sample"] else ""),
            turn["answer"] if turn["finish"] == "stop" else f"[{turn['finish']}] {turn['answer']}",
        )
        for turn in turns
    ]
    model = (judged or {}).get("model", "")
    return (
        f"<details><summary>{len(turns)} answers of the judge {_safe(model)}</summary>"
        f"{_facts(facts)}</details>"
    )


def _facts(facts: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> str:
    pairs = facts.items() if isinstance(facts, Mapping) else facts
    lines = (
        f'<dt>{_safe(name)}</dt><dd dir="auto">{_safe(value)}</dd>'
        for name, value in pairs
        if value not in (None, "")
    )
    return f"<dl>{''.join(lines)}</dl>"


def _options(counts: Counter[str]) -> str:
    return "".join(
        f'<option value="{_safe(name)}">{_safe(name)} ({count:,})</option>'
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _safe(text: object) -> str:
    """Foreign text within HTML, in an element or a quoted attribute."""
    shown = "".join(x if x.isprintable() or x == "\n" else "\ufffd" for x in str(text))
    return html.escape(shown)
