"""Simulates nested ratings, and counts how often a 95 % interval holds their true mean.

python -m benchmarks.evaluation.coverage
"""

from time import perf_counter

import numpy as np

from benchmarks.results import save
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.statistics import bootstrap

SECTIONS = {
    "": (
        "Intervals of nested ratings",
        """Share of simulated studies whose 95 % interval holds the true mean, for each way to draw
ratings anew; the width of the intervals in units of the right one; and the time of 10,000 draws on
a busy machine. A study has subjects x prompts x rounds. A rating is the sum of normal terms of its
subject, prompt and round, with the given deviations.""",
    ),
}
STUDIES, DRAWS = 1000, 1000
SHAPES = {"150 x 9 x 3": (150, 9, 3), "20 x 9 x 3": (20, 9, 3)}
NOISE = {
    "subjects differ most": (1.0, 0.5, 0.5),
    "all levels alike": (1.0, 1.0, 1.0),
    "rounds differ most": (0.2, 0.5, 1.0),
}


def labels(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subject, prompt and round of every rating."""
    subjects, prompts, rounds = np.indices(shape).reshape(3, -1)
    return subjects, prompts, rounds


def simulate(shape: tuple[int, int, int], noise: tuple[float, float, float]) -> np.ndarray:
    """Ratings of all studies, a study per column."""
    rng = np.random.default_rng(0)
    total = np.zeros((*shape, STUDIES), np.float32)
    for level, deviation in enumerate(noise, 1):
        size = (*shape[:level], *(1,) * (3 - level), STUDIES)
        total += deviation * rng.standard_normal(size, np.float32)
    return total.reshape(-1, STUDIES)


def main() -> None:
    """Simulates, and writes the table."""
    rows = []
    for name, shape in SHAPES.items():
        subjects, prompts, rounds = labels(shape)
        ways = {
            "ratings alone": (),
            "subjects": (subjects,),
            "subjects, prompts": (subjects, prompts),
            "subjects, prompts, rounds": (subjects, prompts, rounds),
        }
        for words, noise in NOISE.items():
            table = simulate(shape, noise)
            true_width = 2 * 1.96 * table.mean(0).std()
            for way, levels in ways.items():
                drawn = bootstrap(table, Resampling(levels, draws=DRAWS)).draws
                low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
                one = table[:, :1].astype(float)
                start = perf_counter()
                bootstrap(one, Resampling(levels))
                rows.append(
                    {
                        "shape": name,
                        "deviations": f"{words} {noise}",
                        "drawn": way,
                        "coverage": f"{((low <= 0) & (high >= 0)).mean():.3f}",
                        "width": f"{(high - low).mean() / true_width:.2f}",
                        "seconds for 10,000 draws": f"{perf_counter() - start:.2f}",
                    }
                )
    save(__file__, rows, studies=STUDIES, draws=DRAWS)


if __name__ == "__main__":
    main()
