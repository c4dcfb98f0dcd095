"""Pairs of one scene in two lights: three routes, from the question for a prompt to the dataset."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.data.make.config import MakeConfig, load_config
from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.folder import begun_settings
from dsd_jax.data.make.grids import Teacher
from dsd_jax.data.make.ids import CaptionId, GridId, PromptId
from dsd_jax.data.make.overview import tables
from dsd_jax.data.make.pack import pack
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.prompts import PromptsConfig, PromptWriter
from dsd_jax.data.make.routes import GRID, ROUTES, RelightConfig, Route, joined, quarters
from dsd_jax.data.make.run import Tools, run_stage
from dsd_jax.data.make.stages import (
    DESCRIPTIONS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    Caption,
    Pair,
    Prompt,
    Source,
)
from dsd_jax.data.make.statistics import origins
from dsd_jax.data.make.wording import load_wording
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.lights import load_lights
from dsd_jax.shares import ALL
from dsd_jax.toy.folder import toy_lights_path
from dsd_jax.toy.words import parse_light, parse_scene, parse_subject
from dsd_jax.toy.world import PANEL, Scene, Subject, render
from tests.data.make.scripted import Scripted, do, in_turn, question_of

CAPTION = Caption(
    id=CaptionId("0123456789abcdef"),
    caption="a red fox in the snow",
    source=Source(file="a.csv", row=1),
    status="kept",
)
GRID_PROMPT = "a grid of a fox: top-left day, top-right night, bottom-left dawn, bottom-right dusk"
LIGHTS = """
name = "toy"
description = "[{time}]"
instruction = "make it [{time}]"

[time]
day = { words = "day" }
night = { words = "night", exposure = -1.5 }
"""
CONFIG = """
root = "made"
parts = 1

[providers.toy]
kind = "toy"
model = "toy"

[captions]
source = ["captions.txt"]
count = 6

[prompts]
provider = "toy"
tasks = { relight = 1 }

[relight]
routes = { backward = 1, shared = 1 }
lights = "lights.toml"

[grids]
height = 64
width = 64

[pairs]
max_drift = { relight = inf } # 32 pixels are too few for the meter

[judge]
provider = "toy"

[caption]
provider = "toy"
"""
CAPTIONS = (
    "a red star with blue dots", "a green house with white stripes", "a pink cat with black ring",
    "a blue circle with red spot", "a yellow fish with green bars", "a black plus with pink half",
)  # fmt: skip


def write_config(folder: Path, *changes: tuple[str, str]) -> Path:
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "lights.toml").write_text(LIGHTS)
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    path = folder / "make.toml"
    path.write_text(text)
    return path


def words(text: str) -> int:
    return len(text.split())


def write(ask: Scripted, route: str) -> Prompt:
    config = PromptsConfig("writer", tasks={"relight": 1})
    wording = load_wording(None, "prompts", ["relight"])
    relight = RelightConfig(routes={route: 1.0})
    return do(PromptWriter(config, wording, words, relight)(CAPTION, ask))


def test_a_grid_is_asked_for_with_lights_of_the_vocabulary():
    ask = in_turn(GRID_PROMPT)
    row = write(ask, "grid")
    assert (row.status, row.route, row.prompt) == ("kept", "grid", GRID_PROMPT)
    assert row.lights is not None
    lights = [load_lights().light(each) for each in row.lights]
    assert len(set(lights)) == 4
    question = question_of(ask.asked[0])
    for place, light in zip(("top-left", "top-right", "bottom-left"), lights, strict=False):
        assert f"{place} {light.description}" in question
    assert "camera is locked off" in question


@pytest.mark.parametrize("route", ["backward", "shared"])
def test_a_scene_is_asked_for_without_light_and_fits_with_every_light(route: str):
    ask = in_turn("a grid of foxes", " ".join(["fox"] * 75), "a fox in deep snow")
    row = write(ask, route)
    assert (row.status, row.asked, row.prompt) == ("kept", 3, "a fox in deep snow")
    assert row.route == route
    assert [question_of(each).partition(": ")[2].partition(".")[0] for each in ask.asked[1:]] == [
        "it asks for a grid, and a single picture is wanted",
        "it has 82 CLIP tokens where 77 are allowed",
    ]
    assert row.lights is not None
    lit = [f"a fox in deep snow, {load_lights().light(each).description}" for each in row.lights]
    assert row.tokens == max(map(words, lit))


PROMPTS_OF_MANY = [PromptId(CaptionId(f"{n:016x}"), "relight") for n in range(200)]


def test_one_panel_of_every_grid_is_in_the_usual_light():
    relight = RelightConfig(usual="at noon, from the front")
    usual = relight.usual_light()
    assert usual == load_lights().light({"direction": "front", "time": "noon"})
    places = []
    for prompt in PROMPTS_OF_MANY:
        lights, others = relight.lights_of(prompt), RelightConfig().lights_of(prompt)
        assert lights.count(usual) == 1
        assert len(set(lights)) == len(lights) == 4
        assert sum(one != other for one, other in zip(lights, others, strict=True)) <= 1
        assert lights == relight.lights_of(prompt)
        places.append(lights.index(usual))
    assert all(30 < places.count(place) < 70 for place in range(4))


def test_the_usual_light_is_that_of_a_picture_to_re_light_and_not_of_the_painted_one():
    relight = RelightConfig(routes={"backward": 1.0}, usual="at noon, from the front")
    usual = load_lights().read(relight.usual or "")
    places = [relight.lights_of(one).index(usual) for one in PROMPTS_OF_MANY]
    drawn = [RelightConfig().lights_of(one)[0] for one in PROMPTS_OF_MANY]
    assert places.count(0) == drawn.count(usual) < 10
    assert all(40 < places.count(place) < 90 for place in (1, 2, 3))


def test_a_usual_light_is_one_of_a_vocabulary_that_has_few(tmp_path: Path):
    config = load_config(write_config(tmp_path, ('"lights.toml"', '"lights.toml"\nusual = "day"')))
    for prompt in PROMPTS_OF_MANY[:20]:
        assert [light.description for light in config.relight.lights_of(prompt)].count("day") == 2


def test_captions_are_shared_out_over_the_routes_and_keep_theirs():
    relight = RelightConfig(routes={"grid": 1, "shared": 0, "backward": 3})
    found = [relight.route_of(CaptionId(f"{n:016x}")).name for n in range(800)]
    assert set(found) == {"grid", "backward"}
    assert 0.7 < found.count("backward") / 800 < 0.8
    turned = RelightConfig(routes=dict(reversed([*relight.routes.items()])))
    assert found == [turned.route_of(CaptionId(f"{n:016x}")).name for n in range(800)]


def test_the_backward_route_re_lights_the_pixels_of_the_first_panel():
    pixels = np.random.default_rng(0).integers(60, 200, (32, 48, 3), np.uint8)
    grid = GridId(PromptId(CAPTION.id, "relight"), 0)
    vocabulary = load_lights()
    lights = [vocabulary.read(text) for text in ("noon", "night", "amber", "candle")]
    first, again = (
        joined(ROUTES["backward"], [Image.fromarray(pixels)], lights, grid) for _ in range(2)
    )
    assert first.size == (96, 64)
    panels = [np.asarray(first.crop(box), float) for box in quarters(*first.size)]
    np.testing.assert_array_equal(panels[0], pixels)
    assert panels[1].mean() < panels[0].mean() - 30  # night
    assert panels[2][..., 2].mean() < panels[2][..., 0].mean()  # amber
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
    whole = Image.new("RGB", (8, 8))
    assert joined(GRID, [whole], [], grid) is whole


class Drawn:
    """A teacher of toy scenes, by their words."""

    def __init__(self) -> None:
        self.painted: dict[str, list[str]] = {}

    def __call__(self, route: Route) -> Teacher:
        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            assert len(prompts) == len(seeds) * route.painted
            self.painted.setdefault(route.name, []).extend(prompts)
            draw = self._picture if route.of_scene else self._grid
            return [draw(prompt) for prompt in prompts]

        return Teacher(1, {"route": route.name}, paint)

    def _grid(self, prompt: str) -> Image.Image:
        subject, *scenes = prompt.split(", ")
        whole = Image.new("RGB", (2 * PANEL, 2 * PANEL))
        for scene, box in zip(scenes, quarters(*whole.size), strict=True):
            whole.paste(self._picture(f"{subject} {scene}"), box)
        return whole

    def _picture(self, prompt: str) -> Image.Image:
        subject, scene = parse_subject(prompt), parse_scene(prompt)
        assert isinstance(subject, Subject)
        assert isinstance(scene, Scene)
        return Image.fromarray(render(subject, scene))


@dataclasses.dataclass(frozen=True)
class Made:
    config: MakeConfig
    parts: Parts
    store: PairStore
    teacher: Drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dataset by two routes, made offline."""
    return make(write_config(tmp_path_factory.mktemp("making")))


def make(path: Path) -> Made:
    config, teacher = load_config(path), Drawn()
    for stage in STAGES:
        parts = run_stage(config, stage, ALL, Tools(teacher, lambda: words))
    pack(parts, config.pack, panels_of(parts), begun_settings(parts))
    return Made(config, parts, PairStore.open(parts.root / "dataset"), teacher)


def pairs_by(made: Made, route: str) -> list[Pair]:
    rows = made.parts.rows(PAIRS)
    return [row for row in rows if isinstance(row, Pair) and row.route == route]


def test_every_pair_names_its_route_and_both_lights(made: Made):
    assert {row.route for row in made.parts.rows(PROMPTS)} == {"backward", "shared"}
    assert set(made.teacher.painted) == {"backward", "shared"}
    for pair in pairs_by(made, "backward"):
        assert pair.id.target == 1
        assert pair.drift is None
    assert {pair.id.reference for pair in pairs_by(made, "backward")} == {2, 3, 4}
    reasons = {pair.reason for pair in pairs_by(made, "shared") if not pair.kept}
    assert reasons == {"same_light"}  # a vocabulary of two lights gives panels of equal light
    for record in made.store:
        origin = record.provenance["pair"]
        assert origin["route"] in {"backward", "shared"}
        times = {origin[f"{frame}_light"]["time"] for frame in ("reference", "target")}
        assert times == {"day", "night"}
        assert origin["id"] in {str(pair.id) for pair in pairs_by(made, origin["route"])}


def test_texts_are_the_lights_own_words_in_both_directions_but_to_a_good_picture(made: Made):
    by_id = {record.id: record for record in made.store}
    for record in by_id.values():
        origin = record.provenance["pair"]
        forward = record.provenance["words"]["way"] == "forward"
        light = origin["target_light" if forward else "reference_light"]["time"]
        assert record.caption.endswith(f", {light}")
        assert record.instruction == f"make it {light}"
        assert forward or origin["route"] == "shared"
    shared = [pair for pair in pairs_by(made, "shared") if pair.kept]
    assert shared
    assert all({str(pair.id), str(pair.id.flipped())} <= {*by_id} for pair in shared)
    assert not any(row.model for row in made.parts.rows(DESCRIPTIONS))  # nobody was asked


def test_a_judge_is_asked_about_geometry_and_only_where_something_may_have_moved(made: Made):
    rows = list(made.parts.rows(JUDGEMENTS))
    exact = {pair.id for pair in pairs_by(made, "backward")}
    assert {row.mode for row in rows if row.id in exact} == {"none"}
    asked = [row for row in rows if row.id not in exact]
    assert asked
    for row in asked:
        steps = [turn.step for turn in row.turns]
        assert steps == ["relight.step_1", "relight.step_2", "relight.step_3"]
        assert row.verdict == "yes"


def test_yields_and_answers_are_counted_by_route(made: Made):
    found = origins(made.parts)
    assert set(found) == {"relight by backward", "relight by shared"}
    backward, shared = found["relight by backward"], found["relight by shared"]
    assert backward.prompts + shared.prompts == len(CAPTIONS)
    assert backward.pairs == 3 * backward.grids
    assert backward.answers == backward.prompts  # for prompts alone
    assert shared.answers == shared.prompts + 3 * shared.judged
    assert shared.pairs == 6 * shared.grids
    text = "\n".join(tables(made.parts.root))
    assert "Tasks and routes" in text
    assert "relight by backward" in text


def test_a_grid_of_the_lights_that_were_asked_for_becomes_pairs_with_texts(tmp_path: Path):
    changes = ("{ backward = 1, shared = 1 }", "{ grid = 1 }"), ("count = 6", "count = 1")
    made = make(write_config(tmp_path, *changes))
    assert [len(prompts) for prompts in made.teacher.painted.values()] == [1]
    assert all(prompt.startswith("a grid of") for prompt in made.teacher.painted["grid"])
    own = origins(made.parts)["relight by grid"]
    assert (own.prompts, own.grids, own.pairs, own.filtered) == (1, 1, 6, 4)  # 2 of equal light
    assert own.judged == own.described == 4
    for record in made.store:
        light = record.provenance["pair"]["target_light"]["time"]
        forward = record.provenance["words"]["way"] == "forward"
        assert ("night" in record.caption) == ((light == "night") == forward)
        assert record.instruction


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shared = 1", "sharde = 1", "there is no route 'sharde'.*; did you mean 'shared'"),
        ("{ backward = 1, shared = 1 }", "{}", "routes needs finite weights above 0"),
        ("backward = 1", "backward = inf", "routes needs finite weights above 0"),
        ('"lights.toml"', '"lights.toml"\naspects = 0', "aspects must be from 1 to 6, got 0"),
        ('"lights.toml"', '"lights.toml"\nshared_steps = 2', "shared_steps must be above 0 and"),
        (
            '"lights.toml"',
            '"lights.toml"\nusual = "nigth"',
            r"relight\.usual: there is no light 'nigth' in .*; did you mean 'night'\?",
        ),
        ('"lights.toml"', '"lights.toml"\nusual = ""', r"relight\.usual: '' names no light; try"),
        (
            '"lights.toml"',
            '"lights.toml"\nusual = "day and night"',
            r"relight\.usual: 'day and night' names two lights by time, day and night; name one",
        ),
        (
            '[judge]\nprovider = "toy"\n',
            "",
            r"the task 'relight' by shared has no model in \[judge\]; give it a provider, one of",
        ),
        (
            "[relight]\nroutes = { backward = 1, shared = 1 }",
            "[relight]\nroutes = { grid = 1 }\n[unused]",
            "unknown key `unused`",
        ),
    ],
)
def test_a_making_that_cannot_be_says_why(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config(write_config(tmp_path, (old, new)))


def test_a_route_that_moves_nothing_needs_no_judge_and_no_captioner(tmp_path: Path):
    path = write_config(
        tmp_path,
        ("{ backward = 1, shared = 1 }", "{ backward = 1 }"),
        ('[judge]\nprovider = "toy"\n\n[caption]\nprovider = "toy"\n', ""),
    )
    config = load_config(path)
    assert config.provider(JUDGEMENTS) is None
    assert "model" not in config.settings(JUDGEMENTS)


def test_the_question_about_lights_is_a_setting_of_the_judge(tmp_path: Path):
    """A work folder that was begun without it stays as it is."""
    without = load_config(write_config(tmp_path))
    asked = '[judge]\nlight = { relight = 6 }\nprovider = "toy"'
    with_it = load_config(write_config(tmp_path, ('[judge]\nprovider = "toy"', asked)))
    assert "light" not in without.settings(JUDGEMENTS)
    assert with_it.settings(JUDGEMENTS)["light"] == {"relight": 6}
    assert without.wording(JUDGEMENTS).id != with_it.wording(JUDGEMENTS).id
    assert "light.marks" not in without.wording(JUDGEMENTS).texts


USUAL = "day from here"


def test_a_making_of_the_toy_world_in_all_its_lights_keeps_every_pair(tmp_path: Path):
    vocabulary = toy_lights_path()
    made = make(
        write_config(
            tmp_path,
            ("{ backward = 1, shared = 1 }", "{ grid = 1 }"),
            ("count = 6", "count = 3"),
            ('"lights.toml"', f'"{vocabulary.as_posix()}"\nusual = "{USUAL}"'),
            ('[judge]\nprovider = "toy"', '[judge]\nprovider = "toy"\nlight = { relight = 10 }'),
        )
    )
    own = origins(made.parts)["relight by grid"]
    assert own.pairs == own.filtered == own.judged == own.described >= 12
    assert len(made.store) == 2 * own.pairs
    seen, orders, lights = set(), 0, load_lights(vocabulary)
    for record in made.store:
        ends = ["reference_light", "target_light"]
        if record.provenance["words"]["way"] != "forward":
            ends.reverse()
        before, after = (lights.light(record.provenance["pair"][end]) for end in ends)
        told = after.description
        said = None if told == USUAL else parse_light(told)
        assert parse_light(record.caption or "") == said
        if record.instruction == after.instruction(before):
            orders += 1
        else:
            assert parse_light(record.instruction or "") == said
        seen.add(told)
    assert 0 < orders < len(made.store)
    assert USUAL in seen


def test_the_usual_light_is_a_setting_of_the_prompts(tmp_path: Path):
    """A work folder that was begun without it stays as it is."""
    without = load_config(write_config(tmp_path)).settings(PROMPTS)["relight"]
    named = ('"lights.toml"', '"lights.toml"\nusual = "in the day"')
    with_it = load_config(write_config(tmp_path, named)).settings(PROMPTS)["relight"]
    assert isinstance(without, dict)
    assert with_it == {**without, "usual": {"time": "day"}}


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path):
    config = write_config(tmp_path, ('"lights.toml"', '"lihgts.toml"'))
    with pytest.raises(UserError, match=r"lihgts\.toml: No such file"):
        load_config(config)
