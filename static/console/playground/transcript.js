// Turns as elements. It draws what it is told and reports which button was pressed.

import { copyText } from "./clipboard.js";
import { renderMarkdown } from "./markdown.js";
import { Thumbs } from "./thumbs.js";

const FINISH_WORDS = {
  stop: "Complete",
  length: "Cut at max tokens",
  cancelled: "Stopped by you",
};

export class Transcript {
  #list;
  #scroller;
  #onRetry;
  #onRate;
  #ledgerUrl;
  #views = new Map();
  #frame = 0;
  #dirty = new Set();
  #follows = true;

  constructor({ list, scroller, jump, ledgerUrl, onRetry, onRate }) {
    this.#list = list;
    this.#scroller = scroller;
    this.#ledgerUrl = ledgerUrl;
    this.#onRetry = onRetry;
    this.#onRate = onRate;
    scroller.addEventListener("scroll", () => {
      const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
      this.#follows = left < 48;
      jump.hidden = this.#follows;
    });
    jump.addEventListener("click", () => this.follow());
  }

  show(turns) {
    this.#views.clear();
    this.#list.replaceChildren();
    for (const turn of turns) this.add(turn);
    this.follow();
  }

  add(turn) {
    const view = turn.role === "user" ? userView(turn) : this.#assistantView(turn);
    this.#views.set(turn, view);
    this.#list.append(view.root);
    if (turn.role === "assistant") this.#draw(turn);
    this.#markLast();
  }

  remove(turn) {
    this.#views.get(turn)?.root.remove();
    this.#views.delete(turn);
  }

  // Deltas may come faster than the screen is painted: draw once a frame at most.
  update(turn) {
    this.#dirty.add(turn);
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      for (const dirty of this.#dirty) this.#draw(dirty);
      this.#dirty.clear();
      if (this.#follows) this.#toEnd();
    });
  }

  follow() {
    this.#follows = true;
    this.#toEnd();
  }

  #toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #markLast() {
    for (const { root } of this.#views.values()) root.classList.remove("pg-last");
    [...this.#views.values()].at(-1)?.root.classList.add("pg-last");
  }

  #assistantView(turn) {
    const root = make("li", "pg-turn pg-assistant");
    const avatar = make("span", "pg-avatar");
    avatar.append(icon("neurology"));
    const column = make("div", "pg-column");
    const name = make("p", "pg-name", turn.model || "Assistant");
    const body = make("div", "pg-body");
    const alert = make("div", "pg-error");
    alert.setAttribute("role", "alert");
    const foot = make("div", "pg-foot");
    const figures = make("ul", "pg-figures");
    figures.setAttribute("aria-label", "Figures of this answer");
    const actions = make("div", "pg-actions");
    const copy = button("content_copy", "Copy", (self) => copyText(turn.text, self));
    const thumbs = new Thumbs(turn, this.#onRate);
    actions.append(
      thumbs.root,
      copy,
      button("refresh", "Retry", () => this.#onRetry(), "pg-retry"),
    );
    foot.append(figures, actions);
    column.append(name, body, alert, foot);
    root.append(avatar, column);
    return { root, name, body, alert, foot, figures, actions, thumbs, copy };
  }

  #draw(turn) {
    const view = this.#views.get(turn);
    if (!view) return;
    const isStreaming = turn.state === "streaming";
    view.root.classList.toggle("pg-streaming", isStreaming);
    view.name.textContent = turn.model || "Assistant";
    view.body.setAttribute("aria-busy", String(isStreaming));
    if (isStreaming && !turn.text) {
      view.body.replaceChildren(waitingDots());
    } else {
      view.body.replaceChildren(renderMarkdown(turn.text));
      for (const code of view.body.querySelectorAll(".pg-code")) addCodeCopy(code);
    }
    drawError(view.alert, turn.error);
    drawFigures(view.figures, turn, this.#ledgerUrl);
    view.actions.hidden = isStreaming;
    view.copy.hidden = !turn.text;
    view.thumbs.draw();
  }
}

function userView(turn) {
  const root = make("li", "pg-turn pg-user");
  const bubble = make("div", "pg-bubble");
  bubble.append(make("span", "pg-sr", "You: "), document.createTextNode(turn.text));
  root.append(bubble);
  return { root };
}

function drawError(alert, error) {
  alert.hidden = !error;
  if (!error) return alert.replaceChildren();
  const text = make("div");
  text.append(make("p", "", error.message));
  const detail = [error.code, error.param && `field “${error.param}”`].filter(Boolean).join(" · ");
  if (detail) text.append(make("p", "pg-error-detail", detail));
  if (error.link) {
    const link = make("a", "", error.link.label);
    link.href = error.link.href;
    text.append(link);
  }
  return alert.replaceChildren(icon("error"), text);
}

function drawFigures(list, turn, ledgerUrl) {
  const rows = [];
  const { n_completion, n_prompt, n_cached, rate, ttft_ms, elapsed_s, finish, isLive } = turn.figures;
  const about = isLive ? "≈ " : "";
  if (n_completion !== undefined) {
    rows.push([`${about}${n_completion} token${n_completion === 1 ? "" : "s"}`, "Tokens of the answer"]);
  }
  if (rate) rows.push([`${about}${rate.toFixed(1)} tokens/s`, "Speed after the first token"]);
  if (ttft_ms !== undefined) {
    rows.push([`first token ${duration(ttft_ms)}`, "From sending to the first text, seen from this page"]);
  }
  if (elapsed_s !== undefined && isLive) rows.push([`${elapsed_s.toFixed(1)} s`, "Since sending"]);
  if (n_prompt !== undefined) {
    rows.push([`prompt ${n_prompt}${n_cached === undefined ? "" : `, ${n_cached} cached`}`,
      "Tokens of the prompt, and how many of them came from the prefix cache"]);
  }
  if (finish) rows.push([FINISH_WORDS[finish] ?? finish, `finish_reason: ${finish}`]);
  list.replaceChildren(...rows.map(([text, title]) => {
    const item = make("li", "", text);
    item.title = title;
    return item;
  }));
  if (turn.request_id && ledgerUrl && !isLive) {
    const item = make("li");
    const link = make("a", "", "Record");
    link.href = `${ledgerUrl}?q=${encodeURIComponent(turn.request_id)}`;
    link.title = `Usage record of ${turn.request_id}`;
    item.append(link);
    list.append(item);
  }
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function addCodeCopy(figure) {
  const code = figure.querySelector("code");
  figure.querySelector("figcaption").append(
    button("content_copy", "Copy code", (self) => copyText(code.textContent, self)),
  );
}

function waitingDots() {
  const dots = make("span", "pg-dots");
  dots.setAttribute("aria-hidden", "true");
  dots.append(make("i"), make("i"), make("i"));
  return dots;
}

function make(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function icon(name) {
  const node = make("span", "material-symbols-outlined pg-icon", name);
  node.setAttribute("aria-hidden", "true");
  return node;
}

function button(symbol, label, onClick, className = "") {
  const node = make("button", `pg-quiet ${className}`.trim());
  node.type = "button";
  node.append(icon(symbol), make("span", "pg-label", label));
  node.addEventListener("click", () => onClick(node));
  return node;
}
