"""The figures of feedback that goes round: process rewards, revisions, rounds, labels of a judge."""

from collections.abc import Iterable
from typing import Any

from figure_text import mean_text, rate_text, table


def process_rewards(results: Any) -> dict[str, str]:
    seeds = list(results["process_rewards"]["seeds"].values())
    sizes = list(seeds[0]["best_of"]["outcome"])
    rows = [
        " | ".join([way, *(_rates(seed["best_of"][way][n] for seed in seeds) for n in sizes)])
        for way in seeds[0]["best_of"]
    ]
    labels = []
    for name in seeds[0]["rewards"]:
        rewards = [seed["rewards"][name] for seed in seeds]
        counts = [", ".join(f"{one[part]}" for one in rewards) for part in ("answers", "labelled_steps")]
        commoner, ece = (
            ", ".join(f"{one['majority']:.1%}" for one in rewards),
            ", ".join(f"{one['ece']:.3f}" for one in rewards),
        )
        accuracy = _rates(one["step_accuracy"] for one in rewards)
        labels.append(" | ".join([name, *counts, accuracy, commoner, ece]))
    policies = [f"{way} | {_rates(seed['policies'][way]['right'] for seed in seeds)}" for way in seeds[0]["policies"]]
    return {
        "process": table(f"chosen by | {' | '.join(f'best of {n}' for n in sizes)}", *rows),
        "process_labels": table(
            "reward | answers | labels | held-out accuracy | the commoner label alone | ECE", *labels
        ),
        "process_ppo": table("policy | right results", *policies),
    }


def _rates(rates: Iterable[Any]) -> str:
    return ", ".join(f"{one['rate']:.1%}" for one in rates)


def revise(results: Any) -> dict[str, str]:
    seeds = list(results["revise"]["seeds"].values())
    golds = {"the writers' demonstrations": [seed["gold_of_written_demonstrations"] for seed in seeds]}
    for number in range(len(seeds[0]["gold_of_answers_by_round"])):
        title = f"the same after round {number}" if number else "answers of the SFT model that learned these"
        golds[title] = [seed["gold_of_answers_by_round"][number] for seed in seeds]
    rows = [f"{title} | {', '.join(map(mean_text, row))}" for title, row in golds.items()]
    return {"revise": table("mean gold score | by seed", *rows)}


def rounds(results: Any) -> dict[str, str]:
    result = results["rounds"]
    seeds = list(result["seeds"].values())
    ways = {"three rounds": "rounds", "one pass": "one_pass"}
    systems = {"three rounds": "policy", "one pass": "one-pass:policy"}
    rows = [
        "the last policy wins against that of one pass | " + " | ".join(rate_text(seed["win_rate"]) for seed in seeds)
    ]
    rows += [
        f"mean gold score, {title} | {' | '.join(mean_text(seed['gold'][system]) for seed in seeds)}"
        for title, system in systems.items()
    ]
    rows += [
        f"reward model on answers of its own policy, {title} | "
        + " | ".join(mean_text(seed["reward_accuracy_on_own_policy"][way]["reward_model"]) for seed in seeds)
        for title, way in ways.items()
    ]
    golds = [seed["reward_accuracy_on_own_policy"] for seed in seeds]
    rows.append(
        "the gold score on the same pairs, three rounds and one pass | "
        + " | ".join(", ".join(f"{own[way]['gold_score']['rate']:.3f}" for way in ways.values()) for own in golds)
    )
    for number in (2, 3):
        records = [next(one for one in seed["records"] if one["number"] == number) for seed in seeds]
        for when in ("before", "after"):
            cells = [mean_text(record["measured"][when]) for record in records]
            rows.append(
                f"reward model on answers of round {number - 1}'s policy, {when} round {number} | {' | '.join(cells)}"
            )
    kills = results["rounds"]["kills"]
    return {
        "rounds": table(
            f"by the gold score, or labels | {' | '.join(f'seed {seed}' for seed in result['seeds'])}", *rows
        ),
        "round_kills": f"{kills['kills']} times",
    }


def ai_feedback(results: Any) -> dict[str, str]:
    result = results["ai_feedback"]
    seeds = list(result["seeds"].values())
    rows = []
    for name in seeds[0]["labels"]:
        labels, policies = ([seed[part][name] for seed in seeds] for part in ("labels", "policies"))
        against = " | ".join(
            ", ".join(f"{one[key]['rate']:.1%}" if key in one else "-" for one in labels)
            for key in ("as_gold", "against_people")
        )
        wins = ", ".join(rate_text(one["win_rate"]) for one in policies)
        gold = ", ".join(f"{one['gold']['value']:.3f}" for one in policies)
        cost = f"{labels[0]['calls']:,} questions, {labels[0]['cost']:.2f}" if "calls" in labels[0] else "people's time"
        rows.append(f"{name} | {against} | {wins} | {gold} | {cost}")
    head = "labels by | pairs as the gold score | as labelers | policy wins against SFT | mean gold score | cost"
    return {"ai_feedback": table(head, *rows)}


PAGES = (process_rewards, revise, rounds, ai_feedback)
