"""Places of weights: paths, buckets and hub ids, and the messages if there is nothing."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from etils import epath
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from dsd_jax.convert import hub
from dsd_jax.convert.hub import check_scheme, resolve
from dsd_jax.errors import UserError


@pytest.fixture
def no_hub(monkeypatch):
    def asked(*args, **kwargs):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(hub, "snapshot_download", asked)


def test_what_is_on_disk_is_taken_as_it_is(tmp_path, no_hub, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "file.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (tmp_path, str(tmp_path / "file.safetensors"), "owner/name"):
        assert Path(resolve(given)) == Path(given)
    assert Path(resolve("~/owner")) == tmp_path / "owner"


def test_the_toy_that_ships_has_a_name(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (resolve("toy") / "model_index.json").is_file()
    assert (resolve("toy", ["vae/*"]) / "vae" / "config.json").is_file()
    assert (resolve("toy", kind="lora") / "pytorch_lora_weights.safetensors").is_file()
    (tmp_path / "toy").mkdir()  # a folder of the user comes first
    assert Path(resolve("toy")) == Path(resolve("toy", kind="lora")) == Path("toy")


@pytest.mark.parametrize(
    "text", ["nothing", "a/b/c", "./owner/name", "../x", "/no/where", "a/", "~/x"]
)
def test_not_a_path_and_not_an_id(no_hub, text):
    with pytest.raises(UserError, match=f"there is no folder or file {text}"):
        resolve(text)


@pytest.mark.parametrize("text", ["my models/flux", "owner/na:me", "owner/x--y..z"])
def test_an_id_that_cannot_be(text):
    with pytest.raises(UserError, match=f"there is no folder or file {text}"):
        resolve(text)


def test_buckets(no_hub, monkeypatch):
    monkeypatch.setattr("dsd_jax.extras.missing", lambda extra: [])
    path = resolve("gs://bucket/flux-jax")
    assert isinstance(path, epath.Path)
    assert str(path / "params") == "gs://bucket/flux-jax/params"
    monkeypatch.setattr("dsd_jax.extras.missing", lambda extra: ["gcsfs"])
    with pytest.raises(UserError, match=r"needs gcsfs; install it with: pip .*'dsd-jax\[gcs\]'"):
        resolve("gs://bucket/flux-jax")


@pytest.mark.parametrize("text", ["https://huggingface.co/a/b", "s3://bucket/x"])
def test_other_urls(no_hub, text):
    for check in (resolve, check_scheme):
        with pytest.raises(UserError, match=f"{text} is not a path; give a folder, gs://BUCKET"):
            check(text)


def test_cached_repository(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert Path(resolve("owner/name")) == snapshot
    assert Path(resolve("owner/name", ["vae/*"])) == snapshot


def test_not_cached_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    complaint = (
        r"there is no folder black-forest-labs/FLUX\.1-dev, it is not in the hub cache, and the "
        r"hub cannot be reached \(.+\); give the path of a folder"
    )
    with pytest.raises(UserError, match=complaint):
        resolve("black-forest-labs/FLUX.1-dev")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (GatedRepoError, "owner/name is gated: accept its licence on its hub page, then log in"),
        (
            RepositoryNotFoundError,
            "there is no folder owner/name, and no such repository on the hub",
        ),
        (HfHubHTTPError, r"the hub cannot be reached \(503 busy\); give the path of a folder"),
    ],
)
def test_what_the_hub_answers(monkeypatch, kind, complaint):
    def answer(*args, **kwargs):
        response = SimpleNamespace(headers={}, request=None, status_code=503)
        raise kind("503 busy\nmore", response=response)

    monkeypatch.setattr(hub, "snapshot_download", answer)
    with pytest.raises(UserError, match=complaint):
        resolve("owner/name")


def test_patterns_are_passed_on(monkeypatch, tmp_path):
    asked = []

    def download(name, *, repo_type, allow_patterns):
        assert repo_type == "model"
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert Path(resolve("owner/name", ("vae/*",))) == tmp_path
    resolve("owner/name")
    assert asked == [("owner/name", ["vae/*"]), ("owner/name", None)]
