"""The sections of a report: each a small function of the contest that returns the part of the report it fills in."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_rlhf.data.encode import EncodedRanking, Limits
from lora_rlhf.evaluate.auditing import run_audit
from lora_rlhf.evaluate.columns import Column
from lora_rlhf.evaluate.contest import Answers, Contest, LeftOut
from lora_rlhf.evaluate.figures import Figure, Paired
from lora_rlhf.evaluate.groups import FEWEST_OF_GROUP, by_category, clusters
from lora_rlhf.evaluate.harness import harness_columns
from lora_rlhf.evaluate.measuring import Measured, figures_of, paired_of, part_of
from lora_rlhf.evaluate.reward_figures import change, on_own_answers, ordering_figures
from lora_rlhf.evaluate.tax import chance, encode_choices, measure_tax, pack_text, window_of
from lora_rlhf.probes.bins import POLISH, failures, high_rewards
from lora_rlhf.stats.bradley_terry import bradley_terry
from lora_rlhf.stats.win_rates import Outcomes, length_controlled, win_rate

log = logging.getLogger("lora_rlhf")

Part = dict[str, Any]
NUM_LENGTHS = 16  # bars of the histogram of lengths


def preferences(contest: Contest, measured: Measured) -> Part:
    """Win rates of all pairs, and each system's against the baseline, at equal length too, with ratings."""
    rates = {pair: _win_rate(contest, pair, contest.outcomes[pair], contest.answers) for pair in contest.outcomes}
    figures: dict[str, dict[str, Figure]] = {"win_rate": {}, "win_rate_length_controlled": {}, "rating": {}}
    paired: dict[str, dict[str, Paired]] = {"win_rate": {}}
    lengths = {name: [len(answer.ids) for answer in held] for name, held in contest.answers.items()}
    for system, outcomes in contest.outcomes_against_baseline().items():
        found = win_rate(outcomes)
        figures["win_rate"][system] = Figure(found.rate, found.low, found.high, found.n)
        paired["win_rate"][system] = _from_half(found)
        gaps = [a - b for a, b in zip(lengths[system], lengths[contest.compared.baseline], strict=True)]
        figures["win_rate_length_controlled"][system] = Figure(*length_controlled(outcomes, gaps)[:4])
    played = {contest.compared.pairs[pair]: outcomes for pair, outcomes in contest.outcomes.items()}
    try:
        for system, rating in bradley_terry(played, contest.compared.baseline).items():
            figures["rating"][system] = Figure.of(*rating)
    except ValueError:  # the judge failed on all comparisons of a system
        del figures["rating"]
    return {"win_rates": rates, "figures": figures, "paired": paired}


def best_temperatures(contest: Contest, measured: Measured) -> Part:
    """The same win rates with each system at the temperature that suits it best."""
    if not contest.selection:
        raise LeftOut("no other prompts to choose a temperature on: give --selection_prompts")
    if not contest.sweep:
        raise LeftOut(f"the judge {contest.judge.name} compares pairs and gives no score to choose a temperature by")
    found = {pair: win_rate(outcomes)._asdict() for pair, outcomes in contest.best_outcomes.items()}
    sweep = {name: {f"{t:g}": mean for t, mean in means.items()} for name, means in contest.sweep.items()}
    return {"win_rates_best_temperature": found, "best_temperature": contest.best, "temperature_sweep": sweep}


def answers(contest: Contest, measured: Measured) -> Part:
    """Every figure that was measured on each answer, and its difference from the baseline's."""
    return {"figures": figures_of(measured), "paired": paired_of(measured, contest.compared.baseline)}


def categories(contest: Contest, measured: Measured) -> Part:
    """The same figures for each category of prompts."""
    if contest.categories is None:
        raise LeftOut("the prompts have no category: give them a column, and its name with --category")
    return {"categories": _groups(contest, measured, contest.categories)}


def languages(contest: Contest, measured: Measured) -> Part:
    """The same figures for each language of prompts."""
    if len(set(contest.languages)) < 2:
        raise LeftOut(f"all prompts are of one language or script, {contest.languages[0]}")
    return {"languages": _groups(contest, measured, contest.languages)}


def failures_in_clusters(contest: Contest, measured: Measured) -> Part:
    """Whether the prompts that the candidate loses gather in a category or a language."""
    compared = contest.compared
    outcomes = contest.outcomes[f"{compared.candidate}_vs_{compared.baseline}"]
    lost = [None if won is None else float(won < 0.5) for won in outcomes]
    found = {"language": clusters(lost, contest.languages)}
    if contest.categories is not None:
        found = {"category": clusters(lost, contest.categories), **found}
    if not any(found.values()):
        raise LeftOut(f"fewer than two categories or languages have {FEWEST_OF_GROUP} prompts")
    return {"clusters": {kind: cluster for kind, cluster in found.items() if cluster is not None}}


def probes(contest: Contest, measured: Measured) -> Part:
    """The share of each failure bin's cases that a system failed, and its difference from the baseline's."""
    failed = _failed(contest)
    if not failed:
        raise LeftOut(contest.frozen.left_out["probes"])
    cases = {
        name: {bin: Column("share", [float(case) for case in bins]) for bin, bins in own.items()}
        for name, own in failed.items()
    }
    return {"figures": figures_of(cases), "paired": paired_of(cases, contest.compared.baseline)}


def tax(contest: Contest, measured: Measured) -> Part:
    """Perplexity on held-out text and accuracy on multiple-choice questions; `left_out` has why one is missing."""
    model, config, frozen = contest.model, contest.config, contest.frozen
    text = None if frozen.texts is None else pack_text(model.tokenizer, frozen.texts, window_of(model))
    questions: list[EncodedRanking] = []
    if frozen.choices is not None:
        limits = Limits(config.max_prompt_tokens, config.max_response_tokens)
        questions, refused = encode_choices(model.tokenizer, frozen.choices.choices, limits)
        if refused.count:
            log.warning("multiple-choice questions: %s", refused.summary())
    roles = {system.name: system.role for system in contest.compared.systems}
    found = measure_tax(model, roles, text, questions, config.micro_batch_size)
    part: Part = {"figures": figures_of(found), "paired": paired_of(found, contest.compared.baseline)}
    return part | ({"chance": chance(questions)} if questions else {})


def tasks(contest: Contest, measured: Measured) -> Part:
    """{task/metric: {figures, paired}} of EleutherAI's harness."""
    if not contest.tasks:
        raise LeftOut("no tasks of EleutherAI's harness were asked for: give their names with --lm_eval")
    roles = {system.name: system.role for system in contest.compared.systems}
    config = contest.config
    found = harness_columns(contest.model, roles, contest.tasks, config.micro_batch_size, config.lm_eval_limit)
    figures, paired = figures_of(found), paired_of(found, contest.compared.baseline)
    return {"tasks": {name: {"figures": row, "paired": paired.get(name, {})} for name, row in figures.items()}}


def hacking(contest: Contest, measured: Measured) -> Part:
    """The reward-hacking audit: flags, and answers that reward and judge place apart."""
    return {"audit": run_audit(contest, measured, _failed(contest))}


def reward(contest: Contest, measured: Measured) -> Part:
    """The reward model on held-out rankings, before, and on the answers that the judge compared, after."""
    stage, compared = contest.compared.stages.reward, contest.compared
    if stage is None or contest.reward is None:
        raise LeftOut("the run has no reward stage")
    before = stage.manifest["results"]
    if contest.judge.name == "reward":
        return {"reward": {"before": before}}
    two = (compared.candidate, compared.baseline)
    outcomes = contest.outcomes[f"{compared.candidate}_vs_{compared.baseline}"]
    scores = [contest.reward.scores(contest.prompts, contest.answers[name]) for name in two]
    tokens = [[float(len(answer.ids)) for answer in contest.answers[name]] for name in two]
    after = on_own_answers(outcomes, (scores[0], scores[1]), (tokens[0], tokens[1]))
    figures = {name: {compared.candidate: found} for name, found in ordering_figures(after).items()}
    return {"reward": {"before": before, "after": after, "change": change(before, after)}, "figures": figures}


def lengths(contest: Contest, measured: Measured) -> Part:
    """How many answers of each system are how long: a histogram in tokens."""
    counts = {name: [len(answer.ids) for answer in held] for name, held in contest.answers.items()}
    longest = max(max(held) for held in counts.values())
    width = max(1, math.ceil((longest + 1) / NUM_LENGTHS))
    bars = longest // width + 1
    edges = [width * i for i in range(bars + 1)]
    binned = {name: [sum(n // width == i for n in held) for i in range(bars)] for name, held in counts.items()}
    return {"lengths": {"edges": edges, "counts": binned}}


# In the order in which they are computed; what one adds to "figures" and "paired" is merged.
SECTIONS: Mapping[str, Callable[[Contest, Measured], Part]] = {
    "preferences": preferences,
    "best_temperature": best_temperatures,
    "answers": answers,
    "categories": categories,
    "languages": languages,
    "clusters": failures_in_clusters,
    "probes": probes,
    "tax": tax,
    "tasks": tasks,
    "reward": reward,
    "audit": hacking,
    "lengths": lengths,
}


def compute(contest: Contest, measured: Measured, left_out: dict[str, str]) -> Part:
    """All sections as one part of the report; `left_out` is told of those that could not be computed, and why."""
    whole: Part = {"figures": {}, "paired": {}}
    for name, section in SECTIONS.items():
        with contest.timed(name):
            try:
                found = section(contest, measured)
            except LeftOut as reason:
                left_out[name] = str(reason)
                continue
        for key in ("figures", "paired"):
            whole[key] |= {figure: row for figure, row in found.pop(key, {}).items() if row}
        whole |= found
    return whole


def _failed(contest: Contest) -> dict[str, dict[str, list[bool]]]:
    """{system: {bin: whether each of its cases failed}}; empty without probes."""
    frozen = contest.frozen.probes
    if frozen is None:
        return {}
    high: Mapping[str, Sequence[bool] | None] = dict.fromkeys(contest.compared.names)
    if contest.reward is not None and any(probe.bin == POLISH for probe in frozen.probes):
        asked = contest.probe_prompts
        scores = {name: contest.reward.scores(asked, held) for name, held in contest.probe_answers.items()}
        high = high_rewards(scores, frozen)
    return {
        name: failures(frozen, [answer.text for answer in held], contest.world, high[name])
        for name, held in contest.probe_answers.items()
    }


def _win_rate(contest: Contest, pair: str, outcomes: Outcomes, held: Answers) -> Part:
    one, other = contest.compared.pairs[pair]
    gaps = [len(a.ids) - len(b.ids) for a, b in zip(held[one], held[other], strict=True)]
    return {**win_rate(outcomes)._asdict(), "length_controlled": length_controlled(outcomes, gaps)._asdict()}


def _from_half(found: Any) -> Paired:
    """A win rate as its difference from a half, which is what two equal systems would have."""
    if found.rate is None:
        return Paired(None, None, None, None, 0)
    return Paired(found.rate - 0.5, found.low - 0.5, found.high - 0.5, found.p, found.n)


def _groups(contest: Contest, measured: Measured, labels: Sequence[str]) -> Part:
    """{label: {n, figures, paired, win_rates}}; a group of under ten prompts has values without intervals or tests."""
    return {label: _group(contest, measured, rows) for label, rows in by_category(labels).items()}


def _group(contest: Contest, measured: Measured, rows: Sequence[int]) -> Part:
    baseline = contest.compared.baseline
    own = part_of(contest, measured, rows)
    rates = {pair: win_rate([outcomes[i] for i in rows])._asdict() for pair, outcomes in contest.outcomes.items()}
    figures = figures_of(own)
    won = {s: win_rate([o[i] for i in rows]) for s, o in contest.outcomes_against_baseline().items()}
    figures["win_rate"] = {s: Figure(found.rate, found.low, found.high, found.n) for s, found in won.items()}
    found = {"n": len(rows), "figures": figures, "paired": paired_of(own, baseline), "win_rates": rates}
    if len(rows) >= FEWEST_OF_GROUP:
        return found
    few = {name: {s: one._replace(low=None, high=None) for s, one in row.items()} for name, row in figures.items()}
    bare = {pair: rate | {"low": None, "high": None, "p": None} for pair, rate in rates.items()}
    return found | {"figures": few, "paired": {}, "win_rates": bare, "too_few": FEWEST_OF_GROUP}
