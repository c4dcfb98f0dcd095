"""Layouts mean what they say, invert bit for bit, and can be read in slices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_jax.config import AutoencoderConfig, ClipConfig, FluxConfig, T5Config
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.table.rules import Piece, Rule, expand
from dsd_jax.convert.text import clip_table, t5_table
from dsd_jax.convert.vae import autoencoder_bfl, autoencoder_diffusers

# All sizes differ, so that no swapped pair of axes goes unnoticed.
FLUX = FluxConfig(
    in_channels=5,
    out_channels=7,
    num_heads=3,
    head_dim=4,
    double_depth=2,
    single_depth=3,
    txt_width=11,
    vec_width=13,
    axes_dim=(2, 2),
)
VAE = AutoencoderConfig(block_channels=(4, 6, 8), layers_per_block=1, latent_channels=3)
T5 = T5Config(vocab=17, width=10, depth=2, num_heads=3, head_dim=4, mlp_width=14)
CLIP = ClipConfig(vocab=17, width=12, depth=2, num_heads=3, mlp_width=20, max_length=9)

TABLES = {
    table.title: table
    for table in (
        flux_diffusers(FLUX),
        flux_bfl(FLUX),
        autoencoder_diffusers(VAE),
        autoencoder_bfl(VAE),
        t5_table(T5),
        clip_table(CLIP),
    )
}
DIMS = {"n": 3, "h": 4, "d": 12, "m": 5, "s": 3, "e": 2}


def piece(layout: str) -> Piece:
    return expand([Rule("theirs", "ours", layout)], DIMS)[0]


def random_bits(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)
    return bits.view(np.float32)  # NaNs among them, whose payloads must survive too


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


# What each notation means, against plain numpy


def test_flattened_axes_come_apart() -> None:
    x = random_bits((3 * 4, 12))
    assert same_bits(piece("(n h) d -> d n h").read(x), x.reshape(3, 4, 12).transpose(2, 0, 1))


def test_an_index_fills_one_place_of_an_axis() -> None:
    one = piece("(n h) d -> d 2 n h")
    assert one.our_box[1] == slice(2, 3)
    x = random_bits((12, 12))
    assert same_bits(one.read(x), x.reshape(3, 4, 12).transpose(2, 0, 1)[:, None])


def test_a_row_takes_its_part_of_a_concatenation() -> None:
    x = random_bits((3 * 12 + 5, 12))
    first, second = piece("(s n h + m) d -> d s n h"), piece("(s n h + m) d -> d m")
    assert first.their_shape == second.their_shape == x.shape
    assert same_bits(first.read(x), x[:36].reshape(3, 3, 4, 12).transpose(3, 0, 1, 2))
    assert same_bits(second.read(x), x[36:].T)


def test_concatenation_along_the_second_axis() -> None:
    x = random_bits((12, 12 + 5))
    attention = piece("d (n h + m) -> n h d").read(x)
    assert same_bits(attention, x[:, :12].reshape(12, 3, 4).transpose(1, 2, 0))
    assert same_bits(piece("d (n h + m) -> m d").read(x), x[:, 12:].T)


def test_a_tilde_reverses_an_axis() -> None:
    x = random_bits((2 * 3, 12))
    scale, shift = x[:3], x[3:]
    ours = piece("(~e s) d -> d e s").read(x)
    assert same_bits(ours, np.stack([shift.T, scale.T], 1))


def test_unit_axes_and_convolutions() -> None:
    x = random_bits((5, 12, 1, 1))
    assert same_bits(piece("m d 1 1 -> d m").read(x), x[:, :, 0, 0].T)
    y = random_bits((5, 12, 3, 4))
    assert same_bits(piece("m d n h -> n h d m").read(y), y.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("d n", "expected `their axes -> our axes`"),
        ("(d n -> d n", "expected `their axes -> our axes`"),
        ("d n -> d n h", "every letter must be once on each side"),
        ("d n h -> d n", "the letters of exactly one part"),
        ("d d -> d", "every letter must be once on each side"),
        ("d -> d d", "every letter must be once on each side"),
        ("(n + h) d -> n h d", "the letters of exactly one part"),
        ("(n + m) d -> d", "the letters of exactly one part"),
        ("d 2 -> d", "their side takes letters and 1"),
        ("d n -> d (n)", "our side takes letters and indices"),
        ("zz d -> d zz", "no size is known for 'zz'"),
    ],
)
def test_a_wrong_layout_is_an_error(layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        piece(layout)


def test_blocks_of_one_stack_stay_together() -> None:
    rules = [
        Rule("first", "first", "d -> d"),
        Rule("layers.{i}.q", "blocks.{i}.q", "d -> d"),
        Rule("layers.{i}.k", "blocks.{i}.k", "d -> d"),
        Rule("last", "last", "d -> d"),
    ]
    names = [p.theirs for p in expand(rules, DIMS, {"blocks": 2})]
    assert names == ["first", "layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k", "last"]


# Properties of every row of every table


def rows(table: Table) -> list[Piece]:
    """One piece per row of the table."""
    return list({(p._layout, p.their_shape, p.our_box[0].stop): p for p in table.pieces}.values())


ROWS = [row for table in TABLES.values() for row in rows(table)]


@settings(max_examples=200, deadline=None)
@given(row=st.sampled_from(ROWS), seed=st.integers(0, 2**32 - 1))
def test_every_row_inverts_bit_for_bit(row: Piece, seed: int) -> None:
    tensor = random_bits(row.their_shape, seed)
    ours = row.read(tensor)
    assert same_bits(row.write(ours), tensor[row.their_box])
    assert same_bits(row.read(_put(tensor, row, row.write(ours))), ours)


def _put(tensor: np.ndarray, row: Piece, values: np.ndarray) -> np.ndarray:
    filled = np.zeros_like(tensor)
    filled[row.their_box] = values
    return filled


@settings(max_examples=300, deadline=None)
@given(row=st.sampled_from(ROWS), data=st.data())
def test_every_window_of_every_row_is_read_from_adjacent_rows(
    row: Piece, data: st.DataObject
) -> None:
    tensor = random_bits(row.their_shape)
    whole = row.read(tensor)
    window = []
    for size in whole.shape:
        start = data.draw(st.integers(0, size - 1))
        window.append(slice(start, data.draw(st.integers(start + 1, size))))
    most = data.draw(st.integers(1, 40))
    box = np.zeros([side.stop - side.start for side in window], np.float32)
    count = np.zeros(box.shape, int)
    rows_read = 0
    for adjacent, block in row.blocks(tuple(window), most):
        assert adjacent.stop - adjacent.start <= most
        rows_read += adjacent.stop - adjacent.start
        inside = tuple(
            slice(b.start - w.start, b.stop - w.start) for b, w in zip(block, window, strict=True)
        )
        box[inside] = row.take(tensor[adjacent], block)
        count[inside] += 1
    assert same_bits(box, whole[tuple(window)])
    assert (count == 1).all()
    assert rows_read <= row.their_box[0].stop - row.their_box[0].start


def test_a_slice_of_heads_reads_only_its_rows() -> None:
    fused = piece("(s n h) d -> d s n h")
    window = (slice(0, 12), slice(0, 3), slice(1, 2), slice(0, 4))
    assert [rows for rows, _ in fused.blocks(window)] == [
        slice(4, 8),
        slice(16, 20),
        slice(28, 32),
    ]
