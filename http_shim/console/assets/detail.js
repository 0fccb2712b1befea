// One picture, large, with its faces and all that is known of it.
import { byId, clock, count, h, taskName } from "./dom.js";
import { askJson } from "./api.js";
import { redraw, showPicture } from "./faces.js";
import { facesOf, jobsOf } from "./gallery.js";

let actions = {};

export function startDetail(given) {
  actions = given;
  const dialog = byId("detail");
  byId("detail-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

export function openDetail(id, jobs = jobsOf(id)) {
  const dialog = byId("detail");
  byId("detail-title").textContent = `Picture ${id}`;
  const frame = h("div", { class: "frame" });
  const faces = facesOf(jobs).map((face) => ({ ...face }));
  byId("detail-picture").replaceChildren(frame);
  showPicture(frame, id, { side: 1280, how: "meet", faces: () => faces, alt: `Picture ${id}${faces.length ? `, ${count(faces.length, "face")}` : ""}` });
  const choose = (index) => {
    faces.forEach((face) => { face.chosen = face.face_index === index; });
    redraw(frame, faces, "meet");
  };
  byId("detail-facts").replaceChildren(...facts(id, jobs, faces, choose));
  if (!dialog.open) dialog.showModal();
}

// Looks up what is not at hand, as for a picture that a search found.
export async function openFound(id, jobId) {
  let jobs = jobsOf(id);
  if (!jobs.size && jobId) {
    try {
      const job = await askJson(`job/${jobId}`);
      jobs = new Map([[job.task_type, job]]);
    } catch {
      // Forgotten since: the picture is shown all the same.
    }
  }
  openDetail(id, jobs);
}

function facts(id, jobs, faces, choose) {
  const parts = [];
  const close = () => byId("detail").close();
  const can = actions.collections();
  const buttons = [];
  if (can.has("image_embedding")) {
    buttons.push(h("button", { type: "button", class: "secondary", onclick: () => { close(); actions.similar(id); } }, "Find similar pictures"));
  }
  if (buttons.length) parts.push(h("section", {}, h("div", { class: "actions" }, buttons)));
  if (faces.length) {
    parts.push(h("section", {}, h("h3", {}, count(faces.length, "face")), h("div", { class: "actions" },
      faces.slice(0, 20).map((face) => h("button", {
        type: "button", class: "small secondary",
        onfocus: () => choose(face.face_index), onmouseenter: () => choose(face.face_index),
        onmouseleave: () => choose(null), onblur: () => choose(null),
        onclick: () => {
          if (!can.has("face_embedding") || !jobs.get("face_embedding")?.result) {
            choose(face.face_index);
            return;
          }
          close();
          actions.face(id, face.face_index);
        },
      }, `${can.has("face_embedding") && jobs.get("face_embedding")?.result ? "Find face" : "Face"} ${face.face_index + 1} · ${face.confidence.toFixed(2)}`)))));
  }
  for (const job of jobs.values()) parts.push(h("section", {}, h("h3", {}, taskName(job.task_type)), ...told(job)));
  if (!jobs.size) parts.push(h("p", { class: "muted" }, "No job of this picture is known any more."));
  return parts;
}

function told(job) {
  const lines = [];
  if (job.error_message) lines.push(h("p", { class: "error" }, job.error_message));
  const ran = job.result?.inference;
  if (ran) {
    const untrained = ran.weights.toUpperCase().includes("UNTRAINED");
    lines.push(h("p", { class: "muted" }, `${ran.model} · ${ran.device} · ${ran.precision} `, untrained ? h("span", { class: "tag loud" }, "UNTRAINED") : null));
    const times = Object.entries(ran.timings_ms ?? {}).map(([stage, ms]) => `${stage} ${ms.toFixed(0)} ms`);
    if (times.length) lines.push(h("p", { class: "muted number" }, times.join(" · ")));
    for (const each of ran.notes ?? []) lines.push(h("p", { class: "muted" }, each));
  }
  if (job.completed_at) lines.push(h("p", { class: "muted number" }, `${job.status.replace("_", " ")}, ${clock(job.completed_at)}`));
  return lines;
}
