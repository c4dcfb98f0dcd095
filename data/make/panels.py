"""Finds the four panels of an evenly separated 2x2 grid, or the reason why there are none.

A separator is a straight line from edge to edge across which the picture changes: one line where
panels touch, two with one colour between them where there is a gutter. The picture is reduced until
its longer side has at most 256 pixels. Then, for every line, we measure the part of its length
along which the step across it stands out from the steps beside it or, where contrast is low, its
mean rank among these; both panels beside a separator must agree. Where that leaves a doubt, the
same is measured in full size near the middle. Panels whose ground has the colour of the gutter show
no border; there, nothing may cross the middle. The arithmetic is exact up to divisions, so every
machine finds the same boxes.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dsd_jax.data.make.grid_check import GridCheck
from dsd_jax.data.make.separators import Separator, State, find_separator
from dsd_jax.data.make.stages import Box

__all__ = ["Panels", "find_panels"]

COARSE = 256  # pixels of the longer side that separators are looked for in
FLAT = 6.0  # of 255, by which a background may vary


class Panels(NamedTuple):
    """Four boxes of one size (top left, top right, bottom left, bottom right), or a reason.

    Attributes:
        boxes: empty if the picture was rejected.
        reason: `too_small`, `no_separator`, `merged`, `three_panels`, `crooked`, `uneven`,
            `wide_gutter`, `too_many` or `blank_panel`; empty if it was not.
        detail: details in words.
    """

    boxes: tuple[Box, ...]
    reason: str = ""
    detail: str = ""


def find_panels(image: Image.Image, check: GridCheck = GridCheck()) -> Panels:
    """Finds the four panels of an RGB picture, or the reason why it has none."""
    width, height = image.size
    factor = -(-max(width, height) // COARSE)
    if min(width, height) < max(2 * check.min_panel, 16 * factor):
        return Panels((), "too_small", f"{width}x{height} pixels")
    pixels = np.asarray(image)
    small = _reduced(pixels, factor) / np.float64(factor**2)
    across, down = (
        find_separator(
            pixels.transpose(axes),
            small.transpose(axes),
            check,
            factor=factor,
            upright=axes == (0, 1, 2),
        )
        for axes in ((0, 1, 2), (1, 0, 2))
    )
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
    """Sums over blocks of `factor` x `factor` pixels; an incomplete block at the end is dropped."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(blocks.sum((1, 3), dtype=np.int64))


def _spans(
    separator: Separator, factor: int, side: int, check: GridCheck
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of the two panels along one side, without what lies next to a border."""
    margin = factor - 1 + round(check.margin * side)  # a step is known up to one reduced pixel
    start, stop = int(separator.start * factor), -int(-separator.stop * factor // 1)
    end = side if separator.high == side // factor else separator.high * factor
    low, high = separator.low * factor + margin, end - margin  # a rim may be thinner than a pixel
    return (low, start - margin), (stop + margin, high)


def _centred(span: tuple[int, int], size: int) -> tuple[int, int]:
    start = span[0] + (span[1] - span[0] - size) // 2
    return start, start + size


def _content(panel: np.ndarray) -> float:
    """Share of a panel that differs from its background, which may fade like a vignette."""
    factor = max(2, -(-max(panel.shape[:2]) // 32))
    sums = _reduced(panel, factor)
    rows, columns = (2 * np.arange(n) - (n - 1) for n in sums.shape[:2])
    y, x = rows[:, None, None], columns[None, :, None]
    curves = [c**2 * c.size - (c**2).sum() for c in (y, x)]
    background = sums.mean((0, 1))
    for curve in (y, x, y * x, *curves):  # orthogonal to each other
        wave = curve + np.zeros_like(sums[..., :1])
        # A panel of few pixels has no room for some of them.
        norm = max((wave**2).sum(), 1)
        background = background + wave * ((sums * wave).sum((0, 1)) / norm)
    away = np.abs(sums - background).max(2) / factor**2
    return float((away > FLAT).mean())
