"""The condition: the way a reference enters the model, and everything that belongs to it.

A `Condition` names the module that it adds to the transformer, in our model and in every file
format. LoRA training trains that module in full. `CANVAS` is the method's own (paper, section 3.2):
the condition tokens get an embedding of their own, which is added to that of the noisy tokens, one
for one (`dsd_jax.flux.Flux.__call__`).

Other ways are known: channels beside the noisy ones (FLUX Fill and Depth), a longer sequence
(Kontext), a second network whose residuals are added (ControlNet), further keys and values
(IP-Adapter). Each would be one more object here, and one line of the model.
"""

import dataclasses
from collections.abc import Container

from dsd_jax.config import FluxConfig
from dsd_jax.types import Shape

__all__ = ["CANVAS", "Condition"]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One way in which a reference enters the transformer, by a Linear of its own.

    Attributes:
        name: name of the condition.
        module: path of the Linear in the model. Training an adapter trains it in full.
        diffusers: name of the Linear in diffusers' layout and in PEFT files.
        bfl: name of the Linear in Black Forest Labs' layout and in kohya files.
        diffusers_class: class of such a transformer in `config.json`.
    """

    name: str
    module: str
    diffusers: str
    bfl: str
    diffusers_class: str

    def owns(self, path: str) -> bool:
        """Whether a parameter (or the module itself) belongs to the condition."""
        return path == self.module or path.startswith(f"{self.module}.")

    def is_in(self, paths: Container[str]) -> bool:
        """Whether these paths include the condition's parameters."""
        return f"{self.module}.kernel" in paths

    def shapes(self, config: FluxConfig) -> dict[str, Shape]:
        """Path -> shape of every parameter of the condition."""
        return {
            f"{self.module}.kernel": (config.in_channels, config.width),
            f"{self.module}.bias": (config.width,),
        }


CANVAS = Condition(
    name="canvas",
    module="cond_in",
    diffusers="c_embedder",
    bfl="cond_in",  # ours alone: their models have no such layer
    diffusers_class="FluxTransformer2DConditionalModel",
)
