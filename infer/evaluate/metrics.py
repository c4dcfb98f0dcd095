"""Cheap metrics on features of pictures, as pure functions.

Features come from `dsd_jax.vision`. Every score depends on the model that made them, so the name of
a metric carries the name of the model: `dino@dino-vits8`, `clip-t@clip-vit-base-patch32`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from dsd_jax.types import Bool, Float

__all__ = [
    "average_precision",
    "copy_angle",
    "cosine",
    "diversity",
    "mean_per_case",
    "mean_similarity",
    "structure_novelty",
    "vendi",
]

SAME = 1e-6  # radians; pictures closer than this are one picture to the model


def _unit(features: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
    """Features of length 1, in float64.

    Raises:
        ValueError: A feature is zero or not finite, and so has no direction.
    """
    wide = np.asarray(features, np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a feature is zero or not finite; the weights of its model are damaged")
    return wide / length


def cosine(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
    """Cosine similarity of each pair of features, in [-1, 1].

    DINO, DINOv2 and CLIP-I compare an output with its reference, CLIP-T compares it with its
    prompt; DreamBench++ prints 100 times this.

    Raises:
        ValueError: See `_unit`.
    """
    return np.clip((_unit(a) * _unit(b)).sum(-1), -1, 1)


def mean_similarity(generated: Float[np.ndarray, "n D"], real: Float[np.ndarray, "m D"]) -> float:
    """Mean cosine of every output of a subject with every real picture of it.

    The DINO and CLIP-I scores of DreamBooth (Ruiz et al. 2023, section 4.2).

    Raises:
        ValueError: See `_unit`.
    """
    return float((_unit(generated) @ _unit(real).T).mean())


def copy_angle(
    generated: Float[np.ndarray, "n D"],
    reference: Float[np.ndarray, "n D"],
    target: Float[np.ndarray, "n D"],
) -> Float[np.ndarray, " n"]:
    """Position of an output between a copy of the reference and another true picture.

    `(angle(generated, target) - angle(generated, reference)) / angle(target, reference)`, by the
    triangle inequality in [-1, 1]: 1 is the reference, -1 the target, 0 as far from both. The
    copy-paste metric of MultiID-Bench (WithAnyone, arXiv 2510.14975), there for faces.

    Args:
        generated: Features of outputs.
        reference: Features of the pictures that the method was given.
        target: Features of other pictures of the same subject.

    Returns:
        One number per output; 0 where reference and target are one picture.

    Raises:
        ValueError: See `_unit`.
    """
    to_target, to_reference, apart = (
        np.arccos(cosine(a, b))
        for a, b in ((generated, target), (generated, reference), (target, reference))
    )
    distinct = apart >= SAME
    return np.where(distinct, (to_target - to_reference) / np.where(distinct, apart, 1), 0.0)


def structure_novelty(
    generated: Float[np.ndarray, "h w D"],
    reference: Float[np.ndarray, "h_ref w_ref D"],
    mask: Bool[np.ndarray, "h_ref w_ref"] | None = None,
) -> float:
    """Measures the difference of layout and pose between an output and its reference.

    `1 - r`, where r is Pearson's correlation, over pairs of different patches, of the similarities
    that the patches of either picture have among themselves (DivRL, arXiv 2606.23950). It is 0 for
    the same layout in any style, 1 for an unrelated one, 2 at most.

    Args:
        generated, reference: Features of patches on the same grid.
        mask: Patches of the reference that show the subject; None takes all.

    Returns:
        The novelty; NaN where all pairs of one picture are equally similar.

    Raises:
        ValueError: The grids differ, or fewer than three patches are left; see also `_unit`.
    """
    if generated.shape != reference.shape:
        raise ValueError(f"grids differ: {generated.shape} and {reference.shape}")
    inside = np.ones(reference.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    if inside.sum() < 3:
        raise ValueError(f"the mask leaves {inside.sum()} patches; at least 3 are needed")
    first, second = (_centred(_pairs(patches[inside])) for patches in (generated, reference))
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return 1 - float(first @ second / scale) if scale else float("nan")


def _pairs(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " pairs"]:
    """Cosine of every pair of different rows."""
    unit = _unit(features)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _centred(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return values - values.mean()


def average_precision(scores: Float[np.ndarray, " n"], relevant: Bool[np.ndarray, " n"]) -> float:
    """Average precision of a ranking: mean, over what is relevant, of the precision down to it.

    With an output as the query, true pictures of look-alike subjects as the gallery and those of
    its own subject as relevant, the mean over outputs is the mAP of Finer-Personalization Rank
    (arXiv 2512.19026). 1 means that all own pictures come first. Of equal scores, the relevant
    one counts as the later.

    Raises:
        ValueError: Nothing is relevant.
    """
    if not relevant.any():
        raise ValueError("nothing in the gallery is relevant")
    ranked = relevant[np.lexsort((relevant, -scores))]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def diversity(features: Float[np.ndarray, "n D"]) -> float:
    """`1 - mean cosine` over the pairs of outputs of one subject.

    Raises:
        ValueError: Fewer than two outputs; see also `_unit`.
    """
    if len(features) < 2:
        raise ValueError("diversity needs at least two outputs")
    return 1 - float(_pairs(features).mean())


def vendi(features: Float[np.ndarray, "n D"]) -> float:
    """Effective number of different outputs (Friedman and Dieng 2023), from 1 to n.

    `exp(-sum x log x)` over the eigenvalues x of the matrix of cosines divided by n. It grows with
    n, so only sets of one size can be compared.

    Raises:
        ValueError: No outputs; see also `_unit`.
    """
    if len(features) == 0:
        raise ValueError("the Vendi score needs at least one output")
    unit = _unit(features)
    values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    positive = values[values > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def mean_per_case(cases: Iterable[str], scores: Sequence[float]) -> dict[str, float]:
    """Mean score of every case, in the order in which cases first appear.

    A case with more outputs than others, from more seeds, counts no more than they do.

    Raises:
        ValueError: As many cases as scores are needed.
    """
    groups: dict[str, list[float]] = {}
    for case, score in zip(cases, scores, strict=True):
        groups.setdefault(case, []).append(score)
    return {case: float(np.mean(own)) for case, own in groups.items()}
