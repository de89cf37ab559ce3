// The controls, the details of a cell, the lists and the tables; then the start.

const picture = (k, what) => thumbnail(k, `${what} ${k}: ${captions[k]}`);

function choose({ i, j }) {
  if (i === state.i && j === state.j) return;
  Object.assign(state, { i, j });
  drawOverlays();
  showDetails();
}

function pin(pinned) {
  state.pinned = pinned;
  drawOverlays();
  showDetails();
  announce();
}

function pinAt(i, j) {
  Object.assign(state, { i, j });
  reveal();
  pin(true);
}

// From a list: pins the cell, in sight.
function showCell(i, j) {
  pinAt(i, j);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("workbench").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  $("matrix").focus({ preventScroll: true });
}

function kindOf(i, j) {
  const duplicate = duplicateOf(i, j), positive = isPositive(i, j);
  if (i === j) return ["positive", "A pair: this text belongs to this image."];
  const repeated = duplicate ? `; the two pairs have the ${SAME[duplicate]}` : "";
  if (positive) return ["positive", `Counted as a positive${repeated}.`];
  return duplicate ? ["false", `Counted as a negative${repeated}.`] : ["negative", "A negative: they come from different pairs."];
}

function numbersOf(i, j) {
  const value = (view, loss) => valueOf(view, i, j, loss);
  const lines = [
    ["Cosine", format(value("cosine"), 4), ""],
    [`Logit at scale ${format(state.scale)}`, format(value("logit"), 4), "nats"],
    ["p(text | image)", percent(value("row_probability")), `chance ${percent(1 / n)}`],
    ["p(image | text)", percent(value("column_probability")), `chance ${percent(1 / n)}`],
  ];
  const measured = (view, loss) => (value(view, loss) === undefined ? "unpacking" : about(value(view, loss)) + format(value(view, loss)));
  for (const loss of [state.loss, compared()].filter(Boolean)) {
    const { unit } = data.losses[loss];
    lines.push([`Pair loss, ${loss}`, measured("pair_loss", loss), unit]);
    lines.push([`Gradient, ${loss}`, measured("gradient", loss), unit === "nats" ? "nats / logit" : "per cosine"]);
    if (compared()) continue;
    lines.push([`Image ${i} pays in all`, format(data.losses[loss].row_loss[i]), unit]);
    lines.push([`Text ${j} pays in all`, format(data.losses[loss].column_loss[j]), unit]);
  }
  return lines;
}

function direction(i, j) {
  return [state.loss, compared()].filter(Boolean).map((loss) => {
    const gradient = valueOf("gradient", i, j, loss);
    if (gradient === undefined) return "";
    return gradient < 0 ? `${loss} pulls them together.` : gradient > 0 ? `${loss} pushes them apart.` : `${loss} leaves them alone.`;
  }).join(" ");
}

function showDetails() {
  const { i, j, pinned } = state, box = $("details");
  Object.assign(box.dataset, { i, j, pinned });
  const waiting = [state.loss, compared()].filter(Boolean).flatMap((loss) => [idOf("pair_loss", loss), idOf("gradient", loss)]);
  if (!waiting.map(matrix).every(Boolean)) whenReady(waiting, () => state.i === i && state.j === j && showDetails());
  const [kind, sentence] = kindOf(i, j);
  const side = (k, what) => element("div", { class: "side" }, picture(k, what), element("div", {},
    element("p", { class: "who" }, element("b", {}, `${what} ${k}`)),
    element("p", { class: "who name", title: names[k] }, names[k]),
    element("p", { class: "caption" }, captions[k])));
  const rows = numbersOf(i, j).map(([label, value, unit]) => element("tr", {}, element("th", { scope: "row" }, label), element("td", { class: "number" }, value), element("td", { class: "unit" }, unit)));
  box.replaceChildren(
    element("p", { class: "state" }, element("span", { class: `badge ${kind}` }, i === j ? "pair" : kind === "false" ? "false negative?" : kind), pinned ? element("span", { class: "pin" }, "pinned") : ""),
    element("div", { class: "sides" }, side(i, "Image"), side(j, "Text")),
    element("p", { class: "sentence" }, sentence, " ", element("span", { class: "direction" }, direction(i, j))),
    element("table", { class: "numbers" }, element("tbody", {}, ...rows)),
  );
}

function announce() {
  const { i, j, pinned } = state;
  $("announcer").textContent = `Image ${i}, text ${j}, cosine ${format(valueOf("cosine", i, j))}${pinned ? ", pinned" : ""}`;
}

// Lists of cells.
const FIRST = 12;
function fillList(id, cells, all = cells.length) {
  const list = $(id);
  $(`${id}-count`).textContent = all > cells.length ? `${cells.length} of ${all}` : cells.length;
  const item = (cell) => {
    const { i, j, cosine, margin, duplicate, positive } = cell, badges = [];
    if (duplicate) badges.push(element("span", { class: "badge false" }, SAME[duplicate]));
    if (positive && i !== j) badges.push(element("span", { class: "badge positive" }, "counted as positive"));
    const button = element("button", { type: "button", "data-i": i, "data-j": j, "aria-label": `Image ${i} and text ${j}, cosine ${format(cosine)}, margin ${format(margin)}` },
      element("span", { class: "pictures" }, picture(i, "Image"), i === j ? "" : picture(j, "Text")),
      element("span", { class: "words" },
        element("span", { class: "line" }, element("b", {}, `cosine ${format(cosine)}`), element("span", {}, `margin ${margin > 0 ? "+" : ""}${format(margin)}`), ...badges),
        element("span", { class: "line caption" }, `${i === j ? "" : "Image of: "}${captions[i]}`),
        i === j ? "" : element("span", { class: "line caption" }, `Text: ${captions[j]}`)));
    button.addEventListener("click", () => showCell(i, j));
    return element("li", {}, button);
  };
  list.append(...cells.slice(0, FIRST).map(item));
  if (!cells.length) list.append(element("li", { class: "none" }, "None."));
  if (cells.length > FIRST) {
    const more = element("button", { type: "button", class: "more" }, `Show ${cells.length - FIRST} more`);
    more.addEventListener("click", () => {
      more.remove();
      list.append(...cells.slice(FIRST).map(item));
    });
    list.after(more);
  }
}

// What stands between backticks is code.
const coded = (text) => text.split(/`([^`]*)`/).map((part, k) => (k % 2 ? element("code", {}, part) : part));

function fillFindings() {
  const sentences = (kind, title, texts) => texts.length ? [element("h4", {}, title), element("ul", { class: kind }, ...texts.map((text) => element("li", {}, ...coded(text))))] : [];
  $("verdicts").append(...data.verdicts.map(({ kind, title, evidence, advice }) =>
    element("article", { class: "verdict bad", "data-kind": kind }, element("h3", {}, title), ...sentences("evidence", "What it rests on", evidence), ...sentences("advice", "What to try", advice))));
  const { tone, title, hits, text } = data.summary, all = data.verdicts.length;
  if (!all) $("verdicts").append(element("p", { class: `verdict ${tone}` }, `${title}. ${hits}. `, ...coded(text)));
  $("verdict").classList.add("verdict", tone);
  $("verdict").append(element("b", {}, `${title}.`), ` ${hits}. `, ...coded(text), " ");
  if (all) $("verdict").append(element("a", { href: "#findings" }, all > 1 ? `What to try, and ${all - 1} more` : "What to try"));
  $("figures").tBodies[0].append(...data.figures.map(({ name, label, value, unit, help, chance }) => {
    const number = unit === "%" ? percent(value) : `${format(value)}${unit ? `\u00a0${unit}` : ""}`;
    const beside = known(chance) ? element("span", { class: "unit" }, ` chance ${percent(chance)}`) : "";
    return element("tr", { "data-name": name }, element("th", { scope: "row" }, label), element("td", { class: "number" }, number, beside), element("td", { class: "help" }, help));
  }));
  for (const [label, value] of Object.entries(data.about)) $("about-list").append(element("dt", {}, label), element("dd", {}, value));
  $("suspicion").textContent = data.suspicion;
  fillList("false-negatives", data.false_negatives, data.suspected_false_negatives);
  fillList("hardest-negatives", data.hardest_negatives);
  fillList("worst-positives", data.worst_positives);
}

// Where the gradient of a loss goes: shares of the sum of its absolute values.
let hardest = null;
function hardestOfRows() {
  if (hardest) return hardest;
  const cosine = matrix("m-cosine");
  hardest = new Int32Array(n).fill(-1);
  for (let i = 0; i < n; i++) {
    let best = -Infinity;
    for (let j = 0; j < n; j++) {
      if (cosine[i * n + j] > best && !isPositive(i, j)) [best, hardest[i]] = [cosine[i * n + j], j];
    }
  }
  return hardest;
}

const shares = new Map();
function sharesOf(loss) {
  if (shares.has(loss)) return shares.get(loss);
  const halves = matrix(`m-gradient-${loss}`), rows = hardestOfRows();
  let all = 0, diagonal = 0, hard = 0;
  for (const bits of halves) all += Math.abs(HALF[bits]);
  for (let i = 0; i < n; i++) {
    diagonal += Math.abs(HALF[halves[i * n + i]]);
    if (rows[i] >= 0) hard += Math.abs(HALF[halves[i * n + rows[i]]]);
  }
  const found = all > 0 ? [diagonal / all, hard / all, Math.max(0, 1 - (diagonal + hard) / all)] : null;
  shares.set(loss, found);
  return found;
}

let lossesSeen = false;
function fillLosses() {
  for (const [name, { value, chance, unit, trained }] of Object.entries(data.losses)) {
    const canvas = element("canvas", { width: 96, height: 96, "aria-hidden": "true" });
    const button = element("button", { type: "button", "aria-label": `Show the gradient of the ${name} loss` }, canvas);
    const label = element("th", { scope: "row" }, element("b", {}, name), trained ? element("span", { class: "badge positive" }, "trained with") : "", element("span", { class: "settings" }, settingsOf(name)));
    const share = element("td", { class: "share" });
    const row = element("tr", { "data-loss": name }, element("td", {}, button), label,
      ...[format(value, 4), format(chance, 4), known(value) && known(chance) && chance !== 0 ? format(value / chance) : "n/a"].map((text) => element("td", { class: "number" }, text)),
      element("td", {}, unit), share);
    row.addEventListener("click", () => {
      Object.assign(state, { loss: name, view: "gradient" });
      change();
      $("workbench").scrollIntoView({ block: "start" });
    });
    $("losses").tBodies[0].append(row);
  }
  new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    lossesSeen = true;
    drawLosses();
  }, { rootMargin: "400px" }).observe($("compared"));
}

// One loss at a time, so that the page stays awake.
let drawingLosses = 0;
async function drawLosses() {
  if (!lossesSeen) return;
  const turn = ++drawingLosses;
  for (const row of $("losses").tBodies[0].rows) {
    const loss = row.dataset.loss;
    await new Promise((done) => whenReady(["m-cosine", "m-positives", `m-gradient-${loss}`], done));
    if (turn !== drawingLosses) return;
    paint(row.querySelector("canvas"), levelsOf("gradient", loss, orderOf()), n, { x: 0, y: 0, span: 1 }, paletteOf("gradient"), true, {});
    const found = sharesOf(loss), box = row.querySelector(".share");
    const bar = element("div", { class: "stack", "aria-hidden": "true" });
    (found ?? []).forEach((share, k) => {
      const part = element("span", { class: ["diagonal", "hardest", "rest"][k] });
      part.style.width = `${100 * share}%`;
      bar.append(part);
    });
    box.replaceChildren(bar, element("p", { class: "note" }, found ? `diagonal ${percent(found[0])}, hardest ${percent(found[1])}, rest ${percent(found[2])}` : "no gradient"));
    await new Promise((done) => setTimeout(done));
  }
}

// Controls.
function option(value, label) {
  return element("option", { value }, label);
}

const VIEW_NOTES = {
  cosine: "How alike image and text are, from -1 to 1. The diagonal holds the pairs.",
  logit: "Scale times cosine (plus bias): what the softmax sees.",
  row_probability: "For each image (row), how the texts share its probability. Rows sum to 1.",
  column_probability: "For each text (column), how the images share its probability. Columns sum to 1.",
  pair_loss: "What each pair adds to the loss. All together sum to N times its value.",
  gradient: "What the loss does with each pair: blue is pulled together, orange pushed apart.",
};

function change() {
  for (const id of ["view", "loss", "order", "compare"]) $(id).value = state[id];
  const shown = compared() !== "", { trained } = data.losses[state.loss], settings = settingsOf(state.loss), notes = [VIEW_NOTES[state.view]];
  if (divides(state.view)) notes.push(`The model was ${trained ? "" : "not "}trained with ${state.loss}${settings ? ` (${settings})` : ""}.`);
  $("view-note").textContent = notes.join(" ");
  $("plot2").hidden = !shown;
  $("workbench").dataset.compared = shown;
  $("title2").textContent = `Beside it: ${state.compare}`;
  $("matrix2").setAttribute("aria-label", `The same under the ${state.compare} loss`);
  for (const row of $("losses").tBodies[0].rows) row.setAttribute("aria-current", row.dataset.loss === state.loss);
  resize();
  drawTemperature();
  redraw();
}

function listenToControls() {
  for (const id of ["view", "loss", "compare"]) {
    $(id).addEventListener("change", () => {
      state[id] = $(id).value;
      if (id === "compare" && state.compare && !divides(state.view)) state.view = "gradient";
      change();
    });
  }
  $("order").addEventListener("change", () => {
    state.order = $("order").value;
    change();
    drawLosses();
  });
  let waiting = 0;
  const scaled = (scale) => {
    state.scale = scale;
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      drawTemperature();
      if (["logit", "row_probability", "column_probability"].includes(state.view)) redraw();
      else showDetails();
    });
  };
  const slider = $("temperature"), { learned } = data.temperature;
  slider.addEventListener("input", () => {
    const near = Math.abs(slider.value - Math.log(learned)) < slider.step / 2;
    scaled(near ? learned : Math.exp(slider.value));
  });
  $("temperature-reset").addEventListener("click", () => {
    slider.value = Math.log(learned);
    scaled(learned);
  });
  listenToFind();
  const dark = matchMedia("(prefers-color-scheme: dark)"), page = document.documentElement;
  const isDark = () => (page.dataset.theme ? page.dataset.theme === "dark" : dark.matches);
  const recolour = () => {
    palettes = null;
    $("theme").textContent = isDark() ? "Light" : "Dark";
    change();
    drawLosses();
    drawEnergy();
    if (past) drawPast();
  };
  $("theme").addEventListener("click", () => {
    page.dataset.theme = isDark() ? "light" : "dark";
    recolour();
  });
  dark.addEventListener("change", recolour);
  $("theme").textContent = isDark() ? "Light" : "Dark";
}

// The pairs whose caption or name has all the words that are sought, in the order of display.
const texts = captions.map((caption, k) => `${caption} ${names[k]}`.toLowerCase());
let place = -1;
function find(step) {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = words.length ? orderOf().filter((k) => words.every((word) => texts[k].includes(word))) : [];
  place = step ? (place + step + matches.length) % matches.length : 0;
  $("find-next").disabled = matches.length < 2;
  $("found").textContent = !words.length ? "" : matches.length ? `${place + 1} of ${matches.length}` : "none";
  if (matches.length) pinAt(matches[place], matches[place]);
}

function listenToFind() {
  $("find").addEventListener("input", () => find(0));
  $("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !$("find-next").disabled) find(event.shiftKey ? -1 : 1);
  });
  $("find-next").addEventListener("click", () => find(1));
  $("find-next").disabled = true;
}

function start() {
  const { scales, learned } = data.temperature, slider = $("temperature");
  const trained = Object.entries(data.losses).filter(([, { trained }]) => trained).map(([name]) => name);
  $("summary").textContent = [`${n} pairs`, `scale ${format(data.logit_scale)}`, data.logit_bias === null ? "" : `bias ${format(data.logit_bias)}`, trained.length ? `trained with ${trained.join(", ")}` : "", data.rounded ? "losses of pairs and gradients are rounded to about 2%" : ""].filter(Boolean).join(", ");
  $("order").append(...Object.keys(data.orders).map((name) => option(name, ORDER_NAMES[name] ?? name)));
  const losses = Object.keys(data.losses);
  $("loss").append(...losses.map((name) => option(name, name)));
  $("compare").append(option("", "nothing"), ...losses.map((name) => option(name, name)));
  state.order = "cluster" in data.orders ? "cluster" : Object.keys(data.orders)[0];
  Object.assign(slider, { min: Math.log(Math.min(learned, scales[0])), max: Math.log(Math.max(learned, scales.at(-1))), step: 0.01 });
  slider.value = Math.log(learned);
  state.i = state.j = orderOf()[0];
  fillFindings();
  fillLosses();
  startPast();
  listen();
  listenToControls();
  listenToEnergy();
  change();
  move();
  drawEnergy();
  new ResizeObserver(drawEnergy).observe($("energy").parentElement);
  new ResizeObserver(drawTemperature).observe($("temperature-box").parentElement);
  Promise.all(sheets.map((sheet) => sheet.decode().catch(() => null))).then(drawAxes);
}

window.miniclipPage = Object.freeze({ n, view: () => state.view, loss: () => state.loss, order: () => state.order, window: () => state.window, value: (name, i, j) => valueOf(name, i, j) });
start();
