// From probabilities to a mask and its objects: connected components of pixels that touch by a side or a corner.

/** The mask (0, 255) above a threshold without objects smaller than `least` pixels, and the objects, largest first. */
function objectsOf(probability, height, width, threshold, least) {
  const mask = new Uint8Array(height * width);
  const runs = []; // {y, start, stop, of}: pixels of a row, and the run that stands for their object
  let above = [];
  for (let y = 0; y < height; y++) {
    const here = [];
    for (let x = 0; x < width; ) {
      if (!(probability[y * width + x] > threshold)) {
        x++;
        continue;
      }
      const run = { y, start: x, stop: x, of: null };
      while (run.stop < width && probability[y * width + run.stop] > threshold) run.stop++;
      here.push(run);
      x = run.stop;
    }
    let i = 0;
    for (const run of here) {
      while (i < above.length && above[i].stop < run.start) i++;
      for (let j = i; j < above.length && above[j].start <= run.stop; j++) join(run, above[j]);
      runs.push(run);
    }
    above = here;
  }
  const found = new Map();
  for (const run of runs) {
    const root = rootOf(run);
    if (!found.has(root)) found.set(root, { pixels: 0, y: 0, x: 0, runs: [] });
    const object = found.get(root);
    const pixels = run.stop - run.start;
    object.pixels += pixels;
    object.y += pixels * run.y;
    object.x += (pixels * (run.start + run.stop - 1)) / 2;
    object.runs.push(run);
  }
  const objects = [];
  for (const { pixels, y, x, runs: own } of found.values()) {
    if (pixels < least) continue;
    for (const run of own) mask.fill(255, run.y * width + run.start, run.y * width + run.stop);
    objects.push({ pixels, y: y / pixels, x: x / pixels });
  }
  objects.sort((a, b) => b.pixels - a.pixels);
  return { mask, objects };
}

function rootOf(run) {
  while (run.of) {
    if (run.of.of) run.of = run.of.of;
    run = run.of;
  }
  return run;
}

function join(one, other) {
  const [a, b] = [rootOf(one), rootOf(other)];
  if (a !== b) a.of = b;
}
