// Rows of W over a picture: the patch under the pointer shows the row of the token that takes most of it.
(() => {
  const HEAT = [[0, 0, 4], [51, 10, 94], [120, 28, 109], [187, 55, 84], [237, 105, 37], [252, 180, 26], [252, 255, 164]];
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function heat(value) {
    const place = value * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place)), part = place - low;
    return HEAT[low].map((v, i) => Math.round(v + part * (HEAT[low + 1][i] - v)));
  }

  function known(figure) {
    if (!figure.ttf) {
      const d = figure.dataset;
      figure.ttf = {
        grid: d.grid.split(",").map(Number), rows: bytes(d.rows), owner: new Uint16Array(bytes(d.owner).buffer),
        share: bytes(d.share), several: bytes(d.several), sizes: d.sizes.split(","), origin: d.origin.split(",").map(Number),
        patch: Number(d.start), held: false,
      };
    }
    return figure.ttf;
  }

  function frame(pen, [rows, columns], patch, colour, width, height) {
    const w = width / columns, h = height / rows, x = (patch % columns) * w, y = Math.floor(patch / columns) * h;
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.strokeRect(x + 1, y + 1, w - 2, h - 2);
  }

  function show(figure, patch) {
    const told = known(figure), image = figure.querySelector("img"), canvas = figure.querySelector("canvas");
    const [rows, columns] = told.grid, count = rows * columns, row = told.owner[patch];
    told.patch = patch;
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d"), w = canvas.width / columns, h = canvas.height / rows;
    for (let p = 0; p < count; p++) {
      const value = told.rows[row * count + p] / 255, [r, g, b] = heat(value);
      pen.fillStyle = `rgba(${r},${g},${b},${Math.max(0.55, Math.min(0.92, 3 * value))})`;
      const column = p % columns, line = Math.floor(p / columns), left = Math.round(column * w), top = Math.round(line * h);
      pen.fillRect(left, top, Math.round((column + 1) * w) - left, Math.round((line + 1) * h) - top);
    }
    if (told.origin[row] >= 0) frame(pen, told.grid, told.origin[row], "white", canvas.width, canvas.height);
    frame(pen, told.grid, patch, "#35c5ff", canvas.width, canvas.height);
    const place = `Patch in row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
    const others = told.several[patch] > 1 ? `, ${told.several[patch]} tokens share it` : "";
    const parts = told.share[patch]
      ? `: ${Math.round(told.share[patch] / 2.55)} % of it is in a token that stands for ${told.sizes[row]} patches${others}.`
      : ": no token took anything of it.";
    figure.querySelector("figcaption").textContent = place + parts + (told.held ? " Held: click to let go." : "");
  }

  function under(figure, event) {
    const box = figure.querySelector("canvas").getBoundingClientRect(), [rows, columns] = known(figure).grid;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return Math.max(0, Math.min(rows - 1, row)) * columns + Math.max(0, Math.min(columns - 1, column));
  }

  const figureOf = (event) => event.target.closest && event.target.closest("canvas") && event.target.closest(".ttf-rows");

  window.ttfStart = (image) => {
    const figure = image.closest(".ttf-rows");
    show(figure, known(figure).patch);
  };
  document.addEventListener("pointermove", (event) => {
    const figure = figureOf(event);
    if (figure && !known(figure).held) show(figure, under(figure, event));
  });
  document.addEventListener("click", (event) => {
    const figure = figureOf(event);
    if (!figure) return;
    known(figure).held = !known(figure).held;
    show(figure, under(figure, event));
  });
  document.addEventListener("keydown", (event) => {
    const figure = document.activeElement && document.activeElement.closest && document.activeElement.closest(".ttf-rows");
    if (!figure) return;
    const { grid: [rows, columns], patch } = known(figure);
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const row = Math.max(0, Math.min(rows - 1, Math.floor(patch / columns) + down));
    show(figure, row * columns + Math.max(0, Math.min(columns - 1, (patch % columns) + right)));
  });
})();
