// The last results as pictures: one tile a picture, whatever was asked of it.
import { byId, count, h, keyed, setText } from "./dom.js";
import { showPicture } from "./faces.js";

const SHOWN = 24;
const REMEMBERED = 200;
const PACE = 1500;
const NEW_A_TURN = 6;
const SAME_TURN = 60000;

const pictures = new Map();
let open = () => {};
let timer = 0;

export function startGallery(onOpen) {
  open = onOpen;
}

export const jobsOf = (id) => pictures.get(Number(id))?.jobs ?? new Map();

// Notes a job that ended; the page follows at its own pace.
export function note(job, { now = false } = {}) {
  if (!job.completed_at) return;
  const entry = pictures.get(job.media_store_id) ?? { id: job.media_store_id, at: 0, jobs: new Map() };
  entry.jobs.set(job.task_type, job);
  // A tile keeps its place as the other tasks of its picture end.
  if (job.completed_at - entry.at > SAME_TURN) entry.at = job.completed_at;
  pictures.set(job.media_store_id, entry);
  if (now) paint(SHOWN);
  else timer ||= setTimeout(() => paint(NEW_A_TURN), PACE);
}

export function noteAll(jobs) {
  for (const job of jobs) note(job);
  clearTimeout(timer);
  paint(byId("latest").children.length ? NEW_A_TURN : SHOWN);
}

function paint(most) {
  timer = 0;
  const list = byId("latest");
  const there = new Set([...list.children].map((each) => Number(each.dataset.key)));
  // What failed altogether stands among the failures; there may be no such picture at all.
  const newest = [...pictures.values()].filter(hasResult).sort((a, b) => b.at - a.at || b.id - a.id);
  const all = [...pictures.values()].sort((a, b) => b.at - a.at);
  for (const entry of all.slice(REMEMBERED)) pictures.delete(entry.id);
  // In a flood the newest few are shown each turn: previews must not become the daemon's work.
  let room = most;
  const shown = newest.filter((entry) => there.has(entry.id) || room-- > 0).slice(0, SHOWN);
  byId("latest-empty").hidden = shown.length > 0;
  const first = there.size === 0;
  keyed(list, shown, (entry) => entry.id, (entry) => tile(entry.id, !first), (element, entry) => fillTile(element.firstElementChild, entry.id, entry.jobs));
}

const hasResult = (entry) => [...entry.jobs.values()].some((job) => job.result);

function tile(id, isNew) {
  return h("li", {}, makeTile(id, isNew, () => open(id)));
}

export function makeTile(id, isNew, onclick) {
  return h("button", { type: "button", class: isNew ? "tile new" : "tile", onclick },
    h("span", { class: "picture" }),
    h("span", { class: "caption" }));
}

export function fillTile(element, id, jobs, { faces, extra } = {}) {
  const found = faces ?? facesOf(jobs);
  const [tags, told] = described(jobs);
  showPicture(element.querySelector(".picture"), id, { faces: () => found, alt: "" });
  element.setAttribute("aria-label", [`Picture ${id}`, ...told].join(", "));
  const caption = element.querySelector(".caption");
  const text = JSON.stringify([told, extra?.textContent]);
  if (caption.dataset.text === text) return;
  caption.dataset.text = text;
  caption.replaceChildren(...(extra ? [extra] : []), h("span", { class: "id" }, `#${id}`), ...tags);
}

export function facesOf(jobs) {
  for (const task of ["face_embedding", "face_detection"]) {
    const faces = jobs.get(task)?.result?.faces;
    if (faces) return faces;
  }
  return [];
}

function described(jobs) {
  const told = [];
  const tags = [];
  const say = (text, kind = "") => {
    told.push(text);
    tags.push(h("span", { class: `tag ${kind}` }, text));
  };
  const counted = ["face_embedding", "face_detection"].map((task) => jobs.get(task)?.result).find((result) => result?.faces);
  if (counted) say(counted.face_count ? count(counted.face_count, "face") : "no face", counted.face_count ? "good" : "");
  if (jobs.get("image_embedding")?.result) say("vector", "good");
  for (const job of jobs.values()) {
    if (job.status === "error" || job.status === "sync_failed") say(job.error_message?.split(":")[0] ?? job.status, "bad");
  }
  return [tags, told];
}

export function setHint(mayWrite) {
  setText(byId("latest-hint"), mayWrite
    ? "Drop a picture anywhere on this page, or choose one: it is put into the media store, looked at, and shown here."
    : "Results appear here as they come.");
}
