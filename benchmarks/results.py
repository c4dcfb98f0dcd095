"""Writes benchmark results: dated JSON files with versions, hardware, settings and rows."""

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

__all__ = ["hardware", "measure", "result_path", "save", "table"]

FOLDER = Path(__file__).parent.resolve()

PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "torch", "diffusers", "transformers", "peft")


def hardware() -> str:
    """Names the accelerator, or the processor with its number of cores."""
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
    """Versions of the installed packages that a result may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of `run`, which must wait for its own result, after one call to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return statistics.median(times)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
    return "\n".join(lines)


def result_path(script: str, variant: str = "") -> Path:
    """The result file of a script: `exact/parity.py` has `results/exact/parity.json`.

    Args:
        script: the script's own `__file__`.
        variant: name of a result, if the script has several: `results/toy/study.guidance.json`.
    """
    place = Path(script).resolve().relative_to(FOLDER)
    return FOLDER / "results" / place.with_suffix(f".{variant}.json" if variant else ".json")


def save(
    script: str, rows: Sequence[dict[str, Any]], variant: str = "", /, **settings: Any
) -> Path:
    """Prints the rows and writes them to `result_path(script, variant)`."""
    print(table(rows))
    path = result_path(script, variant)
    place = path.relative_to(FOLDER / "results")
    content = {
        "benchmark": f"{place.parent}.{place.name.partition('.')[0]}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": settings,
        "rows": list(rows),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {place}")
    return path
