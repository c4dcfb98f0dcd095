"""A run as one HTML file: its curves, its samples over time, and its recipe."""

import html
import math
import string
from collections.abc import Sequence
from pathlib import Path

from dsd_jax.files import write_file
from dsd_jax.images import open_image
from dsd_jax.page import STYLE, data_uri, log_ticks, ticks
from dsd_jax.structured import read_toml
from dsd_jax.train.metrics import read_metrics
from dsd_jax.train.plot import PANELS
from dsd_jax.train.runfile import RUN_FILE

__all__ = ["PAGE", "write_page"]

PAGE = "run.html"  # in the folder of a run
SHEETS = ("samples", "prompts")
MOST_SHEETS = 12  # of a kind; evenly spaced, with the first and the last
MOST_POINTS = 400  # of a curve
WIDEST = 1200  # pixels of a sheet
_WIDTH, _HEIGHT = 360, 200  # of a plot
_LEFT, _TOP, _BOTTOM = 54, 8, 20  # its margins
_LOGARITHMIC = ("Loss", "Loss by frame", "Gradient norm")  # plots whose start would hide the rest
# Settings that name places on a machine, which is nobody else's business.
_PLACES = (
    "base_path", "model_path", "lora_path", "data", "encoded", "eval_data", "output_dir",
    "checkpoint_dir", "sample_prompts", "wandb",
)  # fmt: skip


def write_page(run: Path, path: Path) -> None:
    """Writes the page of a run.

    Args:
        run: its folder.
        path: HTML file to write.

    Raises:
        UserError: there is no run, or it has logged nothing yet, or the page cannot be written.
    """
    rows = read_metrics(run)
    template = string.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    sheets = "".join(_sheet(run / kind) for kind in SHEETS)
    text = template.substitute(
        style=STYLE,
        title=html.escape(run.resolve().name),
        about=html.escape(_about(rows)),
        curves="".join(_figure(*panel, rows) for panel in PANELS),
        sheets=sheets,
        settings=html.escape(_settings(run / RUN_FILE)),
    )
    write_file(path, text)


def _about(rows: Sequence[dict[str, float]]) -> str:
    last = {name: value for row in rows for name, value in row.items() if _is_number(value)}
    said = [f"{int(last['step']):,} steps"]
    said += [f"loss {last['loss']:.4g}"] if "loss" in last else []
    said += [f"held out {last['eval/loss']:.4g}"] if "eval/loss" in last else []
    return ", ".join(said)


def _figure(title: str, unit: str, names: dict[str, str], rows: Sequence[dict[str, float]]) -> str:
    """A plot with a title and a key; nothing if nothing was logged for it."""
    curves = {
        name: points
        for name in names
        if (points := [(row["step"], row[name]) for row in rows if _is_number(row.get(name))])
    }
    if not curves:
        return ""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    left, right, floor = min(xs), max(xs), _HEIGHT - _BOTTOM
    right = right if right > left else left + 1
    log = title in _LOGARITHMIC and min(ys) > 0 and max(ys) > 10 * min(ys)
    up = log_ticks(min(ys), max(ys)) if log else ticks(min(0, *ys), max(0, *ys))

    def height(y: float) -> float:
        low, high, at = (math.log(number) if log else number for number in (up[0], up[-1], y))
        return _TOP + (high - at) / (high - low) * (floor - _TOP)

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - 6), height(y)

    drawn, key = [], []
    for number, (name, points) in enumerate(curves.items()):
        kind = f"s{number % 4}" + (" held" if name.startswith("eval/") else "")
        places = [place(*point) for point in _thinned(points)]
        if len(places) == 1:
            drawn.append(
                f'<circle class="{kind}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2"/>'
            )
        else:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            drawn.append(f'<polyline class="{kind}" points="{joined}"/>')
        line = f'<svg viewBox="0 0 22 8"><polyline class="{kind}" points="0,4 22,4"/></svg>'
        key += [f"<span>{line} {html.escape(names[name])}</span>"] if names[name] else []
    axes = "".join(
        f'<line class="axis" x1="{_LEFT}" y1="{height(tick):.1f}" x2="{_WIDTH}" '
        f'y2="{height(tick):.1f}"/><text x="{_LEFT - 4}" y="{height(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:g}</text>'
        for tick in up
    ) + (
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">step {left:,.0f}</text>'
        f'<text x="{_WIDTH - 2}" y="{_HEIGHT - 4}" text-anchor="end">{right:,.0f}</text>'
    )
    caption = f'{html.escape(title)} <span class="unit">{html.escape(unit)}</span>'
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axes}{"".join(drawn)}</svg>'
        f'<div class="key">{"".join(key)}</div></figure>'
    )


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Thins a curve to at most `MOST_POINTS` points, the last one included."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return [*points[:-1:step], points[-1]]


def _sheet(folder: Path) -> str:
    """The sheets of a folder under a slider; nothing if there are none."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        return ""
    if len(paths) > MOST_SHEETS:
        last = len(paths) - 1
        paths = [paths[round(i * last / (MOST_SHEETS - 1))] for i in range(MOST_SHEETS)]
    pictures = "".join(
        f'<img alt="{folder.name} of step {int(path.stem)}" data-step="{int(path.stem):,}" '
        f'src="{_picture(path)}">'
        for path in paths
        if path.stem.isdigit()
    )
    top = len(paths) - 1
    return (
        f'<h2>{folder.name.capitalize()}</h2><div class="sheet">'
        f'<p><input type="range" min="0" max="{top}" value="{top}" aria-label="step"> '
        f"<output></output></p>{pictures}</div>"
    )


def _picture(path: Path) -> str:
    return data_uri(open_image(path), WIDEST)


def _settings(path: Path) -> str:
    """The settings of a run without the places on its machine."""
    if not path.is_file():
        return "not kept"
    lines = []
    for name, value in read_toml(path).items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(f"{key} = {own}" for key, own in value.items())]
        elif name not in _PLACES:
            lines.append(f"{name} = {value}")
    return "\n".join(lines).strip()
