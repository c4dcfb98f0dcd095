"""Scores of runs: their values, what is computed again, and what has no number."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.backbones import PixelBackbone
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.features import Backbone, FeatureStore, File, Input
from dsd_jax.infer.evaluate.moved import DriftBackbone
from dsd_jax.infer.evaluate.runs import Run, write_run
from dsd_jax.infer.evaluate.score import Summary, choose, score_runs
from dsd_jax.infer.evaluate.scores import metrics_of, read_scores
from dsd_jax.infer.evaluate.truth import TruthBackbone
from dsd_jax.toy.judge import Seen
from dsd_jax.toy.score import make_cases
from tests.infer.evaluate.evaluating import (
    SIDE,
    Colours,
    made_run,
    plain,
    save,
    toy_cases,
    true_picture,
)

RED, GREEN, MIXED = plain((200, 0, 0)), plain((0, 200, 0)), plain((100, 100, 0))
HALF = math.sqrt(0.5)
LEFT = np.arange(SIDE)[None] < SIDE // 2 + np.zeros((SIDE, 1))


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Two subjects: a red one with a second, green picture; and one with a single picture."""
    red = true_picture(tmp_path, "red", RED, LEFT)
    green = true_picture(tmp_path, "green", GREEN)
    blue = true_picture(tmp_path, "blue", plain((0, 0, 200)))
    return [
        Case("a-0", "jsonl", "a", "red", (red,), (green,)),
        Case("a-1", "jsonl", "a", "green", (red,), (green,)),
        Case("b-0", "jsonl", "b", "red", (blue,)),
    ]


@pytest.fixture
def run(tmp_path: Path, cases: list[Case]) -> Run:
    return made_run(tmp_path, "ours", cases, {"a-0": RED, "a-1": MIXED, "b-0": MIXED})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def scored(run: Run, name: str, store: FeatureStore, backbone: Backbone | None = None) -> Summary:
    """The scores of one metric."""
    plans = choose([name], [backbone or Colours()], 2)
    (summary,) = score_runs([run], plans, store)
    assert summary.scores == read_scores(run.folder, plans[0].name)
    return summary


def values(summary: Summary) -> list[float | None]:
    return [own.value for own in summary.scores]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dino", [1, HALF, 0]),
        ("dino-others", [0, HALF, None]),
        ("dino-all", [0.5, HALF, 0]),
        ("copy-angle", [1, 0, None]),
        ("copy-angle-over-0.5", [1, 0, None]),
        ("rank", [(1 + 2 / 3) / 2, 1, 1 / 3]),
        ("diversity-2", [1 - HALF, None]),
    ],
)
def test_values_by_hand(name: str, expected: list[float | None], run: Run, store: FeatureStore):
    summary = scored(run, name, store)
    assert values(summary) == [
        None if each is None else pytest.approx(each, abs=1e-6) for each in expected
    ]
    assert summary.count("undefined") == expected.count(None)
    assert summary.missing == 0


def test_similarity_is_named_after_the_family_of_its_backbone(run: Run, store: FeatureStore):
    assert values(scored(run, "clip-i", store, Colours("clip"))) == pytest.approx([1, HALF, 0])
    assert values(scored(run, "clip-t", store, Colours("clip"))) == pytest.approx([1, HALF, HALF])
    assert metrics_of(run.folder) == ["clip-i@colours", "clip-t@colours"]


def test_a_copy_of_the_reference_is_no_other_picture(
    tmp_path: Path, cases: list[Case], store: FeatureStore
):
    red, green = cases[0].reference, cases[0].targets[0]
    again = true_picture(tmp_path, "again", RED)
    case = dataclasses.replace(cases[0], references=(red, again), targets=(green, green))
    run = made_run(tmp_path, "ours", [case], {"a-0": MIXED})
    assert values(scored(run, "copy-angle", store)) == [pytest.approx(0)]
    assert values(scored(run, "dino-others", store)) == [pytest.approx(HALF)]
    alone = dataclasses.replace(case, references=(red, again), targets=())
    run = made_run(tmp_path, "alone", [alone], {"a-0": MIXED})
    assert scored(run, "copy-angle", store).scores[0].reason == (
        "the case has no other true picture of the subject"
    )


def test_every_case_counts_once_in_the_mean(tmp_path: Path, cases, store: FeatureStore):
    images = {"a-0": RED, "a-0_1": GREEN, "a-0_2": GREEN, "b-0": plain((0, 0, 9))}
    summary = scored(made_run(tmp_path, "seeds", cases, images), "dino", store)
    assert summary.mean == pytest.approx((1 / 3 + 1) / 2)
    assert summary.missing == 1


def test_sets_have_one_size_and_take_different_cases_first(
    tmp_path: Path, cases, store: FeatureStore
):
    images = {"a-0": RED, "a-0_1": GREEN, "a-1": MIXED, "b-0": RED}
    summary = scored(made_run(tmp_path, "seeds", cases, images), "diversity-2", store)
    assert [own.case for own in summary.scores] == ["a", "b"]
    assert values(summary) == [pytest.approx(1 - HALF), None]  # red and mixed
    assert summary.scores[1].reason == "the subject has 1 images, not 2"


def test_masks(tmp_path: Path, cases, run: Run, store: FeatureStore):
    """The subject is the left half of the reference, and a corner of one image."""
    pixels = PixelBackbone()
    before = scored(run, "cosine-subject", store, pixels)
    assert {own.reason for own in before.scores} == {"the image has no mask"}
    save(LEFT.astype(np.uint8) * 255, run.folder / "masks" / "a-0_0.png")
    save(np.zeros((SIDE, SIDE), np.uint8), run.folder / "masks" / "a-1_0.png")
    save(LEFT.astype(np.uint8) * 255, run.folder / "masks" / "b-0_0.png")
    for name in ("cosine-subject", "cosine-background"):
        summary = scored(run, name, store, pixels)
        assert summary.scores[0].value == pytest.approx(1)
    assert scored(run, "cosine-subject", store, pixels).scores[1].reason == (
        "the subject covers 0.0% of the picture; 5% are needed"
    )
    assert summary.scores[2].reason == "the reference has no mask"


def test_structure_inside_the_mask_of_the_reference(tmp_path: Path, store: FeatureStore):
    rng = np.random.default_rng(0)
    noise = rng.integers(1, 256, (SIDE, SIDE, 3), np.uint8)
    other = noise.copy()
    other[:, SIDE // 2 :] = rng.integers(1, 256, (SIDE, SIDE // 2, 3), np.uint8)
    case = Case("a", "jsonl", "a", "x", (true_picture(tmp_path, "noise", noise, LEFT),))
    run = made_run(tmp_path, "ours", [case], {"a": other, "a_1": plain((9, 9, 9))})
    inside = scored(run, "structure-novelty-subject", store)
    assert inside.scores[0].value == pytest.approx(0, abs=1e-6)
    assert inside.scores[1].state == "undefined"
    assert inside.scores[1].reason == "all parts of a picture are alike"
    whole = scored(run, "structure-novelty", store).scores[0].value
    assert whole is not None
    assert whole > 0.1


def test_exact_truth_of_the_toy_world(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    """With a judge that knows the drawings, since the pixel judge is slow to start."""
    cases = toy_cases(tmp_path, 2)
    drawn = {
        np.asarray(open_image(picture.path)).tobytes(): (own.subject, scene)
        for own, case in zip(make_cases(2), cases, strict=True)
        for picture, scene in ((case.reference, own.before), (case.targets[0], own.after))
    }

    def judge(picture: np.ndarray) -> Seen:
        subject, scene = drawn[picture.tobytes()]
        return Seen(**vars(subject), **vars(scene), error=0.0)

    monkeypatch.setattr("dsd_jax.infer.evaluate.truth.judge", judge)
    pixels = {case.id: np.asarray(open_image(case.reference.path)) for case in cases}
    copy = made_run(tmp_path, "copy", cases, pixels)
    right = made_run(
        tmp_path,
        "ideal",
        cases,
        {case.id: np.asarray(open_image(case.targets[0].path)) for case in cases},
    )
    plans = choose(["identity@toy", "prompt", "both", "copied"], [TruthBackbone()], 2)
    means = {(own.metric, own.method): own.mean for own in score_runs([copy, right], plans, store)}
    assert means == {
        ("identity@toy", "copy"): 1, ("identity@toy", "ideal"): 1,
        ("prompt@toy", "copy"): 0, ("prompt@toy", "ideal"): 1,
        ("both@toy", "copy"): 0, ("both@toy", "ideal"): 1,
        ("copied@toy", "copy"): 1, ("copied@toy", "ideal"): 0,
    }  # fmt: skip
    plans = choose(["cosine-subject", "cosine-background"], [PixelBackbone()], 2)
    means = {(own.metric, own.method): own.mean for own in score_runs([copy, right], plans, store)}
    assert means["cosine-subject@pixels", "copy"] == pytest.approx(1)
    assert means["cosine-subject@pixels", "ideal"] > 0.9  # the masks that the judge draws
    assert means["cosine-background@pixels", "ideal"] < 0.6


def test_truth_needs_a_toy_case_and_a_toy_picture(tmp_path: Path, run: Run, store: FeatureStore):
    assert scored(run, "identity", store, TruthBackbone()).scores[0].reason == (
        "the case is not of the toy world"
    )
    (case,) = toy_cases(tmp_path, 1)
    large = made_run(tmp_path, "large", [case], {case.id: np.zeros((64, 48, 3), np.uint8)})
    (own,) = scored(large, "identity", store, TruthBackbone()).scores
    assert own.state == "error"
    assert own.reason.endswith("has 48x64 pixels; a picture of the toy world has 32x32")
    odd = dataclasses.replace(case, id="odd", tags={})
    odd_run = made_run(tmp_path, "odd", [odd], {"odd": plain((1, 1, 1))})
    (own,) = scored(odd_run, "identity", store, TruthBackbone()).scores
    assert own.reason.startswith("case odd: the tag `shape` of a toy case is missing")


def test_drift_tells_the_reference_that_stands_still_from_one_that_moved(
    tmp_path: Path, store: FeatureStore
):
    coarse = np.random.default_rng(0).integers(0, 255, (26, 26, 3), np.uint8)
    scene = np.asarray(Pictures.fromarray(coarse).resize((208, 208), Pictures.Resampling.BICUBIC))
    reference = true_picture(tmp_path, "scene", scene[24:184, 24:184])
    cases = [Case(name, "jsonl", "a", "at night", (reference,)) for name in "abcd"]
    other = np.rot90(scene)[24:184, 24:184]
    images = {
        "a": (scene[24:184, 24:184] * 0.5).astype(np.uint8),
        "b": scene[24:184, 30:190],
        "c": np.ascontiguousarray(other),
        "d": plain((9, 9, 9)),
    }
    run = made_run(tmp_path, "relit", cases, images)
    drift = scored(run, "drift", store, DriftBackbone())
    assert values(drift) == [pytest.approx(0, abs=0.5), pytest.approx(6, abs=0.5), None, None]
    assert drift.scores[3].reason == "there is too little texture to see a shift"
    assert values(scored(run, "still", store, DriftBackbone())) == [1, 0, 0, None]


class TestAgain:
    def test_nothing_is_computed_twice(self, run: Run, store: FeatureStore):
        backbone = Colours()
        first = scored(run, "dino", store, backbone)
        assert backbone.seen == 3  # one image is its reference, and two are one picture
        assert scored(run, "dino", store, backbone) == first
        scored(run, "copy-angle", store, backbone)
        assert backbone.seen == 4  # the second true picture

    def test_a_changed_image_invalidates_its_own_row(
        self, tmp_path: Path, cases, run: Run, store: FeatureStore
    ):
        backbone = Colours()
        first = scored(run, "dino", store, backbone)
        changed = made_run(tmp_path, "ours", cases, {"a-0": RED, "a-1": GREEN, "b-0": MIXED})
        backbone.seen = 0
        again = scored(changed, "dino", FeatureStore(tmp_path / "empty"), backbone)
        assert backbone.seen == 2  # the image and its reference
        assert values(again) == pytest.approx([1, 0, 0])
        assert again.scores[0] == first.scores[0]

    def test_other_weights_invalidate_all_rows(self, run: Run, store: FeatureStore):
        scored(run, "dino", store)
        backbone = Colours()
        backbone.digest = "others"
        scored(run, "dino", store, backbone)
        assert backbone.seen == 3

    def test_scores_of_images_that_are_gone_go(self, cases, run: Run, store: FeatureStore):
        scored(run, "dino", store)
        fewer = write_run(run.folder, "ours", cases, run.images[:1], {})
        assert len(scored(fewer, "dino", store).scores) == 1

    def test_a_damaged_entry_of_the_cache_is_computed_again(
        self, run: Run, store: FeatureStore, tmp_path: Path
    ):
        backbone = Colours()
        scored(run, "dino", store, backbone)
        (run.folder / "scores" / "dino@colours.jsonl").unlink()
        entries = sorted(path for path in store.folder.rglob("*") if path.is_file())
        assert len(entries) == 3
        for entry, data in zip(
            entries, (b"", b"x" * 99, entries[2].read_bytes()[:-1]), strict=True
        ):
            entry.write_bytes(data)
        backbone.seen = 0
        assert values(scored(run, "dino", store, backbone)) == pytest.approx([1, HALF, 0])
        assert backbone.seen == 3

    def test_two_processes_may_share_a_cache(self, run: Run, tmp_path: Path):
        """Whoever comes first: both have all features, and no half-written file stays."""
        inputs = [Input("feature", (File(own.path, own.sha256),)) for own in run.images]
        stores = [FeatureStore(tmp_path / "shared") for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda store: store.fetch(Colours(), inputs), stores))
        for own in found:
            for given in inputs:
                np.testing.assert_array_equal(own[given], found[0][given])
        names = [path.name for path in (tmp_path / "shared").rglob("*") if path.is_file()]
        assert sorted(names) == sorted({given.key for given in inputs})


class TestErrors:
    def test_pictures_that_cannot_be_read_are_rows_and_are_tried_again(
        self, tmp_path: Path, cases, run: Run, store: FeatureStore
    ):
        image = run.images[1].path
        pixels = image.read_bytes()
        image.write_bytes(b"no picture")
        summary = scored(run, "dino", store)
        assert [own.state for own in summary.scores] == ["ok", "error", "ok"]
        assert summary.scores[1].reason.endswith(
            "a-1.png has changed since it was recorded; prepare the cases or import the run again"
        )
        image.unlink()
        assert scored(run, "dino", FeatureStore(store.folder)).scores[1].reason == (
            f"there is no file {image}"
        )
        image.write_bytes(pixels)
        assert scored(run, "dino", FeatureStore(store.folder)).count("ok") == 3

    def test_a_file_that_is_no_picture(self, tmp_path: Path, cases, store: FeatureStore):
        run = made_run(tmp_path, "ours", cases, {"a-0": plain((1, 1, 1))[:4]})
        assert "has 32x4 pixels; both sides must be >= 16" in (
            scored(run, "dino", store).scores[0].reason
        )

    def test_a_feature_without_direction(self, tmp_path: Path, cases, store: FeatureStore):
        run = made_run(tmp_path, "ours", cases, {"a-0": plain((0, 0, 0))})
        (own,) = scored(run, "dino", store).scores
        assert (own.state, own.reason.partition(";")[0]) == (
            "error",
            "a feature is zero or not finite",
        )


class TestChoice:
    def test_all_takes_what_says_something(self, run: Run, store: FeatureStore):
        plans = choose(["all"], [Colours(), PixelBackbone(), TruthBackbone()], 4)
        found = {own.metric for own in score_runs([run], plans, store, leave_out=True)}
        assert {"dino@colours", "dino-others@colours", "rank@colours", "cosine@pixels"} < found
        absent = ("dino-subject@colours", "clip-t@colours", "vendi-4@colours", "identity@toy")
        assert not found & set(absent)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("dinno", "there is no metric `dinno`; did you mean 'dino'?"),
            ("zzz", "there is no metric `zzz`; expected all, dino, dino-others"),
            ("dino", "`dino` needs a vision transformer such as facebook/dino-vits8: give --back"),
            ("clip-i@b32", "`clip-i@b32` needs a CLIP model such as openai/clip-vit-base-patch32"),
            ("lpips-diversity-4", "`lpips-diversity-4` needs the weights of LPIPS: give --backb"),
            ("rank@dino", "`rank` cannot use the backbone `dino`; it can use pixels"),
        ],
    )
    def test_metrics_that_cannot_run(self, name: str, message: str):
        with pytest.raises(UserError, match=f"^{message.replace('?', '.')}"):
            choose([name], [PixelBackbone(), TruthBackbone()], 4)

    def test_clip_t_needs_the_encoder_of_texts(self):
        backbone = Colours("clip")
        backbone.texts = False
        with pytest.raises(
            UserError, match=r"`clip-t` needs a CLIP model such as .*tokenizer\.json"
        ):
            choose(["clip-t"], [backbone], 4)
