// The sampling steps of a pair: maps in colour, estimates, and curves.

const colours = JSON.parse(document.getElementById("colours").textContent);
const ramp = [0, 0.25, 0.5, 0.75, 1].map((share) => {
  const at = 3 * Math.round(255 * share);
  return `rgb(${colours.map.slice(at, at + 3).join(" ")})`;
});

const lookup = new Uint8ClampedArray(4 * 256).fill(255);
colours.map.forEach((value, i) => { lookup[4 * Math.floor(i / 3) + (i % 3)] = value; });
const lookupWords = new Uint32Array(lookup.buffer);

// The grey values of a picture in a data URI.
async function readGrey(uri) {
  const picture = new Image();
  picture.src = uri;
  await picture.decode();
  const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const values = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < values.length; i += 1) values[i] = pixels[4 * i];
  return { width: canvas.width, height: canvas.height, values };
}

function paint(canvas, { width, height, values }) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < values.length; i += 1) words[i] = lookupWords[values[i]];
  context.putImageData(image, 0, 0);
}

function shape(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

class Steps {
  constructor(section) {
    this.section = section;
    this.data = JSON.parse(section.querySelector("script").textContent);
    this.slider = section.querySelector("input[type=range]");
    this.greys = new Map();
    this.place = null;
    this.maps = [...section.querySelectorAll(".map")].map((figure) => ({
      kind: figure.dataset.kind, source: Number(figure.dataset.source), layer: figure.querySelector(".layer"),
      output: figure.querySelector("output"),
    }));
    section.querySelectorAll(".ramp i").forEach((bar) => { bar.style.background = `linear-gradient(90deg, ${ramp})`; });
    this.slider.addEventListener("input", () => { this.stop(); this.show(); });
    section.querySelector(".play").addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    this.drawCurves();
    this.show();
  }

  get step() { return this.data.views[Number(this.slider.value)]; }

  go(by) {
    this.slider.value = String(Number(this.slider.value) + by);
    this.show();
  }

  play() {
    if (Number(this.slider.value) === this.data.views.length - 1) this.slider.value = "0";
    this.playing = setInterval(() => {
      this.go(1);
      if (Number(this.slider.value) === this.data.views.length - 1) this.stop();
    }, 600);
    this.show();
    this.labelPlaying();
  }

  stop() {
    clearInterval(this.playing);
    this.playing = null;
    this.labelPlaying();
  }

  labelPlaying() {
    const button = this.section.querySelector(".play");
    button.textContent = this.playing ? "❚❚" : "▶";
    button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }

  async show() {
    const step = this.step, total = this.data.times.length;
    const output = this.section.querySelector(".time output");
    const strong = document.createElement("b");
    strong.textContent = `Step ${step.index + 1} of ${total}`;
    output.replaceChildren(strong, ` · t ${step.t} · noise ${+step.sigma.toPrecision(2)}`);
    this.slider.setAttribute("aria-valuetext", output.textContent);
    const ends = this.section.querySelectorAll(".ramp[data-kind=gain] b");
    ends[0].textContent = String(+step.low.toPrecision(2));
    ends[1].textContent = String(+step.high.toPrecision(3));
    this.now?.setAttribute("transform", `translate(${this.across(step.index)} 0)`);
    for (const { kind, layer } of this.maps) {
      if (kind === "guided" || kind === "estimate") layer.src = step[kind];
    }
    const drawn = this.maps.filter(({ kind }) => kind === "weight" || kind === "gain");
    const greys = await Promise.all(drawn.map(({ kind, source }) => this.grey(step[kind][source])));
    if (step !== this.step) return; // the slider has moved on
    drawn.forEach((map, i) => {
      map.grey = greys[i];
      paint(map.layer, greys[i]);
    });
    this.section.dataset.shown = String(step.index);
    this.read(this.place);
  }

  grey(uri) {
    if (!this.greys.has(uri)) this.greys.set(uri, readGrey(uri));
    return this.greys.get(uri);
  }

  // What the maps say at a place of the picture, in shares of its sides.
  read(place) {
    this.place = place;
    const { low, high } = this.step;
    for (const { kind, grey, output } of this.maps) {
      if (!output) continue;
      const column = place && grey && clamp(Math.floor(place[0] * grey.width), 0, grey.width - 1);
      const row = place && grey && clamp(Math.floor(place[1] * grey.height), 0, grey.height - 1);
      const value = place && grey && grey.values[row * grey.width + column] / 255;
      const number = kind === "gain" ? low + value ** 2 * (high - low) : value;
      output.textContent = place && grey ? number.toFixed(2) : "";
    }
  }

  across(index) { return 34 + (this.wide * index) / Math.max(this.data.times.length - 1, 1); }

  drawCurves() {
    const svg = this.section.querySelector("svg");
    this.wide = clamp(svg.clientWidth - 134, 120, 480);
    const { times, weights, modalities, views } = this.data;
    const up = (weight) => 172 - 160 * weight;
    svg.setAttribute("viewBox", `0 0 ${this.wide + 134} 196`);
    for (const level of [0, 0.5, 1]) {
      svg.append(shape("line", { class: "grid", x1: 34, x2: 34 + this.wide, y1: up(level), y2: up(level) }));
      svg.append(shape("text", { x: 28, y: up(level) + 4, "text-anchor": "end" }, level));
    }
    const every = Math.ceil(times.length / 8);
    times.forEach((_, i) => {
      if (i % every === 0) svg.append(shape("text", { x: this.across(i), y: 191, "text-anchor": "middle" }, i + 1));
    });
    this.now = shape("line", { class: "now", y1: up(1) - 6, y2: up(0) });
    svg.append(this.now);
    const ends = modalities.map((name, k) => ({ name, k, y: up(weights.at(-1)[k]) })).sort((a, b) => a.y - b.y);
    ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 15); }); // names do not overlap
    for (const { name, k, y } of ends) {
      const colour = colours.lines[k % colours.lines.length];
      const points = weights.map((one, i) => `${this.across(i)},${up(one[k])}`).join(" ");
      svg.append(shape("polyline", { class: "line", points, stroke: colour, "stroke-dasharray": ["none", "7 4", "2 3"][k % 3] }));
      svg.append(shape("circle", { cx: this.wide + 46, cy: y, r: 4, fill: colour }));
      svg.append(shape("text", { class: "name", x: this.wide + 56, y: y + 4 }, name.length > 11 ? `${name.slice(0, 10)}…` : name));
    }
    svg.addEventListener("pointerdown", (event) => {
      const box = svg.getBoundingClientRect();
      const wanted = ((((event.clientX - box.left) * (this.wide + 134)) / box.width - 34) / this.wide) * (times.length - 1);
      const far = (step) => Math.abs(step.index - wanted);
      const nearest = views.reduce((best, one, i) => (far(one) < far(views[best]) ? i : best), 0);
      this.slider.value = String(nearest);
      this.show();
    });
  }
}

// Steps are prepared when their pair comes near.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    viewers.find(({ card }) => card.contains(target)).steps = new Steps(target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll(".steps").forEach((section) => near.observe(section));
