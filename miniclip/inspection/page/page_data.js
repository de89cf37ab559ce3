// What the page was given: the JSON, the matrices (unpacked when first needed), thumbnails, and numbers as text.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const captions = data.pairs.map((pair) => pair.caption), names = data.pairs.map((pair) => pair.name);
const n = captions.length;
const state = {
  view: "cosine", loss: data.loss, compare: "", order: "index", scale: data.temperature.learned,
  i: 0, j: 0, pinned: false, window: { x: 0, y: 0, span: 1 }, step: 0,
};

// Number of every one of the 65,536 float16.
const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const size = exponent === 31 ? (mantissa ? NaN : Infinity)
    : exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -24 * mantissa;
  HALF[bits] = bits & 32768 ? -size : size;
}

const unpacked = new Map();
const unpacking = new Map();

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

function keep(id, bytes) {
  const array = id === "m-cosine" ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
    : id === "m-positives" ? bytes : new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  unpacked.set(id, array);
  $(id).textContent = "";
  return array;
}

async function gunzip(id, planes) {
  const stream = new Blob([bytesOf($(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / planes, joined = new Uint8Array(bytes.length);
  for (let plane = 0; plane < planes; plane++) {
    for (let k = 0, from = plane * count, to = plane; k < count; k++, to += planes) joined[to] = bytes[from + k];
  }
  return keep(id, joined);
}

// The matrix, or null while it is being unpacked; whenReady waits for it.
function matrix(id) {
  if (unpacked.has(id)) return unpacked.get(id);
  const planes = Number($(id).dataset.planes || 0);
  if (!planes) return keep(id, bytesOf($(id).textContent));
  if (!unpacking.has(id)) unpacking.set(id, gunzip(id, planes));
  return null;
}

// Calls at once, within the same turn, if nothing is left to unpack.
function whenReady(ids, act) {
  if (ids.map(matrix).every((array) => array)) act();
  else Promise.all(ids.map((id) => unpacking.get(id))).then(act);
}

const idOf = (view, loss) => (view === "pair_loss" || view === "gradient" ? `m-${view}-${loss}` : "m-cosine");

function isPositive(i, j) {
  const bits = matrix("m-positives"), k = i * n + j;
  return bits ? ((bits[k >> 3] >> (k & 7)) & 1) === 1 : i === j;
}

// Lowest and highest of all cosines, and of each row and column; NaN is passed over.
let cosineRange = null;
function ranges() {
  if (cosineRange) return cosineRange;
  const cosine = matrix("m-cosine");
  const rows = new Float64Array(n).fill(-Infinity), columns = new Float64Array(n).fill(-Infinity);
  let low = Infinity, high = -Infinity;
  for (let i = 0, k = 0; i < n; i++) {
    let best = -Infinity;
    for (let j = 0; j < n; j++, k++) {
      const value = cosine[k];
      if (value > best) best = value;
      if (value > columns[j]) columns[j] = value;
      if (value < low) low = value;
    }
    rows[i] = best;
    if (best > high) high = best;
  }
  if (low > high) low = high = 0;
  cosineRange = { low, high, rows, columns };
  return cosineRange;
}

// Log of the sum of exp(scale * cosine) of each row and each column, with the largest taken out first.
let partition = { scale: NaN };
function partitions() {
  if (partition.scale === state.scale) return partition;
  const cosine = matrix("m-cosine"), { rows, columns } = ranges(), scale = state.scale;
  const row = new Float64Array(n), column = new Float64Array(n);
  for (let i = 0, k = 0; i < n; i++) {
    const top = rows[i];
    let sum = 0;
    for (let j = 0; j < n; j++, k++) {
      const value = cosine[k];
      sum += Math.exp(scale * (value - top));
      column[j] += Math.exp(scale * (value - columns[j]));
    }
    row[i] = scale * top + Math.log(sum);
  }
  for (let j = 0; j < n; j++) column[j] = scale * columns[j] + Math.log(column[j]);
  partition = { scale, row, column };
  return partition;
}

// One entry of a view; undefined while its matrix is being unpacked.
function valueOf(view, i, j, loss = state.loss) {
  const id = idOf(view, loss), array = matrix(id);
  if (!array || !matrix("m-cosine")) return undefined;
  const entry = array[i * n + j];
  if (id !== "m-cosine") return HALF[entry] * data.factors[id];
  if (view === "cosine") return entry;
  if (view === "logit") return state.scale * entry + (data.logit_bias ?? 0);
  if (view === "row_probability") return Math.exp(state.scale * entry - partitions().row[i]);
  if (view === "column_probability") return Math.exp(state.scale * entry - partitions().column[j]);
  throw new RangeError(`unknown view ${view}`);
}


function format(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "n/a";
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "-infinite";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(digits - 1).replace("e+", "e");
  if (size >= 10 ** digits) return value.toFixed(0);
  return value.toPrecision(digits);
}

const percent = (share) => (known(share) ? `${share < 5e-4 ? format(100 * share, 2) : (100 * share).toFixed(1)}\u00a0%` : "n/a");
const settingsOf = (loss) => Object.entries(data.losses[loss].settings).map(([name, value]) => `${name} ${value}`).join(", ");
const about = (value) => (data.rounded && value ? "about " : "");
const unitOf = (view, loss) => {
  const unit = data.losses[loss].unit;
  if (view === "pair_loss") return unit;
  if (view === "gradient") return unit === "cosine" ? "cosine of loss per cosine" : "nats per logit";
  return view === "logit" ? "nats" : "";
};

const VIEW_NAMES = {
  cosine: "Cosine", logit: "Logit", row_probability: "p(text | image)", column_probability: "p(image | text)",
  pair_loss: "Pair loss", gradient: "Gradient",
};

// How the pairs i and j repeat each other: as the lists say, or by equal captions.
const duplicates = new Map();
for (const list of ["false_negatives", "hardest_negatives", "worst_positives"]) {
  for (const { i, j, duplicate } of data[list]) {
    if (duplicate) duplicates.set(i * n + j, duplicate).set(j * n + i, duplicate);
  }
}
function duplicateOf(i, j) {
  if (i === j) return null;
  return duplicates.get(i * n + j) ?? (captions[i] === captions[j] ? "text" : null);
}
const SAME = { text: "same text", image: "same image", both: "same text and image" };

// Thumbnails: every sheet once as an image for the canvases and once as a style for the rest.
const sheets = [];
{
  let rules = "";
  for (let k = 0; k < data.sheets; k++) {
    const url = `data:image/jpeg;base64,${$(`sheet-${k}`).textContent}`;
    const image = new Image();
    image.src = url;
    sheets.push(image);
    rules += `.sheet-${k}{background-image:url("${url}")}\n`;
    $(`sheet-${k}`).textContent = "";
  }
  const style = document.createElement("style");
  style.textContent = rules;
  document.head.append(style);
}
const perSheet = data.sheet ** 2;
const placeOf = (k) => ({ sheet: Math.floor(k / perSheet), x: k % data.sheet, y: Math.floor((k % perSheet) / data.sheet) });

function drawThumbnail(context, k, x, y, size) {
  const place = placeOf(k), edge = data.thumbnail, sheet = sheets[place.sheet];
  if (sheet.complete && sheet.naturalWidth) context.drawImage(sheet, place.x * edge, place.y * edge, edge, edge, x, y, size, size);
}

// An element with attributes and children; text becomes text nodes, never markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function thumbnail(k, label) {
  const place = placeOf(k), made = element("span", { class: `thumb sheet-${place.sheet}`, role: "img", "aria-label": label });
  made.style.setProperty("--x", place.x);
  made.style.setProperty("--y", place.y);
  return made;
}
