// Where the time of one answer went: a bar of its parts in their order, and a tick for each arrival on the same scale.

import { make } from "./dom.js";
import { rate, seconds, several } from "./format.js";

/** Return the pieces of an answer's time in their order; they add up to all of it. */
export function pieces(answer) {
  const totalS = answer.endS ?? answer.arrivals.at(-1) ?? 0;
  const firstS = answer.firstS ?? totalS;
  const timings = answer.timings;
  if (!timings) {
    return [piece("before", firstS, "to first token"), piece("decode", totalS - firstS, "after it")];
  }
  const { queue_s: queueS, prefill_s: prefillS, decode_s: decodeS, hold_s: holdS, total_s: serverS } = timings;
  const serverFirstS = timings.time_to_first_token_s ?? serverS;
  const wayInS = Math.max(0, firstS - serverFirstS);
  return [
    piece("network", wayInS),
    piece("gateway", serverFirstS - holdS - queueS - prefillS),
    piece("hold", holdS, "wait for a group"),
    piece("queue", queueS),
    piece("prefill", prefillS),
    piece("decode", decodeS),
    piece("gateway", serverS - serverFirstS - decodeS),
    piece("network", totalS - serverS - wayInS),
  ];
}

const piece = (kind, s, name = kind) => ({ kind, name, s: Math.max(0, s) });

/** Return what is told of each kind: the sum of its pieces. */
function sums(all) {
  const found = new Map();
  for (const { kind, name, s } of all) found.set(kind, { kind, name, s: s + (found.get(kind)?.s ?? 0) });
  return [...found.values()].filter(({ kind, s }) => kind !== "hold" || s > 0);
}

/** Return an element that shows an answer's times. */
export function timeBar(answer) {
  const all = pieces(answer);
  const shown = sums(all);
  const bar = make("div", { className: "timebar", role: "img", "aria-label": shown.map((part) => `${part.name} ${seconds(part.s)}`).join(", ") });
  for (const part of all.filter(({ s }) => s > 0)) {
    const element = make("span", { className: `piece ${part.kind}` });
    element.style.flexGrow = String(part.s);
    bar.append(element);
  }
  const legend = make("dl", { className: "parts" });
  for (const part of shown) {
    legend.append(make("div", {}, make("dt", {}, make("span", { className: `dot ${part.kind}`, "aria-hidden": "true" }), part.name), make("dd", { text: seconds(part.s) })));
  }
  return make("div", { className: "times" }, make("p", { className: "facts note", text: facts(answer) }), bar, arrivals(answer), legend);
}

/** A tick for each piece of text that arrived; a pause is a gap. */
function arrivals(answer) {
  const canvas = make("canvas", { className: "arrivals", "aria-hidden": "true" });
  const draw = () => {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = getComputedStyle(canvas).color;
    const totalS = answer.endS ?? answer.arrivals.at(-1) ?? 1;
    for (const at of answer.arrivals) pen.fillRect(Math.min(width - 1, (at / totalS) * width), 0, 1, height);
  };
  new ResizeObserver(draw).observe(canvas);
  return canvas;
}

function facts(answer) {
  const { usage, timings } = answer;
  const words = [`first token ${seconds(answer.firstS)}`];
  const numTokens = usage?.completion_tokens ?? answer.arrivals.length;
  const decodedS = (answer.arrivals.at(-1) ?? 0) - (answer.firstS ?? 0);
  if (numTokens > 1 && decodedS > 0) words.push(`${rate((numTokens - 1) / decodedS)} tokens/s`);
  words.push(several(numTokens, "token"));
  if (usage) words.push(`prompt ${usage.prompt_tokens}`);
  words.push(`${seconds(answer.endS)} in all`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) words.push(`${cached} cached`);
  if (timings?.resumes) words.push(several(timings.resumes, "resume"));
  return words.join(" · ");
}
