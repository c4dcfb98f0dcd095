"""Enriches a user's prompt by the contents of the reference image, as the released program does.

A vision model describes the cropped reference, then puts the subject's details into the user's
words.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import encode_image
from dsd_jax.llm.answers import user
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Ask, Message, Picture, Request, Unanswered
from dsd_jax.llm.providers import KINDS
from dsd_jax.llm.reading import problem_of
from dsd_jax.llm.session import Session
from dsd_jax.llm.wording import Wording, load_wording

__all__ = [
    "Enhancement",
    "Enhancer",
    "NotEnhanced",
    "Plain",
    "enhance_all",
    "enhanced",
    "wording_name",
]

Mode = Literal["auto", "on", "off"]
Kind = Literal["gemini", "openai"]

_TOKENS = 2048  # models that think first need more than the answer
_QUOTES = "\"'`“”‘’"
_FENCE = re.compile(r"^```\w*\s*|\s*```$")


@dataclasses.dataclass(frozen=True)
class Enhancer:
    """A vision model that looks at the reference and enriches the text.

    Attributes:
        enhance_provider: Provider of the vision model: gemini (GEMINI_API_KEY), or openai
            (OPENAI_API_KEY) for OpenAI and every server with its interface.
        enhance_model: Exact name of the provider's model.
        enhance_base_url: Another server, https or on this machine.
        enhance_key_env: Environment variable with the key of that other server.
    """

    enhance_provider: Kind = "gemini"
    enhance_model: str | None = None
    enhance_base_url: str | None = None
    enhance_key_env: str | None = None

    @property
    def provider(self) -> ProviderConfig:
        """The provider to ask."""
        return ProviderConfig(
            self.enhance_provider,
            self.enhance_model or KINDS[self.enhance_provider].model,
            base_url=self.enhance_base_url,
            api_key_env=self.enhance_key_env,
            retries=2,
            timeout=60.0,
        )


@dataclasses.dataclass(frozen=True)
class Enhancement(Enhancer):
    """Enrichment of the text by a vision model that looks at the reference.

    Attributes:
        enhance_prompt: Enhance the text by a vision model. auto does so if the provider's key is in
            the environment.
        disable_gemini_prompt: The same as --enhance_prompt off.
    """

    enhance_prompt: Mode = "auto"
    disable_gemini_prompt: bool = False

    @property
    def mode(self) -> Mode:
        return "off" if self.disable_gemini_prompt else self.enhance_prompt

    @property
    def wanted(self) -> bool:
        """Whether texts are enhanced: by --enhance_prompt, and for auto by the key.

        Raises:
            UserError: Enhancement was asked for, but there is no key.
        """
        if self.mode == "off":
            return False
        name = self.provider.key_env
        if self.mode == "auto" and not (name and os.environ.get(name)):
            return False
        self.provider.key()  # a missing key is the user's mistake; later failures are not
        return True


@dataclasses.dataclass(frozen=True)
class Plain:
    """A text to enrich, and the reference as the pipeline crops it."""

    name: str
    text: str
    image: Image.Image


class NotEnhanced(Exception):  # noqa: N818 - the plain prompt is used, with a notice
    """The vision model gave nothing that can be used; the message says why."""


def enhanced(text: str, image: Image.Image | None, settings: Enhancement) -> tuple[str, str | None]:
    """Returns the text to use, and a notice if enhancement was tried.

    The user's words are kept: if the model dropped one of them, they are put before its answer.

    Args:
        text: the user's prompt.
        image: the reference as the pipeline crops it.
        settings: provider and model.

    Raises:
        UserError: enhancement was asked for, but there is no reference or no key.
    """
    if image is None and settings.mode == "on":
        raise UserError(
            "--enhance_prompt on needs a reference to look at; give --image_path, or leave it out"
        )
    if image is None or not settings.wanted:
        return text, None
    provider = dataclasses.replace(settings.provider, max_calls=8)
    try:
        ((_, made),) = enhance_all([Plain("", text, image)], provider, None)
        if isinstance(made, NotEnhanced):
            raise made
    except (NotEnhanced, UserError) as error:
        return text, f"the text is used as it is, {provider.model} did not enhance it: {error}"
    return made, f"the text was enhanced by {provider.model}: {made}"


def enhance_all(
    items: Iterable[Plain], provider: ProviderConfig, ledger: Path | None
) -> Iterator[tuple[Plain, str | NotEnhanced]]:
    """Enriches many texts at once, two questions each; yields them as they are answered.

    The result is one line that holds all words of the user.

    Args:
        items: Taken as there is room for them.
        provider: The provider to ask.
        ledger: File of the ledger, as for `Session`.

    Raises:
        UserError: Nothing can be asked; see `Session.run`.
    """

    async def work(item: Plain, ask: Ask) -> str | NotEnhanced:
        words = _line(item.text)
        try:
            shown = Picture(encode_image(item.image, "PNG"))
            described = _request("caption", _wording("caption")("user"), shown)
            caption = _line(_usable(await ask(described)))
            if not caption:
                return NotEnhanced("the description of the reference is empty")
            asked = _wording("merge")("user", text=words, caption=caption)
            merged = _line(_usable(await ask(_request("merge", asked))))
        except Unanswered as error:
            return NotEnhanced(str(error))
        except NotEnhanced as error:
            return error
        if not merged:
            return NotEnhanced("the enriched prompt is empty")
        return merged if _keeps(merged, item.text) else f"{words.rstrip('. ')}. {merged}"

    yield from Session(provider, ledger).run(items, work)


def wording_name() -> str:
    """Name of the texts that ask for an enriched prompt."""
    return _wording("caption").name


@functools.cache
def _wording(question: str) -> Wording:
    """The texts of a question."""
    return load_wording(Path(__file__).with_name("enhance.toml"), None, question)


def _request(question: str, *parts: str | Picture) -> Request:
    texts = _wording(question)
    turns = Message("system", (texts("system"),)), user(*parts)
    return Request("enhance", question, turns, texts.name, max_tokens=_TOKENS)


def _usable(answer: Answer) -> str:
    if problem := problem_of(answer):
        raise NotEnhanced(f"its answer cannot be used: {problem}")
    return answer.text


def _line(answer: str) -> str:
    """An answer on one line, without the fences and quotation marks that models like to add."""
    line = " ".join(_FENCE.sub("", answer.strip()).split())
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1].strip()
    return line


def _keeps(merged: str, text: str) -> bool:
    """Whether all words of the user are there, in their order."""
    left = iter(_words(merged))
    return all(word in left for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
