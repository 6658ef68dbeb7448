// The camera, for a model that sees: its picture in the page, and frames of it as RGB.

export const PROBLEMS = {
  NotAllowedError: "The camera is not allowed. Allow it for this page in the browser.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program has the camera.",
};

export class Camera {
  // Shows the camera in a video element; frames are squares of so many pixels.
  constructor(video, size) {
    this.video = video;
    this.size = size;
    this.canvas = new OffscreenCanvas(size, size);
    this.stream = null;
  }

  // Calls a function if the camera goes away.
  async open(gone) {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, facingMode: "user" },
    });
    this.close();
    this.stream = stream;
    for (const track of stream.getTracks()) track.onended = gone;
    this.video.srcObject = this.stream;
    this.video.hidden = false;
    await this.video.play();
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = this.video.srcObject = null;
    this.video.hidden = true;
  }

  // The middle of the picture: uint8, red, green and blue of each pixel, row by row.
  frame() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const side = Math.min(width, height);
    const pen = this.canvas.getContext("2d", { willReadFrequently: true });
    const middle = [(width - side) / 2, (height - side) / 2, side, side];
    pen.drawImage(this.video, ...middle, 0, 0, this.size, this.size);
    const { data } = pen.getImageData(0, 0, this.size, this.size);
    const rgb = new Uint8Array(this.size * this.size * 3);
    for (let pixel = 0; pixel < this.size * this.size; pixel++) {
      for (let colour = 0; colour < 3; colour++) rgb[3 * pixel + colour] = data[4 * pixel + colour];
    }
    return rgb;
  }
}
