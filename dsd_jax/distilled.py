"""The sampling that a distilled adapter was trained for, as its files tell it."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from dsd_jax.errors import UserError
from dsd_jax.structured import parse_json

__all__ = ["HEADER", "Distilled"]

HEADER = "dsd_jax_distilled"
"""Key of the JSON text in the header of a LoRA file."""


@dataclasses.dataclass(frozen=True)
class Distilled:
    """The sampling that a distilled adapter was trained for: one pass, without true guidance.

    Attributes:
        guidance: Distilled guidance scale to sample with.
        i_guidance, t_guidance: Scales of the true guidance that one pass holds already.
        steps: Number of steps.
        mask: Step mask that it is sampled with; None where every step runs all blocks.
    """

    guidance: float
    i_guidance: float
    t_guidance: float
    steps: int
    mask: str | None = None

    @property
    def header(self) -> dict[str, str]:
        """The entry of the header of a LoRA file."""
        return {HEADER: json.dumps(dataclasses.asdict(self), sort_keys=True)}

    @classmethod
    def of_header(cls, header: Mapping[str, str], where: str) -> "Distilled | None":
        """Reads the entry of a file's header; None if it has none.

        Args:
            header: The header's strings.
            where: Name of the file.

        Raises:
            UserError: The entry cannot be read.
        """
        if HEADER not in header:
            return None
        place = f"{HEADER} in the header of {where}"
        given = parse_json(header[HEADER], place, dict)
        mask = given.pop("mask", None)
        numbers = [field.name for field in dataclasses.fields(cls) if field.name != "mask"]
        fits = given.keys() == set(numbers) and all(map(_is_number, given.values()))
        if not fits or not (mask is None or re.fullmatch("1[01]*", str(mask))):
            raise UserError(
                f"{place} must hold the numbers {', '.join(numbers)} and perhaps a mask, got "
                f"{header[HEADER]}; export the LoRA again"
            )
        return cls(**{**given, "steps": int(given["steps"])}, mask=mask)

    @property
    def needed(self) -> dict[str, str | int]:
        """Settings, by name, without which a student of few steps is not what it was trained to be.

        It learned along its own Euler steps, some of which run the first block alone. A student
        without a mask learned a velocity at all times, which any steps can follow.
        """
        if self.mask is None:
            return {}
        return {"steps": self.steps, "step_mask": self.mask, "solver": "euler"}

    def notice(self, name: str) -> str:
        """Says how to sample with the adapter `name`."""
        settings = {"guidance": f"{self.guidance:g}", "steps": self.steps, **self.needed}
        words = ", ".join(f"{setting} {value}" for setting, value in settings.items())
        return (
            f"{name} is distilled: one pass holds true guidance (i_guidance {self.i_guidance:g}, "
            f"t_guidance {self.t_guidance:g}); sample with {words}; leave out i_guidance"
        )

    @property
    def flags(self) -> str:
        """The flags of `dsd generate` to sample with, the solver being its default."""
        mask = f" --step_mask {self.mask}" if self.mask else ""
        return f"--guidance {self.guidance:g} --steps {self.steps}{mask}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
