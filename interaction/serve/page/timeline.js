// The last seconds of a session on a canvas: both sides' sound, their words, and delegations.

const MOST_S = 20; // shown on a wide page
const SECOND = 56; // CSS pixels of a second, for words to have room on a narrow one
const AHEAD = 0.1; // share of the width after the present, for the last word
const COLUMN_S = 0.05; // s of sound in one bar

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => (this.stale = true));
  }

  clear() {
    this.stale = true; // whether the picture is older than what happened
    this.levels = { you: [], model: [] }; // the loudest sample of each column
    this.rest = { you: [], model: [] };
    this.words = []; // {side, at, text}
    this.work = []; // {id, from, to, text}
    this.now = 0; // s
  }

  get working() {
    return this.work.some((one) => one.to === null);
  }

  get speaking() {
    return this.levels.model.slice(-4).some((level) => level > 0.01);
  }

  hear(side, pcm, rate) {
    const rest = this.rest[side];
    for (const sample of pcm) {
      rest.push(Math.abs(sample));
      if (rest.length >= COLUMN_S * rate) {
        this.levels[side].push(Math.max(...rest));
        rest.length = 0;
        this.stale = true;
      }
    }
    if (side === "model") this.now = this.levels.model.length * COLUMN_S;
  }

  say(side, at, text) {
    this.words.push({ side, at, text });
    this.stale = true;
  }

  begin(id, at) {
    this.work.push({ id, from: at, to: null, text: "" });
  }

  note(id, text, ended) {
    const one = this.work.findLast((work) => work.id === id);
    if (!one) return;
    this.stale = true;
    one.text = text || one.text;
    if (ended) one.to = this.now;
  }

  draw(at = this.now) {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = 260;
    const resized = canvas.width !== Math.round(width * scale);
    if (!this.stale && !resized) return;
    this.stale = false;
    // A canvas does not know the page's colours, which follow its light or dark scheme.
    const of = (selector) => getComputedStyle(document.querySelector(selector));
    const colour = (name) =>
      name === "line" ? of("section").borderTopColor : of(`.legend.${name}, .legend .${name}`).color;
    if (resized) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const shown = Math.min(MOST_S, width / SECOND);
    const start = Math.max(0, at - (1 - AHEAD) * shown);
    const x = (time) => ((time - start) / shown) * width;
    const middle = { you: 60, model: 150 };
    pen.font = "12px system-ui, sans-serif";
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("faint");
    for (let second = Math.ceil(start / 5) * 5; second <= start + shown; second += 5) {
      pen.beginPath();
      pen.moveTo(x(second), 14);
      pen.lineTo(x(second), height);
      pen.stroke();
      pen.fillText(`${second} s`, x(second) + 3, 11);
    }
    for (const side of ["you", "model"]) {
      pen.fillStyle = colour(side);
      const bars = this.levels[side];
      for (let bar = Math.floor(start / COLUMN_S); bar < bars.length; bar++) {
        const size = Math.max(0.5, 34 * Math.sqrt(bars[bar]));
        pen.fillRect(x(bar * COLUMN_S), middle[side] - size, (COLUMN_S / shown) * width, 2 * size);
      }
      let end = -1e9;
      for (const word of this.words.filter((one) => one.side === side && one.at >= start - 2)) {
        const left = Math.max(x(word.at), end);
        pen.fillText(word.text, left, middle[side] + 44);
        end = left + pen.measureText(word.text).width;
      }
    }
    this.work.slice(-4).forEach((one, row) => {
      const from = x(one.from);
      const to = x(one.to ?? at);
      if (to < 0) return;
      pen.fillStyle = colour("work");
      pen.fillRect(from, 208 + 13 * row, Math.max(3, to - from), 4);
      pen.fillText(one.text, Math.max(2, from), 206 + 13 * row);
    });
  }
}
