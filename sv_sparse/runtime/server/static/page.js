// The page of `sv-sparse serve`: two recordings, what the program says of them, and where its threshold lies.

const $ = selector => document.querySelector(selector);
const model = await (await fetch("model")).json(); // description of the model, and the limits
const panels = [new RecordingPanel("#recording-1"), new RecordingPanel("#recording-2")];
let answer = null; // to the last comparison

class Problem extends Error {}

// ---------------------------------------------------------------------------------------------------- recordings

/** One of the two recordings: where it comes from, and the part of the page that shows it. */
function RecordingPanel(selector) {
  const root = $(selector);
  const part = name => root.querySelector(name);
  this.blob = null;
  this.isWav = false; // whether it is WAV that this page has written
  this.stop = null; // ends the recording that is under way

  const [button, input, live, state, audio, problem] =
    [".record", "input", ".live", ".state", "audio", ".problem"].map(part);
  this.title = part("h2").textContent;

  this.complain = text => { problem.textContent = text; };
  this.refuse = reason => this.complain(`${sentence(model.outcomes.refused_input)}: ${reason}`);

  this.put = (blob, name, isWav) => {
    clearResult();
    this.blob = blob;
    this.isWav = isWav;
    this.complain("");
    URL.revokeObjectURL(audio.src);
    audio.src = URL.createObjectURL(blob);
    audio.hidden = false;
    state.textContent = name;
    ready();
  };

  this.choose = file => {
    if (file.size === 0) return this.refuse(`${file.name} is empty.`);
    if (file.size > model.max_bytes) return this.refuse(
      `${file.name} has ${size(file.size)}; at most ${size(model.max_bytes)} are accepted.`);
    this.put(file, `${file.name}, ${size(file.size)}`, false);
  };

  input.addEventListener("change", () => {
    if (input.files.length) this.choose(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });

  // Not every browser can play what the program can read.
  audio.addEventListener("error", () => {
    if (!audio.hidden) state.textContent += ". This browser cannot play it.";
    audio.hidden = true;
  });

  for (const kind of ["dragenter", "dragover"]) root.addEventListener(kind, () => root.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) root.addEventListener(kind, () => root.classList.remove("over"));
  root.addEventListener("drop", event => {
    const files = [...event.dataTransfer.files];
    if (!files.length) return;
    this.choose(files[0]);
    if (files.length > 1) panels.find(panel => panel !== this).choose(files[1]);
  });

  button.addEventListener("click", async () => {
    if (this.stop) return this.stop();
    button.disabled = true;
    this.complain("");
    try {
      const [level, clock] = [part(".level span"), part(".clock")];
      clock.textContent = "waiting for the microphone";
      live.hidden = false;
      state.hidden = true;
      audio.hidden = true;
      const recording = await record((peak, seconds) => {
        level.style.transform = `scaleX(${Math.max(0, 1 + Math.log10(peak + 1e-6) / 2.5)})`; // 50 dB
        clock.textContent = `${seconds.toFixed(1)} s of at most ${model.max_seconds} s`;
      }, stop => {
        this.stop = stop;
        button.textContent = "Stop";
        button.setAttribute("aria-pressed", "true");
        button.disabled = false;
        ready();
      });
      this.put(recording.blob, `Recorded, ${recording.seconds.toFixed(1)} s`, true);
      if (recording.peak < 1e-3) this.complain("Nothing was heard. Is the microphone muted, or another one in use?");
      if (recording.peak >= 1) this.complain("It was too loud and is distorted. Try again farther from the microphone.");
    } catch (error) {
      this.complain(microphoneProblem(error));
    } finally {
      this.stop = null;
      button.textContent = "Record";
      button.removeAttribute("aria-pressed");
      button.disabled = false;
      live.hidden = true;
      state.hidden = false;
      audio.hidden = this.blob === null;
      ready();
    }
  });
}

/** Record until `stop` is called or the longest duration is reached; the browser's processing is kept out. */
async function record(onLevel, onStart) {
  const stream = await navigator.mediaDevices.getUserMedia(
    { audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("recorder.js");
    const maxSamples = Math.floor((model.max_seconds - 0.01) * context.sampleRate);
    const pieces = [];
    let count = 0;
    let maxPeak = 0;
    await new Promise(stop => {
      const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0, channelCount: 1,
        channelCountMode: "explicit" });
      recorder.port.onmessage = ({ data }) => {
        pieces.push(data.subarray(0, maxSamples - count));
        count = Math.min(count + data.length, maxSamples);
        const peak = data.reduce((max, sample) => Math.max(max, Math.abs(sample)), 0);
        maxPeak = Math.max(maxPeak, peak);
        onLevel(peak, count / context.sampleRate);
        if (count === maxSamples) stop();
      };
      stream.getAudioTracks()[0].addEventListener("ended", stop); // the microphone was unplugged
      context.createMediaStreamSource(stream).connect(recorder);
      onStart(stop);
    });
    if (!count) throw new Problem("Nothing was recorded. Record for a few seconds, then stop.");
    return { blob: wav(pieces, count, context.sampleRate), seconds: count / context.sampleRate, peak: maxPeak };
  } finally {
    stream.getTracks().forEach(track => track.stop());
    await context.close();
  }
}

function microphoneProblem(error) {
  if (error instanceof Problem) return error.message;
  return {
    NotAllowedError: "The browser was not allowed to use the microphone. Allow it in the address bar, or choose a file.",
    NotFoundError: "No microphone was found. Plug one in, or choose a file.",
    NotReadableError: "The microphone cannot be used; perhaps another program has it. Close that, or choose a file.",
  }[error.name] ?? `The microphone cannot be used: ${error.message}`;
}

/** Samples in [-1, 1] as a WAV file of 16 bits and one channel. */
function wav(pieces, count, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (place, letters) => [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  let place = 44;
  for (const piece of pieces) {
    for (const sample of piece) {
      view.setInt16(place, Math.max(-32768, Math.min(32767, Math.round(32768 * sample))), true);
      place += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

/** Decode by the browser what the program cannot read: m4a or webm, as a rule. */
async function convertToWav(blob) {
  const rate = 48000;
  const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await blob.arrayBuffer());
  if (decoded.duration > model.max_seconds) throw new Problem(
    `It is ${decoded.duration.toFixed(1)} s long; at most ${model.max_seconds} s are accepted.`);
  return wav([decoded.getChannelData(0)], decoded.length, rate);
}

// ---------------------------------------------------------------------------------------------------- comparing

$("#compare").addEventListener("click", async () => {
  clearResult();
  panels.forEach(panel => panel.complain(""));
  $("#compare").disabled = $(".pair").inert = true;
  $("#progress").textContent = "Comparing …";
  try {
    answer = await compareRecordings();
    $("#progress").textContent = "";
    show();
    $("#decision").focus();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    $("#progress").textContent = "";
    const place = panels[error.recording - 1];
    if (place) place.refuse(error.message);
    else $("#problem").textContent = error.message;
  } finally {
    $(".pair").inert = false;
    ready();
  }
});

/** The program's answer; what it cannot read is sent again as the browser reads it. */
async function compareRecordings() {
  for (;;) {
    const { status, content } = await post(panels[0].blob, panels[1].blob);
    if (status === 200) return content;
    const panel = panels[content.recording - 1];
    const problem = new Problem(content.error);
    problem.recording = content.recording;
    if (status !== 400 || !panel || panel.isWav) throw problem;
    try {
      panel.blob = await convertToWav(panel.blob);
      panel.isWav = true;
    } catch (error) {
      if (error instanceof Problem) problem.message = error.message;
      throw problem;
    }
  }
}

async function post(first, second) {
  let response;
  try {
    response = await fetch("verify", {
      method: "POST", body: new Blob([first, second]),
      headers: { "Content-Type": "application/octet-stream", "First-Length": String(first.size) },
    });
  } catch {
    throw new Problem("No answer. Is sv-sparse serve still running, and can the files still be read?");
  }
  try {
    return { status: response.status, content: await response.json() };
  } catch { // of a proxy, as a rule
    throw new Problem(`No answer of sv-sparse serve, but status ${response.status} ${response.statusText}.`);
  }
}

// ---------------------------------------------------------------------------------------------------- the result

function show() {
  const decision = answer.decisions[$("#rate select").selectedIndex];
  const outcome = decision ? decision.outcome : model.outcomes.no_decision;
  $("#result").className = outcome.replace(" ", "-");
  $("#decision").textContent = sentence(outcome);
  $("#reason").textContent = decision
    ? `The evidence, ${number(answer.llr)}, ${decision.accepted ? "reaches" : "does not reach"} the threshold, ` +
      `${number(decision.threshold)}, at which ${percent(decision.target_far)} of pairs of different speakers are accepted.` +
      (decision.accepted ? "" : ` ${sentence(model.not_different)}.`)
    : answer.llr === null
      ? "This model has no calibration: only the score is known, and no threshold. Higher scores speak for one speaker."
      : "This model has no threshold: the evidence is known, but not from where on to accept.";
  $("#warning").textContent = answer.warning ? `Warning: ${answer.warning}.` : "";
  draw(decision);
  const facts = [["Score", answer.score.toFixed(3)]];
  if (answer.llr !== null) facts.push(
    ["Evidence (LLR)", number(answer.llr)],
    [`Probability at ${percent(answer.prior)} prior`, probability(answer.probability)]);
  if (decision) facts.push(["Threshold (LLR)", number(decision.threshold)]);
  list($("#numbers"), facts);
  $("#basis").textContent = basis(decision);
  $("#result").hidden = false;
}

function basis(decision) {
  const score = `The score is a cosine of two embeddings${model.score_norm === "none" ? "" : `, normalized (${model.score_norm})`}.`;
  if (!model.calibration) return score;
  return `${score} Evidence is the natural logarithm of how many times likelier this score is for one speaker than for two: ` +
    `${model.calibration}. ` + (decision ? "The share of false alarms holds for pairs like those; others may differ. " : "") +
    `The probability is that of one speaker if ${percent(answer.prior)} of pairs were of one speaker before anything was heard.`;
}

/** The scale: where this pair lies, and where the threshold does. */
function draw(decision) {
  const isCalibrated = answer.llr !== null;
  const value = isCalibrated ? answer.llr : answer.score;
  const bound = decision?.threshold;
  const [low, high] = ends(isCalibrated ? [value, ...answer.decisions.map(each => each.threshold)] : [value], isCalibrated);
  const share = where => 100 * (where - low) / (high - low);
  const put = (element, where) => { element.style.left = `${share(where)}%`; };
  const mark = (element, where, text) => { // its own width never leaves the scale
    put(element, where);
    element.style.transform = `translateX(${-share(where)}%)`;
    element.textContent = text;
  };
  $("#scale").classList.toggle("unknown", !decision);
  $("#threshold").hidden = $(".bound").hidden = !decision;
  if (decision) {
    mark($("#threshold"), bound, `threshold ${number(bound)}`);
    put($(".bound"), bound);
  }
  $(".below").style.width = `${decision ? share(bound) : 50}%`;
  mark($("#here"), value, `this pair ${isCalibrated ? number(value) : value.toFixed(3)}`);
  put($(".dot"), value);
  $(".ticks").replaceChildren(...ticks(low, high).map(tick => {
    const element = document.createElement("span");
    element.textContent = number(tick, 2, false);
    put(element, tick);
    return element;
  }));
  $(".axis").textContent = isCalibrated ? "evidence (log-likelihood ratio)" : "score";
  $("#scale").setAttribute("aria-label",
    `A scale from ${number(low)}, for different speakers, to ${number(high)}, for one speaker. This pair lies at ${number(value)}` +
    (decision ? `, the threshold at ${number(bound)}.` : "; no threshold is known."));
}

/** Ends of the scale: the same for most pairs, wider where one would lie outside. */
function ends(values, isCalibrated) {
  const usual = isCalibrated ? 8 : model.score_norm === "none" ? 1 : 4;
  const reach = Math.max(usual, ...values.map(value => isCalibrated || usual > 1 ? 1.1 * Math.abs(value) : 0));
  return [-reach, reach];
}

function ticks(low, high) {
  const step = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(step => (high - low) / step <= 8) ?? (high - low) / 4;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

// ---------------------------------------------------------------------------------------------------- the page

/** Forget the last result, which is of other recordings. */
function clearResult() {
  answer = null;
  $("#result").hidden = true;
  $("#problem").textContent = "";
  $("#progress").textContent = "";
}

function ready() {
  $("#compare").disabled = !panels.every(panel => panel.blob && !panel.stop);
}

function list(place, pairs) {
  place.replaceChildren(...pairs.map(([name, value]) => {
    const row = document.createElement("div");
    for (const [tag, text] of [["dt", name], ["dd", value]]) {
      row.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
    return row;
  }));
}

function number(value, digits = 2, padded = true) {
  const text = value.toFixed(Math.abs(value) >= 100 ? 0 : digits);
  return (padded ? text : String(Number(text))).replace("-", "\u2212");
}

const sentence = words => words[0].toUpperCase() + words.slice(1);

// Numbers keep their units on the same line.
const percent = share => `${Number((100 * share).toPrecision(3))}\u00a0%`;
const probability = share =>
  share > 0.9995 ? ">\u00a099.9\u00a0%" : share < 0.0005 ? "<\u00a00.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;
const size = bytes => bytes < 1e3 ? `${bytes}\u00a0bytes`
  : bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)}\u00a0kB` : `${(bytes / 1e6).toFixed(1)}\u00a0MB`;

/** Plain data of a model's card, a line for each part. */
function words(value) {
  if (value === null) return "not known";
  if (typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.map(words).join(", ");
  return Object.entries(value).map(([name, part]) => `${name}: ${words(part)}`).join("\n");
}

function start() {
  for (const kind of ["dragover", "drop"]) addEventListener(kind, event => event.preventDefault());
  const rates = model.target_fars.map(share => new Option(`${percent(share)} false alarms`));
  $("#rate select").replaceChildren(...rates);
  $("#rate select").selectedIndex = model.target_fars.indexOf(model.default_target_far);
  $("#rate").hidden = rates.length < 2;
  $("#rate select").addEventListener("change", () => { if (answer) show(); });
  $("#limits").append(...model.limits_of_use.map(limit =>
    Object.assign(document.createElement("li"), { textContent: `${sentence(limit)}.` })));
  const facts = Object.entries(model.card);
  list($("#about dl"), facts.map(([name, value]) => [name, words(value)]));
  $("#about").hidden = !facts.length;
  for (const button of document.querySelectorAll(".record")) button.disabled = !navigator.mediaDevices;
  if (!navigator.mediaDevices) $("#problem").textContent =
    "Browsers give the microphone only to pages of this computer (localhost) or of https. Files can be chosen.";
}

start();
