"""The archive of DreamBench++ in its official layout, and everything that can be wrong with it."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pixels

from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256
from dsd_jax.infer.evaluate.archive import GPT, read_archive, write_archived
from dsd_jax.infer.evaluate.benches.names import METHODS
from dsd_jax.infer.evaluate.cases import Picture, write_cases
from dsd_jax.infer.evaluate.cli_report import archive as archive_command
from dsd_jax.infer.evaluate.ratings import Rating, read_ratings, write_ratings
from dsd_jax.infer.evaluate.report.make import make_report
from dsd_jax.infer.evaluate.report.parts import Report, ReportSettings
from dsd_jax.infer.evaluate.runs import Image, open_run, write_run
from dsd_jax.infer.evaluate.scores import read_scores
from tests.infer.evaluate.dreambench import cases_of

CASES = cases_of({"animal": [0, 7], "human": [0], "object": [3, 20], "style": [5]})
WORDS = ("dreambooth_sd", "ip_adapter_plus_vit_h_sdxl")
GROUPS, ROUNDS = ("group1", "group2"), ("full", "full2", "full3")
ASPECTS = {"cp": "concept_preservation", "pf": "prompt_following"}


def official_key(case_id: str) -> str:
    """The human and GPT files call object 20 by another name than the metric files."""
    return case_id.replace("object_20_rubik's_cube", "object_20_magic_cube")


def drawn(*names: object, most: int = 4) -> dict[str, int]:
    """Ratings of all cases that depend on nothing but the names."""
    rng = np.random.default_rng([sum(map(ord, "/".join(map(str, names)))), len(names)])
    return {
        official_key(case.id): int(score)
        for case, score in zip(CASES, rng.integers(0, most + 1, len(CASES)), strict=True)
    }


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))


def write_merged(root: Path) -> None:
    for word in WORDS:
        for aspect, long in ASPECTS.items():
            for group in GROUPS:
                folder = root / "data_human_rating" / "merged_data" / group
                put(folder / f"{word}-{aspect}.json", drawn(word, aspect, group))
            for setting in (*ROUNDS, "gpt4v_full", "w_cot"):
                folder = root / "data_gpt_rating" / f"{long}_{setting}"
                put(folder / f"{word}.json", drawn(word, aspect, setting))


def write_loose(root: Path) -> None:
    for word in WORDS:
        for group in GROUPS:
            cp, pf = drawn(word, "cp", group), drawn(word, "pf", group)
            pairs = {key: [cp[key], pf[key]] for key in cp}
            folder = root / "data_human_rating" / "raw_data" / group
            keys = list(pairs)
            put(folder / f"annotator_1-{word}.json", {key: pairs[key] for key in keys[:20]})
            put(folder / f"annotator-2-{word}.json", {key: pairs[key] for key in keys[20:]})
        for aspect, long in ASPECTS.items():
            for setting in ROUNDS:
                for key, score in drawn(word, aspect, setting).items():
                    name, _, prompt = key.rpartition("-")
                    put(
                        root
                        / "data_gpt_rating"
                        / f"{long}_{setting}"
                        / word
                        / f"{word}-{key}.json",
                        {
                            "method": "IP Adapter Giant",
                            "collection_id": name,
                            "prompt_index": int(prompt),
                            "score": score,
                            "content": f"Score: {score}",
                        },
                    )


def write_metrics(root: Path) -> None:
    for word in WORDS:
        for kind in ("dino", "clipi", "clipt"):
            found = {case.id: 50 + n / 10 for n, case in enumerate(CASES)}
            put(root / f"data_{kind}_rating" / f"{word}.json", found)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loose")
    write_loose(root)
    return root


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    write_merged(root)
    write_metrics(root)
    return root


def scores(ratings, judge: str, aspect: str, number: int = 0) -> dict[str, float | None]:
    return {
        rating.case: rating.score
        for rating in ratings
        if (rating.judge, rating.aspect, rating.round) == (judge, aspect, number)
    }


def own_ids(found: dict[str, int]) -> dict[str, int]:
    return {key.replace("magic_cube", "rubik's_cube"): score for key, score in found.items()}


def test_both_forms_are_read_alike(loose: Path, merged: Path):
    for folder in (loose, merged):
        read = read_archive(folder, CASES)
        assert [each.name for each in read.methods] == [METHODS[word] for word in WORDS]
        for word, each in zip(WORDS, read.methods, strict=True):
            assert len(each.ratings) == (2 * 2 + 2 * 3) * len(CASES)
            for group in GROUPS:
                found = scores(each.ratings, f"human/{group}", "cp")
                assert found == own_ids(drawn(word, "cp", group))
            for number, setting in enumerate(ROUNDS):
                found = scores(each.ratings, GPT, "pf", number)
                assert found == own_ids(drawn(word, "pf", setting))
            assert {rating.state for rating in each.ratings} == {"ok"}
            assert all(rating.published and rating.scale == 4 for rating in each.ratings)
    texts = {rating.text for rating in read_archive(loose, CASES).methods[0].ratings}
    assert "Score: 3" in texts


def test_ablations_are_named_and_left_out(merged: Path):
    assert read_archive(merged, CASES).ignored == [
        "concept_preservation_gpt4v_full",
        "concept_preservation_w_cot",
        "prompt_following_gpt4v_full",
        "prompt_following_w_cot",
    ]


def test_metrics_become_cosines_and_files_of_the_script_have_the_number_of_the_image(merged: Path):
    own = merged / "my_method_gs7_5_step100_seed42_torch_float16" / "dino_scores_v2.json"
    put(own, {f"-{CASES[0].id}_0": 25.0, f"{CASES[0].id}_1": 35.0})
    first, _, other = read_archive(merged, CASES).methods
    assert sorted(first.scores) == ["clip-i@archive", "clip-t@archive", "dino@archive"]
    assert first.scores["dino@archive"][10].value == pytest.approx(0.51)
    assert other.name == "my_method"
    assert [(s.sample, s.value) for s in other.scores["dinov2@archive"]] == [(0, 0.25), (1, 0.35)]


def test_what_is_no_score_keeps_its_state_and_is_counted(merged: Path):
    path = merged / "data_gpt_rating" / "concept_preservation_full" / "dreambooth_sd.json"
    found = json.loads(path.read_text())
    keys = list(found)
    wrong = [None, "3", 7, -1, True, float("nan")]
    found |= dict(zip(keys, wrong, strict=False))
    del found[keys[10]]
    put(path, found)
    dino = merged / "data_dino_rating" / "dreambooth_sd.json"
    put(dino, {CASES[0].id: None, CASES[1].id: 101, CASES[2].id: "x", CASES[3].id: 90})
    first = read_archive(merged, CASES).methods[0]
    own = [x for x in first.ratings if (x.judge, x.aspect, x.round) == (GPT, "cp", 0)]
    assert [rating.state for rating in own[:7]] == [
        *("unparsable", "unparsable", "out_of_range", "out_of_range", "unparsable", "unparsable"),
        "ok",
    ]
    assert [rating.text for rating in own[:4]] == ["null", '"3"', "7", "-1"]
    assert first.unusable == {"unparsable": 4, "out_of_range": 2, "error": 3}
    missing = first.missing(CASES)
    assert missing[f"{GPT} cp round 1"] == 1
    assert missing["dino@archive"] == len(CASES) - 4


def change(relative: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / relative
        put(path, edit(json.loads(path.read_text())))

    return apply


def both_names(found: dict) -> dict:
    return found | {"object_20_rubik's_cube-0": 1}


def differing_forms(root: Path) -> None:
    word, key = WORDS[0], "live_subject_animal_00_t-shirt-0"
    score = drawn(word, "cp", "full")[key]
    value = {"collection_id": key[:-2], "prompt_index": 0, "score": (score + 1) % 5}
    put(root / "data_gpt_rating" / "concept_preservation_full" / word / "a.json", value)


def two_loose_files(root: Path) -> None:
    folder = root / "data_gpt_rating" / "prompt_following_full2" / "emu2"
    for name in ("a", "b"):
        value = {"collection_id": "style_05_x", "prompt_index": 1, "score": 1}
        put(folder / f"{name}.json", value)


GPT_FILE = "data_gpt_rating/concept_preservation_full/dreambooth_sd.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(GPT_FILE, both_names), "rates object_20_rubik's_cube-0 twice; remove one"),
        (two_loose_files, r"b.json rates style_05_x-1 and .*a.json does so too; remove one"),
        (differing_forms, r"differ about .*; choose one with --layout loose or --layout merged"),
        (
            change(GPT_FILE, lambda found: found | {"live_subject_animal_99_dog-0": 1}),
            r"dreambooth_sd.json: 'live_subject_animal_99_dog-0' is no case of the benchmark",
        ),
        (change(GPT_FILE, lambda found: found | {"animal": 1}), "'animal' is no case of"),
        (change(GPT_FILE, lambda found: [found]), "expected an object, got an array"),
        (
            lambda root: put(root / "data_human_rating/raw_data/group1/a-emu2.json", {"k": 3}),
            r"k has 3, expected \[concept preservation, prompt following\]",
        ),
        (
            lambda root: put(root / "data_gpt_rating/prompt_following_full/emu2/a.json", {}),
            "has no collection_id, prompt_index, score; it is no rating",
        ),
        (
            lambda root: put(root / "data_human_rating/merged_data/group1/emu2.json", {}),
            "expected a name that ends in -cp.json or -pf.json",
        ),
        (
            lambda root: put(root / "dino_scores_v1.json", {}),
            "does not say whose images it scores; put it in a folder that has the name",
        ),
    ],
)
def test_a_damaged_archive_is_refused_by_file_and_reason(merged: Path, damage, message: str):
    damage(merged)
    with pytest.raises(UserError, match=message):
        read_archive(merged, CASES)


def test_a_layout_that_is_chosen_settles_a_difference(merged: Path):
    differing_forms(merged)
    first = read_archive(merged, CASES, "merged").methods[0]
    assert scores(first.ratings, GPT, "cp") == own_ids(drawn(WORDS[0], "cp", "full"))


def test_another_layout_is_named_for_what_it_lacks(tmp_path: Path):
    with pytest.raises(UserError, match=r"is no archive of DreamBench\+\+: .* found nothing"):
        read_archive(tmp_path, CASES)
    put(tmp_path / "ratings" / "emu2.json", {})
    with pytest.raises(UserError, match=r"expected one of data_human_rating, .* found ratings"):
        read_archive(tmp_path, CASES)
    put(tmp_path / "data_human_rating" / "other" / "emu2.json", {})
    with pytest.raises(UserError, match=r"holds no rating; expected such files as data_human"):
        read_archive(tmp_path, CASES)


def test_cases_of_another_benchmark_are_refused(merged: Path):
    other = [dataclasses.replace(CASES[0], subject="dog6", bench="dreambench")]
    with pytest.raises(UserError, match=r"case .* is of dreambench; make the cases with"):
        read_archive(merged, other)


def test_a_run_keeps_its_images_and_its_other_ratings(merged: Path, tmp_path: Path):
    folder = tmp_path / "run"
    image = Image(CASES[0].id, 0, tmp_path / "a.jpg", "1" * 64)
    write_run(folder, METHODS[WORDS[0]], CASES, [image], {"steps": 100})
    own = Rating(CASES[0].id, 0, "dreambench++", "cp", "new-judge", 0, "ok", 3.0)
    old = Rating(CASES[0].id, 0, "dreambench++", "cp", GPT, 7, "ok", 3.0, published=True)
    write_ratings(folder, [own, old])
    first = read_archive(merged, CASES).methods[0]
    for _ in range(2):
        write_archived(first, CASES, folder)
    assert open_run(folder).images == [image]
    assert open_run(folder).settings == {"steps": 100, "archive": "DreamBench++"}
    assert read_ratings(folder) == [*first.ratings, own]
    assert len(read_scores(folder, "clip-t@archive")) == len(CASES)


def test_the_archived_images_are_attached(merged: Path, tmp_path: Path, capsys):
    folder = tmp_path / "samples" / "dreambooth_sd_gs7_5_step100_seed42_torch_float16"
    for n, case in enumerate(CASES[:3]):
        name, _, prompt = case.id.rpartition("-")
        path = folder / "tgt_image" / name / f"{prompt}_0.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pixels.effect_noise((32, 32), 40 + n).convert("RGB").save(path)
    reference = tmp_path / "reference.png"
    Pixels.effect_noise((32, 32), 90).convert("RGB").save(reference)
    picture = Picture(reference, file_sha256(reference))
    cases = [dataclasses.replace(case, references=(picture,)) for case in CASES]
    write_cases(tmp_path / "cases.jsonl", cases)
    archive_command(
        *(merged, tmp_path / "cases.jsonl", tmp_path / "runs"), samples=tmp_path / "samples"
    )
    run = open_run(tmp_path / "runs" / WORDS[0])
    assert [image.case for image in run.images] == [case.id for case in CASES[:3]]
    assert len(read_ratings(run.folder)) == 10 * len(CASES)
    assert f"{METHODS[WORDS[1]]} has no images: " in capsys.readouterr().out
    assert open_run(tmp_path / "runs" / WORDS[1]).images == []


def official_round(values: list[float]) -> str:
    """`avg_std` of the official scripts, and how they print it."""
    mean = sum(values) / len(values)
    std = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
    return f"{round(mean, 3):.3f} ± {round(std, 3):.3f}"


def official_mean(found: dict[str, int], kind: str = "") -> float:
    """`cal_score` of `benchmarking.py`."""
    prompts = {"photorealistic": range(4), "style_transfer": range(4, 7), "imaginative": (7, 8)}
    own = [
        score
        for key, score in found.items()
        if kind in key or int(key.rpartition("-")[2]) in prompts.get(kind, ())
    ]
    return sum(own) / len(own) / 4


def official_alpha(*ratings: dict[str, int]) -> np.floating:
    """`kd_alpha` of `krippendorff_analysis.py`."""
    import krippendorff

    data = [[each[key] for key in sorted(each)] for each in ratings]
    return np.round(krippendorff.alpha(reliability_data=data, level_of_measurement="interval"), 3)


@pytest.fixture(scope="module")
def official_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("official")
    write_merged(root / "archive")
    write_metrics(root / "archive")
    read = read_archive(root / "archive", CASES)
    runs = [write_archived(each, CASES, root / each.method) for each in read.methods]
    return make_report(runs, ReportSettings(("official",), draws=2))


def lines_of(report: Report, title: str, number: int = 0) -> dict[str, list[str]]:
    (found,) = [each for each in report.sections if each.title == title]
    return {"/".join(row[:2]): list(row) for row in found.tables[number].rows}


@pytest.mark.parametrize("word", WORDS)
def test_the_official_table_of_scores_comes_out(official_report: Report, word: str):
    (section,) = [x for x in official_report.sections if x.title == f"Table 1, judged by {GPT}"]
    (row,) = [row for row in section.tables[0].rows if row[0] == METHODS[word]]
    expected: list[str] = []
    products = []
    kinds = {
        "cp": ("animal", "human", "object", "style"),
        "pf": ("photorealistic", "style_transfer", "imaginative"),
    }
    for aspect, names in kinds.items():
        rounds = [drawn(word, aspect, setting) for setting in ROUNDS]
        parts = [[official_mean(found, name) for found in rounds] for name in names]
        expected += [official_round(values)[:5] for values in parts]
        expected.append(official_round([official_mean(x) for x in rounds]))
        products.append(float(expected[-1][:5]))
    expected.append(f"{products[0] * products[1]:.3f}")
    assert list(row[1:]) == expected


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("aspect", "number"), [("cp", 0), ("pf", 1)])
def test_the_official_tables_of_agreement_come_out(
    official_report: Report, word: str, aspect: str, number: int
):
    from scipy import stats

    groups = [drawn(word, aspect, group) for group in GROUPS]
    rounds = [drawn(word, aspect, setting) for setting in ROUNDS]
    alphas = [
        np.round(sum(official_alpha(group, own) for group in groups) / 2, 3) for own in rounds
    ]
    row = lines_of(official_report, "Agreement with people", number)[f"{METHODS[word]}/{GPT}"]
    assert row[2] == f"{official_alpha(*groups):z.3f}"
    mean = np.round(sum(alphas) / 3, 3)
    assert row[3] == f"{mean:z.3f} ± {round(float(np.std(alphas, ddof=1)), 3):.3f}"
    found = [
        np.round(stats.pearsonr(list(group.values()), list(rounds[0].values()))[0], 4)
        for group in groups
    ]
    half = abs(found[0] - found[1]) / 2
    assert row[4] == f"{(found[0] + found[1]) / 2:z.3f} ± {half:.3f}"


def test_metrics_are_compared_with_people_too(official_report: Report):
    lines = lines_of(official_report, "Agreement with people")
    assert f"{METHODS[WORDS[0]]}/dino@archive" in lines
    assert f"{METHODS[WORDS[0]]}/clip-t@archive" not in lines


def test_the_command_writes_runs_and_says_what_is_missing(merged: Path, tmp_path: Path, capsys):
    change(GPT_FILE, lambda found: dict(list(found.items())[1:]) | {"style_05_t-shirt-1": None})(
        merged
    )
    write_cases(tmp_path / "cases.jsonl", CASES)
    archive_command(merged, tmp_path / "cases.jsonl", tmp_path / "runs")
    out = capsys.readouterr().out
    assert f"DreamBooth SD: {GPT} cp round 1 has no number for 1 of 54 cases" in out
    assert "DreamBooth SD: 1 numbers are unparsable" in out
    assert "ablations are left out: concept_preservation_gpt4v_full" in out
    assert open_run(tmp_path / "runs" / WORDS[1]).method == "IP-Adapter-Plus ViT-H SDXL"
