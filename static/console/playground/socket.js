// One WebSocket to /v1/stream that heals itself. It knows frames and connection state, and nothing
// of chats or pages.

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 15_000;
// Longer than the server waits for a sign-in, so that its refusal comes first.
const READY_DEADLINE_MS = 15_000;
const PING_EVERY_MS = 20_000;
const PONG_DEADLINE_MS = 10_000;

const CLOSE_TOO_LARGE = 1009;
export const CLOSE_UNAUTHENTICATED = 4401;
// After these the same attempt would fail again, so a person has to act first.
const FINAL_CLOSES = new Map([
  [CLOSE_UNAUTHENTICATED, "Your session has ended. Sign in again to go on."],
  [4403, "The server refused this page's address. Open the console under its own host name."],
]);

export class StreamSocket {
  #url;
  #onState;
  #onFrame;
  #socket = null;
  #state = "closed";
  #attempt = 0;
  #refusal = "";
  #timers = { retry: 0, ready: 0, ping: 0, pong: 0 };

  // onState(state, detail): "connecting" | "ready" | "waiting" | "refused".
  // onFrame(frame): every frame but those of the connection's own upkeep.
  constructor(url, { onState, onFrame }) {
    this.#url = url;
    this.#onState = onState;
    this.#onFrame = onFrame;
    window.addEventListener("online", () => this.retryNow());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retryNow();
    });
  }

  get isReady() {
    return this.#state === "ready";
  }

  connect() {
    this.#clearTimers();
    this.#refusal = "";
    this.#enter("connecting");
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.addEventListener("message", (event) => {
      if (socket === this.#socket) this.#receive(event.data);
    });
    socket.addEventListener("close", (event) => {
      if (socket === this.#socket) this.#closed(event);
    });
    this.#timers.ready = setTimeout(() => this.#drop(), READY_DEADLINE_MS);
  }

  retryNow() {
    if (this.#state === "waiting") this.connect();
  }

  // The page learned elsewhere that nobody is signed in any more.
  refuse() {
    if (this.#state === "refused") return;
    const socket = this.#socket;
    this.#closed({ code: CLOSE_UNAUTHENTICATED });
    socket?.close();
  }

  send(frame) {
    if (!this.isReady) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  #receive(data) {
    const frame = JSON.parse(data);
    if (frame.type === "ready") {
      clearTimeout(this.#timers.ready);
      this.#attempt = 0;
      this.#timers.ping = setInterval(() => this.#ping(), PING_EVERY_MS);
      this.#enter("ready", { tenant: frame.tenant });
    } else if (frame.type === "pong") {
      clearTimeout(this.#timers.pong);
      this.#timers.pong = 0;
    } else {
      // An error of no request is what a close that follows is about.
      if (frame.type === "error" && frame.id === null) this.#refusal = frame.error.message;
      this.#onFrame(frame);
    }
  }

  // A connection can die without a close event (a sleeping laptop, a lost route).
  #ping() {
    if (this.#timers.pong) return;
    this.send({ type: "ping", nonce: Math.floor(performance.now()) });
    this.#timers.pong = setTimeout(() => this.#drop(), PONG_DEADLINE_MS);
  }

  #drop() {
    const socket = this.#socket;
    this.#closed({ code: 1006 });
    socket.close();
  }

  #closed({ code }) {
    this.#socket = null;
    this.#clearTimers();
    if (FINAL_CLOSES.has(code)) {
      this.#enter("refused", { code, message: this.#refusal || FINAL_CLOSES.get(code) });
      return;
    }
    if (code === CLOSE_TOO_LARGE) this.#refusal ||= "That was more than the server takes at once.";
    const ceiling = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#attempt);
    const delay = ceiling * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#timers.retry = setTimeout(() => this.connect(), delay);
    this.#enter("waiting", { delay_s: delay / 1000, message: this.#refusal });
  }

  #enter(state, detail = {}) {
    this.#state = state;
    this.#onState(state, detail);
  }

  #clearTimers() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = { retry: 0, ready: 0, ping: 0, pong: 0 };
  }
}
