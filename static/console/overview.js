// Renews the overview in place, and rests while the page is hidden or the server does not answer.

const overview = document.getElementById("overview");
const periodMs = Number(overview.dataset.periodMs);
let timer = 0;
let failures = 0;

function later() {
  clearTimeout(timer);
  if (!document.hidden) {
    timer = setTimeout(renew, Math.min(periodMs * 2 ** failures, 30000));
  }
}

function isSelecting() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && overview.contains(selection.anchorNode);
}

function show(html) {
  const links = () => [...overview.querySelectorAll("a")];
  const focused = links().indexOf(document.activeElement);
  const href = focused < 0 ? "" : document.activeElement.href;
  overview.innerHTML = html; // the server's own page, escaped there
  const again = links().find((link, index) => link.href === href && index >= focused)
    ?? links().find((link) => link.href === href);
  if (href) again?.focus({ preventScroll: true });
}

async function renew() {
  try {
    const response = await fetch(overview.dataset.url, {
      headers: { Accept: "text/html" },
      signal: AbortSignal.timeout(10000),
    });
    if (response.redirected) {
      location.reload(); // signed out elsewhere
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const html = await response.text();
    failures = 0;
    if (!isSelecting()) show(html);
  } catch {
    failures += 1;
    const when = overview.querySelector("[data-overview-when]");
    if (when) when.textContent = "The server does not answer; trying again";
  }
  overview.dataset.stale = failures ? "1" : "";
  later();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else renew();
});
later();
