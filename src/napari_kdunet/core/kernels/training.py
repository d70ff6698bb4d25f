"""The kernels of `autograd`. Each works on one thread and releases Python's global interpreter lock.

A zero-padded plane is laid out as one line of rows that are ``X + 2`` long. The outputs of the 3x3 convolution at
consecutive places of that line need nine shifted slices of it, so that the innermost loop can be as long as we like,
however narrow the plane. The two outputs between rows mean nothing and are not copied.
"""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from napari_kdunet.core.kernels.jit import can_cache, copy, njit

_BAND = 2048  # places at a time, so that the sums stay in the L1 cache

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": can_cache()}


@njit(**_OPTIONS)
def _lay_out(planes, lines):
    """Copy (C, Y, X) planes to (C, (Y + 2) * (X + 2) + 2) lines with a border of zeros."""
    channels, height, width = planes.shape
    step = width + 2
    for c in range(channels):
        lines[c, :step] = 0
        lines[c, (height + 1) * step :] = 0
        for y in range(height):
            start = (y + 1) * step
            lines[c, start] = 0
            copy(planes[c, y], lines[c, start + 1 : start + 1 + width])
            lines[c, start + 1 + width] = 0


@njit(**_OPTIONS)
def _add(kernel, top, middle, bottom, total):
    a, b, c = kernel[0]
    d, e, f = kernel[1]
    g, h, i = kernel[2]
    for p in range(len(total)):
        total[p] += (
            (a * top[p] + b * top[p + 1] + c * top[p + 2])
            + (d * middle[p] + e * middle[p + 1] + f * middle[p + 2])
            + (g * bottom[p] + h * bottom[p + 1] + i * bottom[p + 2])
        )


@njit(**_OPTIONS)
def _add_two(kernel, other, top, middle, bottom, total, second):
    """Do what `_add` does for two output channels, so that each loaded value is used twice."""
    a, b, c = kernel[0]
    d, e, f = kernel[1]
    g, h, i = kernel[2]
    A, B, C = other[0]
    D, E, F = other[1]
    G, H, I = other[2]  # noqa: E741 - the twin of i
    for p in range(len(total)):
        t, u, v = top[p], top[p + 1], top[p + 2]
        w, x, y = middle[p], middle[p + 1], middle[p + 2]
        q, r, s = bottom[p], bottom[p + 1], bottom[p + 2]
        total[p] += (a * t + b * u + c * v) + (d * w + e * x + f * y) + (g * q + h * r + i * s)
        second[p] += (A * t + B * u + C * v) + (D * w + E * x + F * y) + (G * q + H * r + I * s)


@njit(**_OPTIONS)
def convolve(x, weight, bias, out):
    """Convolve (N, C, Y, X) with weights (K, C, 3, 3) to (N, K, Y, X), with zero padding."""
    number, channels, height, width = x.shape
    outputs, step = len(weight), width + 2
    rows = min(height, max(1, _BAND // step))
    lines = np.empty((channels, (height + 2) * step + 2), np.float32)
    total = np.empty((outputs, rows * step), np.float32)
    for n in range(number):
        _lay_out(x[n], lines)
        for y in range(0, height, rows):
            places = min(rows, height - y) * step
            for k in range(outputs):
                total[k, :places] = bias[k]
            for c in range(channels):
                top = lines[c, y * step : y * step + places + 2]
                middle = lines[c, (y + 1) * step : (y + 1) * step + places + 2]
                bottom = lines[c, (y + 2) * step : (y + 2) * step + places + 2]
                for k in range(0, outputs - 1, 2):
                    one, two = total[k, :places], total[k + 1, :places]
                    _add_two(weight[k, c], weight[k + 1, c], top, middle, bottom, one, two)
                if outputs % 2:
                    _add(weight[outputs - 1, c], top, middle, bottom, total[outputs - 1, :places])
            for k in range(outputs):
                for row in range(min(rows, height - y)):
                    copy(total[k, row * step : row * step + width], out[n, k, y + row])


@njit(**_OPTIONS)
def _products(grad, top, middle, bottom, sums):
    a = b = c = d = e = f = g = h = i = np.float32(0)
    for p in range(len(grad)):
        v = grad[p]
        a += v * top[p]
        b += v * top[p + 1]
        c += v * top[p + 2]
        d += v * middle[p]
        e += v * middle[p + 1]
        f += v * middle[p + 2]
        g += v * bottom[p]
        h += v * bottom[p + 1]
        i += v * bottom[p + 2]
    for at, value in enumerate((a, b, c, d, e, f, g, h, i)):
        sums[at // 3, at % 3] += value


@njit(**_OPTIONS)
def correlate(x, grad, dweight):
    """Compute the gradient (K, C, 3, 3) of a convolution's weight from its input and the gradient of its output."""
    number, channels, height, width = x.shape
    outputs, step = grad.shape[1], width + 2
    lines = np.empty((channels, (height + 2) * step + 2), np.float32)
    grads = np.zeros((outputs, height * step), np.float32)  # zero between the rows
    sums = np.zeros(dweight.shape, np.float64)
    for n in range(number):
        _lay_out(x[n], lines)
        for k in range(outputs):
            for y in range(height):
                copy(grad[n, k, y], grads[k, y * step : y * step + width])
        for start in range(0, height * step, _BAND):
            places = min(_BAND, height * step - start)
            for c in range(channels):
                top = lines[c, start : start + places + 2]
                middle = lines[c, start + step : start + step + places + 2]
                bottom = lines[c, start + 2 * step : start + 2 * step + places + 2]
                for k in range(outputs):
                    _products(grads[k, start : start + places], top, middle, bottom, sums[k, c])
    for at, value in np.ndenumerate(sums):
        dweight[at] = value


@njit(**_OPTIONS)
def moments(z, out):
    """Write mean and (biased) variance of each channel of (N, C, Y, X) to `out`, (2, C) float64."""
    number, channels, height, width = z.shape
    count = number * height * width
    for c in range(channels):
        total = 0.0
        for n in range(number):
            for y in range(height):
                part = np.float32(0)
                row = z[n, c, y]
                for x in range(width):
                    part += row[x]
                total += part
        mean = total / count
        middle, total = np.float32(mean), 0.0
        for n in range(number):
            for y in range(height):
                part = np.float32(0)
                row = z[n, c, y]
                for x in range(width):
                    part += (row[x] - middle) * (row[x] - middle)
                total += part
        out[0, c], out[1, c] = mean, total / count


@njit(**_OPTIONS)
def activate(z, scale, shift, slope, out):
    """Write the (Leaky)ReLU of ``scale * z + shift`` to `out`, with a scale and a shift for each channel."""
    number, channels, height, _ = z.shape
    leak = np.float32(slope)
    for n in range(number):
        for c in range(channels):
            a, b = scale[c], shift[c]
            for y in range(height):
                source, target = z[n, c, y], out[n, c, y]
                for x in range(len(source)):
                    value = a * source[x] + b
                    target[x] = max(value, leak * value)


@njit(**_OPTIONS)
def backward_activate(grad, z, mean, rstd, scale, shift, slope, normalised, out, sums):
    """Compute the gradient of the convolution's output ``z`` from that of the activation's output.

    `sums` (2, C) gets the gradients of beta and gamma; without normalisation the first is that of the bias.
    """
    number, channels, height, width = z.shape
    leak, one = np.float32(slope), np.float32(1)
    count = np.float32(number * height * width)
    for c in range(channels):
        a, b, middle, inverse = scale[c], shift[c], mean[c], rstd[c]
        plain = along = 0.0
        for n in range(number):
            for y in range(height):
                g, source, target = grad[n, c, y], z[n, c, y], out[n, c, y]
                first = second = np.float32(0)
                for x in range(width):
                    value = g[x] * (one if a * source[x] + b > 0 else leak)
                    target[x] = value
                    first += value
                    second += value * (source[x] - middle)
                plain += first
                along += second
        sums[0, c], sums[1, c] = plain, along * inverse
        if normalised:
            offset = np.float32(plain) / count
            tilt = sums[1, c] / count * inverse
            for n in range(number):
                for y in range(height):
                    source, target = z[n, c, y], out[n, c, y]
                    for x in range(width):
                        target[x] = a * (target[x] - offset - (source[x] - middle) * tilt)


@njit(**_OPTIONS)
def pool(x, out):
    """Write the largest of each 2x2 pixels to `out`: (N, C, 2 Y, 2 X) to (N, C, Y, X)."""
    number, channels, height, width = out.shape
    for n in range(number):
        for c in range(channels):
            for y in range(height):
                top, bottom, target = x[n, c, 2 * y], x[n, c, 2 * y + 1], out[n, c, y]
                for i in range(width):
                    target[i] = max(max(top[2 * i], top[2 * i + 1]), max(bottom[2 * i], bottom[2 * i + 1]))


@njit(**_OPTIONS)
def backward_pool(grad, x, largest, out):
    """Compute the gradient of `pool`'s input: that of an output goes to the first of its pixels that is the largest."""
    number, channels, height, width = largest.shape
    zero = np.float32(0)
    for n in range(number):
        for c in range(channels):
            for y in range(height):
                top, bottom, most, g = x[n, c, 2 * y], x[n, c, 2 * y + 1], largest[n, c, y], grad[n, c, y]
                above, below = out[n, c, 2 * y], out[n, c, 2 * y + 1]
                for i in range(width):  # without a branch, so that it vectorises
                    rest = g[i]
                    first = rest if top[2 * i] == most[i] else zero
                    rest -= first
                    second = rest if top[2 * i + 1] == most[i] else zero
                    rest -= second
                    third = rest if bottom[2 * i] == most[i] else zero
                    above[2 * i], above[2 * i + 1] = first, second
                    below[2 * i], below[2 * i + 1] = third, rest - third


@njit(**_OPTIONS)
def enlarge(x, weight, bias, out):
    """Apply a transposed 2x2 convolution of stride 2: (N, C, Y, X) and (C, K, 2, 2) to (N, K, 2 Y, 2 X)."""
    number, channels, height, width = x.shape
    pair = np.empty((2, width), np.float32)
    even, odd = pair[0], pair[1]
    for n in range(number):
        for k in range(weight.shape[1]):
            for y in range(height):
                for dy in range(2):
                    pair[:] = bias[k]
                    for c in range(channels):
                        source, a, b = x[n, c, y], weight[c, k, dy, 0], weight[c, k, dy, 1]
                        for i in range(width):
                            even[i] += a * source[i]
                            odd[i] += b * source[i]
                    target = out[n, k, 2 * y + dy]
                    for i in range(width):
                        target[2 * i], target[2 * i + 1] = even[i], odd[i]


@njit(**_OPTIONS)
def backward_enlarge(grad, x, weight, dx, dweight, dbias):
    """Compute the gradients of the input, the weight and the bias of `enlarge`."""
    number, channels, height, width = x.shape
    pair = np.empty((2, width), np.float32)
    even, odd = pair[0], pair[1]
    sums, total = np.zeros(weight.shape, np.float64), np.zeros(weight.shape[1], np.float64)
    dx[:] = 0
    for n in range(number):
        for y in range(height):
            for k in range(weight.shape[1]):
                for dy in range(2):
                    source, part = grad[n, k, 2 * y + dy], np.float32(0)
                    for i in range(width):
                        even[i], odd[i] = source[2 * i], source[2 * i + 1]
                        part += even[i] + odd[i]
                    total[k] += part
                    for c in range(channels):
                        seen, target, a, b = x[n, c, y], dx[n, c, y], weight[c, k, dy, 0], weight[c, k, dy, 1]
                        p = q = np.float32(0)
                        for i in range(width):
                            target[i] += a * even[i] + b * odd[i]
                            p += even[i] * seen[i]
                            q += odd[i] * seen[i]
                        sums[c, k, dy, 0] += p
                        sums[c, k, dy, 1] += q
    for at, value in np.ndenumerate(sums):
        dweight[at] = value
    copy(total, dbias)
