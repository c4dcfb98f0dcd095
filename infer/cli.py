"""`dsd generate` and `dsd batch`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.config import FLUX_DEV, PRECISIONS
from dsd_jax.errors import UserError
from dsd_jax.files import replacing
from dsd_jax.images import fit, open_image, save_png
from dsd_jax.infer.batch import read_manifest, run_batch
from dsd_jax.infer.cli_enhance import EnhanceFlags, enhanced
from dsd_jax.infer.pipeline import Offload, Pipeline
from dsd_jax.infer.settings import Settings
from dsd_jax.progress import phase, progress
from dsd_jax.sharding import MeshConfig, make_mesh

__all__ = ["batch", "generate"]

Dtype = Literal["bfloat16", "float32"]


def _mesh(config: MeshConfig, device: str | None) -> Mesh | None:
    """The mesh of the flags; None for a single device."""
    if device == "cpu":  # before JAX looks for others: kernels are chosen by its first choice
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = jax.devices(device)
    except RuntimeError:
        found = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise UserError(f"there is no {device} device here; JAX sees: {found}") from None
    sizes = (config.data, config.fsdp, config.tensor, config.context)
    if -1 not in sizes:
        wanted = int(np.prod(sizes))
        if wanted > len(devices):
            raise UserError(f"the mesh needs {wanted} devices, but JAX sees {len(devices)}")
        devices = devices[:wanted]
    if len(devices) == 1 and devices[0] == jax.devices()[0]:
        return None
    return make_mesh(config, devices)


def _pipeline(
    base_path: str,
    model_path: str | None,
    lora_path: tuple[str, ...],
    lora_scale: tuple[float, ...],
    max_sequence_length: int,
    dtype: Dtype,
    **options: Any,
) -> Pipeline:
    with phase(f"loading {base_path}"):
        return Pipeline.load(
            base_path,
            model_path=model_path,
            lora_path=lora_path,
            lora_scale=lora_scale or 1.0,
            max_sequence_length=max_sequence_length,
            precision=PRECISIONS[dtype],
            **options,
        )


def _offload(model_offload: bool, sequential_offload: bool) -> Offload:
    return "layers" if sequential_offload else "model" if model_offload else "none"


def generate(
    text: str,
    image_path: str | None = None,
    output_path: Path = Path("output.png"),
    base_path: str = FLUX_DEV,
    model_path: str | None = None,
    lora_path: tuple[str, ...] = (),
    lora_scale: tuple[float, ...] = (),
    max_sequence_length: int = 512,
    guidance: float = 3.5,
    i_guidance: float = 1.0,
    t_guidance: float = 1.0,
    steps: int = 28,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    num_images: int = 1,
    dtype: Dtype = "bfloat16",
    model_offload: bool = False,
    sequential_offload: bool = False,
    merge_lora: bool = False,
    enhance: tyro.conf.OmitArgPrefixes[EnhanceFlags] = EnhanceFlags(),
    disable_gemini_prompt: bool = False,
    save_frames: bool = False,
    latents: Path | None = None,
    output_latents: Path | None = None,
    no_vae_sample: bool = False,
    device: str | None = None,
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(data=1),
) -> None:
    """Generate an image of the subject of a reference image, in the scene of a text.

    Args:
        text: What the image shows.
        image_path: The reference; without it, plain text to image with the base model.
        output_path: PNG to write; with several images, NAME-0.png, NAME-1.png, ...
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        model_path: Another transformer: the DSD release's folder, or a file.
        lora_path: LoRA files, of any dialect.
        lora_scale: Scale of each LoRA; default 1.
        max_sequence_length: T5 tokens that a text is padded or cut to.
        guidance: Distilled guidance scale.
        i_guidance: True image guidance scale; above 1 it turns true guidance on (three passes).
        t_guidance: True text guidance scale; counts only when i_guidance is above 1.
        steps: Sampling steps.
        height: Height of the canvas in pixels; default 512 with a reference, else 1024.
        width: Width of the canvas; with a reference both frames together, default twice the
            height, else the height.
        negative_prompt: What true guidance leads away from.
        seed: Image i has seed + i.
        num_images: How many.
        dtype: Of the weights and the computation.
        model_offload: Only one of text encoders, transformer and autoencoder in memory at a time.
        sequential_offload: Blocks stay in host memory and come to the device a layer at a time.
        merge_lora: Add the LoRA to the weights once: faster, rounded to their dtype.
        enhance: Enrichment of the text by what a vision model sees in the reference.
        disable_gemini_prompt: The same as --enhance_prompt off.
        save_frames: Also write NAME-frames.png, the reference frame beside the target.
        latents: Initial noise instead of a seed, .npy, float32 [N, 16, H/8, W/8].
        output_latents: Also write the final latents, .npy, float32 [N, 16, H/8, W/8].
        no_vae_sample: Encode the reference by the mode of the posterior instead of a sample.
        device: cpu, gpu or tpu; default: what JAX prefers.
        mesh: Devices to use along each axis; -1: all that the other axes leave.
    """
    _check_outputs(output_path, output_latents)
    if save_frames and image_path is None:
        raise UserError("save_frames needs a reference; give image_path")
    noise = None if latents is None else _load_latents(latents)
    if disable_gemini_prompt:
        enhance = dataclasses.replace(enhance, enhance_prompt="off")
    prompt, notice = enhanced(text, _cropped(image_path, height, width), enhance)
    if notice is not None:
        print(f"note: {notice}")
    pipeline = _pipeline(
        base_path,
        model_path,
        lora_path,
        lora_scale,
        max_sequence_length,
        dtype,
        merge_lora=merge_lora,
        offload=_offload(model_offload, sequential_offload),
        mesh=_mesh(mesh, device),
    )
    total = steps * _batches(num_images, pipeline.group)
    with progress("sampling", total, "steps", "compiling") as advance:

        def callback(done: int, count: int, img: jax.Array) -> None:
            del done, count
            jax.block_until_ready(img)  # or the bar would run ahead of the device
            advance()

        made = pipeline(
            prompt,
            image_path,
            seed=seed,
            num_images=num_images,
            latents=noise,
            callback=callback,
            guidance=guidance,
            i_guidance=i_guidance,
            t_guidance=t_guidance,
            steps=steps,
            height=height,
            width=width,
            negative_prompt=negative_prompt,
            vae_sample=not no_vae_sample,
        )
    for notice in made.notices:
        print(f"note: {notice}")
    if prompt != text:
        for parameters in made.parameters:
            parameters["enhanced_from"] = text
    for i, image in enumerate(made.images):
        path = _numbered(output_path, i, num_images)
        save_png(image, path, made.parameters[i])
        print(f"wrote {path}")
        if save_frames:
            frames = path.with_name(f"{path.stem}-frames.png")
            save_png(_beside(made.references[i], image), frames, made.parameters[i])
            print(f"wrote {frames}")
    if output_latents is not None:
        _save_latents(made.latents, output_latents)
        print(f"wrote {output_latents}")


def _cropped(path: str | None, height: int | None, width: int | None) -> Image.Image | None:
    """The reference as the pipeline will crop it; without sizes, a square."""
    if path is None:
        return None
    rows = height or 512
    return fit(open_image(path), rows, rows if width is None else width // 2)


def batch(
    manifest: tyro.conf.Positional[Path],
    output_dir: Path,
    base_path: str = FLUX_DEV,
    model_path: str | None = None,
    lora_path: tuple[str, ...] = (),
    lora_scale: tuple[float, ...] = (),
    max_sequence_length: int = 512,
    settings: tyro.conf.OmitArgPrefixes[Settings] = Settings(),
    batch_size: int | None = None,
    dtype: Dtype = "bfloat16",
    model_offload: bool = False,
    sequential_offload: bool = False,
    merge_lora: bool = False,
    retry_failed: bool = False,
    shard: int | None = None,
    num_shards: int | None = None,
    device: str | None = None,
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="mesh")] = MeshConfig(),
) -> None:
    """Generate the images of a manifest; stopped and started again, it goes on where it was.

    Args:
        manifest: JSONL or CSV with text, image, seed, id, and any of the settings below.
        output_dir: Gets ID.png for every row, and results.jsonl.
        base_path: FLUX.1 in diffusers layout or converted: a folder or a hub id.
        model_path: Another transformer: the DSD release's folder, or a file.
        lora_path: LoRA files, of any dialect.
        lora_scale: Scale of each LoRA; default 1.
        max_sequence_length: T5 tokens that a text is padded or cut to.
        settings: For rows that do not say otherwise.
        batch_size: Images sampled together; default: one per device that shares the batch.
        dtype: Of the weights and the computation.
        model_offload: Only one of text encoders, transformer and autoencoder in memory at a time.
        sequential_offload: Blocks stay in host memory and come to the device a layer at a time.
        merge_lora: Add the LoRA to the weights once: faster, rounded to their dtype.
        retry_failed: Try again the rows that failed before.
        shard: Make only this part of the rows; default from SLURM_ARRAY_TASK_ID or
            JOB_COMPLETION_INDEX when num_shards is given.
        num_shards: Number of parts.
        device: cpu, gpu or tpu; default: what JAX prefers.
        mesh: Devices to use along each axis; -1: all that the other axes leave.
    """
    rows = read_manifest(manifest, settings)
    pipeline = _pipeline(
        base_path,
        model_path,
        lora_path,
        lora_scale,
        max_sequence_length,
        dtype,
        merge_lora=merge_lora,
        offload=_offload(model_offload, sequential_offload),
        mesh=_mesh(mesh, device),
    )
    for notice in pipeline.notices:
        print(f"note: {notice}")
    summary = run_batch(
        pipeline,
        rows,
        output_dir,
        batch_size=batch_size,
        shard=_shard(shard, num_shards),
        num_shards=num_shards or 1,
        retry_failed=retry_failed,
        on_result=_report,
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


def _shard(shard: int | None, num_shards: int | None) -> int:
    if shard is not None:
        if num_shards is None:
            raise UserError("shard needs num_shards: how many parts there are")
        return shard
    if num_shards is None or num_shards == 1:
        return 0
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    raise UserError(
        f"num_shards is {num_shards} but no shard is given, and neither SLURM_ARRAY_TASK_ID nor "
        "JOB_COMPLETION_INDEX is set"
    )


def _batches(count: int, group: int) -> int:
    return -(-count // group)


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")


def _beside(left: Any, right: Any) -> Any:
    canvas = Image.new("RGB", (left.width + right.width, left.height))
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width, 0))
    return canvas


def _check_outputs(image: Path, latents: Path | None) -> None:
    """Fails before the work, not after it."""
    if image.suffix.lower() != ".png":
        raise UserError(f"{image} must end in .png; parameters are stored in PNG files")
    if latents is not None and latents.suffix != ".npy":
        raise UserError(f"{latents} must end in .npy")
    for path in filter(None, (image, latents)):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file name")
        parent = next(parent for parent in path.parents if parent.exists())
        if not parent.is_dir():
            raise UserError(f"cannot write {path}: {parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {path}: no permission in {parent}")


def _load_latents(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the latents {path} as .npy: {reason}") from None


def _save_latents(latents: np.ndarray, path: Path) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, latents)
