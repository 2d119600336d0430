// The API key: asked for when the server wants one, kept by this tab alone, never part of a URL.

import { byId, setText } from "./dom.js";

const PLACE = "eagleray.key";

/** Return the headers that carry the key, if there is one. */
export function keyHeaders() {
  const key = sessionStorage.getItem(PLACE);
  return key ? { authorization: `Bearer ${key}` } : {};
}

export const hasKey = () => sessionStorage.getItem(PLACE) !== null;

export const forgetKey = () => sessionStorage.removeItem(PLACE);

let asking = null;

/** Return once somebody has typed a key. Who asks meanwhile waits for the same answer. */
export function askForKey(problem) {
  asking ??= ask(problem).finally(() => {
    asking = null;
  });
  return asking;
}

async function ask(problem) {
  const dialog = byId("key-dialog");
  const form = byId("key-form");
  const input = byId("key");
  setText(byId("key-problem"), problem);
  input.value = "";
  if (!dialog.open) dialog.showModal();
  input.focus();
  await new Promise((resolve) => {
    // Without a key there is nothing to see behind it.
    dialog.onclose = () => dialog.showModal();
    form.onsubmit = (event) => {
      event.preventDefault();
      if (input.value.trim()) resolve();
    };
  });
  sessionStorage.setItem(PLACE, input.value.trim());
  input.value = "";
  dialog.onclose = null;
  dialog.close();
}
