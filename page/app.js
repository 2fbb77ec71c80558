// The page: files in, pictures and numbers out. `codec.js` does the work.

import { Codec, loadCatalogue } from "./codec.js";
import { unpack } from "./container.js";
import { jpegAndWebp, resized } from "./rivals.js";

const MAX_PIXELS = 4e6; // of a picture that is encoded here; a larger one is made smaller first, for the memory of phones
const $ = (id) => document.getElementById(id);

let catalogue = [];
let chosen = null; // name of the codec
let source = null; // ImageData of the picture in hand, null if a file was opened
let title = "picture";
let busy = Promise.resolve();
let panels = new Map(); // pictures by the names that both sides choose from
const codecs = new Map();

async function start() {
  catalogue = await loadCatalogue();
  segments($("codecs"), catalogue.map(({ name, label }) => [name, `${name}: ${label}`]), (name) => {
    chosen = name;
    if (source) enqueue(compress);
  });
  chosen = catalogue[0].name;
  await codecNamed(chosen);
  say("Ready.");
  document.body.dataset.state = "ready";
}

function codecNamed(name) {
  if (!codecs.has(name)) codecs.set(name, Codec.load(catalogue.find((entry) => entry.name === name)));
  return codecs.get(name);
}

/** Runs jobs one after another and shows what goes wrong. */
function enqueue(job) {
  busy = busy.then(async () => {
    document.body.dataset.state = "busy";
    try {
      await job();
      document.body.dataset.state = "done";
    } catch (error) {
      console.error(error);
      say(error.message, true);
      document.body.dataset.state = "error";
    }
  });
  return busy;
}

async function open(file) {
  title = file.name.replace(/\.[^.]*$/, "") || "picture";
  if (file.name.endsWith(".walloc")) {
    source = null;
    await decompress(new Uint8Array(await file.arrayBuffer()));
  } else {
    source = await readPicture(file);
    await compress();
  }
}

async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read.`);
  }
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparency on white, as the package does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function compress() {
  say("Encoding …");
  const codec = await codecNamed(chosen);
  await painted();
  const encoded = await codec.compress(source);
  say("Decoding …");
  await painted();
  const decoded = await codec.decompress(encoded.file);
  const bytes = encoded.file.length;
  const rows = [
    { name: "WaLLoC", bytes, picture: decoded.picture, encode: encoded.milliseconds, decode: decoded.milliseconds },
    await resized(source, (3 * source.width * source.height) / encoded.codes.length),
    ...(await jpegAndWebp(source, bytes)),
  ];
  for (const row of rows) row.psnr = psnr(source, row.picture);
  show({ codec, file: encoded.file, codes: encoded.codes, shape: encoded.shape, rows, original: source });
}

async function decompress(file) {
  const { header } = unpack(file);
  const entry = catalogue.find(({ fingerprint }) => fingerprint === header.fingerprint);
  if (!entry) throw new Error(`The file was written by codec ${header.codec || header.fingerprint}, which this page does not have.`);
  say("Decoding …");
  await painted();
  const codec = await codecNamed(entry.name);
  const { picture, codes, shape, milliseconds } = await codec.decompress(file);
  const rows = [{ name: "WaLLoC", bytes: file.length, picture, decode: milliseconds }];
  show({ codec, file, codes, shape, rows, original: null });
}

function show({ codec, file, codes, shape, rows, original }) {
  const { width, height } = rows[0].picture;
  const pixels = width * height;
  const numbers = (3 * pixels) / (shape[0] * shape[1] * shape[2]);
  $("result").hidden = false;
  facts({
    "Fewer numbers": `${numbers.toFixed(1)}×`,
    "Fewer bytes": `${((3 * pixels) / file.length).toFixed(1)}×`,
    File: size(file.length),
    ...(original && { PSNR: `${rows[0].psnr.toFixed(2)} dB` }),
    Picture: `${width}\u2009×\u2009${height}`,
    Latents: shape.join("\u2009×\u2009"),
  });

  panels = new Map(rows.filter((row) => row.picture).map((row) => [row.name, row.picture]));
  if (original) panels.set("original", original);
  $("compare").classList.toggle("single", !original);
  document.querySelector(".sides").hidden = !original;
  offer("left", original ? "Resized" : "WaLLoC");
  offer("right", "WaLLoC");

  $("table").tBodies[0].replaceChildren(
    ...rows.map((row) => {
      const cells = [
        row.name,
        row.picture && (row.numbers ?? (row.name === "WaLLoC" ? codes.length : 3 * pixels)).toLocaleString("en"),
        row.picture ? row.bytes.toLocaleString("en") : "not in this browser",
        row.picture && ((8 * row.bytes) / pixels).toFixed(3),
        row.picture && `${((3 * pixels) / row.bytes).toFixed(1)}×`,
        row.psnr && `${row.psnr.toFixed(2)} dB`,
        row.encode && `${Math.round(row.encode)} ms`,
        row.decode && `${Math.round(row.decode)} ms`,
      ];
      const line = document.createElement("tr");
      for (const cell of cells) line.insertCell().textContent = cell ?? "";
      return line;
    }),
  );

  link($("save-walloc"), new Blob([file]), `${title}.walloc`);
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(rows[0].picture, 0, 0);
  canvas.convertToBlob().then((blob) => link($("save-png"), blob, `${title}.png`));

  $("latents-note").textContent =
    `What a model reads in place of ${(3 * pixels).toLocaleString("en")} samples: ${shape[0]} channels of ` +
    `${shape[2]} × ${shape[1]} integers, each shown at its own contrast.`;
  $("latents").replaceChildren(...latentPictures(codes, shape));
  say(`${title}: done with ${codec.name}.`);
  window.walloc = { file, codes, shape, picture: rows[0].picture, rows };
}

/** Fills one side's list of pictures and shows the named one. */
function offer(side, name) {
  const list = $(`${side}s`);
  list.replaceChildren(...[...panels.keys()].map((key) => new Option(key, key, false, key === name)));
  list.onchange = () => {
    draw($(side), panels.get(list.value));
    $(`${side}-tag`).textContent = list.value;
  };
  list.onchange();
}

/** A lens at the pointer, four times enlarged: its left half of the left picture, its right half of the right one. */
function magnify(event) {
  const lens = $("lens");
  const box = $("left").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const inside = x >= 0 && y >= 0 && x < box.width && y < box.height;
  lens.hidden = !($("magnify").checked && inside) || event.pointerType === "touch";
  if (lens.hidden) return;
  const part = lens.width / 4; // of the picture, in its own pixels
  const left = Math.round((x / box.width) * $("left").width - part / 2);
  const top = Math.round((y / box.height) * $("left").height - part / 2);
  const context = lens.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, lens.width, lens.height);
  const half = lens.width / 2;
  const sides = $("compare").classList.contains("single") ? [["left", 0], ["left", half]] : [["left", 0], ["right", half]];
  for (const [side, at] of sides) {
    // The same place in both halves, so that they can be held against each other.
    context.drawImage($(side), left + part / 4, top, part / 2, part, at, 0, half, lens.height);
  }
  context.fillStyle = "#fff";
  context.fillRect(half - 1, 0, 2, lens.height);
  lens.style.translate = `${x - half}px ${y + (y > box.height / 2 ? -lens.height - 16 : 16)}px`;
}

function latentPictures(codes, [channels, height, width]) {
  return Array.from({ length: channels }, (_, c) => {
    const plane = codes.subarray(c * height * width, (c + 1) * height * width);
    const mean = plane.reduce((sum, code) => sum + code, 0) / plane.length;
    const deviation = Math.sqrt(plane.reduce((sum, code) => sum + (code - mean) ** 2, 0) / plane.length) || 1;
    const image = new ImageData(width, height);
    plane.forEach((code, i) => {
      const level = 128 + (48 * (code - mean)) / deviation;
      image.data.set([level, level, level, 255], 4 * i);
    });
    const canvas = document.createElement("canvas");
    canvas.title = `channel ${c}`;
    draw(canvas, image);
    return canvas;
  });
}

function psnr(original, picture) {
  if (!picture) return null;
  let sum = 0;
  for (let i = 0; i < original.data.length; i++) if (i % 4 < 3) sum += (original.data[i] - picture.data[i]) ** 2;
  return -10 * Math.log10(sum / (original.width * original.height * 3) / 255 ** 2);
}

function facts(entries) {
  $("facts").replaceChildren(
    ...Object.entries(entries).map(([name, value]) => {
      const box = document.createElement("div");
      box.append(Object.assign(document.createElement("dt"), { textContent: name }));
      box.append(Object.assign(document.createElement("dd"), { textContent: value }));
      return box;
    }),
  );
}

/** A row of buttons of which one is chosen. */
function segments(parent, entries, choose) {
  const buttons = entries.map(([value, label], i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(i === 0));
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-checked", String(other === button));
      choose(value);
    });
    return button;
  });
  parent.replaceChildren(...buttons);
}

function draw(canvas, image) {
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function link(anchor, blob, name) {
  URL.revokeObjectURL(anchor.href);
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
}

function size(bytes) {
  return bytes < 1e4 ? `${bytes} B` : `${(bytes / 1000).toFixed(1)} kB`;
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** Lets the browser show what was written before a long computation. */
function painted() {
  return new Promise((resolve) => setTimeout(resolve, 30));
}

$("slider").addEventListener("input", (event) => {
  $("compare").style.setProperty("--at", `${event.target.value / 10}%`);
});
$("compare").addEventListener("pointermove", magnify);
$("compare").addEventListener("pointerleave", () => ($("lens").hidden = true));
$("sample").addEventListener("click", () => {
  enqueue(async () => {
    const answer = await fetch("sample.jpg");
    if (!answer.ok) throw new Error("The sample is not beside this page.");
    await open(new File([await answer.blob()], "sample.jpg"));
  });
});
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) enqueue(() => open(file));
  event.target.value = "";
});
for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) enqueue(() => open(file));
  });
}
enqueue(start);
