"""The card of an export, what it keeps to itself, and the upload."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from dsd_jax.cli import main
from dsd_jax.convert.card import Card, last_scores, public_name
from dsd_jax.convert.export import export_weights
from dsd_jax.convert.publish import Publisher
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.random_flux import CONDITIONAL, random_adapter, write_random_lora

RUN = {
    "preset": "paper",
    "step": 1200,
    "config": {
        "batch_size": 160,
        "height": 512,
        "width": 1024,
        "lora": {"rank": 512, "targets": "attention"},
    },
    "data": {"portions": [{"dataset": "ab" * 32, "task": "identity", "weight": 1.0}]},
    "base": {"path": "/home/someone/FLUX", "sha256": {"a.safetensors": "cd" * 32}},
    "versions": {"dsd-jax": "0.1", "jax": "0.10"},
    "devices": "8 x TPU v5e",
}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/someone/runs/dsd", "dsd"),
        ("/home/someone/flux/", "flux"),
        ("gs://secret-bucket/flux", "flux"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        (
            "/root/.cache/huggingface/hub/models--a--b.c/snapshots/0123abc/transformer",
            "a/b.c/transformer",
        ),
    ],
)
def test_a_path_is_told_by_its_name_alone(path: str, told: str) -> None:
    assert public_name(path) == told


def test_a_card_says_how_the_weights_were_made(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"abc")
    (tmp_path / "metrics.jsonl").write_text('{"eval/loss": 0.5}\n{"eval/loss": 0.25, "loss": 1}\n')
    card = Card(
        "mine",
        "dsd convert lora run mine",
        "black-forest-labs/FLUX.1-dev",
        RUN,
        last_scores(tmp_path),
    )
    card.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    front = text.split("---\n")[1].splitlines()
    assert front[:3] == [
        "base_model: black-forest-labs/FLUX.1-dev",
        "license: other",
        "license_name: flux-1-dev-non-commercial-license",
    ]
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for line in (
        "| steps | 1200 |",
        "| LoRA | rank 512, attention |",
        f"| data | {'ab' * 32} (identity) |",
        f"| base | a.safetensors {'cd' * 32} |",
        "| eval/loss | 0.25 |",
        f"| pytorch_lora_weights.safetensors | {digest} |",
        "dsd convert lora run mine",
        "dsd generate --model_path ./transformer --lora_path ./pytorch_lora_weights.safetensors \\",
    ):
        assert line in text.splitlines(), line
    assert "/home" not in text


def test_a_card_of_distilled_weights_says_how_to_sample(tmp_path: Path) -> None:
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=4, mask="1010")
    Card("fast", "dsd convert lora run fast", distilled=need).write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "dsd generate --model_path . --guidance 3.5 --steps 4 --step_mask 1010 \\" in text


def test_weights_with_a_distilled_lora_merged_say_so(models: Path) -> None:
    need = Distilled(guidance=3.5, i_guidance=1.5, t_guidance=1.0, steps=6)
    own = dataclasses.replace(random_adapter(CONDITIONAL), distilled=need)
    export_weights(models / "base", str(models / "merged"), adapters=[(own, 1.0)])
    assert need.flags in (models / "merged" / "README.md").read_text()


def test_the_licence_of_a_base_comes_from_its_card(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "transformer").mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    Card("x", "dsd", base / "transformer").write(out)
    assert "Its licence is not known to the program" in (out / "README.md").read_text()
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\nlicense: mit\n")
    Card("x", "dsd", base / "transformer").write(out)
    assert "\nlicense: apache-2.0\n" in (out / "README.md").read_text()
    assert "mit" not in (out / "README.md").read_text()


# The command


class Hub:
    """The client of the hub, without one."""

    made: list[tuple[str, dict[str, Any]]]
    logged_in = True

    def whoami(self) -> dict[str, str]:
        if not self.logged_in:
            raise LocalTokenNotFoundError("no token")
        return {"name": "someone"}

    def create_repo(self, name: str, **settings: Any) -> None:
        self.made = [(name, settings)]

    def upload_folder(self, **settings: Any) -> None:
        if not self.logged_in:
            raise OSError("refused")
        names = sorted(path.name for path in Path(settings["folder_path"]).iterdir())
        self.made.append((settings["repo_id"], {"files": names}))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model(tmp_path / "base", SMALL.transformer, random_tensors(SMALL.transformer, 0))
    write_random_lora(tmp_path / "a.safetensors", CONDITIONAL, full=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_exports_name_nothing_of_the_machine(models: Path, capsys: Any) -> None:
    lora, base = str(models / "a.safetensors"), str(models / "base")
    assert main(["convert", "lora", lora, str(models / "out"), "--base_path", base]) == 0
    merged = ["convert", "to-torch", base, str(models / "merged"), "--lora_path", lora]
    assert main(merged) == 0
    assert main(["convert", "to-jax", base, str(models / "jax")]) == 0
    files = [p for f in ("out", "merged", "jax") for p in (models / f).rglob("*") if p.is_file()]
    assert {"README.md", "source.json", "adapter_config.json"} <= {path.name for path in files}
    told = [path.name for path in files if str(models).encode() in path.read_bytes()]
    assert told == []
    text = (models / "merged" / "README.md").read_text()
    assert "dsd convert to-torch base merged --lora_path a.safetensors --lora_scale 1.0" in text


def test_an_export_is_uploaded(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    hub = Hub()
    monkeypatch.setattr("dsd_jax.convert.publish.HfApi", lambda: hub)
    words = ["convert", "lora", "a.safetensors", "out", "--base_path", "base"]
    assert main([*words, "--push_to_hub", "someone/mine", "--private"]) == 0
    assert hub.made == [
        ("someone/mine", {"private": True, "exist_ok": True}),
        (
            "someone/mine",
            {
                "files": [
                    "README.md",
                    "adapter_config.json",
                    "adapter_model.safetensors",
                    "pytorch_lora_weights.safetensors",
                    "transformer",
                ]
            },
        ),
    ]
    assert "uploaded to https://huggingface.co/someone/mine" in capsys.readouterr().out


def test_a_login_is_asked_for_before_any_work(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hub = Hub()
    hub.logged_in = False
    monkeypatch.setattr("dsd_jax.convert.publish.HfApi", lambda: hub)
    words = ["convert", "lora", "a.safetensors", "out", "--base_path", "base", "--push_to_hub"]
    assert main([*words, "someone/mine"]) == 2
    assert "nobody is logged in to the hub on this machine; log in with" in capsys.readouterr().err
    assert not (models / "out").exists()
    assert main([*words, "mine"]) == 2
    assert "--push_to_hub takes owner/name, got 'mine'" in capsys.readouterr().err


def test_a_refused_upload_leaves_the_export(tmp_path: Path) -> None:
    hub = Hub()
    publisher = Publisher("someone/mine", api=lambda: hub)  # type: ignore[arg-type,return-value]
    hub.logged_in = False
    with pytest.raises(
        UserError, match=r"is written, but the hub refused it \(refused\); upload it"
    ):
        publisher.push(tmp_path)
