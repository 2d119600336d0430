// Talks to a model and shows where the time of each answer went.

import { ChatError, stream } from "./chat.js";
import { byId, make, setOptions, setText } from "./dom.js";
import { timeBar } from "./timebar.js";

export class Playground {
  constructor() {
    this.form = byId("ask");
    this.talk = byId("talk");
    this.messages = [];
    this.stopping = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.form.elements.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.stopping?.abort());
    byId("clear").addEventListener("click", () => this.clear());
  }

  /** Offer these models. */
  offer(names) {
    setOptions(byId("ask-model"), names);
  }

  clear() {
    this.stopping?.abort();
    this.messages = [];
    this.talk.replaceChildren();
  }

  async ask() {
    const text = this.form.elements.text.value.trim();
    if (!text || this.stopping) return;
    const mine = { role: "user", content: text };
    const request = this.request([...this.messages, mine]);
    this.form.elements.text.value = "";
    this.talk.append(make("p", { className: "said user", text }));
    const reply = make("div", { className: "said model" });
    const words = make("p", { className: "text" });
    reply.append(words);
    this.talk.append(reply);
    this.busy(true);
    const answer = await this.run(request, words, reply);
    this.busy(false);
    // A question without an answer is not part of the conversation.
    if (answer?.text) this.messages.push(mine, { role: "assistant", content: answer.text });
  }

  request(messages) {
    const { model, temperature, max_tokens: maxTokens, seed, system } = this.form.elements;
    const head = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
    const request = { model: model.value, messages: [...head, ...messages] };
    if (temperature.value !== "") request.temperature = Number(temperature.value);
    if (maxTokens.value !== "") request.max_tokens = Number(maxTokens.value);
    if (seed.value !== "") request.seed = Number(seed.value);
    return request;
  }

  /** Stream the answer into `words`; return it as far as it came. */
  async run(request, words, reply) {
    let answer = null;
    let ending = "answered";
    reply.classList.add("streaming");
    try {
      for await (answer of stream(request, this.stopping.signal)) {
        const isAtEnd = this.talk.scrollHeight - this.talk.scrollTop - this.talk.clientHeight < 40;
        if (words.textContent !== answer.text) words.textContent = answer.text;
        if (isAtEnd) this.talk.scrollTop = this.talk.scrollHeight;
      }
    } catch (error) {
      ending = this.stopping.signal.aborted ? "stopped" : problem(error);
      if (ending !== "stopped" || !answer?.text) reply.append(make("p", { className: "problem", text: ending }));
    } finally {
      reply.classList.remove("streaming");
    }
    if (answer?.arrivals.length) {
      answer.endS ??= answer.arrivals.at(-1);
      if (ending === "stopped") reply.append(make("p", { className: "note", text: "stopped" }));
      reply.append(timeBar(answer));
      this.talk.scrollTop = this.talk.scrollHeight;
    }
    setText(byId("ask-status"), ending);
    return answer;
  }

  busy(isBusy) {
    this.stopping = isBusy ? new AbortController() : null;
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    (isBusy ? byId("stop") : this.form.elements.text).focus({ preventScroll: true });
  }
}

function problem(error) {
  return error instanceof ChatError ? error.message : "the server cannot be reached";
}
