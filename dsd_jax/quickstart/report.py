"""What a quickstart shows at its end: one HTML page and one PNG, each complete in itself."""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dsd_jax.files import write_file
from dsd_jax.images import save_png
from dsd_jax.toy.score import METRICS, Interval

__all__ = ["Example", "Findings", "Shown", "write_report"]

NAMES = {
    "identity": "identity",
    "prompt": "prompt following",
    "both": "both",
    "copied": "scene copied",
}
_INK, _PAPER, _LINE = "#1f2328", "#ffffff", "#d0d7de"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A grid or a pair from the dataset in the making, and what was said of it."""

    pictures: Sequence[Image.Image]
    words: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A case with the images made for it; `before` by the teacher, which sees only the text."""

    text: str
    reference: Image.Image
    before: Image.Image
    after: Image.Image
    right: bool


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        scores: row of the table -> metric -> interval.
        cases: behind each row.
        losses: step and loss, ascending.
        counts: of the dataset in the making, in order.
        commands: that were run, with their seconds.
        notes: sentences at the end.
    """

    scores: Mapping[str, Mapping[str, Interval]]
    cases: int
    examples: Sequence[Example]
    grids: Sequence[Shown]
    kept: Sequence[Shown]
    rejected: Sequence[Shown]
    losses: Sequence[tuple[int, float]]
    counts: Mapping[str, int]
    commands: Sequence[tuple[str, float]]
    notes: Sequence[str] = ()


def write_report(findings: Findings, page: Path, picture: Path) -> None:
    """Writes the page and the picture.

    Raises:
        UserError: they cannot be written.
    """
    save_png(_picture(findings), picture)
    write_file(page, _page(findings))


# The page

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #151b23; --good: #3fb950; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { image-rendering: pixelated; display: block; border-radius: 4px; }
table { border-collapse: collapse; } th, td { padding: .4rem .8rem; text-align: left; }
tr { border-bottom: 1px solid var(--line); }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; max-width: 21rem; }
.card p { margin: .4rem 0 0; font-size: .85rem; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .4rem; } .right { outline: 3px solid var(--good); }
figure { margin: 0; } figcaption { font-size: .75rem; opacity: .7; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; border-radius: 6px; }
svg { width: 100%; height: auto; }
"""


def _page(findings: Findings) -> str:
    blocks = [
        "<h1>Self-distillation on the toy world</h1>",
        (
            "<p>A teacher painted grids of one subject, a judge kept the pairs that show the same "
            "subject, and the teacher was tuned on them. Below: subjects that nothing was trained "
            f"on, in scenes that were asked for, {findings.cases} cases.</p>"
        ),
        _scores(findings),
        "<h2>Before and after</h2>",
        (
            "<p>Left the reference, then what the teacher paints for the text alone, then the "
            "tuned model with the reference. Outlined: subject and scene are both right.</p>"
        ),
        _row(_example(example) for example in findings.examples),
        "<h2>The teacher's grids</h2>",
        _row(_card(shown, 128) for shown in findings.grids),
        "<h2>Pairs that were kept</h2>",
        _row(_card(shown, 96) for shown in findings.kept),
        "<h2>Pairs that were rejected</h2>",
        _row(_card(shown, 96) for shown in findings.rejected),
        "<h2>Yields</h2>",
        _table([("", "count"), *((name, f"{n:,}") for name, n in findings.counts.items())]),
        "<h2>Training loss</h2>",
        _curve(findings.losses),
        "<h2>The commands</h2>",
        (
            "<p>The same commands, with FLUX.1-dev as base_path and a provider in the "
            "configuration, do the same on real weights.</p>"
        ),
        "<pre>"
        + "\n".join(html.escape(f"$ {words}    # {s:.0f} s") for words, s in findings.commands)
        + "</pre>",
        *(f"<p>{html.escape(note)}</p>" for note in findings.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>dsd quickstart</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(blocks)
        + "</body></html>\n"
    )


def _scores(findings: Findings) -> str:
    head = ("", *(NAMES[metric] for metric in METRICS))
    rows = [
        (name, *(str(intervals[metric]) for metric in METRICS))
        for name, intervals in findings.scores.items()
    ]
    return _table([head, *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    head, *rest = rows
    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rest) + "</table>"


def _row(cards: Iterator[str]) -> str:
    return f'<div class="row">{"".join(cards)}</div>'


def _image(image: Image.Image, width: int, name: str, *, mark: bool = False) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    right = ' class="right"' if mark else ""
    alt = html.escape(name, quote=True)
    return f'<img{right} width="{width}" alt="{alt}" src="data:image/png;base64,{data}">'


def _card(shown: Shown, width: int) -> str:
    pictures = "".join(_image(picture, width, shown.words) for picture in shown.pictures)
    return f'<div class="card"><div class="pictures">{pictures}</div><p>{_words(shown)}</p></div>'


def _words(shown: Shown) -> str:
    return html.escape(shown.words)


def _example(example: Example) -> str:
    frames = "".join(
        f"<figure>{_image(image, 96, name, mark=mark)}<figcaption>{name}</figcaption></figure>"
        for name, image, mark in (
            ("reference", example.reference, False),
            ("before", example.before, False),
            ("after", example.after, example.right),
        )
    )
    text = html.escape(example.text)
    return f'<div class="card"><div class="pictures">{frames}</div><p>{text}</p></div>'


def _curve(losses: Sequence[tuple[int, float]]) -> str:
    """The losses as a line in SVG."""
    width, height, margin = 800, 240, 40
    points = [(s, loss) for s, loss in losses if math.isfinite(loss)]
    if len(points) < 2:
        return "<p>too few steps were logged</p>"
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)

    def place(step: int, loss: float) -> str:
        x = margin + (step - steps[0]) / (steps[-1] - steps[0]) * (width - 2 * margin)
        y = height - margin - (loss - low) / (high - low or 1) * (height - 2 * margin)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, loss) for step, loss in points)
    labels = (
        f'<text x="{margin}" y="{height - 12}">step {steps[0]}</text>'
        f'<text x="{width - margin}" y="{height - 12}" text-anchor="end">step {steps[-1]}</text>'
        f'<text x="{margin}" y="24">{high:.3f} at most, {low:.3f} at least</text>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" font-size="14" fill="currentColor" role="img">'
        f'<polyline points="{line}" fill="none" stroke="#3b82f6" stroke-width="2"/>{labels}</svg>'
    )


# The picture

_SCALE = 3
_PANEL, _GAP, _TEXT = 32 * _SCALE, 8, 18


def _picture(findings: Findings) -> Image.Image:
    """Grids, pairs, and cases before and after, in three bands, with the scores below."""
    grids = [[_scaled(shown.pictures[0])] for shown in findings.grids[:5]]
    pairs = [
        [_scaled(p) for p in shown.pictures]
        for shown in (*findings.kept[:3], *findings.rejected[:2])
    ]
    cases = [
        [_scaled(image) for image in (e.reference, e.before, e.after)]
        for e in findings.examples[:4]
    ]
    bands = [
        ("The teacher's grids", grids, [""] * len(grids)),
        (
            "Pairs that the judge kept, and some that were rejected",
            pairs,
            ["kept"] * len(findings.kept[:3]) + ["rejected"] * len(findings.rejected[:2]),
        ),
        (
            "Reference, before (text alone) and after; subjects never trained on",
            cases,
            [e.text for e in findings.examples[:4]],
        ),
    ]
    lines = [
        f"{name}: " + ", ".join(f"{NAMES[m]} {intervals[m].mean:.2f}" for m in METRICS)
        for name, intervals in findings.scores.items()
    ]
    drawn = [_band(*band) for band in bands if band[1]]
    width = max(band.width for band in drawn) if drawn else 600
    height = sum(band.height for band in drawn) + (len(lines) + 1) * _TEXT + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for band in drawn:
        sheet.paste(band, (0, top))
        top += band.height
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(lines):
        draw.text((_GAP, top + _GAP + number * _TEXT), text, fill=_INK, font=_font())
    return sheet


def _band(title: str, groups: Sequence[Sequence[Image.Image]], words: Sequence[str]) -> Image.Image:
    widths = [sum(i.width + 2 for i in group) + 2 * _GAP for group in groups]
    tallest = max(image.height for group in groups for image in group)
    size = max(sum(widths), 640), tallest + 2 * _TEXT + 2 * _GAP
    band = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(band)
    draw.text((_GAP, _GAP // 2), title, fill=_INK, font=_font())
    left = _GAP
    for group, width, text in zip(groups, widths, words, strict=True):
        x = left
        for image in group:
            band.paste(image, (x, _TEXT + _GAP))
            x += image.width + 2
        draw.text((left, _TEXT + _GAP + tallest), text, fill=_INK, font=_font(11))
        left += width
    draw.line((0, size[1] - 1, size[0], size[1] - 1), fill=_LINE)
    return band


def _scaled(image: Image.Image) -> Image.Image:
    scale = _SCALE if max(image.size) <= 32 else 2
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
