// PCM: float in [-1, 1], 16 bits, and base64 of 16 bits or of bytes.

export const toInt = (pcm) =>
  Int16Array.from(pcm, (x) => Math.max(-32768, Math.min(32767, x * 32768)));
export const toFloat = (pcm) => Float32Array.from(pcm, (x) => x / 32768);

export function toBase64(values) {
  const bytes = new Uint8Array(values.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(text);
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

export function joined(parts) {
  const whole = new Int16Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
