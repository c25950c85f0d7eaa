import { UserError } from "./errors.js";

// generation_config.json often names only one of the tokens that end a turn.
const TURN_ENDS = ["<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "</s>"];
const NAMED = ["bos_token", "eos_token", "unk_token", "pad_token"];

/** Text to token ids and back, as the package's tokenizer.json and chat template say. */
export class TextSide {
  /**
   * @param {import("./package.js").PackageInfo} info
   * @param {object} libraries
   * @param {typeof import("@huggingface/tokenizers").Tokenizer} libraries.Tokenizer
   * @param {typeof import("@huggingface/jinja").Template} libraries.Template
   */
  constructor(info, { Tokenizer, Template }) {
    const { tokenizerConfig: config } = info;
    try {
      this.tokenizer = new Tokenizer(info.tokenizer, config);
    } catch (error) {
      throw new UserError(`tokenizer.json cannot be used here: ${error.message}`);
    }
    this.vocabSize = info.vocabSize;
    this.named = Object.fromEntries(
      NAMED.map((name) => [name, config[name]?.content ?? config[name]]).filter(([, text]) => typeof text === "string"),
    );
    this.bosId = this.#id(this.named.bos_token);
    this.addsBos = config.add_bos_token === true && this.bosId !== undefined;
    this.control = (info.tokenizer.added_tokens ?? []).filter((token) => token.special).map((token) => token.content);
    const ends = TURN_ENDS.filter((text) => info.chatTemplate?.includes(text) && this.control.includes(text));
    this.stopIds = new Set([...info.eosTokenIds, ...[...ends, this.named.eos_token].map((text) => this.#id(text))]);
    this.stopIds.delete(undefined);
    this.template = null;
    if (info.chatTemplate !== null) {
      try {
        this.template = new Template(info.chatTemplate);
      } catch (error) {
        throw new UserError(`The chat template cannot be used here: ${error.message}`);
      }
    }
  }

  #id(text) {
    const id = text === undefined ? undefined : this.tokenizer.token_to_id(text);
    return id !== undefined && id < this.vocabSize ? id : undefined;
  }

  /** Token ids of a text that the model continues. */
  encode(text) {
    const ids = this.#encode(text, true);
    if (this.addsBos && ids[0] !== this.bosId) ids.unshift(this.bosId);
    if (ids.length === 0 && this.bosId !== undefined) ids.push(this.bosId);
    if (ids.length === 0) throw new UserError("The prompt is empty, and the model has no token for the beginning of a text.");
    return ids;
  }

  /**
   * Token ids of a conversation, open for the answer.
   * @param {{ role: string, content: string }[]} messages
   */
  encodeChat(messages) {
    if (this.template === null) throw new UserError("The package has no chat template; give a text to continue instead.");
    for (const { content } of messages) {
      // Read as a control token, it would end the turn that it stands in.
      const token = this.control.find((text) => content.includes(text));
      if (token !== undefined) throw new UserError(`A message holds ${token}, a control token of this model; remove it.`);
    }
    let text;
    try {
      text = this.template.render({ messages, add_generation_prompt: true, ...this.named });
    } catch (error) {
      throw new UserError(`The chat template refuses the messages: ${error.message}`);
    }
    return this.#encode(text, false);
  }

  #encode(text, addSpecialTokens) {
    const ids = Array.from(this.tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids);
    const largest = ids.reduce((a, b) => Math.max(a, b), 0);
    if (largest >= this.vocabSize) {
      throw new UserError(
        `tokenizer.json gives token ${largest}, outside the model's vocabulary of ${this.vocabSize}: it belongs to another model.`,
      );
    }
    return ids;
  }

  decode(ids) {
    return ids.length === 0 ? "" : this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }

  /** A stream of tokens that follow `context`; see `TokenText`. */
  stream(context) {
    return new TokenText((ids) => this.decode(ids), context);
  }
}

const UNFINISHED = "\ufffd";
const CONTEXT = 8;
const MAX_WINDOW = 32;

/**
 * Token by token the text that is certain. Only the last tokens are decoded again each time: those before them tell the
 * decoder that it is not at the beginning of a text, and a character may need several tokens.
 */
export class TokenText {
  constructor(decode, context) {
    this.decode = decode;
    this.#start(context.slice(-CONTEXT));
  }

  #start(window) {
    this.window = window;
    this.shown = this.decode(window).length;
  }

  /** What one more token adds; often nothing, while a character is unfinished. */
  push(token) {
    this.window.push(token);
    const text = this.decode(this.window);
    if (text.endsWith(UNFINISHED) && this.window.length <= MAX_WINDOW) return "";
    const piece = text.slice(this.shown);
    this.#start(this.window.slice(-CONTEXT));
    return piece;
  }

  /** What is left at the end of an answer. */
  end() {
    return this.decode(this.window).slice(this.shown);
  }
}
