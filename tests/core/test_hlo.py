"""Programs as the compilers write them: what they start, and how often."""

from dsd_jax.hlo import executed, kernels

GPU_PROGRAM = """\
%fused (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %hidden = bf16[8,8]{1,0} copy(%p)
}

%body (x: bf16[8,8]) -> bf16[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  %product = bf16[8,8]{1,0} fusion(%x, %x), kind=kCustom, calls=%fused, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %blas = bf16[8,8]{1,0} custom-call(%product, %x), custom_call_target="__cublas$gemm"
  %heads = bf16[8,8]{1,0} custom-call(%blas), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %added = bf16[8,8]{1,0} fusion(%heads), kind=kLoop, calls=%fused
}

%condition (x: bf16[8,8]) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %copied = bf16[8,8]{0,1} copy(%a)
  ROOT %looped = bf16[8,8]{1,0} while(%copied), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501 - as the compiler writes it


def test_kernels_of_a_loop_count_as_often_as_it_runs_and_what_is_fused_does_not():
    assert kernels(GPU_PROGRAM) == {
        "attention": 3,
        "products": 6,
        "fused": 3,
        "copies": 1,
        "other calls": 0,
    }


def test_instructions_are_told_with_their_computation_and_number_of_runs():
    found = {
        line.partition(" = ")[0].split()[-1]: (computation, times)
        for computation, line, times in executed(GPU_PROGRAM)
    }
    assert found["%copied"] == ("main", 1)
    assert found["%heads"] == ("body", 3)
    assert "%hidden" not in found
    assert "%looped" not in found
