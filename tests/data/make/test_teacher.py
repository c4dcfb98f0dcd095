"""FLUX as the teacher: `dsd data grids` and `dsd data pairs` with small random weights."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import main
from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begin_stage
from dsd_jax.data.make.grids import GridsConfig
from dsd_jax.data.make.ids import CaptionId, PromptId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.routes import ROUTES, quarters
from dsd_jax.data.make.stages import CAPTIONS, GRIDS, PAIRS, PROMPTS, Prompt
from dsd_jax.data.make.teacher import teacher_of
from dsd_jax.errors import UserError
from dsd_jax.images import NotFiniteError, read_parameters
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import Prepared
from dsd_jax.infer.settings import Settings
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.toy.folder import toy_flux_path
from tests.data.make.painted import grid_picture, tree, write_prompts
from tests.random_flux import compile_once, write_flux

CONFIG = """
root = "made"
base_path = "flux"
parts = 2

[providers.writer]
kind = "openai"
model = "gpt-4o-2024-11-20"

[captions]
source = ["captions.csv"]
count = 10

[prompts]
provider = "writer"

[grids]
height = 32
width = 32
steps = 1
dtype = "float32"

[judge]
provider = "writer"

[caption]
provider = "writer"
"""


RELIGHT = """
tasks = { relight = 1 }

[relight]
routes = { shared = 1, backward = 1 }
shared_steps = 1.0
"""


def scene_prompt(number: int, route: str) -> Prompt:
    name = PromptId(CaptionId(f"{number:016x}"), "relight")
    lights = ({"time": "night"}, {"time": "dawn"}) * 2
    return Prompt(
        id=name,
        task="relight",
        wording="v1",
        prompt="a fox",
        route=route,
        lights=lights,
        status="kept",
    )


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    compile_once(tmp_path_factory)
    return write_flux(tmp_path_factory.mktemp("random")) / "flux"


def begun(folder: Path, flux: Path | None = None, relight: str = "") -> tuple[str, Parts]:
    """A configuration whose prompts are written: grids, or a scene for each route of `relight`."""
    if flux:
        (folder / "flux").symlink_to(flux)
    path = folder / "make.toml"
    text = CONFIG
    if relight:
        text = text.replace("[grids]", f"{relight}\n[grids]").replace(" = 32", " = 64")
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    begin_stage(config, CAPTIONS)
    parts = begin_stage(config, PROMPTS)
    if relight:
        for part, route in enumerate(config.relight.routes):
            parts.write(PROMPTS, part, [scene_prompt(part, route)])
    else:
        write_prompts(parts, 5)
    return str(path), parts


def test_pictures_are_sampled_and_cut(tmp_path, flux, capsys):
    config, parts = begun(tmp_path, flux)
    assert main(["data", "grids", config]) == 0
    assert "grids: 2 of 2 parts, 5 of 5 rows kept" in capsys.readouterr().out
    rows = list(parts.rows(GRIDS))
    made = read_parameters(parts.picture(rows[0].id))
    assert made == {
        "prompt": rows[0].prompt,
        "seed": rows[0].seed,
        "height": 32,
        "width": 32,
        "steps": 1,
        "guidance": 3.5,
        "model": "flux/transformer",
        "lora": [],
        "dtype": "float32",
        "max_sequence_length": 512,
    }

    before = tree(parts.root)
    shutil.rmtree(parts.root / "grids" / "part-00001")
    parts.path(GRIDS, 1).unlink()
    assert main(["data", "grids", config, "--shard", "1", "--num_shards", "2"]) == 0
    assert tree(parts.root) == before

    capsys.readouterr()
    assert main(["data", "pairs", config]) == 2  # noise, not grids
    shown = capsys.readouterr()
    assert "pairs: 2 of 2 parts, 0 of 5 rows kept\n" in shown.out
    assert "rejected: " in shown.out
    assert "error: `pairs` kept none of 5 rows (" in shown.err


def test_workers_wait_for_each_other(tmp_path, capsys):
    config, parts = begun(tmp_path)
    begin_stage(load_config(Path(config)), GRIDS)
    for part in range(2):
        parts.write(GRIDS, part, [])
    first, second = (["data", "pairs", config, "--shard", n, "--num_shards", "2"] for n in "01")
    with pytest.raises(SystemExit) as ended:
        main(first)
    assert not ended.value.code
    assert "run the same command again" in capsys.readouterr().out
    assert main(second) == 0
    assert main(first) == 0
    assert list(parts.rows(PAIRS)) == []


@pytest.mark.parametrize("stage", ["grids", "pairs"])
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--shard", "2", "--num_shards", "2"],
            "shard 2 does not exist among 2; shards are numbered from 0",
        ),
        (["--shard", "1"], "the number of workers is not known; give --num_shards"),
    ],
)
def test_wrong_shards(tmp_path, capsys, stage, flags, complaint):
    config, _ = begun(tmp_path)
    assert main(["data", stage, config, *flags]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "before"), [("grids", "prompts"), ("pairs", "grids")])
def test_the_stage_before_is_missing(tmp_path, capsys, stage, before):
    config, parts = begun(tmp_path)
    begin_stage(load_config(Path(config)), GRIDS)
    parts.path(PROMPTS, 0).unlink()
    assert main(["data", stage, config]) == 2
    assert f"run `dsd data {before}` first" in capsys.readouterr().err


class Unfinite(Pipeline):
    """Breaks a whole batch if a word is in it, as `Pipeline.run` does."""

    def __init__(self) -> None:
        self.mesh = None
        self.identity = {"model": "broken"}
        self.tokenizers = Tokenizers.load(toy_flux_path())
        self.sizes: list[int] = []

    def check(self, settings: Settings, *, two_frames: bool, **rest: Any) -> Settings:
        return settings.checked(two_frames=two_frames, downscale=8)

    def run(self, prepared: Prepared, **rest: Any) -> Any:
        self.sizes.append(len(prepared.texts))
        if "broken" in prepared.texts:
            raise NotFiniteError("values that are not finite")
        return SimpleNamespace(images=[grid_picture(int(seed)) for seed in prepared.seeds])


def test_one_picture_that_is_not_finite_spares_the_others():
    pipeline = Unfinite()
    teacher = teacher_of(pipeline, GridsConfig(height=64, width=64), 3)
    made = teacher.paint(["a", "broken", "b"], [1, 2, 3])
    assert made[1] is None
    for picture, seed in ((made[0], 1), (made[2], 3)):
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid_picture(seed)))
    assert set(pipeline.sizes) == {3}  # one program


def test_a_grid_with_a_picture_that_is_not_finite_spares_other_grids():
    pipeline = Unfinite()
    teacher = teacher_of(pipeline, GridsConfig(height=64, width=64), 2, ROUTES["shared"], 0.5)
    made = teacher.paint(["a", "b", "broken", "c", *"defg"], [1, 2])
    assert made[:4] == [None] * 4
    for picture in made[4:]:
        assert isinstance(picture, Image.Image)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid_picture(2)))
    assert set(pipeline.sizes) == {8}  # one program


def test_pictures_of_a_scene_are_painted_by_route(tmp_path, flux, capsys):
    config, parts = begun(tmp_path, flux, RELIGHT)
    assert main(["data", "grids", config]) == 0
    assert "grids: 2 of 2 parts, 2 of 2 rows kept" in capsys.readouterr().out
    for row in parts.rows(GRIDS):
        path = parts.picture(row.id)
        with Image.open(path) as whole:
            assert whole.size == (64, 64)
            panels = [np.asarray(whole.crop(box), int) for box in quarters(*whole.size)]
        known = read_parameters(path)
        assert known is not None
        assert (known["height"], known["width"]) == (32, 32)
        if row.route == "shared":
            assert known["prompt"] == ["a fox, lit at night", "a fox, lit at dawn"] * 2
            assert (known["panels"], known["share"]) == (4, 1.0)
            # One noise: equal texts give equal pictures, and other words other ones.
            np.testing.assert_array_equal(panels[0], panels[2])
            np.testing.assert_array_equal(panels[1], panels[3])
            assert np.abs(panels[0] - panels[1]).max() > 0
        else:
            assert known["prompt"] == "a fox, lit at night"
            assert "panels" not in known
            assert panels[1].mean() > panels[2].mean() + 5  # dawn, and night


@pytest.mark.parametrize(
    ("config", "batch_size", "complaint"),
    [
        (GridsConfig(height=60), None, "60"),
        (GridsConfig(steps=0), None, "steps must be from 1 to 1000, got 0"),
        (GridsConfig(), 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_used(config, batch_size, complaint):
    with pytest.raises(UserError, match=complaint):
        teacher_of(Unfinite(), config, batch_size)
