"""The one format of benchmark results: a dated JSON file with versions, hardware and rows."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import jax

__all__ = ["hardware", "measure", "save", "table"]

PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "torch", "diffusers", "transformers", "peft")


def hardware() -> str:
    """The accelerator, or the processor with its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{os.cpu_count()} cores {name}"


def versions() -> dict[str, str]:
    """Installed versions of what matters here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of `run`, which must wait for its own result; one call first to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return statistics.median(times)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
    return "\n".join(lines)


def save(name: str, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """Prints the rows and writes `results/<name>.json`."""
    print(table(rows))
    content = {
        "benchmark": name,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": settings,
        "rows": list(rows),
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path.name}")
    return path
