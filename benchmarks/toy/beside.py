"""Measures how well the toy teacher paints beside a given picture, before any student training.

    python -m benchmarks.toy.beside [--cases 200] [--steps 16] [--flux FOLDER]

It uses the cases of `study.py` without condition and adapter: the left half of the canvas is the
reference, clean at every step, and the words are "two pictures of this thing, right-hand on ...".
Subjects are held out. `loss`: mean squared error of the right half's velocity at one time, for the
drawing that would be right; `identity` and so on as in `study.py`, of sampled right halves.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.results import save
from benchmarks.toy.study import intervals
from dsd_jax.config import FLOAT32
from dsd_jax.convert.open import open_flux
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import to_mesh
from dsd_jax.frames import Canvas, FluxInputs, unpack_latents
from dsd_jax.images import from_array
from dsd_jax.infer.sampler import Carry, sample
from dsd_jax.infer.solvers import EULER
from dsd_jax.models import abstract, load
from dsd_jax.quickstart.inputs import TEXT_TOKENS
from dsd_jax.sharding import make_mesh
from dsd_jax.toy.folder import toy_flux_path
from dsd_jax.toy.judge import SUBJECT, judge
from dsd_jax.toy.making.inpaint import Inpaint
from dsd_jax.toy.making.recipes import toy_teacher
from dsd_jax.toy.score import Case, make_cases, score
from dsd_jax.toy.words import describe_pair
from dsd_jax.toy.world import PANEL
from dsd_jax.train.encode import Encoder
from dsd_jax.train.objective import frame_weights
from dsd_jax.types import Array

SECTIONS = {
    "": (
        "The toy teacher beside a given picture",
        """The cases of the study, painted by the teacher itself: the left half is the reference,
clean at every step, and the words do not name the subject. A student of this teacher can build on
that. *Loss* is that of the right half's velocity at one time, for the right drawing. *Shape* to
*marking* are shares of pictures in which the judge sees the reference's.""",
    ),
}

TIMES = (0.97, 0.9, 0.8)
CANVAS = Canvas(PANEL // 4, PANEL // 2)


def batch_of(cases: list[Case]) -> PairBatch:
    """Canvases of the reference and a right answer, with the words for them."""
    none = np.zeros(len(cases), bool)
    both = [np.concatenate([case.reference(), case.ideal()], axis=1) for case in cases]
    return PairBatch(
        0,
        len(cases),
        np.arange(len(cases)),
        (PANEL, 2 * PANEL),
        [case.id for case in cases],
        [describe_pair(case.after) for case in cases],
        none,
        none,
        target=np.stack(both),
    )


def measure(flux: Path, cases: list[Case], steps: int) -> dict[str, Any]:
    """One row."""
    config = toy_teacher()
    mesh = make_mesh(config.mesh)
    base = open_flux(flux, max_sequence_length=TEXT_TOKENS)
    encoder = Encoder(base, config, mesh)
    graph, state = nnx.split(
        load(
            abstract(base.transformer.config, precision=FLOAT32), base.transformer.source, mesh=mesh
        )
    )
    batch = encoder(to_mesh(batch_of(cases), mesh), 0)
    objective = Inpaint(config.flow, base.schedule, CANVAS)
    right = frame_weights(CANVAS)[1, :, None] > 0
    clean = jnp.zeros(len(cases))

    @jax.jit
    def loss(state: nnx.State, noise: Array, t: Array) -> Array:
        times = jnp.broadcast_to(t, clean.shape)
        model = nnx.merge(graph, state)
        return objective.beside(model, batch, noise, times, clean).loss

    @jax.jit
    def paint(state: nnx.State, noise: Array, times: Array) -> Array:
        model = nnx.merge(graph, state)

        def predict(x: Array, t: Array) -> Array:
            t = jnp.broadcast_to(t, clean.shape)
            return jnp.where(right, model(x, t, FluxInputs(batch.txt, batch.vec), CANVAS), 0)

        start = Carry(jnp.where(right, noise, batch.x_0), ())
        return unpack_latents(sample(EULER, predict, start, times, times[:-1]).img, CANVAS)

    noise = jax.random.normal(jax.random.key(0), batch.x_0.shape)
    losses = {f"loss at t = {t}": f"{loss(state, noise, jnp.float32(t)):.3f}" for t in TIMES}
    times = jnp.asarray(base.schedule.timesteps(steps, right.size))
    canvases = np.asarray(encoder.images.decode(paint(state, noise, times)))
    made = [np.asarray(from_array(canvas[:, PANEL:])) for canvas in canvases]
    told = [(judge(picture), case.subject) for case, picture in zip(cases, made, strict=True)]
    parts = {
        name: np.mean([getattr(s, name) == getattr(wanted, name) for s, wanted in told])
        for name in SUBJECT
    }
    return {
        **losses,
        **{name: f"{share:.2f}" for name, share in parts.items()},
        **intervals([score(case, picture) for case, picture in zip(cases, made, strict=True)]),
    }


def main() -> None:
    """Measures, prints and saves; it takes about a minute on two cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--flux", type=Path, default=None, help="default: the package's")
    given = parser.parse_args()
    row = measure(given.flux or toy_flux_path(), make_cases(given.cases), given.steps)
    print(row)
    if given.flux is None:
        save(__file__, [row], cases=given.cases, sampling_steps=given.steps)


if __name__ == "__main__":
    main()
