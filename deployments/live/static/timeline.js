// Ten minutes, second by second, put together from what each gateway copy kept.
//
// Every copy knows the load of all groups, so load is taken from any of them. Latencies are those of the requests that
// came to the copy, so those of all copies are added up.

const KEPT_SECONDS = 600;
/** A copy that has not answered for so long is not waited for. */
const SILENT_MS = 8000;

const RUNNING = 0, WAITING = 1, PROMPT = 2, OUTPUT = 3, FIRST = 5, NEXT = 6;

export class Timeline {
  constructor() {
    this.copies = new Map();
    this.scale = { first_s: 1e-4, per_octave: 12 };
  }

  /** Copies that answered lately. */
  get numCopies() {
    return this.liveCopies().length;
  }

  /** The latest second that is known of every copy; null before there is any. */
  get newest() {
    const lasts = this.liveCopies().map((copy) => copy.last);
    return lasts.length ? Math.min(...lasts) || null : null;
  }

  /** Up to where each copy's history is here, as the feed wants to hear it. */
  seen() {
    return [...this.copies].slice(-64).map(([name, copy]) => `${name}:${copy.last}`).join(",");
  }

  add(answer) {
    this.scale = answer.scale;
    const copy = this.copies.get(answer.copy) ?? { last: 0, seconds: new Map() };
    this.copies.set(answer.copy, copy);
    copy.heardMs = performance.now();
    copy.answer = answer;
    for (const [second, models] of answer.seconds) {
      copy.seconds.set(second, models);
      copy.last = Math.max(copy.last, second);
    }
    this.forget();
  }

  /** Add up a field of the latest answer of every live copy. */
  sum(field) {
    return this.liveCopies().reduce((total, copy) => total + field(copy.answer), 0);
  }

  /** Return series of `span` seconds up to the newest, oldest first; null where nothing is known. */
  series(model, span, windowS) {
    const newest = this.newest;
    const seconds = Array.from({ length: span }, (_, index) => (newest ?? 0) - span + 1 + index);
    const load = seconds.map((second) => this.loadAt(second, model));
    const column = (index) => load.map((row) => (row ? row[index] : null));
    return {
      newest,
      running: column(RUNNING),
      waiting: column(WAITING),
      prompt: smooth(column(PROMPT)),
      output: smooth(column(OUTPUT)),
      firstToken: this.quantiles(seconds, model, FIRST, windowS),
      nextToken: this.quantiles(seconds, model, NEXT, windowS),
    };
  }

  liveCopies() {
    const now = performance.now();
    const heard = [...this.copies.values()];
    const live = heard.filter((copy) => now - copy.heardMs < SILENT_MS);
    // When nobody answers the latest picture stays as it was.
    return live.length ? live : heard.slice(-1);
  }

  forget() {
    const oldest = Math.max(...[...this.copies.values()].map((copy) => copy.last)) - KEPT_SECONDS;
    for (const [name, copy] of this.copies) {
      for (const second of copy.seconds.keys()) {
        if (second > oldest) break;
        copy.seconds.delete(second);
      }
      if (!copy.seconds.size && performance.now() - copy.heardMs > SILENT_MS) this.copies.delete(name);
    }
  }

  /** One second's load, of one model or (model "") of all. */
  loadAt(second, model) {
    for (const copy of this.copies.values()) {
      const models = copy.seconds.get(second);
      if (!models) continue;
      const rows = model ? [models[model]].filter(Boolean) : Object.values(models);
      return [RUNNING, WAITING, PROMPT, OUTPUT].map((index) => rows.reduce((sum, row) => sum + row[index], 0));
    }
    return null;
  }

  bucketsAt(second, model, field) {
    const found = [];
    for (const copy of this.copies.values()) {
      const models = copy.seconds.get(second);
      if (!models) continue;
      for (const row of model ? [models[model]] : Object.values(models)) if (row) found.push(row[field]);
    }
    return found;
  }

  /** p50, p95 and p99 of what ended in the `windowS` seconds up to each second. */
  quantiles(seconds, model, field, windowS) {
    const counts = new Float64Array(280);
    let total = 0;
    const change = (second, sign) => {
      for (const pairs of this.bucketsAt(second, model, field)) {
        for (let i = 0; i < pairs.length; i += 2) {
          counts[pairs[i]] += sign * pairs[i + 1];
          total += sign * pairs[i + 1];
        }
      }
    };
    for (let back = windowS - 1; back > 0; back -= 1) change(seconds[0] - back, 1);
    return seconds.map((second) => {
      change(second, 1);
      const found = total > 0 ? this.readQuantiles(counts, total) : null;
      change(second - windowS + 1, -1);
      return found;
    });
  }

  readQuantiles(counts, total) {
    const found = [];
    let sum = 0;
    for (let bucket = 0; bucket < counts.length && found.length < 3; bucket += 1) {
      sum += counts[bucket];
      while (found.length < 3 && sum >= [0.5, 0.95, 0.99][found.length] * total - 1e-9) {
        found.push(this.scale.first_s * 2 ** (bucket / this.scale.per_octave));
      }
    }
    return found;
  }
}

/** Groups report a few times a second, not on its stroke: rates are means over three seconds. */
function smooth(values) {
  return values.map((value, index) => {
    const known = values.slice(Math.max(0, index - 2), index + 1).filter((each) => each !== null);
    return value === null ? null : known.reduce((sum, each) => sum + each, 0) / known.length;
  });
}
