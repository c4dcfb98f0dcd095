"""`dsd data make CONFIG`: one TOML file for all stages, and what a folder was begun with.

    root = "dataset"                      # everything is made in this folder
    base_path = "FLUX.1-dev"              # the teacher, and the tokenizer that counts
    parts = 64                            # files per stage, which the workers share out

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
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsd_jax.config import FLUX_DEV
from dsd_jax.data.make.captions import CaptionsConfig
from dsd_jax.data.make.describe import CaptionConfig
from dsd_jax.data.make.grids import GridsConfig
from dsd_jax.data.make.judge import JudgeConfig
from dsd_jax.data.make.pack import PackConfig
from dsd_jax.data.make.pairs import PairsConfig
from dsd_jax.data.make.parts import STAGES, Parts
from dsd_jax.data.make.prompts import PromptsConfig
from dsd_jax.data.make.statistics import MAKING
from dsd_jax.data.make.wording import Wording, load_wording, read_toml
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.files import write_file
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.structured import build

__all__ = ["ASKING", "MakeConfig", "begin_stage", "begun_settings", "load_config", "open_parts"]

ASKING = ("captions", "prompts", "judge", "caption")
"""Stages that ask a language model."""
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class MakeConfig:
    """The whole file.

    Attributes:
        root: folder of the dataset in the making.
        captions, prompts, grids, pairs, judge, caption, pack: sections of the stages.
        providers: whom the stages can ask, by name.
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        parts: files per stage; fixed once the folder is begun.
        wordings: texts in place of ours.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    root: Path
    captions: CaptionsConfig
    prompts: PromptsConfig
    judge: JudgeConfig
    caption: CaptionConfig
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
            name = getattr(self, stage).provider
            if name not in self.providers and (name or stage != "captions"):
                raise UserError(
                    f"{stage}.provider is {name!r}, but there is no [providers.{name}]"
                    f"{did_you_mean(name, self.providers)}"
                )

    def provider(self, stage: str) -> ProviderConfig | None:
        """Whom a stage asks; None if it asks nobody."""
        name = getattr(self, stage).provider if stage in ASKING else ""
        return self.providers[name] if name else None

    def wording(self, stage: str) -> Wording:
        """The texts by which a stage asks.

        Raises:
            UserError: `wordings` cannot be used.
        """
        return load_wording(self.wordings, stage)

    def settings(self, stage: str) -> dict[str, Any]:
        """What decides about a stage's rows; where things lie, and how fast it goes, does not."""
        settings = dataclasses.asdict(getattr(self, stage))
        settings.pop("provider", None)
        if provider := self.provider(stage):
            settings |= {"model": provider.model, "wording": self.wording(stage).id}
        if stage == "grids":
            settings["teacher"] = Path(self.base_path).name
        return dict(json.loads(json.dumps(settings, default=_plain, sort_keys=True)))


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    raise TypeError(type(value).__name__)


def load_config(path: Path, wordings: Path | None = None) -> MakeConfig:
    """Reads a configuration; paths in it become relative to where we are.

    Args:
        path: of the TOML file.
        wordings: texts in place of the file's own.

    Raises:
        UserError: it cannot be read, or a key is unknown, missing or wrong.
    """
    table = read_toml(path, "configuration")
    config = _placed(build(MakeConfig, table, str(path)), path.parent)
    if (path.parent / config.base_path).is_dir():
        config = dataclasses.replace(config, base_path=str(path.parent / config.base_path))
    if wordings is not None:
        config = dataclasses.replace(config, wordings=wordings)
    return config


def _placed(value: Any, folder: Path) -> Any:
    """The value with its relative paths put into a folder."""
    if isinstance(value, Path):
        return folder / value.expanduser()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{n: _placed(getattr(value, n), folder) for n in names})
    if isinstance(value, tuple):
        return tuple(_placed(each, folder) for each in value)
    if isinstance(value, Mapping):
        return {name: _placed(each, folder) for name, each in value.items()}
    return value


def open_parts(config: MakeConfig) -> Parts:
    """The folder of a configuration, whether or not it has been begun.

    Raises:
        UserError: it was begun with another number of parts, or is something else.
    """
    path = config.root / MAKING
    if path.exists():
        held = _read(path).get("parts")
        if held != config.parts:
            raise UserError(
                f"{config.root} was begun with {held} parts, but the configuration says "
                f"{config.parts}; set parts = {held}, or choose another root"
            )
    elif config.root.is_dir() and any(x.name[:1] != "." for x in config.root.iterdir()):
        raise UserError(f"{config.root} holds other files; choose a new folder as root")
    return Parts(config.root, config.parts)


def begin_stage(config: MakeConfig, stage: str) -> Parts:
    """The folder, ready for a stage: what is in it was made with these settings.

    Raises:
        UserError: this stage, or one before it, was begun with other settings, or not at all.
    """
    parts = open_parts(config)
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        if not (config.root / MAKING).exists():
            write_file(config.root / MAKING, json.dumps({"parts": config.parts}) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {config.root}: {error.strerror}") from None
    after = ""
    for each in STAGES[: STAGES.index(stage)]:
        path = config.root / each / _SETTINGS
        if not path.exists():
            raise UserError(
                f"`{each}` has not been begun in {config.root}; run `dsd data {each}` first"
            )
        # Its wording may have come from a flag of its own command.
        _compare(path, each, {**config.settings(each), "wording": _settings(path).get("wording")})
        after = hashlib.sha256(path.read_bytes()).hexdigest()
    path = config.root / stage / _SETTINGS
    settings = config.settings(stage)
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        texts = dict(config.wording(stage).texts) if "wording" in settings else {}
        content = {"after": after, "settings": settings, "texts": texts}
        write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _compare(path, stage, settings)
    if _read(path).get("after") != after:
        raise _other(path, "a stage before it has other settings now")
    return parts


def begun_settings(parts: Parts) -> dict[str, dict[str, Any]]:
    """What every stage was begun with."""
    return {stage: _settings(parts.root / stage / _SETTINGS) for stage in STAGES}


def _settings(path: Path) -> dict[str, Any]:
    return dict(_read(path).get("settings", {}))


def _compare(path: Path, stage: str, settings: Mapping[str, Any]) -> None:
    before = _settings(path)
    changed = [
        f"{stage}.{name} was {before.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise _other(path, "; ".join(changed))


def _other(path: Path, what: str) -> UserError:
    return UserError(
        f"{path.parent} was begun with other settings: {what}. Change the configuration back, "
        f"choose another root, or remove {path.parent} and what was made from it; answers that are "
        "in the ledgers are not asked for again"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is damaged; remove it, if the configuration is the same") from None
