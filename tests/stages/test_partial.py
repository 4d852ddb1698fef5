"""The file of what a command has made so far, after a process that was killed in the middle of a line."""

from pathlib import Path

import pytest

from lora_rlhf.stages.partial import PartialOutput


@pytest.mark.parametrize("torn", [b"", b'{"row": 2', b'{"row": 2}'])
def test_what_was_half_written_is_gone_before_the_next_line(tmp_path: Path, torn: bytes) -> None:
    to = str(tmp_path / "out.jsonl")
    first = PartialOutput(to, {"seed": 0})
    assert first.begin() == []
    first.add({"row": 1})
    first.path.write_bytes(first.path.read_bytes() + torn)
    for expected in ([1], [1, 2], [1, 2, 3]):  # each attempt adds a line and is killed
        attempt = PartialOutput(to, {"seed": 0})
        assert [line["row"] for line in attempt.begin()] == expected
        attempt.add({"row": expected[-1] + 1})
    assert PartialOutput(to, {"seed": 1}).begin() == [], "other settings begin anew"


def test_the_end_leaves_the_output_alone(tmp_path: Path) -> None:
    output = PartialOutput(str(tmp_path / "out.jsonl"), {})
    output.begin()
    output.finish([{"row": 1}])
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
