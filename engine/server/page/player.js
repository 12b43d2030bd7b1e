// Plays samples as they arrive. Told by messages: {samples: Float32Array} to append, {end: true}, {stop: true}.
// Tells: {played, ahead, gaps, done}, in samples, some thirty times a second.
class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.clear();
    this.port.onmessage = ({ data }) => {
      if (data.stop) this.clear();
      if (data.samples) { this.chunks.push(data.samples); this.ahead += data.samples.length; this.ended = false; }
      if (data.end) this.ended = true;
    };
  }

  clear() {
    this.chunks = []; this.at = 0; this.ahead = 0; this.played = 0; this.gaps = 0; this.turn = 0;
    this.ended = false; this.told = true;
  }

  process(_, [[out]]) {
    let filled = 0;
    while (filled < out.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const count = Math.min(out.length - filled, chunk.length - this.at);
      out.set(chunk.subarray(this.at, this.at + count), filled);
      filled += count; this.at += count;
      if (this.at === chunk.length) { this.chunks.shift(); this.at = 0; }
    }
    this.ahead -= filled; this.played += filled;
    if (filled) this.told = false;
    if (filled < out.length && this.played && !this.ended) this.gaps += out.length - filled;
    const done = this.ended && !this.ahead;
    if (!this.told && (done || ++this.turn % 16 === 0)) {
      this.port.postMessage({ played: this.played, ahead: this.ahead, gaps: this.gaps, done });
      this.told = done;
    }
    return true;
  }
}
registerProcessor("player", Player);
