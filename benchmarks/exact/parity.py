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
    save("parity", rows, comparisons=len(found))


if __name__ == "__main__":
    main()
