"""Prompt enhancement: what is asked, what is made of the answers; failures are harmless."""

import io

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.images import read_parameters
from dsd_jax.infer import cli
from dsd_jax.infer.enhance import Enhancement, enhanced
from dsd_jax.infer.generated import Generated
from tests.core.llm.server import Server
from tests.core.llm.wire import Question, Reply, Result, Status
from tests.random_flux import picture

TEXT = "this cat sitting on a chair"
CAPTION = "A ginger cat\nwith white paws, on grass."
MERGED = "this ginger cat with white paws sitting on a chair"


def answer(question: Question) -> Result:
    return CAPTION if question.pictures else MERGED


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def flags(server: Server, provider="openai", **more) -> Enhancement:
    more = {"enhance_prompt": "on", "enhance_model": "m", **more}
    return Enhancement(
        enhance_provider=provider, enhance_base_url=getattr(server, provider), **more
    )


class TestWords:
    """The questions, and the use of the answers."""

    def made(self, text: str, *answers: str) -> tuple[str, str | None, list[Question]]:
        asked: list[Question] = []

        def reply(question: Question) -> Result:
            asked.append(question)
            return answers[len(asked) - 1]

        with Server(reply) as server:
            return *enhanced(text, picture(), flags(server)), asked

    def test_describes_the_picture_then_merges_the_words(self):
        text, _, (first, second) = self.made(TEXT, CAPTION, MERGED)
        assert text == MERGED
        assert "77" in first.turns[1][1][0]
        (sent,) = first.pictures
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), np.asarray(picture()))
        (words,) = second.turns[1][1]
        assert TEXT in words
        assert "A ginger cat with white paws, on grass." in words
        assert not second.pictures

    @pytest.mark.parametrize(
        ("merged", "expected"),
        [
            (f'"{MERGED}"', MERGED),
            (f"```text\n{MERGED}\n```", MERGED),
            (MERGED.replace(" sitting", "\nsitting"), MERGED),
            ("A ginger cat on a seat", f"{TEXT}. A ginger cat on a seat"),
            ("a chair sitting on this cat", f"{TEXT}. a chair sitting on this cat"),
        ],
    )
    def test_one_line_with_the_users_words(self, merged, expected):
        assert self.made(TEXT, CAPTION, merged)[0] == expected

    def test_braces_of_a_user_are_words(self):
        text, _, asked = self.made("a {caption} cat", CAPTION, "a {caption} cat")
        assert text == "a {caption} cat"
        assert "A prompt by a user: a {caption} cat\n" in asked[1].turns[1][1][0]

    @pytest.mark.parametrize("answers", [('""', MERGED), (CAPTION, '""')])
    def test_nothing_is_not_a_prompt(self, answers):
        text, notice, _ = self.made(TEXT, *answers)
        assert text == TEXT
        assert notice is not None
        assert "is empty" in notice


class TestProviders:
    @pytest.mark.parametrize("provider", ["openai", "gemini"])
    def test_two_questions_over_the_wire(self, provider):
        with Server(answer) as server:
            made, notice = enhanced(TEXT, picture(), flags(server, provider))
            assert server.received == 2
        assert made == MERGED
        assert notice == f"the text was enhanced by m: {MERGED}"

    @pytest.mark.parametrize(
        ("result", "why"),
        [
            (Status(401), "the key was refused, status 401"),
            (Status(400, '{"error": {"message": "too long"}}'), "status 400: too long"),
            (Reply("a cat", "length"), "its answer cannot be used: cut_off"),
            (Reply("", "blocked"), "its answer cannot be used: blocked"),
            (Reply("a cat", model="other"), "`other` answered"),
        ],
    )
    def test_failures_leave_the_text_and_say_so(self, result, why):
        with Server(lambda question: result) as server:
            made, notice = enhanced(TEXT, picture(), flags(server))
        assert made == TEXT
        assert notice is not None
        assert notice.startswith("the text is used as it is, m did not enhance it: ")
        assert why in notice

    def test_auto_asks_only_with_a_key(self, monkeypatch):
        with Server(answer) as server:
            auto = flags(server, enhance_prompt="auto", enhance_key_env="MY_KEY")
            assert enhanced(TEXT, picture(), auto) == (TEXT, None)
            assert server.received == 0
            monkeypatch.setenv("MY_KEY", "secret")
            assert enhanced(TEXT, picture(), auto)[0] == MERGED
            assert server.headers["authorization"] == "Bearer secret"
            assert enhanced(TEXT, None, auto) == (TEXT, None)

    def test_on_without_a_key_or_picture_is_a_mistake(self):
        on = Enhancement(enhance_prompt="on")
        with pytest.raises(UserError, match="variable GEMINI_API_KEY is not set"):
            enhanced(TEXT, picture(), on)
        with pytest.raises(UserError, match="needs a reference"):
            enhanced(TEXT, None, on)


class TestGenerate:
    @pytest.fixture
    def sampled(self, monkeypatch, tmp_path, pipe):
        """Texts that a pipeline was given, which paints nothing."""
        texts = []

        def run(prepared, **options):
            texts.extend(prepared.texts)
            return Generated(
                images=[Image.new("RGB", (8, 8))],
                references=[],
                latents=np.zeros((1, 16, 8, 16), np.float32),
                parameters=[{"text": text} for text in prepared.texts],
                notices=[],
            )

        monkeypatch.setattr(pipe, "run", run)
        monkeypatch.setattr(cli.ModelFlags, "load", lambda flags: pipe)
        monkeypatch.chdir(tmp_path)
        picture().save("cat.png")
        return texts

    def run(self, server: Server, *more: str) -> int:
        words = [
            "generate",
            "--height",
            "64",
            "--text",
            TEXT,
            "--image_path",
            "cat.png",
            "--enhance_prompt",
            "on",
        ]
        words += ["--enhance_provider", "openai", "--enhance_model", "m"]
        return main([*words, "--enhance_base_url", server.openai, *more])

    def test_the_enhanced_text_is_sampled_and_recorded(self, sampled, capsys):
        with Server(answer) as server:
            assert self.run(server) == 0
        assert sampled == [MERGED]
        assert f"note: the text was enhanced by m: {MERGED}" in capsys.readouterr().out
        assert read_parameters("output.png") == {"text": MERGED, "enhanced_from": TEXT}

    def test_the_flag_of_the_released_program_turns_it_off(self, sampled, capsys):
        with Server(answer) as server:
            assert self.run(server, "--disable_gemini_prompt") == 0
            assert server.received == 0
        assert sampled == [TEXT]
        assert read_parameters("output.png") == {"text": TEXT}
        assert "enhance" not in capsys.readouterr().out

    def test_a_host_that_could_read_the_key_is_refused(self, sampled, capsys):
        with Server() as server:
            assert self.run(server, "--enhance_base_url", "http://example.com/v1") == 2
        assert "neither https nor of this machine" in capsys.readouterr().err
        assert sampled == []
