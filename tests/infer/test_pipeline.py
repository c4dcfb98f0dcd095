"""The pipeline: what it takes and refuses, seeds and batches, notices, metadata, offloading."""

import dataclasses
import gc
import json
import shutil
import weakref
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from dsd_jax import encoders, models
from dsd_jax.config import BFLOAT16, FLOAT32
from dsd_jax.convert import open as opening
from dsd_jax.convert.open import open_flux
from dsd_jax.errors import UserError
from dsd_jax.frames import Canvas
from dsd_jax.images import read_parameters, save_image
from dsd_jax.infer import denoiser
from dsd_jax.infer.options import LoadOptions
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import prepare
from dsd_jax.infer.sampler import Sampler
from dsd_jax.infer.settings import Settings
from dsd_jax.quantise import QuantisedSource
from dsd_jax.toy.making.random_pipeline import SMALL, random_tensors, write_model
from tests.random_flux import CONDITIONAL, TEXT, picture, write_random_lora

SIZE: dict[str, Any] = {"height": 64, "width": 128, "steps": 2}


def close(ours: np.ndarray, theirs: np.ndarray, bound: float = 1e-4) -> bool:
    return bool(np.linalg.norm(ours - theirs) <= bound * np.linalg.norm(theirs))


def load(folder, **options) -> Pipeline:
    given = {"model_path": folder / "dsd", "precision": FLOAT32, **options}
    return Pipeline.load(folder / "flux", **given)


@pytest.fixture(scope="module")
def lora(folder):
    return write_random_lora(folder / "lora.safetensors", CONDITIONAL)


@pytest.fixture(scope="module")
def result(pipe):
    """Two texts, one reference, two images each."""
    return pipe([TEXT, "a dog"], picture(), num_images=2, seed=5, **SIZE)


class TestInputs:
    def test_order_of_images_and_seeds(self, pipe, result):
        assert len(result) == 4
        made = [(p["text"], p["seed"]) for p in result.parameters]
        assert made == [(TEXT, 5), (TEXT, 6), ("a dog", 5), ("a dog", 6)]
        assert result.latents.shape == (4, 16, 8, 16)
        assert result.latents.dtype == np.float32
        assert result[1].size == (64, 64)
        assert [frame.size for frame in result.references] == [(64, 64)] * 4
        images = [np.asarray(image) for image in result]
        assert len({image.tobytes() for image in images}) == 4

    def test_own_references_and_seeds(self, pipe, result):
        again = pipe(["a dog", TEXT], [picture(1), picture()], seed=[9, 6], **SIZE)
        assert close(again.latents[1], result.latents[1])
        assert not close(again.latents[0], result.latents[2], 0.1)

    def test_seeds_from_numpy(self, pipe, result):
        again = pipe(TEXT, picture(), seed=np.array([6, 5]), num_images=2, **SIZE)
        assert close(again.latents, result.latents[[1, 0]])

    def test_an_image_depends_on_its_own_seed(self, pipe, result):
        alone = pipe(TEXT, picture(), seed=6, **SIZE)
        assert close(alone.latents[0], result.latents[1])
        assert close(np.asarray(alone[0], float), np.asarray(result[1], float), 5e-3)

    def test_text_to_image_of_any_size(self, plain):
        made = plain(TEXT, height=32, width=80, steps=2)
        assert made[0].size == (80, 32)
        assert made.references == []
        assert made.latents.shape == (1, 16, 4, 10)

    def test_a_conditional_model_also_paints_without_reference(self, pipe, plain):
        options = {"height": 64, "width": 128, "steps": 2}
        assert close(pipe(TEXT, **options).latents, plain(TEXT, **options).latents)

    def test_the_reference_and_the_text_count(self, pipe, result):
        other = pipe(["a dog", TEXT], [picture(), picture(1)], seed=5, **SIZE)
        assert not close(other.latents[0], result.latents[0], 0.01)
        assert not close(other.latents[1], result.latents[0], 0.01)

    @pytest.mark.parametrize(
        ("text", "options", "complaint"),
        [
            ([], {}, "there is no text"),
            ("  \n", {}, "text 0 is empty; describe the image"),
            ([TEXT, ""], {}, "text 1 is empty"),
            ("a cat \ud83d", {}, r"the text holds the half character \\ud83d, which UTF-8 cannot"),
            (TEXT, {"negative_prompt": "\udce9"}, "the negative prompt holds the byte 0xe9"),
            ([TEXT] * 3, {"image": [picture()] * 2}, "3 texts but 2 images; give one image, or"),
            (TEXT, {"num_images": 0}, "num_images must be at least 1, got 0"),
            (TEXT, {"num_images": 3, "seed": [1, 2]}, "3 images but 2 seeds; give one seed"),
            (TEXT, {"seed": -1}, "a seed must be from 0 to 4294967295, got -1"),
            (TEXT, {"seed": 2**32 - 1, "num_images": 2}, "to 4294967295, got 4294967296"),
            (TEXT, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
            (TEXT, {"image": "nowhere.png"}, "there is no image at nowhere.png"),
        ],
    )
    def test_refusals(self, pipe, text, options, complaint):
        with pytest.raises(UserError, match=complaint):
            pipe(text, **{"image": picture(), **SIZE, **options})

    def test_reference_for_a_model_that_takes_none(self, plain):
        with pytest.raises(
            UserError, match="no condition embedding, so it cannot take a reference"
        ):
            plain(TEXT, picture(), **SIZE)


class TestLatents:
    def test_in_and_out(self, pipe):
        noise = np.random.default_rng(0).standard_normal((2, 16, 8, 16)).astype(np.float32)
        options = {**SIZE, "vae_sample": False}
        both = pipe([TEXT, TEXT], picture(), latents=noise, seed=[1, 2], **options)
        # With the mode of the posterior, nothing is left that depends on the seed.
        second = pipe(TEXT, picture(), latents=noise[1:], seed=77, **options)
        assert close(second.latents[0], both.latents[1])
        assert both.parameters[0]["noise"] == "given"

    def test_steps_move_latents_along_the_velocity(self, pipe):
        noise = np.random.default_rng(0).standard_normal((1, 16, 8, 16)).astype(np.float32)
        options = {**SIZE, "latents": noise, "vae_sample": False}

        def first_step(steps: int) -> np.ndarray:
            """The change by the first of `steps` steps, per unit of time."""
            watched = {**options, "steps": steps, "callback": lambda i, n, img: True}
            times = pipe.schedule.timesteps(steps, 32)
            return (pipe(TEXT, picture(), **watched).latents - noise) / (times[1] - times[0])

        assert close(first_step(1), first_step(2))

    @pytest.mark.parametrize(
        ("latents", "got"),
        [
            (np.zeros((1, 16, 8, 8), np.float32), r"float32 \[1, 16, 8, 8\]"),
            (np.zeros((2, 16, 8, 16), np.float32), r"float32 \[2, 16, 8, 16\]"),
            (np.zeros((1, 16, 8, 16)), r"float64 \[1, 16, 8, 16\]"),
        ],
    )
    def test_wrong_shape_or_dtype(self, pipe, latents, got):
        complaint = rf"latents must be float32 \[1, 16, 8, 16\], got {got}"
        with pytest.raises(UserError, match=complaint):
            pipe(TEXT, picture(), latents=latents, **SIZE)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"height": 0}, "positive multiples of 16 pixels, got 0x0"),
            ({"height": -64}, "positive multiples of 16 pixels"),
            ({"height": 100}, "got 100x200; the nearest is 96x192"),
            ({"width": 1008}, "width holds two frames, so it must be a multiple of 32 pixels, got"),
            ({"height": 65_536}, "65536x131072 pixels are more than the 67,108,864 accepted"),
            ({"steps": 0}, "steps must be from 1 to 1000, got 0"),
            ({"steps": 1001}, "steps must be from 1 to 1000, got 1001"),
            ({"guidance": -1.0}, "guidance must be a number from 0 up, got -1.0"),
            ({"guidance": float("nan")}, "guidance must be a number from 0 up, got nan"),
            ({"i_guidance": float("inf")}, "i_guidance must be a number from 0 up, got inf"),
            ({"t_guidance": float("nan")}, "t_guidance must be a number from 0 up, got nan"),
        ],
    )
    def test_refusals(self, settings, complaint):
        with pytest.raises(UserError, match=complaint):
            Settings(**settings).checked(two_frames=True, downscale=8)

    def test_true_guidance_needs_a_reference(self):
        with pytest.raises(UserError, match=r"i_guidance=1\.5 needs a reference image"):
            Settings(i_guidance=1.5).checked(two_frames=False, downscale=8)

    def test_default_sizes(self):
        assert Settings().checked(two_frames=True, downscale=8).size == (512, 1024)
        assert Settings().checked(two_frames=False, downscale=8).size == (1024, 1024)
        assert Settings(height=256).checked(two_frames=True, downscale=8).size == (256, 512)
        assert Settings(height=256).checked(two_frames=False, downscale=8).size == (256, 256)
        assert Settings(width=768).checked(two_frames=True, downscale=8).size == (512, 768)

    def test_no_size_before_the_check(self):
        with pytest.raises(ValueError, match="no size before they are checked"):
            _ = Settings().size


class TestNotices:
    @pytest.mark.parametrize(
        ("settings", "notices"),
        [
            ({}, []),
            ({"i_guidance": 1.5, "t_guidance": 2.0, "negative_prompt": "a dog"}, []),
            ({"t_guidance": 2.0}, ["t_guidance=2.0 has no effect: i_guidance is not above 1"]),
            ({"i_guidance": 0.5}, ["i_guidance=0.5 has no effect: i_guidance is not above 1"]),
            (
                {"negative_prompt": "a dog"},
                ["negative_prompt='a dog' has no effect: i_guidance is not above 1"],
            ),
        ],
    )
    def test_settings_without_effect(self, pipe, settings, notices):
        checked = pipe.check(Settings(**SIZE | settings), two_frames=True)
        prepared = prepare(pipe.tokenizers, [TEXT], None, np.zeros(1, np.uint32), checked)
        assert prepared.notices == [notices]

    def test_what_is_cut_is_said(self, pipe):
        words = [f"{colour} cat" for colour in ("red", "blue", "green")] * 100
        settings = pipe.check(Settings(), two_frames=False)
        texts = [" ".join(words), TEXT]
        seeds = np.zeros(2, np.uint32)
        (t5, clip), none = prepare(pipe.tokenizers, texts, None, seeds, settings).notices
        assert none == []
        assert t5.startswith("text cut at 512 T5 tokens; left out: '")
        assert clip.startswith("text cut at 77 CLIP tokens; left out: '")
        left_out = clip.split("'")[1]
        assert " ".join(words).endswith(left_out)
        assert len(left_out.split()) > 500

    def test_they_come_with_the_images(self, pipe):
        made = pipe(TEXT, picture(), t_guidance=3.0, **SIZE)
        assert made.notices == ["t_guidance=3.0 has no effect: i_guidance is not above 1"]


class TestParameters:
    def test_in_the_png_there_and_back(self, pipe, result, tmp_path):
        save_image(result[3], tmp_path / "a.png", result.parameters[3])
        found = read_parameters(tmp_path / "a.png")
        assert found is not None
        assert found["model"] == "transformer"
        assert found["dtype"] == "float32"
        assert found["noise"] == "of the seed"
        assert found["program"].startswith("dsd-jax ")
        assert not {"guidance_every", "solver"} & set(found)  # as before they existed
        names = {f.name for f in dataclasses.fields(Settings)} & set(found)
        settings = {name: found[name] for name in names}
        again = pipe(found["text"], picture(), seed=found["seed"], **settings)
        assert close(again.latents[0], result.latents[3])

    def test_images_show_something(self, result):
        for image in (*result, *result.references):
            assert np.asarray(image).std() > 1


class TestLoading:
    def test_weights_that_are_not_finite(self, folder, tmp_path):
        tensors = random_tensors(CONDITIONAL, 0)
        tensors["single_blocks.1.mlp_in.kernel"][3, 5] = np.nan
        write_model(tmp_path / "broken", CONDITIONAL, tensors)
        pipe = load(folder, model_path=tmp_path / "broken")
        with pytest.raises(UserError, match="values that are not finite; try --dtype float32"):
            pipe(TEXT, picture(), **SIZE)

    def test_bfloat16(self, folder, result):
        made = load(folder, precision=BFLOAT16)(TEXT, picture(), seed=5, **SIZE)
        assert made.latents.dtype == np.float32
        assert close(made.latents[0], result.latents[0], 0.05)
        assert made.parameters[0]["dtype"] == "bfloat16"

    def test_lora_by_path_scale_and_merged(self, folder, lora, result):
        def latents(**options):
            return load(folder, **options)(TEXT, picture(), seed=5, **SIZE).latents

        whole = latents(lora_path=lora)
        assert not close(whole, result.latents[:1], 0.05)
        assert close(latents(lora_path=lora, merge_lora=True), whole)
        assert close(latents(lora_path=[lora], lora_scale=[0.0]), result.latents[:1])
        assert close(latents(lora_path=[lora, lora], lora_scale=0.5), whole)

    def test_weights_in_eight_bits(self, folder, result):
        pipe = load(folder, weights="int8")
        made = pipe(TEXT, picture(), seed=5, **SIZE)
        assert close(made.latents[0], result.latents[0], 0.03)
        assert not close(made.latents[0], result.latents[0])
        assert made.parameters[0]["weights"] == "int8"
        assert "weights" not in result.parameters[0]
        with pipe._text.use("nothing") as text:
            dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(text._t5)}
        assert "int8" in dtypes

    def test_a_lora_is_not_merged_into_eight_bits(self, folder):
        with pytest.raises(UserError, match="cannot be merged into int8 or int4 weights"):
            load(folder, weights="int8", merge_lora=True)

    def test_nor_into_weights_that_are_kept_in_eight_bits(self, folder, lora):
        """This is said before any model is read."""
        parts = open_flux(folder / "flux", folder / "dsd")
        kernels = {"double_blocks.0.img_attn.qkv.kernel": 1}
        source = QuantisedSource(parts.transformer.source, kernels, "int8")
        kept = dataclasses.replace(parts.transformer, source=source)
        pipe = Pipeline(
            dataclasses.replace(parts, transformer=kept), options=LoadOptions(merge_lora=True)
        )
        with pytest.raises(UserError, match="cannot be merged into int8 or int4 weights"):
            pipe.add_lora(lora)
        assert pipe.loras == {}

    def test_a_lora_can_bring_the_condition_embedding(self, folder, tmp_path):
        file = write_random_lora(tmp_path / "full.safetensors", CONDITIONAL, full=True)
        pipe = load(folder, model_path=None, lora_path=file)
        assert pipe.transformer_config.condition_embed
        made = pipe(TEXT, picture(), **SIZE)
        assert made.parameters[0]["lora"] == ["full.safetensors:1"]

    def test_as_many_scales_as_files(self, folder, lora):
        with pytest.raises(UserError, match="1 LoRA files but 2 scales; give as many"):
            load(folder, lora_path=lora, lora_scale=[1.0, 2.0])

    def test_model_path_may_be_the_release_or_its_transformer(self, folder):
        for path in (folder / "dsd", folder / "dsd" / "transformer", str(folder / "dsd")):
            assert load(folder, model_path=path).transformer_config.condition_embed

    def test_not_a_transformer(self, folder):
        with pytest.raises(UserError, match="vae holds an autoencoder; a FLUX transformer"):
            load(folder, model_path=folder / "flux" / "vae")

    @pytest.mark.parametrize("channels", [384, 128], ids=["Fill", "Canny"])
    def test_models_that_need_other_inputs(self, folder, tmp_path, channels):
        config = dataclasses.replace(SMALL.transformer, in_channels=channels)
        write_model(tmp_path / "fill", config, random_tensors(config, 0))
        complaint = f"fill takes {channels} channels per token, where plain FLUX takes 64: models"
        with pytest.raises(UserError, match=complaint):
            load(folder, model_path=tmp_path / "fill")
        with pytest.raises(UserError, match=complaint):  # as training opens it
            open_flux(folder / "flux", tmp_path / "fill", condition=True)

    @pytest.mark.parametrize(
        ("part", "complaint"),
        [
            ("transformer", "transformer does not exist; give a folder with safetensors weights"),
            ("vae", "vae does not exist"),
            ("text_encoder_2", "text_encoder_2 does not exist"),
            ("tokenizer", "has no folder tokenizer/; give a FLUX.1 folder in diffusers layout"),
            ("scheduler", r"scheduler_config\.json is missing; download the folder again"),
        ],
    )
    def test_missing_part(self, folder, tmp_path, part, complaint):
        flux = shutil.copytree(folder / "flux", tmp_path / "flux")
        shutil.rmtree(flux / part)
        with pytest.raises(UserError, match=complaint):
            Pipeline.load(flux)

    def test_parts_in_the_wrong_place(self, folder, tmp_path):
        flux = shutil.copytree(folder / "flux", tmp_path / "flux")
        shutil.rmtree(flux / "text_encoder")
        (flux / "text_encoder_2").rename(flux / "text_encoder")
        (flux / "vae").rename(flux / "text_encoder_2")
        shutil.copytree(folder / "flux" / "vae", flux / "vae")
        with pytest.raises(
            UserError, match="text_encoder_2 holds an autoencoder; a T5 encoder is expected here"
        ):
            Pipeline.load(flux)

    def test_a_bucket_as_base(self, monkeypatch):
        monkeypatch.setattr("dsd_jax.convert.hub.require", lambda extra: None)
        with pytest.raises(UserError, match="gs://b/flux: base_path must be a local folder"):
            Pipeline.load("gs://b/flux")

    def test_fetches_no_more_than_it_needs(self, folder, monkeypatch):
        asked: dict[Any, Any] = {}

        def resolve(path, files=None):
            asked.setdefault(path, files)
            return path

        monkeypatch.setattr(opening, "resolve", resolve)
        for options in ({}, {"model_path": folder / "dsd"}):
            asked.clear()
            Pipeline.load(folder / "flux", **options)
            files = asked[folder / "flux"]
            assert ("transformer/*" in files) == (not options)
            assert "vae/*" in files
            assert not any(f.startswith("*") for f in files)  # not the second copy of the weights

    def test_schedule_is_that_of_the_folder(self, folder, tmp_path):
        flux = shutil.copytree(folder / "flux", tmp_path / "flux")
        path = flux / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": False}))
        assert not Pipeline.load(flux).schedule.dynamic


def replace_load(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    for module in (encoders, denoiser):
        monkeypatch.setattr(module, "load", load)


class TestSizes:
    def test_only_a_few_sizes_are_kept_in_memory(self, pipe, monkeypatch):
        cleared = []
        monkeypatch.setattr(denoiser.jax, "clear_caches", lambda: cleared.append(True))
        pipe(TEXT, **SIZE)
        own = pipe._denoiser.value
        samplers = [own.sampler(Canvas(8, 2 * i)) for i in range(1, denoiser.MAX_CANVASES + 2)]
        assert cleared == [True]
        assert len(own._samplers) <= denoiser.MAX_CANVASES
        assert own.sampler(samplers[-1].programs.canvas) is samplers[-1]


class TestOffload:
    def test_models_one_after_another(self, folder, result, monkeypatch):
        alive: list[weakref.ref] = []

        def load_alone(model, *args, **kwargs):
            left = [ref for ref in alive if ref() is not None]
            seen.append((type(model).__name__, len(left)))
            loaded = models.load(model, *args, **kwargs)
            alive.extend(weakref.ref(x) for x in jax.tree.leaves(nnx.state(loaded)))
            return loaded

        seen: list[tuple[str, int]] = []
        freed: list[list[bool]] = []
        run = Sampler.run

        def run_watched(self, *args):
            parts = self.making, self.using
            freed.append([all(x.is_deleted() for x in jax.tree.leaves(p)) for p in parts])
            return run(self, *args)

        monkeypatch.setattr(Sampler, "run", run_watched)
        pipe = load(folder, offload="model")
        replace_load(monkeypatch, load_alone)
        made = pipe(TEXT, picture(), seed=5, **SIZE)
        assert freed == [[True, False]]  # the loop holds no weights of modulations
        assert close(made.latents, result.latents[:1])
        # CLIP joins T5; before every other model nothing of those before is left.
        assert [(name, left > 0) for name, left in seen] == [
            ("T5Encoder", False),
            ("ClipTextEncoder", True),
            ("Autoencoder", False),
            ("Flux", False),
            ("Autoencoder", False),
        ]

    def test_without_offloading_models_are_loaded_once(self, folder, monkeypatch):
        seen = []

        def load_once(model, *args, **kwargs):
            seen.append(type(model).__name__)
            return models.load(model, *args, **kwargs)

        replace_load(monkeypatch, load_once)
        pipe = load(folder)
        for _ in range(2):
            pipe(TEXT, picture(), **SIZE)
        assert sorted(seen) == ["Autoencoder", "ClipTextEncoder", "Flux", "T5Encoder"]

    def test_layers_in_host_memory(self, folder, lora, result, monkeypatch):
        monkeypatch.setattr(models, "LARGE", 256)
        kept = []

        def load_streamed(model, *args, **kwargs):
            loaded = models.load(model, *args, **kwargs)
            flat = nnx.to_flat_state(nnx.state(loaded))
            kinds = {".".join(map(str, p)): v[...].sharding.memory_kind for p, v in flat}
            kept.append((type(loaded).__name__, kinds))
            return loaded

        replace_load(monkeypatch, load_streamed)
        made = load(folder, offload="layers")(TEXT, picture(), seed=5, **SIZE)
        assert close(made.latents, result.latents[:1])
        flux = dict(kept)["Flux"]
        assert flux["double_blocks.img_attn.qkv.kernel"] == "pinned_host"
        assert flux["single_blocks.linear2.mlp_kernel"] == "pinned_host"
        assert flux["single_blocks.linear2.bias"] == "device"
        assert flux["img_in.kernel"] == "device"
        assert dict(kept)["T5Encoder"]["blocks.mlp.wo.kernel"] == "pinned_host"
        gc.collect()

    def test_merged_lora_in_host_memory(self, folder, lora, monkeypatch):
        monkeypatch.setattr(models, "LARGE", 256)

        def latents(**options):
            pipe = load(folder, lora_path=lora, **options)
            return pipe(TEXT, picture(), **SIZE).latents

        whole = latents()
        assert close(latents(offload="layers", merge_lora=True), whole)
        assert close(latents(offload="layers"), whole)
