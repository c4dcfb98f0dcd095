"""`dsd generate` and `dsd batch` in process: flags, files, and what a user sees of a mistake."""

import dataclasses
import inspect
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from dsd_jax.cli import main
from dsd_jax.errors import UserError
from dsd_jax.images import open_image, read_parameters
from dsd_jax.infer import cli, outputs
from dsd_jax.infer.batch import Summary
from dsd_jax.infer.cli import BatchFlags, ModelFlags, NoiseFlags, batch, generate
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.infer.generated import Generated
from dsd_jax.infer.options import mesh_of
from dsd_jax.infer.outputs import Outputs, Places
from dsd_jax.infer.settings import Settings
from dsd_jax.marks import MarkFlags
from dsd_jax.sharding import MeshConfig
from dsd_jax.shares import ShareFlags, WorkerShare
from tests.marked import TYPE, source_types
from tests.random_flux import CONDITIONAL, TEXT, picture, write_random_lora

SMALL = "--height 64 --width 128 --steps 2 --dtype float32"


@pytest.fixture
def dsd(folder, tmp_path, monkeypatch, capfd):
    """Runs a command line in an empty folder with `cat.png`; (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    picture().save("cat.png")
    places = {"FLUX": folder / "flux", "DSD": folder / "dsd"}

    def run(line: str) -> tuple[int, str, str]:
        words = [str(places.get(word, word)) for word in shlex.split(line)]
        capfd.readouterr()
        try:
            status = main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_sampling(monkeypatch):
    def sampled(*args, **kwargs):
        pytest.fail("sampled")

    monkeypatch.setattr("dsd_jax.encoders.TextEncoder.encode", sampled)


class TestGenerate:
    def test_image_frames_latents_and_metadata(self, dsd, tmp_path, pipe):
        status, out, err = dsd(
            f"generate --base_path FLUX --model_path DSD --image_path cat.png --text '{TEXT}' "
            f"--output_path new/out.png --save_frames --output_latents new/end.npy --seed 3 "
            f"--t_guidance 2 {SMALL}"
        )
        assert status == 0
        assert out.splitlines() == [
            "note: t_guidance=2.0 has no effect: i_guidance is not above 1",
            "wrote new/out.png",
            "wrote new/out-frames.png",
            "wrote new/end.npy",
        ]
        assert "sampling: 2/2 steps in" in err
        assert names(tmp_path / "new") == ["end.npy", "out-frames.png", "out.png"]

        expected = pipe(TEXT, picture(), seed=3, height=64, width=128, steps=2)
        image = np.asarray(open_image("new/out.png"))
        assert np.abs(image - np.asarray(expected[0], int)).max() <= 1
        frames = np.asarray(open_image("new/out-frames.png"))
        assert frames.shape == (64, 128, 3)
        np.testing.assert_array_equal(frames[:, 64:], image)
        assert np.abs(frames[:, :64] - np.asarray(expected.references[0], int)).max() <= 1
        latents = np.load("new/end.npy")
        assert latents.dtype == np.float32
        np.testing.assert_allclose(latents, expected.latents, atol=1e-4)
        parameters = read_parameters("new/out.png")
        assert parameters is not None
        assert parameters["seed"] == 3
        assert parameters["text"] == TEXT
        assert parameters["steps"] == 2

    def test_marks_name_nothing_but_the_picture(self, dsd, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("GEMINI_API_KEY", key := "AIza-a-key-of-tests-0123456789")
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = "words of the reference's owner"
        picture().save("taken.jpg", exif=exif, comment=b"words of the reference's owner")
        assert (
            dsd(
                f"generate --base_path FLUX --model_path DSD --image_path {tmp_path}/taken.jpg "
                f"--text 'a cat' --output_path {tmp_path}/o.jpg --save_frames "
                f"--disable_gemini_prompt {SMALL}"
            )[0]
            == 0
        )
        written = sorted(path for path in tmp_path.iterdir() if path.stem.startswith("o"))
        assert [path.stem for path in written] == ["o-frames", "o"]
        for path in written:
            data = path.read_bytes()
            assert source_types(data) == [TYPE]
            for private in (key, str(tmp_path), str(folder), "taken", "the reference's owner"):
                for form in (private.encode(), private.encode("utf-16-le")):
                    assert form not in data
        assert (read_parameters(tmp_path / "o.jpg") or {})["text"] == "a cat"

    def test_several_images_with_hyphens_in_flags(self, dsd, tmp_path):
        line = (
            f"generate --base-path FLUX --text 'a cat' --num-images 2 --seed 7 --output-path o.png "
            f"--no-mark {SMALL}"
        )
        assert dsd(line)[0] == 0
        assert names(tmp_path) == ["cat.png", "o-0.png", "o-1.png"]
        found = [read_parameters(f"o-{i}.png") for i in (0, 1)]
        assert [p and p["seed"] for p in found] == [7, 8]
        assert source_types(Path("o-0.png").read_bytes()) == []
        assert open_image("o-0.png").size == (128, 64)

    def test_latents_in_give_latents_out(self, dsd, tmp_path):
        noise = np.random.default_rng(0).standard_normal((1, 16, 8, 16)).astype(np.float32)
        np.save("in.npy", noise)
        common = f"generate --base_path FLUX --text 'a cat' --latents in.npy {SMALL}"
        for seed, name in ((1, "a"), (2, "b")):
            assert dsd(f"{common} --seed {seed} --output_latents {name}.npy")[0] == 0
        np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))

    def test_a_command_line_of_the_released_program(self, dsd, folder, tmp_path):
        write_random_lora(tmp_path / "pytorch_lora_weights.safetensors", CONDITIONAL)
        status, out, _ = dsd(
            "generate --base_path FLUX --model_path DSD "
            "--lora_path pytorch_lora_weights.safetensors --image_path cat.png "
            "--text 'this character sitting on a chair' --output_path output.png --guidance 3.5 "
            "--i_guidance 1.5 --t_guidance 1.2 --steps 3 --height 64 --width 128 --model_offload "
            "--sequential_offload --disable_gemini_prompt --dtype float32"
        )
        assert status == 0
        assert out == "wrote output.png\n"
        found = read_parameters("output.png")
        assert found is not None
        assert (found["i_guidance"], found["t_guidance"]) == (1.5, 1.2)
        assert found["lora"] == ["pytorch_lora_weights.safetensors:1"]

    def test_over_a_mesh(self, dsd, pipe):
        line = (
            f"generate --base_path FLUX --text 'a cat' --mesh.fsdp 2 --output_latents a.npy {SMALL}"
        )
        assert dsd(line)[0] == 0
        expected = pipe("a cat", height=64, width=128, steps=2).latents
        np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-4)

    @pytest.mark.parametrize("function", [generate, batch], ids=["generate", "batch"])
    def test_help_explains_every_flag(self, dsd, function):
        status, out, _ = dsd(f"{function.__name__} --help")
        assert status == 0
        shown = re.sub(r"[\s│]+", " ", out)
        groups = {
            "model": ModelFlags, "mesh": MeshConfig, "settings": Settings, "noise": NoiseFlags,
            "output": Outputs, "enhance": Enhancement, "share": ShareFlags, "marks": MarkFlags,
            "flags": BatchFlags,
        }  # fmt: skip
        parameters = {*inspect.signature(function).parameters, "mesh"}
        flags = {f"--{name}": (function, name) for name in parameters - {*groups, "manifest"}}
        for group in parameters & set(groups):
            for field in dataclasses.fields(groups[group]):
                prefix = "mesh." if group == "mesh" else ""
                flags[f"--{prefix}{field.name}"] = (groups[group], field.name)
        del flags["--mesh"]
        # On by default, so that help says what turning them off does.
        del flags["--vae_sample"], flags["--mark"]
        assert "--no_mark Leave out the mark that a model made the pictures; the" in shown
        assert "--no_vae_sample Encode the reference by the mode of the posterior" in shown
        for flag, (documented, name) in flags.items():
            own = documented.__mro__ if isinstance(documented, type) else (documented,)
            text = "\n".join(each.__doc__ or "" for each in own)  # fields are documented once
            words = re.search(rf"^ +{name}: (.*)$", text, re.MULTILINE)
            assert words, flag
            assert re.search(rf"{flag}[ ,][^-]*.*{re.escape(words[1][:20])}", shown), flag


class TestMistakes:
    """Status 2, one or two lines, no traceback, no file."""

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            (
                "--model_path DSD --text 'a cat' --image_path none.png",
                "there is no image at none.png",
            ),
            ("--text '  '", "text 0 is empty; describe the image that is wanted"),
            ("--text 'a cat' --height 100", "height and width must be positive multiples of 16"),
            ("--text 'a cat' --steps 0", "steps must be from 1 to 1000, got 0"),
            (
                "--text 'a cat' --steps 4 --step_mask 110",
                "the step_mask is for 3 steps, got steps=4",
            ),
            ("--text 'a cat' --step_mask none.toml", "`dsd mask`; there is no file 'none.toml'"),
            (
                "--text 'a cat' --step_mask cat.png",
                "or a file of `dsd mask`; cat.png: byte 1 (0x89",
            ),
            ("--text 'a cat' --guidance nan", "guidance must be a number from 0 up, got nan"),
            ("--text 'a cat' --guidance -1", "guidance must be a number from 0 up, got -1.0"),
            ("--text 'a cat' --i_guidance 2", "i_guidance=2.0 needs a reference image"),
            ("--text 'a cat' --seed -1", "a seed must be from 0 to 4294967295, got -1"),
            ("--text 'a cat' --num_images 0", "num_images must be at least 1, got 0"),
            ("--text 'a cat' --save_frames", "save_frames needs a reference; give image_path"),
            ("--text 'a cat' --output_path .", ". must end in one of .png, .jpg, .jpeg, .webp"),
            ("--text 'a cat' --output_path a.gif", "a.gif must end in one of .png, .jpg, .jp"),
            ("--text 'a cat' --output_latents a.np", "a.np must end in .npy"),
            ("--text 'a cat' --output_path d.png", "d.png is a folder; give a file name"),
            ("--text 'a cat' --output_path f/x/o.png", "cannot write f/x/o.png: f is not a folder"),
            ("--text 'a cat' --latents none.npy", "cannot read the latents none.npy as .npy: No s"),
            ("--text 'a cat' --latents f", "cannot read the latents f as .npy: "),
            ("--text 'a cat' --latents z.npz", "cannot read the latents z.npz as .npy: "),
            ("--text 'a cat' --latents s.npy", "latents must be float32 [1, 16, 128, 128], got fl"),
            ("--text 'a cat' --device tpu", "there is no tpu device here; JAX sees: cpu"),
            ("--text 'a cat' --mesh.data 9", "the mesh needs 9 devices, but JAX sees 8"),
            (
                "--text 'a cat' --mesh.data -1 --mesh.fsdp 3",
                "does not divide 8 devices; choose siz",
            ),
            ("--text 'a cat' --mesh.data 0", "mesh sizes must be positive, at most one of them -1"),
            ("--text 'a cat' --lora_path none.safetensors", "there is no folder or file none.safe"),
            ("--text 'a cat' --model_path nowhere", "there is no folder or file nowhere"),
            ("--text 'a cat' --base_path a/b", "there is no folder a/b, it is not in the hub cach"),
        ],
    )
    def test_generate(self, dsd, tmp_path, no_sampling, flags, complaint):
        (tmp_path / "d.png").mkdir()
        (tmp_path / "f").write_text("a file")
        np.savez(tmp_path / "z.npz", np.zeros(3))
        np.save(tmp_path / "s.npy", np.zeros((1, 16, 8, 8), np.float32))
        before = names(tmp_path)
        base = "" if "--base_path" in flags else "--base_path FLUX"
        status, out, err = dsd(f"generate {base} {flags} --dtype float32")
        assert status == 2
        assert out == ""
        (message,) = [
            line
            for line in err.splitlines()
            if not line.startswith(("opening ", "compiled programs "))
        ]
        assert message.startswith("error: ")
        assert complaint in message
        assert names(tmp_path) == before

    def test_reference_for_a_model_that_takes_none(self, dsd, no_sampling):
        status, _, err = dsd("generate --base_path FLUX --text 'a cat' --image_path cat.png")
        assert status == 2
        assert "no condition embedding, so it cannot take a reference image; give the DSD" in err

    def test_mesh_that_does_not_divide_the_model(self, dsd, tmp_path):
        line = f"generate --base_path FLUX --text 'a cat' --mesh.tensor 8 {SMALL}"
        status, _, err = dsd(line)
        assert status == 2
        assert "cannot shard the parameters over mesh" in err
        assert "Traceback" not in err
        assert names(tmp_path) == ["cat.png"]

    def test_no_permission(self, dsd, tmp_path, monkeypatch):
        monkeypatch.setattr(
            outputs.os, "access", lambda path, mode: False
        )  # root may write anywhere
        status, _, err = dsd("generate --text 'a cat' --output_path o.png")
        assert status == 2
        assert err == "error: cannot write o.png: no permission in .\n"

    def test_latents_that_cannot_be_written(self, tmp_path, monkeypatch):
        def full(file, array):
            file.write(b"half")
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(outputs.np, "save", full)
        made = Generated([], [], np.zeros((1, 16, 2, 2), np.float32), [], [])
        with pytest.raises(UserError, match=r"cannot write .*a\.npy: No space left on device"):
            Places([], [], tmp_path / "new" / "a.npy").write(made)
        assert names(tmp_path / "new") == []

    def test_flags_that_are_none(self, dsd):
        for line in ("generate", "generate --txt a", "generate --text a --steps many", "batch"):
            status, _, err = dsd(line)
            assert status == 2
            assert "Traceback" not in err


class TestDevice:
    def test_one_device_needs_no_mesh(self):
        assert mesh_of(MeshConfig(data=1), None) is None
        assert mesh_of(MeshConfig(data=1), "cpu") is None

    def test_fewer_than_there_are(self):
        mesh = mesh_of(MeshConfig(data=2, fsdp=2), None)
        assert mesh is not None
        assert mesh.devices.size == 4

    def test_cpu_keeps_jax_from_looking_for_others(self, monkeypatch):
        asked = []
        monkeypatch.setattr(jax.config, "update", lambda *args: asked.append(args))
        mesh_of(MeshConfig(data=1), "cpu")
        assert asked == [("jax_platforms", "cpu")]


class TestBatch:
    def test_rows_errors_and_restart(self, dsd, tmp_path):
        rows = [
            {"id": "a", "text": TEXT, "image": "cat.png", "seed": 1},
            {"id": "b", "text": TEXT, "image": "none.png"},
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = f"batch rows.jsonl --output_dir out --base_path FLUX --model_path DSD {SMALL}"
        status, out, err = dsd(f"{line} --mesh.data 1")
        assert status == 1  # a row failed
        report, summary = out.splitlines()
        assert report == "row b: there is no image at none.png"
        assert summary.startswith("1 made, 0 kept from before, 1 failed in ")
        assert "batch: 2/2 images in" in err
        assert names(tmp_path / "out") == ["a.png", "results.jsonl", "sheet.jpg"]
        with Image.open(tmp_path / "out" / "a.png") as image:
            assert image.size == (64, 64)

        picture(1).save(tmp_path / "none.png")
        status, out, _ = dsd(f"{line} --mesh.data 1 --retry-failed")
        assert status == 0
        assert out.startswith("1 made, 1 kept from before, 0 failed in ")

    def test_defaults_of_a_row_are_flags(self, monkeypatch, dsd, tmp_path):
        seen: dict[str, Any] = {}

        def run(pipeline, rows, output_dir, **options):
            seen.update(options, rows=rows)
            return Summary()

        (tmp_path / "rows.csv").write_text("text,steps\na cat,\na dog,9\n")
        monkeypatch.setattr(cli, "run_batch", run)
        status, _, _ = dsd(
            "batch rows.csv --output-dir out --base-path FLUX --guidance 2 --steps 5 "
            "--no_vae_sample --batch_size 4 --shard 1 --num_shards 3 --mesh.data 1"
        )
        assert status == 0
        first, second = (row.settings for row in seen["rows"])
        assert (first.guidance, first.steps, first.vae_sample) == (2.0, 5, False)
        assert second.steps == 9
        assert (seen["batch_size"], seen["share"]) == (4, WorkerShare(1, 3))

    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            ("none.jsonl --output_dir o", "there is no file or folder none.jsonl"),
            ("rows.jsonl --output_dir o --shard 1", "the number of workers is not known; give"),
            ("rows.jsonl --output_dir o --num_shards 2", "the number of this one is not known"),
            ("rows.jsonl --output_dir o --shard 2 --num_shards 2", "shard 2 does not exist amon"),
            ("rows.jsonl --output_dir cat.png", "cannot write to cat.png: "),
            ("rows.jsonl --output_dir o --batch_size 0", "batch_size must be at least 1, got 0"),
        ],
    )
    def test_mistakes(self, dsd, tmp_path, monkeypatch, no_sampling, flags, complaint):
        for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
        before = names(tmp_path)
        status, _, err = dsd(f"batch {flags} --base_path FLUX --mesh.data 1 {SMALL}")
        assert status == 2
        assert f"error: {complaint}" in err or complaint in err
        assert "Traceback" not in err
        assert names(tmp_path) == before

    def test_the_share_of_a_scheduler(self, dsd, monkeypatch, tmp_path):
        """Tasks 1 to 8 of `--array=1-8` are the workers 0 to 7."""
        seen = []

        def run(*arguments, share, **options):
            seen.append(share)
            return Summary()

        monkeypatch.setattr(cli, "run_batch", run)
        (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
        for name, value in {"ID": "8", "MIN": "1", "STEP": "1", "COUNT": "8"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        assert dsd("batch rows.jsonl --output_dir o --base_path FLUX --mesh.data 1")[0] == 0
        assert seen == [WorkerShare(7, 8)]


class TestMask:
    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            ("none.csv", "there is no file or folder none.csv"),
            ("empty.csv", "the manifest empty.csv has no rows; give one for each image"),
            ("rows.csv --images 3", "3 images are needed for the search, the manifest has 1; add"),
            ("rows.csv --images 1 --mesh.data 2", "2 images are needed for the search, the manif"),
            ("rows.csv --images 0", "images must be at least 1, got 0"),
            ("rows.csv --images 1 --trials 0", "trials must be at least 1, got 0"),
            ("rows.csv --images 1 --step_mask 10", "the search finds a mask and takes none; leave"),
            ("rows.csv --images 1 --steps 1", "full must be from 1 to the number of steps, 1; got"),
            ("rows.csv --output_path f/m.toml", "cannot write f/m.toml: f is not a folder"),
        ],
    )
    def test_mistakes(self, dsd, tmp_path, no_sampling, flags, complaint):
        (tmp_path / "f").write_text("a file")
        (tmp_path / "empty.csv").write_text("text\n")
        (tmp_path / "rows.csv").write_text("text\na cat\n")
        before = names(tmp_path)
        place = "" if "--output_path" in flags else "--output_path m.toml"
        size = SMALL if "--steps" not in flags else "--height 64 --width 128"
        mesh = "" if "--mesh" in flags else "--mesh.data 1"
        status, out, err = dsd(f"mask {flags} {place} --full 2 --base_path FLUX {size} {mesh}")
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"error: {complaint}")
        assert ("give --mesh.data 1" in err) == ("--mesh" in flags)
        assert "Traceback" not in err
        assert names(tmp_path) == before
