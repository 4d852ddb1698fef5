import copy
from typing import Any

import pytest

from lora_rlhf.inspection.advice import advice_on_report, share_text

# A file without any fault, as `check_data` reports it.
HEALTHY: dict[str, Any] = {
    "file": "pairs.jsonl",
    "error": None,
    "records": 10_000,
    "formats": {"ranking": 10_000},
    "rows": {"read": 10_000, "used": 10_000, "refused": 0},
    "refused": [],
    "rankings": {
        "count": 10_000,
        "pairs": 20_000,
        "all_tied": 100,
        "cut": 100,
        "known_ends": 10_000,
        "longer_wins": {"rate": 0.55, "low": 0.54, "high": 0.56},
        "labelers": 30,
        "agreement": {"rate": 0.73, "pairs": 5000},
    },
    "tokens": {
        "exact": True,
        "limits": {
            "max_prompt_tokens": {"limit": 256, "over": 0.005, "lost": 0.0, "keeps_95": 150, "keeps_99": 220},
            "max_response_tokens": {"limit": 256, "over": 0.01, "lost": 0.01, "keeps_95": 150, "keeps_99": 256},
        },
        "refused": {},
    },
    "duplicates": {"rows": 10_000, "repeated_rows": 50, "begin_alike": 900, "continued": 500, "estimated": False},
    "kinds": {"rankings": 10_000},
    "stages": [
        {
            "stage": "reward",
            "error": None,
            "split": {"fraction": 0.1, "train": 9_000, "validation": 1_000, "begin_alike": 20, "enough": 0.01},
        }
    ],
    "signs": {
        "exact": True,
        "markup": 0.0,
        "placeholders": 0.0,
        "ends_in_number": 0.1,
        "columns": {"id": 1.0, "source": 0.7},
        "empty": {},
    },
}


def said(file: dict[str, Any] | None = None, leakage: dict[str, Any] | None = None) -> list[str]:
    report = {"files": [HEALTHY if file is None else file], "leakage": [leakage] if leakage else []}
    return [piece["text"] for piece in advice_on_report(report)]


def altered(path: str, value: Any) -> dict[str, Any]:
    """HEALTHY with one value changed; `path` is its keys with dots between them."""
    file = copy.deepcopy(HEALTHY)
    *parents, last = path.split(".")
    place: Any = file
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[int(last) if isinstance(place, list) else last] = value
    return file


def test_silence_where_all_is_well() -> None:
    assert said() == []
    assert said(altered("signs.columns", {"ratings": 1.0})) == [], "the app writes them beside ranks"


def test_a_file_of_which_nothing_can_be_used_is_to_be_mended() -> None:
    refused = {"reason": "the response is empty", "count": 50, "examples": []}
    file = HEALTHY | {
        "records": None,
        "rows": {"read": 50, "used": 0, "refused": 50, "breaks": 0},
        "refused": [refused],
    }
    assert [text for text in said(file) if "50 of 50 rows (100.0 %) cannot be used" in text and "is empty" in text]


@pytest.mark.parametrize("path", ["rankings", "tokens", "stages.0.split", "rankings.longer_wins", "rankings.agreement"])
def test_figures_that_are_not_there_are_no_fault(path: str) -> None:
    assert said(altered(path, None)) == []


@pytest.mark.parametrize(
    ("path", "value", "fragments"),
    [
        ("rows", {"read": 1000, "used": 900, "refused": 100}, ["100 of 1,000 rows (10.0 %)", "rank is no number"]),
        ("formats", {"hh-rlhf": 9_000, "ranking": 1_000}, ["2 ways", "9,000 as hh-rlhf", "--format"]),
        ("signs.markup", 0.25, ["25.0 %", "markup"]),
        ("signs.placeholders", 0.5, ["50.0 %", "{{name}}"]),
        ("tokens.refused", {"no system role": 0.3}, ["30.0 %", "no system role"]),
        (
            "tokens.limits.max_prompt_tokens",
            {"limit": 256, "over": 0.123, "lost": 0.0, "keeps_95": 300, "keeps_99": 512},
            ["12.3 %", "--max-prompt-tokens 256", "--max-prompt-tokens 512 keeps 99 %"],
        ),
        (
            "tokens.limits.max_response_tokens",
            {"limit": 64, "over": 0.2, "lost": 0.35, "keeps_95": 300, "keeps_99": 512},
            ["20.0 %", "--max-response-tokens 64", "35.0 % of rows", "512 keeps 99 %", "--long-responses cut"],
        ),
        ("rankings.all_tied", 2_000, ["2,000 of 10,000 rankings (20.0 %)", "tie throughout"]),
        ("rankings.pairs", 1_611, ["1,611 pairs", "2,000", "2210.10760", "collect more"]),
        ("rankings.longer_wins", {"rate": 0.71, "low": 0.69, "high": 0.73}, ["71.0 %", "69.0 %", "73.0 %", "longer"]),
        ("rankings.agreement", {"rate": 0.6, "pairs": 400}, ["60.0 % of 400 pairs", "72.6 %"]),
        ("rankings.labelers", 1, ["1 labeler"]),
        ("rankings.cut", 2_000, ["20.0 % of the responses did not end", "--max-response-tokens"]),
        (
            "duplicates.repeated_rows",
            700,
            ["7.0 % of rows only repeat an earlier one exactly", "of 10,000 rows, 9,300 are different"],
        ),
        ("duplicates.begin_alike", 4_000, ["40.0 % of prompts (4,000)", "128 characters"]),
        ("duplicates.continued", 4_000, ["40.0 % of prompts (4,000)", "continued"]),
        (
            "stages.0.split",
            {"fraction": 0.1, "train": 12, "validation": 0, "begin_alike": 0, "enough": 0.23},
            ["reward would stop: of 12 rows", "-fraction 0.1 leaves none for validation", "-fraction 0.23 gives some"],
        ),
        (
            "stages.0.split",
            {"fraction": 0.9, "train": 0, "validation": 3, "begin_alike": 0, "enough": 0.23},
            ["of 3 rows", "-fraction 0.9 leaves none for training", "-fraction 0.23 gives some"],
        ),
        (
            "stages.0.split",
            {"fraction": 0.1, "train": 1, "validation": 0, "begin_alike": 0, "enough": None},
            ["of 1 row,", "too few to divide: --validation-fraction 0 trains"],
        ),
        (
            "stages.0.split",
            {"fraction": 0.05, "train": 950, "validation": 50, "begin_alike": 40, "enough": 0.01},
            ["40 of 50 validation prompts"],
        ),
        ("signs.ends_in_number", 0.92, ["92.0 % of answers end in a number", "--reward-function"]),
        ("signs.columns", {"Solution": 0.8}, ["80.0 % of rows bring 'Solution'", "--reward-function"]),
        ("signs.columns", {"system": 0.4}, ["'system'", "40.0 % of rows", "ranking does not use it"]),
    ],
)
def test_each_fault_is_named_with_its_figure(path: str, value: Any, fragments: list[str]) -> None:
    file = altered(path, value)
    if path == "rows":
        file["refused"] = [{"reason": "rank is no number", "count": 90}, {"reason": "other", "count": 10}]
    sentences = said(file)
    assert len(sentences) == 1
    assert [fragment for fragment in fragments if fragment not in sentences[0]] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rankings.agreement", {"rate": 0.5, "pairs": 40}),  # too few to know
        ("rankings.longer_wins", {"rate": 0.7, "low": 0.45, "high": 0.9}),  # so too
        ("rankings.pairs", 2_000),
        ("signs.columns", {"answer": 0.2}),
        ("stages.0.split", {"fraction": 0.0, "train": 12, "validation": 0, "begin_alike": 0, "enough": 0.23}),
        ("stages.0", {"stage": "reward", "error": "its rows fit several formats"}),
    ],
)
def test_weak_evidence_is_no_advice(path: str, value: Any) -> None:
    assert said(altered(path, value)) == []


def test_estimates_say_about() -> None:
    file = altered("signs.markup", 0.25)
    file["signs"]["exact"] = False
    assert said(file)[0].startswith("about 25.0 %")


def test_responses_without_ranks_name_the_way_to_rankings() -> None:
    file = altered("signs.columns", {"responses": 1.0}) | {"kinds": {"prompts": 10_000}}
    (sentence,) = said(file)
    assert "add ranks to each row" in sentence
    assert said(altered("signs.columns", {"responses": 1.0})) == []


def test_leakage() -> None:
    row = {"file": "train.jsonl", "held_out": "test.jsonl", "prompts": 200, "exact": 5, "near": 0}
    report = {"files": [HEALTHY], "leakage": [row]}
    assert advice_on_report(report)[0]["file"] == "test.jsonl"
    assert "train.jsonl holds 5 of its 200 prompts (2.5 %) too" in advice_on_report(report)[0]["text"]


@pytest.mark.parametrize(("exact", "near", "count"), [(0, 0, 0), (0, 2, 0), (0, 3, 1), (1, 0, 1)])
def test_leakage_counts_any_copy_and_many_near_ones(exact: int, near: int, count: int) -> None:
    row = {"file": "train.jsonl", "held_out": "test.jsonl", "prompts": 200, "exact": exact, "near": near}
    assert len(said(leakage=row)) == count


def test_files_that_could_not_be_read_are_passed_over() -> None:
    assert said({"file": "gone.jsonl", "error": "no such file"}) == []
    assert (
        said({"file": "empty.jsonl", "error": None, "records": 0, "formats": {}, "rows": {"read": 0, "refused": 0}})
        == []
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.0 %"), (0.0004, "less than 0.1 %"), (0.1234, "12.3 %"), (1, "100.0 %")]
)
def test_share(value: float, shown: str) -> None:
    assert share_text(value) == shown
