"""Finds the separator of a picture: the line or the gutter that divides it into two halves."""

import itertools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from dsd_jax.data.make.grid_check import STEEPEST, WIDEST, GridCheck
from dsd_jax.data.make.lines import ENDS, FINE_BINS, LEVELS, Lines

__all__ = ["Separator", "State", "find_separator"]

State = Literal["good", "none", "half", "crooked", "uneven", "wide", "many"]

OFF_MIDDLE = 0.1  # part of the side; a line beyond it is not an uneven separator but another line
ALIKE = 0.08  # difference of support that does not count
ROOM = 8  # columns beside those looked at in full size, so that each step has others around it
LEAN = 2  # columns beside a separator that tell whether it leans
DOUBT = 0.2  # support that the mean of both halves needs beyond what the lesser half needs
BLURRED = 0.75  # support of the neighbours of a blurred step, as a part of its own
CROWDED = 0.1  # share of the columns looked at in full size that no separator fills
CLEAR = 0.75  # support along one half that cannot be content
GREY = 40.0  # of 255, by which the channels of a ground that panels share may differ
CROSSED = 0.01  # share of a column with another colour that is still no content
RIM = 0.08  # largest width of a rim around the grid, as a part of the side


class Separator(NamedTuple):
    """The separator of one direction, in reduced pixels; `state` says whether it is one.

    Attributes:
        start, stop: ends of the gutter; equal if panels touch.
        low, high: inner borders of a rim around the grid.
        lean: whether it may be tilted by a few pixels, and to which side.
    """

    state: State
    start: float = 0
    stop: float = 0
    low: int = 0
    high: int = 0
    lean: int = 0


class _Found(NamedTuple):
    """A candidate for the separator, along lines of one tilt.

    Attributes:
        support: support by the half that supports it less.
        start, stop: its first and its last step.
        width: width that certainly lies between its two borders; 0 for a single step.
    """

    support: float
    start: int
    stop: int
    width: int


def find_separator(
    pixels: np.ndarray, small: np.ndarray, check: GridCheck, *, factor: int, upright: bool
) -> Separator:
    """The vertical separator of a picture; `upright` unless it was transposed.

    Args:
        pixels: [height, width, 3] in full size.
        small: the same, reduced by `factor`.
    """
    lines = Lines(small, check)
    width = lines.width
    zone = slice(round(OFF_MIDDLE * width), round((1 - OFF_MIDDLE) * width) + 1)
    far, straight = round(STEEPEST * width) + 1, max(1, round(check.max_tilt * width))
    supports = {t: lines.support(t) for t in sorted(range(-far, far + 1), key=abs)}
    tilt = _tilt(supports, straight, check)
    if abs(tilt) > straight:
        return Separator("crooked")
    coarse = supports[tilt]
    support = _settled(coarse, tilt, pixels, check, factor)
    touching, gutters = _found(lines, support, zone, check)
    off = {one: abs((one.start + one.stop) / 2 / width - 0.5) for one in [*touching, *gutters]}
    middle = {one: one.support - 2 * off[one] for one in off if off[one] <= OFF_MIDDLE}
    if not middle:
        faint = max((one.support for one in off), default=0) < CLEAR
        ground = _ground(small, lines, check) if faint else None
        return ground or Separator("uneven" if off else _fault(support, zone))
    # A border of a gutter is a separator too, so a gutter may be seen a little less, unless it
    # makes the panels less even than the border does.
    even = {one for one in gutters if _unevenness(one, width) <= check.max_uneven}
    separator = max(middle, key=lambda one: middle[one] + 2 * ALIKE * (one in even))
    if separator in touching:  # it may be the clearer border of a gutter
        whole = [
            one
            for one in even
            if one in middle
            and one.width <= check.max_gutter * width
            and (one.start == separator.start or one.stop == separator.stop)
        ]
        separator = max(whole, key=lambda one: middle[one], default=separator)
    if separator.width > check.max_gutter * width:
        faint = support[:, separator.start : separator.stop + 1].max() < CLEAR
        ground = _ground(small, lines, check) if faint else None
        return ground or Separator("wide")
    if _divided(separator, gutters, supports[0], upright=upright):
        return Separator("many")
    start, stop = separator.start, separator.stop
    inner = start if start + stop > width else stop  # the side of it towards the middle
    low, high = min(inner, width - inner), max(inner, width - inner)
    blur = 1 if high - low > 2 else 0
    if separator in touching and low < high and lines.uniform(low + blur, high - blur):
        start, stop = min(start, low), max(stop, high)  # its other border is lost in a ground
    elif separator in touching:  # one of its borders may be lost in a texture
        most = round(check.max_gutter * width)
        before, after = lines.plain(start - 1, -1, most), lines.plain(stop, 1, most)
        longer = abs((start - before) - (width - stop - after)) - abs(start - (width - stop))
        if longer <= 0.02 * width:  # a true border makes panels no less even
            start, stop = start - before, stop + after
    left, right = _rim(lines, support, check)
    lean = _lean(coarse, separator)
    return Separator("good", start - abs(tilt) / 2, stop + abs(tilt) / 2, left, right, lean)


def _joint(support: np.ndarray) -> np.ndarray:
    """Support by both halves: the smaller one, or a little more if the other is certain."""
    return np.maximum(support.min(0), support.mean(0) - DOUBT)


def _tilt(supports: Mapping[int, np.ndarray], straight: int, check: GridCheck) -> int:
    """The tilt of the separator; a steep tilt only if the support is clearly better with it."""
    width = supports[0].shape[1]
    near = slice(round((0.5 - OFF_MIDDLE) * width), round((0.5 + OFF_MIDDLE) * width) + 1)
    means = {t: float(s[:, near].mean(0).max()) for t, s in supports.items() if abs(t) <= straight}
    tilt = next(t for t in means if means[t] >= max(means.values()) - ALIKE)
    steep = {t: float(s[:, near].min(0).max()) for t, s in supports.items() if t not in means}
    steepest = max(steep, key=lambda t: steep[t])
    least = max(check.min_support, means[tilt] + ALIKE)
    if steep[steepest] < least:
        return tilt
    # Halves may see one border each of a gutter, which looks like one tilted line.
    apart = np.max([s[:, near].max(1) for t, s in supports.items() if t in means], 0)
    return tilt if apart.min() >= steep[steepest] else steepest


def _settled(
    coarse: np.ndarray, tilt: int, pixels: np.ndarray, check: GridCheck, factor: int
) -> np.ndarray:
    """[2, width + 1]: support, from full size near the middle where the reduced one is in doubt.

    Neighbouring pixels of a photograph are alike in full size, whatever its texture, while those on
    both sides of a border are not. And an edge within a panel is seldom sharp all along. A half
    with many such lines shows a pattern, such as the blocks of a compressed picture, and stays in
    doubt.
    """
    width = coarse.shape[1] - 1
    low, high = (round((0.5 + sign * OFF_MIDDLE) * width) for sign in (-1, 1))
    if factor == 1 or coarse[:, low : high + 1].min(0).max() >= CLEAR:
        return coarse
    room = min(ROOM, low, width - high)
    strip = pixels[:, (low - room) * factor : (high + room) * factor]
    lines = Lines(strip, check, FINE_BINS)
    every = [lines.support(t + tilt * factor) for t in range(-(factor // 2), factor // 2 + 1)]
    inner = slice(room * factor, (high - low + room) * factor)
    best = max(every, key=lambda one: float(one[:, inner].mean(0).max()))
    # A reduced step x has the pixels whose step is nearest to it.
    start = room * factor - factor // 2
    fine = best[:, start : start + (high - low + 1) * factor]
    fine = fine.reshape(2, high - low + 1, factor).max(2)
    settled = coarse.copy()
    near = settled[:, low : high + 1]
    pattern = (fine >= check.min_support).mean(1, keepdims=True) > CROWDED
    near[:] = np.where((near >= CLEAR) | pattern, near, fine)
    return settled


def _found(
    lines: Lines, support: np.ndarray, zone: slice, check: GridCheck
) -> tuple[list[_Found], list[_Found]]:
    """Single steps that both halves support, and pairs of steps with one colour between them.

    If panels have the colour of the gutter, its border is invisible there, so a step of a pair may
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
    gaps = np.flatnonzero(own < max(0.5 * check.min_support, BLURRED * own[peak]))
    low = max((int(gap) + 1 for gap in gaps if gap < peak), default=0)
    high = min((int(gap) for gap in gaps if gap > peak), default=len(own))
    return slice(run.start + low, run.start + high)


def _lean(support: np.ndarray, separator: _Found) -> int:
    """1 or -1 if the halves see a blurred separator on opposite sides of its middle, or 0.

    Both borders of a gutter must lean to one side.
    """
    start, stop = separator.start, separator.stop
    first, last = start - LEAN, stop + LEAN + 1
    if separator.width > 1:
        middle = (start + stop) // 2
        parts = [support[:, first : middle + 1], support[:, middle:last]]
    else:
        parts = [support[:, first:last]]
    leans = {_leans(part) for part in parts}
    return leans.pop() if len(leans) == 1 else 0


def _leans(support: np.ndarray) -> int:
    """The same of the support around one border."""
    peak = int(support.min(0).argmax())
    difference = support[0] - support[1]
    for sign in (1, -1):
        before = float((sign * difference[:peak]).max(initial=0))
        after = float((-sign * difference[peak + 1 :]).max(initial=0))
        if min(before, after) >= 0.25 and before + after >= 0.8:
            return sign
    return 0


def _unevenness(one: _Found, width: int) -> float:
    """Difference of the halves beside a separator, as a part of the larger one."""
    return 1 - min(one.start, width - one.stop) / max(one.start, width - one.stop)


def _divided(
    separator: _Found, gutters: list[_Found], straight: np.ndarray, *, upright: bool
) -> bool:
    """Whether the halves are divided again.

    A second gutter shows that. If panels touch, `straight` steps at both quarters or both thirds
    show it, except horizontal ones, since four views of one scene may have a horizon.
    """
    if any(
        one.support >= CLEAR and (one.stop < separator.start or one.start > separator.stop)
        for one in gutters
    ):
        return True
    places = np.flatnonzero(straight.min(0) >= CLEAR) / (straight.shape[1] - 1)
    return upright and any(
        all((np.abs(places - at) <= 0.02).any() for at in pair)
        for pair in ((1 / 4, 3 / 4), (1 / 3, 2 / 3))
    )


def _rim(lines: Lines, support: np.ndarray, check: GridCheck) -> tuple[int, int]:
    """Inner borders of a rim of one colour around the grid; the picture's own if there is none.

    A rim that only one side shows is as wide on the other, if it has one colour there; else it is
    the ground of a panel.
    """
    width, seen = lines.width, support.max(0)
    widest = range(1, round(RIM * width) + 1)
    lefts = [x for x in widest if seen[x] >= check.min_support and lines.uniform(0, x - (x > 1))]
    rights = [
        x
        for x in widest
        if seen[width - x] >= check.min_support and lines.uniform(width - x + (x > 1), width)
    ]
    left = max(lefts, default=0, key=lambda x: seen[x])
    right = max(rights, default=0, key=lambda x: seen[width - x])
    if right and not left:
        left = right if lines.uniform(0, right) else 0
        right = left
    elif left and not right:
        right = left if lines.uniform(width - left, width) else 0
        left = right
    return left, width - right


def _ground(small: np.ndarray, lines: Lines, check: GridCheck) -> Separator | None:
    """The gutter of panels whose ground has its colour, or None.

    Such a gutter has no borders of its own, but nothing crosses the middle from edge to edge. A
    border that one half shows counts on both sides of the middle. The ground must be white, grey or
    black; any other colour is the background of a single picture.
    """
    support = lines.support(0)
    height, width = small.shape[:2]
    skip, middle = max(1, round(ENDS * height)), width // 2
    rows = small[skip : height - skip]
    colour = np.median(rows[:, middle - 1 : middle + 1], (0, 1))
    if np.ptp(colour) > GREY:
        return None
    crossed = (np.abs(rows - colour).max(2) > LEVELS).mean(0) > CROSSED
    left, right = crossed[middle - 1 :: -1], crossed[middle:]
    widths = [int(side.argmax()) if side.any() else len(side) for side in (left, right)]
    seen = [
        own
        for own, border in zip(widths, (middle - widths[0], middle + widths[1]), strict=True)
        if own <= check.max_gutter / 2 * width
        and support[:, max(0, border - 1) : border + 2].max() >= check.min_support  # it is blurred
    ]
    if widths.count(0) > seen.count(0) or not any(widths):
        return None
    half = max(seen, default=0)
    return Separator("good", middle - half, middle + half, *_rim(lines, support, check))


def _fault(support: np.ndarray, zone: slice) -> State:
    """The fault of a picture without a straight separator."""
    upper, lower = support[:, zone].max(1) >= CLEAR
    if upper and lower:
        return "uneven"
    width = support.shape[1]
    near = slice(round((0.5 - OFF_MIDDLE) * width), round((0.5 + OFF_MIDDLE) * width) + 1)
    return "half" if support[:, near].max() >= CLEAR else "none"
