"""A plain PyTorch rendering of the conditional model, from diffusers' own modules.

It is the oracle of the parity tests. Where PyTorch is installed, an export is checked with it.

Written from the published behaviour of the released checkpoint: the condition embedding added to
the image embedding, [reference | black] encoded as one picture, three passes for true guidance from
the third step on, text without mask, Euler steps.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.utils import logging

__all__ = ["TorchConditional", "condition_embedding", "silence"]


def silence() -> None:
    """Turns off progress bars of diffusers, and warnings about other uses of it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def condition_embedding(transformer: Path) -> torch.nn.Linear:
    """The condition embedding in a transformer's folder, float32."""
    held = safetensors.torch.load_file(transformer / "diffusion_pytorch_model.safetensors")
    weight, bias = (held[f"c_embedder.{name}"].float() for name in ("weight", "bias"))
    embedder = torch.nn.Linear(*weight.shape[::-1])
    embedder.load_state_dict({"weight": weight, "bias": bias})
    return embedder


@dataclasses.dataclass
class TorchConditional:
    """FLUX of diffusers with a condition embedding beside it.

    Attributes:
        pipe: Pipeline from a folder in diffusers layout.
        c_embedder: Linear from packed channels to the width.
        max_sequence_length: T5 tokens of a text, at most what the tokeniser states.
    """

    pipe: FluxPipeline
    c_embedder: torch.nn.Linear
    max_sequence_length: int = 512

    @classmethod
    def load(cls, folder: Path, kernel: np.ndarray, bias: np.ndarray) -> "TorchConditional":
        """Opens the pipeline of a folder, with the embedding's kernel `[C, D]` and bias `[D]`."""
        embedder = torch.nn.Linear(*kernel.shape)
        embedder.weight.data = torch.tensor(kernel.T)
        embedder.bias.data = torch.tensor(bias)
        return cls(FluxPipeline.from_pretrained(folder), embedder)

    @classmethod
    def from_export(
        cls, base: Path, export: Path, *, max_sequence_length: int = 512
    ) -> "TorchConditional":
        """Opens an export of `dsd convert lora RUN OUT` over the base of the run, in float32."""
        model = FluxTransformer2DModel.from_pretrained(export / "transformer").float()
        pipe = FluxPipeline.from_pretrained(base, transformer=model).to(torch.float32)
        pipe.load_lora_weights(export)
        return cls(pipe, condition_embedding(export / "transformer"), max_sequence_length)

    @contextmanager
    def _condition(self, tokens: torch.Tensor) -> Iterator[None]:
        hook = self.pipe.transformer.x_embedder.register_forward_hook(
            lambda module, args, output: output + self.c_embedder(tokens)
        )
        try:
            yield
        finally:
            hook.remove()

    def condition_tokens(self, reference: np.ndarray) -> torch.Tensor:
        """Posterior mode of [reference | black]; `reference` is `[h, w, 3]` in [-1, 1]."""
        vae = self.pipe.vae
        left = torch.tensor(reference).permute(2, 0, 1)[None]
        canvas = torch.cat([left, -torch.ones_like(left)], dim=3)
        latents = vae.encode(canvas).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return FluxPipeline._pack_latents(latents, *latents.shape)

    @torch.no_grad()
    def __call__(
        self,
        text: str,
        reference: np.ndarray,
        noise: np.ndarray,
        *,
        steps: int,
        guidance: float,
        i_guidance: float = 1.0,
        t_guidance: float = 1.0,
        negative_prompt: str = "",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Final latents `[1, C, h, w]` and pixels `[h, w, 3]` in [-1, 1] of the whole canvas."""
        pipe = self.pipe
        _, channels, height, width = noise.shape
        img = FluxPipeline._pack_latents(torch.tensor(noise), 1, channels, height, width)
        condition = self.condition_tokens(reference)
        ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", img.dtype)
        passes = {"c": (text, condition)}
        if i_guidance > 1:
            passes["u"] = (negative_prompt, torch.zeros_like(condition))
            passes["v"] = (negative_prompt, condition)
        length = min(self.max_sequence_length, pipe.tokenizer_2.model_max_length)
        embedded = {
            name: pipe.encode_prompt(text, None, max_sequence_length=length)
            for name, (text, _) in passes.items()
        }
        scale = torch.tensor([guidance]) if pipe.transformer.config.guidance_embeds else None

        config = pipe.scheduler.config
        mu = calculate_shift(
            img.shape[1],
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        timesteps, _ = retrieve_timesteps(
            pipe.scheduler, device="cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu
        )
        for i, t in enumerate(timesteps):
            out: dict[str, Any] = {}
            for name, (_, tokens) in passes.items():
                if name != "c" and i < 2:
                    continue
                txt, vec, txt_ids = embedded[name]
                with self._condition(tokens):
                    out[name] = pipe.transformer(
                        hidden_states=img,
                        timestep=t[None] / 1000,
                        guidance=scale,
                        pooled_projections=vec,
                        encoder_hidden_states=txt,
                        txt_ids=txt_ids,
                        img_ids=ids,
                    ).sample
            velocity = out["c"]
            if "u" in out:
                velocity = (
                    out["u"]
                    + i_guidance * (out["v"] - out["u"])
                    + t_guidance * (out["c"] - out["v"])
                )
            img = pipe.scheduler.step(velocity, t, img, return_dict=False)[0]
        factor = pipe.vae_scale_factor
        latents = FluxPipeline._unpack_latents(img, height * factor, width * factor, factor)
        vae = pipe.vae
        z = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(z).sample[0].permute(1, 2, 0)
        return latents.numpy(), pixels.numpy()
