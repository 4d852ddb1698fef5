// The ranking component: cards that are dragged, or moved by keys, into an order with ties.
// `props.value` is {id, texts, ranks, placed, ratings, flags, fields}; every change sends it back whole. Answers that
// nobody has placed stand in one group, so that no order is saved that nobody gave.
// All texts come from people and models: they reach the page as text nodes only.
const LETTERS = "ABCDEFGHI";
const HELP = "Arrow keys move this answer, equals ties it with the one above, a digit gives it that rank.";
const root = element.querySelector(".ranker");
const list = root.querySelector("ol");
const help = root.querySelector(".help");
const says = root.querySelector("[aria-live]");
let state = null; // what is shown
let sent = ""; // what was sent last: our own change comes back, and needs no drawing
let cards = [];

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ranks <-> groups: [[places that share the best rank], ...]
function groups() {
  const found = [];
  state.ranks.forEach((rank, place) => (found[rank - 1] ||= []).push(place));
  return found.filter(Boolean);
}

// `waits`: the answer goes back among those that nobody has placed
function regroup(found, place, waits = false) {
  found.filter((group) => group.length).forEach((group, rank) => group.forEach((own) => (state.ranks[own] = rank + 1)));
  state.placed[place] = !waits;
  const focused = document.activeElement === cards[place];
  arrange();
  if (focused) cards[place].focus();
  send();
  says.textContent = spoken(place);
}

function spoken(place) {
  if (!state.placed[place]) return `Answer ${LETTERS[place]}: not ranked yet`;
  const rank = state.ranks[place];
  const equal = state.ranks.flatMap((own, other) => (own === rank && other !== place ? [LETTERS[other]] : []));
  const tied = equal.length ? `, tied with ${equal.join(" and ")}` : "";
  return `Answer ${LETTERS[place]}: rank ${rank} of ${Math.max(...state.ranks)}${tied}`;
}

function send() {
  sent = JSON.stringify(state);
  props.value = JSON.parse(sent);
}

// Moves

function move(place, way) {
  const found = groups();
  const at = state.ranks[place] - 1;
  const alone = found[at].length === 1;
  if (alone && (at + way < 0 || at + way >= found.length)) return;
  found[at] = found[at].filter((other) => other !== place);
  // out of a tie it steps beside it; alone it steps over the next group
  const target = alone ? (way < 0 ? at - 1 : at + 2) : way < 0 ? at : at + 1;
  found.splice(target, 0, [place]);
  regroup(found, place);
}

function tie(place) {
  const found = groups();
  const at = state.ranks[place] - 1;
  if (found.length < 2) return;
  found[at] = found[at].filter((other) => other !== place);
  found[at > 0 ? at - 1 : 1].push(place);
  regroup(found, place);
}

function rank(place, wanted) {
  const found = groups().map((group) => group.filter((other) => other !== place)).filter((group) => group.length);
  found.splice(Math.min(wanted - 1, found.length), 0, [place]);
  regroup(found, place);
}

// One card

function build(place) {
  const card = make("li", "choice");
  card.tabIndex = 0;
  card.dataset.place = place;
  card.setAttribute("aria-describedby", help.id);
  const head = make("div", "choice-head");
  const grip = make("span", "grip", "\u2807");
  grip.setAttribute("aria-hidden", "true");
  const moves = make("span", "moves");
  for (const [sign, title, act] of [
    ["\u2191", "better", () => move(place, -1)],
    ["\u2193", "worse", () => move(place, 1)],
    ["=", "tie with the one above", () => tie(place)],
  ]) {
    const button = make("button", "", sign);
    button.type = "button";
    button.title = `Answer ${LETTERS[place]}: ${title}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", act);
    moves.append(button);
  }
  head.append(grip, make("strong", "letter", LETTERS[place]), make("span", "place"), moves);
  const text = make("div", "text", state.texts[place]);
  text.dir = "auto";
  card.append(head, text);
  if (state.fields) card.append(rating(place), flags(place));
  card.addEventListener("keydown", (event) => keys(event, card, place));
  head.addEventListener("pointerdown", (event) => drag(event, card, place));
  return card;
}

function keys(event, card, place) {
  if (event.target !== card || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = /^[1-9]$/.test(event.key) && Number(event.key) <= state.texts.length;
  if (event.key === "ArrowUp") move(place, -1);
  else if (event.key === "ArrowDown") move(place, 1);
  else if (event.key === "=") tie(place);
  else if (digit) rank(place, Number(event.key));
  else return;
  event.preventDefault();
}

function rating(place) {
  const field = make("div", "rating");
  field.tabIndex = 0;
  field.setAttribute("role", "radiogroup");
  field.setAttribute("aria-label", `Overall quality of answer ${LETTERS[place]}, 1 to 7`);
  field.append(make("span", "name", "Quality"));
  const buttons = [];
  const choose = (value) => {
    state.ratings[place] = state.ratings[place] === value ? null : value;
    show();
    send();
    says.textContent = `Answer ${LETTERS[place]}: quality ${state.ratings[place] ?? "not given"}`;
  };
  const show = () => buttons.forEach((button, at) => {
    button.setAttribute("aria-checked", String(state.ratings[place] === at + 1));
  });
  for (let value = 1; value <= state.fields.ratings; value++) {
    const button = make("button", "", String(value));
    button.type = "button";
    button.tabIndex = -1;
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => choose(value));
    buttons.push(button);
    field.append(button);
  }
  field.addEventListener("keydown", (event) => {
    const now = state.ratings[place] ?? 0;
    const step = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1 }[event.key];
    const value = step ?? Number(event.key);
    if (!(value >= 1 && value <= buttons.length)) return;
    event.preventDefault();
    event.stopPropagation();
    choose(value);
  });
  show();
  return field;
}

function flags(place) {
  const box = make("details", "flags");
  const summary = make("summary");
  const count = () => {
    const chosen = state.flags[place].length;
    summary.textContent = chosen ? `Flags (${chosen})` : "Flags";
  };
  const all = make("div", "all");
  box.append(summary, all);
  box.open = state.flags[place].length > 0;
  for (const [key, title] of state.fields.flags) {
    const label = make("label");
    const input = make("input");
    input.type = "checkbox";
    input.checked = state.flags[place].includes(key);
    input.addEventListener("change", () => {
      const others = state.flags[place].filter((other) => other !== key);
      state.flags[place] = input.checked ? [...others, key] : others;
      count();
      send();
    });
    label.append(input, make("span", "", title));
    all.append(label);
  }
  count();
  return box;
}

// The list: one frame around each group of equals

function arrange() {
  const open = new Map(cards.map((card) => [card, card.querySelector(".text").scrollTop]));
  list.replaceChildren(...groups().map((group, at) => {
    const waits = group.some((place) => !state.placed[place]);
    const item = make("li", `group${group.length > 1 ? " tied" : ""}${waits ? " waiting" : ""}`);
    const inner = make("ul");
    inner.append(...group.map((place) => cards[place]));
    const badge = make("span", "badge", waits ? "?" : String(at + 1));
    badge.setAttribute("aria-hidden", "true");
    item.append(badge, inner);
    return item;
  }));
  cards.forEach((card, place) => {
    card.setAttribute("aria-label", spoken(place));
    const tied = list.querySelectorAll(".group")[state.ranks[place] - 1].matches(".tied");
    card.querySelector(".place").textContent = !state.placed[place] ? "not ranked yet" : tied ? "tied" : "";
    card.querySelector(".text").scrollTop = open.get(card) ?? 0;
  });
}

// Dragging, by mouse, pen or finger: the page below does not scroll with the finger (touch-action: none)

function drag(event, card, place) {
  if (event.button !== 0 || event.target.closest("button")) return;
  event.preventDefault();
  card.focus({ preventScroll: true });
  const head = event.currentTarget;
  const from = event.clientY + window.scrollY;
  let to = null;
  head.setPointerCapture(event.pointerId);
  card.classList.add("dragged");
  const follow = (moved) => {
    if (moved.clientY < 60) window.scrollBy(0, -14);
    if (moved.clientY > window.innerHeight - 60) window.scrollBy(0, 14);
    card.style.transform = `translateY(${moved.clientY + window.scrollY - from}px)`;
    to = target(moved.clientY, card);
    mark(to);
  };
  const end = (last) => {
    head.removeEventListener("pointermove", follow);
    head.removeEventListener("pointerup", end);
    head.removeEventListener("pointercancel", end);
    card.classList.remove("dragged");
    card.style.transform = "";
    mark(null);
    if (to === null || last.type === "pointercancel") return;
    const found = groups().map((group) => group.filter((other) => other !== place)).filter((group) => group.length);
    const waits = to.tied && found[to.at].every((other) => !state.placed[other]);
    if (to.tied) found[to.at].push(place);
    else found.splice(to.at, 0, [place]);
    regroup(found, place, waits);
  };
  head.addEventListener("pointermove", follow);
  head.addEventListener("pointerup", end);
  head.addEventListener("pointercancel", end);
}

// Where a card would land: before the group `at`, or tied with it. Groups are counted without the card.
function target(y, card) {
  const others = [...list.children].filter((item) => [...item.querySelectorAll(".choice")].some((own) => own !== card));
  for (const [at, item] of others.entries()) {
    const rects = [...item.querySelectorAll(".choice")].filter((own) => own !== card)
      .map((own) => own.getBoundingClientRect());
    const top = Math.min(...rects.map((rect) => rect.top));
    const bottom = Math.max(...rects.map((rect) => rect.bottom));
    const edge = Math.min(32, (bottom - top) / 4);
    if (y < top + edge) return { at, tied: false, item };
    if (y <= bottom - edge) return { at, tied: true, item };
  }
  return { at: others.length, tied: false, item: others.at(-1) ?? null, after: true };
}

function mark(to) {
  for (const item of list.children) item.classList.remove("before", "after", "into");
  if (to?.item) to.item.classList.add(to.tied ? "into" : to.after ? "after" : "before");
}

function load() {
  const value = props.value;
  if (JSON.stringify(value) === sent) return;
  sent = "";
  state = value && value.texts ? JSON.parse(JSON.stringify(value)) : null;
  root.hidden = state === null;
  says.textContent = "";
  if (state === null) return list.replaceChildren();
  cards = state.texts.map((_, place) => build(place));
  arrange();
}

help.textContent = HELP;
help.id = `help-${Math.random().toString(36).slice(2)}`;
element.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) trigger("submit");
});
watch("value", load);
load();
