"""Depth of images against depth maps: the formulas, and scores through the whole machinery."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dsd_jax.config import DepthConfig, VisionConfig
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.backbones import open_backbones
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.depths import DepthBackbone, abs_rel, depth_order
from dsd_jax.infer.evaluate.features import FeatureStore
from dsd_jax.infer.evaluate.score import choose, score_runs
from dsd_jax.toy.making.random_pipeline import random_tensors, write_model
from tests.infer.evaluate.evaluating import made_run, true_picture

TINY = DepthConfig(
    VisionConfig(8, 2, 8, 1, 1, 8, layer_scale=True), (1,), (4,), (1,), fusion_width=4, head_width=2
)
RAMP = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (64, 64)).copy()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat((values * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def test_order_is_the_share_of_pairs_and_chance_is_a_half():
    assert depth_order(5 * RAMP + 3, RAMP) == 1
    assert depth_order(-RAMP, RAMP) == 0
    assert depth_order(np.ones_like(RAMP), RAMP) == 0.5
    noise = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    assert depth_order(noise, RAMP) == pytest.approx(0.5, abs=0.03)
    assert np.isnan(depth_order(RAMP, np.ones_like(RAMP)))


def test_abs_rel_ignores_scale_and_shift():
    assert abs_rel(7 * RAMP + 2, RAMP) == pytest.approx(0, abs=1e-6)
    near = RAMP >= 0.1
    expected = (np.abs(0.5 - RAMP)[near] / RAMP[near]).mean()
    assert abs_rel(np.ones_like(RAMP), RAMP) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(abs_rel(RAMP, np.zeros_like(RAMP)))


def test_images_are_scored_against_the_maps_they_were_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_model(tmp_path / "weights", TINY, random_tensors(TINY, 0))
    settings = {"image_processor_type": "DPTImageProcessor", "size": {"height": 64, "width": 64}}
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps(settings))
    backbone = open_backbones([f"depth={tmp_path / 'weights'}"])[-1]
    assert isinstance(backbone, DepthBackbone)

    def brightness(pixels: Sequence[np.ndarray], _batch: int) -> np.ndarray:
        return np.stack(pixels).mean(-1) + 1

    monkeypatch.setattr(backbone, "_tower", SimpleNamespace(disparities=brightness))
    wide = np.concatenate([np.zeros((64, 32)), RAMP, np.zeros((64, 32))], axis=1)
    maps = {
        "kept": grey(RAMP),
        "cut": grey(wide),  # the canvas showed its middle
        "turned": grey(RAMP[:, ::-1]),
        "coloured": grey(RAMP) * np.array([1, 0, 0], np.uint8),
        "flat": grey(np.full((64, 64), 0.5)),
    }
    cases = [
        Case(name, "jsonl", name, "a room", (true_picture(tmp_path, name, pixels),))
        for name, pixels in maps.items()
    ]
    run = made_run(tmp_path, "ours", cases, dict.fromkeys(maps, grey(RAMP)))
    plans = choose(["depth-order", "abs-rel"], [backbone], 2)
    order, error = score_runs([run], plans, FeatureStore(tmp_path / "features"))
    assert order.metric == "depth-order@depth"
    assert [score.value for score in order.scores] == [1, 1, 0, None, None]
    assert [score.reason for score in order.scores[3:]] == [
        "the reference has colours, so it is no depth map",
        "the depth map is black or flat",
    ]
    assert [score.value for score in error.scores[:2]] == pytest.approx([0, 0], abs=0.01)


def test_depth_metrics_name_the_weights_that_they_need():
    with pytest.raises(UserError, match="`abs-rel` needs a depth model such as depth-anything/"):
        choose(["abs-rel"], open_backbones([]), 2)
