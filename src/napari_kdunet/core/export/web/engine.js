// The compiled network (kdunet.wasm): computes the foreground probability of images of any size, tile by tile.

const TILE_BYTES = 96e6; // for the network's planes: memory that a phone can spare
const TILE_SIDE = 2048; // pixels of the image

/** An image of one channel: `data` row by row, raw values. */
class Slice {
  constructor(data, height, width) {
    Object.assign(this, { data, height, width });
    let sum = 0;
    for (const value of data) sum += value;
    this.mean = sum / data.length;
    let rest = 0;
    for (const value of data) rest += (value - this.mean) ** 2;
    this.std = Math.sqrt(rest / data.length);
  }

  /** The same slice with bright and dark exchanged. */
  inverted() {
    const other = Object.assign(Object.create(Slice.prototype), this);
    other.data = this.data.map((value) => -value);
    other.mean = -this.mean;
    return other;
  }
}

class Engine {
  /** Starts an engine from the bytes of the module, and the weights and form of a model. */
  static async open(wasm, weights, model) {
    const { instance } = await WebAssembly.instantiate(wasm, {});
    return new Engine(instance.exports, weights, model);
  }

  constructor(code, weights, model) {
    const at = aligned(code.__heap_base.value);
    Object.assign(this, { code, model, free: aligned(at + 4 * weights.length) });
    this.reserve(this.free);
    new Float32Array(code.memory.buffer, at, weights.length).set(weights);
    code.kdunet_open(model.k, model.depth, model.slope, model.pixelSize, at);
  }

  reserve(end) {
    const missing = Math.ceil((end - this.code.memory.buffer.byteLength) / 65536);
    if (missing > 0) this.code.memory.grow(missing);
  }

  /** Whether an image of this pixel size, [y, x] in nm, can be resampled to the model's. */
  takes(pixel) {
    return pixel.every((size) => this.code.kdunet_unit(size) > 0);
  }

  /** Tiling along one side: step and halo of tiles in pixels, and working pixels per pixel. */
  axis(size) {
    const unit = this.code.kdunet_unit(size);
    const ratio = this.code.kdunet_ratio(size);
    const reach = Math.ceil(this.model.reach / ratio) + (ratio > 1 ? 1 : 0);
    return { unit, ratio, halo: Math.ceil(reach / unit) * unit };
  }

  /** [start, stop] of tiles of about equal size along a side of `n` pixels. */
  spans(n, size) {
    const { unit, ratio } = this.axis(size);
    const most = Math.min(Math.sqrt(TILE_BYTES / (24 * this.model.k)) / ratio, TILE_SIDE);
    const side = Math.max(1, Math.ceil(n / Math.ceil(n / most) / unit)) * unit;
    return Array.from({ length: Math.ceil(n / side) }, (_, i) => [i * side, Math.min((i + 1) * side, n)]);
  }

  /** Probabilities of a window, y and x each [start, stop]; if `turned`, the network sees it turned by a quarter. */
  window(slice, pixel, y, x, turned = false) {
    const read = [slice.height, slice.width].map((size, i) => {
      const { unit, halo } = this.axis(pixel[i]);
      const [start, stop] = [y, x][i];
      const first = Math.max(Math.floor(start / unit) * unit - halo, 0);
      return [first, Math.min(Math.ceil(stop / unit) * unit + halo, size)];
    });
    const [[top, bottom], [left, right]] = read;
    const [height, width] = [bottom - top, right - left];
    const [image, given] = [this.free, this.free + aligned(4 * height * width)];
    const memory = given + 64;
    const more = memory + aligned(this.code.kdunet_bytes(height, width, ...pixel) >>> 0);
    const end = more + (turned ? this.code.kdunet_bytes(width, height, pixel[1], pixel[0]) >>> 0 : 0);
    this.reserve(end);
    const values = new Float32Array(this.code.memory.buffer, image, height * width);
    for (let i = 0; i < height; i++) {
      const row = (top + i) * slice.width;
      values.set(slice.data.subarray(row + left, row + right), i * width);
    }
    new Float32Array(this.code.memory.buffer, given, 2).set([slice.mean, slice.std]);
    const call = turned ? this.code.kdunet_turned : this.code.kdunet_probability;
    call(image, height, width, ...pixel, given, image, memory, more);
    const out = new Float32Array((y[1] - y[0]) * (x[1] - x[0]));
    for (let i = y[0] - top, to = 0; i < y[1] - top; i++, to += x[1] - x[0])
      out.set(values.subarray(i * width + x[0] - left, i * width + x[1] - left), to);
    return out;
  }

  /** Probabilities of a slice; `onTile` gets the share of tiles done, and stops the rest by returning false. */
  async segment(slice, pixel, onTile) {
    const out = new Float32Array(slice.height * slice.width);
    const [rows, columns] = [this.spans(slice.height, pixel[0]), this.spans(slice.width, pixel[1])];
    let done = 0;
    for (const y of rows)
      for (const x of columns) {
        const part = this.window(slice, pixel, y, x);
        const width = x[1] - x[0];
        for (let i = y[0]; i < y[1]; i++)
          out.set(part.subarray((i - y[0]) * width, (i - y[0] + 1) * width), i * slice.width + x[0]);
        if (!(await onTile(++done / (rows.length * columns.length)))) return null;
      }
    return out;
  }
}

function aligned(at) {
  return Math.ceil(at / 64) * 64;
}
