"""The sampler's schedule: from the scheduler config of diffusers, and back."""

from dsd_jax.convert.fields import Fields, Json
from dsd_jax.flow import Schedule

__all__ = ["schedule_from_json", "schedule_to_json"]


def schedule_from_json(data: Json) -> Schedule:
    """Reads `scheduler/scheduler_config.json` of a diffusers folder.

    Raises:
        UserError: another sampler, or a spacing of times that this package does not have.
    """
    read = Fields("scheduler config", data)
    read.one_of("_class_name", "FlowMatchEulerDiscreteScheduler")
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        read.one_of(key, False, None, default=False)
    read.one_of("invert_sigmas", False, default=False)
    read.one_of("stochastic_sampling", False, default=False)
    read.one_of("time_shift_type", "exponential", default="exponential")
    read.one_of("shift_terminal", None, default=None)
    read.skip("num_train_timesteps")
    schedule = Schedule(
        dynamic=read.one_of("use_dynamic_shifting", True, False, default=False),
        shift=read.real("shift", 1.0),
        base_shift=read.real("base_shift", 0.5),
        max_shift=read.real("max_shift", 1.15),
        base_tokens=read.number("base_image_seq_len", 256),
        max_tokens=read.number("max_image_seq_len", 4096),
    )
    read.nothing_else()
    return schedule


def schedule_to_json(schedule: Schedule) -> dict[str, object]:
    """`scheduler_config.json` for diffusers."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": schedule.base_tokens,
        "base_shift": schedule.base_shift,
        "max_image_seq_len": schedule.max_tokens,
        "max_shift": schedule.max_shift,
        "num_train_timesteps": 1000,
        "shift": schedule.shift,
        "use_dynamic_shifting": schedule.dynamic,
    }
