"""`dsd data`: the making of a dataset, stage by stage or all in order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dsd_jax.data.make.config import MakeConfig, begun_settings, load_config, open_parts
from dsd_jax.data.make.make import CountTokens, panels_of, run_asking
from dsd_jax.data.make.pack import DATASET, pack
from dsd_jax.data.make.parts import STAGES, Shard, shard_from_environment
from dsd_jax.data.make.statistics import ledger_totals, tally
from dsd_jax.data.make.tables import summary
from dsd_jax.data.make.view import write_page

__all__ = ["caption", "captions", "judge", "make", "pack_dataset", "prompts", "status", "view"]

Config = tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class Worker:
    """Which part of the work is done, and in which words.

    Attributes:
        shard: Number of this worker, from 0; default: that of the SLURM array or indexed job.
        num_shards: Number of workers.
        prompts: File with texts in place of ours.
    """

    shard: int | None = None
    num_shards: int | None = None
    prompts: Path | None = None


Work = tyro.conf.OmitArgPrefixes[Worker]


def captions(config: Config, worker: Work = Worker()) -> None:
    """Sample captions without repeats, and keep those with a clear subject if a model is named.

    Args:
        config: TOML file of all stages.
    """
    _ask(config, "captions", worker)


def prompts(config: Config, worker: Work = Worker()) -> None:
    """Have one prompt for a grid of four written for every caption.

    Args:
        config: TOML file of all stages.
    """
    _ask(config, "prompts", worker)


def judge(config: Config, worker: Work = Worker()) -> None:
    """Have pairs judged: do both panels show the identical subject?

    Args:
        config: TOML file of all stages.
    """
    _ask(config, "judge", worker)


def caption(config: Config, worker: Work = Worker()) -> None:
    """Have the kept pairs described: the target, and the edit that leads to it.

    Args:
        config: TOML file of all stages.
    """
    _ask(config, "caption", worker)


def pack_dataset(config: Config) -> None:
    """Write the kept pairs as a dataset, `dataset` in the folder; one process for all parts.

    Args:
        config: TOML file of all stages.
    """
    _pack(load_config(config))


def make(config: Config, worker: Work = Worker()) -> None:
    """Make a dataset: all stages in order; stopped and started again, it goes on.

    With several workers, the last one to finish packs.

    Args:
        config: TOML file of all stages.
    """
    from dsd_jax.data.cli_grids import run_grids, run_pairs

    chosen, shard = _chosen(config, worker)
    runs: dict[str, Callable[[MakeConfig, Shard], None]] = {"grids": run_grids, "pairs": run_pairs}
    for stage in STAGES:
        if stage in runs:
            runs[stage](chosen, shard)
        else:
            run_asking(chosen, stage, shard, lambda: _count_tokens(chosen))
    parts = open_parts(chosen)
    if all(parts.done(STAGES[-1], part) for part in range(parts.count)):
        _pack(chosen)
    else:
        print("the parts of this worker are done; others are not, so nothing is packed yet")


def status(config: Config) -> None:
    """Show how far every stage is.

    Args:
        config: TOML file of all stages.
    """
    chosen = load_config(config)
    parts = open_parts(chosen)
    totals = ledger_totals(parts.root)
    table = Table(box=SIMPLE)
    table.add_column("stage")
    for column in ("parts", "rows", "kept", "answers", "maybe charged", "dollars", "to do"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in STAGES:
        counts = tally(parts, stage)
        seen = totals.get(stage)
        todo = [str(part) for part in range(parts.count) if not parts.done(stage, part)]
        table.add_row(
            stage,
            f"{counts.finished}/{parts.count}",
            f"{counts.rows:,}",
            f"{counts.kept:,}",
            f"{seen.answered:,}" if seen else "",
            f"{seen.maybe_charged:,}" if seen else "",
            f"{seen.cost:,.2f}" if seen else "",
            " ".join(todo[:6]) + (" …" if len(todo) > 6 else ""),
        )
    Console().print(table)
    packed = (parts.root / DATASET / "dataset.json").exists()
    print(f"{parts.root / DATASET} is {'there' if packed else 'not packed yet'}")


def view(config: Config, output: Path, limit: int = 200) -> None:
    """Write a page with grids, boxes, pairs, prompts and the judge's words, for any browser.

    Args:
        config: TOML file of all stages.
        output: HTML file to write.
        limit: Grids at most; of more, a sample is shown.
    """
    parts = open_parts(load_config(config))
    shown, total = write_page(parts, output, limit, parts.root.resolve().name)
    print(f"{output} shows {shown:,} of {total:,} grids")


def _chosen(path: Path, worker: Worker) -> tuple[MakeConfig, Shard]:
    shard = shard_from_environment(worker.shard, worker.num_shards)
    return load_config(path, worker.prompts), shard


def _ask(path: Path, stage: str, worker: Worker) -> None:
    config, shard = _chosen(path, worker)
    run_asking(config, stage, shard, lambda: _count_tokens(config))
    print(summary(open_parts(config), stage, shard))


def _count_tokens(config: MakeConfig) -> CountTokens:
    from dsd_jax.convert.open import open_tokenizers

    return open_tokenizers(config.base_path).count_clip_tokens


def _pack(config: MakeConfig) -> None:
    parts = open_parts(config)
    count = pack(parts, config.pack, panels_of(parts), begun_settings(parts))
    print(f"{count:,} pairs in {parts.root / DATASET}")
