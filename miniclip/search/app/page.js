// The page of the app. What the index and the user say goes in as text, never as HTML; addresses hold rows, never paths.

const $ = (id) => document.getElementById(id);

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// picture: what is asked with, {key, source, name, caption}, or null. shown: how many of those found.
const state = { tab: "search", picture: null, shown: 0 };
const started = Date.now().toString(36); // else a browser might show what it keeps of another index
const thumbnail = (row) => `image/${row}?${started}`;
let about = { max_bytes: Infinity };

async function ask(path, values = [], options = {}) {
  let response;
  try {
    response = await fetch(`${path}?${new URLSearchParams(values)}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The app does not answer; is miniclip app still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Only the newest question matters: it ends the one before it, and waits for what is still being typed.
const PAUSE = 40; // milliseconds
let running = new AbortController(), waiting = 0;
const newest = (question) => (pause = 0) => {
  clearTimeout(waiting);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  waiting = setTimeout(() => question(signal).catch((error) => signal.aborted || trouble(error.message)), pause);
};

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

const count = (number) => number.toLocaleString("en");
const images = (number) => `${count(number)} ${number === 1 ? "image" : "images"}`;

// Search

function card({ row, cosine, name, caption }) {
  const frame = element("span", { class: "frame" });
  const picture = element("img", { src: thumbnail(row), loading: "lazy", decoding: "async", alt: "" }); // its words stand below
  picture.addEventListener("error", () => picture.replaceWith(element("span", { class: "lost" }, "cannot be read any more")));
  frame.append(picture);
  if (cosine !== null) frame.append(element("span", { class: "score", title: "cosine" }, cosine.toFixed(3)));
  const button = element("button", { type: "button", title: `${name}: find more like this` }, frame);
  if (caption) button.append(element("span", { class: "caption", dir: "auto" }, caption));
  button.append(element("span", { class: "name", dir: "auto" }, name));
  button.addEventListener("click", () => ofRow({ row, name, caption }));
  return element("li", { "data-row": row }, button);
}

function asked() {
  const values = { words: $("words").value.trim(), not: $("not").value.trim(), picture: state.picture?.key ?? "" };
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value));
}

const search = newest(async (signal) => {
  $("found").classList.add("stale");
  try {
    const answer = await ask("search", asked(), { signal });
    trouble("");
    $("found").replaceChildren(...answer.found.map(card));
    const any = Object.keys(asked()).length;
    $("said").textContent = any ? `The nearest of ${images(answer.all)}, in ${Math.ceil(answer.ms)} ms` : `${images(answer.all)}. Type what to look for, or click one to find more like it.`;
    $("more").hidden = answer.found.length >= answer.all;
    state.shown = answer.found.length;
  } catch (error) {
    if (!signal.aborted) {
      $("found").replaceChildren();
      $("more").hidden = true;
      $("said").textContent = "";
    }
    throw error;
  } finally {
    if (!signal.aborted) $("found").classList.remove("stale");
  }
});

const more = newest(async (signal) => {
  const answer = await ask("search", { ...asked(), start: state.shown }, { signal });
  const added = answer.found.map(card);
  $("found").append(...added);
  state.shown += added.length;
  $("more").hidden = state.shown >= answer.all || !added.length;
  added[0]?.firstChild.focus();
});

// Arrow keys go from image to image.
function step(event) {
  const cards = [...$("found").children], at = cards.indexOf(event.target.closest("li"));
  const columns = getComputedStyle($("found")).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (at < 0 || !by) return;
  event.preventDefault();
  (cards[at + by]?.firstChild ?? (at + by < 0 ? $("words") : null))?.focus();
}

// Classification

const classify = newest(async (signal) => {
  const labels = $("labels").value.split("\n").filter((label) => label.trim());
  $("class-note").hidden = true;
  trouble("");
  if (!state.picture || labels.length < 2) {
    $("bars").replaceChildren();
    $("said").textContent = state.picture ? "Type two labels or more." : "Choose a picture first: here, or by a click on one that was found.";
    return;
  }
  const values = [["picture", state.picture.key], ["template", $("template").value], ...labels.map((label) => ["label", label])];
  const answer = await ask("classify", values, { signal }).catch((error) => {
    if (!signal.aborted) $("bars").replaceChildren();
    throw error;
  });
  $("bars").replaceChildren(...answer.labels.map(({ label, probability, cosine }) => {
    const fill = element("div", { class: "fill" });
    fill.style.width = `${100 * probability}%`;
    return element("li", {}, element("span", { class: "label", dir: "auto" }, label),
      element("span", { class: "percent", title: `cosine ${cosine.toFixed(3)}` }, `${(100 * probability).toFixed(1)} %`),
      element("div", { class: "track", "aria-hidden": "true" }, fill));
  }));
  $("said").textContent = `${answer.labels.length} labels at scale ${answer.scale.toFixed(1)}, in ${Math.ceil(answer.ms)} ms`;
  $("class-note").hidden = false;
});

// The picture that is asked with

function withPicture(picture) {
  state.picture = picture;
  $("picture").hidden = $("clear").hidden = !picture;
  if (picture) $("picture").src = picture.source;
  else $("picture").removeAttribute("src");
  $("picture-name").textContent = picture?.name ?? "";
  $("picture-caption").textContent = picture?.caption ?? "";
  $("choose").textContent = picture ? "Another picture" : "Choose a picture";
  again();
}

function ofRow({ row, name, caption }) {
  withPicture({ key: `${row}`, source: thumbnail(row), name, caption });
  remember();
  scrollTo({ top: 0 });
}

async function ofFile(file) {
  if (!file) return;
  try {
    if (file.size > about.max_bytes) throw new Error(`${file.name} is too large; a picture may have ${about.max_bytes / 1e6} MB.`);
    $("said").textContent = "Reading the picture";
    const { picture } = await ask("picture", [], { method: "POST", body: file });
    withPicture({ key: picture, source: URL.createObjectURL(file), name: file.name, caption: "" });
    remember();
  } catch (error) {
    $("said").textContent = "";
    trouble(error.message);
  }
}

function again(pause = 0) {
  (state.tab === "search" ? search : classify)(pause);
}

// The browser's Back leads to what was asked before, and a reload repeats it; what was uploaded does not outlive the page.
function remember(how = "pushState") {
  history[how]({ words: $("words").value, not: $("not").value, picture: state.picture }, "");
}

function recall() {
  const { words = "", not = "", picture = null } = history.state ?? {};
  $("words").value = words;
  $("not").value = not;
  withPicture(picture);
}

function show(tab) {
  state.tab = tab;
  for (const name of ["search", "classify"]) {
    for (const part of document.querySelectorAll(`.of-${name}`)) part.hidden = name !== tab;
    $(`to-${name}`).setAttribute("aria-pressed", name === tab);
  }
  again();
}

function listen() {
  for (const id of ["words", "not"]) {
    $(id).addEventListener("input", () => {
      remember("replaceState");
      search(PAUSE);
    });
  }
  for (const id of ["labels", "template"]) $(id).addEventListener("input", () => classify(PAUSE));
  $("found").addEventListener("keydown", step);
  $("more").addEventListener("click", () => more());
  $("clear").addEventListener("click", () => {
    withPicture(null);
    remember();
  });
  $("file").addEventListener("change", () => {
    ofFile($("file").files[0]);
    $("file").value = ""; // so that the same one may be chosen again
  });
  for (const tab of ["search", "classify"]) $(`to-${tab}`).addEventListener("click", () => show(tab));
  addEventListener("popstate", recall);
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, textarea")) return;
    event.preventDefault();
    show("search");
    $("words").select();
  });
  addEventListener("paste", (event) => ofFile(event.clipboardData.files[0]));
  const holds = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser would leave the page for the file
    $("dropping").hidden = !holds(event);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("dropping").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("dropping").hidden = true;
    ofFile(event.dataTransfer.files[0]);
  });
}

async function start() {
  listen();
  try {
    about = await ask("about");
  } catch (error) {
    trouble(error.message);
    return;
  }
  document.title = $("title").textContent = about.title;
  $("about").textContent = `${images(about.count)} of ${about.source}, by ${about.model}`;
  $("template").value = about.template;
  if (history.state?.picture?.source.startsWith("blob:")) history.replaceState({ ...history.state, picture: null }, "");
  recall();
}

start();
