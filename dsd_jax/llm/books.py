"""The ledger as the ways of asking use it."""

import dataclasses
import json

from dsd_jax.errors import UserError
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.halt import Halt
from dsd_jax.llm.ledger import Ledger
from dsd_jax.llm.messages import Answer, Request, Unanswered
from dsd_jax.llm.prices import Prices, expected_tokens
from dsd_jax.llm.transport import BatchTransport, Raw, Transport

__all__ = ["Books"]

_ALL_REFUSED = 10


class Books:
    """What is known, what a question may take, what came: the ledger, read with one provider.

    Attributes:
        config, ledger, transport, halt: of the run.
        answers: that came in this run.
    """

    def __init__(
        self,
        config: ProviderConfig,
        ledger: Ledger,
        transport: Transport | BatchTransport,
        halt: Halt,
        prices: Prices,
        secret: str | None,
    ) -> None:
        self.config, self.ledger, self.transport, self.halt = config, ledger, transport, halt
        self._prices, self._secret = prices, secret
        self._keys: dict[int, str] = {}
        self._refusals: dict[str, str] = {}
        self.answers = 0

    def key(self, item: int, request: Request) -> str:
        """The key of a question, noted as the last one about an item."""
        self._keys[item] = key = request.key(self.config.asked)
        return key

    def parsed(self, item: int, row: object) -> None:
        """Notes what a stage made of the answers about an item, with the last of them."""
        if (key := self._keys.pop(item, None)) is not None:
            self.ledger.parsed(key, json.dumps(row, default=repr, sort_keys=True))

    def known(self, key: str) -> Answer | None:
        """The answer to a question that was asked before.

        Answers of models that are not accepted are passed over.

        Raises:
            Unanswered: it is known that there will be none.
        """
        for raw in self.ledger.answers(key):
            answer = self.read(raw)
            if answer is not None and self.accepts(answer.model):
                return answer
        reason = self._refusals.get(key) or self.ledger.refusal(key)
        if reason is not None:
            raise Unanswered(reason)
        return None

    async def refuse(self, key: str, reason: str) -> None:
        """Notes that a question cannot be answered; for good, once the model answers others.

        Until then the fault may be in what all questions have in common: after ten, the run ends.
        """
        self._refusals[key] = reason
        if self.answers or self.ledger.answered_by(self.config.model):
            refusals, self._refusals = self._refusals, {}
            for each, why in refusals.items():
                await self.ledger.refused(each, why)
        elif len(self._refusals) >= _ALL_REFUSED:
            self.halt.trip(
                UserError(
                    f"all of the first {len(self._refusals)} questions were refused, the last "
                    f"with: {reason}"
                )
            )

    def read(self, raw: Raw) -> Answer | None:
        """An answer with its price; None if it is not in the provider's form."""
        try:
            answer = self.transport.read(raw)
        except ValueError:
            return None
        return dataclasses.replace(answer, cost=self._price(answer))

    def _price(self, answer: Answer) -> float | None:
        models = self._prices.models
        price = models.get(answer.model) or models.get(self.config.model)
        if price is None or answer.usage is None:
            return None
        return price.of(answer.usage, batch=self.config.mode == "batch")

    def expected(self, request: Request) -> tuple[int, float]:
        """The most tokens and dollars that a question takes."""
        usage = expected_tokens(request)
        price = self._prices.models.get(self.config.model)
        batch = self.config.mode == "batch"
        return usage.input + usage.output, price.of(usage, batch=batch) if price else 0.0

    def accepts(self, model: str) -> bool:
        return model == self.config.model or model in self.config.accept_models

    def check_model(self, answer: Answer) -> None:
        """Ends the run if another model answered than was asked."""
        if not self.accepts(answer.model):
            who = f"`{answer.model}` answered" if answer.model else "the answer does not say who"
            self.halt.trip(
                UserError(
                    f"`{self.config.model}` was asked, but {who}; set model to the exact name, or "
                    f'add it to accept_models = ["{answer.model}"]'
                )
            )

    def clean(self, raw: Raw) -> Raw:
        """A raw answer without the key, should the server have repeated it."""
        return dataclasses.replace(raw, body=self.scrubbed(raw.body))

    def scrubbed(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text
