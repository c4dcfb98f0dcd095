"""Times, steps, tokens and positions against diffusers' scheduler and pipeline."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from dsd_jax.flow import Schedule, euler_step
from dsd_jax.frames import Canvas, pack_latents, unpack_latents
from tests.parity.compare import assert_close

DEV = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SCHNELL = DEV | {"shift": 1.0, "use_dynamic_shifting": False}
STATIC = DEV | {"use_dynamic_shifting": False}
SCHEDULES = {
    "dev": (DEV, Schedule()),
    "schnell": (SCHNELL, Schedule(dynamic=False)),
    "static": (STATIC, Schedule(dynamic=False, shift=3.0)),
}


def make_scheduler(config: dict[str, float], steps: int, tokens: int) -> tuple:
    """The scheduler as FluxPipeline prepares it, and its timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(
        tokens,
        scheduler.config.base_image_seq_len,
        scheduler.config.max_image_seq_len,
        scheduler.config.base_shift,
        scheduler.config.max_shift,
    )
    sigmas = np.linspace(1.0, 1 / steps, steps)
    timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return scheduler, timesteps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "tokens"), [(28, 2048), (28, 8192), (4, 256), (1, 4096)])
def test_times(name: str, steps: int, tokens: int) -> None:
    config, schedule = SCHEDULES[name]
    scheduler, timesteps = make_scheduler(config, steps, tokens)
    times = schedule.timesteps(steps, tokens)
    assert_close(times, scheduler.sigmas, 1e-6, f"sigmas of {name}")
    assert_close(times[:-1], timesteps / 1000, 1e-6, f"timesteps of {name}")


def test_euler_steps() -> None:
    scheduler, timesteps = make_scheduler(DEV, 6, 2048)
    times = Schedule().timesteps(6, 2048)
    rng = np.random.default_rng(0)
    velocities = rng.standard_normal((6, 2, 15, 16), np.float32)
    theirs = torch.from_numpy(rng.standard_normal((2, 15, 16), np.float32))
    ours = jnp.asarray(theirs.numpy())
    for i, (t, velocity) in enumerate(zip(timesteps, velocities, strict=True)):
        theirs = scheduler.step(torch.from_numpy(velocity), t, theirs).prev_sample
        ours = euler_step(ours, jnp.asarray(velocity), float(times[i]), float(times[i + 1]))
    assert_close(ours, theirs, 1e-6, "Euler steps")


def test_packing_and_ids() -> None:
    """diffusers' latents are [B, C, h, w], ours [B, h, w, C]; the tokens are the same."""
    batch, channels, height, width = 2, 16, 6, 10
    latents = np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32)
    packed = FluxPipeline._pack_latents(torch.from_numpy(latents), batch, channels, height, width)
    ours = pack_latents(jnp.asarray(latents.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(ours, packed.numpy())

    unpacked = FluxPipeline._unpack_latents(packed, height * 8, width * 8, vae_scale_factor=8)
    np.testing.assert_array_equal(
        unpack_latents(ours, Canvas(height, width)), unpacked.numpy().transpose(0, 2, 3, 1)
    )

    ids = FluxPipeline._prepare_latent_image_ids(
        batch, height // 2, width // 2, torch.device("cpu"), torch.float32
    )
    np.testing.assert_array_equal(Canvas(height, width).image_ids, ids.numpy())
