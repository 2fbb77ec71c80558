// The entropy coder of .walloc files: docs/concepts/entropy_coding.md describes it, entropy_coding.py is the reference.
//
// All sums are integers below 2**24, so doubles hold them exactly and the bytes equal Python's.

const INPUT_MAX = 128;
const SHIFTED_CHANNELS = 3;
const BLOCK = 2048; // positions that are coded at once
const WINDOW = 12;
const NUM_SYMBOLS = 26;
const ESCAPE = NUM_SYMBOLS - 1;
const CLASS_SHIFT = [...Array(17).fill(0), 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5];
const TWO_32 = 2 ** 32;

// floor(16 * log2(1 + 2 |code|)) at code & 255: of the largest power of two in (1 + 2 |code|)**16.
const MAGNITUDE = Uint8Array.from({ length: 256 }, (_, i) => {
  return (BigInt(1 + 2 * Math.min(i, 256 - i)) ** 16n).toString(2).length - 1;
});

export class EntropyCoder {
  /** `file`: bytes of a safetensors file, the buffer `entropy_tables` of a checkpoint. */
  constructor(file) {
    const arrays = readSafetensors(file);
    const [format, channels, dims] = arrays.header;
    if (format !== 1 || dims !== 2) throw new Error("these entropy tables are not for images");
    this.channels = channels;
    this.cumulative = cumulative(arrays.frequencies);
    this.groups = [];
    for (let g = 0, first = 0; 2 * g < arrays.plan.length; g++) {
      const [size, halvings] = arrays.plan.subarray(2 * g, 2 * g + 2);
      const passes = lattice(halvings).map((pass, p) => ({ ...pass, ...network(arrays, `network.${g}.${p}.`, size) }));
      this.groups.push({ first, size, passes });
      first += size;
    }
  }

  /** Codes Int8Array of [channels, height, width], C order -> bytes. */
  encode(codes, shape) {
    const area = shape[1] * shape[2];
    const levels = new Uint8Array(shape[0]);
    for (let c = 0; c < shape[0]; c++) {
      let sum = 0;
      for (let i = c * area; i < (c + 1) * area; i++) sum += MAGNITUDE[codes[i] & 255];
      levels[c] = roundHalfEven(sum / area);
    }
    const coder = new RangeEncoder();
    const seen = new Int8Array(codes.length); // what a decoder knows: at the edges of small grids a place is its own neighbour
    this.#walk(shape, levels, seen, (block) => {
      const plain = [];
      const escapes = [];
      block.forEach((place, expected, row) => {
        const shift = CLASS_SHIFT[row >> 3];
        let residual = codes[place] - expected;
        if (shift) {
          residual += (1 << shift) >> 1;
          plain.push(shift, residual & ((1 << shift) - 1));
          residual >>= shift;
        }
        let symbol = residual + WINDOW;
        if (symbol < 0 || symbol >= ESCAPE) {
          symbol = ESCAPE;
          escapes.push(codes[place] + 128);
        }
        coder.symbol(this.cumulative, row * (NUM_SYMBOLS + 1), symbol);
        seen[place] = codes[place];
      });
      for (let i = 0; i < plain.length; i += 2) coder.bits(plain[i], plain[i + 1]);
      for (const code of escapes) coder.bits(8, code);
    });
    const words = coder.finish();
    const out = new Uint8Array(shape[0] + 4 * words.length);
    out.set(levels);
    const view = new DataView(out.buffer);
    words.forEach((word, i) => view.setUint32(shape[0] + 4 * i, word, true));
    return out;
  }

  /** The inverse of `encode`. */
  decode(bytes, shape) {
    const levels = bytes.subarray(0, shape[0]);
    if (levels.length < shape[0] || levels.some((level) => level > INPUT_MAX) || (bytes.length - shape[0]) % 4) {
      throw new Error("the latents are damaged");
    }
    const codes = new Int8Array(shape[0] * shape[1] * shape[2]);
    const coder = new RangeDecoder(bytes.subarray(shape[0]));
    this.#walk(shape, levels, codes, (block) => {
      const wide = [];
      const escapes = [];
      block.forEach((place, expected, row) => {
        const symbol = coder.symbol(this.cumulative, row * (NUM_SYMBOLS + 1));
        const shift = CLASS_SHIFT[row >> 3];
        if (symbol === ESCAPE) escapes.push(place);
        if (shift) wide.push(place, shift, symbol - WINDOW, expected);
        else codes[place] = symbol - WINDOW + expected;
      });
      for (let i = 0; i < wide.length; i += 4) {
        const [place, shift, symbol, expected] = wide.slice(i, i + 4);
        codes[place] = symbol * (1 << shift) - ((1 << shift) >> 1) + coder.bits(shift) + expected;
      }
      for (const place of escapes) codes[place] = coder.bits(8) - 128;
    });
    if (coder.damaged || !coder.exhausted()) throw new Error("the latents are damaged");
    return codes;
  }

  /** Visits all codes in coding order; `code(block)` goes through a block with `block.forEach` and fills in its codes. */
  #walk([channels, height, width], levels, codes, code) {
    if (channels > this.channels) throw new Error("more channels than the entropy tables are for");
    const area = height * width;
    const stride = this.groups.reduce((sum, { first, size }) => sum + planes(first, size), 0);
    const known = new Int16Array(area * stride); // of each position: features from earlier groups
    let count = 0;
    for (const { first, size, passes } of this.groups) {
      if (first >= channels) return;
      const kept = Math.min(size, channels - first);
      const own = { codes, first, kept, area };
      for (const pass of passes) {
        const ny = positions(height, pass.rows);
        const nx = positions(width, pass.columns);
        const predict = predictor({ pass, size, kept, levels, first, known, stride, count, codes, height, width });
        const wide = Math.max(Math.min(nx, BLOCK), 1);
        const tall = Math.max(Math.floor(BLOCK / wide), 1);
        for (let y = 0; y < ny; y += tall) {
          for (let x = 0; x < nx; x += wide) {
            code(blockOf(own, pass, predict, width, y, x, Math.min(tall, ny - y), Math.min(wide, nx - x)));
          }
        }
      }
      if (first + size < channels) {
        append(known, stride, count, codes, first, size, height, width);
        count += planes(first, size);
      }
    }
  }
}

/** Positions of a block with predictions made; a code may only be written when all of them are. */
function blockOf({ first, kept, area }, pass, predict, width, y0, x0, tall, wide) {
  const total = tall * wide;
  const places = new Int32Array(total);
  const expected = new Int16Array(kept * total);
  const rows = new Uint8Array(kept * total);
  for (let t = 0; t < total; t++) {
    const y = pass.rows[0] + (y0 + Math.floor(t / wide)) * pass.rows[1];
    const x = pass.columns[0] + (x0 + (t % wide)) * pass.columns[1];
    places[t] = y * width + x;
    predict(y, x, expected, rows, t, total);
  }
  return {
    forEach(visit) {
      for (let c = 0, i = 0; c < kept; c++) {
        const plane = (first + c) * area;
        for (let t = 0; t < total; t++, i++) visit(plane + places[t], expected[i], rows[i]);
      }
    },
  };
}

/** A function that writes expected values and table rows of the codes at a position. */
function predictor({ pass, size, kept, levels, first, known, stride, count, codes, height, width }) {
  const { weights, bias, second, secondBias, units } = pass;
  const sums = units + size;
  const base = Float64Array.from(bias);
  for (let c = 0; c < kept; c++) for (let m = 0; m < sums; m++) base[m] += levels[first + c] * weights[c * sums + m];
  const acc = new Float64Array(sums);
  const out = new Float64Array(2 * size);
  const area = height * width;
  const [rowsOfLattice, columnsOfLattice] = [height, width].map((n) => Math.ceil(n / pass.stride));
  const add = (value, feature) => {
    for (let m = 0, w = feature * sums; m < sums; m++, w++) acc[m] += value * weights[w];
  };
  return (y, x, expected, rows, t, total) => {
    acc.set(base);
    const here = (y * width + x) * stride;
    for (let f = 0; f < count; f++) if (known[here + f]) add(known[here + f], size + f);
    let feature = size + count;
    for (const [dy, dx] of pass.neighbours) {
      const yy = mirror(Math.floor(y / pass.stride) + dy, rowsOfLattice) * pass.stride;
      const xx = mirror(Math.floor(x / pass.stride) + dx, columnsOfLattice) * pass.stride;
      for (let c = 0, at = first * area + yy * width + xx; c < kept; c++, at += area) {
        if (codes[at]) {
          add(codes[at], feature + c);
          add(MAGNITUDE[codes[at] & 255], feature + size + c);
        }
      }
      feature += 2 * size;
    }
    out.set(secondBias);
    for (let k = 0; k < units; k++) {
      const hidden = clip(Math.floor(acc[k] / 32), 0, 511);
      if (hidden) for (let o = 0, w = k * 2 * size; o < 2 * size; o++, w++) out[o] += hidden * second[w];
    }
    for (let c = 0; c < kept; c++) {
      const eighths = clip(Math.floor((acc[units + c] + out[c]) / 1024), -1024, 1016) + 4;
      expected[c * total + t] = eighths >> 3;
      rows[c * total + t] = (clip(Math.floor(out[size + c] / 32768), 0, 31) << 3) | (eighths & 7);
    }
  };
}

/** What later groups see of a finished group: codes, magnitudes, their means along both axes, codes beside. */
function append(known, stride, count, codes, first, size, height, width) {
  const area = height * width;
  const shifted = Math.min(size, Math.max(SHIFTED_CHANNELS - first, 0));
  for (let y = 0; y < height; y++) {
    const [up, down] = [mirror(y - 1, height) * width, mirror(y + 1, height) * width];
    for (let x = 0; x < width; x++) {
      const [left, right] = [mirror(x - 1, width), mirror(x + 1, width)];
      const sides = [y * width + left, y * width + right, up + x, down + x];
      let to = (y * width + x) * stride + count;
      for (let c = 0; c < size; c++, to++) {
        const plane = (first + c) * area;
        const magnitude = (side) => MAGNITUDE[codes[plane + sides[side]] & 255];
        const value = codes[plane + y * width + x];
        known[to] = value;
        known[to + size] = MAGNITUDE[value & 255];
        known[to + 2 * size] = (magnitude(0) + magnitude(1)) >> 1;
        known[to + 3 * size] = (magnitude(2) + magnitude(3)) >> 1;
      }
      to += 3 * size;
      for (const side of sides) for (let c = 0; c < shifted; c++) known[to++] = codes[(first + c) * area + side];
    }
  }
}

function planes(first, size) {
  return 4 * size + 4 * Math.min(size, Math.max(SHIFTED_CHANNELS - first, 0));
}

/** The passes over a group, as `entropy_context.lattice` draws them. */
function lattice(halvings) {
  const diagonal = [[-1, -1], [-1, 1], [1, -1], [1, 1]];
  const direct = [[0, -1], [0, 1], [-1, 0], [1, 0]];
  const knight = [[-2, -1], [-2, 1], [2, -1], [2, 1]];
  const pass = (rows, columns, stride, neighbours) => ({ rows, columns, stride, neighbours });
  if (halvings === 0) {
    return [pass([0, 1], [0, 2], 1, []), pass([0, 1], [1, 2], 1, [...direct.slice(0, 2), ...diagonal])];
  }
  let step = 1 << halvings;
  const passes = [pass([0, step], [0, step], 1, [])];
  for (; step > 1; step /= 2) {
    const half = step / 2;
    passes.push(pass([half, step], [half, step], half, diagonal));
    passes.push(pass([0, step], [half, step], half, [...direct, ...knight]));
    passes.push(pass([half, step], [0, step], half, [...direct, ...diagonal]));
  }
  return passes;
}

/** Weights by feature: (features, units + size) and (units, 2 size). */
function network(arrays, name, size) {
  const [hidden, exponents, direct, second, bias] = ["hidden", "exponents", "direct", "second", "bias"].map(
    (part) => arrays[name + part],
  );
  const features = exponents.length;
  const units = features ? hidden.length / features : bias.length - 3 * size;
  const sums = units + size;
  const weights = new Float64Array(features * sums);
  for (let f = 0; f < features; f++) {
    for (let k = 0; k < units; k++) weights[f * sums + k] = hidden[k * features + f] * 2 ** exponents[f];
    for (let c = 0; c < size; c++) weights[f * sums + units + c] = direct[c * features + f];
  }
  const transposed = new Float64Array(units * 2 * size);
  for (let o = 0; o < 2 * size; o++) {
    for (let k = 0; k < units; k++) transposed[k * 2 * size + o] = second[o * units + k];
  }
  return { units, weights, bias: bias.subarray(0, sums), second: transposed, secondBias: bias.subarray(sums) };
}

/** Rows of frequencies -> rows of 27 cumulative ones that end at 2**24, as constriction's `perfect=False` makes them. */
function cumulative(frequencies) {
  const rows = frequencies.length / NUM_SYMBOLS;
  const out = new Uint32Array(rows * (NUM_SYMBOLS + 1));
  for (let row = 0; row < rows; row++) {
    const values = frequencies.subarray(row * NUM_SYMBOLS, (row + 1) * NUM_SYMBOLS);
    const scale = Math.fround((2 ** 24 - NUM_SYMBOLS) / values.reduce((a, b) => a + b, 0));
    let sum = 0;
    for (let i = 0; i < NUM_SYMBOLS; i++) {
      out[row * (NUM_SYMBOLS + 1) + i] = Math.floor(Math.fround(sum * scale)) + i;
      sum += values[i];
    }
    out[row * (NUM_SYMBOLS + 1) + NUM_SYMBOLS] = 2 ** 24;
  }
  return out;
}

const product = [0, 0]; // high and low 32 bits

/** Product of a number below 2**40 and one of at most 2**24, in exact doubles. */
function multiply(scale, factor) {
  const high = Math.floor(scale / 2 ** 20) * factor; // counts 2**20
  const low = (scale % 2 ** 20) * factor;
  const bottom = (high % 4096) * 2 ** 20 + (low % TWO_32);
  product[0] = Math.floor(high / 4096) + Math.floor(low / TWO_32) + Math.floor(bottom / TWO_32);
  product[1] = bottom % TWO_32;
}

// The range coder of constriction: 32-bit words, 64-bit state as two halves, 24-bit probabilities.
class RangeEncoder {
  #words = [];
  #lower = [0, 0];
  #range = [TWO_32 - 1, TWO_32 - 1];
  #held = 0; // words that a carry may still change
  #firstHeld = 0;
  #started = false;

  symbol(cumulative, row, symbol) {
    this.#put(cumulative[row + symbol], cumulative[row + symbol + 1]);
  }

  bits(count, value) {
    const width = 2 ** (24 - count);
    this.#put(value * width, (value + 1) * width);
  }

  finish() {
    if (!this.#started) return this.#words;
    const [lower, range] = [this.#lower, this.#range];
    const low = lower[1] + TWO_32 - 1;
    let high = lower[0] + Math.floor(low / TWO_32);
    if (this.#held) this.#release(high >= TWO_32);
    high %= TWO_32;
    this.#words.push(high);
    const end = lower[0] + range[0] + Math.floor((lower[1] + range[1]) / TWO_32);
    if (end % TWO_32 === high) this.#words.push(0);
    return this.#words;
  }

  #put(from, to) {
    this.#started = true;
    const [lower, range] = [this.#lower, this.#range];
    const scale = range[0] * 256 + Math.floor(range[1] / 2 ** 24);
    multiply(scale, from);
    const low = lower[1] + product[1];
    const high = lower[0] + product[0] + (low >= TWO_32 ? 1 : 0);
    const carry = high >= TWO_32;
    multiply(scale, to - from);
    [range[0], range[1]] = product;
    lower[0] = high % TWO_32;
    lower[1] = low % TWO_32;
    if (this.#held && !this.#wraps()) {
      this.#release(carry);
      this.#held = 0;
    }
    if (range[0] === 0) {
      const word = lower[0];
      [lower[0], lower[1]] = [lower[1], 0];
      [range[0], range[1]] = [range[1], 0];
      if (this.#held) this.#held++;
      else if (!this.#wraps()) this.#words.push(word);
      else [this.#held, this.#firstHeld] = [1, word];
    }
  }

  #wraps() {
    const [lower, range] = [this.#lower, this.#range];
    return lower[0] + range[0] + (lower[1] + range[1] >= TWO_32 ? 1 : 0) >= TWO_32;
  }

  #release(carry) {
    this.#words.push((this.#firstHeld + (carry ? 1 : 0)) % TWO_32);
    for (let i = 1; i < this.#held; i++) this.#words.push(carry ? 0 : TWO_32 - 1);
  }
}

class RangeDecoder {
  #view;
  #next = 0;
  #past = [0, 0]; // point - lower
  #range = [TWO_32 - 1, TWO_32 - 1];
  #started = false;
  damaged = false;

  constructor(bytes) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#past = [this.#word(), this.#word()];
  }

  symbol(cumulative, row) {
    const scale = this.#scale();
    const at = this.#quantile(scale);
    let symbol = 0;
    while (cumulative[row + symbol + 1] <= at) symbol++;
    this.#take(scale, cumulative[row + symbol], cumulative[row + symbol + 1]);
    return symbol;
  }

  bits(count) {
    const width = 2 ** (24 - count);
    const scale = this.#scale();
    const value = Math.floor(this.#quantile(scale) / width);
    this.#take(scale, value * width, (value + 1) * width);
    return value;
  }

  exhausted() {
    if (this.#next < this.#view.byteLength) return false;
    return !this.#started || this.#past[0] < 1 || (this.#past[0] === 1 && this.#past[1] < TWO_32 - 1);
  }

  #scale() {
    return this.#range[0] * 256 + Math.floor(this.#range[1] / 2 ** 24);
  }

  #quantile(scale) {
    const [high, low] = this.#past;
    // Rounding in the quotient of doubles is at most one off.
    let at = Math.floor((high * TWO_32 + low) / scale);
    multiply(scale, at);
    if (product[0] > high || (product[0] === high && product[1] > low)) at--;
    else {
      multiply(scale, at + 1);
      if (product[0] < high || (product[0] === high && product[1] <= low)) at++;
    }
    if (at < 2 ** 24) return at;
    this.damaged = true;
    return 2 ** 24 - 1;
  }

  #take(scale, from, to) {
    this.#started = true;
    multiply(scale, from);
    let low = this.#past[1] - product[1];
    let high = this.#past[0] - product[0] - (low < 0 ? 1 : 0);
    if (low < 0) low += TWO_32;
    if (high < 0) high += TWO_32;
    multiply(scale, to - from);
    let range = [product[0], product[1]];
    if (range[0] === 0) {
      range = [range[1], 0];
      [high, low] = [low, this.#word()];
    }
    this.#range = range;
    this.#past = [high, low];
  }

  #word() {
    if (this.#next >= this.#view.byteLength) return 0;
    this.#next += 4;
    return this.#view.getUint32(this.#next - 4, true);
  }
}

function positions(size, [start, step]) {
  return size > start ? Math.ceil((size - start) / step) : 0;
}

function mirror(index, count) {
  const inside = Math.abs(index);
  return clip(inside > count - 1 ? 2 * (count - 1) - inside : inside, 0, count - 1);
}

function clip(value, low, high) {
  return value < low ? low : value > high ? high : value;
}

function roundHalfEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

const TYPES = { I8: Int8Array, U8: Uint8Array, I16: Int16Array, U16: Uint16Array, I32: Int32Array, F32: Float32Array };

/** Arrays by name of a safetensors file. */
export function readSafetensors(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  const arrays = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = entry.data_offsets;
    arrays[name] = new TYPES[entry.dtype](file.slice(start + from, start + to).buffer); // a copy, for its alignment
  }
  return arrays;
}
