// Draws an answer of the server on a canvas: what is hovered, hidden or made transparent is
// reckoned here, so that nothing waits for the server. Text goes in as text, never as HTML.

const LONGEST_ENLARGED = 480; // pixels: smaller pictures are enlarged by whole factors
const NARROW = 700; // pixels of the window: the answer lies below the question
const HEAT = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
const OUTLINE = 255; // grey of the lines between classes

const find = (name) => element.querySelector(name);
const canvas = find("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const hidden = new Set(); // names, so that they stay hidden from one question to the next
let answer = null; // the last one, decoded
let heat = null; // index of the class whose heat map is shown
let pointer = null; // where the keyboard's pointer is, in pixels of the canvas
let turn = 0; // of answers: one that is decoded too late is dropped

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function blank(width, height) {
  const made = document.createElement("canvas");
  made.width = width;
  made.height = height;
  return made;
}

async function decoded(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const board = blank(image.naturalWidth, image.naturalHeight).getContext("2d");
  board.drawImage(image, 0, 0);
  return board.getImageData(0, 0, image.naturalWidth, image.naturalHeight);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function percent(share) {
  return share === 0 ? "–" : share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
}

// Two digits behind those that all scores have in common.
function number(value) {
  const range = 65535 * answer.grid.step;
  const digits = Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(range || 1))));
  return value.toFixed(digits);
}

// ---- the answer ---------------------------------------------------------------------------------

async function show(value) {
  const mine = ++turn;
  const error = find(".error");
  error.hidden = !(value && value.error);
  error.textContent = value && value.error ? `Not answered: ${value.error}` : "";
  if (!value || value.error) {
    if (value) find(".status").textContent = "";
    return;
  }
  const [picture, labels] = await Promise.all([decoded(value.picture), decoded(value.labels)]);
  if (mine !== turn) return;
  const { width, height } = picture;
  const longest = Math.max(width, height);
  const factor = longest < LONGEST_ENLARGED ? Math.ceil(LONGEST_ENLARGED / longest) : 1;
  const index = new Uint8Array(width * height);
  for (let i = 0; i < index.length; i++) index[i] = labels.data[4 * i];
  const raw = bytes(value.grid.values);
  const grid = { ...value.grid, values: new DataView(raw.buffer) };
  answer = { ...value, picture, index, grid, factor, width, height };
  canvas.width = width * factor;
  canvas.height = height * factor;
  heat = null;
  pointer = null;
  find(".empty").hidden = true;
  find(".answer").hidden = false;
  legend();
  find(".remark").hidden = !value.remark;
  find(".remark").textContent = value.remark;
  if (innerWidth < NARROW) element.scrollIntoView({ block: "start" });
  const count = value.classes.filter((one) => one.share > 0).length;
  const again = value.known ? ", the picture was known" : "";
  find(".status").textContent =
    `${count} of ${value.classes.length} classes found in ${value.size[0]} × ${value.size[1]} ` +
    `pixels; ${value.seconds.toFixed(2)} s${again}.`;
}

function score(c, x, y) {
  // Bilinear between the middles of the grid's cells; x and y in 0..1.
  const { width, height, low, step, values } = answer.grid;
  const place = (t, n) => Math.min(Math.max(t * n - 0.5, 0), n - 1);
  const [a, b] = [place(x, width), place(y, height)];
  const [i, j] = [Math.floor(a), Math.floor(b)];
  const at = (row, column) => {
    const cell = (c * height + Math.min(row, height - 1)) * width + Math.min(column, width - 1);
    return low + step * values.getUint16(2 * cell, true);
  };
  const [u, v] = [a - i, b - j];
  const top = (1 - u) * at(j, i) + u * at(j, i + 1);
  const below = (1 - u) * at(j + 1, i) + u * at(j + 1, i + 1);
  return (1 - v) * top + v * below;
}

// ---- drawing ------------------------------------------------------------------------------------

function heated(c) {
  // A class's scores on the grid, from its own lowest to its own highest.
  const { width, height, values } = answer.grid;
  const cells = Array.from({ length: width * height }, (_, i) =>
    values.getUint16(2 * (c * width * height + i), true));
  const low = cells.reduce((a, b) => Math.min(a, b));
  const high = cells.reduce((a, b) => Math.max(a, b));
  const board = blank(width, height);
  const image = new ImageData(width, height);
  cells.forEach((cell, i) => {
    const t = ((cell - low) / (high - low || 1)) * (HEAT.length - 1);
    const k = Math.min(Math.floor(t), HEAT.length - 2);
    for (let d = 0; d < 3; d++) {
      image.data[4 * i + d] = HEAT[k][d] + (t - k) * (HEAT[k + 1][d] - HEAT[k][d]);
    }
    image.data[4 * i + 3] = 255;
  });
  board.getContext("2d").putImageData(image, 0, 0);
  return { board, low, high };
}

function draw() {
  if (!answer) return;
  const { width, height, factor, index, picture, classes } = answer;
  const opacity = Number(find(".opacity").value) / 100;
  const image = new ImageData(width * factor, height * factor);
  const colours = classes.map((one) =>
    [1, 3, 5].map((i) => parseInt(one.colour.slice(i, i + 2), 16)));
  const seen = classes.map((one) => heat === null && !hidden.has(one.name));
  const out = image.data;
  const [w, h] = [image.width, image.height];
  for (let y = 0, to = 0; y < h; y++) {
    const row = Math.floor(y / factor) * width;
    const below = y + 1 < h ? Math.floor((y + 1) / factor) * width : row;
    for (let x = 0; x < w; x++, to += 4) {
      const column = Math.floor(x / factor);
      const right = x + 1 < w ? Math.floor((x + 1) / factor) : column;
      const from = row + column;
      const c = index[from];
      const share = seen[c] ? opacity : 0;
      const other = index[row + right] !== c ? index[row + right] : index[below + column];
      const line = other !== c && (seen[c] || seen[other]) && opacity > 0;
      for (let d = 0; d < 3; d++) {
        const own = picture.data[4 * from + d];
        out[to + d] = line ? OUTLINE : own + share * (colours[c][d] - own);
      }
      out[to + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
  if (heat !== null) {
    pen.globalAlpha = opacity;
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(heated(heat).board, 0, 0, w, h);
    pen.globalAlpha = 1;
  }
  if (pointer) {
    const [x, y] = pointer;
    for (const [colour, thick] of [["#000", 4], ["#fff", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick;
      pen.beginPath();
      pen.arc(x, y, 8, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

// ---- the legend ---------------------------------------------------------------------------------

function legend() {
  const order = answer.classes.map((_, c) => c);
  order.sort((a, b) => answer.classes[b].share - answer.classes[a].share);
  find(".legend").replaceChildren(...order.map((c) => {
    const { name, colour, share } = answer.classes[c];
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour;
    const entry = make("button", { type: "button", class: "entry", title: name }, swatch,
      make("span", { class: "name" }, name), make("span", { class: "share" }, percent(share)));
    const { board } = heated(c);
    board.setAttribute("aria-hidden", "true");
    const map = make("button",
      { type: "button", class: "heat", "aria-label": `Heat map of ${name}`, title: "Heat map" }, board);
    entry.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      press();
    });
    map.addEventListener("click", () => {
      heat = heat === c ? null : c;
      press();
    });
    const item = make("li", share ? {} : { class: "absent" }, entry, map);
    item.dataset.index = c;
    return item;
  }));
  press();
}

// Brings the buttons and the picture to what is hidden and heated.
function press() {
  for (const item of element.querySelectorAll(".legend li")) {
    const c = Number(item.dataset.index);
    item.querySelector(".entry").setAttribute("aria-pressed", String(!hidden.has(answer.classes[c].name)));
    item.querySelector(".heat").setAttribute("aria-pressed", String(heat === c));
  }
  describe();
  read(pointer);
  redraw();
}

function describe() {
  const shown = answer.classes.filter((one) => one.share > 0 && !hidden.has(one.name));
  canvas.setAttribute("aria-label", heat === null
    ? `The picture under the colours of: ${shown.map((one) => one.name).join(", ") || "none"}. ` +
      "Arrow keys read it point by point."
    : `Heat map of ${answer.classes[heat].name}. Arrow keys read it point by point.`);
}

// ---- what is under the pointer ------------------------------------------------------------------

function read(point) {
  const tip = find(".tip");
  const readout = find(".readout");
  tip.hidden = !point;
  if (!point) {
    readout.textContent = heat === null ? "Point at the picture to read a class and its score."
      : heatText();
    return;
  }
  const [x, y] = [point[0] / canvas.width, point[1] / canvas.height];
  const { width, height, factor, index, classes, size } = answer;
  const column = Math.min(Math.floor(x * width), width - 1);
  const row = Math.min(Math.floor(y * height), height - 1);
  const own = index[row * width + column];
  const c = heat === null ? own : heat;
  const text = `${classes[c].name} ${number(score(c, x, y))}`;
  tip.textContent = text;
  tip.style.setProperty("--colour", classes[c].colour);
  tip.style.left = `${100 * x}%`;
  tip.style.top = `${100 * y}%`;
  tip.classList.toggle("left", x > 0.6);
  tip.classList.toggle("above", y > 0.8);
  const at = `at ${Math.floor(x * size[0])}, ${Math.floor(y * size[1])}`;
  readout.textContent = heat === null ? `${text}, ${at}` : `${text}, ${at}: labelled ${classes[own].name}`;
}

function heatText() {
  const { low, high } = heated(heat);
  const real = (value) => number(answer.grid.low + answer.grid.step * value);
  return `Heat map of ${answer.classes[heat].name}: dark is ${real(low)}, bright is ${real(high)}.`;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * canvas.width,
    ((event.clientY - box.top) / box.height) * canvas.height];
}

canvas.addEventListener("pointermove", (event) => {
  if (!answer) return;
  if (pointer) {
    pointer = null;
    redraw();
  }
  read(place(event));
});
canvas.addEventListener("pointerdown", (event) => answer && read(place(event)));
canvas.addEventListener("pointerleave", () => answer && read(null));
canvas.addEventListener("blur", () => {
  if (!answer || !pointer) return;
  pointer = null;
  read(null);
  redraw();
});
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !answer) return;
  event.preventDefault();
  const reach = (event.shiftKey ? 0.01 : 0.05) * Math.max(canvas.width, canvas.height);
  const [x, y] = pointer || [canvas.width / 2, canvas.height / 2];
  const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
  pointer = pointer
    ? [within(x + reach * step[0], canvas.width), within(y + reach * step[1], canvas.height)]
    : [x, y];
  read(pointer);
  redraw();
});

find(".opacity").addEventListener("input", redraw);
find(".all").addEventListener("click", () => {
  if (!answer) return;
  answer.classes.forEach((one) => hidden.delete(one.name));
  press();
});
find(".none").addEventListener("click", () => {
  if (!answer) return;
  answer.classes.forEach((one) => hidden.add(one.name));
  press();
});

watch("value", () => show(props.value));
show(props.value);
