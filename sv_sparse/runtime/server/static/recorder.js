// Hands on what the microphone hears, 2048 samples at a time.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Float32Array(2048);
    this.count = 0;
  }

  process([[heard]]) {
    if (heard) {
      this.samples.set(heard, this.count);
      this.count += heard.length;
      if (this.count + heard.length > this.samples.length) {
        this.port.postMessage(this.samples.slice(0, this.count));
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
