"""Rules of Table 1: the paper's printed columns give its printed means, and gaps stay in sight."""

import dataclasses

import numpy as np
import pytest

from dsd_jax.infer.evaluate.aggregate import (
    AGGREGATORS,
    AggregatorName,
    Design,
    Grid,
    Mean,
    common_cases,
    mean_of,
    mean_of_products,
    only,
    with_zeros,
)
from dsd_jax.infer.evaluate.published import TABLE_1, Printed
from dsd_jax.infer.evaluate.ratings import Rating
from tests.infer.evaluate.dreambench import cases_of

CASES = cases_of()
# CP, PF and CP·PF by one rule for all methods, then CP·PF debiased: recomputed from the columns.
CONSISTENT = {
    "Textual Inversion": (0.381, 0.593, 0.226, 0.389),
    "DreamBooth": (0.496, 0.700, 0.347, 0.410),
    "DreamBooth-LoRA": (0.579, 0.850, 0.492, 0.588),
    "BLIP-Diffusion": (0.541, 0.488, 0.264, 0.332),
    "Emu2": (0.539, 0.675, 0.364, 0.424),
    "IP-Adapter": (0.569, 0.644, 0.366, 0.449),
    "IP-Adapter+": (0.821, 0.428, 0.351, 0.187),
    "DSD": (0.631, 0.726, 0.458, 0.604),
}


DESIGN = Design(CASES)


def grid(values, cases=CASES, scale=1.0) -> Grid:
    design = DESIGN if cases is CASES else Design(cases)
    return Grid(design, np.atleast_2d(np.asarray(values, float)), scale)


def printed_grids(row: Printed) -> tuple[Grid, Grid]:
    """Every item has the printed mean of its column, and the class between has what is left."""
    styles = {"photorealistic": row.photorealistic, "imaginative": row.imaginative}
    styles["style"] = row.style_transfer
    concept = [getattr(row, case.category, 0.5) for case in CASES]
    return grid(concept), grid([styles[case.prompt_class] for case in CASES])


def numbers(row: Printed, rule: AggregatorName) -> tuple[float, float, float]:
    cp, pf = (
        mean_of(found, AGGREGATORS[rule].of(aspect))
        for found, aspect in zip(printed_grids(row), ("cp", "pf"), strict=True)
    )
    return cp.estimate, pf.estimate, (cp * pf).estimate


@pytest.mark.parametrize("method", TABLE_1)
def test_one_rule_for_all_rows_of_table_1(method: str):
    vanilla = numbers(TABLE_1[method]["dreambench++"], "dsd-ours")
    _, _, debiased = numbers(TABLE_1[method]["dsd-debiased"], "dsd-ours")
    assert (*vanilla, debiased) == pytest.approx(CONSISTENT[method], abs=0.00051)
    assert TABLE_1[method]["dreambench++"].consistent == pytest.approx(vanilla)


def test_by_one_rule_another_method_leads_the_vanilla_product():
    products = {name: numbers(TABLE_1[name]["dreambench++"], "dsd-ours")[2] for name in TABLE_1}
    assert max(products, key=products.__getitem__) == "DreamBooth-LoRA"
    printed = {name: rows["dreambench++"].product for name, rows in TABLE_1.items()}
    assert max(printed, key=printed.__getitem__) == "DSD"


@pytest.mark.parametrize("method", TABLE_1)
def test_the_paper_made_its_baselines_by_one_rule_and_its_own_row_by_another(method: str):
    row = TABLE_1[method]["dreambench++"]
    rule: AggregatorName = "dsd-ours" if method == "DSD" else "dsd-baseline"
    cp, pf, product = numbers(row, rule)
    assert (cp, pf) == pytest.approx((row.cp, row.pf), abs=0.00071)
    if method != "DreamBooth-LoRA":  # whose printed product is not that of its means
        assert product == pytest.approx(row.product, abs=0.00061)


def test_official_takes_styles_and_multiplies_rounded_means():
    rule = AGGREGATORS["official"]
    concept = grid([4.0 if case.category == "style" else 1.0 for case in CASES], scale=4)
    assert mean_of(concept, rule.concept).estimate == (20 * 1 + 130 * 0.25) / 150
    assert rule.rounded(0.63149) == 0.631
    assert AGGREGATORS["dsd-ours"].rounded(0.63149) == 0.63149


def test_macro_weighs_subjects_however_many_items_they_have():
    cases = cases_of({"animal": 2})
    values = [1.0] * 9 + [0.0] * 9
    values[1:9] = [np.nan] * 8
    found = grid(values, cases)
    assert mean_of(found, AGGREGATORS["macro"].concept).estimate == 0.5
    assert mean_of(found, AGGREGATORS["official"].concept).estimate == pytest.approx(1 / 10)
    gone = grid([np.nan] * 9 + [0.25] * 9, cases)
    assert mean_of(gone, Mean("subject")).estimate == 0.25


def test_a_mean_of_products_is_no_product_of_means():
    cases = cases_of({"animal": 1, "object": 1, "style": 1}, prompts=9)
    rng = np.random.default_rng(0)
    concept, prompt = (grid(rng.integers(0, 5, (2, len(cases))), cases, 4) for _ in range(2))
    both = concept.values * prompt.values / 16
    kind = np.array([case.category for case in cases])
    index = np.array([case.prompt_index for case in cases])
    expected: dict[AggregatorName, float] = {
        "official": both.mean(),
        "macro": both.mean(),
        "dsd-ours": both[:, (kind != "style") & ~np.isin(index, (4, 5, 6))].mean(),
        "dsd-baseline": np.mean(
            [
                both[:, (kind == category) & np.isin(index, prompts)].mean()
                for category in ("animal", "object")
                for prompts in ((0, 1, 2, 3), (4, 5, 6), (7, 8))
            ]
        ),
    }
    for name, value in expected.items():
        found = mean_of_products(concept, prompt, AGGREGATORS[name])
        assert found.estimate == pytest.approx(value), name


def test_a_mean_of_products_renormalises_the_weights_of_cases_that_are_there():
    cases = cases_of({"animal": 1, "object": 1})
    values = np.ones(18)
    values[9:] = 0.5
    values[[0, 1, 2]] = np.nan
    concept, prompt = grid(values, cases), grid(np.ones(18), cases)
    found = mean_of_products(concept, prompt, AGGREGATORS["dsd-baseline"]).estimate
    weights = np.tile([1 / 4] * 4 + [1 / 3] * 3 + [1 / 2] * 2, 2)
    there = ~np.isnan(values)
    assert found == pytest.approx((weights * values)[there].sum() / weights[there].sum())


def test_a_quantity_gives_the_mean_of_any_sample_of_subjects():
    cases = cases_of({"animal": 3, "human": 2})
    rng = np.random.default_rng(1)
    values = rng.integers(0, 5, (2, len(cases))).astype(float)
    values[0, 5] = np.nan
    times = np.array([2, 0, 1, 2, 0])
    again = np.repeat(np.arange(len(cases)), np.repeat(times, 9))
    rules: tuple[AggregatorName, ...] = ("official", "dsd-baseline")
    for rule in rules:
        mean = AGGREGATORS[rule].concept
        quantity = mean_of(grid(values, cases, 4), mean)
        (drawn,) = quantity.value((times @ quantity.table)[None])
        kinds = np.array([cases[number].category for number in again])
        parts = [kinds == kind for kind in ("animal", "human")] if mean.by else [kinds != ""]
        rows = values[:, again] / 4
        assert drawn == pytest.approx(np.mean([[np.nanmean(r[p]) for p in parts] for r in rows]))


def rating(case="a-0", score=4.0, state="ok", sample=0, number=0, judge="j", scale=4):
    return Rating(case, sample, "dreambench++", "cp", judge, number, state, score, scale)


def test_ratings_become_a_grid_and_nothing_is_guessed():
    cases = [dataclasses.replace(case, id=f"a-{i}") for i, case in enumerate(CASES[:3])]
    found = Grid.of(
        Design(cases),
        [
            rating("a-0", 4),
            rating("a-0", 1, sample=1),
            rating("a-1", None, "refused"),
            rating("a-0", 2, number=1),
            rating("a-2", 3, number=1),
        ],
    )
    np.testing.assert_array_equal(found.values, [[2.5, np.nan, np.nan], [2, np.nan, 3]])
    assert not found.complete
    assert mean_of(found, Mean()).rounds == (2.5 / 4, 2.5 / 4)
    with pytest.raises(ValueError, match="too many values"):
        Grid.of(Design(cases), [rating(), rating(number=1, scale=10)])


def test_missing_scores_leave_the_common_cases_and_the_worst_case():
    cases = cases_of({"animal": 1})
    values = np.full((2, 9), 1.0)
    values[1, 3] = np.nan
    first, second = grid(values, cases), grid(np.full(9, 0.5), cases)
    left, right = common_cases([first, second])
    assert np.isnan(left.values).sum() == 2
    assert np.isnan(right.values).sum() == 1
    assert mean_of(with_zeros(first), Mean()).estimate == pytest.approx(17 / 18)
    assert mean_of(first, Mean()).estimate == 1
    assert np.isnan(mean_of(only(first, "category", "human"), Mean()).estimate)
