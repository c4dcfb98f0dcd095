"""The declarations of the package, and the lock file of development and CI."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "constraints.txt").read_text()


def declared() -> dict[str, Requirement]:
    """Requirements that `pip install '.[dev]'` has, without those of hardware and clouds."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"]]
    for name in ("c2pa", "parquet", "plot", "serve", "tensorboard", "torch", "dev"):
        lines += extras[name]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one for one in found if one.name != "dsd-jax"}


def locked() -> dict[str, str]:
    """Package to version."""
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([a-z0-9._-]+)==([^ ;]+)(?: ; .*)?", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    names = [canonicalize_name(pin[1]) for pin in pins if pin]
    assert len(set(names)) == len(names)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_every_dependency_has_a_lower_bound():
    for name, requirement in declared().items():
        assert any(one.operator == ">=" for one in requirement.specifier), name


def test_the_lock_pins_every_dependency_to_one_version_that_is_allowed():
    pins = locked()
    for name, requirement in declared().items():
        assert requirement.specifier.contains(pins[name]), f"{name}: run `make lock`"
    assert len(pins) > 100  # those of the dependencies too


def test_the_lock_names_no_host_and_no_build_of_torch():
    assert "://" not in LOCK
    assert locked()["torch"] == "2.13.0"  # not +cpu: every build of this version will do


def test_type_checkers_and_data_files_come_with_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    data = tomllib.loads(text)["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["*"]
    assert (ROOT / "dsd_jax" / "py.typed").exists()
