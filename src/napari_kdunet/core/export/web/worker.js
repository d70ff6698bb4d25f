// The computations of the page, in a worker: each message is a task that is answered once, with its id. A later task
// ends earlier ones, which are answered with null.

let engine = null;
let source = null; // the opened file: {slices, pixel, read(z)}
let slice = null;
let probability = null;
let latest = 0;
let opening = 0;

const tasks = {
  async start({ wasm, weights, model }) {
    engine = await Engine.open(wasm, weights, model);
    return {};
  },

  /** Opens a file at its middle slice; the previous image stays until the new file is known to be one. */
  async open({ file }, id) {
    opening = id;
    const opened = await sourceOf(file);
    const z = Math.floor(opened.slices / 2);
    const read = finite(await opened.read(z));
    if (id !== opening) return null;
    [source, latest] = [opened, id];
    return { slices: source.slices, pixel: source.pixel, ...taken(read, z) };
  },

  async show({ z }, id) {
    const read = finite(await source.read(z));
    return id === latest ? taken(read, z) : null;
  },

  async find(_, id) {
    return findPixelSize(engine, slice, (share) => goOn(id, share));
  },

  async segment({ pixel, invert }, id) {
    if (!engine.takes(pixel)) throw new Refused("that pixel size is too far from the model's");
    const before = performance.now();
    const found = await engine.segment(invert ? slice.inverted() : slice, pixel, (share) => goOn(id, share));
    if (found) probability = found;
    return found && { milliseconds: performance.now() - before };
  },

  /** The mask above a threshold, and its objects. */
  async mask({ threshold, least, step }) {
    if (!probability) return null;
    const { height, width } = slice;
    const { mask, objects } = objectsOf(probability, height, width, threshold, least);
    return { objects, drawn: step > 1 ? everyStep(mask, height, width, step) : mask };
  },

  async file({ kind, threshold, least, pixel }) {
    if (!probability) return null;
    const { height, width } = slice;
    if (kind === "probability") return tiffOf(probability, height, width, pixel);
    const { mask, objects } = objectsOf(probability, height, width, threshold, least);
    if (kind === "mask.tif") return tiffOf(mask, height, width, pixel);
    return kind === "mask.png" ? pngOf(mask, height, width) : tableOf(objects, pixel);
  },
};

const ENDING = new Set(["show", "find", "segment"]); // these tasks end earlier ones, as `open` does

self.onmessage = async ({ data: { id, task, ...given } }) => {
  if (ENDING.has(task)) latest = id;
  try {
    const answer = await tasks[task](given, id);
    self.postMessage({ id, answer });
  } catch (error) {
    const known = error instanceof Refused;
    const memory = error instanceof RangeError ? "there is not enough memory for it" : String(error.message || error);
    self.postMessage({ id, error: known ? error.message : memory });
  }
};

/** Tells how far a task is, lets later messages in, and says whether it is still wanted. */
async function goOn(id, share) {
  self.postMessage({ id, share });
  await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
  return id === latest;
}

function finite(read) {
  if (!read.data.every(Number.isFinite)) throw new Refused("it holds values that are not finite numbers");
  return read;
}

/** Makes what was read the current slice, and returns what the page needs to show it. */
function taken({ data, height, width }, z) {
  [slice, probability] = [new Slice(data, height, width), null];
  const step = Math.ceil(Math.max(height, width) / 4096); // at most 4096 pixels a side are drawn
  return { z, height, width, step, shown: greyLevels(slice, step) };
}

async function sourceOf(file) {
  const tiff = await Tiff.open(file);
  if (tiff) {
    const { width, height } = tiff.pages[0];
    const read = async (z) => ({ data: await tiff.read(z), height, width });
    return { slices: tiff.pages.length, pixel: tiff.pixelSize(), read };
  }
  const picture = await pictureOf(file);
  return { slices: 1, pixel: null, read: async () => picture };
}

/** PNG, JPEG and whatever else the browser reads, as grey values. */
async function pictureOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refused("it is no TIFF, PNG or JPEG, or is damaged");
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data: colours } = context.getImageData(0, 0, width, height);
  const data = new Float32Array(width * height);
  for (let i = 0; i < data.length; i++) data[i] = grey(colours[4 * i], colours[4 * i + 1], colours[4 * i + 2]);
  return { data, height, width };
}

/** Every `step`th pixel as 0 to 255 for display, from nearly the least to nearly the greatest value. */
function greyLevels({ data, height, width }, step) {
  const some = data.filter((_, i) => i % Math.ceil(data.length / 1e5) === 0).sort();
  const [low, high] = [some[Math.floor(some.length * 0.002)], some[Math.ceil(some.length * 0.998) - 1]];
  const scale = 255 / (high > low ? high - low : 1);
  const levels = everyStep(data, height, width, step);
  return Uint8ClampedArray.from(levels, (value) => (value - low) * scale);
}

function everyStep(data, height, width, step) {
  if (step === 1) return data;
  const [rows, columns] = [Math.ceil(height / step), Math.ceil(width / step)];
  const out = new data.constructor(rows * columns);
  for (let y = 0, to = 0; y < height; y += step) for (let x = 0; x < width; x += step) out[to++] = data[y * width + x];
  return out;
}

async function pngOf(mask, height, width) {
  const lines = new Uint8Array(height * (width + 1)); // each begins with its filter: 0, none
  for (let y = 0; y < height; y++) lines.set(mask.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const pixels = new Uint8Array(await new Response(packed).arrayBuffer());
  const head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint8(8, 8); // bits of grey
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  const parts = [["IHDR", new Uint8Array(head.buffer)], ["IDAT", pixels], ["IEND", new Uint8Array()]];
  return new Blob([signature, ...parts.map(([name, bytes]) => pngChunk(name, bytes))], { type: "image/png" });
}

function pngChunk(name, bytes) {
  const chunk = new Uint8Array(bytes.length + 12);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, bytes.length);
  chunk.set(new TextEncoder().encode(name), 4);
  chunk.set(bytes, 8);
  let crc = 0xffffffff;
  for (const byte of chunk.subarray(4, -4)) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  view.setUint32(bytes.length + 8, ~crc >>> 0);
  return chunk;
}

function tableOf(objects, pixel) {
  const area = pixel ? pixel[0] * pixel[1] : 0;
  const rows = objects.map(({ pixels, y, x }, i) =>
    [i + 1, pixels, ...(area ? [(pixels * area).toFixed(0)] : []), y.toFixed(1), x.toFixed(1)].join(","),
  );
  const head = ["object", "pixels", ...(area ? ["area_nm2"] : []), "centre_y", "centre_x"].join(",");
  return new Blob([[head, ...rows, ""].join("\n")], { type: "text/csv" });
}
