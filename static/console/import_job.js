// The page of an import: renews how far it is, and brings the file of an upload in pieces. A piece
// that fails is sent again from where the server says that it is.

const live = document.getElementById("import-live");
const upload = document.getElementById("import-upload");
const PAUSE_MS = 2000;
const MOST_FAILURES = 30;

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function isOpen() {
  return live.querySelector("[data-open]")?.dataset.open === "1";
}

async function renew() {
  const response = await fetch(live.dataset.url, { signal: AbortSignal.timeout(10000) });
  if (response.redirected) location.reload(); // signed out elsewhere
  else if (response.ok) live.innerHTML = await response.text(); // the server's own, escaped there
}

async function watch() {
  while (isOpen()) {
    await pause(Number(live.dataset.periodMs));
    if (!document.hidden) await renew().catch(() => {});
  }
}

async function post(body, headers) {
  const response = await fetch(upload.dataset.url, {
    method: "POST",
    headers: { "X-CSRFToken": upload.dataset.token, ...headers },
    body,
  });
  const answer = response.headers.get("content-type")?.includes("json")
    ? await response.json() : {};
  return { status: response.status, answer };
}

function say(text) {
  document.getElementById("import-upload-text").textContent = text;
}

function begin(file) {
  const body = JSON.stringify({ name: file.name, size_bytes: file.size });
  return post(body, { "Content-Type": "application/json" });
}

async function send(file) {
  let failures = 0;
  let state = null;
  while (failures < MOST_FAILURES) {
    try {
      const offset = state?.n_received_bytes ?? 0;
      const result = state === null ? await begin(file) : await post(
        file.slice(offset, offset + state.piece_bytes),
        { "Content-Type": "application/octet-stream", "Upload-Offset": String(offset) },
      );
      if (result.status === 200) {
        state = result.answer;
        failures = 0;
        if (state.status !== "uploading") return "";
        say(`${file.name}: ${Math.floor((100 * state.n_received_bytes) / file.size)} %`);
        continue;
      }
      if (result.status !== 409 && result.status < 500) {
        return result.answer.error?.message ?? `The server answers ${result.status}.`;
      }
    } catch {
      // No answer: asked again below.
    }
    state = null; // ask where it goes on
    failures += 1;
    await pause(PAUSE_MS);
  }
  return "The server does not answer. Choose the file again to go on.";
}

// The theme's own listener wants a text field beside it.
if (upload) upload.querySelector("input").hasChangeListener = true;

upload?.querySelector("input").addEventListener("change", async (event) => {
  const input = event.target;
  const [file] = input.files;
  if (!file) return;
  input.disabled = true;
  say(`${file.name}: 0 %`);
  const wrong = await send(file);
  upload.dataset.tone = wrong ? "bad" : "";
  if (wrong) {
    say(wrong);
    input.disabled = false;
    input.value = "";
  } else {
    upload.remove();
    await renew().catch(() => {});
  }
});

if (live) watch();
