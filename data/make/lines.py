"""Measures how well a picture supports straight lines from its top to its bottom."""

import numpy as np

from dsd_jax.data.make.grid_check import GridCheck

__all__ = ["ENDS", "FINE_BINS", "LEVELS", "Lines"]

BINS = 32  # bins along half a separator, each the mean of its pixels
FINE_BINS = 64  # the same in full size
ENDS = 0.05  # part of the side that is left out at both ends of a line and where separators cross
NEAR = 5  # reduced pixels on each side that a step is compared with
BROAD = 4  # columns whose mean is compared, for borders of patterns
PLAIN = 0.8  # part of a gutter that has its colour; speech balloons may lie over it
OTHERS = (*range(-8, -1), *range(2, 9))  # places of the steps that a step is ranked among
FAINT = 1.0  # of 255; smaller steps are all alike
LEVELS = 12.0  # of 255, by which one colour may vary in a gutter


class Lines:
    """The support of vertical lines from the top to the bottom of a picture.

    `bins` is the number of parts of each half, in which rows are averaged.
    """

    def __init__(self, small: np.ndarray, check: GridCheck, bins: int = BINS) -> None:
        height, self.width = small.shape[:2]
        skip = max(1, round(ENDS * height))
        halves = [
            np.array_split(rows, min(bins, len(rows)))
            for rows in (
                np.arange(skip, height // 2 - skip),
                np.arange(height // 2 + skip, height - skip),
            )
        ]
        self._top = len(halves[0])
        parts = [*halves[0], *halves[1]]
        self._places = np.array([(rows[0] + rows[-1]) / 2 / height - 0.5 for rows in parts])
        self._bins = np.stack([small[rows[0] : rows[-1] + 1].sum(0) / len(rows) for rows in parts])
        clear = _steps(self._bins, 1, check) | _steps(self._bins, BROAD, check)
        # Whole numbers, so that sums are exact.
        self._weights = np.stack([clear * len(OTHERS), _ranks(self._bins)]).astype(np.int32)

    def support(self, tilt: int) -> np.ndarray:
        """[2, width + 1]: share of the upper and of the lower half that supports each line.

        Counts the steps that stand out. Where contrast is low, the mean rank of all steps of the
        half counts, if it is more: 1 if each is the largest of those around it, 0 by chance.

        Args:
            tilt: columns that the lines move by from the top to the bottom.
        """
        moves = np.rint(tilt * self._places).astype(int)
        far = int(np.abs(moves).max())
        wide = np.pad(self._weights, ((0, 0), (0, 0), (far, far)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(wide, self.width + 1, 2)
        found = windows[:, np.arange(len(moves)), far + moves]
        halves = found[:, : self._top], found[:, self._top :]
        return np.stack([own.sum(1).max(0) / (len(OTHERS) * own.shape[1]) for own in halves])

    def uniform(self, start: int, stop: int) -> bool:
        """Whether the columns from `start` to `stop` have one colour from top to bottom."""
        band = self._bins[:, start:stop].reshape(-1, 3)
        away = np.abs(band - np.median(band, 0)).max(1)
        return bool((away <= LEVELS).mean() >= PLAIN)

    def plain(self, start: int, step: int, most: int) -> int:
        """Number of columns from `start` on, in the direction of `step`, that have one colour.

        0 if there are more than `most` or the colour fades, which shows a background, not a gutter.
        """
        columns = start + step * np.arange(most + 3)
        strip = self._bins[:, columns.clip(0, self.width - 1)]
        away = np.abs(strip - np.median(strip[:, 0], 0)).max(2)
        plain = (away <= LEVELS).mean(0) >= PLAIN
        count = int(plain.argmin())  # 0 if all are plain
        sharp = (away[:, count : count + 2].max(1) > 3 * LEVELS).mean() >= 0.5
        return count if count <= most and sharp else 0


def _steps(bins: np.ndarray, size: int, check: GridCheck) -> np.ndarray:
    """[bins, width + 1]: places where the means of `size` columns on both sides differ clearly.

    Step x lies between the columns x - 1 and x. It must be much larger than the steps beside it
    that do not overlap with it; a broad step must also be the largest of those that do.
    """
    count = bins.shape[1] + 1
    sums = np.pad(bins, ((0, 0), (size, size), (0, 0)), mode="edge").cumsum(1)
    sums = np.pad(sums, ((0, 0), (1, 0), (0, 0)))
    means = (sums[:, size:] - sums[:, :-size]) / size  # means[x] is that of columns x - size to x
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


def _ranks(bins: np.ndarray) -> np.ndarray:
    """[bins, width + 1]: number of smaller steps around each step, less that of larger ones.

    A rank does not depend on contrast. The border of two dark pictures has steps of few levels, but
    they are larger than those beside them, all along its length.
    """
    steps = np.abs(np.diff(bins, axis=1, prepend=bins[:, :1], append=bins[:, -1:])).max(2)
    steps = np.maximum(steps, FAINT)
    count, reach = steps.shape[1], max(OTHERS)
    around = np.pad(steps, ((0, 0), (reach, reach)), mode="reflect")
    ranks = np.zeros(steps.shape, np.int32)
    for offset in OTHERS:
        beside = around[:, reach + offset : reach + offset + count]
        ranks += (steps > beside).astype(np.int32) - (steps < beside)
    return ranks
