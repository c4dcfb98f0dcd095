"""Plans of programs for machines that are not here."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsd_jax import aot, topology
from dsd_jax.aot import Job, Plan, bytes_per_chip, compile_job
from dsd_jax.cli import main
from dsd_jax.config import FluxConfig
from dsd_jax.cycles import Estimate
from dsd_jax.errors import UserError
from dsd_jax.extras import advice
from dsd_jax.frames import Canvas
from dsd_jax.hlo import collectives
from dsd_jax.infer.job import SampleSize, abstract_inputs
from dsd_jax.lora import LoraConfig
from dsd_jax.sharding import MeshConfig, make_mesh
from dsd_jax.topology import Topology, devices_of
from dsd_jax.train import plan as planning
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.job import abstract_batch, forward_flops, train_job
from dsd_jax.train.plan import Question, candidates, cheaper, make_plan, report, searched
from dsd_jax.train.presets import preset

TINY = FluxConfig(
    num_heads=8, head_dim=16, axes_dim=(4, 6, 6), double_depth=1, single_depth=2, txt_width=64
)


H100 = Topology("h100", (8,))


def tiny_config(**changes) -> TrainConfig:
    config = TrainConfig(
        steps=4,
        batch_size=8,
        height=64,
        width=128,
        lora=LoraConfig(rank=8),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
    return dataclasses.replace(config, **changes)


def test_collectives_of_a_loop_count_every_turn():
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    weights = jax.ShapeDtypeStruct(
        (5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P()))

    def run(weights, x):
        whole = NamedSharding(mesh, P())

        def turn(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(turn, x, weights)[0]

    text = jax.jit(run).lower(weights, x).compile().as_text() or ""
    assert collectives(text) == {"all-gather": 5 * 64 * 64 * 4}


def test_a_loop_without_a_written_count_runs_to_its_condition():
    text = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gather = f32[4,8]{1,0} all-gather(%x), dimensions={0}
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(19)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
}
"""
    assert collectives(text) == {"all-gather": 19 * 4 * 8 * 4}


def test_a_collective_that_is_spread_over_fusions_counts_once():
    """Its start and a loop that the compiler runs meanwhile share one channel."""
    text = """
%started (p: f32[4,1]) -> f32[4,8] {
  %gather.1 = f32[4,8]{1,0} all-gather(%p), channel_id=7, dimensions={1}
}

%continued (p: f32[4,1]) -> f32[4,8] {
  %gather.2 = f32[4,8]{1,0} all-gather(%p), channel_id=7, dimensions={1}
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %fusion.2 = f32[4,8]{1,0} fusion(%x), kind=kOutput, calls=%continued
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %fusion.1 = f32[4,8]{1,0} fusion(%x), kind=kOutput, calls=%started
  %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
  %other = f32[4,8]{1,0} all-gather(%y), channel_id=8, dimensions={1}
}
"""
    assert collectives(text) == {"all-gather": 2 * 4 * 8 * 4}


def test_a_chip_holds_its_shards():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    sharded = jax.ShapeDtypeStruct(
        (8, 6), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp", None))
    )
    whole = jax.ShapeDtypeStruct((10,), jnp.float32, sharding=NamedSharding(mesh, P()))
    assert bytes_per_chip([sharded, whole]) == 2 * 6 * 2 + 10 * 4


def test_plan_of_gpus_without_their_compiler_counts_by_arithmetic_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(topology, "gpu_compiler", lambda: False)
    plan = make_plan(Question(H100, tiny_config()), TINY)
    assert plan.source == "arithmetic"
    text = " ".join(report([("as configured", plan)]).split())
    assert "of 80 GiB per chip, by arithmetic" in text
    assert "compiler not asked: " in text
    assert "install it with: pip install 'dsd-jax[plan-gpu]'" in text
    assert plan.fits
    assert plan.mesh == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    assert plan.collectives["all-gather"] > 0
    kinds = {"base", "trained", "moments", "batch", "encoders", "activations", "temporary"}
    assert set(plan.memory) == kinds
    assert plan.total == pytest.approx(sum(plan.memory.values()), abs=0.05)
    assert plan.memory["encoders"] == pytest.approx(1.5, abs=0.1)  # 4.76 + 0.2 B parameters over 8

    jobs: list[Job] = []  # built, but not compiled once more

    def only_build(build: Callable[[Mesh], Job], topology: Topology, mesh: MeshConfig) -> Plan:
        jobs.append(build(make_mesh(mesh, devices_of(topology))))
        return plan

    monkeypatch.setattr("dsd_jax.train.plan.compile_job", only_build)
    make_plan(Question(H100, tiny_config(), encoded=True), TINY)
    assert bytes_per_chip(jobs[0].kinds["encoders"]) == 0


def test_few_bits_are_planned_as_devices_hold_them():
    """A byte or half of one for each number of a block's kernels, with scales beside them."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    size = dataclasses.replace(TINY, head_dim=32, axes_dim=(8, 12, 12))
    jobs = {
        kind: train_job(tiny_config(weights=kind), size, mesh, encoded=True)
        for kind in (None, "int8", "int4")
    }
    bases = {kind: job.kinds["base"] for kind, job in jobs.items()}
    plain, eight, four = map(bytes_per_chip, bases.values())
    kernels = sum(math.prod(x.shape) for x in jax.tree.leaves(bases["int8"]) if x.dtype == jnp.int8)
    own = kernels // 8  # on each of eight chips
    assert own > 0.8 * plain / 2
    assert 0 < eight - (plain - own) < 0.05 * plain  # float32 scales, on every chip
    assert abs(four - (plain - own * 3 // 2 + own // 16)) < 0.01 * plain  # 2 bytes for 32 numbers
    assert jobs["int8"].flops == jobs[None].flops


def test_a_shorter_text_is_planned_shorter():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = abstract_batch(tiny_config(max_sequence_length=32), TINY, mesh)
    assert (batch.txt.shape, batch.null_txt.shape) == ((8, 32, 64), (32, 64))
    _, inputs = abstract_inputs(TINY, mesh, SampleSize(8, Canvas(8, 16), text=32))
    assert inputs.flux.txt.shape == (8, 32, 64)
    assert forward_flops(TINY, 32, 32) < forward_flops(TINY, 32, 512) / 2


def test_memory_that_does_not_fit_is_said():
    mesh_of = lambda mesh: Job(  # noqa: E731 - a job of one array larger than the chip
        run=lambda x: x * 2,
        arguments=(jax.ShapeDtypeStruct((8,), jnp.float32),),
        kinds={"base": jax.ShapeDtypeStruct((2**37,), jnp.int8, sharding=NamedSharding(mesh, P()))},
        flops=1e12,
    )
    plan = compile_job(mesh_of, H100, MeshConfig())
    assert not plan.fits
    assert plan.total == 128


def test_cheaper_changes_go_on_until_nothing_is_left():
    first = tiny_config(remat="none", mesh=MeshConfig())
    changes = dict(cheaper(first))
    assert list(changes)[:4] == [
        "--remat attention+qkv",
        "--remat attention",
        "--remat full",
        "--mesh.data 1 --mesh.fsdp -1",
    ]
    assert changes["--optimizer.accumulate 8"].optimizer.accumulate == 8


def test_a_search_tries_meshes_that_the_batch_divides():
    paper = preset("paper")
    labels = [label for label, _ in candidates(paper, 8)]
    assert labels[0] == "data 8 x fsdp 1 x context 1, remat attention"
    assert len(labels) == len(set(labels)) == 6
    for chips in (8, 64, 256):
        for _, config in candidates(paper, chips):
            data, fsdp, _, context = config.mesh.sizes(chips)
            assert 160 % (data * fsdp) == 0
            assert context == {8: 1, 64: 2, 256: 8}[chips]
    with pytest.raises(UserError, match="a batch of 160 cannot be spread over 7 chips, with at"):
        list(candidates(paper, 7))


@pytest.mark.parametrize(
    "name", ["v7x:2x2", "v5x:8", "v5e", "h100:two", "h100:-1", "h100:", "", "h100:9999999"]
)
def test_unknown_topologies_are_refused(name):
    with pytest.raises(UserError, match="write KIND:SHAPE as in v5e:8x8"):
        Topology.parse(name)


@pytest.mark.parametrize(
    ("name", "chips"), [("h100:0", "0"), ("v5e:8x0", "0"), ("h100:9999", "9,999")]
)
def test_topologies_that_nobody_has_are_refused(name, chips, capsys):
    assert main(["plan", "tiny", "--topology", name]) == 2
    message = f"error: the topology '{name}' has {chips} chips; give 1 to 8,192"
    assert message in capsys.readouterr().err


def test_an_unknown_topology_is_a_message_of_the_command(capsys):
    assert main(["plan", "tiny", "--topology", "v5x:8"]) == 2
    assert "unknown topology 'v5x:8'; write KIND:SHAPE" in capsys.readouterr().err


def planned(estimate: Estimate | None, **changes) -> Plan:
    plan = Plan(
        topology="v5e:2x2",
        mesh={"data": 4},
        memory={"base": 1.0},
        total=1.0,
        available=16,
        fits=True,
        source="compiler",
        tflops=1.0,
        step_floor_s=0.1,
        collectives={},
        estimate=estimate,
    )
    return dataclasses.replace(plan, **changes)


def test_the_cycles_of_the_compiler_are_shown_as_an_estimate():
    text = report([("as configured", planned(Estimate(2278.4, 1900.2, 1.519, 1.267)))])
    words = " ".join(text.split())
    assert "2,278 million cycles, 1.52 s per step, by the TPU compiler; not measured" in words
    assert "1,900 million cycles, 1.27 s, if all but products ran at the peak of the mem" in words
    assert "estimate" not in report([("as configured", planned(None))])


def test_a_search_puts_the_fewest_cycles_first_and_without_cycles_the_least_traffic(monkeypatch):
    def ranked(plans: list[Plan]) -> list[Plan]:
        left = iter(plans)
        monkeypatch.setattr(planning, "make_plan", lambda question: next(left))
        question = Question(H100, tiny_config())
        return [plan for _, plan in searched(question, lambda text: None)][:2]

    slow, fast = (planned(Estimate(n, n, 1, 1), collectives={"all-gather": 9 - n}) for n in (5, 3))
    refused = planned(None, fits=False)
    assert ranked([refused, slow, fast, *[refused] * 20]) == [fast, slow]
    much, little = (planned(None, collectives={"all-gather": n}) for n in (5, 3))
    assert ranked([refused, much, little, *[refused] * 20]) == [little, much]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "h200"])
@pytest.mark.parametrize("job", ["train", "sample"])
def test_the_compiler_for_gpus_says_what_a_step_needs(kind, job):
    """Needs the compiler, not a GPU: `pip install 'dsd-jax[plan-gpu]'`."""
    if not topology.gpu_compiler():
        pytest.skip(advice("plan-gpu"))
    for chips in (1, 8):  # of a size that shows in hundredths of a GiB
        config = tiny_config(height=512, width=1024, mesh=MeshConfig(data=1, fsdp=chips))
        plan = make_plan(Question(Topology(kind, (chips,)), config, job), TINY)
        assert plan.source == "compiler"
        assert plan.fits
        assert plan.memory["temporary"] > 0
        assert bool(plan.collectives) == (chips > 1)


def test_too_few_stand_ins_are_said(monkeypatch):
    monkeypatch.setattr(topology, "gpu_compiler", lambda: False)
    with pytest.raises(UserError, match="--xla_force_host_platform_device_count=64"):
        devices_of(Topology.parse("h200:64"))


def test_a_refusal_of_the_compiler_counts_the_arguments_too():
    """As seen: at a batch of 32 the same step had 3.38 GiB beside 11.3 of arguments, and fitted."""
    words = "total memory required for HLO temporaries (16.46G) exceeds available HBM (15.75G)"
    assert aot._memory_words(f"INTERNAL: {words}") == words
    assert aot._refused_bytes(words, int(11.4 * 2**30)) / 2**30 == pytest.approx(5.06, abs=0.01)
