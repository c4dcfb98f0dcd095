"""Reports of synthetic runs: what a reader must see, and what may not stand in one column."""

import csv
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pixels

from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256
from dsd_jax.infer.evaluate.aggregate import Design
from dsd_jax.infer.evaluate.calibrate import Anchor, Calibration, write_calibration
from dsd_jax.infer.evaluate.cli_report import report as report_command
from dsd_jax.infer.evaluate.panels import Rated, panels_of
from dsd_jax.infer.evaluate.ratings import Rating, write_ratings
from dsd_jax.infer.evaluate.report.gallery import cards_of, disagreements
from dsd_jax.infer.evaluate.report.make import make_report, write_report
from dsd_jax.infer.evaluate.report.parts import Report, ReportSettings, Section, Table
from dsd_jax.infer.evaluate.runs import Image, Run, open_runs, write_run
from dsd_jax.infer.evaluate.scores import Score, write_scores
from tests.infer.evaluate.dreambench import cases_of

EVIL = 'a <script>alert("1")</script> | & $x_1$ {b} cat'
CASES = [
    dataclasses.replace(case, prompt=EVIL if case.prompt_index == 0 else case.prompt)
    for case in cases_of({"animal": 2, "human": 2, "object": 2, "style": 1})
]
ALL = ReportSettings(draws=50)
FEW = ReportSettings(("official", "dsd-ours"), draws=50)
ANSWER: dict[str, Any] = {"answered_by": "model-1", "rubric": "r1", "cost": 0.01}


def rated(
    cases=CASES,
    protocol="dreambench++",
    aspects=("cp", "pf"),
    judge="judge-a",
    level=2,
    rounds=1,
    seed=0,
    **fields: Any,
) -> list[Rating]:
    rng = np.random.default_rng(seed)
    return [
        Rating(
            *(case.id, 0, protocol, aspect, judge, number, "ok"),
            score=float(np.clip(level + rng.integers(-1, 2), 0, 4)),
            **{**ANSWER, **fields},
        )
        for aspect, number, case in itertools.product(aspects, range(rounds), cases)
    ]


def far_from(rating: Rating) -> float:
    return 0.0 if (rating.score or 0) > 2 else 4.0


def run_of(folder: Path, method: str, ratings: list[Rating], images=()) -> Run:
    run = write_run(folder / method, method, CASES, images, {})
    write_ratings(run.folder, ratings)
    return run


@pytest.fixture
def two(tmp_path: Path) -> list[Run]:
    return [
        run_of(tmp_path, "ours", rated(level=3)),
        run_of(tmp_path, "theirs", rated(level=1, seed=1)),
    ]


def section(report: Report, title: str) -> Section:
    (found,) = [each for each in report.sections if each.title.startswith(title)]
    return found


def table(report: Report, title: str, number: int = 0) -> Table:
    return section(report, title).tables[number]


def column(found: Table, name: str) -> dict[str, str]:
    place = list(found.columns).index(name)
    return {row[0]: row[place] for row in found.rows}


def mean(ratings: list[Rating], aspect: str, *categories: str) -> float:
    kinds = {case.id: case.category for case in CASES}
    own = [
        x.score / 4
        for x in ratings
        if x.score is not None
        and x.aspect == aspect
        and (not categories or kinds[x.case] in categories)
    ]
    return float(np.mean(own))


class TestTables:
    def test_table_1_has_a_table_for_each_rule(self, two: list[Run]):
        report = make_report(two, ALL)
        tables = {each.title: each for each in section(report, "Table 1, judged by").tables}
        assert list(tables) == ["official", "dsd-baseline", "dsd-ours", "macro"]
        ours = rated(level=3)
        official = tables["official"]
        assert official.blocks[1][0] == "dreambench++"
        assert column(official, "animal")["ours"] == f"{mean(ours, 'cp', 'animal'):.3f}"
        cp, pf = round(mean(ours, "cp"), 3), round(mean(ours, "pf"), 3)
        assert column(official, "CP·PF")["ours"] == f"{cp * pf:.3f}"
        assert "style" in official.columns
        assert "style" not in tables["dsd-ours"].columns
        expected = mean(ours, "cp", "animal", "human", "object")
        assert column(tables["dsd-ours"], "CP")["ours"] == f"{expected:.3f}"
        assert any("one round, so no standard deviation" in note for note in official.notes)

    def test_rounds_have_a_standard_deviation(self, tmp_path: Path):
        ratings = rated(rounds=3)
        run = run_of(tmp_path, "ours", ratings)
        official = table(make_report([run], FEW), "Table 1")
        means = [mean([x for x in ratings if x.round == n], "cp") for n in range(3)]
        expected = f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
        assert column(official, "CP")["ours"] == expected

    def test_protocols_of_one_judge_stand_side_by_side(self, tmp_path: Path):
        both = rated() + rated(protocol="dsd-debiased", level=1)
        report = make_report([run_of(tmp_path, "ours", both)], FEW)
        found = table(report, "Table 1")
        assert [title for title, _ in found.blocks] == ["", "dreambench++", "dsd-debiased"]
        assert len(found.columns) == sum(count for _, count in found.blocks)
        assert "no measure of identity" in section(report, "Table 1").words

    def test_published_rows_are_marked_and_only_shown_if_asked_for(self, two: list[Run]):
        assert not any("published" in each.title for each in make_report(two, FEW).sections)
        report = make_report(two, dataclasses.replace(FEW, paper=True))
        printed = table(report, "Table 1, published")
        assert all(row[0].endswith("(published)") for row in printed.rows)
        assert printed.rows[-1][:9] == [
            *("DSD (published)", "0.647", "0.567", "0.640", "0.631"),
            *("0.777", "0.625", "0.726", "0.458"),
        ]
        ours = column(table(report, "Table 1, judged by", 1), "CP·PF")
        assert ours["DreamBooth-LoRA (published)"] == "0.492"
        assert "ours" in ours
        assert {row.published for row in report.rows if row.judge == "published"} == {True}

    def test_every_number_has_an_interval_that_holds_it(self, two: list[Run]):
        report = make_report(two, FEW)
        found = table(report, "Numbers with intervals")
        assert found.columns == [*("method", "rule", "CP", "PF", "CP·PF", "mean of CP·PF", "first")]
        assert len(found.rows) == 4
        for cell in itertools.chain.from_iterable(row[2:6] for row in found.rows):
            value, low, high = map(float, re.findall(r"[\d.]+", cell))
            assert low <= value + 0.0006
            assert value <= high + 0.0006
        assert found.rows[0][-1] == "100%"

    def test_a_split_is_never_merged_and_plotted(self, tmp_path: Path):
        split = rated(protocol="split", aspects=("identity", "novelty", "prompt"))
        report = make_report([run_of(tmp_path, "ours", split)], FEW)
        found = table(report, "Numbers with intervals")
        assert list(found.columns) == ["method", "rule", "identity", "novelty", "prompt"]
        (dot,) = section(report, "Identity and novelty").points
        assert dot.name == "ours"
        assert dot.y.value == pytest.approx(mean(split, "identity"), abs=0.001)

    def test_omnicontext_has_the_root_of_both_scores(self, tmp_path: Path):
        ratings = [
            Rating(case.id, 0, "omnicontext", aspect, "j", 0, "ok", score, 10)
            for case in CASES
            for aspect, score in (("pf", 4.0), ("sc", 9.0))
        ]
        found = table(make_report([run_of(tmp_path, "ours", ratings)], FEW), "Numbers with")
        assert column(found, "overall")["ours"].startswith("0.600")

    def test_differences_are_paired_and_adjusted(self, two: list[Run], tmp_path: Path):
        same = run_of(tmp_path, "same", rated(level=3))
        found = table(make_report([*two, same], FEW), "Paired differences")
        lines = {(row[0], row[1]): row for row in found.rows}
        assert lines["same", "CP"][2:] == ["+0.000 (+0.000 to +0.000)", "1.0000", "63"]
        assert lines["theirs", "CP"][2].startswith("-0.")
        assert float(lines["theirs", "CP"][3]) == pytest.approx(2 / 51, abs=0.05)

    def test_metrics_stand_beside_their_states(self, two: list[Run]):
        scores = [Score(case.id, 0, "", "ok", 0.5) for case in CASES]
        scores[3] = Score(CASES[3].id, 0, "", "undefined", None, "no mask")
        write_scores(two[0].folder, "dino@dino-vits8", scores)
        subject = CASES[0].subject
        write_scores(two[0].folder, "diversity@x", [Score(subject, 0, "", "ok", 0.25)])
        found = table(make_report(two, FEW), "Metrics")
        assert column(found, "dino@dino-vits8") == {"ours": "0.500 (0.500 to 0.500)"}
        assert column(found, "diversity@x")["ours"].startswith("0.250")
        assert found.notes == ["dino@dino-vits8: 1 undefined (ours)."]

    def test_a_score_of_no_case_is_refused(self, two: list[Run]):
        write_scores(two[0].folder, "dino@x", [Score("gone-0", 0, "", "ok", 0.5)])
        with pytest.raises(UserError, match="dino@x scores gone-0, which is no case of the run"):
            make_report(two, FEW)


class TestMissing:
    def test_nothing_is_dropped_silently(self, tmp_path: Path):
        ratings = rated()
        ratings[0] = dataclasses.replace(ratings[0], state="refused", score=None)
        del ratings[1]
        runs = [run_of(tmp_path, "ours", ratings), run_of(tmp_path, "theirs", rated(seed=1))]
        report = make_report(runs, FEW)
        assert [(gap.case, gap.reason) for gap in report.gaps] == [
            (CASES[0].id, "refused"),
            (CASES[1].id, "not rated"),
        ]
        missing = section(report, "Missing items")
        assert ["ours", "dreambench++ cp", "judge-a", "refused", "1"] in [
            list(row) for row in missing.tables[0].rows
        ]
        present, common, worst = (
            {row.method: row.value for row in report.rows if row.cases == cases}
            for cases in ("present", "common", "worst")
        )
        assert len(present) == len(common) == len(worst) == 2
        cp = {
            (row.method, row.cases): row.value
            for row in report.rows
            if (row.aggregator, row.number) == ("official", "cp")
        }
        total = sum(x.score for x in ratings if x.aspect == "cp" and x.score is not None) / 4
        assert cp["ours", "present"] == round(total / 61, 3)
        assert cp["ours", "worst"] == round(total / 63, 3)
        both = [x for x in rated(seed=1) if x.aspect == "cp"][2:]
        assert cp["theirs", "common"] == round(mean(both, "cp"), 3)
        assert cp["theirs", "worst"] == cp["theirs", "present"]

    def test_another_image_of_the_case_hides_no_gap(self, tmp_path: Path):
        ratings = rated(aspects=("cp",))
        second = dataclasses.replace(ratings[0], sample=1, state="refused", score=None)
        run = run_of(tmp_path, "ours", [*ratings, second])
        (gap,) = make_report([run], FEW).gaps
        assert (gap.case, gap.sample, gap.reason) == (CASES[0].id, 1, "refused")

    def test_a_run_that_a_judge_did_not_rate_is_missing(self, tmp_path: Path):
        both = rated() + rated(judge="judge-b") + rated(judge="gpt", published=True)
        runs = [run_of(tmp_path, "ours", both), run_of(tmp_path, "theirs", rated())]
        (gap,) = make_report(runs, FEW).gaps
        assert (gap.method, gap.case, gap.judge) == ("theirs", "all", "judge-b")
        assert gap.reason == "no case is rated"

    def test_a_rating_of_another_image_does_not_count(self, tmp_path: Path):
        image = Image(CASES[0].id, 0, tmp_path / "a.png", "1" * 64)
        ratings = rated()
        ratings[0] = dataclasses.replace(ratings[0], sha256="2" * 64)
        ratings[1] = dataclasses.replace(ratings[1], sha256="1" * 64)
        run = run_of(tmp_path, "ours", ratings, [image])
        report = make_report([run], FEW)
        assert report.runs[0].stale == 1
        reasons = {(gap.what, gap.reason) for gap in report.gaps if gap.case == CASES[0].id}
        assert reasons == {("dreambench++ cp", "not rated")}
        assert sum(gap.what == "image" for gap in report.gaps) == len(CASES) - 1


class TestJudges:
    def panels(self, folder: Path, *ratings: list[Rating], allow_mixed: bool = False):
        return panels_of(
            [Rated(Run(folder, f"m{n}", CASES, []), own, 0) for n, own in enumerate(ratings)],
            Design(CASES),
            allow_mixed=allow_mixed,
        )

    def test_different_judges_stand_in_one_column_only_if_told(self, tmp_path: Path):
        mine, other = rated(), rated(judge="judge-b")
        with pytest.raises(
            UserError, match=r"no judge rated all the runs \(judge-a rated m0; judge-b rated m1\)"
        ):
            self.panels(tmp_path, mine, other)
        (panel,) = self.panels(tmp_path, mine, other, allow_mixed=True)
        assert panel.judge == "judge-a and judge-b"
        assert list(panel.methods) == ["m0", "m1"]

    def test_a_common_judge_makes_a_table_of_its_own(self, tmp_path: Path):
        panels = self.panels(tmp_path, rated() + rated(judge="judge-b"), rated())
        assert [(panel.judge, list(panel.methods)) for panel in panels] == [
            ("judge-a", ["m0", "m1"]),
            ("judge-b", ["m0"]),
        ]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"answered_by": "model-2"}, r"judge-a was answered by model-1 \(`m0`\) and model-2"),
            ({"rubric": "r2"}, r"judge-a was given the rubric r1 \(`m0`\) and r2 \(`m1`\)"),
            ({"answered_by": ""}, r"answered by model-1 \(`m0`\) and no name \(`m1`\)"),
        ],
    )
    def test_one_name_may_not_hide_two_judges(self, tmp_path: Path, fields, message: str):
        with pytest.raises(UserError, match=message):
            self.panels(tmp_path, rated(), rated(**fields))
        assert len(self.panels(tmp_path, rated(), rated(**fields), allow_mixed=True)) == 1

    def test_groups_of_people_are_rounds_of_one_judge(self, tmp_path: Path):
        people = rated(judge="human/group1") + rated(judge="human/group2", seed=3)
        (panel,) = self.panels(tmp_path, people)
        assert panel.judge == "human"
        assert len(panel.methods["m0"]["cp"].values) == 2

    def test_agreement_with_people_is_shown_where_people_rated(self, tmp_path: Path):
        people = rated(judge="human/group1") + rated(judge="human/group2")
        run = run_of(tmp_path, "ours", [*people, *rated()])
        found = table(make_report([run], FEW), "Agreement with people")
        assert list(found.rows[0]) == ["ours", "judge-a", "1.000", "1.000", "1.000 ± 0.000"]

    def test_costs_are_those_of_paid_answers(self, tmp_path: Path):
        paid = rated(input_tokens=1000, output_tokens=5)
        free = rated(judge="human/group1", cost=None) + rated(judge="gpt", published=True)
        paid[0] = dataclasses.replace(paid[0], cost=None)
        found = table(make_report([run_of(tmp_path, "ours", paid + free)], FEW), "Costs")
        (row,) = found.rows
        assert row[2:] == [
            *("judge-a", "126", "126,000", "630", "1.2500 without 1 of unknown price")
        ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("written")
    images = {}
    for n, method in enumerate(("ours", "theirs <b>|x_1")):
        path = tmp_path / f"{n}.png"
        Pixels.new("RGB", (300, 200), (90 * n, 120, 90)).save(path)
        images[method] = path
    reference = dataclasses.replace(CASES[0].reference, path=images["ours"])
    cases = [dataclasses.replace(case, references=(reference,)) for case in CASES]
    for n, (method, path) in enumerate(images.items()):
        made = [Image(case.id, 0, path, file_sha256(path)) for case in cases[:20]]
        run = write_run(tmp_path / f"run{n}", method, cases, made, {})
        write_ratings(run.folder, rated(level=1 + n, seed=n))
    runs = open_runs([tmp_path / "run0", tmp_path / "run1"])
    write_report(runs, tmp_path / "report", EVIL, dataclasses.replace(FEW, gallery=3, paper=True))
    return tmp_path / "report"


class TestCalibration:
    def calibrated(self, tmp_path: Path, **fields: Any) -> ReportSettings:
        anchors = tuple(
            Anchor("old", case.id, case.subject, aspect, (2.0 + n % 2,), (1.0 + n % 2, 1.0), (3.0,))
            for aspect in ("cp", "pf")
            for n, case in enumerate(CASES[:20])
        )
        values: dict[str, Any] = {"judge": "judge-a", "rubric": "r1", **fields}
        made = Calibration(1, scale=4, anchors=anchors, unscored={"refused": 2}, **values)
        write_calibration(tmp_path / "calibration.json", made)
        return dataclasses.replace(FEW, calibration=(tmp_path / "calibration.json",))

    def test_means_are_corrected_by_the_errors_on_the_anchors(self, two: list[Run], tmp_path: Path):
        report = make_report(two, self.calibrated(tmp_path))
        found = table(report, "Calibration", 1)
        judged = mean(rated(level=3), "cp")
        assert column(found, "CP")["ours"] == f"{judged:.3f}"
        # People gave 1.25 on average where the judge gave 2.5.
        assert column(found, "CP corrected")["ours"].startswith(f"{judged - 1.25 / 4:.3f} (")
        agreement = table(report, "Calibration")
        assert agreement.notes == ["2 answers are refused."]
        assert agreement.rows[0][1] == "judge-a and people"
        assert agreement.rows[0][3].startswith("+1.250 (")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"judge": "judge-b"}, "calibrates judge-b, but the runs were judged by judge-a"),
            ({"rubric": "r2"}, "judge-a with the rubric r2, but the runs were judged with r1"),
        ],
    )
    def test_a_calibration_of_another_judge_is_refused(
        self, two: list[Run], tmp_path: Path, fields, message: str
    ):
        with pytest.raises(UserError, match=message):
            make_report(two, self.calibrated(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, "draws must be at least 1 and gallery at least 0, got 0 and 40"),
        ({"gallery": -1}, "got 10000 and -1"),
        ({"aggregator": ()}, "aggregator names one or more of official, dsd-baseline, dsd-ours"),
    ],
)
def test_settings_that_make_no_report_are_refused(fields, message: str):
    with pytest.raises(UserError, match=message):
        ReportSettings(**fields)


class TestFiles:
    def test_the_page_stands_alone_and_escapes_what_is_foreign(self, written: Path):
        page = (written / "report.html").read_text()
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "theirs &lt;b&gt;" in page
        assert not re.search(r'(src|href)="(?!data:|#)', page)
        assert page.count('<article class="card"') == 3
        assert page.count("<img") == 9
        assert 'href="#section-0"' in page
        assert len(page) < 300_000

    def test_markdown_and_latex_escape_what_is_foreign(self, written: Path):
        markdown = (written / "report.md").read_text()
        assert "<b>" not in markdown
        assert r"theirs \<b\>\|x\_1" in markdown
        lines = [line for line in markdown.splitlines() if line.startswith("|")]
        assert {"---"} <= {cell.strip() for line in lines for cell in line.split("|")}
        latex = (written / "report.tex").read_text()
        assert r"x\_1" in latex
        assert r"\toprule" in latex
        assert "DSD (published)" in latex

    def test_the_numbers_can_be_read_again(self, written: Path):
        rows = list(csv.DictReader((written / "numbers.csv").read_text().splitlines()))
        (cp,) = [
            row
            for row in rows
            if (row["method"], row["aggregator"], row["number"], row["cases"])
            == ("ours", "official", "cp", "present")
        ]
        assert float(cp["value"]) == pytest.approx(mean(rated(level=1), "cp"), abs=0.0005)
        assert float(cp["low"]) < float(cp["value"]) < float(cp["high"])
        gaps = list(csv.DictReader((written / "missing.csv").read_text().splitlines()))
        assert len(gaps) == 2 * (len(CASES) - 20)

    def test_a_cell_is_no_formula(self, tmp_path: Path):
        run = run_of(tmp_path, "=cmd()", rated())
        write_report([run], tmp_path / "report", "t", FEW)
        assert "\n'=cmd()," in (tmp_path / "report" / "numbers.csv").read_text()

    def test_the_command_names_its_files(self, two: list[Run], tmp_path: Path, capsys):
        report_command(tuple(run.folder for run in two), tmp_path / "out", settings=FEW)
        names = ("report.html", "report.md", "report.tex", "numbers.csv", "missing.csv")
        out = capsys.readouterr().out
        for name in names:
            assert f"wrote {tmp_path / 'out' / name}" in out
            assert (tmp_path / "out" / name).stat().st_size > 0
        with pytest.raises(UserError, match="a report needs a run"):
            report_command((), tmp_path / "out")


def test_an_image_that_is_gone_is_said_in_its_place(tmp_path: Path):
    image = Image(CASES[0].id, 0, tmp_path / "gone.png", "")
    run = run_of(tmp_path, "ours", rated(), [image])
    (card,) = cards_of(make_report([run], FEW), 5)
    assert card.pictures[1].name.endswith("\nThe image cannot be read.")
    assert "reference" in card.pictures[0].name


def test_cases_on_which_judges_differ_come_first(tmp_path: Path):
    first = rated(aspects=("cp",), level=2)
    second = [dataclasses.replace(each, judge="judge-b", score=each.score) for each in first]
    second[5] = dataclasses.replace(second[5], score=far_from(first[5]))
    run = Run(tmp_path, "ours", CASES, [])
    order = disagreements(CASES, panels_of([Rated(run, first + second, 0)], Design(CASES)))
    assert order[0].case == 5
    assert order[0].judges >= 0.5
    assert np.isnan(order[0].methods)
    assert order[1].judges == 0


def test_cases_on_which_methods_differ_come_first_with_one_judge(tmp_path: Path):
    first = rated(aspects=("cp",), level=2)
    second = [*first]
    second[7] = dataclasses.replace(second[7], score=far_from(first[7]))
    runs = [Run(tmp_path, name, CASES, []) for name in ("a", "b")]
    rated_runs = [Rated(run, own, 0) for run, own in zip(runs, (first, second), strict=True)]
    order = disagreements(CASES, panels_of(rated_runs, Design(CASES)))
    assert order[0].case == 7
