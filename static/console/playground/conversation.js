// What was said, kept for this browser tab; and the settings, kept for this browser.

const NO_FIGURES = Object.freeze({});

export class Conversation {
  #key;
  turns = [];

  // Each turn: {role: "user", text} or
  // {role: "assistant", text, state: "streaming|done|failed", error, figures, request_id, model, rating}.
  constructor(owner) {
    this.#key = `playground.${owner}.turns`;
    const kept = read(sessionStorage, this.#key);
    if (!Array.isArray(kept)) return;
    this.turns = kept;
    const last = this.turns.at(-1);
    if (last?.state === "streaming") {
      fail(last, { message: "The page was left while this answer was being written." });
    }
  }

  save() {
    write(sessionStorage, this.#key, this.turns);
  }

  clear() {
    this.turns = [];
    this.save();
  }

  ask(text) {
    this.turns.push({ role: "user", text });
    return this.answer();
  }

  answer() {
    const turn = { role: "assistant", text: "", state: "streaming", figures: NO_FIGURES };
    this.turns.push(turn);
    this.save();
    return turn;
  }

  // Take the last answer away, so that the question before it can be asked again.
  retry() {
    if (this.turns.at(-1)?.role !== "assistant") return null;
    this.turns.pop();
    return this.answer();
  }

  // A question that got no answer at all would leave two user messages in a row, which many chat
  // templates refuse: it is left out unless it is the one being asked.
  messages(system) {
    const out = system.trim() ? [{ role: "system", content: system }] : [];
    this.turns.forEach((turn, index) => {
      const answer = this.turns[index + 1];
      const isOpen = !answer || answer.state === "streaming";
      if (turn.role === "user" && (isOpen || answer.text)) {
        out.push({ role: "user", content: turn.text });
      } else if (turn.role === "assistant" && turn.text && turn.state !== "streaming") {
        out.push({ role: "assistant", content: turn.text });
      }
    });
    return out;
  }
}

export function fail(turn, error) {
  turn.state = "failed";
  turn.error = error;
  turn.figures = NO_FIGURES;
}

export class SettingsStore {
  #key;

  constructor(owner) {
    this.#key = `playground.${owner}.settings`;
  }

  load() {
    return read(localStorage, this.#key) ?? {};
  }

  save(settings) {
    write(localStorage, this.#key, settings);
  }
}

// Storage may be full, switched off, or hold what an older page wrote: the chat goes on without it.
function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    storage.setItem(key, JSON.stringify(value));
  } catch {
    storage.removeItem(key);
  }
}
