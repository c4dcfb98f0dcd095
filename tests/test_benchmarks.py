"""Benchmarks: every command that a page names exists, and every table has its script and words."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.results import result_path, table

ROOT = Path(__file__).parents[1]
PAGES = (
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(path for folder in ("dsd_jax", "tests", "benchmarks") for path in (ROOT / folder).rglob("*")),
)
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
SCRIPTS = [script for folder in report.FOLDERS for script in report.scripts(folder)]


def named(text: str) -> set[str]:
    """Scripts that a text names as `benchmarks.kill.batch` or `benchmarks/kill/batch.py`."""
    modules = re.findall(r"\bbenchmarks\.(?!results\b)(\w+(?:\.\w+)?)", text)
    files = re.findall(r"\bbenchmarks/(\w+(?:/\w+)*)\.py", text)
    return {name.replace(".", "/") for name in (*modules, *files)}


def test_every_benchmark_that_is_named_exists():
    texts = {
        path: path.read_text()
        for path in PAGES
        if path.suffix in (".md", ".py") and "results" not in path.parts and path != Path(__file__)
    }
    names = {name: path for path, text in texts.items() for name in named(text)}
    gone = {n: p for n, p in names.items() if not (ROOT / "benchmarks" / f"{n}.py").exists()}
    assert gone == {}
    assert {"exact/parity", "speed/sampling_step", "report"} <= set(names)


def test_the_folders_of_the_page_are_those_of_the_scripts():
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/*.py")}
    assert set(report.FOLDERS) == folders


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_result_has_its_script_and_its_words(path: Path):
    result = json.loads(path.read_text())
    script = ROOT / "benchmarks" / f"{result['benchmark'].replace('.', '/')}.py"
    variant = path.name.removeprefix(script.stem).removesuffix(".json").removeprefix(".")
    assert result_path(str(script), variant) == path
    sections = report.sections_of(script)
    assert not sections or variant in sections


def test_every_section_has_a_title_of_its_own_and_whole_sentences():
    words = [words for script in SCRIPTS for words in report.sections_of(script).values()]
    titles = [title for title, _ in words]
    assert len(set(titles)) == len(titles) > 20
    for title, text in words:
        assert title[0].isupper()
        assert text[0].isupper() or text[0] == "`"
        assert re.search(r"[.)]$", text)


def test_the_page_is_what_the_results_say():
    """The page is written by `python -m benchmarks.report`: run it after any other benchmark."""
    assert report.PAGE.read_text() == "\n\n".join(report.page()) + "\n"


def test_a_table_in_markdown():
    rows = [{"model": "t5", "error": 0.1}, {"model": "clip", "error": 0.2}]
    assert table(rows).splitlines() == [
        "| model | error |",
        "| --- | --- |",
        "| t5 | 0.1 |",
        "| clip | 0.2 |",
    ]
