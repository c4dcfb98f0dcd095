"""Writing a story: what is asked, which answers are refused, what a second run pays, bad input."""

import json
from pathlib import Path

import pytest

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.infer.story.answers import (
    Hero,
    Prompts,
    Shown,
    Told,
    faults_of_hero,
    faults_of_prompts,
    faults_of_story,
)
from dsd_jax.infer.story.layout import Layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.script import Panel, Story, read_story
from dsd_jax.infer.story.write import Plot, Writer, load_questions, tell
from tests.core.llm.server import Server
from tests.core.llm.wire import Answerer, Question, Reply, Result, Status
from tests.random_flux import picture

STRIP = Layout((900, 330), ((1, 1),))
HERO = "a ginger cat with white paws"
TOLD: list[dict[str, object]] = [
    {"shows": "The cat is on a roof.", "caption": "One morning ...", "speech": []},
    {"shows": "It finds a closed gate.", "caption": "", "speech": ["Again?"]},
]
PROMPTS = [f"{HERO} on a roof at dawn", f"before a closed gate sits {HERO}, and it looks up"]


def content(question: Question) -> str:
    """What the question asks for: the first field of its answer."""
    asked = "\n".join(text for _, texts in question.turns[1:2] for text in texts)
    return next(name for name in ("prompts", "panels", "hero") if f'"{name}":' in asked)


def answer(question: Question) -> str:
    return json.dumps(
        {
            "hero": {"hero": f"{HERO}.", "scene": "on grass,\nink drawing"},
            "panels": {"title": "The sea", "panels": TOLD},
            "prompts": {"prompts": PROMPTS},
        }[content(question)]
    )


class Asked(Server):
    """A server that keeps its questions."""

    def __init__(self, reply: Answerer = answer) -> None:
        self.questions: list[Question] = []

        def kept(question: Question) -> Result:
            self.questions.append(question)
            return reply(question)

        super().__init__(kept)

    def __enter__(self) -> "Asked":  # noqa: PYI034 - see `Server`
        super().__enter__()
        return self

    @property
    def writer(self) -> Writer:
        return Writer("openai", "m", self.openai)


@pytest.fixture
def cat(tmp_path) -> Path:
    picture().save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def written(cat: Path, server: Asked, wanted: Plot = Plot("It looks for the sea.")) -> Story:
    return tell(cat, cat.parent / "story", wanted, server.writer, STRIP)


class TestQuestions:
    def test_the_hero_then_the_story_then_prompts_that_stand_alone(self, cat):
        with Asked() as server:
            story = written(cat, server, Plot("It looks for\nthe sea.", layout="strip", seed=7))
        _, told, prompts = server.questions
        assert [len(question.pictures) for question in server.questions] == [1, 0, 0]
        assert "The plot: It looks for the sea.\n" in told.text
        assert "2 panels" in told.text
        for question in (told, prompts):
            assert f"The hero: {HERO}\n" in question.text
            assert ": on grass, ink drawing\n" in question.text
        assert "1. The cat is on a roof.\n2. It finds a closed gate.\n" in prompts.text
        assert story == Story(
            "The sea",
            (
                Panel(PROMPTS[0], "One morning ...", (), 7),
                Panel(PROMPTS[1], "", ("Again?",), 8),
            ),
            "reference.png",
            "strip",
        )
        folder = cat.parent / "story"
        assert read_story(folder) == story
        assert (folder / "reference.png").read_bytes() == cat.read_bytes()

    def test_a_model_without_a_plot_is_told_to_invent_one(self, cat):
        with Asked() as server:
            written(cat, server, Plot())
        assert "Invent one" in server.questions[1].text
        assert "{" not in server.questions[1].text

    def test_broken_rules_are_told_and_the_question_is_asked_again(self, cat):
        def reply(question: Question) -> str:
            if content(question) != "prompts" or len(question.turns) > 2:
                return answer(question)
            return json.dumps({"prompts": ["he sleeps", PROMPTS[1]]})

        with Asked(reply) as server:
            assert written(cat, server).panels[0].prompt == PROMPTS[0]
        assert len(server.questions) == 4
        assert (
            'prompt 1 does not name the hero in the words "ginger cat' in server.questions[3].text
        )
        assert server.questions[3].turns[2][1] == (
            json.dumps({"prompts": ["he sleeps", PROMPTS[1]]}),
        )

    def test_a_picture_inside_the_folder_stays_where_it_is(self, cat):
        with Asked() as server:
            assert tell(cat, cat.parent, Plot(), server.writer, STRIP).reference == "cat.png"
        assert not (cat.parent / "reference.png").exists()

    def test_texts_of_a_file_replace_ours(self, tmp_path):
        own = tmp_path / "own.toml"
        own.write_text('name = "mine"\n[story]\nuntold = "Make it sad."\n')
        assert load_questions(own)("untold") == "Make it sad."
        assert load_questions(own).texts["hero"] == load_questions(None).texts["hero"]
        own.write_text('name = "mine"\n[story]\ntold = "Make it sad."\n')
        with pytest.raises(UserError, match=r"story\.told must hold \{plot\} and no others"):
            load_questions(own)


class TestPaying:
    def test_a_stopped_run_goes_on_and_nothing_is_asked_twice(self, cat):
        down = True

        def reply(question: Question) -> Result:
            return Status(401) if down and content(question) == "prompts" else answer(question)

        with Asked(reply) as server:
            with pytest.raises(UserError, match="the key was refused"):
                written(cat, server)
            assert not (cat.parent / "story" / "story.json").exists()
            down = False
            written(cat, server)
            asked = [content(question) for question in server.questions]
            assert asked == ["hero", "panels", "prompts", "prompts"]
            (cat.parent / "story" / "story.json").unlink()
            written(cat, server)
            assert len(server.questions) == 4

    def test_another_seed_gets_another_story_about_the_same_hero(self, cat):
        with Asked() as server:
            written(cat, server)
            (cat.parent / "story" / "story.json").unlink()
            written(cat, server, Plot("It looks for the sea.", seed=50))
        asked = [content(question) for question in server.questions]
        assert asked == ["hero", "panels", "prompts", "panels", "prompts"]

    def test_the_command_says_what_it_cost(self, cat, capsys):
        words = ["story", "write", str(cat), str(cat.parent / "story"), "--panels", "2"]
        with Asked() as server:
            provider = ["--provider", "openai", "--model", "m", "--base_url", server.openai]
            assert main([*words, *provider]) == 0
            assert main([*words, *provider]) == 2
        said = capsys.readouterr()
        assert "writing this story: 3 calls, " in said.out
        assert "The sea: 2 panels\n" in said.out
        assert "story.json is there already; paint it with dsd story draw" in said.err

    @pytest.mark.parametrize(
        ("name", "flags", "message"),
        [
            ("none.png", [], "there is no image at "),
            ("cat.png", ["--font", "none.ttf"], "none.ttf is no font that can be read"),
        ],
    )
    def test_the_command_names_the_fault_before_it_asks(self, cat, capsys, name, flags, message):
        words = ["story", "write", str(cat.with_name(name)), str(cat.parent / "story"), *flags]
        with Asked() as server:
            provider = ["--provider", "openai", "--model", "m", "--base_url", server.openai]
            assert main([*words, *provider]) == 2
            assert server.received == 0
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {message}")
        assert said.out == ""


class TestRefusals:
    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (Reply("", "blocked"), "m refuses to write the story; change the plot or the picture"),
            ("No.", r"m wrote no story that can be used: it is not a single JSON object; give ano"),
            (Reply("{}", "length"), "m wrote no story that can be used: cut_off"),
            ('{"title": "a", "panels": [{}]}', r"`panels.0.shows` is missing"),
            (Status(400, '{"error": {"message": "too long"}}'), "status 400: too long"),
        ],
    )
    def test_an_answer_that_cannot_be_used_is_a_message_and_leaves_no_story(
        self, cat, result, message
    ):
        def reply(question: Question) -> Result:
            return result if content(question) == "panels" else answer(question)

        with Asked(reply) as server, pytest.raises(UserError, match=message):
            written(cat, server)
        assert not (cat.parent / "story" / "story.json").exists()

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"plot": " \n"}, "the plot is empty; say what happens, or leave it out"),
            ({"plot": "a" * 8_001}, "the plot has 8,001 characters, more than 8,000; shorten it"),
            ({"plot": "a\udcff"}, "the plot .*not UTF-8"),
            ({"panels": 0}, "panels must be from 1 to 40, got 0"),
            ({"seed": 2**32 - 2}, "a seed must be from 0"),
        ],
    )
    def test_a_plot_that_cannot_be_is_a_message(self, wanted, message):
        with pytest.raises(UserError, match=message):
            Plot(**wanted)

    def test_nothing_is_asked_for_files_that_cannot_be_used(self, cat, monkeypatch):
        monkeypatch.delenv("GEMINI_API_KEY", raising=False)
        folder = cat.parent / "story"
        with pytest.raises(UserError, match=r"GEMINI_API_KEY is not set; .* name the variable"):
            tell(cat, folder, Plot(), Writer(), STRIP)
        with pytest.raises(UserError, match=r"no kind 'gemni' of .*; did you mean 'gemini'"):
            tell(cat, folder, Plot(), Writer("gemni"), STRIP)
        with Asked() as server:
            with pytest.raises(UserError, match=r"there is no image at .*none\.png"):
                written(cat.with_name("none.png"), server)
            folder.mkdir(exist_ok=True)
            picture(1).save(folder / "reference.png")
            with pytest.raises(UserError, match=r"reference\.png is another picture than .*cat"):
                written(cat, server)
            assert server.received == 0


def faults(found) -> str:
    return "; ".join(fault.told for fault in found)


class TestRules:
    hero = Hero("a red fox.", "in a wood")

    @pytest.mark.parametrize(
        ("prompt", "told"),
        [
            ("A RED FOX runs; it smiles at its friends", ""),
            ("the big red fox\nbefore solar panels", ""),
            ("a red fox as in the last panel", 'prompt 1 says "last panel", which points'),
            ("a fox in rain", 'prompt 1 does not name the hero in the words "red fox"'),
            ("when it rains, a red fox runs", 'prompt 1 says "it" before it names the hero'),
            ("a red fox in the same wood", 'prompt 1 says "the same", which points to other'),
            ("a red fox " * 40, "prompt 1 has more than 100 words"),
        ],
    )
    def test_a_prompt_stands_alone(self, prompt, told):
        found = faults(faults_of_prompts(Prompts((prompt,)), 1, self.hero))
        assert found.startswith(told)
        assert bool(found) == bool(told)

    @pytest.mark.parametrize(
        ("panels", "told"),
        [
            ([], "there are 0 panels, not 1"),
            ([Shown(" ")], '"shows" of panel 1 is empty'),
            ([Shown("a", "b" * 201)], "a text of panel 1 has 201 characters, not 200"),
            ([Shown("a", "", ("b",) * 3)], "panel 1 has more than 2 texts of speech"),
            ([Shown("a", "愛")], "has no '愛'"),
            ([Shown("a", "word " * 30, ("word " * 16,) * 2)], "letters do not fit in panel 1"),
        ],
    )
    def test_a_story_has_panels_whose_texts_fit(self, panels, told):
        small = Layout((200, 200), ((1,),))
        found = faults(faults_of_story(Told("a", tuple(panels)), 1, small, Letters()))
        assert told in found

    def test_a_hero_has_a_name_and_a_story_a_title(self):
        assert faults(faults_of_hero(Hero("fox", ""))) == '"hero" has 1 words, not 2 to 30'
        story = Told("a\0b", (Shown("a"),))
        assert '"title" has not 1 to 100' in faults(faults_of_story(story, 1, STRIP, Letters()))
