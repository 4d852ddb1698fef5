"""Rules of a policy against a report: every comparison, every end of an interval, and what is not there."""

import math
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.release.gate import reason_table
from lora_rlhf.release.policy import PACKAGED_POLICY, Policy, read_gate_policy
from lora_rlhf.release.rules import Row, apply_rules, is_passed
from lora_rlhf.system.errors import UserError
from tests.support.releases import figure, make_report, make_run, paired, rate


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    return make_report(make_run(tmp_path))


def policy_of(folder: Path, guard: str) -> Policy:
    path = folder / "gate.yaml"
    path.write_text(f"win_rate: {{at_least: 0.5}}\nguards:\n  - {{{guard}}}\n")
    return read_gate_policy(path)


def row_of(report: dict[str, Any], folder: Path, guard: str, candidate: str = "policy", baseline: str = "sft") -> Row:
    rows = apply_rules(policy_of(folder, guard), report, candidate, baseline)
    assert len(rows) == 2
    return rows[1]


# length: policy 22 (21 to 23), sft 20 (19 to 21)
@pytest.mark.parametrize(
    ("guard", "decision"),
    [
        ("figure: length, at_most: 22, end: value", "pass"),
        ("figure: length, at_most: 21.99, end: value", "fail"),
        ("figure: length, at_most: 22.5, end: high", "fail"),
        ("figure: length, at_most: 23, end: high", "pass"),
        ("figure: length, at_most: 21, end: low", "pass"),
        ("figure: length, at_most: 20.9, end: low", "fail"),
        ("figure: length, at_least: 21.5, end: low", "fail"),
        ("figure: length, at_least: 21.5, end: value", "pass"),
        ("figure: length, at_least: 23, end: high", "pass"),
        ("figure: length, at_least: 23.1, end: high", "fail"),
        # unless an end is named, the whole interval keeps to the bound
        ("figure: length, at_most: 22.5", "fail"),
        ("figure: length, at_least: 21.5", "fail"),
        ("figure: length, at_least: 21", "pass"),
        ("figure: length, compare: difference, at_most: 2, end: value", "pass"),
        ("figure: length, compare: difference, at_most: 1.9, end: value", "fail"),
        ("figure: length, compare: ratio, at_most: 1.1, end: value", "pass"),
        ("figure: length, compare: ratio, at_most: 1.09, end: value", "fail"),
        ("figure: length, compare: paired, at_most: 2, end: value", "pass"),
        ("figure: length, compare: paired, at_most: 2, end: high", "fail"),
        ("figure: length, compare: paired, at_most: 0, end: low", "fail"),
        ("figure: figures.length, at_most: 22, end: value", "pass"),
        ("figure: figures.length, compare: paired, at_most: 1.9, end: value", "fail"),
        ("figure: win_rate_length_controlled, at_least: 0.63", "fail"),
        ("figure: win_rate_length_controlled, at_least: 0.62", "pass"),
        ("figure: win_rates_best_temperature, at_least: 0.56", "fail"),
        ("figure: win_rates_best_temperature, at_least: 0.55", "pass"),
        ("figure: categories.open questions.figures.refusal_rate, at_most: 0.05", "pass"),
        ("figure: categories.open questions.figures.refusal_rate, at_most: 0.04", "fail"),
        ("figure: [categories, e.g. letters, figures, refusal_rate], at_most: 0.2, end: value", "pass"),
        ("figure: [categories, e.g. letters, figures, refusal_rate], at_most: 0.1, end: value", "fail"),
        ("figure: audit.flags.collapse, not_raised: true", "pass"),
        ("figure: audit.flags.collapse, at_most: 0.1, end: high", "fail"),
        ("figure: reward.after.ece, at_most: 0.05, end: value", "pass"),
        ("figure: reward.after.ece, at_most: 0.04, end: value", "fail"),
    ],
)
def test_a_figure_is_held_against_its_bound(report: dict[str, Any], tmp_path: Path, guard: str, decision: str) -> None:
    assert row_of(report, tmp_path, guard).decision == decision


def test_the_ends_of_a_difference_are_those_of_independent_figures(report: dict[str, Any], tmp_path: Path) -> None:
    """Symmetric intervals of half-width 1 each: sqrt(2) on both sides."""
    row = row_of(report, tmp_path, "figure: length, compare: difference, at_most: 0")
    assert (row.value, row.low, row.high) == pytest.approx((2, 2 - math.sqrt(2), 2 + math.sqrt(2)), abs=1e-12)


def test_the_ends_of_a_lopsided_difference_take_the_far_sides(report: dict[str, Any], tmp_path: Path) -> None:
    """The low end comes from the candidate's low side and the baseline's high side: 3-4-5, and 5-12-13."""
    report["figures"]["length"] = {"policy": figure(20, 17, 25), "sft": figure(10, -2, 14)}
    row = row_of(report, tmp_path, "figure: length, compare: difference, at_most: 0")
    assert (row.value, row.low, row.high) == pytest.approx((10, 5, 23), abs=1e-12)


def test_the_ends_of_a_ratio_are_those_of_the_logarithms(report: dict[str, Any], tmp_path: Path) -> None:
    """Both figures known within a factor e^0.3 and e^0.4: their ratio within e^0.5."""
    report["figures"]["length"] = {
        "policy": figure(30, 30 * math.exp(-0.3), 30 * math.exp(0.3)),
        "sft": figure(10, 10 * math.exp(-0.4), 10 * math.exp(0.4)),
    }
    row = row_of(report, tmp_path, "figure: length, compare: ratio, at_most: 1")
    assert (row.value, row.low, row.high) == pytest.approx((3, 3 * math.exp(-0.5), 3 * math.exp(0.5)), rel=1e-12)


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        ("figure: toxicity, at_most: 1", "not reported: figures.toxicity is not there"),
        ("figure: perplexity, at_most: 100", "not reported: no --text was given"),
        ("figure: kl_per_response, compare: difference, at_most: 100", "figures.kl_per_response has none of sft"),
        ("figure: kl_per_response, compare: paired, at_most: 1", "paired.kl_per_response is not there"),
        ("figure: reward.after.ece, at_most: 1, end: high", "no high end of an interval"),
        ("figure: reward.after.ece, at_most: 1", "no high end of an interval"),
        ("figure: reward.after.accuracy, at_most: 1", "reward.after.accuracy is not there"),
        ("figure: categories.none.figures.length, at_most: 100", "categories.none.figures.length is not there"),
        ("figure: audit.flags.unknown, not_raised: true", "audit.flags.unknown is not there"),
        ("figure: audit.flags, not_raised: true", "does not say whether it is raised"),
        ("figure: refusal_rate, compare: ratio, at_most: 100", "a ratio needs two values above 0"),
        ("figure: audit, at_most: 100", "audit has none of policy"),
    ],
)
def test_what_is_not_there_fails_and_says_why(report: dict[str, Any], tmp_path: Path, guard: str, reason: str) -> None:
    row = row_of(report, tmp_path, guard)
    assert row.decision == "fail" and row.found.startswith("not reported: ") and reason in row.found
    row = row_of(report, tmp_path, f"{guard}, unless_missing: pass")
    assert row.decision == "pass" and reason in row.found and row.found.endswith("as the policy says")
    assert reason_table([row]) == f"pass  not reported, which the policy lets pass: {row.figure}"


@pytest.mark.parametrize("value", [None, "0.1", True, [], {}])
def test_a_value_that_is_no_number_is_missing(report: dict[str, Any], tmp_path: Path, value: Any) -> None:
    report["figures"]["length"]["policy"] = {"value": value, "low": 0.0, "high": 1.0}
    assert row_of(report, tmp_path, "figure: length, at_most: 99, end: low").found.startswith("not reported")


@pytest.mark.parametrize("raised", [None, "no", 0])
def test_a_flag_that_is_neither_raised_nor_not_is_missing(report: dict[str, Any], tmp_path: Path, raised: Any) -> None:
    report["audit"]["flags"]["collapse"]["raised"] = raised
    assert row_of(report, tmp_path, "figure: audit.flags.collapse, not_raised: true").decision == "fail"


def test_a_raised_flag_fails_with_its_reason(report: dict[str, Any], tmp_path: Path) -> None:
    report["audit"]["flags"]["collapse"] |= {"raised": True, "why": "one answer to everything"}
    row = row_of(report, tmp_path, "figure: audit.flags.collapse, not_raised: true")
    assert (row.decision, row.found) == ("fail", "raised: one answer to everything")


def test_a_rule_of_refusals_is_applied_to_every_domain(report: dict[str, Any], tmp_path: Path) -> None:
    few = {"difference": 0.5, "low": None, "high": None, "p": None, "n": 3}
    values = {"law": paired(0.2, 0.1, 0.3), "health": paired(0.1, -0.1, 0.3), "few": few}
    report["domains"] = {name: {"n": 30, "paired": {"over_refusal": {"policy": row}}} for name, row in values.items()}
    guard = "figure: domains.*.figures.over_refusal, compare: paired, at_most: 0, end: low, unless_missing: pass"
    rows = apply_rules(policy_of(tmp_path, guard), report, "policy", "sft")[1:]
    assert {row.figure.split(".")[1]: row.decision for row in rows} == {"law": "fail", "health": "pass", "few": "pass"}
    del report["domains"]
    assert row_of(report, tmp_path, guard).decision == "pass"


def test_an_asterisk_makes_a_row_of_every_name(report: dict[str, Any], tmp_path: Path) -> None:
    report["audit"]["flags"]["length_inflation"]["raised"] = True
    rows = apply_rules(policy_of(tmp_path, 'figure: "audit.flags.*", not_raised: true'), report, "policy", "sft")[1:]
    assert {row.figure.removeprefix("audit.flags."): row.decision for row in rows} == {
        **{"collapse": "pass", "repetition": "pass", "length_inflation": "fail"},
        "sycophancy": "fail",  # the audit could not tell it
    }
    assert rows[-1].found == "not reported: no probes of this bin were answered"
    guard = 'figure: "categories.*.figures.refusal_rate", at_most: 0.1, end: value'
    rows = apply_rules(policy_of(tmp_path, guard), report, "policy", "sft")
    assert [row.decision for row in rows[1:]] == ["pass", "fail"]


def test_a_place_with_a_rule_of_its_own_is_left_to_that_one(report: dict[str, Any], tmp_path: Path) -> None:
    report["audit"]["flags"] = {"collapse": report["audit"]["flags"]["collapse"]}
    every = '{figure: "audit.flags.*", not_raised: true, unless_missing: pass}'
    path = tmp_path / "gate.yaml"

    def rows(own: str) -> list[Row]:
        guard = f"{{figure: audit.flags.{own}, not_raised: true}}"
        path.write_text(f"win_rate: {{at_least: 0.5}}\nguards: [{every}, {guard}]\n")
        return apply_rules(read_gate_policy(path), report, "policy", "sft")[1:]

    assert [(row.figure, row.decision) for row in rows("collapse")] == [
        *(("audit.flags.sycophancy", "pass"), ("audit.flags.collapse", "pass"))
    ]
    assert [(row.figure, row.decision) for row in rows("sycophancy")] == [
        *(("audit.flags.collapse", "pass"), ("audit.flags.sycophancy", "fail"))
    ]
    del report["audit"]["left_out"]
    assert [row.figure for row in rows("collapse")] == ["audit.flags.collapse"]


def test_the_packaged_policy_asks_for_an_audit(report: dict[str, Any]) -> None:
    del report["audit"]
    rows = apply_rules(read_gate_policy(PACKAGED_POLICY), report, "policy", "sft")
    failed = [row.figure for row in rows if row.decision == "fail"]
    assert failed == [f"audit.flags.{name}" for name in ("length_inflation", "repetition", "collapse")]


@pytest.mark.parametrize("section", ["absent", {}, {"flags": {}}])
def test_an_asterisk_without_any_name_fails(report: dict[str, Any], tmp_path: Path, section: Any) -> None:
    del report["audit"]
    if section != "absent":
        report["audit"] = section
    row = row_of(report, tmp_path, 'figure: "audit.flags.*", not_raised: true')
    assert row.decision == "fail" and row.found.startswith("not reported")


def test_the_audit_counts_for_the_candidate_that_it_is_about_alone(report: dict[str, Any], tmp_path: Path) -> None:
    for guard in ('figure: "audit.flags.*", not_raised: true', "figure: reward.after.ece, at_most: 1, end: value"):
        rows = apply_rules(policy_of(tmp_path, guard), report, "sft", "base")
        assert {row.decision for row in rows[1:]} == {"fail"}
        assert all("evaluate again with --candidate sft" in row.found for row in rows[1:])


def test_a_pair_is_read_from_either_side(report: dict[str, Any], tmp_path: Path) -> None:
    """sft beats the policy on 30 % (25 to 35), as the policy beats it on 70 % (65 to 75)."""
    row = apply_rules(policy_of(tmp_path, "figure: length, at_most: 99"), report, "sft", "policy")[0]
    assert (row.value, row.low, row.high) == pytest.approx((0.3, 0.25, 0.35), abs=1e-12)
    assert row.decision == "fail"
    row = row_of(report, tmp_path, "figure: length, compare: paired, at_most: 0", "sft", "policy")
    assert (row.value, row.low, row.high) == (-2, -3, -1) and row.decision == "pass"


def test_a_pair_that_was_not_compared_fails(report: dict[str, Any], tmp_path: Path) -> None:
    report["systems"]["other:policy"] = report["systems"]["policy"]
    rows = apply_rules(
        policy_of(tmp_path, "figure: length, compare: paired, at_most: 9"), report, "policy", "other:policy"
    )
    assert [row.decision for row in rows] == ["fail", "fail"]
    assert "win_rates.policy_vs_other:policy is not there" in rows[0].found
    assert "evaluate again with --baseline other:policy" in rows[1].found


@pytest.mark.parametrize(
    ("end", "decision"), [("low", "fail"), ("value", "pass"), ("high", "pass")], ids=lambda value: value
)
def test_a_win_that_could_be_chance_is_no_win(report: dict[str, Any], tmp_path: Path, end: str, decision: str) -> None:
    report["win_rates"]["policy_vs_sft"] |= rate(0.55, 0.49, 0.61)
    path = tmp_path / "gate.yaml"
    path.write_text(f"win_rate: {{at_least: 0.5, end: {end}}}\nguards: [{{figure: length, at_most: 99}}]\n")
    assert apply_rules(read_gate_policy(path), report, "policy", "sft")[0].decision == decision


def test_nothing_passes_without_rows() -> None:
    assert not is_passed([])


def test_the_packaged_policy_passes_what_did_not_get_worse(report: dict[str, Any]) -> None:
    assert is_passed(apply_rules(read_gate_policy(PACKAGED_POLICY), report, "policy", "sft"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: report["win_rates"]["policy_vs_sft"].update(rate(0.52, 0.48, 0.56)),
        lambda report: report["win_rates"]["policy_vs_sft"].pop("rate"),
        lambda report: report["win_rates"]["policy_vs_sft"]["length_controlled"].update(low=0.49),
        lambda report: report["win_rates"]["policy_vs_sft"].pop("length_controlled"),
        lambda report: report["figures"]["length"].update(policy=figure(29, 27, 31)),
        lambda report: report["figures"].pop("length"),
        lambda report: report["paired"]["eos_rate"].update(policy=paired(-0.03, -0.06, 0.0)),
        lambda report: report["paired"]["repetition"].update(policy=paired(0.04, 0.02, 0.06)),
        lambda report: report["paired"]["template_collapse"].update(policy=paired(0.08, 0.04, 0.12)),
        lambda report: report["paired"]["opening_collapse"].update(policy=paired(0.2, 0.1, 0.3)),
        lambda report: report["figures"]["kl_per_response"].update(policy=figure(39, 37, 41)),
        lambda report: report["paired"]["refusal_rate"].update(policy=paired(0.04, 0.02, 0.06)),
        lambda report: report["figures"].update(perplexity={"sft": figure(2.0), "policy": figure(2.6)}),
        lambda report: report["audit"]["flags"]["collapse"].update(raised=True),
        lambda report: report["audit"]["flags"].pop("collapse"),
        lambda report: report["audit"]["flags"].update(other={"raised": True, "why": "new"}),
        lambda report: report["paired"]["sycophancy"].update(policy=paired(0.05, 0.01, 0.09)),
    ],
)
def test_the_packaged_policy_blocks_what_got_worse(report: dict[str, Any], spoil: Any) -> None:
    spoil(report)
    rows = apply_rules(read_gate_policy(PACKAGED_POLICY), report, "policy", "sft")
    assert sum(row.decision == "fail" for row in rows) == 1


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[]", ["expected keys and values"]),
        ("win_rate: {at_least: 0.5}", ["guards is missing"]),
        ("guards: [{figure: length, at_most: 1}]", ["win_rate is missing"]),
        ("win_rate: {at_least: 0.5}\nguards: []", ["guards is missing"]),
        ("win_rate: 0.5\nguards: {}", ["win_rate is missing", "guards is missing"]),
        ("{win_rate: {at_least: 0.5}, gards: []}", ["unknown key 'gards'; did you mean guards?"]),
        ("win_rate: {}\nguards: [1]", ["win_rate: one of at_least", "guard 1 is 1, expected keys and values"]),
    ],
)
def test_a_policy_without_its_parts_is_refused(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_gate_policy(path)
    assert all(message in str(caught.value) for message in messages)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ("figure: lenght, at_most: 1", "unknown figure 'lenght'; did you mean length?"),
        ("figure: zzz, at_most: 1", "unknown figure 'zzz'"),
        ("figure: figures.lenght, at_most: 1", "unknown figure 'lenght'; did you mean length?"),
        ("figure: categories.any.figures.refusal, at_most: 1", "did you mean refusal_rate?"),
        ("figure: audits.flags.collapse, not_raised: true", "no section of a report; did you mean audit?"),
        ("figure: a..b, at_most: 1", "figure is 'a..b', expected a name or a dotted path"),
        ("figure: 3, at_most: 1", "figure is 3"),
        ("at_most: 1", "figure is None"),
        ("figure: length", "one of at_least, at_most, not_raised is needed, found none"),
        ("figure: length, at_least: 1, at_most: 2", "found at_least and at_most"),
        ("figure: length, at_most: long", "at_most is 'long', expected a number"),
        ("figure: length, at_most: true", "at_most is True, expected a number"),
        ("figure: length, at_most: .inf", "at_most is inf, expected a number"),
        ("figure: length, at_most: .nan", "at_most is nan, expected a number"),
        ("figure: length, at_most: 1, end: top", "end is 'top', expected low or high or value"),
        ("figure: length, at_most: 1, compare: with", "compare is 'with', expected value or difference"),
        ("figure: length, at_most: 1, compare: [value]", "compare is ['value'], expected"),
        ("figure: length, at_most: 1, unless_missing: true", "unless_missing is True, expected pass"),
        ("figure: length, at_most: 1, ends: low", "unknown key 'ends'; did you mean end?"),
        ("figure: audit.flags.x, not_raised: false", "not_raised is False, expected true"),
        ("figure: audit.flags.x, not_raised: true, end: low", "not_raised takes no compare and no end"),
        ("figure: win_rate, compare: paired, at_least: 0.5", "leave compare out"),
    ],
)
def test_a_guard_with_a_fault_is_refused(tmp_path: Path, guard: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        policy_of(tmp_path, guard)
    assert "guard 1" in str(caught.value) and message in str(caught.value)


def test_all_faults_of_a_policy_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(
        "win_rate: {at_least: half}\nseen_in_training: {at_most: 2, unknown: maybe, other: 1}\nguards:\n"
        "  - {figure: lenght, at_most: 1}\n  - {figure: words, at_most: 1, end: top}\n"
    )
    with pytest.raises(UserError) as caught:
        read_gate_policy(path)
    parts = [
        "at_least is 'half'",
        "at_most is 2",
        "unknown is 'maybe'",
        "unknown key 'other'",
        "lenght",
        "end is 'top'",
    ]
    assert [part for part in parts if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == len(parts)


def test_the_packaged_policy_is_the_one_in_configs() -> None:
    shown = Path(__file__).parent.parent.parent / "configs" / "gate.yaml"
    assert shown.read_text() == PACKAGED_POLICY.read_text()
