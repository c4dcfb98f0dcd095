"""Compares names and shapes of the published models' tensors: PyTorch's modules and our tables.

    python -m benchmarks.exact.full_size_names

The reference modules are built on torch's `meta` device from the published configurations, so that
nothing is downloaded or allocated. In both directions: we would write exactly their names and
shapes, and reading them would fill exactly our modules.
"""

import math

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as TorchT5Config

from benchmarks.results import save
from dsd_jax.config import FLOAT32, AutoencoderConfig, ClipConfig, T5Config, flux_dev, flux_schnell
from dsd_jax.convert.open import config_to_json, table_for
from dsd_jax.models import Config, abstract
from dsd_jax.weights import param_shapes

SECTIONS = {
    "": (
        "Names and shapes at full size",
        """Modules of the published configurations on torch's `meta` device against our tables and
our modules.""",
    ),
}


def reference(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the PyTorch module of a config, from its own JSON."""
    json = {key: value for key, value in config_to_json(config).items() if key[0] != "_"}
    with torch.device("meta"):
        match config:
            case AutoencoderConfig():
                module: torch.nn.Module = AutoencoderKL(**json)
            case T5Config():
                module = T5EncoderModel(TorchT5Config(**json))
            case ClipConfig():
                module = CLIPTextModel(CLIPTextConfig(**json))
            case _:
                module = FluxTransformer2DModel(**json)
    # The embedding that T5 shares with itself has two names; files have one.
    tied = {"encoder.embed_tokens.weight"}
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if k not in tied}


def published(name: str) -> str:
    """Adds the prefix of CLIP's published files, which transformers 5 drops."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def main() -> None:
    """Compares, prints, saves; any difference is an error."""
    models: dict[str, Config] = {
        "FLUX.1-dev transformer": flux_dev(condition_embed=False),
        "FLUX.1-schnell transformer": flux_schnell(),
        "FLUX.1 autoencoder": AutoencoderConfig(),
        "T5-v1.1-XXL encoder": T5Config(),
        "CLIP-L text encoder": ClipConfig(),
    }
    rows = []
    for title, config in models.items():
        table, theirs = table_for(config, "diffusers"), reference(config)
        if isinstance(config, ClipConfig):
            theirs = {
                published(name): s for name, s in theirs.items() if "position_ids" not in name
            }
        if table.their_shapes != theirs:
            raise SystemExit(
                f"{title}: {sorted(set(table.their_shapes.items()) ^ set(theirs.items()))}"
            )
        ours = param_shapes(abstract(config, precision=FLOAT32))
        if table.our_shapes != ours:
            raise SystemExit(
                f"{title}: {sorted(set(table.our_shapes.items()) ^ set(ours.items()))}"
            )
        count = sum(map(math.prod, ours.values()))
        rows.append(
            {
                "model": title,
                "tensors": len(theirs),
                "parameters": f"{count:,}",
                "ours": len(ours),
                "equal": "names and shapes, both ways",
            }
        )
    save(__file__, rows)


if __name__ == "__main__":
    main()
