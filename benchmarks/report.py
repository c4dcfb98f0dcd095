"""Writes `docs/verification.md` from the dated results in `benchmarks/results`.

    python -m benchmarks.report

Run it after any other benchmark, so that the page has its figures. Every script describes its
tables in `SECTIONS`: a dict from the variant of a result ("" if there is only one) to a title and a
text. They are read from the source, so that no script, and nothing heavy, is imported.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, result_path, table

# The folders of scripts in the order of the page.
FOLDERS = {
    "exact": "Exactness",
    "speed": "Speed",
    "memory": "Memory",
    "kill": "Killed and restarted",
    "serve": "Serving",
    "grids": "Grids",
    "drift": "Drift",
    "evaluation": "Evaluation",
    "story": "Stories",
    "cost": "Costs",
    "toy": "The toy world",
}
PAGE = FOLDER.parent / "docs" / "verification.md"


def sections_of(script: Path) -> dict[str, tuple[str, str]]:
    """Title and text of every result of a script, by variant; empty if it is not on the page."""
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECTIONS":
            return ast.literal_eval(node.value)
    return {}


def scripts(folder: str) -> list[Path]:
    """The scripts of a folder by name."""
    return sorted((FOLDER / folder).glob("*.py"))


def section(result: dict[str, Any], title: str, text: str) -> str:
    """One section of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    command = f"`python -m benchmarks.{result['benchmark']}`, {result['date']}"
    lines = [
        f"### {title}",
        "",
        text,
        "",
        table(result["rows"]),
        "",
        "; ".join(filter(None, [command, result["hardware"], versions, settings])) + ".",
    ]
    return "\n".join(lines)


def page() -> Iterator[str]:
    """The parts of the page, for the results that exist."""
    yield """# Verification

Every table is printed by the command below it; the results are in `benchmarks/results/`. This page
is written by `python -m benchmarks.report`."""
    for folder, title in FOLDERS.items():
        found = [
            section(json.loads(result_path(str(script), variant).read_text()), *words)
            for script in scripts(folder)
            for variant, words in sections_of(script).items()
            if result_path(str(script), variant).exists()
        ]
        if found:
            yield f"## {title}"
            yield from found


def main() -> None:
    """Writes the page."""
    PAGE.write_text("\n\n".join(page()) + "\n")
    print(f"wrote {PAGE.relative_to(FOLDER.parent)}")


if __name__ == "__main__":
    main()
