"""Questions as files for `vllm run-batch`, and its answers read back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect, adapted
from dsd_jax.llm.lines import chat_line, chat_results
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.openai import read_chat
from dsd_jax.llm.transport import Access, AnswersPending, Failed, Raw
from dsd_jax.structured import read_bytes

__all__ = ["QuestionFiles"]

_MOST_BYTES = 4 << 30  # bound of a file of answers


class QuestionFiles:
    """A file of questions and a file of answers per batch, both beside the ledger."""

    most, most_bytes = 1_000_000, 1_000_000_000

    def __init__(self, provider: ProviderConfig, access: Access) -> None:
        assert access.ledger is not None
        self._provider, self._ledger = provider, access.ledger
        self._dialect = Dialect.of(provider)

    def line(self, key: str, request: Request) -> bytes:
        """As `BatchTransport.line`."""
        return chat_line(key, request, self._provider, self._dialect)

    async def submit(self, tag: str, lines: Sequence[bytes]) -> str:
        """Writes the file of questions."""
        path = self._questions(tag)
        write_file(path, b"".join(line + b"\n" for line in lines))
        return path.name

    async def find(self, tag: str) -> str | None:
        """As `BatchTransport.find`."""
        path = self._questions(tag)
        return path.name if path.exists() else None

    async def state(self, remote: str) -> str | None:
        """As `BatchTransport.state`; without its questions, a file of answers counts as finished.

        Raises:
            AnswersPending: There are no answers yet, or not all.
        """
        questions, answers = self._ledger.with_name(remote), self._answers(remote)
        if not questions.exists():
            return "expired"
        asked = _count(questions)
        if not answers.exists():
            raise AnswersPending(
                f"{asked} questions wait in {questions}; run\n"
                f"  vllm run-batch -i {questions} -o {answers} --model {self._provider.model}\n"
                "and then this command again"
            )
        if (held := _count(answers)) < asked:
            raise AnswersPending(
                f"{answers} has {held} of {asked} answers; wait until it is complete, or remove "
                f"{questions} to go on with those that are there"
            )
        return "completed"

    async def results(self, remote: str) -> Mapping[str, Raw | Failed]:
        """As `BatchTransport.results`."""
        answers = self._answers(remote)
        found = chat_results(read_bytes(answers, _MOST_BYTES)) if answers.exists() else {}
        found, self._dialect = adapted(found, self._dialect)
        return found

    def read(self, raw: Raw) -> Answer:
        """As `BatchTransport.read`."""
        return read_chat(raw, self._provider.finish_words)

    async def close(self) -> None:
        """Nothing is open."""

    def _questions(self, tag: str) -> Path:
        return self._ledger.with_name(f"{self._ledger.stem}-{tag}.questions.jsonl")

    def _answers(self, remote: str) -> Path:
        return self._ledger.with_name(remote.replace(".questions.", ".answers."))


def _count(path: Path) -> int:
    """Finished lines of a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.endswith(b"\n"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
