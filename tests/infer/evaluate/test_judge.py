"""Judging a run: every answer becomes a rating, and nothing is asked or paid twice."""

import dataclasses
import json

import pytest

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.judge import (
    estimates,
    judge_runs,
    ledger_of,
    spent_on,
    tallies,
)
from dsd_jax.infer.evaluate.protocols import load_protocols
from dsd_jax.infer.evaluate.queries import (
    JudgeConfig,
    load_judge,
    open_queries,
    queries,
    valid_ratings,
)
from dsd_jax.infer.evaluate.ratings import Rating, read_ratings, write_ratings
from dsd_jax.infer.evaluate.sampling import stratified
from dsd_jax.llm import batched, online
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.totals import read_totals
from dsd_jax.llm.transport import AnswersPending
from tests.core.llm.server import Server
from tests.core.llm.wire import Drop, Reply, Status
from tests.infer.evaluate.judged import MODEL, drawn, judge_of, made_cases, made_run, score_for

OTHER_TEXTS = """
protocol = "split"
version = "mine"
scale = 4
[questions.identity]
shows = ["output"]
subject = { task = "?" }
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(batched, "SETTLE_S", 0.01)


def command(words):
    return cli.main(["evaluate", "judge", *words])


@pytest.fixture
def cases(tmp_path):
    return made_cases(tmp_path / "bench", 4)


@pytest.fixture
def run(tmp_path, cases):
    return made_run(tmp_path, "ours", cases)


def ask(run, server, *names, rounds=1, aspects=(), seed=0, **settings):
    """Judges a run and returns its ratings."""
    judge = judge_of(server, **settings)
    asked = queries(run, load_protocols(names or ["split"]), rounds, aspects)
    judge_runs([(run, open_queries(run, asked, judge, seed))], judge)
    return read_ratings(run.folder)


class TestRatings:
    def test_every_question_becomes_a_rating_with_its_price(self, run):
        with Server(score_for) as server:
            ratings = ask(run, server, "dreambench++", "split", rounds=2)
        assert len(ratings) == server.paid == 4 * (2 + 3) * 2
        assert {each.state for each in ratings} == {"ok"}
        first = next(each for each in ratings if each.aspect == "cp")
        (image,) = [each for each in run.images if each.case == first.case]
        assert (first.judge, first.answered_by, first.sha256) == (MODEL, MODEL, image.sha256)
        assert first.rubric == load_protocols(["dreambench++"])[0].rubric
        assert (first.scale, first.text) == (4, f"Score: {first.score:.0f}")
        assert (first.input_tokens, first.output_tokens) == (100, 10)
        bill = read_totals(ledger_of(run))
        assert sum(each.cost or 0 for each in ratings) == pytest.approx(bill.cost)
        assert bill.cost > 0

    def test_the_judge_never_learns_which_method_made_an_image(self, tmp_path, cases):
        run = made_run(tmp_path, "our-method", cases)
        bodies = []

        def noted(question):
            bodies.append(question.body)
            return "Score: 1"

        with Server(noted) as server:
            ask(run, server, "dreambench++")
        assert len(bodies) == 8
        assert "our-method" not in json.dumps(bodies)

    def test_each_way_to_have_no_score_is_a_state_and_keeps_its_text(self, run):
        answers: dict[str, str | Reply] = {
            "prompt 0": Reply("I would rather not", finish="blocked"),
            "prompt 1": "Score: 2\nScore: 2",
            "prompt 2": "Score: 7",
            "prompt 3": Reply([{"type": "text", "text": "<think>Score: 1</think>Score: 3"}]),
        }
        with Server(lambda question: answers[question.text]) as server:
            ratings = ask(run, server, "dreambench++", aspects=("pf",))
        assert [(each.state, each.score) for each in ratings] == [
            ("refused", None),
            ("unparsable", None),
            ("out_of_range", None),
            ("ok", 3),
        ]
        assert [each.text for each in ratings[1:3]] == ["Score: 2\nScore: 2", "Score: 7"]

    def test_a_question_that_the_server_rejects_is_refused_with_its_reason(self, run):
        bad = Status(400, '{"error": {"message": "unsafe picture"}}')
        with Server(lambda q: bad if q.text == "prompt 2" else "Score: 1") as server:
            ratings = ask(run, server, "dreambench++", aspects=("pf",))
        assert [each.state for each in ratings] == ["ok", "ok", "refused", "ok"]
        assert "unsafe picture" in ratings[2].text
        assert ratings[2].cost is None
        judge = judge_of(server)
        counts = tallies(run, queries(run, load_protocols(["dreambench++"]), 1, ("pf",)), judge)
        assert counts["dreambench++", "pf"].cost == pytest.approx(3 * 1.4e-5)

    def test_ratings_by_others_stay(self, run):
        published = Rating("s0-0", 0, "dreambench++", "cp", "human/group1", 0, "ok", 3.0)
        write_ratings(run.folder, [published])
        with Server(score_for) as server:
            ratings = ask(run, server)
        assert published in ratings
        assert len(ratings) == 1 + 4 * 3

    def test_an_archived_judge_is_not_judged_over(self, run):
        write_ratings(
            run.folder, [Rating("s0-0", 0, "split", "prompt", MODEL, 0, "ok", 3.0, published=True)]
        )
        with Server(score_for) as server:
            with pytest.raises(
                UserError, match=r"has archived ratings by gpt-4\.1-nano.*; judge a copy"
            ):
                ask(run, server)
            assert server.received == 0

    def test_the_order_is_the_seeds(self, run):
        asked = queries(run, load_protocols(["split"]), 3)
        with Server() as server:
            judge = judge_of(server)
        orders = [[q.key(judge) for q in open_queries(run, asked, judge, s)] for s in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == sorted(orders[2])


class TestResuming:
    def test_a_second_command_asks_only_for_what_is_new(self, run):
        with Server(score_for) as server:
            ask(run, server, rounds=1)
            assert server.paid == 12
            ratings = ask(run, server, rounds=2)
            assert (server.paid, len(ratings)) == (24, 24)
            assert ask(run, server, rounds=2) == ratings
            assert server.paid == 24

    def test_paid_answers_without_ratings_are_read_from_the_ledger(self, run):
        with Server(score_for) as server:
            ratings = ask(run, server)
            (run.folder / "ratings.jsonl").unlink()  # killed before they were written
            assert ask(run, server) == ratings
            assert server.paid == 12

    def test_an_image_that_changed_is_judged_anew_and_no_other(self, run, cases):
        with Server(score_for) as server:
            before = ask(run, server)
            drawn(run.images[1].path, (9, 9, 9))
            with pytest.raises(UserError, match=r"s0-1\.png has changed since it was recorded"):
                ask(run, server, rounds=2)
            assert server.paid == 12
            changed = made_run(run.folder.parent, "ours", cases)  # draws the first one again
            assert ask(changed, server) == before
            digest = drawn(run.images[1].path, (9, 9, 9))
            images = [
                dataclasses.replace(each, sha256=digest) if number == 1 else each
                for number, each in enumerate(run.images)
            ]
            again = dataclasses.replace(run, images=images)
            after = ask(again, server)
        assert server.paid == 12 + 3
        assert [each for each in after if each.case != "s0-1"] == [
            each for each in before if each.case != "s0-1"
        ]
        assert {each.sha256 for each in after if each.case == "s0-1"} == {digest}

    def test_other_texts_ask_anew(self, run, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(OTHER_TEXTS)
        with Server(score_for) as server:
            ask(run, server, aspects=("identity",))
            judge = judge_of(server)
            asked = queries(run, load_protocols(["split"], path), 1)
            assert not valid_ratings(run, asked, judge)
            judge_runs([(run, open_queries(run, asked, judge, 0))], judge)
        assert server.paid == 8
        assert {each.rubric for each in read_ratings(run.folder)} == {asked[0].protocol.rubric}

    def test_batches_give_the_same_scores_at_half_the_price(self, run):
        with Server(score_for) as server:
            batched_ones = ask(run, server, mode="batch", poll_seconds=0.01)
            assert (server.paid, server.received) == (12, 0)
            write_ratings(run.folder, [])
            ledger_of(run).unlink()
            single = ask(run, server)
        assert [each.cost for each in batched_ones] == [(each.cost or 0) / 2 for each in single]
        assert [each.score for each in batched_ones] == [each.score for each in single]


class TestStopping:
    def test_another_model_ends_the_run_with_its_name(self, run):
        with Server(lambda _: Reply("Score: 1", model="gpt-4.1-nano")) as server:
            with pytest.raises(UserError, match=r"but `gpt-4\.1-nano` answered; set model"):
                ask(run, server, "dreambench++")
            assert not read_ratings(run.folder)
            ratings = ask(run, server, "dreambench++", accept_models=("gpt-4.1-nano",))
        assert {each.answered_by for each in ratings} == {"gpt-4.1-nano"}
        assert {each.judge for each in ratings} == {MODEL}

    def test_what_was_answered_is_kept_when_the_money_is_spent(self, run):
        with Server(score_for) as server:
            with pytest.raises(UserError, match=r"max_calls is 5 calls: 5 are spent"):
                ask(run, server, max_calls=5)
            assert len(read_ratings(run.folder)) == server.paid == 5
            assert {each.state for each in read_ratings(run.folder)} == {"ok"}
            assert len(ask(run, server, max_calls=12)) == server.paid == 12

    def test_answers_to_other_texts_make_no_ratings_when_the_money_is_spent(self, run, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(OTHER_TEXTS)
        with Server(score_for) as server:
            ask(run, server, aspects=("identity",), max_calls=6)
            judge = judge_of(server, max_calls=6)
            asked = queries(run, load_protocols(["split"], path), 1)
            with pytest.raises(UserError, match="max_calls is 6 calls"):
                judge_runs([(run, open_queries(run, asked, judge, 0))], judge)
            assert server.paid == 6
        rubrics = [each.rubric for each in read_ratings(run.folder)]
        assert rubrics.count(asked[0].protocol.rubric) == 2

    def test_a_cap_holds_for_all_runs_of_a_command(self, tmp_path, cases):
        runs = [made_run(tmp_path, name, cases) for name in ("ours", "theirs")]
        with Server(score_for) as server:
            judge = judge_of(server, max_calls=15)
            split = load_protocols(["split"])
            todo = [(run, open_queries(run, queries(run, split, 1), judge, 0)) for run in runs]
            with pytest.raises(UserError, match=r"max_calls is 15 calls: 15 are spent"):
                judge_runs(todo, judge)
            assert server.paid == 15
        assert [len(read_ratings(run.folder)) for run in runs] == [12, 3]
        assert spent_on(runs).calls == 15

    def test_a_judge_that_never_gives_a_score_is_stopped(self, run):
        with Server(lambda _: "no idea") as server:
            with pytest.raises(UserError, match=r"10 of 10 answers of .* were undecided"):
                ask(run, server, rounds=5, undecided_after=10, max_in_flight=1)
            assert server.paid < 60
        assert {each.state for each in read_ratings(run.folder)} == {"unparsable"}

    def test_a_spent_account_ends_the_run_with_its_own_words(self, run):
        spent = '{"error": {"message": "insufficient_quota"}}'
        message = "the account's quota is spent"
        with (
            Server(lambda _: Status(429, spent)) as server,
            pytest.raises(UserError, match=message),
        ):
            ask(run, server)

    def test_a_missing_image_is_told_before_anything_is_asked(self, run):
        run.cases[1].reference.path.unlink()
        with Server(score_for) as server:
            with pytest.raises(UserError, match=r"there is no image at .*0\.png"):
                ask(run, server)
            assert server.received == 0

    def test_a_run_that_dies_pays_for_no_answer_twice(self, run, monkeypatch):
        class Killed(BaseException):
            """Nothing catches it, as nothing catches SIGKILL."""

        asked = {"count": 0}

        def dying(question):
            asked["count"] += 1
            return Drop() if asked["count"] == 4 else score_for(question)

        def killed(*_):
            raise Killed

        with Server(dying) as server:
            monkeypatch.setattr("dsd_jax.infer.evaluate.judge.add_ratings", killed)
            with pytest.raises(Killed):
                ask(run, server, max_in_flight=2)
            monkeypatch.undo()
            monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
            ratings = ask(run, server)
        totals = read_totals(ledger_of(run))
        assert len(ratings) == totals.answered == totals.questions == 12
        assert server.paid == totals.answered + totals.maybe_charged == 13


class TestFiles:
    def test_questions_for_another_program_are_written_for_all_runs(self, tmp_path, cases):
        runs = [made_run(tmp_path, name, cases) for name in ("ours", "theirs")]
        judge = JudgeConfig(ProviderConfig("openai", MODEL, mode="file"))
        split = load_protocols(["split"])
        todo = [(run, open_queries(run, queries(run, split, 1), judge, 0)) for run in runs]
        with pytest.raises(AnswersPending) as pending:
            judge_runs(todo, judge)
        assert str(pending.value).count("12 questions wait in") == 2
        written = [sorted(run.folder.glob("ledgers/**/*.jsonl")) for run in runs]
        assert [sum(len(p.read_text().splitlines()) for p in own) for own in written] == [12, 12]


class TestEstimates:
    def test_a_dry_run_counts_calls_tokens_and_dollars(self, run):
        with Server() as server:
            judge = judge_of(server)
        asked = queries(run, load_protocols(["dreambench++", "split"]), 3)
        found = estimates(asked, judge)
        assert {name: each.calls for name, each in found.items()} == {
            "dreambench++": 24,
            "split": 36,
        }
        official = found["dreambench++"]
        assert official.cost is not None
        assert official.most is not None
        assert official.output == 3 * 4 * (5 + 130)
        assert official.cost == pytest.approx((official.input * 0.1 + official.output * 0.4) / 1e6)
        assert official.cost < official.most
        cheaper = dataclasses.replace(judge.provider, mode="batch")
        half = estimates(asked, dataclasses.replace(judge, provider=cheaper))["dreambench++"]
        assert half.cost == pytest.approx(official.cost / 2)

    def test_a_model_without_a_price_has_no_estimate_in_dollars(self, run):
        with Server() as server:
            judge = judge_of(server)
        unknown = dataclasses.replace(judge.provider, model="mine")
        (found,) = estimates(
            queries(run, load_protocols(["split"]), 1),
            dataclasses.replace(judge, provider=unknown),
        ).values()
        assert (found.cost, found.most) == (None, None)


class TestSampling:
    def test_every_method_shares_a_sample_that_looks_like_the_whole(self, tmp_path):
        cases = made_cases(tmp_path, 40, ("animal", "object", "object", "object"))
        chosen = stratified(cases, 16, seed=1)
        assert chosen == stratified(cases, 16, seed=1) != stratified(cases, 16, seed=2)
        assert [case.id for case in cases if case in chosen] == [case.id for case in chosen]
        counts = {
            (category, kind): sum((c.category, c.prompt_class) == (category, kind) for c in chosen)
            for category in ("animal", "object")
            for kind in ("photorealistic", "style")
        }
        assert set(counts.values()) == {2, 6}

    def test_shares_are_rounded_to_the_count(self, tmp_path):
        cases = made_cases(tmp_path, 10, ("animal", "object"))
        for count in range(1, 11):
            assert len(stratified(cases, count, seed=0)) == count
        assert stratified(cases, 99, seed=0) == cases
        with pytest.raises(UserError, match="at least 1 case, got 0"):
            stratified(cases, 0, seed=0)


class TestCommand:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "judge.toml"

        def written(server, **settings):
            lines = {"kind": "openai", "model": MODEL, "base_url": server.openai, **settings}
            body = "\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items())
            path.write_text(f"temperature = 1.0\n[provider]\n{body}\n")
            return path

        return written

    def test_it_prints_states_means_and_costs(self, tmp_path, cases, config, capsys):
        made_run(tmp_path, "ours", cases)
        made_run(tmp_path, "theirs", cases, skip=1)
        words = [str(tmp_path / "ours"), str(tmp_path / "theirs")]
        with Server(lambda q: "Score: 9" if q.text == "prompt 3" else score_for(q)) as server:
            flags = ["--judge", str(config(server)), "--rounds", "2"]
            assert command([*words, "--protocol", "dreambench++", *flags]) == 0
            said = capsys.readouterr().out
            assert server.paid == (4 + 3) * 2 * 2
            command([*words, "--protocol", "dreambench++", *flags, "--dry_run"])
            assert "has answered everything" in capsys.readouterr().out
        assert "theirs: 1 of 4 cases have no image" in said
        assert f"ratings by {MODEL} temperature=1" in said
        rows = [line.split()[:4] for line in said.splitlines() if line.startswith("  ")]
        assert rows == [
            ["asked", "ok", "out", "of"],
            ["cp", "8", "8", "0"],
            ["pf", "8", "6", "2"],
            ["cp", "6", "6", "0"],
            ["pf", "6", "4", "2"],
        ]
        assert "\ntheirs, dreambench++\n" in said
        assert "28 calls, 3,080 tokens, $0.0004" in said

    def test_a_dry_run_asks_nothing(self, run, config, capsys):
        with Server(score_for) as server:
            words = [str(run.folder), "--judge", str(config(server)), "--dry_run"]
            command([*words, "--protocol", "split", "--sample", "2"])
            assert server.received == 0
        (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "split" in line]
        assert row[1] == str(2 * 3 * 3)
        assert not ledger_of(run).exists()

    def test_flags_replace_the_caps_of_the_file(self, run, config, capsys):
        with Server(score_for) as server:
            words = [str(run.folder), "--judge", str(config(server, max_calls=100))]
            assert command([*words, "--protocol", "split", "--max_calls", "2"]) == 2
        said = capsys.readouterr()
        assert "max_calls is 2 calls" in said.err
        assert "\n  identity" in said.out  # the table shows what there is

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--protocol", "split", "--aspects", "novlety"], "did you mean 'novelty'"),
            (["--protocol", "split", "--rounds", "0"], "rounds must be at least 1"),
            (["--protocol", "spilt"], "no protocol 'spilt'"),
        ],
    )
    def test_wrong_flags_are_told(self, run, config, capsys, words, message):
        with Server(score_for) as server:
            flags = [str(run.folder), "--judge", str(config(server)), *words]
            assert command(flags) == 2
            assert message in capsys.readouterr().err
            assert command(flags[1:]) == 2
            assert "give the folders of runs" in capsys.readouterr().err

    def test_a_wrong_file_of_a_judge_is_told(self, tmp_path):
        path = tmp_path / "judge.toml"
        path.write_text('[provider]\nkind = "openai"\nmodel = "m"\n\n[judge]\n')
        with pytest.raises(UserError, match="judge"):
            load_judge(path)
        path.write_text('temperature = -1\n[provider]\nkind = "openai"\nmodel = "m"\n')
        with pytest.raises(UserError, match="temperature must not be negative"):
            load_judge(path)
        path.write_text('[provider]\nkind = "openai"\nmodel = "m"\napi_key_file = "key"\n')
        assert load_judge(path).provider.api_key_file == tmp_path / "key"
