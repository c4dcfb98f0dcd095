"""`dsd generate` and `dsd batch`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dsd_jax.compiled import keep_compiled
from dsd_jax.config import FLUX_DEV, PRECISIONS
from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer.batch import read_manifest, run_batch
from dsd_jax.infer.enhance import Enhancement, enhanced
from dsd_jax.infer.options import Offload, mesh_of
from dsd_jax.infer.outputs import Outputs
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import check_texts, prepare, read_latents, seeds_of
from dsd_jax.infer.settings import Settings
from dsd_jax.marks import MarkFlags
from dsd_jax.progress import phase
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import MeshConfig
from dsd_jax.shares import ShareFlags

__all__ = ["ModelFlags", "NoiseFlags", "batch", "generate"]

Dtype = Literal["bfloat16", "float32"]
_PLAIN = tyro.conf.arg(name="")  # `--steps`, not `--settings.steps`; but `--mesh.data`


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The model that makes the images, and the devices that it runs on.

    Attributes:
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        model_path: Another transformer, such as the DSD release's: a folder or a file.
        lora_path: LoRA files, of any dialect.
        lora_scale: Scale of each LoRA. Default: 1.
        max_sequence_length: T5 tokens that a text is padded or cut to. Default: as many as the
            tokeniser states, 512 for FLUX.1-dev.
        dtype: Dtype of the weights and of the computation.
        weights: Hold the blocks' kernels in few bits, which are made while loading: int8 (half the
            memory of bfloat16) or int4 (a quarter, less exact). LoRAs stay beside them.
        model_offload: Keep only one of text encoders, transformer and VAE in memory.
        sequential_offload: Keep blocks in host memory and move them to the device layer by layer.
        merge_lora: Add the LoRA to the weights once. Faster, but rounded to their dtype.
        device: Device: cpu, gpu or tpu. Default: the one that JAX prefers.
        compilation_cache: Folder for compiled programs, so that the next start need not compile.
            Default: one in the user's cache, at most 4 GB. off keeps none.
        mesh: Number of devices along each axis; -1 takes all that the other axes leave.
    """

    base_path: str = FLUX_DEV
    model_path: str | None = None
    lora_path: tuple[str, ...] = ()
    lora_scale: tuple[float, ...] = ()
    max_sequence_length: int | None = None
    dtype: Dtype = "bfloat16"
    weights: WeightKind | None = None
    model_offload: bool = False
    sequential_offload: bool = False
    merge_lora: bool = False
    device: str | None = None
    compilation_cache: str = "auto"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def offload(self) -> Offload:
        return "layers" if self.sequential_offload else "model" if self.model_offload else "none"

    def load(self) -> Pipeline:
        """Opens the pipeline."""
        mesh = mesh_of(self.mesh, self.device)
        if kept := keep_compiled(self.compilation_cache):
            print(kept, file=sys.stderr, flush=True)
        with phase(f"opening {self.base_path}"):
            return Pipeline.load(
                self.base_path,
                model_path=self.model_path,
                lora_path=self.lora_path,
                lora_scale=self.lora_scale or 1.0,
                max_sequence_length=self.max_sequence_length,
                precision=PRECISIONS[self.dtype],
                mesh=mesh,
                weights=self.weights,
                merge_lora=self.merge_lora,
                offload=self.offload,
            )


@dataclasses.dataclass(frozen=True)
class NoiseFlags:
    """The noise that the images start from.

    Attributes:
        seed: Seed of the first image; image i has seed + i.
        num_images: Number of images.
        latents: File with initial noise instead of a seed, .npy, float32 [N, 16, H/8, W/8].
    """

    seed: int = 0
    num_images: int = 1
    latents: Path | None = None


@dataclasses.dataclass(frozen=True)
class BatchFlags:
    """The rows that are made, how many at a time, and the form of their images.

    Attributes:
        split: The split of a dataset with several, such as `test`.
        batch_size: Images sampled together. Default: one per device that shares the batch.
        retry_failed: Try again the rows that failed before.
        image_format: Format of the images.
    """

    split: str | None = None
    batch_size: int | None = None
    retry_failed: bool = False
    image_format: Literal["png", "jpg", "webp"] = "png"


def generate(
    text: str,
    image_path: str | None = None,
    output: Annotated[Outputs, _PLAIN] = Outputs(),
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(mesh=MeshConfig(data=1)),
    settings: Annotated[Settings, _PLAIN] = Settings(),
    noise: Annotated[NoiseFlags, _PLAIN] = NoiseFlags(),
    enhance: Annotated[Enhancement, _PLAIN] = Enhancement(),
    marks: Annotated[MarkFlags, _PLAIN] = MarkFlags(),
) -> None:
    """Generate an image that shows the subject of a reference image in the scene of a text.

    Args:
        text: Text that describes the image.
        image_path: Reference image. Without it, the image follows the text alone.
        output: Files to write.
        model: The model.
        settings: Settings of sampling.
        noise: Initial noise.
        enhance: Whether a vision model enriches the text.
        marks: Marks of generated pictures.
    """
    if output.save_frames and image_path is None:
        raise UserError("save_frames needs a reference; give image_path")
    check_texts([text])
    count = noise.num_images
    seeds = seeds_of(noise.seed, 1, count)
    places = output.places(count)
    mark = marks.open()
    latents = None if noise.latents is None else read_latents(noise.latents)
    pipeline = model.load()
    checked = pipeline.check(settings, two_frames=image_path is not None)
    height, width = checked.size
    frame = None if image_path is None else open_frame(image_path, height, width // 2)
    prompt, notice = enhanced(text, None if frame is None else frame.image, enhance)
    frames = None if frame is None else [frame] * count
    prepared = prepare(pipeline.tokenizers, [prompt] * count, frames, seeds, checked)
    said = [notice] if notice else []
    for note in (*pipeline.notices, *prepared.notices[0], *said, *places.notices):
        print(f"note: {note}", flush=True)
    made = pipeline.run(prepared, latents=latents, show="all")
    if prompt != text:
        for parameters in made.parameters:
            parameters["enhanced_from"] = text
    for path in places.write(made, mark):
        print(f"wrote {path}")


def batch(
    manifest: tyro.conf.Positional[Path],
    output_dir: Path,
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(),
    settings: Annotated[Settings, _PLAIN] = Settings(),
    flags: Annotated[BatchFlags, _PLAIN] = BatchFlags(),
    share: Annotated[ShareFlags, _PLAIN] = ShareFlags(),
    marks: Annotated[MarkFlags, _PLAIN] = MarkFlags(),
) -> None:
    """Generate the images of a manifest. If it was stopped, start it again to resume.

    Args:
        manifest: Table with text, image, seed, id, and any of the settings below; a file, a folder
            with one, or the hub id of a dataset.
        output_dir: Folder that gets an image named by its ID for every row, and results.jsonl.
        model: The model.
        settings: Settings of rows that do not say otherwise.
        flags: Rows that are made, how many at a time, and the form of their images.
        share: Rows that this process makes.
        marks: Marks of generated pictures.
    """
    rows = read_manifest(manifest, settings, flags.split, f".{flags.image_format}")
    mark = marks.open()
    own = share.share()
    pipeline = model.load()
    for notice in pipeline.notices:
        print(f"note: {notice}")
    summary = run_batch(
        pipeline,
        rows,
        output_dir,
        batch_size=flags.batch_size,
        share=own,
        retry_failed=flags.retry_failed,
        on_result=_report,
        mark=mark,
    )
    print(summary)
    if summary.stopped:
        print("stopped before the last row; the same command goes on with the rest")
        raise SystemExit(130)
    if summary.failed:
        raise SystemExit(1)


def _report(entry: dict[str, Any]) -> None:
    if entry["status"] == "error":
        print(f"row {entry['id']}: {entry['error']}")
