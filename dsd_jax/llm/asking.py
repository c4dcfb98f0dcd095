"""The part of asking that is the same for single questions and for batches."""

import abc
import asyncio
import dataclasses
import json
from typing import Any, NoReturn

from dsd_jax.errors import UserError
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.prices import Prices, expected_tokens
from dsd_jax.llm.reading import is_answer_like
from dsd_jax.llm.scrub import Scrubber
from dsd_jax.llm.transport import BatchTransport, Raw, Transport

__all__ = ["NOT_IN_FORM", "Asker", "Setting", "Stop"]

NOT_IN_FORM = "the answer is not in the provider's form"
_ALL_REFUSED = 10  # questions: if all the first ones are refused, it is not the questions' fault
_UNREADABLE = 2  # answers of one question that were charged and cannot be read


class Stop:
    """The switch that ends a run: the first error that is set is the reason.

    Attributes:
        error: Error that the run will raise, or None while it goes on.
        wake: Event that tells the run that there is something to do.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.wake = asyncio.Event()

    def set(self, error: BaseException) -> None:
        """Ends the run with an error, unless it is ending already."""
        if self.error is None:
            self.error = error
        self.wake.set()

    async def wait_to_be_cancelled(self) -> NoReturn:
        """Waits without end, so that a coroutine of a run that ends does not see the error.

        A stage could take it for an error of its item.
        """
        await asyncio.Event().wait()
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class Setting:
    """The tools that a run asks with.

    Attributes:
        provider: Settings of the provider.
        ledger: The ledger, open for writing.
        stop: The switch that ends the run.
        prices: The table of prices.
        scrub: Keeps the key out of what is stored or said.
    """

    provider: ProviderConfig
    ledger: Ledger
    stop: Stop
    prices: Prices
    scrub: Scrubber


class Asker(abc.ABC):
    """Answers questions of one provider, from the ledger or by asking.

    Attributes:
        stop: The switch that ends the run.
        answers: Readable answers that came in this run.
        sending: Tasks whose answers are on their way; they are kept even when the run ends.
    """

    def __init__(self, setting: Setting, transport: Transport | BatchTransport) -> None:
        self.stop, self.answers = setting.stop, 0
        self.sending: set[asyncio.Task[Any]] = set()
        self._provider, self._ledger, self._scrub = setting.provider, setting.ledger, setting.scrub
        self._prices, self._way = setting.prices, transport
        self._keys: dict[int, str] = {}
        self._refusals: dict[str, str] = {}

    @abc.abstractmethod
    async def ask(self, item: int, request: Request) -> Answer:
        """The answer to a question about an item.

        Raises:
            Unanswered: There will be none.
        """

    @abc.abstractmethod
    def on_idle(self, live: int) -> None:
        """Called when nothing is left to do but to wait for `live` coroutines."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends asking, and closes the connections."""

    def note_row(self, item: int, row: object) -> None:
        """Stores a stage's row about an item beside the last answer that it was made from."""
        if (key := self._keys.pop(item, None)) is not None:
            self._ledger.parsed(key, json.dumps(row, default=repr, sort_keys=True))

    def _key(self, item: int, request: Request) -> str:
        """The key of a question, remembered as the last one about its item."""
        self._keys[item] = key = request.key(self._provider.asked)
        return key

    def _known(self, key: str) -> Answer | None:
        """The answer to a question that was asked before.

        Answers of models that are not accepted are passed over.

        Raises:
            Unanswered: It is known that there will be none.
        """
        for kept in self._ledger.answers(key):
            answer = self._read(kept.raw)
            if answer is not None and not kept.noted:  # the process ended before it was read
                self._ledger.noted(kept.attempt, answer)
            if answer is not None and self._accepts(answer.model):
                return answer
        reason = self._refusals.get(key) or self._ledger.refusal(key) or self._unreadable(key)
        if reason is not None:
            raise Unanswered(reason)
        return None

    def _unreadable(self, key: str) -> str | None:
        """The reason not to pay for a question again, if its answers cannot be read."""
        broken = [
            kept
            for kept in self._ledger.answers(key)
            if is_answer_like(kept.raw.body) and self._read(kept.raw) is None
        ]
        if len(broken) < _UNREADABLE:
            return None
        return f"no answer in {len(broken)} attempts: {NOT_IN_FORM}: {_beginning(broken[0].raw)}"

    async def _refuse(self, key: str, reason: str) -> None:
        """Records that a question cannot be answered; for good, once the model answers others.

        Until then all questions may share the fault: after ten of them, the run ends.
        """
        self._refusals[key] = reason
        if self.answers or self._ledger.answered_by(self._provider.model):
            refusals, self._refusals = self._refusals, {}
            for each, why in refusals.items():
                await self._ledger.refused(each, why)
        elif len(self._refusals) >= _ALL_REFUSED:
            self.stop.set(
                UserError(
                    f"all of the first {len(self._refusals)} questions were refused, the last "
                    f"with: {reason}"
                )
            )

    def _read(self, raw: Raw) -> Answer | None:
        """An answer with its price; None if it is not in the provider's form."""
        try:
            answer = self._way.read(raw)
        except ValueError:
            return None
        return dataclasses.replace(answer, cost=self._price(answer))

    def _taken(self, attempt: int, raw: Raw) -> Answer | None:
        """Reads a stored answer, stores what it says, and checks which model answered."""
        answer = self._read(raw)
        self._ledger.noted(attempt, answer)
        if answer is not None:
            self.answers += 1
            self._check_model(answer)
        return answer

    def _price(self, answer: Answer) -> float | None:
        models = self._prices.models
        price = models.get(answer.model) or models.get(self._provider.model)
        if price is None or answer.usage is None:
            return None
        return price.of(answer.usage, batch=self._provider.mode == "batch")

    def _expected(self, request: Request) -> tuple[int, float]:
        """The most tokens and dollars that a question takes."""
        usage = expected_tokens(request)
        price = self._prices.models.get(self._provider.model)
        batch = self._provider.mode == "batch"
        return usage.input + usage.output, price.of(usage, batch=batch) if price else 0.0

    def _accepts(self, model: str) -> bool:
        return model == self._provider.model or model in self._provider.accept_models

    def _check_model(self, answer: Answer) -> None:
        """Ends the run if another model answered than was asked."""
        if not self._accepts(answer.model):
            who = f"`{answer.model}` answered" if answer.model else "the answer does not say who"
            self.stop.set(
                UserError(
                    f"`{self._provider.model}` was asked, but {who}; set model to the exact name, "
                    f'or add it to accept_models = ["{answer.model}"]'
                )
            )

    def _clean(self, raw: Raw) -> Raw:
        """A raw answer without the key, which the server may have repeated."""
        return Raw(self._scrub.body(raw.body), self._scrub.text(raw.request_id))


def _beginning(raw: Raw) -> str:
    return repr(raw.body[:80].decode(errors="replace"))
