// Elements made and kept in step with lists, and numbers in words. No text ever becomes markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Keeps children in step with items by key: what stays is the same element, and keeps its focus.
export function keyed(parent, items, keyOf, create, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const key = String(keyOf(item));
    const element = there.get(key) ?? create(item);
    element.dataset.key = key;
    there.delete(key);
    update?.(element, item);
    return element;
  });
  for (const left of there.values()) left.remove();
  wanted.forEach((element, index) => {
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
  });
}

const plain = new Intl.NumberFormat("en");
export const number = (value) => plain.format(value);
export const count = (value, word, words = `${word}s`) => `${number(value)} ${value === 1 ? word : words}`;

export function duration(seconds) {
  if (seconds < 1) return "a moment";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 86400) {
    const minutes = Math.round(seconds / 60);
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }
  return count(Math.round(seconds / 86400), "day");
}

export function clock(ms) {
  const when = new Date(ms);
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return when.toDateString() === new Date().toDateString()
    ? time
    : `${when.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

const TASKS = {
  image_embedding: "Picture vectors",
  face_detection: "Faces found",
  face_embedding: "Face vectors",
};
export const taskName = (taskType) => TASKS[taskType] ?? taskType;

let toastTimer = 0;
export function toast(text) {
  const place = byId("toast");
  place.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { place.textContent = ""; }, 6000);
}
