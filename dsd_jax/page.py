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

from PIL import Image

from dsd_jax.files import write_file

__all__ = ["Card", "Page", "Picture"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d0d7de; --soft: #f6f8fa;
  --dim: #59636e; --good: #1a7f37; --curve: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d;
  --soft: #151b23; --dim: #9198a1; --good: #3fb950; --curve: #4493f8; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 100rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 3rem); }
p, pre { max-width: 70rem; }
h1 { line-height: 1.2; margin: 0 0 1rem; } h2 { margin: 2.5rem 0 .5rem; }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
figure { flex: 1 1 0; min-width: 0; margin: 0; }
figcaption { font-size: .75rem; color: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
tr { border-bottom: 1px solid var(--line); }
th, td { padding: .4rem clamp(.4rem, 1.5vw, 1rem); text-align: left; vertical-align: top; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr));
  gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6rem;
  background: var(--paper); }
.card p { margin: .5rem 0 0; font-size: .85rem; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .4rem; color: inherit; text-decoration: none; cursor: zoom-in; }
.marked { outline: 3px solid var(--good); }
.close { display: none; }
.card:target { position: fixed; inset: 0; z-index: 1; overflow: auto; border: 0; border-radius: 0;
  padding: 3.5rem clamp(1rem, 5vw, 4rem) 1rem; }
.card:target .pictures { max-width: calc(70vh * var(--count)); margin: 0 auto; gap: 1rem;
  cursor: default; }
.card:target p { font-size: 1.1rem; text-align: center; margin: 1rem auto; }
.card:target figcaption { font-size: 1rem; }
.card:target .close { display: block; position: absolute; inset: 0; text-align: right;
  padding: 1rem clamp(1rem, 5vw, 4rem); color: inherit; text-decoration: none; cursor: zoom-out; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.chart { max-width: 70rem; padding: .7rem 1rem 2rem 3.5rem; }
.plot { position: relative; height: 18rem; font-size: .8rem; color: var(--dim); }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot line { stroke: var(--line); }
.plot polyline { fill: none; stroke: var(--curve); stroke-width: 2; }
.plot * { vector-effect: non-scaling-stroke; }
.plot span { position: absolute; white-space: nowrap; }
.up { right: calc(100% + .5rem); transform: translateY(-50%); }
.along { top: calc(100% + .3rem); transform: translateX(-50%); }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its name below it; `marked` puts a green frame around it."""

    image: Image.Image
    name: str = ""
    marked: bool = False


@dataclasses.dataclass(frozen=True)
class Card:
    """Pictures side by side, and words about them."""

    pictures: Sequence[Picture]
    words: str


class Page:
    """A page that is put together from top to bottom."""

    def __init__(self, title: str) -> None:
        self._title = html.escape(title)
        self._blocks = [f"<h1>{self._title}</h1>"]
        self._numbers = itertools.count()

    def heading(self, words: str) -> None:
        """Begins a section."""
        self._blocks.append(f"<h2>{html.escape(words)}</h2>")

    def text(self, words: str) -> None:
        """Adds a paragraph."""
        self._blocks.append(f"<p>{html.escape(words)}</p>")

    def link(self, words: str, path: str) -> None:
        """Adds a link to a file beside the page."""
        self._blocks.append(
            f'<p><a href="{html.escape(path, quote=True)}">{html.escape(words)}</a></p>'
        )

    def code(self, lines: Sequence[str]) -> None:
        """Adds lines as they are typed."""
        self._blocks.append("<pre>" + html.escape("\n".join(lines)) + "</pre>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Adds a table whose first row is its head."""
        head, *rest = rows
        lines = [_line(head, "th"), *(_line(row, "td") for row in rest)]
        self._blocks.append(f"<table>{''.join(lines)}</table>")

    def cards(self, cards: Sequence[Card]) -> None:
        """Adds cards, as many side by side as the screen is wide."""
        shown = "".join(_card(card, next(self._numbers)) for card in cards)
        self._blocks.append(f'<div class="cards">{shown}</div>')

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
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{self._title}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(self._blocks)
            + "\n</body></html>\n"
        )


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _card(card: Card, number: int) -> str:
    figures = "".join(_figure(picture, card.words) for picture in card.pictures)
    return (
        f'<article class="card" id="card-{number}" style="--count: {len(card.pictures)}">'
        f'<a class="pictures" href="#card-{number}">{figures}</a><p>{html.escape(card.words)}</p>'
        '<a class="close" href="#closed">close</a></article>'
    )


def _figure(picture: Picture, words: str) -> str:
    file = io.BytesIO()
    picture.image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    alt = html.escape(picture.name or words, quote=True)
    marked = ' class="marked"' if picture.marked else ""
    name = f"<figcaption>{html.escape(picture.name)}</figcaption>" if picture.name else ""
    return f'<figure><img{marked} alt="{alt}" src="data:image/png;base64,{data}">{name}</figure>'


def _curve(points: Sequence[tuple[float, float]], x: str, y: str) -> str:
    positions, values = zip(*points, strict=True)
    log = min(values) > 0 and max(values) > 10 * min(values)
    up = _log_ticks(min(values), max(values)) if log else _ticks(min(0, *values), max(0, *values))
    along = [tick for tick in _ticks(positions[0], positions[-1]) if tick <= positions[-1]]

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

    name = html.escape(f"{y} by {x}, from {values[0]:.3g} to {values[-1]:.3g}", quote=True)
    return (
        f'<div class="chart"><div class="plot" role="img" aria-label="{name}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(pieces())}'
        f"</div></div><p>{name}</p>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around an interval, about five of them."""
    rough = (high - low or abs(high) or 1) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives around an interval."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(number for number, tick in enumerate(every) if tick <= low)
    last = min(number for number, tick in enumerate(every) if tick >= high)
    return every[first : last + 1]
