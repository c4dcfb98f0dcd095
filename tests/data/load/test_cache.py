"""Encoding a dataset once: the same numbers as encoding on the fly, bound to what made them."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dsd_jax import cli
from dsd_jax.autoencoder import Autoencoder, Tiling
from dsd_jax.config import FLOAT32, AutoencoderConfig
from dsd_jax.data.load.cache import encode_pairs
from dsd_jax.data.load.encoded import Binding, EncodedPair, EncodedStore, weights_digest
from dsd_jax.data.load.loader import Loader, LoaderConfig
from dsd_jax.data.load.mixture import Portion
from dsd_jax.data.load.prefetch import prefetch_to_mesh
from dsd_jax.data.pairs.report import verify_folder
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.encoders import ImageCodec
from dsd_jax.errors import UserError
from dsd_jax.images import fit, open_image, to_array
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.toy.making.random_pipeline import write_random_pipeline
from tests.tiny_modules import random_module
from tests.tiny_pairs import write_pairs

SIZES = ((32, 32), (32, 48))
VAE = AutoencoderConfig(block_channels=(4, 8), layers_per_block=1, norm_groups=2)
COUNT = 11


def embed(prompts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers that depend on the prompt alone."""

    def numbers(prompt: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).standard_normal(30).astype(np.float32)

    return {
        prompt: (numbers(prompt)[:24].reshape(4, 6), numbers(prompt)[24:]) for prompt in prompts
    }


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return random_module(lambda rngs: Autoencoder(VAE, precision=FLOAT32, rngs=rngs))


def codec(autoencoder: Autoencoder, mesh: Mesh | None = None) -> ImageCodec:
    return ImageCodec(autoencoder, mesh=mesh, tiling=Tiling(64, 16))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    path = tmp_path_factory.mktemp("encode") / "pairs"
    return write_pairs(path, COUNT, shapes=((32, 32), (32, 32), (30, 44)))


@pytest.fixture(scope="module")
def binding(store: PairStore) -> Binding:
    return Binding(
        store.fingerprint, SIZES, "float32", "digest of the VAE", "digest of T5, CLIP", 4
    )


@pytest.fixture(scope="module")
def encoded(
    store: PairStore,
    binding: Binding,
    autoencoder: Autoencoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> EncodedStore:
    """Encoded over a mesh, with texts."""
    path = tmp_path_factory.mktemp("encode") / "encoded"
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert encode_pairs(store, path, binding, codec(autoencoder, mesh), text=embed, batch=4)
    return EncodedStore.open(path)


def pixels(store: PairStore, number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    record = store[number]
    reference, target = (
        to_array(fit(open_image(data), *size)) for data in (record.reference, record.target)
    )
    return reference, target


def test_moments_are_those_of_each_canvas_as_one_picture(
    store: PairStore, encoded: EncodedStore, autoencoder: Autoencoder
):
    assert len(encoded) == COUNT
    encode = jax.jit(autoencoder.encode)
    for number in (0, 2):
        record = store[number]
        pair = encoded[number]
        assert (pair.id, pair.caption) == (record.id, record.caption)
        reference, target = pixels(store, number, SIZES[1 if number % 3 == 2 else 0])
        black = np.full_like(reference, -1)
        for moments, right in ((pair.canvas, target), (pair.condition, black)):
            canvas = np.concatenate([reference, right], axis=1)
            posterior = encode(jnp.asarray(canvas[None]))
            for own, expected in zip(moments, posterior, strict=True):
                np.testing.assert_allclose(own, expected[0], atol=1e-5)
        for embedding, text in (
            (pair.caption_text, record.caption),
            (pair.instruction_text, record.instruction),
        ):
            assert embedding is not None
            for array, expected in zip(embedding, embed([text])[text], strict=True):
                np.testing.assert_array_equal(array, expected)


def test_the_loader_yields_moments_in_place_of_pixels(store: PairStore, encoded: EncodedStore):
    config = LoaderConfig(seed=1, sizes=SIZES, instruction=0.5, drop_text=0.3, drop_image=0.3)
    loader = Loader([Portion(store, encoded=encoded)], config, batch=4)
    plain = Loader([store], config, batch=4)
    places = {name: number for number, name in enumerate(store.index["id"])}
    seen = set()
    for batch, pictures in zip(islice(loader, 8), islice(plain, 8), strict=True):
        for name in ("ids", "texts", "drop_text", "drop_image", "size"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(pictures, name))
        assert batch.reference is None
        assert batch.canvas is not None
        assert batch.condition is not None
        assert batch.text is not None
        for row, name in enumerate(batch.ids):
            pair = encoded[places[name]]
            np.testing.assert_array_equal(batch.canvas.mean[row], pair.canvas.mean)
            np.testing.assert_array_equal(batch.condition.logvar[row], pair.condition.logvar)
            words = batch.texts[row]
            np.testing.assert_array_equal(batch.text.txt[row], embed([words])[words][0])
        seen.add(batch.canvas.mean.shape)
    downscale = VAE.downscale
    assert seen == {(4, h // downscale, 2 * w // downscale, 16) for h, w in SIZES}
    assert loader.null_text is not None
    np.testing.assert_array_equal(loader.null_text.vec, embed([""])[""][1])
    assert plain.null_text is None


def test_moments_lie_over_the_mesh_too(store: PairStore, encoded: EncodedStore):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    loader = Loader([Portion(store, encoded=encoded)], LoaderConfig(sizes=SIZES), batch=8)
    batches = prefetch_to_mesh(loader, mesh)
    batch = next(batches)
    batches.close()
    assert batch.canvas is not None
    assert isinstance(batch.canvas.mean, jax.Array)
    assert batch.canvas.mean.addressable_shards[0].data.shape[0] == 1


def test_bfloat16_takes_half_the_space(
    store: PairStore,
    binding: Binding,
    autoencoder: Autoencoder,
    encoded: EncodedStore,
    tmp_path: Path,
):
    half = dataclasses.replace(binding, dtype="bfloat16", text=None, sizes=((32, 32),))
    assert encode_pairs(store, tmp_path / "half", half, codec(autoencoder), batch=3)
    opened = EncodedStore.open(tmp_path / "half")
    mean = opened[4].canvas.mean
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        mean.astype(np.float32), encoded[4].canvas.mean, rtol=2**-8, atol=1e-5
    )
    assert opened[4].caption_text is None
    assert opened.null is None


def test_parts_and_restarts_give_the_same_folder(
    store: PairStore, binding: Binding, autoencoder: Autoencoder, tmp_path: Path
):
    plain = dataclasses.replace(binding, text=None, sizes=((32, 32),))
    assert len(store.manifest.shards) > 2
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def run(target: Path, share: WorkerShare = ALL) -> bool:
        return encode_pairs(
            store,
            target,
            plain,
            codec(autoencoder),
            batch=2,
            share=share,
        )

    assert run(whole)
    assert not run(parts, WorkerShare(1, 2))
    with pytest.raises(UserError, match=r"an unfinished folder of encoded pairs; run `dsd data en"):
        EncodedStore.open(parts)
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("encoded-*")}
    (parts / "encoded-00000.array_record").write_bytes(b"what a kill left")
    assert run(parts, WorkerShare(0, 2))
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}.items()
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (whole, parts)
    ]
    assert contents[0] == contents[1]
    assert run(whole)  # complete already


def test_what_does_not_belong_together_is_refused(
    store: PairStore, encoded: EncodedStore, tmp_path: Path
):
    EncodedStore.open(encoded.path, autoencoder="digest of the VAE", text="digest of T5, CLIP")
    with pytest.raises(UserError, match="but the VAE given have the digest another"):
        EncodedStore.open(encoded.path, autoencoder="another digest")
    with pytest.raises(UserError, match="but the text encoders given have the digest another"):
        EncodedStore.open(encoded.path, text="another digest")
    EncodedStore.open(encoded.path, text_tokens=4)
    message = r"holds texts of 4 T5 tokens, but 512 are asked for; give --max_sequence_length 4, or"
    with pytest.raises(UserError, match=message):
        EncodedStore.open(encoded.path, text_tokens=512)
    other = write_pairs(tmp_path / "other", 3, first=50)
    with pytest.raises(UserError, match=f"was encoded from another dataset than {other.path}"):
        Portion(other, encoded=encoded)
    message = (
        r"was encoded at sizes \[\(32, 32\), \(32, 48\)\], but the sizes asked for are \[\(32,"
    )
    with pytest.raises(UserError, match=message):
        Loader([Portion(store, encoded=encoded)], LoaderConfig(sizes=((32, 32),)), batch=2)
    with pytest.raises(UserError, match=f"{other.path} is not encoded but others are"):
        Loader([Portion(store, encoded=encoded), other], LoaderConfig(sizes=SIZES), batch=2)
    with pytest.raises(UserError, match="is not a folder of encoded pairs"):
        EncodedStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset": "0"},
            "was encoded from another dataset, at other sizes or with other weights",
        ),
        ({"sizes": ((32, 32),)}, "was encoded from another dataset, at other sizes"),
        ({"autoencoder": "0"}, "was encoded from another dataset, at other sizes"),
        ({"sizes": ((30, 32),)}, "height and width must be positive multiples of 4 pixels"),
    ],
)
def test_going_on_with_something_else_is_refused(
    store: PairStore,
    binding: Binding,
    autoencoder: Autoencoder,
    encoded: EncodedStore,
    change: dict[str, Any],
    message: str,
):
    with pytest.raises(UserError, match=message):
        encode_pairs(
            store,
            encoded.path,
            dataclasses.replace(binding, **change),
            codec(autoencoder),
            text=embed,
        )


def test_folders_and_batches_that_cannot_be_are_refused(
    store: PairStore, binding: Binding, autoencoder: Autoencoder, tmp_path: Path
):
    plain = dataclasses.replace(binding, text=None)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files; choose a new folder"):
        encode_pairs(store, tmp_path / "papers", plain, codec(autoencoder))
    mesh = make_mesh(MeshConfig(data=8))
    with pytest.raises(UserError, match="the batch must be a multiple of 8 on this mesh, got 4"):
        encode_pairs(store, tmp_path / "a", plain, codec(autoencoder, mesh), batch=4)
    with pytest.raises(UserError, match="being encoded from another dataset, at other sizes"):
        encode_pairs(
            store,
            tmp_path / "a",
            dataclasses.replace(plain, dataset="0"),
            codec(autoencoder),
        )
    with pytest.raises(UserError, match="these weights have no digests"):
        weights_digest({})


def test_damage_is_found(encoded: EncodedStore, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(encoded.path, copy)
    assert verify_folder(copy, workers=2) == []
    path = min(copy.glob("*.array_record"))
    data = bytearray(path.read_bytes())
    place = data.find(encoded[1].canvas.mean.tobytes())
    data[place + 8] ^= 1
    path.write_bytes(data)
    problems = verify_folder(copy, workers=2)
    assert problems[0] == f"the shard {path} does not have the sha256 that was written"
    assert [problem.partition(":")[0] for problem in problems[1:]] == ["record 1"]
    (copy / "null.msgpack").write_bytes(b"")
    with pytest.raises(UserError, match=r"null\.msgpack is missing or damaged"):
        _ = EncodedStore.open(copy).null
    manifest = copy / "encoded.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 3}))
    with pytest.raises(
        UserError, match="schema version 3, but this program knows versions up to 2"
    ):
        EncodedStore.open(copy)


def test_the_command_encodes_with_the_weights_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = write_pairs(tmp_path / "pairs", 3)
    write_random_pipeline(tmp_path / "flux")
    words = ["data", "encode", str(store.path), str(tmp_path / "encoded")]
    words += ["--base_path", str(tmp_path / "flux"), "--sizes", "32", "32", "--text"]
    words += ["--dtype", "float32", "--mesh.data", "2", "--mesh.fsdp", "4"]
    assert cli.main(words) == 0
    assert f"{tmp_path / 'encoded'} is complete" in capsys.readouterr().out
    encoded = EncodedStore.open(tmp_path / "encoded")
    assert encoded.binding.dataset == store.fingerprint
    vae = tmp_path / "flux" / "vae" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    assert encoded.binding.autoencoder == weights_digest({vae.name: digest})
    pair = encoded[2]
    assert isinstance(pair, EncodedPair)
    assert pair.canvas.mean.shape == (4, 8, 16)
    assert pair.caption_text is not None
    assert pair.caption_text.txt.shape == (512, 32)
    assert pair.caption_text.vec.shape == (24,)
    assert encoded.null is not None
    assert cli.main(["data", "verify", str(tmp_path / "encoded")]) == 0
