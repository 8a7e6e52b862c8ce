"""Bytes that a compiled program moves, as benchmarks/traffic.py reads them."""

from benchmarks.traffic import Moved, traffic

PROGRAM = """
%slices (whole: f32[100,8]) -> f32[2,8] {
  %whole = f32[100,8]{1,0} parameter(0)
  ROOT %part = f32[2,8]{1,0} slice(%whole), slice={[0:2], [0:8]}, metadata={op_name="jit(step)/update/slice"}
}

%body (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state = (s32[], f32[16]{0}) parameter(0)
  %value = f32[16]{0} get-tuple-element(%state), index=1
  %next = f32[16]{0} negate(%value), metadata={op_name="jit(step)/jvp(losses)/neg"}
  ROOT %tuple = (s32[], f32[16]{0}) tuple(%count, %next)
}

ENTRY %main (a: f32[100,8], b: f32[16], c: f32[4]) -> f32[2,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %c = f32[4]{0:T(128)S(1)} parameter(2)
  %both = f32[4]{0:T(128)} add(%c, %c), metadata={op_name="jit(step)/transpose(jvp(decoder))/add"}
  %loop = (s32[], f32[16]{0}) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %fused = f32[2,8]{1,0} fusion(%a), kind=kLoop, calls=%slices
}
"""


def test_slices_loops_and_memory_on_the_chip():
    assert traffic(PROGRAM) == {
        # Of an array of which a fusion reads a slice only that counts; its purpose is that of what it fuses.
        "update of parameters and moments": Moved(1, 2 * 64, 0),
        "losses and their gradients": Moved(3, 3 * 2 * 64, 0),
        "backward": Moved(1, 16, 2 * 16),
    }
