// Elements made and changed without markup: whatever a server or a model says is text.

/** Return a new element with a class, text, and children. */
export function make(tag, { className = "", text = "", ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Have an element say `text`; one that does already is left alone, so that a selection in it survives. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have a <select> offer `names`, and keep its choice if it is still there. */
export function setOptions(select, names, labels = names) {
  const offered = [...select.options].map((option) => option.value);
  if (offered.length === names.length && offered.every((value, index) => value === names[index])) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name, index) => make("option", { value: name, text: labels[index] })));
  select.value = names.includes(chosen) ? chosen : (names[0] ?? "");
}
