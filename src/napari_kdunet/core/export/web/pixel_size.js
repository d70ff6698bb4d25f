// The pixel size at which the model is surest of what it sees: the measure of `core.find_pixel_size`, on one slice.

const OCTAVES = [0, -0.5, -1, -1.5, -2, 0.5, 1, 1.5, 2]; // from the model's own pixel size
const FINE = 0.25; // octaves to both sides of the best of these
const WIDE = 1; // octaves to both sides of the surest size over which doubts are smoothed
const OFF = 0.5; // octaves from there to the lowest point of the smoothed doubts, at most
const WORKING_SIDE = 640; // side of the window that is examined, working pixels
const VIEWS_WEIGHT = 0.2;
const SURER = 0.6; // share of the doubt at the original contrast, below which the inverted one is preferred

/** Tries sizes; `onTried` gets the share done, and stops the search by returning false (the result is then null). */
async function findPixelSize(engine, slice, onTried) {
  const steps = 2 * OCTAVES.length + 2;
  const tried = [];
  const images = [slice, slice.inverted()];
  const attempt = (size, inverted) => {
    tried.push({ size, inverted, ...doubtAt(engine, images[+inverted], size) });
    return onTried(tried.length / steps);
  };
  for (const inverted of [false, true])
    for (const octave of OCTAVES)
      if (!(await attempt(engine.model.pixelSize * 2 ** octave, inverted))) return null;
  const coarse = best(tried, engine.model.limits.found);
  for (const octave of coarse ? [-FINE, FINE] : [])
    if (!(await attempt(coarse.size * 2 ** octave, coarse.inverted))) return null;
  const found = best(tried, engine.model.limits.found);
  return {
    tried,
    size: found ? Number(smoothed(tried, found).toPrecision(3)) : null,
    inverted: Boolean(found && found.inverted),
    knowsTissue: Boolean(found && found.doubt < engine.model.limits.known),
  };
}

/** Where the model is surest; null where no doubt is under the limit. */
function best(tried, limit) {
  const [straight, inverted] = [false, true].map((contrast) => {
    const row = tried.filter((each) => each.inverted === contrast).sort((a, b) => a.size - b.size);
    const doubt = (i) => (row[i] ? row[i].doubt : Infinity);
    const least = (i) => doubt(i) <= Math.min(doubt(i - 1), doubt(i + 1));
    // the largest size only serves as a neighbour
    const minima = row.filter((_, i) => i < Math.max(row.length - 1, 1) && least(i));
    return minima.reduce((one, other) => (one && one.doubt <= other.doubt ? one : other), null);
  });
  const surer = straight && inverted && inverted.doubt < SURER * straight.doubt;
  const found = surer ? inverted : straight || inverted;
  return found && found.doubt < limit ? found : null;
}

/** The lowest point of a parabola through the doubts around the surest size. */
function smoothed(tried, surest) {
  const near = tried
    .filter((each) => each.inverted === surest.inverted && isFinite(each.doubt))
    .map(({ size, doubt }) => ({ at: Math.log2(size / surest.size), doubt }))
    .filter(({ at }) => Math.abs(at) < WIDE + 0.01);
  if (near.length < 3) return surest.size;
  const sum = (of) => near.reduce((total, each) => total + of(each), 0);
  const [n, x, xx, xxx, xxxx] = [0, 1, 2, 3, 4].map((power) => sum(({ at }) => at ** power));
  const [y, xy, xxy] = [0, 1, 2].map((power) => sum(({ at, doubt }) => doubt * at ** power));
  const determinant = ([a, b, c], [d, e, f], [g, h, i]) => a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const square = determinant([xxy, xxx, xx], [xy, xx, x], [y, x, n]); // both are scaled by the same positive number
  const slope = determinant([xxxx, xxy, xx], [xxx, xy, x], [xx, y, n]);
  if (!(square > 0)) return surest.size;
  const octaves = near.map(({ at }) => at);
  const [least, most] = [Math.max(-OFF, Math.min(...octaves)), Math.min(OFF, Math.max(...octaves))];
  return surest.size * 2 ** Math.min(Math.max(-slope / (2 * square), least), most);
}

/** Doubt at a size: 0 if sure of every pixel; infinite where (nearly) nothing or far too much is foreground. */
function doubtAt(engine, slice, size) {
  const pixel = [size, size];
  if (!engine.takes(pixel)) return { doubt: Infinity, foreground: 0 };
  const [y, x] = [slice.height, slice.width].map((n, i) => {
    const side = Math.min(n, Math.max(1, Math.floor(WORKING_SIDE / engine.axis(pixel[i]).ratio)));
    const start = Math.floor((n - side) / 2);
    return [start, start + side];
  });
  const first = engine.window(slice, pixel, y, x);
  let [sum, entropy] = [0, 0];
  for (const p of first) {
    sum += p;
    entropy += entropyOf(p);
  }
  const foreground = sum / first.length;
  const ratio = entropy / first.length / entropyOf(foreground);
  const limits = engine.model.limits;
  if (foreground < limits.least_foreground || foreground > limits.most_foreground)
    return { doubt: Infinity, foreground };
  if (!(ratio < limits.found)) return { doubt: ratio, foreground };
  const second = engine.window(slice, pixel, y, x, true);
  let [both, squares] = [0, 0];
  for (let i = 0; i < first.length; i++) {
    both += first[i] * second[i];
    squares += first[i] ** 2 + second[i] ** 2;
  }
  return { doubt: ratio + VIEWS_WEIGHT * (1 - (2 * both) / Math.max(squares, 1e-12)), foreground };
}

/** Binary entropy in nats. */
function entropyOf(p) {
  const q = Math.min(Math.max(p, 1e-7), 1 - 1e-7);
  return -(q * Math.log(q) + (1 - q) * Math.log1p(-q));
}
