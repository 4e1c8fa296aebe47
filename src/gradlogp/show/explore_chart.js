// Lines against a number, for the explorer: axes, ticks, labels at the ends of the lines.
"use strict";
const drawChart = (canvas, theme, { lines, x, y, logX, logY, levels = [] }) => {
  const ctx = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
  const dot = W / canvas.getBoundingClientRect().width, size = 11.5 * dot;
  const left = 50 * dot, right = W - 12 * dot, top = 26 * dot, bottom = H - 40 * dot;
  const short = (v) => (Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(0) : String(+v.toPrecision(3)))
    .replace("-", "−");
  const range = (values, log) => {
    const low = Math.min(...values), high = Math.max(...values), gap = log ? 1.15 : (high - low || 1) * 0.06;
    return log ? [low / gap, high * gap] : [low - gap, high + gap];
  };
  const points = lines.flatMap((line) => line.points).filter((p) => p.every(Number.isFinite));
  ctx.clearRect(0, 0, W, H);
  ctx.font = `${size}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.muted;
  if (points.length < 2) return;
  const xs = range(points.map((p) => p[0]), logX), ys = range([...points.map((p) => p[1]), ...levels.map((l) => l.at)], logY);
  const place = (v, [low, high], log) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const at = ([a, b]) => [left + place(a, xs, logX) * (right - left), bottom - place(b, ys, logY) * (bottom - top)];
  const ticks = ([low, high], log) => {
    const found = [];
    if (log) {
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        for (const m of high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5]) found.push(m * 10 ** e);
      }
    } else {
      const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
      for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
    }
    return found.filter((v) => v >= low && v <= high);
  };
  ctx.strokeStyle = theme.line;
  ctx.lineWidth = dot;
  const rule = (x0, y0, x1, y1) => { ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke(); };
  for (const v of ticks(ys, logY)) {
    const h = at([xs[0], v])[1];
    rule(left, h, right, h);
    ctx.textAlign = "right";
    ctx.fillText(short(v), left - 6 * dot, h);
  }
  for (const v of ticks(xs, logX)) {
    const u = at([v, ys[0]])[0];
    rule(u, bottom, u, bottom + 4 * dot);
    ctx.textAlign = "center";
    ctx.fillText(short(v), u, bottom + 14 * dot);
  }
  ctx.textAlign = "center";
  ctx.fillText(x, (left + right) / 2, H - 8 * dot);
  ctx.textAlign = "left";
  ctx.fillText(y, 4 * dot, 10 * dot);
  for (const { at: v, label } of levels) {
    const h = at([xs[0], v])[1];
    ctx.strokeStyle = ctx.fillStyle = theme.ink;
    ctx.setLineDash([5 * dot, 4 * dot]);
    rule(left, h, right, h);
    ctx.setLineDash([]);
    ctx.fillText(label, left + 6 * dot, h - 9 * dot);
  }
  const taken = [];
  for (const { points: own, colour, label, dashed } of lines) {
    const seen = own.filter((p) => p.every(Number.isFinite)).sort((a, b) => a[0] - b[0]).map(at);
    if (!seen.length) continue;
    ctx.strokeStyle = ctx.fillStyle = theme[colour];
    ctx.lineWidth = 2 * dot;
    ctx.setLineDash(dashed ? [6 * dot, 4 * dot] : []);
    ctx.beginPath();
    seen.forEach(([u, v]) => ctx.lineTo(u, v));
    ctx.stroke();
    ctx.setLineDash([]);
    // beside the line, where it has room: two labels never share a height
    const middle = Math.floor(seen.length * 0.55), wide = ctx.measureText(label).width;
    const rises = seen.length > 1 && seen[middle][1] < seen[Math.max(middle - 1, 0)][1] - dot;
    const u = seen[middle][0] - (rises ? wide + 6 * dot : 0), v = seen[middle][1];
    let h = v - 11 * dot;
    while (taken.some((other) => Math.abs(other - h) < 14 * dot)) h -= 14 * dot;
    taken.push(h);
    ctx.fillText(label, Math.min(u, right - wide), Math.max(h, top - 8 * dot));
  }
};
