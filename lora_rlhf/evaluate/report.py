"""The evaluation of a run: every stage answers the same held-out prompts, and report.json says how they compare."""

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.config import EvaluateConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.refusals import counted
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.disk import write_json, write_text
from lora_rlhf.errors import UserError
from lora_rlhf.evaluate.generation import Answer, policy_kl, respond
from lora_rlhf.evaluate.judges import Gold, Judge, choose_judge, make_judge, prompt_text
from lora_rlhf.evaluate.lineage import RunStages, find_stages, open_model
from lora_rlhf.evaluate.metrics import by_group, distinct, eos_rate, mean_length, mean_scores, verdict, win_rates
from lora_rlhf.evaluate.plots import plot_report, read_metrics
from lora_rlhf.evaluate.render import markdown, table
from lora_rlhf.evaluate.seen import find_seen, warning
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import METRICS
from lora_rlhf.settings import check

__all__ = ["evaluate", "table"]

log = logging.getLogger("lora_rlhf")

REPORT, PAGE, PICTURE, SAMPLES = "report.json", "report.md", "report.png", "evaluation_samples.jsonl"
SAMPLED = 1.0  # the temperature that training is about
FEWEST = 2  # prompts: one has no interval


@dataclass(frozen=True)
class Answers:
    """One stage's responses to all prompts at one temperature, and their scores."""

    answers: list[Answer]
    scores: list[float]


@dataclass
class _Contest:
    """Who writes, who judges, and how long both have taken."""

    config: EvaluateConfig
    model: SharedModel
    judge: Judge
    progress: tqdm
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def hold(self, role: str, prompts: Sequence[EncodedPrompt], temperature: float) -> Answers:
        """One response of the role to each prompt, and its score."""
        self.progress.set_postfix_str(f"{role} at temperature {temperature:g}")
        with self.timed("evaluate_generation"):
            answers = respond(self.config, self.model, role, prompts, temperature)
        with self.timed("evaluate_judging"):
            scores = self.judge(prompts, answers)
        self.progress.update()
        return Answers(answers, scores)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - started


def evaluate(config: EvaluateConfig, model: SharedModel | None = None, gold: Gold | None = None) -> dict[str, Any]:
    """Compares base, SFT model and policy over held-out prompts; writes RUN/report.json, .md, .png and the samples.

    gold: an exact score of (prompt, response), which raises KeyError for a prompt that it does not know; without one
    that applies, the run's reward model judges. UserError for a mistake of the user's, before anything is generated.
    """
    check(config)
    _require_free(config)
    stages = find_stages(config.run, config.sft, config.reward)
    prompts = _read(config, config.prompts, "--prompts")
    others = _read_others(config, prompts)
    judge_name = choose_judge(config, stages, gold, [*prompts, *others])
    seen = find_seen(stages, config.prompts, prompts)
    if told := warning(seen):
        log.warning("%s: %s", config.prompts, told)
    model = open_model(stages, config.device, model, config.trust_remote_code)
    encoded, counts = _encode(config, model, prompts)
    selection = _encode(config, model, others)[0] if others else []
    rounds = len(stages.writers) * (2 + len(config.temperatures) if selection else 1)
    judge = make_judge(judge_name, config, stages, gold, model)
    with tqdm(total=rounds, desc="evaluate", unit="round", disable=None) as progress:
        contest = _Contest(config, model, judge, progress)
        sampled = {role: contest.hold(role, encoded, SAMPLED) for role in stages.writers}
        sweep = _sweep(contest, stages.writers, selection) if selection else {}
        best = _at_best_temperature(contest, sweep, encoded, sampled)

    report: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "stages": list(stages.writers),
        "judge": judge_name,
        "prompts": {**counts, "selection": len(selection)},
        "training_data": seen,
        **_compare(judge_name, sampled, sweep, best),
        **_use_cases(encoded, sampled),
    }
    if stages.ppo is not None:
        report["kl"] = _policy_kl(contest, stages, encoded, sampled["policy"].answers)
    if stages.reward is not None:
        report["reward"] = stages.reward.manifest["results"]
    report["seconds"] = {**stages.seconds(), **{name: round(value, 2) for name, value in contest.seconds.items()}}
    report |= {"peak_rss_gib": round(peak_rss_gib(), 3), "peak_gpu_gib": round(peak_gpu_gib(), 3)}
    _write(Path(config.run), report, stages, _sample_rows(encoded, sampled, best))
    return report


def _require_free(config: EvaluateConfig) -> None:
    place = Path(config.run) / REPORT
    if place.exists() and not config.overwrite:
        raise UserError(f"{place}: this run has been evaluated already; use --overwrite to replace its report")


def _read(config: EvaluateConfig, path: str, flag: str) -> list[Prompt]:
    """The distinct prompts of a file: a prompt that comes twice is no second piece of evidence."""
    prompts, refused = read_prompts(path, config.strict, config.format)
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.key, prompt)
    if again := len(prompts) - len(first):
        log.warning("%s: %s left out that came before in it", path, counted(again, "prompt"))
    if len(first) < FEWEST:
        raise UserError(
            f"{path}: {counted(len(first), 'distinct prompt')}, {flag} needs at least {FEWEST} for an interval"
        )
    return list(first.values())


def _read_others(config: EvaluateConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that temperatures are chosen on; none of them may be among those that are reported."""
    if config.selection_prompts is None:
        return []
    if not config.temperatures:
        raise UserError("evaluate: temperatures is empty, so no best one can be chosen on the selection prompts")
    others = _read(config, config.selection_prompts, "--selection_prompts")
    reported = {prompt.key for prompt in prompts}
    if shared := sum(prompt.key in reported for prompt in others):
        raise UserError(
            f"{config.selection_prompts}: {config.prompts} holds {counted(shared, 'prompt')} of it too; a temperature "
            "chosen on the prompts that it is reported on would look better than it is. Give other prompts"
        )
    return others


def _encode(
    config: EvaluateConfig, model: SharedModel, prompts: Sequence[Prompt]
) -> tuple[list[EncodedPrompt], dict[str, int]]:
    encoded, refused = encode_prompts(model.tokenizer, prompts, config.max_prompt_tokens)
    if summary := refused.summary():
        log.warning("%s", summary)
    if len(encoded) < FEWEST:
        raise UserError(
            f"{counted(len(encoded), 'prompt')} left at max_prompt_tokens {config.max_prompt_tokens}, {FEWEST} are "
            "needed: raise it"
        )
    return encoded, {"used": len(encoded), "refused": refused.count, "truncated": refused.truncated_prompts}


def _sweep(
    contest: _Contest, roles: Sequence[str], selection: Sequence[EncodedPrompt]
) -> dict[str, dict[float, float]]:
    """{role: {temperature: mean score}} over the selection prompts."""
    sweep: dict[str, dict[float, float]] = {}
    for role in roles:
        held = {temperature: contest.hold(role, selection, temperature) for temperature in contest.config.temperatures}
        sweep[role] = {temperature: sum(a.scores) / len(a.scores) for temperature, a in held.items()}
    return sweep


def _at_best_temperature(
    contest: _Contest,
    sweep: dict[str, dict[float, float]],
    prompts: Sequence[EncodedPrompt],
    sampled: dict[str, Answers],
) -> dict[str, tuple[float, Answers]]:
    """{role: (its best temperature of the sweep, its answers at that one)}; the first of equals is taken."""
    best = {}
    for role, means in sweep.items():
        temperature = max(means, key=lambda t: means[t])
        # The same seed at temperature 1 would give the same responses again.
        same = temperature == SAMPLED
        best[role] = (temperature, sampled[role] if same else contest.hold(role, prompts, temperature))
    return best


def _compare(
    judge: str,
    sampled: dict[str, Answers],
    sweep: dict[str, dict[float, float]],
    best: dict[str, tuple[float, Answers]],
) -> dict[str, Any]:
    """Scores, win rates and the figures of each stage's text, as the report holds them."""
    scores = {role: held.scores for role, held in sampled.items()}
    found: dict[str, Any] = {"win_rate": win_rates(scores), judge: mean_scores(scores)}
    if best:
        best_scores = {role: held.scores for role, (_, held) in best.items()}
        found |= {
            "win_rate_best_temperature": win_rates(best_scores),
            f"{judge}_best_temperature": mean_scores(best_scores),
            "best_temperature": {role: temperature for role, (temperature, _) in best.items()},
            "temperature_sweep": {role: {f"{t:g}": mean for t, mean in means.items()} for role, means in sweep.items()},
        }
    found["length"] = {role: mean_length(held.answers) for role, held in sampled.items()}
    found["eos_rate"] = {role: eos_rate(held.answers) for role, held in sampled.items()}
    texts = {role: [answer.text for answer in held.answers] for role, held in sampled.items()}
    found["distinct"] = {role: {f"distinct_{n}": distinct(texts[role], n) for n in (1, 2)} for role in texts}
    found["verdict"] = verdict(found["win_rate"], found.get("win_rate_best_temperature"))
    return found


def _use_cases(prompts: Sequence[EncodedPrompt], sampled: dict[str, Answers]) -> dict[str, Any]:
    """Mean scores by the prompts' own label; empty where a prompt has none."""
    found = [prompt.prompt.meta.get("use_case") for prompt in prompts]
    cases = [case for case in found if isinstance(case, str)]
    if len(cases) < len(prompts):
        return {}
    return {"by_use_case": by_group({role: held.scores for role, held in sampled.items()}, cases)}


def _policy_kl(
    contest: _Contest, stages: RunStages, prompts: Sequence[EncodedPrompt], answers: Sequence[Answer]
) -> dict[str, Any]:
    """KL of the policy from the role that its training held it to, in nats."""
    reference = stages.ppo_config["reference"]
    with contest.timed("evaluate_kl"):
        kl = policy_kl(contest.model, reference, prompts, answers, contest.config.micro_batch_size)
    means = mean_scores({"policy_reference": kl.per_response})
    return {**means, "k3_per_token": kl.k3_per_token, "reference": reference}


def _sample_rows(
    prompts: Sequence[EncodedPrompt], sampled: dict[str, Answers], best: dict[str, tuple[float, Answers]]
) -> Iterator[dict[str, Any]]:
    """One row a prompt with every response and score: enough to compute all win rates again."""
    for i, prompt in enumerate(prompts):
        row: dict[str, Any] = {
            "prompt": prompt_text(prompt.prompt),
            **prompt.prompt.meta,
            "responses": {role: held.answers[i].text for role, held in sampled.items()},
            "scores": {role: held.scores[i] for role, held in sampled.items()},
        }
        if best:
            row["responses_best_temperature"] = {role: held.answers[i].text for role, (_, held) in best.items()}
            row["scores_best_temperature"] = {role: held.scores[i] for role, (_, held) in best.items()}
        yield row


def _write(run: Path, report: dict[str, Any], stages: RunStages, samples: Iterator[dict[str, Any]]) -> None:
    """The report itself last: where it is, everything is."""
    write_jsonl(run / SAMPLES, samples)
    metrics = [] if stages.ppo is None else read_metrics(stages.ppo.folder / METRICS)
    plot_report(report, metrics, stages.ppo_config.get("kl_target"), run / PICTURE)
    write_text(run / PAGE, markdown(report))
    write_json(run / REPORT, report)
