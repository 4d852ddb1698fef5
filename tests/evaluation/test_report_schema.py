"""Reports are read only in the shape that is promised, with the field at fault named."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import from_json, to_json
from tests.support.reports import a_report, figure, report_of


def edited(path: str, value: Any) -> dict[str, Any]:
    """A whole report in which one field is another, or None of it ("gone")."""
    report = copy.deepcopy(a_report())
    *way, last = path.split(".")
    place: Any = report
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value == "gone":
        del place[last]
    else:
        place[last] = value
    return report


def test_a_whole_report_is_read_from_its_file_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(a_report()))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == report_of(a_report())


def test_a_report_is_written_as_it_was_read() -> None:
    """Byte for byte, order included: `report.json` was written before the report had types."""
    text = (Path(__file__).parent / "report_format_2.json").read_text()
    report = from_json(Report, json.loads(text))
    assert json.dumps(to_json(report), indent=2) + "\n" == text
    absent = [field.name for field in dataclasses.fields(Report) if getattr(report, field.name) in (None, {})]
    assert absent == ["left_out", "base_unchanged"], "every section is in it"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("verdict", 3, "'verdict' is 3, expected text"),
        ("seconds", "gone", "'seconds' is missing"),
        ("candidate", "polices", "'candidate' is 'polices', which is none of the systems"),
        ("figures.length", {"nobody": figure(1.0)}, "figures.length has 'nobody', which is none of the systems"),
        ("figures.lenght", {}, "figures.lenght: there is no figure of that name"),
        ("figures.length.policy.low", "1", "'figures.length.policy.low' is '1', expected a number or null"),
        ("paired.length.policy.p", "gone", "'paired.length.policy.p' is missing"),
        ("win_rates.policy_vs_sft.wins", -1, "expected a whole number of at least 0"),
        ("categories.chat.n", "gone", "'categories.chat.n' is missing"),
        ("sets.prompts.content_hash", "gone", "'sets.prompts.content_hash' is missing"),
        ("questions.0.answer", "maybe", "expected yes, no or unknown"),
        ("audit.flags.length.raised", "yes", "expected true, false or null"),
        ("judge.name", "gone", "'judge.name' is missing"),
    ],
)
def test_a_field_at_fault_is_named(path: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        report_of(edited(path, value))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"win_rate": {}, "verdict": ""}, "an older version's report: evaluate that run again"),
        ({"format": 3}, "no report of format 2"),
        (edited("systems", "gone"), "'systems' is missing; give a report.json that `lora-rlhf evaluate` wrote"),
    ],
)
def test_foreign_reports_are_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_report(tmp_path)
