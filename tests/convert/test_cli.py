"""`dsd convert` in process: what it prints, writes and refuses."""

import shlex
from pathlib import Path

import pytest

from dsd_jax.cli import main
from dsd_jax.convert.open import open_component
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.random_flux import CONDITIONAL, write_random_lora


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root / "base", SMALL.transformer, random_tensors(SMALL.transformer, 0))
    write_model(root / "vae", SMALL.vae, random_tensors(SMALL.vae, 0))
    write_random_lora(root / "a.safetensors", CONDITIONAL, full=True)
    write_random_lora(root / "b.safetensors", CONDITIONAL, seed=1)
    return root


@pytest.fixture
def dsd(models, tmp_path, monkeypatch, capfd):
    """Runs `dsd convert` in an empty folder with links to the models; (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def run(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["convert", *shlex.split(line)])
        return status, *capfd.readouterr()

    return run


def new(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


def test_there_and_back(dsd, tmp_path):
    status, out, err = dsd("to-jax base jax")
    assert (status, out) == (0, "wrote jax\n")
    assert "to JAX: base: " in err
    assert "M parameters in " in err
    status, out, err = dsd("to_torch jax torch")
    assert (status, out) == (0, "wrote torch\n")
    assert "to PyTorch: torch: " in err
    (file,) = (tmp_path / "torch").glob("*.safetensors")
    (original,) = (tmp_path / "base").glob("*.safetensors")
    assert file.read_bytes() == original.read_bytes()
    assert new(tmp_path) == ["jax", "torch"]


def test_dtype_and_layout(dsd, tmp_path):
    assert dsd("to-torch base one.safetensors --layout bfl --dtype bfloat16")[0] == 0
    (tmp_path / "folder").mkdir()
    assert dsd("to-torch base two --layout bfl --dtype float16")[0] == 0
    component = open_component(tmp_path / "two")
    assert component.layout == "bfl"
    assert {dtype.name for dtype in component.source.dtypes.values()} == {"float16"}
    assert dsd("to-torch base one.safetensors --layout bfl")[0] == 2
    assert dsd("to-torch base one.safetensors --layout bfl --overwrite")[0] == 0


def test_merged_loras(dsd, tmp_path):
    status, out, _ = dsd("to-torch base merged --lora_path a.safetensors b.safetensors")
    assert status == 0
    assert out.endswith("wrote merged\n")
    assert open_component(tmp_path / "merged").config == CONDITIONAL
    assert dsd("to-torch base other --lora_path a.safetensors --lora_scale 0.5")[0] == 0


def test_lora_between_dialects(dsd, tmp_path):
    flags = "--base_path base --single_file"
    status, out, _ = dsd(f"lora a.safetensors kohya.safetensors --layout kohya {flags}")
    assert status == 0
    assert "LoRA: rank 4, alpha " in out
    status, out, _ = dsd(f"lora kohya.safetensors back.safetensors {flags}")
    assert status == 0
    assert "note: the condition embedding comes from kohya.safetensors\n" in out
    assert "\nnote: kohya LoRA: rank 4, alpha 4, " in out
    assert "the authors' generate.py and ComfyUI's DSD nodes refuse" in out
    assert new(tmp_path) == ["back.safetensors", "kohya.safetensors"]
    written = (tmp_path / "back.safetensors").read_bytes()
    assert written == (tmp_path / "a.safetensors").read_bytes()


def test_a_folder_for_other_programs_and_back(dsd, tmp_path):
    status, out, _ = dsd("lora a.safetensors out --base_path base")
    assert status == 0
    assert out.splitlines()[-2:] == [
        "wrote out/transformer",
        "wrote out/pytorch_lora_weights.safetensors",
    ]
    assert new(tmp_path / "out") == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "transformer",
    ]
    status, out, _ = dsd("lora out back.safetensors --base_path base --single_file")
    assert status == 0
    assert "note: the condition embedding comes from out/transformer\n" in out
    written = (tmp_path / "back.safetensors").read_bytes()
    assert written == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("to-jax none out", "there is no folder or file none"),
        ("to-jax owner/name out", "there is no folder owner/name, it is not in the hub cache"),
        ("to-jax https://x.org/y out", "https://x.org/y is not a path; give a folder, gs://BUCKET"),
        ("to-jax base vae", "vae exists already; remove it or choose another destination"),
        ("to-jax empty out", "empty holds no safetensors weights; check the path"),
        ("to-torch base out --lora_path none.safetensors", "there is no folder or file none.safet"),
        ("to-torch vae out --lora_path a.safetensors", "vae holds an autoencoder; a FLUX tr"),
        (
            "to-torch base out --lora_path a.safetensors --lora_scale 1 2",
            "1 LoRA files but 2 scales; give as many",
        ),
        ("lora vae out --base_path base", "error: "),
        ("lora a.safetensors out --base_path vae", "vae holds an autoencoder; a FLUX transformer"),
        (
            "lora a.safetensors out.safetensors --base_path base",
            "a transformer/ beside the LoRA: give a folder as target; or --single_file keeps it",
        ),
        (
            "lora b.safetensors out",
            "b.safetensors was made for a FLUX.1 of another size than 19 double",
        ),
        ("to-torch base gs://b/x", "gs://b/x: PyTorch files are written to a local folder"),
    ],
)
def test_mistakes(dsd, tmp_path, line, complaint):
    (tmp_path / "empty").mkdir()
    status, out, err = dsd(line)
    assert status == 2
    assert complaint in err
    assert "Traceback" not in err
    assert "wrote" not in out
    assert new(tmp_path) == ["empty"]
