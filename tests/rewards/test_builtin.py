"""The built-in reward functions, on answers as models and data sets write them."""

from pathlib import Path
from typing import Any

import pytest

import lora_rlhf
from lora_rlhf.rewards.builtin import (
    BUILT_IN,
    code_tests,
    exact_answer,
    json_schema,
    language,
    length_window,
    multiple_choice,
    numeric_answer,
    regex,
    think_format,
)
from lora_rlhf.rewards.json_schema import is_valid
from lora_rlhf.rewards.sandbox import run_tests

GSM8K = "Ann has 2 + 3 = <<2+3=5>>5 pens.\n#### 1,005"


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("That is 1000 + 5 = 1005.", GSM8K, 1),
        ("#### 1005", GSM8K, 1),
        ("The answer is $1,005.00. There were 7 days.", GSM8K, 1),
        ("1004 or 1005, no: #### 1004", GSM8K, 0),
        ("I do not know", GSM8K, 0),
        ("", GSM8K, 0),
        ("<think>It is 1005.</think>It is 3.", GSM8K, 0),
        (r"So \boxed{\frac{3}{4}}.", "3/4", 1),
        (r"So \boxed{\dfrac{3}{4}} and not 5.", "0.75", 1),
        (r"\boxed{1\frac12}", "1.5", 1),
        ("It is -7", "#### -7", 1),
        ("It is 7", "#### -7", 0),
        ("Not four but five.", "5", 1),
        ("5 is the one.", "5", 1),
        ("10-7", "7", 1),
        (r"There are 9. \boxed{5 \text{ cm}^2} of 7", "5", 1),
        ("#### 5 of 7", "5", 1),
        ("The answer is 3 + 4 = 7. I like 9.", "7", 1),
        ("It is .5", "0.5", 1),
        ("1e3", 1000, 1),
        ("3/0", "3", 0),
        ("It takes 2 hours", "120 minutes", 1),
        ("It takes 2 hours", "2 minutes", 0),
        ("It is 5 km", "5000 m", 1),
        ("It is 5 kg", "5 m", 0),
        ("It is 5 apples", "5", 1),
        ("50%", "50", 1),
        ("50%", "5 kg", 0),
        (r"\boxed{12\text{ cm}}", "12 cm", 1),
        ("0.3333333", "1/3", 1),
        ("0.33", "1/3", 0),
    ],
)
def test_numeric_answer(text: str, answer: Any, expected: float) -> None:
    assert numeric_answer(text, answer) == expected


def test_numeric_answer_without_a_number_to_compare_with() -> None:
    with pytest.raises(ValueError, match="the column answer holds no number: 'blue'"):
        numeric_answer("3", "blue")
    assert numeric_answer("0.33", "1/3", tolerance=0.01) == 1


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("The answer is: Paris.", "paris", 1),
        ("Paris", "The answer is Paris", 1),
        ("#### Paris \nRome", "Paris", 1),
        (r"\boxed{\left( 1, 2 \right)}", "(1,2)", 1),
        (r"\boxed{\text{even}}", "even", 1),
        (r"\boxed{x^{2}+1}", "x^{2} + 1", 1),
        ("Paris or Rome", "Paris", 0),
    ],
)
def test_exact_answer(text: str, answer: str, expected: float) -> None:
    assert exact_answer(text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("B", "B", 1),
        ("(B)", "B", 1),
        ("B. Because it is red.", "B", 1),
        ("The answer is (C), not (B).", "C", 1),
        ("The answer is (C), not (B).", "B", 0),
        (r"\boxed{D}", "d", 1),
        ("Not (A) but (B)", 1, 1),
        ("Not (A) but (B)", "1", 1),
        ("It is red.", "red", 1),
        ("It is red or blue.", "red", 0),
        ("A cat sat. The answer is B", "B", 1),
        ("", "B", 0),
    ],
)
def test_multiple_choice(text: str, answer: Any, expected: float) -> None:
    assert multiple_choice(text, answer, ["blue", "red"] if answer in ("red", 1, "1") else None) == expected


def test_multiple_choice_without_a_letter_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no letter, index or choice"):
        multiple_choice("B", "green", ["blue", "red"])


def test_regex_and_length() -> None:
    assert [regex(text, r"^\d+ pens$") for text in ("5 pens", "five pens")] == [1, 0]
    assert [length_window(text, most=3, least=2) for text in ("a", "a b", "a b c", "a b c d")] == [0, 1, 1, 0]
    assert length_window("<think>a b c d</think>a", most=1) == 1
    assert [length_window(text, most=3, unit="characters") for text in ("abc", "a bc")] == [1, 0]
    with pytest.raises(ValueError, match="unit is 'tokens'"):
        length_window("a", 1, unit="tokens")


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("The boat is on the river and it is not new.", "en", 1),
        ("The boat is on the river and it is not new.", "de", 0),
        ("Das Boot ist auf dem Fluss und es ist nicht neu.", "de", 1),
        ("Le bateau est sur la rivière et il est dans les eaux.", "fr", 1),
        ("El barco está en el río y no es nuevo para los niños.", "es", 1),
        ("Лодка на реке", "ru", 1),
        ("The boat, лодка", "ru", 0),
        ("船在河上", "zh", 1),
        ("船は川にあります", "ja", 1),
        ("船在河上", "ja", 0),
        ("12345", "en", 0),
    ],
)
def test_language(text: str, code: str, expected: float) -> None:
    assert language(text, code) == expected


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(ValueError, match="language is 'xx', known are en de"):
        language("a", "xx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nx\n</think>\ny", 1),
        ("<think>x</think>", 0),
        ("x <think>y</think> z", 0),
        ("<think>x", 0),
        ("<think>x<think>y</think>z", 0),
        ("<think>x</think>y</think>z", 0),
        ("y", 0),
    ],
)
def test_think_format(text: str, expected: float) -> None:
    assert think_format(text) == expected


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "Ann", "age": 3}', 1),
        ('Here:\n```json\n{"name": "Ann"}\n```', 1),
        ('{"name": ""}', 0),
        ('{"name": "Ann", "age": -1}', 0),
        ('{"name": "Ann", "age": true}', 0),
        ('{"name": "Ann", "other": 1}', 0),
        ('{"age": 3}', 0),
        ('{"name": "Ann"', 0),
        ("NaN", 0),
    ],
)
def test_json_schema(text: str, expected: float) -> None:
    assert json_schema(text, SCHEMA) == expected


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1.0, {"type": "integer"}, True),
        (1.5, {"type": ["integer", "null"]}, False),
        (None, {"type": ["integer", "null"]}, True),
        (True, {"enum": [1]}, False),
        ([1, 1], {"uniqueItems": True}, False),
        ([1, "a"], {"items": {"type": "number"}}, False),
        ([], {"minItems": 1}, False),
        ("abc", {"pattern": "^b"}, False),
        (3, {"oneOf": [{"minimum": 1}, {"maximum": 5}]}, False),
        (3, {"anyOf": [{"minimum": 4}, {"maximum": 5}]}, True),
        (3, {"allOf": [{"minimum": 4}, {"maximum": 5}]}, False),
        (3, {"not": {"const": 3}}, False),
        (6, {"multipleOf": 4}, False),
        (3, {"exclusiveMaximum": 3}, False),
        ({"a": {"a": {"b": 1}}}, {"properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, False),
        ({"a": 1}, {"$ref": "#/$defs/x", "$defs": {"x": {"maxProperties": 0}}}, False),
        (3, False, False),
    ],
)
def test_schemas(value: Any, schema: Any, expected: bool) -> None:
    assert is_valid(value, schema) is expected


def test_an_unknown_keyword_of_a_schema_is_an_error() -> None:
    with pytest.raises(ValueError, match="dependentRequired is not supported"):
        is_valid({}, {"dependentRequired": {}})


# code

TESTS = ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 9"]


def can_isolate() -> bool:
    try:
        return run_tests("", ["pass"], 5.0, 256, True) == 1
    except RuntimeError:
        return False


needs_isolation = pytest.mark.skipif(not can_isolate(), reason="this system cannot isolate code")


@pytest.mark.parametrize("isolated", [pytest.param(True, marks=needs_isolation), False])
def test_code_is_scored_by_its_tests(isolated: bool) -> None:
    text = "Here it is:\n```python\ndef f(x):\n    return x + 1\n```\nDone."
    assert code_tests(text, TESTS[:2], isolated=isolated) == 1
    assert code_tests(text, TESTS, isolated=isolated) == 0
    assert code_tests(text, TESTS, partial=True, isolated=isolated) == pytest.approx(2 / 3)
    humaneval = "def check(candidate):\n    assert candidate(1) == 2"
    assert code_tests(text, humaneval, entry_point="f", isolated=isolated) == 1
    assert code_tests(text, humaneval, entry_point="g", isolated=isolated) == 0
    with pytest.raises(ValueError, match="entry_point"):
        code_tests(text, humaneval, isolated=isolated)
    assert code_tests(text, f"{humaneval}\ncheck(f)", isolated=isolated) == 1
    assert code_tests(text, ["  "], isolated=isolated) == 0
    assert code_tests("no code at all", TESTS, isolated=isolated) == 0
    assert code_tests(text, [], isolated=isolated) == 0


BAD_CODE = {
    "hang": "while True: pass",
    "exit": "import os; os._exit(0)",
    "raise": "raise SystemExit(0)",
    "allocate": "x = bytearray(10 * 2**30)",
    "fork": "import os\nwhile True:\n try: os.setsid() if os.fork() == 0 else 0\n except OSError: pass",
}


@pytest.mark.slow
@needs_isolation
@pytest.mark.parametrize("name", list(BAD_CODE))
def test_bad_code_passes_nothing_and_ends(name: str) -> None:
    assert run_tests(BAD_CODE[name], ["pass"], 1.0, 256, True) == 0


@needs_isolation
def test_code_has_no_network_and_writes_into_its_own_empty_folder_only(tmp_path: Any) -> None:
    statements = [
        "import os; assert os.listdir('.') == []",
        "open('file', 'w').write('x')",
        f"open({str(tmp_path / 'outside')!r}, 'w')",
        "open(os.path.expanduser('~/../outside'), 'w')",
        "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
        "assert socket.if_nameindex() != [(1, 'lo')]",
        "assert [name for name in os.listdir('/proc') if name.isdigit()] != ['1']",
        "os.environ['HOME_OF_USER']",
        "import subprocess; subprocess.run(['mount', '-o', 'remount,rw', '/'], check=True)",
        "subprocess.run(['unshare', '-Urm', 'mount', '-o', 'remount,bind,rw', '/'], check=True)",
    ]
    assert [run_tests("import os, socket, subprocess", [one], 10.0, 256, True) for one in statements] == [
        1,
        1,
        *[0] * 8,
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_cannot_isolate_code_does_not_run_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    sandbox = run_tests.__globals__
    program = tmp_path / "sandbox.py"
    text = Path(sandbox["__file__"]).read_text()
    program.write_text(text.replace('"unshare", CLONE_NEWUSER |', '"unshare", 0x1 | CLONE_NEWUSER |'))
    assert program.read_text() != text
    monkeypatch.setitem(sandbox, "__file__", str(program))
    with pytest.raises(RuntimeError, match=r"not run: this system cannot isolate it \(.*unshare: Invalid argument"):
        run_tests("", ["pass"], 60.0, 256, True)
    assert run_tests("", ["pass"], 60.0, 256, False) == 1


def test_every_built_in_function_has_a_section() -> None:
    page = (Path(lora_rlhf.__file__).parents[1] / "docs" / "rewards.md").read_text()
    assert [name for name in BUILT_IN if f"### {name}\n" not in page] == []
