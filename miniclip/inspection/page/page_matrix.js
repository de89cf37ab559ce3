// The heat map: values to levels, levels to colours, zoom, and the cell under the pointer.

const LEVELS = 1024;
const ROOT = 1 / 3;

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function parseColour(text) {
  return [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
}

// 1,024 colours between the stops, as little-endian RGBA.
function ramp(stops) {
  const colours = new Uint32Array(LEVELS);
  for (let k = 0; k < LEVELS; k++) {
    const place = (k / (LEVELS - 1)) * (stops.length - 1), left = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(stops[left][c] + (place - left) * (stops[left + 1][c] - stops[left][c])));
    colours[k] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colours;
}

let palettes = null;
function paletteOf(view) {
  // Sequential: the stops of cividis (Nunez et al., 2018), made for colour-blind readers.
  palettes ??= {
    sequential: ramp(["#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78", "#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838"].map(parseColour)),
    diverging: ramp(style("--diverging").split(" ").map(parseColour)),
  };
  return view === "gradient" ? palettes.diverging : palettes.sequential;
}

const clampLevel = (t) => (t >= 0 ? Math.min(LEVELS - 1, Math.round(t * (LEVELS - 1))) : 0);
const root = (value) => Math.sign(value) * Math.abs(value) ** ROOT;

// Level of every float16 for the scale of a matrix; half of the range of a gradient lies on each side of 0.
const halfLevels = new Map();
function levelsOfHalves(view, id) {
  if (halfLevels.has(id)) return halfLevels.get(id);
  let low = 0, high = 0;
  if (view === "gradient") [low, high] = [-32768, 32768]; // what the largest entry is written as
  else for (const bits of matrix(id)) {
    const value = HALF[bits];
    if (value < low) low = value;
    else if (value > high) high = value;
  }
  if (low === high) high = 32768;
  const table = new Uint16Array(65536), from = root(low), width = root(high) - from;
  for (let bits = 0; bits < 65536; bits++) table[bits] = clampLevel((root(HALF[bits]) - from) / width);
  const found = { table, low: low * data.factors[id], high: high * data.factors[id] };
  halfLevels.set(id, found);
  return found;
}

// Level of exp(-k / 64), for probabilities straight from their logarithms.
const LOG_LEVELS = Uint16Array.from({ length: 2048 }, (_, k) => clampLevel(Math.exp((-k / 64) * ROOT)));

// Levels of the whole matrix in the order of display.
function levelsOf(view, loss, order) {
  const levels = new Uint16Array(n * n), id = idOf(view, loss), array = matrix(id);
  if (id !== "m-cosine") {
    const { table } = levelsOfHalves(view, id);
    for (let r = 0, k = 0; r < n; r++) {
      const base = order[r] * n;
      for (let c = 0; c < n; c++, k++) levels[k] = table[array[base + order[c]]];
    }
  } else if (view === "cosine" || view === "logit") {
    const { low, high } = ranges(), factor = high > low ? (LEVELS - 1) / (high - low) : 0;
    for (let r = 0, k = 0; r < n; r++) {
      const base = order[r] * n;
      for (let c = 0; c < n; c++, k++) levels[k] = (array[base + order[c]] - low) * factor + 0.5;
    }
  } else {
    const { row, column } = partitions(), scale = state.scale * 64, byRow = view === "row_probability";
    for (let r = 0, k = 0; r < n; r++) {
      const base = order[r] * n, own = row[order[r]];
      for (let c = 0; c < n; c++, k++) {
        const j = order[c], drop = (byRow ? own : column[j]) * 64 - scale * array[base + j];
        levels[k] = LOG_LEVELS[drop > 0 ? (drop < 2047 ? (drop + 0.5) | 0 : 2047) : 0];
      }
    }
  }
  return levels;
}

// How much a level stands out: from the low end, or from the middle of a diverging scale.
const STRENGTH = {
  sequential: Uint16Array.from({ length: LEVELS }, (_, k) => k),
  diverging: Uint16Array.from({ length: LEVELS }, (_, k) => Math.round(Math.abs(k - (LEVELS - 1) / 2))),
};

// Draws the part of the matrix in `window` (x, y, span: fractions) over the canvas. Cells larger than a point are
// squares; of smaller ones the strongest that falls on a point is shown, so that single cells do not vanish.
function paint(canvas, levels, size, window, palette, diverging, cache) {
  const context = canvas.getContext("2d"), width = canvas.width, cell = width / (size * window.span);
  if (!width) return;
  if (cell >= 1) {
    if (!cache.sheet) {
      cache.sheet = document.createElement("canvas");
      cache.sheet.width = cache.sheet.height = size;
      const image = new ImageData(size, size), pixels = new Uint32Array(image.data.buffer);
      for (let k = 0; k < pixels.length; k++) pixels[k] = palette[levels[k]];
      cache.sheet.getContext("2d").putImageData(image, 0, 0);
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(cache.sheet, window.x * size, window.y * size, window.span * size, window.span * size, 0, 0, width, width);
    return;
  }
  const strength = diverging ? STRENGTH.diverging : STRENGTH.sequential;
  const first = (start) => Math.max(0, Math.floor(start * size)), last = (start) => Math.min(size, Math.ceil((start + window.span) * size));
  const [r0, r1, c0, c1] = [first(window.y), last(window.y), first(window.x), last(window.x)];
  const point = (k, start) => Math.min(width - 1, Math.max(0, Math.floor((k - start * size + 0.5) * cell)));
  const across = Uint16Array.from({ length: c1 - c0 }, (_, k) => point(c0 + k, window.x));
  const best = new Uint16Array(width * width).fill(diverging ? LEVELS / 2 : 0);
  for (let r = r0; r < r1; r++) {
    const line = point(r, window.y) * width, base = r * size + c0;
    for (let c = 0; c < across.length; c++) {
      const level = levels[base + c], at = line + across[c];
      if (strength[level] > strength[best[at]]) best[at] = level;
    }
  }
  const image = new ImageData(width, width), pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < pixels.length; k++) pixels[k] = palette[best[k]];
  context.putImageData(image, 0, 0);
}

// The two maps: the main one, and the one beside it under another loss.
const maps = { main: { canvas: $("matrix"), overlay: $("overlay") }, second: { canvas: $("matrix2"), overlay: $("overlay2") } };
const orderOf = () => data.orders[state.order];

function repaint(map) {
  if (!map.levels) return;
  paint(map.canvas, map.levels, n, state.window, paletteOf(map.view), map.view === "gradient", map);
}

function redrawMap(map, view, loss, legend) {
  const start = performance.now(), order = orderOf();
  map.levels = levelsOf(view, loss, order);
  map.view = view;
  map.sheet = null;
  repaint(map);
  if (map === maps.main) drawAxes();
  drawOverlay(map);
  drawLegend(legend, view, loss);
  const drawn = (performance.now() - start).toFixed(1);
  const { canvas } = map;
  Object.assign(canvas.dataset, { view, loss, order: state.order, drawMs: drawn });
  const under = divides(view) ? ` of the ${loss} loss` : "";
  canvas.setAttribute("aria-label", `Matrix of ${n} images (rows) and ${n} texts (columns): ${VIEW_NAMES[view]}${under}, in the order ${state.order}`);
}

// Only the views that divide a loss can be compared.
const divides = (view) => view === "pair_loss" || view === "gradient";
const compared = () => (divides(state.view) ? state.compare : "");

let drawing = 0;
function redraw() {
  const { view, loss } = state, compare = compared(), ids = ["m-cosine", "m-positives", idOf(view, loss)];
  if (compare) ids.push(idOf(view, compare));
  const turn = ++drawing;
  $("busy").hidden = ids.every((id) => matrix(id));
  whenReady(ids, () => {
    if (turn !== drawing) return;
    $("busy").hidden = true;
    redrawMap(maps.main, view, loss, $("legend"));
    if (compare) redrawMap(maps.second, view, compare, $("legend2"));
    showDetails();
  });
}

// Moving and zooming only: the levels stay.
let moving = 0;
function move() {
  moving ||= requestAnimationFrame(() => {
    moving = 0;
    repaint(maps.main);
    if (compared()) repaint(maps.second);
    drawAxes();
    drawOverlays();
    $("matrix").dataset.zoom = (1 / state.window.span).toFixed(2);
    $("matrix").style.touchAction = state.window.span < 1 ? "none" : "pan-y";
    $("zoom-out").disabled = $("zoom-reset").disabled = state.window.span === 1;
    $("zoom-in").disabled = state.window.span <= smallest;
  });
}

const smallest = Math.min(1, 3 / n);
function zoomTo(span, x = 0.5, y = 0.5) {
  const window = state.window, next = Math.min(1, Math.max(smallest, span));
  placeWindow(window.x + x * (window.span - next), window.y + y * (window.span - next), next);
}
function placeWindow(x, y, span = state.window.span) {
  const inside = (value) => Math.min(1 - span, Math.max(0, value));
  state.window = { x: inside(x), y: inside(y), span };
  move();
}
// Zooming with buttons and keys holds the chosen cell in place, if it is in sight.
function zoomBy(factor) {
  const place = positionOf(state.i, state.j), window = state.window;
  const at = [(place.column + 0.5) / n, (place.row + 0.5) / n].map((p, k) => (p - (k ? window.y : window.x)) / window.span);
  zoomTo(window.span / factor, ...(at.every((p) => p >= 0 && p <= 1) ? at : [0.5, 0.5]));
}

const places = {};
function positionOf(i, j) {
  if (!places[state.order]) {
    places[state.order] = new Int32Array(n);
    orderOf().forEach((k, position) => (places[state.order][k] = position));
  }
  return { row: places[state.order][i], column: places[state.order][j] };
}

function cellAt(canvas, clientX, clientY) {
  const box = canvas.getBoundingClientRect(), window = state.window;
  const along = (fraction, start) => Math.min(n - 1, Math.max(0, Math.floor((start + fraction * window.span) * n)));
  const row = along((clientY - box.top) / box.height, window.y), column = along((clientX - box.left) / box.width, window.x);
  return { i: orderOf()[row], j: orderOf()[column] };
}

// Axes: thumbnails once a cell is 20 points wide, before that the position in the order.
function drawAxes() {
  const cell = $("matrix").clientWidth / (n * state.window.span);
  drawAxis($("axis-left"), cell, state.window.y, false);
  drawAxis($("axis-top"), cell, state.window.x, true);
}

function drawAxis(canvas, cell, start, across) {
  const ratio = Number(canvas.dataset.ratio || 1), context = canvas.getContext("2d");
  const width = canvas.width / ratio, height = canvas.height / ratio, length = across ? width : height, depth = across ? height : width;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const first = Math.floor(start * n), last = Math.min(n, Math.ceil((start + state.window.span) * n));
  const at = (position) => (position - start * n) * cell;
  canvas.dataset.thumbnails = cell >= 20;
  if (cell >= 20) {
    const size = Math.min(cell - 1, depth - 3);
    for (let k = first; k < last; k++) {
      const middle = at(k) + (cell - size) / 2, edge = depth - 2 - size;
      drawThumbnail(context, orderOf()[k], across ? middle : edge, across ? edge : middle, size);
    }
    return;
  }
  context.fillStyle = context.strokeStyle = style("--muted");
  context.font = "11px system-ui, sans-serif";
  const gap = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((step) => step * cell >= 46) ?? 2000;
  for (let k = Math.ceil(first / gap) * gap; k < last; k += gap) {
    const place = at(k + 0.5);
    if (place < 0 || place > length) continue;
    if (across) {
      context.fillRect(Math.round(place), depth - 6, 1, 4);
      context.textAlign = place < 10 ? "left" : place > length - 12 ? "right" : "center";
      context.fillText(k, place < 10 ? 0 : Math.min(place, length), depth - 9);
    } else {
      context.fillRect(depth - 6, Math.round(place), 4, 1);
      context.textAlign = "right";
      context.fillText(k, depth - 9, Math.min(length - 2, Math.max(9, place + 4)));
    }
  }
  if (!across) return;
  context.textAlign = "left";
  context.fillText(`images down, texts across, ${ORDER_NAMES[state.order] ?? state.order}`, 0, 11);
}
const ORDER_NAMES = { index: "as drawn", loss: "by loss", cluster: "by cluster", length: "by caption length" };

// The chosen cell: an outline that is seen on any colour, and hair lines to the axes.
function drawOverlay({ overlay, view }) {
  const context = overlay.getContext("2d"), width = overlay.width, ratio = Number(overlay.dataset.ratio || 1);
  const { row, column } = positionOf(state.i, state.j), cell = width / (n * state.window.span);
  const x = (column - state.window.x * n) * cell, y = (row - state.window.y * n) * cell;
  context.clearRect(0, 0, width, width);
  const lines = state.pinned ? [["rgb(0 0 0 / 60%)", 3], [style("--pin"), 1]] : [[view === "gradient" ? "rgb(128 128 128 / 65%)" : "rgb(255 255 255 / 50%)", 1]];
  for (const [colour, line] of lines) {
    context.fillStyle = colour;
    context.fillRect(x + (cell - line * ratio) / 2, 0, line * ratio, width);
    context.fillRect(0, y + (cell - line * ratio) / 2, width, line * ratio);
  }
  const size = Math.max(cell, 7 * ratio), left = x + (cell - size) / 2, top = y + (cell - size) / 2;
  context.clearRect(left, top, size, size);
  for (const [colour, line] of [["#000000", 4], [state.pinned ? style("--pin") : "#ffffff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line * ratio;
    context.strokeRect(left, top, size, size);
  }
}
function drawOverlays() {
  drawOverlay(maps.main);
  if (compared()) drawOverlay(maps.second);
}

// The colour scale, with its numbers and its unit.
function rangeOf(view, loss) {
  if (view === "row_probability" || view === "column_probability") return { low: 0, high: 1, root: true };
  if (divides(view)) return { ...levelsOfHalves(view, idOf(view, loss)), root: true };
  const { low, high } = ranges(), [a, b] = view === "logit" ? [state.scale, data.logit_bias ?? 0] : [1, 0];
  return { low: a * low + b, high: a * high + b, root: false };
}

function drawLegend(legend, view, loss) {
  const range = rangeOf(view, loss), colours = document.createElement("canvas");
  colours.width = LEVELS;
  colours.height = 1;
  const image = new ImageData(LEVELS, 1);
  new Uint32Array(image.data.buffer).set(paletteOf(view));
  colours.getContext("2d").putImageData(image, 0, 0);
  const scale = (value) => (range.root ? (root(value) - root(range.low)) / (root(range.high) - root(range.low)) : (value - range.low) / (range.high - range.low || 1));
  const largest = Math.max(range.high, -range.low);
  // The most important first; one that would touch another is left out.
  const wanted = !range.root ? [0, 1, 0.5, 0.25, 0.75].map((t) => range.low + t * (range.high - range.low))
    : [range.low, range.high, 0, ...[0.1, -0.1, 0.01, -0.01].map((t) => t * largest)].filter((v) => v >= range.low && v <= range.high);
  const apart = 52 / (legend.clientWidth || 500), ticks = [];
  for (const value of wanted) if (ticks.every((other) => Math.abs(scale(other) - scale(value)) > apart)) ticks.push(value);
  const marks = element("div", { class: "marks" });
  for (const value of ticks.sort((a, b) => a - b)) {
    const mark = element("span", {}, format(value, range.root ? 2 : 3));
    mark.style.left = `${100 * scale(value)}%`;
    marks.append(mark);
  }
  const unit = unitOf(view, loss), words = [[VIEW_NAMES[view], divides(view) ? loss : "", unit].filter(Boolean).join(", ")];
  if (range.root) words.push("cube-root scale");
  if (view === "gradient") words.push("blue: pulled together, orange: pushed apart");
  if (view === "logit") words.push(`scale ${format(state.scale)}`);
  legend.replaceChildren(colours, marks, element("p", {}, words.join("; ")));
}

function sizeCanvas(canvas) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  canvas.dataset.ratio = ratio;
  if (canvas.width === width && canvas.height === height) return false;
  canvas.width = width;
  canvas.height = height;
  return true;
}

function resize() {
  const changed = ["matrix", "overlay", "axis-left", "axis-top", ...(compared() ? ["matrix2", "overlay2"] : [])].map((id) => sizeCanvas($(id)));
  if (changed.some(Boolean)) move();
}

// Pointer, wheel and keyboard.
function listen() {
  for (const map of Object.values(maps)) listenTo(map.canvas);
  $("matrix").addEventListener("keydown", onKey);
  $("zoom-in").addEventListener("click", () => zoomBy(2));
  $("zoom-out").addEventListener("click", () => zoomBy(0.5));
  $("zoom-reset").addEventListener("click", () => zoomTo(1));
  new ResizeObserver(resize).observe($("plots"));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.pinned) pin(false);
  });
}

function listenTo(canvas) {
  const pointers = new Map();
  let dragged = false, apart = 0;
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY });
    if (pointers.size === 1) dragged = false;
    else [dragged, apart] = [true, spread()];
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId), box = canvas.getBoundingClientRect();
    if (!before) {
      if (!state.pinned) choose(cellAt(canvas, event.clientX, event.clientY));
      return;
    }
    const dx = event.clientX - before.x, dy = event.clientY - before.y, span = state.window.span;
    if (!dragged && Math.hypot(event.clientX - before.startX, event.clientY - before.startY) < 5) return;
    if (!dragged) canvas.setPointerCapture(event.pointerId);
    dragged = true;
    Object.assign(before, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) {
      const next = spread(), [a, b] = [...pointers.values()];
      if (apart > 0 && next > 0) zoomTo((span * apart) / next, ((a.x + b.x) / 2 - box.left) / box.width, ((a.y + b.y) / 2 - box.top) / box.height);
      apart = next;
    } else if (span < 1) placeWindow(state.window.x - (dx / box.width) * span, state.window.y - (dy / box.height) * span);
  });
  const release = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", release);
  canvas.addEventListener("click", (event) => {
    if (dragged) return;
    const cell = cellAt(canvas, event.clientX, event.clientY), same = cell.i === state.i && cell.j === state.j;
    const unpin = state.pinned && same;
    choose(cell);
    pin(!unpin);
  });
  canvas.addEventListener("wheel", (event) => {
    // A pinch on a touchpad comes as a wheel with Ctrl; without it the page scrolls.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), pixels = event.deltaY * (event.deltaMode === 1 ? 30 : 1);
    zoomTo(state.window.span * Math.exp(Math.max(-200, Math.min(200, pixels)) * 0.0025), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = event.shiftKey ? 10 : 1;
  const steps = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
  if (steps) {
    const { row, column } = positionOf(state.i, state.j), order = orderOf(), inside = (k) => Math.min(n - 1, Math.max(0, k));
    choose({ i: order[inside(row + steps[0])], j: order[inside(column + steps[1])] });
    reveal();
    announce();
  } else if (event.key === "Enter" || event.key === " ") pin(!state.pinned);
  else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") zoomTo(1);
  else return;
  event.preventDefault();
}

// Moves the window so that the chosen cell is in it.
function reveal() {
  const { row, column } = positionOf(state.i, state.j), { x, y, span } = state.window;
  const shift = (start, k) => Math.min(k / n, Math.max(start, (k + 1) / n - span));
  placeWindow(shift(x, column), shift(y, row));
}
