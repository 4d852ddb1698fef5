"""Stage 3, PPO (InstructGPT, section 3.5, eq. 2). An iteration acts, judges, rewards, learns and steers, in this order.

`PPO` reads from top to bottom, and each of its equations is a function of `algo/`. Beside this page stand `sampler.py`
(responses), `scorer.py` (what a response is worth), `trainer.py` (optimizer steps, checkpoints), `ppo_rollout.py`
(what the steps hand on), `ppo_update.py` (the losses and their steps), `ppo_setup.py` (parents, roles, data),
`ppo_checks.py` (whether the first update starts from the rollout's policy) and `ppo_loop.py` (rehearsal, resume,
records, samples over time).
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.advantages import (
    ESTIMATORS,
    MovingBaseline,
    apply_missing_eos,
    gae,
    has_spread,
    token_rewards,
)
from lora_rlhf.algo.kl import AdaptiveKL, FixedKL
from lora_rlhf.algo.masking import masked_normalize, masked_rescale
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.stream import TextStream
from lora_rlhf.data.template import decode_response, pad_id
from lora_rlhf.model.decode_weights import run_role
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_logprobs, response_values
from lora_rlhf.model.generate import Response, draw_seeds
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.ppo_checks import check_rollout, is_exact, is_start, must_score
from lora_rlhf.stages.ppo_loop import PPOLoop
from lora_rlhf.stages.ppo_rollout import Metrics, Rollout, Targets
from lora_rlhf.stages.ppo_setup import finish, set_up, warn_of_useless_rollout, with_rewards_of_run
from lora_rlhf.stages.ppo_update import Update
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stages.scorer import ResponseScorer
from lora_rlhf.stages.session import warmup
from lora_rlhf.stages.trainer import NotFinite
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped

PATIENCE = 3  # iterations in a row that were not learned from and end the run
CAUSES = (
    "likely causes: policy_learning_rate too high, kl_coef too low, num_epochs too many, a reward that pays for "
    "leaving the language. Go on from an earlier checkpoint with other settings (--allow_changes), or set max_kl or "
    "max_ratio to null"
)


def train(config: PPOConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `policy` adapter against the reward, held to the reference by a KL penalty."""
    config = with_rewards_of_run(config)
    check(config)
    with StageFolder.open(config, "ppo") as folder:
        setup = set_up(config, folder, model)
        ppo = PPO(config, setup.model, setup.scorer, setup.text)
        finish(config, setup, folder, PPOLoop(ppo, folder, setup.prompts).run())
        setup.scorer.close()
    return setup.model


class PPO:
    """The five steps of an iteration, and the state that passes from one iteration to the next."""

    def __init__(
        self,
        config: PPOConfig,
        model: SharedModel,
        scorer: ResponseScorer,
        text: TextStream | None = None,  # for the pretraining term
    ) -> None:
        self.config, self.model, self.scorer, self.text = config, model, scorer, text
        self.batch = AutoBatch.for_training(config)
        self.sampler = Sampler(config, model, "policy", config.temperature)
        self.batch.spare = self.sampler.batch.spare = self.sampler.release
        self.must_score = must_score(config, model)
        self.is_exact = is_exact(model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.kl: FixedKL | AdaptiveKL = FixedKL(config.kl_coef)
        if config.kl_target is not None:
            self.kl = AdaptiveKL(config.kl_coef, config.kl_target, config.horizon)
        self.update = Update(config, model, self.batch, self.kl, text)
        self.optimizers = self.update.optimizers
        self.baseline = MovingBaseline()  # of REINFORCE
        self.done = 0  # iterations
        self.unlearned = 0  # of the last iterations, how many in a row were not learned from
        self.seconds: dict[str, float] = defaultdict(float)  # of each part, over all iterations
        self.latest: dict[str, float] = {}  # of each part, in this iteration
        self.responses: list[Response] = []  # this iteration's
        self.rollout: Rollout | None = None  # this iteration's, once it was judged

    def iterate(self, prompts: list[EncodedPrompt]) -> Metrics:
        """Runs one iteration; returns its metrics. NotFinite, with nothing applied, for a number that is not finite."""
        config = self.config
        self.responses, self.rollout = [], None
        with self._timed("rollout_s"):
            self.responses = self.act(prompts, self.generator)
        with self._timed("score_s"):
            self.rollout = self.judge(prompts, self.responses, needs_values=False)
        if self.done == 0:
            is_reference = config.reference == ("init" if config.init else "sft")
            check_rollout(self.model, self.rollout, config.temperature, reference_is_policy=is_reference)
        metrics = self.rollout.metrics()
        kl = metrics["rollout/kl"]
        if config.max_kl is None or kl <= config.max_kl:
            metrics |= self._reward_and_learn(self.rollout)
        else:
            self._count_unlearned(f"the KL, {kl:.4g} nats per response, is above max_kl {config.max_kl}")
            metrics["ppo/updates"] = 0.0
        metrics["ppo/kl_coef"] = self.kl.coef
        self.kl.update(kl, config.batch_size)  # 5 steer
        return metrics

    def _reward_and_learn(self, rollout: Rollout) -> Metrics:
        """Computes values and targets, sets the learning rates, and takes the optimizer steps."""
        with self._timed("update_s"):
            for optimizer in self.optimizers.values():
                optimizer.set_learning_rate(warmup(self.done, self.config.warmup_iterations))
            minibatches = self.draw_minibatches(len(rollout.sequences), self._learned_responses(rollout)[0])
            value_metrics = None
            if self.config.has_value_role:
                rollout, value_metrics = self._evaluate(rollout, minibatches)
            targets = self.reward(rollout, self.kl.coef)
            warn_of_useless_rollout(self.config, rollout, targets, self.done + 1)
            must_start_at_1 = self.done == 0 or rollout.is_of_sampler
            metrics, too_far = self.update.learn(rollout, targets, minibatches, value_metrics, must_start_at_1)
        if too_far:
            limit = self.config.max_ratio
            self._count_unlearned(f"the probability ratio of a minibatch has a mean above max_ratio {limit}")
        else:
            self.unlearned = 0
        if self.done == 0 and metrics["ppo/updates"]:
            for role, optimizer in self.optimizers.items():
                if role != "policy" or targets.has_advantages:
                    optimizer.require_moved()
        return metrics

    # 1 Act

    def act(self, prompts: list[EncodedPrompt], generator: torch.Generator) -> list[Response]:
        """Samples `samples_per_prompt` responses of each prompt from the policy, side by side."""
        seeds = draw_seeds(generator, len(prompts), self.config.samples_per_prompt)
        groups = self.sampler.sample_shared([prompt.prompt_ids for prompt in prompts], seeds)
        return [response for group in groups for response in group]

    # 2 Judge

    @torch.no_grad()
    def judge(self, prompts: list[EncodedPrompt], responses: list[Response], needs_values: bool = True) -> Rollout:
        """Scores each response once; takes log-probabilities at every token, and values if they are needed.

        The policy's log-probabilities are scored in the first iteration, where they are checked, and until it has
        moved; later ones may be the sampler's. Each process judges its share; all get the whole. NotFinite for a number
        that is not finite.
        """
        config, model, tokenizer = self.config, self.model, self.model.tokenizer
        repeated = self.repeat(prompts)
        prompt_ids, response_ids = [prompt.prompt_ids for prompt in repeated], [response.ids for response in responses]
        sequences = Sequences(*response_batch(prompt_ids, response_ids, pad_id(tokenizer))).to(model.device)
        rows = workers.share_of_process(range(len(sequences)))
        share = sequences.index(rows)
        ids = [responses[row].ids for row in rows]
        answers = [decode_response(tokenizer, answer_ids).strip() for answer_ids in ids]

        is_scored = self.must_score or self.done == 0 or is_start(model)
        merged = self.sampler.merge and self.is_exact and not is_scored  # as the sampler's log-probabilities are
        scores = self.scorer.scores(model, share, [repeated[row] for row in rows], ids, answers, self.batch, merged)
        judged = {"score": scores.total}
        if scores.steps is not None and scores.num_steps is not None:
            judged |= {"step reward": scores.steps, "steps": scores.num_steps.float()}
        logprobs, scored_together = self.batch.run_scoring(
            lambda size: (self._score(share, size, is_scored, merged), size)
        )
        judged |= logprobs
        if config.has_value_role and needs_values:
            judged["value"] = self._values(share)
        for name in judged:
            judged[name] = workers.gather_rows(judged[name])
            if not bool(judged[name].isfinite().all()):
                raise NotFinite(name)
        finished = torch.tensor([response.finished for response in responses], device=model.device)
        sampled = torch.zeros(sequences.response_mask.shape)
        for row, response in zip(sampled, responses, strict=True):
            row[: len(response.logprobs)] = torch.tensor(response.logprobs)
        sampled = sampled.to(model.device)
        if is_scored:
            # contiguous: PyTorch sums a strided view in another order
            old_logprobs, entropy = judged["log-probability"].movedim(-1, 0).contiguous()
        else:
            old_logprobs, entropy = sampled, -sampled
        steps = judged.get("step reward")
        if steps is not None and self.scorer.missing_eos_score is not None:
            steps = torch.where(finished.unsqueeze(1), steps, 0.0)  # its whole score is the fixed one
        return Rollout(
            sequences=sequences,
            finished=finished,
            raw_scores=judged["score"],
            scores=apply_missing_eos(judged["score"], finished, self.scorer.missing_eos_score),
            old_logprobs=old_logprobs,
            ref_logprobs=judged["reference log-probability"],
            entropy=entropy,
            values=judged.get("value"),
            scored_together=scored_together if is_scored else None,
            parts={name: workers.gather_rows(part) for name, part in scores.parts.items()},
            failures=workers.sum_all(scores.failures),
            sampled_logprobs=sampled if is_scored and all(response.logprobs for response in responses) else None,
            step_rewards=steps,
            num_steps=judged.get("steps"),
        )

    def _score(self, sequences: Sequences, size: int, by_policy: bool, merged: bool) -> dict[str, Tensor]:
        """The reference's log-probs (B, R), and with `by_policy` the policy's with the entropy (B, R, 2), by name.

        Both in the same micro-batches: another grouping rounds otherwise in 16 bits, which would look like KL.
        """
        model, temperature, scored = self.model, self.config.temperature, dict[str, Tensor]()

        def policy(part: Sequences) -> Tensor:
            return torch.stack(response_logprobs(model, part, temperature), dim=-1)

        def reference(part: Sequences) -> Tensor:
            return response_logprobs(model, part, temperature, needs_entropy=False)[0]

        with run_role(model, "reference", merged):
            scored["reference log-probability"] = apply_in_micro_batches(reference, sequences, size)
        if by_policy:
            with model.role("policy"):
                scored["log-probability"] = apply_in_micro_batches(policy, sequences, size)
        return scored

    def _values(self, sequences: Sequences) -> Tensor:
        """The values of each response (B, R), without gradients."""
        model = self.model
        with model.role("value"), torch.no_grad():
            return self.batch.run_scoring(
                lambda size: apply_in_micro_batches(lambda part: response_values(model, part), sequences, size)
            )

    def _evaluate(self, rollout: Rollout, minibatches: list[list[int]]) -> tuple[Rollout, Metrics | None]:
        """The rollout with its values, and the metrics of the value role's first step if that was taken.

        A value's target needs no other response, so that the pass that trains on the first minibatch also gives its
        values: they are still those of the rollout. That saves a pass over it. Several processes score all values, and
        so does old_logprobs "scored".
        """
        config, metrics = self.config, None
        first = minibatches[0] if minibatches else []
        if config.old_logprobs == "scored" or workers.process_count() > 1:
            first = []
        values, returns = torch.zeros_like(rollout.old_logprobs), torch.zeros_like(rollout.old_logprobs)
        rollout = replace(rollout, values=values)
        others = sorted(set(range(len(values))) - set(first))
        if others:
            share = workers.share_of_process(others)
            values[others] = workers.gather_rows(self._values(rollout.sequences.index(share)))
        if first:
            rewards = self._token_rewards(rollout, self.kl.coef)
            metrics = self.update.value_step(rollout, Targets(returns, returns), first, rewards)
        if not bool(values.isfinite().all()):
            raise NotFinite("value")
        return rollout, metrics

    # 3 Reward

    def reward(self, rollout: Rollout, kl_coef: float) -> Targets:
        """Token rewards, then advantages: GAE against the value role, or each response against other responses.

        GAE's are normalised over the batch. Without a critic, the KL penalty of the whole response is taken off its
        score first, and every token of it gets the same advantage (RLOO, arXiv 2402.14740); so what a process reward
        paid its steps counts as their sum. With the KL as a loss, the
        rewards have no penalty (GRPO, arXiv 2402.03300).
        """
        config = self.config
        learned, figures = self._learned_responses(rollout)
        mask = rollout.mask if learned is None else rollout.mask & learned.unsqueeze(1)
        if not config.has_value_role:
            charged = kl_coef if config.kl_in == "reward" else 0.0
            returns = rollout.scores - charged * rollout.kl.sum(dim=1)
            if config.advantage == "reinforce":
                advantages = self.baseline.advantages(returns)
                self.baseline.update(returns)
            else:
                advantages = ESTIMATORS[config.advantage](returns, config.samples_per_prompt)
            return Targets(torch.where(mask, advantages.unsqueeze(1), 0.0), None, learned, figures)
        assert rollout.values is not None
        rewards = self._token_rewards(rollout, kl_coef)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, config.gamma, config.lam)
        advantages = masked_normalize(advantages, mask) if bool(mask.any()) else torch.zeros_like(advantages)
        return Targets(advantages, returns, learned, figures)

    def _token_rewards(self, rollout: Rollout, kl_coef: float) -> Tensor:
        """(B, R): each token's penalty, and the score on the last one; of a process reward where its steps end."""
        charged = kl_coef if self.config.kl_in == "reward" else 0.0
        steps = 0.0 if rollout.step_rewards is None else rollout.step_rewards
        at_the_end = (
            rollout.scores if rollout.step_rewards is None else rollout.scores - rollout.step_rewards.sum(dim=1)
        )
        rewards = steps + token_rewards(at_the_end, rollout.kl, rollout.mask, charged)
        return masked_rescale(rewards, rollout.mask) if self.config.whiten_rewards else rewards

    def _learned_responses(self, rollout: Rollout) -> tuple[Tensor | None, Metrics]:
        """(B,) bool, or None for all: the responses that are learned from, and the numbers of those left out."""
        config, figures = self.config, Metrics()
        learned = None
        if config.mask_overlong:
            learned = rollout.finished
            figures["ppo/masked_overlong"] = float((~rollout.finished).sum())
        if config.skip_equal_groups:
            spread = has_spread(rollout.scores, config.samples_per_prompt)
            learned = spread if learned is None else learned & spread
            figures["ppo/skipped_groups"] = float((~spread).sum()) / config.samples_per_prompt
        return learned, figures

    # 4 Learn: `update.learn`, over these

    def draw_minibatches(self, num_responses: int, learned: Tensor | None = None) -> list[list[int]]:
        """The rows of every step: each epoch has each response that is learned from once, in an order of its own."""
        size, minibatches = self.config.minibatch_size, list[list[int]]()
        is_learned = [True] * num_responses if learned is None else learned.tolist()
        for _ in range(self.config.num_epochs):
            order = torch.randperm(num_responses, generator=self.generator).tolist()
            order = [row for row in order if is_learned[row]]
            minibatches += [order[start : start + size] for start in range(0, len(order), size)]
        return minibatches

    # Around the steps

    def repeat(self, prompts: list[EncodedPrompt]) -> list[EncodedPrompt]:
        """Each prompt once for each of its responses."""
        return [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]

    def _count_unlearned(self, reason: str) -> None:
        """Warns that an iteration was not learned from. Raises Stopped after PATIENCE of them in a row."""
        self.unlearned += 1
        message = f"iteration {self.done + 1}: {reason}; it is not learned from"
        if self.unlearned >= PATIENCE:
            raise Stopped(f"{message}. This is iteration {PATIENCE} in a row: {CAUSES}")
        tqdm.write(message)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.latest[name] = time.monotonic() - started
        self.seconds[name] += self.latest[name]
