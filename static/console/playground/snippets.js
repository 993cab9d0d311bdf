// The current chat as a request that can be pasted elsewhere. The key is named, never shown.

import { copyText } from "./clipboard.js";

export function requestBody(settings, messages) {
  const body = { model: settings.model, messages };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  return body;
}

export function curlSnippet(baseUrl, body) {
  const json = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -N ${baseUrl}/chat/completions \\`,
    `  -H "Authorization: Bearer $NANO_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

export function pythonSnippet(baseUrl, body) {
  const options = Object.entries(body).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(baseUrl)}, api_key=os.environ["NANO_API_KEY"])`,
    "stream = client.chat.completions.create(",
    ...options,
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

// JSON's strings and numbers are Python's as well; there are no booleans or nulls in a request.
function python(value, indent = 0) {
  if (!Array.isArray(value)) return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const rows = value.map(
    ({ role, content }) => `${pad}{"role": ${python(role)}, "content": ${python(content)}},`,
  );
  return ["[", ...rows, `${" ".repeat(indent)}]`].join("\n");
}

// request(): the body to show, asked for each time that the dialog opens.
export function listenToSnippets({ dialog, open, code, copy, close, request, baseUrl }) {
  const tabs = [...dialog.querySelectorAll("[role=tab]")];
  const show = (chosen) => {
    const make = chosen.dataset.kind === "python" ? pythonSnippet : curlSnippet;
    code.textContent = make(baseUrl, request());
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const next = tabs[(index + 1) % tabs.length];
      show(next);
      next.focus();
    });
  });
  open.addEventListener("click", () => {
    show(tabs[0]);
    dialog.showModal();
  });
  copy.addEventListener("click", () => copyText(code.textContent, copy));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
