// What failed, by code, and asking for all of it again.
import { post } from "./api.js";
import { byId, clock, count, h, keyed, number, setText, taskName, toast } from "./dom.js";

export function showFailures({ groups }, { mayWrite }) {
  byId("failures-empty").hidden = groups.length > 0;
  keyed(byId("failures"), groups, (group) => `${group.code}/${group.task_type}`, create, (element, group) => update(element, group, mayWrite));
}

function create(group) {
  const button = h("button", { type: "button", class: "small secondary" }, "Retry all");
  button.addEventListener("click", () => retry(group, button));
  return h("li", {},
    h("div", { class: "row" }, h("code", { class: "code" }, group.code ?? "unknown"), h("b", { class: "number" })),
    h("p", { class: "said" }),
    h("div", { class: "row" }, h("span", { class: "muted when" }), button));
}

function update(element, group, mayWrite) {
  setText(element.querySelector("b"), number(group.number));
  setText(element.querySelector(".said"), group.message.replace(`${group.code}: `, ""));
  setText(element.querySelector(".when"), `${taskName(group.task_type)} · ${clock(group.latest)}`);
  const button = element.querySelector("button");
  button.hidden = !mayWrite || !group.code;
  button.setAttribute("aria-label", `Retry all: ${group.code}, ${taskName(group.task_type)}`);
}

async function retry(group, button) {
  button.disabled = true;
  try {
    let retried = 0;
    let before;
    for (;;) {
      const told = await post("job/retry", { code: group.code, task_type: group.task_type, before });
      retried += told.retried;
      // What fails once more meanwhile has the same code, and is not started a second time.
      before = told.before;
      // What a newer job stands for is left out each time: without progress there is an end.
      if (!told.more || !told.retried) break;
      toast(`${number(retried)} so far…`);
    }
    toast(`${count(retried, "job")} will be tried again`);
  } catch (error) {
    toast(error.message);
  } finally {
    button.disabled = false;
  }
}
