// One plot: lines over the last minutes on a canvas, its numbers above it, a cursor shared with the other plots.

import { make, setText } from "./dom.js";
import { ago } from "./format.js";

const HEIGHT = 132;
const TOP = 8, BOTTOM = 20, LEFT = 46, RIGHT = 6;

/** Which second all plots point at, as an offset from the newest; null: none. */
export class Cursor extends EventTarget {
  offset = null;

  point(offset) {
    if (offset === this.offset) return;
    this.offset = offset;
    this.dispatchEvent(new Event("change"));
  }
}

export class Plot {
  /**
   * `lines`: [{name, colour (a CSS custom property), dash, width, fill}]. `scale`: "log" or "linear". `show` writes a
   * value for people.
   */
  constructor({ title, note, lines, scale, show }, cursor) {
    Object.assign(this, { title, lines, scale, show, cursor });
    this.values = lines.map(() => []);
    this.newest = null;
    this.numbers = lines.map(() => make("dd", { text: "–" }));
    this.note = make("span", { className: "note", text: note });
    this.canvas = make("canvas", { tabindex: "0", role: "img" });
    this.element = make(
      "figure",
      { className: "panel plot" },
      make("figcaption", {}, make("h2", { text: title }), this.note),
      make("dl", { className: "readout" }, ...lines.map((line, index) => this.readout(line, index))),
      this.canvas,
    );
    this.listen();
  }

  /** Take new values, one array a line, the newest last; `newest` is their second. */
  update(values, newest) {
    this.values = values;
    this.newest = newest;
    this.draw();
  }

  setNote(text) {
    setText(this.note, text);
  }

  readout(line, index) {
    const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.borderTopColor = `var(${line.colour})`;
    swatch.style.borderTopStyle = line.dash ? "dotted" : "solid";
    swatch.style.borderTopWidth = `${Math.max(2, line.width)}px`;
    return make("div", {}, make("dt", {}, swatch, line.name), this.numbers[index]);
  }

  listen() {
    const { canvas, cursor } = this;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    cursor.addEventListener("change", () => this.draw());
    canvas.addEventListener("pointermove", (event) => cursor.point(this.offsetAt(event.offsetX)));
    canvas.addEventListener("pointerleave", () => cursor.point(null));
    canvas.addEventListener("blur", () => cursor.point(null));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (event.key === "Escape") cursor.point(null);
      if (!step) return;
      event.preventDefault();
      cursor.point(Math.min(this.span - 1, Math.max(0, (cursor.offset ?? 0) + step)));
    });
  }

  get span() {
    return Math.max(2, this.values[0].length);
  }

  offsetAt(x) {
    const share = (x - LEFT) / (this.canvas.clientWidth - LEFT - RIGHT);
    return Math.round((1 - Math.min(1, Math.max(0, share))) * (this.span - 1));
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(HEIGHT * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.font = `11px ${style.fontFamily}`;
    const axis = this.scale === "log" ? logAxis(this.values) : linearAxis(this.values);
    const x = (index) => LEFT + (index / (this.span - 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - axis.place(value)) * (HEIGHT - TOP - BOTTOM);
    this.drawFrame(pen, colour, width, axis, y);
    if (this.isEmpty()) this.drawEmpty(pen, colour, width);
    for (const [index, line] of [...this.lines.entries()].reverse()) this.drawLine(pen, line, index, colour, x, y);
    this.drawCursor(pen, colour, x);
    this.write();
  }

  isEmpty() {
    return this.values.every((line) => line.every((value) => value === null));
  }

  drawFrame(pen, colour, width, axis, y) {
    pen.lineWidth = 1;
    pen.fillStyle = colour("--muted");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const tick of axis.ticks) {
      const at = Math.round(y(tick)) + 0.5;
      pen.strokeStyle = colour("--hairline");
      pen.beginPath();
      pen.moveTo(LEFT, at);
      pen.lineTo(width - RIGHT, at);
      pen.stroke();
      pen.fillText(round(this.show(tick)), LEFT - 6, at);
    }
    pen.textBaseline = "alphabetic";
    const minutes = this.span / 60;
    const marks = [...Array(5).keys()].map((index) => index / 4);
    for (const share of marks) {
      pen.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
      const words = share === 1 ? "now" : `−${timeWords((1 - share) * minutes)}`;
      if (width < 300 && share % 0.5) continue;
      pen.fillText(words, LEFT + share * (width - LEFT - RIGHT), HEIGHT - 4);
    }
  }

  drawEmpty(pen, colour, width) {
    pen.fillStyle = colour("--muted");
    pen.textAlign = "center";
    pen.fillText("nothing in this time", LEFT + (width - LEFT - RIGHT) / 2, TOP + (HEIGHT - TOP - BOTTOM) / 2);
  }

  drawLine(pen, line, index, colour, x, y) {
    const values = this.values[index];
    pen.strokeStyle = pen.fillStyle = colour(line.colour);
    pen.lineWidth = line.width;
    pen.lineJoin = "round";
    pen.setLineDash(line.dash ?? []);
    for (const [from, to] of runs(values)) {
      pen.beginPath();
      for (let i = from; i < to; i += 1) pen.lineTo(x(i), y(values[i]));
      if (to - from === 1) pen.lineTo(x(from) + 1.5, y(values[from]));
      pen.stroke();
      if (line.fill) {
        pen.lineTo(x(to - 1), y(0));
        pen.lineTo(x(from), y(0));
        pen.globalAlpha = 0.1;
        pen.fill();
        pen.globalAlpha = 1;
      }
    }
    pen.setLineDash([]);
  }

  drawCursor(pen, colour, x) {
    const { offset } = this.cursor;
    if (offset === null || offset >= this.span) return;
    const at = Math.round(x(this.span - 1 - offset)) + 0.5;
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(at, TOP);
    pen.lineTo(at, HEIGHT - BOTTOM);
    pen.stroke();
  }

  /** Write the numbers at the cursor, or the newest. */
  write() {
    const offset = this.cursor.offset ?? 0;
    const words = this.values.map((line) => this.show(line[line.length - 1 - offset] ?? null));
    words.forEach((word, index) => setText(this.numbers[index], word));
    const when = this.cursor.offset === null ? "now" : ago(offset);
    const said = this.lines.map((line, index) => `${line.name} ${words[index]}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.title}, ${when}: ${said}. Arrow keys move back in time.`);
    this.element.dataset.when = this.cursor.offset === null ? "" : when;
  }
}

/** Yield [from, to) of each stretch without gaps. */
function* runs(values) {
  let from = null;
  for (let i = 0; i <= values.length; i += 1) {
    const isKnown = i < values.length && values[i] !== null;
    if (isKnown && from === null) from = i;
    if (!isKnown && from !== null) {
      yield [from, i];
      from = null;
    }
  }
}

/** "10.0 ms" -> "10 ms". */
const round = (words) => words.replace(/\.0+(?=\s|$)/, "");

function timeWords(minutes) {
  return minutes < 1 ? `${Math.round(60 * minutes)} s` : `${Number(minutes.toFixed(1))} min`;
}

function linearAxis(values) {
  const most = Math.max(1, ...values.flat());
  const power = 10 ** Math.floor(Math.log10(most / 2));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => most / each <= 4);
  const top = Math.max(1, Math.ceil(most / step)) * step;
  const ticks = [];
  for (let tick = 0; tick <= top + step / 2; tick += Math.max(step, 1)) ticks.push(tick);
  return { ticks, place: (value) => value / top };
}

/** At least a decade, so that noise does not look like change. */
function logAxis(values) {
  const known = values.flat().filter((value) => value !== null);
  const least = known.length ? Math.min(...known) : 0.01;
  const most = known.length ? Math.max(...known) : 0.1;
  let low = Math.floor(2 * Math.log10(least)) / 2;
  let high = Math.ceil(2 * Math.log10(most * 1.05)) / 2;
  if (high - low < 1) [low, high] = [Math.floor(low), Math.floor(low) + Math.max(1, Math.ceil(high - Math.floor(low)))];
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const digit of high - low < 2.5 ? [1, 3] : [1]) {
      const tick = digit * 10 ** power;
      if (Math.log10(tick) >= low - 1e-9 && Math.log10(tick) <= high + 1e-9) ticks.push(tick);
    }
  }
  return { ticks, place: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) };
}
