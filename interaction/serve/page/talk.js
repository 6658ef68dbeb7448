// The page's client of the Live protocol: microphone in, speech out, and what happens.

import { Timeline } from "./timeline.js";

const RATE = 16000;
const store = new URLSearchParams(location.search).has("store"); // whether the server keeps it
const TRIES = 8; // reconnections before it gives up
const element = (id) => document.getElementById(id);
const timeline = new Timeline(element("timeline"));
let socket = null;
let audio = null; // {context, player, tracks}
let session = null; // the server's id of it
let events = []; // what happened, for a file
let sound = { you: [], model: [] }; // PCM of both sides, Int16Array
let offset = 0; // ms of this page's session at which the server's began
let muted = false;
let tries = 0;
let wanted = false; // whether the user wants to talk

// For tests, with `?watch` in the address: what was played, and when.
const watched = new URLSearchParams(location.search).has("watch");
window.talk = { played: [], playedAt: null, started: 0, firstSound: null, sent: 0, codes: [] };

window.session = () => session;
window.heard = () => toBase64(joined(sound.you));
window.played = () => toBase64(joined(window.talk.played.map(toInt)));

function show(text) {
  element("status").textContent = text;
}

function toBase64(pcm) {
  const bytes = new Uint8Array(pcm.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(text);
}

function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

const toInt = (pcm) => Int16Array.from(pcm, (x) => Math.max(-32768, Math.min(32767, x * 32768)));
const toFloat = (pcm) => Float32Array.from(pcm, (x) => x / 32768);

async function openAudio() {
  if (!navigator.mediaDevices) {
    throw new Error("open the page over HTTPS or from localhost; browsers ask for that");
  }
  const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
  await context.audioWorklet.addModule("worklets.js");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  });
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  context.createMediaStreamSource(stream).connect(capture);
  const player = new AudioWorkletNode(context, "player", { numberOfInputs: 0 });
  player.connect(context.destination);
  capture.port.onmessage = ({ data: { pcm, time } }) => send(pcm, time);
  player.port.onmessage = ({ data: { pcm, time } }) => {
    if (!watched) return;
    window.talk.playedAt ??= time;
    window.talk.played.push(pcm);
    if (window.talk.firstSound === null && pcm.some((x) => Math.abs(x) > 0.01)) {
      window.talk.firstSound = performance.now();
    }
  };
  await context.resume();
  return { context, player, tracks: stream.getTracks() };
}

function send(pcm, time) {
  if (!session || socket?.readyState !== WebSocket.OPEN) return;
  window.talk.sentAt ??= time; // s on the clock of the sound
  const whole = toInt(muted ? new Float32Array(pcm.length) : pcm);
  sound.you.push(whole);
  timeline.hear("you", muted ? new Float32Array(pcm.length) : pcm, RATE);
  socket.send(JSON.stringify({ type: "session.input_audio.append", audio: toBase64(whole) }));
  window.talk.sent += pcm.length;
}

function connect(fork) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const path = fork ? `/v1/live/sessions/${fork}/fork` : "/v1/live/sessions";
  const token = element("token").value;
  const names = ["interaction", ...(token ? [`openai-insecure-api-key.${token}`] : [])];
  const mine = new WebSocket(`${scheme}://${location.host}${path}`, names);
  socket = mine;
  mine.onopen = () => {
    const format = { type: "audio/pcm", rate: RATE };
    const config = { audio: { format }, ...(fork ? {} : { model: "demo", store, ...server }) };
    mine.send(JSON.stringify({ type: "session.start", session: config }));
  };
  mine.onmessage = ({ data }) => mine === socket && take(JSON.parse(data));
  mine.onclose = ({ code }) => {
    if (mine !== socket) return; // the user has started another talk
    const kept = session;
    session = null;
    if (wanted && ![1000, 1008].includes(code) && tries < TRIES) {
      tries += 1;
      show(`the connection is lost; try ${tries} of ${TRIES}`);
      setTimeout(() => wanted && connect(kept ?? fork), Math.min(250 * 2 ** tries, 4000));
    } else if (wanted) {
      stop("the connection is closed");
    }
  };
}

let server = {}; // delegation: whether the server answers delegations

function line(list, side, text, id) {
  const last = list.lastElementChild;
  if (last?.dataset.id === id) {
    last.lastElementChild.textContent += text;
  } else {
    const item = document.createElement("li");
    item.dataset.id = id;
    const name = document.createElement("span");
    name.className = side;
    name.textContent = `${side}: `;
    const words = document.createElement("span");
    words.textContent = text;
    item.append(name, words);
    list.append(item);
  }
  list.scrollTop = list.scrollHeight;
}

function take(event, replay = false) {
  const { type } = event;
  if (!replay && type !== "session.output_audio.delta") {
    events.push({ ...event, at: timeline.now });
  }
  if (type === "session.started") {
    session = event.session.id;
    tries = 0;
    offset = 1000 * timeline.now;
    window.talk.started ||= performance.now();
    show("connected: talk");
    for (const id of ["mute", "save"]) element(id).disabled = false;
  } else if (type === "session.output_audio.delta") {
    const pcm = fromBase64(event.delta);
    sound.model.push(pcm);
    const values = toFloat(pcm);
    timeline.hear("model", values, RATE);
    audio?.player.port.postMessage(values);
  } else if (type.endsWith("put_transcript.delta")) {
    const side = type.includes("input") ? "you" : "model";
    timeline.say(side, (offset + event.start_ms) / 1000, event.delta);
    line(element("transcript"), side, event.delta, side);
  } else if (type === "session.delegation.created") {
    timeline.begin(event.delegation.id, (offset + event.offset_ms) / 1000);
  } else if (type === "response.event") {
    work(event);
  } else if (type === "session.usage.updated" && event.interaction) {
    const { step_ms, missed, lost, delay_ms } = event.interaction;
    element("step").textContent =
      `step ${step_ms.toFixed(0)} of 200 ms, ${missed} late, ${lost} chunks lost, ` +
      `network ${delay_ms.toFixed(0)} ms`;
  } else if (type === "info") {
    window.talk.codes.push(event.code);
    if (["session_resumed", "server_restarts", "output_audio_lost"].includes(event.code)) {
      show(event.message);
    }
  } else if (type === "error") {
    window.talk.codes.push(event.error.code);
    show(event.error.message);
  } else if (type === "session.closed" && event.reason === "expired") {
    stop("the session's time is over");
  }
}

function work({ delegation_id: id, event }) {
  const text = {
    "response.created": () => event.response.metadata?.request,
    "response.output_item.added": () => event.item.arguments,
    "response.output_item.done": () => event.item.output,
    "response.failed": () => `failed: ${event.response.error.message}`,
    "response.incomplete": () => "cancelled",
    "response.completed": () => "told",
  }[event.type]?.();
  const ended = ["response.completed", "response.failed", "response.incomplete"];
  timeline.note(id, ended.includes(event.type) ? "" : text, ended.includes(event.type));
  line(element("delegations"), "work", text ?? event.type, `${id} ${event.type} ${Math.random()}`);
}

async function start() {
  wanted = true;
  tries = 0;
  events = [];
  sound = { you: [], model: [] };
  for (const id of ["transcript", "delegations"]) element(id).replaceChildren();
  element("talk").textContent = "Stop";
  element("talk").setAttribute("aria-pressed", "true");
  show("asking for the microphone");
  try {
    audio ??= await openAudio();
    connect("");
  } catch (error) {
    stop(`no microphone: ${error.message}`);
  }
}

function stop(text) {
  wanted = false;
  if (socket?.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify({ type: "session.close" }));
  }
  audio?.tracks.forEach((track) => track.stop());
  audio?.context.close();
  audio = null;
  session = null;
  element("talk").textContent = "Talk";
  element("talk").setAttribute("aria-pressed", "false");
  element("mute").disabled = true;
  show(text);
}

function joined(parts) {
  const whole = new Int16Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function save() {
  const file = {
    version: 1,
    rate: RATE,
    you: toBase64(joined(sound.you)),
    model: toBase64(joined(sound.model)),
    events,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(file)], { type: "application/json" }));
  link.download = "session.json";
  link.click();
}

async function replay(file) {
  const saved = JSON.parse(await file.text());
  if (saved.version !== 1) {
    show(`the file has version ${saved.version}, wanted 1; open it with the page that saved it`);
    return;
  }
  for (const id of ["transcript", "delegations"]) element(id).replaceChildren();
  Object.assign(timeline, new Timeline(timeline.canvas));
  const context = new AudioContext({ sampleRate: saved.rate });
  const sides = ["you", "model"].map((side) => toFloat(fromBase64(saved[side])));
  const length = Math.max(...sides.map((side) => side.length));
  const buffer = context.createBuffer(2, length, saved.rate);
  sides.forEach((side, channel) => buffer.copyToChannel(side, channel));
  const player = new AudioBufferSourceNode(context, { buffer });
  player.connect(context.destination);
  player.start();
  show("playing a saved session");
  const began = context.currentTime;
  let place = 0;
  let next = 0;
  const timer = setInterval(() => {
    const until = Math.min(Math.floor((context.currentTime - began) * saved.rate), length);
    ["you", "model"].forEach((side, channel) => {
      timeline.hear(side, sides[channel].subarray(place, until), saved.rate);
    });
    place = until;
    while (next < saved.events.length && saved.events[next].at * saved.rate <= place) {
      const event = saved.events[next++];
      if (event.type !== "session.started") take(event, true);
    }
    if (place >= length) {
      clearInterval(timer);
      context.close();
      show("the saved session is over");
    }
  }, 50);
}

element("talk").onclick = () => (wanted ? stop("not connected") : start());
element("mute").onclick = () => {
  muted = !muted;
  element("mute").setAttribute("aria-pressed", String(muted));
  element("mute").textContent = muted ? "Unmute" : "Mute";
};
element("save").onclick = save;
element("open").onchange = ({ target }) => target.files[0] && replay(target.files[0]);
element("type").onsubmit = (submitted) => {
  submitted.preventDefault();
  const content = element("text").value.trim();
  if (!content || !session) return;
  const type = "session.commentary.append";
  socket.send(JSON.stringify({ type, content, delegation_id: null }));
  element("text").value = "";
};

async function about() {
  const known = await (await fetch("about.json")).json();
  element("about").textContent = known.about;
  element("examples").replaceChildren(
    ...known.examples.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }),
  );
  if (known.delegates) server = { delegation: { type: "responses" } };
  if (known.reads_text) {
    element("text").disabled = false;
    element("text").placeholder = "Text for the model";
    document.querySelector("#type button").disabled = false;
  }
}

function draw() {
  timeline.draw();
  requestAnimationFrame(draw);
}

about().catch((error) => show(`the server does not answer: ${error.message}`));
draw();
