// The window: choices become tasks for the worker, and its answers become pictures and numbers.
"use strict";

const at = (id) => document.getElementById(id);
const bytesOf = (id) => Uint8Array.from(atob(at(id).textContent.trim()), (c) => c.charCodeAt(0));
const model = JSON.parse(at("model").textContent);
const main = document.querySelector("main");
const bar = document.querySelector("progress");

const state = { name: "", pixel: null, stated: false, threshold: model.threshold, slices: 1, z: 0, step: 1, ready: false };

/* ------------------------------------------------------------------------------------------------- the worker */

const worker = new Worker(URL.createObjectURL(new Blob([at("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let number = 0;

worker.onmessage = ({ data: { id, answer, error, share } }) => {
  if (share !== undefined) {
    bar.value = share;
    return;
  }
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(answer);
  else reject(new Error(error));
};
worker.onerror = (event) => {
  event.preventDefault();
  fail(`This browser cannot run the page (${event.message || "no worker"}): update the browser.`);
};

/** The answer to a task; null where a later one has ended it. */
function ask(task, given = {}) {
  const id = ++number;
  worker.postMessage({ id, task, ...given });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

/* ------------------------------------------------------------------------------------------------- what is said */

function say(text, busy = false) {
  at("status").textContent = text;
  bar.hidden = !busy;
  if (busy) bar.value = 0;
}

function fail(text) {
  say("");
  at("wrong").textContent = text;
  at("wrong").hidden = !text;
}

const digits = (value, most = 3) => Number(value.toPrecision(most)).toLocaleString("en", { maximumFractionDigits: 6 });
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function areaOf(pixels) {
  const nm = state.pixel ? pixels * state.pixel[0] * state.pixel[1] : 0;
  if (!nm) return `${digits(pixels)} pixels`;
  return nm < 1e5 ? `${digits(nm)} nm²` : `${digits(nm / 1e6)} µm²`;
}

/* ------------------------------------------------------------------------------------------------- from file to mask */

async function open(file) {
  if (!file) return;
  fail("");
  say(`Reading ${file.name} …`, true);
  let opened;
  try {
    await started;
    opened = await ask("open", { file });
  } catch (error) {
    fail(`${file.name} cannot be used: ${error.message}.`);
    return;
  }
  if (!opened) return;
  state.ready = false;
  Object.assign(state, { name: file.name, pixel: opened.pixel, stated: Boolean(opened.pixel), slices: opened.slices });
  if (file.pixel) Object.assign(state, { pixel: [file.pixel, file.pixel], stated: true });
  at("invert").checked = false;
  at("slice").max = opened.slices;
  at("slices").hidden = opened.slices === 1;
  main.classList.add("ready");
  at("picture").hidden = at("panel").hidden = false;
  show(opened);
  if (state.pixel) {
    at("pixel").value = digits(state.pixel[1], 5).replaceAll(",", "");
    at("origin").textContent = "As stated in the file.";
    await segment();
  } else {
    at("pixel").value = "";
    at("origin").textContent = "";
    await (model.pixelSize ? find("The file states no pixel size. ") : segment());
  }
}

/** Draws a slice, without a mask. */
function show({ z, height, width, step, shown }) {
  Object.assign(state, { z, step, height, width });
  for (const id of ["image", "overlay"])
    Object.assign(at(id), { width: Math.ceil(width / step), height: Math.ceil(height / step) });
  draw("image", shown, (pixels, i, value) => {
    pixels[4 * i] = pixels[4 * i + 1] = pixels[4 * i + 2] = value;
    pixels[4 * i + 3] = 255;
  });
  at("slice").value = z + 1;
  at("which").textContent = `${z + 1} / ${state.slices}`;
  at("about").textContent = `${state.name}, ${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
}

function draw(id, values, paint) {
  const context = at(id).getContext("2d");
  const picture = context.createImageData(at(id).width, at(id).height);
  for (let i = 0; i < values.length; i++) if (values[i] || id === "image") paint(picture.data, i, values[i]);
  context.putImageData(picture, 0, 0);
}

async function find(before = "") {
  fail("");
  say("Looking for the pixel size …", true);
  state.ready = false;
  let found;
  try {
    found = await ask("find");
  } catch (error) {
    fail(`The pixel size cannot be found: ${error.message}.`);
    return;
  }
  if (!found) return;
  state.found = found;
  Object.assign(state, { pixel: found.size ? [found.size, found.size] : null, stated: false });
  at("pixel").value = found.size || "";
  at("invert").checked = found.inverted;
  const hardly = found.knowsTissue ? "" : ", though it hardly knows this tissue";
  at("origin").textContent = found.size
    ? `${before}Found: the model is surest at this size${hardly}.`
    : `${before}Not found: the model is sure at no size. Its own ${model.pixelSize} nm is assumed; type the size if you know it.`;
  await segment();
}

async function segment() {
  fail("");
  say("Segmenting …", true);
  state.ready = false;
  const size = model.pixelSize || 1;
  let done;
  try {
    done = await ask("segment", { pixel: (model.pixelSize && state.pixel) || [size, size], invert: at("invert").checked });
  } catch (error) {
    fail(`The slice cannot be segmented: ${error.message}.`);
    return;
  }
  if (!done) return;
  state.milliseconds = done.milliseconds;
  state.ready = true;
  say("");
  await remask();
}

/** Updates the mask at the threshold and its numbers; calls during an update lead to one more update. */
async function remask() {
  if (remask.busy) {
    remask.again = true;
    return;
  }
  remask.busy = true;
  do {
    remask.again = false;
    const answer = await ask("mask", { threshold: state.threshold, least: least(), step: state.step });
    if (answer && state.ready) present(answer);
  } while (remask.again);
  remask.busy = false;
}

function present({ objects, drawn }) {
  draw("overlay", drawn, (pixels, i) => pixels.set([255, 90, 0, 255], 4 * i));
  const pixels = objects.reduce((sum, object) => sum + object.pixels, 0);
  const share = digits((100 * pixels) / (state.height * state.width), 2);
  const middle = objects.length ? objects[Math.floor(objects.length / 2)].pixels : 0;
  const rows = [["Total area", areaOf(pixels)], ["Median area", objects.length ? areaOf(middle) : "–"],
                ["Largest", objects.length ? areaOf(objects[0].pixels) : "–"],
                ["Computed in", `${digits(state.milliseconds, 2)} ms`]];
  at("summary").textContent = `${plural(objects.length, "object")}, ${share} % of the slice`;
  at("results").replaceChildren(
    ...rows.flatMap(([name, value]) =>
      [["dt", name], ["dd", value]].map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text })),
    ),
  );
  at("level").textContent = state.threshold.toFixed(2);
  at("image").setAttribute("aria-label", `The slice with its mask: ${at("summary").textContent}`);
  for (const button of document.querySelectorAll("[data-kind]")) button.disabled = false;
}

function least() {
  return Math.max(0, Number(at("least").value) || 0);
}

/* ------------------------------------------------------------------------------------------------- what is chosen */

for (const id of ["file", "camera"])
  at(id).addEventListener("change", ({ target }) => {
    open(target.files[0]);
    target.value = "";
  });
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("open").classList.add("over");
});
addEventListener("dragleave", () => at("open").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("open").classList.remove("over");
  open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => open(event.clipboardData.files[0]));

at("example").hidden = !model.example;
at("example").addEventListener("click", () => {
  const { name, type, data, pixel } = model.example;
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  open(Object.assign(new File([bytes], name, { type }), { pixel }));
});

at("slice").addEventListener("input", () => (at("which").textContent = `${at("slice").value} / ${state.slices}`));
at("slice").addEventListener("change", async () => {
  fail("");
  say("Reading …", true);
  state.ready = false;
  try {
    const shown = await ask("show", { z: at("slice").value - 1 });
    if (!shown) return;
    show(shown);
    await segment();
  } catch (error) {
    fail(`Slice ${at("slice").value} cannot be used: ${error.message}.`);
  }
});

at("threshold").value = model.threshold;
at("level").textContent = model.threshold.toFixed(2);
at("threshold").addEventListener("input", () => {
  state.threshold = Number(at("threshold").value);
  at("level").textContent = state.threshold.toFixed(2);
  if (state.ready) remask();
});
at("least").addEventListener("input", () => state.ready && remask());
at("pixel").addEventListener("change", () => {
  const size = Number(at("pixel").value);
  if (!at("pixel").checkValidity()) {
    fail("The pixel size is in nm: give a number from 0.1 to 500.");
    return;
  }
  Object.assign(state, { pixel: size ? [size, size] : null, stated: size > 0 });
  at("origin").textContent = size ? "As typed." : model.pixelSize ? `The model's ${model.pixelSize} nm is assumed.` : "";
  segment();
});
at("find").hidden = !model.pixelSize;
at("find").addEventListener("click", () => find());
at("invert").addEventListener("change", segment);
at("see").addEventListener("change", () => (at("overlay").hidden = !at("see").checked));
at("actual").addEventListener("change", () => at("canvases").classList.toggle("actual", at("actual").checked));

for (const button of document.querySelectorAll("[data-kind]")) {
  button.disabled = true;
  button.addEventListener("click", async () => {
    const pixel = state.stated ? state.pixel : null;
    const content = await ask("file", { kind: button.dataset.kind, threshold: state.threshold, least: least(), pixel });
    if (!content) return;
    const stem = state.name.replace(/\.[^.]*$/, "") + (state.slices > 1 ? `-${state.z + 1}` : "");
    const link = document.createElement("a");
    link.download = `${stem}-${button.dataset.ending || button.dataset.kind}`;
    link.href = URL.createObjectURL(content);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

const started = ask("start", { wasm: bytesOf("wasm"), weights: new Float32Array(bytesOf("weights").buffer), model });
started.catch((error) => fail(`This browser cannot run the page (${error.message}): update the browser.`));
