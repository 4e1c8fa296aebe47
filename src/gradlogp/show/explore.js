// The mathematics of the explorer: fields at a noise level, and one step of each sampler.
//
// x_σ = x_0 + σ ε. A field has at(σ), a level; a level has evaluate(x, y, out), which writes
// log p_σ, and the two entries of its gradient, the score. Noise comes in from outside, in the order
// in which the Python kernels draw it, so that the two can be compared.
"use strict";
const Explore = (() => {
  // ------------------------------------------------------------------ fields

  // A mixture of Gaussians in the plane; covs has [S_xx, S_xy, S_yy] for each component.
  function mixture({ weights, means, covs }) {
    const K = weights.length;
    const at = (sigma) => {
      const c = new Float64Array(6 * K), logs = new Float64Array(K);
      for (let k = 0; k < K; k++) {
        const a = covs[k][0] + sigma * sigma, b = covs[k][1], d = covs[k][2] + sigma * sigma;
        const det = a * d - b * b;
        c.set([means[k][0], means[k][1], d / det, -b / det, a / det,
          Math.log(weights[k]) - Math.log(2 * Math.PI) - 0.5 * Math.log(det)], 6 * k);
      }
      // Only differences of exponents enter, so that nothing underflows far outside.
      const fill = (x, y) => {
        let top = -Infinity;
        for (let k = 0, i = 0; k < K; k++, i += 6) {
          const u = x - c[i], v = y - c[i + 1];
          logs[k] = c[i + 5] - 0.5 * (c[i + 2] * u * u + 2 * c[i + 3] * u * v + c[i + 4] * v * v);
          if (logs[k] > top) top = logs[k];
        }
        return top;
      };
      return {
        sigma,
        evaluate(x, y, out) {
          const top = fill(x, y);
          let total = 0, sx = 0, sy = 0;
          for (let k = 0, i = 0; k < K; k++, i += 6) {
            const r = Math.exp(logs[k] - top), u = x - c[i], v = y - c[i + 1];
            total += r;
            sx -= r * (c[i + 2] * u + c[i + 3] * v);
            sy -= r * (c[i + 3] * u + c[i + 4] * v);
          }
          out[0] = top + Math.log(total);
          out[1] = sx / total;
          out[2] = sy / total;
        },
        // P(component k | x): under p_σ its mean is the weight of the component
        responsibilities(x, y, out) {
          const top = fill(x, y);
          let total = 0;
          for (let k = 0; k < K; k++) total += out[k] = Math.exp(logs[k] - top);
          for (let k = 0; k < K; k++) out[k] /= total;
        },
      };
    };
    return { at, hasDensity: true, components: K };
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  function decode(text) {
    const raw = atob(text), values = new Float64Array(raw.length / 2);
    for (let i = 0; i < values.length; i++) {
      values[i] = half(raw.charCodeAt(2 * i) | (raw.charCodeAt(2 * i + 1) << 8));
    }
    return values;
  }

  // Catmull-Rom weights of the points −1, 0, 1, 2 around a fraction f in [0, 1]; the end of a row goes
  // on in a straight line
  function cubic(f, w, first, last) {
    const g = f * f, h = g * f;
    w[0] = 0.5 * (2 * g - f - h);
    w[1] = 0.5 * (3 * h - 5 * g + 2);
    w[2] = 0.5 * (4 * g + f - 3 * h);
    w[3] = 0.5 * (h - g);
    if (first) { w[1] += 2 * w[0]; w[2] -= w[0]; w[0] = 0; }
    if (last) { w[2] += 2 * w[3]; w[1] -= w[3]; w[3] = 0; }
  }

  // A field on a grid: values[level][row of y][column of x][channel], the levels geometric in σ, the
  // grid of a level c ± (reach + 4σ). Channels: the score, and log p last where it is known.
  function table({ center, reach, size, sigmas, channels, values }) {
    const data = decode(values), C = channels, block = size * size * C, L = sigmas.length;
    const clamp = (i, n) => (i < 0 ? 0 : i > n - 1 ? n - 1 : i);
    const at = (sigma) => {
      let grid = data.subarray(0, block);
      if (L > 1) {
        const step = Math.log(sigmas[L - 1] / sigmas[0]) / (L - 1);
        const g = Math.min(Math.max(Math.log(sigma / sigmas[0]) / step, 0), L - 1);
        const i = Math.min(Math.floor(g), L - 2), w = new Float64Array(4);
        cubic(g - i, w, i === 0, i === L - 2);
        grid = new Float64Array(block);
        for (let k = 0; k < 4; k++) {
          const from = clamp(i + k - 1, L) * block;
          if (w[k]) for (let j = 0; j < block; j++) grid[j] += w[k] * data[from + j];
        }
      }
      const scale = reach + 4 * sigma, wx = new Float64Array(4), wy = new Float64Array(4);
      const n = size;
      return {
        sigma,
        evaluate(x, y, out) {
          const gx = ((x - center[0]) / scale + 1) / 2 * (n - 1);
          const gy = ((y - center[1]) / scale + 1) / 2 * (n - 1);
          const cx = Math.min(Math.max(gx, 0), n - 1), cy = Math.min(Math.max(gy, 0), n - 1);
          const i = Math.min(Math.floor(cx), n - 2), j = Math.min(Math.floor(cy), n - 2);
          cubic(cx - i, wx, i === 0, i === n - 2);
          cubic(cy - j, wy, j === 0, j === n - 2);
          let sx = 0, sy = 0, lp = 0;
          for (let b = 0; b < 4; b++) {
            const row = clamp(j + b - 1, n) * n;
            for (let a = 0; a < 4; a++) {
              const w = wx[a] * wy[b], at = (row + clamp(i + a - 1, n)) * C;
              sx += w * grid[at];
              sy += w * grid[at + 1];
              if (C > 2) lp += w * grid[at + 2];
            }
          }
          // beyond the grid the score is that of its edge, and log p goes on along it
          const unit = 2 * scale / (n - 1);
          if (C > 2) lp += unit * ((gx - cx) * sx + (gy - cy) * sy);
          out[0] = C > 2 ? lp : NaN;
          out[1] = sx;
          out[2] = sy;
        },
      };
    };
    return { at, hasDensity: C > 2, components: 0 };
  }

  const field = (spec) => (spec.kind === "mixture" ? mixture(spec) : table(spec));

  // ------------------------------------------------------------------ noise

  // sfc32, seeded; normals by Box and Muller
  function randomness(seed) {
    let a = 0x9e3779b9, b = 0x243f6a88, c = seed >>> 0, d = 1;
    const next = () => {
      const t = (((a + b) | 0) + d) | 0;
      d = (d + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = ((c << 21) | (c >>> 11)) + t | 0;
      return (t >>> 0) / 4294967296;
    };
    for (let i = 0; i < 16; i++) next();
    return {
      uniform(n, u = new Float64Array(n)) {
        for (let i = 0; i < n; i++) u[i] = next();
        return u;
      },
      normal(n, z = new Float64Array(n)) {
        for (let i = 0; i < n; i += 2) {
          const r = Math.sqrt(-2 * Math.log(1 - next())), angle = 2 * Math.PI * next();
          z[i] = r * Math.cos(angle);
          if (i + 1 < n) z[i + 1] = r * Math.sin(angle);
        }
        return z;
      },
    };
  }

  // ------------------------------------------------------------------ one step of each sampler
  //
  // x and p (the momentum) are Float64Arrays x_0, y_0, x_1, y_1, …, changed in place. A walker that
  // would become NaN or infinite stays where it was.

  const out = new Float64Array(3);

  // where the noise of a step is written: a step allocates nothing
  const held = { z: out, u: out };
  const room = (name, n) => (held[name].length === n ? held[name] : (held[name] = new Float64Array(n)));

  function put(x, i, u, v) {
    if (Number.isFinite(u) && Number.isFinite(v)) { x[i] = u; x[i + 1] = v; }
  }

  // x' = x + h s(x) + √(2 h τ) z
  function ula(x, level, h, tau, noise) {
    const z = noise.normal(x.length, room("z", x.length)), spread = Math.sqrt(2 * h * tau);
    for (let i = 0; i < x.length; i += 2) {
      level.evaluate(x[i], x[i + 1], out);
      put(x, i, x[i] + h * out[1] + spread * z[i], x[i + 1] + h * out[2] + spread * z[i + 1]);
    }
  }

  // the same as a proposal, accepted with min(1, p(y)^{1/τ} q(x|y) / p(x)^{1/τ} q(y|x))
  function mala(x, level, h, tau, noise) {
    const z = noise.normal(x.length, room("z", x.length)), u = noise.uniform(x.length / 2, room("u", x.length / 2));
    const spread = Math.sqrt(2 * h * tau);
    let accepted = 0;
    for (let i = 0; i < x.length; i += 2) {
      level.evaluate(x[i], x[i + 1], out);
      const lp = out[0];
      const a = x[i] + h * out[1] + spread * z[i], b = x[i + 1] + h * out[2] + spread * z[i + 1];
      level.evaluate(a, b, out);
      const back = (x[i] - a - h * out[1]) ** 2 + (x[i + 1] - b - h * out[2]) ** 2;
      const forth = spread * spread * (z[i] ** 2 + z[i + 1] ** 2);
      const ratio = (out[0] - lp) / tau - (back - forth) / (4 * h * tau);
      if (u[i / 2] < Math.exp(Math.min(0, ratio))) { put(x, i, a, b); accepted++; }
    }
    return accepted / (x.length / 2);
  }

  // kick, drift, friction, drift, kick: mass 1, step h a time
  function baoab(x, p, level, h, tau, friction, noise) {
    const z = noise.normal(x.length, room("z", x.length)), c = Math.exp(-friction * h);
    const spread = Math.sqrt(tau * -Math.expm1(-2 * friction * h));
    for (let i = 0; i < x.length; i += 2) {
      level.evaluate(x[i], x[i + 1], out);
      let u = p[i] + h / 2 * out[1], v = p[i + 1] + h / 2 * out[2];
      let a = x[i] + h / 2 * u, b = x[i + 1] + h / 2 * v;
      u = c * u + spread * z[i];
      v = c * v + spread * z[i + 1];
      a += h / 2 * u;
      b += h / 2 * v;
      level.evaluate(a, b, out);
      u += h / 2 * out[1];
      v += h / 2 * out[2];
      if (Number.isFinite(a + b + u + v)) { x[i] = a; x[i + 1] = b; p[i] = u; p[i + 1] = v; }
    }
  }

  // from σ_t to σ_s < σ_t with x̂_0 = x + σ_t² s frozen and the linear part exact
  function reverse(x, level, sigma, noise) {
    const z = noise.normal(x.length, room("z", x.length)), t = level.sigma, rho = sigma / t;
    const keep = rho * rho, spread = sigma * Math.sqrt(Math.max(0, 1 - keep));
    for (let i = 0; i < x.length; i += 2) {
      level.evaluate(x[i], x[i + 1], out);
      const a = x[i] + t * t * out[1], b = x[i + 1] + t * t * out[2];
      put(x, i, keep * x[i] + (1 - keep) * a + spread * z[i],
        keep * x[i + 1] + (1 - keep) * b + spread * z[i + 1]);
    }
  }

  // Heun's step of dx/dσ = −σ s(x, σ)
  function flow(x, level, lower) {
    const t = level.sigma, s = lower.sigma, h = s - t;
    for (let i = 0; i < x.length; i += 2) {
      level.evaluate(x[i], x[i + 1], out);
      const u = -t * out[1], v = -t * out[2];
      lower.evaluate(x[i] + h * u, x[i + 1] + h * v, out);
      put(x, i, x[i] + h * (u - s * out[1]) / 2, x[i + 1] + h * (v - s * out[2]) / 2);
    }
  }

  // ------------------------------------------------------------------ runs

  // σ_max = first > … > last = σ_min, geometric, N + 1 of them
  const ladder = (low, high, N) =>
    Array.from({ length: N + 1 }, (_, i) => high * (low / high) ** (i / N));

  // n walkers of N(mean, cov + σ² I)
  function prior(n, mean, cov, sigma, noise) {
    const z = noise.normal(2 * n), x = new Float64Array(2 * n);
    const a = Math.sqrt(cov[0] + sigma * sigma), b = cov[1] / a;
    const c = Math.sqrt(cov[2] + sigma * sigma - b * b);
    for (let i = 0; i < 2 * n; i += 2) {
      x[i] = mean[0] + a * z[i];
      x[i + 1] = mean[1] + b * z[i] + c * z[i + 1];
    }
    return x;
  }

  // mean, variance and, for a mixture, the mean responsibility of each component
  function statistics(x, level, K) {
    const n = x.length / 2, mean = [0, 0], variance = [0, 0], weights = new Array(K).fill(0);
    const r = new Float64Array(K);
    for (let i = 0; i < x.length; i++) mean[i % 2] += x[i] / n;
    for (let i = 0; i < x.length; i++) variance[i % 2] += (x[i] - mean[i % 2]) ** 2 / n;
    if (K) {
      for (let i = 0; i < x.length; i += 2) {
        level.responsibilities(x[i], x[i + 1], r);
        for (let k = 0; k < K; k++) weights[k] += r[k] / n;
      }
    }
    return { n, mean, variance, weights };
  }

  // ------------------------------------------------------------------ means under p_σ

  // where p_σ lies, c ± half, and the points a side that a sum needs there
  function box(spec, center, sigma) {
    let half = spec.kind === "table" ? spec.reach + 4 * sigma : 0, width = sigma;
    if (spec.kind === "mixture") {
      width = Infinity;
      spec.means.forEach((m, k) => {
        const [a, b, d] = spec.covs[k], root = Math.hypot((a - d) / 2, b);
        const sd = Math.sqrt((a + d) / 2 + root + sigma * sigma);
        width = Math.min(width, Math.sqrt((a + d) / 2 - root + sigma * sigma));
        half = Math.max(half, Math.abs(m[0] - center[0]) + 6 * sd, Math.abs(m[1] - center[1]) + 6 * sd);
      });
    }
    return { half, n: Math.max(48, Math.ceil(2.2 * half / width)) };
  }

  // E f(x) for x ~ p_σ, an array, by the trapezoidal rule; null where that would need too many points
  const MOST = 320;
  function mean(field, spec, center, sigma, f) {
    const { half, n } = box(spec, center, sigma), level = field.at(sigma), v = new Float64Array(3);
    if (n > MOST) return null;
    const logs = new Float64Array(n * n), place = (i) => half * (2 * (i + 0.5) / n - 1);
    let top = -Infinity, total = 0, sums = null;
    for (let k = 0; k < n * n; k++) {
      level.evaluate(center[0] + place(k % n), center[1] + place(Math.floor(k / n)), v);
      logs[k] = v[0];
      if (v[0] > top) top = v[0];
    }
    for (let k = 0; k < n * n; k++) {
      const p = Math.exp(logs[k] - top);
      if (p < 1e-12) continue;
      const x = center[0] + place(k % n), y = center[1] + place(Math.floor(k / n));
      level.evaluate(x, y, v);
      const values = f(v[1], v[2], x, y);
      sums = sums || values.map(() => 0);
      values.forEach((value, i) => { sums[i] += p * value; });
      total += p;
    }
    return sums.map((s) => s / total);
  }

  // The denoising loss ½ E‖σ s_θ(x) + ε‖²: its minimum 1 − ½σ² E‖s‖², and what s_θ has above it,
  // ½σ² E‖s_θ − s‖²
  function loss(exact, spec, learned, center, sigma) {
    const level = learned && learned.at(sigma), v = new Float64Array(3);
    const found = mean(exact, spec, center, sigma, (a, b, x, y) => {
      if (level) level.evaluate(x, y, v);
      return [a * a + b * b, level ? (v[1] - a) ** 2 + (v[2] - b) ** 2 : 0];
    });
    if (!found) return null;
    const minimum = 1 - sigma * sigma * found[0] / 2;
    return { sigma, minimum, learned: level ? minimum + sigma * sigma * found[1] / 2 : null };
  }

  // a vector's part along the ray from a point, and its part across
  function split(sx, sy, x, y, around) {
    const u = x - around[0], v = y - around[1], r = Math.hypot(u, v) || 1;
    const along = (sx * u + sy * v) / r;
    return [along * u / r, along * v / r, sx - along * u / r, sy - along * v / r];
  }

  return {
    mean, loss, split, mixture, table, field, half, randomness, ula, mala, baoab, reverse, flow, ladder, prior,
    statistics,
  };
})();
if (typeof module !== "undefined") module.exports = Explore;
