"""Sizes of the toy FLUX: a few million parameters in the real classes."""

from dsd_jax.config import AutoencoderConfig, ClipConfig, FluxConfig, T5Config, VisionConfig
from dsd_jax.flow import Schedule
from dsd_jax.toy.making.tokenizers import CLIP_VOCAB, T5_VOCAB
from dsd_jax.toy.words import KINDS, T5_LENGTH
from dsd_jax.toy.world import PANEL

__all__ = ["TOY_CLIP", "TOY_FLUX", "TOY_SCHEDULE", "TOY_T5", "TOY_VAE", "TOY_VISION"]

TOY_FLUX = FluxConfig(
    in_channels=32,
    out_channels=32,
    num_heads=6,
    head_dim=32,
    axes_dim=(8, 12, 12),
    double_depth=2,
    single_depth=4,
    txt_width=256,
    vec_width=64,
    guidance_embed=False,
    condition_embed=False,
)
"""Width 192 leaves room for the 32 numbers of a token. As schnell, it has no guidance embedding."""
TOY_VAE = AutoencoderConfig(
    latent_channels=8,
    block_channels=(16, 32, 64),
    layers_per_block=1,
    norm_groups=8,
    scale=1.0,
    shift=0.0,
)
"""Four pixels per latent pixel. Scale and shift are measured after training."""
TOY_T5 = T5Config(
    vocab=T5_VOCAB,
    width=256,
    depth=1,
    num_heads=2 * len(KINDS),
    head_dim=max(map(len, KINDS)),
    mlp_width=16,
    max_length=T5_LENGTH,
)
"""Two heads for each kind of word, as wide as the kind has words; see `making/encoders.py`."""
TOY_CLIP = ClipConfig(vocab=CLIP_VOCAB, width=64, depth=1, num_heads=2, mlp_width=64)
TOY_VISION = VisionConfig(
    patch=4, grid=PANEL // 4, width=40, depth=3, num_heads=4, mlp_width=80, eps=1e-6
)
"""DINO's layout with 64 patches, and as wide as 15 MB for all that ships allow."""
TOY_SCHEDULE = Schedule(base_shift=1.4, max_shift=1.4)
"""Far towards noise. A panel is a few bits in 512 latents, so what it shows can be told through
much noise, and the text decides only above that (`python -m benchmarks.toy.latents`)."""
