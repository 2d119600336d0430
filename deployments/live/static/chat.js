// One streamed chat completion, and when each piece of it came.

import { askForKey, forgetKey, hasKey, keyHeaders } from "./key.js";

export class ChatError extends Error {}

/** The answer as far as it came. Times are seconds since the request was sent, by this browser's clock. */
export class Answer {
  text = "";
  arrivals = [];
  endS = null;
  usage = null;
  timings = null;
  finishReason = null;

  get firstS() {
    return this.arrivals[0] ?? null;
  }
}

/** Yield the same Answer again after each piece. Raises ChatError, or AbortError if `signal` says so. */
export async function* stream(request, signal) {
  const answer = new Answer();
  let startedMs = performance.now();
  let response = await send(request, true, signal);
  if (await isTimingsRefused(response)) {
    startedMs = performance.now();
    response = await send(request, false, signal);
  }
  if (response.status === 401) {
    const problem = hasKey() ? "The server does not know this key." : "";
    forgetKey();
    await askForKey(problem);
    startedMs = performance.now();
    response = await send(request, true, signal);
  }
  if (!response.ok) throw new ChatError(await problemOf(response));
  for await (const data of events(response.body)) {
    const now = (performance.now() - startedMs) / 1000;
    if (data === "[DONE]") {
      answer.endS = now;
      yield answer;
      return;
    }
    take(answer, JSON.parse(data), now);
    yield answer;
  }
  throw new ChatError("the connection ended before the answer did");
}

function send(request, includeTimings, signal) {
  const options = { include_usage: true, ...(includeTimings ? { include_timings: true } : {}) };
  return fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...keyHeaders() },
    body: JSON.stringify({ ...request, stream: true, stream_options: options }),
    signal,
  });
}

/** A server that knows no timings says so; the answer then has the times that this browser measures. */
async function isTimingsRefused(response) {
  if (response.status !== 400) return false;
  return (await problemOf(response.clone())).includes("include_timings");
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answers with status ${response.status}`;
}

function take(answer, chunk, now) {
  if (chunk.error) throw new ChatError(chunk.error.message);
  const [choice] = chunk.choices ?? [];
  if (choice?.delta?.content) {
    answer.text += choice.delta.content;
    answer.arrivals.push(now);
  }
  answer.finishReason = choice?.finish_reason ?? answer.finishReason;
  answer.usage = chunk.usage ?? answer.usage;
  answer.timings = chunk.timings ?? answer.timings;
}

/** Yield the data of each server-sent event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (unread + value).split("\n\n");
    unread = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
