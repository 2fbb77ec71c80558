// A codec in the browser: ONNX graphs for the arithmetic, entropy.js for the bytes.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { pack, unpack } from "./container.js";
import { EntropyCoder } from "./entropy.js";

ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;

/** What `models/catalogue.json` lists: {name, label, fingerprint, tables, numLevels, latentBits, ...}. */
export async function loadCatalogue() {
  const response = await fetch("models/catalogue.json");
  if (!response.ok) throw new Error("The codecs are missing: build the page with scripts/build_page.py.");
  return response.json();
}

export class Codec {
  static async load(entry) {
    const read = async (file) => {
      const response = await fetch(`models/${entry.name}/${file}`);
      if (!response.ok) throw new Error(`${file} of ${entry.name} cannot be loaded.`);
      return new Uint8Array(await response.arrayBuffer());
    };
    const graph = async (part) => ort.InferenceSession.create(await read(`${part}.onnx`), { executionProviders: ["wasm"] });
    const codec = new Codec();
    Object.assign(codec, entry);
    codec.patch = 2 ** entry.numLevels;
    codec.coder = new EntropyCoder(await read("tables.safetensors"));
    codec.encoder = await graph("encoder");
    codec.quantizer = await graph("quantizer");
    codec.decoder = await graph("decoder");
    return codec;
  }

  /** ImageData -> {file, codes, shape, milliseconds}. */
  async compress(image, step = 1) {
    const begin = performance.now();
    const { latents } = await this.encoder.run({ pixel_values: toPixels(image, this.patch) });
    const { codes } = await this.quantizer.run({ latents, step: scalar(step) });
    const shape = codes.dims.slice(1);
    const data = new Int8Array(codes.data);
    const { name, fingerprint, tables, numLevels, latentBits, numChannels, latentChannels } = this;
    const sizes = { height: image.height, width: image.width };
    const header = { ...sizes, fingerprint, tables, numLevels, latentBits, numChannels, latentChannels, step, codec: name };
    const file = pack(header, this.coder.encode(data, shape));
    return { file, codes: data, shape, milliseconds: performance.now() - begin };
  }

  /** Bytes of a .walloc file -> {picture, codes, shape, milliseconds}. */
  async decompress(file) {
    const begin = performance.now();
    const { header, payload } = unpack(file);
    for (const field of ["fingerprint", "tables", "numLevels", "latentBits", "numChannels", "latentChannels"]) {
      if (header[field] !== this[field]) throw new Error(`The file was written by another codec than ${this.name}.`);
    }
    const grid = [header.height, header.width].map((size) => Math.ceil(size / this.patch));
    const shape = [this.latentChannels, ...grid];
    const codes = new Int8Array(shape[0] * shape[1] * shape[2]);
    codes.set(this.coder.decode(payload, [header.codedChannels, ...grid]));
    const inputs = { codes: new ort.Tensor("int8", codes, [1, ...shape]), step: scalar(header.step) };
    const { pixel_values: pixels } = await this.decoder.run(inputs);
    const picture = toPicture(pixels, header.height, header.width);
    return { picture, codes, shape, milliseconds: performance.now() - begin };
  }
}

function scalar(value) {
  return new ort.Tensor("float32", Float32Array.of(value), [1]);
}

/** RGB in [-0.5, 0.5], (1, 3, H, W), padded to whole patches by reflection as WallocImageProcessor does. */
function toPixels({ data, width, height }, patch) {
  const [rows, columns] = [height, width].map((size) => padded(size, patch));
  const pixels = new Float32Array(3 * rows.length * columns.length);
  let to = 0;
  for (let c = 0; c < 3; c++) {
    for (const y of rows) for (const x of columns) pixels[to++] = (data[4 * (y * width + x) + c] - 127.5) / 255;
  }
  return new ort.Tensor("float32", pixels, [1, 3, rows.length, columns.length]);
}

/** Where each position of an axis of whole patches comes from. */
function padded(size, patch) {
  const last = size - 1;
  return Int32Array.from({ length: Math.ceil(size / patch) * patch }, (_, i) => {
    return i < size ? i : last - Math.abs((i % Math.max(2 * last, 1)) - last);
  });
}

function toPicture({ data, dims }, height, width) {
  const picture = new ImageData(width, height);
  const [, , rows, columns] = dims;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      // The array rounds half to even and clamps.
      for (let c = 0; c < 3; c++) picture.data[to++] = Math.fround(Math.fround(data[(c * rows + y) * columns + x] + 0.5) * 255);
      picture.data[to++] = 255;
    }
  }
  return picture;
}
