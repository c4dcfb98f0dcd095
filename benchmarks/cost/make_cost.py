"""Estimates the cost of 400,000 pairs: questions, tokens, dollars and hours, by assumptions.

    python -m benchmarks.cost.make_cost [--pairs 400000] [--yes 0.5]

Yields are assumptions: published gates behind FLUX-made pairs kept 45 % and 60 %. Tokens of our
wordings are counted at four letters each; a panel is taken as 258 tokens, Gemini's price of a
picture up to 384 pixels or of one tile. The teacher's time comes from its FLOPs and an assumed
share of the peak. No figure here was measured on an accelerator.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks.results import save
from dsd_jax.config import BFLOAT16, flux_dev
from dsd_jax.data.make.wording import load_wording
from dsd_jax.llm.messages import Usage
from dsd_jax.llm.prices import load_prices
from dsd_jax.models import abstract
from dsd_jax.topology import CHIPS
from dsd_jax.train.flops import step_flops
from dsd_jax.weights import param_shapes

__all__ = ["Yields", "questions", "sampling"]

SECTIONS = {
    "": (
        "The arithmetic of 400,000 pairs: questions",
        """Assumed yields and tokens, as the script states them; prices from
`dsd_jax/llm/prices.toml`.""",
    ),
    "teacher": (
        "The arithmetic of 400,000 pairs: the teacher",
        "FLOPs of a 1024 x 1024 grid in 28 steps at an assumed share of the peak; not measured.",
    ),
}

WRITER, VIEWER = (
    "gpt-4o-2024-11-20",
    "gemini-2.5-flash",
)  # a pinned GPT-4o, and a Gemini with a price
PICTURE = 258  # tokens
LETTERS = 4  # of a token
PER_SECOND = 100  # questions
TOKENS_1024, TEXT_TOKENS, STEPS = 4096, 512, 28
UTILISATION = 0.4  # of the dense bfloat16 peak


@dataclasses.dataclass(frozen=True)
class Yields:
    """Shares of rows that are kept, and the mean number of questions for a text."""

    clear: float = 0.6
    prompts: float = 0.97
    grids: float = 0.7
    pairs: float = 0.95
    yes: float = 0.5
    words: float = 0.98
    asked: float = 1.15

    @property
    def per_grid(self) -> float:
        """Kept pairs per painted grid."""
        return self.grids * 6 * self.pairs * self.yes * self.words


def questions(pairs: int, yields: Yields) -> list[dict[str, Any]]:
    """Rows of the table, one per stage that asks."""
    grids = pairs / yields.per_grid
    prompts = grids / yields.prompts
    judged = grids * yields.grids * 6 * yields.pairs
    seen = {
        stage: load_wording(None, stage).texts
        for stage in ("captions", "prompts", "judge", "caption")
    }

    def size(stage: str, *names: str) -> float:
        return sum(len(seen[stage][name]) for name in names) / LETTERS

    first = size("judge", "step_1") + 2 * PICTURE
    second = first + 20 + size("judge", "step_2")
    third = second + 200 + size("judge", "step_3")
    kept = grids * yields.grids
    panels = 4 * (1 - (1 - yields.yes) ** 3)  # that are in one kept pair at least
    stages = [
        ("captions", WRITER, prompts / yields.clear, size("captions", "system", "user") + 20, 40),
        ("prompts", WRITER, prompts * yields.asked, size("prompts", "system", "identity") + 20, 75),
        ("judge", VIEWER, judged * 3, (first + second + third) / 3, (20 + 200 + 120) / 3),
        (
            "caption: descriptions",
            VIEWER,
            kept * panels * yields.asked,
            PICTURE + size("caption", "target"),
            70,
        ),
        (
            "caption: instructions",
            VIEWER,
            2 * judged * yields.yes * yields.asked,
            2 * PICTURE + size("caption", "instruction"),
            30,
        ),
    ]
    rows = []
    for stage, model, count, tokens_in, tokens_out in stages:
        price = load_prices().models[model]
        usage = Usage(round(count * tokens_in), 0, round(count * tokens_out))
        rows.append(
            {
                "stage": stage,
                "model": model,
                "questions": f"{count:,.0f}",
                "tokens in": f"{usage.input / 1e6:,.0f} M",
                "tokens out": f"{usage.output / 1e6:,.0f} M",
                "dollars, online": f"{price.of(usage):,.0f}",
                "dollars, batch": f"{price.of(usage, batch=True):,.0f}",
                f"hours at {PER_SECOND}/s": f"{count / PER_SECOND / 3600:.1f}",
            }
        )
    return rows


def sampling(pairs: int, yields: Yields) -> list[dict[str, Any]]:
    """Rows of the table of the teacher: one per accelerator."""
    config = flux_dev(condition_embed=False)
    flops = step_flops(
        param_shapes(abstract(config, precision=BFLOAT16)),
        frozenset(),
        config,
        TOKENS_1024,
        TEXT_TOKENS,
    )
    grid = (flops.frozen + flops.attention) * STEPS
    grids = pairs / yields.per_grid
    rows = []
    for name in ("h100", "v5e", "v5p", "v6e"):
        seconds = grid / (CHIPS[name].peak_tflops * 1e12 * UTILISATION)
        rows.append(
            {
                "chip": name,
                "grids": f"{grids:,.0f}",
                "PFLOP a grid": f"{grid / 1e15:.2f}",
                "seconds a grid": f"{seconds:.1f}",
                "chip hours": f"{grids * seconds / 3600:,.0f}",
                "hours on 64 chips": f"{grids * seconds / 3600 / 64:.1f}",
            }
        )
    return rows


def main() -> None:
    """Prints and saves both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=400_000)
    parser.add_argument("--yes", type=float, default=Yields.yes)
    arguments = parser.parse_args()
    yields = Yields(yes=arguments.yes)
    settings = {"pairs": arguments.pairs, **dataclasses.asdict(yields)}
    save(__file__, questions(arguments.pairs, yields), **settings)
    teacher = sampling(arguments.pairs, yields)
    save(__file__, teacher, "teacher", utilisation=UTILISATION)


if __name__ == "__main__":
    main()
