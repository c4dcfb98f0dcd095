"""A provider's settings: strict tables, keys that are never repeated, hosts that are refused."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsd_jax.errors import UserError
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Message, Picture, Request, Usage
from dsd_jax.llm.prices import Price, expected_tokens, load_prices
from dsd_jax.structured import build, parse_toml

GOOD = """
kind = "openai"
model = "gpt-4o-2024-08-06"
mode = "batch"
api_key_file = "key.txt"
accept_models = ["gpt-4o"]
max_cost = 5
"""


@dataclasses.dataclass(frozen=True)
class Stages:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    providers: dict[str, ProviderConfig]
    judge: ProviderConfig | None = None


def read(text: str, kind: Any = ProviderConfig) -> Any:
    return build(kind, parse_toml(text, "run.toml"), "run.toml")


def test_a_table():
    provider = read(GOOD)
    assert provider.accept_models == ("gpt-4o",)
    assert (provider.max_cost, provider.mode, str(provider.api_key_file)) == (5, "batch", "key.txt")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('kind = "openai"', "run.toml: `model` is missing"),
        (
            'kind = "openapi"\nmodel = "m"',
            "no kind 'openapi' of provider; expected openai, gemini, toy; did you mean 'openai'?",
        ),
        (
            'kind = "openai"\nmodel = "m"\nmax_in_fligth = 3',
            "`max_in_fligth`; did you mean 'max_in_",
        ),
        ('kind = "openai"\nmodel = "m"\nxyzzy = 3', "unknown key `xyzzy`; known are kind, model"),
        (
            'kind = "openai"\nmodel = "m"\nmax_calls = "many"',
            "`max_calls`: input should be a valid",
        ),
        ('kind = "openai"\nmodel = ""', "run.toml: model must be the exact name"),
        (
            'kind = "openai"\nmodel = "m"\nmax_in_flight = 0',
            "max_in_flight must be at least 1, got",
        ),
        ('kind = "openai"\nmodel = "m"\ntimeout = inf', "timeout must be positive, got inf"),
        ('kind = "openai"\nmodel = "m"\nmax_cost = -1', "max_cost must not be negative, got -1"),
        ('kind = "openai"\nmodel = "m"\nmax_undecided = 50', "a share from 0 to 1, got 50"),
        (
            'kind = "gemini"\nmodel = "m"\nmode = "file"',
            "kind \"gemini\" has no mode 'file'; expected online, batch",
        ),
        (
            'kind = "toy"\nmodel = "toy"\nmode = "batch"',
            "kind \"toy\" has no mode 'batch'; expected online",
        ),
        (
            'kind = "openai"\nmodel = "m"\napi_key_env = "A"\napi_key_file = "b"',
            "give api_key_env or api_key_file, not both",
        ),
    ],
)
def test_mistakes(text, complaint):
    with pytest.raises(UserError) as caught:
        read(text)
    assert complaint in str(caught.value)


def test_mistakes_deep_in_a_table_are_all_named():
    with pytest.raises(UserError) as caught:
        read('[providers.a]\nkind = "toy"\nmodl = "x"\n[judge]\nkind = "toy"\nmod = "y"', Stages)
    assert set(str(caught.value).splitlines()) == {
        "run.toml: unknown key `providers.a.modl`; did you mean 'model'?",
        "run.toml: `providers.a.model` is missing",
        "run.toml: unknown key `judge.mod`; did you mean 'mode'?",
        "run.toml: `judge.model` is missing",
    }


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://example.com/v1", "neither https nor of this machine"),
        ("http://10.0.0.7:8000/v1", "neither https nor of this machine"),
        ("http://localhost.example.com/v1", "neither https nor of this machine"),
        ("ftp://127.0.0.1/v1", "neither https nor of this machine"),
        ("api.example.com/v1", "must look like https://host/v1"),
        ("https://user:word@example.com/v1", "must not hold a name or password"),
    ],
)
def test_hosts_that_could_read_the_key_are_refused(url, complaint):
    with pytest.raises(UserError, match=complaint):
        ProviderConfig("openai", "m", base_url=url)


@pytest.mark.parametrize(
    "url", ["https://h/v1", "http://127.0.0.1:8000/v1", "http://[::1]:1/v1", "http://localhost/v1"]
)
def test_hosts_that_cannot(url):
    assert ProviderConfig("openai", "m", base_url=url).url == url


class TestKeys:
    def test_from_the_environment(self):
        environment = {"OPENAI_API_KEY": " o\n", "GEMINI_API_KEY": "g", "MINE": "m"}
        assert ProviderConfig("openai", "m").key(environment) == "o"
        assert ProviderConfig("gemini", "m").key(environment) == "g"
        assert ProviderConfig("gemini", "m", api_key_env="MINE").key(environment) == "m"

    def test_another_server_gets_no_key_unless_it_is_named(self):
        environment = {"OPENAI_API_KEY": "o", "MINE": "m"}
        local = ProviderConfig("openai", "m", base_url="http://127.0.0.1:1/v1")
        assert local.key(environment) is None
        assert dataclasses.replace(local, api_key_env="MINE").key(environment) == "m"
        assert ProviderConfig("openai", "m", mode="file").key(environment) is None

    def test_from_a_file(self, tmp_path):
        path = tmp_path / "key"
        provider = ProviderConfig("openai", "m", api_key_file=path)
        with pytest.raises(UserError, match="api_key_file must be the path of a file") as caught:
            provider.key({})
        assert str(path) not in str(caught.value)  # people put the key itself there
        with pytest.raises(UserError, match=r"api_key_file: cannot read .* is not a regular file"):
            ProviderConfig("openai", "m", api_key_file=tmp_path).key({})
        path.write_text("secret\n")
        assert provider.key({}) == "secret"
        path.write_text("secret\nsecond\n")
        with pytest.raises(UserError, match="must hold the key alone") as caught:
            provider.key({})
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("end", ["?key=sk-12345", "#sk-12345", "/v1?api-version=1"])
    def test_an_address_holds_no_key(self, end):
        with pytest.raises(
            UserError, match=r"must end with its path, without `\?` or `#`"
        ) as caught:
            ProviderConfig("openai", "m", base_url=f"https://host{end}")
        assert "12345" not in str(caught.value)

    def test_a_key_in_place_of_its_file_is_not_repeated(self):
        for key in ("sk-12345", "sk-12345" * 100, "sk-\0-12345"):
            with pytest.raises(UserError, match="must be the path of a file") as caught:
                ProviderConfig("openai", "m", api_key_file=Path(key)).key({})
            assert "12345" not in str(caught.value)

    def test_missing(self):
        with pytest.raises(
            UserError, match="variable GEMINI_API_KEY is not set; set it to the key"
        ):
            ProviderConfig("gemini", "m").key({})

    def test_a_key_in_place_of_its_name_is_not_repeated(self):
        with pytest.raises(UserError) as caught:
            ProviderConfig("openai", "m", api_key_env="sk-12345")
        assert "name of the environment variable that holds the key" in str(caught.value)
        assert "12345" not in str(caught.value)
        with pytest.raises(UserError) as caught:
            read('kind = "openai"\nmodel = "m"\napi_key = "sk-12345"')
        assert "unknown key `api_key`; did you mean 'api_key_" in str(caught.value)
        assert "12345" not in str(caught.value)


class TestPrices:
    def test_of_an_answer(self):
        price = Price(input=2.0, cached=0.5, output=8.0)
        usage = Usage(input=1_000_000, cached=400_000, output=250_000)
        assert price.of(usage) == pytest.approx(1.2 + 0.2 + 2.0)
        assert price.of(usage, batch=True) == pytest.approx(1.7)
        assert Price(input=2.0, output=8.0).of(usage) == pytest.approx(4.0)

    def test_our_table(self):
        prices = load_prices()
        assert prices.date >= "2026"
        assert all(0 < each.input <= each.output for each in prices.models.values())

    def test_another_table(self, tmp_path):
        path = tmp_path / "prices.toml"
        path.write_text('date = "2027-01-01"\n[models]\nm = { input = 1, output = 2, chached = 1 }')
        with pytest.raises(
            UserError, match=r"unknown key `models.m.chached`; did you mean 'cached'"
        ):
            load_prices(path)
        path.write_text("date = ")
        with pytest.raises(UserError, match="not TOML: invalid value"):
            load_prices(path)
        with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
            load_prices(tmp_path / "none.toml")

    def test_expected_tokens_are_not_too_few(self):
        turns = (Message("user", ("word " * 100, Picture(b"x"))),)
        usage = expected_tokens(Request("s", "i", turns, max_tokens=50))
        assert usage.output == 50
        assert usage.input >= 100 + 1500


def test_the_clients_are_loaded_only_when_one_is_made():
    script = """
import sys
import dsd_jax.llm.session
from dsd_jax.llm.config import ProviderConfig
ProviderConfig("gemini", "m")
heavy = {"openai", "google", "httpx2", "jax", "numpy", "dsd_jax.toy"}
print(sorted(heavy & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
