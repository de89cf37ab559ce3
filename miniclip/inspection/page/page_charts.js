// Curves: the scale, the free energy, and the training over time.

function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

// A chart in the box of an SVG. series: {name, kind, xs, ys}, with null for a gap. marks: {x, kind, label}, upright lines.
// Returns the two mappings from values to points.
function chart(target, box, { title, series, marks = [], logX = false, zero = false, ticksX = null, rangeX = null, shown = format }) {
  const group = svg("g"), left = box.x + 40, right = box.x + box.width - 8, top = box.y + 22, bottom = box.y + box.height - (ticksX ? 17 : 6);
  const warp = logX ? Math.log : (x) => x;
  const xs = rangeX ?? series.flatMap((s) => s.xs).filter(known), ys = series.flatMap((s) => s.ys).filter(known);
  const bounds = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  let [x0, x1] = bounds(xs), [y0, y1] = bounds(ys);
  if (zero) y0 = Math.min(0, y0);
  if (y0 > y1) [y0, y1] = [0, 1];
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  if (x0 > x1) [x0, x1] = [0, 1];
  const placeX = (x) => left + (x0 === x1 ? 0.5 : (warp(x) - warp(x0)) / (warp(x1) - warp(x0))) * (right - left);
  const placeY = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
  group.append(svg("text", { x: box.x, y: box.y + 11, class: "title" }, title));
  for (const y of [y0, y1]) {
    group.append(svg("line", { x1: left, x2: right, y1: placeY(y), y2: placeY(y), class: "grid" }));
    group.append(svg("text", { x: left - 5, y: placeY(y) + 4, class: "tick end" }, shown(y)));
  }
  for (const x of ticksX ?? []) {
    const place = placeX(x), anchor = place > right - 14 ? "end" : place < left + 8 ? "start" : "middle";
    if (place >= left - 1 && place <= right + 1) group.append(svg("text", { x: place, y: bottom + 13, class: `tick ${anchor}` }, x));
  }
  for (const { x, kind, label } of marks) {
    if (!known(x)) continue;
    const place = Math.min(right, Math.max(left, placeX(x)));
    const line = svg("line", { x1: place, x2: place, y1: top, y2: bottom, class: `mark ${kind}` });
    line.append(svg("title", {}, label));
    group.append(line);
  }
  for (const { name, kind, xs: along, ys: values } of series) {
    let path = "", pen = false;
    const points = values.filter(known).length;
    values.forEach((y, k) => {
      if (known(y) && known(along[k])) path += `${pen ? "L" : "M"}${placeX(along[k]).toFixed(1)} ${placeY(y).toFixed(1)}`;
      pen = known(y) && known(along[k]);
    });
    const curve = svg("path", { d: points === 1 ? `${path}h0.01` : path, class: `curve ${kind}` });
    curve.append(svg("title", {}, name));
    group.append(curve);
  }
  target.append(group);
  return { placeX, placeY, left, right, top, bottom };
}

function fit(target, height) {
  const width = Math.max(200, target.clientWidth || 300);
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  target.style.height = `${height}px`;
  target.replaceChildren();
  return width;
}

// The value at a scale, between the two that were computed, along the logarithm of the scale.
function atScale(values, scale) {
  const { scales } = data.temperature;
  const k = Math.min(scales.length - 1, Math.max(1, scales.findIndex((s) => s >= scale)));
  if (scales.length < 2 || scale <= scales[0]) return values[0];
  if (scale >= scales.at(-1)) return values.at(-1);
  const share = Math.log(scale / scales[k - 1]) / Math.log(scales[k] / scales[k - 1]);
  return known(values[k - 1]) && known(values[k]) ? values[k - 1] + share * (values[k] - values[k - 1]) : null;
}

// Names of the curves in their colours, at the right end of a title.
function keyTo(right, y, curves) {
  const key = svg("text", { x: right, y, class: "tick end" });
  for (const [kind, label] of curves) key.append(svg("tspan", { class: `key ${kind}`, dx: 8 }, label));
  return key;
}

const mean = (a, b) => a.map((value, k) => (known(value) && known(b[k]) ? (value + b[k]) / 2 : null));

function drawTemperature() {
  const { scales, learned, loss, best } = data.temperature;
  const { effective_negatives_of_rows: negatives_rows, effective_negatives_of_columns: negatives_columns } = data.temperature;
  const { entropy_of_rows: entropy_rows, entropy_of_columns: entropy_columns } = data.temperature;
  const target = $("temperature-chart"), width = fit(target, 160), curve = loss[state.loss];
  const marks = [
    { x: learned, kind: "learned", label: `learned scale ${format(learned)}` },
  ];
  const lowest = best[state.loss];
  if (known(lowest)) marks.push({ x: lowest, kind: "best", label: `lowest ${state.loss} loss at ${format(lowest)}` });
  if (state.scale !== learned) marks.push({ x: state.scale, kind: "now", label: `scale ${format(state.scale)}` });
  const ticksX = [1, 3, 10, 30, 100, 300].filter((x) => x >= scales[0] && x <= scales.at(-1));
  const common = { marks, logX: true, rangeX: scales };
  if (curve) chart(target, { x: 0, y: 0, width, height: 72 }, { ...common, title: `${state.loss} loss`, series: [{ name: "loss", kind: "first", xs: scales, ys: curve }] });
  const lower = { x: 0, y: curve ? 76 : 0, width, height: curve ? 84 : 160 };
  const places = chart(target, lower, { ...common, ticksX, zero: true, title: "effective negatives", series: [{ name: "images", kind: "first", xs: scales, ys: negatives_rows }, { name: "texts", kind: "second", xs: scales, ys: negatives_columns }] });
  target.append(keyTo(places.right, lower.y + 11, [["first", "images"], ["second", "texts"]]));

  $("temperature-value").textContent = format(state.scale);
  $("temperature").setAttribute("aria-valuetext", `scale ${format(state.scale)}`);
  $("temperature-reset").disabled = state.scale === learned;
  const at = (values) => atScale(values, state.scale), parts = [
    element("span", {}, `Effective negatives: ${format(at(mean(negatives_rows, negatives_columns)))}; entropy ${format(at(mean(entropy_rows, entropy_columns)))} nats. `),
  ];
  if (curve) {
    const falls = curve.at(-1) < curve[0], end = falls ? `${format(scales.at(-1))} or more` : `${format(scales[0])} or less`;
    const least = known(lowest) ? `lowest ${format(atScale(curve, lowest), 4)} at ${format(lowest)}` : `lowest at ${end}`;
    parts.push(`${state.loss} loss: ${format(at(curve), 4)} here, ${least}. `);
  } else parts.push(`The ${state.loss} loss works on cosines; the scale does not enter. `);
  parts.push(element("span", { class: "learned" }, `Dashed: learned, ${format(learned)}`), known(lowest) ? "; " : ".");
  if (known(lowest)) parts.push(element("span", { class: "best" }, "dotted: best"), ".");
  $("temperature-text").replaceChildren(...parts);
  const late = state.scale !== learned && divides(state.view);
  $("temperature-note").hidden = !late;
  $("temperature-note").textContent = `Losses of pairs and gradients remain those of the learned scale, ${format(learned)}.`;
}

// Free energy: sorted, one curve for the images and one for the texts.
const energies = [data.free_energy_of_images, data.free_energy_of_texts];
const energyOrders = energies.map((side) => side.map((_, k) => k).sort((a, b) => (side[a] ?? Infinity) - (side[b] ?? Infinity)));
let energyPlaces = null;
const energyChosen = { side: 0, rank: -1 };
function drawEnergy() {
  const target = $("energy"), height = 185, width = fit(target, height), ranks = captions.map((_, k) => k);
  const series = [0, 1].map((side) => ({ name: side ? "texts" : "images", kind: side ? "second" : "first", xs: ranks, ys: energyOrders[side].map((k) => energies[side][k]) }));
  energyPlaces = chart(target, { x: 0, y: 0, width, height: height - 15 }, { title: "free energy, nats", series });
  const { left, right } = energyPlaces;
  target.append(svg("text", { x: left, y: height - 2 }, "fits best"), svg("text", { x: right, y: height - 2, class: "end" }, "fits worst"));
  target.append(keyTo(right, 11, [["first", "images"], ["second", "texts"]]), svg("circle", { id: "energy-dot", r: 4, class: "dot", visibility: "hidden" }));
  showEnergy();
}

const energyOf = (side, rank) => energies[side][energyOrders[side][rank]];

function energyAt(event) {
  const box = $("energy").getBoundingClientRect(), { left, right, placeY } = energyPlaces;
  const rank = Math.min(n - 1, Math.max(0, Math.round(((event.clientX - box.left - left) / (right - left)) * (n - 1))));
  const apart = [0, 1].map((side) => (known(energyOf(side, rank)) ? Math.abs(placeY(energyOf(side, rank)) - event.clientY + box.top) : Infinity));
  Object.assign(energyChosen, { side: apart[1] < apart[0] ? 1 : 0, rank });
}

function showEnergy() {
  const { side, rank } = energyChosen, dot = $("energy-dot"), { left, right, placeY } = energyPlaces;
  if (rank < 0) return;
  const k = energyOrders[side][rank], value = energyOf(side, rank);
  dot.setAttribute("cx", left + (n > 1 ? rank / (n - 1) : 0.5) * (right - left));
  dot.setAttribute("cy", known(value) ? placeY(value) : 0);
  dot.setAttribute("class", `dot ${side ? "second" : "first"}`);
  dot.setAttribute("visibility", known(value) ? "visible" : "hidden");
  $("energy-note").textContent = `${side ? "Text" : "Image"} ${k} (${names[k]}), rank ${rank + 1} of ${n}: ${format(value, 4)} nats. ${captions[k]}`;
}

function listenToEnergy() {
  const pinIt = () => showCell(energyOrders[energyChosen.side][energyChosen.rank], energyOrders[energyChosen.side][energyChosen.rank]);
  const follow = (event) => {
    energyAt(event);
    showEnergy();
  };
  $("energy").addEventListener("pointermove", follow);
  $("energy").addEventListener("click", (event) => {
    follow(event);
    pinIt();
  });
  $("energy").addEventListener("focus", () => {
    if (energyChosen.rank < 0) energyChosen.rank = n - 1;
    showEnergy();
  });
  $("energy").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -n, End: n }[event.key];
    if (step) energyChosen.rank = Math.min(n - 1, Math.max(0, energyChosen.rank + step * (event.shiftKey ? 10 : 1)));
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") energyChosen.side = 1 - energyChosen.side;
    else if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (event.key === "Enter" || event.key === " ") pinIt();
    else showEnergy();
  });
}

// Over time: the matrix of the fixed batch at a step, and curves with a mark at that step.
const past = data.history;
let pastRange = null, pastCell = null;
const pastCosine = (i, j) => HALF[matrix("m-history")[(state.step * past.captions.length + i) * past.captions.length + j]];

function drawPast() {
  if (!matrix("m-history")) return;
  drawPastMatrix();
  $("step-value").textContent = `${past.steps[state.step]}`;
  $("step").setAttribute("aria-valuetext", `step ${past.steps[state.step]}`);
  drawCurves();
}

function drawPastMatrix() {
  const size = past.captions.length, halves = matrix("m-history"), canvas = $("history-matrix");
  if (!pastRange) {
    pastRange = { low: Infinity, high: -Infinity };
    for (const bits of halves) {
      if (HALF[bits] < pastRange.low) pastRange.low = HALF[bits];
      if (HALF[bits] > pastRange.high) pastRange.high = HALF[bits];
    }
  }
  const { low, high } = pastRange, levels = new Uint16Array(size * size), start = state.step * size * size;
  for (let k = 0; k < levels.length; k++) levels[k] = clampLevel((HALF[halves[start + k]] - low) / (high - low || 1));
  sizeCanvas(canvas);
  paint(canvas, levels, size, { x: 0, y: 0, span: 1 }, paletteOf("cosine"), false, {});
  if (pastCell) outlinePast(canvas);
  canvas.dataset.step = past.steps[state.step];
}

function outlinePast(canvas) {
  const context = canvas.getContext("2d"), ratio = Number(canvas.dataset.ratio), cell = canvas.width / past.captions.length, size = Math.max(cell, 7 * ratio);
  const [x, y] = [pastCell.j, pastCell.i].map((k) => (k + 0.5) * cell - size / 2);
  for (const [colour, line] of [["#000000", 4], ["#ffffff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line * ratio;
    context.strokeRect(x, y, size, size);
  }
}

function choosePast(i, j) {
  if (!matrix("m-history")) return;
  const inside = (k) => Math.min(past.captions.length - 1, Math.max(0, k));
  pastCell = { i: inside(i), j: inside(j) };
  drawPastMatrix();
  notePast();
}

function notePast() {
  if (!pastCell) return;
  const { i, j } = pastCell, own = i === j ? "its own text" : `text ${j}: ${past.captions[j]}`;
  $("history-note").textContent = `Step ${past.steps[state.step]}, cosine ${pastCosine(i, j).toFixed(3)}. Image ${i} (${past.captions[i]}) with ${own}`;
}

function drawCurves() {
  const { steps, figures, training } = past, now = steps[state.step], name = (key) => figures[key];
  const run = (key) => training[key] && { name: "training", kind: "faint", xs: training.step, ys: training[key] };
  const batch = (ys, title = "fixed batch", kind = "first") => ys && { name: title, kind, xs: steps, ys };
  const both = [["faint", "training"], ["first", "fixed batch"]];
  const charts = [
    ["Loss", [run("loss"), batch(name("loss"))], both],
    ["Loss / chance", [run("loss_over_chance"), batch(name("loss_over_chance"))], both],
    ["Scale", [run("logit_scale"), batch(name("logit_scale"))], both],
    [`R@1 in the fixed batch, chance ${percent(1 / past.captions.length)}`, [batch(name("r1_image_to_text"), "image to text"), batch(name("r1_text_to_image"), "text to image", "second")], [["first", "image to text"], ["second", "text to image"]]],
  ];
  const all = [...steps, ...(training.step ?? [])].filter(known), rangeX = [Math.min(...all), Math.max(...all)];
  charts.forEach(([title, series, keys], k) => {
    const target = $("history-curves").children[k], width = fit(target, 130);
    const places = chart(target, { x: 0, y: 0, width, height: 130 }, { title, series: series.filter(Boolean), rangeX, ticksX: rangeX, zero: k === 3, shown: k === 3 ? percent : format, marks: [{ x: now, kind: "now", label: `step ${now}` }] });
    target.append(keyTo(places.right, 11, keys));
  });
}

function showStep(step) {
  state.step = step;
  $("step").value = step;
  drawPast();
  notePast();
}

// From the chosen step to the last, or from the first if that is the last.
let playing = 0;
function play(on) {
  clearInterval(playing);
  const last = past.steps.length - 1;
  if (on && state.step === last) showStep(0);
  playing = on && last ? setInterval(() => {
    showStep(state.step + 1);
    if (state.step === last) play(false);
  }, 400) : 0;
  $("play").textContent = playing ? "Pause" : "Play";
}

function startPast() {
  $("history").hidden = $("history-link").hidden = !past;
  if (!past) return;
  state.step = past.steps.length - 1;
  $("step").max = state.step;
  $("step").value = state.step;
  for (const label of ["Loss", "Loss over chance", "Scale", "R@1"]) {
    $("history-curves").append(svg("svg", { role: "img", "aria-label": `${label} along the training` }));
  }
  $("step").addEventListener("input", () => {
    play(false);
    showStep(Number($("step").value));
  });
  $("play").addEventListener("click", () => play(!playing));
  $("history-matrix").addEventListener("pointermove", (event) => {
    const box = $("history-matrix").getBoundingClientRect();
    choosePast(...[(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((f) => Math.floor(f * past.captions.length)));
  });
  $("history-matrix").addEventListener("focus", () => pastCell || choosePast(0, 0));
  $("history-matrix").addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const steps = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
    if (!steps || !pastCell || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choosePast(pastCell.i + steps[0], pastCell.j + steps[1]);
  });
  whenReady(["m-history"], () => {
    drawPast();
    drawPastLegend();
  });
  new ResizeObserver(drawPast).observe($("history-curves"));
}

function drawPastLegend() {
  const bar = element("div", { class: "bar-of-colour" });
  const stops = Array.from({ length: 11 }, (_, k) => paletteOf("cosine")[Math.round((k / 10) * (LEVELS - 1))]);
  bar.style.background = `linear-gradient(to right, ${stops.map((c) => `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`)})`;
  const ends = element("div", { class: "ends" }, element("span", {}, format(pastRange.low)), element("span", {}, "cosine"), element("span", {}, format(pastRange.high)));
  $("history-legend").replaceChildren(bar, ends);
}
