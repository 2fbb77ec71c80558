// Pictures -> latents and codes of an image codec with the CDF 9/7 wavelet and symmetric boundaries, in one go: padding
// by reflection, wavelet packets, projection, companding and rounding. 8-bit pictures never become pictures of floats:
// their scale is part of the weights.
//
// A tile of blocks is computed from its pixels and those of 4 blocks before and 3 behind, which is as far as three (or
// any number of) levels reach. Lifting steps (Daubechies and Sweldens 1998) run in place; bands then lie in bit-reversed
// order within a block, and their scale factors are part of the weights:
//
//     strips of 8 pixels  (y, x, c)     levels along y, rows as vectors of (x, c); (y, c, x) of a planar picture
//     8 rows, transposed  (x, c, 8 y)   levels along x, vectors of 8 rows
//     blocks              (x, c, y)     . weights -> outputs, companded, rounded

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kBefore = 4, kAfter = 3;  // blocks that a block's bands depend on
constexpr int kStrips = 4;              // read at a time
constexpr int kGap = 48;                // floats between strips, which would share few sets of the cache

// What the lifting steps multiply by: odd samples, even samples, odd, even.
constexpr float kLift[4] = {-1.586134342059924f, -0.052980118572961f, 0.882911075530934f, 0.443506852043971f};

// One level in place: n samples (even) of N vectors each, `stride` floats apart; the signal is mirrored at its ends.
template <int... K>
void lift(std::integer_sequence<int, K...>, float* samples, ptrdiff_t stride, int n) {
    const Vector a = fill(kLift[0]), b = fill(kLift[1]), c = fill(kLift[2]), d = fill(kLift[3]);
    // Behind the step at i lie the first results of i - 1 and the final ones of i - 2.
    Vector even[] = {load(samples + kLanes * K)...};
    Vector odd1[sizeof...(K)], even1[sizeof...(K)], odd2[sizeof...(K)];
    const int half = n / 2;
    const auto step = [&](int k, float* at, const Vector next, bool first, bool second) __attribute__((always_inline)) {
        const Vector odd = a * (even[k] + next) + load(at + stride);
        const Vector smooth = b * ((first ? odd : odd1[k]) + odd) + even[k];
        if (!first) {
            const Vector high = c * (even1[k] + smooth) + odd1[k];
            store(at - 2 * stride, d * ((second ? high : odd2[k]) + high) + even1[k]);
            store(at - stride, high);
            odd2[k] = high;
        }
        odd1[k] = odd;
        even1[k] = smooth;
        even[k] = next;
    };
    const auto finish = [&](int k, float* at, bool first) __attribute__((always_inline)) {
        const Vector high = c * (even1[k] + even1[k]) + odd1[k];
        store(at, d * ((first ? high : odd2[k]) + high) + even1[k]);
        store(at + stride, high);
    };
    const ptrdiff_t two = 2 * stride;
    float* p = samples;
    if (half == 1) {
        (step(K, p + kLanes * K, even[K], true, false), ...);
        (finish(K, p + kLanes * K, true), ...);
        return;
    }
    (step(K, p + kLanes * K, load(p + two + kLanes * K), true, false), ...);
    p += two;
    if (half > 2) {
        (step(K, p + kLanes * K, load(p + two + kLanes * K), false, true), ...);
        p += two;
        for (int i = 2; i < half - 1; i++, p += two)
            (step(K, p + kLanes * K, load(p + two + kLanes * K), false, false), ...);
        (step(K, p + kLanes * K, even[K], false, false), ...);
    } else {
        (step(K, p + kLanes * K, even[K], false, true), ...);
    }
    (finish(K, p + kLanes * K, false), ...);
}

// All levels: n samples, a multiple of 2**levels, of `vectors` vectors each.
void lift_packets(float* samples, ptrdiff_t stride, int n, int vectors, int levels) {
    for (int level = 0; level < levels; level++) {
        const int bands = 1 << level;
        for (int band = 0; band < bands; band++) {
            float* p = samples + band * stride;
            for (int left = vectors; left > 0;) {
                if (left >= 3) {
                    lift(std::make_integer_sequence<int, 3>(), p, stride * bands, n / bands);
                    left -= 3, p += 3 * kLanes;
                } else {
                    lift(std::make_integer_sequence<int, 1>(), p, stride * bands, n / bands);
                    left -= 1, p += kLanes;
                }
            }
        }
    }
}

inline void transpose(Vector r[kLanes]) {
    Vector t[8], s[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        s[i] = __builtin_shufflevector(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        s[i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        s[i + 2] = __builtin_shufflevector(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        s[i + 3] = __builtin_shufflevector(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = __builtin_shufflevector(s[i], s[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = __builtin_shufflevector(s[i], s[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

struct Tile {
    int row, rows, column, columns;  // in blocks
};

class Worker {
public:
    Worker(const Encoder& encoder, const Picture& picture, float* latents, int8_t* codes)
        : encoder_(encoder), picture_(picture), latents_(latents), codes_(codes), block_(1 << encoder.num_levels),
          grid_height_(picture.padded_height / block_), grid_width_(picture.padded_width / block_),
          planar_(picture.column_stride == (picture.is_float ? 4 : 1)) {}

    // Rows of blocks from `first_row` on are the first of the results, which have `num_rows`.
    // Returns a Status.
    int encode(const Tile& tile, int first_row, int num_rows) {
        const int vectors = encoder_.channels;
        const int top = std::max(tile.row - kBefore, 0), left = std::max(tile.column - kBefore, 0);
        const int bottom = std::min(tile.row + tile.rows + kAfter, grid_height_);
        const int right = std::min(tile.column + tile.columns + kAfter, grid_width_);
        const int rows = (bottom - top) * block_, columns = (right - left) * block_;
        const int strips = (columns + kLanes - 1) / kLanes;
        const int inner = (tile.row - top) * block_, groups = (tile.rows * block_ + kLanes - 1) / kLanes;
        const ptrdiff_t row_size = static_cast<ptrdiff_t>(kLanes) * vectors;   // of a strip
        const ptrdiff_t group_size = strips * kLanes * row_size;               // of 8 rows
        const ptrdiff_t strip_size = (rows + kLanes) * row_size + kGap;
        float* read = strips_.reserve(kStrips * strip_size);
        float* bands = bands_.reserve(groups * group_size);
        for (int s = 0; s < strips; s++) {
            float* strip = read + s % kStrips * strip_size;
            if (s % kStrips == 0) {
                const int count = std::min(kStrips, strips - s), x = left * block_ + s * kLanes;
                if (picture_.is_float)
                    read_strips<float>(strip, strip_size, top * block_, rows, x, count);
                else
                    read_strips<uint8_t>(strip, strip_size, top * block_, rows, x, count);
            }
            std::fill_n(strip + rows * row_size, kLanes * row_size, 0.0f);  // rows of a last, incomplete group
            lift_packets(strip, row_size, rows, vectors, encoder_.num_levels);
            for (int g = 0; g < groups; g++)
                for (int v = 0; v < vectors; v++) {
                    const float* from = strip + (inner + g * kLanes) * row_size + v * kLanes;
                    float* to = bands + g * group_size + s * vectors * kLanes * kLanes;
                    Vector r[kLanes];
                    for (int y = 0; y < kLanes; y++) r[y] = load(from + y * row_size);
                    transpose(r);
                    for (int x = 0; x < kLanes; x++)  // as (x, c, 8 y), whatever the order of a strip
                        store(to + (planar_ ? x * vectors + v : v * kLanes + x) * kLanes, r[x]);
                }
        }
        for (int g = 0; g < groups; g++)
            lift_packets(bands + g * group_size, row_size, columns, vectors, encoder_.num_levels);
        set_offsets(group_size);
        Vector finite = fill(0);
        float* outputs = outputs_.reserve(static_cast<size_t>(tile.columns) * encoder_.padded_outputs);
        for (int i = 0; i < tile.rows; i++) {
            const int y = i * block_;
            const float* positions = bands + y / kLanes * group_size + y % kLanes +
                                     (tile.column - left) * block_ * row_size;
            finite += project(positions, block_ * row_size, tile.columns, outputs);
            if (!is_zero(finite)) return kNotFinite;
            write(outputs, tile, tile.row + i - first_row, num_rows);
        }
        return kOk;
    }

private:
    // `count` strips from column `x` on, rows from `y` on, of the padded picture, as (row, column, channel), or as (row,
    // channel, column) where the picture is planar. What lies in a line of the cache is read at once: where rows are
    // powers of two apart, it would be gone when the next strip wants the rest.
    template <class Value>
    void read_strips(float* strip, ptrdiff_t strip_size, int y, int rows, int x, int count) const {
        const Picture& p = picture_;
        const int channels = encoder_.channels, size = kLanes * channels, column = x - p.margin;
        const bool packed = p.channel_stride == sizeof(Value) && p.column_stride == p.channel_stride * channels;
        const bool inside = column >= 0 && column + count * kLanes <= p.width;
        if (count > 1 && !(inside && (packed || planar_))) {
            for (int s = 0; s < count; s++)
                read_strips<Value>(strip + s * strip_size, strip_size, y, rows, x + s * kLanes, 1);
            return;
        }
        const ptrdiff_t to_column = planar_ ? 1 : channels, to_channel = planar_ ? kLanes : 1;
        int64_t columns[kLanes];
        for (int i = 0; i < kLanes; i++) columns[i] = mirror(column + i, p.width) * p.column_stride;
        for (int j = 0; j < rows; j++, strip += size) {
            const int row = mirror(y + j - p.margin, p.height) - p.first_row;
            const uint8_t* line = p.pixels + row * p.row_stride;
            if (packed && inside) {
                const Value* from = reinterpret_cast<const Value*>(line) + static_cast<int64_t>(column) * channels;
                for (int s = 0; s < count; s++)
                    for (int c = 0; c < channels; c++, from += kLanes)
                        store(strip + s * strip_size + c * kLanes, load_values(from));
                prefetch(from);
            } else if (planar_ && inside) {
                for (int c = 0; c < channels; c++) {
                    const Value* from = reinterpret_cast<const Value*>(line + c * p.channel_stride) + column;
                    for (int s = 0; s < count; s++)
                        store(strip + s * strip_size + c * kLanes, load_values(from + s * kLanes));
                    prefetch(from + count * kLanes);
                }
            } else {
                for (int i = 0; i < kLanes; i++)
                    for (int c = 0; c < channels; c++) {
                        const uint8_t* from = line + columns[i] + c * p.channel_stride;
                        strip[i * to_column + c * to_channel] = static_cast<float>(*reinterpret_cast<const Value*>(from));
                    }
            }
        }
    }

    // What the next strips read.
    static void prefetch(const void* from) {
        __builtin_prefetch(from, 0, 2);
        __builtin_prefetch(static_cast<const char*>(from) + 64, 0, 2);
    }

    // Where the inputs of a position lie from its first one on.
    void set_offsets(ptrdiff_t group_size) {
        offsets_.clear();
        for (int k = 0; k < block_ * encoder_.channels; k++)
            for (int y = 0; y < block_; y++)
                offsets_.push_back(static_cast<int32_t>(k * kLanes + y / kLanes * group_size + y % kLanes));
    }

    // `count` positions, `stride` floats apart -> (count, padded_outputs). Returns zeros if all of them are finite.
    Vector project(const float* positions, ptrdiff_t stride, int count, float* outputs) const {
        const int padded = encoder_.padded_outputs;
        Vector finite = fill(0);
        for (int o = 0; o < padded; o += 2 * kLanes) {
            const bool both = o + kLanes < padded;
            int j = 0;
            for (; j + 6 <= count; j += 6)
                if (both)
                    finite += product<2>(std::make_integer_sequence<int, 6>(), positions + j * stride, stride, o, outputs + j * padded + o);
                else
                    finite += product<1>(std::make_integer_sequence<int, 6>(), positions + j * stride, stride, o, outputs + j * padded + o);
            for (; j < count; j++)
                if (both)
                    finite += product<2>(std::make_integer_sequence<int, 1>(), positions + j * stride, stride, o, outputs + j * padded + o);
                else
                    finite += product<1>(std::make_integer_sequence<int, 1>(), positions + j * stride, stride, o, outputs + j * padded + o);
        }
        return finite;
    }

    // N vectors of outputs of some positions, companded; see `project` for what it returns.
    template <int N, int... P>
    __attribute__((noinline)) Vector product(std::integer_sequence<int, P...>, const float* x, ptrdiff_t stride, int first, float* out) const {
        const int padded = encoder_.padded_outputs;
        const Vector bias[2] = {load(encoder_.bias + first), load(encoder_.bias + first + (N - 1) * kLanes)};
        Vector low[] = {(static_cast<void>(P), bias[0])...}, high[] = {(static_cast<void>(P), bias[1])...};
        const float* weights = encoder_.weights + first;
        for (const int32_t offset : offsets_) {
            const Vector w0 = load(weights), w1 = load(weights + (N - 1) * kLanes);
            weights += padded;
            const float* at = x + offset;
            const auto step = [&](int p) __attribute__((always_inline)) {
                const float value = at[p * stride];
                low[p] += w0 * value;
                if (N == 2) high[p] += w1 * value;
            };
            (step(P), ...);
        }
        Vector finite = fill(0);
        ((finite += low[P] * 0.0f), ...);
        if (N == 2) ((finite += high[P] * 0.0f), ...);
        (store(out + P * padded, erf(low[P] * encoder_.scale) * encoder_.limit), ...);
        if (N == 2) (store(out + P * padded + kLanes, erf(high[P] * encoder_.scale) * encoder_.limit), ...);
        return finite;
    }

    void write(float* outputs, const Tile& tile, int row, int num_rows) const {
        const int padded = encoder_.padded_outputs, count = tile.columns;
        const auto plane = [&](int o) {
            return (static_cast<size_t>(o) * num_rows + row) * grid_width_ + tile.column;
        };
        if (latents_)
            for (int o = 0; o < encoder_.outputs; o++) {
                float* to = latents_ + plane(o);
                for (int j = 0; j < count; j++) to[j] = outputs[j * padded + o];
            }
        if (!codes_) return;
        for (int k = 0; k < count * padded; k += kLanes) {
            Vector v = load(outputs + k);
            if (encoder_.step != 1.0f) v = v / encoder_.step;
            store(outputs + k, round(v));
        }
        for (int o = 0; o < encoder_.outputs; o++) {
            int8_t* to = codes_ + plane(o);
            for (int j = 0; j < count; j++) to[j] = static_cast<int8_t>(outputs[j * padded + o]);
        }
    }

    const Encoder& encoder_;
    const Picture& picture_;
    float* latents_;
    int8_t* codes_;
    const int block_, grid_height_, grid_width_;
    const bool planar_;
    Buffer strips_, bands_, outputs_;
    std::vector<int32_t> offsets_;
};

}  // namespace

EXPORT int walloc_encode(const Encoder* encoder, const Picture* picture, int32_t first_row, int32_t num_rows,
                         int32_t num_threads, int32_t tile_rows, int32_t tile_columns, float* latents, int8_t* codes) {
    const int columns = picture->padded_width >> encoder->num_levels;
    std::vector<Tile> tiles;
    try {
        for (int y = 0; y < num_rows; y += tile_rows)
            for (int x = 0; x < columns; x += tile_columns)
                tiles.push_back({first_row + y, std::min(tile_rows, num_rows - y), x, std::min(tile_columns, columns - x)});
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return run_parallel(num_threads, tiles.size(), [&] {
        return [&, worker = Worker(*encoder, *picture, latents, codes)](size_t i) mutable {
            return worker.encode(tiles[i], first_row, num_rows);
        };
    });
}
