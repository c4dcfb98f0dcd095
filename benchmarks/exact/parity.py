"""Runs the comparisons with PyTorch and prints the error of every module beside its bound.

    python -m benchmarks.exact.parity

The figures are those that the tests in `tests/parity` assert: relative errors in float32
(`||ours - theirs|| / ||theirs||`), and for bfloat16 our error against float32 beside 1.5 times the
reference's own. A module that several tests compare has its largest error in the table.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import save

SECTIONS = {
    "": (
        "Parity with PyTorch, per module",
        """Relative error `||ours - theirs|| / ||theirs||` against modules of diffusers and
transformers with small random weights in float32, beside the bound that the test asserts. Rows
marked bfloat16 compare both with the float32 result: our error may be 1.5 times theirs. Of the
parameters of one model, the table shows the worst.""",
    ),
}

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Runs the tests, prints the table, saves it."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "errors.jsonl"
        environment = {**os.environ, "DSD_PARITY_TABLE": str(lines)}
        command = [sys.executable, "-m", "pytest", "-q", "tests/parity", *sys.argv[1:]]
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status:
            raise SystemExit(status)
        found = [json.loads(line) for line in lines.read_text().splitlines()]
    worst: dict[tuple[str, str], dict[str, float]] = {}
    for entry in found:
        file = entry["test"].partition("::")[0].rpartition("/")[2]
        key = (file.removeprefix("test_").removesuffix(".py"), entry["what"])
        if key not in worst or entry["error"] / entry["bound"] > (
            worst[key]["error"] / worst[key]["bound"]
        ):
            worst[key] = entry
    rows = [
        {
            "model": model,
            "compared": what,
            "error": f"{entry['error']:.1e}",
            "bound": f"{entry['bound']:.1e}",
        }
        for (model, what), entry in worst.items()
    ]
    save(__file__, condensed(rows), comparisons=len(found))


def condensed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Keeps one row for all parameters of a model (paths with dots): the one nearest its bound."""
    kept: list[dict[str, str]] = []
    worst: dict[str, dict[str, str]] = {}
    for row in rows:
        known = worst.get(row["model"])
        if "." not in row["compared"]:
            kept.append(row)
        elif known is None:
            worst[row["model"]] = row
            kept.append(row)
        elif _share(row) > _share(known):
            worst[row["model"]] = row
            kept[kept.index(known)] = row
    return kept


def _share(row: dict[str, str]) -> float:
    return float(row["error"]) / float(row["bound"])


if __name__ == "__main__":
    main()
