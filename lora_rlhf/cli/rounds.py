"""A round: the commands that make a policy better, one after the other, in a run folder of its own.

Each step writes a file or a stage, and one whose file or stage is there is not done again: so the same command goes on
after a kill. The SFT stage is copied, so that every other command takes the round as it takes a run.
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_rlhf.cli.recipe import program
from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.cli.rounds_record import messages_of, reward_accuracy
from lora_rlhf.configs.catalogue import BY_NAME, PPO, REWARD, SFT, STAGES, WRITERS
from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.configs.label import JudgeLabelConfig
from lora_rlhf.configs.marks import COMMON, SAFE_TO_CHANGE_ON_RESUME, fields_with_mark
from lora_rlhf.configs.rounds import RoundConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import check, from_dict, read_yaml
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt, Ranking, make_row
from lora_rlhf.data.sources import read_prompts, read_rankings
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.release.config import GateConfig
from lora_rlhf.runs.folder import CHECKPOINTS, CONFIG, Parent, data_hash, find_data, find_stage, has_stage
from lora_rlhf.runs.manifest import MANIFEST
from lora_rlhf.runs.resume import Lock
from lora_rlhf.runs.rounds import FINISHED, RECORD, RUNNING, WAY_OUT, read_rounds, round_folder
from lora_rlhf.stages.choose import Candidate, choose, is_flagged
from lora_rlhf.system import workers
from lora_rlhf.system.disk import finite, new_folder, write_json
from lora_rlhf.system.errors import Stopped, UserError
from lora_rlhf.system.plain_files import make_folder, open_file, require_no_link
from lora_rlhf.system.untrusted import read_object

if TYPE_CHECKING:
    from lora_rlhf.evaluation.report_model import Report

log = logging.getLogger("lora_rlhf")

PROMPTS_PER_LABEL = 4  # are sampled, for a choice
# What a round decides itself, in place of what a stage was given before.
OWN_SETTINGS = (
    *("run", "overwrite", "resume", "allow_changes", "model", SFT.name, REWARD.name, "init", "reference", "seed"),
)
SECTIONS = ("sample", "evaluate", *(stage.name for stage in STAGES if stage is not SFT))


class Policy(NamedTuple):
    """The policy that a round goes on from."""

    run: Path
    stage: Parent

    @property
    def name(self) -> str:
        """Of its stage: ppo or dpo."""
        return str(self.stage.manifest["stage"])

    @property
    def role(self) -> str:
        return BY_NAME[self.name].role

    def settings(self, name: str) -> dict[str, Any]:
        """What a stage of its run was given, without what a round decides itself."""
        return {key: value for key, value in read_yaml(self.run / name / CONFIG).items() if key not in OWN_SETTINGS}


def run_round(config: RoundConfig) -> dict[str, Any]:
    """Makes a round, or goes on with it; returns its record.

    Stopped where people have to label first. UserError, before any long work, for a run without a policy, a base whose
    files have changed, and an unfinished round that began with other stages or settings.
    """
    check(config)
    if workers.process_count() > 1:
        raise UserError("round runs in one process: start it without a launcher")
    first = Path(os.path.normpath(config.folder))
    done = read_rounds(first)
    number = config.number or len(done) + 2
    if number < len(done) + 2:
        return done[number - 2]
    if number > len(done) + 2:
        raise UserError(f"--number {number}: round {len(done) + 2} of {first} is not finished; make that one first")
    passed = [round_folder(first, record["number"]) for record in done if record["gate"] == "pass"]
    policy = _find_policy((passed or [first])[-1])
    _require_same_base_files(policy)
    folder = round_folder(first, number)
    make_folder(folder)
    lock = Lock(folder / ".round.lock")
    lock.acquire()
    try:
        this = _Round(config, number, folder, policy, newest=round_folder(first, number - 1))
        return this.run()
    finally:
        lock.release()


def _find_policy(run: Path) -> Policy:
    """The newest policy of a run. UserError where there is none."""
    if not has_stage(run, SFT.name):
        raise UserError(
            f"{run}: no finished sft stage there; a round goes on from a run that holds its sft stage and its policy"
        )
    for stage in reversed(WRITERS):
        if stage is not SFT and has_stage(run, stage.name):
            return Policy(run, find_stage(run / stage.name, stage.name))
    raise UserError(f"{run}: no policy there to go on from; run `lora-rlhf ppo --run {run}` or `dpo` first")


def _require_same_base_files(policy: Policy) -> None:
    """UserError where the base's files are not those that the policy was trained on."""
    from lora_rlhf.model.base import hash_source
    from lora_rlhf.model.open import require_base_folder

    base = policy.stage.manifest["base"]
    require_base_folder(base)
    if (found := hash_source(base["name"])) != base["source_hash"]:
        raise UserError(
            f"{policy.stage.folder} was trained on base model {base['name']!r}, whose files have changed since (sha256 "
            f"{found[:16]} now, {base['source_hash'][:16]} then); restore them, or begin with a new run"
        )


class _Round:
    """The steps, in order. `newest`: the folder of the round before, whose rankings are all so far."""

    def __init__(self, config: RoundConfig, number: int, folder: Path, policy: Policy, newest: Path) -> None:
        self.config, self.number, self.folder, self.policy, self.newest = config, number, folder, policy, newest
        self.has_reward = has_stage(policy.run, REWARD.name)
        self.overrides = _read_settings(config.settings)
        if policy.name == PPO.name and not self.has_reward:
            raise UserError(f"{policy.run}: its policy was trained without a reward model of the run; rounds need one")
        self._begin()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def run(self) -> dict[str, Any]:
        """Does what is not done yet; returns the record."""
        self._copy_sft()
        if not self.path("candidates").is_file():
            self._choose()
        if not self.path("all_rankings").is_file():
            self._label()
            self._collect_rankings()
        report = self._train_and_evaluate()
        return self._finish(report)

    def _begin(self) -> None:
        """Writes what the round is made from, or compares it with what an earlier attempt wrote. UserError if other."""
        config, name = self.config, self.policy.name
        judging = {"judge", "principles", "question", *_judge_fields()}  # somebody else may rank after all
        safe = {*fields_with_mark(RoundConfig, SAFE_TO_CHANGE_ON_RESUME), *judging, "folder", "settings"}
        data = ("prompts", "held_out")
        made_from = {
            **{"number": self.number, "from": self.policy.run.name, "stage": name},
            "ids": {stage: find_stage(self.policy.run / stage, stage).manifest["id"] for stage in (SFT.name, name)},
            "data": {key: data_hash(getattr(config, key)) or getattr(config, key) for key in data},
            "settings": {key: value for key, value in vars(config).items() if key not in safe.union(data)},
            "overrides": self.overrides,
        }
        path = self.folder / RECORD
        if not path.is_file():
            write_json(path, {"status": RUNNING, **made_from})
        self.record = read_object(path, WAY_OUT)
        now = json.loads(json.dumps(made_from))
        if changed := [key for key, value in now.items() if self.record.get(key) != value]:
            found = "; ".join(f"{key}: {self.record.get(key)!r} then, {now[key]!r} now" for key in changed)
            raise UserError(
                f"{self.folder}: this round began with other {', '.join(changed)} ({found}); give what it began with, "
                "or remove that folder to begin it again"
            )

    def _copy_sft(self) -> None:
        """Copies the SFT stage into the round, without its checkpoints."""
        source = self.policy.run / SFT.name
        if has_stage(self.folder, SFT.name):
            return
        with new_folder(self.folder / SFT.name) as to:
            for path in sorted(source.rglob("*")):
                inside = path.relative_to(source)
                require_no_link(path)
                if inside.parts[0] == CHECKPOINTS:
                    continue
                if path.is_dir():
                    make_folder(to / inside)
                    continue
                with open_file(path) as original, (to / inside).open("xb") as copy:
                    shutil.copyfileobj(original, copy)
            manifest = read_object(to / MANIFEST, WAY_OUT)
            for record in (manifest["base"], *manifest["data"].values()):
                if "from_run" in record:
                    record["from_run"] = os.path.relpath(self.policy.run / record["from_run"], self.folder)
            write_json(to / MANIFEST, manifest)

    def _choose(self) -> None:
        """Samples responses to some of the prompts, and writes those that are to be labelled."""
        from lora_rlhf.chat.loaded_run import load_run
        from lora_rlhf.stages.sample import sample

        config, pool = self.config, self.path("pool")
        if not pool.is_file():
            write_jsonl(self.path("prompts"), map(make_row, self._prompts_to_sample()))
            sample(self._sample_config())
        candidates = []
        prompts = [
            prompt
            for prompt in read_prompts(str(pool))[0]
            if len({text.strip() for text in prompt.meta["responses"]} - {""}) > 1
        ]
        with load_run(self.policy.run, device=config.device, trust_remote_code=config.trust_remote_code) as run:
            for prompt in prompts:
                responses = prompt.meta["responses"]
                scores = run.score(messages_of(prompt), responses) if self.has_reward else ()
                candidates.append(Candidate(prompt, responses, scores))
        chosen = choose(candidates, config.labels, config.random_share, config.seed + self.number)
        rows = [make_row(prompts[index]) | {"chosen_for": reason} for index, reason in chosen.items()]
        write_jsonl(self.path("candidates"), rows)

    def _prompts_to_sample(self) -> list[Prompt]:
        """Prompts that no earlier round ranked and that are not held out: flagged ones first, then at random."""
        known = {prompt.key for prompt in read_prompts(self.config.held_out)[0]}
        known |= {ranking.prompt.key for ranking in self._earlier_rankings()}
        for number in range(2, self.number):
            known |= {
                r.prompt.key for r in _rankings(round_folder(Path(self.config.folder), number) / "measured.jsonl")
            }
        new = {prompt.key: prompt for prompt in read_prompts(self.config.prompts)[0] if prompt.key not in known}
        if not new:
            raise UserError(
                f"--prompts {self.config.prompts}: all its prompts were ranked in earlier rounds or are held out; give "
                "new ones"
            )
        prompts = list(new.values())
        random.Random(f"round-{self.config.seed}-{self.number}").shuffle(prompts)
        prompts.sort(key=lambda prompt: not is_flagged(prompt.meta))
        return prompts[: self.config.labels * PROMPTS_PER_LABEL]

    def _sample_config(self) -> SampleConfig:
        config, common = self.config, fields_with_mark(SampleConfig, COMMON)
        settings = {key: value for key, value in self.policy.settings(self.policy.name).items() if key in common}
        own: dict[str, Any] = {
            "run": str(self.policy.run),
            "role": self.policy.role,
            "prompts": str(self.path("prompts")),
        }
        own |= {"to": str(self.path("pool")), "min_responses": config.min_responses}
        own |= {"max_responses": config.max_responses, "seed": config.seed + self.number, "device": config.device}
        own |= {"trust_remote_code": config.trust_remote_code}
        return from_dict(SampleConfig, settings | own | self.overrides.get("sample", {}), "round: sample")

    def _label(self) -> None:
        """Has the candidates ranked by the judge; or looks whether people have done it. Stopped where they have not."""
        config, to = self.config, self.path("rankings")
        candidates = self.path("candidates")
        if config.judge == "people":
            ranked = {ranking.prompt.key for ranking in _rankings(to)}
            missing = sum(prompt.key not in ranked for prompt in read_prompts(str(candidates))[0])
            if missing and not (ranked and config.accept_fewer):
                raise Stopped(
                    f"{missing} prompts wait for rankings: {candidates}\n"
                    f"rank them in the app: {program()} demo --run {self.folder}\n"
                    f"or in any other way, and write the rankings to {to}\n"
                    "then give this command again; --accept_fewer goes on with those that there are"
                )
        elif not to.is_file():
            from lora_rlhf.stages.label import label

            names = ("judge", "principles", "question", "device", "trust_remote_code", *_judge_fields())
            given = {name: getattr(config, name) for name in names}
            label(JudgeLabelConfig(responses=str(candidates), to=str(to), **given))

    def _collect_rankings(self) -> None:
        """Writes the rankings to train on, those of all rounds, and those drawn at random, to measure on.

        Without a reward model there is nothing to measure: then those are trained on too.
        """
        chosen = read_prompts(str(self.path("candidates")))[0] if self.has_reward else []
        drawn = {prompt.key for prompt in chosen if prompt.meta.get("chosen_for") == "random"}
        new = _rankings(self.path("rankings"))
        trained = [ranking for ranking in new if ranking.prompt.key not in drawn]
        if not trained:
            raise UserError(f"{self.path('rankings')}: none of its rankings is left to train on; give more --labels")
        write_jsonl(self.path("measured"), map(make_row, (r for r in new if r.prompt.key in drawn)))
        write_jsonl(self.path("new_rankings"), map(make_row, trained))
        write_jsonl(self.path("all_rankings"), map(make_row, [*self._earlier_rankings(), *trained]))

    def _earlier_rankings(self) -> list[Ranking]:
        """What the reward models (without one: the policies) of the rounds before were trained on."""
        if (path := self.newest / "all_rankings.jsonl").is_file():
            return _rankings(path)
        stage = REWARD.name if self.has_reward else self.policy.name
        parent = find_stage(self.newest / stage, stage)
        settings = self.policy.settings(stage)
        name = find_data(parent.manifest["data"]["rankings"], parent.run)
        if data_hash(name) != parent.manifest["data"]["rankings"]["sha256"]:
            raise UserError(
                f"{parent.folder}: {name!r} is not the file of rankings that it was trained on, or has changed"
            )
        return read_rankings(name, format=settings.get("format"))[0]

    def _train_and_evaluate(self) -> "Report":
        """The reward model on all rankings, the policy from the one before, the report: a recipe, which goes on."""
        config, name, policy = self.config, self.policy.name, self.policy
        common = {"seed": config.seed + self.number, "device": config.device}
        common |= {"trust_remote_code": config.trust_remote_code}
        sections: dict[str, Any] = {}
        if self.has_reward:
            rankings = {"rankings": str(self.path("all_rankings")), "agreement": None, "format": None, "columns": None}
            sections[REWARD.name] = policy.settings(REWARD.name) | common | rankings
        trained = policy.settings(name) | common | {"init": str(policy.stage.folder), "reference": config.reference}
        if name != PPO.name:
            trained |= {"rankings": str(self.path("new_rankings")), "format": None, "columns": None}
        sections[name] = trained
        shared = fields_with_mark(EvaluateConfig, COMMON)
        evaluation = {key: value for key, value in policy.settings(name).items() if key in shared} | common
        evaluation |= {"prompts": config.held_out, "other_runs": [str(policy.run)], "candidate": policy.role}
        evaluation |= {"baseline": f"{policy.run.resolve().name}:{policy.role}"}
        sections["evaluate"] = evaluation
        for section, values in sections.items():
            values |= self.overrides.get(section, {})
        report = run_recipe({"run": str(self.folder), **sections})
        assert report is not None
        return report

    def _finish(self, report: "Report") -> dict[str, Any]:
        """Measures the reward models, gates, and writes the record."""
        from lora_rlhf.release.gate import gate

        baseline = f"{self.policy.run.resolve().name}:{self.policy.role}"
        names = GateConfig(
            candidate=self.policy.role,
            baseline=baseline,
            policy=self.config.policy,
            report=str(self.folder / "report.json"),
        )
        decision = gate(names)
        print(decision.text)
        candidates = read_prompts(str(self.path("candidates")))[0]
        reasons = [prompt.meta["chosen_for"] for prompt in candidates]
        win_rate = report.win_rates[f"{self.policy.role}_vs_{baseline}"]
        measured = _rankings(self.path("measured"))
        self.record |= {
            "status": FINISHED,
            "labels": {"asked": len(reasons)} | {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "trained_on": len(_rankings(self.path("all_rankings" if self.has_reward else "new_rankings"))),
            "win_rate": {"rate": win_rate.rate, "low": win_rate.low, "high": win_rate.high},
            "gate": "pass" if decision.is_passed else "fail",
            "measured": {"prompts": len(measured)},
        }
        if self.has_reward and measured:
            runs = {"before": self.policy.run, "after": self.folder}
            settings = self.config.device, self.config.trust_remote_code
            self.record["measured"] |= {when: reward_accuracy(run, measured, *settings) for when, run in runs.items()}
        write_json(self.folder / RECORD, finite(self.record))
        return self.record


def _read_settings(path: str | None) -> dict[str, dict[str, Any]]:
    """The sections of a file of settings. UserError for one that is not known."""
    sections = {} if path is None else read_yaml(path, follow_links=True)
    for name, values in sections.items():
        if name not in SECTIONS or not isinstance(values, Mapping):
            raise UserError(f"--settings {path}: {name!r} is no section with settings; known: {', '.join(SECTIONS)}")
    return {name: dict(values) for name, values in sections.items()}


def _judge_fields() -> list[str]:
    return [field.name for field in fields(JudgeModelConfig)]


def _rankings(path: Path) -> list[Ranking]:
    """The rankings of a file; none if there is no file, or an empty one."""
    return read_rankings(str(path))[0] if path.is_file() and path.stat().st_size else []
