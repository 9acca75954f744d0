// Passes the microphone's samples on, 2048 at a time.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Float32Array(2048);
    this.count = 0;
  }

  process([[input]]) {
    if (input) {
      this.samples.set(input, this.count);
      this.count += input.length;
      if (this.count + input.length > this.samples.length) {
        this.port.postMessage(this.samples.slice(0, this.count));
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
