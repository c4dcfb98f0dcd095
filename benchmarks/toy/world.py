"""Measures the pixel judge of the toy world on drawings, exact ones and spoilt ones.

    python -m benchmarks.toy.world [--pictures 500] [--seed 0]

Random subjects, held-out ones among them, in random scenes, half of them in another light than the
usual one, drawn exactly and then spoilt by noise, blur, JPEG, a shift of colours, or the toy
autoencoder. `wrong` matters most: the judge may find a picture unclear, but it should not be wrong.
"""

import argparse
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image, ImageFilter

from benchmarks.results import save
from dsd_jax.config import FLOAT32
from dsd_jax.convert.open import open_component
from dsd_jax.models import abstract, load
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.judge import SUBJECT, Seen, judge
from dsd_jax.toy.world import Scene, Subject, render, subjects

__all__ = ["autoencoder", "main"]

SECTIONS = {
    "": (
        "The judge of the toy world",
        """Random subjects in random scenes, half of them in one of the 27 lights beside the usual
one, drawn and then spoilt. A subject is right if shape, both colours and marking are; a scene is
right if background and place are; a light is right if tint, side and strength are. *Wrong* counts
answers that are not so. A shift of colours is light of another tint, so there no light is right
for sure.""",
    ),
}

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _noise(strength: float) -> Spoil:
    return lambda picture, rng: _bytes(picture + rng.normal(0, strength, picture.shape))


def _blur(radius: float) -> Spoil:
    blur = ImageFilter.GaussianBlur(radius)
    return lambda picture, _: np.asarray(Image.fromarray(picture).filter(blur))


def _jpeg(quality: int) -> Spoil:
    def spoil(picture: np.ndarray, _: np.random.Generator) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return spoil


def _tint(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bytes(picture * rng.uniform(0.85, 1.15, 3))


def autoencoder() -> Spoil:
    """Encodes and decodes a picture by the VAE of the toy FLUX."""
    component = open_component(toy_flux_path() / "vae")
    model = load(abstract(component.config, precision=FLOAT32), component.source)
    graphdef, state = nnx.split(model)

    @jax.jit
    def there_and_back(state: nnx.State, picture: jax.Array, key: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        return model.decode(model.encode(picture[None]).sample(key))[0]

    def spoil(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels = jnp.asarray(picture, jnp.float32) / 127.5 - 1
        key = jax.random.key(rng.integers(2**31))
        return _bytes((np.asarray(there_and_back(state, pixels, key)) + 1) * 127.5)

    return spoil


SPOILT: dict[str, Callable[[], Spoil]] = {
    "as drawn": lambda: lambda picture, _: picture,
    "noise of 8 levels": lambda: _noise(8),
    "noise of 20 levels": lambda: _noise(20),
    "blur of 0.8 pixels": lambda: _blur(0.8),
    "JPEG of quality 60": lambda: _jpeg(60),
    "colours off by up to 15 %": lambda: _tint,
    "toy autoencoder": autoencoder,
}


def _told(seen: Seen, subject: Subject, scene: Scene) -> dict[str, str]:
    """Subject, scene and light: `right`, `wrong` (something told is not so), or `unclear`."""
    told = {}
    for name, pairs in (
        ("subject", [(getattr(seen, n), getattr(subject, n)) for n in SUBJECT]),
        ("scene", [(getattr(seen, n), getattr(scene, n)) for n in ("background", "place")]),
        ("light", [(seen.light, scene.light)]),
    ):
        wrong = any(value not in {None, truth} for value, truth in pairs)
        right = all(value == truth for value, truth in pairs)
        told[name] = "wrong" if wrong else "right" if right else "unclear"
    return told


def _row(name: str, spoil: Spoil, pictures: int, seed: int) -> dict[str, Any]:
    known = subjects(held_out=False) + subjects(held_out=True)
    counts: dict[tuple[str, str], int] = {}
    for number in range(pictures):
        rng = np.random.default_rng((seed, number))
        subject = known[rng.integers(len(known))]
        scene = dataclasses.replace(Scene.draw(rng), light=Scene.light)
        if number % 2:
            scene = scene.relit(rng)
        picture = spoil(render(subject, scene), rng)
        for what, outcome in _told(judge(picture), subject, scene).items():
            counts[what, outcome] = counts.get((what, outcome), 0) + 1
    return {
        "pictures": name,
        **{
            f"{what} {outcome}": f"{counts.get((what, outcome), 0) / pictures:.3f}"
            for what in ("subject", "scene", "light")
            for outcome in ("right", "unclear", "wrong")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for name, make in SPOILT.items():
        rows.append(_row(name, make(), options.pictures, options.seed))
        print(rows[-1], flush=True)
    save(__file__, rows, **vars(options))


if __name__ == "__main__":
    main()
