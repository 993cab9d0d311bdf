// The playground page: joins the socket, the conversation and the elements.

import { Conversation, SettingsStore, fail } from "./conversation.js";
import { finalFigures, liveFigures } from "./figures.js";
import { Settings } from "./settings.js";
import { listenToSnippets, requestBody } from "./snippets.js";
import { CLOSE_UNAUTHENTICATED, StreamSocket } from "./socket.js";
import { tellRating } from "./thumbs.js";
import { Transcript } from "./transcript.js";

const page = JSON.parse(document.getElementById("playground-data").textContent);
const byId = (id) => document.getElementById(`pg-${id}`);

const LIVE_FIGURES_EVERY_MS = 250;
const MODELS_EVERY_MS = 10_000;

class Playground {
  #conversation = new Conversation(page.owner);
  #models = page.models;
  #live = null; // {id, turn, timer, sentAt, firstAt, nDeltas, nPrompt}
  #nextId = 1;

  constructor() {
    this.composer = byId("input");
    this.settings = new Settings({
      form: byId("settings"),
      picker: byId("model"),
      store: new SettingsStore(page.owner),
      onChange: () => this.#refresh(),
    });
    this.transcript = new Transcript({
      list: byId("turns"),
      scroller: byId("scroller"),
      jump: byId("jump"),
      ledgerUrl: page.ledger_url,
      onRetry: () => this.#retry(),
      onRate: (turn, rating) => this.#rate(turn, rating),
    });
    this.settings.offer(this.#models);
    this.transcript.show(this.#conversation.turns);
    this.socket = new StreamSocket(new URL(page.stream_path, location.href.replace(/^http/, "ws")), {
      onState: (state, detail) => this.#connection(state, detail),
      onFrame: (frame) => this.#frame(frame),
    });
    this.#listen();
    this.#refresh();
    this.socket.connect();
    setInterval(() => this.#pollModels(), MODELS_EVERY_MS);
  }

  #listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.composer.addEventListener("keydown", (event) => {
      // isComposing: Enter then chooses a word in an input method, it does not send.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    this.composer.addEventListener("input", () => {
      this.#grow();
      this.#refresh();
    });
    byId("app").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#live) this.#stop();
    });
    byId("stop").addEventListener("click", () => this.#stop());
    byId("new").addEventListener("click", () => this.#newChat());
    byId("reconnect").addEventListener("click", () => this.socket.retryNow());
    for (const idea of document.querySelectorAll(".pg-idea")) {
      idea.addEventListener("click", () => {
        this.composer.value = idea.dataset.prompt;
        this.#grow();
        this.#send();
      });
    }
    byId("settings-toggle").addEventListener("click", () => this.#toggleSettings());
    byId("settings-close").addEventListener("click", () => this.#toggleSettings(false));
    listenToSnippets({
      dialog: byId("snippets"),
      open: byId("code"),
      code: byId("snippet"),
      copy: byId("snippet-copy"),
      close: byId("snippets-close"),
      request: () => this.#snippetBody(),
      baseUrl: new URL(page.api_path, location.href).href,
    });
    window.addEventListener("pagehide", () => this.#conversation.save());
  }

  // Sending

  #canSend() {
    return this.socket.isReady && !this.#live && this.#models.length > 0;
  }

  #send() {
    const text = this.composer.value.trim();
    if (!text || !this.#canSend()) return;
    this.composer.value = "";
    this.#grow();
    const turn = this.#conversation.ask(text);
    this.transcript.add(this.#conversation.turns.at(-2));
    this.#start(turn);
  }

  // What would be sent now; an empty chat still makes a request that can be pasted.
  #snippetBody() {
    const settings = this.settings.values;
    const messages = this.#conversation.messages(settings.system);
    if (messages.at(-1)?.role !== "user") {
      messages.push({ role: "user", content: this.composer.value.trim() || "Say hello." });
    }
    return requestBody(settings, messages);
  }

  #retry() {
    if (!this.#canSend()) return;
    const old = this.#conversation.turns.at(-1);
    const turn = this.#conversation.retry();
    if (!turn) return;
    this.transcript.remove(old);
    this.#start(turn);
  }

  // Returns what went wrong, or null.
  async #rate(turn, rating) {
    const problem = await tellRating({
      url: page.feedback_url,
      token: page.csrf_token,
      requestId: turn.request_id,
      rating,
    });
    if (problem) return problem;
    turn.rating = rating;
    this.#conversation.save();
    this.#say(`Marked as a ${rating === "up" ? "good" : "bad"} answer.`);
    return null;
  }

  #start(turn) {
    const settings = this.settings.values;
    const id = `c${this.#nextId++}`;
    turn.model = settings.model;
    this.#live = { id, turn, sentAt: performance.now(), firstAt: 0, nDeltas: 0 };
    this.#live.timer = setInterval(() => this.#liveFigures(), LIVE_FIGURES_EVERY_MS);
    const body = requestBody(settings, this.#conversation.messages(settings.system));
    this.socket.send({ type: "start", id, ...body });
    this.transcript.add(turn);
    this.transcript.follow();
    this.#say("Writing an answer.");
    this.#refresh();
    if (document.activeElement === document.body) byId("stop").focus();
  }

  #stop() {
    if (!this.#live) return;
    this.socket.send({ type: "cancel", id: this.#live.id });
    // A button that is switched off gives its focus to nobody.
    if (document.activeElement === byId("stop")) this.#focusComposer();
    byId("stop").disabled = true;
  }

  #newChat() {
    if (this.#live) this.socket.send({ type: "cancel", id: this.#live.id });
    this.#endLive();
    this.#conversation.clear();
    this.transcript.show([]);
    this.#refresh();
    this.#focusComposer();
  }

  // Frames

  #frame(frame) {
    const live = this.#live;
    if (frame.type === "error" && frame.id === null) this.#notice(frame.error.message);
    if (!live || frame.id !== live.id) return;
    if (frame.type === "started") {
      live.turn.request_id = frame.request_id;
      live.nPrompt = frame.n_prompt_tokens;
    } else if (frame.type === "delta") {
      live.firstAt ||= performance.now();
      live.nDeltas += 1;
      live.turn.text += frame.text;
      this.transcript.update(live.turn);
    } else if (frame.type === "finished") {
      this.#finished(frame);
    } else if (frame.type === "error") {
      this.#failed(frame.error);
    }
  }

  #liveFigures() {
    const { turn } = this.#live;
    turn.figures = liveFigures(this.#live, performance.now());
    this.transcript.update(turn);
  }

  #finished({ finish_reason: finish, usage }) {
    const { turn } = this.#live;
    turn.state = "done";
    turn.figures = finalFigures(this.#live, { finish, usage, now: performance.now() });
    this.#settle(turn);
    const end = finish === "cancelled" ? "stopped" : "finished";
    this.#say(`Answer ${end}, ${usage.completion_tokens} tokens.`);
  }

  #failed(error) {
    const { turn } = this.#live;
    fail(turn, error);
    this.#settle(turn);
  }

  #settle(turn) {
    this.#endLive();
    this.transcript.update(turn);
    this.#conversation.save();
    const hadFocus = document.activeElement === byId("stop");
    this.#refresh();
    if (hadFocus) this.#focusComposer();
  }

  #endLive() {
    if (this.#live) clearInterval(this.#live.timer);
    this.#live = null;
  }

  // Connection and models

  #connection(state, detail) {
    if (state !== "ready" && state !== "connecting" && this.#live) {
      const lost = "The connection was lost while this answer was being written.";
      this.#failed({ message: detail.message || lost });
    }
    const words = {
      connecting: "Connecting…",
      ready: "Connected",
      waiting: "Reconnecting…",
      refused: "Not connected",
    };
    byId("connection").dataset.state = state;
    byId("connection-text").textContent = words[state];
    byId("connection").title = state === "ready" ? `Tenant: ${detail.tenant}` : "";
    this.#notice(detail.message);
    byId("reconnect").hidden = state !== "waiting";
    byId("sign-in").hidden = state !== "refused" || detail.code !== CLOSE_UNAUTHENTICATED;
    if (state === "ready") this.#pollModels();
    this.#refresh();
  }

  async #pollModels() {
    if (document.hidden || this.#live) return;
    try {
      const answer = await fetch(page.models_url, { headers: { Accept: "application/json" } });
      if (answer.redirected) this.socket.refuse(); // to the login page
      if (!answer.ok || answer.redirected) return;
      this.#models = (await answer.json()).models;
    } catch {
      return; // The connection pill already tells that the server is away.
    }
    this.settings.offer(this.#models);
    this.#refresh();
  }

  // The page as a whole

  #refresh() {
    const isEmpty = this.#conversation.turns.length === 0;
    const isLive = this.#live !== null;
    const model = this.#models.find(({ name }) => name === this.settings.values.model);
    byId("welcome").hidden = !isEmpty;
    byId("ideas").hidden = !model;
    byId("no-models").hidden = this.#models.length > 0;
    byId("not-ready").hidden = !model || model.is_ready;
    byId("limit").textContent = model ? `of ${model.context_length}` : "";
    byId("new").disabled = isEmpty;
    byId("send").hidden = isLive;
    byId("send").disabled = !this.#canSend() || !this.composer.value.trim();
    byId("stop").hidden = !isLive;
    if (!isLive) byId("stop").disabled = false;
    byId("app").classList.toggle("pg-live", isLive);
  }

  #notice(text) {
    byId("notice").hidden = !text;
    byId("notice-text").textContent = text ?? "";
  }

  #say(text) {
    byId("status").textContent = text;
  }

  // On a touch screen this would raise the keyboard over the answer.
  #focusComposer() {
    if (!matchMedia("(pointer: coarse)").matches) this.composer.focus();
  }

  #grow() {
    this.composer.style.height = "auto";
    this.composer.style.height = `${this.composer.scrollHeight + 2}px`;
  }

  #toggleSettings(isOpen) {
    const open = byId("app").classList.toggle("pg-settings-open", isOpen);
    byId("settings-toggle").setAttribute("aria-expanded", String(open));
    (open ? byId("settings-close") : byId("settings-toggle")).focus();
  }
}

new Playground();
