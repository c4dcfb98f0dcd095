"""The page about the architecture names files that exist, on roads that go where it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = ("convert", "data", "infer", "train")


def named() -> list[Path]:
    """Paths of the Python files in backticks; those without a folder are core's."""
    found = []
    for name in re.findall(r"`([\w/]+\.py)`", PAGE):
        top = name.split("/")[0]
        inside = top in (*ROOMS, "dsd_jax", "tests")
        found.append(ROOT / name if inside else ROOT / "dsd_jax" / name)
    return found


def test_every_file_on_the_page_exists():
    assert [path for path in named() if not path.is_file()] == []
    assert len(named()) > 40
