"""The original chat templates of many models, as TRL's package holds them, against plain transformers, cell by cell.

Each template gets a small tokenizer with the control tokens that it spells.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt, ToolCall
from lora_rlhf.data.template import (
    decode_response,
    render_demonstration,
    render_prompt,
    render_response,
    render_response_after,
    render_verbatim,
    stop_ids,
)
from lora_rlhf.data.thoughts import join_thought

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
CONTROL = re.compile(
    r"<[|｜][^<>\s|｜'\"+]+[|｜]?>|<[^<>\s|'\"+]+\|>|</?(?:think|tool_call|tool_response)>|<\w+_of_\w+>|\[gMASK\]|<sop>"  # noqa: RUF001
)
NOT_SPECIAL = re.compile(r"think>|tool_call>|tool_response>")
CHATML = "<|im_end|>\n<|im_start|>assistant\n"
HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA = "<end_of_turn>\n<start_of_turn>model\n"
GEMMA_4 = "<turn|>\n<|turn>model\n"
COHERE = "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
CHANNEL = "<|channel>thought\n{}\n<channel|>"
THINK, THINK_SHORT, THINK_OPEN = "<think>\n{}\n</think>\n\n", "<think>{}</think>", "{}\n</think>\n\n"
GPT_OSS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"
MUSE = " to=self<|message|>{}<|eom|><|start|>assistant to=user<|message|>"


class Cells(NamedTuple):
    """What a template is expected to do.

    prompt: what it writes between a question and the answer. end: the token that ends an answer. thought: what stands
    between the prompt and an answer with a thought; None where the thought is text like any other. head: what stands
    there before an answer without a thought, to be learned. supplied: what stands there and is not learned; the second
    text is cut off the prompt for it. system: whether a system message is taken.
    """

    prompt: str
    end: str
    thought: str | None = None
    head: str = ""
    supplied: tuple[str, str] = ("", "")
    system: bool = True
    eos: str = "</s>"


def chatml(thought: str | None = None, supplied: tuple[str, str] = ("", ""), opened: str = "", **others: Any) -> Cells:
    return Cells(CHATML + opened, "<|im_end|>", thought, supplied=supplied, eos="<|im_end|>", **others)


EMPTY_THOUGHT, OPEN_THOUGHT = "<think>\n\n</think>\n\n", "<think>\n"
QWEN_OPEN = chatml(THINK_OPEN, ("\n</think>\n\n", ""), OPEN_THOUGHT)
NEMOTRON = chatml("{}\n</think>\n", ("</think>", "\n"), OPEN_THOUGHT)
NEMOTRON_TIGHT = chatml("{}</think>", ("</think>", "\n"), OPEN_THOUGHT)
DEEPSEEK = Cells(
    "<｜Assistant｜><think>\n",  # noqa: RUF001
    "<｜end▁of▁sentence｜>",  # noqa: RUF001
    THINK_OPEN,
    supplied=("\n</think>\n\n", ""),
    eos="<｜end▁of▁sentence｜>",  # noqa: RUF001
)
TABLE: dict[str, Cells] = {
    "cohere": Cells(COHERE, "<|END_OF_TURN_TOKEN|>", eos="<|END_OF_TURN_TOKEN|>"),
    "cohere2": Cells(COHERE + "<|START_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", eos="<|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
    "diffusion_gemma": Cells(GEMMA_4, "<turn|>", CHANNEL),
    "gemma": Cells(GEMMA, "<end_of_turn>", system=False),
    "gemma3": Cells(GEMMA, "<end_of_turn>"),
    "gemma4": Cells(GEMMA_4, "<turn|>"),
    "gemma4_v2": Cells(GEMMA_4, "<turn|>"),
    "gemma4_v3": Cells(GEMMA_4, "<turn|>"),
    "gemma4_v4": Cells(GEMMA_4, "<turn|>"),
    "gemma4_v5": Cells(GEMMA_4, "<turn|>", CHANNEL),
    "glm4moe": Cells("<|assistant|>", "</s>", "\n<think>{}</think>\n", supplied=("\n<think></think>\n", "")),
    "gptoss": Cells(
        "<|end|><|start|>assistant", "<|return|>", GPT_OSS, "<|channel|>final<|message|>", eos="<|return|>"
    ),
    "idefics3": Cells("<end_of_utterance>\nAssistant:", "<end_of_utterance>", head=" "),
    "lfm2": chatml(),
    "lfm2_2_5": chatml(THINK_SHORT),
    "lfm2_2_5_v2": chatml(THINK_SHORT),
    "lfm2_2_5_vl": chatml(THINK_SHORT),
    "lfm2_v2": chatml(),
    "llama3": Cells(HEADER, "<|eot_id|>", eos="<|eot_id|>"),
    "llama3_1": Cells(HEADER, "<|eot_id|>", eos="<|eot_id|>"),
    "llama3_2": Cells(HEADER, "<|eot_id|>", eos="<|eot_id|>"),
    "llava_next": Cells(" [/INST]", "</s>", head=" "),
    "muse_glimmer": Cells("<|eot|><|start|>assistant", "<|eot|>", MUSE, " to=user<|message|>"),
    "nemotron_3_5_lightning": NEMOTRON_TIGHT,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON_TIGHT,
    "phi3": Cells("<|end|>\n<|assistant|>\n", "<|end|>"),
    "phi3_5": Cells("<|end|>\n<|assistant|>\n", "<|end|>"),
    "qwen2_5": chatml(),
    "qwen2_5_vl": chatml(),
    "qwen3": chatml(THINK, (EMPTY_THOUGHT, "")),
    "qwen3_5_nothink": chatml(opened=EMPTY_THOUGHT),
    "qwen3_5_think": QWEN_OPEN,
    "qwen3_6": QWEN_OPEN,
    "qwen3_8": QWEN_OPEN,
    "qwen3_instruct_2507": chatml(),
    "qwen3_vl": chatml(),
    "smolvlm": Cells("<end_of_utterance>\nAssistant:", "<end_of_utterance>", head=" "),
}
# What an answer that calls a tool is made of, with its end. Templates that are not here refuse tools, calls, or both.
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
XML = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
LLAMA = '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'
LFM = "<|tool_call_start|>[weather(city='Rome')]<|tool_call_end|><|im_end|>"
CALL_OF_GEMMA = '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
CALLS: dict[str, str] = {
    **dict.fromkeys(("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl"), HERMES),
    **dict.fromkeys(("qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"), f"{XML}<|im_end|>"),
    **dict.fromkeys((name for name in TABLE if name.startswith("nemotron")), f"\n{XML}\n<|im_end|>"),
    **dict.fromkeys(("llama3_1", "llama3_2"), LLAMA),
    **dict.fromkeys(("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2"), LFM),
    **dict.fromkeys(("gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"), f"{CALL_OF_GEMMA}<|tool_response>"),
    "diffusion_gemma": f"{CALL_OF_GEMMA}<|tool_response>",
    "gemma4_v2": f"{CALL_OF_GEMMA}<turn|>",
    "glm4moe": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call></s>",
    "gptoss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
    "muse_glimmer": ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">Rome</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>',
}
NOT_READ_BACK = ("gptoss", "muse_glimmer", *(name for name in CALLS if CALLS[name].endswith("<|tool_response>")))
TAKES_TOOLS_ALONE, WRITES_CALLS_ALONE = "lfm2", "deepseekv3"
NO_PLAIN_ANSWER = ("deepseek_r1_distill", "deepseekv3")  # their answers do not stand behind the prompt's open thought
QUESTION, ANSWER, THOUGHT = "What does a horse eat?", "Hay and grass.", "It lives on a field."
SYSTEM = "You are a farmer."


def template_tokenizer(trained: str, name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a template of TRL's package and with the control tokens that it spells."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    eos = TABLE[name].eos
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained), bos_token="<s>", eos_token=eos, pad_token="<pad>"
    )
    tokens = sorted(set(CONTROL.findall(template)) | {"</s>"} - {eos})
    tokenizer.add_tokens(
        [AddedToken(token, special=not NOT_SPECIAL.search(token), normalized=False) for token in tokens]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=sorted(TABLE))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(trained: str, name: str) -> PreTrainedTokenizerFast:
    return template_tokenizer(trained, name)


def plain(tokenizer: PreTrainedTokenizerFast, name: str, turns: list[dict[str, Any]], **options: Any) -> list[int]:
    """What transformers makes of a conversation."""
    chat: list[dict[str, Any]] = [dict(turn) for turn in turns]
    if name in ("idefics3", "llava_next", "smolvlm"):
        chat = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    return list(tokenizer.apply_chat_template(chat, return_dict=False, **options))


def turn(role: str, content: str, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


ASKED = [turn("user", QUESTION)]
PROMPT = Prompt.of(QUESTION)


def ended(tokenizer: PreTrainedTokenizerFast, name: str, ids: list[int]) -> list[int]:
    """A rendered conversation up to the token that ends its answer."""
    end = tokenizer.convert_tokens_to_ids(TABLE[name].end)
    if name == "glm4moe":  # writes no end
        return [*ids, end]
    return ids[: len(ids) - ids[::-1].index(end)]


def spelled(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """What stands behind the question."""
    return tokenizer.decode(ids).rpartition(QUESTION)[2]


def test_the_table_holds_every_original_template() -> None:
    originals = {path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training")}
    assert originals == set(TABLE)


def test_generation_prompt_and_end(tokenizer, name: str) -> None:
    prompt_ids = render_prompt(tokenizer, PROMPT)
    assert prompt_ids == plain(tokenizer, name, ASKED, add_generation_prompt=True)
    assert spelled(tokenizer, prompt_ids) == TABLE[name].prompt
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)[0]) == TABLE[name].end


def test_an_answer_without_a_thought(tokenizer, name: str) -> None:
    cells = TABLE[name]
    prompt_ids = render_prompt(tokenizer, PROMPT)
    context_ids, response_ids = render_demonstration(tokenizer, PROMPT, prompt_ids, ANSWER)
    after = "<|END_RESPONSE|>" if name == "cohere2" else ""
    assert tokenizer.decode(response_ids) == cells.head + ANSWER + after + cells.end
    supplied, removed = cells.supplied
    assert spelled(tokenizer, context_ids) == cells.prompt.removesuffix(removed) + supplied
    if name not in NO_PLAIN_ANSWER:
        whole = plain(tokenizer, name, [*ASKED, turn("assistant", ANSWER)])
        assert context_ids + response_ids == ended(tokenizer, name, whole)
    # behind the prompt as generation has it, for rankings and scores
    ranked = render_response(tokenizer, PROMPT, ANSWER)
    assert tokenizer.decode(ranked).endswith(cells.head + ANSWER + after + cells.end)
    assert decode_response(tokenizer, ranked) == decode_response(tokenizer, ranked[:-1]) == ANSWER
    if "</think>" in supplied:
        text = spelled(tokenizer, prompt_ids + ranked)
        assert text.count("<think>") == text.count("</think>") == 1


def test_an_answer_with_a_thought(tokenizer, name: str) -> None:
    cells = TABLE[name]
    text = join_thought(THOUGHT, ANSWER)
    if name == "qwen3_5_nothink":
        with pytest.raises(BadRow, match="leaves no room for the answer's thought"):
            render_response(tokenizer, PROMPT, text)
        return
    prompt_ids, response_ids = render_prompt(tokenizer, PROMPT), render_response(tokenizer, PROMPT, text)
    after = "<|END_RESPONSE|>" if name == "cohere2" else ""
    expected = cells.head + text if cells.thought is None else cells.thought.format(THOUGHT) + ANSWER
    assert tokenizer.decode(response_ids) == expected + after + cells.end
    content = turn("assistant", text)
    if cells.thought is not None:
        content = turn("assistant", ANSWER, reasoning_content=THOUGHT)
    if name not in NO_PLAIN_ANSWER:
        assert prompt_ids + response_ids == ended(tokenizer, name, plain(tokenizer, name, [*ASKED, content]))
    for form in (text, f"<think>{THOUGHT}</think>{ANSWER}", f"\n<think>\n\n{THOUGHT}\n\n</think>\n{ANSWER}"):
        if cells.thought is not None and (form == text or "lfm" not in name):
            variant = render_demonstration(tokenizer, PROMPT, prompt_ids, form)
            assert variant[0] == prompt_ids
            assert tokenizer.decode(variant[1]).replace("\n\n\n", "\n").count(THOUGHT) == 1
    assert decode_response(tokenizer, response_ids) == text
    shown = ""
    for end in range(len(response_ids) + 1):  # a stream only grows
        grown = decode_response(tokenizer, response_ids[:end])
        assert grown.startswith(shown)
        shown = grown


def test_system_and_history(tokenizer, name: str) -> None:
    turns = [turn("user", "Hi."), turn("assistant", "Hello."), *ASKED]
    messages = tuple(Message(each["role"], each["content"]) for each in turns)
    ids = render_prompt(tokenizer, Prompt(messages))
    assert ids == plain(tokenizer, name, turns, add_generation_prompt=True)
    with_system = Prompt((Message("system", SYSTEM), *messages))
    if not TABLE[name].system:
        with pytest.raises(BadRow, match="refuses the conversation"):
            render_prompt(tokenizer, with_system)
        return
    ids = render_prompt(tokenizer, with_system)
    assert ids == plain(tokenizer, name, [turn("system", SYSTEM), *turns], add_generation_prompt=True)
    assert SYSTEM in tokenizer.decode(ids)


def test_thoughts_in_the_history(tokenizer, name: str) -> None:
    text = join_thought(THOUGHT, ANSWER)
    prompt = Prompt((Message("user", "Hi."), Message("assistant", text), Message("user", QUESTION)))
    answer = turn("assistant", text)
    if TABLE[name].thought is not None and name not in NO_PLAIN_ANSWER:
        answer = turn("assistant", ANSWER, reasoning_content=THOUGHT)
    if name == "qwen3_5_nothink":
        answer = turn("assistant", ANSWER, reasoning_content=THOUGHT)
    expected = plain(tokenizer, name, [turn("user", "Hi."), answer, *ASKED], add_generation_prompt=True)
    assert render_prompt(tokenizer, prompt) == expected


def test_control_tokens_that_a_user_types_are_text(tokenizer, name: str) -> None:
    control = sorted(set(CONTROL.findall(tokenizer.chat_template)) | {"</s>", "<s>"})
    special = set(tokenizer.added_tokens_decoder)

    def rendered(text: str) -> list[int]:
        system = (Message("system", text),) if TABLE[name].system else ()
        return render_verbatim(
            tokenizer, Prompt((*system, Message("user", text), Message("assistant", "Yes."), *PROMPT.messages))
        )

    typed = " ".join(["Say", *control, "now?"])
    ids = rendered(typed)
    assert [id for id in ids if id in special] == [id for id in rendered("Say now?") if id in special]
    assert tokenizer.decode(ids).count(typed) == 1 + TABLE[name].system


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where?"}},
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "How it is outside.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = ToolCall("weather", '{"city": "Rome"}', "call00001")
CALLED = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "Sun and rain.", name="weather", call_id="call00001")


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": CALL.id, "type": "function", "function": {"name": CALL.name, "arguments": arguments}}
    return [*ASKED, turn("assistant", "", tool_calls=[call])]


def test_tools(tokenizer, name: str) -> None:
    prompt = Prompt(PROMPT.messages, tools=json.dumps(TOOLS))
    answered = Prompt((*PROMPT.messages, CALLED, RESULT), tools=prompt.tools)
    if name == WRITES_CALLS_ALONE:
        turns = [*called(CALL.arguments), turn("tool", RESULT.content)]
        ids = render_prompt(tokenizer, Prompt(answered.messages))
        assert ids == plain(tokenizer, name, turns, add_generation_prompt=True)
    if name not in CALLS:
        reason = "writes no tool calls" if name == TAKES_TOOLS_ALONE else "takes no tools"
        with pytest.raises(BadRow, match=f"the chat template {reason}"):
            render_prompt(tokenizer, answered)
        if name != WRITES_CALLS_ALONE:
            with pytest.raises(BadRow, match="the chat template writes no tool calls"):
                render_prompt(tokenizer, Prompt(answered.messages))
        return
    supplied, removed = TABLE[name].supplied
    prompt_ids = render_prompt(tokenizer, prompt)
    assert prompt_ids == plain(tokenizer, name, ASKED, tools=TOOLS, add_generation_prompt=True)
    context_ids, call_ids = render_demonstration(tokenizer, prompt, prompt_ids, "", (CALL,))
    assert tokenizer.decode(call_ids) == CALLS[name]
    assert spelled(tokenizer, context_ids) == TABLE[name].prompt.removesuffix(removed) + supplied
    whole = plain(tokenizer, name, called({"city": "Rome"}), tools=TOOLS)
    ids = [*context_ids, *call_ids[: -1 if name == "glm4moe" else None]]  # writes no end
    assert ids == whole[: len(ids)] and not tokenizer.decode(whole[len(ids) :]).strip()
    assert call_ids[-1] in stop_ids(tokenizer) and not set(call_ids[:-1]) & set(stop_ids(tokenizer))
    # with the empty thought, as --train-empty-thoughts learns it
    learned = render_response_after(tokenizer, prompt, prompt_ids, "", (CALL,))
    text = tokenizer.decode(learned)
    assert text.endswith(CALLS[name]) and (text == CALLS[name]) == (not supplied or supplied in TABLE[name].prompt)
    whole_text = spelled(tokenizer, prompt_ids + learned)
    assert whole_text.count("<think>") == whole_text.count("</think>") <= 1
    if name not in NOT_READ_BACK:  # a call that was sampled is text, which is read as the same tokens
        assert render_response(tokenizer, prompt, decode_response(tokenizer, learned)) == learned
    # the result is read, the answer behind it learned
    turns = [*called({"city": "Rome"}), turn("tool", RESULT.content, name=RESULT.name, tool_call_id=RESULT.call_id)]
    prompt_ids = render_prompt(tokenizer, answered)
    assert prompt_ids == plain(tokenizer, name, turns, tools=TOOLS, add_generation_prompt=True)
    context_ids, response_ids = render_demonstration(tokenizer, answered, prompt_ids, ANSWER)
    whole = plain(tokenizer, name, [*turns, turn("assistant", ANSWER)], tools=TOOLS)
    assert context_ids + response_ids == ended(tokenizer, name, whole)
    assert RESULT.content in tokenizer.decode(context_ids) and RESULT.content not in tokenizer.decode(response_ids)


@pytest.mark.parametrize("name", [name for name in sorted(CALLS) if TABLE[name].thought is not None])
def test_a_thought_before_a_call(tokenizer, name: str) -> None:
    prompt = Prompt(PROMPT.messages, tools=json.dumps(TOOLS))
    prompt_ids = render_prompt(tokenizer, prompt)
    ids = prompt_ids + render_demonstration(tokenizer, prompt, prompt_ids, join_thought(THOUGHT, ""), (CALL,))[1]
    turns = called({"city": "Rome"})
    turns[-1]["reasoning_content"] = THOUGHT
    whole = plain(tokenizer, name, turns, tools=TOOLS)
    assert ids[: -1 if name == "glm4moe" else None] == whole[: len(ids)]
    assert tokenizer.decode(ids).count(THOUGHT) == 1
