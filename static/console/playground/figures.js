// What is told of an answer: estimates while it is written, the server's own counts at its end.
// Times are milliseconds of performance.now(), seen from this page.

export function liveFigures({ sentAt, firstAt, nDeltas, nPrompt }, now) {
  const figures = { isLive: true, n_prompt: nPrompt, elapsed_s: (now - sentAt) / 1000 };
  if (firstAt) {
    figures.ttft_ms = firstAt - sentAt;
    figures.n_completion = nDeltas; // a delta is nearly always one token
    figures.rate = rate(nDeltas, now - firstAt);
  }
  return figures;
}

export function finalFigures({ sentAt, firstAt }, { finish, usage, now }) {
  const figures = {
    finish,
    n_completion: usage.completion_tokens,
    n_prompt: usage.prompt_tokens,
    n_cached: usage.prompt_tokens_details?.cached_tokens,
  };
  if (firstAt) {
    figures.ttft_ms = firstAt - sentAt;
    figures.rate = rate(usage.completion_tokens, now - firstAt);
  }
  return figures;
}

// The first token's time is the prompt's; the rate is that of the others.
function rate(nTokens, elapsedMs) {
  return nTokens > 1 && elapsedMs > 0 ? ((nTokens - 1) * 1000) / elapsedMs : 0;
}
