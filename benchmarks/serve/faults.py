"""Attacks `dsd serve`: damaged bodies, slow and leaving clients, device errors, a stop, a long run.

    python -m benchmarks.serve.faults [--attacks bodies slow leaving device stop soak]
        [--bodies 10000] [--minutes 30] [--seed 0]

Each attack has a server of the toy for itself. The command ends with an error if an answer is
missing, if the server fails where only the client is to blame, or if its memory grows.
"""

import argparse
import asyncio
import collections
import functools
import io
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks.results import save
from benchmarks.serve.served import SERVE, Served, serving

SECTIONS = {
    "": (
        "A server under attack",
        """Attacks on `dsd serve` with the toy. `answers` counts what clients got; `memory MiB` is
that of the process early in the attack and at its end.""",
    ),
}

GROWTH = 1.05  # of the memory, from a tenth of an attack to its end
TOY = (*SERVE[:4], "--toy", "--dtype", "float32", "--port", "0", "--no_true_guidance")
URL = "/images/generations"
Row = dict[str, Any]
Attack = Callable[[Served], Awaitable[Row]]


class BrokenError(Exception):
    """The server did not hold."""


def _row(name: str, answers: collections.Counter[str], memory: Sequence[float], what: str) -> Row:
    """A row of the table.

    Raises:
        BrokenError: The memory has grown.
    """
    if memory[-1] > GROWTH * memory[0]:
        raise BrokenError(f"{name}: the memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MiB")
    shown = ", ".join(f"{count:,} x {answer}" for answer, count in sorted(answers.items()))
    return {
        "attack": name,
        "answers": shown,
        "memory MiB": f"{memory[0]:.0f} to {memory[-1]:.0f}",
        "seen": what,
    }


def _only(name: str, answers: collections.Counter[str], allowed: Sequence[str]) -> None:
    """Raises a BrokenError if there is an answer that is not allowed."""
    if other := {answer: n for answer, n in answers.items() if answer not in allowed}:
        raise BrokenError(f"{name}: {other}")


# Damaged bodies


def _form(rng: random.Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(file, "PNG")
    fields = {"prompt": "a red star", "steps": "1", "seed": str(rng.randrange(100)), "n": "1"}
    parts = [(name, "", text.encode()) for name, text in fields.items()]
    parts.append(("image", '; filename="a.png"', file.getvalue()))
    head = '--{}\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    made = b"".join(head.format("XX", n, x).encode() + data + b"\r\n" for n, x, data in parts)
    return made + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def _object(rng: random.Random) -> tuple[bytes, str]:
    odd: list[Any] = [
        None, -1, 10**30, 1e308, True, "", "a" * 5000, [], {}, [[[[]]]], "\ud800", "NaN",
    ]  # fmt: skip
    names = ["prompt", "n", "size", "seed", "steps", "guidance", "lora", "stream", "output_format"]
    body: dict[str, Any] = {"prompt": "a", "steps": 1}
    for name in rng.sample(names, rng.randrange(4)):
        body[name] = rng.choice(odd)
    return json.dumps(body).encode(), "application/json"


def _damaged(body: bytes, rng: random.Random) -> bytes:
    made = bytearray(body)
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(made))
        made[place : place + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    return bytes(made[: rng.randrange(len(made) + 1)] if rng.random() < 0.5 else made)


async def _post(http: httpx2.AsyncClient, url: str, content: bytes, kind: str) -> str:
    """The status of an answer, or the kind of error that came in its place."""
    try:
        answer = await http.post(url, content=content, headers={"content-type": kind})
    except httpx2.HTTPError as error:
        return type(error).__name__
    return str(answer.status_code)


async def bodies(served: Served, *, count: int, seed: int) -> Row:
    """Damaged bodies, eight at a time."""
    rng, answers = random.Random(seed), collections.Counter[str]()
    memory: list[float] = []
    todo = iter(range(count))

    async def client(http: httpx2.AsyncClient) -> None:
        for number in todo:
            edit = rng.random() < 0.5
            body, kind = _form(rng) if edit else _object(rng)
            if rng.random() < 0.05:
                kind = rng.choice(["text/plain", "multipart/form-data", "application/json", ""])
            url = f"{served.base}/images/{'edits' if edit else 'generations'}"
            answers[await _post(http, url, _damaged(body, rng), kind)] += 1
            if number == count // 10:
                memory.append(served.memory_mib())

    async with httpx2.AsyncClient(timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(8)))
    memory.append(served.memory_mib())
    _only("bodies", answers, ("200", "400", "404", "413", "415", "429"))
    return _row("damaged bodies", answers, memory, "no status of 500 or above")


# Clients that are slow, or leave


async def slow(served: Served) -> Row:
    """Uploads of a byte a second, beside requests of others."""
    memory, answers = [served.memory_mib()], collections.Counter[str]()
    host, port = served.base.removeprefix("http://").removesuffix("/v1").split(":")

    async def drip() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/images/generations HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100000\r\n"
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode())
        answer = asyncio.ensure_future(reader.readline())
        while not answer.done():
            writer.write(b" ")
            await asyncio.wait([answer], timeout=1)
        answers[answer.result().decode().split()[1]] += 1
        writer.close()

    dripping = [asyncio.ensure_future(drip()) for _ in range(64)]
    await asyncio.sleep(2)
    seconds = []
    async with httpx2.AsyncClient(timeout=600) as http:
        for seed in range(10):
            began = time.perf_counter()
            body = json.dumps({"prompt": "a", "steps": 2, "seed": seed}).encode()
            answers[await _post(http, served.base + URL, body, "application/json")] += 1
            seconds.append(time.perf_counter() - began)
    await asyncio.gather(*dripping)
    memory.append(served.memory_mib())
    if answers != {"200": 10, "408": 64}:
        raise BrokenError(f"slow: {dict(answers)}")
    return _row("64 slow uploads", answers, memory, f"others waited {max(seconds):.1f} s at most")


async def leaving(served: Served) -> Row:
    """Clients that leave once their request is accepted."""
    answers, memory, seconds = collections.Counter[str](), [], 0.0
    async with httpx2.AsyncClient(timeout=600) as http:
        for number in range(20):
            body = {"prompt": "a", "steps": 100, "stream": True}

            async def leave(body: dict[str, Any] = body) -> None:
                async with http.stream("POST", served.base + URL, json=body) as answer:
                    answers[str(answer.status_code)] += 1

            await asyncio.gather(*(leave() for _ in range(10)))
            began = time.perf_counter()
            while True:
                now = await asyncio.to_thread(served.metrics)
                if now["dsd_queue_images"] == now["dsd_running_images"] == 0:
                    break
                if time.perf_counter() - began > 60:
                    raise BrokenError(f"leaving: places are not free after a minute: {now}")
                await asyncio.sleep(0.05)
            seconds = max(seconds, time.perf_counter() - began)
            if number in (2, 19):
                memory.append(served.memory_mib())
    _only("leaving", answers, ("200",))
    cancelled = (await asyncio.to_thread(served.metrics)).get('dsd_jobs_total{status="cancelled"}')
    what = f"{cancelled:.0f} jobs were cancelled; all places free within {seconds:.1f} s"
    return _row("clients that leave", answers, memory, what)


# Device errors


async def device(served: Served) -> Row:
    """Steps that fail: every tenth of the device."""
    memory, answers = [served.memory_mib()], collections.Counter[str]()

    async def client(http: httpx2.AsyncClient, number: int) -> None:
        for i in range(6):
            body = json.dumps({"prompt": "a", "steps": 4, "seed": 10 * number + i}).encode()
            answers[await _post(http, served.base + URL, body, "application/json")] += 1

    async with httpx2.AsyncClient(timeout=600) as http:
        await asyncio.gather(*(client(http, number) for number in range(8)))
        health = (await http.get(served.base.removesuffix("/v1") + "/health")).status_code
    memory.append(served.memory_mib())
    _only("device", answers, ("200", "500"))
    if not (answers["200"] and answers["500"] and sum(answers.values()) == 48 and health == 200):
        raise BrokenError(f"device: {dict(answers)}, /health answers {health}")
    return _row("device errors", answers, memory, "every request answered; /health says 200")


def serve_failing(every: int) -> None:
    """Serves the toy; each `every`-th step fails."""
    from dsd_jax.config import FLOAT32
    from dsd_jax.convert.hub import TOY as NAME
    from dsd_jax.infer.pipeline import Pipeline
    from dsd_jax.infer.serve.app import create_app
    from dsd_jax.infer.serve.engine import PipelineEngine, Sampling
    from dsd_jax.infer.serve.runner import Runner
    from dsd_jax.infer.serve.server import listen, run

    class Failing(PipelineEngine):
        steps = -100  # those of compiling do not fail

        def step(self, states: Sequence[Sampling], *, guided: bool) -> None:
            self.steps += 1
            if runner.ready and self.steps % every == 0:
                raise RuntimeError("the device fails, as it is told to")
            super().step(states, guided=guided)

    engine = Failing(Pipeline.load(NAME, precision=FLOAT32), [(32, 32)], 4, true_guidance=False)
    runner = Runner(engine)
    with listen("127.0.0.1", 0) as sock:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        run(create_app(runner), runner, sock, lambda: print(f"ready: {address}", flush=True))


# A stop under load


async def _events(answer: httpx2.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            yield line.removeprefix("event: ")


async def stop(served: Served) -> Row:
    """SIGTERM while sixteen clients ask one request after another."""
    memory, answers = [served.memory_mib()], collections.Counter[str]()

    async def client() -> None:
        async with httpx2.AsyncClient(timeout=600, headers={"connection": "close"}) as http:
            for seed in range(10_000):
                body = {"prompt": "a", "steps": 20, "seed": seed, "stream": True}
                accepted = False
                try:
                    async with http.stream("POST", served.base + URL, json=body) as answer:
                        accepted = answer.status_code == 200
                        ends = [event async for event in _events(answer)]
                except httpx2.HTTPError:
                    answers["accepted and lost" if accepted else "refused at the door"] += 1
                    return
                if not accepted:
                    answers[str(answer.status_code)] += 1
                    return
                done = ends[-1:] == ["image_generation.completed"]
                answers["200" if done else "accepted and lost"] += 1

    clients = [asyncio.ensure_future(client()) for _ in range(16)]
    while sum(answers.values()) < 16:
        await asyncio.sleep(0.05)
    memory.append(served.memory_mib())
    began = time.perf_counter()
    served.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    status = await asyncio.to_thread(served.process.wait, 600)
    seconds = time.perf_counter() - began
    _only("stop", answers, ("200", "503", "refused at the door"))
    if status != 0:
        raise BrokenError(f"stop: the process ended with {status}")
    return _row("SIGTERM under load", answers, memory, f"drained in {seconds:.1f} s, status 0")


# A long run


async def soak(served: Served, *, minutes: float, seed: int) -> Row:
    """Requests of all kinds, some of them damaged."""
    rng, answers = random.Random(seed), collections.Counter[str]()
    began, memory = time.monotonic(), list[tuple[float, float]]()
    end = began + 60 * minutes

    async def client(http: httpx2.AsyncClient) -> None:
        while time.monotonic() < end:
            edit, damage = rng.random() < 0.5, rng.random() < 0.2
            if edit:
                body, kind = _form(rng)
            else:
                fields = {"prompt": "a", "steps": rng.randrange(1, 9), "n": rng.randrange(1, 4)}
                body, kind = json.dumps(fields).encode(), "application/json"
            if damage:
                body = _damaged(body, rng)
            url = f"{served.base}/images/{'edits' if edit else 'generations'}"
            answers[await _post(http, url, body, kind)] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append((time.monotonic() - began, served.memory_mib()))
            await asyncio.sleep(5)

    async with httpx2.AsyncClient(timeout=600) as http:
        await asyncio.gather(watch(), *(client(http) for _ in range(8)))
    _only("soak", answers, ("200", "400", "404", "429"))
    late = [(t / 3600, held) for t, held in memory if t > 6 * minutes]  # after a tenth
    slope = np.polyfit(*zip(*late, strict=True), 1)[0] if len(late) > 2 else 0.0
    ends = [late[0][1], late[-1][1]] if late else [memory[0][1]] * 2
    return _row(f"{minutes:g} minutes of all kinds", answers, ends, f"{slope:+.0f} MiB an hour")


NAMES = ("bodies", "slow", "leaving", "device", "stop", "soak")


async def _under(served: Served, attack: Attack) -> Row:
    """Attacks a server that has made its first images."""
    async with httpx2.AsyncClient(timeout=600) as http:
        for seed in range(8):
            body = json.dumps({"prompt": "a", "steps": 2, "seed": seed}).encode()
            await _post(http, served.base + URL, body, "application/json")
    return await attack(served)


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--attacks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve_failing", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_failing:
        serve_failing(given.serve_failing)
        return
    rows = []
    attacks: dict[str, Attack] = {
        "bodies": functools.partial(bodies, count=given.bodies, seed=given.seed),
        "slow": slow,
        "leaving": leaving,
        "device": device,
        "stop": stop,
        "soak": functools.partial(soak, minutes=given.minutes, seed=given.seed),
    }
    for name in given.attacks:
        command = [sys.executable, "-m", __spec__.name, "--serve_failing", "10"]
        with serving(command if name == "device" else TOY) as served:
            try:
                rows.append(asyncio.run(_under(served, attacks[name])))
            except BrokenError as error:
                raise SystemExit(str(error)) from None
        print(rows[-1], flush=True)
    save(__file__, rows, bodies=given.bodies, minutes=given.minutes, seed=given.seed)


if __name__ == "__main__":
    main()
