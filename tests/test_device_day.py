"""The quarter of an hour on a GPU: parts share its time, and one that is cut short is told."""

from benchmarks.speed.device_day import PARTS, Part, limits, run


def test_the_parts_share_the_time():
    assert sum(limits(PARTS, 840).values()) == 840
    assert limits(PARTS[1:], 500) == {PARTS[1].module: 500}  # what is left goes to the last


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_next():
    parts = (Part("no_such_module", 0.5), Part("this", 0.5))
    assert run(parts, ["--help"], 60, {}) == {"no_such_module": "failed", "this": "done"}
    assert run((Part("http.server", 1),), ["0"], 0.05, {}) == {"http.server": "cut short"}
