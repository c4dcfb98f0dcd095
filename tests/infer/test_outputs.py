"""Files that `dsd generate` writes: names and notices before the work, nothing lost."""

import numpy as np
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import open_image, read_parameters
from dsd_jax.infer.generated import Generated
from dsd_jax.infer.outputs import Outputs


def made(count: int = 1) -> Generated:
    image = Image.new("RGB", (32, 32), "red")
    return Generated(
        [image] * count,
        [Image.new("RGB", (32, 32), "blue")] * count,
        np.zeros((count, 16, 4, 8), np.float32),
        [{"seed": i} for i in range(count)],
        [],
    )


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_every_format_keeps_the_parameters(tmp_path, name):
    (path,) = Outputs(tmp_path / name).places(1).write(made())
    assert read_parameters(path) == {"seed": 0}
    red, green, blue = np.asarray(open_image(path)).mean((0, 1))
    assert red > 240
    assert max(green, blue) < 16


def test_a_file_that_exists_is_kept(tmp_path):
    for name in ("a.png", "a-2.png", "b.npy"):
        (tmp_path / name).write_text("mine")
    outputs = Outputs(tmp_path / "a.png", save_frames=True, output_latents=tmp_path / "b.npy")
    places = outputs.places(1)
    assert [path.name for path in places.files] == ["a-3.png", "a-3-frames.png", "b-2.npy"]
    first, second = places.notices
    assert first == (
        f"{tmp_path}/a.png exists; writing {tmp_path}/a-3.png (--overwrite replaces it)"
    )
    assert second.startswith(f"{tmp_path}/b.npy exists; writing {tmp_path}/b-2.npy")
    places.write(made())
    assert (tmp_path / "a.png").read_text() == "mine"
    assert read_parameters(tmp_path / "a-3.png") == {"seed": 0}


def test_several_images_are_numbered_together(tmp_path):
    (tmp_path / "a-1.png").write_text("mine")
    places = Outputs(tmp_path / "a.png").places(3)
    assert [path.name for path in places.images] == ["a-2-0.png", "a-2-1.png", "a-2-2.png"]


def test_files_are_replaced_only_when_asked(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    places = Outputs(tmp_path / "a.png", overwrite=True).places(1)
    assert places.notices == ()
    places.write(made())
    assert read_parameters(tmp_path / "a.png") == {"seed": 0}


def test_an_ending_without_a_format(tmp_path):
    with pytest.raises(UserError, match=r"a\.gif must end in one of \.png, \.jpg, \.jpeg, \.webp"):
        Outputs(tmp_path / "a.gif").places(1)


def test_a_notebook_shows_the_images_side_by_side():
    import io

    with Image.open(io.BytesIO(made(3)._repr_png_())) as image:
        assert image.size == (96, 32)
    assert made(3)[1:] == made(3).images[1:]
