// The page's client of the Live protocol: microphone in, speech out, and what happens.

import { fromBase64, joined, toBase64, toFloat, toInt } from "./pcm.js";
import { Camera, PROBLEMS } from "./camera.js";
import { play, read, save } from "./saved_session.js";
import { Timeline } from "./timeline.js";

const RATE = 16000;
const TRIES = 8; // reconnections before it gives up
const FRAME_MS = 200; // between two frames of the camera
const LINE_MS = 1500; // after this pause a screen reader is told a line
const MICROPHONE = {
  NotAllowedError:
    "The microphone is not allowed. Allow it for this page in the browser, then press Talk.",
  NotFoundError: "There is no microphone. Connect one, then press Talk.",
  NotReadableError: "Another program has the microphone. Close it, then press Talk.",
};
const REFUSALS = {
  server_full: "All places are taken. Try again later.",
  session_not_found: "The session is gone. Press Talk to begin another.",
  session_limit_reached: "You have too many sessions. Close one, then press Talk.",
};
const address = new URLSearchParams(location.search);
const store = address.has("store"); // whether the server keeps it
const element = (id) => document.getElementById(id);
const timeline = new Timeline(element("timeline"));
let server = {}; // what about.json told
let socket = null;
let audio = null; // {context, player, tracks}
let camera = null; // of a model that sees
let session = null; // the server's id of it
let problem = ""; // why the server refuses a session, in words
let events = []; // what happened, for a file
let sound = { you: [], model: [] }; // PCM of both sides, Int16Array
let offset = 0; // ms of this page's session at which the server's began
let muted = false;
let tries = 0;
let talks = 0; // how often Talk or Stop was pressed
let wanted = false; // whether the user wants to talk
let stopReplay = () => {};

// For tests, with `?watch` in the address: what was played, and when.
const watched = address.has("watch");
window.talk = { played: [], playedAt: null, started: 0, firstSound: null, sent: 0, codes: [] };
window.session = () => session;
window.heard = () => toBase64(joined(sound.you));
window.played = () => toBase64(joined(window.talk.played.map(toInt)));

function show(text) {
  element("status").textContent = text;
}

async function openAudio() {
  if (!navigator.mediaDevices) {
    throw new Error("Open the page over HTTPS or from localhost; browsers ask for that.");
  }
  const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
  try {
    await context.audioWorklet.addModule("worklets.js");
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    context.createMediaStreamSource(stream).connect(capture);
    const processorOptions = { watched };
    const player = new AudioWorkletNode(context, "player", { numberOfInputs: 0, processorOptions });
    player.connect(context.destination);
    capture.port.onmessage = ({ data: { pcm, time } }) => send(pcm, time);
    player.port.onmessage = ({ data: { pcm, time } }) => watch(pcm, time);
    await context.resume();
    return { context, player, tracks: stream.getTracks() };
  } catch (error) {
    context.close();
    throw error;
  }
}

function closeAudio(opened) {
  opened?.tracks.forEach((track) => track.stop());
  opened?.context.close();
}

function watch(pcm, time) {
  window.talk.playedAt ??= time;
  window.talk.played.push(pcm);
  if (window.talk.firstSound === null && pcm.some((x) => Math.abs(x) > 0.01)) {
    window.talk.firstSound = performance.now();
  }
}

function send(pcm, time) {
  if (!session || socket?.readyState !== WebSocket.OPEN) return;
  window.talk.sentAt ??= time; // s on the clock of the sound
  const heard = muted ? new Float32Array(pcm.length) : pcm;
  const whole = toInt(heard);
  sound.you.push(whole);
  timeline.hear("you", heard, RATE);
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
  problem = "";
  mine.onopen = () => {
    if (mine !== socket) return;
    const format = { type: "audio/pcm", rate: RATE };
    const delegation = server.delegates ? { delegation: { type: "responses" } } : {};
    const video = server.frame_size ? { interaction: { video: true } } : {};
    const asked = { model: "demo", store, ...delegation, ...video };
    const config = { audio: { format }, ...(fork ? {} : asked) };
    mine.send(JSON.stringify({ type: "session.start", session: config }));
  };
  mine.onmessage = ({ data }) => mine === socket && take(JSON.parse(data));
  mine.onclose = ({ code }) => mine === socket && wanted && disconnected(session ?? fork, code);
}

function disconnected(kept, code) {
  session = null;
  if (!kept) {
    const token = server.token ? " or does not accept the token" : "";
    stop(problem || `The server does not answer${token}. Press Talk to try again.`);
  } else if ([1000, 1008].includes(code) || tries >= TRIES) {
    stop(problem || "The connection is closed. Press Talk to begin again.");
  } else {
    tries += 1;
    show(`The connection is lost. Try ${tries} of ${TRIES} to go on.`);
    const mine = talks;
    setTimeout(() => mine === talks && connect(kept), Math.min(250 * 2 ** tries, 4000));
  }
}

// A line of the transcript; screen readers are told whole lines.
let unread = null; // {item, timer}

function tell() {
  if (!unread) return;
  clearTimeout(unread.timer);
  element("said").textContent = unread.item.textContent;
  unread = null;
}

function say(side, text) {
  const list = element("transcript");
  let item = list.lastElementChild;
  if (item?.dataset.side !== side) {
    tell();
    item = line(list, side, `${side}: `, text);
    item.dataset.side = side;
  } else {
    item.lastElementChild.textContent += text;
    list.scrollTop = list.scrollHeight;
  }
  clearTimeout(unread?.timer);
  unread = { item, timer: setTimeout(tell, LINE_MS) };
}

function line(list, side, name, text) {
  const item = document.createElement("li");
  const [label, words] = ["span", "span"].map((tag) => document.createElement(tag));
  label.className = side;
  label.textContent = name;
  words.textContent = text;
  item.append(label, words);
  list.append(item);
  list.scrollTop = list.scrollHeight;
  return item;
}

function take(event, replayed = false) {
  const { type } = event;
  if (!replayed && type !== "session.output_audio.delta") {
    events.push({ ...event, at: timeline.now });
  }
  if (type === "session.started") {
    offset = 1000 * (replayed ? event.at : timeline.now);
    if (!replayed) begun(event.session.id);
  } else if (type === "session.output_audio.delta") {
    const pcm = fromBase64(event.delta);
    sound.model.push(pcm);
    const values = toFloat(pcm);
    timeline.hear("model", values, RATE);
    audio?.player.port.postMessage(values);
  } else if (type.endsWith("put_transcript.delta")) {
    const side = type.includes("input") ? "you" : "model";
    timeline.say(side, (offset + event.start_ms) / 1000, event.delta);
    say(side, event.delta);
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
    problem = REFUSALS[event.error.code] ?? event.error.message;
    show(problem);
  } else if (type === "session.closed" && event.reason === "expired" && !replayed) {
    stop("The session's time is over. Press Talk to begin another.");
  }
}

function begun(id) {
  session = id;
  tries = 0;
  window.talk.started ||= performance.now();
  show("Connected. Talk.");
  for (const id of ["mute", "camera", "save"]) element(id).disabled = false;
}

// {"tool": "lookup", "item": "honey"} as "lookup(honey)", {"result": 56} as "56".
function plain(json) {
  try {
    const { tool, ...rest } = JSON.parse(json);
    const values = Object.values(rest).join(", ").trim();
    return tool ? `${tool}(${values})` : values;
  } catch {
    return json;
  }
}

function work({ delegation_id: id, event }) {
  const text = {
    "response.created": () => event.response.metadata?.request,
    "response.output_item.added": () => plain(event.item.arguments),
    "response.output_item.done": () => plain(event.item.output),
    "response.failed": () => `failed: ${event.response.error.message}`,
    "response.incomplete": () => "cancelled",
    "response.completed": () => "told",
  }[event.type]?.();
  if (!text) return;
  const ended = ["response.completed", "response.failed", "response.incomplete"];
  timeline.note(id, ended.includes(event.type) ? "" : text, ended.includes(event.type));
  const list = element("delegations");
  const item = [...list.children].findLast((one) => one.dataset.id === id);
  if (item && event.type !== "response.created") {
    item.lastElementChild.textContent += ` → ${text}`;
    list.scrollTop = list.scrollHeight;
  } else {
    line(list, "work", text, "").dataset.id = id;
  }
}

function clear() {
  stopReplay();
  for (const id of ["transcript", "delegations", "said", "step"]) element(id).replaceChildren();
  clearTimeout(unread?.timer);
  unread = null;
  timeline.clear();
}

async function start() {
  const mine = ++talks;
  wanted = true;
  session = null;
  tries = 0;
  events = [];
  sound = { you: [], model: [] };
  setMuted(false);
  clear();
  element("talk").textContent = "Stop";
  element("talk").classList.add("on");
  show("Asking for the microphone.");
  let opened;
  try {
    opened = await openAudio();
  } catch (error) {
    if (mine === talks) stop(MICROPHONE[error.name] ?? error.message);
    return;
  }
  if (mine !== talks) {
    closeAudio(opened);
    return;
  }
  audio = opened;
  for (const track of audio.tracks) track.onended = () => stop("The microphone is gone.");
  show("Connecting.");
  connect("");
}

function stop(text) {
  talks += 1;
  wanted = false;
  const old = socket;
  socket = null; // what it still brings is of no interest
  if (old?.readyState === WebSocket.OPEN) old.send(JSON.stringify({ type: "session.close" }));
  else old?.close();
  closeAudio(audio);
  audio = null;
  showCamera(false);
  session = null;
  element("talk").textContent = "Talk";
  element("talk").classList.remove("on");
  for (const id of ["mute", "camera"]) element(id).disabled = true;
  show(text);
}

function setMuted(value) {
  muted = value;
  element("mute").setAttribute("aria-pressed", String(muted));
}

async function showCamera(value) {
  element("camera").setAttribute("aria-pressed", String(value));
  if (!value) {
    camera?.close();
    return;
  }
  try {
    await camera.open(() => showCamera(false));
    if (element("camera").getAttribute("aria-pressed") === "false") camera.close(); // meanwhile
  } catch (error) {
    showCamera(false);
    show(PROBLEMS[error.name] ?? error.message);
  }
}

function sendFrame() {
  if (!camera?.stream || !session || socket?.readyState !== WebSocket.OPEN) return;
  const frame = toBase64(camera.frame());
  socket.send(JSON.stringify({ type: "interaction.input_frame.append", frame }));
}

async function replay(file) {
  let saved;
  try {
    saved = await read(file);
  } catch (error) {
    show(error.message);
    return;
  }
  if (wanted) stop("");
  clear();
  offset = 0;
  show("Playing a saved session.");
  stopReplay = play(saved, {
    hear: (side, pcm, rate) => timeline.hear(side, pcm, rate),
    take: (event) => take(event, true),
    end: () => show("The saved session is over."),
  });
}

element("talk").onclick = () => (wanted ? stop("Press Talk to begin again.") : start());
element("mute").onclick = () => setMuted(!muted);
element("camera").onclick = ({ target }) =>
  showCamera(target.getAttribute("aria-pressed") === "false");
element("save").onclick = () => save(RATE, sound, events);
element("open").onchange = ({ target }) => {
  if (target.files[0]) replay(target.files[0]);
  target.value = ""; // the same file may be opened again
};
element("type").onsubmit = (submitted) => {
  submitted.preventDefault();
  const content = element("text").value.trim();
  if (!content || !session) return;
  const type = "session.commentary.append";
  socket.send(JSON.stringify({ type, content, delegation_id: null }));
  element("text").value = "";
};

async function about() {
  server = await (await fetch("about.json")).json();
  element("about").textContent = server.about;
  element("examples").replaceChildren(
    ...server.examples.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }),
  );
  element("key").hidden = !server.token;
  element("type").hidden = !server.reads_text;
  element("camera").hidden = !server.frame_size;
  if (server.frame_size) {
    camera = new Camera(element("view"), server.frame_size);
    setInterval(sendFrame, FRAME_MS);
  }
}

function doing() {
  if (!session) return "";
  if (muted) return "muted";
  if (timeline.working) return "working on a request";
  return timeline.speaking ? "speaking" : "listening";
}

function draw() {
  timeline.draw();
  element("doing").textContent = doing();
  requestAnimationFrame(draw);
}

about().catch((error) => show(`The server does not answer: ${error.message}`));
draw();
