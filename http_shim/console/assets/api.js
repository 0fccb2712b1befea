// Talks to the daemon's REST door with the token of this tab, and keeps pictures in memory.
const KEY = "inferd-token";
const PICTURES_AT_A_TIME = 3;
const PICTURES_KEPT = 160;

export class ApiError extends Error {
  constructor(status, code, detail, field) {
    super(detail);
    Object.assign(this, { status, code, field });
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const shown = token.get();
  if (shown) headers.set("Authorization", `Bearer ${shown}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The daemon does not answer.");
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's page: the status says enough.
  }
  // One that was asked before the latest sign-in says nothing of the token of now.
  if (response.status === 401 && shown === token.get()) dispatchEvent(new Event("inferd:locked"));
  throw new ApiError(response.status, body.code ?? `http_${response.status}`, body.detail ?? response.statusText, body.field);
}

export const askJson = async (path, options) => (await ask(path, options)).json();
export const post = (path, body) =>
  askJson(path, {
    method: "POST",
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

// Pictures: asked for with the token, a few at a time, shown from memory.
const kept = new Map();
const waiting = [];
let under = 0;

export function picture(id, side = 480) {
  const key = `${id}/${side}`;
  const known = kept.get(key);
  if (known) {
    kept.delete(key);
    kept.set(key, known);
    return known;
  }
  const found = turn(() => load(id, side));
  kept.set(key, found);
  found.catch(() => kept.delete(key));
  for (const [oldest, old] of kept) {
    if (kept.size <= PICTURES_KEPT) break;
    kept.delete(oldest);
    old.then((each) => URL.revokeObjectURL(each.url), () => {});
  }
  return found;
}

async function load(id, side) {
  for (let again = 0; ; again += 1) {
    try {
      const response = await ask(`console/picture/${id}?side=${side}`);
      return {
        url: URL.createObjectURL(await response.blob()),
        width: Number(response.headers.get("X-Picture-Width")),
        height: Number(response.headers.get("X-Picture-Height")),
      };
    } catch (error) {
      if (error.code !== "busy" || again >= 3) throw error;
      await new Promise((done) => setTimeout(done, 800 * (again + 1)));
    }
  }
}

function turn(work) {
  return new Promise((resolve, reject) => {
    waiting.push(() => work().then(resolve, reject));
    next();
  });
}

function next() {
  while (under < PICTURES_AT_A_TIME && waiting.length) {
    under += 1;
    // The latest asked for is what is looked at now.
    waiting.pop()().finally(() => {
      under -= 1;
      next();
    });
  }
}
