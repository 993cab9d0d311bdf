// A small, safe part of Markdown. Every node is made by name and filled through textContent, so
// nothing that a model writes can become markup. Links stay text: a model may invent their target.

const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/s;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^>\s?(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;

export function renderMarkdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let at = 0;
  while (at < lines.length) at = block(lines, at, out);
  return out;
}

function block(lines, at, out) {
  const line = lines[at];
  if (!line.trim()) return at + 1;
  const fence = FENCE.exec(line);
  if (fence) return fencedCode(lines, at, fence, out);
  if (RULE.test(line)) {
    out.append(document.createElement("hr"));
    return at + 1;
  }
  const heading = HEADING.exec(line);
  if (heading) {
    // The page's own headings end at h2.
    const level = Math.min(6, heading[1].length + 2);
    out.append(element(`h${level}`, heading[2]));
    return at + 1;
  }
  if (QUOTE.test(line)) return quote(lines, at, out);
  if (ITEM.test(line)) return list(lines, at, out);
  return paragraph(lines, at, out);
}

function fencedCode(lines, at, fence, out) {
  const [, mark, language] = fence;
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  const body = [];
  let next = at + 1;
  while (next < lines.length && !closing.test(lines[next])) body.push(lines[next++]);
  const figure = document.createElement("figure");
  figure.className = "pg-code";
  const caption = document.createElement("figcaption");
  caption.textContent = language || "text";
  const code = document.createElement("code");
  code.textContent = body.join("\n");
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.append(code);
  figure.append(caption, pre);
  out.append(figure);
  return next + 1;
}

function quote(lines, at, out) {
  const body = [];
  let next = at;
  for (let match; next < lines.length && (match = QUOTE.exec(lines[next])); next++) {
    body.push(match[1]);
  }
  const node = document.createElement("blockquote");
  node.append(renderMarkdown(body.join("\n")));
  out.append(node);
  return next;
}

// Lists nest by indentation; blank lines between items do not end a list.
function list(lines, at, out) {
  const [, indent, number] = ITEM.exec(lines[at]);
  const node = document.createElement(number === undefined ? "ul" : "ol");
  if (number !== undefined) node.start = Number(number);
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    if (match && match[1].length > indent.length && node.lastElementChild) {
      next = list(lines, next, node.lastElementChild);
    } else if (match && match[1].length === indent.length && (match[2] === undefined) === (number === undefined)) {
      node.append(element("li", match[3]));
      next += 1;
    } else if (!lines[next].trim() && ITEM.test(lines[next + 1] ?? "")) {
      next += 1;
    } else if (!match && /^\s{2,}\S/.test(lines[next]) && node.lastElementChild) {
      node.lastElementChild.append(document.createElement("br"), inline(lines[next].trim()));
      next += 1;
    } else {
      break;
    }
  }
  out.append(node);
  return next;
}

function paragraph(lines, at, out) {
  const body = [];
  let next = at;
  while (next < lines.length && lines[next].trim() && (next === at || !opensBlock(lines[next]))) {
    body.push(lines[next++].trim());
  }
  const node = document.createElement("p");
  body.forEach((part, index) => {
    if (index) node.append(document.createElement("br"));
    node.append(inline(part));
  });
  out.append(node);
  return next;
}

function opensBlock(line) {
  return [FENCE, HEADING, QUOTE, ITEM, RULE].some((pattern) => pattern.test(line));
}

function element(name, text) {
  const node = document.createElement(name);
  node.append(inline(text));
  return node;
}

function inline(text) {
  const out = document.createDocumentFragment();
  let rest = text;
  for (let match; (match = INLINE.exec(rest)); rest = rest.slice(match.index + match[0].length)) {
    out.append(rest.slice(0, match.index));
    const [, , code, strong, emphasis] = match;
    if (code !== undefined) {
      const node = document.createElement("code");
      node.textContent = code;
      out.append(node);
    } else {
      out.append(strong !== undefined ? element("strong", strong) : element("em", emphasis));
    }
  }
  out.append(rest);
  return out;
}
