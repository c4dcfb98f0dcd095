"""Web pages of one file, with their pictures inside and without scripts, light or dark.

A page fills a wide screen and fits a phone. A click on a card shows its pictures large. Every text
is escaped, since captions and answers of models are foreign.
"""

import base64
import dataclasses
import html
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from dsd_jax.files import write_file
from dsd_jax.interval import Interval

__all__ = [
    "SMALL",
    "STYLE",
    "Card",
    "Dot",
    "Page",
    "Picture",
    "data_uri",
    "encoded",
    "kind_of",
    "log_ticks",
    "safe",
    "ticks",
]

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
"""Colours and shapes of every page, light and dark."""

SMALL = 160  # pixels of the longer side; shown larger, such a picture keeps its sharp pixels
_LARGEST, _QUALITY = 640, 85
_DIM = ' class="dim"'
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its name below it; `marked` puts a green frame around it."""

    image: Image.Image
    name: str = ""
    marked: bool = False


@dataclasses.dataclass(frozen=True)
class Card:
    """Pictures side by side, words about them, and facts by name."""

    pictures: Sequence[Picture]
    words: str
    facts: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Dot:
    """A named point of a plot, with its intervals."""

    name: str
    x: Interval
    y: Interval


class Page:
    """A page that is put together from top to bottom.

    Args:
        title: Its title.
        contents: List the sections below the title, with links to them.
    """

    def __init__(self, title: str, *, contents: bool = False) -> None:
        self._title = safe(title)
        self._blocks: list[str] = []
        self._numbers = itertools.count()
        self._contents = contents
        self._sections: list[str] = []

    def heading(self, words: str, level: Literal[2, 3] = 2) -> None:
        """Begins a section, or a part of one (level 3)."""
        place = ""
        if level == 2:
            place = f' id="section-{len(self._sections)}"'
            self._sections.append(safe(words))
        self._blocks.append(f"<h{level}{place}>{safe(words)}</h{level}>")

    def text(self, words: str, *, dim: bool = False) -> None:
        """Adds a paragraph, or a note in smaller and paler letters."""
        self._blocks.append(f"<p{_DIM * dim}>{safe(words)}</p>")

    def link(self, words: str, path: str) -> None:
        """Adds a link to a file beside the page."""
        self._blocks.append(f'<p><a href="{safe(path)}">{safe(words)}</a></p>')

    def code(self, lines: Sequence[str]) -> None:
        """Adds lines as they are typed."""
        self._blocks.append("<pre>" + safe("\n".join(lines)) + "</pre>")

    def table(
        self,
        rows: Sequence[Sequence[str]],
        blocks: Sequence[tuple[str, int]] = (),
        *,
        folded: bool = True,
    ) -> None:
        """Adds a table whose first row is its head. A wide one scrolls in a box of its own.

        Args:
            rows: The rows.
            blocks: Titles over groups of columns, with the number of columns of each.
            folded: Break long cells into lines.
        """
        head, *rest = rows
        over = "".join(f'<th colspan="{count}">{safe(title)}</th>' for title, count in blocks)
        lines = [_line(head, "th"), *(_line(row, "td") for row in rest)]
        kind = "" if folded else ' class="unfolded"'
        top = f'<tr class="blocks">{over}</tr>' if over else ""
        self._blocks.append(f'<div class="scroll"><table{kind}>{top}{"".join(lines)}</table></div>')

    def cards(self, cards: Sequence[Card], *, wide: bool = False) -> None:
        """Adds cards, as many side by side as the screen is wide, or one below the other."""
        shown = "".join(_card(card, next(self._numbers)) for card in cards)
        kind = "cards wide" if wide else "cards"
        self._blocks.append(f'<div class="{kind}">{shown}</div>')

    def scatter(self, points: Sequence[Dot], x: str, y: str) -> None:
        """Adds points with their names and intervals along both axes.

        Args:
            points: At least one.
            x, y: Names of the axes.
        """
        self._blocks.append(_scatter(points, x, y))

    def curve(self, points: Sequence[tuple[float, float]], x: str, y: str) -> None:
        """Adds a line through points; values that are not finite are left out.

        Args:
            points: Positions and values, positions ascending.
            x, y: Names of the axes. The values have a logarithmic axis if they span more than a
                factor of ten.
        """
        finite = [point for point in points if math.isfinite(point[1])]
        if len(finite) < 2:
            self.text("There are too few points for a curve.")
        else:
            self._blocks.append(_curve(finite, x, y))

    def write(self, path: Path) -> None:
        """Writes the page.

        Raises:
            UserError: It cannot be written.
        """
        write_file(path, str(self))

    def __str__(self) -> str:
        links = "".join(
            f'<li><a href="#section-{number}">{words}</a></li>'
            for number, words in enumerate(self._sections)
        )
        contents = [f'<nav><ul class="contents">{links}</ul></nav>'] if self._contents else []
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{self._title}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join([f"<h1>{self._title}</h1>", *contents, *self._blocks])
            + "\n</body></html>\n"
        )


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{safe(cell)}</{tag}>" for cell in cells) + "</tr>"


def _card(card: Card, number: int) -> str:
    figures = "".join(_figure(picture, card.words) for picture in card.pictures)
    shown = f'<a class="pictures" href="#card-{number}">{figures}</a>' if figures else ""
    words = f"<p>{safe(card.words)}</p>" if card.words else ""
    return (
        f'<article class="card" id="card-{number}" style="--count: {len(card.pictures)}">'
        f'{shown}{words}{_facts(card.facts)}<a class="close" href="#closed">close</a></article>'
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    lines = (f'<dt>{safe(name)}</dt><dd dir="auto">{safe(text)}</dd>' for name, text in facts)
    return f"<dl>{''.join(lines)}</dl>" if facts else ""


def _figure(picture: Picture, words: str) -> str:
    kinds = ("marked" * picture.marked, "small" * (max(picture.image.size) <= SMALL))
    name = f"<figcaption>{safe(picture.name)}</figcaption>" if picture.name else ""
    return (
        f'<figure><img class="{" ".join(filter(None, kinds))}" alt="{safe(picture.name or words)}"'
        f' src="{data_uri(picture.image)}">{name}</figure>'
    )


def data_uri(image: Image.Image, largest: int = _LARGEST) -> str:
    """Returns a picture as text that stands in place of an address; arguments as in `encoded`."""
    content = encoded(image, largest)
    kind = kind_of(max(image.size))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def kind_of(side: int) -> str:
    """Returns the format, png or webp, in which `encoded` stores a picture with a longer side."""
    return "png" if side <= SMALL else "webp"


def encoded(image: Image.Image, largest: int = _LARGEST, quality: int = _QUALITY) -> bytes:
    """Returns a picture as a file without metadata.

    Args:
        image: The picture. A small one keeps every bit, a larger one is compressed.
        largest: Pixels of the longer side, above which it is made smaller.
        quality: Quality of the compression, up to 100.
    """
    file = io.BytesIO()
    if kind_of(max(image.size)) == "png":
        image.save(file, "PNG")
    else:
        copy = image.convert("RGB")
        copy.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        copy.save(file, "WEBP", quality=quality)
    return file.getvalue()


def safe(text: object) -> str:
    """Returns foreign text within HTML, for an element or a quoted attribute."""
    shown = "".join(x if x.isprintable() or x.isspace() else "\ufffd" for x in str(text))
    return html.escape(shown)


def _curve(points: Sequence[tuple[float, float]], x: str, y: str) -> str:
    positions, values = zip(*points, strict=True)
    log = min(values) > 0 and max(values) > 10 * min(values)
    up = log_ticks(min(values), max(values)) if log else ticks(min(0, *values), max(0, *values))
    along = [tick for tick in ticks(positions[0], positions[-1]) if tick <= positions[-1]]

    def height(value: float) -> float:
        """Distance from the top, from 0 to 100."""
        low, high, at = (
            (math.log(number) for number in (up[0], up[-1], value)) if log else
            (up[0], up[-1], value)
        )  # fmt: skip
        return 100 * (high - at) / (high - low)

    def place(position: float) -> float:
        return 100 * (position - positions[0]) / (positions[-1] - positions[0])

    def pieces() -> Iterator[str]:
        for tick in up:
            yield f'<line x1="0" x2="100" y1="{height(tick):.2f}" y2="{height(tick):.2f}"/>'
        line = " ".join(f"{place(at):.2f},{height(value):.2f}" for at, value in points)
        yield f'<polyline points="{line}"/></svg>'
        for tick in up:
            yield f'<span class="up" style="top: {height(tick):.2f}%">{tick:g}</span>'
        for tick in along:
            if tick >= positions[0]:
                yield f'<span class="along" style="left: {place(tick):.2f}%">{tick:g}</span>'

    name = safe(f"{y} by {x}, from {values[0]:.3g} to {values[-1]:.3g}")
    return (
        f'<div class="chart"><div class="plot" role="img" aria-label="{name}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(pieces())}'
        f"</div></div><p>{name}</p>"
    )


def _scatter(points: Sequence[Dot], x: str, y: str) -> str:
    along, up = (
        ticks(min(each.low for each in side), max(each.high for each in side))
        for side in ([dot.x for dot in points], [dot.y for dot in points])
    )

    def place(value: float) -> float:
        return 100 * (value - along[0]) / (along[-1] - along[0])

    def height(value: float) -> float:
        """Distance from the top, from 0 to 100."""
        return 100 * (up[-1] - value) / (up[-1] - up[0])

    def pieces() -> Iterator[str]:
        for tick in up:
            yield f'<line x1="0" x2="100" y1="{height(tick):.2f}" y2="{height(tick):.2f}"/>'
        for tick in along:
            yield f'<line y1="0" y2="100" x1="{place(tick):.2f}" x2="{place(tick):.2f}"/>'
        for dot in points:
            left, right, here = place(dot.x.low), place(dot.x.high), place(dot.x.value)
            low, high, level = height(dot.y.low), height(dot.y.high), height(dot.y.value)
            yield f'<path d="M{left:.2f} {level:.2f}H{right:.2f}M{here:.2f} {low:.2f}V{high:.2f}"/>'
            yield f'<path class="dot" d="M{here:.2f} {level:.2f}h0"/>'
        yield "</svg>"
        for tick in up:
            yield f'<span class="up" style="top: {height(tick):.2f}%">{tick:g}</span>'
        for tick in along:
            yield f'<span class="along" style="left: {place(tick):.2f}%">{tick:g}</span>'
        for dot, level in zip(points, _apart([height(dot.y.value) for dot in points]), strict=True):
            here = place(dot.x.value)
            side = f"right: {100 - here:.2f}%" if here > 50 else f"left: {here:.2f}%"
            yield f'<span class="name" style="{side}; top: {level:.2f}%">{safe(dot.name)}</span>'

    words = safe(f"{y} (upwards) by {x} (to the right), with intervals")
    return (
        f'<div class="chart"><div class="plot" role="img" aria-label="{words}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(pieces())}'
        f"</div></div><p>{words}</p>"
    )


def _apart(levels: Sequence[float], gap: float = 6) -> list[float]:
    """Moves names down that would stand on each other."""
    placed: dict[int, float] = {}
    last = -math.inf
    for number in sorted(range(len(levels)), key=levels.__getitem__):
        last = placed[number] = max(levels[number], last + gap)
    return [placed[number] for number in range(len(levels))]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers around an interval, about five of them."""
    rough = (high - low or abs(high) or 1) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives around an interval."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(number for number, tick in enumerate(every) if tick <= low)
    last = min(number for number, tick in enumerate(every) if tick >= high)
    return every[first : last + 1]
