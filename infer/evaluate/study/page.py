"""The page of a study: one HTML file, with its pictures inside or in a folder beside it.

It asks nothing of any other host than the one that takes the answers. Its own policy allows no
script but its own, and it holds nothing of the key.
"""

import base64
import dataclasses
import hashlib
import html
import json
import string
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.study.record import PICTURES, Study, read_study
from dsd_jax.page import STYLE

__all__ = ["PAGE", "TURK", "Delivery", "page_text", "picture_names", "write_page"]

PAGE = "index.html"
TURK = ("https://www.mturk.com", "https://workersandbox.mturk.com")
"""Hosts that take the answers of workers of Mechanical Turk."""
_INLINE = 8 << 20  # bytes of all pictures, above which they stay files beside the page
_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Ways of answers from the page. Without any, a rater downloads them as a file.

    Attributes:
        post: Address that takes answers as JSON; a relative one is on the page's own host.
        completion: Address that a rater opens at the end, as Prolific asks.
        turk: Answers go to Mechanical Turk at the end.
    """

    post: str = ""
    completion: str = ""
    turk: bool = False

    def __post_init__(self) -> None:
        for flag, address in (("--post", self.post), ("--completion", self.completion)):
            parts = urlsplit(address)
            relative = flag == "--post" and not parts.scheme and not parts.netloc
            if address and not relative and (parts.scheme != "https" or not parts.netloc):
                raise UserError(f"{flag} must be an https:// address, got {address!r}")
            if any(letter.isspace() or letter in ";,'\"" for letter in parts.netloc):
                raise UserError(f"{flag}: {parts.netloc!r} is not the name of a host")


def picture_names(study: Study) -> list[str]:
    """Names of all pictures of a study, sorted."""
    return sorted(
        {
            name
            for items in study.lists
            for item in items
            for name in (item.reference, *item.pictures)
        }
    )


def write_page(folder: Path, output: Path, delivery: Delivery) -> None:
    """Writes the page of the study in `folder` into the folder `output`.

    Raises:
        UserError: The study is damaged, or the page cannot be written.
    """
    study = read_study(folder)
    pictures = {name: _read(folder / PICTURES / name) for name in picture_names(study)}
    if sum(map(len, pictures.values())) <= _INLINE:
        write_file(output / PAGE, page_text(study, delivery, pictures))
        return
    for name, content in pictures.items():
        write_file(output / PICTURES / name, content)
    write_file(output / PAGE, page_text(study, delivery))


def page_text(study: Study, delivery: Delivery, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML.

    Args:
        study: What it shows.
        delivery: Ways of the answers.
        pictures: Contents of the pictures, by name, which the page then holds. None if it finds
            them in a folder beside it.
    """
    script = (_FOLDER / "study.js").read_text(encoding="utf-8")
    template = string.Template((_FOLDER / "study.html").read_text(encoding="utf-8"))
    inline = None
    if pictures is not None:
        inline = {name: _uri(name, content) for name, content in pictures.items()}
    data = {
        "study": dataclasses.asdict(study),
        "delivery": {
            "post": delivery.post,
            "completion": delivery.completion,
            "turk": TURK if delivery.turk else (),
        },
        "inline": inline,
        "small": picture_names(study)[0].endswith(".png"),
    }
    return template.substitute(
        policy=_policy(script, delivery, inline=pictures is not None),
        title=html.escape(study.questions.title),
        style=STYLE + (_FOLDER / "study.css").read_text(encoding="utf-8"),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        script=script,
    )


def _policy(script: str, delivery: Delivery, *, inline: bool) -> str:
    """Content policy: nothing leaves the page but answers, on the ways that `delivery` names."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = urlsplit(delivery.post)
    host = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "'self'"
    rules = {
        "default-src": "'none'",
        "img-src": "data:" if inline else "'self'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "connect-src": host if delivery.post else "'none'",
        "form-action": " ".join(TURK) if delivery.turk else "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; build the study again in a new folder"
        ) from None


def _uri(name: str, content: bytes) -> str:
    kind = name.rpartition(".")[2]
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
