"""Pictures from untrusted files, and PNG files that are complete or not there."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from dsd_jax import files, images
from dsd_jax.errors import UserError
from dsd_jax.images import (
    fit,
    from_array,
    open_frame,
    open_image,
    open_still,
    read_parameters,
    save_image,
    to_array,
)


def noise(height: int = 40, width: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def smooth(height: int, width: int) -> np.ndarray:
    """A gradient, which JPEG keeps nearly as it is; its four corners differ."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestRefusals:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
    def test_truncated(self, tmp_path, kind):
        data = encoded(Image.fromarray(noise()), kind)
        path = tmp_path / "picture"
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(UserError, match=r"cannot (decode|read) .*picture: "):
            open_image(path)

    def test_a_mode_without_a_way_to_rgb(self):
        picture = Image.fromarray(noise()).convert("LA").convert("La")
        for reader in (open_image, lambda image: open_frame(image, 32, 32)):
            with pytest.raises(UserError, match="the image has the mode La, which has no way to R"):
                reader(picture)

    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"there is no image at .*gone\.png"):
            open_image(tmp_path / "gone.png")

    def test_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot read .*: it is not a regular file"):
            open_image(tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(UserError, match=r"cannot read .*: it is not a regular file"):
            open_frame(tmp_path / "pipe.png", 32, 32)

    def test_a_huge_file_is_not_read(self, tmp_path):
        with (tmp_path / "huge.png").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(UserError, match=r"has more than 268,435,456 bytes"):
            open_image(tmp_path / "huge.png")

    def test_name_that_no_file_can_have(self):
        with pytest.raises(UserError, match=r"cannot read .*null"):
            open_image("a\0b.png")

    def test_text_named_png(self, tmp_path):
        (tmp_path / "a.png").write_text("not a picture")
        with pytest.raises(
            UserError, match=r"a\.png is not a picture that can be read \(PNG, JPEG"
        ):
            open_image(tmp_path / "a.png")

    def test_format_that_is_not_wanted(self):
        data = encoded(Image.fromarray(noise()), "PPM")
        with pytest.raises(UserError, match="the image is not a picture that can be read"):
            open_image(data)

    @pytest.mark.parametrize(
        ("height", "width", "complaint"),
        [
            (50_000, 50_000, "the image has far more than the 64,000,000 pixels accepted"),
            (10_000, 12_000, "the image has 12000x10000 pixels; at most 64,000,000 are accepted"),
            (8, 60, "the image has 60x8 pixels; both sides must be >= 16"),
        ],
    )
    def test_size_is_checked_before_decoding(self, monkeypatch, height, width, complaint):
        def decode(*args):
            pytest.fail("decoded")

        monkeypatch.setattr(Image.Image, "load", decode)
        with pytest.raises(UserError, match=complaint):
            open_image(png_header(height, width))

    def test_huge_image_object(self):
        with pytest.raises(UserError, match="the image has 9000x9000 pixels"):
            open_image(Image.new("1", (9000, 9000)))

    def test_floating_point(self):
        data = encoded(Image.fromarray(noise(channels=1).astype(np.float32) / 255), "TIFF")
        with pytest.raises(UserError, match="the image holds floating-point values"):
            open_image(data)

    def test_random_damage_is_a_message_or_a_picture(self):
        rng = np.random.default_rng(0)
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.fromarray(noise())
        formats = [("PNG", {"exif": exif}), ("JPEG", {"exif": exif}), ("WEBP", {"exif": exif})]
        formats += [("GIF", {}), ("BMP", {}), ("TIFF", {"exif": exif})]
        refused = 0
        for kind, options in formats:
            whole = encoded(picture, kind, **options)
            for _ in range(150):
                data = bytearray(whole)
                for place in rng.integers(0, min(len(data), 300), 6):
                    data[place] = rng.integers(0, 256)
                try:
                    assert open_image(bytes(data)).mode == "RGB"
                except UserError:
                    refused += 1
        assert 100 < refused < 900


class TestDecoding:
    def test_rgb_is_unchanged(self):
        array = noise()
        for source in (Image.fromarray(array), encoded(Image.fromarray(array), "PNG")):
            np.testing.assert_array_equal(np.asarray(open_image(source)), array)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation(self, orientation):
        upright = smooth(32, 48)
        # How a camera held that way stores the picture.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright.transpose(1, 0, 2)[::-1, ::-1],
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif, "quality": 95, "subsampling": 0}
        opened = open_image(encoded(Image.fromarray(stored), "JPEG", **options))
        assert opened.size == (48, 32)
        assert np.abs(np.asarray(opened).astype(int) - upright).max() < 12

    def test_damaged_exif_is_no_reason_to_refuse(self):
        data = encoded(Image.fromarray(smooth(32, 48)), "JPEG", exif=b"Exif\0\0II*\0nonsense")
        assert open_image(data).size == (48, 32)

    def test_cmyk_jpeg(self):
        rgb = smooth(32, 48)
        data = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95)
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        assert np.abs(np.asarray(open_image(data)).astype(int) - rgb).max() < 16

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled(self, kind):
        values = np.linspace(0, 65_535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
        opened = np.asarray(open_image(encoded(Image.fromarray(values), kind)))
        assert opened.shape == (32, 32, 3)
        np.testing.assert_array_equal(opened, np.round(values / 257)[..., None].repeat(3, 2))
        frame = open_frame(encoded(Image.fromarray(values), kind), 32, 32)
        assert frame.notices == (
            "the image has 16 bits a channel; its values are scaled to 8 bits",
        )

    def test_bytes_kept_in_32_bits_stay_what_they_are(self):
        gray = noise(channels=1)
        picture = Image.fromarray(gray.astype(np.int32))
        np.testing.assert_array_equal(np.asarray(open_image(picture))[..., 0], gray)
        assert open_frame(picture, 32, 32).notices == ()

    @pytest.mark.skipif("AVIF" not in images.FORMATS, reason="Pillow was built without AVIF")
    def test_avif_is_read(self):
        data = encoded(Image.fromarray(smooth(40, 60)), "AVIF", quality=95)
        opened = np.asarray(open_image(data)).astype(int)
        assert np.abs(opened - smooth(40, 60)).max() < 16
        with pytest.raises(UserError, match=r"cannot decode|is not a picture"):
            open_image(data[: len(data) * 2 // 3])

    def test_grayscale_and_bilevel(self):
        gray = noise(channels=1)
        opened = np.asarray(open_image(encoded(Image.fromarray(gray), "PNG")))
        np.testing.assert_array_equal(opened, gray[..., None].repeat(3, 2))
        bits = Image.fromarray(gray > 127)
        opened = np.asarray(open_image(encoded(bits, "PNG")))
        np.testing.assert_array_equal(opened[..., 0], 255 * (gray > 127))

    @pytest.mark.parametrize("channels", [2, 4], ids=["LA", "RGBA"])
    def test_alpha_lies_over_white(self, channels):
        array = noise(channels=channels)
        colour, alpha = array[..., :-1].astype(float), array[..., -1:] / 255
        expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (*array.shape[:2], 3))
        opened = np.asarray(open_image(encoded(Image.fromarray(array), "PNG")))
        assert np.abs(opened - expected).max() <= 1

    def test_palette_with_transparency(self):
        indices = np.random.default_rng(0).integers(0, 3, (32, 32), dtype=np.uint8)
        image = Image.fromarray(indices, "L")
        image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
        data = encoded(image, "PNG", transparency=1)
        expected = np.array([[200, 10, 10], [255, 255, 255], [10, 10, 200]])[indices]
        np.testing.assert_array_equal(np.asarray(open_image(data)), expected)

    def test_first_frame_of_a_gif(self):
        red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
        data = encoded(red, "GIF", save_all=True, append_images=[blue])
        assert open_image(data).getpixel((5, 5)) == (255, 0, 0)

    def test_a_damaged_frame_behind_the_first_is_a_message(self):
        file, page = io.BytesIO(), Image.new("RGB", (48, 64))
        page.save(file, "TIFF", save_all=True, append_images=[page])
        with pytest.raises(UserError, match=r"cannot read the frames of the image: .* is damaged"):
            open_still(file.getvalue()[: file.tell() // 2])

    def test_bytes_path_and_text_agree(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(encoded(Image.fromarray(noise()), "PNG"))
        for source in (path, str(path), path.read_bytes()):
            np.testing.assert_array_equal(np.asarray(open_image(source)), noise())


class TestMetadata:
    """Notes of other programs, however long, are no reason to refuse a picture."""

    @pytest.mark.parametrize(
        ("kind", "start"),
        [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")],
    )
    @pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
    def test_long_texts_and_profiles(self, tmp_path, kind, start, place):
        content = start + zlib.compress(b"x" * 5_000_000)
        png = encoded(Image.fromarray(noise()), "PNG")
        at = png.index(place) - 4
        data = png[:at] + chunk(kind, content) + png[at:]
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, tmp_path / "a.png"):
            np.testing.assert_array_equal(np.asarray(open_image(source)), noise())

    def test_the_rotation_is_kept(self):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        png = encoded(Image.fromarray(noise(48, 32)), "PNG", exif=exif)
        at = png.index(b"IDAT") - 4
        long = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 5_000_000))
        assert open_image(png[:at] + long + png[at:]).size == (48, 32)

    def test_damaged_pixels_behind_long_texts_are_damaged(self):
        png = encoded(Image.fromarray(noise()), "PNG")
        at = png.index(b"IDAT") - 4
        long = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 5_000_000))
        with pytest.raises(UserError, match=r"cannot decode the image: .*; the file is damaged"):
            open_image(png[:at] + long + png[at : at + 60])


class TestFrame:
    """A reference becomes what the released program makes of it."""

    @staticmethod
    def theirs(data: bytes) -> np.ndarray:
        """`generate.py`: RGB, centre square, 512 pixels; then diffusers turns the result."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((512, 512))
        return np.asarray(ImageOps.exif_transpose(image))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_rotation_comes_last(self, orientation):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data = encoded(Image.fromarray(noise(70, 101)), "JPEG", exif=exif)
        frame = open_frame(data, 512, 512)
        np.testing.assert_array_equal(np.asarray(frame.image), self.theirs(data))
        assert frame.notices == ()

    def test_a_frame_that_is_no_square_stands_upright(self):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        data = encoded(Image.fromarray(noise(60, 90)), "JPEG", exif=exif)
        assert open_frame(data, 64, 32).image.size == (32, 64)

    def test_alpha_is_dropped_and_that_is_said(self, tmp_path):
        data = encoded(Image.fromarray(noise(channels=4)), "PNG")
        (tmp_path / "cat.png").write_bytes(data)
        frame = open_frame(tmp_path / "cat.png", 512, 512)
        np.testing.assert_array_equal(np.asarray(frame.image), self.theirs(data))
        assert frame.notices == (
            f"{tmp_path}/cat.png is partly transparent; its alpha channel is dropped",
        )
        opaque = noise(channels=4)
        opaque[..., 3] = 255
        assert open_frame(encoded(Image.fromarray(opaque), "PNG"), 64, 64).notices == ()

    @pytest.mark.parametrize("size", [(1, 1), (3, 7), (15, 15)])
    def test_small_references_are_enlarged(self, size):
        data = encoded(Image.fromarray(noise(*size)), "PNG")
        np.testing.assert_array_equal(
            np.asarray(open_frame(data, 512, 512).image), self.theirs(data)
        )


class TestFit:
    @pytest.mark.parametrize("size", [(100, 70), (70, 100), (71, 100), (64, 64), (16, 90)])
    def test_square_is_a_centre_crop_and_pils_resize(self, size):
        width, height = size
        image = Image.fromarray(noise(height, width))
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        expected = image.crop((left, top, left + side, top + side)).resize((48, 48))
        np.testing.assert_array_equal(np.asarray(fit(image, 48, 48)), np.asarray(expected))

    def test_other_ratios_keep_the_middle(self):
        image = Image.fromarray(smooth(64, 64))
        wide = np.asarray(fit(image, 16, 32)).astype(int)
        assert wide.shape == (16, 32, 3)
        # Red runs over the whole width, green only over the middle half of the height.
        assert wide[:, 0, 0].max() < 10
        assert wide[:, -1, 0].min() > 245
        assert abs(wide[0, :, 1].mean() - 64) < 6
        assert abs(wide[-1, :, 1].mean() - 191) < 6

    def test_extreme_ratio(self):
        assert fit(Image.fromarray(noise(16, 4000)), 512, 64).size == (64, 512)


class TestArrays:
    def test_there_and_back(self):
        array = noise()
        floats = to_array(Image.fromarray(array))
        assert floats.dtype == np.float32
        assert floats.min() == -1
        assert floats.max() == 1
        np.testing.assert_array_equal(np.asarray(from_array(floats)), array)

    def test_clips(self):
        array = np.full((2, 2, 3), -3, np.float32)
        array[0] = 3
        np.testing.assert_array_equal(np.asarray(from_array(array))[:, 0, 0], [255, 0])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_refuses_what_is_not_finite(self, value):
        array = np.zeros((2, 2, 3), np.float32)
        array[1, 1, 2] = value
        with pytest.raises(UserError, match="values that are not finite; try --dtype float32"):
            from_array(array)


class TestSaving:
    def test_parameters_come_back(self, tmp_path):
        parameters = {"text": "ein Küken 🐤\nim Gras", "seed": 2**32 - 1, "guidance": 3.5}
        path = tmp_path / "new" / "folder" / "a.png"
        save_image(Image.fromarray(noise()), path, parameters)
        assert read_parameters(path) == parameters
        np.testing.assert_array_equal(np.asarray(Image.open(path)), noise())
        assert names(path.parent) == ["a.png"]

    def test_files_without_parameters(self, tmp_path):
        save_image(Image.fromarray(noise()), tmp_path / "a.png")
        (tmp_path / "b.png").write_text("text")
        info = images.PngImagePlugin.PngInfo()
        info.add_text("parameters", json.dumps([1, 2]))
        Image.fromarray(noise()).save(tmp_path / "c.png", pnginfo=info)
        (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
        (tmp_path / "e.png").write_bytes(png_header(50_000, 50_000))
        for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "none.png"):
            assert read_parameters(tmp_path / name) is None

    def test_parent_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(UserError, match=r"cannot write .*file/a\.png: "):
            save_image(Image.fromarray(noise()), tmp_path / "file" / "a.png")
        assert names(tmp_path) == ["file"]

    def test_target_is_a_folder(self, tmp_path):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(UserError, match=r"cannot write .*a\.png: Is a directory"):
            save_image(Image.fromarray(noise()), tmp_path / "a.png")
        assert names(tmp_path) == ["a.png"]

    def test_full_disk_keeps_the_old_file(self, tmp_path, monkeypatch):
        save_image(Image.fromarray(noise()), tmp_path / "a.png", {"seed": 1})

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left on device"):
            save_image(Image.fromarray(noise(seed=1)), tmp_path / "a.png", {"seed": 2})
        assert read_parameters(tmp_path / "a.png") == {"seed": 1}
        assert names(tmp_path) == ["a.png"]

    def test_interruption_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupted(fd):
            raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_image(Image.fromarray(noise()), tmp_path / "a.png")
        assert names(tmp_path) == []
