"""Depth Anything and its preprocessing against transformers', by way of files it saves."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from dsd_jax.config import FLOAT32, DepthConfig
from dsd_jax.convert.open import open_component, read_json
from dsd_jax.convert.vision.depth import depth_from_json, depth_table, depth_to_json
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.models import abstract, load
from dsd_jax.vision.depth import bilinear
from dsd_jax.weights import param_shapes
from tests.parity.compare import assert_close, randomise

BOUND = 1e-4
BACKBONE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 6,
    "out_indices": [1, 2, 3],
    "reshape_hidden_states": False,
}
TINY = {
    "backbone_config": transformers.Dinov2Config(**BACKBONE),
    "patch_size": 6,
    "reassemble_hidden_size": 24,
    "reassemble_factors": [4, 1, 0.5],
    "neck_hidden_sizes": [4, 6, 10],
    "fusion_hidden_size": 8,
    "head_hidden_size": 6,
}


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    model = transformers.DepthAnythingForDepthEstimation(transformers.DepthAnythingConfig(**TINY))
    randomise(model.eval())
    return model


@torch.no_grad()
def test_disparities_of_canvases_of_several_sizes(
    reference: torch.nn.Module, tmp_path: Path
) -> None:
    reference.save_pretrained(tmp_path)
    component = open_component(tmp_path).expect(DepthConfig)
    assert component.config.taps == (1, 2, 3)
    assert depth_from_json(depth_to_json(component.config)) == component.config
    model = load(abstract(component.config, precision=FLOAT32), component.source)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    # Tall, and wide with pixels that fill no patch.
    for height, width in ((36, 12), (27, 40)):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, height, width, 3)).astype(np.float32)
        given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        expected = reference(given).predicted_depth
        assert expected.std() > 0
        assert_close(run(state, jnp.asarray(x)), expected, BOUND, f"{height}x{width}")


@pytest.mark.parametrize(("source", "target"), [(5, 9), (9, 5), (1, 4), (4, 1), (6, 6)])
def test_bilinear_resizing_is_pytorchs_with_aligned_corners(source: int, target: int) -> None:
    grid = np.random.default_rng(0).standard_normal((1, 2, source, source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid), (target, target), mode="bilinear", align_corners=True
    )
    matrix = bilinear(source, target)
    assert_close(matrix @ grid @ matrix.T, expected, 1e-5, f"bilinear {source} to {target}")


def test_every_name_and_shape_of_the_small_model() -> None:
    backbone = transformers.Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
    )
    published = transformers.DepthAnythingConfig(backbone_config=backbone)
    with torch.device("meta"):
        model = transformers.DepthAnythingForDepthEstimation(published)
    saved = revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    assert len(shapes) == 287
    config = depth_from_json(published.to_dict())
    assert config == DepthConfig()
    table = depth_table(config)
    aside = {n for n in shapes if any(re.search(pattern, n) for pattern, _ in table.ignored)}
    assert aside == {"backbone.embeddings.mask_token"}
    assert table.their_shapes == {name: shapes[name] for name in shapes.keys() - aside}
    assert table.our_shapes == param_shapes(abstract(config, precision=FLOAT32))
    assert sum(map(math.prod, shapes.values())) == 24_785_089


@pytest.mark.parametrize(
    "size", [(37, 301), (70, 70), (640, 480), (61, 150), (29, 30), (133, 134), (1000, 301)]
)
def test_pixels_are_those_of_transformers_processor(size: tuple[int, int], tmp_path: Path) -> None:
    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70}, ensure_multiple_of=14, keep_aspect_ratio=True
    )
    processor.save_pretrained(tmp_path)
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    file = tmp_path / "preprocessor_config.json"
    ours = preprocess_from_json(read_json(file), str(file))(image)
    (expected,) = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ours, expected.transpose(1, 2, 0))
    assert not any(side % 14 for side in ours.shape[:2])
