// The last seconds of a session on a canvas: both sides' sound, their words, and delegations.

const SHOWN_S = 20;
const COLUMN_S = 0.05; // s of sound in one bar

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.levels = { you: [], model: [] }; // the loudest sample of each column
    this.rest = { you: [], model: [] };
    this.words = []; // {side, at, text}
    this.work = []; // {id, from, to, text}
    this.now = 0; // s
  }

  hear(side, pcm, rate) {
    const rest = this.rest[side];
    for (const sample of pcm) {
      rest.push(Math.abs(sample));
      if (rest.length >= COLUMN_S * rate) {
        this.levels[side].push(Math.max(...rest));
        rest.length = 0;
      }
    }
    if (side === "model") this.now = this.levels.model.length * COLUMN_S;
  }

  say(side, at, text) {
    this.words.push({ side, at, text });
  }

  begin(id, at) {
    this.work.push({ id, from: at, to: null, text: "" });
  }

  note(id, text, ended) {
    const one = this.work.findLast((work) => work.id === id);
    if (!one) return;
    one.text = text || one.text;
    if (ended) one.to = this.now;
  }

  draw(at = this.now) {
    const { canvas } = this;
    // A canvas does not know the page's colours, which follow its light or dark scheme.
    const of = (selector) => getComputedStyle(document.querySelector(selector));
    const colour = (name) =>
      name === "line" ? of("section").borderTopColor : of(`.legend.${name}, .legend .${name}`).color;
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = 260;
    if (canvas.width !== Math.round(width * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const start = Math.max(0, at - SHOWN_S);
    const x = (time) => ((time - start) / SHOWN_S) * width;
    const middle = { you: 60, model: 150 };
    pen.font = "12px system-ui, sans-serif";
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("faint");
    for (let second = Math.ceil(start / 5) * 5; second <= start + SHOWN_S; second += 5) {
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
        pen.fillRect(x(bar * COLUMN_S), middle[side] - size, (COLUMN_S / SHOWN_S) * width, 2 * size);
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
