"""Compares images of one device with those of meshes of eight virtual CPU devices.

    python -m benchmarks.exact.mesh_equality

A small random pipeline samples two-frame canvases with true guidance, float32. Each row is a mesh;
the error is relative, over the final latents of all images. `sharded` counts the parameters of the
transformer that are split over devices.
"""

import dataclasses
import os
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "32")  # threads of XLA: eight devices that wait for each other
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.config import FLOAT32, FluxConfig
from dsd_jax.infer import Pipeline
from dsd_jax.models import abstract, model_shardings
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.toy.making.random_pipeline import SMALL, write_random_pipeline

SECTIONS = {
    "": (
        "Sampling over meshes",
        """Sampling with true guidance on eight virtual CPU devices against one device, float32:
relative error of the final latents.""",
    ),
}

TRANSFORMER = FluxConfig(
    num_heads=8,
    head_dim=16,
    axes_dim=(4, 6, 6),
    double_depth=2,
    single_depth=2,
    txt_width=32,
    vec_width=24,
)
MESHES = (
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, tensor=4, fsdp=2),
    MeshConfig(data=1, context=4, fsdp=2),
    MeshConfig(data=2, tensor=2, context=2),
    MeshConfig(data=2, fsdp=2, tensor=2),
)


def main() -> None:
    """Samples on every mesh, compares, prints, saves."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    texts = [f"this {s} on the beach" for s in ("cat", "dog", "robot", "chair")] * 2
    options = {"height": 64, "width": 128, "steps": 4, "i_guidance": 1.5, "seed": list(range(8))}
    text_encoder_2 = dataclasses.replace(SMALL.text_encoder_2, num_heads=8, head_dim=4)
    config = dataclasses.replace(SMALL, transformer=TRANSFORMER, text_encoder_2=text_encoder_2)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_random_pipeline(folder, config)
        single = Pipeline.load(folder, precision=FLOAT32)(texts, picture, batch_size=8, **options)
        for sizes in MESHES:
            mesh = make_mesh(sizes)
            pipe = Pipeline.load(folder, precision=FLOAT32, mesh=mesh)
            made = pipe(texts, picture, batch_size=8, **options)
            difference = np.linalg.norm(made.latents - single.latents)
            placed = model_shardings(abstract(TRANSFORMER, precision=FLOAT32), mesh)
            names = {name: size for name, size in mesh.shape.items() if size > 1}
            rows.append(
                {
                    "mesh": " x ".join(f"{name} {size}" for name, size in names.items()),
                    "error": f"{difference / np.linalg.norm(single.latents):.1e}",
                    "sharded": sum(not s.is_fully_replicated for s in placed.values()),
                    "parameters": len(placed),
                }
            )
            print(rows[-1], flush=True)
    save(__file__, rows, images=len(texts))


if __name__ == "__main__":
    main()
