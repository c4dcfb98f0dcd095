"""Protocols of judging: the questions that a vision-language model is asked about an image.

A protocol is a file of rubrics (`rubrics/*.toml`). Each of its questions asks for one score of one
aspect, in a conversation of its own: the user's rubric, a scripted turn in which the assistant
accepts the task, and the user's turn with the pictures and the prompt. The name of the method that
made the image is never sent.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from dsd_jax.errors import UserError, and_more, did_you_mean
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.llm.messages import Message, Picture, Request
from dsd_jax.structured import build, read_bytes, read_toml

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Question",
    "Rubric",
    "judge_picture",
    "load_protocols",
    "read_protocol",
]

PROTOCOLS: Mapping[str, str] = {
    "dreambench++": "dreambench++-v1.toml",
    "dsd-debiased": "dsd-debiased-v1.toml",
    "split": "split-v1.toml",
    "omnicontext": "omnicontext-v1.toml",
}
"""Protocols that ship with the package, and their files in `rubrics/`."""

SIDE = 512  # pixels of a judged picture
_QUALITY = 75  # of JPEG
_FOLDER = Path(__file__).with_name("rubrics")
_MOST = 1 << 16  # bytes of a text of the official repository
_STYLE = "style"  # category of cases whose reference is an example of a style
_OFFICIAL = "dreambench_plus/prompts"  # folder of the texts in a clone
_TYPES = {"score": "integer", "reason": "string"}


@dataclasses.dataclass(frozen=True)
class Rubric:
    """The texts of a question.

    Attributes:
        task: Turn of the user: the task, the criteria and the form of the answer.
        accept: Scripted turn of the assistant. If it is empty, the pictures follow the task at
            once, in the same turn.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    task: str
    accept: str = ""

    def __post_init__(self) -> None:
        if not self.task.strip():
            raise UserError("task is empty; it holds the rubric")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one aspect of an image.

    Attributes:
        shows: Contents of the user's last turn, in this order.
        subject: Texts for all cases, or for those of other categories than "style".
        style: Texts for cases of the category "style", if they differ.
        fields: Fields of the JSON object that is an answer, in their order. None of them: an answer
            holds a line `Score: 3`.
        tokens: Usual number of tokens of an answer, for estimates.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    shows: tuple[Literal["reference", "output", "prompt"], ...]
    subject: Rubric
    style: Rubric | None = None
    fields: tuple[Literal["score", "reason"], ...] = ()
    tokens: int = 100

    def __post_init__(self) -> None:
        if "output" not in self.shows or len(set(self.shows)) < len(self.shows):
            raise UserError('shows lists "output", and each of its words once')
        if self.fields and "score" not in self.fields:
            raise UserError('fields needs "score"')

    def rubric(self, category: str) -> Rubric:
        """Texts for a category of cases."""
        return self.style if self.style is not None and category == _STYLE else self.subject

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """JSON schema of an answer; None if it is a line.

        Its limits are checked by the reader: some servers do not know them.
        """
        if not self.fields:
            return None
        return {
            "type": "object",
            "properties": {name: {"type": _TYPES[name]} for name in self.fields},
            "required": list(self.fields),
            "additionalProperties": False,
        }


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The questions of a protocol.

    Attributes:
        protocol: Its name, such as "dreambench++".
        version: Name of the version of its texts.
        scale: Highest score; the lowest is 0.
        questions: A question for each aspect.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    protocol: str
    version: str
    scale: int
    questions: Mapping[str, Question]

    def __post_init__(self) -> None:
        if not self.protocol or not self.version or not self.questions:
            raise UserError("protocol, version and questions must not be empty")
        if self.scale < 1:
            raise UserError(f"scale is the highest score, at least 1, got {self.scale}")

    @functools.cached_property
    def rubric(self) -> str:
        """Name, version and digest, such as `dreambench++-v1@0123456789ab`.

        The digest changes with every text and every setting of the questions.
        """
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        return f"{self.protocol}-{self.version}@{digest}"

    def request(
        self,
        aspect: str,
        case: Case,
        sample: int,
        pictures: Mapping[str, Picture],
        repetition: int = 0,
    ) -> Request:
        """The question about an image.

        Its stage is `evaluate/<protocol>/<aspect>`. The contents that `shows` names are the last
        parts of its last turn, in that order.

        Args:
            aspect: Aspect to ask about.
            case: Case of the image.
            sample: Number of the image among those of its case.
            pictures: "reference" and "output", by `judge_picture`.
            repetition: Number of the round.
        """
        question = self.questions[aspect]
        texts = question.rubric(case.category)
        shown = tuple(
            case.prompt if name == "prompt" else pictures[name] for name in question.shows
        )
        turns: tuple[Message, ...] = (Message("user", (texts.task, *shown)),)
        if texts.accept:
            turns = (
                Message("user", (texts.task,)),
                Message("assistant", (texts.accept,)),
                Message("user", shown),
            )
        return Request(
            stage=f"evaluate/{self.protocol}/{aspect}",
            item=f"{case.id}/{sample}",
            messages=turns,
            wording=self.rubric,
            sample=repetition,
            schema=question.schema,
        )


def load_protocols(names: Iterable[str], rubrics: Path | None = None) -> list[Protocol]:
    """Reads the protocols of these names.

    Args:
        names: Names in `PROTOCOLS`, or that of `rubrics`.
        rubrics: File or clone that replaces the texts of one of them; see `read_protocol`.

    Raises:
        UserError: A name is unknown or given twice, or `rubrics` cannot be used.
    """
    own = None if rubrics is None else read_protocol(rubrics)
    found: dict[str, Protocol] = {}
    for name in names:
        if name in found:
            raise UserError(f"--protocol names {name} twice")
        if own is not None and own.protocol == name:
            found[name] = own
        elif name in PROTOCOLS:
            found[name] = read_protocol(_FOLDER / PROTOCOLS[name])
        else:
            raise UserError(
                f"there is no protocol {name!r}{did_you_mean(name, PROTOCOLS)}; expected "
                f"{and_more(list(PROTOCOLS))}, or the name in the file of --rubrics"
            )
    if own is not None and own.protocol not in found:
        raise UserError(
            f"{rubrics} holds the protocol {own.protocol}, which --protocol does not name"
        )
    return list(found.values())


def read_protocol(path: Path) -> Protocol:
    """Reads a file of rubrics, or the official texts of a clone of `dreambench_plus`.

    Raises:
        UserError: It cannot be read, or a key is unknown, missing or wrong.
    """
    if path.is_dir():
        return _official(path)
    return build(Protocol, _stripped(read_toml(path)), str(path))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(each) for name, each in value.items()}
    return value.strip() if isinstance(value, str) else value


def _official(clone: Path) -> Protocol:
    """The DreamBench++ authors' texts, which the package does not hold."""
    folder = clone / _OFFICIAL
    if not folder.is_dir():
        raise UserError(
            f"{clone} has no {_OFFICIAL}; give a clone of github.com/yuangpeng/dreambench_plus, or "
            "a TOML file of rubrics"
        )

    def rubric(kind: str) -> dict[str, str]:
        files = (folder / f"{who}_prompt_{kind}_full.txt" for who in ("user", "gpt"))
        return dict(zip(("task", "accept"), map(_read, files), strict=True))

    cp = {"shows": ["reference", "output"], "tokens": 5}
    pf = {"shows": ["prompt", "output"], "tokens": 130}
    content = {
        "protocol": "dreambench++",
        "version": "official",
        "scale": 4,
        "questions": {
            "cp": {**cp, "subject": rubric("subject"), "style": rubric("style")},
            "pf": {**pf, "subject": rubric("text")},
        },
    }
    return build(Protocol, content, str(clone))


def _read(path: Path) -> str:
    try:
        return read_bytes(path, _MOST).decode().strip()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None


def judge_picture(source: Path | bytes) -> Picture:
    """A picture as DreamBench++ shows it to its judge.

    Upright by its EXIF, on white where it is transparent, RGB, 512 x 512 pixels by Pillow's bicubic
    filter whatever its aspect, JPEG of quality 75, to be looked at in high detail.

    Raises:
        UserError: The file is missing, damaged or no picture.
    """
    file = io.BytesIO()
    sized = open_image(source).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sized.save(file, "JPEG", quality=_QUALITY)
    return Picture(file.getvalue(), "image/jpeg", "high")
