// Search by a text, by a picture, by a face: scores on each result, and a threshold to turn.
import { ask, askJson } from "./api.js";
import { byId, count, h, keyed, setText } from "./dom.js";
import { openFound } from "./detail.js";
import { filters, startFilters } from "./filters.js";
import { facesOf, fillTile, jobsOf, makeTile } from "./gallery.js";

const LIMIT = 60;
const DEEPEST = 10_000;

let results = [];
let latest = 0;
let current = null;
const known = new Map();

export function startSearch() {
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("search-text").value.trim();
    if (text) byText(text);
  });
  const file = byId("search-file");
  let kind = "similar";
  for (const [id, which] of [["pick-similar", "similar"], ["pick-face", "face"]]) {
    byId(id).addEventListener("click", () => {
      kind = which;
      file.value = "";
      file.click();
    });
  }
  file.addEventListener("change", () => {
    if (file.files[0]) byPicture(file.files[0], kind);
  });
  byId("threshold").addEventListener("input", paint);
  byId("found-more").addEventListener("click", () => current && run(current.query, current.search, current.next));
  startFilters(() => current && run(current.query, current.search));
  byId("found-close").addEventListener("click", () => {
    latest += 1;
    results = [];
    current = null;
    byId("found").hidden = true;
    byId("search-text").value = "";
    byId("search-text").focus();
  });
}

export function offer(taskTypes) {
  const pictures = taskTypes.includes("image_embedding");
  const faces = taskTypes.includes("face_embedding");
  byId("search").hidden = !pictures && !faces;
  for (const id of ["search-text", "pick-similar"]) byId(id).hidden = !pictures;
  byId("search-form").querySelector('[type="submit"]').hidden = !pictures;
  byId("search-form").querySelector(".or").hidden = !pictures;
  byId("pick-face").hidden = !faces;
}

const path = (collection, query) =>
  `search/${collection}?${new URLSearchParams({ limit: LIMIT, ...filters(), ...query })}`;

export const byText = (text) => run([`“${text}”`], (offset) => askJson(path("image_embeddings", { text, offset })));
export const like = (id) =>
  run([`Like picture ${id}`], (offset) => askJson(path("image_embeddings", { like: id, offset })));
export const likeFace = (id, face) =>
  run([`The face ${face + 1} of picture ${id}`], (offset) =>
    askJson(path("face_embeddings", { like: id, face_index: face, offset })));

export function byPicture(file, kind) {
  const url = URL.createObjectURL(file);
  const shown = h("img", { src: url, alt: "" });
  shown.addEventListener("load", () => URL.revokeObjectURL(url));
  shown.addEventListener("error", () => shown.remove());
  const collection = kind === "face" ? "face_embeddings" : "image_embeddings";
  return run([shown, kind === "face" ? `The face in ${file.name}` : `Like ${file.name}`], async (offset) => {
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    return (await ask(path(collection, { offset }), { method: "POST", body: file, headers: { "Content-Type": type } })).json();
  });
}

async function run(query, search, offset = 0) {
  const mine = ++latest;
  current = { query, search, next: null };
  byId("found-more").hidden = true;
  byId("found").hidden = false;
  byId("found-query").replaceChildren(...query);
  setText(byId("found-status"), "Searching…");
  byId("search").scrollIntoView({ block: "nearest" });
  try {
    const found = await search(offset);
    if (mine !== latest) return;
    current.next = found.next <= DEEPEST ? found.next : null;
    byId("found-more").hidden = current.next === null;
    const before = offset ? results : [];
    const seen = new Set(before.map((result) => result.point_id));
    const fresh = found.results.filter((result) => !seen.has(result.point_id));
    results = [...before, ...fresh.map((result) => ({ ...result, score: Math.max(0, Math.min(1, result.score)), said: result.score }))];
    paint();
    for (const result of results) if (result.point_id !== result.media_store_id) lookUp(result, mine);
  } catch (error) {
    if (mine !== latest) return;
    if (!offset) results = [];
    paint();
    setText(byId("found-status"), error.message);
  }
}

function paint() {
  const least = Number(byId("threshold").value);
  setText(byId("threshold-value"), least.toFixed(2));
  const kept = results.filter((result) => least === 0 || result.said >= least);
  const nothing = Object.keys(filters()).length ? "None of those that are meant was found."
    : "Nothing is stored that could be found. Add pictures first.";
  const status = !results.length ? nothing
    : kept.length === results.length ? count(results.length, "result")
    : `${count(kept.length, "result")} of ${results.length} at ${least.toFixed(2)} or more`;
  setText(byId("found-status"), status);
  keyed(byId("found-list"), kept, (result) => result.point_id, (result) => h("li", {}, makeTile(result.media_store_id, false, () => openFound(result.media_store_id, result.job_id))), fill);
}

function fill(element, result) {
  const bar = h("i", {});
  bar.style.setProperty("--share", String(result.score));
  const extra = h("span", { class: "score" }, h("b", {}, result.said.toFixed(3)), h("span", { class: "bar" }, bar));
  const jobs = jobsOf(result.media_store_id);
  const index = result.payload?.face_index;
  let faces = facesOf(jobs).length ? facesOf(jobs) : known.get(result.job_id) ?? [];
  const box = result.payload?.bbox; // another model may have found other faces since that job's result
  const isIt = (face) => face.face_index === index && (!box || (face.bbox.x === box.x && face.bbox.y === box.y));
  if (typeof index === "number") faces = faces.map((face) => ({ ...face, chosen: isIt(face) }));
  const tile = element.firstElementChild;
  fillTile(tile, result.media_store_id, jobs, { faces, extra });
  tile.setAttribute("aria-label", `Picture ${result.media_store_id}, score ${result.said.toFixed(3)}`);
}

// Faces are drawn where their job is still known.
async function lookUp(result, mine) {
  if (!result.job_id || known.has(result.job_id) || facesOf(jobsOf(result.media_store_id)).length) return;
  known.set(result.job_id, []);
  try {
    const job = await askJson(`job/${result.job_id}`);
    known.set(result.job_id, job.result?.faces ?? []);
    if (mine === latest) paint();
  } catch {
    // Forgotten since: the picture is shown without its faces.
  }
}

