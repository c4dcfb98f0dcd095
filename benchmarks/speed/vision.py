"""Features of pictures: our vision transformer against transformers + torch, in the same run.

    python -m benchmarks.speed.vision                # 8 pictures
    python -m benchmarks.speed.vision --pictures 16 --rounds 7

Both sides read one file of random weights and take the same pictures, in float32 and with all
cores, and must agree before anything is timed. A round times ours, then theirs, from a decoded
picture of 640 x 480 to its feature; the table has medians over the rounds.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.results import save
from dsd_jax.convert.vision.open import open_vision
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.vision.tower import VisionTower

SECTIONS = {
    "": (
        "Features of pictures",
        """From a picture of 640 x 480 to its feature, random weights, float32, against transformers
and torch in the same run, in interleaved rounds. The machine was shared with other work: the rates
are too low, and the ratios are rough.""",
    ),
}

BOUND = 1e-4  # relative error of features


def peers() -> dict[str, torch.nn.Module]:
    """The models of the usual metrics with random weights."""
    torch.manual_seed(0)
    dino = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    small = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    )
    clip = transformers.CLIPVisionConfig()
    large = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    base = transformers.ViTConfig()
    return {
        "DINO ViT-S/16": transformers.ViTModel(dino, add_pooling_layer=False).eval(),
        "DINO ViT-B/16": transformers.ViTModel(base, add_pooling_layer=False).eval(),
        "DINOv2 ViT-S/14": transformers.Dinov2Model(small).eval(),
        "CLIP ViT-B/32": transformers.CLIPVisionModelWithProjection(clip).eval(),
        "CLIP ViT-L/14": transformers.CLIPVisionModelWithProjection(large).eval(),
    }


@torch.no_grad()
def their_features(model: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """The feature of every picture as evaluations take it."""
    out = model(pixels)
    return (out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]).numpy()


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of every run; each round has all of them, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = perf_counter()
            run()
            times[name].append(perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def compare(
    name: str,
    tower: VisionTower,
    peer: torch.nn.Module,
    processor: CLIPImageProcessorPil,
    images: list[Image.Image],
    rounds: int,
) -> dict[str, Any]:
    """The row of one model; raises where the two sides disagree."""

    def their_pixels() -> torch.Tensor:
        return processor(images, return_tensors="pt")["pixel_values"]

    ours, theirs = tower.features(images), their_features(peer, their_pixels())
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    if error > BOUND:
        raise SystemExit(f"{name}: ours and transformers disagree: {error:.2e} > {BOUND:.0e}")
    runs = {
        "ours": lambda: tower.features(images),
        "torch": lambda: their_features(peer, their_pixels()),
    }
    rate = {side: len(images) / seconds for side, seconds in interleaved(runs, rounds).items()}
    row = {
        "model": name,
        "ours pictures/s": round(rate["ours"], 2),
        "torch pictures/s": round(rate["torch"], 2),
        "ours / torch": round(rate["ours"] / rate["torch"], 2),
        "error": f"{error:.1e}",
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Checks, times, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=8, help="ours pads to multiples of 8")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = (arguments.pictures, 480, 640, 3)
    images = [
        Image.fromarray(own) for own in np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ]
    processor = CLIPImageProcessorPil()  # its settings are the defaults of `Preprocess`
    rows = []
    for name, peer in peers().items():
        with tempfile.TemporaryDirectory() as folder:
            peer.save_pretrained(folder)
            tower = open_vision(folder, Preprocess())
        rows.append(compare(name, tower, peer, processor, images, arguments.rounds))
    save(__file__, rows, pictures=arguments.pictures, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
