"""Ollama's template: what Go makes of it is what the chat template writes, or there is none."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_rlhf.data.chosen_template import choose_template, without_date
from lora_rlhf.data.template import DEFAULT_TEMPLATE, stop_ids
from lora_rlhf.exporting.modelfile import Untranslatable, find_between_texts, write_modelfile
from lora_rlhf.exporting.sequence_classification import scoring_template

TEMPLATES = {
    "plain words": DEFAULT_TEMPLATE,
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "default system": "{% if messages[0].role != 'system' %}<|system|>Be good.<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "system in the first question": "{% set ns = namespace(s='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.s = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.s + m.content }} [/INST]{% set ns.s = '' %}"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "no system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "quotes and braces": "{% for m in messages %}\"{{ m.role }}\" \\ {{ '{{' }} é🎉\t{{ m.content }};\n{% endfor %}"
    '{% if add_generation_prompt %}"assistant"{% endif %}',
}
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be kind."), ("user", 'A "quoted"\nline {{ .Content }}')],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
    [("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3")],
]
PROGRAM = """package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template string; Messages []*Message }
func main() {
  var cases []Case
  json.NewDecoder(os.Stdin).Decode(&cases)
  found := []string{}
  for _, one := range cases {
    var made strings.Builder
    parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
    if err := parsed.Execute(&made, map[string]any{"Messages": one.Messages}); err != nil { panic(err) }
    found = append(found, made.String())
  }
  json.NewEncoder(os.Stdout).Encode(found)
}
"""


def tokenizer_with(tiny_model: Callable[[str], Path], template: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    tokenizer.chat_template = template
    return tokenizer


def go(template: str, messages: list[tuple[str, str]]) -> str:
    """A reading of the part of Go's text/template that such templates use, written from its documentation."""
    parts = [part for part in re.split(r"(\{\{.*?\}\})", template) if part]
    assert all(part.startswith("{{") for part in parts), "text between actions is at the mercy of white space"
    actions = [part[2:-2].strip() for part in parts]
    variables = {"$before": ""}

    def text(quoted: str) -> str:
        return json.loads(re.sub(r"\\U000(.{5})", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], quoted))

    def value(word: str, dot: tuple[str, str]) -> str:
        return {".Role": dot[0], ".Content": dot[1], **variables}.get(word) or text(word)

    def end_of(start: int) -> Iterator[int]:
        """Where the clauses of the action at `start` begin, and where it ends."""
        depth = 0
        for place in range(start, len(actions)):
            depth += actions[place].startswith(("if ", "range "))
            if depth == 1 and (place == start or actions[place].startswith("else")):
                yield place
            depth -= actions[place] == "end"
            if depth == 0:
                yield place
                return

    def run(first: int, last: int, dot: tuple[str, str]) -> str:
        written, place = "", first
        while place < last:
            action = actions[place]
            if action.startswith("range "):
                start, end = end_of(place)
                assert action == "range .Messages"
                written += "".join(run(start + 1, end, message) for message in messages)
                place = end
            elif action.startswith("if "):
                *clauses, end = end_of(place)
                for clause, following in zip(clauses, [*clauses[1:], end], strict=True):
                    found = re.fullmatch(r"(?:else )?if (eq|ne) (\S+) (\".*?\")", actions[clause])
                    if found is None or (value(found[2], dot) == text(found[3])) == (found[1] == "eq"):
                        written += run(clause + 1, following, dot)
                        break
                place = end
            elif assigned := re.fullmatch(r"(\$\w+) :?= (.+)", action):
                variables[assigned[1]] = value(assigned[2], dot)
            else:
                written += value(action, dot)
            place += 1
        return written

    return run(0, len(actions), ("", ""))


def cases(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[tuple[str, str]], str]]:
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        if "raise_exception" in tokenizer.chat_template and conversation[0][0] == "system":
            continue
        yield conversation, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_writes_what_the_chat_template_writes(tiny_model: Callable[[str], Path], name: str) -> None:
    tokenizer = tokenizer_with(tiny_model, TEMPLATES[name])
    template = find_between_texts(tokenizer).go_template()
    for conversation, expected in cases(tokenizer):
        assert go(template, conversation) == expected


def test_go_itself_agrees(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("there is no Go compiler here")
    given, expected = [], []
    for template in TEMPLATES.values():
        tokenizer = tokenizer_with(tiny_model, template)
        for conversation, text in cases(tokenizer):
            messages = [{"Role": role, "Content": content} for role, content in conversation]
            given.append({"Template": find_between_texts(tokenizer).go_template(), "Messages": messages})
            expected.append(text)
    (tmp_path / "main.go").write_text(PROGRAM)
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env={"HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/usr/local/go/bin"},
    )
    assert json.loads(done.stdout) == expected


def test_a_system_message_that_the_template_refuses_is_left_out(tiny_model: Callable[[str], Path]) -> None:
    template = find_between_texts(tokenizer_with(tiny_model, TEMPLATES["no system"])).go_template()
    with_system = [("system", "Be kind."), ("user", "Hello")]
    assert (
        go(template, with_system)
        == go(template, with_system[1:])
        == ("<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n")
    )


@pytest.mark.parametrize(
    "template",
    [
        # the system message goes into the last question; turns are numbered; a message is left out
        "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content }} {% endif %}{{ m.content }}]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}",
        "Question: {{ messages[-1].content }}\nAnswer: {% if not add_generation_prompt %}x{% endif %}",
    ],
)
def test_a_template_that_go_cannot_follow_gives_no_modelfile(
    tiny_model: Callable[[str], Path], tmp_path: Path, template: str
) -> None:
    tokenizer = tokenizer_with(tiny_model, template)
    with pytest.raises(Untranslatable):
        find_between_texts(tokenizer)
    assert "no Modelfile" in (write_modelfile(tmp_path, tokenizer, ".", 128) or "")
    assert list(tmp_path.iterdir()) == []


def test_modelfile(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    assert write_modelfile(tmp_path, tokenizer, "./model.gguf", 256) is None
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[1].startswith('TEMPLATE """{{') and lines[1].endswith('}}"""') and lines[1].count('"""') == 2
    assert lines[2] == 'PARAMETER stop """<|end|>"""' and "PARAMETER num_ctx 256" in lines
    assert "PARAMETER temperature 1" in lines


def test_arguments_folding_and_the_date_of_the_run_are_in_exports(tiny_model: Callable[[str], Path]) -> None:
    body = TEMPLATES["no system"] + "{% if add_generation_prompt and not enable_thinking %}<nothing>{% endif %}"
    tokenizer = tokenizer_with(tiny_model, "{{ strftime_now('%Y') }}|" + body)
    choose_template(tokenizer, template_args=["enable_thinking=true"], folds_system=True, date=datetime(2031, 1, 1))
    between_texts = find_between_texts(tokenizer)
    assert between_texts.takes_system and between_texts.texts["system", "user"] == "\n\n"
    assert "2031|" in between_texts.go_template() and "<nothing>" not in between_texts.go_template()
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    tokenizer.chat_template = scoring_template(tokenizer, stop_ids(tokenizer)[0])
    assert "2031|" in tokenizer.apply_chat_template(conversation, tokenize=False)
    tokenizer.chat_template = without_date(tokenizer.chat_template)
    assert datetime.now().strftime("%Y|") in tokenizer.apply_chat_template(conversation, tokenize=False)
