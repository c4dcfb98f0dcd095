"""Kills one of two replicas of the toy under Ray Serve while clients ask.

    cd integrations/ray_serve && serve run serve.yaml
    python -m benchmarks.serve.replicas [--clients 8] [--requests 96]

The clients are those of `openai`, which try again after an error of the server. The command ends
with an error if a request gets no image, or if no replica comes in the place of the killed one.
"""

import argparse
import asyncio
import collections
import os
import re
import signal
from pathlib import Path

import httpx2
import openai

from benchmarks.results import save

SECTIONS = {
    "": (
        "A killed replica",
        """Two replicas of the toy under Ray Serve. SIGKILL ends one of them after a third of the
requests. The clients are those of `openai`, which try again by themselves.""",
    ),
}

ADDRESS = "http://127.0.0.1:8000"
_PATIENCE_S = 900.0


def replicas() -> list[int]:
    """Process ids of the replicas."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = place.read_bytes()
        except OSError:  # it has just ended
            continue
        if name.startswith(b"ray::") and b"ServeReplica:dsd:" in name:
            found.append(int(place.parent.name))
    return found


class Attack:
    """Clients that ask, and one replica that is killed.

    Args:
        http: Connections to Ray's proxy.
        requests: Number of requests.
    """

    def __init__(self, http: httpx2.AsyncClient, requests: int) -> None:
        self._http, self._requests = http, requests
        self._client = openai.AsyncOpenAI(
            base_url=f"{ADDRESS}/v1", api_key="none", http_client=http, timeout=_PATIENCE_S
        )
        self._seeds = iter(range(requests))
        self._killed = asyncio.Event()
        self.images = 0
        self.health = collections.Counter[int]()

    async def run(self, clients: int) -> None:
        """Asks for all images, and waits until a new replica answers.

        Raises:
            openai.APIError: A request was not answered with an image.
            TimeoutError: No new replica came.
        """
        watch = asyncio.ensure_future(self._watch())
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
            group.create_task(self._back())
            for _ in range(clients):
                group.create_task(self._ask())
        watch.cancel()

    async def _ask(self) -> None:
        for seed in self._seeds:
            extra = {"seed": seed, "steps": 8}
            made = await self._client.images.generate(prompt="a red star", extra_body=extra)
            self.images += bool(made.data and made.data[0].b64_json)
            if self.images >= self._requests // 3 and not self._killed.is_set():
                self._killed.set()
                os.kill(replicas()[0], signal.SIGKILL)

    async def _watch(self) -> None:
        while True:
            self.health[(await self._http.get(f"{ADDRESS}/health")).status_code] += 1
            await asyncio.sleep(0.2)

    async def _back(self) -> None:
        """Waits for the counters of a server that has made no image yet."""
        await self._killed.wait()
        while True:
            answer = await self._http.get(f"{ADDRESS}/metrics")
            if re.search(r"^dsd_images_total 0\.0$", answer.text, re.MULTILINE):
                return
            await asyncio.sleep(0.2)


async def measure(clients: int, requests: int) -> dict[str, object]:
    """One row of the table."""
    errors = collections.Counter[int]()

    async def count(response: httpx2.Response) -> None:
        if response.status_code >= 500 and response.request.method == "POST":
            errors[response.status_code] += 1

    hooks = {"response": [count]}
    async with httpx2.AsyncClient(timeout=_PATIENCE_S, event_hooks=hooks) as http:
        attack = Attack(http, requests)
        await attack.run(clients)
    return {
        "clients": clients,
        "requests": requests,
        "answered with an image": attack.images,
        "errors before another try": _counts(errors),
        "answers of /health until a new replica answered": _counts(attack.health),
    }


def _counts(seen: collections.Counter[int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(seen.items())) or "none"


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=96)
    given = parser.parse_args()
    if (count := len(replicas())) != 2:
        raise SystemExit(f"{count} replicas run, expected 2; see the head of this file")
    row = asyncio.run(measure(given.clients, given.requests))
    save(__file__, [row])
    if row["answered with an image"] != given.requests:
        raise SystemExit("a request was answered without an image")


if __name__ == "__main__":
    main()
