// Sound in and out of the page, on the audio thread; all at the rate of the context.

const PIECE = 320; // samples of a message to the server: 20 ms
const BEHIND = 0.06; // s that a reply waits, for the jitter of the network
const MOST = 0.12; // s that may wait when a reply comes; silence beyond it is left out

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(PIECE);
    this.filled = 0;
  }

  process([input]) {
    const samples = input[0] ?? new Float32Array(128);
    for (let at = 0; at < samples.length; at++) {
      this.piece[this.filled++] = samples[at];
      if (this.filled === PIECE) {
        // When the first sample of the piece came in, s.
        const time = currentTime + (at + 1 - PIECE) / sampleRate;
        this.port.postMessage({ pcm: this.piece.slice(), time });
        this.filled = 0;
      }
    }
    return true;
  }
}

class Player extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.watched = processorOptions.watched; // whether the page is told what is played
    this.chunks = [];
    this.place = 0;
    this.waiting = 0; // samples
    this.holding = 0; // samples of silence before the next one
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(chunk) {
    const silent = chunk.every((sample) => Math.abs(sample) < 1e-4);
    if (silent) {
      const more = Math.max(0, this.waiting - Math.round(MOST * sampleRate));
      chunk = chunk.subarray(Math.min(more, chunk.length));
      if (!chunk.length) return;
    }
    if (this.waiting === 0) this.holding = Math.round(BEHIND * sampleRate);
    this.chunks.push(chunk);
    this.waiting += chunk.length;
  }

  process(_, [[output]]) {
    for (let at = 0; at < output.length; at++) {
      if (this.holding > 0) {
        this.holding--;
      } else if (this.waiting > 0) {
        output[at] = this.chunks[0][this.place++];
        this.waiting--;
        if (this.place === this.chunks[0].length) {
          this.chunks.shift();
          this.place = 0;
        }
      }
    }
    if (this.watched) this.port.postMessage({ pcm: output.slice(), time: currentTime });
    return true;
  }
}

registerProcessor("capture", Capture);
registerProcessor("player", Player);
