// Where the time of one answer went: a bar of its parts in their order, and a tick for each arrival on the same scale.

import { make } from "./dom.js";
import { rate, seconds, several } from "./format.js";

/** Return the parts of an answer's time, which add up to all of it. */
export function parts(answer) {
  const totalS = answer.endS ?? answer.arrivals.at(-1) ?? 0;
  const timings = answer.timings;
  if (!timings) {
    const firstS = answer.firstS ?? totalS;
    return [
      { name: "to first token", kind: "before", s: firstS },
      { name: "after it", kind: "decode", s: Math.max(0, totalS - firstS) },
    ];
  }
  const { queue_s: queueS = 0, prefill_s: prefillS = 0, decode_s: decodeS = 0, hold_s: holdS = 0 } = timings;
  const groupS = queueS + prefillS + decodeS;
  const serverS = timings.total_s ?? holdS + groupS;
  return [
    { name: "network", kind: "network", s: Math.max(0, totalS - serverS) },
    { name: "gateway", kind: "gateway", s: Math.max(0, serverS - holdS - groupS) },
    ...(holdS > 0.0005 ? [{ name: "wait for a group", kind: "hold", s: holdS }] : []),
    { name: "queue", kind: "queue", s: queueS },
    { name: "prefill", kind: "prefill", s: prefillS },
    { name: "decode", kind: "decode", s: decodeS },
  ];
}

/** Return an element that shows an answer's times. */
export function timeBar(answer) {
  const shown = parts(answer);
  const bar = make("div", { className: "timebar", role: "img", "aria-label": shown.map((part) => `${part.name} ${seconds(part.s)}`).join(", ") });
  for (const part of shown) {
    const piece = make("span", { className: `piece ${part.kind}` });
    piece.style.flexGrow = String(part.s);
    bar.append(piece);
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
