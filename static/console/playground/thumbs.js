// Thumbs under an answer: of two buttons one is pressed at most, and pressing the other changes it.
// What was chosen is kept in turn.rating, once the server has it.

const CHOICES = [
  { rating: "up", symbol: "thumb_up", label: "Good answer" },
  { rating: "down", symbol: "thumb_down", label: "Bad answer" },
];

// rate(turn, rating) tells the server, and returns what went wrong or null.
export class Thumbs {
  #turn;
  #buttons = new Map();
  #problem = document.createElement("span");

  constructor(turn, rate) {
    this.#turn = turn;
    this.root = document.createElement("div");
    this.root.className = "pg-thumbs";
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Was this answer good?");
    for (const { rating, symbol, label } of CHOICES) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "pg-quiet pg-thumb";
      button.title = label;
      button.setAttribute("aria-label", label);
      const icon = document.createElement("span");
      icon.className = "material-symbols-outlined pg-icon";
      icon.setAttribute("aria-hidden", "true");
      icon.textContent = symbol;
      button.append(icon);
      button.addEventListener("click", () => this.#choose(rating, rate));
      this.#buttons.set(rating, button);
      this.root.append(button);
    }
    this.#problem.className = "pg-thumbs-problem";
    this.#problem.setAttribute("role", "alert");
    this.root.append(this.#problem);
    this.draw();
  }

  // An answer that no engine made has no row that could be rated.
  draw() {
    this.root.hidden = !this.#turn.request_id || !this.#turn.text;
    for (const [rating, button] of this.#buttons) {
      button.setAttribute("aria-pressed", String(this.#turn.rating === rating));
    }
  }

  async #choose(rating, rate) {
    if (this.#turn.rating === rating || this.root.hasAttribute("aria-busy")) return;
    this.root.setAttribute("aria-busy", "true");
    this.#problem.textContent = "";
    const problem = await rate(this.#turn, rating);
    this.root.removeAttribute("aria-busy");
    this.#problem.textContent = problem ?? "";
    this.draw();
  }
}

// Returns what went wrong, in words, or null.
export async function tellRating({ url, token, requestId, rating }) {
  try {
    const answer = await fetch(url.replace("REQUEST_ID", encodeURIComponent(requestId)), {
      method: "POST",
      headers: { Accept: "application/json", "X-CSRFToken": token },
      body: new URLSearchParams({ rating }),
    });
    if (answer.redirected) return "You are signed out. Log in again, then rate it.";
    if (answer.ok) return null;
    return (await answer.json()).error.message;
  } catch {
    return "It could not be kept. Try again.";
  }
}
