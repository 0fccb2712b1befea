// What waits, runs and is done by task type; pausing and resuming.
import { post } from "./api.js";
import { byId, clock, count, duration, h, keyed, number, setText, taskName, toast } from "./dom.js";

const PAUSES = [["Until resumed", null], ["For 15 minutes", 900], ["For 1 hour", 3600], ["For 8 hours", 28800]];

export function showQueue(queue, { mayWrite, taskTypes }) {
  const tasks = Object.entries(queue.task_types);
  headline(queue, tasks, idle(mayWrite, taskTypes));
  keyed(byId("tasks"), tasks, ([name]) => name, ([name]) => card(name), (element, [name, task]) => fill(element, name, task, mayWrite));
}

function idle(mayWrite, taskTypes) {
  const searches = taskTypes.includes("image_embedding") || taskTypes.includes("face_embedding");
  const purposes = [mayWrite ? "to add it" : null, searches ? "to search with it" : null].filter(Boolean);
  return purposes.length ? `Drop a picture anywhere on this page ${purposes.join(", or ")}.` : "Everything that was asked for is done.";
}

function headline(queue, tasks, otherwise) {
  const waiting = tasks.reduce((sum, [, task]) => sum + task.pending, 0);
  const running = tasks.reduce((sum, [, task]) => sum + task.processing, 0);
  const speed = tasks.reduce((sum, [, task]) => sum + (task.per_second ?? 0), 0);
  const paused = tasks.filter(([, task]) => task.paused).length;
  const left = tasks.map(([, task]) => task.seconds_left).filter((each) => each !== null);
  let title = "Nothing waits.";
  if (waiting) title = `${count(waiting, "job")} ${waiting === 1 ? "waits" : "wait"}`;
  else if (running) title = `${count(running, "job")} ${running === 1 ? "runs" : "run"}`;
  setText(byId("headline"), title);
  const said = [];
  if (waiting && running) said.push(`${number(running)} running`);
  if (waiting + running && speed) said.push(`${rate(speed)} a second`);
  if (left.length) said.push(`about ${duration(Math.max(...left))} left`);
  if (queue.delayed) said.push(`${number(queue.delayed)} wait for another try`);
  if (queue.undelivered) said.push(`${count(queue.undelivered, "result")} the media store has not taken`);
  if (paused) said.push(paused === tasks.length ? "everything is paused" : `${number(paused)} of ${tasks.length} paused`);
  setText(byId("subline"), said.join(" · ") || otherwise);
  document.title = waiting ? `${number(waiting)} · inferd` : "inferd";
}

const rate = (value) => (value >= 100 ? number(Math.round(value)) : value.toFixed(1));

function card(name) {
  const value = (key) => h("dd", { "data-value": key });
  const fact = (label, key) => h("div", {}, h("dt", {}, label), value(key));
  return h("li", { class: "card task" },
    h("div", { class: "task-head" }, h("h2", {}, taskName(name)), h("span", { class: "act" })),
    h("p", { class: "task-waiting" }, h("b", { "data-value": "pending" }), h("span", { class: "muted" }, "waiting")),
    h("p", { class: "task-note" }),
    h("div", { class: "bar", role: "presentation" }, h("i", {})),
    h("dl", {}, fact("Running", "processing"), fact("A second", "rate"), fact("Done", "done"), fact("Failed", "failed")));
}

function fill(element, name, task, mayWrite) {
  const set = (key, text) => setText(element.querySelector(`[data-value="${key}"]`), text);
  set("pending", number(task.pending));
  set("processing", number(task.processing));
  set("done", number(task.done));
  set("failed", number(task.failed));
  set("rate", task.per_second ? rate(task.per_second) : "–");
  element.querySelector('[data-value="failed"]').classList.toggle("bad", task.failed > 0);
  element.toggleAttribute("data-paused", task.paused);
  // Of what was asked for since somebody looks: done against done and waiting.
  const ended = task.done + task.failed;
  const all = ended + task.pending + task.processing;
  element.querySelector(".bar > i").style.setProperty("--share", all ? String(ended / all) : "0");
  setText(element.querySelector(".task-note"), note(task));
  element.dataset.seen = !task.paused ? "running" : task.paused_until ?? "open";
  const act = element.querySelector(".act");
  const wanted = !mayWrite ? "none" : task.paused ? "resume" : "pause";
  if (act.dataset.is !== wanted) {
    const had = act.contains(document.activeElement);
    act.dataset.is = wanted;
    act.replaceChildren(...(wanted === "none" ? [] : [wanted === "resume" ? resume(name) : pause(name)]));
    if (had) act.querySelector("button")?.focus();
  }
}

function note(task) {
  if (task.paused) return task.paused_until ? `Paused until ${clock(task.paused_until)}` : "Paused until somebody resumes it";
  if (task.seconds_left !== null) return `About ${duration(task.seconds_left)} left`;
  if (task.pending + task.processing) return "Measuring how fast it goes…";
  return "Up to date";
}

async function change(name, verb, body, button) {
  button.disabled = true;
  try {
    // What is shown here: where another admin changed it meanwhile, nothing is done.
    const { seen } = button.closest(".task").dataset;
    await post(`queue/${name}/${verb}?${new URLSearchParams({ seen })}`, body);
    toast(`${taskName(name)}: ${verb === "pause" ? "paused" : "resumed"}`);
  } catch (error) {
    toast(error.message);
  } finally {
    button.disabled = false;
  }
}

function resume(name) {
  const button = h("button", { type: "button", class: "small secondary", "aria-label": `Resume: ${taskName(name)}` }, "Resume");
  button.addEventListener("click", () => change(name, "resume", undefined, button));
  return button;
}

function pause(name) {
  const choices = h("div", { hidden: true, role: "menu", "aria-label": "How long" });
  const button = h("button", { type: "button", class: "small quiet", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": `Pause: ${taskName(name)}` }, "Pause…");
  const menu = h("span", { class: "menu" }, button, choices);
  const open = (is) => {
    choices.hidden = !is;
    button.setAttribute("aria-expanded", String(is));
    if (is) choices.firstElementChild.focus();
  };
  for (const [label, seconds] of PAUSES) {
    choices.append(h("button", {
      type: "button", role: "menuitem",
      onclick: () => {
        open(false);
        button.focus();
        change(name, "pause", seconds === null ? {} : { seconds }, button);
      },
    }, label));
  }
  button.addEventListener("click", () => open(choices.hidden));
  menu.addEventListener("keydown", (event) => {
    const items = [...choices.children];
    const at = items.indexOf(document.activeElement);
    if (event.key === "Escape" && !choices.hidden) {
      open(false);
      button.focus();
    } else if (at >= 0 && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      items.at((at + (event.key === "ArrowDown" ? 1 : -1)) % items.length).focus();
    }
  });
  menu.addEventListener("focusout", (event) => {
    if (!menu.contains(event.relatedTarget)) open(false);
  });
  return menu;
}
