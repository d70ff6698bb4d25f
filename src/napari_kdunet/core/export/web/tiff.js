// TIFF: reads grey images as microscopes and ImageJ write them, slice by slice, and writes results.

const MOST_PAGES = 100000;
const NM = { nm: 1, nanometer: 1, um: 1e3, "µm": 1e3, "μm": 1e3, "\\u00b5m": 1e3, micron: 1e3, microns: 1e3,
             micrometer: 1e3, mm: 1e6, cm: 1e7, m: 1e9, pm: 1e-3, "å": 0.1, angstrom: 0.1 };

class Tiff {
  /** Opens a file (a Blob); null if it is no TIFF. */
  static async open(blob) {
    const head = new DataView(await blob.slice(0, 16).arrayBuffer());
    if (head.byteLength < 8) return null;
    const order = head.getUint16(0);
    const little = order === 0x4949;
    const version = head.getUint16(2, little);
    if ((!little && order !== 0x4d4d) || (version !== 42 && version !== 43)) return null;
    const tiff = Object.assign(new Tiff(), { blob, little, big: version === 43, pages: [] });
    let next = tiff.big ? Number(head.getBigUint64(8, little)) : head.getUint32(4, little);
    const seen = new Set();
    while (next && !seen.has(next) && seen.size < MOST_PAGES) {
      seen.add(next);
      next = await tiff.addPage(next);
    }
    if (!tiff.pages.length) throw new Refused("there is no image in it");
    const { width, height } = tiff.pages[0];
    tiff.pages = tiff.pages.filter((page) => page.width === width && page.height === height);
    tiff.spread();
    return tiff;
  }

  async view(at, length) {
    const bytes = await this.blob.slice(at, at + length).arrayBuffer();
    if (bytes.byteLength < length) throw new Refused("it is cut off");
    return new DataView(bytes);
  }

  async addPage(at) {
    const [start, step] = this.big ? [8, 20] : [2, 12];
    const count = await this.view(at, start).then((v) => (this.big ? Number(v.getBigUint64(0, this.little)) : v.getUint16(0, this.little)));
    if (count > 4096) throw new Refused("it is damaged");
    const entries = await this.view(at + start, count * step + (this.big ? 8 : 4));
    const tags = new Map();
    for (let i = 0; i < count; i++) {
      const values = await this.values(entries, i * step);
      if (values) tags.set(entries.getUint16(i * step, this.little), values);
    }
    const tag = (number, otherwise) => (tags.has(number) ? tags.get(number)[0] : otherwise);
    const page = {
      tags,
      width: tag(256, 0),
      height: tag(257, 0),
      bits: tag(258, 1),
      compression: tag(259, 1),
      photometric: tag(262, 1),
      samples: tag(277, 1),
      planar: tag(284, 1),
      predictor: tag(317, 1),
      format: tag(339, 1),
      text: (tags.get(270) || []).map((code) => String.fromCharCode(code)).join(""),
    };
    if (page.width > 0 && page.height > 0) this.pages.push(page);
    const end = count * step;
    return this.big ? Number(entries.getBigUint64(end, this.little)) : entries.getUint32(end, this.little);
  }

  /** The values of an entry; null if its type is not needed. */
  async values(entries, at) {
    const { little, big } = this;
    const type = entries.getUint16(at + 2, little);
    const count = big ? Number(entries.getBigUint64(at + 4, little)) : entries.getUint32(at + 4, little);
    const size = { 1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 12: 8, 16: 8 }[type];
    if (!size || count > 4e6) return null;
    const [place, room] = big ? [at + 12, 8] : [at + 8, 4];
    let [view, from] = [entries, place];
    if (size * count > room) {
      const offset = big ? Number(entries.getBigUint64(place, little)) : entries.getUint32(place, little);
      [view, from] = [await this.view(offset, size * count), 0];
    }
    const read = {
      1: (i) => view.getUint8(i),
      2: (i) => view.getUint8(i),
      3: (i) => view.getUint16(i, little),
      4: (i) => view.getUint32(i, little),
      5: (i) => view.getUint32(i, little) / view.getUint32(i + 4, little),
      12: (i) => view.getFloat64(i, little),
      16: (i) => Number(view.getBigUint64(i, little)),
    }[type];
    return Array.from({ length: count }, (_, i) => read(from + i * size));
  }

  /** ImageJ describes only the first page of a stack beyond 4 GB: adds the others, which lie behind it. */
  spread() {
    const [page] = this.pages;
    const count = /^ImageJ=/.test(page.text) ? Number((/\bimages=(\d+)/.exec(page.text) || [])[1]) : 1;
    if (this.pages.length > 1 || !(count > 1) || count > MOST_PAGES || page.compression !== 1) return;
    const bytes = page.width * page.height * page.samples * (page.bits / 8);
    const first = page.tags.get(273)[0];
    for (let i = 1; i < count; i++) {
      const tags = new Map(page.tags).set(273, [first + i * bytes]).set(278, [page.height]).set(279, [bytes]);
      this.pages.push({ ...page, tags });
    }
  }

  /** [y, x] in nm, as OME-XML, ImageJ or the resolution in centimetres state it; null if none or an implausible one. */
  pixelSize() {
    const { text, tags } = this.pages[0];
    const per = [283, 282].map((tag) => 1 / (tags.get(tag) || [0])[0]);
    const imagej = /^ImageJ=/.test(text) && /^unit=(.+)$/m.exec(text);
    const centimetres = (tags.get(296) || [0])[0] === 3;
    const stated = ["Y", "X"].map((axis, i) => {
      const ome = new RegExp(`\\bPhysicalSize${axis}\\s*=\\s*["']([^"']+)`).exec(text);
      if (ome) {
        const unit = new RegExp(`\\bPhysicalSize${axis}Unit\\s*=\\s*["']([^"']+)`).exec(text);
        return Number(ome[1]) * nanometres(unit ? fromUtf8(unit[1]) : "µm");
      }
      if (imagej) return per[i] * nanometres(fromUtf8(imagej[1]));
      return centimetres ? per[i] * 1e7 : NaN;
    });
    return stated.every((size) => size >= 0.1 && size <= 500) ? stated : null;
  }

  /** The grey values of a page. */
  async read(index) {
    const page = this.pages[index];
    const kind = `${page.format}:${page.bits}`;
    const type = { "1:8": Uint8Array, "1:16": Uint16Array, "1:32": Uint32Array, "2:8": Int8Array, "2:16": Int16Array,
                   "2:32": Int32Array, "3:32": Float32Array, "3:64": Float64Array }[kind];
    if (!type) throw new Refused(`pixels of ${page.bits} bits are not read here: save it with 8 or 16 bits`);
    if (page.photometric === 3) throw new Refused("colours from a palette are not read here: save it as grey");
    if (page.photometric > 3) throw new Refused("its colours are not read here: save it as grey");
    if (page.width * page.height > 4e8) throw new Refused("it is too large for a browser");
    const tiled = page.tags.has(322);
    const [w, h] = tiled
      ? [page.tags.get(322)[0], page.tags.get(323)[0]]
      : [page.width, Math.min((page.tags.get(278) || [page.height])[0], page.height)];
    if (!(w > 0 && h > 0)) throw new Refused("it is damaged");
    const samples = page.planar === 1 ? page.samples : 1;
    const [offsets, sizes] = [page.tags.get(tiled ? 324 : 273), page.tags.get(tiled ? 325 : 279)];
    const across = Math.ceil(page.width / w);
    const blocks = across * Math.ceil(page.height / h);
    if (!offsets || !sizes || offsets.length < blocks || sizes.length < blocks) throw new Refused("it is damaged");
    const out = new Float32Array(page.width * page.height);
    for (let i = 0; i < blocks; i++) {
      const [left, top] = [(i % across) * w, Math.floor(i / across) * h];
      const rows = Math.min(h, page.height - top);
      const stored = new Uint8Array((await this.view(offsets[i], sizes[i])).buffer);
      const length = w * (tiled ? h : rows) * samples * type.BYTES_PER_ELEMENT;
      const bytes = await decompress(stored, page.compression, length);
      const block = this.block(bytes, page, type, w, samples);
      for (let y = 0; y < rows; y++)
        for (let x = 0; x < Math.min(w, page.width - left); x++) {
          const at = (y * w + x) * samples;
          out[(top + y) * page.width + left + x] =
            samples >= 3 ? grey(block[at], block[at + 1], block[at + 2]) : block[at];
        }
    }
    return page.photometric === 0 ? out.map((value) => -value) : out;
  }

  /** A decompressed block as numbers, the predictor undone. */
  block(bytes, page, type, width, samples) {
    const size = type.BYTES_PER_ELEMENT;
    const rowBytes = width * samples * size;
    if (page.predictor === 3) {
      const whole = new Uint8Array(bytes.length);
      for (let row = 0; row < bytes.length; row += rowBytes) {
        for (let i = row + samples; i < row + rowBytes; i++) bytes[i] += bytes[i - samples];
        for (let i = 0; i < width * samples; i++)
          for (let b = 0; b < size; b++) whole[row + i * size + size - 1 - b] = bytes[row + b * width * samples + i];
      }
      return new type(whole.buffer);
    }
    if (!this.little) for (let i = 0; i < bytes.length; i += size) bytes.subarray(i, i + size).reverse();
    const block = new type(bytes.buffer, 0, bytes.length / size);
    if (page.predictor === 2)
      for (let row = 0; row < block.length; row += width * samples)
        for (let i = row + samples; i < row + width * samples; i++) block[i] += block[i - samples];
    return block;
  }
}

/** An error whose message is for the user who chose the file. */
class Refused extends Error {}

function nanometres(unit) {
  const known = NM[unit.trim().toLowerCase()];
  return known === undefined ? NaN : known;
}

/** Decodes UTF-8 text that was read byte by byte; other text is returned as it is. */
function fromUtf8(text) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(text, (c) => c.charCodeAt(0)));
  } catch {
    return text;
  }
}

function grey(r, g, b) {
  return r === g && g === b ? r : 0.299 * r + 0.587 * g + 0.114 * b;
}

async function decompress(stored, compression, length) {
  const methods = { 1: copied, 5: lzw, 8: inflated, 32946: inflated, 32773: unpacked };
  const method = methods[compression];
  if (!method) throw new Refused(`its compression (${compression}) is not read here: save it uncompressed or as deflate`);
  const out = new Uint8Array(length);
  await method(stored, out);
  return out;
}

function copied(stored, out) {
  if (stored.length < out.length) throw new Refused("it is cut off");
  out.set(stored.subarray(0, out.length));
}

async function inflated(stored, out) {
  const reader = new Blob([stored]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let at = 0;
  try {
    while (at < out.length) {
      const { done, value } = await reader.read();
      if (done) throw new Refused("it is cut off");
      out.set(value.subarray(0, out.length - at), at);
      at += value.length;
    }
  } catch (error) {
    throw error instanceof Refused ? error : new Refused("it is damaged");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function unpacked(stored, out) {
  for (let from = 0, to = 0; to < out.length; ) {
    if (from >= stored.length) throw new Refused("it is cut off");
    const n = (stored[from++] << 24) >> 24;
    if (n >= 0) {
      out.set(stored.subarray(from, Math.min(from + n + 1, from + out.length - to)), to);
      from += n + 1;
      to += n + 1;
    } else if (n !== -128) {
      out.fill(stored[from++], to, to + 1 - n);
      to += 1 - n;
    }
  }
}

function lzw(stored, out) {
  const [prefix, suffix, lengths] = [new Uint16Array(4096), new Uint8Array(4096), new Uint16Array(4096)];
  for (let i = 0; i < 256; i++) [suffix[i], lengths[i]] = [i, 1];
  let [bits, held, from, to, width, next, before] = [0, 0, 0, 0, 9, 258, -1];
  while (to < out.length) {
    while (held < width) {
      if (from >= stored.length) throw new Refused("it is cut off");
      bits = ((bits << 8) | stored[from++]) & 0xffffff;
      held += 8;
    }
    held -= width;
    const code = (bits >> held) & ((1 << width) - 1);
    if (code === 257) throw new Refused("it is cut off");
    if (code === 256) {
      [width, next, before] = [9, 258, -1];
      continue;
    }
    if (code > next || (code >= 256 && before < 0)) throw new Refused("it is damaged");
    const [known, length] = code < next || before < 0 ? [code, lengths[code]] : [before, lengths[before] + 1];
    let [each, at] = [known, to + lengths[known]];
    while (at > to) {
      if (--at < out.length) out[at] = suffix[each];
      each = prefix[each];
    }
    if (length > lengths[known] && to + length <= out.length) out[to + length - 1] = out[to];
    if (before >= 0 && next < 4096) {
      [prefix[next], suffix[next], lengths[next]] = [before, out[to], lengths[before] + 1];
      next++;
    }
    before = code;
    if (next >= (1 << width) - 1 && width < 12) width++;
    to += length;
  }
}

/** A TIFF of one grey image, Uint8Array or Float32Array; `pixel` [y, x] in nm, or null. */
function tiffOf(data, height, width, pixel) {
  const text = new TextEncoder().encode(pixel ? "ImageJ=1.53\nunit=nm\n\0" : "ImageJ=1.53\n\0");
  const bits = 8 * data.BYTES_PER_ELEMENT;
  const start = 8 + 2 + 12 * 12 + 4;
  const strip = Math.ceil((start + 16 + text.length) / 4) * 4;
  const view = new DataView(new ArrayBuffer(strip));
  view.setUint32(0, 0x49492a00);
  view.setUint32(4, 8, true);
  const entries = [
    [256, 4, 1, width], [257, 4, 1, height], [258, 3, 1, bits], [259, 3, 1, 1], [262, 3, 1, 1],
    [270, 2, text.length, start + 16], [273, 4, 1, strip], [278, 4, 1, height], [279, 4, 1, data.byteLength],
    [282, 5, 1, start], [283, 5, 1, start + 8], [339, 3, 1, bits === 32 ? 3 : 1],
  ];
  view.setUint16(8, entries.length, true);
  entries.forEach(([tag, type, count, value], i) => {
    const at = 10 + 12 * i;
    view.setUint16(at, tag, true);
    view.setUint16(at + 2, type, true);
    view.setUint32(at + 4, count, true);
    if (type === 3) view.setUint16(at + 8, value, true);
    else view.setUint32(at + 8, value, true);
  });
  [1, 0].forEach((axis, i) => {
    view.setUint32(start + 8 * i, 1e6, true);
    view.setUint32(start + 8 * i + 4, pixel ? Math.round(pixel[axis] * 1e6) : 1e6, true);
  });
  new Uint8Array(view.buffer).set(text, start + 16);
  return new Blob([view, data], { type: "image/tiff" });
}
