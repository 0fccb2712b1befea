// Puts the page together: signs in, listens to the daemon, hands each part what concerns it.
import { token } from "./api.js";
import { byId, toast } from "./dom.js";
import { add, heard, setTasks } from "./adding.js";
import { linkState, showDaemon } from "./daemon.js";
import { openDetail, startDetail } from "./detail.js";
import { startDrop } from "./drop.js";
import { showFailures } from "./failures.js";
import { note, noteAll, setHint, startGallery } from "./gallery.js";
import { showQueue } from "./queue.js";
import { byPicture, like, likeFace, offer, startSearch } from "./search.js";
import { Stream } from "./stream.js";
import { showWorkers } from "./workers.js";

const state = { mayWrite: false, taskTypes: [], report: null, up: false, queue: null, failures: null };
let stream = null;

function locked(reason = "") {
  // Several requests may be refused: the first says why, and nobody's typing is disturbed.
  if (!byId("login").hidden) return;
  stream?.stop();
  stream = null;
  const had = Boolean(token.get());
  token.forget();
  byId("main").hidden = true;
  byId("login").hidden = false;
  byId("leave").hidden = true;
  byId("login-error").textContent = reason || (had ? "This token is not good, or no longer." : "");
  byId("link").textContent = "Signed out";
  byId("link").dataset.state = "";
  byId("token").focus();
}

function begin() {
  byId("login").hidden = true;
  byId("main").hidden = false;
  stream = new Stream()
    .on("state", ({ up, error }) => {
      state.up = up;
      if (error?.status !== 401) linkState(state.report, up);
    })
    .on("hello", (hello) => {
      state.mayWrite = hello.may_write;
      state.taskTypes = hello.task_types;
      byId("leave").hidden = hello.is_open;
      byId("add").hidden = !hello.may_write;
      setHint(hello.may_write);
      setTasks(hello.task_types);
      offer(hello.task_types);
    })
    .on("queue", (queue) => showQueue(queue, state))
    .on("failures", (failures) => showFailures(failures, state))
    .on("workers", showWorkers)
    .on("daemon", (report) => {
      state.report = report;
      showDaemon(report);
      linkState(report, state.up);
    })
    .on("latest", ({ jobs }) => {
      noteAll(jobs);
      // The last part of a snapshot: all of it is shown at once.
      byId("main").removeAttribute("data-waiting");
    })
    .on("job", (event) => {
      if (!event.data?.job_id) return;
      heard(event.data);
      note(event.data);
    })
    .on("stage", ({ job_id: jobId, stage }) => heard({ job_id: jobId, status: "processing" }, stage))
    .on("trouble", ({ message }) => toast(message));
  stream.run();
}

addEventListener("inferd:locked", () => locked());
byId("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("token").value.trim().replace(/^Bearer\s+/i, "");
  byId("token").value = "";
  if (!given) return;
  token.set(given);
  begin();
});
byId("leave").addEventListener("click", () => {
  token.forget();
  // Everything that was shown goes with it.
  location.reload();
});

byId("add").addEventListener("click", () => byId("add-files").click());
byId("add-files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
startGallery((id) => openDetail(id));
startSearch();
startDetail({ collections: () => new Set(state.taskTypes), similar: like, face: likeFace });
startDrop({
  add: (files) => add(files),
  similar: ([file]) => byPicture(file, "similar"),
  face: ([file]) => byPicture(file, "face"),
  none: () => toast("That is no picture."),
}, (what) => ({
  add: state.mayWrite,
  similar: state.taskTypes.includes("image_embedding"),
  face: state.taskTypes.includes("face_embedding"),
}[what]));
if (document.documentElement.hasAttribute("data-guarded") && !token.get()) locked();
else begin();
