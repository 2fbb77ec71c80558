// The entropy coder's inner loops: the same bytes and the same codes as `entropy_coding.py`, which explains the format.
//
// Positions are visited one after another. Everything known of a position lies side by side, 16 bits per channel (code
// and magnitude), so the features of a place are a few short runs of memory. Most of them are zero in smooth regions:
// only the others are listed and multiplied, two features (16-bit weights) in one instruction. All sums are exact
// integers below 2**24 (`Network` proves it), so their order does not matter.
//
// What is read from outside is the bytes alone, through `RangeDecoder::word`, which knows where they end; all indices
// follow from the shape and from tables that `codec/entropy_kernel.py` has built.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

constexpr int kBlock = 2048;      // positions coded at once: entropy_context.BLOCK
constexpr int kWindow = 12;       // residuals -12..12 have symbols of their own, the last symbol is an escape
constexpr int kEscape = 25;
constexpr int kRowLength = 32;    // cumulative frequencies of a row: 27, then 2**24
constexpr int kPrecision = 24;
constexpr int kShifted = 3;       // channels whose neighbours' codes are features
constexpr int kMaxGroup = 16;
constexpr int kMaxSums = 272;     // 255 hidden units, padded, and a group
constexpr int kBatch = 8;
constexpr int kLanes = 8;
constexpr int kMaxTile = 12;      // vectors of sums that stay in registers

// Two numbers of 16 bits in one of 32.
inline int32_t pack(int32_t low, int32_t high) {
    return static_cast<int32_t>(static_cast<uint32_t>(low & 0xffff) | static_cast<uint32_t>(high) << 16);
}

inline int clip(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// Eight at a time: `Sums` of 32 bits, and what makes their inputs. All of it reads and writes whole vectors, so the
// arrays have `kLanes` entries to spare behind their ends.
#if defined(__AVX2__)

using Vector = __m256i;
inline Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const Vector*>(p)); }
inline void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<Vector*>(p), v); }
inline Vector load_known(const uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

struct Sums {
    Vector v;
    static Sums read(const int32_t* p) { return {load(p)}; }
    void write(int32_t* p) const { store(p, v); }
    void add(const int16_t* weights, Vector pair) { v = _mm256_add_epi32(v, _mm256_madd_epi16(load(weights), pair)); }
};
using Pair = Vector;
inline Pair broadcast(int32_t pair) { return _mm256_set1_epi32(pair); }

// (code, magnitude) of eight channels.
inline void expand(const uint16_t* known, int32_t* pairs) {
    const Vector both = load_known(known);
    const Vector code = _mm256_srli_epi32(_mm256_srai_epi32(_mm256_slli_epi32(both, 24), 8), 16);
    store(pairs, _mm256_or_si256(code, _mm256_slli_epi32(_mm256_srli_epi32(both, 8), 16)));
}

// Mean magnitudes of both pairs of sides.
inline void average(const uint16_t* const sides[4], int at, int32_t* pairs) {
    Vector magnitude[4];
    for (int i = 0; i < 4; i++) magnitude[i] = _mm256_srli_epi32(load_known(sides[i] + at), 8);
    const Vector low = _mm256_srli_epi32(_mm256_add_epi32(magnitude[0], magnitude[1]), 1);
    const Vector high = _mm256_srli_epi32(_mm256_add_epi32(magnitude[2], magnitude[3]), 1);
    store(pairs, _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
}

inline Vector ramp(const int32_t* sums) {
    const Vector v = _mm256_srai_epi32(load(sums), 5);
    return _mm256_min_epi32(_mm256_max_epi32(v, _mm256_setzero_si256()), _mm256_set1_epi32(511));
}

// Eight pairs of hidden units of sixteen sums.
inline void activate(const int32_t* sums, int32_t* pairs) {
    store(pairs, _mm256_or_si256(ramp(sums), _mm256_slli_epi32(ramp(sums + kLanes), 16)));
}

// For each mask of eight bits, the positions of the bits that are set.
struct Positions {
    uint8_t of[256][8];
};
constexpr Positions make_positions() {
    Positions positions{};
    for (int mask = 0; mask < 256; mask++)
        for (int i = 0, n = 0; i < 8; i++)
            if (mask >> i & 1) positions.of[mask][n++] = static_cast<uint8_t>(i);
    return positions;
}
alignas(64) constexpr Positions kPositions = make_positions();

// Of eight pairs from number `row` on, append those that are not zero; how many.
inline int compact(const int32_t* pairs, int row, int32_t* values, int32_t* rows) {
    const Vector v = load(pairs);
    const Vector zero = _mm256_cmpeq_epi32(v, _mm256_setzero_si256());
    const unsigned mask = 255u & ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(zero)));
    const Vector order =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPositions.of[mask])));
    store(values, _mm256_permutevar8x32_epi32(v, order));
    store(rows, _mm256_add_epi32(order, _mm256_set1_epi32(row)));
    return __builtin_popcount(mask);
}

// How many of the entries 1..25 of a row are not above `at`.
inline int find(const uint32_t* cumulative, uint32_t at) {
    const Vector limit = _mm256_set1_epi32(static_cast<int>(at));
    Vector above = _mm256_cmpgt_epi32(load(cumulative + 1), limit);
    above = _mm256_add_epi32(above, _mm256_cmpgt_epi32(load(cumulative + 9), limit));
    above = _mm256_add_epi32(above, _mm256_cmpgt_epi32(load(cumulative + 17), limit));
    const Vector bytes = _mm256_abs_epi32(above);
    // At most 3 in each of the eight: their sum by one multiplication.
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    const uint64_t two = static_cast<uint64_t>(_mm_cvtsi128_si64(quarter));
    return 24 - static_cast<int>((two + (two >> 32)) & 31) + (cumulative[25] <= at);
}

#else

struct Pair {
    int32_t low, high;
};
inline Pair broadcast(int32_t pair) { return {static_cast<int16_t>(pair & 0xffff), pair >> 16}; }

struct Sums {
    int32_t v[kLanes];
    static Sums read(const int32_t* p) {
        Sums s;
        std::memcpy(s.v, p, sizeof s.v);
        return s;
    }
    void write(int32_t* p) const { std::memcpy(p, v, sizeof v); }
    void add(const int16_t* weights, Pair pair) {
        for (int i = 0; i < kLanes; i++) v[i] += weights[2 * i] * pair.low + weights[2 * i + 1] * pair.high;
    }
};

inline void expand(const uint16_t* known, int32_t* pairs) {
    for (int i = 0; i < kLanes; i++) pairs[i] = pack(static_cast<int8_t>(known[i] & 255), known[i] >> 8);
}

inline void average(const uint16_t* const sides[4], int at, int32_t* pairs) {
    for (int i = 0; i < kLanes; i++)
        pairs[i] = pack(((sides[0][at + i] >> 8) + (sides[1][at + i] >> 8)) >> 1,
                        ((sides[2][at + i] >> 8) + (sides[3][at + i] >> 8)) >> 1);
}

inline void activate(const int32_t* sums, int32_t* pairs) {
    for (int i = 0; i < kLanes; i++)
        pairs[i] = pack(clip(sums[i] >> 5, 0, 511), clip(sums[i + kLanes] >> 5, 0, 511));
}

inline int compact(const int32_t* pairs, int row, int32_t* values, int32_t* rows) {
    int count = 0;
    for (int i = 0; i < kLanes; i++) {  // written always, counted if not zero: branches would be mispredicted
        values[count] = pairs[i];
        rows[count] = row + i;
        count += pairs[i] != 0;
    }
    return count;
}

inline int find(const uint32_t* cumulative, uint32_t at) {
    int count = 0;
    for (int i = 1; i <= 25; i++) count += cumulative[i] <= at;
    return count;
}

#endif

// Pairs of inputs of a layer. Those that are not zero are listed with the rows of weights that belong to them.
struct Inputs {
    std::vector<int32_t> values, rows;
    int count = 0;

    explicit Inputs(size_t most) : values(most + 2 * kLanes), rows(most + 2 * kLanes) {}

    // `pairs` has whole vectors, filled up with zeros.
    void list(const int32_t* pairs, int size) {
        int n = 0;
        for (int i = 0; i < size; i += kLanes) n += compact(pairs + i, i, values.data() + n, rows.data() + n);
        count = n;
    }
};

// The indices are a parameter pack, so that compilers keep all sums in registers.
template <int... K>
void accumulate_tile(std::integer_sequence<int, K...>, const Inputs& inputs, const int16_t* weights, int row_length,
                     const int32_t* bias, int32_t* out) {
    Sums sums[] = {Sums::read(bias + kLanes * K)...};
    const int32_t* values = inputs.values.data();
    const int32_t* rows = inputs.rows.data();
    for (int i = 0; i < inputs.count; i++) {
        const int16_t* row = weights + static_cast<ptrdiff_t>(rows[i]) * row_length;
        const Pair pair = broadcast(values[i]);
        (sums[K].add(row + 2 * kLanes * K, pair), ...);
    }
    (sums[K].write(out + kLanes * K), ...);
}

// out = bias + weights.T @ inputs, `count` sums, a multiple of 8.
void accumulate(const Inputs& inputs, const int16_t* weights, int count, const int32_t* bias, int32_t* out) {
    for (int done = 0; done < count;) {
        const int left = (count - done) / kLanes;
        const int tile = left < kMaxTile ? left : kMaxTile;
        const int16_t* w = weights + 2 * done;
        switch (tile) {
#define TILE(N) \
    case N:                                                                                                        \
        accumulate_tile(std::make_integer_sequence<int, N>(), inputs, w, 2 * count, bias + done, out + done); \
        break;
            TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#undef TILE
        }
        done += tile * kLanes;
    }
}

// Where position i of a line of n is mirrored to, as numpy's "reflect" does once.
inline int mirror(int i, int n) {
    if (i < 0) i = -i;
    if (i > n - 1) i = 2 * (n - 1) - i;
    return clip(i, 0, n - 1);
}

// The range coder of `constriction` with 64-bit state and 32-bit words: its words, bit by bit.
class RangeDecoder {
public:
    RangeDecoder(const uint8_t* data, int64_t size) : next_(data), end_(data + size) {
        point_ = word() << 32;
        point_ |= word();
    }

    // The symbol of a row of cumulative frequencies.
    int symbol(const uint32_t* cumulative) {
        const uint64_t scale = range_ >> kPrecision;
        const uint32_t at = quantile(scale);
        const int symbol = find(cumulative, at);
        take(scale, cumulative[symbol], cumulative[symbol + 1]);
        return symbol;
    }

    // A number of that many equally likely bits.
    int bits(int count) {
        const uint64_t scale = range_ >> kPrecision;
        const int shift = kPrecision - count;
        const uint32_t value = quantile(scale) >> shift;
        take(scale, value << shift, (value + 1) << shift);
        return static_cast<int>(value);
    }

    bool damaged() const { return damaged_; }
    bool exhausted() const { return next_ == end_ && (range_ == ~uint64_t{0} || point_ - lower_ < (uint64_t{1} << 33) - 1); }

private:
    uint64_t word() {
        if (next_ == end_) return 0;  // sizes are multiples of 4
        const uint64_t value = next_[0] | next_[1] << 8 | next_[2] << 16 | static_cast<uint32_t>(next_[3]) << 24;
        next_ += 4;
        return value;
    }

    uint32_t quantile(uint64_t scale) {
        const uint64_t at = (point_ - lower_) / scale;
        if (at >> kPrecision) {
            damaged_ = true;
            return (1u << kPrecision) - 1;
        }
        return static_cast<uint32_t>(at);
    }

    void take(uint64_t scale, uint32_t from, uint32_t to) {
        lower_ += scale * from;
        range_ = scale * (to - from);
        if (range_ >> 32 == 0) {
            lower_ <<= 32;
            range_ <<= 32;
            point_ = point_ << 32 | word();
        }
    }

    uint64_t lower_ = 0, range_ = ~uint64_t{0}, point_ = 0;
    const uint8_t *next_, *end_;
    bool damaged_ = false;
};

class RangeEncoder {
public:
    RangeEncoder(uint8_t* data, int64_t size) : begin_(data), next_(data), end_(data + size) {}

    void symbol(const uint32_t* cumulative, int symbol) { put(cumulative[symbol], cumulative[symbol + 1]); }

    void bits(int count, uint32_t value) {
        const int shift = kPrecision - count;
        put(value << shift, (value + 1) << shift);
    }

    // Writes what identifies the last interval; bytes in all.
    int64_t finish() {
        if (range_ == ~uint64_t{0}) return 0;
        const uint64_t point = lower_ + 0xffffffffu;
        if (held_) release(point < lower_);
        word(point >> 32);
        if ((lower_ + range_) >> 32 == point >> 32) word(0);
        return next_ - begin_;
    }

    bool full() const { return full_; }

private:
    void put(uint32_t from, uint32_t to) {
        const uint64_t scale = range_ >> kPrecision;
        const uint64_t lower = lower_ + scale * from;
        range_ = scale * (to - from);
        // Words are held back while a carry may still change them.
        if (held_ && lower + range_ > lower) {
            release(lower < lower_);
            held_ = 0;
        }
        lower_ = lower;
        if (range_ >> 32 == 0) {
            const uint64_t high = lower_ >> 32;
            lower_ <<= 32;
            range_ <<= 32;
            if (held_) {
                held_++;
            } else if (lower_ + range_ > lower_) {
                word(high);
            } else {
                held_ = 1;
                first_held_ = high;
            }
        }
    }

    void release(bool carry) {
        word(first_held_ + carry);
        for (uint64_t i = 1; i < held_; i++) word(carry ? 0 : 0xffffffffu);
    }

    void word(uint64_t value) {
        if (end_ - next_ < 4) {
            full_ = true;
            return;
        }
        for (int i = 0; i < 4; i++) next_[i] = static_cast<uint8_t>(value >> 8 * i);
        next_ += 4;
    }

    uint64_t lower_ = 0, range_ = ~uint64_t{0}, held_ = 0, first_held_ = 0;
    uint8_t *begin_, *next_, *end_;
    bool full_ = false;
};

// Codes of one item while they are coded.
class Walk {
public:
    Walk(const Tables& tables, int channels, int height, int width, const uint8_t* levels)
        : tables_(tables), channels_(channels), height_(height), width_(width), levels_(levels),
          known_(static_cast<size_t>(channels) * height * width + kLanes), inputs_(most_inputs()),
          expected_(kMaxGroup * kBlock), rows_(kMaxGroup * kBlock), values_(kMaxGroup * kBlock) {}

    Status decode(RangeDecoder& decoder, int8_t* codes) {
        visit([&](const Block& block) { return decode_block(decoder, block, codes); });
        if (decoder.damaged()) return kDamaged;
        return decoder.exhausted() ? kOk : kLeftOver;
    }

    Status encode(RangeEncoder& encoder, const int8_t* codes) {
        const size_t plane = static_cast<size_t>(height_) * width_;
        for (int c = 0; c < channels_; c++)
            for (size_t i = 0; i < plane; i++) known_[i * channels_ + c] = entry(codes[c * plane + i]);
        visit([&](const Block& block) { return encode_block(encoder, block, codes); });
        return encoder.full() ? kNoSpace : kOk;
    }

private:
    // Positions of a pass: rows from `y` on, columns from `x` on, counted on the grid of the pass.
    struct Block {
        const Group& group;
        const Pass& pass;
        int kept, y, x, height, width;
        int count() const { return height * width; }
    };

    // What is known of a code: itself and its magnitude.
    uint16_t entry(int8_t code) const {
        const uint8_t index = static_cast<uint8_t>(code);
        return static_cast<uint16_t>(index | tables_.magnitude[index] << 8);
    }

    int most_inputs() const {
        int most = 0;
        for (int g = 0; g < tables_.num_groups; g++) {
            const Group& group = tables_.groups[g];
            for (int p = 0; p < group.num_passes; p++) {
                const Pass& pass = group.passes[p];
                const int features = 2 * group.first + 2 * kShifted + pass.num_neighbours * group.size;
                if (features > most) most = features;
                if (pass.hidden / 2 > most) most = pass.hidden / 2;
            }
        }
        return most;
    }

    // Calls code(block), which says whether to go on, for all blocks in the order of coding, with predictions made.
    template <class Code>
    void visit(Code code) {
        for (int g = 0; g < tables_.num_groups; g++) {
            const Group& group = tables_.groups[g];
            if (group.first >= channels_) return;
            const int left = channels_ - group.first;
            const int kept = group.size < left ? group.size : left;
            for (int p = 0; p < group.num_passes; p++) {
                const Pass& pass = group.passes[p];
                const int ny = positions(height_, pass.row_start, pass.row_step);
                const int nx = positions(width_, pass.column_start, pass.column_step);
                if (ny == 0 || nx == 0) continue;
                prepare(group, pass, kept, nx);
                const int width = nx < kBlock ? nx : kBlock, height = kBlock / width;
                for (int y = 0; y < ny; y += height)
                    for (int x = 0; x < nx; x += width) {
                        const Block block{group, pass, kept, y, x, ny - y < height ? ny - y : height,
                                          nx - x < width ? nx - x : width};
                        predict(block);
                        if (!code(block)) return;
                    }
            }
        }
    }

    static int positions(int size, int start, int step) { return size > start ? (size - start + step - 1) / step : 0; }

    static bool in_pass(int at, int start, int step) { return at >= start && (at - start) % step == 0; }

    // The bias with the levels' share, and the columns of the neighbours.
    void prepare(const Group& group, const Pass& pass, int kept, int nx) {
        bias_.assign(pass.first_bias, pass.first_bias + pass.sums);
        for (int i = 0; i < kept; i++)
            for (int k = 0; k < pass.sums; k++) bias_[k] += levels_[group.first + i] * pass.levels[i * pass.sums + k];
        const int count = (width_ + pass.stride - 1) / pass.stride;
        narrow_ = count == 1 || height_ <= pass.stride;
        columns_.resize(static_cast<size_t>(pass.num_neighbours) * nx);
        for (int q = 0; q < pass.num_neighbours; q++)
            for (int x = 0; x < nx; x++) {
                const int at = (pass.column_start + x * pass.column_step) / pass.stride + pass.neighbours[2 * q + 1];
                columns_[static_cast<size_t>(q) * nx + x] = mirror(at, count) * pass.stride;
            }
        columns_per_neighbour_ = nx;
        const int features = 2 * group.first + 2 * std::min(group.first, kShifted) + pass.num_neighbours * group.size;
        num_pairs_ = (features + kLanes - 1) / kLanes * kLanes + kLanes;
        pairs_.resize(static_cast<size_t>(kBatch) * num_pairs_ + 2 * kLanes);
    }

    // Expected values and rows of the table of all codes of a block.
    void predict(const Block& block) {
        const Pass& pass = block.pass;
        const int rows_of_lattice = (height_ + pass.stride - 1) / pass.stride;
        int rows[16];
        int t = 0;
        for (int j = 0; j < block.height; j++) {
            const int y = pass.row_start + (block.y + j) * pass.row_step;
            for (int q = 0; q < pass.num_neighbours; q++)
                rows[q] = mirror(y / pass.stride + pass.neighbours[2 * q], rows_of_lattice) * pass.stride;
            // In batches: what was just written in pieces is slow to read as a whole.
            for (int i = 0; i < block.width; i += kBatch) {
                const int count = std::min(kBatch, block.width - i);
                for (int k = 0; k < count; k++) collect(block, rows, y, block.x + i + k, pairs_.data() + k * num_pairs_);
                for (int k = 0; k < count; k++, t++) {
                    inputs_.list(pairs_.data() + k * num_pairs_, num_pairs_ - kLanes);
                    run_network(block, t);
                }
            }
        }
    }

    // All pairs of features of the position in row y and column x of the pass, then zeros.
    void collect(const Block& block, const int rows[], int y, int x, int32_t* pairs) const {
        const Pass& pass = block.pass;
        const int size = block.group.size;
        pairs = collect_earlier(block.group.first, y, pass.column_start + x * pass.column_step, pairs);
        const int32_t* column = columns_.data() + x;
        for (int q = 0; q < pass.num_neighbours; q++, column += columns_per_neighbour_, pairs += size) {
            // Along an axis with one known position a neighbour may be the position itself, of which nothing is known.
            if (narrow_ && in_pass(rows[q], pass.row_start, pass.row_step) &&
                in_pass(*column, pass.column_start, pass.column_step)) {
                std::fill_n(pairs, size, 0);
                continue;
            }
            const uint16_t* known = row(rows[q]) + static_cast<size_t>(*column) * channels_ + block.group.first;
            expand(known, pairs);
            if (size > kLanes) expand(known + kLanes, pairs + kLanes);
            for (int c = block.kept; c < size; c++) pairs[c] = 0;
        }
        std::fill_n(pairs, kLanes, 0);
    }

    const uint16_t* row(int y) const { return known_.data() + static_cast<size_t>(y) * width_ * channels_; }

    // Features from the channels of earlier groups: theirs here, mean magnitudes and codes beside. Where they end.
    int32_t* collect_earlier(int count, int y, int x, int32_t* pairs) const {
        if (count == 0) return pairs;
        const uint16_t* here = row(y) + static_cast<size_t>(x) * channels_;
        for (int c = 0; c < count; c += kLanes) expand(here + c, pairs + c);
        pairs += count;
        const uint16_t* sides[4];
        sides[0] = row(y) + static_cast<size_t>(mirror(x - 1, width_)) * channels_;
        sides[1] = row(y) + static_cast<size_t>(mirror(x + 1, width_)) * channels_;
        if (tables_.num_dims == 2) {
            sides[2] = row(mirror(y - 1, height_)) + static_cast<size_t>(x) * channels_;
            sides[3] = row(mirror(y + 1, height_)) + static_cast<size_t>(x) * channels_;
        } else {
            sides[2] = row(y) + static_cast<size_t>(mirror(x - 2, width_)) * channels_;
            sides[3] = row(y) + static_cast<size_t>(mirror(x + 2, width_)) * channels_;
        }
        for (int c = 0; c < count; c += kLanes) average(sides, c, pairs + c);
        pairs += count;
        for (int c = 0; c < kShifted && c < count; c++)
            for (int axis = 0; axis < 2; axis++)
                *pairs++ = pack(static_cast<int8_t>(sides[2 * axis][c] & 255),
                                static_cast<int8_t>(sides[2 * axis + 1][c] & 255));
        return pairs;
    }

    void run_network(const Block& block, int t) {
        const Pass& pass = block.pass;
        alignas(32) int32_t sums[kMaxSums], hidden[kMaxSums / 2], outputs[2 * kMaxGroup];
        accumulate(inputs_, pass.first, pass.sums, bias_.data(), sums);
        for (int k = 0; k < pass.hidden; k += 2 * kLanes) activate(sums + k, hidden + k / 2);
        inputs_.list(hidden, pass.hidden / 2);
        accumulate(inputs_, pass.second, pass.outputs, pass.second_bias, outputs);
        const int size = block.group.size;
        for (int c = 0; c < block.kept; c++) {
            const int eighths = clip((sums[pass.hidden + c] + outputs[c]) >> 10, -1024, 1016) + 4;
            expected_[c * kBlock + t] = static_cast<int16_t>(eighths >> 3);
            rows_[c * kBlock + t] =
                static_cast<uint8_t>(clip(outputs[size + c] >> 15, 0, 31) << 3 | (eighths & 7));
        }
    }

    bool decode_block(RangeDecoder& decoder, const Block& block, int8_t* codes) {
        const int count = block.count();
        escapes_.clear();
        bool wide = false;
        for (int c = 0; c < block.kept; c++)
            for (int t = c * kBlock; t < c * kBlock + count; t++) {
                const int symbol = decoder.symbol(tables_.cumulative + rows_[t] * kRowLength);
                if (symbol == kEscape) escapes_.push_back(t);
                wide |= tables_.shift[rows_[t]] != 0;
                values_[t] = static_cast<int16_t>(symbol - kWindow);
            }
        if (decoder.damaged()) return false;
        if (wide)
            for (int c = 0; c < block.kept; c++)
                for (int t = c * kBlock; t < c * kBlock + count; t++)
                    if (const int shift = tables_.shift[rows_[t]])
                        values_[t] = static_cast<int16_t>(values_[t] * (1 << shift) - (1 << shift >> 1) +
                                                          decoder.bits(shift));
        for (int c = 0; c < block.kept; c++)
            for (int t = c * kBlock; t < c * kBlock + count; t++) values_[t] += expected_[t];
        for (int t : escapes_) values_[t] = static_cast<int16_t>(decoder.bits(8) - 128);
        if (decoder.damaged()) return false;
        for (int c = 0; c < block.kept; c++) {
            int t = c * kBlock;
            for (int j = 0; j < block.height; j++) {
                const size_t at = place(block, j);
                int8_t* code = codes + (block.group.first + c) * static_cast<size_t>(height_) * width_ + at;
                uint16_t* known = known_.data() + at * channels_ + block.group.first + c;
                for (int i = 0; i < block.width; i++, t++) {
                    // Only damaged data leaves int8; the reference wraps as well.
                    const int8_t value = static_cast<int8_t>(values_[t] & 255);
                    code[static_cast<size_t>(i) * block.pass.column_step] = value;
                    known[static_cast<size_t>(i) * block.pass.column_step * channels_] = entry(value);
                }
            }
        }
        return true;
    }

    bool encode_block(RangeEncoder& encoder, const Block& block, const int8_t* codes) {
        escapes_.clear();
        plain_.clear();
        for (int c = 0; c < block.kept; c++) {
            int t = c * kBlock;
            for (int j = 0; j < block.height; j++) {
                const int8_t* code =
                    codes + (block.group.first + c) * static_cast<size_t>(height_) * width_ + place(block, j);
                for (int i = 0; i < block.width; i++, t++) {
                    const int value = code[static_cast<size_t>(i) * block.pass.column_step];
                    int residual = value - expected_[t];
                    if (const int shift = tables_.shift[rows_[t]]) {
                        residual += 1 << shift >> 1;
                        plain_.push_back({shift, residual & ((1 << shift) - 1)});
                        residual >>= shift;
                    }
                    int symbol = residual + kWindow;
                    if (symbol < 0 || symbol >= kEscape) {
                        symbol = kEscape;
                        escapes_.push_back(value + 128);
                    }
                    encoder.symbol(tables_.cumulative + rows_[t] * kRowLength, symbol);
                }
            }
        }
        for (const Plain& plain : plain_) encoder.bits(plain.count, static_cast<uint32_t>(plain.value));
        for (int value : escapes_) encoder.bits(8, static_cast<uint32_t>(value));
        return !encoder.full();
    }

    // Of the first position in row j of a block.
    size_t place(const Block& block, int j) const {
        const Pass& pass = block.pass;
        return static_cast<size_t>(pass.row_start + (block.y + j) * pass.row_step) * width_ + pass.column_start +
               static_cast<size_t>(block.x) * pass.column_step;
    }

    struct Plain {
        int count, value;
    };

    const Tables& tables_;
    const int channels_, height_, width_;
    const uint8_t* levels_;
    std::vector<uint16_t> known_;  // (height, width, channels)
    Inputs inputs_;
    std::vector<int16_t> expected_;
    std::vector<uint8_t> rows_;
    std::vector<int16_t> values_;
    std::vector<int32_t> bias_, columns_;
    std::vector<int32_t> pairs_;  // of a batch of positions
    int columns_per_neighbour_ = 0, num_pairs_ = 0;
    bool narrow_ = false;
    std::vector<int> escapes_;
    std::vector<Plain> plain_;
};

}  // namespace

EXPORT int walloc_entropy_decode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const uint8_t* data, int64_t size, int8_t* codes) {
    try {
        RangeDecoder decoder(data, size);
        return Walk(*tables, channels, height, width, levels).decode(decoder, codes);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

EXPORT int walloc_entropy_encode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const int8_t* codes, uint8_t* data, int64_t* size) {
    try {
        RangeEncoder encoder(data, *size);
        const Status status = Walk(*tables, channels, height, width, levels).encode(encoder, codes);
        *size = encoder.finish();
        return encoder.full() ? kNoSpace : status;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

EXPORT void walloc_histograms(const int8_t* codes, int32_t channels, int64_t positions, int64_t* counts) {
    for (int32_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < positions; i++) counts[256 * c + static_cast<uint8_t>(codes[c * positions + i])]++;
}
