"""Whole conversions: there and back without losing a bit, and nothing left behind by an error."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from flax import nnx

from dsd_jax.config import FLOAT32
from dsd_jax.convert import jobs, writer
from dsd_jax.convert.jobs import MODELS, to_jax, to_torch
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_component
from dsd_jax.errors import UserError
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.lora import MergedSource
from dsd_jax.models import abstract, load
from dsd_jax.toy.making.random_pipeline import (
    SMALL,
    random_tensors,
    write_model,
    write_random_pipeline,
)
from tests.random_flux import CONDITIONAL, TEXT, compile_once, picture, write_random_lora

OTHERS = ("tokenizer", "tokenizer_2", "scheduler")


def contents(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """(dtype, shape, bytes) of every tensor, by the safetensors library."""
    (file,) = [folder] if folder.is_file() else folder.glob("*.safetensors")
    return {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(file.read_bytes())
    }


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same pipeline as it was, converted to JAX, and back; the transformer takes references."""
    root = tmp_path_factory.mktemp("converted")
    compile_once(tmp_path_factory)
    write_random_pipeline(root / "flux", dataclasses.replace(SMALL, transformer=CONDITIONAL))
    assert to_jax(root / "flux", root / "jax") == []
    assert to_torch(root / "jax", root / "torch") == []
    return root


@pytest.fixture
def transformer(folders) -> Path:
    return folders / "flux" / "transformer"


@pytest.fixture(scope="module")
def kept(folders):
    """The same pipeline in few bits."""
    assert to_jax(folders / "flux", folders / "int8", weights="int8", dtype=np.float32) == []
    return folders / "int8"


class TestFewBits:
    """The transformer of the tests is too small for int4's groups of 32 inputs."""

    @pytest.mark.parametrize("model", ["transformer", "text_encoder_2"])
    def test_kept_numbers_are_those_that_loading_makes(self, folders, kept, model):
        def loaded(component) -> dict[str, np.ndarray]:
            kind = component.settle("int8")
            empty = abstract(component.config, precision=FLOAT32, weights=kind)
            flat = nnx.to_flat_state(nnx.state(load(empty, component.source)))
            return {".".join(map(str, path)): np.asarray(value[...]) for path, value in flat}

        made = loaded(open_component(folders / "flux" / model))
        read = loaded(open_component(kept / model))
        assert any(value.dtype == np.int8 for value in made.values())
        for path, value in made.items():
            assert read[path].dtype == value.dtype
            assert (read[path] == value).all(), path

    @pytest.mark.parametrize("model", ["vae", "text_encoder"])
    def test_other_models_stay_as_they_are(self, folders, kept, model):
        mine, whole = (open_component(folders / name / model).source for name in ("int8", "jax"))
        assert mine.dtypes == whole.dtypes

    def test_a_second_conversion_leaves_codes_alone(self, kept, tmp_path):
        to_jax(kept / "transformer", tmp_path / "again", dtype=ml_dtypes.bfloat16)
        was, now = (open_component(p).source for p in (kept / "transformer", tmp_path / "again"))
        path = "single_blocks.0.mlp_in.kernel"
        every = (slice(None),) * 2
        assert (was.read(path, every) == now.read(path, every)).all()
        assert now.dtypes[f"{path}_scale"] == np.float32
        assert now.dtypes["img_in.kernel"] == ml_dtypes.bfloat16

    def test_another_kind_is_refused(self, kept, tmp_path):
        with pytest.raises(UserError, match="holds int8 weights, which cannot become int4; leave"):
            to_jax(kept / "transformer", tmp_path / "again", weights="int4")
        assert not list(tmp_path.iterdir())

    def test_a_model_without_codes_is_refused(self, folders, tmp_path):
        with pytest.raises(UserError, match=r"neither a FLUX transformer nor T5.*leave out --weig"):
            to_jax(folders / "flux" / "vae", tmp_path / "vae", weights="int8")

    def test_pytorch_gets_no_codes(self, kept, tmp_path):
        complaint = "holds int8 weights .* formats lack; convert the weights that they were made fr"
        with pytest.raises(UserError, match=complaint):
            to_torch(kept / "transformer", tmp_path / "torch")
        assert not list(tmp_path.iterdir())


class TestThereAndBack:
    @pytest.mark.parametrize("model", MODELS)
    def test_tensors_keep_their_bytes(self, folders, model):
        original = contents(folders / "flux" / model)
        assert contents(folders / "torch" / model) == original
        assert len(original) > 20
        assert tree(folders / "torch" / model) == [
            *sorted(p.name for p in (folders / "flux" / model).iterdir()),
            "source.json",
        ]

    @pytest.mark.parametrize("model", MODELS)
    def test_configs_are_equivalent(self, folders, model):
        config = open_component(folders / "flux" / model).config
        texts = [folders / name / model / "config.json" for name in ("flux", "jax", "torch")]
        assert len({path.read_text() for path in texts}) == 1
        assert open_component(folders / "jax" / model).config == config

    def test_other_files_are_copied(self, folders):
        for name in ("jax", "torch"):
            assert sorted(p.name for p in (folders / name).iterdir()) == sorted(
                p.name for p in (folders / "flux").iterdir()
            )
            for file in (f for o in OTHERS for f in (folders / "flux" / o).iterdir()):
                copy = folders / name / file.relative_to(folders / "flux")
                assert copy.read_bytes() == file.read_bytes()
            index = "model_index.json"
            assert (folders / name / index).read_text() == (folders / "flux" / index).read_text()

    def test_images_are_identical(self, folders):
        options: dict[str, Any] = {"height": 64, "width": 128, "steps": 2, "seed": 3}
        made = [
            Pipeline.load(folders / name, precision=FLOAT32)(TEXT, picture(), **options)
            for name in ("flux", "jax", "torch")
        ]
        for other in made[1:]:
            np.testing.assert_array_equal(other.latents, made[0].latents)
            np.testing.assert_array_equal(np.asarray(other[0]), np.asarray(made[0][0]))
        assert [m.parameters[0]["model"].split("/")[1] for m in made] == ["transformer"] * 3

    @pytest.mark.parametrize("model", MODELS)
    def test_origin_is_recorded_through_both(self, folders, model):
        (file,) = (folders / "flux" / model).glob("*.safetensors")
        digest = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
        for name in ("jax", "torch"):
            record = json.loads((folders / name / model / "source.json").read_text())
            assert (record.pop("path"), record.pop("sha256")) == (model, digest)
            assert record.keys() == ({"tensors", "config", "digest"} if name == "jax" else set())


class TestOneModel:
    def test_folder(self, folders, transformer, tmp_path):
        to_jax(transformer, tmp_path / "jax")
        assert sorted(p.name for p in (tmp_path / "jax").iterdir()) == [
            "config.json",
            "params",
            "source.json",
        ]
        to_torch(tmp_path / "jax", tmp_path / "torch")
        assert contents(tmp_path / "torch") == contents(transformer)

    @pytest.mark.parametrize("model", ["transformer", "vae"])
    def test_bfl_layout_out_and_in(self, folders, tmp_path, model):
        source = folders / "jax" / model
        to_torch(source, tmp_path / "bfl", layout="bfl")
        known = {
            "transformer": "double_blocks.0.img_attn.qkv.weight",
            "vae": "encoder.mid.attn_1.q",
        }
        names = contents(tmp_path / "bfl")
        assert any(name.startswith(known[model]) for name in names)
        assert names.keys() != contents(folders / "flux" / model).keys()
        to_torch(tmp_path / "bfl", tmp_path / "back")
        assert contents(tmp_path / "back") == contents(folders / "flux" / model)
        to_jax(tmp_path / "bfl", tmp_path / "jax")
        to_torch(tmp_path / "jax", tmp_path / "again")
        assert contents(tmp_path / "again") == contents(folders / "flux" / model)

    def test_pipeline_in_bfl_layout_keeps_text_encoders(self, folders, tmp_path):
        to_torch(folders / "flux", tmp_path / "bfl", layout="bfl")
        for model in ("text_encoder", "text_encoder_2"):
            assert contents(tmp_path / "bfl" / model) == contents(folders / "flux" / model)
        assert "img_in.weight" in contents(tmp_path / "bfl" / "transformer")

    def test_single_file(self, folders, transformer, tmp_path):
        to_torch(transformer, tmp_path / "new" / "one.safetensors", layout="bfl")
        assert tree(tmp_path) == ["new", "new/one.safetensors"]
        assert "img_in.weight" in contents(tmp_path / "new" / "one.safetensors")

    def test_text_encoder_has_no_bfl_file(self, folders, tmp_path):
        with pytest.raises(UserError, match="there is no bfl layout for T5Config; use diffusers"):
            to_torch(folders / "jax" / "text_encoder_2", tmp_path / "a.safetensors", layout="bfl")
        assert tree(tmp_path) == []

    def test_dtype(self, folders, transformer, tmp_path):
        to_torch(transformer, tmp_path / "torch", dtype="bfloat16")
        to_jax(transformer, tmp_path / "jax", dtype="bfloat16")
        to_torch(tmp_path / "jax", tmp_path / "both")
        cast = contents(tmp_path / "torch")
        assert cast == contents(tmp_path / "both")
        for name, (dtype, shape, data) in contents(transformer).items():
            values = np.frombuffer(data, np.float32).astype(ml_dtypes.bfloat16)
            assert (dtype, cast[name]) == ("F32", ("BF16", shape, values.tobytes()))

    def test_bfloat16_stays(self, tmp_path):
        tensors = random_tensors(SMALL.vae, 0, ml_dtypes.bfloat16)
        write_model(tmp_path / "vae", SMALL.vae, tensors)
        to_jax(tmp_path / "vae", tmp_path / "jax")
        to_torch(tmp_path / "jax", tmp_path / "torch")
        assert contents(tmp_path / "torch") == contents(tmp_path / "vae")


class TestMergedLora:
    def test_weights_with_the_lora(self, folders, transformer, tmp_path):
        file = write_random_lora(tmp_path / "lora.safetensors", CONDITIONAL)
        adapter, _ = read_lora(file, CONDITIONAL)
        to_torch(folders / "jax", tmp_path / "merged", adapters=[(adapter, 0.5)])
        merged = open_component(tmp_path / "merged" / "transformer").source
        expected = MergedSource(open_component(transformer).source, [(adapter, 0.5)])
        changed = 0
        for path, shape in expected.shapes.items():
            index = tuple(slice(0, n) for n in shape)
            np.testing.assert_array_equal(merged.read(path, index), expected.read(path, index))
            before = open_component(transformer).source.read(path, index)
            changed += not np.array_equal(before, merged.read(path, index))
        assert changed == 2 * 4 + 3  # qkv and proj of two streams in two blocks, qkv of three
        record = json.loads((tmp_path / "merged" / "transformer" / "source.json").read_text())
        assert record["lora"] == {"lora.safetensors": 0.5}
        assert len(record["sha256"]) == 1
        assert contents(tmp_path / "merged" / "vae") == contents(folders / "flux" / "vae")
        assert "lora" not in json.loads((tmp_path / "merged/vae/source.json").read_text())

    def test_condition_embedding_of_the_lora(self, tmp_path):
        write_model(tmp_path / "base", SMALL.transformer, random_tensors(SMALL.transformer, 0))
        file = write_random_lora(tmp_path / "lora.safetensors", SMALL.transformer, full=True)
        adapter, _ = read_lora(file, SMALL.transformer)
        to_torch(tmp_path / "base", tmp_path / "merged", adapters=[(adapter, 1.0)])
        merged = open_component(tmp_path / "merged")
        assert merged.config == CONDITIONAL
        kernel = merged.source.read("cond_in.kernel", (slice(None), slice(None)))
        np.testing.assert_array_equal(kernel, adapter.full["cond_in.kernel"])

    def test_only_into_a_transformer(self, folders, tmp_path):
        adapter, _ = read_lora(
            write_random_lora(tmp_path / "lora.safetensors", CONDITIONAL), CONDITIONAL
        )
        with pytest.raises(UserError, match="vae is not a FLUX transformer; a LoRA can only be"):
            to_torch(folders / "flux" / "vae", tmp_path / "out", adapters=[(adapter, 1.0)])
        assert tree(tmp_path) == ["lora.safetensors"]


class TestErrors:
    """A message, and nothing left behind."""

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    def test_target_exists(self, transformer, tmp_path, convert):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("kept")
        with pytest.raises(UserError, match="out exists already; remove it or choose another dest"):
            convert(transformer, tmp_path / "out")
        assert tree(tmp_path) == ["out", "out/mine"]

    def test_single_file_exists(self, transformer, tmp_path):
        file = tmp_path / "a.safetensors"
        file.write_text("kept")
        with pytest.raises(UserError, match=r"a\.safetensors exists already; give another output"):
            to_torch(transformer, file)
        assert file.read_text() == "kept"
        to_torch(transformer, file, overwrite=True)
        assert contents(file) == contents(transformer)

    def test_a_pipeline_does_not_go_into_one_file(self, folders, tmp_path):
        with pytest.raises(
            UserError, match="holds 4 models, which do not go into one file; give a"
        ):
            to_torch(folders / "flux", tmp_path / "a.safetensors")
        assert tree(tmp_path) == []

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    def test_target_below_a_file(self, transformer, tmp_path, convert):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            UserError, match=r"cannot write .*file/out: .*; nothing was left behind"
        ):
            convert(transformer, tmp_path / "file" / "out")
        assert tree(tmp_path) == ["file"]

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    def test_no_permission(self, transformer, tmp_path, monkeypatch, convert):
        def refuse(self, *args, **kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(jobs.epath.Path("x").__class__, "mkdir", refuse)
        with pytest.raises(UserError, match=r"cannot write .*/new/out: Permission denied; nothing"):
            convert(transformer, tmp_path / "new" / "out")
        assert tree(tmp_path) == []

    @pytest.mark.parametrize("target", ["new/deep/out", "new/a.safetensors"])
    def test_disk_full_from_the_start(self, transformer, tmp_path, monkeypatch, target):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"no space left in .*new.*: needs .* GB, has 0\.00 GB"):
            to_torch(transformer, tmp_path / target)
        assert tree(tmp_path) == []

    @pytest.mark.parametrize("target", ["new/deep/out", "new/a.safetensors"])
    def test_disk_full_on_the_way(self, transformer, tmp_path, monkeypatch, target):
        written = []
        real = os.pwrite

        def full(fd, data, offset):
            written.append(fd)
            if len(written) > 10:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        monkeypatch.setattr(writer.os, "pwrite", full)
        with pytest.raises(UserError, match=r"no space left in .*new") as caught:
            to_torch(transformer, tmp_path / target)
        assert ".part" not in str(caught.value)
        assert tree(tmp_path) == []

    def test_disk_full_in_the_second_model(self, folders, tmp_path, monkeypatch):
        saved = []

        def save(path, tensors):
            saved.append(path)
            if len(saved) == 2:
                raise UserError(f"cannot write {path}: No space left on device")
            path.mkdir(parents=True)

        monkeypatch.setattr(jobs, "save_params", save)
        with pytest.raises(UserError, match=r"cannot write .*/new/out/vae/params: No space left"):
            to_jax(folders / "flux", tmp_path / "new" / "out")
        assert tree(tmp_path) == []

    def test_interruption(self, folders, tmp_path, monkeypatch):
        def interrupted(*args, **settings):
            raise KeyboardInterrupt

        monkeypatch.setattr(jobs, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            to_jax(folders / "flux", tmp_path / "new" / "out")
        assert tree(tmp_path) == []

    def test_what_a_killed_run_left_is_replaced(self, transformer, tmp_path):
        left = tmp_path / ".out.part" / "params"
        left.mkdir(parents=True)
        (left / "half").write_text("")
        to_jax(transformer, tmp_path / "out")
        assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208 -- the names, hidden ones too

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    @pytest.mark.parametrize(
        ("damage", "complaint"),
        [
            (shutil.rmtree, "does not exist; give a folder with safetensors weights"),
            (
                lambda f: (f / "config.json").unlink(),
                r"transformer has no config\.json, which tells",
            ),
            (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
            (
                lambda f: (f / "config.json").write_text('{"_class_name": "Unet"}'),
                r"config\.json describes a Unet; expected a FLUX transformer",
            ),
            (
                lambda f: os.truncate(next(f.glob("*.safetensors")), 100_000),
                "not a valid safetensors file: it is truncated",
            ),
        ],
        ids=["no folder", "no config", "corrupt config", "unknown class", "truncated"],
    )
    def test_broken_source(self, transformer, tmp_path, convert, damage, complaint):
        source = shutil.copytree(transformer, tmp_path / "source" / "transformer")
        damage(source)
        with pytest.raises(UserError, match=complaint):
            convert(source, tmp_path / "new" / "out")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    def test_a_part_of_a_pipeline_without_config(self, folders, tmp_path, convert):
        # It must not be left out in silence.
        source = shutil.copytree(folders / "flux", tmp_path / "flux")
        (source / "vae" / "config.json").unlink()
        with pytest.raises(UserError, match=r"vae has no config\.json"):
            convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("convert", [to_jax, to_torch])
    def test_a_folder_of_nothing(self, tmp_path, convert):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="empty holds no safetensors weights; check the path"):
            convert(tmp_path / "empty", tmp_path / "out")

    def test_buckets_without_their_library(self, transformer, monkeypatch):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(UserError, match=r"gs:// paths needs gcsfs; install it with: pip"):
            to_jax(transformer, "gs://b/x")
