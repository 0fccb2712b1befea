// A picture with its faces drawn: boxes and landmarks in the picture's own pixels, as an overlay.
import { h, s } from "./dom.js";
import { picture } from "./api.js";

// Fills a `.picture` element; `how` is slice (cropped to the frame) or meet (all of it).
export function showPicture(place, id, { side = 480, how = "slice", faces = () => [], alt } = {}) {
  if (place.dataset.shows === `${id}/${side}`) {
    redraw(place, faces(), how);
    return;
  }
  place.dataset.shows = `${id}/${side}`;
  place.replaceChildren();
  picture(id, side).then(
    (found) => {
      if (place.dataset.shows !== `${id}/${side}`) return;
      const image = h("img", { src: found.url, alt: alt ?? `Picture ${id}`, width: found.width, height: found.height, decoding: "async" });
      place.replaceChildren(image);
      place.size = [found.width, found.height];
      redraw(place, faces(), how);
    },
    (error) => {
      if (place.dataset.shows !== `${id}/${side}`) return;
      delete place.dataset.shows;
      place.replaceChildren(h("span", { class: "why" }, error.code === "media_not_found" ? "The media store no longer has this picture." : error.message));
    },
  );
}

export function redraw(place, faces, how = "slice") {
  if (!place.size) return;
  place.querySelector("svg")?.remove();
  if (!faces.length) return;
  const [width, height] = place.size;
  place.append(
    s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: `${how === "slice" ? "xMidYMin" : "xMidYMid"} ${how}`, "aria-hidden": "true" },
      faces.map((face) => drawn(face, faces))),
  );
}

function drawn(face, all) {
  const { x, y, width, height } = face.bbox;
  const chosen = all.some((each) => each.chosen);
  const box = (kind) => s("rect", { class: kind, x, y, width, height, rx: Math.min(width, height) * 0.06 });
  const marks = (face.landmarks ?? []).flatMap(([px, py]) => ["mark-shade", "mark"].map((kind) =>
    s("path", { class: kind, d: `M${px} ${py}h0` })));
  return s("g", { class: "face", "data-chosen": Boolean(face.chosen), "data-other": chosen && !face.chosen },
    box("shade"), box("line"), marks);
}
