import { explain } from "../decoder/errors.js";
import { make, renderContinuation, renderMarkdown } from "./render.js";
import { samplingOptions, systemPrompt } from "./settings.js";

const $ = (id) => document.getElementById(id);
const IDEAS = {
  chat: ["Explain why the sky is blue", "Write a haiku about winter", "What is the capital of Japan?"],
  text: ["In the beginning", "And the king said unto him", "Once upon a time"],
};
const ENDINGS = { length: "cut off at its longest", context: "the context is full", aborted: "stopped" };

/** What is asked and answered with one model: a chat where it has a template, texts that it continues otherwise. */
export class Conversation {
  constructor() {
    this.messages = [];
    this.running = false;
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.engine.stop();
      else this.#submit();
    });
    $("prompt").addEventListener("input", () => this.#fit());
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) $("form").requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !$("settings").open) this.engine.stop();
    });
    $("new").addEventListener("click", () => this.#clear());
  }

  /**
   * @param {import("./engine.js").Engine} engine
   * @param {string} device what it runs on, in words
   * @param {string} note more about that
   */
  start(engine, device, note) {
    this.engine = engine;
    this.device = device;
    $("empty-title").textContent = engine.chat ? "What would you like to know?" : "Begin a text";
    const what = engine.chat ? "The model answers in this tab; nothing leaves it." : "This model continues what you write, in this tab; nothing leaves it.";
    $("empty-text").textContent = what;
    $("empty-device").textContent = `Runs on ${device}. ${note}`;
    $("prompt").placeholder = engine.chat ? "Message" : "Beginning of a text";
    $("system-field").hidden = !engine.chat;
    $("ideas").replaceChildren();
    for (const idea of IDEAS[engine.chat ? "chat" : "text"]) {
      const button = make("button", "", idea);
      button.type = "button";
      button.addEventListener("click", () => this.#ask(idea));
      $("ideas").append(button);
    }
    this.#clear();
    $("composer").hidden = false;
    $("prompt").focus();
  }

  end() {
    this.#clear();
    this.engine = null;
    $("composer").hidden = true;
    $("empty").hidden = true;
    $("new").hidden = true;
  }

  #clear() {
    if (this.running) this.engine.stop();
    this.messages = [];
    $("log").replaceChildren();
    $("speed").textContent = "";
    this.#state();
  }

  #state() {
    const started = $("log").childElementCount > 0;
    $("empty").hidden = started;
    $("log").hidden = !started;
    $("new").hidden = !started;
    $("send").textContent = this.running ? "Stop" : this.engine.chat ? "Send" : "Continue";
    $("send").classList.toggle("stop", this.running);
    $("send").disabled = !this.running && !$("prompt").value.trim();
    for (const button of document.querySelectorAll("#ideas button, .again")) button.disabled = this.running;
  }

  #fit() {
    $("prompt").style.height = "auto";
    $("prompt").style.height = `${$("prompt").scrollHeight}px`;
    this.#state();
  }

  #submit() {
    const text = this.engine.chat ? $("prompt").value.trim() : $("prompt").value;
    if (!text.trim()) return;
    $("prompt").value = "";
    this.#fit();
    this.#ask(text);
  }

  #ask(text) {
    if (this.running) return;
    if (this.engine.chat) {
      this.messages.push({ role: "user", content: text });
      $("log").append(make("div", "user", text));
    }
    this.#answer(text);
  }

  async #answer(prompt) {
    const { engine } = this;
    for (const button of document.querySelectorAll(".again")) button.remove();
    const article = make("article", `answer writing ${engine.chat ? "chat" : "continued"}`);
    const body = make("div", "body");
    const foot = make("div", "foot");
    article.append(body, foot);
    $("log").append(article);
    this.running = true;
    this.#state();
    let text = "";
    let drawing = false;
    const draw = () => {
      drawing = false;
      const follow = atEnd();
      if (engine.chat) renderMarkdown(body, text);
      else renderContinuation(body, prompt, text);
      if (follow) toEnd();
    };
    draw();
    toEnd();
    let first = 0;
    const receive = (event) => {
      text += event.text;
      if (event.count === 1) first = performance.now();
      else $("speed").textContent = speedText(event.count - 1, (performance.now() - first) / 1000);
      if (drawing) return;
      drawing = true;
      requestAnimationFrame(draw);
    };
    const system = systemPrompt();
    const request = engine.chat
      ? { messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages] }
      : { prompt };
    let ending = null;
    let failure = "";
    try {
      ending = await engine.write({ ...request, options: samplingOptions() }, receive);
    } catch (error) {
      failure = explain(error);
    }
    this.running = false;
    article.classList.remove("writing");
    // Cleared, or another model, meanwhile.
    if (!article.isConnected) {
      if (this.engine) this.#state();
      return;
    }
    draw();
    if (engine.chat && text) this.messages.push({ role: "assistant", content: text });
    const follow = atEnd();
    if (failure) foot.before(make("div", "error", failure));
    if (ending) foot.append(make("span", "", this.#describe(ending)));
    this.#addButtons(article, foot, prompt, text);
    if (follow) toEnd();
    this.#state();
  }

  #describe({ tokens, reason, promptSeconds, seconds }) {
    const notes = [`${tokens.length} token${tokens.length === 1 ? "" : "s"}`];
    if (tokens.length > 1) {
      const speed = speedText(tokens.length - 1, seconds);
      $("speed").textContent = speed;
      notes.push(`${speed} on ${this.device}`);
    }
    notes.push(`first after ${promptSeconds.toFixed(2)} s`);
    if (ENDINGS[reason]) notes.push(ENDINGS[reason]);
    return notes.join(" · ");
  }

  #addButtons(article, foot, prompt, text) {
    const { chat } = this.engine;
    const copy = make("button", "", "Copy");
    copy.addEventListener("click", () => copyText(chat ? text : prompt + text, copy));
    const again = make("button", "again", "Again");
    again.addEventListener("click", () => {
      if (this.running) return;
      if (chat && text) this.messages.pop();
      article.remove();
      this.#answer(prompt);
    });
    copy.type = again.type = "button";
    if (text) foot.append(copy);
    foot.append(again);
  }
}

const speedText = (tokens, seconds) => `${(tokens / seconds).toFixed(1)} tokens/s`;
const atEnd = () => $("scroller").scrollHeight - $("scroller").scrollTop - $("scroller").clientHeight < 60;
const toEnd = () => {
  $("scroller").scrollTop = $("scroller").scrollHeight;
};

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1400);
}
