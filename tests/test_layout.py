"""Imports between files, and the low cost of importing the package."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsd_jax

ROOT = Path(__file__).parents[1]
ROOMS = ("convert", "data", "infer", "train")
# A file imports from its own rung and from those before it.
LADDER = ("core", "convert", "infer", "data", "train", "top")
TOP = ("dsd_jax.__main__", "dsd_jax.cli", "dsd_jax.quickstart", "dsd_jax.toy.making")
NODES = "integrations.comfyui"  # copied into ComfyUI, which does not have this package
RAY = "integrations.ray_serve"  # a command line of Ray that takes the flags of `dsd serve`
PYTORCH = ("accelerate", "diffusers", "peft", "torch")
# The oracle of the parity tests, which also checks an export where PyTorch is installed.
ORACLE = "dsd_jax.quickstart.torch_reference"
# What may name the toy besides itself: the table of commands, where weights are found by name, the
# registry of providers, that of benchmarks, the flag of the server that opens it, and what its page
# offers to paint.
TOY = (
    "dsd_jax.toy",
    "dsd_jax.quickstart",
    "dsd_jax.cli",
    "dsd_jax.convert.hub",
    "dsd_jax.llm.providers",
    "dsd_jax.infer.evaluate.benches",
    "dsd_jax.infer.evaluate.truth",
    "dsd_jax.infer.serve.cli",
    "dsd_jax.infer.serve.cli_assembly",
    "dsd_jax.infer.serve.examples",
)
CATCH_ALL = ("base", "common", "helpers", "misc", "shared", "util", "utils")


def imported(source: str) -> Iterator[str]:
    """Dotted names that `source` imports; `from a import b` gives `a.b`, relative ones a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def rung_of(module: str) -> str:
    if any(within(module, top) for top in TOP):
        return "top"
    part = module.split(".")[1] if "." in module else ""
    return part if part in ROOMS else "core"


def is_command_line(module: str) -> bool:
    """Whether `module`, or a name in it, holds flags and printing; `dsd_jax.cli` is the program."""
    return any(part == "cli" or part.startswith("cli_") for part in module.split(".")[2:])


def may_import_command_line(module: str) -> bool:
    tested = module.startswith("tests.") and module.rsplit(".", maxsplit=1)[-1].startswith("test_")
    command = is_command_line(module) or within(module, RAY)
    return tested or rung_of(module) == "top" or command


def violations(module: str, source: str) -> list[str]:
    """Lists forbidden imports of `module`, a module of `dsd_jax`, a test or a script."""
    found = []
    in_package = module.startswith("dsd_jax.")
    for name in imported(source):
        top = name.split(".")[0]
        if within(module, NODES):
            if top == "dsd_jax":
                found.append(f"{name}: ComfyUI does not have it")
        elif name.startswith("."):
            found.append(f"{name}: relative, write dsd_jax...")
        elif top in ROOMS:
            found.append(f"{name}: a second copy of dsd_jax.{name}")
        elif in_package and top in PYTORCH and module != ORACLE:
            found.append(f"{name}: PyTorch is for tests and benchmarks")
        elif top == "dsd_jax":
            here, there = rung_of(module), rung_of(name)
            if in_package and LADDER.index(there) > LADDER.index(here):
                found.append(f"{name}: {here} must not import {there}")
            elif is_command_line(name) and not may_import_command_line(module):
                found.append(f"{name}: flags and printing are imported by command lines alone")
    return found


def sources() -> dict[str, Path]:
    """Module name to file, for the package (rooms under their package names) and the rest."""
    core = {
        path.relative_to(ROOT): path
        for path in (ROOT / "dsd_jax").rglob("*.py")
        if path.relative_to(ROOT).parts[1] not in ROOMS
    }
    rooms = {
        Path("dsd_jax") / path.relative_to(ROOT): path
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    rest = {
        path.relative_to(ROOT): path
        for folder in ("benchmarks", "integrations", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    return {".".join(p.with_suffix("").parts): path for p, path in (core | rooms | rest).items()}


def test_imports_go_down_the_ladder():
    found = {name: violations(name, path.read_text()) for name, path in sources().items()}
    assert {name: bad for name, bad in found.items() if bad} == {}
    assert {"dsd_jax.flux", "dsd_jax.convert.io", "tests.test_layout"} <= set(found)


@pytest.mark.parametrize("high", LADDER)
@pytest.mark.parametrize("low", LADDER)
def test_the_checker_sees_every_climb_and_no_descent(high: str, low: str):
    if LADDER.index(high) <= LADDER.index(low):
        return
    place = {"core": "dsd_jax.flux", "top": "dsd_jax.toy.making.vae"}
    above, below = (place.get(rung, f"dsd_jax.{rung}.cli") for rung in (high, low))
    assert violations(above, f"from {below} import x") == []
    for line in (f"from {above} import x", f"import {above}", f"def f():\n  import {above} as y"):
        (found,) = violations(below, line)
        assert f"{low} must not import {high}" in found


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("dsd_jax.flux", "import convert.io", "a second copy of dsd_jax.convert.io"),
        ("tests.core.test_flux", "from train import loop", "a second copy of dsd_jax.train.loop"),
        ("dsd_jax.flux", "from dsd_jax import convert", "core must not import convert"),
        ("dsd_jax.data.cli", "from dsd_jax.train.cli import x", "data must not import train"),
        ("dsd_jax.train.cli", "from dsd_jax import quickstart", "train must not import top"),
        ("dsd_jax.convert.io", "from . import rules", "relative"),
        ("dsd_jax.flux", "from torch import nn", "PyTorch is for tests"),
        ("dsd_jax.infer.cli", "import diffusers", "PyTorch is for tests"),
        ("dsd_jax.train.loop", "from dsd_jax.train.cli import x", "by command lines alone"),
        ("benchmarks.toy.study", "from dsd_jax.train.cli import x", "by command lines alone"),
        ("tests.tiny_run", "from dsd_jax.train.cli import x", "by command lines alone"),
        ("integrations.comfyui.nodes", "from dsd_jax.lights import x", "ComfyUI does not have it"),
    ],
)
def test_the_checker_sees_a_wrong_import(module: str, line: str, complaint: str):
    (found,) = violations(module, f"import jax\n{line}\n")
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dsd_jax.infer.pipeline", "from dsd_jax.convert.io import open_weights"),
        ("dsd_jax.data.make.teacher", "from dsd_jax.infer.pipeline import Pipeline"),
        ("dsd_jax.train.validate", "from dsd_jax.infer import sampler"),
        ("dsd_jax.quickstart.run", "from dsd_jax.infer import cli"),
        ("tests.train.test_cli", "from dsd_jax.train import cli"),
        ("tests.parity.test_flux", "import torch"),
        ("integrations.comfyui.nodes", "from .client import Server"),
    ],
)
def test_the_checker_lets_a_right_import_pass(module: str, line: str):
    assert violations(module, line) == []


def test_nothing_that_handles_the_toy_knows_that_it_is_a_toy():
    named = {
        name
        for name, path in sources().items()
        if name.startswith("dsd_jax.") and re.search(r"(?i)(\b|_)toys?(\b|_)", path.read_text())
    }
    assert [name for name in named if not any(within(name, known) for known in TOY)] == []


def test_the_rooms_are_relative_links():
    for room in ROOMS:
        link = ROOT / "dsd_jax" / room
        assert link.readlink() == Path("..", room)
        assert link.resolve() == ROOT / room
        assert (link / "__init__.py").is_file()


PARSERS = re.compile(
    r"json\.loads?\b|JSONDecoder|validate_json|tomllib|\b(?:orjson|ujson|yaml|pickle)\.|literal_eval"
)
# Who calls a parser of structured text: the door itself; and pydantic, for rows of our own whose
# part has a digest.
DOORS = {"dsd_jax.structured": {"json.loads", "JSONDecoder", "tomllib"}}
DOORS |= {"dsd_jax.data.make.stages": {"validate_json"}}


def test_structured_text_is_parsed_behind_one_door():
    found = {
        name: set(PARSERS.findall(path.read_text()))
        for name, path in sources().items()
        if name.startswith("dsd_jax.")
    }
    assert {name: calls for name, calls in found.items() if calls} == DOORS


def test_no_file_is_a_catch_all():
    assert [name for name in sources() if name.split(".")[-1] in CATCH_ALL] == []


def test_importing_the_package_and_its_command_is_cheap():
    script = """
import sys, time
start = time.process_time()
import dsd_jax.cli
seconds = time.process_time() - start
heavy = {"flax", "grain", "jax", "numpy", "orbax", "rich", "transformers", "tyro"}
print(sorted(heavy & set(sys.modules)), seconds)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy, seconds = result.stdout.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.3


def test_public_names_are_found_when_asked_for():
    for name in dsd_jax.__all__:
        assert name in dir(dsd_jax)
        assert getattr(dsd_jax, name) is not None
    assert dsd_jax.Flux is importlib.import_module("dsd_jax.flux").Flux
    with pytest.raises(AttributeError, match="no attribute 'Fluxx'"):
        _ = dsd_jax.Fluxx
