// The ranking component: cards that are dragged, or moved by keys, into an order with ties. ranker_fields.js and
// ranker_drag.js stand before it in one script.
// `props.value` is {id, labeler, texts, ended, ranks, placed, ...}; every change sends it back whole. Answers that nobody
// has placed stand in one group, so that no order is saved that nobody gave.
// All texts come from people and models: they reach the page as text nodes only.
const WAITING = 100; // the mark of the answers that nobody has placed; those below them have larger ones
const DRAFT = "lora-rlhf-draft ";
const MOST_DRAFTS = 200;
let marks = []; // of each answer: the rank that it was given; ranks are their order without gaps
let sent = ""; // what was sent last: our own change comes back, and needs no drawing
let current = 0; // the answer that keys act on
let busySince = 0; // when it was submitted; a second Enter before the answer is dropped

const isPair = () => state.texts.length === 2;

// marks <-> groups: [[places that share the best rank], ...]
function groups() {
  const found = [...new Set(marks)].sort((a, b) => a - b);
  return found.map((mark) => marks.flatMap((own, place) => (own === mark ? [place] : [])));
}

// `waits`: the answer goes back among those that nobody has placed
function regroup(found, place, waits = false) {
  state.placed[place] = !waits;
  const full = found.filter((group) => group.length);
  const at = full.findIndex((group) => group.some((own) => !state.placed[own]));
  full.forEach((group, rank) => group.forEach((own) => {
    marks[own] = at < 0 || rank < at ? rank + 1 : WAITING + rank - at;
  }));
  moved(place);
}

// After the marks have changed
function moved(place) {
  if (state.placed.every(Boolean)) groups().forEach((group, rank) => group.forEach((own) => (marks[own] = rank + 1)));
  groups().forEach((group, rank) => group.forEach((own) => (state.ranks[own] = rank + 1)));
  const focused = document.activeElement === cards[place];
  arrange();
  if (focused) focusOn(place, true);
  send();
  says.textContent = spoken(place);
}

function spoken(place) {
  const cut = state.ended?.[place] === false ? ", cut off" : "";
  if (!state.placed[place]) return `Answer ${LETTERS[place]}${cut}: not ranked yet`;
  const rank = state.ranks[place];
  const equal = state.ranks.flatMap((own, other) => (own === rank && other !== place ? [LETTERS[other]] : []));
  const tied = equal.length ? `, tied with ${equal.join(" and ")}` : "";
  return `Answer ${LETTERS[place]}${cut}: rank ${rank} of ${Math.max(...state.ranks)}${tied}`;
}

function send() {
  sent = JSON.stringify(state);
  props.value = JSON.parse(sent);
  keepDraft();
}

// Drafts: what is not saved yet stays in this browser, whatever becomes of the page or the server

const draftKey = (id) => `${DRAFT}${state.labeler} ${id}`;

function keepDraft() {
  if (!state.labeler) return;
  const { texts, ended, fields, saved, ...draft } = state;
  try {
    localStorage.setItem(draftKey(state.id), JSON.stringify({ ...draft, marks, time: Date.now() }));
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(DRAFT));
    const time = (key) => JSON.parse(localStorage.getItem(key)).time;
    if (keys.length > MOST_DRAFTS) localStorage.removeItem(keys.sort((a, b) => time(a) - time(b))[0]);
  } catch { /* a browser that keeps nothing */ }
}

function readDraft() {
  try {
    const draft = JSON.parse(localStorage.getItem(draftKey(state.id)));
    const fits = draft && ["ranks", "placed", "ratings", "flags", "read"].every((name) =>
      Array.isArray(draft[name]) && (name === "read" || draft[name].length === state.texts.length));
    return fits && draft.marks?.length === state.texts.length ? draft : null;
  } catch {
    return null;
  }
}

// Moves

function move(place, way) {
  const found = groups();
  const at = found.findIndex((group) => group.includes(place));
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
  const at = found.findIndex((group) => group.includes(place));
  if (found.length < 2) return;
  const other = at > 0 ? at - 1 : 1;
  if (!found[other].every((own) => state.placed[own])) return;
  found[at] = found[at].filter((own) => own !== place);
  found[other].push(place);
  regroup(found, place);
}

// A digit is the answer's rank: the same digit twice is a tie. The next answer without a rank is then at hand.
function rank(place, wanted) {
  const isNew = !state.placed[place];
  state.placed[place] = true;
  marks[place] = wanted;
  moved(place);
  const next = [...state.texts.keys()].find((other) => !state.placed[other]);
  if (isNew && next !== undefined) focusOn(next, true);
}

// A letter ranks its answer behind those that are ranked; of a ranked one it makes the one that keys act on
function pick(place) {
  current = place;
  if (!state.placed[place]) {
    state.placed[place] = true;
    marks[place] = 1 + Math.max(0, ...marks.filter((mark) => mark < WAITING));
    moved(place);
  }
  focusOn(place, false);
}

function unrank(place) {
  state.placed[place] = false;
  marks[place] = WAITING;
  moved(place);
}

function choose(better) {
  if (busySince && Date.now() - busySince < 1000) return;
  marks = better === null ? [1, 1] : better === 0 ? [1, 2] : [2, 1];
  state.placed = [true, true];
  moved(better ?? 0);
  submit();
}

function submit() {
  if (busySince && Date.now() - busySince < 1000) return;
  busySince = Date.now();
  setTimeout(() => trigger("submit"), 30); // after the value has been sent
}

function focusOn(place, scrolls) {
  current = place;
  cards[place].style.scrollMarginTop = `${8 + (document.querySelector("#label-head")?.offsetHeight ?? 0)}px`;
  cards[place].focus({ preventScroll: true });
  if (scrolls) cards[place].scrollIntoView({ block: "nearest" });
}

// From one answer to the next as they stand on the page
function step(way) {
  const shown = [...list.querySelectorAll(".choice")];
  const at = shown.indexOf(document.activeElement);
  const next = shown[at < 0 ? (way > 0 ? 0 : shown.length - 1) : at + way];
  if (next) focusOn(Number(next.dataset.place), true);
}

// Keys work from anywhere on the page but where text is written or a control has a meaning of its own for them

document.addEventListener("keydown", (event) => {
  if (state === null || !root.isConnected || root.offsetParent === null || event.defaultPrevented) return;
  const isInText = event.target.closest("textarea, select, [contenteditable], input:not([type=checkbox])");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && (!isInText || root.contains(event.target))) {
    event.preventDefault();
    submit();
    return;
  }
  if (isInText || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const isControl = event.target.closest("button, summary, a, [role=tab]") !== null;
  if (isControl && ["Enter", " ", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
  if (key(event)) event.preventDefault();
});

// Whoever clicked a button with the mouse means the answer with the next key: Enter would press that button again
root.addEventListener("click", (event) => {
  const isPointer = event.detail > 0 && event.target.closest("button, summary");
  if (isPointer && state !== null) cards[current].focus({ preventScroll: true });
});

// Returns whether the key means something
function key(event) {
  const digit = /^[1-9]$/.test(event.key) && Number(event.key) <= state.texts.length ? Number(event.key) : 0;
  const quality = event.shiftKey && !digit && /^Digit[1-9]$/.test(event.code) ? Number(event.code.slice(5)) : 0;
  const letter = LETTERS.toLowerCase().indexOf(event.key.toLowerCase());
  const acts = {
    Enter: submit, "?": () => (help.hidden = !help.hidden), s: () => trigger("clear"), u: () => trigger("undo"),
    o: () => unfold(current), Backspace: () => unrank(current), "=": () => tie(current), ArrowUp: () => move(current, -1),
    ArrowDown: () => move(current, 1), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  };
  if (isPair()) {
    Object.assign(acts, { "=": () => choose(null), "0": () => choose(null), ArrowLeft: () => choose(0),
      ArrowRight: () => choose(1), ArrowUp: null, ArrowDown: null, Backspace: null });
    if (digit) acts[event.key] = () => choose(digit - 1);
    else if (letter >= 0 && letter < 2) acts[event.key] = () => choose(letter);
  } else if (digit) acts[event.key] = () => rank(current, digit);
  else if (letter >= 0 && letter < state.texts.length) acts[event.key] = () => pick(letter);
  const act = acts[event.key] ?? acts[event.key.toLowerCase()];
  if (act) act();
  else if (quality && state.fields && quality <= state.fields.ratings) rate(current, quality);
  else return false;
  return true;
}

// One card

function build(place) {
  const card = make("li", "choice");
  card.tabIndex = 0;
  card.dataset.place = place;
  const head = make("div", "choice-head");
  head.append(make("strong", "letter", LETTERS[place]), make("span", "place"));
  if (state.ended?.[place] === false) head.append(make("span", "cut", "cut off: it did not end by itself"));
  if (!isPair()) {
    const grip = make("span", "grip", "\u2807");
    grip.setAttribute("aria-hidden", "true");
    head.prepend(grip);
    const moves = make("span", "moves");
    for (const [sign, title, act] of [
      ["\u2191", "better", () => move(place, -1)],
      ["\u2193", "worse", () => move(place, 1)],
      ["=", "tie with the one above", () => tie(place)],
    ]) moves.append(button("", sign, `Answer ${LETTERS[place]}: ${title}`, act));
    head.append(moves);
    head.addEventListener("pointerdown", (event) => drag(event, card, place));
  }
  const text = make("div", "text", state.texts[place]);
  text.dir = "auto";
  const whole = button("whole", "", `Answer ${LETTERS[place]}: show all`, () => unfold(place));
  whole.hidden = true;
  card.append(head, text, whole);
  if (isPair()) card.append(button("better", `${LETTERS[place]} is better`, `key ${place + 1}`, () => choose(place)));
  if (state.fields) card.append(rating(place), flags(place));
  card.addEventListener("focusin", () => (current = place));
  return card;
}

// An answer longer than the screen is folded, and says so; shorter ones are whole. Measured once the page is visible.
function fold() {
  if (state === null || root.offsetParent === null) return;
  let changed = false;
  cards.forEach((card, place) => {
    if (state.read[place]) return;
    const text = card.querySelector(".text");
    const isLong = text.scrollHeight > window.innerHeight * 0.8;
    const whole = card.querySelector(".whole");
    text.classList.toggle("folded", isLong);
    whole.hidden = !isLong;
    whole.textContent = `Show all ${state.texts[place].split(/\s+/).filter(Boolean).length} words`;
    if (!isLong) state.read[place] = changed = true;
  });
  if (changed) send();
}

function unfold(place) {
  cards[place].querySelector(".text").classList.remove("folded");
  cards[place].querySelector(".whole").hidden = true;
  state.read[place] = true;
  send();
}

// The list: one frame around each group of equals

function arrange() {
  root.classList.toggle("pair", isPair());
  const found = isPair() ? [[0], [1]] : groups();
  list.replaceChildren(...found.map((group, at) => {
    const waits = group.some((place) => !state.placed[place]);
    const item = make("li", `group${group.length > 1 ? " tied" : ""}${waits ? " waiting" : ""}`);
    const inner = make("ul");
    inner.append(...group.map((place) => cards[place]));
    const badge = make("span", "badge", waits ? "?" : String(marks[group[0]] < WAITING ? marks[group[0]] : at + 1));
    badge.setAttribute("aria-hidden", "true");
    item.append(badge, inner);
    return item;
  }));
  cards.forEach((card, place) => {
    card.setAttribute("aria-label", spoken(place));
    const isTied = marks.filter((mark) => mark === marks[place]).length > 1;
    const label = !state.placed[place] ? (isPair() ? "" : "not ranked yet") : isTied ? "tied" : "";
    card.querySelector(".place").textContent = label;
  });
}

function load() {
  const value = props.value;
  busySince = 0;
  if (JSON.stringify(value) === sent) return;
  const old = state;
  const isSame = old && value?.id === old.id && value.labeler === old.labeler && value.texts?.length === old.texts.length;
  if (isSame) { // a question about what was sent: all that was done stays
    send();
    return;
  }
  sent = "";
  state = value && value.texts ? JSON.parse(JSON.stringify(value)) : null;
  root.hidden = state === null;
  says.textContent = "";
  help.hidden = true;
  if (value?.saved) localStorage.removeItem(`${DRAFT}${value.labeler} ${value.saved}`);
  if (state === null) return list.replaceChildren();
  const at = state.ranks[state.placed.indexOf(false)] ?? Infinity; // the rank of those that nobody has placed
  marks = state.ranks.map((rank, place) =>
    !state.placed[place] ? WAITING : rank < at ? rank : WAITING + rank - at);
  if (!state.placed.some(Boolean)) {
    const { marks: draftMarks, time, ...draft } = readDraft() ?? {};
    Object.assign(state, draft);
    marks = draftMarks ?? marks;
  }
  cards = state.texts.map((_, place) => build(place));
  current = 0;
  arrange();
  drawRest();
  fold();
  send();
  const head = document.querySelector("#label-head");
  if (!head || root.offsetParent === null || document.activeElement?.closest("textarea, input")?.closest("#live")) return;
  head.parentElement.scrollIntoView({ block: "start" }); // the head itself may stick
  cards[0].focus({ preventScroll: true });
}

new ResizeObserver(fold).observe(root);
watch("value", load);
load();
