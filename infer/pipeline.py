"""The pipeline from a reference image and a text to images.

pipe = Pipeline.load("FLUX.1-dev/", model_path="dsd/transformer", lora_path="lora.safetensors")
image = pipe(text="this character sitting on a chair", image=reference, seed=0)[0]
"""

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from dsd_jax import __version__
from dsd_jax.config import FLUX_DEV
from dsd_jax.convert.card import public_model
from dsd_jax.convert.open import open_flux, open_loras
from dsd_jax.encoders import ImageCodec, Text, TextEncoder, in_groups
from dsd_jax.errors import UserError
from dsd_jax.frames import Canvas, pack_latents
from dsd_jax.images import from_array
from dsd_jax.infer.arguments import check_count, given_once, listed, own_names, structure
from dsd_jax.infer.denoiser import Denoiser, Start
from dsd_jax.infer.generated import Generated
from dsd_jax.infer.loras import check_distilled, lora_named, named, rescaled
from dsd_jax.infer.options import LoadOptions, LoadOptionsDict
from dsd_jax.infer.prepared import Images, Prepared, Texts, open_frames, prepare, seeds_of
from dsd_jax.infer.sampler import Callback, Method, Sampler, initial_noise
from dsd_jax.infer.settings import Settings, SettingsDict
from dsd_jax.infer.shown import Lazy, Shown, in_notebook, shown_phase
from dsd_jax.infer.structure import SharedStructure
from dsd_jax.lora import NO_MERGE, check_scale
from dsd_jax.parts import Component, FluxParts, ScaledAdapter, with_condition
from dsd_jax.sharding import batch_ways, on_mesh
from dsd_jax.types import Float32

__all__ = ["Pipeline"]

PathLike = str | Path
_CALL = ("text", "image", "num_images")


class CallDict(SettingsDict, total=False):
    """Keyword arguments of a call: settings, and the names that diffusers has for some of them."""

    prompt: Texts
    num_images_per_prompt: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_real_i: float
    guidance_scale_real_t: float


class Pipeline:
    """Tokenisers, text encoders, transformer and VAE of FLUX.

    Made by `Pipeline.load`. Weights are read when they are first needed.

    Args:
        parts: the opened pipeline.
        loras: adapters by name, each with its scale.
        options: options of loading and running.

    Attributes:
        notices: notices about the files for the user, one sentence each.
        identity: everything that an image depends on besides text, reference, seed and settings;
            JSON types.
    """

    def __init__(
        self,
        parts: FluxParts,
        loras: Mapping[str, ScaledAdapter] | None = None,
        options: LoadOptions = LoadOptions(),
    ) -> None:
        self.parts, self.options, self.mesh = parts, options, options.mesh
        self.tokenizers, self.schedule = parts.text.tokenizers, parts.schedule
        self.autoencoder_config = parts.autoencoder.config
        self.notices = parts.notices
        self._loras: dict[str, ScaledAdapter] = {}

        placed: dict[str, Any] = {"precision": options.precision, "mesh": options.mesh}
        self._text = Lazy(
            "text encoders",
            lambda: TextEncoder.load(
                parts.text, execution=options.running, weights=options.weights, **placed
            ),
            keep=options.stays,
        )
        self._codec = Lazy(
            "VAE", lambda: ImageCodec.load(parts.autoencoder, **placed), keep=options.stays
        )
        self._denoiser = self._lazy_denoiser()
        self._use_loras(dict(loras or {}))

    def _lazy_denoiser(self) -> Lazy[Denoiser]:
        return Lazy(
            "transformer",
            lambda: Denoiser(self.parts.transformer, [*self._loras.values()], self.options),
            keep=self.options.stays,
        )

    @classmethod
    def load(
        cls,
        base_path: PathLike = FLUX_DEV,
        *,
        model_path: PathLike | None = None,
        lora_path: PathLike | Sequence[PathLike] = (),
        lora_scale: float | Sequence[float] = 1.0,
        max_sequence_length: int | None = None,
        **options: Unpack[LoadOptionsDict],
    ) -> "Pipeline":
        """Opens a pipeline; weights are read when they are first needed.

        Args:
            base_path: FLUX.1 in diffusers layout (or converted): a folder or a hub id.
            model_path: another transformer, such as the DSD release's. Default: the base's.
            lora_path: LoRA files of any dialect.
            lora_scale: one for all, or one each.
            max_sequence_length: T5 tokens that a text is padded or cut to. Default: as many as the
                tokeniser states, 512 for FLUX.1-dev.
            options: fields of `LoadOptions`.

        Raises:
            UserError: something is missing, damaged, or does not fit together.
        """
        chosen = structure(LoadOptions, options, "Pipeline.load")
        parts = open_flux(base_path, model_path, max_sequence_length=max_sequence_length)
        pipeline = cls(parts, options=chosen)
        files = listed("lora_path", lora_path, "a path or a list of paths", (str, Path))
        adapters, notices = open_loras(files, lora_scale, parts.transformer.config)
        pipeline._use_loras(named(adapters))
        pipeline.notices += notices
        return pipeline

    from_pretrained = load

    # LoRAs

    @property
    def loras(self) -> dict[str, float]:
        """Name and scale of every LoRA in use."""
        return {name: scale for name, (_, scale) in self._loras.items()}

    @property
    def step_masks(self) -> dict[str, str]:
        """Step mask of every LoRA that was distilled to few steps, by its name."""
        own = {name: adapter.distilled for name, (adapter, _) in self._loras.items()}
        return {name: need.mask for name, need in own.items() if need is not None and need.mask}

    def add_lora(self, path: PathLike, scale: float = 1.0, *, name: str | None = None) -> str:
        """Adds a LoRA to those in use; the base weights are not read again.

        Args:
            path: file, folder or hub id, of any dialect.
            scale: its strength.
            name: name for `scale_lora` and `remove_lora`. Default: the name of the file.

        Returns:
            The name.

        Raises:
            UserError: it cannot be read or does not fit, or the name is in use.
        """
        [added], notices = open_loras([path], scale, self.parts.transformer.config)
        [own] = named([added], taken=self._loras) if name is None else [name]
        if own in self._loras:
            raise UserError(f"a LoRA named {own!r} is in use; give another name, or remove it")
        self._use_loras(self._loras | {own: added})
        self.notices += notices
        return own

    def scale_lora(self, name: str, scale: float) -> None:
        """Changes the strength of a LoRA in use.

        Raises:
            UserError: no LoRA has this name, or the strength is no number.
        """
        adapter, _ = lora_named(self._loras, name)
        self._use_loras(self._loras | {name: (adapter, check_scale(scale))})

    def remove_lora(self, name: str) -> None:
        """Takes a LoRA out of use.

        Raises:
            UserError: no LoRA has this name.
        """
        lora_named(self._loras, name)
        self._use_loras({own: lora for own, lora in self._loras.items() if own != name})

    def scale_loras(self, scales: Mapping[str, float]) -> None:
        """Changes the strengths of all LoRAs; one that is not named gets 0.

        Raises:
            UserError: no LoRA has such a name, or a strength is no number.
        """
        self._use_loras(rescaled(self._loras, scales))

    def scaled(self, scales: Mapping[str, float]) -> "Pipeline":
        """A pipeline beside this one, whose LoRAs have other strengths; see `scale_loras`.

        Both share the base weights and the programs that are compiled already.
        """
        other = copy.copy(self)
        other.scale_loras(scales)
        return other

    def _use_loras(self, loras: dict[str, ScaledAdapter]) -> None:
        transformer = with_condition(self.parts.transformer, [*loras.values()])
        weights = transformer.settle(self.options.weights)
        if loras and weights is not None and self.options.merge_lora:
            raise UserError(NO_MERGE)
        changed = self._denoiser.value
        if changed is not None:
            changed = changed.with_adapters([*loras.values()])
        self._loras = loras
        self._denoiser = self._lazy_denoiser()  # not that of a pipeline that this is a copy of
        self._denoiser.value = changed
        self.transformer_config = transformer.config
        self.identity: dict[str, Any] = {
            "model": public_model(transformer.path),
            "lora": [f"{adapter.name}:{scale:g}" for adapter, scale in loras.values()],
            "dtype": jnp.dtype(self.options.precision.compute_dtype).name,
            **({} if weights is None else {"weights": weights}),
            "max_sequence_length": self.tokenizers.t5_length,
        }

    def weights_sha256(self) -> dict[str, dict[str, str]]:
        """Digests of the weight files by part, and of the numbers of each LoRA.

        Reads every file once, which takes minutes for a full-size model.
        """
        text, own = self.parts.text, self.parts
        parts: dict[str, Component[Any]] = {
            "transformer": own.transformer, "vae": own.autoencoder, "t5": text.t5, "clip": text.clip
        }  # fmt: skip
        digests = {name: part.sha256() for name, part in parts.items()}
        loras = {name: adapter.sha256() for name, (adapter, _) in self._loras.items()}
        return digests | ({"lora": loras} if loras else {})

    # Sampling

    def sampler(self, canvas: Canvas, method: Method = Method()) -> Sampler:
        """The sampler of a canvas and a method, with the programs that it has compiled so far."""
        with self._denoiser.use("nothing") as denoiser:
            return denoiser.sampler(canvas, method)

    @property
    def group(self) -> int:
        """Number of images that give every device one."""
        return batch_ways(self.mesh)

    def __call__(
        self,
        text: Texts | None = None,
        image: Images | None = None,
        *,
        seed: int | Sequence[int] | np.ndarray = 0,
        num_images: int = 1,
        batch_size: int | None = None,
        latents: np.ndarray | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        **settings: Unpack[CallDict],
    ) -> Generated:
        """Generates `num_images` images for every text.

        Args:
            text: one prompt or several.
            image: the reference: one for all texts, or one each. Without it, images follow the text
                alone.
            seed: image j of a text has seed + j; or one seed for every image.
            num_images: images per text.
            batch_size: images sampled together. Default: as few as occupy every device.
            latents: initial noise instead of the seeds' noise, float32 [N, 16, H/8, W/8].
            callback: called after every step of every batch (see `infer.sampler.Callback`).
            progress: show phases and steps on standard error. Default: only in a notebook.
            settings: fields of `Settings`.

        Raises:
            UserError: an empty text, an unreadable image, or settings that cannot be used.
        """
        known = (*_CALL, *(field.name for field in dataclasses.fields(Settings)))
        given = own_names(settings, known, "a pipeline")
        text = given_once("text", text, given.pop("text", None))
        num_images = given.pop("num_images", num_images)
        texts = listed("text", text, "a text or a list of texts", (str,))
        if not texts:
            raise UserError("there is no text; describe the image that is wanted")
        chosen = self.check(structure(Settings, given, "a pipeline"), two_frames=image is not None)
        frames = open_frames(image, len(texts), chosen)
        seeds = seeds_of(seed, len(texts), num_images)
        rows = [i for i in range(len(texts)) for _ in range(num_images)]
        prepared = prepare(
            self.tokenizers,
            [texts[i] for i in rows],
            None if frames is None else [frames[i] for i in rows],
            seeds,
            chosen,
        )
        shown = in_notebook() if progress is None else progress
        return self.run(
            prepared,
            batch_size=batch_size,
            latents=latents,
            callback=callback,
            show="all" if shown else "nothing",
        )

    def check(
        self,
        settings: Settings,
        *,
        two_frames: bool,
        scales: Mapping[str, float] | None = None,
    ) -> Settings:
        """The settings with the default size filled in.

        Args:
            settings: settings as given.
            two_frames: whether there is a reference.
            scales: strengths of the LoRAs for these settings, see `scale_loras`. None: those they
                have.

        Raises:
            UserError: settings that cannot be used (see `Settings.checked`), or a reference for a
                model that cannot take one; or settings that a distilled LoRA is not for.
        """
        if two_frames and not self.transformer_config.condition_embed:
            raise UserError(
                "this transformer has no condition embedding, so it cannot take a reference image; "
                "give the DSD transformer as model_path, or a LoRA file that carries c_embedder"
            )
        loras = self._loras if scales is None else rescaled(self._loras, scales)
        check_distilled(loras, settings)
        downscale = self.autoencoder_config.downscale
        return settings.checked(two_frames=two_frames, downscale=downscale)

    def run(
        self,
        prepared: Prepared,
        *,
        batch_size: int | None = None,
        latents: np.ndarray | None = None,
        callback: Callback | None = None,
        shared: SharedStructure | None = None,
        show: Shown = "nothing",
    ) -> Generated:
        """Makes one image per text: the stages one after another.

        Args:
            prepared: result of `dsd_jax.infer.prepared.prepare`.
            batch_size, latents, callback: as for a call.
            shared: groups of images with a structure in common, side by side.
            show: amount of output on standard error.

        Raises:
            UserError: a batch size or latents that cannot be used, images that make no groups, or
                weights that cannot be read.
        """
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size)
        if shared is not None:
            shared.check(len(prepared.texts), prepared.settings)
        start = self.start(prepared, latents=latents, show=show)
        with on_mesh(self.mesh):
            final = self._denoise(prepared, start, batch_size, callback, shared, show)
        made = self.finish(prepared, final, show=show)
        for parameters in made.parameters:
            if latents is not None:
                parameters["noise"] = "given"
            if shared is not None:
                parameters.update(dataclasses.asdict(shared))
        return made

    def start(
        self, prepared: Prepared, *, latents: np.ndarray | None = None, show: Shown = "nothing"
    ) -> Start:
        """Encodes texts and references: the stages before sampling.

        Args:
            prepared, latents, show: as for `run`.

        Raises:
            UserError: latents that cannot be used, or weights that cannot be read.
        """
        noise = self._noise(prepared, latents)
        with on_mesh(self.mesh):
            text = self._encode(prepared, show)
            condition = self._condition(prepared, show)
        return Start(self._canvas(prepared), noise, text, condition)

    def finish(
        self,
        prepared: Prepared,
        latents: Float32[np.ndarray, "N h w C"],
        *,
        show: Shown = "nothing",
    ) -> Generated:
        """Decodes final latents: the stage after sampling.

        Args:
            prepared, show: as for `run`.
            latents: normalised latents of every image.

        Raises:
            NotFiniteError: latents that decode to no picture.
        """
        with on_mesh(self.mesh):
            decoded = self._decode(latents, show)
        left, right = decoded[:0], decoded
        if prepared.frames is not None:
            left, right = np.split(decoded, 2, axis=2)
        return Generated(
            images=[from_array(pixels) for pixels in right],
            references=[from_array(pixels) for pixels in left],
            latents=latents.transpose(0, 3, 1, 2),
            parameters=[
                {
                    "program": f"dsd-jax {__version__}",
                    "text": text,
                    "seed": int(seed),
                    "noise": "of the seed",
                    **prepared.settings.stated(),
                    **self.identity,
                }
                for text, seed in zip(prepared.texts, prepared.seeds, strict=True)
            ],
            notices=self.notices + list(dict.fromkeys(itertools.chain(*prepared.notices))),
        )

    def _canvas(self, prepared: Prepared) -> Canvas:
        return Canvas.from_pixels(*prepared.settings.size, self.autoencoder_config.downscale)

    def _noise(
        self, prepared: Prepared, latents: np.ndarray | None
    ) -> Float32[np.ndarray, "N L Cp"]:
        """Packed initial noise, from the seeds or as given."""
        canvas, channels = self._canvas(prepared), self.autoencoder_config.latent_channels
        if latents is None:
            noise = initial_noise(prepared.seeds, canvas, channels)
        else:
            expected = (len(prepared.texts), channels, canvas.height, canvas.width)
            shape, dtype = np.shape(latents), getattr(latents, "dtype", type(latents).__name__)
            if shape != expected or dtype != np.float32:
                raise UserError(
                    f"latents must be float32 {list(expected)}, got {dtype} {list(shape)}"
                )
            noise = jnp.asarray(latents).transpose(0, 2, 3, 1)
        return np.asarray(pack_latents(noise))

    # A model that is not to stay in memory goes when its method returns.

    def _encode(self, prepared: Prepared, show: Shown) -> Text:
        with self._text.use(show) as text, shown_phase("encoding the text", show):
            return text.encode(prepared.ids)

    def _condition(self, prepared: Prepared, show: Shown) -> Float32[np.ndarray, "N L Cp"] | None:
        """Condition tokens of every reference."""
        if prepared.frames is None:
            return None
        with self._codec.use(show) as codec, shown_phase("encoding the reference", show):
            if prepared.settings.vae_sample:
                arrays = [prepared.frames, prepared.seeds]
                return in_groups(codec.condition, arrays, self.group)
            return in_groups(
                lambda frames: codec.condition(frames, None), [prepared.frames], self.group
            )

    def _denoise(
        self,
        prepared: Prepared,
        start: Start,
        batch_size: int | None,
        callback: Callback | None,
        shared: SharedStructure | None,
        show: Shown,
    ) -> Float32[np.ndarray, "N h w C"]:
        """Samples; a method of its own, so that nothing keeps the weights that it used."""
        with self._denoiser.use(show) as denoiser:
            return denoiser.run(
                prepared,
                start,
                self.schedule,
                batch_size=batch_size,
                callback=callback,
                shared=shared,
                show=show,
            )

    def _decode(
        self, latents: Float32[np.ndarray, "N h w C"], show: Shown
    ) -> Float32[np.ndarray, "N H W 3"]:
        with self._codec.use(show) as codec, shown_phase("decoding", show):
            return in_groups(codec.decode, [latents], self.group)
