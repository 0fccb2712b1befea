// The daemon's events, read by fetch since an EventSource sends no token; comes back by itself.
import { ask } from "./api.js";

const LONGEST_WAIT = 15000;
const SILENCE = 40000;

export class Stream {
  #handlers = new Map();
  #controller = null;
  #stopped = false;

  on(name, handler) {
    this.#handlers.set(name, handler);
    return this;
  }

  stop() {
    this.#stopped = true;
    this.#controller?.abort();
  }

  async run() {
    let wait = 500;
    while (!this.#stopped) {
      try {
        await this.#once(() => { wait = 500; });
        this.#tell("state", { up: false });
      } catch (error) {
        if (this.#stopped) return;
        this.#tell("state", { up: false, error });
        if (error.status === 401) return;
      }
      await new Promise((done) => setTimeout(done, wait * (0.5 + Math.random() / 2)));
      wait = Math.min(wait * 2, LONGEST_WAIT);
    }
  }

  async #once(began) {
    this.#controller = new AbortController();
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#controller.abort(), SILENCE);
    };
    try {
      alive();
      const response = await ask("console/events", { signal: this.#controller.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        alive();
        const events = (text + value).split("\n\n");
        text = events.pop();
        for (const event of events) this.#read(event, began);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #read(event, began) {
    let name = "message";
    let data = "";
    for (const line of event.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    if (name === "hello") {
      began();
      this.#tell("state", { up: true });
    }
    this.#tell(name, JSON.parse(data));
  }

  #tell(name, value) {
    this.#handlers.get(name)?.(value);
  }
}
