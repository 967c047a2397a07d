// Zoom in step, the divider between two pictures, and the keys of the page.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const MOST = 32;

class Viewer {
  constructor(card) {
    this.card = card;
    this.find = (selector) => card.querySelector(selector);
    this.scale = 1;
    this.x = this.y = 0; // where the picture's corner lies, in shares of a panel
    this.split = 50;
    this.panels = [...card.querySelectorAll(".panel:not(.missing)")];
    this.stage = this.find(".stage");
    this.divider = this.find(".divider");
    this.selects = { left: this.find(".choose.left"), right: this.find(".choose.right") };
    if (this.panels.length) this.begin();
    else this.find(".compare").hidden = true;
    for (const view of card.querySelectorAll(".view")) this.listen(view);
    card.addEventListener("pointerenter", () => { Viewer.active = this; });
    card.addEventListener("focusin", () => { Viewer.active = this; });
    this.zoomTo(1);
  }

  begin() {
    const place = (role) => this.panels.findIndex((panel) => panel.classList.contains(role));
    const results = this.panels.filter((panel) => panel.classList.contains("result"));
    const left = Math.max(place("result"), 0);
    const right = results.length > 1 ? this.panels.indexOf(results[1]) : this.panels.findIndex((_, i) => i !== left);
    this.choose("left", left);
    this.choose("right", Math.max(right, 0));
    for (const side of ["left", "right"]) {
      this.selects[side].addEventListener("change", (event) => this.choose(side, Number(event.target.value)));
    }
    this.panels.forEach((panel, i) => panel.querySelector(".pick").addEventListener("click", () => this.pick(i)));
    this.find(".in").addEventListener("click", () => this.zoom(2));
    this.find(".out").addEventListener("click", () => this.zoom(1 / 2));
    const whole = this.find(".whole");
    whole.hidden = !this.panels.some((panel) => panel.dataset.file);
    whole.querySelector("input").addEventListener("change", (event) => this.loadWhole(event.target.checked));
    this.divider.addEventListener("keydown", (event) => this.dividerKey(event));
    this.setSplit(50);
  }

  // The panel takes the right side, unless it is on the left already.
  pick(index) {
    if (index !== Number(this.selects.left.value)) this.choose("right", index);
  }

  choose(side, index) {
    this.selects[side].value = String(index);
    const panel = this.panels[index];
    const picture = this.stage.querySelector(`.layer.${side}`);
    picture.src = panel.querySelector("img").src;
    picture.alt = panel.dataset.label;
    this.stage.querySelector(`.tag.${side}`).textContent = panel.dataset.label;
    const chosen = [this.selects.left, this.selects.right].map((select) => Number(select.value));
    this.panels.forEach((one, i) => one.classList.toggle("chosen", chosen.includes(i)));
    this.labelSplit();
  }

  setSplit(percent) {
    this.split = clamp(percent, 0, 100);
    this.stage.style.setProperty("--split", `${this.split}%`);
    this.labelSplit();
  }

  labelSplit() {
    const shown = Math.round(this.split);
    const label = (side) => this.panels[Number(this.selects[side].value)]?.dataset.label ?? "";
    this.divider.setAttribute("aria-valuenow", String(shown));
    this.divider.setAttribute("aria-valuetext", `${shown} % ${label("left")}, ${100 - shown} % ${label("right")}`);
  }

  dividerKey(event) {
    const step = event.shiftKey ? 10 : 2;
    const to = {
      ArrowLeft: this.split - step, ArrowDown: this.split - step, ArrowRight: this.split + step,
      ArrowUp: this.split + step, PageDown: this.split - 10, PageUp: this.split + 10, Home: 0, End: 100,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.setSplit(to);
  }

  flip() {
    this.setSplit(this.split >= 50 ? 0 : 100);
  }

  // The point (u, v) of the panel stays where it is.
  zoomTo(scale, u = 0.5, v = 0.5) {
    const next = clamp(scale, 1, MOST);
    this.x = u - ((u - this.x) * next) / this.scale;
    this.y = v - ((v - this.y) * next) / this.scale;
    this.scale = next;
    this.move(0, 0);
  }

  zoom(factor, u, v) {
    this.zoomTo(this.scale * factor, u, v);
  }

  move(right, down) {
    this.x = clamp(this.x + right, 1 - this.scale, 0);
    this.y = clamp(this.y + down, 1 - this.scale, 0);
    const style = this.card.style;
    style.setProperty("--scale", String(this.scale));
    style.setProperty("--x", `${100 * this.x}%`);
    style.setProperty("--y", `${100 * this.y}%`);
    this.card.classList.toggle("zoomed", this.scale > 1);
    this.card.classList.toggle("close", this.scale >= 4);
    this.find(".zoom output").textContent = `${+this.scale.toFixed(1)}×`;
  }

  // Pixel for pixel from the files beside the page, on request only; a thumbnail stays where there is no such file.
  loadWhole(wanted) {
    this.panels.forEach((panel, i) => {
      const picture = panel.querySelector("img");
      picture.dataset.small ||= picture.src;
      const again = () => ["left", "right"].forEach((side) => {
        if (Number(this.selects[side].value) === i) this.choose(side, i);
      });
      picture.onload = again;
      picture.onerror = () => { picture.src = picture.dataset.small; };
      picture.src = wanted && panel.dataset.file ? panel.dataset.file : picture.dataset.small;
    });
  }

  listen(view) {
    const pointers = new Map();
    const inside = (event) => {
      const box = view.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const isStage = view === this.stage;
    let slides = false, moved = false, gap = 0;
    view.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pointers.set(event.pointerId, inside(event));
      view.setPointerCapture(event.pointerId);
      moved = false;
      gap = 0;
      slides = isStage && pointers.size === 1 && (event.target === this.divider || this.scale === 1);
      if (slides) this.setSplit(100 * inside(event)[0]);
    });
    view.addEventListener("pointermove", (event) => {
      const now = inside(event), before = pointers.get(event.pointerId);
      this.point(event.pointerType === "touch" ? null : now);
      if (!before) return;
      pointers.set(event.pointerId, now);
      moved ||= Math.hypot(now[0] - before[0], now[1] - before[1]) > 0.004;
      if (pointers.size === 2) {
        const [[a, b], [c, d]] = pointers.values();
        const apart = Math.hypot(a - c, b - d);
        if (gap) this.zoom(apart / gap, (a + c) / 2, (b + d) / 2);
        gap = apart;
      } else if (slides) this.setSplit(100 * now[0]);
      else this.move(now[0] - before[0], now[1] - before[1]);
    });
    const end = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      const panel = view.closest(".panel");
      if (event.type === "pointerup" && panel && !moved) this.pick(this.panels.indexOf(panel));
    };
    view.addEventListener("pointerup", end);
    view.addEventListener("pointercancel", end);
    view.addEventListener("pointerleave", () => this.point(null));
    view.addEventListener("dblclick", (event) => {
      if (this.scale > 1) this.zoomTo(1);
      else this.zoom(3, ...inside(event));
    });
    view.addEventListener("wheel", (event) => this.wheel(event, inside(event)), { passive: false });
  }

  // A page that is being scrolled goes on scrolling over a picture; and there is nothing to leave at the whole picture.
  wheel(event, [u, v]) {
    const outwards = event.deltaY > 0;
    const scrolling = performance.now() - Viewer.scrolled < 250 && !event.ctrlKey;
    if (scrolling || (outwards && this.scale === 1 && !event.ctrlKey)) return;
    event.preventDefault();
    this.zoom(Math.exp(-clamp(event.deltaY, -120, 120) / 300), u, v);
  }

  point(place) {
    this.card.classList.toggle("pointing", Boolean(place));
    if (place) {
      this.card.style.setProperty("--u", `${100 * place[0]}%`);
      this.card.style.setProperty("--v", `${100 * place[1]}%`);
    }
    this.steps?.read(place && [(place[0] - this.x) / this.scale, (place[1] - this.y) / this.scale]);
  }
}

Viewer.active = null;
Viewer.scrolled = -1000;
addEventListener("scroll", () => { Viewer.scrolled = performance.now(); }, { passive: true });

const viewers = [...document.querySelectorAll(".card")].map((card) => new Viewer(card));

// The pair that was touched last while it is in sight, or else the first one that is.
function current() {
  const seen = viewers.filter(({ card }) => {
    const box = card.getBoundingClientRect();
    return !card.hidden && box.bottom > 80 && box.top < innerHeight - 80;
  });
  return seen.includes(Viewer.active) ? Viewer.active : seen[0];
}

function toPair(step) {
  const there = viewers.filter(({ card }) => !card.hidden);
  const next = there[clamp(there.indexOf(current()) + step, 0, there.length - 1)];
  if (!next) return;
  Viewer.active = next;
  next.card.scrollIntoView({ block: "start" });
  next.stage.focus({ preventScroll: true });
}

const root = document.documentElement;
const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* not allowed: not kept */ } };
try { root.dataset.theme = localStorage.getItem("dig2dig-theme") ?? ""; } catch { /* the system's */ }

function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("dig2dig-theme", root.dataset.theme);
}
const keys = document.querySelector(".keys");
document.querySelector(".theme").addEventListener("click", switchTheme);
document.querySelector(".help").addEventListener("click", () => keys.showModal());

document.querySelector(".filter")?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  const links = document.querySelectorAll(".index a");
  viewers.forEach(({ card }, i) => {
    card.hidden = links[i].hidden = !card.querySelector("h2").textContent.toLowerCase().includes(wanted);
  });
  document.querySelector(".nothing").hidden = viewers.some(({ card }) => !card.hidden);
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  const viewer = current();
  const onStage = viewer && event.target === viewer.stage;
  const actions = {
    "+": () => viewer?.zoom(1.5), "=": () => viewer?.zoom(1.5), "-": () => viewer?.zoom(1 / 1.5),
    0: () => viewer?.zoomTo(1), x: () => viewer?.flip(), t: switchTheme, "?": () => keys.showModal(),
    j: () => toPair(1), k: () => toPair(-1), ",": () => viewer?.steps?.go(-1), ".": () => viewer?.steps?.go(1),
  };
  if (onStage && viewer.scale > 1) {
    Object.assign(actions, {
      ArrowLeft: () => viewer.move(0.1, 0), ArrowRight: () => viewer.move(-0.1, 0),
      ArrowUp: () => viewer.move(0, 0.1), ArrowDown: () => viewer.move(0, -0.1),
    });
  }
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});

// The index marks the pair in sight and keeps it in sight itself.
const index = document.querySelector(".index");
let marked = -1;
function mark() {
  const now = viewers.indexOf(current());
  if (!index || now === marked) return;
  marked = now;
  [...index.children].forEach((one, i) => {
    if (i !== now) return one.removeAttribute("aria-current");
    one.setAttribute("aria-current", "true");
    index.scrollTo({ left: one.offsetLeft - index.offsetLeft - 40 });
  });
}
addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
mark();
