"""Backbones on tiny random weights, from the command line on, and the names that are refused."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dsd_jax.cli import main
from dsd_jax.config import VisionConfig
from dsd_jax.convert.vision.lpips import lpips_table
from dsd_jax.convert.vision.sscd import sscd_table
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.backbones import (
    LpipsBackbone,
    SscdBackbone,
    VisionBackbone,
    open_backbones,
)
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.infer.evaluate.features import File, Input, Kind, UndefinedError
from dsd_jax.infer.evaluate.scores import metrics_of, read_scores
from dsd_jax.toy.making.random_pipeline import random_tensors, write_model
from dsd_jax.vision.captions import CaptionTower
from dsd_jax.vision.lpips import ALEXNET
from dsd_jax.vision.preprocess import IMAGENET_CROP, Preprocess
from dsd_jax.vision.sscd import COPIED, ResNetSizes
from tests.infer.evaluate.evaluating import SIDE, made_run, true_picture

TINY = VisionConfig(8, 4, 16, 1, 2, 32)
CLIP = dataclasses.replace(TINY, pre_norm=True, projection=16)
SIZE = {"height": SIDE, "width": SIDE}
INPUT = Input("feature", (File(Path("a.png"), "0"),))


def write(folder: Path, config: VisionConfig, **settings: object) -> Path:
    """A tiny random model in a folder."""
    write_model(folder, config, random_tensors(config, 0))
    data = {"image_processor_type": "ViTImageProcessor", "size": SIZE} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("vit"), TINY)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def test_the_command_scores_runs_on_a_mesh(
    tmp_path: Path, vit: Path, capsys: pytest.CaptureFixture[str]
):
    reference, other = (true_picture(tmp_path, str(k), noise(k)) for k in (0, 1))
    cases = [Case("a", "jsonl", "a", "x", (reference,), (other,))]
    copy = made_run(tmp_path, "copy", cases, {"a": noise(0)})
    far = made_run(tmp_path, "far", cases, {"a": noise(2)})
    (far.images[0].path).write_bytes(b"")
    words = [
        *("evaluate", "score", str(copy.folder), str(far.folder), "--device", "cpu"),
        *("--mesh.data", "2", "--backbone", f"tiny={vit}", "--metrics"),
        *("dino", "copy-angle", "structure-novelty@tiny"),
    ]
    with pytest.raises(SystemExit) as status:
        main(words)
    assert status.value.code == 1
    out = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert lines[0] == ["metric", "method", "mean", "n", "undefined", "errors", "missing"]
    assert ["dino@tiny", "copy", "1.0000", "1", "0", "0", "0"] in lines
    assert ["copy-angle@tiny", "copy", "1.0000", "1", "0", "0", "0"] in lines
    assert ["copy-angle@pixels", "copy", "1.0000", "1", "0", "0", "0"] in lines
    assert ["structure-novelty@tiny", "copy", "0.0000", "1", "0", "0", "0"] in lines
    assert ["dino@tiny", "far", "-", "0", "0", "1", "0"] in lines
    assert lines[-1][0].endswith(
        "far/images/a.png has changed since it was recorded; prepare the cases or import the run "
        "again"
    )
    assert metrics_of(copy.folder) == [
        "copy-angle@pixels", "copy-angle@tiny", "dino@tiny", "structure-novelty@tiny"
    ]  # fmt: skip
    assert read_scores(copy.folder, "dino@tiny")[0].state == "ok"
    kept = {path.parts[len(tmp_path.parts) + 1] for path in (tmp_path / ".features").glob("*/*")}
    assert {name.split("-")[0] for name in kept} == {"tiny", "pixels"}


@pytest.mark.parametrize(
    ("tasks", "advice"),
    [
        (("relight", "relight"), "compare methods on the task relight by drift@meter"),
        (
            ("depth", "depth"),
            "compare methods on the task depth by depth-order, which these metrics do not include",
        ),
        (("relight", "depth"), None),
        (("free", "free"), None),
        (("single_object", "single_object"), None),
    ],
)
def test_the_command_names_the_metric_of_the_task(
    tasks: tuple[str, str],
    advice: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    picture = true_picture(tmp_path, "a", noise(0))
    cases = [
        Case(str(number), "pairs", "a", "x", (picture,), tags={"task": task})
        for number, task in enumerate(tasks)
    ]
    run = made_run(tmp_path, "ours", cases, {"0": noise(0), "1": noise(0)})
    words = ["--metrics", "drift", "--device", "cpu"]
    assert not main(["evaluate", "score", str(run.folder), *words])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("compare")] == ([advice] if advice else [])


def test_runs_without_images_and_every_backbone_that_is_given_are_looked_at(
    tmp_path: Path, vit: Path, capsys: pytest.CaptureFixture[str]
):
    case = Case("a", "jsonl", "a", "x", (true_picture(tmp_path, "a", noise(0)),))
    run = made_run(tmp_path, "none", [case], {})
    assert main(["evaluate", "score", str(run.folder)]) == 2
    assert "no metric says anything about these runs" in capsys.readouterr().err
    repeated = ["--backbone", "bad", "--backbone", f"tiny={vit}"]
    assert main(["evaluate", "score", str(run.folder), *repeated]) == 2
    assert "got 'bad'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give at least one run, a folder with run.json"),
        (["nowhere"], "nowhere is no run: it has no run.json"),
        (["x", "--set_size", "1"], "set_size is 1; a set needs at least 2 images"),
    ],
)
def test_what_the_command_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", "score", *words]) == 2
    assert message in capsys.readouterr().err


def test_dino_is_prepared_as_published_evaluations_do(tmp_path: Path, vit: Path):
    own = VisionBackbone("a", str(vit))
    half = (0.5, 0.5, 0.5)
    assert (own.family, own.texts) == ("dino", False)
    assert own.parts.preprocess == Preprocess(
        (SIDE, SIDE), Image.Resampling.BILINEAR, None, mean=half, std=half
    )
    published = VisionBackbone("a", str(write(tmp_path / "dino", TINY, size=224)))
    assert published.parts.preprocess == IMAGENET_CROP
    assert published.digest != own.digest
    clip = write(tmp_path / "clip", CLIP, image_processor_type="CLIPImageProcessor", size=224)
    assert VisionBackbone("a", str(clip)).family == "clip"
    assert VisionBackbone("a", str(clip)).parts.preprocess == Preprocess()


def test_the_digest_is_of_the_weights(tmp_path: Path, vit: Path):
    write_model(tmp_path, TINY, random_tensors(TINY, 1))
    (tmp_path / "preprocessor_config.json").write_bytes(
        (vit / "preprocessor_config.json").read_bytes()
    )
    assert VisionBackbone("a", str(tmp_path)).digest != VisionBackbone("a", str(vit)).digest
    assert VisionBackbone("b", str(vit)).digest == VisionBackbone("a", str(vit)).digest


def test_texts_go_to_the_text_encoder_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Captions(CaptionTower):
        def __init__(self) -> None:
            pass

        def features(self, texts: Sequence[str]) -> np.ndarray:
            return np.asarray([[len(text)] for text in texts], np.float32)

    opened = []

    def open_captions(path: str, mesh: None) -> Captions:
        opened.append(path)
        return Captions()

    monkeypatch.setattr("dsd_jax.infer.evaluate.backbones.open_captions", open_captions)
    backbone = VisionBackbone("a", str(write(tmp_path, CLIP)))
    prepared = [backbone.prepare(Input("text", text=text), []) for text in ("a", "abc")]
    assert backbone.run("text", prepared).tolist() == [[1], [3]]
    assert opened == [str(tmp_path)]


def test_subject_and_background_of_a_picture(vit: Path):
    """The subject is cut out as a square; grey takes the place of everything else."""
    backbone = VisionBackbone("a", str(vit))
    picture = Image.new("RGB", (100, 60), "white")
    mask = Image.new("RGB", (50, 30))  # is resized to the picture
    mask.paste("white", (10, 10, 30, 20))

    def seen(kind: Kind) -> np.ndarray:
        pixels = backbone.prepare(dataclasses.replace(INPUT, kind=kind), [picture, mask])
        assert isinstance(pixels, np.ndarray)
        return pixels[..., 0]

    subject, background = seen("subject"), seen("background")
    assert subject.shape == background.shape == (SIDE, SIDE)
    assert subject[SIDE // 2, [0, -1]].min() == 1  # as wide as the square
    assert abs(subject[[0, -1]]).max() < 0.01
    assert background[0, 0] == 1
    assert abs(background[SIDE // 2, SIDE // 3]) < 0.01
    mask.paste("black", (0, 0, 50, 30))
    mask.paste("white", (0, 0, 5, 5))
    with pytest.raises(UndefinedError, match=r"the subject covers 1.\d% of the picture; 5% are"):
        seen("subject")


def test_patches_inside_a_mask(vit: Path):
    backbone = VisionBackbone("a", str(vit))
    mask = Image.new("RGB", (64, 64))
    mask.paste("white", (0, 0, 64, 28))  # seven eighths of the second row of patches
    inside = backbone.prepare(Input("inside"), [mask])
    assert isinstance(inside, np.ndarray)
    assert inside.tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_lpips(tmp_path: Path):
    layers = tuple(dataclasses.replace(layer, width=layer.width // 32) for layer in ALEXNET)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(size=shape).astype(np.float32)
        for name, shape in lpips_table(layers).their_shapes.items()
    }
    path = tmp_path / "alex.safetensors"
    safetensors.numpy.save_file(tensors, path)
    backbone = next(own for own in open_backbones([f"alex={path}"]) if own.name == "alex")
    assert isinstance(backbone, LpipsBackbone)
    pictures = [Image.fromarray(noise(0)), Image.fromarray(noise(1)).resize((40, 60))]
    pairs = [backbone.prepare(INPUT, pair) for pair in (pictures, pictures[:1] * 2)]
    far, same = backbone.run("distance", pairs)
    assert far > 0.01
    assert same < 1e-12


def test_sscd(tmp_path: Path):
    sizes = ResNetSizes(width=4, depths=(1, 1, 1, 1), dims=8)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.uniform(0.5, 1, size=shape) / np.prod(shape[1:])).astype(np.float32)
        for name, shape in sscd_table(sizes).their_shapes.items()
    }
    path = tmp_path / "sscd.safetensors"
    safetensors.numpy.save_file(tensors, path)
    backbone = next(own for own in open_backbones([f"sscd={path}"]) if own.name == "sscd")
    assert isinstance(backbone, SscdBackbone)
    pictures = [Image.fromarray(noise(0)), Image.fromarray(noise(0)).resize((40, 60))]
    features = backbone.run("feature", [backbone.prepare(INPUT, [own]) for own in pictures])
    assert features.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert features[0] @ features[1] > COPIED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dino"], "--backbone is NAME=PATH, such as dino-vits8=weights/dino-vits8, got 'dino'"),
        (["a/b=c"], "--backbone is NAME=PATH"),
        (["a="], "--backbone is NAME=PATH"),
        (["pixels=x"], "--backbone pixels=x: the name pixels is built in; choose another name"),
        (["a={vit}", "a={vit}"], "the name a is given twice; choose another name"),
        (["a=/nowhere"], "there is no folder or file /nowhere"),
        (["a=/nowhere.safetensors"], "/nowhere.safetensors does not exist"),
    ],
)
def test_backbones_that_are_refused(given: list[str], message: str, vit: Path):
    with pytest.raises(UserError, match=re.escape(message)):
        open_backbones([text.format(vit=vit) for text in given])
