"""Fifteen minutes on one GPU: numerics and speed at full size, against diffusers, in one command.

    python -m benchmarks.speed.device_day            # on a GPU
    python -m benchmarks.speed.device_day --small    # the same on a CPU, to try it

Random weights of FLUX.1-dev are made on the device. Then, in this order: the sampling step checked
against PyTorch and timed in bfloat16, guided and not, at batch 1 and 8, and in int8; the training
step checked and timed. Each part is a process of its own with a time limit, and prints every row as
soon as it is measured, so that a part that is cut short has still told what it found.

Yardsticks on an H200: 131 ms a step at 1024 x 1024 is published (57 % of the peak), at most 100 is
the goal; two frames of 512 x 512, which these parts time, in at most 55 ms.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

BUDGET_S = 840  # a quarter of an hour, less a minute for the start of the machine
# PyTorch holds the same weights beside JAX, so JAX must not take the memory in advance.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}


class Part(NamedTuple):
    """A benchmark to run, and the share of the time that it may take."""

    module: str
    share: float


PARTS = (Part("benchmarks.speed.sampling_step", 0.6), Part("benchmarks.speed.train_step", 0.4))


def limits(parts: Sequence[Part], left_s: float) -> dict[str, float]:
    """Seconds of every part, were the ones before it to take all of theirs."""
    whole = sum(part.share for part in parts)
    return {part.module: left_s * part.share / whole for part in parts}


def run(
    parts: Sequence[Part], words: Sequence[str], budget_s: float, environment: Mapping[str, str]
) -> dict[str, str]:
    """Runs the parts one after another; what one leaves of its time goes to the next.

    Returns:
        What became of each part: "done", "cut short", or "failed".
    """
    end, outcomes = time.monotonic() + budget_s, {}
    for number, part in enumerate(parts):
        left = end - time.monotonic()
        limit = limits(parts[number:], left)[part.module]
        print(f"{part.module}: at most {limit:.0f} s", flush=True)
        try:
            subprocess.run(
                [sys.executable, "-m", part.module, *words],
                check=True,
                timeout=limit,
                env=os.environ | environment,
            )
            outcomes[part.module] = "done"
        except subprocess.TimeoutExpired:
            outcomes[part.module] = "cut short"
        except subprocess.CalledProcessError:
            outcomes[part.module] = "failed"
    return outcomes


def main() -> None:
    """Runs the parts and says what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small models on a CPU")
    parser.add_argument("--budget_s", type=float, default=BUDGET_S)
    given = parser.parse_args()
    words = ["--preset", "small" if given.small else "day"]
    environment = ENVIRONMENT | ({"JAX_PLATFORMS": "cpu"} if given.small else {})
    # Kernels that an earlier day compiled would change PyTorch's times of compiling.
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"TORCHINDUCTOR_CACHE_DIR": cache}
        outcomes = run(PARTS, words, given.budget_s, environment)
    for module, outcome in outcomes.items():
        print(f"{module}: {outcome}")
    if set(outcomes.values()) != {"done"}:
        sys.exit(1)


if __name__ == "__main__":
    main()
