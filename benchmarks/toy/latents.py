"""Measures at what times the text decides on the toy world.

    python -m benchmarks.toy.latents [--pictures 200]

It measures the distance of the latents of pictures that differ in one word, normalised as the
transformer sees them. For two pictures at distance d, x_t reveals its picture with a detectability
of d' = d (1 - t) / t (signal detection with Gaussian noise of standard deviation t). At d' = 2 a
guess is right in 84 % of the cases; above the t of d' = 2 the text has to decide. In a grid the
four panels differ alike, so that d is twice as large.
"""

import argparse
import dataclasses

import jax.numpy as jnp
import numpy as np

from benchmarks.results import save
from dsd_jax.autoencoder import Autoencoder, normalize
from dsd_jax.config import FLOAT32
from dsd_jax.convert.open import open_component
from dsd_jax.models import abstract, load
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.judge import SUBJECT
from dsd_jax.toy.world import COLOURS, MARKINGS, SHAPES, Scene, Subject, render, subjects

__all__ = ["main"]

SECTIONS = {
    "": (
        "When the toy text decides",
        """Latents of two pictures that differ in one word, and the time above which x_t no longer
tells them apart (d' = 2: right in 84 % of the cases), so that the text has to.""",
    ),
}

WORDS = {"shape": SHAPES, "body": tuple(COLOURS), "mark": tuple(COLOURS), "marking": MARKINGS}


def changed(subject: Subject, name: str, rng: np.random.Generator) -> Subject:
    """The subject with another word of this kind."""
    others = [word for word in WORDS[name] if word not in dataclasses.astuple(subject)]
    return dataclasses.replace(subject, **{name: others[rng.integers(len(others))]})


def latents(model: Autoencoder, pictures: list[np.ndarray]) -> np.ndarray:
    """One row per picture."""
    pixels = jnp.asarray(np.stack(pictures), jnp.float32) / 127.5 - 1
    means = normalize(model.encode(pixels).mean, model.config)
    return np.asarray(means).reshape(len(pictures), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=200)
    count = parser.parse_args().pictures
    component = open_component(toy_flux_path() / "vae")
    model = load(abstract(component.config, precision=FLOAT32), component.source)
    rng = np.random.default_rng(0)
    pool = subjects(held_out=False)
    drawn = [(pool[rng.integers(len(pool))], Scene.draw(rng)) for _ in range(count)]
    first = latents(model, [render(subject, scene) for subject, scene in drawn])
    rows = []
    for name in SUBJECT:
        other = latents(model, [render(changed(s, name, rng), scene) for s, scene in drawn])
        distance = float(np.median(np.linalg.norm(first - other, axis=1)))
        rows.append(
            {
                "another": name,
                "median distance": f"{distance:.1f}",
                "of latents": first.shape[1],
                "one picture: decided above t": f"{distance / (distance + 2):.2f}",
                "a grid of four: decided above t": f"{2 * distance / (2 * distance + 2):.2f}",
            }
        )
        print(rows[-1], flush=True)
    save(__file__, rows, pictures=count)


if __name__ == "__main__":
    main()
