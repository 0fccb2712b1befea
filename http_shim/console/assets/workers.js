// The daemons at the broker: each with its state and speed, and all together; hidden for one alone.
import { byId, count, h, keyed, number, setText } from "./dom.js";

const STATES = { online: "ok", paused: "warn", draining: "warn", offline: "bad" };

export function showWorkers({ workers, living, images_per_second: rate }) {
  byId("workers-card").hidden = workers.length < 2;
  setText(byId("workers-sum"), `${count(living, "daemon")} living, ${number(rate)} images a second`);
  keyed(byId("workers"), workers, (each) => each.worker_id, () => h("li", {}, h("div", { class: "row" }, h("span", { class: "name" }), h("span", { class: "pill" })), h("p", { class: "said" })), worker);
}

function worker(element, told) {
  setText(element.querySelector(".name"), told.is_self ? `${told.worker_id} (this one)` : told.worker_id);
  const pill = element.querySelector(".pill");
  pill.dataset.state = STATES[told.state];
  setText(pill, told.reason === "silent" ? "silent" : told.state);
  const done = Object.values(told.done).reduce((sum, each) => sum + each, 0);
  const words = [told.images_per_second === null ? null : `${number(told.images_per_second)} a second`, `${number(done)} done`, told.devices.join(", ")];
  setText(element.querySelector(".said"), words.filter(Boolean).join(" · "));
}
