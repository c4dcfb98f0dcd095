"""The prompt enhancement of `dsd generate`: which model is asked, and what becomes of failures."""

import dataclasses
import os
from typing import Literal

from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.enhance import NotEnhanced, enhance, wording
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Ask, Message, Picture, Request, Unanswered
from dsd_jax.llm.reading import problem_of
from dsd_jax.llm.session import Session

__all__ = ["EnhanceFlags", "Mode", "enhanced"]

Mode = Literal["auto", "on", "off"]
Kind = Literal["gemini", "openai"]

_MODELS: dict[Kind, str] = {"gemini": "gemini-3.8-flash", "openai": "gpt-5.4-mini-2026-03-17"}
_TOKENS = 2048  # models that think first need more than the answer


@dataclasses.dataclass(frozen=True)
class EnhanceFlags:
    """Enrichment of the text by what a vision model sees in the reference.

    Attributes:
        enhance_prompt: auto: if the key of the provider is in the environment.
        enhance_provider: gemini (GEMINI_API_KEY), or openai (OPENAI_API_KEY): OpenAI's or any
            server that speaks its form.
        enhance_model: Exact name of its model.
        enhance_base_url: Another server, https or of this machine.
        enhance_key_env: Environment variable with the key of that other server.
    """

    enhance_prompt: Mode = "auto"
    enhance_provider: Kind = "gemini"
    enhance_model: str | None = None
    enhance_base_url: str | None = None
    enhance_key_env: str | None = None


def enhanced(text: str, image: Image.Image | None, flags: EnhanceFlags) -> tuple[str, str | None]:
    """The text to use and a notice of what was done, if anything was to be done.

    Raises:
        UserError: enhancement was asked for, but there is no reference or no key.
    """
    if flags.enhance_prompt == "off" or (flags.enhance_prompt == "auto" and image is None):
        return text, None
    if image is None:
        raise UserError(
            "--enhance_prompt on needs a reference to look at; give --image_path, or leave it out"
        )
    model = flags.enhance_model or _MODELS[flags.enhance_provider]
    provider = ProviderConfig(
        flags.enhance_provider,
        model,
        base_url=flags.enhance_base_url,
        api_key_env=flags.enhance_key_env,
        max_calls=8,
        retries=2,
        timeout=60.0,
    )
    if flags.enhance_prompt == "auto" and not (
        provider.key_env and os.environ.get(provider.key_env)
    ):
        return text, None
    provider.key()  # asked for and without a key is a mistake, all that follows is not
    try:
        made = enhance(text, image, _Asking(provider))
    except (NotEnhanced, UserError) as error:
        return text, f"the text is used as it is, {model} did not enhance it: {error}"
    return made, f"the text was enhanced by {model}: {made}"


class _Asking:
    """A vision model behind the request layer; nothing is kept on disk."""

    def __init__(self, provider: ProviderConfig) -> None:
        self._provider = provider

    def __call__(self, system: str, user: str, image: bytes | None) -> str:
        parts = (user,) if image is None else (user, Picture(image))
        turns = (Message("system", (system,)), Message("user", parts))
        request = Request("enhance", "text", turns, wording()["name"], max_tokens=_TOKENS)

        async def work(item: Request, ask: Ask) -> Answer | str:
            try:
                return await ask(item)
            except Unanswered as error:
                return str(error)

        ((_, answer),) = Session(self._provider, None).run([request], work)
        if isinstance(answer, str):
            raise NotEnhanced(answer)
        if problem := problem_of(answer):
            raise NotEnhanced(f"its answer cannot be used: {problem}")
        return answer.text
