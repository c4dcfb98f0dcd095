"""`dsd evaluate judge`: asks a vision-language model about the images of runs.

Every answer becomes a rating, whatever it says. Paid answers are in a ledger in the run's folder,
so a run that was killed asks nothing again that it had paid for.
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.answers import read_score
from dsd_jax.infer.evaluate.cases import check_unchanged
from dsd_jax.infer.evaluate.protocols import judge_picture
from dsd_jax.infer.evaluate.queries import JudgeConfig, Query, valid_ratings
from dsd_jax.infer.evaluate.ratings import Rating, State, add_ratings
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.llm.messages import Answer, Ask, Picture, Unanswered, Usage
from dsd_jax.llm.prices import expected_tokens, load_prices
from dsd_jax.llm.session import Session
from dsd_jax.llm.totals import Spent, answered_by, spent_of
from dsd_jax.llm.transport import AnswersPending
from dsd_jax.progress import progress

__all__ = ["Estimate", "Tally", "estimates", "judge_runs", "ledger_of", "spent_on", "tallies"]

_KEPT_PICTURES = 4096  # prepared ones, of some 50 kB, that stay in memory
_KEPT_TEXT = 4_000  # characters of an answer in its rating; the ledger has all of it
# GPT-4o's counts for the texts and pictures of DreamBench++, for estimates.
_LETTERS_OF_TOKEN, _TOKENS_OF_PICTURE = 4.6, 255
_BLANK = {"reference": Picture(b""), "output": Picture(b"")}  # of questions that are not sent


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of questions to come.

    Attributes:
        calls: Number of questions.
        input: Tokens of the questions.
        output: Tokens of the answers, without hidden reasoning.
        cost: Dollars for these. None if the model has no price.
        most: Dollars for the longest answers that are allowed, by which the cap counts.
    """

    calls: int
    input: int
    output: int
    cost: float | None
    most: float | None


def estimates(asked: Iterable[Query], judge: JudgeConfig) -> dict[str, Estimate]:
    """The cost of questions by the name of their protocol.

    Raises:
        UserError: The table of prices cannot be read.
    """
    provider = judge.provider
    price = load_prices(provider.prices).models.get(provider.model)
    sums: dict[str, Counter[str]] = {}
    for query in asked:
        request = query.request(judge, _BLANK)
        parts = [part for turn in request.messages for part in turn.parts]
        letters = sum(len(part) for part in parts if isinstance(part, str))
        pictures = sum(isinstance(part, Picture) for part in parts)
        most = expected_tokens(request)
        sums.setdefault(query.protocol.protocol, Counter()).update(
            calls=1,
            input=round(letters / _LETTERS_OF_TOKEN) + pictures * _TOKENS_OF_PICTURE,
            output=query.protocol.questions[query.aspect].tokens,
            most_input=most.input,
            most_output=most.output,
        )

    def dollars(read: int, written: int) -> float | None:
        usage = Usage(input=read, output=written)
        return None if price is None else price.of(usage, batch=provider.mode == "batch")

    return {
        name: Estimate(
            each["calls"],
            each["input"],
            each["output"],
            dollars(each["input"], each["output"]),
            dollars(each["most_input"], each["most_output"]),
        )
        for name, each in sums.items()
    }


def ledger_of(run: Run) -> Path:
    """The ledger of all judges of a run."""
    return run.folder / "ledgers" / "judge-00000.sqlite"


def spent_on(runs: Iterable[Run]) -> Spent:
    """Calls, tokens and dollars that judging these runs has cost so far."""
    return sum((spent_of(ledger_of(run)) for run in runs), Spent())


def judge_runs(todo: Sequence[tuple[Run, Sequence[Query]]], judge: JudgeConfig) -> None:
    """Asks questions about runs, and adds the answers to their ratings.

    The caps of the provider hold for all of these runs together, with what they have cost before.

    Args:
        todo: Runs, and the open questions about each in the order in which they are asked.
        judge: The judge.

    Raises:
        UserError: An image is not what it was, or nothing can be asked any more; what was answered
            is kept.
        AnswersPending: Another program has to answer the files of some runs; the others are done.
    """
    for _, asked in todo:
        _check_pictures(asked)
    ledgers = [ledger_of(run) for run, _ in todo]
    waiting: list[AnswersPending] = []
    for run, asked in todo:
        if not asked:
            continue
        try:
            _judge_run(run, asked, judge, ledgers)
        except AnswersPending as error:
            waiting.append(error)
    if waiting:
        raise AnswersPending("\n".join(map(str, waiting)))


def _check_pictures(asked: Iterable[Query]) -> None:
    """Compares the files with their digests, before anything is paid."""
    known: dict[Path, str] = {}
    for query in asked:
        known[query.image.path] = query.image.sha256
        if "reference" in query.shows:
            known[query.case.reference.path] = query.case.reference.sha256
    check_unchanged(known)


def _judge_run(
    run: Run, asked: Sequence[Query], judge: JudgeConfig, ledgers: Sequence[Path]
) -> None:
    try:
        with progress(f"judge {run.method}", len(asked), "answers") as advance:
            _ask(run, asked, Session(judge.provider, ledger_of(run), ledgers), judge, advance)
    except UserError:
        _recall(run, asked, judge)
        raise


def _recall(run: Run, asked: Sequence[Query], judge: JudgeConfig) -> None:
    """Makes ratings of the paid answers that came while the run was ending. Asks nothing."""
    free = dataclasses.replace(judge.provider, max_calls=0)
    paid = answered_by(ledger_of(run), {free.model, *free.accept_models})
    rated = valid_ratings(run, asked, judge)
    left = []
    for query in asked:
        sent = query.request(judge, _BLANK)
        keys = paid.get((sent.stage, sent.item, sent.sample))
        if keys is None or query.key(judge) in rated:
            continue
        # The image or the texts may have changed since.
        if query.request(judge, _pictures(query)).key(free.asked) in keys:
            left.append(query)
    with contextlib.suppress(UserError):  # too many have no score, which has been said already
        _ask(run, left, Session(free, ledger_of(run)), judge)


def _ask(
    run: Run,
    asked: Sequence[Query],
    session: Session,
    judge: JudgeConfig,
    advance: Callable[[], None] = lambda: None,
) -> None:
    made: list[Rating] = []

    async def work(query: Query, ask: Ask) -> Rating:
        pictures = await asyncio.to_thread(_pictures, query)
        try:
            answer = await ask(query.request(judge, pictures))
        except Unanswered as error:
            answer = Answer(str(error), "blocked", "")
        return _rating(query, judge, answer)

    try:
        for _, rating in session.run(asked, work):
            made.append(rating)
            session.note(rating.state != "ok")
            advance()
    finally:
        add_ratings(run.folder, made)


def _pictures(query: Query) -> dict[str, Picture]:
    """The pictures that a question shows, as the judge sees them."""
    reference, output = query.case.reference, query.image
    files = {
        "reference": (reference.path, reference.sha256),
        "output": (output.path, output.sha256),
    }
    return {name: _prepared(*file) for name, file in files.items() if name in query.shows}


@functools.lru_cache(maxsize=_KEPT_PICTURES)
def _prepared(path: Path, sha256: str) -> Picture:  # noqa: ARG001 - another file, another picture
    return judge_picture(path)


def _rating(query: Query, judge: JudgeConfig, answer: Answer) -> Rating:
    state, score = read_score(answer, query.protocol, query.aspect)
    usage = answer.usage
    return Rating(
        case=query.case.id,
        sample=query.image.sample,
        protocol=query.protocol.protocol,
        aspect=query.aspect,
        judge=judge.name,
        round=query.round,
        state=state,
        score=score,
        scale=query.protocol.scale,
        sha256=query.image.sha256,
        answered_by=answer.model,
        rubric=query.protocol.rubric,
        text=answer.text[:_KEPT_TEXT],
        input_tokens=None if usage is None else usage.input,
        output_tokens=None if usage is None else usage.output,
        cost=answer.cost,
    )


@dataclasses.dataclass(frozen=True)
class Tally:
    """Answers of a judge about one run.

    Attributes:
        asked: Number of questions.
        states: Number of ratings by state; questions without an answer are in none.
        mean: Mean of the scores that there are; None if there are none.
        cost: Dollars for the answers; None if one has no price. A question that the server rejected
            has no answer.
    """

    asked: int
    states: Mapping[State, int]
    mean: float | None
    cost: float | None


def tallies(run: Run, asked: Sequence[Query], judge: JudgeConfig) -> dict[tuple[str, str], Tally]:
    """Answers about a run by protocol and aspect.

    Raises:
        UserError: The file of ratings is damaged.
    """
    found = valid_ratings(run, asked, judge)
    counts = Counter((query.protocol.protocol, query.aspect) for query in asked)
    made = {}
    for (protocol, aspect), count in counts.items():
        held = [
            each for each in found.values() if (each.protocol, each.aspect) == (protocol, aspect)
        ]
        costs = [each.cost for each in held if each.answered_by]
        scores = [each.score for each in held if each.score is not None]
        made[protocol, aspect] = Tally(
            asked=count,
            states=Counter(each.state for each in held),
            mean=sum(scores) / len(scores) if scores else None,
            cost=None if None in costs else sum(each for each in costs if each is not None),
        )
    return made
