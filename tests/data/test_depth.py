"""Depth pairs: a map of every image, the same files however often it stops, bad images listed."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax.cli import main
from dsd_jax.config import DepthConfig, VisionConfig
from dsd_jax.data.depth import DATASET, DepthSettings, make_depth_pairs
from dsd_jax.data.pairs.importer import Imported
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.shares import WorkerShare
from dsd_jax.toy.making.random_pipeline import random_tensors, write_model
from dsd_jax.vision.disparity import DepthTower, depth_picture
from dsd_jax.vision.preprocess import Preprocess

TINY = DepthConfig(
    VisionConfig(8, 2, 8, 1, 1, 8, layer_scale=True), (1,), (4,), (1,), fusion_width=4, head_width=2
)


class Bright(DepthTower):
    """Takes the brightness of an image for its disparity."""

    def __init__(self, digest: str = "0", stop_after: int | None = None) -> None:
        self.sha256 = lambda: {"model.safetensors": digest}
        self.preprocess = Preprocess(None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
        self.calls, self.stop_after = 0, stop_after

    def disparities(self, pixels: Sequence[np.ndarray], batch: int | None = None) -> np.ndarray:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return np.stack(pixels).mean(-1)


def ramp(height: int, width: int) -> Image.Image:
    """A picture that becomes brighter to the right."""
    row = np.linspace(10, 200, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).copy())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four good images of two sizes, and four that cannot be used."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name, size in {"a.png": (20, 40), "b.png": (32, 24), "more/c.jpg": (20, 40)}.items():
        ramp(*size).save(folder / name)
    ramp(20, 40).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "d.png")
    (folder / "a.txt").write_text("a grey ramp\n")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    ramp(16, 90).save(folder / "long.png")
    ramp(20, 40).save(
        folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 20))]
    )
    Image.new("RGB", (20, 20), "red").save(folder / "plain.png")
    return folder


def made(images: Path, target: Path, tower: DepthTower, **options: Any) -> Imported | None:
    return make_depth_pairs(images, target, tower, DepthSettings(), **options)


def contents(target: Path) -> dict[str, bytes]:
    files = (path for path in (target / DATASET).iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files}


def test_every_image_becomes_a_pair_with_its_map(tmp_path: Path, images: Path):
    done = made(images, tmp_path / "depth", Bright(), batch=2)
    assert done == Imported(4, 4, 0)
    store = PairStore.open(tmp_path / "depth" / DATASET)
    assert [pair.id for pair in store] == ["a.png", "b.png", "d.png", "more/c.jpg"]
    first, second, third = store[0], store[1], store[2]
    assert (first.task, first.caption, first.instruction) == ("depth", "a grey ramp", "")
    assert (second.caption, second.instruction) == ("", "Make a photograph of this depth map.")
    assert first.target == (images / "a.png").read_bytes()
    assert first.reference_size == first.target_size == (20, 40)
    assert second.reference_size == (32, 24)
    near = [np.asarray(open_image(pair.reference)) for pair in (first, third)]
    assert near[0].shape == (20, 40, 3)
    assert (near[0][:, 0].max(), near[0][:, -1].min()) == (0, 255)
    assert (near[1][:, 0].min(), near[1][:, -1].max()) == (255, 0)
    lines = (tmp_path / "depth" / DATASET / "rejected.jsonl").read_text().splitlines()
    reasons = {row["id"]: row["reason"] for row in map(json.loads, lines)}
    assert list(reasons) == ["broken.png", "long.png", "moving.gif", "plain.png"]
    assert re.search("truncated|cannot|damaged", reasons["broken.png"])
    assert reasons["long.png"] == (
        "90x16 pixels (width x height): the longer side is more than 4 times the shorter one; crop "
        "the picture"
    )
    assert reasons["moving.gif"] == "the image has 2 frames; give a picture of one frame"
    assert reasons["plain.png"] == "all points are equally near to the depth model"
    assert not (tmp_path / "depth" / "maps").exists()


def test_any_number_of_workers_and_stops_make_the_same_files(tmp_path: Path, images: Path):
    made(images, tmp_path / "one", Bright(), batch=2)
    assert made(images, tmp_path / "two", Bright(), share=WorkerShare(1, 2)) is None
    assert made(images, tmp_path / "two", Bright(), share=WorkerShare(0, 2)) == Imported(4, 4, 0)
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "three", Bright(stop_after=2))
    rest = Bright()
    assert made(images, tmp_path / "three", rest) == Imported(4, 4, 0)
    assert rest.calls == 3  # of five images that the model sees
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")
    again = Bright()
    assert made(images, tmp_path / "three", again) == Imported(4, 4, 4)
    assert again.calls == 0


def test_a_table_without_images_beside_them_is_left_alone(tmp_path: Path, images: Path):
    (images / "prices.csv").write_text("thing,price\na,1\n")
    assert made(images, tmp_path / "depth", Bright()) == Imported(4, 4, 0)
    settings = DepthSettings(image_column="picture")
    with pytest.raises(UserError, match=r"prices.csv has no column 'picture'.*--image_column"):
        make_depth_pairs(images, tmp_path / "other", Bright(), settings)
    (tmp_path / "bare").mkdir()
    (images / "prices.csv").rename(tmp_path / "bare" / "prices.csv")
    with pytest.raises(UserError, match=r"prices.csv has no column 'image' "):
        made(tmp_path / "bare", tmp_path / "other", Bright())


def test_captions_come_from_a_table(tmp_path: Path, images: Path):
    table = images / "metadata.csv"
    table.write_text("file_name,caption,place\nb.png,a ramp,x\na.png,,y\nnone.png,z,z\n")
    settings = DepthSettings(provenance_columns=("place",))
    done = make_depth_pairs(images, tmp_path / "depth", Bright(), settings)
    assert done == Imported(1, 2, 0)
    (pair,) = PairStore.open(tmp_path / "depth" / DATASET)
    assert (pair.caption, pair.instruction, pair.task) == ("a ramp", "", "depth")
    assert pair.provenance == {"file": "metadata.csv", "row": 1, "place": "x"}
    rejected = (tmp_path / "depth" / DATASET / "rejected.jsonl").read_text()
    assert "neither a caption nor an instruction" in rejected
    assert "there is no image none.png" in rejected


def test_a_folder_of_other_maps_or_without_images_is_refused(tmp_path: Path, images: Path):
    made(images, tmp_path / "depth", Bright())
    with pytest.raises(UserError, match="holds depth maps of other images, settings or weights"):
        made(images, tmp_path / "depth", Bright("1"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds neither images nor one table of images"):
        made(tmp_path / "empty", tmp_path / "other", Bright())
    with pytest.raises(UserError, match="there is no file or folder"):
        made(tmp_path / "nowhere", tmp_path / "other", Bright())


def test_the_nearest_point_is_white_and_the_farthest_black():
    found = depth_picture(np.array([[1, 3], [2, 5]], np.float32), 2, 2)
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found), [[0, 128], [64, 255]])
    assert depth_picture(np.full((3, 3), 2, np.float32), 6, 6) is None


def test_the_command_makes_a_dataset(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("b.png", "plain.png"):  # of other sizes, for which the model would compile anew
        (images / name).unlink()
    weights = tmp_path / "weights"
    write_model(weights, TINY, random_tensors(TINY, 0))
    settings = {
        "image_processor_type": "DPTImageProcessor",
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 8,
        "size": {"height": 16, "width": 16},
    }
    (weights / "preprocessor_config.json").write_text(json.dumps(settings))
    words = ["data", "depth", str(images), "--output_dir", str(tmp_path / "depth")]
    assert main([*words, "--weights", str(weights)]) == 0
    folder = tmp_path / "depth" / DATASET
    assert capsys.readouterr().out.splitlines() == [
        f"3 pairs in {folder}; 3 images rejected",
        f"{folder / 'rejected.jsonl'} says why",
    ]
    assert PairStore.open(folder)[0].reference_size == (20, 40)
    assert main([*words, "--batch_size", "3", "--weights", str(weights)]) == 2
    assert "--batch_size must be a multiple of 8 on this mesh, got 3" in capsys.readouterr().err
    assert main(words) == 2
    assert (
        "the depth model is missing; give --weights FOLDER with the config.json, "
        "preprocessor_config.json and model.safetensors of "
        "depth-anything/Depth-Anything-V2-Small-hf" in " ".join(capsys.readouterr().err.split())
    )
    (weights / "preprocessor_config.json").unlink()
    assert main([*words, "--weights", str(weights)]) == 2
    assert "weights has no preprocessor_config.json; give a folder with" in " ".join(
        capsys.readouterr().err.split()
    )
