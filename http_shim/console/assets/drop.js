// Pictures dropped anywhere on the page: to be added, or to search with.
import { byId } from "./dom.js";

const pictures = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/") || /\.(heic|heif|avif)$/i.test(file.name));

export function startDrop(handlers, offered) {
  const place = byId("drop");
  let inside = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const close = () => {
    inside = 0;
    place.hidden = true;
  };
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    inside += 1;
    for (const target of place.children) target.hidden = !offered(target.dataset.drop);
    place.hidden = ![...place.children].some((target) => !target.hidden);
  });
  addEventListener("dragleave", () => {
    inside -= 1;
    if (inside <= 0) close();
  });
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const over = event.target.closest?.(".drop-target");
    for (const target of place.children) target.toggleAttribute("data-over", target === over);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const over = event.target.closest?.(".drop-target")?.dataset.drop;
    const files = pictures(event.dataTransfer);
    close();
    const what = over ?? (offered("add") ? "add" : "similar");
    if (files.length && offered(what)) handlers[what](files);
    else handlers.none();
  });
}
