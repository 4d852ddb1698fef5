"""The configurations of the stages that train. All faults of a configuration are reported at once."""

from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.common import TemplateConfig, TrainingConfig
from lora_rlhf.configs.marks import (
    COMMON,
    ENGINE,
    MOST_USED,
    NEEDS_TRUST,
    SAFE_TO_CHANGE_ON_RESUME,
    input_file,
    subject,
)
from lora_rlhf.configs.reward_functions import FunctionChoice, read_choices
from lora_rlhf.configs.scoring import ScoringConfig
from lora_rlhf.configs.values import at_least, multiple, positive, share

KL_HORIZON = 10_000.0  # responses (Ziegler et al., arXiv 1909.08593, section 2.2), in runs of 2 million
KL_HORIZONS_OF_RUN = 6  # horizons in a shorter run: a coefficient may then grow to e^1.2 of its first value, or shrink


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TemplateConfig, TrainingConfig):
    """Supervised fine-tuning on demonstrations (InstructGPT, section 3.5). This stage fixes the base of the run."""

    model: str = field(metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Base model: a hub name, a local folder, or tinyworld (the one inside this package)."""
    demonstrations: str = field(metadata=input_file())
    """File or hub dataset of demonstrations."""
    quantization: Literal["nf4", "int8", "none"] = field(default="nf4", metadata=COMMON | MOST_USED)
    """How the frozen base is held in memory: 4-bit NormalFloat with double quantization, 8-bit, or as it is stored."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(default="auto", metadata=COMMON)
    """auto: float32 on a CPU, bfloat16 on a GPU that has it."""
    lora_rank: int = field(default=16, metadata=MOST_USED)
    """Rank of every adapter of the run."""
    lora_alpha: float = 32.0
    """LoRA's alpha: the adapter's output is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout before the adapters, in SFT only."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Layers with an adapter: all-linear (every linear layer of the text model but LM head and routers), attention,
    mlp, or ends of layers' names such as q_proj."""
    epochs: int = field(default=2, metadata=MOST_USED)
    """Passes over the demonstrations."""
    batch_size: int = field(default=32, metadata=MOST_USED)
    """Demonstrations in one optimizer step."""
    learning_rate: float = field(default=2e-4, metadata=MOST_USED)
    """Peak; cosine to a tenth of it."""
    validation_fraction: float = 0.05
    """Share of prompts held out, by hash of the prompt; the best epoch is chosen on them."""
    every_turn: bool = False
    """Train on every answer of a conversation, not only on its last one."""
    train_empty_thoughts: bool = False
    """Also learn the empty thought that some templates write before an answer. A model that thinks may unlearn it."""
    packing: bool = False
    """Concatenate the demonstrations of a forward pass instead of padding them: the same gradient, less work."""
    select_by: Literal["auto", "loss", "reward"] = "auto"
    """What the best epoch is chosen by. auto: the run's reward model where there is one, else the validation loss."""

    def faults(self) -> list[str]:
        return [
            *super().faults(),
            *at_least(self, 1, "lora_rank", "epochs", "batch_size"),
            *positive(self, "lora_alpha", "learning_rate"),
            *share(self, "lora_dropout", "validation_fraction"),
            *([] if self.lora_targets else ["give at least one of --lora_targets, or leave the flag out"]),
            *self.template_faults(),
        ]


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainingConfig):
    """Reward model on K-wise rankings (InstructGPT, section 3.5, eq. 1), or on labels of steps (arXiv 2305.20050)."""

    rankings: str | None = field(default=None, metadata=input_file() | MOST_USED)
    """File or hub dataset of rankings (or of chosen and rejected pairs)."""
    steps: str | None = field(default=None, metadata=input_file() | MOST_USED)
    """In place of rankings, answers whose steps are labelled good or bad: a process reward model."""
    step_end: str = "\n"
    """With steps: the text that ends a step. Whatever uses the model splits answers by it."""
    model: str | None = field(default=None, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Where the base model of the SFT stage is now, if it was moved."""
    sft: str | None = None
    """SFT stage folder to start from; RUN/sft unless given."""
    demonstrations: str | None = field(default=None, metadata=input_file())
    """Demonstrations whose mean score becomes 0; the SFT stage's unless given."""
    agreement: str | None = field(default=None, metadata=input_file())
    """Rankings of the same prompts by several labelers, to measure their agreement; the rankings unless given."""
    epochs: int = field(default=1, metadata=MOST_USED)
    """Passes over the data; of rankings more than one overfits (InstructGPT, appendix C.2)."""
    batch_size: int = field(default=16, metadata=MOST_USED)
    """Prompts, each with all its responses, in one optimizer step; with steps, answers."""
    learning_rate: float = field(default=2e-4, metadata=MOST_USED)
    """Peak; cosine to a tenth of it."""
    loss: Literal["pairwise", "listwise"] = "pairwise"
    """All pairs of a ranking (eq. 1), or Plackett-Luce over the whole list."""
    validation_fraction: float = 0.1
    """Share of prompts held out to measure the reward model on."""
    scale: float | None = None
    """Divide scores by this instead of by their standard deviation on the demonstrations (for control runs)."""

    def faults(self) -> list[str]:
        return [
            *super().faults(),
            *at_least(self, 1, "epochs", "batch_size"),
            *positive(self, "learning_rate", "scale"),
            *share(self, "validation_fraction"),
            *self._data_faults(),
        ]

    def _data_faults(self) -> list[str]:
        """Whether there is one kind of data, and no setting of the other."""
        if (self.rankings is None) == (self.steps is None):
            return ["give either --rankings FILE, or --steps FILE for a process reward"]
        if self.steps is None:
            return []
        chosen = {"loss": self.loss != "pairwise", "scale": self.scale is not None}
        chosen |= {name: getattr(self, name) is not None for name in ("demonstrations", "agreement")}
        faults = [f"{name} is for rankings, not for steps" for name, is_given in chosen.items() if is_given]
        return faults + ([] if self.step_end else ["step_end is empty: name the text that ends a step"])


def init_faults(config: "DPOConfig | PPOConfig") -> list[str]:
    """A fault if the reference is a policy that nobody named."""
    is_missing = config.reference == "init" and config.init is None
    return ["reference is init, but init names no policy: give both, or leave reference out"] if is_missing else []


# TRL's losses (1.16). Those of pairs all read the log-probabilities of a chosen and a rejected answer.
PAIR_LOSSES = (
    *("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"),
)
VOTE_LOSSES = ("kto", "apo_zero_unpaired")
LOSSES = {"dpo": PAIR_LOSSES, "kto": VOTE_LOSSES}
REFERENCE_FREE = ("simpo", "orpo", "cpo")  # TRL has them in a part that promises no stability
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")  # those that read label_smoothing


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """A policy from rankings or votes without a reward model (DPO, arXiv 2305.18290; KTO, arXiv 2402.01306)."""

    rankings: str = field(metadata=input_file())
    """File or hub dataset of rankings or of chosen and rejected pairs; for kto also of answers labelled good or bad."""
    model: str | None = field(default=None, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Where the base model of the SFT stage is now, if it was moved."""
    sft: str | None = None
    """SFT stage folder that the policy starts from; RUN/sft unless given."""
    init: str | None = None
    """Stage folder of a policy (RUN/ppo, RUN/dpo) that this one goes on from, instead of from the SFT model."""
    reference: Literal["sft", "base", "init"] = "sft"
    """What the policy is held to: the frozen SFT model, the bare base, or the policy that it goes on from."""
    method: Literal["dpo", "kto"] = field(default="dpo", metadata=MOST_USED)
    """dpo learns from pairs of answers to one prompt; kto from single answers that are called good or bad."""
    loss_type: tuple[str, ...] = field(default=(), metadata=MOST_USED)
    """TRL's loss, or several that are added: sigmoid (DPO's own), ipo, hinge, ... (docs/methods.md); for kto: kto or
    apo_zero_unpaired. The method's own unless given."""
    loss_weights: tuple[float, ...] = ()
    """The weight of each loss; 1 each unless given."""
    pairs: Literal["all", "best-worst", "adjacent"] = "all"
    """Which pairs of a ranking are learned; whatever their number, every prompt counts once."""
    beta: float = field(default=0.1, metadata=MOST_USED)
    """How closely the policy is held to the reference (in ipo: tau); higher is closer."""
    label_smoothing: float = 0.0
    """Share of labels that may be wrong, for robust, exo_pair (which needs one, such as 1e-3) and aot."""
    desirable_weight: float = 1.0
    """For kto: weight of the loss of good answers."""
    undesirable_weight: float = 1.0
    """For kto: weight of the loss of bad answers."""
    epochs: int = field(default=1, metadata=MOST_USED)
    """Passes over the rankings."""
    batch_size: int = field(default=16, metadata=MOST_USED)
    """Prompts, each with all its pairs (for kto: answers), in one optimizer step."""
    learning_rate: float = field(default=1e-4, metadata=MOST_USED)
    """Peak; cosine to a tenth of it."""
    validation_fraction: float = 0.1
    """Share of prompts held out, to measure which answers the policy has come to prefer."""

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that are added: those of loss_type, or the method's own."""
        return self.loss_type or (LOSSES[self.method][0],)

    def faults(self) -> list[str]:
        return [
            *super().faults(),
            *at_least(self, 1, "epochs", "batch_size"),
            *positive(self, "learning_rate", "beta", "desirable_weight", "undesirable_weight"),
            *share(self, "validation_fraction"),
            *share(self, "label_smoothing", upper=0.49),
            *self._loss_faults(),
            *init_faults(self),
        ]

    def _loss_faults(self) -> list[str]:
        known, faults = LOSSES[self.method], []
        for name in self.losses:
            if name not in known:
                other = next((method for method, names in LOSSES.items() if name in names), None)
                advice = f"it is one of --method {other}" if other else f"{self.method} has: {', '.join(known)}"
                if name in REFERENCE_FREE:
                    advice = f"it has no reference, and TRL has it in its experimental part alone; {advice}"
                faults.append(f"loss_type {name!r} is not known here; {advice}")
        if self.method == "kto" and len(self.losses) > 1:
            faults.append("kto has one loss at a time")
        if self.method == "kto" and self.pairs != "all":
            faults.append("pairs is for dpo: of a ranking, kto takes the best answers as good and the worst as bad")
        if self.method == "kto" and self.batch_size < 2:
            faults.append("batch_size is 1: kto compares the answers of a batch with one another, so give at least 2")
        if self.method == "dpo" and (self.desirable_weight, self.undesirable_weight) != (1.0, 1.0):
            faults.append("desirable_weight and undesirable_weight are for kto")
        if self.loss_weights and len(self.loss_weights) != len(self.losses):
            faults.append(f"loss_weights has {len(self.loss_weights)} numbers for {len(self.losses)} losses")
        if "exo_pair" in self.losses and self.label_smoothing == 0:
            faults.append("exo_pair needs a label_smoothing above 0; its paper takes 1e-3")
        if self.label_smoothing and not set(self.losses) & set(SMOOTHED_LOSSES):
            faults.append(f"label_smoothing is for {', '.join(SMOOTHED_LOSSES)}; {', '.join(self.losses)} has none")
        if self.losses == ("sft",) and self.reference == "base":
            faults.append("loss_type sft alone has no reference: leave --reference out, or add another loss")
        return faults


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ScoringConfig, TrainingConfig):
    """Proximal policy optimization against the reward model (InstructGPT, section 3.5, eq. 2)."""

    prompts: str = field(metadata=input_file())
    """File or hub dataset of prompts."""
    model: str | None = field(default=None, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Where the base model of the SFT stage is now, if it was moved."""
    sft: str | None = None
    """SFT stage folder that the policy starts from; RUN/sft unless given."""
    init: str | None = None
    """Stage folder of a policy (RUN/ppo, RUN/dpo) that this one goes on from, instead of from the SFT model."""
    reward: str | None = None
    """Reward stage folder; RUN/reward unless given."""
    accept_chance_reward: bool = False
    """Train although the held-out accuracy of the reward model may be that of a coin."""
    reference: Literal["sft", "base", "init"] = "sft"
    """What the KL penalty is measured to: the SFT model (InstructGPT), the bare base, or the policy in init."""
    deduplicate: Literal["exact", "prefix", "none"] = "exact"
    """Which repeated prompts to leave out; prefix: also those with a long beginning in common (InstructGPT, 3.2)."""
    iterations: int = field(default=100, metadata=MOST_USED | subject("rollouts and updates"))
    """Rollout-and-update rounds."""
    batch_size: int = field(default=64, metadata=MOST_USED)
    """Responses sampled per iteration; a multiple of minibatch_size and of samples_per_prompt."""
    minibatch_size: int = 32
    """Responses in one optimizer step."""
    num_epochs: int = 2
    """Passes over an iteration's responses."""
    samples_per_prompt: int = field(default=1, metadata=MOST_USED)
    """Responses of one prompt; at least 2 for rloo, grpo and dr_grpo."""
    temperature: float = field(default=1.0, metadata=subject("sampling"))
    """Temperature of rollouts and of every log-probability."""
    decode_weights: Literal["auto", "merged", "adapter"] = field(default="auto", metadata=COMMON)
    """How responses are sampled: from a merged copy of base and adapter, or unmerged. auto: the copy where it fits."""
    engine: Literal["auto", "plain", "static"] = field(default="auto", metadata=ENGINE)
    """How responses are generated: in batches (plain), in slots that are refilled (static), or the faster (auto)."""
    advantage: Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce"] = field(
        default="gae", metadata=MOST_USED | subject("advantages and losses")
    )
    """GAE with a value role; a critic-free advantage over the responses of one prompt (rloo, grpo, dr_grpo); or the
    score over its moving mean (reinforce). docs/methods.md compares them."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where kl_coef charges the KL: in each token's reward (InstructGPT), or as a term of the policy's loss (GRPO)."""
    loss_level: Literal["token", "sequence", "constant"] = "token"
    """What weighs the same in the policy's loss: each token, each response (GRPO), or each token whatever the lengths
    of its minibatch (Dr. GRPO)."""
    skip_equal_groups: bool = False
    """Leave out the responses of a prompt that all have the same score: rloo, grpo and dr_grpo (DAPO)."""
    mask_overlong: bool = False
    """Do not learn from responses that did not end within max_response_tokens (DAPO); their scores still count."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """GAE's lambda."""
    whiten_rewards: bool = False
    """Scale token rewards to sd 1 around their own mean before GAE (Ziegler et al.)."""
    clip_range: float = 0.2
    """PPO's clip of the probability ratio."""
    clip_range_high: float | None = None
    """The clip's upper range, where it is another than the lower one: DAPO has 0.28 over 0.2."""
    value_clip_range: float = 0.2
    """Clip of the value's move in one iteration."""
    policy_learning_rate: float = field(default=1e-4, metadata=MOST_USED | subject("learning rates and guards"))
    """AdamW's learning rate; constant after the warm-up."""
    value_learning_rate: float = 1e-4
    """AdamW's learning rate; constant after the warm-up."""
    warmup_iterations: int = 10
    """Iterations over which learning rates rise linearly from a tenth (InstructGPT: 10)."""
    stop_at_approx_kl: float | None = 0.2
    """End an iteration's updates early when the policy has moved this many nats per token since its rollout."""
    max_kl: float | None = 100.0
    """An iteration with a KL above this many nats per response is not learned from; three in a row end the run."""
    old_logprobs: Literal["auto", "sampled", "scored"] = "auto"
    """Log-probabilities of the policy that sampled: those that the sampler recorded, or those of one more pass over the
    responses. auto: sampled, but scored with a base in 16 or 8 bits, where sampling and training round differently."""
    mismatch_cap: float | None = 2.0
    """With a base in 16 or 8 bits and scored log-probabilities, each token weighs as much more as training finds it
    likelier than the sampler did, but at most this (truncated importance sampling); null: all weigh the same."""
    max_ratio: float | None = 10.0
    """A mean probability ratio above this ends an iteration's updates; three such iterations in a row end the run."""
    save_every: int = field(default=10, metadata=COMMON | SAFE_TO_CHANGE_ON_RESUME)
    """Iterations from one checkpoint to the next."""
    kl_coef: float = field(default=0.05, metadata=MOST_USED | subject("KL"))
    """Price of one nat of KL, in units of the score; with adaptive control, its first value."""
    kl_target: float | None = field(default=None, metadata=MOST_USED)
    """Steer the KL of a response to this many nats (adaptive control); null: the coefficient is fixed."""
    kl_horizon: float | None = None
    """Responses over which adaptive control acts (Ziegler et al., section 2.2); null: a sixth of the run's, and
    at most their 10,000, so that a short run is steered as well."""
    missing_eos_score: float | None = field(default=-1.0, metadata=subject("reward"))
    """Score of a response that did not end within max_response_tokens, in units of the reward model's score (without
    one, of the reward function's), whose weight applies to it; null: the reward model's."""
    score_clip: float | None = None
    """Clip scores to plus and minus this."""
    process: str | None = None
    """Reward stage folder of a process reward (reward --steps), which pays where a step ends, beside the reward model;
    alone if the run has no other reward. Not needed where RUN/reward is one."""
    process_weight: float = 1.0
    """Weight of the process reward, whose score of a response is between 0 and 1."""
    score_steps_by: Literal["product", "minimum", "last"] = "product"
    """What a process reward makes of its steps: their product, their minimum, or the last one. A step is paid by how
    much that changes with it."""
    reward_model_weight: float = 1.0
    """Weight of the reward model's score; 0, also if the run has no reward stage, with reward functions alone."""
    reward_function: str | None = field(default=None, metadata=NEEDS_TRUST)
    """One more reward function, as in reward_functions, with reward_function_weight."""
    reward_function_weight: float = 1.0
    """Weight of reward_function."""
    reward_failure_score: float = 0.0
    """Score of a response on which a judge fails, or a reward function raises, hangs, dies or returns no number."""
    pretraining_text: str | None = field(default=None, metadata=input_file() | subject("pretraining term (PPO-ptx)"))
    """Text for the PPO-ptx term, mixed into every step; null: plain PPO."""
    ptx_coef: float = 27.8
    """Weight of the PPO-ptx term (InstructGPT: 27.8)."""
    ptx_batch_size: int = 8
    """Text blocks in one optimizer step."""
    ptx_block_tokens: int = 128
    """Tokens in one text block."""
    ptx_shuffle_blocks: int = 4096
    """Blocks in memory, from which the next one is drawn."""
    sample_every: int = field(default=10, metadata=subject("records"))
    """Record responses to the same few prompts every so many iterations."""

    @property
    def has_value_role(self) -> bool:
        """Whether a value role is trained: GAE needs one, the advantages over a prompt's responses do not."""
        return self.advantage == "gae"

    @property
    def horizon(self) -> float:
        """The responses over which adaptive control acts."""
        if self.kl_horizon is not None:
            return self.kl_horizon
        return max(float(self.batch_size), min(KL_HORIZON, self.iterations * self.batch_size / KL_HORIZONS_OF_RUN))

    @property
    def compares_groups(self) -> bool:
        """Whether an advantage compares the responses of one prompt."""
        return self.advantage not in ("gae", "reinforce")

    @property
    def has_other_rewards(self) -> bool:
        """Whether responses are scored by anything but the reward model."""
        return bool(self.reward_function or self.reward_functions or self.reward_judge or self.process)

    @property
    def functions(self) -> list[FunctionChoice]:
        """The reward functions. UserError for one of another form."""
        single = [] if self.reward_function is None else [f"{self.reward_function}={self.reward_function_weight!r}"]
        return read_choices([*single, *self.reward_functions])

    def faults(self) -> list[str]:
        return [
            *super().faults(),
            *at_least(self, 1, "iterations", "batch_size", "minibatch_size", "num_epochs", "samples_per_prompt"),
            *at_least(self, 1, "ptx_batch_size", "ptx_shuffle_blocks", "sample_every"),
            *at_least(self, 2, "ptx_block_tokens"),
            *positive(self, "temperature", "clip_range", "value_clip_range", "policy_learning_rate"),
            *positive(self, "value_learning_rate", "kl_target", "kl_horizon", "score_clip", "max_kl", "max_ratio"),
            *positive(self, "clip_range_high", "mismatch_cap"),
            *multiple(self, "batch_size", "minibatch_size"),
            *multiple(self, "batch_size", "samples_per_prompt"),
            *share(self, "gamma", "lam", upper=1.0),
            *self.scoring_faults(),
            *init_faults(self),
            *self._inconsistencies(),
        ]

    def _inconsistencies(self) -> list[str]:
        faults = []
        if self.compares_groups and self.samples_per_prompt < 2:
            faults.append(f"advantage {self.advantage} compares responses: samples_per_prompt must be at least 2")
        if self.skip_equal_groups and not self.compares_groups:
            faults.append(
                f"skip_equal_groups is for rloo, grpo and dr_grpo; with {self.advantage} such groups teach too"
            )
        if self.kl_target is not None and self.kl_horizon is not None and self.kl_horizon < self.batch_size:
            faults.append(f"kl_horizon {self.kl_horizon:g} is below batch_size {self.batch_size}: raise it")
        if self.reward_model_weight == 0 and not self.has_other_rewards:
            faults.append("reward_model_weight is 0 and there is no reward_function: nothing would be learned")
        if not self.process_weight:
            faults.append("process_weight is 0: leave process out instead")
        if self.reward_judge_against == "group" and self.samples_per_prompt < 2:
            faults.append("reward_judge_against group compares responses: samples_per_prompt must be at least 2")
        return faults
