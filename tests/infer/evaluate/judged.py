"""Small runs to be judged, and a server that answers about them."""

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image as PilImage

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.queries import JudgeConfig
from dsd_jax.infer.evaluate.runs import Image, Run, write_run
from dsd_jax.llm.config import ProviderConfig
from tests.core.llm.server import Server
from tests.core.llm.wire import Question

__all__ = ["judge_of", "made_cases", "made_run", "score_for"]

MODEL = "gpt-4.1-nano-2025-04-14"  # it has a price


def drawn(path: Path, colour: tuple[int, int, int]) -> str:
    """Writes a picture of one colour and returns its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.new("RGB", (16, 16), colour).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_cases(folder: Path, count: int, categories: tuple[str, ...] = ("animal",)) -> list[Case]:
    """Cases of two prompts for each subject; subjects take turns among the categories."""
    cases = []
    for number in range(count):
        subject, prompt = divmod(number, 2)
        path = folder / f"{subject}.png"
        reference = Picture(path, drawn(path, (subject, 0, 0)))
        cases.append(
            Case(
                f"s{subject}-{prompt}",
                "jsonl",
                f"s{subject}",
                f"prompt {number}",
                (reference,),
                category=categories[subject % len(categories)],
                prompt_index=prompt,
                prompt_class=("photorealistic", "style")[prompt],
            )
        )
    return cases


def made_run(folder: Path, method: str, cases: list[Case], skip: int = 0) -> Run:
    """A run with an image for each case but the first `skip`."""
    images = []
    for case in cases[skip:]:
        path = folder / method / "tgt_image" / f"{case.id}.png"
        red, green, blue, *_ = hashlib.sha256(f"{method} {case.id}".encode()).digest()
        images.append(Image(case.id, 0, path, drawn(path, (red, green, blue))))
    return write_run(folder / method, method, cases, images, {})


def judge_of(server: Server, **settings: Any) -> JudgeConfig:
    """A judge that is this server."""
    return JudgeConfig(ProviderConfig("openai", MODEL, base_url=server.openai, **settings))


def score_for(question: Question) -> str:
    """An answer that depends on the question alone, in the form that it asks for."""
    score = sum(map(len, question.pictures)) % 5
    if any("JSON object" in text for _, texts in question.turns for text in texts):
        return f'{{"reason": "as it seems", "score": {score}}}'
    return f"Score: {score}"
