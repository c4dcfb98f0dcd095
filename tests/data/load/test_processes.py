"""Two real processes load their parts of a batch, and the parts lie where the mesh wants them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.ports import held_port
from dsd_jax.data.load.loader import Loader, LoaderConfig, Reading
from tests.tiny_pairs import write_pairs

ROOT = Path(__file__).parents[3]
SCRIPT = """
import hashlib, json, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
import numpy as np
from jax.sharding import Mesh
from dsd_jax.data.load.loader import Loader, LoaderConfig, Reading
from dsd_jax.data.load.prefetch import mesh_rows, prefetch_to_mesh
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.sharding import MESH_AXES

path, address, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, process)
devices = np.asarray(jax.devices())
meshes = [
    devices.reshape(2, 4, 1, 1),
    devices.reshape(2, 4).T.reshape(4, 2, 1, 1),  # every process has every other row
    devices.reshape(2, 2, 2).transpose(1, 2, 0).reshape(2, 2, 2, 1),  # both have all rows
]
store, found = PairStore.open(path), []
for mesh in (Mesh(own, MESH_AXES) for own in meshes):
    rows = mesh_rows(mesh, 8)
    loader = Loader([store], LoaderConfig(sizes=((32, 32),)), batch=8, rows=rows, start_step=3)
    batches = prefetch_to_mesh(loader, mesh)
    batch = next(batches)
    batches.close()
    held = {}
    for shard in batch.target.addressable_shards:
        first = shard.index[0].indices(8)[0]
        for number, row in enumerate(np.asarray(shard.data)):
            held[first + number] = hashlib.sha256(row.tobytes()).hexdigest()
    found.append({"rows": rows.tolist(), "ids": batch.ids, "held": held})
print(json.dumps(found))
"""


def test_two_processes_hold_the_global_batch(tmp_path: Path):
    store = write_pairs(tmp_path / "pairs", 20)
    with held_port() as held:
        address = f"localhost:{held.getsockname()[1]}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(store.path), address, str(number)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for number in range(2)
        ]
        results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    config = LoaderConfig(sizes=((32, 32),))
    whole = next(iter(Loader([store], config, batch=8, start_step=3, reading=Reading(threads=0))))
    assert whole.target is not None
    digests = [hashlib.sha256(np.asarray(row).tobytes()).hexdigest() for row in whole.target]
    shares = []
    for mesh in range(3):
        for result in results:
            rows = result[mesh]["rows"]
            assert result[mesh]["ids"] == [whole.ids[row] for row in rows]
            assert result[mesh]["held"] == {str(row): digests[row] for row in rows}
        shares.append([result[mesh]["rows"] for result in results])
    assert shares[2] == [list(range(8))] * 2
    for one, other in shares[:2]:
        assert sorted(one + other) == list(range(8))
    assert shares[0] != shares[1]
