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

function isInUse() {
  const selection = document.getSelection();
  const isSelecting = selection && !selection.isCollapsed && overview.contains(selection.anchorNode);
  return isSelecting || (overview.contains(document.activeElement) && document.hasFocus());
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
    if (!isInUse()) overview.innerHTML = html; // the server's own page, escaped there
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
