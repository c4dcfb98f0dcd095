"""Writes a story from one picture and perhaps a plot, by the three questions of the paper (C.3).

A vision model describes the hero, tells a story in panels, then words each panel as a prompt that
stands alone. Every answer is checked. If it breaks a rule, the model is told which and answers
again. All answers are kept, so a stopped run goes on and nothing is paid for twice.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.images import encode_image, open_frame, open_image
from dsd_jax.infer.settings import check_seed
from dsd_jax.infer.story.answers import (
    FORMS,
    Hero,
    Prompts,
    Told,
    faults_of_hero,
    faults_of_prompts,
    faults_of_story,
    reader,
)
from dsd_jax.infer.story.layout import Layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.script import STORY, Panel, Story, write_story
from dsd_jax.llm.answers import Fault, user, written
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Ask, Message, Picture, Request
from dsd_jax.llm.providers import kind_of
from dsd_jax.llm.reading import LONGEST
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import Spent, spent_of
from dsd_jax.llm.wording import Wording, load_wording
from dsd_jax.structured import read_bytes
from dsd_jax.text.plain import check_text

__all__ = ["Plot", "Writer", "load_questions", "spent_on", "tell"]

T = TypeVar("T")

STAGE = "story"
_LEDGER = Path("ledgers") / f"{STAGE}-00000.sqlite"
_MOST_PANELS = 40
_LONGEST_PLOT = 8_000  # characters; a longer one holds more than so few panels tell
_SIDE = 1024  # pixels of the picture that the model looks at, at most
_TOKENS = 8192  # models that think first need more than the answer
_RETRIES = 3
_LARGEST = 1 << 28  # bytes of a reference


@dataclasses.dataclass(frozen=True)
class Writer:
    """The vision model that writes.

    Attributes:
        provider: Kind of provider: gemini (GEMINI_API_KEY), openai (OPENAI_API_KEY) for OpenAI and
            every server with its interface, or another kind of `dsd_jax.llm.providers`.
        model: Exact name of the provider's model.
        base_url: Another server, https or on this machine.
        key_env: Environment variable with the key of that other server.
        max_cost: Most dollars for this story.
    """

    provider: str = "gemini"
    model: str | None = None
    base_url: str | None = None
    key_env: str | None = None
    max_cost: float | None = None

    @property
    def config(self) -> ProviderConfig:
        """The provider to ask."""
        return ProviderConfig(
            self.provider,
            self.model or kind_of(self.provider, "online").model,
            base_url=self.base_url,
            api_key_env=self.key_env,
            max_cost=self.max_cost,
        )


@dataclasses.dataclass(frozen=True)
class Plot:
    """The story that is wanted.

    Attributes:
        plot: Plot in a few sentences. Without it, the model invents one.
        panels: Number of panels. Default: as many as a page of the layout has.
        layout: Layout of the pages.
        seed: Seed of the first panel; panel i has seed + i. Another seed also gets another story.
    """

    plot: str | None = None
    panels: int | None = None
    layout: str = "2x4"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.panels is not None and not 1 <= self.panels <= _MOST_PANELS:
            raise UserError(f"panels must be from 1 to {_MOST_PANELS}, got {self.panels}")
        check_seed(self.seed)
        check_seed(self.seed + _MOST_PANELS)
        if self.plot is None:
            return
        check_text(self.plot, "the plot")
        if not self.plot.strip():
            raise UserError("the plot is empty; say what happens, or leave it out to have one made")
        if len(self.plot) > _LONGEST_PLOT:
            raise UserError(
                f"the plot has {len(self.plot):,} characters, more than {_LONGEST_PLOT:,}; shorten "
                "it to what the panels can tell"
            )


def load_questions(path: Path | None) -> Wording:
    """The texts of the questions; those of a file replace ours.

    Raises:
        UserError: The file cannot be used.
    """
    return load_wording(Path(__file__).with_name("wordings.toml"), path, STAGE)


def tell(
    reference: Path,
    folder: Path,
    wanted: Plot,
    writer: Writer,
    layout: Layout,
    letters: Letters = Letters(),
    wording: Wording | None = None,
) -> Story:
    """Writes the story file of a folder, with a copy of the reference beside it.

    Args:
        reference: Picture of the hero.
        folder: Folder of the story. It is made if it does not exist.
        wanted: The story that is wanted.
        writer: The model that writes.
        layout: Layout that captions and balloons have to fit.
        letters: Font of captions and balloons.
        wording: Texts of the questions. None takes ours.

    Raises:
        UserError: The folder holds a story, the reference cannot be read, nothing can be asked (see
            `Session`), or no answer can be used.
    """
    if (folder / STORY).exists():
        raise UserError(
            f"{folder / STORY} is there already; paint it with dsd story draw, or give another "
            "folder"
        )
    side = min(_SIDE, *open_image(reference).size)
    shown = Picture(encode_image(open_frame(reference, side, side).image, "PNG"))
    kept = _copied(reference, folder)
    session = Session(writer.config, folder / _LEDGER)
    questions = _Questions(
        wording or load_questions(None), shown, wanted, layout, letters, writer.config.model
    )
    ((_, story),) = session.run([kept.name], questions)
    if not kept.exists():
        write_file(kept, read_bytes(reference, _LARGEST))
    write_story(folder, story)
    return story


def _copied(reference: Path, folder: Path) -> Path:
    """The place of the reference in the folder of a story."""
    if reference.parent.absolute() == folder.absolute():
        return reference
    kept = folder / f"reference{reference.suffix.lower()}"
    if kept.exists() and read_bytes(kept, _LARGEST) != read_bytes(reference, _LARGEST):
        raise UserError(f"{kept} is another picture than {reference}; give another folder")
    return kept


def spent_on(folder: Path) -> Spent:
    """The spending on the story of a folder, earlier runs included."""
    return spent_of(folder / _LEDGER)


@dataclasses.dataclass(frozen=True)
class _Questions:
    """The three questions about one story."""

    wording: Wording
    shown: Picture
    wanted: Plot
    layout: Layout
    letters: Letters
    model: str

    async def __call__(self, reference: str, ask: Ask) -> Story:
        wanted, words = self.wanted, self.wording
        count = wanted.panels or self.layout.panels
        hero = await self._answer(ask, "hero", Hero, faults_of_hero, self.shown, words("hero"))
        known = {"hero": hero.words, "scene": " ".join(hero.scene.split()), "count": str(count)}
        plot = " ".join((wanted.plot or "").split())
        told = await self._answer(
            ask,
            f"story {wanted.seed}",
            Told,
            functools.partial(
                faults_of_story, count=count, layout=self.layout, letters=self.letters
            ),
            words("panels", **known, plot=words("told", plot=plot) if plot else words("untold")),
        )
        shows = (" ".join(panel.shows.split()) for panel in told.panels)
        listed = "\n".join(f"{number}. {each}" for number, each in enumerate(shows, start=1))
        made = await self._answer(
            ask,
            f"prompts {wanted.seed}",
            Prompts,
            functools.partial(faults_of_prompts, count=count, hero=hero),
            words("prompts", **known, panels=listed),
        )
        panels = tuple(
            Panel(" ".join(prompt.split()), panel.caption, panel.speech, wanted.seed + number)
            for number, (prompt, panel) in enumerate(zip(made.prompts, told.panels, strict=True))
        )
        return Story(" ".join(told.title.split()), panels, reference, wanted.layout)

    async def _answer(
        self,
        ask: Ask,
        item: str,
        kind: type[T],
        rules: Callable[[T], Iterable[Fault]],
        *parts: str | Picture,
    ) -> T:
        """The answer to a question, which obeys its rules.

        Args:
            ask: Puts a question.
            item: What is asked for; with the seed where another seed gets another answer.
            kind: Kind of the answer.
            rules: Lists the rules that an answer breaks.
            parts: The question.

        Raises:
            UserError: No answer can be used.
        """
        check = reader(kind, rules)
        request = Request(
            stage=STAGE,
            item=item,
            messages=(Message("system", (self.wording("system"),)), user(*parts)),
            wording=self.wording.id,
            max_tokens=_TOKENS,
            schema=FORMS[kind],
        )
        result = await written(
            ask,
            request,
            check,
            lambda faults: self.wording("again", faults=faults),
            _RETRIES,
            shown=LONGEST,
        )
        if result.value is not None:
            return result.value
        what, _, _ = item.partition(" ")
        if result.reason == "blocked":
            raise UserError(
                f"{self.model} refuses to write the {what}; change the plot or the picture, or ask "
                "another --model"
            )
        why = "; ".join(fault.told for fault in result.faults) or result.detail or result.reason
        raise UserError(
            f"{self.model} wrote no {what} that can be used: {why}; give another --seed, change "
            "the plot, or ask another --model"
        )
