"""The HTML report: one page that needs nothing else, for somebody who has not read the paper."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lora_rlhf.evaluate.charts import charts
from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.evaluate.groups import FEWEST_OF_GROUP
from lora_rlhf.evaluate.page_audit import audit
from lora_rlhf.evaluate.page_cells import html_table, stacked, titled_cell, word_cell
from lora_rlhf.evaluate.page_samples import samples
from lora_rlhf.evaluate.page_style import SCRIPT, STYLE
from lora_rlhf.evaluate.seen import warning
from lora_rlhf.evaluate.wording import (
    JUDGES,
    NOTHING,
    change,
    difference,
    figure,
    interval,
    listed,
    name_of,
    number,
    p_value,
    percent,
    titled,
)

Report = Mapping[str, Any]

# What each of the five questions should be answered by, in their order.
HOPED_FOR = ("yes", "no", "yes", "no", "no")

# The figures in groups, as the catalogue has them; what is not named here comes under the last.
GROUPS: Mapping[str, Sequence[str]] = {
    "Preference": ("win_rate", "win_rate_length_controlled", "rating", "score", "reward_score"),
    "Safety and truth": ("refusal_rate", "toxicity", "untruthfulness"),
    "Ways to fail, each with prompts of its own": (
        *("instruction_miss", "reward_polish", "refusal_overreach", "hallucinated_certainty", "length_inflation"),
        *("inconsistency", "sycophancy"),
    ),
    "Reward model": ("reward_accuracy", "reward_ece", "reward_length_correlation"),
    "What alignment may cost": ("perplexity", "choice_accuracy"),
    "Distance from the reference": ("kl_per_token", "kl_per_response", "entropy"),
    "Form and variety of the answers": (),
}


def page(report: Report, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page report.html. rows: of the samples file."""
    title = f"Evaluation of {report['config']['run']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='soft'>{escape(_about(report))}</p>",
        f"<p class='verdict'>{escape(report['verdict'])}</p>",
        _warnings(report),
        _questions(report),
        _comparison(report),
        _charts(report),
        _figures(report),
        _tasks(report),
        audit(report),
        _categories(report),
        _temperatures(report),
        samples(report, rows),
        _left_out(report),
        _made_from(report),
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _about(report: Report) -> str:
    used, judge = report["sets"]["prompts"]["used"], report["judge"]["name"]
    systems = listed([name_of(name) for name in report["systems"]])
    return (
        f"{systems[0].upper() + systems[1:]} answered the same {used} held-out prompts; the "
        f"{JUDGES.get(judge, judge)} compared the answers. Made {report['created'][:16].replace('T', ' ')} UTC."
    )


def _warnings(report: Report) -> str:
    told = [f"Careful: {told}." for told in [warning(report["training_data"])] if told]
    used = report["sets"]["prompts"]["used"]
    told += (
        [f"There are only {used} prompts: hardly anything can be told from so few."] if used < FEWEST_OF_GROUP else []
    )
    failures = report["judge"].get("failures")
    told += [f"The judge gave no usable answer on {failures} comparisons; they are left out."] if failures else []
    return "".join(f"<p class='warning'>{escape(text)}</p>" for text in told)


def _questions(report: Report) -> str:
    items = []
    for row, hoped in zip(report["questions"], HOPED_FOR, strict=False):
        tone = "" if row["answer"] == "unknown" else "good" if row["answer"] == hoped else "bad"
        items.append(
            f"<li><span class='badge {tone}'>{escape(row['answer'])}</span><div><h3>{escape(row['question'])}</h3>"
            f"<p>{escape(row['figure'])}</p></div></li>"
        )
    return (
        "<h2>Did the training work?</h2><p class='soft'>Five questions decide. Green is what one hopes for, red is not;"
        " unknown means that these prompts cannot tell.</p><ol class='questions'>" + "".join(items) + "</ol>"
    )


def _comparison(report: Report) -> str:
    found = report.get("comparison")
    if not found:
        return ""
    head = ["figure", "system", "then", "now", ""]
    rows = []
    for row in found["moved"]:
        kind = CATALOGUE[row["figure"]]
        cells = [name_of(row["system"]), figure(row["figure"], row["before"]), figure(row["figure"], row["after"])]
        rows.append([titled_cell(kind.title, kind.meaning), *map(escape, cells), word_cell(row["verdict"])])
    told = f"Of {found['compared']} figures, {len(rows)} moved beyond their intervals since {found['with']}."
    table = html_table(head, rows) if rows else ""
    return f"<h2>Against the earlier report</h2><p>{escape(told)}</p>{table}"


def _charts(report: Report) -> str:
    drawn = [
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(meaning)}</p></figcaption>{svg}</figure>"
        for title, meaning, svg in charts(report)
    ]
    return f"<div class='charts'>{''.join(drawn)}</div>" if drawn else ""


def _figures(report: Report) -> str:
    """Every figure of every system, with its meaning and what the paired test says of the candidate."""
    systems = list(report["systems"])
    named = {name for names in GROUPS.values() for name in names}
    body = []
    for group, names in GROUPS.items():
        there = [name for name in names or [n for n in CATALOGUE if n not in named] if name in report["figures"]]
        if there:
            body.append(f"<tr class='group'><th colspan='{len(systems) + 2}'>{escape(group)}</th></tr>")
            body += [_figure_row(report, name, systems) for name in there]
    head = "".join(
        f"<th>{escape(text)}</th>" for text in ("", *systems, f"{report['candidate']} against {report['baseline']}")
    )
    return (
        "<h2>Every figure</h2><p class='soft'>Each with its 95 % interval in brackets: where the true value probably "
        "lies. The last column compares the two on the same prompts; it is empty where the difference may be chance."
        f"</p><div class='wide'><table class='stacks'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure_row(report: Report, name: str, systems: Sequence[str]) -> str:
    kind, row = CATALOGUE[name], report["figures"][name]
    cells = []
    for system in systems:
        text = stacked(figure(name, row[system])) if system in row else NOTHING
        cells.append(f"<td data-label='{escape(system)}'>{text}</td>")
    paired = report["paired"].get(name, {}).get(report["candidate"])
    word = change(name, paired)
    told = ""
    if word and paired is not None:
        told = f"{difference(name, paired)}, {p_value(paired['p'])}"
        told = f"<span>{word_cell(word)}<small>{escape(told)}</small></span>"
    return (
        f"<tr><th>{titled_cell(titled(name), kind.meaning)}</th>{''.join(cells)}"
        f"<td data-label='against {escape(report['baseline'])}'>{told}</td></tr>"
    )


def _tasks(report: Report) -> str:
    """EleutherAI's tasks, where there are any."""
    if not report.get("tasks"):
        return ""
    systems, rows = list(report["systems"]), []
    for name, task in report["tasks"].items():
        cells = [stacked(interval(task["figures"][s])) if s in task["figures"] else NOTHING for s in systems]
        rows.append([escape(name), *cells])
    return f"<h2>Tasks of EleutherAI's harness</h2>{html_table(['', *systems], rows)}"


def _categories(report: Report) -> str:
    """Each category's win rate and score, and which other figures moved there."""
    parts = []
    for key, title in (("categories", "By category"), ("languages", "By language")):
        groups = report.get(key, {})
        if len(groups) < 2:
            continue
        pair, candidate, baseline = (
            f"{report['candidate']}_vs_{report['baseline']}",
            report["candidate"],
            report["baseline"],
        )
        head = ["", "prompts", f"win rate against {baseline}"]
        scored = any("score" in group["figures"] for group in groups.values())
        head += [f"score, {baseline}", f"score, {candidate}"] if scored else []
        rows = []
        for name, group in groups.items():
            cells = [str(group["n"]), percent(group["win_rates"][pair]) if pair in group["win_rates"] else NOTHING]
            score = group["figures"].get("score", {})
            cells += (
                [figure("score", score[s]) if s in score else NOTHING for s in (baseline, candidate)] if scored else []
            )
            rows.append([escape(name), *map(stacked, cells), _moved(group.get("paired", {}), candidate)])
        few = "Groups of fewer than ten prompts have no interval: they are too few to tell."
        parts.append(f"<h2>{title}</h2><p class='soft'>{few}</p>{html_table([*head, 'also changed'], rows)}")
    return "".join(parts)


def _moved(paired: Mapping[str, Any], candidate: str) -> str:
    """The figures of a group, win rate and score aside, that got better or worse."""
    words = [
        (name, change(name, row.get(candidate))) for name, row in paired.items() if name not in ("score", "win_rate")
    ]
    told = [f"{escape(CATALOGUE[name].title)} {word_cell(word)}" for name, word in words if word in ("better", "worse")]
    return ", ".join(told)


def _temperatures(report: Report) -> str:
    sweep = report.get("temperature_sweep")
    if not sweep:
        return ""
    head = ["", *(f"T {t}" for t in next(iter(sweep.values())))]
    rows = [[escape(system), *(number(mean) for mean in means.values())] for system, means in sweep.items()]
    return (
        "<h2>Sharper sampling</h2><p class='soft'>Lower temperatures make any model's answers safer without learning. "
        f"Mean score on {report['sets']['selection']['used']} other prompts; each system's best is then used above.</p>"
        + html_table(head, rows)
    )


def _left_out(report: Report) -> str:
    rows = [[escape(section.replace("_", " ")), escape(why)] for section, why in report["left_out"].items()]
    return f"<h2>Not measured</h2>{html_table(['', 'why'], rows)}" if rows else ""


def _made_from(report: Report) -> str:
    base, facts = report["base"], []
    facts.append(("base", f"{base['name']}, {base['quantization']}, {base['source_hash'][:16]}"))
    for name, system in report["systems"].items():
        if system["stage"] is not None:
            facts.append((name, f"{system['run']}, stage {system['stage']}, {system['id']}"))
    for name, found in report["sets"].items():
        shown = [f"{key.replace('_', ' ')} {value}" for key, value in found.items() if value is not None]
        facts.append((name, ", ".join(shown)))
    facts.append(("judge", ", ".join(f"{key} {value}" for key, value in report["judge"].items() if value is not None)))
    facts.append(
        ("time", ", ".join(f"{key.replace('_', ' ')} {value:.1f} s" for key, value in report["seconds"].items()))
    )
    facts.append(("memory", f"{report['peak_rss_gib']:.2f} GiB, on the GPU {report['peak_gpu_gib']:.2f} GiB"))
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in facts)
    told = "Reports compare only where the hashes of their sets agree."
    return f"<h2>What this was made from</h2><p class='soft'>{told}</p><dl>{terms}</dl>"
