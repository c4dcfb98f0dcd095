"""The opened parts of a FLUX pipeline, whatever their format on disk: configs and weight sources.

`dsd_jax.convert.open` makes them. Only headers and configs have been read; weights are read when a
model is filled from its source (`dsd_jax.models.load`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from dsd_jax.condition import CANVAS
from dsd_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    DepthConfig,
    FluxConfig,
    T5Config,
    VisionConfig,
)
from dsd_jax.errors import UserError
from dsd_jax.flow import Schedule
from dsd_jax.lora import Adapter
from dsd_jax.models import Config
from dsd_jax.quantise import WeightKind, kind_of
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.weights import Layered, WeightSource, Zeros

__all__ = ["Component", "FluxParts", "ScaledAdapter", "TextParts", "with_condition"]

ScaledAdapter: TypeAlias = tuple[Adapter, float]
Config_co = TypeVar("Config_co", bound=Config, covariant=True)
Kind = TypeVar("Kind", bound=Config)
_NAMES: dict[type, str] = {
    FluxConfig: "a FLUX transformer",
    AutoencoderConfig: "an autoencoder",
    T5Config: "a T5 encoder",
    ClipConfig: "a CLIP text encoder",
    VisionConfig: "a vision transformer",
    DepthConfig: "a depth model",
}


@dataclasses.dataclass(frozen=True)
class Component(Generic[Config_co]):
    """One model on disk.

    Attributes:
        path: path as given.
        config: size of the model.
        source: its weights, by our names.
        layout: "diffusers", "bfl" or "orbax".
        notices: notices for the user, one sentence each.
        digests: see `sha256`.
    """

    path: str
    config: Config_co
    source: WeightSource
    layout: str
    notices: tuple[str, ...] = ()
    digests: Callable[[], dict[str, str]] = dict

    def sha256(self) -> dict[str, str]:
        """SHA-256 of every weight file by its name; may wait for the files to be hashed.

        A converted folder gives the digests of the files it was converted from; empty if unknown.
        """
        return self.digests()

    def settle(self, wanted: WeightKind | None) -> WeightKind | None:
        """The kind of weights to load: the wanted one, or what the files hold.

        Args:
            wanted: kind that the user asks for; None takes the weights as they are kept.

        Raises:
            UserError: the files hold quantised weights of another kind.
        """
        held = kind_of(self.source.dtypes)
        if wanted is not None and held not in (None, wanted):
            raise UserError(
                f"{self.path} holds {held} weights, which cannot become {wanted}; leave out "
                "--weights, or give the weights that they were made from"
            )
        return held or wanted

    def expect(self, kind: type[Kind]) -> "Component[Kind]":
        """Returns itself, if it holds a model of this kind.

        Raises:
            UserError: it holds another kind of model.
        """
        if isinstance(self.config, kind):
            return self  # type: ignore[return-value] # the line above says so
        raise UserError(
            f"{self.path} holds {_NAMES[type(self.config)]}; {_NAMES[kind]} is expected here"
        )


def with_condition(
    transformer: Component[FluxConfig], adapters: Sequence[ScaledAdapter] | None = None
) -> Component[FluxConfig]:
    """The transformer with a condition embedding; one that has none gets zeros.

    Args:
        transformer: component with or without one.
        adapters: add it only if one of these brings its tensors. None adds it in any case.
    """
    if adapters is not None and not any(CANVAS.is_in(own.full) for own, _ in adapters):
        return transformer
    config, source = transformer.config, transformer.source
    if config.condition_embed:
        return transformer
    zeros = Zeros(CANVAS.shapes(config), source.dtypes["img_in.kernel"])
    return dataclasses.replace(
        transformer,
        config=dataclasses.replace(config, condition_embed=True),
        source=Layered(source, zeros),
    )


@dataclasses.dataclass(frozen=True)
class TextParts:
    """The parts that turn prompts into embeddings."""

    tokenizers: Tokenizers
    t5: Component[T5Config]
    clip: Component[ClipConfig]


@dataclasses.dataclass(frozen=True)
class FluxParts:
    """An opened pipeline.

    Attributes:
        path: path of the transformer, as the user gave it.
    """

    path: str
    transformer: Component[FluxConfig]
    autoencoder: Component[AutoencoderConfig]
    text: TextParts
    schedule: Schedule

    @property
    def notices(self) -> list[str]:
        """Notices about the files for the user, one sentence each."""
        text = self.text
        every = (text.t5, text.clip, self.transformer, self.autoencoder)
        return [notice for component in every for notice in component.notices]
