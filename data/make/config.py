"""The configuration of `dsd data make`: one TOML file for all stages.

    root = "dataset"                      # the work folder; everything is written there
    base_path = "FLUX.1-dev"              # the teacher, and the tokenizer that counts
    parts = 64                            # files per stage; the workers divide them

    [providers.writer]
    kind = "openai"
    model = "gpt-4o-2024-11-20"

    [captions]
    source = ["laion/part-0.parquet"]
    count = 100000

    [prompts]
    provider = "writer"

    [judge]
    provider = "writer"

    [caption]
    provider = "writer"

Paths are relative to the file. `docs/data_making.md` lists every key.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.config import FLUX_DEV
from dsd_jax.convert.hub import may_be_dataset_id
from dsd_jax.data.make.captions import CaptionsConfig
from dsd_jax.data.make.describe import CaptionConfig
from dsd_jax.data.make.grids import GridsConfig
from dsd_jax.data.make.judge import LIGHT, JudgeConfig
from dsd_jax.data.make.pack import PackConfig
from dsd_jax.data.make.pairs import PairsConfig
from dsd_jax.data.make.prompts import PromptsConfig
from dsd_jax.data.make.routes import GRID, RelightConfig
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    Stage,
    StageRow,
)
from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.wording import Wording
from dsd_jax.structured import build, json_value, placed, read_toml
from dsd_jax.tasks import task_named

__all__ = ["ASKING", "MakeConfig", "load_config"]

ASKING: tuple[Stage[StageRow], ...] = (CAPTIONS, PROMPTS, JUDGEMENTS, DESCRIPTIONS)
"""Stages that ask a language model."""


@dataclasses.dataclass(frozen=True)
class MakeConfig:
    """The contents of the file.

    Attributes:
        root: The work folder.
        captions, prompts, grids, pairs, judge, caption, pack: Sections of the stages.
        relight: Routes and lights of tasks whose frames differ in light alone.
        providers: Models that the stages can ask, by name.
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        parts: Number of files per stage; fixed once the folder is begun.
        wordings: TOML file with wordings that replace the built-in ones.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    root: Path
    captions: CaptionsConfig
    prompts: PromptsConfig
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    caption: CaptionConfig = dataclasses.field(default_factory=CaptionConfig)
    relight: RelightConfig = dataclasses.field(default_factory=RelightConfig)
    providers: Mapping[str, ProviderConfig] = dataclasses.field(default_factory=dict)
    grids: GridsConfig = dataclasses.field(default_factory=GridsConfig)
    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    pack: PackConfig = dataclasses.field(default_factory=PackConfig)
    base_path: str = FLUX_DEV
    parts: int = 64
    wordings: Path | None = None

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise UserError(f"parts must be at least 1, got {self.parts}")
        for stage in ASKING:
            name = self._section(stage).provider
            needing = self._needing(stage)
            if not name and needing:
                raise UserError(
                    f"{needing} has no model in [{stage}]; give it a provider, one of "
                    f"{', '.join(self.providers) or '[providers.NAME], which is missing too'}"
                )
            if name and name not in self.providers:
                raise UserError(
                    f"{stage}.provider is {name!r}, but there is no [providers.{name}]"
                    f"{did_you_mean(name, self.providers)}"
                )

    def _needing(self, stage: Stage[StageRow]) -> str:
        """Names what needs a model in a stage; empty if nothing does."""
        if stage is CAPTIONS:
            return ""  # the filter is optional
        for name in self.prompts.tasks:
            task = task_named(name)
            for route in self.relight.used if task.lit else (GRID,):
                settled = {JUDGEMENTS: route.exact, DESCRIPTIONS: route.of_scene}
                if not settled.get(stage, False):
                    return f"the task {name!r}" + (f" by {route.name}" if task.lit else "")
        return ""

    def _section(self, stage: Stage[StageRow]) -> Any:
        return getattr(self, stage.name)

    def provider(self, stage: Stage[StageRow]) -> ProviderConfig | None:
        """The model that a stage asks; None if it asks nobody."""
        name = self._section(stage).provider if stage in ASKING else ""
        return self.providers[name] if name else None

    def wording(self, stage: Stage[StageRow]) -> Wording:
        """The texts of a stage that asks.

        Raises:
            UserError: `wordings` cannot be used.
        """
        lit = [LIGHT] if stage is JUDGEMENTS and self.judge.light else []
        return load_wording(self.wordings, stage.name, [*self.prompts.tasks, *lit])

    def settings(self, stage: Stage[StageRow]) -> dict[str, object]:
        """The settings that the rows of a stage depend on; paths and speeds are left out."""
        settings = dataclasses.asdict(self._section(stage))
        settings.pop("provider", None)
        if provider := self.provider(stage):
            settings |= {"model": provider.model, "wording": self.wording(stage).id}
        lit = any(task_named(name).lit for name in self.prompts.tasks)
        if stage is PROMPTS and lit:
            relight: dict[str, object] = {
                "routes": dict(self.relight.routes),
                "lights": self.relight.vocabulary().id,
                "aspects": self.relight.aspects,
            }
            if usual := self.relight.usual_light():
                relight["usual"] = usual.named
            settings["relight"] = relight
        if stage is GRIDS:
            settings["teacher"] = Path(self.base_path).name
            if lit and any(route.painted > 1 for route in self.relight.used):
                settings["shared_steps"] = self.relight.shared_steps
        if stage is JUDGEMENTS and not self.judge.light:
            del settings["light"]  # a question that is not asked decides nothing
        if stage is PAIRS:
            bounds = {name: self.pairs.similarity(task_named(name)) for name in self.prompts.tasks}
            settings["min_similarity"] = _one({name: own.least for name, own in bounds.items()})
            settings["max_similarity"] = _one({name: own.most for name, own in bounds.items()})
            drift = {name: self.pairs.drift(task_named(name)) for name in self.prompts.tasks}
            settings["max_drift"] = {name: most for name, most in drift.items() if most is not None}
            if not settings["max_drift"]:
                del settings["max_drift"]  # a filter that is off decides nothing
        return dict(json_value(settings, _name, sort_keys=True))


def _one(by_task: Mapping[str, float]) -> float | Mapping[str, float]:
    """The value that all tasks share, or the value of each."""
    values = set(by_task.values())
    return values.pop() if len(values) == 1 else by_task


def _name(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    raise TypeError(type(value).__name__)


def load_config(path: Path, wordings: Path | None = None) -> MakeConfig:
    """Reads a configuration; relative paths in it are relative to its file.

    Args:
        path: The TOML file.
        wordings: File with texts, in place of the one that the configuration names.

    Raises:
        UserError: It cannot be read, or a key is unknown, missing or wrong.
    """
    table = read_toml(path)
    given = build(MakeConfig, table, str(path))
    config = placed(given, path.parent)
    sources = tuple(
        own if may_be_dataset_id(own) and not place.exists() else place
        for own, place in zip(given.captions.source, config.captions.source, strict=True)
    )
    config.relight.vocabulary()  # found out before anything is paid for
    config.relight.usual_light()
    captions = dataclasses.replace(config.captions, source=sources)
    config = dataclasses.replace(config, captions=captions)
    if (path.parent / config.base_path).is_dir():
        config = dataclasses.replace(config, base_path=str(path.parent / config.base_path))
    if wordings is not None:
        config = dataclasses.replace(config, wordings=wordings)
    return config
