// The face of a page of images: a level for all images, all levels for one.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const [n, channels, height, width] = data.shape, L = data.levels.length;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const clean = bytes(data.clean), noised = data.levels.map((l) => bytes(l.pixels[0]));
  const denoised = data.levels.map((l) => bytes(l.pixels[1]));
  const state = { level: Math.floor(L / 2), image: 0 };
  window.explorer = { state, data };
  const digits = (v) => v.toPrecision(3);

  function paint(canvas, pixels, image) {
    const ctx = canvas.getContext("2d"), shown = ctx.createImageData(width, height);
    for (let k = 0, from = image * width * height * channels; k < width * height; k++) {
      for (let c = 0; c < 3; c++) shown.data[4 * k + c] = pixels[from + k * channels + (channels === 3 ? c : 0)];
      shown.data[4 * k + 3] = 255;
    }
    ctx.putImageData(shown, 0, 0);
  }
  // a table of canvases: a row for each title, columns of (row, column) -> [pixels, image]
  function grid(table, titles, columns, head, chosen, pick) {
    if (!table.rows.length) {
      const line = (kind, cells) => { const tr = document.createElement("tr"); tr.append(...cells); return tr; };
      const th = (text) => { const e = document.createElement("th"); e.textContent = text; return e; };
      if (head) table.append(line("th", ["", ...head].map(th)));
      titles.forEach((title) => table.append(line("td", [th(title), ...Array.from({ length: columns }, (_, j) => {
        const td = document.createElement("td"), button = document.createElement("button"), canvas = document.createElement("canvas");
        Object.assign(canvas, { width, height });
        button.type = "button";
        button.setAttribute("aria-label", `${title}, ${head ? `σ = ${head[j]}` : `image ${j + 1}`}`);
        button.addEventListener("click", () => { pick(j); draw(); });
        button.append(canvas);
        td.append(button);
        return td;
      })])));
    }
    [...table.querySelectorAll("tr")].slice(head ? 1 : 0).forEach((tr, i) =>
      tr.querySelectorAll("button").forEach((button, j) => button.setAttribute("aria-pressed", j === chosen)));
    return [...table.querySelectorAll("tr")].slice(head ? 1 : 0).map((tr) => [...tr.querySelectorAll("canvas")]);
  }
  function draw() {
    const { level, image } = state, sigma = data.levels[level].sigma;
    $("sigma").value = level;
    $("sigma-value").value = `σ = ${digits(sigma)}`;
    $("sigma").setAttribute("aria-valuetext", `σ = ${digits(sigma)}`);
    const rows = grid($("images"), ["image", "with noise", "denoised"], n, null, image, (j) => { state.image = j; });
    [clean, noised[level], denoised[level]].forEach((pixels, i) => rows[i].forEach((c, j) => paint(c, pixels, j)));
    const all = grid($("levels"), ["with noise", "denoised"], L, data.levels.map((l) => digits(l.sigma)), level,
      (j) => { state.level = j; });
    [noised, denoised].forEach((pixels, i) => all[i].forEach((c, j) => paint(c, pixels[j], image)));
    const style = getComputedStyle(document.documentElement), css = (name) => style.getPropertyValue(name).trim();
    const canvas = $("error"), box = canvas.getBoundingClientRect(), ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    const theme = { ink: css("--ink"), muted: css("--muted"), line: css("--line"), accent: css("--accent") };
    drawChart(canvas, theme, { x: "noise level σ", y: "error", logX: true,
      lines: [{ colour: "accent", label: "denoised", points: data.levels.map((l) => [l.sigma, l.error]) }],
      levels: [{ at: data.deviation, label: "the mean of the images" }] });
  }
  $("sigma").max = L - 1;
  $("sigma").addEventListener("input", () => { state.level = Number($("sigma").value); draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", draw);
  draw();
})();
if (window.frameElement) { // in a report: as high as what is in it
  new ResizeObserver(() => { frameElement.style.height = `${document.documentElement.scrollHeight}px`; }).observe(document.body);
}
