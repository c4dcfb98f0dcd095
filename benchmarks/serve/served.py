"""A server in a process of its own, and how much it has done and holds."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2

__all__ = ["SERVE", "Served", "serving"]

SERVE = (
    sys.executable, "-m", "dsd_jax", "serve", "--base_path", "toy", "--sizes", "32x32",
    "--dtype", "float32", "--port", "0", "--no_true_guidance",
)  # fmt: skip
"""A server of the toy without its LoRA, which makes images of texts alone."""
_STOP_S = 120


class Served:
    """A server that is ready.

    Args:
        process: Its process.
        base: Its address, up to `/v1`.
    """

    def __init__(self, process: subprocess.Popen[str], base: str) -> None:
        self.process, self.base = process, base

    def memory_mib(self) -> float:
        """Memory that its process holds, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def metrics(self) -> dict[str, float]:
        """Its counters by name and labels; empty if it keeps none."""
        answer = httpx2.get(self.base.removesuffix("/v1") + "/metrics", timeout=600)
        if answer.status_code != 200:
            return {}
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def stop(self) -> int:
        """Asks it to stop, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)


@contextlib.contextmanager
def serving(command: Sequence[str]) -> Iterator[Served]:
    """Starts a server, waits until it prints that it is ready, and kills it at the end.

    Raises:
        SystemExit: It ended before it was ready.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command], stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.match(r"ready: (http://\S+)", line):
                    yield Served(process, f"{found[1]}/v1")
                    return
            log.seek(0)
            raise SystemExit(f"the server did not start: {log.read()[-2000:]}")
        finally:
            process.kill()
            process.wait()
