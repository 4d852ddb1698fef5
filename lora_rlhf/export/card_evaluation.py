"""The evaluation in a model card: how it was made, what was found, and everything that got worse."""

from collections.abc import Iterator, Mapping
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.export.lineage import Lineage, at, numbers
from lora_rlhf.export.markdown import bullets, capital, plain, rows_of, short

SURE = 0.05  # the p-value below which a figure counts as having moved
JUDGES = {
    "gold": "the exact score of the tiny world, which training never saw",
    "reward": "the run's own reward model, which the policy was trained to please",
    "human": "people",
    "local": "a chat model on the same machine",
    "endpoint": "a chat model behind an API",
}
OF_REWARD_MODEL = ("reward_accuracy", "reward_ece", "reward_length_correlation")


def evaluation(facts: Mapping[str, Any], lineage: Lineage) -> str:
    """The section. An evaluation of another model than the exported one is not shown as its own."""
    report, role = lineage.report, facts["role"]
    if report is None:
        return "## Evaluation\n\nThe run had no evaluation that can be read here when this was exported.\n"
    if BY_ROLE[role].scores:
        return _of_reward_model(report)
    judged = at(report, "systems", role)
    if at(judged, "id") != facts["source"]["id"]:
        what = "this model was not part of it" if judged is None else "it was made before this model was trained"
        return f"## Evaluation\n\nThe run's evaluation is left out: {what}.\n"
    baseline, is_candidate = report["baseline"], role == report["candidate"]
    parts = ["## Evaluation\n"]
    if is_candidate:
        parts.append(f"{plain(report['verdict'])}\n")
    parts += [_how(report), _table(report, tuple(CATALOGUE))]
    if role != baseline:
        parts += [f"### Worse than {plain(baseline)}\n", _worse(report, role)]
    if is_candidate:
        parts += ["### Questions\n", bullets(_answered(one) for one in report["questions"])]
        if flags := at(report, "audit", "flags"):
            parts += ["### Reward hacking\n", bullets(_flags(flags))]
    return "\n".join(parts)


def _of_reward_model(report: Mapping[str, Any]) -> str:
    found = _table(report, OF_REWARD_MODEL)
    said = found or "The run's evaluation has no figures of the reward model.\n"
    origin = f"On answers of `{plain(report['candidate'])}` and `{plain(report['baseline'])}`, after the update.\n\n"
    return f"## Evaluation\n\n{origin if found else ''}{said}"


def _how(report: Mapping[str, Any]) -> str:
    """On what, by whom, and how to read the table."""
    prompts = at(report, "sets", "prompts")
    judge, baseline = report["judge"], plain(report["baseline"])
    who = JUDGES.get(judge["name"], plain(judge["name"]))
    if at(judge, "model") is not None:
        who += f", {short(judge['model'])}"
    seen = numbers(report["training_data"], "seen", "prompts")
    held_out = "" if seen is None else f", of which training had seen {seen[0]:,.0f}"
    return (
        f"{at(prompts, 'used')} prompts (`{short(at(prompts, 'path'))}`){held_out}. Judge: {who}. "
        f"Win rates, rating and p-values are against `{baseline}`. In brackets: 95 % intervals.\n"
    )


def _table(report: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """A row for each figure that was measured; empty without any."""
    systems = list(report["systems"])
    rows = []
    for name in names:
        row, kind = at(report, "figures", name), CATALOGUE[name]
        if row is not None:
            cells = (_figure(at(row, system)) for system in systems)
            better = "" if kind.better == "neither" else kind.better
            rows.append((kind.title, kind.unit, *cells, better, kind.meaning))
    return rows_of(("figure", "unit", *map(plain, systems), "better", "what it is"), rows) if rows else ""


def _figure(value: Any) -> str:
    found = numbers(value, "value")
    around = numbers(value, "low", "high")
    if found is None:
        return ""
    return f"{found[0]:.3g}" + (f" ({around[0]:.3g} to {around[1]:.3g})" if around else "")


def _worse(report: Mapping[str, Any], system: str) -> str:
    compared, found = 0, []
    for name, row in report["paired"].items():
        kind, moved = CATALOGUE.get(name), numbers(at(row, system), "difference", "p")
        if kind is None or moved is None or kind.better == "neither":
            continue
        compared += 1
        if (moved[0] < 0) == (kind.better == "higher") and moved[1] < SURE:
            before, after = (_figure(at(report, "figures", name, one)) for one in (report["baseline"], system))
            change = f", from {before} to {after}" if before and after else ""
            found.append(f"{kind.title}, by {abs(moved[0]):.3g} (p {moved[1]:.2g}){change}")
    if not found:
        return f"Of {compared} figures, none is worse further than chance explains (p below {SURE:g}).\n"
    return f"Further than chance explains (p below {SURE:g}), {len(found)} of {compared} figures:\n\n{bullets(found)}"


def _answered(one: Mapping[str, Any]) -> str:
    return f"{plain(one['question'])} **{capital(one['answer'])}.** {plain(one['figure'])}"


def _flags(flags: Mapping[str, Any]) -> Iterator[str]:
    """Those that were raised, and how many were not."""
    raised = [flag for flag in flags.values() if flag["raised"]]
    untold = sum(flag["raised"] is None for flag in flags.values())
    for flag in raised:
        yield f"A sign of it: {plain(flag['why'])}"
    rest = f", {untold} could not be told" if untold else ""
    yield f"{len(raised)} of {len(flags)} signs were found{rest}."
