"""The HTML page: whole and well-formed, in plain words, and nothing that a model wrote becomes HTML."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from lora_rlhf.evaluation.figures import CATALOGUE, Figure
from lora_rlhf.evaluation.markdown import markdown_page, terminal_tables
from lora_rlhf.evaluation.page import choose_samples, report_page
from lora_rlhf.evaluation.questions import answer_questions
from lora_rlhf.evaluation.report_model import Comparison, MovedFigure, Question, Report, StageData, TrainingData
from lora_rlhf.release.note import release_note_text
from lora_rlhf.release.repeat import commands_page
from lora_rlhf.system.shown_text import for_markdown
from tests.support.hostile import DANGEROUS, hostile_texts
from tests.support.reports import a_report, report_of, sample_rows

VOID = {"meta", "input", "path", "use", "br"}


class Reader(HTMLParser):
    """Collects tags and text, and holds every end tag to its beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.badges: list[tuple[str, str]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "span" and (dict(attrs).get("class") or "").startswith("badge"):
            self.badges.append((dict(attrs)["class"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def report() -> Report:
    report = report_of(a_report())
    report.questions = answer_questions(report)
    before, after = Figure(5.0, 4.0, 6.0, 9), report.figures["length"]["policy"]
    moved = MovedFigure(figure="length", system="policy", before=before, after=after, verdict="higher")
    report.comparison = Comparison(with_="earlier/report.json", compared=12, moved=[moved])
    return report


@pytest.fixture(scope="module")
def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(report_page(report, sample_rows()))
    return reader


def test_the_page_is_whole_and_needs_nothing_else(read: Reader) -> None:
    assert read.open == [] and read.tags.count("html") == 1
    assert [address for address in read.addresses if not address.startswith("#")] == []
    assert not {"link", "img", "iframe", "object"} & set(read.tags)
    assert read.tags.count("svg") == 5 and read.tags.count("article") == len(sample_rows())


def test_it_begins_with_the_verdict_and_the_questions(read: Reader, report: Report) -> None:
    text = "".join(read.text)
    places = [text.index(part) for part in (report.verdict, "Did the training work?", "Every figure", "side by side")]
    assert places == sorted(places)
    for row in report.questions:
        assert row.question in text and row.figure in text


def test_every_figure_is_explained(read: Reader, report: Report) -> None:
    text = "".join(read.text)
    assert all(kind.meaning in text for kind in CATALOGUE.values())
    assert report.left_out["perplexity"] in text and "Of 12 figures, 1 moved beyond their intervals" in text


def test_what_a_model_wrote_stays_text(report: Report, read: Reader) -> None:
    html = report_page(report, sample_rows())
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert read.tags.count("script") == 1 and "b" not in read.tags
    assert "<script>alert(1)</script> & 'quoted' \"twice\" asked 0" in "".join(read.text)


def test_evil_names_and_categories_stay_text() -> None:
    evil = "<img src=x onerror=alert(1)> $a_b$"
    report = a_report(verdict=evil, left_out={evil: evil})
    report["config"]["run"] = report["sets"]["prompts"]["path"] = evil
    report["categories"] = {evil: report["categories"]["chat"], "other": report["categories"]["open QA"]}
    report["audit"]["flags"] = {evil: {"raised": False, "why": evil}}
    report["audit"]["highest_reward"] = [{"prompt": evil, "response": evil, "reward": 1.0, "quality": 0.0}]
    reader = Reader()
    reader.feed(report_page(report_of(report), sample_rows()))
    assert "img" not in reader.tags and reader.open == []


def test_no_text_of_a_report_is_markup_or_acts_on_who_reads_it() -> None:
    """Hostile names, categories, prompts and reasons: the Markdown page, the release note and the HTML page."""
    evils = hostile_texts(60)
    for number, evil in enumerate(evils):
        report = a_report(verdict=evil, left_out={evil: evil})
        report["config"]["run"] = report["sets"]["prompts"]["path"] = evil
        report["categories"] = {evil: report["categories"]["chat"]}
        report["audit"]["flags"] = {evil: {"raised": True, "why": evil}}
        report["audit"]["highest_reward"] = [{"prompt": evil, "response": evil, "reward": 1.0, "quality": 0.0}]
        read = report_of(report)
        pages = [markdown_page(read), release_note_text(evil, read, {evil: evil}, [evil])]
        for page in pages:
            assert "<" not in page and not DANGEROUS.search(page)
            assert for_markdown(evil) in page
            assert "](j" not in page.replace("\\](", "") and "\n# heading" not in page and "```" not in page
        commands = commands_page(evil, [], {evil: "0"}, {evil: evil})
        assert "<" not in commands and not DANGEROUS.search(commands) and for_markdown(evil) in commands
        if number % 10 == 0:  # a page draws its plots for a second: each takes ten texts in its samples
            html = report_page(read, [sample_of(text) for text in evils[number : number + 10]])
            assert not DANGEROUS.search(html) and "<script>alert" not in html and "<img" not in html


def sample_of(text: str) -> dict[str, Any]:
    """A sample whose words are all this text."""
    row = sample_rows()[0]
    return row | {"prompt": text, "category": text, "responses": dict.fromkeys(row["responses"], text)}


def test_answers_are_coloured_by_what_one_hopes_for(report: Report) -> None:
    rows = [Question(question=str(i), answer="yes", figure="") for i in range(5)]
    tones = re.findall(r"<li><span class='badge (\w*)'>", report_page(replace(report, questions=rows), []))
    assert tones == ["good", "bad", "good", "bad", "bad"]


def test_leakage_and_a_failing_judge_are_said_at_the_top(report: Report) -> None:
    stages = [StageData(stage="sft", path="d", seen=7, compared="all")]
    seen = TrainingData(prompts=300, seen=7, stages=stages)
    html = report_page(replace(report, training_data=seen, judge={"name": "endpoint", "failures": 4}), [])
    assert html.index("7 of 300 prompts also in training data") < html.index("Did the training work?")
    assert "no usable answer on 4 comparisons" in html and "hardly anything" not in html
    few = replace(report.sets, prompts=replace(report.sets.prompts, used=9))
    assert "only 9 prompts: hardly anything can be told" in report_page(replace(report, sets=few), [])


def test_the_samples_shown_are_the_ends_and_some_between() -> None:
    rows = [{"margin": float((i * 37) % 200), "i": i} for i in range(200)]
    shown = [row["margin"] for row in choose_samples(rows)]
    assert len(shown) == 60 and shown == sorted(shown)
    assert shown[:20] == list(range(20)) and shown[-20:] == list(range(180, 200))
    assert choose_samples(rows[:3]) == sorted(rows[:3], key=lambda row: row["margin"])


def test_the_same_report_makes_the_same_page(report: Report) -> None:
    assert report_page(report, sample_rows()) == report_page(report, sample_rows())


def test_the_markdown_page_and_the_terminal_say_the_same(report: Report) -> None:
    text, short = markdown_page(report), terminal_tables(report)
    assert report.verdict in text and report.verdict in " ".join(short.split())
    assert "75.0 % (71.0 to 79.0)" in text and "75.0 % (71.0 to 79.0)" in short
    assert "225 / 0 / 75" in text
    assert max(map(len, short.splitlines())) <= 80
    for part in ("## Not measured", "no held-out text", "Half of the answers repeat", "| poetry ", "since `earlier/"):
        assert part in text
