"""PPO's run over all its iterations: rehearsal, resume, checkpoints, records, samples. `ppo.py` is an iteration."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.spool import Spool
from lora_rlhf.data.template import decode_response
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.checkpoint import Checkpoint
from lora_rlhf.stages.judged import NoJudgement
from lora_rlhf.stages.ppo_rollout import Metrics, Rollout, Targets
from lora_rlhf.stages.samples import FIXED, sample_rows, text_figures
from lora_rlhf.stages.session import batches, fixed_prompt_indices, same_state, seed_everything
from lora_rlhf.stages.trainer import NotFinite, Trainer
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped

if TYPE_CHECKING:
    from lora_rlhf.stages.ppo import PPO

TAIL = 10  # iterations whose mean KL and score are reported as those at the end
SAMPLED = ("score", "kl", "length", "eos_rate", "entropy")  # figures of the rollout that samples have too


class PPOLoop:
    """Runs the iterations that are left. Checkpoints stand between two iterations: a kill costs one at most."""

    def __init__(self, ppo: "PPO", folder: StageFolder, prompts: Spool[EncodedPrompt]) -> None:
        self.ppo, self.folder, self.prompts = ppo, folder, prompts
        self.config, self.model = ppo.config, ppo.model
        self.trainer = Trainer(self.config, self.model, folder, ppo.optimizers, self._state_to_save, "iteration")
        self.rows: list[Metrics] = []  # of each iteration

    def run(self) -> dict[str, Any]:
        """Returns the results for the manifest."""
        ppo, total = self.ppo, self.config.iterations
        fixed = [self.prompts[index] for index in fixed_prompt_indices(self.prompts, FIXED)]
        reference = None if self.config.reference == "base" else self.model.adapter_state(self.config.reference)
        with self.trainer.running():
            self._prepare()
            with tqdm(total=total, initial=ppo.done, desc="ppo", unit="iteration") as bar:
                for prompts in self._prompt_batches():
                    generator = ppo.generator.get_state()
                    try:
                        metrics = ppo.iterate(prompts)
                    except NotFinite as error:
                        raise self._write_failure(error, prompts) from error
                    except NoJudgement as error:  # nothing was learned yet: this iteration is begun again
                        ppo.generator.set_state(generator)
                        raise self.trainer.save_and_stop(ppo.done, total, str(error)) from error
                    self._write_metrics(metrics, fixed)
                    ppo.done, ppo.latest = ppo.done + 1, {}
                    bar.update()
                    bar.set_postfix(score=f"{metrics['rollout/score']:.2f}", kl=f"{metrics['rollout/kl']:.2f}")
                    objective = metrics["rollout/score"] - metrics["ppo/kl_coef"] * metrics["rollout/kl"]
                    self.trainer.save_or_stop(ppo.done, total, score=objective)
        if reference is not None and not same_state(reference, self.model.adapter_state(self.config.reference)):
            raise RuntimeError("the reference changed during PPO: the KL was measured to a moving target")
        return self._summarize()

    def _prepare(self) -> None:
        """Restores an unfinished run's checkpoint, chooses how to sample, and rehearses the largest steps."""
        sampler, checkpoint = self.ppo.sampler, self.trainer.resume()
        engine, merge = self.config.engine, None
        if checkpoint is not None:
            self._restore(checkpoint)
            decoding = checkpoint.state["decoding"]
            engine = decoding["engine"] if engine == "auto" else engine
            merge = decoding["merge"] if self.config.decode_weights == "auto" else None
        sampler.choose_engine(engine, self.prompts)
        self._rehearse(self.prompts.longest.prompt_ids)
        if merge is None:
            sampler.choose_weights(self.config.decode_weights, self.prompts)
        else:
            sampler.merge = merge

    def _rehearse(self, longest: list[int]) -> None:
        """Samples and learns once at the largest sizes, then restores everything, so that a lack of memory shows now.

        `longest` are the ids of the longest prompt. Raises Stopped where even one response does not fit.
        """
        ppo, config, device = self.ppo, self.config, self.model.device
        ppo.sampler.rehearse(longest)
        count = min(ppo.batch.size, config.minibatch_size) * workers.process_count()
        prompts = torch.tensor([longest] * count, device=device)
        responses = prompts[:, -1:].expand(count, config.max_response_tokens).contiguous()
        prompt_mask, response_mask = (torch.ones_like(ids, dtype=torch.bool) for ids in (prompts, responses))
        sequences = Sequences(prompts, prompt_mask, responses, response_mask)
        zeros = torch.zeros(responses.shape, device=device)
        values = zeros if config.has_value_role else None
        ended = response_mask[:, 0]
        rollout = Rollout(sequences, ended, zeros[:, 0], zeros[:, 0], zeros, zeros, zeros, values, ppo.batch.size)
        targets, rows = Targets(zeros, values), list(range(count))
        blocks = None
        if ppo.text is not None:
            blocks = torch.zeros((count, config.ptx_block_tokens), dtype=torch.long, device=device)
        update = ppo.update
        update.optimizers["policy"].rehearse(
            lambda size: update.accumulate_policy_gradient(rollout, targets, rows, blocks, size)[0]
        )
        if config.has_value_role:
            update.optimizers["value"].rehearse(
                lambda size: update.accumulate_value_gradient(rollout, targets, rows, size)
            )

    def _prompt_batches(self) -> Iterator[list[EncodedPrompt]]:
        """Yields the prompts of each iteration that is left. Every prompt is used once before any is used again."""
        rng = seed_everything(self.config.seed)
        count = self.config.batch_size // self.config.samples_per_prompt
        first = self.ppo.done
        waiting: list[int] = []
        for iteration in range(self.config.iterations):
            while len(waiting) < count:
                waiting += [index for batch in batches(len(self.prompts), count, rng) for index in batch]
            if iteration >= first:
                yield [self.prompts[index] for index in waiting[:count]]
            waiting = waiting[count:]

    def _write_metrics(self, metrics: Metrics, fixed: list[EncodedPrompt]) -> None:
        """One row of metrics.jsonl, and now and then the responses to the fixed prompts."""
        self.rows.append(metrics)
        done, seconds = self.ppo.done, self.ppo.latest
        timed = {f"time/{name}": value for name, value in seconds.items()}
        timed["time/tokens_per_s"] = metrics["rollout/length"] * self.config.batch_size / sum(seconds.values())
        rows: list[dict[str, Any]] = []
        if done % self.config.sample_every == 0 or done == self.config.iterations - 1:
            figures, rows = self._sample_fixed_prompts(fixed)
            timed |= figures
        details = {} if self.ppo.rollout is None else {"rollout/score_histogram": self.ppo.rollout.score_histogram()}
        self.trainer.log(done + 1, {**metrics, **timed, "memory/peak_gib": peak_gpu_gib() or peak_rss_gib()}, details)
        self.folder.sample(done + 1, rows)

    def _sample_fixed_prompts(self, prompts: list[EncodedPrompt]) -> tuple[Metrics, list[dict[str, Any]]]:
        """Figures and rows for the fixed prompts. They have a seed of their own: training is the same without."""
        ppo = self.ppo
        responses = ppo.act(prompts, torch.Generator().manual_seed(self.config.seed))
        texts = [decode_response(self.model.tokenizer, response.ids).strip() for response in responses]
        every = slice(None, None, self.config.samples_per_prompt)  # the first response of each prompt
        rows = sample_rows([prompt.prompt.messages[-1].content for prompt in prompts], texts[every], responses[every])
        try:
            rollout = ppo.judge(prompts, responses, needs_values=False)
        except (NotFinite, NoJudgement):  # the next iteration says what is wrong
            return text_figures(texts), rows
        kl = (rollout.old_logprobs - rollout.ref_logprobs).sum(dim=1)
        for row, score, distance in zip(rows, rollout.raw_scores[every].tolist(), kl[every].tolist(), strict=True):
            row |= {"score": score, "kl": distance}
        metrics = rollout.metrics()
        return text_figures(texts) | {f"samples/{name}": metrics[f"rollout/{name}"] for name in SAMPLED}, rows

    def _write_failure(self, error: NotFinite, prompts: list[EncodedPrompt]) -> Stopped:
        """The error for a number that is not finite; the iteration's responses are written to failure.json."""
        ppo, tokenizer = self.ppo, self.model.tokenizer
        rows = [
            {
                "prompt": tokenizer.decode(prompt.prompt_ids),
                "response": decode_response(tokenizer, response.ids),
                "response_ids": response.ids,
                "score": None if ppo.rollout is None else float(ppo.rollout.raw_scores[row]),
            }
            for row, (prompt, response) in enumerate(zip(ppo.repeat(prompts), ppo.responses, strict=False))
        ]
        advice = "Lower --policy_learning_rate or --value_learning_rate and go on with --allow_changes"
        return self.trainer.write_failure(ppo.done + 1, error, rows, advice)

    def _summarize(self) -> dict[str, Any]:
        """The results for the manifest: KL and score at the end, seconds, peak memory."""
        tail = self.rows[-TAIL:]
        return {
            "kl": sum(row["rollout/kl"] for row in tail) / len(tail),
            "kl_target": self.config.kl_target,
            "kl_horizon": self.config.horizon,
            "kl_coef": self.ppo.kl.coef,
            "first_score": self.rows[0]["rollout/score"],
            "last_score": sum(row["rollout/score"] for row in tail) / len(tail),
            "seconds": {name: round(value, 2) for name, value in self.ppo.seconds.items()},
            "peak_rss_gib": round(peak_rss_gib(), 3),
            "peak_gpu_gib": round(peak_gpu_gib(), 3),
            **({} if self.ppo.scorer.judge is None else {"judge": self.ppo.scorer.judge.describe()}),
        }

    def _state_to_save(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint holds of PPO itself: JSON values, and the generator's state as a tensor."""
        ppo = self.ppo
        state: dict[str, Any] = {
            "done": ppo.done,
            "beyond": ppo.unlearned,
            "controller": ppo.kl.state_dict(),
            "baseline": ppo.baseline.mean,
            "text": None if ppo.text is None else ppo.text.state_dict(),
            "seconds": dict(ppo.seconds),
            "decoding": ppo.sampler.state_dict(),
            "judge": None if ppo.scorer.judge is None else ppo.scorer.judge.state_dict(),
        }
        return state, {"generator": ppo.generator.get_state()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint: counters, KL coefficient, text position, generator, earlier metrics."""
        ppo, state = self.ppo, checkpoint.state
        ppo.done, ppo.unlearned = state["done"], state["beyond"]
        ppo.kl.load_state_dict(state["controller"])
        ppo.baseline.mean = state.get("baseline")  # older checkpoints have none
        if ppo.text is not None:
            ppo.text.load_state_dict(state["text"])
        if ppo.scorer.judge is not None and state.get("judge"):
            ppo.scorer.judge.load_state_dict(state["judge"])
        ppo.seconds.update(state["seconds"])
        ppo.generator.set_state(checkpoint.tensors["generator"])
        self.rows = [row for row in workers.from_main(self.folder.rows) if "rollout/kl" in row]
