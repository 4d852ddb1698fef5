"""Chooses the judge before anything is loaded, and opens the judges that need no run."""

from collections.abc import Sequence
from pathlib import Path

from lora_rlhf.configs.judge import JudgeConfig, JudgeModelConfig
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.asking import Asker, JudgeModel
from lora_rlhf.judges.cache import CACHE_FILE, REPLIES_FILE, Cache
from lora_rlhf.judges.human import HumanJudge
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import read_questions
from lora_rlhf.judges.scores import Gold, first_unknown_prompt, prompt_text
from lora_rlhf.runs.folder import Parent
from lora_rlhf.system.errors import UserError


def choose_judge(
    config: JudgeConfig, run: str, reward: Parent | None, gold: Gold | None, prompts: Sequence[Prompt]
) -> str:
    """The name of the judge. Raises UserError if the chosen judge cannot judge these prompts. Loads nothing.

    reward: the run's reward stage. gold: an exact score, which raises KeyError for an unknown prompt.
    """
    if config.judge not in ("auto", "gold", "reward"):
        return config.judge
    unknown_prompt = None if gold is None else first_unknown_prompt(gold, prompts)
    is_gold_usable = gold is not None and unknown_prompt is None
    if config.judge == "gold" and not is_gold_usable:
        reason = "there is none here"
        if unknown_prompt is not None:
            reason = f"it does not know the prompt {prompt_text(unknown_prompt)!r}"
        raise UserError(f"--judge gold: {reason}; use --judge reward, or the tiny world's prompts")
    if is_gold_usable and config.judge != "reward":
        return "gold"
    if reward is None:
        raise UserError(
            f"{run}: no reward stage there to judge by, and no gold score for these prompts; "
            f"run `lora-rlhf reward --run {run}` first, or choose another --judge"
        )
    return "reward"


def open_judge(config: JudgeConfig, run: str, device: str, trust_remote_code: bool) -> Judge:
    """Opens the judge `config.judge`, one of human, local and endpoint. Call this before any long work.

    An endpoint is asked one question; the files of a local model are read, but it is not loaded yet. run: verdicts are
    written beside this folder, unless the configuration names a file. Raises UserError for an unusable file of
    rankings, instructions or verdicts, for an invalid key, and for a model that is missing or gives no verdict.
    """
    if config.judge == "human":
        assert config.judge_file is not None
        return HumanJudge(config.judge_file)
    questions = read_questions(config.judge_instructions)
    judge = PairwiseJudge(open_asker(config, config.judge, "judge", run, device, trust_remote_code), questions)
    if config.judge == "endpoint":
        judge.check_easy_question()
    return judge


def open_cache(config: JudgeModelConfig, run: str, keeps_replies: bool = False) -> Cache:
    """The cache that the configuration names, or the one beside the run's folder."""
    default_path = Path(run).parent / (REPLIES_FILE if keeps_replies else CACHE_FILE)
    path = default_path if config.judge_cache is None else Path(config.judge_cache).expanduser()
    return Cache(path, keeps_replies)


def open_asker(
    config: JudgeModelConfig,
    kind: str,
    flag: str,
    run: str,
    device: str,
    trust_remote_code: bool,
    keeps_replies: bool = False,
) -> Asker:
    """The model of a judge, "local" or "endpoint", with its cache; see `open_judge`. flag: the one that chose it."""
    cache = open_cache(config, run, keeps_replies)
    model: JudgeModel
    if kind == "local":
        from lora_rlhf.judges.local import LocalModel

        model = LocalModel(config, device, trust_remote_code)
        model.identity()  # raises UserError if the files cannot be read
    else:
        from lora_rlhf.judges.endpoint import Endpoint

        model = Endpoint(config, flag)
    return Asker(kind, model, cache, flag, config.judge_budget)
