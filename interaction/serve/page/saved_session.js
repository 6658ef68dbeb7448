// A session as a file, and a file that plays.

import { fromBase64, joined, toBase64, toFloat } from "./pcm.js";

const VERSION = 1;

export function save(rate, sound, events) {
  const sides = { you: toBase64(joined(sound.you)), model: toBase64(joined(sound.model)) };
  const text = JSON.stringify({ version: VERSION, rate, ...sides, events });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "session.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export async function read(file) {
  let saved;
  try {
    saved = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no saved session.`);
  }
  if (saved?.version !== VERSION) {
    throw new Error(
      `${file.name} has version ${saved?.version}, wanted ${VERSION}; ` +
        "open it with the page that saved it.",
    );
  }
  try {
    const sides = { you: toFloat(fromBase64(saved.you)), model: toFloat(fromBase64(saved.model)) };
    return { rate: saved.rate, sides, events: [...saved.events] };
  } catch {
    throw new Error(`${file.name} is damaged.`);
  }
}

// Plays a session; tells of sound and events at their time, and of the end. Returns what stops it.
export function play({ rate, sides, events }, { hear, take, end }) {
  const context = new AudioContext({ sampleRate: rate });
  const length = Math.max(sides.you.length, sides.model.length, 1);
  const buffer = context.createBuffer(2, length, rate);
  buffer.copyToChannel(sides.you, 0);
  buffer.copyToChannel(sides.model, 1);
  const player = new AudioBufferSourceNode(context, { buffer });
  player.connect(context.destination);
  player.start();
  const began = context.currentTime;
  let place = 0;
  let next = 0;
  const stop = () => {
    clearInterval(timer);
    context.close();
  };
  const timer = setInterval(() => {
    const until = Math.min(Math.floor((context.currentTime - began) * rate), length);
    for (const side of ["you", "model"]) hear(side, sides[side].subarray(place, until), rate);
    place = until;
    while (next < events.length && (events[next].at * rate <= place || place >= length)) {
      take(events[next++]);
    }
    if (place >= length) {
      stop();
      end();
    }
  }, 50);
  return stop;
}
