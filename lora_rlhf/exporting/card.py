"""The model card of an export, README.md: written from the export's manifest and the run folder only."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME, BY_ROLE, PPO, REWARD, SFT
from lora_rlhf.exporting.card_evaluation import evaluation_section
from lora_rlhf.exporting.card_usage import usage_section
from lora_rlhf.exporting.lineage import Lineage, Stage, named_numbers, nested_value
from lora_rlhf.exporting.markdown import bullet_list, short_text
from lora_rlhf.exporting.parity_table import parity_table
from lora_rlhf.model.files import HUB_NAME
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.render.wording import capitalize_first
from lora_rlhf.system.shown_text import for_markdown

LIBRARY_BY_KIND = {"merged": "transformers", "classifier": "transformers", "adapter": "peft", "gguf": "gguf"}
LEAST_SHARE = 0.05  # of weights without an adapter, to be told
KIND_DESCRIPTIONS = {
    "merged": "a plain transformers model, into which the adapter was merged",
    "classifier": "a plain transformers sequence classifier with one output, into which the adapter was merged",
    "adapter": "the LoRA adapter alone",
    "gguf": "a GGUF file, into which the adapter was merged",
}


def card_text(manifest: Mapping[str, Any], lineage: Lineage) -> str:
    """The card as Markdown. It has no absolute path, and texts of the run are escaped.

    manifest: the export's manifest, in which the hashes of some files are still missing.
    """
    base, title = short_text(manifest["source"]["base"]["name"]), BY_ROLE[manifest["role"]].model_title
    sections = [
        _metadata_header(manifest),
        f"# {capitalize_first(title)} on {base}\n",
        f"This is {KIND_DESCRIPTIONS[manifest['kind']]}. It was trained with `lora-rlhf` on {base}, which stayed "
        f"frozen in {manifest['source']['base']['quantization']}: {title}, stage `{manifest['source']['stage']}` "
        f"(id `{for_markdown(manifest['source']['id'])}`) of run `{for_markdown(manifest['source']['run'])}`.\n",
        "## How close it is to what was trained\n\n" + _closeness_section(manifest),
        "## How it was made\n\n" + _stage_table(lineage),
        _data_section(lineage),
        _reward_section(lineage),
        _ppo_section(lineage),
        evaluation_section(manifest, lineage),
        "## Use and limits\n\n" + _limits_section(manifest, lineage),
        "## How to run it\n\n" + usage_section(manifest, base),
        "## Made with\n\n"
        + ", ".join(for_markdown(f"{name} {version}") for name, version in manifest["versions"].items())
        + ".\n",
    ]
    return "\n".join(section for section in sections if section)


def _metadata_header(manifest: Mapping[str, Any]) -> str:
    """The metadata that the hub reads, as YAML. Strings are written as JSON, which is valid YAML too."""
    base, licence = manifest["source"]["base"]["name"], manifest["licence"]["name"]
    stage = BY_ROLE[manifest["role"]]
    metadata: dict[str, Any] = {
        "base_model": base if "/" in base and HUB_NAME.fullmatch(base) else None,
        "license": licence,
        "library_name": LIBRARY_BY_KIND[manifest["kind"]],
        "pipeline_tag": "text-classification" if stage.scores else "text-generation",
        "tags": ["lora-rlhf", "lora", "rlhf", stage.hub_tag],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in metadata.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def _closeness_section(manifest: Mapping[str, Any]) -> str:
    """How close the export is to the trained model, as measured or why it was not measured."""
    parity = manifest["parity"]
    if not parity["measured"]:
        return f"Not measured: {for_markdown(parity['why'])}.\n"
    table_text = parity_table({**parity, "prompts_from": _shorten_path(parity["prompts_from"])})
    paragraphs = [
        capitalize_first(f"{for_markdown(manifest['meaning'])}, and stored in {manifest['dtype']}."),
        "Left this export, in the middle the same adapter merged the other way, on the right the base without the "
        "adapter: all that there was to lose.",
        f"```text\n{table_text}\n```",
    ]
    if manifest["kind"] == "gguf":
        paragraphs.append(f"Measured before the weights were stored as {manifest['gguf_type']}.")
        paragraphs.append(f"llama.cpp computes the same as transformers for up to {manifest['context']:,} tokens.")
    if parity["forced"]:
        paragraphs.append("**It is further from the trained model than the limits allow, and was exported by force.**")
    return "\n\n".join(paragraphs) + "\n"


def _stage_table(lineage: Lineage) -> str:
    """A table with the id, the settings and the duration of every stage."""
    rows = [
        (
            BY_NAME[stage.name].title,
            f"`{for_markdown(stage.manifest['id'])}`",
            _stage_settings(stage),
            f"{stage.manifest['seconds']:.0f}",
        )
        for stage in lineage.stages
    ]
    return _markdown_table(("stage", "id", "settings", "seconds"), rows) + _unadapted_sentence(lineage)


def _unadapted_sentence(lineage: Lineage) -> str:
    """What share of the weights has no adapter; empty where that is little, or was not recorded."""
    stage = lineage.find_stage(SFT.name)
    share = None if stage is None else named_numbers(stage.results, "share_without_adapter")
    if share is None or share[0] < LEAST_SHARE:
        return ""
    return f"\n{share[0]:.0%} of the text model's weights, such as those of experts, have no adapter.\n"


def _stage_settings(stage: Stage) -> str:
    names = (name for name in BY_NAME[stage.name].settings if stage.config.get(name) not in (None, False, ""))
    return ", ".join(f"{name} {short_text(stage.config[name])}" for name in names)


def _data_section(lineage: Lineage) -> str:
    """The data of every stage with their hashes, and how many rows each stage counted."""
    rows = []
    for stage in lineage.stages:
        for name, record in stage.manifest["data"].items():
            digest = "on the hub" if record["sha256"] is None else f"`{for_markdown(record['sha256'])}`"
            rows.append((stage.name, for_markdown(name), short_text(record["path"]), digest))
    counts = [line for stage in lineage.stages if (line := _stage_counts(stage))]
    table = _markdown_table(("stage", "what", "name", "sha256"), rows)
    return f"### Data\n\n{table}" + "".join(f"\n{line}\n" for line in counts)


def _stage_counts(stage: Stage) -> str:
    """A sentence with the numbers that a stage counted in its data; empty if there are none."""
    counts = BY_NAME[stage.name].counts.items()
    parts = [f"{stage.results[name]:,} {unit}" for name, unit in counts if isinstance(stage.results.get(name), int)]
    return f"{capitalize_first(BY_NAME[stage.name].title)}: {', '.join(parts)}." if parts else ""


def _reward_section(lineage: Lineage) -> str:
    """The reward model's figures on held-out pairs, its scale, and its reliability; empty without a reward stage."""
    stage = lineage.find_stage(REWARD.name)
    if stage is None:
        return ""
    results = stage.results
    lines = []
    if (agreement := named_numbers(results, "label_agreement", "label_agreement_pairs")) is not None:
        lines.append(f"Two labelers agree on {agreement[0]:.1%} of {agreement[1]:,.0f} pairs.")
    if (accuracy := named_numbers(nested_value(results, "accuracy"), "rate", "low", "high", "n")) is not None:
        lines.append(
            f"It orders {accuracy[0]:.1%} of {accuracy[3]:,.0f} held-out pairs as their labelers did "
            f"({accuracy[1]:.1%} to {accuracy[2]:.1%})."
        )
    if (accuracy := named_numbers(nested_value(results, "step_accuracy"), "rate", "low", "high", "n")) is not None:
        lines.append(
            f"It judges {accuracy[0]:.1%} of {accuracy[3]:,.0f} held-out steps as they are labelled ({accuracy[1]:.1%} "
            f"to {accuracy[2]:.1%}): the sigmoid of the score at the token that ends a step is the probability that "
            f"the step is good. Steps end with `{short_text(repr(results.get('step_end')))}`, the last with the answer."
        )
    if (calibration_error := named_numbers(results, "ece")) is not None:
        lines.append(f"Expected calibration error: {calibration_error[0]:.3f}.")
    if (length_correlation := named_numbers(results, "length_correlation")) is not None:
        lines.append(f"Correlation of an answer's score and its length: {length_correlation[0]:.2f}.")
    scale_sentence = f"A score is the head's output less {results['offset']:.6g}"
    if (scale := named_numbers(results, "scale_divided")) is not None:
        scale_sentence += (
            f"; the head was divided by {scale[0]:.6g} after training. So the demonstrations have mean 0 and standard "
            "deviation 1"
        )
    lines.append(f"{scale_sentence}.")
    names = ("low", "high", "confidence", "accuracy", "n")
    reliability_bins = [named_numbers(row, *names) for row in results.get("reliability") or []]
    rows = [
        (f"{low:.2f} to {high:.2f}", f"{confidence:.3f}", f"{accuracy:.3f}", f"{n:,.0f}")
        for low, high, confidence, accuracy, n in filter(None, reliability_bins)
    ]
    reliability_table = (
        "\n" + _markdown_table(("chance that it gave", "mean", "was right", "pairs"), rows) if rows else ""
    )
    return "### Reward model\n\n" + bullet_list(lines) + reliability_table


def _ppo_section(lineage: Lineage) -> str:
    """How PPO steered the KL, and its first and last figures; empty without a ppo stage."""
    stage = lineage.find_stage(PPO.name)
    if stage is None:
        return ""
    results, config = stage.results, stage.config
    target = config.get("kl_target")
    steering_text = (
        f"kl_coef {short_text(config.get('kl_coef'))} throughout, without a target"
        if target is None
        else f"target {short_text(target)} nats per response, kl_coef from {short_text(config.get('kl_coef'))} steered "
        f"over a horizon of {short_text(results.get('kl_horizon', config.get('kl_horizon')))} responses"
    )
    lines = [f"KL to `{short_text(results.get('reference'))}`: {steering_text}."]
    if (final_figures := named_numbers(results, "kl", "kl_coef")) is not None:
        lines.append(
            f"Mean of the last iterations: {final_figures[0]:.3g} nats per response. kl_coef at the end: "
            f"{final_figures[1]:.3g}."
        )
    if (scores := named_numbers(results, "first_score", "last_score")) is not None:
        lines.append(
            f"Mean score of sampled responses: {scores[0]:.3g} at first, {scores[1]:.3g} in the last iterations."
        )
    lines.append(f"A response that does not end scores {short_text(config.get('missing_eos_score'))}.")
    return "### PPO\n\n" + bullet_list(lines)


def _limits_section(manifest: Mapping[str, Any], lineage: Lineage) -> str:
    """What the model is for, its limits of tokens, and the base's licence."""
    last_config = lineage.stages[-1].config if lineage.stages else {}
    licence = manifest["licence"]
    licence_text = f"is {for_markdown(licence['name'])}" if licence["name"] else "was not found beside it: look it up"
    lines = [
        "For conversations like those that it was trained on; of others nothing is known here.",
        f"Trained on prompts of at most {short_text(last_config.get('max_prompt_tokens'))} and responses of at most "
        f"{short_text(last_config.get('max_response_tokens'))} tokens.",
        f"The base's licence {licence_text}" + (f" ({', '.join(licence['files'])})." if licence["files"] else "."),
    ]
    if role_limits := BY_ROLE[manifest["role"]].limits:
        lines.insert(1, role_limits)
    lines.append("It was not tested for safety beyond the figures above.")
    return bullet_list(lines)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{markdown_table(header, rows, aligned=False)}\n"


def _shorten_path(text: str) -> str:
    """Replaces a path in brackets at a sentence's end by its last part."""
    sentence, bracket, path = text.partition(" (")
    return f"{for_markdown(sentence)} ({short_text(path.removesuffix(')'))})" if bracket else short_text(text)
