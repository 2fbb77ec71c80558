// The .walloc container of images: docs/concepts/format.md describes it, bitstream.py is the reference.

const MAGIC = [0x89, 0x57, 0x4c, 0x43];
const HAS_STEP = 1;
const HAS_CODED_CHANNELS = 2;
const HAS_SAMPLE_FORMAT = 8;
const HAS_SIDE_DATA = 32; // transparency and a colour profile, which the page does not show
const MAX_PIXELS = 178_956_970;

/** Header fields and payload -> the bytes of a file. `fingerprint` and `tables` are hexadecimal. */
export function pack(header, payload) {
  const { height, width, step = 1, codec = "", sampleFormat = 0 } = header;
  const flags = (step === 1 ? 0 : HAS_STEP) | (sampleFormat ? HAS_SAMPLE_FORMAT : 0);
  const name = new TextEncoder().encode(codec);
  const bytes = [...MAGIC, 1, 0x11, flags];
  bytes.push(...fromHex(header.fingerprint), ...fromHex(header.tables), header.numLevels, header.latentBits);
  bytes.push(...varint(height), ...varint(width), ...varint(header.numChannels), ...varint(header.latentChannels));
  if (step !== 1) bytes.push(...new Uint8Array(new Float32Array([step]).buffer));
  if (sampleFormat) bytes.push(...varint(sampleFormat));
  bytes.push(...varint(name.length), ...name);
  const file = new Uint8Array(bytes.length + payload.length + 4);
  file.set(bytes);
  file.set(payload, bytes.length);
  const view = new DataView(file.buffer);
  view.setUint32(file.length - 4, crc32(file.subarray(0, -4)), true);
  return file;
}

/** The inverse; throws an Error that says what is wrong. */
export function unpack(file) {
  if (file.length < 25 || MAGIC.some((byte, i) => file[i] !== byte)) throw new Error("This is no .walloc file.");
  if (file[4] !== 1) throw new Error(`Version ${file[4]} of the format is not supported.`);
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (view.getUint32(file.length - 4, true) !== crc32(file.subarray(0, -4))) {
    throw new Error("The file is damaged or truncated: its checksum does not match.");
  }
  const kind = { 1: "an image", 2: "audio", 3: "a volume or a video" }[file[5] & 15];
  if (!kind) throw new Error("The file holds a kind of signal that this page does not know.");
  if (kind !== "an image") throw new Error(`The file holds ${kind}; this page opens images.`);
  const known = HAS_STEP | HAS_CODED_CHANNELS | HAS_SAMPLE_FORMAT | HAS_SIDE_DATA;
  if (file[5] >> 4 !== 1 || file[6] & ~known || file[19] >> 4) {
    throw new Error("The file's header has fields that this page does not know.");
  }
  let at = 21;
  const end = file.length - 4;
  const take = (count) => {
    if (at + count > end) throw new Error("The header is longer than the file.");
    at += count;
    return at - count;
  };
  const number = () => {
    for (let value = 0, unit = 1; unit < 2 ** 35; unit *= 128) {
      const byte = file[take(1)];
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
    throw new Error("A number in the header is too long.");
  };
  const header = {
    fingerprint: toHex(file.subarray(7, 15)),
    tables: toHex(file.subarray(15, 19)),
    numLevels: file[19],
    latentBits: file[20],
    height: number(),
    width: number(),
    numChannels: number(),
    latentChannels: number(),
  };
  header.codedChannels = file[6] & HAS_CODED_CHANNELS ? number() : header.latentChannels;
  header.step = file[6] & HAS_STEP ? view.getFloat32(take(4), true) : 1;
  header.sampleFormat = file[6] & HAS_SAMPLE_FORMAT ? number() : 0;
  if (file[6] & HAS_SIDE_DATA) take(number());
  const length = number();
  const start = take(length);
  header.codec = new TextDecoder().decode(file.subarray(start, start + length));
  if (!(header.height > 0 && header.width > 0 && header.height * header.width <= MAX_PIXELS && header.step >= 1)) {
    throw new Error("The header states an impossible size or step.");
  }
  return { header, payload: file.subarray(at, end) };
}

function varint(value) {
  const out = [];
  for (; value > 127; value = Math.floor(value / 128)) out.push((value % 128) | 128);
  return [...out, value];
}

function fromHex(text) {
  return text.match(/../g).map((pair) => parseInt(pair, 16));
}

function toHex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
