// The page: feed in, numbers and groups out, and a playground beside them.

import { byId, setOptions, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { several } from "./format.js";
import { Groups } from "./groups.js";
import { forgetKey, hasKey } from "./key.js";
import { Numbers } from "./numbers.js";
import { Playground } from "./playground.js";
import { Timeline } from "./timeline.js";

const timeline = new Timeline();
const numbers = new Numbers(byId("numbers"), timeline);
const groups = new Groups(byId("group-rows"));
const playground = new Playground();
let latest = null;

function draw() {
  numbers.draw(byId("model").value, Number(document.querySelector("[name=span]:checked").value));
  if (latest) showGroups(latest);
}

function showGroups(answer) {
  const model = byId("model").value;
  const shown = answer.groups.filter((group) => !model || group.model === model);
  groups.show(shown);
  byId("no-groups").hidden = shown.length > 0;
  document.querySelector(".table-frame").hidden = shown.length === 0;
  const ready = shown.filter((group) => group.state === "ready" && group.is_connected).length;
  setText(byId("summary"), shown.length ? `${ready} of ${shown.length} ready` : "");
}

function onAnswer(answer) {
  latest = answer;
  timeline.add(answer);
  const names = answer.models.map((model) => model.name);
  setOptions(byId("model"), ["", ...names], ["all", ...names]);
  byId("model-filter").hidden = names.length < 2;
  playground.offer(names);
  setText(byId("foot"), footnote(answer));
  draw();
}

/** What is this copy's own, and what is everybody's. */
function footnote(answer) {
  const resumes = timeline.sum((each) => each.models.reduce((total, model) => total + model.num_resumes, 0));
  const held = timeline.sum((each) => each.num_held);
  const open = timeline.sum((each) => each.num_open);
  const copies = timeline.numCopies > 1 ? `${several(timeline.numCopies, "gateway copy").replace("copys", "copies")} heard` : `gateway copy ${answer.copy}`;
  const parts = [copies, `${several(open, "stream")} open`, `${several(resumes, "stream")} resumed since it started`];
  if (held) parts.push(`${several(held, "request")} waiting for a group`);
  return parts.join(" · ");
}

function onState(state, words) {
  const place = byId("connection");
  place.dataset.state = document.documentElement.dataset.state = state;
  setText(place.querySelector(".words"), words);
  byId("forget-key").hidden = !hasKey();
}

byId("model").addEventListener("change", draw);
byId("span").addEventListener("change", draw);
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
draw();
new Feed(timeline, onAnswer, onState).run();
