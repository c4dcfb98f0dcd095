"""Enriches the prompts of a run by a vision model, as `dsd generate` does; each is paid for once.

`prompts.jsonl` of the run keeps the texts, so a restart asks only for those that are missing, and
all workers and all images of a case use the same text.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer.batch import Results
from dsd_jax.infer.enhance import Enhancer, NotEnhanced, Plain, enhance_all, wording_name
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.progress import progress
from dsd_jax.structured import json_lines

__all__ = ["Enriched", "enriched_prompts"]

_PROMPTS = "prompts.jsonl"
_LEDGER = Path("ledgers") / "enhance-00000.sqlite"


@dataclasses.dataclass(frozen=True)
class Enriched:
    """Enriched prompts of a run.

    Attributes:
        texts: Texts by the id of their case; the prompt itself where enriching failed.
        model: Name of the model that was asked.
        wording: Name of the texts that asked.
        failed: Reasons by the id of a case whose prompt is used as it is.
    """

    texts: Mapping[str, str]
    model: str
    wording: str
    failed: Mapping[str, str]


def enriched_prompts(
    cases: Sequence[Case],
    folder: Path,
    enhancer: Enhancer,
    frame: tuple[int, int],
    *,
    ask: bool = True,
    retry_failed: bool = False,
) -> Enriched:
    """Gives the enriched prompt of every case, and asks for those that the run lacks.

    Args:
        cases: Cases with references.
        folder: Folder of the run.
        enhancer: The vision model.
        frame: Height and width of the reference as the model sees it.
        ask: Ask for what is missing. Only one worker of a run may.
        retry_failed: Ask again for what failed before.

    Raises:
        UserError: Prompts are missing and may not be asked for, another process is asking, or
            nothing can be asked; see `enhance_all`.
    """
    provider = enhancer.provider
    asked = [provider.kind, provider.model, provider.base_url, wording_name(), frame]
    keys = {case.id: _key(case, asked) for case in cases}
    path = folder / _PROMPTS
    known = _known(path, keys)
    again = {name for name, entry in known.items() if entry["failed"]} if retry_failed else set()
    todo = [case for case in cases if case.id not in known or (ask and case.id in again)]
    if todo and not ask:
        raise UserError(
            f"{path} lacks the enriched prompts of {len(todo):,} cases, which worker 0 asks for; "
            "start this worker again when it has them"
        )
    if todo:
        provider.key()
        with (
            contextlib.closing(Results(path)) as results,
            progress("enrich", len(todo), "prompts") as advance,
        ):
            for item, text in enhance_all(_plain(todo, frame), provider, folder / _LEDGER):
                failed = isinstance(text, NotEnhanced)
                entry = {
                    "case": item.name,
                    "key": keys[item.name],
                    "text": item.text if failed else str(text),
                    "failed": str(text) if failed else "",
                }
                results.add(entry)
                advance(1)
        known = _known(path, keys)
    return Enriched(
        {case.id: known[case.id]["text"] for case in cases},
        provider.model,
        wording_name(),
        {case.id: why for case in cases if (why := known[case.id]["failed"])},
    )


def _key(case: Case, asked: Sequence[object]) -> str:
    """Digest of everything that the answer depends on."""
    parts = [case.prompt, case.reference.sha256, *asked]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _known(path: Path, keys: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Entries that fit their case; the last of several counts."""
    if not path.exists():
        return {}
    entries = {}
    for _, line in json_lines(path):
        # A line that was being written when the process was killed counts as missing.
        if not isinstance(line, dict) or keys.get(str(line.get("case"))) != line.get("key"):
            continue
        entries[str(line["case"])] = {name: str(line.get(name, "")) for name in ("text", "failed")}
    return entries


def _plain(cases: Sequence[Case], frame: tuple[int, int]) -> Iterator[Plain]:
    for case in cases:
        yield Plain(case.id, case.prompt, open_frame(case.reference.path, *frame).image)
