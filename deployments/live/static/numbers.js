// The four plots.

import { rate, seconds } from "./format.js";
import { Cursor, Plot } from "./plot.js";

const QUANTILES = [
  { name: "p50", colour: "--line-a", width: 2 },
  { name: "p95", colour: "--line-b", width: 1.5 },
  { name: "p99", colour: "--line-c", width: 1.5, dash: [2, 3] },
];

/** A latency of one second is that of what ended in the seconds before it too, or few requests would make noise. */
const windowOf = (span) => (span > 120 ? 30 : 10);

export class Numbers {
  constructor(place, timeline) {
    this.timeline = timeline;
    const cursor = new Cursor();
    this.firstToken = new Plot(
      { title: "Time to first token", note: "", lines: QUANTILES, scale: "log", show: seconds },
      cursor,
    );
    this.nextToken = new Plot(
      { title: "Time between tokens", note: "", lines: QUANTILES, scale: "log", show: seconds },
      cursor,
    );
    const inOut = [
      { name: "out", colour: "--line-a", width: 2, fill: true },
      { name: "in", colour: "--line-warm", width: 1.5 },
    ];
    this.tokens = new Plot(
      { title: "Tokens per second", note: "all groups, over 3 s", lines: inOut, scale: "linear", show: rate },
      cursor,
    );
    const queue = [
      { name: "running", colour: "--line-a", width: 2, fill: true },
      { name: "waiting", colour: "--line-warm", width: 1.5 },
    ];
    this.queue = new Plot(
      { title: "Requests", note: "all groups", lines: queue, scale: "linear", show: rate },
      cursor,
    );
    place.append(this.firstToken.element, this.nextToken.element, this.tokens.element, this.queue.element);
  }

  /** Draw `span` seconds of one model, or of all if `model` is "". */
  draw(model, span) {
    const windowS = windowOf(span);
    const series = this.timeline.series(model, span, windowS);
    for (const [plot, values] of [[this.firstToken, series.firstToken], [this.nextToken, series.nextToken]]) {
      plot.setNote(`over ${windowS} s`);
      plot.update([0, 1, 2].map((index) => values.map((each) => each && each[index])), series.newest);
    }
    this.tokens.update([series.output, series.prompt], series.newest);
    this.queue.update([series.running, series.waiting], series.newest);
  }
}
