"""Requests a second and latencies of `dsd serve`, beside one image at a time and diffusers.

    python -m benchmarks.serve.load [--clients 1 8 64] [--requests 64] [--rounds 3] [--batch 8]

Three servers of the toy, on one machine in one run: `dsd serve`, the same without batching
(`--max_batch 1`), and diffusers behind a plain Starlette application with one lock. A client asks
for one image of a text, waits for it, and asks again. The servers take turns, so a slow minute of
the machine does not fall on one of them alone.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

import httpx2
import numpy as np

from benchmarks.results import save
from benchmarks.serve.served import SERVE, Served, serving
from dsd_jax.toy.folder import toy_flux_path

SECTIONS = {
    "": (
        "Requests a second",
        """Clients that ask for one image of the toy, wait, and ask again; medians of the rounds.
`images a step` is the mean number of images that shared a step of the model.""",
    ),
}


async def _client(http: httpx2.AsyncClient, base: str, seeds: list[int], steps: int) -> list[float]:
    """Seconds of each request of a client, which ends when no seeds are left."""
    seconds = []
    while seeds:
        seed = seeds.pop()
        body = {"prompt": "a red star on the sea", "size": "32x32", "seed": seed, "steps": steps}
        began = time.perf_counter()
        answer = await http.post(f"{base}/images/generations", json=body)
        if answer.status_code != 200 or not answer.json()["data"][0]["b64_json"]:
            raise SystemExit(f"{base} answered {answer.status_code}: {answer.text[:200]}")
        seconds.append(time.perf_counter() - began)
    return seconds


async def _clients(base: str, clients: int, requests: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of all requests together, and of each."""
    seeds = [*range(max(requests, 2 * clients))]
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=3600, limits=limits) as http:
        began = time.perf_counter()
        each = await asyncio.gather(*(_client(http, base, seeds, steps) for _ in range(clients)))
        return time.perf_counter() - began, [seconds for own in each for seconds in own]


def measure(served: Served, clients: int, requests: int, steps: int) -> dict[str, float]:
    """One round with one server."""
    before = served.metrics()
    seconds, each = asyncio.run(_clients(served.base, clients, requests, steps))
    after = served.metrics()

    def counted(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    taken = counted("dsd_batch_images_count")
    return {
        "rate": len(each) / seconds,
        "p50": float(np.percentile(each, 50)),
        "p95": float(np.percentile(each, 95)),
        "shared": counted("dsd_batch_images_sum") / taken if taken else 1.0,
    }


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=64, help="at least two for each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    plain = [SERVE[0], "-m", "benchmarks.serve.plain", str(toy_flux_path())]
    names = ("dsd serve", "dsd serve, one at a time", "diffusers")
    rows: list[dict[str, Any]] = []
    with (
        serving([*SERVE, "--max_batch", str(given.batch)]) as batched,
        serving([*SERVE, "--max_batch", "1"]) as alone,
        serving(plain) as peer,
    ):
        servers = dict(zip(names, (batched, alone, peer), strict=True))
        for served in servers.values():
            measure(served, 1, 2, given.steps)  # warms up
        for clients in given.clients:
            rounds = [
                {name: measure(served, clients, given.requests, given.steps)
                 for name, served in servers.items()}
                for _ in range(given.rounds)
            ]  # fmt: skip

            def median(name: str, figure: str, rounds: Any = rounds) -> float:
                return statistics.median(each[name][figure] for each in rounds)

            for name in names:
                rate = median(name, "rate")
                rows.append(
                    {
                        "server": name,
                        "clients": clients,
                        "requests/s": f"{rate:.2f}",
                        "beside one at a time": f"{rate / median(names[1], 'rate'):.2f}x",
                        "p50 s": f"{median(name, 'p50'):.2f}",
                        "p95 s": f"{median(name, 'p95'):.2f}",
                        "images a step": f"{median(name, 'shared'):.1f}",
                    }
                )
                print(rows[-1], flush=True)
    save(__file__, rows, requests=given.requests, rounds=given.rounds, steps=given.steps)


if __name__ == "__main__":
    main()
