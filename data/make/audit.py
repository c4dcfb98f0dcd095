"""Lets people and judges answer the curation question anew, as runs of an evaluation.

A sample of judged pairs becomes a run: the reference panel is the case, the target panel its
image, and the judge's verdict a rating. So `dsd evaluate study` shows it to people, and `dsd
evaluate audit` compares. The same question can be asked about the images of any run, such as
probes.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.judge import Decision, PairJudge
from dsd_jax.data.make.judge import JudgeConfig as CurationConfig
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import JUDGEMENTS, PAIRS, UNJUDGED, Judgement, Pair
from dsd_jax.data.make.wording import load_wording
from dsd_jax.data.pairs.record import png_bytes
from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256, write_file
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.audit import POPULATION, STRATUM, SWAPPED
from dsd_jax.infer.evaluate.cases import TASK, Case, Picture, check_unchanged, task_of
from dsd_jax.infer.evaluate.judge import ledger_of
from dsd_jax.infer.evaluate.queries import JudgeConfig
from dsd_jax.infer.evaluate.ratings import Rating, State, add_ratings, read_ratings
from dsd_jax.infer.evaluate.runs import Image, Run, write_run
from dsd_jax.llm.answers import UNANSWERED
from dsd_jax.llm.messages import Ask
from dsd_jax.llm.session import Session
from dsd_jax.llm.wording import Wording
from dsd_jax.progress import progress
from dsd_jax.tasks import IDENTITY

__all__ = ["METHOD", "Asking", "ask_runs", "sample_run"]

METHOD = "curation"
_ASPECT = "same"
_KEPT_TEXT = 4_000  # characters of an answer in its rating; the ledger has all of it


# A sample of judged pairs


def sample_run(root: Path, folder: Path, count: int, seed: int) -> Run:
    """Draws judged pairs, half of them accepted, as a run with the verdicts as ratings.

    Args:
        root: Work folder of `dsd data make`.
        folder: Folder of the run.
        count: Number of pairs. If there are too few of one kind, more of the other are drawn.
        seed: Seed of the draw.

    Raises:
        UserError: The pairs are not judged yet, there are fewer, or a grid is gone.
    """
    parts = begun_folder(root)
    judged = {
        row.id: row
        for row in parts.rows(JUDGEMENTS)
        if row.status != "failed" and row.mode != UNJUDGED
    }
    pairs = [row for row in parts.rows(PAIRS) if isinstance(row, Pair) and row.id in judged]
    kept = [pair for pair in pairs if judged[pair.id].kept]
    others = [pair for pair in pairs if not judged[pair.id].kept]
    if not 0 < count <= len(pairs):
        raise UserError(f"--count is {count}, but {root} has {len(pairs)} judged pairs")
    half = min(len(kept), max(count // 2, count - len(others)))
    rng = np.random.default_rng(seed)
    drawn = [
        own[place]
        for own, size in ((kept, half), (others, count - half))
        for place in sorted(rng.permutation(len(own))[:size])
    ]
    strata = {pair.id: _stratum(pair, judged[pair.id]) for pair in pairs}
    settings = {"making": str(root), "seed": seed, POPULATION: dict(Counter(strata.values()))}
    shown = [_written(pair, strata[pair.id], parts, folder) for pair in drawn]
    cases, images = [case for case, _ in shown], [image for _, image in shown]
    run = write_run(folder, METHOD, cases, images, settings)
    models = Counter(row.model for row in judged.values() if row.model)
    judge = models.most_common(1)[0][0] if models else "unknown"
    ratings = []
    for pair, image in zip(drawn, images, strict=True):
        row = judged[pair.id]
        decision = Decision(row.verdict, row.reason, model=row.model)
        rating = _rating(decision, image, row.turns[-1].answer if row.turns else "")
        protocol = _protocol(row.mode, row.wording)
        ratings.append(
            dataclasses.replace(rating, judge=judge, protocol=protocol, rubric=row.wording)
        )
    add_ratings(folder, ratings)
    return run


def _stratum(pair: Pair, row: Judgement) -> str:
    return f"{pair.task}, {'accepted' if row.kept else 'not accepted'}"


def _written(pair: Pair, stratum: str, parts: Parts, folder: Path) -> tuple[Case, Image]:
    """A pair as a case and its image; writes both panels."""
    (panels,) = panels_of(parts)([pair])
    paths = [folder / "images" / f"{pair.id}-{name}.png" for name in ("reference", "target")]
    for path, content in zip(paths, panels, strict=True):
        write_file(path, content)
    reference, target = (file_sha256(path) for path in paths)
    case = Case(
        id=str(pair.id),
        bench=METHOD,
        subject=str(pair.prompt_id),
        prompt="",
        references=(Picture(paths[0], reference),),
        category=pair.task,
        tags={TASK: pair.task, STRATUM: stratum},
    )
    return case, Image(case.id, 0, paths[1], target)


def _protocol(mode: str, wording: str) -> str:
    """Name of the question in ratings, so that wordings stand beside each other."""
    return f"{METHOD} by {mode}, wording {wording.partition('@')[0]}"


def _rating(decision: Decision, image: Image, text: str) -> Rating:
    """A decision as a rating of round 0, without judge, protocol and rubric."""
    refused = decision.reason in {"blocked", UNANSWERED}
    state: State = "ok" if decision.verdict else "refused" if refused else "unparsable"
    return Rating(
        case=image.case,
        sample=image.sample,
        protocol="",
        aspect=_ASPECT,
        judge="",
        round=0,
        state=state,
        score=None if decision.verdict is None else float(decision.verdict == "yes"),
        scale=1,
        sha256=image.sha256,
        answered_by=decision.model or "",
        text=text[:_KEPT_TEXT],
    )


# The question, asked about any run


@dataclasses.dataclass(frozen=True)
class Asking:
    """Settings by which the curation question is asked.

    Attributes:
        mode: steps asks in three turns, as the paper does. scores asks for a mark per aspect.
        least: Mark, of 10, that every aspect needs for a yes (mode scores).
        rounds: Number of times that each question is asked.
        both_orders: Ask with reference and image exchanged, too.
        wordings: File with texts that replace the built-in ones.
    """

    mode: Literal["steps", "scores"] = "steps"
    least: int = 8
    rounds: int = 1
    both_orders: bool = False
    wordings: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {self.rounds}")


@dataclasses.dataclass(frozen=True)
class _Query:
    case: Case
    image: Image
    aspect: str
    round: int

    @property
    def item(self) -> str:
        """Its id in the ledger."""
        return f"{self.case.id}/{self.image.sample} {self.aspect} round {self.round}"

    @property
    def files(self) -> tuple[tuple[Path, str], tuple[Path, str]]:
        """Reference and image with their digests."""
        reference, image = self.case.reference, self.image
        return (reference.path, reference.sha256), (image.path, image.sha256)


def ask_runs(runs: Sequence[Run], judge: JudgeConfig, asking: Asking) -> list[int]:
    """Asks the curation question about every image of runs, and adds the answers as ratings.

    Cases with a tag `task` are asked the question of that task, others whether both pictures show
    the same subject. What was asked before, with the same words, is not asked again. The caps of
    the judge hold for all of these runs together.

    Returns:
        Number of new answers of each run.

    Raises:
        UserError: An image has changed, or nothing can be asked any more; answers are kept.
    """
    tasks = {task.name: task for run in runs for case in run.cases if (task := task_of(case))}
    for task in tasks.values():
        task.asked()
    wording = load_wording(asking.wordings, JUDGEMENTS.name, tasks)
    todo = [_open(run, judge.name, asking, wording) for run in runs]
    check_unchanged(dict(file for queries in todo for query in queries for file in query.files))
    ledgers = [ledger_of(run) for run in runs]
    for run, queries, ledger in zip(runs, todo, ledgers, strict=True):
        _ask(run, queries, Session(judge.provider, ledger, ledgers), judge, asking, wording)
    return [len(queries) for queries in todo]


def _ask(
    run: Run,
    queries: Sequence[_Query],
    session: Session,
    judge: JudgeConfig,
    asking: Asking,
    wording: Wording,
) -> None:
    settings = CurationConfig("", asking.mode, asking.least, 0, judge.temperature, judge.max_tokens)
    asker = PairJudge(settings, wording)

    async def work(query: _Query, ask: Ask) -> Rating:
        first, second = [await asyncio.to_thread(_png, path) for path, _ in query.files]
        panels = (second, first) if query.aspect.endswith(SWAPPED) else (first, second)
        question = (task_of(query.case) or IDENTITY).asked()
        decision, turns = await asker.decide(query.item, question, asking.mode, panels, ask)
        rating = _rating(decision, query.image, turns[-1].answer if turns else "")
        return dataclasses.replace(
            rating,
            judge=judge.name,
            protocol=_protocol(asking.mode, wording.id),
            aspect=query.aspect,
            round=query.round,
            rubric=wording.id,
        )

    made: list[Rating] = []
    try:
        with progress(f"judge {run.method}", len(queries), "answers") as advance:
            for _, rating in session.run(queries, work):
                made.append(rating)
                session.note(rating.state != "ok")
                advance()
    finally:
        add_ratings(run.folder, made)


def _png(path: Path) -> bytes:
    return png_bytes(open_image(path))


def _open(run: Run, judge: str, asking: Asking, wording: Wording) -> list[_Query]:
    """Questions that have no rating yet, or one of other words or of an image that has changed."""
    cases = {case.id: case for case in run.cases}
    digests = {(image.case, image.sample): image.sha256 for image in run.images}
    rated = {
        rating.key
        for rating in read_ratings(run.folder)
        if rating.rubric == wording.id
        and rating.sha256 == digests.get((rating.case, rating.sample))
    }
    aspects = [_ASPECT, _ASPECT + SWAPPED] if asking.both_orders else [_ASPECT]
    queries = [
        _Query(cases[image.case], image, aspect, number)
        for number in range(asking.rounds)
        for image in run.images
        for aspect in aspects
    ]
    protocol = _protocol(asking.mode, wording.id)
    return [
        query
        for query in queries
        if (query.case.id, query.image.sample, protocol, query.aspect, judge, query.round)
        not in rated
    ]
