"""Cycles that the TPU compiler states: every operation once, loops as often as they run."""

import json
import os
import subprocess
import sys

import pytest

from dsd_jax.cycles import estimated, operations, summed
from dsd_jax.topology import CHIPS

HLO = """\
HloModule jit_f

FileNames
1 "rope.py"

FunctionNames
1 "f"
2 "apply_rope"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=1 function_name_id=2 line=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%inner (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %hidden = bf16[8,8]{1,0} multiply(%p, %p), backend_config={"estimated_cycles":"999"}
}

%body (x: bf16[8,8]) -> bf16[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  %product = bf16[8,8]{1,0} fusion(%x, %x), calls=%inner, metadata={op_name="jit(f)/dot_general" stack_frame_id=1}, backend_config={"estimated_cycles":"100"}
  ROOT %turned = bf16[8,8]{1,0:T(8,128)S(1)} fusion(%product), calls=%inner, metadata={op_name="jit(f)/mul" stack_frame_id=2}, backend_config={"estimated_cycles":"10"}
}

%condition (x: bf16[8,8]) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %copied = bf16[8,8]{0,1} copy(%a), backend_config={"estimated_cycles":"7"}
  %looped = bf16[8,8]{1,0} while(%copied), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %kernel = bf16[8,8]{1,0} custom-call(%looped), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501 - as the compiler writes it


def test_loops_count_as_often_as_they_run_and_fusions_once():
    found = {each.name: each for each in operations(HLO)}
    assert list(found) == ["copied", "product", "turned", "kernel"]
    assert [found[name].times for name in ("copied", "product", "turned")] == [1, 3, 3]
    assert found["turned"].functions == ("apply_rope", "f")
    assert found["product"].bytes == 3 * 128
    assert found["turned"].bytes == 128  # its result stays in fast memory


def test_cycles_are_added_up_by_part_as_estimated_and_at_the_peak_of_memory():
    cycles = summed(operations(HLO), bytes_per_cycle=64)
    assert cycles.parts == {
        "products": 300,
        "attention": 0,
        "rope and norms": 30,
        "copies": 7,
        "the rest": 0,
    }
    assert cycles.at_peak["products"] == 300
    assert cycles.at_peak["rope and norms"] == 3 * 2
    assert cycles.at_peak["copies"] == 4


KERNELS = """\
ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {
  %fwd = bf16[2,24,2560,128]{3,2,1,0} custom-call(%a), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,1]{2,1,0}, bf16[2,24,2560,128]{3,2,1,0}, bf16[2,24,1280,128]{3,2,1,0}}, frontend_attributes={}
  ROOT %splash_mha_dkv.1 = bf16[2,24,2560,128]{3,2,1,0} custom-call(%fwd), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,1]{2,1,0}, bf16[2,24,2560,128]{3,2,1,0}, bf16[2,24,1280,128]{3,2,1,0}}, frontend_attributes={}
}
"""  # noqa: E501 - as the compiler writes it


def test_attention_kernels_count_at_the_peak_of_the_chip():
    product = 2 * 2 * 24 * 2560 * 1280 * 128
    assert [each.flops for each in operations(KERNELS)] == [2 * product, 5 * product]
    found = estimated(KERNELS, CHIPS["v5e"])
    assert found.seconds == pytest.approx(7 * product / 197e12, abs=1e-3)
    assert found.mcycles == pytest.approx(1500 * 7 * product / 197e12, abs=0.1)


# Million cycles of a block at a batch of 1 without attention, and of attention for one head.
KNOWN = {
    "v5e": {"double": 6.23, "single": 5.80, "attention": 0.0295},
    "v6e": {"double": 2.68, "single": 3.60, "attention": 0.0193},
}


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_a_block_takes_no_more_cycles_than_it_did(chip):
    """Needs the TPU compiler, not a TPU: `pip install libtpu`."""
    pytest.importorskip("libtpu", reason="asks the compiler for TPUs: pip install libtpu")
    program = f"""
import json
from benchmarks.speed.tpu_cycles import block_cycles, kernel_cycles
blocks = {{kind: block_cycles(kind, {chip!r}, 1) for kind in ("double", "single")}}
cycles = {{kind: sum(each.parts.values()) for kind, each in blocks.items()}}
print(json.dumps(cycles | {{"attention": kernel_cycles({chip!r}, 2560)["fwd"]}}))
"""
    # The compiler for TPUs knows none of the flags that tests give to that for CPUs.
    others = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=others | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    for kind, most in KNOWN[chip].items():
        assert found[kind] < 1.03e6 * most
