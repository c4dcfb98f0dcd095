"""Batches as JSON Lines: a question's line for OpenAI and vLLM, and lines of results."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.dialect import Dialect
from dsd_jax.llm.messages import Request
from dsd_jax.llm.openai import chat_body
from dsd_jax.llm.reading import MOST_BYTES, parsed_body
from dsd_jax.llm.transport import Failed, Raw, failure_of

__all__ = ["Results", "chat_line", "chat_results", "complete", "read_results"]

Results = dict[str, Raw | Failed]


def chat_line(key: str, request: Request, provider: ProviderConfig, dialect: Dialect) -> bytes:
    """A question as a line of OpenAI's batch files, which `vllm run-batch` reads too."""
    line = {
        "custom_id": key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": chat_body(request, provider, dialect),
    }
    return json.dumps(line, ensure_ascii=False).encode()


def chat_results(content: bytes) -> Results:
    """Outcomes in a file of results of OpenAI's form."""
    return read_results(content, "custom_id", _chat_failure)


def read_results(
    content: bytes, name: str, failure: Callable[[dict[str, Any]], Failed | None]
) -> Results:
    """Outcomes of questions, by key. Every line is read independently of the others.

    A line that is not JSON is an answer that cannot be read, if it names its question. A last line
    without a line end is passed over unless it is complete. Of several lines for one question, the
    first answer counts before answers that cannot be read, and these before failures.

    Args:
        content: A file of results.
        name: Name of the key in a line.
        failure: The failure that a line means, or None if it holds an answer.
    """
    found: Results = {}
    read: set[str] = set()
    naming = re.compile(rb'"' + name.encode() + rb'"\s*:\s*"([^"\\]{1,200})"')
    for ended in io.BytesIO(content):
        line = ended.rstrip(b"\r\n")
        try:
            parsed = parsed_body(line)
        except ValueError:
            named = naming.search(line)
            if named is not None and ended.endswith(b"\n"):
                key = named[1].decode(errors="replace")
                if not isinstance(found.get(key), Raw):
                    found[key] = Raw(line) if len(line) <= MOST_BYTES else _too_large()
            continue
        if not isinstance(key := parsed.get(name), str) or key in read:
            continue
        if (failed := failure(parsed)) is None:
            found[key] = Raw(line)
            read.add(key)
        elif not isinstance(found.get(key), Raw):
            found[key] = failed
    return found


def _too_large() -> Failed:
    words = f"the answer has more than {MOST_BYTES >> 20} MiB"
    return Failed("invalid", words, maybe_charged=True)


def complete(content: bytes) -> bytes:
    """A file of results that came whole.

    Raises:
        Failed: It ends within a line: the connection broke, and nothing said how long it is.
    """
    last = content[content.rfind(b"\n") + 1 :]
    if last.strip():
        try:
            parsed_body(last)
        except ValueError:
            raise Failed("retry", "the file of results is cut off") from None
    return content


def _chat_failure(line: dict[str, Any]) -> Failed | None:
    response = line.get("response")
    response = response if isinstance(response, dict) else {}
    if (status := response.get("status_code")) == 200:
        return None
    # Some servers give the reason beside the response, without a status.
    words = {"error": line["error"]} if line.get("error") else response.get("body")
    code = status if isinstance(status, int) and 100 <= status < 600 else 500
    return failure_of(code, json.dumps(words), {})
