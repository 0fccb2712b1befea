// Pictures that are added here: into the media store, asked for, and followed until they are done.
import { ask, askJson, post } from "./api.js";
import { byId, count, h, keyed, setText, taskName } from "./dom.js";
import { note } from "./gallery.js";

const AT_A_TIME = 2;
const SHOWN = 6;
const LOOK_AGAIN = 4000;
const STEPS = { fetch: "fetching", decode: "decoding", detect: "looking for faces", infer: "in the model", store: "storing", deliver: "delivering" };
const ENDED = new Set(["completed", "error", "sync_failed"]);

const entries = [];
const jobs = new Map();
let taskTypes = [];
let under = 0;
let number = 0;
let timer = 0;

export const setTasks = (given) => { taskTypes = given; };

export function add(files) {
  for (const file of files) {
    entries.push({ key: ++number, file, name: file.name, state: "waits", jobs: new Map(), url: null });
  }
  paint();
  next();
}

export function heard(job, stage) {
  const known = jobs.get(job.job_id);
  if (!known) return;
  // Events and answers cross: what has ended does not run again.
  if (ENDED.has(known.status) && !ENDED.has(job.status ?? "")) return;
  Object.assign(known, job);
  known.stage = stage ?? null;
  if (ENDED.has(known.status)) note(known, { now: true });
  paint();
}

function next() {
  while (under < AT_A_TIME) {
    const entry = entries.find((each) => each.state === "waits");
    if (!entry) return;
    under += 1;
    entry.state = "uploading";
    run(entry).catch((error) => {
      entry.state = "failed";
      entry.error = error.message;
    }).finally(() => {
      under -= 1;
      entry.file = null;
      paint();
      next();
    });
    paint();
  }
}

async function run(entry) {
  const body = entry.file;
  const type = body.type.startsWith("image/") ? body.type : "image/unknown";
  let stored;
  for (let again = 0; ; again += 1) {
    try {
      const path = `console/upload?${new URLSearchParams({ name: entry.name.slice(0, 200) || "picture" })}`;
      stored = await (await ask(path, { method: "POST", body, headers: { "Content-Type": type } })).json();
      break;
    } catch (error) {
      if (error.code !== "busy" || again >= 5) throw error;
      await new Promise((done) => setTimeout(done, 700 * (again + 1)));
    }
  }
  entry.id = stored.media_store_id;
  entry.state = "asked";
  for (const taskType of taskTypes) {
    // Our own id, known before the answer: an event that comes first is not missed.
    const job = { job_id: crypto.randomUUID(), task_type: taskType, media_store_id: entry.id, status: "pending" };
    entry.jobs.set(taskType, job);
    jobs.set(job.job_id, job);
    try {
      heard(await post(`job/${taskType}`, { media_store_id: entry.id, job_id: job.job_id, priority: 8 }));
    } catch (error) {
      Object.assign(job, { status: "error", error_message: error.message });
    }
  }
  timer ||= setTimeout(lookAgain, LOOK_AGAIN);
}

// Events may be thinned out or lost with the connection: what is not heard of is asked for.
async function lookAgain() {
  timer = 0;
  const open = [...jobs.values()].filter((job) => !ENDED.has(job.status)).slice(0, 20);
  for (const job of open) {
    try {
      const found = await askJson(`job/${job.job_id}`);
      if (found.status !== job.status) heard(found);
    } catch (error) {
      // One that was taken is gone for good: deleted, or pruned. All else is asked again at the next look.
      if (error.code === "job_not_found" && job.created_at) heard({ job_id: job.job_id, status: "error", error_message: "deleted" });
    }
  }
  if (open.length) timer = setTimeout(lookAgain, LOOK_AGAIN);
}

function isDone(entry) {
  return entry.state === "failed" || (entry.state === "asked" && entry.jobs.size === taskTypes.length && [...entry.jobs.values()].every((job) => ENDED.has(job.status)));
}

function paint() {
  byId("adding").hidden = !entries.length;
  const done = entries.filter(isDone);
  setText(byId("adding-sum"), done.length === entries.length ? `${count(entries.length, "picture")} done` : `${done.length} of ${count(entries.length, "picture")} done`);
  const open = entries.filter((entry) => !isDone(entry));
  const shown = [...open.slice(0, SHOWN), ...done.slice(-Math.max(2, SHOWN - open.length)).reverse()].slice(0, SHOWN);
  keyed(byId("adding-list"), shown, (entry) => entry.key, create, update);
}

function create(entry) {
  const image = h("img", { alt: "", width: 40, height: 40 });
  if (entry.file) {
    const url = URL.createObjectURL(entry.file);
    image.addEventListener("load", () => URL.revokeObjectURL(url));
    image.addEventListener("error", () => image.removeAttribute("src"));
    image.src = url;
  }
  return h("li", {}, image, h("div", {}, h("p", { class: "name" }, entry.name), h("p", { class: "steps" })), h("span", { class: "tag" }));
}

function update(element, entry) {
  const bad = entry.state === "failed" || [...entry.jobs.values()].some((job) => job.status === "error" || job.status === "sync_failed");
  const words = isDone(entry) ? (bad ? "Failed" : "Done") : { waits: "Waits", uploading: "Uploading…", asked: "Working…" }[entry.state];
  const tag = element.querySelector(".tag");
  setText(tag, words);
  tag.className = `tag ${isDone(entry) ? (bad ? "bad" : "good") : ""}`;
  const steps = entry.error ? entry.error : [...entry.jobs.values()].map(step).join("   ·   ");
  setText(element.querySelector(".steps"), steps || " ");
}

function step(job) {
  const what = taskName(job.task_type);
  if (job.status === "completed") return `${what}: done`;
  if (ENDED.has(job.status)) return `${what}: ${job.error_message ?? "failed"}`;
  if (job.stage) return `${what}: ${STEPS[job.stage] ?? job.stage}`;
  return `${what}: ${job.status === "processing" ? "running" : "waiting"}`;
}
