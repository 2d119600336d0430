// The table of replica groups: one row each, kept while the group is there.

import { make, setText } from "./dom.js";
import { count, percent, rate, seconds } from "./format.js";

const COLUMNS = ["state", "group", "ranks", "kv", "running", "waiting", "in", "out", "step", "restarts"];
const LABELS = ["State", "Group", "Ranks", "KV in use", "Running", "Waiting", "Tokens/s in", "Tokens/s out", "Step", "Restarts"];

export class Groups {
  constructor(body) {
    this.body = body;
    this.rows = new Map();
  }

  /** Show these groups, in this order. */
  show(groups) {
    const shown = groups.map((group) => {
      const row = this.rows.get(group.group_id) ?? new Row();
      row.show(group);
      return [group.group_id, row];
    });
    this.rows = new Map(shown);
    const elements = shown.map(([, row]) => row.element);
    const isSame = elements.length === this.body.children.length && elements.every((each, i) => each === this.body.children[i]);
    if (!isSame) this.body.replaceChildren(...elements);
  }
}

class Row {
  constructor() {
    this.cells = Object.fromEntries(COLUMNS.map((name, index) => [name, cell(name, LABELS[index])]));
    this.mark = make("span", { className: "mark", "aria-hidden": "true" });
    this.state = make("span", { className: "words" });
    this.cells.state.append(this.mark, this.state);
    this.model = make("span", { className: "model" });
    this.id = make("code", {});
    this.trouble = make("span", { className: "trouble" });
    this.cells.group.append(this.model, this.id, this.trouble);
    this.bar = make("span", { className: "fill" });
    this.share = make("span", { className: "share" });
    this.meter = make("span", { className: "meter", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" }, this.bar);
    this.cells.kv.append(this.meter, this.share);
    this.element = make("tr", {}, ...COLUMNS.map((name) => this.cells[name]));
  }

  show(group) {
    const isStranger = !group.is_connected && group.state === "ready";
    this.cells.state.dataset.state = isStranger ? "unreachable" : group.state;
    setText(this.state, isStranger ? "not reached" : group.state);
    setText(this.model, group.model);
    setText(this.id, shortId(group.group_id));
    this.id.title = `${group.group_id}, application ${group.application}`;
    setText(this.trouble, group.state === "ready" ? "" : (group.error ?? ""));
    showRanks(this.cells.ranks, group.ranks);
    this.bar.style.width = `${Math.min(100, 100 * group.kv_use)}%`;
    setText(this.share, percent(group.kv_use));
    this.meter.setAttribute("aria-valuenow", Math.round(100 * group.kv_use));
    this.meter.setAttribute("aria-label", `KV blocks in use by ${group.group_id}`);
    this.cells.kv.title = `${count(group.num_kv_tokens)} of ${count(group.max_kv_tokens)} tokens resident, ${count(group.num_preemptions)} preemptions`;
    setText(this.cells.running, count(group.num_running));
    setText(this.cells.waiting, count(group.num_waiting));
    this.cells.waiting.title = `a new request would wait ${seconds(group.wait_s)}`;
    setText(this.cells.in, rate(group.prompt_tokens_s));
    setText(this.cells.out, rate(group.output_tokens_s));
    setText(this.cells.step, seconds(group.step_s));
    setText(this.cells.restarts, count(group.generation));
    this.cells.restarts.title = `generation ${group.generation}`;
  }
}

function cell(name, label) {
  const isNumber = COLUMNS.indexOf(name) > 3;
  return make("td", { className: isNumber ? `number ${name}` : name, "data-label": label });
}

/** "smollm2-135m#SERVE_REPLICA::abc123" says most with its end. */
function shortId(id) {
  const last = id.split(/[#:/]/).pop();
  return last.length > 14 ? `…${last.slice(-13)}` : last;
}

/** Machines with the processes on them; how far each rank is while it starts. */
function showRanks(place, ranks) {
  const starting = ranks.filter((rank) => rank.phase !== null && rank.pid === null);
  const nodes = new Map();
  for (const rank of ranks.filter((each) => each.pid !== null)) {
    nodes.set(rank.node, [...(nodes.get(rank.node) ?? []), rank]);
  }
  const lines = [...nodes].map(([node, those]) => `${node} ${those.map((rank) => rank.pid).join(" ")}`);
  lines.push(...starting.map((rank) => `rank ${rank.rank} ${rank.phase} ${rank.percent} %`));
  if (!lines.length) lines.push(`${ranks.length} ${ranks.length === 1 ? "rank" : "ranks"}`);
  if (place.dataset.lines === lines.join("\n")) return;
  place.dataset.lines = lines.join("\n");
  place.title = ranks.filter((rank) => rank.pid !== null).map((rank) => `rank ${rank.rank}: ${rank.node}, process ${rank.pid}, ${rank.device}`).join("\n");
  place.replaceChildren(...lines.map((line) => make("code", { text: line })));
}
