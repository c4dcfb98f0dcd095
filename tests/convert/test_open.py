"""One model on disk, whatever its format: what is recognised, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from dsd_jax.checkpoint import save_params, tensor_digest
from dsd_jax.config import AutoencoderConfig, ClipConfig, FluxConfig, T5Config
from dsd_jax.convert.open import (
    config_to_json,
    open_component,
    open_transformer,
    read_json,
    table_for,
)
from dsd_jax.convert.origin import PARAMS, write_origin
from dsd_jax.errors import UserError
from dsd_jax.parts import with_condition
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model

CONDITIONAL = dataclasses.replace(SMALL.transformer, condition_embed=True)
# Sizes that a file without config tells: heads of 128, VAE norms in groups of 32.
BFL_FLUX = FluxConfig(
    num_heads=1, double_depth=1, single_depth=2, txt_width=16, vec_width=8, condition_embed=False
)
BFL_VAE = AutoencoderConfig(block_channels=(32, 32, 64, 64), layers_per_block=1)

Config = FluxConfig | AutoencoderConfig | T5Config | ClipConfig


def read_all(component) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(component.source.read(path, tuple(slice(0, n) for n in shape)))
        for path, shape in component.source.shapes.items()
    }


def write_ours(folder, config, tensors: dict[str, np.ndarray], sha256=None) -> None:
    """A converted model."""
    save_params(folder / PARAMS, tensors.items())
    digests = {path: tensor_digest(tensor) for path, tensor in tensors.items()}
    origin = {"path": "x", "sha256": sha256 or {}, "tensors": digests}
    write_origin(epath.Path(folder), origin, config_to_json(config))


def assert_holds(component, tensors: dict[str, np.ndarray]) -> None:
    found = read_all(component)
    assert found.keys() == tensors.keys()
    for path, tensor in tensors.items():
        np.testing.assert_array_equal(found[path], tensor, err_msg=path)


@pytest.mark.parametrize(
    "config",
    [SMALL.transformer, CONDITIONAL, SMALL.vae, SMALL.text_encoder, SMALL.text_encoder_2],
    ids=["flux", "dsd", "vae", "clip", "t5"],
)
class TestFormats:
    def test_folder_of_diffusers_or_transformers(self, tmp_path, config):
        tensors = random_tensors(config, 3)
        write_model(tmp_path / "model", config, tensors)
        component = open_component(tmp_path / "model")
        assert component.config == config
        assert component.layout == "diffusers"
        assert component.notices == ()
        assert_holds(component, tensors)

    def test_a_file_of_such_a_folder(self, tmp_path, config):
        write_model(tmp_path / "model", config, random_tensors(config, 3))
        (file,) = (tmp_path / "model").glob("*.safetensors")
        assert open_component(str(file)).config == config

    def test_our_own_folder(self, tmp_path, config):
        tensors = random_tensors(config, 3)
        write_ours(tmp_path / "model", config, tensors)
        component = open_component(tmp_path / "model")
        assert component.config == config
        assert component.layout == "orbax"
        assert_holds(component, tensors)


@pytest.mark.parametrize("config", [BFL_FLUX, BFL_VAE], ids=["flux", "vae"])
def test_bfl_file_tells_its_size(tmp_path, config):
    tensors = random_tensors(config, 3)
    write_model(tmp_path / "model", config, tensors, layout="bfl")
    (tmp_path / "model" / "config.json").unlink()
    (file,) = (tmp_path / "model").glob("*.safetensors")
    component = open_component(file)
    assert component.config == config
    assert component.layout == "bfl"
    assert_holds(component, tensors)


def test_bfl_names_beside_a_config(tmp_path):
    # The layout is told by the names, the size by the config.
    tensors = random_tensors(SMALL.transformer, 3)
    write_model(tmp_path / "model", SMALL.transformer, tensors, layout="bfl")
    component = open_component(tmp_path / "model")
    assert (component.layout, component.config) == ("bfl", SMALL.transformer)
    assert_holds(component, tensors)


class TestConditionEmbedding:
    def test_zero_where_the_weights_have_none(self, tmp_path):
        tensors = random_tensors(SMALL.transformer, 0)
        write_model(tmp_path / "torch", SMALL.transformer, tensors)
        write_ours(tmp_path / "jax", SMALL.transformer, tensors)
        zeros = {"cond_in.kernel": np.zeros((64, 64)), "cond_in.bias": np.zeros(64)}
        for name in ("torch", "jax"):
            component = with_condition(open_transformer(tmp_path / name))
            assert component.config == CONDITIONAL
            assert_holds(component, tensors | zeros)
            assert component.source.dtypes["cond_in.kernel"] == np.float32
            assert open_component(tmp_path / name).config == SMALL.transformer

    def test_kept_where_they_have_one(self, tmp_path):
        tensors = random_tensors(CONDITIONAL, 0)
        write_model(tmp_path / "torch", CONDITIONAL, tensors)
        # The class of a plain transformer: the tensors tell.
        plain = json.dumps(config_to_json(SMALL.transformer))
        (tmp_path / "torch" / "config.json").write_text(plain)
        write_ours(tmp_path / "jax", SMALL.transformer, tensors)
        for name in ("torch", "jax"):
            for embed in (False, True):
                component = open_transformer(tmp_path / name)
                component = with_condition(component) if embed else component
                assert component.config == CONDITIONAL
                assert_holds(component, tensors)


class TestRefusals:
    @pytest.fixture
    def model(self, tmp_path):
        write_model(tmp_path / "model", SMALL.transformer, random_tensors(SMALL.transformer, 0))
        return tmp_path / "model"

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(UserError, match="gone does not exist; give a folder with safetensors"):
            open_component(tmp_path / "gone")

    def test_folder_without_weights(self, tmp_path):
        with pytest.raises(UserError, match="holds no safetensors weights; check the path"):
            open_component(tmp_path)

    def test_the_folder_above(self, model):
        with pytest.raises(
            UserError, match="no safetensors weights; did you mean its folder model"
        ):
            open_component(model.parent)

    def test_no_config(self, model):
        (model / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json, which tells the size"):
            open_component(model)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("{", r"config\.json cannot be read as JSON \(.*\); download it again"),
            (
                "[]",
                r"config\.json cannot be read as JSON \(expected an object, got an array\); dow",
            ),
            ("{}", r"config\.json describes a model of no known kind; expected a FLUX transf"),
            ('{"_class_name": "UNet2DModel"}', r"config\.json describes a UNet2DModel; expected"),
            ('{"architectures": ["BertModel"]}', "describes a BertModel; expected a FLUX"),
        ],
    )
    def test_config_of_something_else(self, model, content, complaint):
        (model / "config.json").write_text(content)
        with pytest.raises(UserError, match=complaint):
            open_component(model)

    def test_weights_that_do_not_fit_the_config(self, model):
        config = read_json(model / "config.json") | {"num_layers": 5, "joint_attention_dim": 48}
        (model / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"missing: transformer_blocks\.2\.") as caught:
            open_component(model)
        assert "context_embedder.weight" in str(caught.value)

    def test_truncated_weights(self, model):
        (file,) = model.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(UserError, match="not a valid safetensors file: it is truncated"):
            open_component(model)

    def test_unfinished_conversion(self, model):
        (model / PARAMS).mkdir()
        with pytest.raises(
            UserError, match=r"model is not a finished conversion: it has no source.json; write"
        ):
            open_component(model)

    def test_text_encoders_have_one_layout(self):
        with pytest.raises(UserError, match="there is no bfl layout for T5Config; use diffusers"):
            table_for(SMALL.text_encoder_2, "bfl")


class TestDigests:
    def test_of_the_files(self, tmp_path):
        import hashlib

        write_model(tmp_path / "model", SMALL.vae, random_tensors(SMALL.vae, 0))
        (file,) = (tmp_path / "model").glob("*.safetensors")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        for fingerprint in (False, True):
            component = open_component(tmp_path / "model", fingerprint=fingerprint)
            assert component.sha256() == {"diffusion_pytorch_model.safetensors": digest}

    def test_of_what_a_conversion_came_from(self, tmp_path):
        write_ours(tmp_path, SMALL.vae, random_tensors(SMALL.vae, 0), {"a.safetensors": "12"})
        assert open_component(tmp_path).sha256() == {"a.safetensors": "12"}


def test_reading_json(tmp_path):
    with pytest.raises(UserError, match=r"a\.json is missing; download the folder again"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
        read_json(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
