"""The whole way from a reference image and a text to images.

pipe = Pipeline.load("FLUX.1-dev/", model_path="dsd/transformer", lora_path="lora.safetensors")
image = pipe(text="this character sitting on a chair", image=reference, seed=0)[0]
"""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dsd_jax import __version__
from dsd_jax.config import FLUX_DEV, Execution, Precision, default_execution
from dsd_jax.convert.open import open_flux, open_loras
from dsd_jax.encoders import ImageCodec, Text, TextEncoder, in_groups
from dsd_jax.errors import UserError
from dsd_jax.frames import Canvas, FluxInputs, pack_latents, unpack_latents
from dsd_jax.images import fit, from_array, open_image, to_array
from dsd_jax.infer.guidance import TrueGuidance
from dsd_jax.infer.sampler import Callback, Sampler, SamplerInputs, initial_noise
from dsd_jax.infer.settings import Settings, check_seed
from dsd_jax.lora import MergedSource
from dsd_jax.models import abstract, load
from dsd_jax.parts import FluxParts, ScaledAdapter, with_condition
from dsd_jax.sharding import batch_sharding, batch_ways, on_mesh
from dsd_jax.text.plain import check_text

__all__ = ["Generated", "Pipeline"]

Offload = Literal["none", "model", "layers"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Generated(Sequence[Image.Image]):
    """Images in order, as a sequence of PIL images.

    Attributes:
        images: the targets (or, without reference, the whole pictures).
        references: the reconstructed reference frames; empty without reference.
        latents: final latents of the whole canvases, float32 `[N, 16, H/8, W/8]`, normalised.
        parameters: what each image was made with, as stored in a PNG.
        notices: what the user should know, one sentence each.
    """

    images: list[Image.Image]
    references: list[Image.Image]
    latents: np.ndarray
    parameters: list[dict[str, Any]]
    notices: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]


class _Lazy(Generic[T]):
    """Something large that is made when it is first used, and again after it was dropped."""

    def __init__(self, make: Callable[[], T], *, keep: bool) -> None:
        self._make, self._keep = make, keep
        self._value: T | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[T]:
        if self._value is None:
            if not self._keep:
                gc.collect()  # NNX modules lie in reference cycles: those dropped before go now
            self._value = self._make()
        try:
            yield self._value
        finally:
            if not self._keep:
                self._value = None


class Pipeline:
    """Tokenisers, text encoders, transformer and autoencoder of FLUX. Made by `Pipeline.load`."""

    def __init__(
        self,
        parts: FluxParts,
        adapters: Sequence[ScaledAdapter] = (),
        *,
        merge_lora: bool = False,
        precision: Precision | None = None,
        execution: Execution | None = None,
        mesh: Mesh | None = None,
        offload: Offload = "none",
    ) -> None:
        transformer = with_condition(parts.transformer, adapters)
        autoencoder, texts = parts.autoencoder, parts.text
        self.tokenizers, self.schedule, self.mesh = texts.tokenizers, parts.schedule, mesh
        self.offload = offload
        precision = precision or Precision()
        execution = execution or default_execution(jax.default_backend())
        if offload == "layers":
            execution = dataclasses.replace(execution, scan_layers=True, stream_layers=True)
        self.autoencoder_config = autoencoder.config
        self.transformer_config = transformer.config
        keep = offload == "none"
        self.notices = parts.notices
        self.identity = {
            "model": Path(transformer.path).parent.name + "/" + Path(transformer.path).name,
            "lora": [f"{adapter.name}:{scale:g}" for adapter, scale in adapters],
            "dtype": jnp.dtype(precision.compute_dtype).name,
            "max_sequence_length": self.tokenizers.t5_length,
        }

        def text() -> TextEncoder:
            return TextEncoder.load(texts, precision=precision, execution=execution, mesh=mesh)

        def decoder() -> ImageCodec:
            return ImageCodec.load(autoencoder, precision=precision, mesh=mesh)

        def denoiser() -> Callable[[Canvas], Sampler]:
            model = abstract(transformer.config, precision=precision, execution=execution)
            if merge_lora and adapters:
                merged = MergedSource(transformer.source, adapters, precision.param_dtype)
                model = load(model, merged, mesh=mesh)
            else:
                model = load(model, transformer.source, mesh=mesh, adapters=adapters)
            return functools.cache(functools.partial(Sampler, model))

        self._text = _Lazy(text, keep=keep)
        self._autoencoder = _Lazy(decoder, keep=keep)
        self._denoiser = _Lazy(denoiser, keep=keep)

    @classmethod
    def load(
        cls,
        base_path: str | Path = FLUX_DEV,
        *,
        model_path: str | Path | None = None,
        lora_path: str | Path | Sequence[str | Path] = (),
        lora_scale: float | Sequence[float] = 1.0,
        max_sequence_length: int = 512,
        **options: Any,
    ) -> "Pipeline":
        """Opens a pipeline; weights are read when they are first needed.

        Args:
            base_path: FLUX.1 in diffusers layout (or converted): a folder or a hub id.
            model_path: another transformer, such as the DSD release's; default: the base's.
            lora_path: LoRA files of any dialect.
            lora_scale: one for all, or one each.
            max_sequence_length: T5 tokens that a text is padded or cut to; at most what the
                tokeniser states, 512 for FLUX.1-dev.
            options: `precision`, `execution`, `mesh`, `merge_lora` and `offload` of `Pipeline`.

        Raises:
            UserError: something is missing, damaged, or does not fit together.
        """
        parts = open_flux(base_path, model_path, max_sequence_length=max_sequence_length)
        files = [lora_path] if isinstance(lora_path, str | Path) else list(lora_path)
        adapters, notices = open_loras(files, lora_scale, parts.transformer.config)
        pipeline = cls(parts, adapters, **options)
        pipeline.notices += notices
        return pipeline

    @property
    def group(self) -> int:
        """Images that must be run together for every device to have one."""
        return batch_ways(self.mesh) if self.mesh else 1

    def __call__(
        self,
        text: str | Sequence[str],
        image: Image.Image | str | Path | Sequence[Image.Image | str | Path] | None = None,
        *,
        seed: int | Sequence[int] | np.ndarray = 0,
        num_images: int = 1,
        batch_size: int | None = None,
        latents: np.ndarray | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> Generated:
        """Generates `num_images` images for every text.

        Args:
            text: one prompt or several.
            image: the reference; one for all texts, or one each; None: plain text to image.
            seed: image j of a text has seed + j; or one seed for every image.
            num_images: per text.
            batch_size: images sampled together; default: as few as occupy every device.
            latents: initial noise, float32 `[N, 16, H/8, W/8]`, instead of the seeds' noise.
            callback: called after every step of every batch (see `infer.sampler.Callback`).
            settings: fields of `Settings`.

        Raises:
            UserError: an empty text, an unreadable image, or settings that cannot be used.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise UserError("there is no text; describe the image that is wanted")
        references = _references(image, len(texts))
        if num_images < 1:
            raise UserError(f"num_images must be at least 1, got {num_images}")
        rows = [i for i in range(len(texts)) for _ in range(num_images)]
        seeds = _seeds(seed, len(texts), num_images)
        chosen = Settings(**settings).checked(
            two_frames=references is not None, downscale=self.autoencoder_config.downscale
        )
        return self.run(
            [texts[i] for i in rows],
            [references[i] for i in rows] if references else None,
            seeds,
            chosen,
            batch_size=batch_size,
            latents=latents,
            callback=callback,
        )

    def run(
        self,
        texts: list[str],
        references: list[Image.Image] | None,
        seeds: np.ndarray,
        settings: Settings,
        *,
        batch_size: int | None = None,
        latents: np.ndarray | None = None,
        callback: Callback | None = None,
    ) -> Generated:
        """One image per text, with checked settings: the stages one after another."""
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        notices = self.notices + self.check(texts, references, settings)
        canvas = self._canvas(settings)
        noise = self._noise(seeds, latents, len(texts), canvas)
        with on_mesh(self.mesh):
            encoded = self._encode(texts, settings)
            condition = self._condition(references, seeds, settings) if references else None
            final = self._denoise(noise, texts, encoded, condition, settings, batch_size, callback)
            with self._autoencoder.use() as autoencoder:
                decoded = in_groups(autoencoder.decode, [final], self.group)
        left, right = np.split(decoded, 2, axis=2) if references else (decoded[:0], decoded)
        return Generated(
            images=[from_array(pixels) for pixels in right],
            references=[from_array(pixels) for pixels in left],
            latents=final.transpose(0, 3, 1, 2),
            parameters=[
                {
                    "program": f"dsd-jax {__version__}",
                    "text": text,
                    "seed": int(seed),
                    "noise": "of the seed" if latents is None else "given",
                    **dataclasses.asdict(settings),
                    **self.identity,
                }
                for text, seed in zip(texts, seeds, strict=True)
            ],
            notices=notices,
        )

    def _canvas(self, settings: Settings) -> Canvas:
        return Canvas.from_pixels(*settings.size, self.autoencoder_config.downscale)

    def _noise(
        self,
        seeds: np.ndarray,
        latents: np.ndarray | None,
        count: int,
        canvas: Canvas,
    ) -> np.ndarray:
        """Packed initial noise, from the seeds or as given."""
        channels = self.autoencoder_config.latent_channels
        if latents is None:
            noise = initial_noise(seeds, canvas, channels)
        else:
            expected = (count, channels, canvas.height, canvas.width)
            if latents.shape != expected or latents.dtype != np.float32:
                raise UserError(
                    f"latents must be float32 {list(expected)}, got {latents.dtype} "
                    f"{list(latents.shape)}"
                )
            noise = jnp.asarray(latents).transpose(0, 2, 3, 1)
        return np.asarray(pack_latents(noise))

    def _encode(self, texts: list[str], settings: Settings) -> dict[str, Text]:
        negative = [settings.negative_prompt] if settings.true_guidance else []
        with self._text.use() as encode:
            return encode([*texts, *negative])

    def _condition(
        self, references: list[Image.Image], seeds: np.ndarray, settings: Settings
    ) -> np.ndarray:
        """Condition tokens of every reference."""
        height, width = settings.size
        frames = [fit(image, height, width // 2) for image in references]
        pixels = np.stack([to_array(frame) for frame in frames])
        with self._autoencoder.use() as autoencoder:
            if settings.vae_sample:
                return in_groups(autoencoder.condition, [pixels, seeds], self.group)
            return in_groups(
                lambda pixels: autoencoder.condition(pixels, None), [pixels], self.group
            )

    def _denoise(
        self,
        noise: np.ndarray,
        texts: list[str],
        encoded: dict[str, Text],
        condition: np.ndarray | None,
        settings: Settings,
        batch_size: int | None,
        callback: Callback | None,
    ) -> np.ndarray:
        """Final latents `[N, h, w, C]`, a batch at a time."""
        canvas = self._canvas(settings)
        timesteps = self.schedule.timesteps(settings.steps, canvas.tokens)
        null = encoded[settings.negative_prompt] if settings.true_guidance else None
        arrays = [
            noise,
            np.stack([encoded[text].txt for text in texts]),
            np.stack([encoded[text].vec for text in texts]),
            *([] if condition is None else [condition]),
        ]
        # Whole groups, and no larger than there are images to fill them.
        groups = min(-(-(batch_size or 1) // self.group), -(-len(texts) // self.group))
        with self._denoiser.use() as sampler_of:
            sampler = sampler_of(canvas)

            def denoise(
                img: np.ndarray, txt: np.ndarray, vec: np.ndarray, cond: np.ndarray | None = None
            ) -> jax.Array:
                inputs = jnp.asarray(img), _inputs(txt, vec, cond, null, settings)
                if self.mesh is not None:
                    inputs = jax.device_put(inputs, batch_sharding(self.mesh))
                return sampler.run(*inputs, timesteps, callback)

            done = in_groups(denoise, arrays, groups * self.group)
        return np.asarray(unpack_latents(jnp.asarray(done), canvas))

    def check(
        self, texts: list[str], references: list[Image.Image] | None, settings: Settings
    ) -> list[str]:
        """Notices about this input.

        Raises:
            UserError: a text that is empty or that UTF-8 cannot hold, or a reference for a model
                that cannot take one.
        """
        if references is not None and not self.transformer_config.condition_embed:
            raise UserError(
                "this transformer has no condition embedding, so it cannot take a reference image; "
                "give the DSD transformer as model_path, or a LoRA file that carries c_embedder"
            )
        if empty := [i for i, text in enumerate(texts) if not text.strip()]:
            raise UserError(f"text {empty[0]} is empty; describe the image that is wanted")
        for text in texts:
            check_text(text, "the text")
        check_text(settings.negative_prompt, "the negative prompt")
        notices = []
        negative = [settings.negative_prompt] if settings.true_guidance else []
        ids = self.tokenizers.encode(list(dict.fromkeys([*texts, *negative])))
        for name, limit, cuts in (
            ("T5", self.tokenizers.t5_length, ids.t5_cut),
            ("CLIP", self.tokenizers.clip_length, ids.clip_cut),
        ):
            notices += [
                f"text cut at {limit} {name} tokens; left out: {cut!r}" for cut in cuts if cut
            ]
        if not settings.true_guidance:
            for name in ("i_guidance", "t_guidance", "negative_prompt"):
                value = getattr(settings, name)
                if value != getattr(Settings(), name):
                    notices.append(f"{name}={value!r} has no effect: i_guidance is not above 1")
        return notices


def _inputs(
    txt: np.ndarray,
    vec: np.ndarray,
    condition: np.ndarray | None,
    null: Text | None,
    settings: Settings,
) -> SamplerInputs:
    count = len(vec)

    def scale(value: float) -> jax.Array:
        return jnp.full(count, value, jnp.float32)

    inputs = FluxInputs(
        txt=jnp.asarray(txt),
        vec=jnp.asarray(vec),
        guidance=scale(settings.guidance),
        img_cond=None if condition is None else jnp.asarray(condition),
    )
    if null is None:
        return SamplerInputs(inputs)
    guidance = TrueGuidance(
        null_txt=jnp.broadcast_to(null.txt, txt.shape),
        null_vec=jnp.broadcast_to(null.vec, vec.shape),
        image_scale=scale(settings.i_guidance),
        text_scale=scale(settings.t_guidance),
    )
    return SamplerInputs(inputs, guidance)


def _references(image: Any, count: int) -> list[Image.Image] | None:
    if image is None:
        return None
    if not isinstance(image, list | tuple):
        return [open_image(image)] * count
    if len(image) != count:
        raise UserError(f"{count} texts but {len(image)} images; give one image, or one per text")
    return [open_image(item) for item in image]


def _seeds(seed: int | Sequence[int] | np.ndarray, texts: int, num_images: int) -> np.ndarray:
    total = texts * num_images
    given = np.asarray(seed).tolist()
    seeds = given if isinstance(given, list) else [given + i for i in range(num_images)] * texts
    if len(seeds) != total:
        raise UserError(f"{total} images but {len(seeds)} seeds; give one seed, or one per image")
    return np.asarray([check_seed(s) for s in seeds], np.uint32)
