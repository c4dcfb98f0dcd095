"""Whether a picture is an evenly separated 2x2 grid, and where its four panels are.

A separator is a straight line from edge to edge across which the picture changes: a single one
where panels touch, two with one colour between them where there is a gutter. The picture is reduced
until its longer side has at most 256 pixels, and every line of that size is asked along which part
of its length the step across it stands out from the steps beside it. Both panels that a separator
passes must say so. The arithmetic is exact up to divisions, so every machine finds the same boxes.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image

from dsd_jax.data.make.crops import Box
from dsd_jax.errors import UserError

__all__ = ["GridCheck", "Panels", "find_panels"]

State = Literal["good", "none", "half", "crooked", "uneven", "wide", "many"]

COARSE = 256  # pixels of the longer side that separators are looked for in
BINS = 32  # along half a separator, each the mean of its pixels
ENDS = 0.05  # of the side; not asked at either end of a line and where separators cross
OFF_MIDDLE = 0.1  # of the side; beyond it a line is another line, not an uneven separator
NEAR = 5  # reduced pixels on each side that a step is compared with
STEEPEST = 0.12  # of the side; drift of a tilted separator that is looked for
WIDEST = 0.4  # of the side; width of a gutter that is looked for
ALIKE = 0.08  # support by which lines do not differ
LEAN = 2  # columns beside a separator that tell whether it leans
DOUBT = 0.2  # support that the mean of both halves has to have more than the lesser needs
CLEAR = 0.75  # support along one half that cannot be content
BROAD = 4  # columns whose mean is compared, for borders of patterns
FRAME = 0.08  # of the side; how wide a frame around the grid may be
PLAIN = 0.8  # part of a gutter that has its colour; speech balloons may lie over it
LEVELS = 12.0  # of 255; what one colour may vary by in a gutter
FLAT = 6.0  # of 255; what a background may vary by


@dataclasses.dataclass(frozen=True)
class GridCheck:
    """What passes as an evenly separated 2x2 grid; lengths are parts of the picture's side.

    Attributes:
        min_panel: pixels of the shorter side of a panel.
        max_gutter: width of the space between panels.
        max_uneven: by how much two panels may differ, as a part of the larger one.
        max_tilt: drift of a separator from one end to the other.
        min_support: part of a separator's length where the picture changes across it.
        min_step: how large such a change is, in levels of 255.
        min_contrast: how large it is, in multiples of the changes beside it.
        min_content: part of a panel that differs from its background.
        margin: cut off beside a separator, against what its blur carries over.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    min_panel: int = 16
    max_gutter: float = 0.08
    max_uneven: float = 0.08
    max_tilt: float = 0.012
    min_support: float = 0.55
    min_step: float = 3.0
    min_contrast: float = 2.0
    min_content: float = 0.01
    margin: float = 0.004

    def __post_init__(self) -> None:
        if self.min_panel < 1:
            raise UserError(f"min_panel must be at least 1 pixel, got {self.min_panel}")
        for name in ("min_step", "min_contrast"):
            if not 0 <= getattr(self, name) <= 255:
                raise UserError(f"{name} must be from 0 to 255, got {getattr(self, name)}")
        for name, most in (
            ("max_gutter", WIDEST),
            ("max_uneven", 1),
            ("max_tilt", STEEPEST),
            ("min_support", 1),
            ("min_content", 1),
            ("margin", 0.2),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 0 to {most}, got {getattr(self, name)}")


class Panels(NamedTuple):
    """Four boxes of one size (top left, top right, bottom left, bottom right), or a reason.

    Attributes:
        boxes: empty if the picture was rejected.
        reason: `too_small`, `no_separator`, `merged`, `three_panels`, `crooked`, `uneven`,
            `wide_gutter`, `too_many` or `blank_panel`; empty if it was not.
        detail: in words.
    """

    boxes: tuple[Box, ...]
    reason: str = ""
    detail: str = ""


class _Separator(NamedTuple):
    """The separator of one direction, in reduced pixels; `state` says whether it is one.

    Attributes:
        start, stop: what lies between is gutter; equal where panels touch.
        low, high: inner borders of a frame around the grid.
        lean: whether it may be tilted by a few pixels, and to which side.
    """

    state: State
    start: float = 0
    stop: float = 0
    low: int = 0
    high: int = 0
    lean: int = 0


def find_panels(image: Image.Image, check: GridCheck = GridCheck()) -> Panels:
    """The four panels of an RGB picture, or why it has none."""
    width, height = image.size
    factor = -(-max(width, height) // COARSE)
    if min(width, height) < max(2 * check.min_panel, 16 * factor):
        return Panels((), "too_small", f"{width}x{height} pixels")
    pixels = np.asarray(image)
    small = _reduced(pixels, factor) / np.float64(factor**2)
    across = _separator(small, check, upright=True)
    down = _separator(small.transpose(1, 0, 2), check, upright=False)
    if reason := _reason({across.state, down.state}):
        return Panels((), reason, f"vertical: {across.state}, horizontal: {down.state}")
    if across.lean * down.lean == -1:  # patterns may look so, but not by chance in both directions
        return Panels((), "crooked", "turned by a few degrees")
    sides = []
    for name, separator, side in (("columns", across, width), ("rows", down, height)):
        spans = _spans(separator, factor, side, check)
        first, second = (stop - start for start, stop in spans)
        if min(first, second) < check.min_panel:
            return Panels((), "too_small", f"{name} of {first} and {second} pixels")
        if abs(first - second) > check.max_uneven * max(first, second):
            return Panels((), "uneven", f"{name} of {first} and {second} pixels")
        sides.append([_centred(span, min(first, second)) for span in spans])
    boxes = tuple(
        (left, top, right, bottom) for top, bottom in sides[1] for left, right in sides[0]
    )
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        content = _content(pixels[top:bottom, left:right])
        if content < check.min_content:
            return Panels((), "blank_panel", f"panel {number}: {content:.3f} of it is content")
    return Panels(boxes)


def _reason(states: set[State]) -> str:
    if states == {"good"}:
        return ""
    if states == {"none"}:
        return "no_separator"
    if "none" in states or states == {"half"}:
        return "merged"
    reasons: dict[State, str] = {
        "half": "three_panels",
        "crooked": "crooked",
        "uneven": "uneven",
        "wide": "wide_gutter",
        "many": "too_many",
    }
    return next(reason for state, reason in reasons.items() if state in states)


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Sums over blocks of `factor` x `factor` pixels; what is left over at the end is left out."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(blocks.sum((1, 3), dtype=np.int64))


class _Lines:
    """How well the picture supports vertical lines from its top to its bottom."""

    def __init__(self, small: np.ndarray, check: GridCheck) -> None:
        height, self.width = small.shape[:2]
        skip = max(1, round(ENDS * height))
        halves = [
            np.array_split(rows, min(BINS, len(rows)))
            for rows in (
                np.arange(skip, height // 2 - skip),
                np.arange(height // 2 + skip, height - skip),
            )
        ]
        self._top = len(halves[0])
        bins = [*halves[0], *halves[1]]
        self._places = np.array([(rows[0] + rows[-1]) / 2 / height - 0.5 for rows in bins])
        self._bins = np.stack([small[rows].sum(0) / len(rows) for rows in bins])
        self._steps = _steps(self._bins, 1, check) | _steps(self._bins, BROAD, check)

    def support(self, tilt: int) -> np.ndarray:
        """[2, width + 1]: part of the upper and of the lower half that agrees with each line.

        Args:
            tilt: columns that the lines move by from the top to the bottom.
        """
        columns = np.arange(self.width + 1) + np.rint(tilt * self._places).astype(int)[:, None]
        found = np.take_along_axis(self._steps, columns.clip(0, self.width), 1)
        return np.stack([found[: self._top].mean(0), found[self._top :].mean(0)])

    def uniform(self, start: int, stop: int) -> bool:
        """Whether the columns from start to stop have one colour from top to bottom."""
        band = self._bins[:, start:stop].reshape(-1, 3)
        away = np.abs(band - np.median(band, 0)).max(1)
        return bool((away <= LEVELS).mean() >= PLAIN)

    def plain(self, start: int, step: int, most: int) -> int:
        """How many columns from `start` on, in the direction of `step`, have one colour.

        0 if there are more than `most` or the colour fades: that is no gutter but a background.
        """
        columns = start + step * np.arange(most + 3)
        strip = self._bins[:, columns.clip(0, self.width - 1)]
        away = np.abs(strip - np.median(strip[:, 0], 0)).max(2)
        plain = (away <= LEVELS).mean(0) >= PLAIN
        count = int(plain.argmin())  # 0 if all are plain
        sharp = (away[:, count : count + 2].max(1) > 3 * LEVELS).mean() >= 0.5
        return count if count <= most and sharp else 0


def _steps(bins: np.ndarray, size: int, check: GridCheck) -> np.ndarray:
    """[bins, width + 1]: where the means of `size` columns on both sides stand apart.

    Step x lies between the columns x - 1 and x. It has to be much larger than the steps beside it,
    where those do not overlap with it, and if it is broad, the largest of those that do.
    """
    count = bins.shape[1] + 1
    sums = np.pad(bins, ((0, 0), (size, size), (0, 0)), mode="edge").cumsum(1)
    sums = np.pad(sums, ((0, 0), (1, 0), (0, 0)))
    means = (sums[:, size:] - sums[:, :-size]) / size  # means[x]: of the columns x - size to x
    steps = np.abs(means[:, size:] - means[:, :-size]).max(2)[:, :count]
    steps[:, [0, -1]] = 0
    reach = size + NEAR
    around = np.pad(steps, ((0, 0), (reach, reach)), mode="reflect")

    def at(offset: int) -> np.ndarray:
        return around[:, reach + offset : reach + offset + count]

    beside = [at(o) for o in range(-reach, reach + 1) if abs(o) > size]
    found = steps > check.min_step + check.min_contrast * np.median(np.stack(beside), 0)
    if size > 1:
        found &= steps >= np.max([at(o) for o in range(-size, size + 1)], 0)
    return found


def _joint(support: np.ndarray) -> np.ndarray:
    """Support by both halves: that of the lesser, or a little more if the other is certain."""
    return np.maximum(support.min(0), support.mean(0) - DOUBT)


class _Found(NamedTuple):
    """Something like a separator, along lines of one tilt.

    Attributes:
        support: by the half that supports it less.
        start, stop: its first and its last step.
        width: of what lies between its two borders for certain; 0 for a single step.
    """

    support: float
    start: int
    stop: int
    width: int


def _separator(small: np.ndarray, check: GridCheck, *, upright: bool) -> _Separator:
    """The vertical separator of a reduced picture; `upright` unless the picture was transposed."""
    lines = _Lines(small, check)
    width = lines.width
    zone = slice(round(OFF_MIDDLE * width), round((1 - OFF_MIDDLE) * width) + 1)
    far, straight = round(STEEPEST * width) + 1, max(1, round(check.max_tilt * width))
    supports = {t: lines.support(t) for t in sorted(range(-far, far + 1), key=abs)}
    tilt = _tilt(supports, straight, check)
    if abs(tilt) > straight:
        return _Separator("crooked")
    support = supports[tilt]
    touching, gutters = _found(lines, support, zone, check)
    off = {one: abs((one.start + one.stop) / 2 / width - 0.5) for one in [*touching, *gutters]}
    middle = {one: one.support - 2 * off[one] for one in off if off[one] <= OFF_MIDDLE}
    if not middle:
        return _Separator("uneven" if off else _fault(support, zone))
    # A border of a gutter is a separator too, so a gutter may be seen a little less.
    separator = max(middle, key=lambda one: middle[one] + 2 * ALIKE * (one in gutters))
    if separator.width > check.max_gutter * width:
        return _Separator("wide")
    if _divided(separator, touching, gutters, width, upright=upright):
        return _Separator("many")
    start, stop = separator.start, separator.stop
    if separator in touching:  # one border of it may be lost in a texture
        most = round(check.max_gutter * width)
        before, after = lines.plain(start - 1, -1, most), lines.plain(stop, 1, most)
        longer = abs((start - before) - (width - stop - after)) - abs(start - (width - stop))
        if longer <= 0.02 * width:  # a true border makes panels no less even
            start, stop = start - before, stop + after
    left, right = _frame(lines, support, check)
    lean = _lean(support[:, separator.start - LEAN : separator.stop + LEAN + 1])
    return _Separator("good", start - abs(tilt) / 2, stop + abs(tilt) / 2, left, right, lean)


def _tilt(supports: Mapping[int, np.ndarray], straight: int, check: GridCheck) -> int:
    """The tilt of the separator; a steep one only if it is seen clearly better so."""
    width = supports[0].shape[1]
    near = slice(round((0.5 - OFF_MIDDLE) * width), round((0.5 + OFF_MIDDLE) * width) + 1)
    means = {t: float(s[:, near].mean(0).max()) for t, s in supports.items() if abs(t) <= straight}
    tilt = next(t for t in means if means[t] >= max(means.values()) - ALIKE)
    steep = {t: float(s[:, near].min(0).max()) for t, s in supports.items() if t not in means}
    steepest = max(steep, key=lambda t: steep[t])
    least = max(check.min_support, means[tilt] + ALIKE)
    return steepest if steep[steepest] >= least else tilt


def _found(
    lines: _Lines, support: np.ndarray, zone: slice, check: GridCheck
) -> tuple[list[_Found], list[_Found]]:
    """Single steps that both halves support, and pairs of steps with one colour between them.

    Where panels have the colour of the gutter, its border cannot be seen; so a step of a pair may
    be supported by one half only.
    """
    both, mean = _joint(support), support.mean(0)
    seen = (support.max(0) >= check.min_support) & (mean >= 0.8 * check.min_support)
    runs: list[slice] = []  # a blurred step is two or three next to each other
    for x in np.flatnonzero(seen[zone]) + zone.start:
        if runs and x <= runs[-1].stop:
            runs[-1] = slice(runs[-1].start, int(x) + 1)
        else:
            runs.append(slice(int(x), int(x) + 1))
    runs = [_narrowed(run, support.min(0), check) for run in runs]
    touching = [
        _Found(float(both[run].max()), run.start, run.stop - 1, 0)
        for run in runs
        if both[run].max() >= check.min_support
    ]
    gutters = []
    for low, high in itertools.combinations(runs, 2):
        between = high.start - low.stop + 1
        blur = 1 if between > 2 else 0
        if between <= WIDEST * lines.width and lines.uniform(
            low.stop - 1 + blur, high.start - blur
        ):
            gutters.append(
                _Found(
                    float(mean[low].max() + mean[high].max()) / 2,
                    low.start,
                    high.stop - 1,
                    between,
                )
            )
    return touching, gutters


def _narrowed(run: slice, lesser: np.ndarray, check: GridCheck) -> slice:
    """The run without neighbours that only one half supports, such as lines within a panel."""
    own = lesser[run]
    peak = int(own.argmax())
    if own[peak] < 0.5 * check.min_support:
        return run
    gaps = np.flatnonzero(own < 0.5 * check.min_support)
    low = max((int(gap) + 1 for gap in gaps if gap < peak), default=0)
    high = min((int(gap) for gap in gaps if gap > peak), default=len(own))
    return slice(run.start + low, run.start + high)


def _lean(support: np.ndarray) -> int:
    """1 or -1 if the halves see a blurred separator on opposite sides of its middle, or 0."""
    peak = int(support.min(0).argmax())
    difference = support[0] - support[1]
    for sign in (1, -1):
        before = float((sign * difference[:peak]).max(initial=0))
        after = float((-sign * difference[peak + 1 :]).max(initial=0))
        if min(before, after) >= 0.25 and before + after >= 0.8:
            return sign
    return 0


def _divided(
    separator: _Found, touching: list[_Found], gutters: list[_Found], width: int, *, upright: bool
) -> bool:
    """Whether the halves are divided again.

    A second gutter says so. Where panels touch, steps at both quarters do; but not if they are
    horizontal, since in four views of one scene there may be a horizon.
    """
    if any(
        one.support >= CLEAR and (one.stop < separator.start or one.start > separator.stop)
        for one in gutters
    ):
        return True
    places = np.array(
        [(one.start + one.stop) / 2 / width for one in touching if one.support >= CLEAR]
    )
    return upright and all((np.abs(places - at) <= 0.02).any() for at in (0.25, 0.75))


def _frame(lines: _Lines, support: np.ndarray, check: GridCheck) -> tuple[int, int]:
    """Inner borders of a frame of one colour around the grid; the outer ones if there is none."""
    width, both = lines.width, support.min(0) >= check.min_support
    widest = round(FRAME * width)
    left = [x for x in range(1, widest + 1) if both[x] and lines.uniform(0, x - (x > 2))]
    right = [
        x
        for x in range(width - widest, width)
        if both[x] and lines.uniform(x + (x < width - 2), width)
    ]
    return max(left, default=0), min(right, default=width)


def _fault(support: np.ndarray, zone: slice) -> State:
    """What there is instead of a straight separator."""
    upper, lower = support[:, zone].max(1) >= CLEAR
    if upper and lower:
        return "uneven"
    width = support.shape[1]
    near = slice(round((0.5 - OFF_MIDDLE) * width), round((0.5 + OFF_MIDDLE) * width) + 1)
    return "half" if support[:, near].max() >= CLEAR else "none"


def _spans(
    separator: _Separator, factor: int, side: int, check: GridCheck
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of the two panels along one side, without what lies next to a border."""
    margin = factor - 1 + round(check.margin * side)  # a step is known to one reduced pixel
    start, stop = int(separator.start * factor), -int(-separator.stop * factor // 1)
    end = side if separator.high == side // factor else separator.high * factor
    low, high = separator.low * factor + margin, end - margin  # a frame may be thinner than a pixel
    return (low, start - margin), (stop + margin, high)


def _centred(span: tuple[int, int], size: int) -> tuple[int, int]:
    start = span[0] + (span[1] - span[0] - size) // 2
    return start, start + size


def _content(panel: np.ndarray) -> float:
    """Part of a panel that differs from an even background, which may fade like a vignette."""
    factor = max(2, -(-max(panel.shape[:2]) // 32))
    sums = _reduced(panel, factor)
    rows, columns = (2 * np.arange(n) - (n - 1) for n in sums.shape[:2])
    y, x = rows[:, None, None], columns[None, :, None]
    curves = [c**2 * c.size - (c**2).sum() for c in (y, x)]
    background = sums.mean((0, 1))
    for curve in (y, x, y * x, *curves):  # orthogonal to each other
        wave = curve + np.zeros_like(sums[..., :1])
        background = background + wave * ((sums * wave).sum((0, 1)) / (wave**2).sum())
    away = np.abs(sums - background).max(2) / factor**2
    return float((away > FLAT).mean())
