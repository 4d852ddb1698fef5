"""The Compare tab: one question to all stages of a run at once, blind votes, and their standings."""

import json
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import show
from lora_rlhf_demo.compare import LETTERS, Comparison, Turn
from lora_rlhf_demo.compare_controls import USUAL_ANSWER_TOKENS, CompareControls, Values
from lora_rlhf_demo.conversations import Conversations
from lora_rlhf_demo.markdown import markdown_html
from lora_rlhf_demo.past_votes import voted_question
from lora_rlhf_demo.presets import LAST, Preset, preset_names, read_presets, with_preset
from lora_rlhf_demo.requests import Answered, Ask, Failed, Open, Opened, Partial, Replaced, Settings, waiting_note
from lora_rlhf_demo.runs import example_prompts, find_run_folder, list_runs, run_summary
from lora_rlhf_demo.state import HANDLER_OPTIONS, App, user_of
from lora_rlhf_demo.votes import dragged_ranks, parse_ranks, ranks_with_best, stage_win_rates, tied_ranks

TAB = "compare"
MOST_COLUMNS = len(LETTERS)
UNVOTED = "The vote is removed. Its names were seen, so this question takes no other: ask again."
SHORTENED = "The conversation no longer fits into the model's context: its oldest part was left out."
DOWNLOAD = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""


class CompareTab(CompareControls):
    """The handlers of the tab. Each takes the values of all controls."""

    def __init__(self, app: App, browser: gr.BrowserState) -> None:
        super().__init__(app, browser)
        controls = [self.question, self.ranking, *self.presets.controls, self.seed]
        inputs: set[Any] = {self.run, self.stages, self.blind, self.differences, self.raw, *self.states, *controls}
        outputs = self.outputs
        gr.on([self.send.click, self.question.submit], self._ask_question, inputs, outputs, **HANDLER_OPTIONS)
        self.again.click(self._answer_again, inputs, outputs, **HANDLER_OPTIONS)
        self.page.submit(self._let_answer_go_on, inputs, outputs, **HANDLER_OPTIONS)
        self.stop.click(self._stop_request, None, None, queue=False, api_visibility="private")
        self.run.input(self._choose_run, inputs, outputs, **HANDLER_OPTIONS)
        for event, handler in (
            (self.new.click, self._begin_conversation),
            (self.next.click, self._take_next_prompt),
            (self.stages.input, self._change_columns),
            (self.blind.input, self._change_columns),
            (self.history.input, self._choose_conversation),
            (self.back.click, self._go_back),
            (self.page.select, self._show_next_version),
        ):
            event(self._in_place_of_request(handler), inputs, outputs, **HANDLER_OPTIONS)
        self.page.click(self._edit_question, inputs, outputs, **HANDLER_OPTIONS)
        gr.on([self.differences.input, self.raw.input], self._redraw, inputs, outputs, **HANDLER_OPTIONS)
        self.export.click(self._conversation_json, inputs, self.text, **HANDLER_OPTIONS).then(
            None, self.text, None, js=DOWNLOAD
        )
        for column, button in enumerate(self.best):
            button.click(self._best_vote_handler(column), inputs, outputs, **HANDLER_OPTIONS)
        self.tie.click(self._vote_tie, inputs, outputs, **HANDLER_OPTIONS)
        self.all_bad.click(self._vote_all_bad, inputs, outputs, **HANDLER_OPTIONS)
        self.unvote.click(self._remove_vote, inputs, outputs, **HANDLER_OPTIONS)
        self.ranking.submit(self._vote_ranking, inputs, outputs, **HANDLER_OPTIONS)
        dragged = inputs | {self.ranker}
        gr.on([self.ranker.submit, self.rank.click], self._vote_dragged, dragged, outputs, **HANDLER_OPTIONS)
        self.on_page_open: tuple[Callable[..., Any], set[Any], list[Any]] = (self._open_page, inputs, outputs)

    def _open_page(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """A page was opened: lists the runs, and loads the first."""
        runs = self.app.run_names()
        if not runs:
            yield {
                self.live: show.no_runs_html(list_runs(self.app.root), self.app.root.name),
                self.send: gr.update(interactive=False),
            }
            return
        last = values[self.last] if isinstance(values[self.last], list) else []
        run = last[0] if len(last) == 2 and last[0] in runs else runs[0]
        kept = self._read_conversation(run, values[self.browser], last[1]) if run in last else None
        yield from self._load_run(run, values, request, {self.run: gr.update(choices=runs, value=run)}, kept)

    def _choose_run(self, values: Values, request: gr.Request) -> Iterator[Values]:
        yield from self._load_run(values[self.run], values, request, {})

    def _load_run(
        self, run: str, values: Values, request: gr.Request, updates: Values, kept: Comparison | None = None
    ) -> Iterator[Values]:
        """Loads a run and displays its columns, in few steps: if two updates come together, the browser loses one.

        updates: other controls to change at the same time. kept: the conversation to go on with.
        """
        self.app.replace(str(request.session_hash), TAB, {})
        yield {
            **self.idle_updates(kept),
            **self._conversation_updates(kept, values),
            self.shown_run: run,
            self.history: self._history_update(run, values[self.browser], kept),
            self.previous: None,
            self.back: gr.update(visible=False),
            self.standing: "",
            self.about: "",
            self.live: show.notice_html(f"Loading {run} ..."),
            **updates,
        }
        for event in self.app.submit(str(request.session_hash), TAB, Open(run), user_of(request)).events():
            if isinstance(event, Opened):
                columns = list(event.columns[:MOST_COLUMNS])
                if kept is not None:
                    columns = [stage for stage in kept.stages if stage in (*event.columns, *event.other_columns)]
                last = read_presets(values[self.kept]).get(LAST, Preset("", 1.0, 1.0, USUAL_ANSWER_TOKENS))
                longest = event.longest_answer
                yield {
                    **updates,  # once more: the first may be lost
                    self.stages: gr.update(choices=[*event.columns, *event.other_columns], value=columns),
                    self.length: gr.update(maximum=longest, value=min(last.length, longest)),
                    self.system: last.system,
                    self.temperature: last.temperature,
                    self.top_p: last.top_p,
                    self.presets.name: gr.update(choices=preset_names(values[self.kept])),
                    self.live: "" if kept is not None else self._invitation_html(run, columns, values[self.blind]),
                    self.about: show.line_html(run_summary(self.app.root, run)),
                    self.standing: self._standings_html(run),
                }
            elif isinstance(event, Failed):
                yield {self.stages: gr.update(choices=[], value=[]), self.live: show.failure_html(event.reason)}
            elif note := waiting_note(event):
                yield {self.live: show.notice_html(note)}

    def _read_conversation(self, run: str, browser: Any, name: Any) -> Comparison | None:
        """A conversation that was kept; None if it is not there any more."""
        try:
            return self._conversations(run, browser).load(str(name))
        except UserError:
            return None

    def _conversations(self, run: str, browser: Any) -> Conversations:
        return Conversations(find_run_folder(self.app.root, run), str(browser or ""))

    def _history_update(self, run: str, browser: Any, comparison: Comparison | None) -> Any:
        """The list of earlier conversations, with the one that is shown chosen."""
        kept = self._conversations(run, browser).list()
        shown = comparison.id if comparison is not None and comparison.id in [name for _, name in kept] else None
        return gr.update(choices=kept, value=shown, visible=bool(kept))

    def _keep(self, comparison: Comparison, values: Values) -> tuple[Comparison, Values]:
        """Saves a conversation; returns it with its id, and the updates of the list. A full disk loses only this."""
        try:
            kept = self._conversations(comparison.run, values[self.browser]).save(comparison)
        except (OSError, UserError):
            return comparison, {}
        history = self._history_update(kept.run, values[self.browser], kept)
        return kept, {self.history: history, self.last: [kept.run, kept.id]}

    def _conversation_updates(self, comparison: Comparison | None, values: Values) -> Values:
        """What displays a conversation: its turns, and the address under which the browser finds it again."""
        if comparison is None:
            return {self.last: []}
        page = self._turns_html(comparison, values)
        return {self.page: page, self.blind: comparison.is_blind, self.last: [comparison.run, comparison.id]}

    def _leave(self, values: Values) -> Values:
        """Remembers the conversation that is shown, so that Undo finds it."""
        left: Comparison | None = values[self.comparison]
        has_left = left is not None and bool(left.turns)
        return {self.previous: left if has_left else None, self.back: gr.update(visible=has_left)}

    def _ask_question(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """Asks all columns one question; streams until every answer has ended."""
        comparison = (values[self.comparison] or Comparison(values[self.shown_run], ())).with_columns(
            values[self.stages], values[self.blind]
        )
        question = values[self.question]
        try:
            comparison = replace(comparison, system=self.app.require_short(values[self.system] or ""))
            self.app.require_short(question)
            seed = int(values[self.seed] or 0) + len(comparison.turns)
            settings = Settings(
                float(values[self.temperature]), int(values[self.length]), seed, float(values[self.top_p])
            )
            ask = comparison.request_next_turn(
                question, comparison.column_order(random.Random(secrets.randbits(64))), settings
            )
        except UserError as error:
            yield {self.live: show.failure_html(str(error))}
            return
        yield from self._stream_answers(comparison, question, ask, values, request)

    def _stream_answers(
        self, comparison: Comparison, question: str, ask: Ask, values: Values, request: gr.Request,
        replaced: Turn | None = None,
    ) -> Iterator[Values]:  # fmt: skip
        """Streams the answers; if there are none, puts the question back into its box.

        replaced: the version of this turn that was shown before, which comes back if there are none.
        """
        empty_texts = [""] * len(ask.columns)
        preset = Preset(comparison.system, ask.settings.temperature, ask.settings.top_p, ask.settings.max_new_tokens)
        busy_updates: Values = {self.kept: with_preset(values[self.kept], LAST, preset)}
        busy_updates |= {self.send: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        page = self._turns_html(comparison, values)
        live = show.live_turn_html(comparison, question, empty_texts)
        yield {**busy_updates, self.question: "", self.page: page, self.live: live}
        for event in self.app.submit(str(request.session_hash), TAB, ask, user_of(request)).events():
            if isinstance(event, Replaced):
                if event.updates:
                    yield self._unanswered_updates(comparison, question, values, replaced, event.updates)
            elif isinstance(event, Failed) or (isinstance(event, Answered) and event.has_no_token):
                message = show.failure_html(event.reason) if isinstance(event, Failed) else show.notice_html("Stopped.")
                yield self._unanswered_updates(comparison, question, values, replaced, {self.live: message})
            elif isinstance(event, Answered):
                answered = comparison.with_answers(question, ask, event.answers, replaced)
                answered, kept = self._keep(answered, values)
                notes = [*(["Stopped."] if event.is_stopped else []), *([SHORTENED] if event.is_shortened else [])]
                page = self._turns_html(answered, values)
                yield {
                    **self.idle_updates(answered),
                    **kept,
                    self.page: page,
                    self.live: show.notice_html(" ".join(notes)),
                }
            else:
                texts = event.texts if isinstance(event, Partial) else empty_texts
                yield {self.live: show.live_turn_html(comparison, question, texts, waiting_note(event))}

    def _unanswered_updates(
        self, comparison: Comparison, question: str, values: Values, replaced: Turn | None, updates: Mapping[Any, Any]
    ) -> Values:
        """The page as before a question, which comes back into its box, with updates on top.

        replaced: the version of the turn that was to be answered again, which comes back in place of the question.
        """
        box = {"value": question, "interactive": True}
        if replaced is not None:
            comparison, box = replace(comparison, turns=(*comparison.turns, replaced)), {}
        before = self.idle_updates(comparison if comparison.turns else None)
        before |= {self.page: self._turns_html(comparison, values)}
        return {**before, **updates, self.question: {**before[self.question], **box, **updates.get(self.question, {})}}

    def _answer_again(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """Asks the last question once more, with another seed."""
        comparison: Comparison | None = values[self.comparison]
        if comparison is None or not comparison.turns:
            yield {self.live: show.notice_html("There is no question yet to answer again.")}
            return
        last_turn, earlier = comparison.turns[-1], comparison.before_turn(len(comparison.turns) - 1)
        settings = replace(last_turn.settings, seed=secrets.randbelow(2**31))
        ask = earlier.request_next_turn(
            last_turn.question, earlier.column_order(random.Random(secrets.randbits(64))), settings
        )
        yield {self.vote_row: gr.update(visible=False)}
        yield from self._stream_answers(earlier, last_turn.question, ask, values, request, last_turn)

    def _let_answer_go_on(self, values: Values, event: gr.EventData, request: gr.Request) -> Iterator[Values]:
        """Lets a cut answer of the last turn go on from where it was cut."""
        comparison = values[self.comparison] or Comparison(values[self.shown_run], ())
        column = event._data.get("column")
        try:
            ask = comparison.request_more(column if type(column) is int else -1, int(values[self.length]))
        except UserError as error:
            yield {self.live: show.failure_html(str(error))}
            return
        turn, earlier = comparison.turns[-1], comparison.before_turn(len(comparison.turns) - 1)
        live, texts = replace(earlier, stages=turn.stages, is_blind=turn.is_hidden), [a.text for a in turn.answers]
        busy_updates = {self.send: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        page = self._turns_html(earlier, values)
        yield {**busy_updates, self.vote_row: gr.update(visible=False), self.page: page}
        for answer in self.app.submit(str(request.session_hash), TAB, ask, user_of(request)).events():
            if isinstance(answer, Answered):
                comparison, kept = self._keep(comparison.with_longer_answer(column, answer.answers[0]), values)
                yield {**self.idle_updates(comparison), **kept, self.page: self._turns_html(comparison, values)}
            elif isinstance(answer, Failed | Replaced):
                updates = (
                    answer.updates if isinstance(answer, Replaced) else {self.live: show.failure_html(answer.reason)}
                )
                if updates:
                    yield self._unanswered_updates(earlier, turn.question, values, comparison.turns[-1], updates)
            else:
                texts[column] = answer.texts[0] if isinstance(answer, Partial) else texts[column]
                yield {self.live: show.live_turn_html(live, turn.question, texts, waiting_note(answer))}

    def _stop_request(self, request: gr.Request) -> None:
        self.app.stop(str(request.session_hash), TAB)

    def _in_place_of_request(self, act: Callable[[Values], Values]) -> Callable[[Values, gr.Request], Values]:
        """The handler of an act that ends the answers on their way, if there are any.

        Then their stream displays the act's updates, as its last: of two streams each may reach the page first.
        """

        def handler(values: Values, request: gr.Request) -> Values:
            updates = act(values)
            return {self.live: gr.skip()} if self.app.replace(str(request.session_hash), TAB, updates) else updates

        return handler

    def _edit_question(self, values: Values, event: gr.EventData, request: gr.Request) -> Values:
        """Puts a question back into its box, and the conversation back to the turn before it."""
        comparison, turn_index = values[self.comparison], event._data.get("turn")
        if comparison is None or not isinstance(turn_index, int) or not 0 <= turn_index < len(comparison.turns):
            return {self.live: gr.skip()}
        # what is edited goes on as another conversation; the one that was shown stays as it is
        earlier = replace(comparison.before_turn(turn_index), id="")
        question = gr.update(value=comparison.turns[turn_index].question, interactive=True)
        updates = self.idle_updates(earlier) | self._conversation_updates(earlier, values) | self._leave(values)
        return self._in_place_of_request(lambda _: updates | {self.question: question})(values, request)

    def _begin_conversation(self, values: Values) -> Values:
        """Begins a new conversation; the one that was shown is kept."""
        updates = self.idle_updates(None) | self._conversation_updates(None, values) | self._leave(values)
        run = values[self.shown_run]
        history = self._history_update(run, values[self.browser], None) if run else gr.skip()
        invitation = self._invitation_html(run, values[self.stages], values[self.blind])
        return updates | {self.live: invitation, self.history: history}

    def _take_next_prompt(self, values: Values) -> Values:
        """Begins a new conversation with the next question of --prompts that has no vote in this run."""
        comparison: Comparison | None = values[self.comparison]
        if comparison is not None and comparison.is_waiting_for_vote:
            return {self.live: show.notice_html("Vote on these answers first.")}
        prompts = self.app.prompts
        try:
            voted = {voted_question(row) for row in self.app.votes(values[self.shown_run])}
        except (UserError, OSError) as error:
            return {self.live: show.failure_html(str(error))}
        places = [*range(values[self.place], len(prompts)), *range(values[self.place])]
        place = next((place for place in places if prompts[place] not in voted), None)
        if place is None:
            return {self.live: show.notice_html(f"All {len(prompts):,} prompts have a vote.")}
        done = sum(prompt in voted for prompt in prompts)
        note = show.notice_html(f"Prompt {place + 1:,} of {len(prompts):,}. With a vote: {done:,}.")
        question = gr.update(value=prompts[place], interactive=True)
        return self._begin_conversation(values) | {
            self.question: question,
            self.place: place + 1,
            self.live: note,
        }

    def _change_columns(self, values: Values) -> Values:
        """Other columns, or blind or not: the conversation goes on with them."""
        comparison: Comparison | None = values[self.comparison]
        if comparison is None:
            invitation = self._invitation_html(values[self.shown_run], values[self.stages], values[self.blind])
            return {**self.idle_updates(None), self.live: invitation}
        changed = comparison.with_columns(values[self.stages], values[self.blind])
        note = show.notice_html("The next question goes to these columns; what was said stays.")
        page = self._turns_html(changed, values)
        return {**self.idle_updates(changed), self.page: page, self.live: note}

    def _choose_conversation(self, values: Values) -> Values:
        """Shows an earlier conversation, to go on with it."""
        try:
            chosen = self._conversations(values[self.shown_run], values[self.browser]).load(str(values[self.history]))
        except UserError as error:
            return {self.live: show.failure_html(str(error))}
        return self._show_conversation(chosen, values) | self._leave(values)

    def _go_back(self, values: Values) -> Values:
        """Takes back New, edit or the choice of another conversation."""
        previous: Comparison | None = values[self.previous]
        if previous is None:
            return {self.back: gr.update(visible=False)}
        return self._show_conversation(previous, values) | self._leave(values) | {self.question: gr.update(value="")}

    def _show_conversation(self, comparison: Comparison, values: Values) -> Values:
        updates = self.idle_updates(comparison) | self._conversation_updates(comparison, values)
        history = self._history_update(comparison.run, values[self.browser], comparison)
        return updates | {self.stages: list(comparison.stages), self.history: history}

    def _show_next_version(self, values: Values) -> Values:
        """Shows the next version of the last question's answers; the conversation goes on from it."""
        comparison: Comparison | None = values[self.comparison]
        if comparison is None:
            return {self.live: ""}
        shown, kept = self._keep(comparison.with_next_version(), values)
        return {**self.idle_updates(shown), **kept, self.page: self._turns_html(shown, values)}

    def _turns_html(self, comparison: Comparison, values: Values) -> str:
        """The conversation, drawn as the page asks for."""
        drawn = show.text_html if values[self.raw] else markdown_html
        return show.turns_html(comparison, values[self.differences], drawn)

    def _invitation_html(self, run: str, columns: Sequence[str], is_blind: bool) -> str:
        try:
            examples = example_prompts(find_run_folder(self.app.root, run))
        except (UserError, OSError):
            examples = []
        return show.invitation_html(columns, examples, is_blind)

    def _redraw(self, values: Values) -> Values:
        comparison = values[self.comparison]
        return {self.page: gr.update() if comparison is None else self._turns_html(comparison, values)}

    def _best_vote_handler(self, column: int) -> Callable[[Values, gr.Request], Values]:
        def vote(values: Values, request: gr.Request) -> Values:
            return self._save_vote(values, lambda count: ranks_with_best(column, count), request)

        return vote

    def _vote_tie(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, tied_ranks, request)

    def _vote_ranking(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, lambda count: parse_ranks(values[self.ranking], count), request)

    def _vote_dragged(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, lambda count: dragged_ranks(values[self.ranker], count), request)

    def _vote_all_bad(self, values: Values, request: gr.Request) -> Values:
        return self._save_vote(values, tied_ranks, request, is_all_bad=True)

    def _save_vote(
        self,
        values: Values,
        ranks: Callable[[int], tuple[int, ...]],
        request: gr.Request,
        is_all_bad: bool = False,
    ) -> Values:
        """Saves the vote, and displays the names of the columns."""
        comparison: Comparison | None = values[self.comparison]
        try:
            if comparison is None or not comparison.is_waiting_for_vote:
                raise UserError("There is nothing to vote on: ask a question in blind mode first.")
            num_answers = len(comparison.turns[-1].stages)
            voted, row, is_ranking = comparison.with_vote(ranks(num_answers), request.username or "", is_all_bad)
            self.app.save_vote(comparison.run, row, is_ranking)
        except (UserError, OSError) as error:
            return {self.live: show.failure_html(str(error))}
        voted, kept = self._keep(voted, values)
        updates = self.idle_updates(voted) | kept | {self.page: self._turns_html(voted, values)}
        updates |= {self.live: show.notice_html("Your vote is saved."), self.ranking: ""}
        return updates | {self.standing: self._standings_html(comparison.run)}

    def _remove_vote(self, values: Values, request: gr.Request) -> Values:
        """Takes back the vote on the last question."""
        comparison: Comparison | None = values[self.comparison]
        try:
            if comparison is None:
                raise UserError("There is no vote to take back.")
            unvoted, vote = comparison.without_last_vote()
            self.app.remove_vote(comparison.run, vote)
        except (UserError, OSError) as error:
            return {self.live: show.failure_html(str(error))}
        unvoted, kept = self._keep(unvoted, values)
        updates = self.idle_updates(unvoted) | kept | {self.page: self._turns_html(unvoted, values)}
        return updates | {self.live: show.notice_html(UNVOTED), self.standing: self._standings_html(comparison.run)}

    def _conversation_json(self, values: Values) -> str:
        comparison: Comparison | None = values[self.comparison]
        return json.dumps({} if comparison is None else comparison.to_json_object(), ensure_ascii=False, indent=2)

    def _standings_html(self, run: str) -> str:
        """The result of all votes of a run; empty if they cannot be read."""
        try:
            rows = self.app.votes(run)
            return show.standings_table(stage_win_rates(rows)) if rows else ""
        except (UserError, OSError):
            return ""
