"""`dsd data`: makes a dataset, stage by stage or all stages in order."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.data.make.config import MakeConfig, load_config
from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.folder import begun_settings, open_parts
from dsd_jax.data.make.grids import Teacher, Teachers
from dsd_jax.data.make.overview import progress_table, summary
from dsd_jax.data.make.pack import DATASET, pack
from dsd_jax.data.make.routes import Route
from dsd_jax.data.make.run import CountTokens, OthersFirst, Tools, check_kept, run_stage
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    Stage,
    StageRow,
)
from dsd_jax.sharding import MeshConfig
from dsd_jax.shares import ShareFlags, WorkerShare

__all__ = [
    "caption", "captions", "grids", "judge", "make", "pack_dataset", "pairs", "prompts", "status",
]  # fmt: skip

Config = tyro.conf.Positional[Path]
Share = tyro.conf.OmitArgPrefixes[ShareFlags]


def captions(config: Config, share: Share = ShareFlags(), prompts: Path | None = None) -> None:
    """Sample captions without repeats; if a model is configured, keep those with a clear subject.

    Args:
        config: TOML file of all stages.
        prompts: TOML file with wordings that replace the built-in ones.
    """
    _run(load_config(config, prompts), CAPTIONS, share.share())


def prompts(config: Config, share: Share = ShareFlags(), prompts: Path | None = None) -> None:
    """Write one four-panel grid prompt per caption.

    Args:
        config: TOML file of all stages.
        prompts: TOML file with wordings that replace the built-in ones.
    """
    _run(load_config(config, prompts), PROMPTS, share.share())


def grids(
    config: Config,
    share: Share = ShareFlags(),
    batch_size: int | None = None,
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
    compilation_cache: str = "auto",
) -> None:
    """Paint a grid for every kept prompt. If it was stopped, start it again to resume.

    Args:
        config: TOML file of all stages.
        batch_size: Pictures painted at once. Default: one per device that shares the batch.
        mesh: Devices along each axis; -1 takes all that the other axes leave.
        compilation_cache: Folder for compiled programs. Default: one in the user's cache, at most 4
            GB. off keeps none.
    """
    _run(load_config(config), GRIDS, share.share(), _Painting(batch_size, mesh, compilation_cache))


def pairs(config: Config, share: Share = ShareFlags()) -> None:
    """Cut grids into panels, reject uneven grids, near copies and duplicates, and make pairs.

    Pairs are made once the grids of all workers are cut.

    Args:
        config: TOML file of all stages.
    """
    _run(load_config(config), PAIRS, share.share())


def judge(config: Config, share: Share = ShareFlags(), prompts: Path | None = None) -> None:
    """Ask a vision-language model whether each pair fits its task, such as one subject in both.

    Args:
        config: TOML file of all stages.
        prompts: TOML file with wordings that replace the built-in ones.
    """
    _run(load_config(config, prompts), JUDGEMENTS, share.share())


def caption(config: Config, share: Share = ShareFlags(), prompts: Path | None = None) -> None:
    """Describe the kept pairs: the target, and the edit that leads to it.

    Args:
        config: TOML file of all stages.
        prompts: TOML file with wordings that replace the built-in ones.
    """
    _run(load_config(config, prompts), DESCRIPTIONS, share.share())


def pack_dataset(config: Config) -> None:
    """Write the kept pairs as a dataset into `dataset` in the work folder, in one process.

    Args:
        config: TOML file of all stages.
    """
    _pack(load_config(config))


def make(
    config: Config,
    share: Share = ShareFlags(),
    prompts: Path | None = None,
    compilation_cache: str = "auto",
) -> None:
    """Make a dataset: run all stages in order. If it was stopped, start it again to resume.

    With several workers, the last one to finish packs.

    Args:
        config: TOML file of all stages.
        prompts: TOML file with wordings that replace the built-in ones.
        compilation_cache: Folder for compiled programs. Default: one in the user's cache, at most 4
            GB. off keeps none.
    """
    chosen, worker = load_config(config, prompts), share.share()
    for stage in STAGES:
        _run(chosen, stage, worker, _Painting(compilation_cache=compilation_cache))
    parts = open_parts(chosen)
    if all(parts.done(STAGES[-1], part) for part in range(parts.count)):
        _pack(chosen)
    else:
        print("the parts of this worker are done; others are not, so nothing is packed yet")


def status(config: Config) -> None:
    """Show the progress of each stage.

    Args:
        config: TOML file of all stages.
    """
    parts = open_parts(load_config(config))
    print(progress_table(parts))
    packed = (parts.root / DATASET / "dataset.json").exists()
    print(f"{parts.root / DATASET} is {'there' if packed else 'not packed yet'}")


@dataclasses.dataclass(frozen=True)
class _Painting:
    """The way grids are painted: pictures at once, devices, and the folder of compiled programs."""

    batch_size: int | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    compilation_cache: str = "auto"


def _run(
    config: MakeConfig,
    stage: Stage[StageRow],
    share: WorkerShare,
    painting: _Painting = _Painting(),
) -> None:
    @functools.cache
    def teachers() -> Teachers:
        from dsd_jax.compiled import keep_compiled
        from dsd_jax.data.make.teacher import open_teachers

        if kept := keep_compiled(painting.compilation_cache):
            print(kept, file=sys.stderr)
        return open_teachers(config, painting.batch_size, painting.mesh)

    def teacher(route: Route) -> Teacher:
        return teachers()(route)

    def count_tokens() -> CountTokens:
        from dsd_jax.convert.open import open_tokenizers

        return open_tokenizers(config.base_path).count_clip_tokens

    try:
        parts = run_stage(config, stage, share, Tools(teacher, count_tokens))
    except OthersFirst as waiting:
        print(waiting)
        raise SystemExit(0) from None
    print(summary(parts, stage, share))
    check_kept(parts, stage)


def _pack(config: MakeConfig) -> None:
    parts = open_parts(config)
    count = pack(parts, config.pack, panels_of(parts), begun_settings(parts))
    print(f"{count:,} pairs in {parts.root / DATASET}")
