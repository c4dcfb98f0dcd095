"""The configuration of `dsd data make`: what is refused, and what a work folder remembers."""

from pathlib import Path

import pytest

from dsd_jax.data.make.config import load_config
from dsd_jax.data.make.folder import begin_stage, begun_settings, open_parts
from dsd_jax.data.make.stages import CAPTIONS, PROMPTS, STAGES
from dsd_jax.errors import UserError

TEXT = """
root = "made"
parts = 3

[providers.writer]
kind = "openai"
model = "gpt-4o-2024-11-20"

[captions]
source = ["captions.csv"]
count = 10

[prompts]
provider = "writer"

[judge]
provider = "writer"

[caption]
provider = "writer"
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "make.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path):
    config = load_config(write(tmp_path, ("parts = 3", 'parts = 3\nwordings = "w.toml"')))
    assert config.root == tmp_path / "made"
    assert config.captions.source == (tmp_path / "captions.csv",)
    assert config.wordings == tmp_path / "w.toml"
    (tmp_path / "flux").mkdir()
    config = load_config(write(tmp_path, ("parts = 3", 'base_path = "flux"')))
    assert config.base_path == str(tmp_path / "flux")
    config = load_config(write(tmp_path, ("parts = 3", 'base_path = "owner/flux"')))
    assert config.base_path == "owner/flux"


def test_a_source_of_captions_may_be_the_hub_id_of_a_dataset(tmp_path: Path):
    config = load_config(write(tmp_path, ('"captions.csv"', '"owner/cats", "made/captions.txt"')))
    assert config.captions.source == (Path("owner/cats"), tmp_path / "made" / "captions.txt")
    (tmp_path / "owner" / "cats").mkdir(parents=True)
    config = load_config(tmp_path / "make.toml")
    assert config.captions.source[0] == tmp_path / "owner" / "cats"


def test_the_documented_configuration_is_one(tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs" / "data_making.md").read_text(encoding="utf-8")
    path = tmp_path / "make.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    config = load_config(path)
    assert config.judge.provider == "viewer"
    assert config.providers["viewer"].mode == "batch"
    assert config.pack.size == (512, 512)


def test_texts_of_the_command_line_go_before_those_of_the_file(tmp_path: Path):
    path = write(tmp_path, ("parts = 3", 'wordings = "w.toml"'))
    assert load_config(path, Path("other.toml")).wordings == Path("other.toml")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("parts = 3", "part = 3", "unknown key `part`; did you mean 'parts'"),
        ("count = 10", "cuont = 10", "unknown key `captions.cuont`; did you mean 'count'"),
        ("[judge]", "[judge]\nmodes = 1", "unknown key `judge.modes`; did you mean 'mode'"),
        ("[caption]", "[captoin]", "unknown key `captoin`; did you mean 'caption'"),
        ("count = 10", "", "`captions.count` is missing"),
        ("count = 10", 'count = "many"', "`captions.count`: input should be a valid integer"),
        ("count = 10", "count = 0", "captions: count must be at least 1, got 0"),
        ("parts = 3", "parts = 0", "parts must be at least 1, got 0"),
        (
            '[judge]\nprovider = "writer"',
            '[judge]\nprovider = "wirter"',
            r"is 'wirter', but there is no \[providers.wirter\]; did you mean 'writer'",
        ),
        (
            '[prompts]\nprovider = "writer"',
            '[prompts]\nprovider = "writer"\ntasks = { identiy = 1 }',
            "prompts: tasks: no grids are made for 'identiy'; .* did you mean 'identity'",
        ),
        ("parts = 3", "parts = ", "make.toml: not TOML: invalid value"),
        ("parts = 3", "a" + ".a" * 20_000 + " = 1", "line 3: a key of more than 64 parts"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        load_config(write(tmp_path, (old, new)))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none.toml: No such"):
        load_config(tmp_path / "none.toml")


def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path):
    secret = "sk-canary-123"
    path = write(tmp_path, ('kind = "openai"', f'kind = "openai"\napi_key_env = "{secret}"'))
    with pytest.raises(UserError, match="never the key itself") as caught:
        load_config(path)
    assert secret not in str(caught.value)


def test_a_stage_goes_on_with_the_same_settings_alone(tmp_path: Path):
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    with pytest.raises(UserError, match=r"captions was begun with other settings: captions.count"):
        begin_stage(load_config(write(tmp_path, ("count = 10", "count = 11"))), CAPTIONS)
    with pytest.raises(UserError, match=r"captions.count was 10 and is 11\. Change the config"):
        begin_stage(load_config(write(tmp_path, ("count = 10", "count = 11"))), PROMPTS)


def test_speed_and_places_may_change_and_later_stages_too(tmp_path: Path):
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    changed = write(
        tmp_path,
        ('kind = "openai"', 'kind = "openai"\nmax_in_flight = 3\nmode = "batch"'),
        ("count = 10", "count = 10\ncaption_column = 'TEXT'"),
        ("[judge]", '[judge]\nmode = "scores"'),
    )
    with pytest.raises(UserError, match=r"captions\.caption_column was None and is 'TEXT'"):
        begin_stage(load_config(changed), CAPTIONS)
    changed.write_text(changed.read_text().replace("caption_column = 'TEXT'", ""))
    begin_stage(load_config(changed), PROMPTS)


def test_a_stage_before_its_time_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"`captions` has not been begun .* run `dsd data captions`"
    ):
        begin_stage(load_config(write(tmp_path)), PROMPTS)
    assert not (tmp_path / "made" / "prompts").exists()


def test_the_wording_of_an_earlier_stage_may_have_come_from_its_command(tmp_path: Path):
    texts = tmp_path / "w.toml"
    texts.write_text('name = "mine"\n[prompts]\nsystem = "Write."\n')
    path = write(tmp_path)
    begin_stage(load_config(path), CAPTIONS)
    parts = begin_stage(load_config(path, texts), PROMPTS)
    for stage in STAGES[2:]:
        begin_stage(load_config(path), stage)
    assert str(begun_settings(parts)["prompts"]["wording"]).startswith("mine@")


def test_a_stage_remembers_what_came_before_it(tmp_path: Path):
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    begin_stage(load_config(write(tmp_path)), PROMPTS)
    (tmp_path / "made" / "captions" / "settings.json").unlink()
    other = load_config(write(tmp_path, ("count = 10", "count = 11")))
    begin_stage(other, CAPTIONS)
    with pytest.raises(UserError, match=r"prompts was begun .* a stage before it has other settin"):
        begin_stage(other, PROMPTS)


def test_another_model_or_wording_is_another_setting(tmp_path: Path):
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    begin_stage(load_config(write(tmp_path)), PROMPTS)
    with pytest.raises(UserError, match=r"prompts.model was 'gpt-4o-2024-11-20' and is 'llama'"):
        begin_stage(load_config(write(tmp_path, ("gpt-4o-2024-11-20", "llama"))), PROMPTS)
    texts = tmp_path / "w.toml"
    texts.write_text('name = "mine"\n[prompts]\nsystem = "Write."\n')
    with pytest.raises(UserError, match=r"prompts.wording was 'v1@\w+' and is 'mine@"):
        begin_stage(load_config(write(tmp_path), texts), PROMPTS)


def test_the_number_of_parts_stays(tmp_path: Path):
    begin_stage(load_config(write(tmp_path)), CAPTIONS)
    with pytest.raises(UserError, match=r"begun with 3 parts, but the configuration says 4; set"):
        open_parts(load_config(write(tmp_path, ("parts = 3", "parts = 4"))))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files; choose a new folder as root"):
        begin_stage(load_config(write(tmp_path)), CAPTIONS)
