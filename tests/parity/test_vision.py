"""The vision transformer and its preprocessing against transformers', by way of files it saves."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dsd_jax.config import FLOAT32, Execution, VisionConfig
from dsd_jax.convert.open import open_component, read_json
from dsd_jax.convert.vision.open import open_captions, open_vision
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.images import open_image
from dsd_jax.models import abstract, load
from dsd_jax.toy.making.tokenizers import CLIP_VOCAB, write_tiny_tokenizers
from dsd_jax.vision.positions import bicubic
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.vision.vit import Vit
from tests.parity.compare import assert_close, randomise

BOUND = 1e-5
# More patches across and fewer down than the stored positions have, and pixels that fill no patch.
OTHER = (26, 43)
SIZES = {"dino": (30, 30)}  # as stored
SIZE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 30}
PATCH, MLP = {"patch_size": 6}, {"intermediate_size": 40}


def pair(kind: type, model: type, vocab: int = 9, **options: int) -> torch.nn.Module:
    """A model with two encoders; that for texts is as small as it can be."""
    text = {**MLP, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": vocab, "eos_token_id": vocab - 1, "bos_token_id": vocab - 2}
    return model(kind(text_config=text, vision_config={**SIZE, **PATCH, **MLP}, **options))


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "dino": lambda: transformers.ViTModel(
        transformers.ViTConfig(**SIZE, **PATCH, **MLP), add_pooling_layer=False
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZE, **PATCH)),
    "dinov2-giant": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(**SIZE, **PATCH, use_swiglu_ffn=True)
    ),
    "dinov2-registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZE, **PATCH, num_register_tokens=2)
    ),
    "clip": lambda: pair(transformers.CLIPConfig, transformers.CLIPModel, projection_dim=16),
    "siglip": lambda: pair(transformers.SiglipConfig, transformers.SiglipModel),
}


def opened(reference: torch.nn.Module, folder: Path) -> Vit:
    """Our model with the weights that the reference saves."""
    randomise(reference)
    reference.save_pretrained(folder)
    component = open_component(folder).expect(VisionConfig)
    execution = Execution(scan_layers=True)
    model = abstract(component.config, precision=FLOAT32, execution=execution)
    return load(model, component.source)


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)


def theirs(reference: torch.nn.Module, x: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Feature and hidden states of the reference."""
    tower = getattr(reference, "vision_model", reference)
    options = (
        {} if tower.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
    )
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    out = tower(given, output_hidden_states=True, **options)
    pooled = out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output
    projection = getattr(reference, "visual_projection", None)
    return pooled if projection is None else projection(pooled), list(out.hidden_states)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_features_and_hidden_states(name: str, tmp_path: Path) -> None:
    reference = MODELS[name]().eval()
    graphdef, state = nnx.split(opened(reference, tmp_path))

    layers = (2, 0, 1) if name == "dinov2" else (2, 0)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        model = nnx.merge(graphdef, state)
        hidden = model.hidden(x, layers)
        return model.feature(hidden[0]), hidden

    x = pixels(*SIZES.get(name, OTHER))
    feature, hidden = run(state, jnp.asarray(x))
    expected, states = theirs(reference, x)
    assert_close(feature, expected, BOUND, f"{name} feature")
    for layer, own in zip(layers, hidden, strict=True):
        assert_close(own, states[layer], BOUND, f"{name} tokens behind block {layer}")


def test_clip_without_a_projection(tmp_path: Path) -> None:
    reference = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZE, **PATCH, **MLP))
    reference.save_pretrained(tmp_path)
    component = open_component(tmp_path).expect(VisionConfig)
    assert component.config.projection is None
    assert component.config.feature_width == SIZE["hidden_size"]
    norm = reference.post_layernorm.weight.detach()
    np.testing.assert_array_equal(component.source.read("final_norm.scale", ()), norm)


@torch.no_grad()
def test_features_of_texts_and_pictures_from_one_clip_folder(tmp_path: Path) -> None:
    reference = pair(transformers.CLIPConfig, transformers.CLIPModel, CLIP_VOCAB, projection_dim=16)
    randomise(reference.eval())
    write_tiny_tokenizers(tmp_path)
    folder = tmp_path / "tokenizer"
    reference.save_pretrained(folder)
    CLIPImageProcessorPil(size=30, crop_size=30).save_pretrained(folder)
    texts = ["a red cat", "two green dogs at night", ""]
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
    expected = reference.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
    captions = open_captions(folder)
    assert captions.name == "tokenizer"
    assert_close(captions.features(texts), expected.pooler_output, BOUND, "CLIP text feature")
    assert captions.features([]).shape == (0, 16)
    image = picture("RGBA", 50, 40)
    given = torch.from_numpy(Preprocess(30, crop=(30, 30))(open_image(image))).permute(2, 0, 1)
    expected = reference.get_image_features(given[None])
    tower = open_vision(folder)
    assert tower.sha256().keys() == {"model.safetensors"}
    assert_close(tower.features([image]), expected.pooler_output, BOUND, "CLIP feature")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("source", "target"), [(37, 16), (16, 37), (5, 7), (7, 3), (4, 4), (9, 1)])
def test_bicubic_resizing_is_pytorchs(source: int, target: int, antialias: bool) -> None:
    rng = np.random.default_rng(0)
    grid = rng.standard_normal((1, 3, source, source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid),
        size=(target, target),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    matrix = bicubic(source, target, antialias=antialias)
    assert_close(matrix @ grid @ matrix.T, expected, BOUND, f"bicubic {source} to {target}")


PROCESSORS = {
    "dino": ViTImageProcessorPil(size=112, image_mean=[0.485, 0.456, 0.406]),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 128}, crop_size=112),
    "clip": CLIPImageProcessorPil(size=97, crop_size=97),
    "siglip": SiglipImageProcessorPil(size={"height": 96, "width": 96}),
    "padded": CLIPImageProcessorPil(size=51, crop_size={"height": 60, "width": 71}),
    "cropped": CLIPImageProcessorPil(do_resize=False, crop_size=33, rescale_factor=1 / 127),
}


def picture(mode: str, width: int, height: int) -> Image.Image:
    shape = (height, width, {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode])
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Image.fromarray(data.squeeze(), mode)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("RGB", (37, 301)),
        ("RGB", (112, 112)),
        ("L", (150, 61)),
        ("LA", (53, 97)),
        ("RGBA", (64, 90)),
    ],
)
def test_pixels_are_those_of_transformers_processors(
    name: str, mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    image = picture(mode, *size)
    file = tmp_path / "preprocessor_config.json"
    ours = preprocess_from_json(read_json(file), str(file))(open_image(image))
    # A processor that does not convert is given what the others make of the picture.
    given = open_image(image) if name == "dino" else image
    (expected,) = processor(given, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ours, expected.transpose(1, 2, 0))
    assert ours.dtype == np.float32
