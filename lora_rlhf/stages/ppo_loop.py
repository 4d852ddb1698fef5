"""PPO's iterations: act, judge, reward, learn, steer (InstructGPT, section 3.5, eq. 2); each may be resumed midway."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.kl import AdaptiveKL, FixedKL
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.spool import Spool
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import decode_response
from lora_rlhf.model.generate import GeneratedResponse
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.decoding import PLAIN, Decoding, asked_for, choose_engine, choose_merge
from lora_rlhf.stages.learning import NotFinite
from lora_rlhf.stages.loop import TrainingLoop
from lora_rlhf.stages.rollout import Judge, Rollout, act, collect, describe
from lora_rlhf.stages.samples import FIXED, of_policy
from lora_rlhf.stages.session import (
    batches,
    generation_pieces,
    pick_fixed,
    same_state,
    seed_everything,
    training_pieces,
    warmup,
)
from lora_rlhf.stages.update import Learner, Learning, Targets, targets
from lora_rlhf.stages.worst_case import rehearse
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped

# Largest difference of log-probabilities that is still "the same policy" before the first update. On a CPU only the
# order of summation differs; on a GPU passes with and without gradients run different 4-bit kernels in 16 bits.
TOLERANCE = {"cpu": 1e-4, "cuda": 0.25}
TAIL = 10  # iterations whose mean KL is reported as the KL at the end
PATIENCE = 3  # iterations in a row beyond a ceiling that end the run
CAUSES = (
    "likely causes: policy_learning_rate too high, kl_coef too low, num_epochs too many, a reward that pays for "
    "leaving the language. Go on from an earlier checkpoint with other settings (--allow_changes), or set max_kl or "
    "max_ratio to null"
)


@dataclass
class Iteration:
    """What an iteration has done so far; a checkpoint in its middle keeps it."""

    prompts: list[int] | None = None  # places
    responses: list[GeneratedResponse] | None = None
    rollout: Rollout | None = None
    learning: Learning | None = None

    @property
    def part(self) -> int:
        """How far it got, as a number that only grows."""
        return sum(done is not None for done in (self.responses, self.rollout)) + (
            len(self.learning.steps) if self.learning else 0
        )


class PPOLoop:
    """The iterations, and what they carry from one to the next."""

    def __init__(
        self,
        config: PPOConfig,
        model: SharedModel,
        folder: StageFolder,
        judge: Judge,
        prompts: Spool[EncodedPrompt],
        text: TextStream | None,
    ) -> None:
        self.config, self.model, self.folder = config, model, folder
        self.judge, self.prompts, self.text = judge, prompts, text
        self.pieces, self.sampled = training_pieces(config), generation_pieces(config)
        self.learner = Learner(config, model, text, self.pieces)
        optimizers = list(self.learner.optimizers.values())
        self.loop = TrainingLoop(config, folder, model, optimizers, self._snapshot, "iteration")
        self.generator = torch.Generator().manual_seed(config.seed)
        self.controller: FixedKL | AdaptiveKL = FixedKL(config.kl_coef)
        if config.kl_target is not None:
            self.controller = AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        self.done = 0  # iterations
        self.beyond = 0  # of the last ones, how many in a row went beyond a ceiling
        self.current = Iteration()
        self.decoding = PLAIN  # until it is chosen
        self.seconds: dict[str, float] = defaultdict(float)
        self.latest: dict[str, float] = {}  # this iteration's seconds
        self.rows: list[dict[str, float]] = []

    def run(self) -> dict[str, Any]:
        """All iterations that are left; returns what the manifest says of them."""
        config, model, iterations = self.config, self.model, self.config.iterations
        fixed = [self.prompts[index] for index in pick_fixed(self.prompts, FIXED)]
        reference = None if config.reference == "base" else model.adapter_state("sft")
        with self.loop.running():
            if (found := self.loop.resume()) is not None:
                self._restore(found.state, found.tensors)
            rollout, merge = asked_for(config, found.state["decoding"] if found is not None else None)
            engine = choose_engine(config, rollout, model, "policy", self.prompts, self.sampled)
            rehearse(config, model, self.learner, self.prompts.longest, self.sampled, self.pieces, engine)
            self.decoding = Decoding(engine, choose_merge(config, model) if merge is None else merge)
            drawn = self._draw_prompts()
            with tqdm(total=iterations, initial=self.done, desc="ppo", unit="iteration") as bar:
                while self.done < iterations:
                    if self.current.prompts is None:
                        self.current.prompts = next(drawn)
                    metrics = self._iterate(self.current)
                    self._record(metrics, fixed)
                    self.done, self.current, self.latest = self.done + 1, Iteration(), {}
                    bar.update()
                    bar.set_postfix(score=f"{metrics['rollout/score']:.2f}", kl=f"{metrics['rollout/kl']:.2f}")
                    gained = metrics["rollout/score"] - metrics["ppo/kl_coef"] * metrics["rollout/kl"]
                    self.loop.boundary(self.done, iterations, score=gained)
        if reference is not None and not same_state(reference, model.adapter_state("sft")):
            raise RuntimeError("the reference changed during PPO: the KL was measured to a moving target")
        return self._results()

    def _iterate(self, current: Iteration) -> dict[str, float]:
        config, model = self.config, self.model
        assert current.prompts is not None
        prompts = [self.prompts[place] for place in current.prompts]
        try:
            if current.responses is None:
                with self._timed("rollout_s"):  # 1 act
                    current.responses = act(config, model, prompts, self.generator, self.sampled, how=self.decoding)
                self._between()
            if current.rollout is None:
                with self._timed("score_s"):  # 2 judge
                    current.rollout = collect(config, model, self.judge, prompts, current.responses, self.pieces)
                self._between()
            metrics = describe(config, current.rollout)
            learned = self._learn(current, current.rollout, metrics)
        except NotFinite as error:
            raise self._broken(error, prompts, current) from error
        metrics |= {**learned, "ppo/kl_coef": self.controller.coef}
        self.controller.update(metrics["rollout/kl"], config.batch_size)  # 5 steer
        return metrics

    def _learn(self, current: Iteration, rollout: Rollout, metrics: dict[str, float]) -> dict[str, float]:
        config = self.config
        if config.max_kl is not None and metrics["rollout/kl"] > config.max_kl:
            self._went_beyond(f"the KL, {metrics['rollout/kl']:.4g} nats per response, is above max_kl {config.max_kl}")
            return {"ppo/updates": 0.0}
        before = None
        with self._timed("update_s"):
            goal = targets(config, rollout, self.controller.coef)  # 3 rewards and advantages
            self.learner.set_share_of_peak(warmup(self.done, config.warmup_iterations))
            if current.learning is None:
                current.learning = Learning.begin(config, len(rollout.sequences), self.generator)
                if self.done == 0:
                    before = {role: self.model.adapter_state(role) for role in self.learner.optimizers}
            learned = self.learner.learn(rollout, goal, current.learning, self._between)  # 4 learn
        if current.learning.too_far:
            self._went_beyond(f"the probability ratio of a minibatch has a mean above max_ratio {config.max_ratio}")
        else:
            self.beyond = 0
        if before is not None and learned["ppo/updates"]:
            self._check_first_step(learned, rollout, goal, before)
        return learned

    def _went_beyond(self, what: str) -> None:
        self.beyond += 1
        log_once = f"iteration {self.done + 1}: {what}; it is not learned from"
        if self.beyond >= PATIENCE:
            raise Stopped(f"{log_once}. This is the {PATIENCE}rd iteration in a row: {CAUSES}")
        tqdm.write(log_once)

    def _between(self) -> None:
        """Between two parts of an iteration."""
        self.loop.boundary(self.done, self.config.iterations, part=self.current.part)

    def _draw_prompts(self) -> Iterator[list[int]]:
        """Batches of prompts' places, all of them once before any comes again; from the iteration that is due."""
        rng = seed_everything(self.config.seed)
        count = self.config.batch_size // self.config.samples_per_prompt
        skip = self.done + (self.current.prompts is not None)
        waiting: list[int] = []
        for number in range(self.config.iterations):
            while len(waiting) < count:
                waiting += [index for batch in batches(len(self.prompts), count, rng) for index in batch]
            if number >= skip:
                yield waiting[:count]
            waiting = waiting[count:]

    def _check_first_step(
        self, metrics: dict[str, float], rollout: Rollout, goal: Targets, before: dict[str, dict[str, Tensor]]
    ) -> None:
        """What must hold before anything was learned, and after the first step; a breach means a broken set-up."""
        tolerance = TOLERANCE.get(self.model.device.type, TOLERANCE["cuda"])
        if self.config.reference == "sft":
            drift = float((rollout.old_logprobs - rollout.ref_logprobs).abs().max())
            if drift > tolerance:
                raise RuntimeError(f"policy and reference differ by {drift:.2g} nats before the first update")
        if metrics["ppo/ratio_deviation"] > tolerance:
            raise RuntimeError(
                f"the first update sees log-probabilities {metrics['ppo/ratio_deviation']:.2g} nats off the rollout's"
            )
        # Where all responses to a prompt are worth the same (none is right yet), siblings have nothing to teach.
        must_move = [role for role in before if role != "policy" or bool(goal.advantages.any())]
        for role in must_move:
            if same_state(before[role], self.model.adapter_state(role)):
                raise RuntimeError(f"the {role} adapter did not move in the first update; is its learning rate 0?")

    def _record(self, metrics: dict[str, float], fixed: list[EncodedPrompt]) -> None:
        timed = {f"time/{name}": value for name, value in self.latest.items()}
        timed["time/tokens_per_s"] = metrics["rollout/length"] * self.config.batch_size / sum(self.latest.values())
        self.rows.append(metrics)
        rows: list[dict[str, Any]] = []
        if self.done % self.config.sample_every == 0 or self.done == self.config.iterations - 1:
            figures, rows = of_policy(
                self.config, self.model, self.judge, fixed, self.sampled, self.pieces, self.decoding
            )
            timed |= figures
        self.loop.log(self.done + 1, {**metrics, **timed, "memory/peak_gib": peak_gpu_gib() or peak_rss_gib()})
        self.folder.sample(self.done + 1, rows)

    def _results(self) -> dict[str, Any]:
        tail = self.rows[-TAIL:]
        return {
            "kl": sum(row["rollout/kl"] for row in tail) / len(tail),
            "kl_target": self.config.kl_target,
            "kl_coef": self.controller.coef,
            "first_score": self.rows[0]["rollout/score"],
            "last_score": sum(row["rollout/score"] for row in tail) / len(tail),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_gpu_gib": round(peak_gpu_gib(), 3),
        }

    def _broken(self, error: NotFinite, prompts: list[EncodedPrompt], current: Iteration) -> Stopped:
        repeated = [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]
        rows = [
            {
                "prompt": self.model.tokenizer.decode(prompt.prompt_ids),
                "response": decode_response(self.model.tokenizer, response.ids),
                "response_ids": response.ids,
                "score": None if current.rollout is None else float(current.rollout.scores[row]),
            }
            for row, (prompt, response) in enumerate(zip(repeated, current.responses or [], strict=False))
        ]
        advice = "Lower --policy_learning_rate or --value_learning_rate and go on with --allow_changes"
        return self.loop.broken(self.done + 1, error, rows, advice)

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        current, tensors = self.current, {"generator": self.generator.get_state()}
        if current.rollout is not None:
            tensors |= {f"rollout.{name}": value for name, value in current.rollout.tensors().items()}
        responses = None if current.responses is None else [(row.ids, row.finished) for row in current.responses]
        state: dict[str, Any] = {
            "done": self.done,
            "beyond": self.beyond,
            "controller": self.controller.state_dict(),
            "text": None if self.text is None else self.text.state_dict(),
            "seconds": dict(self.seconds),
            "latest": self.latest,
            "decoding": vars(self.decoding),
            "prompts": current.prompts,
            "responses": responses,
            "learning": current.learning and vars(current.learning),
        }
        return state, tensors

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.done, self.beyond, self.latest = state["done"], state["beyond"], state["latest"]
        self.seconds.update(state["seconds"])
        self.controller.load_state_dict(state["controller"])
        self.generator.set_state(tensors["generator"])
        if self.text is not None:
            self.text.load_state_dict(state["text"])
        named = {name.removeprefix("rollout."): value for name, value in tensors.items() if name.startswith("rollout.")}
        self.current = Iteration(
            state["prompts"],
            None if state["responses"] is None else [GeneratedResponse(*response) for response in state["responses"]],
            Rollout.of(named, self.judge.offset, self.model.device) if named else None,
            None if state["learning"] is None else Learning(**state["learning"]),
        )
        self.rows = [row for row in workers.from_main(self.folder.rows) if "rollout/kl" in row]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.latest[name] = time.monotonic() - started
        self.seconds[name] += self.latest[name]
