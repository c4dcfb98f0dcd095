"""A server on this machine that speaks the wire forms of OpenAI and Gemini, and counts.

    with Server(lambda question: "yes") as server:
        provider = ProviderConfig("openai", "m", base_url=server.openai)

The hook gets a `wire.Question` and returns text, a `wire.Reply`, or a fault. The server can also be
run by itself:

    python -m tests.core.llm.server --delay 0.3    (prints its port; answers "yes")
"""

import argparse
import asyncio
import collections
import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tests.core.llm.wire import (
    Answerer,
    BadJson,
    Body,
    Delayed,
    Drop,
    Question,
    Reply,
    Status,
    answer_bytes,
    gemini_turns,
    openai_turns,
)

__all__ = ["Server"]


class Server:
    """Runs in a thread of its own between `__enter__` and `__exit__`.

    Attributes:
        paid: answers that were made and would be on the bill, those of batches too.
        dropped: those of them of which the client did not get all.
        received: questions, batches' lines not among them.
        times: how often each different question was paid for.
        headers: of the last question.
        batches: that were made, by id.
        polls: looks at a batch before it is done.
        expire_at: lines of the first batch that are answered before it expires.
        lose_submission: the connection breaks after the first batch is made.
        held: questions that arrive from now on are answered when it is set.
    """

    def __init__(self, answer: Answerer = lambda question: "yes", delay: float = 0.0) -> None:
        self.answer, self.delay = answer, delay
        self.paid = self.dropped = self.received = 0
        self.times: collections.Counter[str] = collections.Counter()
        self.headers: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls = 1
        self.expire_at: int | None = None
        self.lose_submission = False
        self.held: threading.Event | None = None
        self.port = 0
        self._seen: collections.Counter[str] = collections.Counter()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    @property
    def openai(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gemini(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":  # noqa: PYI034 - Self stumbles over the checks at run time
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def serve(self, port: int = 0) -> None:
        """Serves until it is stopped."""
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._connection(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            method, path, headers = head
            body = await _body(reader, headers)
            result = await self._route(method, path, headers, body)
            if isinstance(result, Drop):
                return
            status, out, payload = result
            cut = out.pop("cut", None)
            lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(payload)}"]
            lines += [f"{name}: {value}" for name, value in out.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            writer.write(payload if cut is None else payload[: int(cut)])
            await writer.drain()
            if cut is not None:
                return

    async def _route(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | Drop:
        path = path.partition("?")[0]
        if method == "POST" and (path.endswith(("/chat/completions", ":generateContent"))):
            self.headers = headers
            return await self._one(path, body)
        if path.startswith("/v1/"):
            return self._openai_batches(method, path, headers, body)
        return self._gemini_batches(method, path, headers, body)

    # One question

    async def _one(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes] | Drop:
        self.received += 1
        question = self._question(path, json.loads(body))
        result = self.answer(question)
        delay = self.delay
        if isinstance(result, Delayed):
            delay, result = delay + result.seconds, result.then
        if isinstance(result, Status):
            headers = {"Content-Type": "application/json", **result.headers}
            return result.code, headers, result.body.encode()
        held = self.held
        if delay:
            await asyncio.sleep(delay)
        while held is not None and not held.is_set():
            await asyncio.sleep(0.01)
        self._pay(question)
        fault = result
        if isinstance(result, Drop | BadJson):
            result = "yes"
        payload = answer_bytes(question, result)
        headers = {"Content-Type": "application/json", "x-request-id": f"req-{self.paid}"}
        if isinstance(result, Reply | Body):
            headers |= result.headers
        if isinstance(fault, Drop):
            self.dropped += 1
            if not fault.after:
                return fault
            headers["cut"] = str(fault.after)
        if isinstance(fault, BadJson):
            payload = payload[: len(payload) // 2]
        return 200, headers, payload

    def _pay(self, question: Question) -> None:
        self.paid += 1
        self.times[_digest(question.body)] += 1

    def _question(self, path: str, body: dict[str, Any]) -> Question:
        digest = _digest(body)
        form = "gemini" if "contents" in body else "openai"
        model = re.sub(r".*/models/([^:]*):.*", r"\1", path) if form == "gemini" else body["model"]
        turns, pictures = openai_turns(body) if form == "openai" else gemini_turns(body)
        question = Question(form, model, turns, pictures, self._seen[digest], body)
        self._seen[digest] += 1
        return question

    # Batches

    def _line(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        question = self._question(path, body)
        result = self.answer(question)
        if isinstance(result, Delayed):
            result = result.then
        if isinstance(result, Status):
            return result.code, result.body.encode()
        assert not isinstance(result, Drop | BadJson), "no such faults in batches"
        self._pay(question)
        return 200, answer_bytes(question, result)

    def _lines(self, name: str) -> tuple[list[dict[str, Any]], bool]:
        """Lines of a file that are to be answered, and whether the batch expires after them."""
        lines = [json.loads(line) for line in self.files[name].splitlines()]
        expires, self.expire_at = self.expire_at, None
        return (lines, False) if expires is None else (lines[:expires], True)

    def _openai_batches(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | Drop:
        if (method, path) == ("POST", "/v1/files"):
            name = f"file-{len(self.files)}"
            self.files[name] = _multipart(headers, body)
            return _json({"id": name, "object": "file", "purpose": "batch", "bytes": 0})
        if (method, path) == ("POST", "/v1/batches"):
            asked = json.loads(body)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name,
                "object": "batch",
                "endpoint": asked["endpoint"],
                "input_file_id": asked["input_file_id"],
                "completion_window": "24h",
                "created_at": 0,
                "status": "in_progress",
                "metadata": asked.get("metadata"),
                "polls": 0,
            }
            if self.lose_submission:
                self.lose_submission = False
                return Drop()
            return _json(self.batches[name])
        if (method, path) == ("GET", "/v1/batches"):
            found = list(self.batches.values())[::-1]
            return _json({"object": "list", "data": found, "has_more": False})
        if match := re.fullmatch(r"/v1/batches/([^/]+)", path):
            return _json(self._openai_batch(self.batches[match[1]]))
        if match := re.fullmatch(r"/v1/files/([^/]+)/content", path):
            return 200, {"Content-Type": "application/jsonl"}, self.files[match[1]]
        return 404, {}, b'{"error": {"message": "no such path"}}'

    def _openai_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] += 1
        if batch["status"] != "in_progress" or batch["polls"] <= self.polls:
            return batch
        lines, expired = self._lines(batch["input_file_id"])
        good: list[bytes] = []
        bad: list[bytes] = []
        for line in reversed(lines):  # in another order than they came
            status, content = self._line(line["url"], line["body"])
            out = b'{"id": "x", "custom_id": "%s", "response": %s, "error": null}\n' % (
                line["custom_id"].encode(),
                b'{"status_code": %d, "request_id": "r-%d", "body": %s}'
                % (status, self.paid, content),
            )
            (good if status == 200 else bad).append(out)
        for field, found in (("output_file_id", good), ("error_file_id", bad)):
            if found:
                batch[field] = f"file-{len(self.files)}"
                self.files[batch[field]] = b"".join(found)
        batch["status"] = "expired" if expired else "completed"
        return batch

    def _gemini_batches(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | Drop:
        if path == "/upload/v1beta/files" and "start" in headers["x-goog-upload-command"]:
            return 200, {"x-goog-upload-url": f"{self.gemini}/sent"}, b"{}"
        if path == "/sent":
            name = f"files/f{len(self.files)}"
            self.files[name] = body
            final = {"x-goog-upload-status": "final", "Content-Type": "application/json"}
            return 200, final, json.dumps({"file": {"name": name}}).encode()
        if path.endswith(":batchGenerateContent"):
            asked = json.loads(body)["batch"]
            name = f"batches/b{len(self.batches)}"
            self.batches[name] = {
                "name": name,
                "metadata": {"displayName": asked["displayName"], "state": "BATCH_STATE_RUNNING"},
                "input": asked["inputConfig"]["fileName"],
                "path": path.replace(":batchGenerateContent", ":generateContent"),
                "polls": 0,
            }
            if self.lose_submission:
                self.lose_submission = False
                return Drop()
            return _json(self.batches[name])
        if path == "/v1beta/batches":
            return _json({"operations": list(self.batches.values())})
        if match := re.fullmatch(r"/v1beta/(batches/[^/]+)", path):
            return _json(self._gemini_batch(self.batches[match[1]]))
        if match := re.search(r"(files/[^/:]+):download$", path):
            return 200, {"Content-Type": "application/jsonl"}, self.files[match[1]]
        return 404, {}, b'{"error": {"message": "no such path"}}'

    def _gemini_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] += 1
        if "RUNNING" not in batch["metadata"]["state"] or batch["polls"] <= self.polls:
            return batch
        lines, expired = self._lines(batch["input"])
        out = []
        for line in reversed(lines):
            status, content = self._line(batch["path"], line["request"])
            if status == 200:
                outcome = b'"response": %s' % content
            else:
                error = {"code": status, "message": json.loads(content)["error"]["message"]}
                outcome = b'"error": %s' % json.dumps(error).encode()
            out.append(b'{"key": "%s", %s}\n' % (line["key"].encode(), outcome))
        name = f"files/f{len(self.files)}"
        self.files[name] = b"".join(out)
        batch["metadata"]["output"] = {"responsesFile": name}
        batch["metadata"]["state"] = f"BATCH_STATE_{'EXPIRED' if expired else 'SUCCEEDED'}"
        return batch


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]] | None:
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *rest = text.strip().split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in rest)
    return method, path, {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def _json(content: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _multipart(headers: dict[str, str], body: bytes) -> bytes:
    boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise AssertionError("no file in the form")


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Serves alone; every line on standard input prints the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    server = Server(delay=parser.parse_args().delay)
    with server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        while True:
            try:
                input()
            except EOFError:
                return
            counts = {"paid": server.paid, "received": server.received, "dropped": server.dropped}
            most = max(server.times.values(), default=0)
            sys.stdout.write(json.dumps({**counts, "most": most}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
