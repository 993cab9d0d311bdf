// Copying text, with the button itself telling how it went.

export async function copyText(text, from) {
  const label = from.querySelector(".pg-label");
  const before = label.textContent;
  label.textContent = (await writeClipboard(text)) ? "Copied" : "Copying is blocked";
  setTimeout(() => {
    label.textContent = before;
  }, 1500);
}

// The clipboard interface exists on https and localhost only; elsewhere the old way still works.
async function writeClipboard(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "pg-sr";
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}
