// The form of a stage: drawn from `props.value` = {stage, groups: [[title, [field]]], given: {name: text}}. Every change
// sends it back: "input" while somebody types, which checks it, "submit" when a field is left, which plans it too. Texts
// reach the page as text nodes only.
const root = element.querySelector(".start-form");
let sent = "", state = null, typing = null;
const make = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
};
function send(event) {
  clearTimeout(typing);
  sent = JSON.stringify(state);
  props.value = JSON.parse(sent);
  setTimeout(() => trigger(event), 30); // after the value has been sent
}
function control(field) {
  const id = `start-${field.name}`, given = state.given[field.name] ?? "";
  let input;
  if (field.choices.length) {
    input = make("select", {id}, make("option", {value: "", textContent: field.default || "choose"}));
    input.append(...field.choices.filter((choice) => choice !== field.default).map((choice) => make("option", {value: choice, textContent: choice})));
  } else input = make("input", {id, type: "text", placeholder: field.default, spellcheck: false, autocomplete: "off", maxLength: 10000});
  input.value = given;
  input.required = field.required;
  input.setAttribute("aria-describedby", `${id}-text`);
  const take = (event) => {
    if (input.value.trim()) state.given[field.name] = input.value.trim();
    else delete state.given[field.name];
    send(event);
  };
  input.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => take("input"), 300);
  });
  input.addEventListener("change", () => take("submit"));
  const name = make("label", {htmlFor: id, textContent: field.name});
  if (field.required) name.append(make("span", {className: "needed", textContent: " required"}));
  return make("div", {className: "field"}, name, input, make("p", {id: `${id}-text`, textContent: field.text}));
}
function load() {
  if (JSON.stringify(props.value) === sent) return;
  state = props.value?.groups ? JSON.parse(JSON.stringify(props.value)) : null;
  root.hidden = !state;
  if (!state) return;
  root.replaceChildren(...state.groups.map(([title, fields], place) => {
    const body = make("div", {className: "fields"}, ...fields.map(control));
    const isOpen = place === 0 || fields.some((field) => field.name in state.given);
    return make("details", {open: isOpen}, make("summary", {textContent: title}), body);
  }));
  if (root.offsetParent) send("submit"); // another stage was chosen: its command line and plan are asked for
}
root.addEventListener("submit", (event) => event.preventDefault());
watch("value", load);
load();
