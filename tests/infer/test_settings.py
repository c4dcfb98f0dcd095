"""Settings of sampling: what is refused, and what an image's parameters say."""

import dataclasses

import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer.batch import Row
from dsd_jax.infer.settings import Settings


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_every": 0}, "guidance_every must be from 1 to 1000, got 0"),
        ({"guidance_every": 1001}, "guidance_every must be from 1 to 1000, got 1001"),
        ({"solver": "heun"}, "solver must be one of 'euler', 'dpmpp_2m', got 'heun'"),
        ({"solver": "dpmp_2m"}, r"got 'dpmp_2m'; did you mean 'dpmpp_2m'\?"),
    ],
)
def test_settings_that_cannot_be_used(given, message):
    with pytest.raises(UserError, match=message):
        Settings(**given).checked(two_frames=True, downscale=8)


def test_defaults_of_newer_settings_are_not_stated():
    older = {"guidance", "i_guidance", "t_guidance", "steps", "height", "width"}
    assert set(Settings().stated()) == older | {"negative_prompt", "vae_sample"}
    chosen = Settings(guidance_every=3, solver="dpmpp_2m").stated()
    assert (chosen["guidance_every"], chosen["solver"]) == (3, "dpmpp_2m")


def test_a_digest_is_that_of_before_unless_a_newer_setting_is_chosen():
    row = Row("a", text="a cat", settings=Settings(height=512, width=1024))
    assert row.digest({"model": "flux"}) == "d224a8a2477dba31"
    other = dataclasses.replace(row, settings=Settings(height=512, width=1024, guidance_every=3))
    assert other.digest({"model": "flux"}) != row.digest({"model": "flux"})
