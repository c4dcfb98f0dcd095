"""`dsd evaluate score`."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.compiled import keep_compiled
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.backbones import open_backbones
from dsd_jax.infer.evaluate.beside import Agreement, beside_truth
from dsd_jax.infer.evaluate.cases import Case, task_of
from dsd_jax.infer.evaluate.features import FeatureStore
from dsd_jax.infer.evaluate.runs import open_runs
from dsd_jax.infer.evaluate.score import Summary, choose, score_runs
from dsd_jax.infer.options import mesh_of
from dsd_jax.interval import Interval
from dsd_jax.sharding import MeshConfig
from dsd_jax.terminal import table_text

__all__ = ["agreement_table", "score"]

_CACHE = ".features"
_REASONS = 5  # that are shown for a run


def score(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    metrics: tuple[str, ...] = ("all",),
    backbone: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    cache: Path | None = None,
    set_size: int = 4,
    device: str | None = None,
    compilation_cache: str = "auto",
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
) -> None:
    """Measure the images of runs by metrics on features; only what is missing is computed.

    The name of a metric contains its backbone, such as dino@dino-vits8. The backbones pixels and
    meter (drift against the reference) need no weights; where the truth about images is known,
    identity, prompt and copied need none either. Metrics of the subject alone read masks of images
    from RUN/masks/CASE_SAMPLE.png, white where the subject is.

    Args:
        runs: Folders that `dsd evaluate generate` or `import` made.
        metrics: Names of metrics, with or without a backbone. all takes every metric that can run.
        backbone: A vision or depth model as NAME=PATH, where PATH is a folder, a hub id or a file
            of LPIPS. Repeat the flag for several.
        cache: Folder for features. Default: .features beside the first run.
        set_size: Images of a subject that diversity and vendi compare.
        device: Device: cpu, gpu or tpu. Default: the one that JAX prefers.
        compilation_cache: Folder for compiled programs, so that the next start need not compile.
            Default: one in the user's cache, at most 4 GB. off keeps none.
        mesh: Number of devices along each axis; -1 takes all that the other axes leave.
    """
    if not runs:
        raise UserError("give at least one run, a folder with run.json")
    if set_size < 2:
        raise UserError(f"set_size is {set_size}; a set needs at least 2 images")
    opened = open_runs(runs)
    devices = mesh_of(mesh, device)
    if kept := keep_compiled(compilation_cache):
        print(kept, file=sys.stderr, flush=True)
    models = open_backbones(backbone, devices)
    plans = choose(metrics, models, set_size)
    store = FeatureStore(cache or opened[0].folder.absolute().parent / _CACHE)
    summaries = score_runs(opened, plans, store, leave_out="all" in metrics)
    if not summaries:
        raise UserError("no metric says anything about these runs; check that they have images")
    print(_table(summaries))
    if advice := _advice(opened[0].cases, summaries):
        print(advice)
    if agreements := beside_truth(opened):
        print(f"\n{agreement_table(agreements)}")
    if reasons := _reasons(summaries):
        print("\n".join(reasons))
        raise SystemExit(1)


def _table(summaries: list[Summary]) -> str:
    rows = []
    for own in summaries:
        mean = "-" if math.isnan(own.mean) else f"{own.mean:z.4f}"
        counts = [own.count(state) for state in ("ok", "undefined", "error")]
        rows.append([own.metric, own.method, mean, *map(str, (*counts, own.missing))])
    columns = ("metric", "method", "mean", "n", "undefined", "errors", "missing")
    return table_text(columns, rows)


def _advice(cases: Sequence[Case], summaries: list[Summary]) -> str:
    """A line that names the metric of the task that all cases share; empty without one."""
    (task, *others) = {task_of(case) for case in cases}
    if others or task is None or task.metric is None:
        return ""
    metric = task.metric
    names = dict.fromkeys(own.metric for own in summaries if own.metric.split("@")[0] == metric)
    by = ", ".join(names) or f"{metric}, which these metrics do not include"
    return f"compare methods on the task {task.name} by {by}"


def agreement_table(agreements: list[Agreement], width: int | None = None) -> str:
    """Table of the correlations of metrics with the truth; see `dsd_jax.terminal.table_text`."""
    truths = list(dict.fromkeys(name for own in agreements for name in own.correlations))
    rows = [
        [own.metric, str(own.rows), *(_correlation(own.correlations.get(name)) for name in truths)]
        for own in agreements
    ]
    return table_text(
        ("metric", "n", *truths),
        rows,
        title="rank correlation with the truth, over cases and methods, 95 % by subjects",
        width=width,
    )


def _correlation(interval: Interval | None) -> str:
    return "-" if interval is None or math.isnan(interval.value) else str(interval)


def _reasons(summaries: list[Summary]) -> list[str]:
    """The first errors of every run, each once."""
    lines: list[str] = []
    for method, own in itertools.groupby(
        sorted(summaries, key=lambda each: each.method), key=lambda each: each.method
    ):
        reasons = dict.fromkeys(
            score.reason for each in own for score in each.scores if score.state == "error"
        )
        lines += [f"{method}: {reason}" for reason in list(reasons)[:_REASONS]]
        if len(reasons) > _REASONS:
            lines.append(f"{method}: {len(reasons) - _REASONS} more reasons in its folder scores/")
    return lines
