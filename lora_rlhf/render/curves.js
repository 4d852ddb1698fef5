// The value of a chart under the pointer, and by keyboard: arrows, Page Up and Down, Home, End; Escape ends it.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  let active = null; // {svg, key, x, hasFocus}: where the cursor is; a chart that is drawn anew keeps it
  const frames = new WeakMap();
  const frameOf = (svg) => { // an element that is drawn anew may stay, with other data
    if (frames.get(svg)?.text !== svg.dataset.frame) frames.set(svg, {text: svg.dataset.frame, frame: JSON.parse(svg.dataset.frame)});
    return frames.get(svg).frame;
  };
  const number = (value) => Math.abs(value) >= 1e-3 || value === 0
    ? Number(value.toPrecision(5)).toLocaleString("en") : value.toExponential(2);
  const nearest = (points, x) => points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  const steps = (frame) => [...new Set(frame.curves.flatMap((curve) => curve.points.map((point) => point[0])))].sort((a, b) => a - b);
  const make = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const clear = () => {
    if (!active) return;
    const figure = active.svg.closest(".chart");
    active.svg.querySelector(".cursor").replaceChildren();
    figure.querySelector(".at").hidden = true;
    figure.querySelector(".now").hidden = false;
    active = null;
  };
  const show = (svg, x) => {
    if (active && active.svg !== svg) clear();
    const frame = frameOf(svg), figure = svg.closest(".chart"), at = figure.querySelector(".at");
    const [width, height, left, , top, bottom] = frame.box;
    const found = frame.curves.filter((curve) => curve.points.length)
      .map((curve) => ({curve, point: nearest(curve.points, x)}));
    const step = nearest(found.map((item) => item.point), x)[0];
    const toX = (value) => left + (value - frame.x[0]) * frame.x[1];
    const toY = (value) => height - bottom - ((frame.log ? Math.log10(value) : value) - frame.y[0]) * frame.y[1];
    const parts = [make("line", {x1: toX(step), x2: toX(step), y1: top, y2: height - bottom})];
    at.replaceChildren(`${frame.unit} ${number(step)}:`);
    const said = [];
    for (const {curve, point} of found) {
      parts.push(make("circle", {class: `run${curve.place}`, cx: toX(point[0]), cy: toY(point[1]), r: 3}));
      const value = document.createElement("span");
      value.className = `run${curve.place}`;
      value.textContent = number(point[1]);
      at.append(value);
      said.push(found.length > 1 ? `${curve.name} ${number(point[1])}` : number(point[1]));
    }
    svg.querySelector(".cursor").replaceChildren(...parts);
    at.hidden = false;
    figure.querySelector(".now").hidden = true;
    svg.setAttribute("aria-valuenow", step);
    svg.setAttribute("aria-valuetext", `${frame.unit} ${number(step)}: ${said.join(", ")}`);
    active = {svg, key: figure.dataset.key, x: step, hasFocus: document.activeElement === svg};
  };
  const chartOf = (event) => event.target instanceof Element ? event.target.closest(".chart svg[data-frame]") : null;
  const point = (event) => {
    const svg = chartOf(event);
    if (!svg) { if (active && !active.hasFocus) clear(); return; }
    const frame = frameOf(svg), box = svg.getBoundingClientRect();
    const inside = (event.clientX - box.left) / box.width * frame.box[0];
    show(svg, frame.x[0] + (inside - frame.box[2]) / frame.x[1]);
  };
  document.addEventListener("pointermove", point, {passive: true});
  document.addEventListener("pointerdown", point, {passive: true});
  document.addEventListener("keydown", (event) => {
    const svg = chartOf(event);
    if (!svg || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = steps(frameOf(svg));
    const now = active && active.svg === svg ? all.indexOf(active.x) : all.length;
    const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -all.length, End: all.length};
    if (event.key === "Escape") return clear();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(svg, all[Math.max(0, Math.min(all.length - 1, now + moves[event.key]))]);
  });
  document.addEventListener("focusout", (event) => { // also where a chart is drawn anew, which is no reason to clear it
    const svg = chartOf(event);
    setTimeout(() => { if (active?.svg === svg && svg.isConnected && document.activeElement !== svg) clear(); }, 0);
  });
  new MutationObserver(() => {
    if (!active || (active.svg.isConnected && active.svg.querySelector(".cursor").hasChildNodes())) return;
    const {key, x, hasFocus} = active;
    active = null;
    const svg = document.querySelector(`.chart[data-key="${CSS.escape(key)}"] svg[data-frame]`);
    if (!svg) return;
    if (hasFocus && document.activeElement === document.body) svg.focus({preventScroll: true});
    show(svg, x);
  }).observe(document.documentElement, {childList: true, subtree: true});
})();
