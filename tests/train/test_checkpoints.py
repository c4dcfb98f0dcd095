"""Checkpoints: whole or not there, checked before use, the same on any mesh and layout."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.errors import UserError
from dsd_jax.runs import find_checkpoints, read_trained, steps_of, verify
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.train.checkpoints import Checkpoints, Keep
from dsd_jax.train.presets import tiny
from dsd_jax.train.record import check_base, check_recipe
from dsd_jax.train.state import TrainState

STACKS = {"double_blocks": 3}
MESH = make_mesh(MeshConfig(data=2, fsdp=4))


def make_state(
    seed: int = 0, *, spec: P = P(None, "fsdp", "data"), stacked: bool = True
) -> TrainState:
    """Parameters in a stack and beside it, moments, an average."""
    rng = np.random.default_rng(seed)

    def tree() -> dict[str, Any]:
        a = rng.standard_normal((3, 8, 4)).astype(np.float32)
        blocks: Any = {"qkv": {"lora_a": jax.device_put(a, NamedSharding(MESH, spec))}}
        if not stacked:
            own = NamedSharding(MESH, P(*spec[1:]))
            blocks = {i: {"qkv": {"lora_a": jax.device_put(a[i], own)}} for i in range(3)}
        bias = rng.standard_normal(6).astype(np.float32)
        return {
            "double_blocks": blocks,
            "cond_in": {"bias": jax.device_put(bias, NamedSharding(MESH, P()))},
        }

    step = jax.device_put(jnp.int32(seed), NamedSharding(MESH, P()))
    return TrainState(step, tree(), ({"mu": tree()},), tree())  # type: ignore[arg-type]


def opened(root: Path, *, keep: Keep | None = None) -> Checkpoints:
    run = {"config": {"lora": None}, "base": {"path": "flux", "sha256": {}}}
    return Checkpoints(root, lambda: run, STACKS, keep)


def saved(root: Path, *steps: int, keep: Keep | None = None) -> Checkpoints:
    found = opened(root, keep=keep)
    for step in steps:
        found.save(step, make_state(step))
    found.wait()
    return found


def assert_same(one: Any, two: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_round_trip_onto_other_shardings(tmp_path: Path):
    saved(tmp_path, 7)
    again = opened(tmp_path)
    assert again.newest() == 7
    like = make_state(0, spec=P(None, None, "fsdp"))
    restored = again.restore(7, like)
    assert_same(restored, make_state(7))
    factor = restored.params["double_blocks"]["qkv"]["lora_a"]
    assert factor.sharding == like.params["double_blocks"]["qkv"]["lora_a"].sharding


def test_names_are_per_layer_and_layouts_interchangeable(tmp_path: Path):
    saved(tmp_path, 7)
    names = OrbaxSource(str(tmp_path / "00000007" / "state")).shapes
    assert names["params.double_blocks.2.qkv.lora_a"] == (8, 4)
    assert names["opt_state.0.mu.double_blocks.0.qkv.lora_a"] == (8, 4)
    assert set(names) >= {"step", "ema.cond_in.bias"}
    like = make_state(0, stacked=False)
    assert_same(opened(tmp_path).restore(7, like), make_state(7, stacked=False))


def test_saving_does_not_wait_and_does_not_see_later_steps(tmp_path: Path):
    checkpoints = opened(tmp_path)
    state = make_state(1)
    checkpoints.save(1, state)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    checkpoints.wait()
    assert_same(checkpoints.restore(1, make_state(0)), make_state(1))


def test_the_last_few_and_the_round_ones_are_kept(tmp_path: Path):
    saved(tmp_path, 2, 4, 5, 6, 8, 9, keep=Keep(last=2, every=4))
    assert steps_of(tmp_path) == [4, 8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000004", "00000008", "00000009"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(largest(folder / "state")), "has another sha256 than it was written"),
        (lambda folder: cut(largest(folder / "state")), r"has \d+ bytes, expected \d+"),
        (lambda folder: largest(folder / "state").unlink(), "is missing"),
        (lambda folder: flip(folder / "run.json"), "run.json has another sha256"),
        (lambda folder: cut(folder / "manifest.json"), "manifest.json cannot be read"),
        (
            lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
            "manifest.json cannot be read",
        ),
        (lambda folder: (folder / "state" / "more").touch(), "state/more does not belong there"),
    ],
    ids=["bit flip", "cut off", "missing", "run.json", "manifest.json", "nested", "extra"],
)
def test_a_damaged_checkpoint_is_set_aside(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
):
    saved(tmp_path, 2, 4)
    damage(tmp_path / "00000004")
    checkpoints = opened(tmp_path)
    assert checkpoints.newest() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint 00000004 is damaged: ")
    assert line.endswith(f"it is now {tmp_path}/00000004.damaged, and the one before is taken")
    assert re.search(message, line)
    assert_same(checkpoints.restore(2, make_state(0)), make_state(2))
    checkpoints.save(4, make_state(4))
    checkpoints.wait()
    assert verify(tmp_path / "00000004") is None


def test_every_bit_flip_is_found(tmp_path: Path):
    saved(tmp_path, 1)
    folder = tmp_path / "00000001"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        whole = path.read_bytes()
        flip(path)
        assert verify(folder) is not None, path
        path.write_bytes(whole)
    assert len(files) > 8
    assert verify(folder) is None


def test_nothing_whole_is_left(tmp_path: Path):
    saved(tmp_path, 1)
    flip(largest(tmp_path / "00000001" / "state"))
    with pytest.raises(
        UserError, match=r"every checkpoint in .* is damaged; the oldest: state/.* sha256"
    ):
        opened(tmp_path).newest()


def test_what_a_killed_save_left_is_removed(tmp_path: Path):
    saved(tmp_path, 1)
    (tmp_path / "00000002" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert steps_of(tmp_path) == [1]
    assert opened(tmp_path).newest() == 1
    assert not (tmp_path / "00000002").exists()
    assert opened(tmp_path / "elsewhere").newest() is None


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = saved(tmp_path, 1)

    class Response:
        def result(self) -> None:
            raise ValueError("UNAVAILABLE: Error writing [os_error_code='28' source='file.cc']")

    monkeypatch.setattr(ocp, "save_async", lambda *_: Response())
    checkpoints.save(2, make_state(2))
    with pytest.raises(
        UserError,
        match=rf"cannot save step 2 to {tmp_path}/00000002: No space left on device \(\d+\.\d GB "
        rf"free\); the last good checkpoint is {tmp_path}/00000001; make room and run",
    ):
        checkpoints.wait()
    assert not (tmp_path / "00000002").exists()


def test_no_permission(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = opened(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"cannot save step 1 .* there is no checkpoint yet"):
        checkpoints.save(1, make_state(1))


def test_a_state_of_another_shape_is_refused(tmp_path: Path):
    saved(tmp_path, 1)
    like = make_state(0)._replace(ema=None)
    with pytest.raises(
        UserError, match=r"another adapter or optimizer:\n  ema.cond_in.bias: only in"
    ):
        opened(tmp_path).restore(1, like)
    narrow = make_state(0)
    narrow.params["cond_in"]["bias"] = jnp.zeros(5)
    with pytest.raises(UserError, match=r"bias: the checkpoint has \(6,\), this run \(5,\)"):
        opened(tmp_path).restore(1, narrow)


@pytest.mark.parametrize("name", ["manifest.json", "run.json"])
def test_schema_of_the_future(tmp_path: Path, name: str):
    saved(tmp_path, 1)
    path = tmp_path / "00000001" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    read = {
        "manifest.json": lambda: opened(tmp_path).newest(),
        "run.json": lambda: opened(tmp_path).run_of(1),
    }
    with pytest.raises(
        UserError, match=rf"{path} has schema 2, but this program knows schemas up to 1; install a"
    ):
        read[name]()


def test_trained_parameters_for_export(tmp_path: Path):
    saved(tmp_path / "checkpoints", 1, 2)
    root = find_checkpoints(tmp_path)
    assert root == epath.Path(tmp_path / "checkpoints")
    assert find_checkpoints(tmp_path / "checkpoints") == root
    assert find_checkpoints(tmp_path / "nothing") is None
    averaged, run = read_trained(root)
    plain, _ = read_trained(root, 1, ema=False)
    assert run["step"] == 2
    factor = "double_blocks.1.qkv.lora_a"
    np.testing.assert_array_equal(
        averaged[factor],
        make_state(2).ema["double_blocks"]["qkv"]["lora_a"][1],  # type: ignore[index]
    )
    np.testing.assert_array_equal(
        plain[factor], make_state(1).params["double_blocks"]["qkv"]["lora_a"][1]
    )
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 1, 2"):
        read_trained(root, 3)
    flip(largest(tmp_path / "checkpoints" / "00000002" / "state"))
    assert read_trained(root)[1]["step"] == 1
    with pytest.raises(UserError, match=r"00000002 is damaged: .*; take another step"):
        read_trained(root, 2)
    with pytest.raises(UserError, match="holds no finished checkpoint; `dsd train` writes them"):
        read_trained(tmp_path / "nothing")


# Whose checkpoint it is


def test_other_base_weights_are_refused():
    run = {"base": {"path": "FLUX.1-dev", "sha256": {"flux.safetensors": "aa11"}}}
    check_base(run, "FLUX.1-other", {"flux.safetensors": "aa11"})
    check_base(run, "FLUX.1-other", {})
    with pytest.raises(
        UserError,
        match=r"flux.safetensors had sha256 aa11, in FLUX.1-other it has bb22; give the base that "
        r"the run was begun with \(FLUX.1-dev\)",
    ):
        check_base(run, "FLUX.1-other", {"flux.safetensors": "bb22"})


def test_what_may_change_between_runs(capsys: pytest.CaptureFixture[str]):
    recipe = tiny()
    run = json.loads(json.dumps({"config": dataclasses.asdict(recipe)}))
    check_recipe(run, recipe)
    assert capsys.readouterr().err == ""
    check_recipe(run, dataclasses.replace(recipe, steps=99, remat="full"))
    assert capsys.readouterr().err == (
        "note: remat was none so far, from here on it is full\n"
        "note: steps was 20 so far, from here on it is 99\n"
    )
    assert recipe.lora is not None
    wider = dataclasses.replace(recipe, lora=dataclasses.replace(recipe.lora, rank=16))
    with pytest.raises(UserError, match=r"begun with lora.rank 8, now it is 16; use the same, or"):
        check_recipe(run, wider)


def test_keep_drops_what_is_old():
    assert Keep(last=1).drops([1, 2, 3]) == [1, 2]
    assert Keep(last=2, every=2).drops([1, 2, 3, 4, 5]) == [1, 3]
    assert Keep(last=5).drops([1, 2]) == []
