import math

import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.lights import ASPECTS, load_lights


def rng(seed=0):
    return np.random.default_rng(seed)


def own(tmp_path, text):
    path = tmp_path / "lights.toml"
    path.write_text(text)
    return path


def test_a_light_is_read_from_words_and_says_itself_as_description_and_as_instruction():
    light = load_lights().read("from the left with a warm lamp")
    assert light.named == {"direction": "left", "source": "lamp", "temperature": "warm"}
    assert light.description == "lit from the left by a warm lamp"
    assert light.instruction() == "light it from the left with a warm lamp"


def test_every_light_that_is_drawn_is_read_back_from_its_own_words():
    lights = load_lights()
    numbers = rng()
    seen = set()
    for _ in range(300):
        light = lights.draw(numbers, 6)
        seen |= set(light.names)
        assert lights.read(light.description) == lights.read(light.instruction()) == light
        assert lights.light(light.named) == light
    assert len(seen) == sum(map(len, lights.entries.values()))  # every entry is drawn


def test_a_seed_draws_the_same_lights_with_no_more_aspects_than_wanted():
    lights = load_lights()
    drawn = [lights.draw_different(rng(3), 4, 2) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    assert all(1 <= len(light.named) <= 2 for light in drawn[0])
    assert lights.draw_different(rng(4), 4, 2) != drawn[0]


def test_articles_follow_the_words_between_them():
    lights = load_lights()
    assert lights.read("candle").description == "lit by a candle"
    assert lights.read("amber candle").description == "lit by an amber candle"
    assert lights.read("overcast").description == "lit by an overcast sky"
    assert lights.read("soft overcast").description == "lit by a soft overcast sky"
    assert lights.read("night").description == "lit at night"


def test_an_instruction_leaves_out_what_stays():
    lights = load_lights()
    left, right = lights.read("left warm lamp"), lights.read("right warm lamp")
    assert right.instruction(left) == "light it from the right"
    assert left.instruction(right) == "light it from the left"
    neon = lights.read("neon at night")
    assert neon.instruction(left) == "light it with pink neon light at night"  # left is taken back
    assert left.instruction(left) == left.instruction()


def test_numbers_of_a_light_follow_its_words():
    lights = load_lights()
    look = lights.read("cool candle from behind at night, with high contrast").look
    assert look.towards[2] < 0
    assert math.isclose(math.hypot(*look.towards), 1)
    assert look.colour[2] > look.colour[0]  # cool overrides the candle's own colour
    assert look.contrast == 1.5
    assert look.hardness == 0.7
    assert look.exposure == pytest.approx(-0.9 - 1.4)
    for entry in (entry for own in lights.entries.values() for entry in own.values()):
        luminance = np.dot(entry.on(look).colour, (0.2126, 0.7152, 0.0722))
        assert luminance == pytest.approx(1)
    assert lights.read("neutral").look.colour == pytest.approx((1.1, 1.0, 0.85), abs=0.15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from the leff", "there is no light 'leff' in the lights 'v1'; did you mean 'left'?"),
        ("left and right", "'left and right' names two lights by direction, left and right"),
        ("light it with the", "names no light; try one such as 'lit"),
    ],
)
def test_words_that_are_no_light_are_refused(text, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_lights().read(text)


def test_unknown_names_are_refused_with_a_near_one():
    lights = load_lights()
    with pytest.raises(UserError, match=r"there is no source 'lmap' .*; did you mean 'lamp'\?"):
        lights.light({"source": "lmap"})
    with pytest.raises(UserError, match=r"a light has no 'hardnes'.*; did you mean 'hardness'\?"):
        lights.light({"hardnes": "soft"})
    with pytest.raises(UserError, match="a light needs a word for one aspect"):
        lights.light({})


def test_a_file_of_the_user_extends_the_vocabulary_or_replaces_it(tmp_path):
    ours = load_lights()
    added = '[source.lava]\nwords = "{} lava"\nkelvin = 1500\n'
    longer = load_lights(own(tmp_path, f'name = "mine"\nextends = "v1"\n{added}'))
    assert longer.read("warm lava from below").description == "lit from below by warm lava"
    assert longer.id.startswith("mine@")
    assert longer.id != ours.id
    alone = tmp_path / "alone.toml"
    alone.write_text(
        'name = "toy"\ndescription = "[{time}]"\ninstruction = "make it [{time}]"\n'
        '[time]\nday = { words = "day" }\nnight = { words = "night", exposure = -1 }\n'
    )
    toy = load_lights(alone)
    night = toy.read("night")
    assert (night.description, night.instruction()) == ("night", "make it night")
    assert [len(toy.entries.get(aspect, {})) for aspect in ASPECTS] == [0, 0, 2, 0, 0, 0]
    drawn = toy.draw_different(rng(), 4)  # two lights are all there are
    assert drawn[0] != drawn[1]
    assert drawn[2:] == drawn[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain = 'x'", "`name` is missing"),
        ('name = "x"\n', "has no entries; give one in direction, source"),
        ('name = "x"\nextends = "v0"\n', "extends must be 'v1', got 'v0'"),
        ('name = "x"\n[sorce]\n', "unknown key `sorce`; did you mean 'source'"),
        ('name = "x"\n[time]\nday = { words = " " }', "words of a light must not be empty"),
        ('name = "x"\n[time]\nday = { words = "day", kelvin = 3 }', "kelvin must be from 1,000"),
        ('name = "x"\n[time]\nday = { words = "day", hardness = 2 }', "hardness must be from 0"),
        ('name = "x"\n[time]\nday = { words = "of the light" }', "say nothing; use others"),
        (
            'name = "x"\n[time]\na = { words = "day" }\nb = { words = "day" }',
            "have the words 'day' twice, in time.a and in time.b",
        ),
        (
            'name = "x"\nextends = "v1"\n[time.day]\nwords = "by day"\nonly = { source = ["sn"] }',
            "time.day goes only with the source 'sn', which is not there",
        ),
        (
            'name = "x"\ndescription = "{sun}"\n[time]\na = { words = "day" }',
            "'{sun}': a light has no 'sun'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_lights(own(tmp_path, text))
    assert message in str(error.value)
