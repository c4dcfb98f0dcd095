"""The model card of an export: a `README.md` that says what the files are and how they were made.

Nothing in it names the machine: paths are cut to their last part, and hub ids are kept.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from dsd_jax.distilled import Distilled
from dsd_jax.structured import json_lines

__all__ = ["Card", "last_scores", "public_model", "public_name"]

_HUB_CACHE = re.compile(
    r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+/?(?P<inner>.*)"
)
_LICENCES = {
    "black-forest-labs/FLUX.1-dev": {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    },
    "black-forest-labs/FLUX.1-schnell": {"license": "apache-2.0"},
}
_INTRODUCTION = (
    "Weights for [Diffusion Self-Distillation](https://arxiv.org/abs/2411.18616) on FLUX.1, "
    "written by DSD-JAX: the model paints the subject of a reference image into the scene that a "
    "text describes."
)
_FIELD = re.compile(r"(license|license_name|license_link):\s*([\w .:/@#-]{1,200})\s*")


def public_name(path: epath.PathLike) -> str:
    """The public name of a path: its hub id, or else its last part."""
    text = str(path).rstrip("/")
    if found := _HUB_CACHE.search(text):
        return "/".join(filter(None, (found["owner"], found["name"], found["inner"])))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not Path(text).exists():
        return text
    return text.rpartition("/")[2]


def public_model(path: epath.PathLike) -> str:
    """The public name of a model; one within a pipeline is named after the pipeline's folder."""
    root = epath.Path(path)
    if (root.parent / "model_index.json").exists():
        return f"{public_name(root.parent)}/{root.name}"
    return public_name(path)


def last_scores(run: epath.PathLike) -> dict[str, float]:
    """Reads the last held-out losses of a run, by name; empty if it has none."""
    file = Path(run) / "metrics.jsonl"
    found: dict[str, float] = {}
    if file.is_file():
        for _, row in json_lines(file):
            if isinstance(row, dict):
                scores = {k: v for k, v in row.items() if str(k).startswith("eval/")}
                found |= {k: float(v) for k, v in scores.items() if isinstance(v, int | float)}
    return found


@dataclasses.dataclass(frozen=True)
class Card:
    """The facts on a card.

    Attributes:
        title: name of the model.
        command: the command that wrote the files.
        base: folder, file or hub id of the weights it starts from.
        run: `run.json` of the training, or empty for converted files.
        scores: results by name.
        adapters: adapters that were merged, with their scales.
        distilled: the sampling that the weights were distilled for.
    """

    title: str
    command: str
    base: epath.PathLike | None = None
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    adapters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    distilled: Distilled | None = None

    def write(self, folder: epath.PathLike) -> None:
        """Writes `README.md`, with the digests of the weights, into a complete folder."""
        (epath.Path(folder) / "README.md").write_text(self._text(Path(folder)))

    def _text(self, folder: Path) -> str:
        sections = [
            self._front_matter(),
            f"# {self.title}",
            _INTRODUCTION,
            self._use(folder),
            self._origin(),
            _table("Training", self._training()),
            _table("Scores", {name: f"{value:.4g}" for name, value in self.scores.items()}),
            f"## Command\n\n```bash\n{self.command}\n```",
            _table("SHA-256", _digests(folder)),
        ]
        return "\n\n".join(filter(None, sections)) + "\n"

    def _front_matter(self) -> str:
        name = None if self.base is None else _hub_id(public_name(self.base))
        fields = {
            **({"base_model": name} if name else {}),
            **_licence(self.base),
            "library_name": "diffusers",
            "pipeline_tag": "image-to-image",
        }
        lines = [f"{key}: {value}" for key, value in fields.items()]
        tags = ["flux", "lora", "diffusion-self-distillation"]
        return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])

    def _use(self, folder: Path) -> str:
        lora = (folder / "pytorch_lora_weights.safetensors").exists()
        transformer = (folder / "transformer").is_dir()
        flags = ["--model_path ./transformer"] if transformer else []
        flags += ["--lora_path ./pytorch_lora_weights.safetensors"] if lora else []
        if not flags:
            flags = ["--model_path ."]
        flags += [] if self.distilled is None else [self.distilled.flags]
        words = '--image_path subject.png --text "this subject in the snow" --output_path out.png'
        return f"## Use\n\n```bash\ndsd generate {' '.join(flags)} \\\n    {words}\n```" + (
            "\n\nThe authors' `generate.py` and ComfyUI's DSD nodes take the same two paths."
            if lora and transformer
            else ""
        )

    def _origin(self) -> str:
        if self.base is None:
            return ""
        text = f"## Base\n\n{public_name(self.base)}"
        if not _licence(self.base):
            text += (
                ". Its licence is not known to the program: the licence of the base holds for "
                "these weights too, so name it here before you share them."
            )
        return text + "".join(
            f"\n\nMerged into it: {public_name(name)}, scale {scale:g}."
            for name, scale in self.adapters.items()
        )

    def _training(self) -> dict[str, str]:
        run = self.run
        if not run:
            return {}
        config = run.get("config", {})
        lora = config.get("lora") or {}
        portions = run.get("data", {}).get("portions", [])
        told = {
            "preset": run.get("preset"),
            "steps": run.get("step"),
            "batch size": config.get("batch_size"),
            "LoRA": lora and f"rank {lora.get('rank')}, {lora.get('targets')}",
            "size of a canvas": f"{config.get('height')} x {config.get('width')}",
            "data": ", ".join(map(_data_name, portions)),
            "base": ", ".join(f"{k} {v}" for k, v in run.get("base", {}).get("sha256", {}).items()),
            "versions": ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()),
            "devices": run.get("devices"),
        }
        return {name: str(value) for name, value in told.items() if value}


def _data_name(portion: object) -> str:
    """Names a dataset of a run by its fingerprint, and the task whose pairs were used."""
    if not isinstance(portion, Mapping):
        return ""
    task = f" ({portion['task']})" if portion.get("task") else ""
    return f"{portion.get('dataset')}{task}"


def _hub_id(name: str) -> str | None:
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) >= 2 else None


def _licence(base: epath.PathLike | None) -> dict[str, str]:
    """The licence of the base: as its own card says, or as published for a hub id."""
    if base is None:
        return {}
    name = _hub_id(public_name(base))
    if name in _LICENCES:
        return _LICENCES[name]
    for folder in (Path(base), Path(base).parent):
        card = folder / "README.md"
        if "://" not in str(base) and card.is_file():
            lines = card.read_text(errors="replace")[:20_000].splitlines()
            if lines[:1] == ["---"] and "---" in lines[1:]:
                matter = lines[1 : 1 + lines[1:].index("---")]
                return {m[1]: m[2] for m in map(_FIELD.fullmatch, matter) if m}
    return {}


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as data:
            found[str(file.relative_to(folder))] = hashlib.file_digest(data, "sha256").hexdigest()
    return found


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    cells = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *cells])


def _cell(text: str) -> str:
    return re.sub(r"[\s|]+", " ", text)
