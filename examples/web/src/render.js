/** An element with a class and a text. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (/^`[^`]+`$/.test(part)) parent.append(make("code", "", part.slice(1, -1)));
    else if (/^\*\*[^*]+\*\*$/.test(part)) parent.append(make("strong", "", part.slice(2, -2)));
    else if (part) parent.append(part);
  }
}

/** Fills `body` with a text that may hold a little markdown: elements are made, and never HTML of the model's. */
export function renderMarkdown(body, text) {
  body.replaceChildren();
  text.split(/^```[^\n]*\n?/m).forEach((section, index) => {
    if (index % 2 === 1) {
      const block = make("pre");
      block.append(make("code", "", section.replace(/\n$/, "")));
      body.append(block);
      return;
    }
    for (const paragraph of section.split(/\n{2,}/)) renderParagraph(body, paragraph);
  });
  // The dot that shows that more will come needs a place.
  if (!body.lastChild) body.append(make("p"));
}

function renderParagraph(body, paragraph) {
  let list = null;
  let plain = null;
  for (const line of paragraph.split("\n")) {
    const item = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/.exec(line);
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    if (item) {
      const tag = item[1] ? "OL" : "UL";
      if (list?.tagName !== tag) {
        list = make(tag);
        if (item[1]) list.start = Number(item[1]);
        body.append(list);
      }
      const element = make("li");
      inline(element, item[2]);
      list.append(element);
      plain = null;
    } else if (heading) {
      const element = make("h3");
      inline(element, heading[1]);
      body.append(element);
      list = plain = null;
    } else if (line.trim()) {
      if (plain) plain.append(make("br"));
      else body.append((plain = make("p")));
      inline(plain, line);
      list = null;
    }
  }
}

/** Fills `body` with a given beginning and what the model made of it. */
export function renderContinuation(body, given, text) {
  body.replaceChildren(make("span", "given", given), text);
}
