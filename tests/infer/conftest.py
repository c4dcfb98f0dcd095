"""One small random FLUX for all tests of generation, written and compiled once per worker."""

from pathlib import Path

import jaxtyping
import pytest

from dsd_jax.config import FLOAT32
from dsd_jax.infer.pipeline import Pipeline
from tests.random_flux import compile_once, picture, write_flux


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory):
    compile_once(tmp_path_factory)


@pytest.fixture
def as_users_run_it():
    """Turns off the checks of annotations, which tests have and users have not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`flux/`, a pipeline without condition embedding, and `dsd/transformer/`, one with."""
    return write_flux(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def pipe(folder):
    """Takes reference images."""
    return Pipeline.load(folder / "flux", model_path=folder / "dsd", precision=FLOAT32)


@pytest.fixture(scope="session")
def plain(folder):
    """Takes none."""
    return Pipeline.load(folder / "flux", precision=FLOAT32)


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder with two references."""
    picture(0).save(tmp_path / "cat.png")
    picture(1).save(tmp_path / "dog.jpg")
    return tmp_path
