"""The description of a run in its checkpoints, and the check whether a run may resume from them."""

import dataclasses
import datetime as dt
import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax

from dsd_jax import __version__
from dsd_jax.errors import UserError
from dsd_jax.processes import say

__all__ = ["Origin", "Recipe", "check_base", "check_recipe", "check_teacher", "record"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
# With another one of these, it would be another run that begins with this one's weights.
_FIXED = ("seed", "batch_size", "height", "width", "condition", "lora", "dropout", "distill")


@runtime_checkable
class Recipe(Protocol):
    """The settings of a run: a frozen dataclass, `dsd_jax.train.config.TrainConfig` or another."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Number of updates."""


class Origin(NamedTuple):
    """The weights that training starts from; random ones have no path and no digests.

    Attributes:
        path: A folder or a hub id.
        sha256: Digests by file name, empty where they are not known.
        teacher: Digest of the adapter of a distillation's teacher, empty if it has none.
    """

    path: str
    sha256: Mapping[str, str]
    teacher: str = ""


def record(
    config: Recipe, origin: Origin, data: Mapping[str, object], preset: str
) -> dict[str, object]:
    """Describes a run completely enough to reproduce its numbers later; JSON.

    Args:
        config: the recipe.
        origin: recorded by path and digests; its weights are not copied.
        data: `identity` of the loader.
        preset: name of the preset that the recipe began with.
    """
    return {
        "preset": preset,
        "config": dataclasses.asdict(config),
        "data": dict(data),
        "base": {"path": origin.path, "sha256": dict(origin.sha256)},
        **({"teacher": origin.teacher} if origin.teacher else {}),
        "versions": {
            "dsd-jax": __version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def check_recipe(saved: Mapping[str, Any], config: Recipe) -> None:
    """Refuses to resume with another recipe; prints changes that are allowed.

    Raises:
        UserError: a setting that makes it another run.
    """
    before, now = _flat(saved["config"]), _flat(dataclasses.asdict(config))
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name.split(".")[0] in _FIXED or name == "optimizer.name":
            raise UserError(
                f"the run was begun with {name} {old}, now it is {new}; use the same, or choose "
                "another output_dir"
            )
        say(f"note: {name} was {old} so far, from here on it is {new}")


def check_base(saved: Mapping[str, Any], path: str, given: Mapping[str, str]) -> None:
    """Refuses to resume with other base weights.

    Args:
        saved: `run.json`.
        path: path of the base that is given now.
        given: its digests by file name; empty where they are not known.

    Raises:
        UserError: a digest differs; both are named.
    """
    held = saved["base"]["sha256"]
    if held and given and held != dict(given):
        name = next(n for n in sorted(held.keys() | given.keys()) if held.get(n) != given.get(n))
        raise UserError(
            f"the checkpoint was trained on other base weights: {name} had sha256 "
            f"{held.get(name, 'none')}, in {path} it has {given.get(name, 'none')}; give the "
            f"base that the run was begun with ({saved['base']['path']})"
        )


def check_teacher(saved: Mapping[str, Any], given: str) -> None:
    """Refuses to resume a distillation with another teacher.

    Args:
        saved: `run.json`.
        given: digest of the adapter of the teacher that is given now, empty if it has none.

    Raises:
        UserError: it is another one.
    """
    if saved.get("teacher", "") != given:
        raise UserError(
            "the run was begun with another teacher; give the --lora_path that it was begun with, "
            "or choose another output_dir"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a config to dotted names, with sequences as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
