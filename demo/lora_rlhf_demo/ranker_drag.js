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
