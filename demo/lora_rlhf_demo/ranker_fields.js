// What a labeler says of answers beside their rank. `state` is what is shown; `send` and `says` are those of ranker.js.
const LETTERS = "ABCDEFGHI";
const root = element.querySelector(".ranker");
const list = root.querySelector("ol");
const says = root.querySelector("[aria-live]");
const hint = root.querySelector(".hint");
const help = root.querySelector(".help");
const rest = root.querySelector(".rest");
let state = null;
let cards = [];

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(className, text, title, act) {
  const made = make("button", className, text);
  made.type = "button";
  made.title = title;
  if (text.length < 2) made.setAttribute("aria-label", title);
  made.addEventListener("click", act);
  return made;
}

function rate(place, value) {
  state.ratings[place] = state.ratings[place] === value ? null : value;
  cards[place].querySelectorAll(".rating button").forEach((one, at) => {
    one.setAttribute("aria-checked", String(state.ratings[place] === at + 1));
  });
  send();
  says.textContent = `Answer ${LETTERS[place]}: quality ${state.ratings[place] ?? "not given"}`;
}

function rating(place) {
  const field = make("div", "rating");
  field.tabIndex = 0;
  field.setAttribute("role", "radiogroup");
  const most = state.fields.ratings;
  field.setAttribute("aria-label", `Quality of answer ${LETTERS[place]} alone, 1 (bad) to ${most} (excellent)`);
  field.append(make("span", "name", "Quality"), make("span", "end", "bad"));
  for (let value = 1; value <= most; value++) {
    const one = button("", String(value), `quality ${value}`, () => rate(place, value));
    one.tabIndex = -1;
    one.setAttribute("role", "radio");
    one.setAttribute("aria-checked", String(state.ratings[place] === value));
    field.append(one);
  }
  field.append(make("span", "end", "excellent"));
  field.addEventListener("keydown", (event) => {
    const now = state.ratings[place] ?? 0;
    const by = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1 }[event.key];
    const value = by ?? Number(event.key);
    if (!(value >= 1 && value <= most) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    rate(place, value);
  });
  return field;
}

function checks(options, chosen, change) {
  const all = make("div", "all");
  for (const [key, title] of options) {
    const label = make("label");
    const input = make("input");
    input.type = "checkbox";
    input.checked = chosen.includes(key);
    input.addEventListener("change", () => change(key, input.checked));
    label.append(input, make("span", "", title));
    all.append(label);
  }
  return all;
}

function toggled(chosen, key, isOn) {
  const others = chosen.filter((other) => other !== key);
  return isOn ? [...others, key] : others;
}

function flags(place) {
  const box = make("details", "flags");
  const summary = make("summary");
  const count = () => {
    const chosen = state.flags[place].length;
    summary.textContent = chosen ? `Flags (${chosen})` : "Flags";
  };
  box.open = state.flags[place].length > 0;
  box.append(summary, checks(state.fields.flags, state.flags[place], (key, isOn) => {
    state.flags[place] = toggled(state.flags[place], key, isOn);
    count();
    send();
  }));
  count();
  return box;
}

function textBox(name, label, lines) {
  const box = make("label", "written");
  const area = make("textarea");
  area.rows = lines;
  area.maxLength = state.fields.longest[name];
  area.value = state[name];
  area.addEventListener("input", () => {
    state[name] = area.value;
    send();
  });
  box.append(make("span", "", label), area);
  return box;
}

// Below the answers: why, the answer that the labeler would have given, and what the prompt is
function drawRest() {
  rest.replaceChildren();
  const isPair = state.texts.length === 2;
  const hasKeys = !matchMedia("(pointer: coarse)").matches;
  const keys = isPair ? "Press 1 or 2 for the better answer, = if both are as good: it is saved at once."
    : "Press letters, the best first, then Enter. Or drag, or use the arrows on a card.";
  const taps = isPair ? "Tap the better one: it is saved at once." : "Drag by the dots, or tap the arrows on a card.";
  hint.firstChild.textContent = `${hasKeys ? keys : taps}${isPair ? "" : " Answers without a rank share the last."} `;
  hint.lastElementChild.hidden = !hasKeys;
  if (isPair) rest.append(button("better", "Both are as good", "key =", () => choose(null)));
  if (!state.fields) return;
  const chips = make("div", "chips");
  chips.setAttribute("role", "group");
  chips.setAttribute("aria-label", "Why is the best one the best?");
  for (const [key, title] of state.fields.reasons) {
    const chip = button("chip", title, title, () => {
      state.reasons = toggled(state.reasons, key, !state.reasons.includes(key));
      chip.setAttribute("aria-pressed", String(state.reasons.includes(key)));
      send();
    });
    chip.setAttribute("aria-pressed", String(state.reasons.includes(key)));
    chips.append(chip);
  }
  const ideal = make("details", "flags");
  ideal.open = state.ideal !== "";
  ideal.append(make("summary", "", "None is good? Write the ideal answer"),
    textBox("ideal", "It gets rank 1, and becomes a demonstration to train on.", 5));
  const about = make("details", "flags");
  about.open = state.prompt_flags.length > 0;
  about.append(make("summary", "", "About the prompt"), checks(state.fields.prompt_flags, state.prompt_flags, (key, isOn) => {
    state.prompt_flags = toggled(state.prompt_flags, key, isOn);
    send();
  }));
  rest.append(make("span", "name", "Why is the best one the best?"), chips, textBox("comment", "Comment", 1), ideal, about);
}

hint.lastElementChild.addEventListener("click", () => (help.hidden = !help.hidden));
