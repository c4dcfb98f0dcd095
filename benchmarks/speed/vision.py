"""Features of pictures: our vision transformer against transformers + torch, in the same run.

    python -m benchmarks.speed.vision                # 8 pictures
    python -m benchmarks.speed.vision --pictures 16 --rounds 7

Both sides read one file of random weights and take the same pixels, in float32 and with all cores,
and must agree before anything is timed. A round times ours, then theirs; the table has medians over
the rounds. The way from a picture of 640 x 480 to pixels is Pillow's on both sides.
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
        """Random weights in float32, 224 x 224 pixels, against transformers and torch in the same
run; medians of interleaved rounds.""",
    ),
}

BOUND = 1e-4  # relative error of features


def peers() -> dict[str, torch.nn.Module]:
    """The reference models with random weights."""
    torch.manual_seed(0)
    dino = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    small = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    )
    clip = transformers.CLIPVisionConfig()
    return {
        "DINO ViT-B/16": dino.eval(),
        "DINOv2 ViT-S/14": transformers.Dinov2Model(small).eval(),
        "CLIP ViT-B/32": transformers.CLIPVisionModelWithProjection(clip).eval(),
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
) -> list[dict[str, Any]]:
    """The rows of one model; raises where the two sides disagree."""

    def their_pixels() -> torch.Tensor:
        return processor(images, return_tensors="pt")["pixel_values"]

    given = their_pixels()
    pixels = np.ascontiguousarray(given.numpy().transpose(0, 2, 3, 1))
    ours, theirs = tower.features(images), their_features(peer, given)
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    if error > BOUND:
        raise SystemExit(f"{name}: ours and transformers disagree: {error:.2e} > {BOUND:.0e}")
    stages = {
        "pixels to feature": (
            lambda: np.asarray(tower.embed(pixels)),
            lambda: their_features(peer, given),
        ),
        "picture to feature": (
            lambda: tower.features(images),
            lambda: their_features(peer, their_pixels()),
        ),
    }
    rows = []
    for stage, (our_run, their_run) in stages.items():
        times = interleaved({"ours": our_run, "torch": their_run}, rounds)
        per_second = {side: len(images) / seconds for side, seconds in times.items()}
        rows.append(
            {
                "model": name,
                "from": stage,
                "ours pictures/s": round(per_second["ours"], 2),
                "torch pictures/s": round(per_second["torch"], 2),
                "ours / torch": round(per_second["ours"] / per_second["torch"], 2),
                "error": f"{error:.1e}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Checks, times, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
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
        rows += compare(name, tower, peer, processor, images, arguments.rounds)
    save(__file__, rows, pictures=arguments.pictures, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
