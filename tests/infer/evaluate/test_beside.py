"""Metrics beside the truth: correlations over the cases of all runs."""

import dataclasses
import math
from pathlib import Path

import pytest

from dsd_jax.infer.evaluate.beside import beside_truth
from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.cli_score import agreement_table
from dsd_jax.infer.evaluate.runs import Run, write_run
from dsd_jax.infer.evaluate.scores import Score, write_scores


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two runs of four cases, with a good, a wrong and a subject metric, and a flat truth."""
    cases = [
        Case(f"c{k}", "toy", f"s{k // 2}", "x", (Picture(tmp_path / "a.png", "0"),))
        for k in range(4)
    ]
    made = []
    for name, right in (("a", [1.0, 1.0, 0.0, 1.0]), ("b", [0.0, 0.0, 0.0, 1.0])):
        run = write_run(tmp_path / name, name, cases, [], {})
        tables: dict[str, list[float]] = {
            "identity@toy": right,
            "prompt@toy": [1.0, 1.0, 1.0, 1.0],
            "good@x": [0.1 + 0.8 * own for own in right],
            "wrong@x": [-own for own in right],
        }
        for metric, values in tables.items():
            scores = [
                Score(case.id, 0, "0", "ok", value)
                for case, value in zip(cases, values, strict=True)
            ]
            if metric == "good@x" and name == "b":
                scores[0] = dataclasses.replace(scores[0], state="error", value=None)
            write_scores(run.folder, metric, scores)
        write_scores(run.folder, "vendi-4@x", [Score("s0", 0, "0", "ok", 2.0)])
        made.append(run)
    return made


def test_rank_correlation_with_every_truth(runs: list[Run]):
    good, wrong = beside_truth(runs)
    assert (good.metric, good.rows) == ("good@x", 7)
    assert (wrong.metric, wrong.rows) == ("wrong@x", 8)
    assert good.correlations["identity@toy"].value == pytest.approx(1)
    assert wrong.correlations["identity@toy"].value == pytest.approx(-1)
    assert math.isnan(good.correlations["prompt@toy"].value)


def test_the_table_shows_what_has_no_correlation(runs: list[Run]):
    table = agreement_table(beside_truth(runs), width=90).splitlines()
    assert table[1].split() == ["metric", "n", "identity@toy", "prompt@toy"]
    assert table[2].split() == ["good@x", "7", "1.00", "(1.00", "to", "1.00)", "-"]


def test_without_truth_there_is_nothing_to_stand_beside(runs: list[Run]):
    for run in runs:
        for name in ("identity@toy", "prompt@toy"):
            (run.folder / "scores" / f"{name}.jsonl").unlink()
    assert beside_truth(runs) == []
