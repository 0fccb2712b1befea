// Which of the stored ones a search looks at: the fields under the search form, as the route's query.
import { byId } from "./dom.js";

const FIELDS = ["filter-from", "filter-to", "filter-ids", "filter-request", "filter-payload"];

export function startFilters(changed) {
  const told = () => {
    byId("filters").toggleAttribute("data-set", Object.keys(filters()).length > 0);
    changed();
  };
  for (const id of FIELDS) byId(id).addEventListener("change", told);
  byId("filter-none").addEventListener("click", () => {
    for (const id of FIELDS) byId(id).value = "";
    told();
  });
}

export function filters() {
  const [from, to, ids, request, pair] = FIELDS.map((id) => byId(id).value.trim());
  const query = {
    stored_after: from && midnight(from, 0),
    // The day itself counts.
    stored_before: to && midnight(to, 1),
    media_store_ids: ids.split(/[\s,]+/).filter(Boolean).join(","),
    request_id: request,
    payload: pair && payload(pair),
  };
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value));
}

function midnight(day, later) {
  const [year, month, date] = day.split("-").map(Number);
  return String(new Date(year, month - 1, date + later).getTime());
}

function payload(pair) {
  const [name, ...rest] = pair.split("=");
  const word = rest.join("=").trim();
  // As on the command line: whole numbers are numbers, and a text of digits stands in quotes.
  let value = word;
  try {
    const said = JSON.parse(word);
    if (Number.isSafeInteger(said) || typeof said === "string") value = said;
  } catch {
    // A plain text.
  }
  return JSON.stringify({ [name.trim()]: value });
}
