"""The model card of an export: README.md, from what the export and the run folder say and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME, BY_ROLE, PPO, REWARD
from lora_rlhf.exporting.card_evaluation import evaluation
from lora_rlhf.exporting.card_usage import usage
from lora_rlhf.exporting.lineage import Lineage, Stage, at, numbers, read_lineage
from lora_rlhf.exporting.markdown import bullets, plain, short
from lora_rlhf.exporting.parity_table import table
from lora_rlhf.model.files import HUB_NAME
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.render.wording import capital
from lora_rlhf.system.disk import write_text

LIBRARIES = {"merged": "transformers", "classifier": "transformers", "adapter": "peft", "gguf": "gguf"}
KINDS = {
    "merged": "a plain transformers model, into which the adapter was merged",
    "classifier": "a plain transformers sequence classifier with one output, into which the adapter was merged",
    "adapter": "the LoRA adapter alone",
    "gguf": "a GGUF file, into which the adapter was merged",
}


def write_card(folder: Path, facts: Mapping[str, Any], run: Path) -> None:
    """README.md of an export. `facts` is its manifest, as far as it is known; `run` the folder of its run."""
    write_text(folder / "README.md", card(facts, read_lineage(run, facts["role"])))


def card(facts: Mapping[str, Any], lineage: Lineage) -> str:
    """The card's text. No path in it is absolute, and texts of the run cannot break out of their place."""
    base, title = short(facts["source"]["base"]["name"]), BY_ROLE[facts["role"]].model_title
    sections = [
        _front(facts),
        f"# {capital(title)} on {base}\n",
        f"This is {KINDS[facts['kind']]}. It was trained with `lora-rlhf` on {base}, which stayed frozen in "
        f"{facts['source']['base']['quantization']}: {title}, stage `{facts['source']['stage']}` "
        f"(id `{facts['source']['id']}`) of run `{plain(facts['source']['run'])}`.\n",
        "## How close it is to what was trained\n\n" + _closeness(facts),
        "## How it was made\n\n" + _stages(lineage),
        _data(lineage),
        _reward(lineage),
        _ppo(lineage),
        evaluation(facts, lineage),
        "## Use and limits\n\n" + _limits(facts, lineage),
        "## How to run it\n\n" + usage(facts, base),
        "## Made with\n\n" + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".\n",
    ]
    return "\n".join(section for section in sections if section)


def _front(facts: Mapping[str, Any]) -> str:
    """The metadata that the hub reads. Strings are written as JSON, which is YAML too."""
    base, licence = facts["source"]["base"]["name"], facts["licence"]["name"]
    stage = BY_ROLE[facts["role"]]
    values: dict[str, Any] = {
        "base_model": base if "/" in base and HUB_NAME.fullmatch(base) else None,
        "license": licence,
        "library_name": LIBRARIES[facts["kind"]],
        "pipeline_tag": "text-classification" if stage.scores else "text-generation",
        "tags": ["lora-rlhf", "lora", "rlhf", stage.hub_tag],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def _closeness(facts: Mapping[str, Any]) -> str:
    parity = facts["parity"]
    if not parity["measured"]:
        return f"Not measured: {plain(parity['why'])}.\n"
    figures = table({**parity, "prompts_from": _without_path(parity["prompts_from"])})
    paragraphs = [
        capital(f"{plain(facts['meaning'])}, in {facts['dtype']}."),
        "Left this export, in the middle the same adapter merged the other way, on the right the base without the "
        "adapter: all that there was to lose.",
        f"```text\n{figures}\n```",
    ]
    if facts["kind"] == "gguf":
        paragraphs.append(f"Measured before the weights were stored as {facts['gguf_type']}.")
        paragraphs.append(f"llama.cpp computes the same as transformers for up to {facts['context']:,} tokens.")
    if parity["forced"]:
        paragraphs.append("**It is further from the trained model than the limits allow, and was exported by force.**")
    return "\n\n".join(paragraphs) + "\n"


def _stages(lineage: Lineage) -> str:
    rows = [
        (BY_NAME[stage.name].title, f"`{stage.manifest['id']}`", _settings(stage), f"{stage.manifest['seconds']:.0f}")
        for stage in lineage.stages
    ]
    return _table(("stage", "id", "settings", "seconds"), rows)


def _settings(stage: Stage) -> str:
    names = (name for name in BY_NAME[stage.name].settings if stage.config.get(name) not in (None, False, ""))
    return ", ".join(f"{name} {short(stage.config[name])}" for name in names)


def _data(lineage: Lineage) -> str:
    rows = []
    for stage in lineage.stages:
        for name, record in stage.manifest["data"].items():
            digest = "on the hub" if record["sha256"] is None else f"`{record['sha256']}`"
            rows.append((stage.name, plain(name), short(record["path"]), digest))
    counts = [line for stage in lineage.stages if (line := _counts(stage))]
    table = _table(("stage", "what", "name", "sha256"), rows)
    return f"### Data\n\n{table}" + "".join(f"\n{line}\n" for line in counts)


def _counts(stage: Stage) -> str:
    """What a stage counted in its data."""
    counts = BY_NAME[stage.name].counts.items()
    parts = [f"{stage.results[name]:,} {what}" for name, what in counts if isinstance(stage.results.get(name), int)]
    return f"{capital(BY_NAME[stage.name].title)}: {', '.join(parts)}." if parts else ""


def _reward(lineage: Lineage) -> str:
    stage = lineage.stage(REWARD.name)
    if stage is None:
        return ""
    results = stage.results
    lines = []
    if (labels := numbers(results, "label_agreement", "label_agreement_pairs")) is not None:
        lines.append(f"Two labelers agree on {labels[0]:.1%} of {labels[1]:,.0f} pairs.")
    if (right := numbers(at(results, "accuracy"), "rate", "low", "high", "n")) is not None:
        lines.append(
            f"It orders {right[0]:.1%} of {right[3]:,.0f} held-out pairs as their labelers did "
            f"({right[1]:.1%} to {right[2]:.1%})."
        )
    if (error := numbers(results, "ece")) is not None:
        lines.append(f"Expected calibration error: {error[0]:.3f}.")
    if (length := numbers(results, "length_correlation")) is not None:
        lines.append(f"Correlation of an answer's score and its length: {length[0]:.2f}.")
    scaling = f"A score is the head's output less {results['offset']:.6g}"
    if (scale := numbers(results, "scale_divided")) is not None:
        scaling += (
            f"; the head was divided by {scale[0]:.6g} after training. So the demonstrations have mean 0 and standard "
            "deviation 1"
        )
    lines.append(f"{scaling}.")
    names = ("low", "high", "confidence", "accuracy", "n")
    bins = [numbers(row, *names) for row in results.get("reliability") or []]
    rows = [
        (f"{low:.2f} to {high:.2f}", f"{confidence:.3f}", f"{accuracy:.3f}", f"{n:,.0f}")
        for low, high, confidence, accuracy, n in filter(None, bins)
    ]
    chart = "\n" + _table(("chance that it gave", "mean", "was right", "pairs"), rows) if rows else ""
    return "### Reward model\n\n" + bullets(lines) + chart


def _ppo(lineage: Lineage) -> str:
    stage = lineage.stage(PPO.name)
    if stage is None:
        return ""
    results, config = stage.results, stage.config
    target = config.get("kl_target")
    steering = (
        f"kl_coef {short(config.get('kl_coef'))} throughout, without a target"
        if target is None
        else f"target {short(target)} nats per response, kl_coef from {short(config.get('kl_coef'))} steered over a "
        f"horizon of {short(config.get('kl_horizon'))} responses"
    )
    lines = [f"KL to `{short(results.get('reference'))}`: {steering}."]
    if (end := numbers(results, "kl", "kl_coef")) is not None:
        lines.append(f"At the end: {end[0]:.3g} nats per response, kl_coef {end[1]:.3g}.")
    if (scores := numbers(results, "first_score", "last_score")) is not None:
        lines.append(f"Mean score of sampled responses: {scores[0]:.3g} at first, {scores[1]:.3g} at last.")
    lines.append(f"A response that does not end scores {short(config.get('missing_eos_score'))}.")
    return "### PPO\n\n" + bullets(lines)


def _limits(facts: Mapping[str, Any], lineage: Lineage) -> str:
    last = lineage.stages[-1].config if lineage.stages else {}
    licence = facts["licence"]
    name = f"is {plain(licence['name'])}" if licence["name"] else "was not found beside it: look it up"
    lines = [
        "For conversations like those that it was trained on; of others nothing is known here.",
        f"Trained on prompts of at most {short(last.get('max_prompt_tokens'))} and responses of at most "
        f"{short(last.get('max_response_tokens'))} tokens.",
        f"The base's licence {name}" + (f" ({', '.join(licence['files'])})." if licence["files"] else "."),
    ]
    if limits := BY_ROLE[facts["role"]].limits:
        lines.insert(1, limits)
    lines.append("It was not tested for safety beyond the figures above.")
    return bullets(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{markdown_table(header, rows, aligned=False)}\n"


def _without_path(text: str) -> str:
    """A sentence with "(path)" in it, and of the path the last part."""
    before, bracket, path = text.partition(" (")
    return f"{before} ({short(path.removesuffix(')'))})" if bracket else short(text)
