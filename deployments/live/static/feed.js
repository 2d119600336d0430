// Asks the gateway, about once a second, what is new, and says how that goes. A tab that nobody sees does not ask.

import { askForKey, forgetKey, hasKey, keyHeaders } from "./key.js";

const PERIOD_MS = 1000;
const PATIENCE_MS = 6000;
const LONGEST_PAUSE_MS = 5000;
/** With several gateway copies each of them is to be heard about once a second; any of them may answer. */
const MOST_PER_SECOND = 4;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Feed {
  /** `onAnswer(answer)` takes each answer; `onState(state, words)`: live, refused, gone, locked. */
  constructor(timeline, onAnswer, onState) {
    this.timeline = timeline;
    this.onAnswer = onAnswer;
    this.onState = onState;
    this.viewer = crypto.getRandomValues(new Uint32Array(4)).join("").slice(0, 32);
    this.numFailures = 0;
    this.goneSince = null;
  }

  async run() {
    for (;;) {
      if (document.hidden) await seen();
      const startedMs = performance.now();
      const pauseMs = await this.ask();
      await pause(Math.max(100, pauseMs - (performance.now() - startedMs)));
    }
  }

  /** Ask once; return how long to wait from the time of asking. */
  async ask() {
    let answer;
    try {
      const query = new URLSearchParams({ viewer: this.viewer, seen: this.timeline.seen() });
      const response = await fetch(`live/feed?${query}`, {
        headers: keyHeaders(),
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
      if (!response.ok) return await this.refused(response);
      answer = await response.json();
    } catch {
      return this.gone();
    }
    this.numFailures = 0;
    this.goneSince = null;
    this.onState("live", "live");
    this.onAnswer(answer);
    return PERIOD_MS / Math.min(MOST_PER_SECOND, Math.max(1, this.timeline.numCopies));
  }

  async refused(response) {
    if (response.status === 401) {
      const problem = hasKey() ? "The server does not know this key." : "";
      forgetKey();
      this.onState("locked", "waiting for a key");
      await askForKey(problem);
      return 0;
    }
    if (response.status >= 500 && response.status !== 503) return this.gone();
    const error = await response.json().then((body) => body.error?.message, () => null);
    this.onState("refused", error ?? `the server answers with status ${response.status}`);
    return 1000 * (Number(response.headers.get("retry-after")) || 2);
  }

  gone() {
    this.numFailures += 1;
    this.goneSince ??= Date.now();
    const since = Math.round((Date.now() - this.goneSince) / 1000);
    this.onState("gone", `server gone for ${since} s, trying again`);
    return Math.min(LONGEST_PAUSE_MS, PERIOD_MS * this.numFailures);
  }
}

/** Return once the tab is looked at. */
function seen() {
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
  });
}
