// The face of the explorer: panels, controls, walkers. Its mathematics is in explore.js.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const HEAT = 112, PRIOR = 5000, DROP = 50, FRICTION = 1, LEVEL_STEPS = 10;
  const MOST = 20000, FEW_MODES = 6;

  const fields = data.fields.map((spec) => ({ name: spec.name, spec, ...Explore.field(spec) }));
  let panels = [];
  // points of the data, with which walkers are compared if no density is known
  const seen = !data.moments && data.points ? Float64Array.from(data.points) : null;
  const exact = data.moments ? fields[fields.length - 1] : null;
  const K = exact && exact.components <= FEW_MODES && exact.components > 1 ? exact.components : 0;
  const noise = Explore.randomness(20240229);

  const spread = Math.sqrt(Math.max(data.cov[0], data.cov[2]));
  const start = Math.min(Math.max(data.low, spread / 20), data.high); // the level that is shown first
  const least = data.stiff - data.low ** 2 + start ** 2; // the least variance there, which a step has to suit
  const SAMPLERS = {
    ula: { name: "Langevin", size: [1e-4, 1], start: Math.min(0.02, least / 3), what: "step h", tau: true,
      formula: "x′ = x + h s(x) + √(2hτ) z" + (data.levels ? " at the noise level of the slider." : "") },
    mala: { name: "MALA", size: [1e-4, 2], start: Math.min(0.1, least), what: "step h", tau: true, density: true,
      formula: "The Langevin step as a proposal, accepted or rejected so that p is exactly invariant." },
    baoab: { name: "BAOAB", size: [1e-3, 2], start: Math.min(0.15, Math.sqrt(least)), what: "step h", tau: true,
      formula: "With a momentum: kick, drift, friction, drift, kick; γ = 1, mass 1. h is a time." },
    annealed: { name: "annealed", size: [0.01, 1], start: 0.3, what: "step h/σ²", tau: true, run: true,
      formula: `Langevin steps of h ∝ σ², ${LEVEL_STEPS} at each of 40 levels from the largest down.` },
    reverse: { name: "reverse SDE", size: [10, 500], start: 100, what: "steps in all", run: true, count: true,
      formula: "From noise to data: x′ = ρ² x + (1 − ρ²) x̂₀ + σ′ √(1 − ρ²) z, with ρ = σ′/σ." },
    flow: { name: "flow", size: [10, 500], start: 60, what: "steps in all", run: true, count: true,
      formula: "dx/dσ = −σ s(x, σ) by Heun's steps: no noise but that of the start." },
  };
  for (const [key, sampler] of Object.entries(SAMPLERS)) {
    const option = $("sampler").querySelector(`[value=${key}]`);
    const possible = (!sampler.density || fields.some((f) => f.hasDensity)) && (data.levels || !sampler.run);
    if (!possible) option.remove();
    sampler.value = sampler.start;
  }

  const state = {
    sigma: start,
    x: new Float64Array(0), p: new Float64Array(0), steps: 0, at: 0, inner: 0, ended: false,
    sampler: "ula", follow: 0, playing: !reduced, tau: 1, speed: 1, credit: 0, acceptance: null,
    frames: 0, results: {}, picture: "level", plain: new Float64Array(0), history: [], losses: [],
  };
  const up = data.flip ? -1 : 1;
  window.explorer = { state, fields, data, show: (name) => show(name), get panels() { return panels; } };

  // ------------------------------------------------------------------ colours

  const RAMPS = {
    light: ["#ffffff", "#d9efee", "#9bd3d6", "#4fa6bc", "#2f739d", "#33427a", "#21183b"],
    dark: ["#11151b", "#1c2442", "#25457c", "#2a75a0", "#3fa9b5", "#8fd8c8", "#f0fbef"],
    lightOff: ["#ffffff", "#fbe3c9", "#f0b35c", "#e5762b", "#b8321f", "#5e0d26"],
    darkOff: ["#11151b", "#4a1f33", "#8a2f45", "#d3543a", "#f59a4a", "#ffe3a6"],
  };
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  function ramp(stops) {
    const colours = stops.map(rgb), table = new Uint8ClampedArray(256 * 3);
    for (let i = 0; i < 256; i++) {
      const g = (i / 255) * (colours.length - 1), k = Math.min(Math.floor(g), colours.length - 2);
      for (let c = 0; c < 3; c++) table[3 * i + c] = colours[k][c] + (g - k) * (colours[k + 1][c] - colours[k][c]);
    }
    return table;
  }
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  let theme;
  function setTheme() {
    const style = getComputedStyle(document.documentElement), css = (name) => style.getPropertyValue(name).trim();
    const key = scheme.matches ? "dark" : "light";
    theme = {
      heat: ramp(RAMPS[key]), off: ramp(RAMPS[`${key}Off`]), ink: css("--ink"), muted: css("--muted"),
      line: css("--line"), accent: css("--accent"), walker: css("--walker"),
      arrow: key === "dark" ? "rgba(228,232,238,.62)" : "rgba(29,37,48,.6)",
      dots: key === "dark" ? "rgba(88,176,238,.3)" : "rgba(11,98,164,.22)",
      halo: key === "dark" ? "rgba(17,21,27,.8)" : "rgba(255,255,255,.85)",
      soft: key === "dark" ? "rgba(255,160,77,.6)" : "rgba(209,85,11,.55)",
      dot: rgb(css("--walker")), cover: key === "dark" ? 154 : 141,
    };
    dirty = true;
  }

  // ------------------------------------------------------------------ the plane

  let dirty = true;
  const at = (panel) => panel.sigma ?? state.sigma;
  const view = (panel) => data.reach + 1.2 * (panel && panel.still ? panel.sigma : state.sigma);
  const level = (i, sigma = state.sigma) => {
    const field = fields[i];
    if (!field.cache || field.cache.sigma !== sigma) field.cache = field.at(sigma);
    return field.cache;
  };
  function build() {
    sizes.disconnect();
    $("panels").replaceChildren();
    for (const panel of panels) {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      caption.textContent = panel.title;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", panel.chart ? panel.title
        : `${panel.title || "the field"}: arrows of the score, density, walkers`);
      figure.append(canvas, caption);
      $("panels").append(figure);
      Object.assign(panel, { canvas, caption });
      if (panel.chart) { canvas.className = "chart"; continue; }
      panel.buffer = document.createElement("canvas");
      panel.base = document.createElement("canvas");
      canvas.addEventListener("click", (event) => {
        if (panel.still) { show("level"); setSigma(panel.sigma); return; }
        const box = canvas.getBoundingClientRect(), half = view(panel);
        const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
        drop(new Float64Array(2 * DROP).map((_, i) =>
          data.center[i % 2] + half * (i % 2 ? up * (1 - 2 * v) : 2 * u - 1)), true);
      });
    }
    for (const canvas of [...panels.map((p) => p.canvas), $("marginal-0"), $("marginal-1")]) sizes.observe(canvas);
    resized = true;
    $("panels").className = two ? `${state.picture} several` : state.picture;
    $("explorer").classList.toggle("single", panels.length === 1);
  }

  // ------------------------------------------------------------------ pictures

  const LADDER = 6, LOSSES = 36;
  const between = (u) => data.low * (data.high / data.low) ** u;
  const PICTURES = {
    level: { name: "One level", lead: "Move the noise level; click in the plane to drop walkers." },
    levels: { name: "Many levels",
      lead: "The same field from the least noise to the most: first details disappear, then modes, until a single normal law remains. Click a level to open it." },
    loss: { name: "Loss against σ",
      lead: "The denoising loss of the exact score is not 0: it is the part of the noise that cannot be predicted. The excess of a learned score is its error." },
    particles: { name: "Particles", lead: "5,000 walkers from the prior follow the score: their histogram becomes that of the law." },
    annealed: { name: "Plain against annealed",
      lead: "The same start, equally many steps. Plain Langevin at the least noise keeps the shares that fell into each mode; annealed Langevin finds the right weights." },
    split: { name: "Normal and tangent",
      lead: "Near a circle the score has two parts: a normal one back to the circle, of size 1/σ, and a tangent one along it, whose size does not depend on σ." },
  };
  const two = fields.length === 2;
  const planes = (more) => [...fields.map((_, of) => ({ of, ...more })), ...(two ? [{ of: -1, ...more }] : [])];
  const called = (of) => (of < 0 ? "difference, learned − exact" : two ? `${fields[of].name} field` : "");
  const LAYOUTS = {
    level: () => planes().map((p) => ({ ...p, title: called(p.of), who: "x" })),
    particles: () => LAYOUTS.level(),
    levels: () => [...fields.keys(), ...(two ? [-1] : [])].flatMap((of) => Array.from({ length: LADDER }, (_, i) => {
      const sigma = between(0.12 + 0.88 * i / (LADDER - 1)), name = `σ = ${digits(sigma)}`;
      return { of, sigma, still: true, title: two ? `${called(of).split(" ")[0].replace(",", "")}, ${name}` : name, arrows: 13 };
    })),
    loss: () => [{ chart: "loss", title: "½ E‖σ s(x + σε) + ε‖², the loss with weight σ²" },
      { chart: "bare", title: "the same without the weight, ½ E‖s + ε/σ‖²: small σ dominate all others" }],
    annealed: () => [
      { of: fields.length - 1, sigma: data.low, who: "plain", title: "plain Langevin at the least noise" },
      { of: fields.length - 1, who: "x", title: "annealed Langevin" },
      { chart: "weights", title: "weights of the modes against steps" }],
    split: () => ["whole", "normal", "tangent"].map((part) => ({ of: fields.length - 1, part, who: "x", title: part })),
  };
  function show(name) {
    state.picture = name;
    panels = LAYOUTS[name]();
    for (const button of $("pictures").children) button.setAttribute("aria-pressed", button.value === name);
    $("lead").textContent = PICTURES[name].lead;
    const still = name === "levels" || name === "loss";
    $("bar").hidden = !data.levels || still;
    $("below").hidden = still;
    for (const id of ["sampler", "sampler-label"]) $(id).hidden = name === "annealed";
    build();
    Object.assign(state, { history: [], plain: new Float64Array(0) });
    if (name === "annealed" || name === "particles") {
      choose(name === "annealed" ? "annealed" : exact && exact.components ? "ula" : "reverse");
      if (fields.length > 1) follow(fields.length - 1);
      if (name === "particles") setSigma(start);
      dropPrior();
    } else if (name === "split") setSigma(data.low * (data.high / data.low) ** 0.35);
    dirty = numbersDue = true;
  }
  // a level of the loss a frame, so that the page stays awake
  function addLoss() {
    const n = state.losses.length;
    if (state.picture !== "loss" || n >= LOSSES) return;
    const found = Explore.loss(exact, exact.spec, two ? fields[0] : null, data.center, between(1 - n / (LOSSES - 1)));
    state.losses.push(found);
    if (!found) while (state.losses.length < LOSSES) state.losses.push(null); // finer levels need more points still
    dirty = true;
  }
  function paintChart(panel) {
    const c = panel.chart;
    if (c === "weights") {
      const lines = ["plain", "annealed"].map((label, i) => Array.from({ length: K - (K === 2) }, (_, k) => ({
        colour: i ? "accent" : "walker", label: K === 2 ? label : `${label}, mode ${k + 1}`,
        points: state.history.map((h) => [h.step, h[label][k]]) }))).flat();
      const levels = exact.spec.weights.slice(0, K - (K === 2)).map((w) => ({ at: w, label: "exact" }));
      drawChart(panel.canvas, theme, { lines, levels, x: "steps", y: K === 2 ? "weight of mode 1" : "weight" });
      return;
    }
    const known = state.losses.filter(Boolean), scale = (l) => (c === "bare" ? l.sigma ** -2 : 1);
    const lines = [{ colour: "accent", label: "exact score", points: known.map((l) => [l.sigma, l.minimum * scale(l)]) }];
    if (two) lines.push({ colour: "walker", label: "learned score", points: known.map((l) => [l.sigma, l.learned * scale(l)]) });
    lines.push({ colour: "muted", label: "no score at all", dashed: true, points: known.map((l) => [l.sigma, scale(l)]) });
    drawChart(panel.canvas, theme, { lines, x: "noise level σ", y: "loss", logX: true, logY: c === "bare" });
  }


  // asking for the size of an element in every frame would lay the page out in every frame
  let resized = true;
  const sizes = new ResizeObserver(() => { resized = true; });
  addEventListener("resize", () => { resized = true; });
  function fit(canvas) {
    const ratio = Math.min(devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
    const w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
    canvas.dot = w / Math.max(1, box.width);
    if (canvas.width === w && canvas.height === h) return false;
    canvas.width = w;
    canvas.height = h;
    return true;
  }

  const out = new Float64Array(3), other = new Float64Array(3);
  // the values of a panel at a point: log p or σ|Δ|, then the arrow
  function look(panel, x, y) {
    const sigma = at(panel);
    level(Math.max(panel.of, 0), sigma).evaluate(x, y, out);
    if (panel.of < 0) {
      level(1, sigma).evaluate(x, y, other);
      out[1] -= other[1];
      out[2] -= other[2];
      out[0] = sigma * Math.hypot(out[1], out[2]);
    } else if (panel.part && panel.part !== "whole") {
      const parts = Explore.split(out[1], out[2], x, y, data.around);
      [out[1], out[2]] = panel.part === "normal" ? parts.slice(0, 2) : parts.slice(2);
    }
  }

  // the root mean square of a part under p_σ
  function size(panel) {
    const i = { whole: 0, normal: 1, tangent: 2 }[panel.part];
    if (!exact) return "";
    const found = Explore.mean(exact, exact.spec, data.center, at(panel), (a, b, x, y) => {
      const [u, v, w, z] = Explore.split(a, b, x, y, data.around);
      return [a * a + b * b, u * u + v * v, w * w + z * z];
    });
    panel.size = found && Math.sqrt(found[i]);
    return found ? ` part: root mean square ${digits(panel.size)}`.replace(panel.part === "whole" ? " part" : "", "") : " part";
  }

  // while a run lowers σ every plane is painted anew in every frame: coarsely, and finely once it has arrived
  const running = () => Boolean(state.playing && sampler().run && !state.ended && state.x.length);
  let heat = HEAT, marginals = [new Float64Array(HEAT), new Float64Array(HEAT)];
  const heights = new Float64Array(HEAT * HEAT);
  function paintHeat(panel) {
    const half = view(panel), values = heights.subarray(0, heat * heat);
    const density = panel.of >= 0 && fields[panel.of].hasDensity;
    let top = -Infinity;
    if (density || panel.of < 0) {
      for (let j = 0; j < heat; j++) {
        for (let i = 0; i < heat; i++) {
          look(panel, data.center[0] + half * (2 * (i + 0.5) / heat - 1),
            data.center[1] - up * half * (2 * (j + 0.5) / heat - 1));
          values[j * heat + i] = out[0];
          if (out[0] > top) top = out[0];
        }
      }
    } else values.fill(-Infinity);
    if (panel.of < 0) {
      panel.top = top;
      panel.caption.textContent = `${panel.title}: σ|Δs| up to ${digits(top)}`;
    }
    if (panel.part) panel.caption.textContent = `${panel.title}${size(panel)}`;
    if (panel.image?.width !== heat) {
      panel.image = new ImageData(heat, heat);
      panel.buffer.width = panel.buffer.height = heat;
    }
    const pixels = panel.image.data, table = density ? theme.heat : theme.off;
    const sums = density && fields[panel.of] === exact && panel.sigma === undefined ? marginals : null;
    if (sums) sums.forEach((m) => m.fill(0));
    for (let k = 0; k < values.length; k++) {
      const p = density ? Math.exp(values[k] - top) : values[k] / top;
      if (sums) { sums[0][k % heat] += p; sums[1][up > 0 ? heat - 1 - Math.floor(k / heat) : Math.floor(k / heat)] += p; }
      const shade = 3 * Math.round(255 * (density ? 0.86 * Math.sqrt(p) : panel.of < 0 ? 0.8 * p : 0));
      for (let c = 0; c < 3; c++) pixels[4 * k + c] = table[shade + c];
      pixels[4 * k + 3] = 255;
    }
    if (sums) {
      for (const m of sums) {
        const total = m.reduce((a, b) => a + b, 0) * (2 * half / heat);
        for (let k = 0; k < heat; k++) m[k] /= total;
      }
    }
    panel.buffer.getContext("2d").putImageData(panel.image, 0, 0);
  }

  function ticks(low, high) {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || power;
    const places = [];
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) places.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return places;
  }
  const short = (v) => String(+v.toPrecision(4)).replace("-", "−");
  const digits = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(1) : v.toPrecision(3)).replace("-", "−");

  // marginals of the points with the noise, as sums of normal curves
  function paintSeen(panel, ctx, W, half, dot) {
    ctx.fillStyle = theme.dots;
    for (let i = 0; i < seen.length; i += 2) {
      const u = ((seen[i] - data.center[0]) / half + 1) / 2 * W, v = (1 - up * (seen[i + 1] - data.center[1]) / half) / 2 * W;
      if (u >= 0 && v >= 0 && u <= W && v <= W) ctx.fillRect(u - dot, v - dot, 2 * dot, 2 * dot);
    }
    for (const axis of [0, 1]) {
      const h = Math.sqrt(state.sigma ** 2 + data.cov[2 * axis] * 0.2 * (seen.length / 2) ** -0.4);
      for (let k = 0; k < heat; k++) {
        const at = data.center[axis] + half * (2 * (k + 0.5) / heat - 1);
        let sum = 0;
        for (let i = axis; i < seen.length; i += 2) sum += Math.exp(-0.5 * ((at - seen[i]) / h) ** 2);
        marginals[axis][k] = sum / (h * Math.sqrt(2 * Math.PI)) / (seen.length / 2);
      }
    }
  }

  function paintBase(panel) {
    const { base, canvas } = panel, ctx = base.getContext("2d", { willReadFrequently: true });
    const half = view(panel), ARROWS = panel.arrows || 19, W = (base.width = canvas.width), dot = canvas.dot;
    base.height = canvas.height;
    paintHeat(panel);
    ctx.imageSmoothingEnabled = true;
    ctx.imageSmoothingQuality = running() ? "low" : "high";
    ctx.drawImage(panel.buffer, 0, 0, W, W);
    if (seen && panel.of >= 0) paintSeen(panel, ctx, W, half, dot);
    const cell = W / ARROWS, typical = panel.size || Math.sqrt(2 / (at(panel) ** 2 + Math.min(data.cov[0], data.cov[2]) / 4));
    ctx.strokeStyle = ctx.fillStyle = theme.arrow;
    ctx.lineWidth = 1.1 * dot;
    const shafts = new Path2D(), heads = new Path2D();
    for (let j = 0; j < ARROWS; j++) {
      for (let i = 0; i < ARROWS; i++) {
        const u = (i + 0.5) * cell, v = (j + 0.5) * cell;
        look(panel, data.center[0] + half * (2 * u / W - 1), data.center[1] - up * half * (2 * v / W - 1));
        const size = Math.hypot(out[1], out[2]);
        if (!(size > 1e-12)) continue;
        const length = 0.92 * cell * Math.tanh(0.75 * size / typical);
        if (length < 1.5 * dot) continue;
        const a = out[1] / size, b = -up * out[2] / size, x0 = u - a * length / 2, y0 = v - b * length / 2;
        const x1 = u + a * length / 2, y1 = v + b * length / 2, head = Math.min(3.6 * dot, 0.5 * length);
        shafts.moveTo(x0, y0);
        shafts.lineTo(x1 - a * head, y1 - b * head);
        heads.moveTo(x1, y1);
        heads.lineTo(x1 - a * head * 1.5 - b * head * 0.8, y1 - b * head * 1.5 + a * head * 0.8);
        heads.lineTo(x1 - a * head * 1.5 + b * head * 0.8, y1 - b * head * 1.5 - a * head * 0.8);
      }
    }
    ctx.stroke(shafts);
    ctx.fill(heads);
    ctx.font = `${11 * dot}px system-ui, sans-serif`;
    ctx.lineJoin = "round";
    const write = (text, x, y, align, baseline) => {
      ctx.textAlign = align;
      ctx.textBaseline = baseline;
      ctx.lineWidth = 3 * dot;
      ctx.strokeStyle = theme.halo;
      ctx.strokeText(text, x, y);
      ctx.fillStyle = theme.muted;
      ctx.fillText(text, x, y);
    };
    for (const axis of [0, 1]) {
      const [shift, scale, mid] = [data.shift[axis], data.scale[axis], data.center[axis]];
      for (const t of ticks(shift + scale * (mid - half), shift + scale * (mid + half))) {
        const at = ((t - shift) / scale - mid + half) / (2 * half) * W;
        if (at < 26 * dot || at > W - 26 * dot) continue;
        if (axis === 0) write(short(t), at, W - 5 * dot, "center", "bottom");
        else write(short(t), 5 * dot, up > 0 ? W - at : at, "left", "middle");
      }
    }
    write(data.names[0], W - 6 * dot, W - 5 * dot, "right", "bottom");
    write(data.names[1], 6 * dot, 6 * dot, "left", "top");
    panel.still32 = new Uint32Array(ctx.getImageData(0, 0, W, base.height).data.buffer);
  }

  // walkers are blended into a copy of the pixels beneath: thousands of calls for squares take many times as long
  function paintWalkers(panel) {
    const { canvas, still32 } = panel, ctx = canvas.getContext("2d", { willReadFrequently: true });
    const W = canvas.width, H = canvas.height, half = view(panel), x = panel.who ? state[panel.who] : [], n = x.length / 2;
    if (panel.frame?.width !== W || panel.frame.height !== H) {
      panel.frame = new ImageData(W, H);
      panel.frame32 = new Uint32Array(panel.frame.data.buffer);
    }
    panel.frame32.set(still32);
    const pixels = panel.frame.data, side = Math.max(1, Math.round((n > 1500 ? 2 : n > 300 ? 3.2 : 4.8) * canvas.dot));
    const [red, green, blue] = theme.dot, cover = n > 1500 ? theme.cover : 256, rest = 256 - cover;
    const [cx, cy] = data.center, scale = W / (2 * half);
    for (let i = 0; i < x.length; i += 2) {
      const u = Math.round((x[i] - cx + half) * scale - side / 2);
      const v = Math.round((half - up * (x[i + 1] - cy)) * scale - side / 2);
      if (!(u >= 0 && v >= 0 && u + side <= W && v + side <= H)) continue;
      for (let row = v; row < v + side; row++) {
        for (let k = 4 * (row * W + u), end = k + 4 * side; k < end; k += 4) {
          pixels[k] = (pixels[k] * rest + red * cover) >> 8;
          pixels[k + 1] = (pixels[k + 1] * rest + green * cover) >> 8;
          pixels[k + 2] = (pixels[k + 2] * rest + blue * cover) >> 8;
        }
      }
    }
    ctx.putImageData(panel.frame, 0, 0);
  }

  const counts = new Float64Array(48);
  function paintMarginal(axis) {
    const canvas = $(`marginal-${axis}`), ctx = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
    const half = view(), dot = canvas.dot, bins = counts.fill(0), n = state.x.length / 2, width = 2 * half / bins.length, bottom = H - 16 * dot;
    for (let i = axis; i < state.x.length; i += 2) {
      const k = Math.floor((state.x[i] - data.center[axis] + half) / width);
      if (k >= 0 && k < bins.length) bins[k] += 1 / (n * width);
    }
    const line = marginals[axis], known = seen !== null || (exact !== null && exact.hasDensity);
    let top = known ? Math.max(...line) : 0;
    top = 1.12 * Math.max(top, known ? Math.min(Math.max(...bins), 2 * top) : Math.max(...bins), 1e-12);
    ctx.clearRect(0, 0, W, H);
    ctx.fillStyle = theme.soft;
    const w = W / bins.length;
    ctx.beginPath();
    bins.forEach((v, k) => {
      const h = Math.min(v / top, 1) * bottom;
      ctx.rect(k * w + 0.5 * dot, bottom - h, w - dot, h);
    });
    ctx.fill();
    if (known) {
      ctx.beginPath();
      line.forEach((v, k) => ctx.lineTo((k + 0.5) / heat * W, bottom - v / top * bottom));
      ctx.strokeStyle = theme.accent;
      ctx.lineWidth = 2 * dot;
      ctx.stroke();
    }
    ctx.fillStyle = theme.line;
    ctx.fillRect(0, bottom, W, dot);
    ctx.fillStyle = theme.muted;
    ctx.font = `${11 * dot}px system-ui, sans-serif`;
    ctx.textBaseline = "bottom";
    const [shift, scale] = [data.shift[axis], data.scale[axis]], mid = data.center[axis];
    ctx.textAlign = "center";
    for (const t of ticks(shift + scale * (mid - half), shift + scale * (mid + half))) {
      const at = ((t - shift) / scale - mid + half) / (2 * half) * W;
      if (at > 12 * dot && at < W - 12 * dot) ctx.fillText(short(t), at, H);
    }
    ctx.textAlign = "left";
    ctx.textBaseline = "top";
    ctx.fillText(data.names[axis], 0, 0);
  }

  // ------------------------------------------------------------------ numbers

  function known() {
    if (!exact && !seen) return null;
    const s2 = state.sigma ** 2;
    if (seen) {
      const { mean, variance } = Explore.statistics(seen, null, 0);
      return { mean, variance: variance.map((v) => v + s2), weights: [] };
    }
    return { mean: data.mean, variance: [data.cov[0] + s2, data.cov[2] + s2],
      weights: K ? exact.spec.weights : [] };
  }
  function showNumbers() {
    const n = state.x.length / 2, law = known();
    if (n) {
      state.now = Explore.statistics(state.x, K ? level(fields.indexOf(exact)) : null, K);
      if (state.plain.length) {
        state.then = Explore.statistics(state.plain, level(fields.indexOf(exact), data.low), K);
        state.results.ula = { ...state.then, sigma: data.low };
      }
      state.results[state.sampler] = { ...state.now, sigma: state.sigma };
    }
    const inUnits = (s) => s && {
      mean: s.mean.map((v, i) => data.shift[i] + data.scale[i] * v),
      variance: s.variance.map((v, i) => data.scale[i] ** 2 * v), weights: s.weights, sigma: s.sigma,
    };
    const columns = [[seen ? "data" : "exact", inUnits(law && { ...law, sigma: state.sigma })],
      ...Object.entries(state.results).map(([key, s]) => [SAMPLERS[key].name, inUnits(s)])]
      .filter(([, s]) => s);
    const rows = [
      ...(data.levels ? [["at σ", (s) => digits(s.sigma)]] : []),
      ...data.names.map((name, i) => [`mean of ${name}`, (s) => fixed(s.mean[i], Math.sqrt(wide[i]))]),
      ...data.names.map((name, i) => [`variance of ${name}`, (s) => fixed(s.variance[i], wide[i])]),
      ...Array.from({ length: K }, (_, k) => [`weight of mode ${k + 1}`, (s) => fixed(s.weights[k], 0.1)]),
    ];
    // digits by the deviation of what is shown
    const places = (scale) => Math.min(Math.max(2 - Math.floor(Math.log10(scale)), 0), 8);
    const fixed = (v, scale) => {
      const text = v.toFixed(places(scale));
      return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
    };
    const wide = [0, 1].map((i) => data.scale[i] ** 2 * (data.cov[2 * i] + data.low ** 2));
    const texts = [["", ...columns.map(([name]) => name)], ...rows.map(([name, of]) => [name, ...columns.map(([, s]) => of(s))])];
    const shape = `${texts.length} ${texts[0].length}`;
    if ($("numbers").dataset.shape !== shape) {
      const head = document.createElement("thead"), body = document.createElement("tbody");
      texts.forEach((row, j) => {
        const tr = document.createElement("tr");
        tr.append(...row.map((_, i) => {
          const made = document.createElement(i && j ? "td" : "th");
          if (i) made.className = "number";
          return made;
        }));
        (j ? body : head).append(tr);
      });
      $("numbers").replaceChildren(head, body);
      $("numbers").dataset.shape = shape;
    }
    const cells = $("numbers").querySelectorAll("th, td");
    texts.flat().forEach((text, k) => { if (cells[k].textContent !== text) cells[k].textContent = text; });
    const parts = [`${n.toLocaleString("en")} walkers, ${state.steps.toLocaleString("en")} steps`];
    if (state.sampler === "mala" && state.acceptance !== null) parts.push(`${Math.round(100 * state.acceptance)} % accepted`);
    if (sampler().tau && state.tau !== 1) parts.push("at this temperature the law is p^(1/τ), not that of the curve");
    if (state.ended) parts.push("arrived at the least noise level");
    $("status").textContent = parts.join("; ");
  }

  // ------------------------------------------------------------------ walking

  const sampler = () => SAMPLERS[state.sampler];
  const LEVELS = 40;
  const path = () => Explore.ladder(data.low, data.high, sampler().count ? Math.round(sampler().value) : LEVELS - 1);

  function drop(points, more) {
    const x = new Float64Array(Math.min((more ? state.x.length : 0) + points.length, 2 * MOST));
    if (more) x.set(state.x.subarray(0, x.length - points.length));
    x.set(points, x.length - points.length);
    const p = noise.normal(x.length).map((z) => Math.sqrt(state.tau) * z);
    if (more) p.set(state.p.subarray(0, x.length - points.length));
    const first = !state.x.length;
    Object.assign(state, { x, p });
    if (sampler().run && (first || state.ended)) begin();
    numbersDue = true;
  }
  function begin() {
    Object.assign(state, { at: 0, inner: 0, ended: false, steps: 0, credit: 0 });
    if (sampler().run) setSigma(data.high);
    showControls();
  }
  function dropPrior() {
    begin();
    state.x = new Float64Array(0);
    drop(Explore.prior(PRIOR, data.mean, data.cov, data.levels ? data.high : 0, noise), false);
    if (state.picture === "annealed") Object.assign(state, { plain: state.x.slice(), history: [], results: {} });
  }

  function oneStep() {
    const { x, p, tau, follow } = state, h = sampler().value;
    if (!x.length || state.ended) return;
    const here = level(follow);
    if (state.sampler === "ula") Explore.ula(x, here, h, tau, noise);
    else if (state.sampler === "mala") state.acceptance = Explore.mala(x, here, h, tau, noise);
    else if (state.sampler === "baoab") Explore.baoab(x, p, here, h, tau, FRICTION, noise);
    else {
      const sigmas = path();
      if (state.sampler === "annealed") {
        const sigma = sigmas[state.at];
        setSigma(sigma);
        Explore.ula(x, level(follow), h * sigma * sigma, tau, noise);
        if (++state.inner >= LEVEL_STEPS) { state.inner = 0; state.at++; }
        if (state.at >= sigmas.length) state.ended = true;
      } else {
        const next = sigmas[state.at + 1];
        setSigma(sigmas[state.at]);
        if (state.sampler === "reverse") Explore.reverse(x, level(follow), next, noise);
        else Explore.flow(x, level(follow), fields[follow].at(next));
        setSigma(next);
        if (++state.at >= sigmas.length - 1) state.ended = true;
      }
    }
    state.steps++;
    if (state.plain.length) {
      const still = level(follow, data.low);
      Explore.ula(state.plain, still, data.stiff / 10, 1, noise);
      if (state.steps % 4 === 0 || state.ended) {
        const of = (x, where) => Explore.statistics(x, where, K).weights;
        state.history.push({ step: state.steps, plain: of(state.plain, still), annealed: of(x, level(follow)) });
      }
    }
  }

  let numbersDue = true, lastNumbers = 0;
  function frame(now) {
    let moved = false;
    if (state.playing && state.x.length && !state.ended) {
      state.credit += state.speed;
      const began = performance.now();
      while (state.credit >= 1) {
        state.credit -= 1;
        oneStep();
        moved = true;
        if (state.ended) showControls();
        if (state.ended || performance.now() - began > 60) { state.credit = 0; break; }
      }
    }
    draw(now, moved);
    state.frames++;
    requestAnimationFrame(frame);
  }
  function draw(now, moved) {
    addLoss();
    if (resized) {
      for (const panel of panels) if (fit(panel.canvas)) dirty = true;
      for (const axis of [0, 1]) if (fit($(`marginal-${axis}`))) dirty = true;
      resized = false;
    }
    const fine = running() ? HEAT / 2 : HEAT;
    if (fine !== heat) {
      heat = fine;
      marginals = [new Float64Array(heat), new Float64Array(heat)];
      dirty = true;
    }
    if (dirty) { for (const panel of panels) if (!panel.chart) paintBase(panel); }
    if (dirty || moved || numbersDue) {
      for (const panel of panels) (panel.chart ? paintChart : paintWalkers)(panel);
      if (!$("below").hidden) { paintMarginal(0); paintMarginal(1); }
    }
    if (numbersDue || ((moved || dirty) && (now - lastNumbers > 150 || state.ended))) {
      showNumbers();
      numbersDue = false;
      lastNumbers = now;
    }
    dirty = false;
  }

  // ------------------------------------------------------------------ controls

  const logScale = (low, high, u) => low * (high / low) ** u;
  const logPlace = (low, high, v) => Math.log(v / low) / Math.log(high / low);
  function setSigma(sigma, fromSlider = false) {
    if (sigma === state.sigma && !fromSlider) return;
    state.sigma = sigma;
    showSigma(fromSlider);
    dirty = true;
  }
  function showSigma(fromSlider) {
    if (!fromSlider) $("sigma").value = Math.round(1000 * logPlace(data.low, data.high, state.sigma));
    $("sigma-value").value = `σ = ${digits(state.sigma)}`;
    $("sigma").setAttribute("aria-valuetext", `σ = ${digits(state.sigma)}`);
  }
  function showControls() {
    const s = sampler();
    $("size-name").textContent = s.what;
    $("size").value = Math.round(1000 * logPlace(...s.size, s.value));
    $("size-value").value = s.count ? String(Math.round(s.value)) : digits(s.value);
    $("tau").disabled = !s.tau;
    $("tau-value").value = s.tau ? `τ = ${state.tau}` : "–";
    $("speed-value").value = state.speed >= 1 ? `${state.speed} per frame` : `1 in ${1 / state.speed} frames`;
    $("formula").textContent = s.formula;
    $("play").textContent = state.ended ? "Again" : state.playing ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", state.playing);
  }
  function play(on) {
    state.playing = on || state.ended;
    if (state.ended) dropPrior(); // a run that has arrived begins anew
    showControls();
  }
  $("sigma").addEventListener("input", () => {
    setSigma(logScale(data.low, data.high, $("sigma").value / 1000), true);
    numbersDue = true;
  });
  $("size").addEventListener("input", () => {
    const s = sampler();
    s.value = logScale(...s.size, $("size").value / 1000);
    if (s.count) { s.value = Math.round(s.value); begin(); }
    showControls();
  });
  $("tau").addEventListener("input", () => { state.tau = $("tau").value / 10; showControls(); });
  $("speed").addEventListener("input", () => { state.speed = 2 ** Number($("speed").value); showControls(); });
  function follow(i) {
    state.follow = i;
    $("follow").value = String(i);
    state.results = {};
    numbersDue = true;
  }
  function choose(name) {
    $("sampler").value = name;
    $("sampler").dispatchEvent(new Event("change"));
  }
  $("sampler").addEventListener("change", () => {
    state.sampler = $("sampler").value;
    if (sampler().density && !fields[state.follow].hasDensity) follow(fields.findIndex((f) => f.hasDensity));
    state.acceptance = null;
    state.ended = false;
    state.steps = 0;
    if (sampler().run && state.x.length) dropPrior();
    numbersDue = true;
    showControls();
  });
  fields.forEach((field, i) => $("follow").add(new Option(`${field.name} field`, String(i))));
  $("follow").addEventListener("change", () => {
    follow(Number($("follow").value));
    if (sampler().density && !fields[state.follow].hasDensity) {
      choose("ula"); // a learned score has no density, which the correction needs
    }
  });
  for (const element of document.querySelectorAll("form .several")) element.hidden = fields.length < 2;
  $("play").addEventListener("click", () => play(!state.playing));
  $("step").addEventListener("click", () => { state.playing = false; oneStep(); showControls(); numbersDue = dirty = true; });
  $("prior").addEventListener("click", dropPrior);
  $("reset").addEventListener("click", () => {
    Object.assign(state, { x: new Float64Array(0), p: new Float64Array(0), results: {}, acceptance: null });
    begin();
    numbersDue = true;
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const on = event.target.tagName;
    if (event.key === " " && !["BUTTON", "SELECT", "SUMMARY"].includes(on)) {
      event.preventDefault();
      play(!state.playing);
    } else if (event.key === "s" && on !== "SELECT") $("step").click();
  });
  scheme.addEventListener("change", setTheme);
  for (const button of $("pictures").children) {
    button.textContent = PICTURES[button.value].name;
    button.addEventListener("click", () => show(button.value));
  }
  $("pictures").hidden = data.pictures.length < 2;
  setTheme();
  showSigma();
  showControls();
  const asked = (location.hash || location.search).slice(1); // page.html#loss; ?loss does not scroll to it
  show(data.pictures.includes(asked) ? asked : data.picture);
  requestAnimationFrame(frame);
})();
if (window.frameElement) { // in a report: as high as what is in it
  new ResizeObserver(() => { frameElement.style.height = `${document.documentElement.scrollHeight}px`; }).observe(document.body);
}
