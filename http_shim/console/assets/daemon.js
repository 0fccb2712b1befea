// How the daemon is: its models with what really runs, and the parts it depends on.
import { byId, count, h, keyed, setText } from "./dom.js";

const MODELS = { clip: "CLIP, pictures", clip_text: "CLIP, texts", face_detector: "Face detector", face_recogniser: "Face recogniser", model_change: "Changing the pictures' model", face_model_change: "Changing the faces' model" };
const CHANGES = ["face_model_change", "model_change"];
const PARTS = { broker: "MQTT broker", media_store: "Media store", vectors: "Vector database", database: "Queue", auth: "Token issuer" };
const STATES = {
  ok: ["ok", "All well"],
  degraded: ["warn", "Degraded"],
  unavailable: ["bad", "Not ready"],
  draining: ["warn", "Stopping"],
};

export function showDaemon(report) {
  setText(byId("worker"), `${report.worker_id} · ${report.version}`);
  const models = report.checks.models ?? { ok: true };
  const rows = Object.entries(models).filter(([, each]) => each && typeof each === "object" && "loaded" in each);
  for (const name of CHANGES) {
    const changing = report.checks[name];
    if (changing?.to_model) rows.unshift([name, changing]);
  }
  const empty = byId("models-empty");
  empty.hidden = rows.length > 0;
  empty.classList.toggle("error", !models.ok);
  setText(empty, models.ok ? "Looking…" : models.message);
  keyed(byId("models"), rows, ([name]) => name, ([name]) => h("li", {}, h("div", { class: "row" }, h("strong", {}, MODELS[name] ?? MODELS[name.split(".")[0]] ?? name), h("span", { class: "pill" })), h("p", { class: "what" }), h("p", { class: "tags" })), model);
  const parts = Object.entries(report.checks).filter(([name]) => name in PARTS);
  keyed(byId("parts"), parts, ([name]) => name, ([name]) => h("li", {}, h("div", { class: "row" }, h("span", {}, PARTS[name]), h("span", { class: "pill" })), h("p", { class: "said" })), part);
}

export function linkState(report, up) {
  const [state, words] = up ? (STATES[report?.status] ?? ["ok", "Live"]) : ["bad", "Reconnecting…"];
  const pill = byId("link");
  pill.dataset.state = state;
  setText(pill, words);
}

function change(element, told) {
  const pill = element.querySelector(".pill");
  pill.dataset.state = told.waits ? "warn" : "ok";
  setText(pill, told.waits ? `Waits: ${told.waits}` : `${told.total ? Math.floor((100 * told.done) / told.total) : 0} %`);
  setText(element.querySelector(".what"), `${told.from_model} is searched until ${told.to_model} has all`);
  const left = told.seconds_left === null ? "" : ` · some ${told.seconds_left < 90 ? `${told.seconds_left} s` : `${Math.round(told.seconds_left / 60)} min`} left`;
  setText(element.querySelector(".tags"), `${told.done} of ${told.total}${told.failed ? ` · ${told.failed} failed` : ""}${left}`);
}

function model(element, [name, told]) {
  if (CHANGES.includes(name)) {
    change(element, told);
    return;
  }
  const [state, words] = told.loaded ? ["ok", "Loaded"] : told.on_demand ? ["", "At first use"] : ["", "Not loaded"];
  const pill = element.querySelector(".pill");
  pill.dataset.state = told.degraded ? "warn" : state;
  setText(pill, told.degraded ? "Short of memory" : words);
  const untrained = told.weights === "UNTRAINED" || String(told.weights ?? "").toUpperCase().includes("UNTRAINED");
  setText(element.querySelector(".what"), told.loaded ? [told.model, untrained ? null : told.weights].filter(Boolean).join(" · ") : "");
  const tags = [
    untrained ? h("span", { class: "tag loud", title: "Its weights are random: what it says means nothing" }, "UNTRAINED") : null,
    told.device ? h("span", { class: "tag" }, told.device) : null,
    told.precision ? h("span", { class: "tag" }, told.precision) : null,
  ].filter(Boolean);
  const text = tags.map((tag) => tag.textContent).join();
  const place = element.querySelector(".tags");
  if (place.dataset.text !== text) {
    place.dataset.text = text;
    place.replaceChildren(...tags);
  }
}

function part(element, [name, told]) {
  const pill = element.querySelector(".pill");
  pill.dataset.state = told.ok ? "ok" : "bad";
  setText(pill, told.ok ? "Up" : "Away");
  let said = told.ok ? "" : `${told.code}: ${told.message}`;
  if (told.ok && name === "vectors") {
    const counts = [["image_embeddings", "picture"], ["face_embeddings", "face"]].filter(([key]) => typeof told[key] === "number");
    said = counts.map(([key, word]) => count(told[key], word)).join(" · ");
  }
  if (told.ok && name === "media_store") said = told.url ?? "";
  if (told.ok && name === "database" && told.outbox) said = `${count(told.outbox, "event")} wait for the broker`;
  const place = element.querySelector(".said");
  place.hidden = !said;
  setText(place, said);
}
