"""Every test: eight virtual CPU devices, strict numerics, checked annotations, no network."""

import os
import tempfile

# Before JAX, torch and transformers are loaded. One thread of torch per pytest worker.
# Compiling takes most of the time of the tests. Without LLVM's optimisation and with XLA's older
# code generator, a sampling loop of the tiny model compiles in a quarter of the time.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false"
)
os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
# Threads of XLA: with as few as this machine's cores, devices that wait for each other deadlock.
os.environ["NPROC"] = "32"
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import jax
import pytest
from jaxtyping import install_import_hook

# Compiled programs of a command line that a test runs; see `dsd_jax.compiled`.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dsd-jax-tests-")

for _name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):  # no test asks, and pays, a real provider
    os.environ.pop(_name, None)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes, dtypes and types of every annotated call inside the package; an int is a float (PEP 484).
install_import_hook(
    "dsd_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
