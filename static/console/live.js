// Renews what a page says of deployments and of the topics that it marks: words over a WebSocket as
// they change, and plots every ten seconds. Without either the page stays as it was loaded, and says
// so. A part that marks a word as its own (data-part) is fetched anew when that is another. A page
// that marks words as its shape (data-shape) is loaded anew when they are others, unless somebody has
// begun to fill in one of its forms.
(() => {
  "use strict";
  const PLOTS_MS = 10000;
  const SHAPE_MS = 1500;
  const PART_MS = 1500;
  const NEWS = "Something has changed: load the page again";
  const AGAIN_MS = [1000, 2000, 5000, 15000];
  const FINAL_CODES = new Set([4401, 4403]);
  let failures = 0;
  let watch = null;
  let range = "hour";
  let plotsTimer = 0;
  const logs = {};
  const shapes = {};
  const parts = new Map();
  let shapeTimer = 0;
  let hasNews = false;

  function each(name, value, act) {
    document.querySelectorAll(`[${name}="${CSS.escape(value)}"]`).forEach(act);
  }

  function say(text, isStale) {
    document.querySelectorAll("[data-live-link]").forEach((link) => {
      link.textContent = text;
      const place = link.closest(".co");
      if (place) place.dataset.stale = isStale ? "1" : "";
    });
  }

  function isOther() {
    return [...document.querySelectorAll("[data-shape]")].some((element) => {
      const text = shapes[element.dataset.shape];
      return text !== undefined && text !== element.dataset.shapeNow;
    });
  }

  // The page may be newer than the first that is heard: hence the pause.
  function checkShape(texts) {
    Object.assign(shapes, texts);
    if (shapeTimer || !isOther()) return;
    shapeTimer = setTimeout(() => {
      shapeTimer = 0;
      if (!isOther()) return;
      if (!document.querySelector("[data-filled]")) {
        location.replace(location.href);
        return;
      }
      hasNews = true;
      say(NEWS, true);
    }, SHAPE_MS);
  }

  // As often as there is news, but not more often than each PART_MS.
  function checkParts(texts) {
    document.querySelectorAll("[data-part]").forEach((element) => {
      const text = texts[element.dataset.part];
      if (text === undefined || text === element.dataset.partNow) return;
      element.dataset.partNow = text;
      if (!parts.has(element)) parts.set(element, setTimeout(() => renew(element), PART_MS));
    });
  }

  async function renew(element) {
    parts.delete(element);
    try {
      const text = await html(element.dataset.partUrl);
      const unfolded = [...element.querySelectorAll("details[id][open]")].map((each) => each.id);
      element.innerHTML = text; // the server's own page, escaped there
      unfolded.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
    } catch {
      element.dataset.partNow = ""; // with the next news, perhaps
    }
  }

  function showLog(element, text) {
    const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
    element.textContent = text || "Nothing yet.";
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }

  function take(news) {
    for (const [key, text] of Object.entries(news.texts)) {
      each("data-live", key, (element) => { element.textContent = text; });
      each("data-live-width", key, (element) => { element.setAttribute("width", text); });
      each("data-live-x", key, (element) => { element.setAttribute("x", text); });
    }
    for (const [key, tone] of Object.entries(news.tones)) {
      each("data-live-tone", key, (element) => { element.dataset.tone = tone; });
    }
    for (const [key, text] of Object.entries(news.logs)) {
      logs[key] = text;
      each("data-live-log", key, (element) => showLog(element, text));
    }
    checkParts(news.texts);
    checkShape(news.texts);
  }

  function connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const topics = [...document.querySelectorAll("[data-live-topic]")];
    const asked = topics.map((element) => element.dataset.liveTopic);
    if (watch) asked.push(`log=${watch.dataset.deployment}`);
    const socket = new WebSocket(`${scheme}://${location.host}/admin/live?${asked.join("&")}`);
    socket.addEventListener("message", (event) => {
      failures = 0;
      say(hasNews ? NEWS : "Live", hasNews);
      take(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      if (FINAL_CODES.has(event.code)) {
        say("Signed out: load the page again", true);
        return;
      }
      say("Not live: trying again", true);
      setTimeout(connect, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]);
      failures += 1;
    });
  }

  function fetched(query) {
    return html(`${watch.dataset.url}?${query}`);
  }

  async function html(url) {
    const response = await fetch(url, {
      headers: { Accept: "text/html" },
      signal: AbortSignal.timeout(10000),
    });
    if (!response.ok || response.redirected) throw new Error(`status ${response.status}`);
    return response.text();
  }

  async function plots() {
    clearTimeout(plotsTimer);
    const place = watch.querySelector("[data-watch-plots]");
    const asked = range;
    try {
      const html = document.hidden ? null : await fetched(`part=plots&range=${asked}`);
      if (html !== null && asked === range) {
        const focused = document.activeElement?.dataset?.range;
        place.innerHTML = html; // the server's own page, escaped there
        if (focused) place.querySelector(`[data-range="${focused}"]`)?.focus({ preventScroll: true });
      }
    } catch {
      // the next time, perhaps
    }
    plotsTimer = setTimeout(plots, PLOTS_MS);
  }

  async function begin() {
    watch = document.getElementById("watch");
    if (watch) {
      try {
        watch.innerHTML = await fetched("range=hour"); // the server's own page, escaped there
        plotsTimer = setTimeout(plots, PLOTS_MS);
      } catch {
        watch.textContent = "How it does cannot be shown at the moment.";
      }
      watch.addEventListener("click", (event) => {
        const button = event.target.closest("[data-range]");
        if (!button) return;
        range = button.dataset.range;
        plots();
      });
      watch.addEventListener("toggle", (event) => {
        const log = event.target.querySelector?.("[data-live-log]");
        if (log) log.scrollTop = log.scrollHeight;
      }, true);
    }
    document.querySelectorAll("form[data-keep]").forEach((form) => {
      form.addEventListener("input", () => { form.dataset.filled = "1"; });
    });
    if (watch || document.querySelector("[data-live]")) connect();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
