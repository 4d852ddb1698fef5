"""Between stages 1 and 2: K distinct responses of each prompt, ready to be ranked (InstructGPT, section 3.2).

Or the best of n as demonstrations, which `best_of.py` chooses.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lora_rlhf.configs.catalogue import BASE, BY_ROLE, REWARD, SFT
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with_mark
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, make_row
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool
from lora_rlhf.data.template import decode_response, render_response
from lora_rlhf.model.generate import Engine, Response, draw_seeds
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import Parent, data_hash, find_stage
from lora_rlhf.stages.best_of import BestOf
from lora_rlhf.stages.interrupt import graceful
from lora_rlhf.stages.judged import NoJudgement
from lora_rlhf.stages.partial import PartialOutput, progress
from lora_rlhf.stages.rows import encode_prompts, source_of
from lora_rlhf.stages.sampler import Sampler, require_engine
from lora_rlhf.stages.session import (
    PROCESS,
    find_reward,
    load_parent_role,
    log,
    open_parent_base,
    require_context,
    seed_everything,
    step_end_of,
)
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUNDS = 4  # slots' worth sampled in one go by the static engine: with fewer, most slots wait for the last response
SPARE = 4  # responses drawn beyond the most that are kept, since a small model repeats itself


def sample(config: SampleConfig, model: SharedModel | None = None) -> SharedModel:
    """Writes K distinct responses per prompt, K drawn evenly from min_responses to max_responses.

    With `best_of`, writes the best of that many responses to each prompt as demonstrations. What was sampled stands
    in a file beside `to` until all is: an attempt that ended goes on there.
    """
    check(config)
    _require_unused_output(config)
    sft = find_stage(f"{config.run}/{SFT.name}", SFT.name)
    name = SFT.name if config.role == BASE else BY_ROLE[config.role].name
    stage = find_stage(f"{config.run}/{name}", name)
    reward = None
    if config.best_of is not None and config.by == "reward":
        reward = find_reward(config.reward or f"{config.run}/{REWARD.name}", sft)
    prompts: Source[Prompt] = source_of(config, config.prompts, "prompts")
    prompts.require_first()
    require_engine(config, sft)
    step_end = None if reward is None else step_end_of(reward)
    best_of = None if config.best_of is None else BestOf(config, prompts, step_end)
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    for role, parent in ((config.role, stage), (REWARD.role if step_end is None else PROCESS, reward)):
        if parent is not None and role != BASE:
            load_parent_role(model, role, parent)
    workers.from_main(lambda: _make_folder(config.to))
    encoded = encode_prompts(config, prompts, model.tokenizer)

    rng = seed_everything(config.seed)
    draws = config.best_of or config.max_responses + SPARE
    seeds = draw_seeds(torch.Generator().manual_seed(config.seed), len(encoded), draws)
    most = [rng.randint(config.min_responses, config.max_responses) for _ in seeds]
    partial = PartialOutput(config.to, _made_from(config, stage, reward))
    lines = workers.from_main(partial.begin)
    rows_of_prompts: list[dict[str, Any] | None] = [line["row"] for line in lines]
    engine: Engine | None = lines[-1]["engine"] if lines else None
    if lines:
        log.info("going on after %d prompts, which %s holds", len(lines), partial.path)

    def to_rows(indices: Sequence[int], groups: Sequence[list[Response]]) -> Sequence[dict[str, Any] | None]:
        asked = [encoded[index] for index in indices]
        if best_of is not None:
            return best_of.candidates(model, asked, groups)
        return [
            _ranking_row(config, model, prompt, group, most[index])
            for prompt, group, index in zip(asked, groups, indices, strict=True)
        ]

    if len(rows_of_prompts) < len(encoded):
        _sample_rest(config, model, encoded, seeds, to_rows, partial, engine, rows_of_prompts)
    found = [row for row in rows_of_prompts if row is not None]
    finish = _finish_rankings if best_of is None else best_of.finish
    workers.from_main(lambda: partial.finish(finish(config, encoded, found)))
    if best_of is not None:
        best_of.close()
    return model


def _finish_rankings(
    config: SampleConfig, encoded: Sequence[EncodedPrompt], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows as they are, counted. UserError where there is none."""
    if not rows:
        raise UserError(
            f"no prompt gave {config.min_responses} distinct responses; lower --min-responses or raise --temperature"
        )
    if fewer := len(encoded) - len(rows):
        log.warning("%d of %d prompts gave fewer than %d distinct responses", fewer, len(encoded), config.min_responses)
    counts = [len(row["responses"]) for row in rows]
    log.info("%s: %d prompts with %d to %d responses each", config.to, len(rows), min(counts), max(counts))
    if num_cut := sum(row.get("ended", []).count(False) for row in rows):
        log.warning(
            "%d of %d responses did not end within %d tokens and are marked as cut; raise --max-response-tokens for "
            "whole ones",
            num_cut,
            sum(counts),
            config.max_response_tokens,
        )
    return rows


def _require_unused_output(config: SampleConfig) -> None:
    """UserError when the output file exists already: people may have ranked its responses."""
    to, prompts = Path(config.to), Path(config.prompts)
    if to.exists() and prompts.exists() and to.samefile(prompts):
        raise UserError(f"--to is {config.to!r}, the file that the prompts are read from; choose another name")
    if to.exists() and not config.overwrite:
        raise UserError(f"{config.to} is there already; use --overwrite to replace it, or choose another --to")


def _make_folder(to: str) -> None:
    """Makes the output file's folder before the sampling, so that hours of work are not lost for want of it."""
    try:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{to}: its folder cannot be made ({error.strerror}); choose another --to") from error


def _made_from(config: SampleConfig, stage: Parent, reward: Parent | None) -> dict[str, Any]:
    """What the output depends on."""
    safe = fields_with_mark(SampleConfig, SAFE_TO_CHANGE_ON_RESUME)
    settings = {key: value for key, value in vars(config).items() if key not in safe}
    ids = {"stage": stage.manifest["id"]} | ({"reward_stage": reward.manifest["id"]} if reward else {})
    return {**settings, **ids, "prompts_hash": data_hash(config.prompts)}


def _sample_rest(
    config: SampleConfig,
    model: SharedModel,
    encoded: Spool[EncodedPrompt],
    seeds: list[list[int]],
    to_rows: Callable[[Sequence[int], Sequence[list[Response]]], Sequence[dict[str, Any] | None]],
    partial: PartialOutput,
    engine: Engine | None,
    rows: list[dict[str, Any] | None],
) -> None:
    """Samples for the prompts that have no row yet; appends the row of each, which `to_rows` makes of its responses."""
    sampler = Sampler(config, model, config.role, config.temperature)
    sampler.choose_engine(config.engine if config.engine != "auto" else engine or "auto", encoded)
    rounds = ROUNDS if sampler.engine == "static" else 1
    step = max(1, sampler.batch.size * rounds // len(seeds[0])) * workers.process_count()
    with graceful() as request, tqdm(total=len(encoded), initial=len(rows), desc="sample", unit="prompt") as bar:
        while (first := len(rows)) < len(encoded):
            indices = workers.share_of_process(range(first, min(first + step, len(encoded))))
            prompts = [encoded[index] for index in indices]
            groups = sampler.sample([prompt.prompt_ids for prompt in prompts], [seeds[index] for index in indices])
            try:
                new_rows = workers.gather(to_rows(indices, groups))
            except NoJudgement as error:
                raise Stopped(f"{error}. {progress(rows, encoded)}") from error
            if workers.is_main():
                for row in new_rows:
                    partial.add({"row": row, "engine": sampler.engine})
            rows += new_rows
            bar.update(len(new_rows))
            if request.is_made and len(rows) < len(encoded):
                raise Stopped(progress(rows, encoded), request.exit_status)


def _ranking_row(
    config: SampleConfig, model: SharedModel, prompt: EncodedPrompt, group: list[Response], most: int
) -> dict[str, Any] | None:
    """The distinct responses of one prompt that say anything, and whether each ended; None if there are too few."""
    distinct: dict[str, bool] = {}
    for response in group:
        text, has_ended = _text_within_limit(config, model.tokenizer, prompt.prompt, response)
        if text:  # nobody can rank an empty one
            distinct[text] = has_ended or distinct.get(text, False)
    kept = list(distinct)[:most]
    row = {**make_row(prompt.prompt), "responses": kept, "ended": [distinct[text] for text in kept]}
    return row if len(kept) >= config.min_responses else None


def _text_within_limit(
    config: SampleConfig, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: Response
) -> tuple[str, bool]:
    """(the response's text, whether it ended). The text is short enough for the limit when it is encoded again.

    A text may encode to more tokens than it was sampled in. It then loses its end, and so has not ended.
    """
    has_ended, count = response.finished, len(response.ids)
    while True:
        text = decode_response(tokenizer, response.ids[:count]).strip()
        try:
            num_tokens = len(render_response(tokenizer, prompt, text)) - (not has_ended)
        except BadRow:  # such as a thought without an end: what trains on it says so
            return text, has_ended
        if num_tokens <= config.max_response_tokens or count == 1:
            return text, has_ended
        has_ended, count = False, max(1, min(count - 1, count * config.max_response_tokens // num_tokens))
