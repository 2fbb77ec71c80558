// Pictures -> latents and codes of an image codec whose transform does not overlap: a linear map of blocks of 16 x 16
// pixels, companding and rounding.
//
// Outputs of symmetric weights (even or odd along y, even or odd along x) depend on a quarter of the sums and differences
// of opposite pixels, so four times fewer products are needed:
//
//     16 rows of a block, reversed halves  a + b, a - b  along x, then along y      4 parts of (channel, 8 y, 8 x)
//     parts of up to 24 blocks             . weights of the outputs of each part    (block, output)

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kBlock = 16, kHalf = 8, kPart = kHalf * kHalf;  // pixels of a block along an axis, numbers of a part
constexpr int kGroup = 24;                                    // blocks at a time: their numbers stay in the second cache

struct Pair {
    Vector even, odd;
};

inline Vector reversed(Vector v) { return __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0); }
inline Pair fold(Vector first, Vector second) {
    const Vector b = reversed(second);
    return {first + b, first - b};
}

inline Pair fold(Bytes v) {
    const Vector a = widen(v);
    const Vector b = widen(__builtin_shufflevector(v, v, 15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7));
    return {a + b, a - b};
}

class BlockWorker {
public:
    BlockWorker(const BlockEncoder& encoder, const Picture& picture, float* latents, int8_t* codes)
        : encoder_(encoder), picture_(picture), latents_(latents), codes_(codes),
          grid_width_(picture.padded_width / kBlock), padded_((encoder.outputs + kLanes - 1) / kLanes * kLanes),
          part_size_(static_cast<ptrdiff_t>(encoder.channels) * kPart) {}

    // Row of blocks `row` of the picture as row `out_row` of `num_rows` of the results. Returns a Status.
    int encode(int row, int out_row, int num_rows) {
        float* parts = parts_.reserve(4 * part_size_ * kGroup);
        float* outputs = outputs_.reserve(static_cast<size_t>(padded_) * kGroup);
        for (int first = 0; first < grid_width_; first += kGroup) {
            const int count = std::min(kGroup, grid_width_ - first);
            if (picture_.is_float)
                read<float>(row, first, count, parts);
            else
                read<uint8_t>(row, first, count, parts);
            multiply(parts, count, outputs);
            if (!compand(outputs, count)) return kNotFinite;
            write(outputs, first, count, out_row, num_rows);
        }
        return kOk;
    }

private:
    // The parts of `count` blocks. Rows are read at a stretch.
    template <class Value>
    void read(int row, int column, int count, float* parts) {
        const Picture& p = picture_;
        const int y = row * kBlock - p.margin, x = column * kBlock - p.margin;
        constexpr int64_t size = sizeof(Value);
        const bool packed = size == 1 && encoder_.channels == 3 && p.column_stride == 3 && p.channel_stride == 1;
        const bool rows_inside = y >= 0 && y + kBlock <= p.height && (packed || p.column_stride == size);
        const auto is_inside = [&](int j) {
            return rows_inside && x + j * kBlock >= 0 && x + (j + 1) * kBlock <= p.width;
        };
        int first = 0, last = count;
        for (; first < last && !is_inside(first); first++) gather<Value>(y, x + first * kBlock, parts + 4 * part_size_ * first);
        for (; first < last && !is_inside(last - 1); last--)
            gather<Value>(y, x + (last - 1) * kBlock, parts + 4 * part_size_ * (last - 1));
        if (first == last) return;
        const uint8_t* from = p.pixels + (y - p.first_row) * p.row_stride + (x + first * kBlock) * p.column_stride;
        parts += 4 * part_size_ * first, count = last - first;
        if (packed) {
            for (int i = 0; i < kHalf; i++)
                fold_packed(from + i * p.row_stride, from + (kBlock - 1 - i) * p.row_stride, count, parts + i * kHalf);
        } else {
            fold_planes<Value>(from, p.channel_stride, p.row_stride, count, parts);
        }
    }

    // The parts of a block that reaches over the borders, or whose values lie apart.
    template <class Value>
    void gather(int y, int x, float* parts) {
        const Picture& p = picture_;
        float* to = gathered_.reserve(static_cast<size_t>(encoder_.channels) * kBlock * kBlock);
        int64_t columns[kBlock];
        for (int i = 0; i < kBlock; i++) columns[i] = mirror(x + i, p.width) * p.column_stride;
        for (int j = 0; j < kBlock; j++) {
            const uint8_t* line = p.pixels + (mirror(y + j, p.height) - p.first_row) * p.row_stride;
            for (int c = 0; c < encoder_.channels; c++)
                for (int i = 0; i < kBlock; i++)
                    to[(c * kBlock + j) * kBlock + i] =
                        static_cast<float>(*reinterpret_cast<const Value*>(line + columns[i] + c * p.channel_stride));
        }
        fold_planes<float>(reinterpret_cast<const uint8_t*>(to), kBlock * kBlock * 4, kBlock * 4, 1, parts);
    }

    static Pair fold_row(const float* p) { return fold(load(p), load(p + kHalf)); }
    static Pair fold_row(const uint8_t* p) {
        Bytes v;
        std::memcpy(&v, p, sizeof v);
        return fold(v);
    }

    // Strides in bytes.
    template <class Value>
    void fold_planes(const uint8_t* from, int64_t channel_stride, int64_t row_stride, int count, float* parts) const {
        for (int c = 0; c < encoder_.channels; c++)
            for (int i = 0; i < kHalf; i++) {
                const uint8_t* plane = from + c * channel_stride;
                const Value* top = reinterpret_cast<const Value*>(plane + i * row_stride);
                const Value* bottom = reinterpret_cast<const Value*>(plane + (kBlock - 1 - i) * row_stride);
                float* at = parts + c * kPart + i * kHalf;
                for (int j = 0; j < count; j++, at += 4 * part_size_)
                    put(fold_row(top + j * kBlock), fold_row(bottom + j * kBlock), at);
            }
    }

    void fold_packed(const uint8_t* top, const uint8_t* bottom, int count, float* at) const {
        for (int j = 0; j < count; j++, at += 4 * part_size_) {
            Bytes above[3], below[3];
            split3(top + j * 3 * kBlock, above);
            split3(bottom + j * 3 * kBlock, below);
            for (int c = 0; c < 3; c++) put(fold(above[c]), fold(below[c]), at + c * kPart);
        }
    }

    void put(Pair top, Pair bottom, float* at) const {
        store(at, top.even + bottom.even);
        store(at + part_size_, top.odd + bottom.odd);
        store(at + 2 * part_size_, top.even - bottom.even);
        store(at + 3 * part_size_, top.odd - bottom.odd);
    }

    // Parts of `count` blocks -> outputs (count, padded_).
    void multiply(const float* parts, int count, float* outputs) const {
        std::fill_n(outputs, static_cast<size_t>(count) * padded_, 0.0f);
        for (int j = 0; j < count; j++) std::copy_n(encoder_.bias, encoder_.outputs, outputs + j * padded_);
        const float* weights = encoder_.weights;
        const int32_t* order = encoder_.order;
        for (int q = 0; q < 4; q++, parts += part_size_) {
            const int outs = encoder_.counts[q], stride = (outs + 15) / 16 * 16;
            for (int o = 0; o < outs; o += 2 * kWide) {
                const Outputs columns = {weights + o, order + o, stride, std::min(outs - o, 2 * kWide)};
                for (int j = 0; j < count; j += kRows) {
                    // A last, incomplete group of blocks starts among those that are done.
                    const int from = std::max(std::min(j, count - kRows), 0);
                    const float* x = parts + 4 * part_size_ * from;
                    float* out = outputs + static_cast<ptrdiff_t>(from) * padded_;
                    if (count >= kRows)
                        product(std::make_integer_sequence<int, kRows>(), x, columns, j - from, out);
                    else
                        for (int k = 0; k < count; k++)
                            product(std::make_integer_sequence<int, 1>(), x + 4 * part_size_ * k, columns, 0, out + k * padded_);
                }
            }
            weights += part_size_ * stride;
            order += outs;
        }
    }

    // Up to two vectors of outputs: their weights and their numbers.
    struct Outputs {
        const float* weights;
        const int32_t* order;
        int stride, count;
    };

    template <int... P>
    void product(std::integer_sequence<int, P...> rows, const float* x, const Outputs& columns, int skip, float* out) const {
        if (columns.count > kWide)
            product<2>(rows, x, columns, skip, out);
        else
            product<1>(rows, x, columns, skip, out);
    }

    // Adds what N vectors of outputs get from some blocks, without the first `skip` of these.
    template <int N, int... P>
    __attribute__((noinline)) void product(std::integer_sequence<int, P...>, const float* x, const Outputs& columns, int skip, float* out) const {
        Wide low[sizeof...(P)] = {}, high[sizeof...(P)] = {};
        const float* weights = columns.weights;
        const ptrdiff_t apart = 4 * part_size_;
        for (const float* end = x + part_size_; x < end; x++, weights += columns.stride) {
            const Wide w0 = load_wide(weights), w1 = load_wide(weights + (N - 1) * kWide);
            const auto step = [&](int p) __attribute__((always_inline)) {
                const float value = x[apart * p];
                low[p] += w0 * value;
                if (N == 2) high[p] += w1 * value;
            };
            (step(P), ...);
        }
        out += static_cast<ptrdiff_t>(skip) * padded_;
        for (int p = skip; p < static_cast<int>(sizeof...(P)); p++, out += padded_) {
            float sums[2 * kWide];
            std::memcpy(sums, &low[p], sizeof low[p]);
            std::memcpy(sums + kWide, &high[p], sizeof high[p]);
            for (int o = 0; o < columns.count; o++) out[columns.order[o]] += sums[o];
        }
    }

    // Whether all were finite.
    bool compand(float* outputs, int count) const {
        Vector finite = fill(0);
        for (int k = 0; k < count * padded_; k += kLanes) {
            const Vector v = load(outputs + k);
            finite += v * 0.0f;
            store(outputs + k, erf(v * encoder_.scale) * encoder_.limit);
        }
        return is_zero(finite);
    }

    void write(float* outputs, int column, int count, int row, int num_rows) const {
        const auto plane = [&](int o) { return (static_cast<size_t>(o) * num_rows + row) * grid_width_ + column; };
        if (latents_)
            for (int o = 0; o < encoder_.outputs; o++)
                for (int j = 0; j < count; j++) latents_[plane(o) + j] = outputs[j * padded_ + o];
        if (!codes_) return;
        for (int k = 0; k < count * padded_; k += kLanes) {
            Vector v = load(outputs + k);
            if (encoder_.step != 1.0f) v = v / encoder_.step;
            store(outputs + k, round(v));
        }
        for (int o = 0; o < encoder_.outputs; o++)
            for (int j = 0; j < count; j++) codes_[plane(o) + j] = static_cast<int8_t>(outputs[j * padded_ + o]);
    }

    const BlockEncoder& encoder_;
    const Picture& picture_;
    float* latents_;
    int8_t* codes_;
    const int grid_width_, padded_;
    const ptrdiff_t part_size_;
    Buffer parts_, outputs_, gathered_;
};

}  // namespace

EXPORT int walloc_encode_blocks(const BlockEncoder* encoder, const Picture* picture, int32_t first_row, int32_t num_rows,
                                int32_t num_threads, float* latents, int8_t* codes) {
    return run_parallel(num_threads, num_rows, [&] {
        return [&, worker = BlockWorker(*encoder, *picture, latents, codes)](size_t i) mutable {
            return worker.encode(first_row + static_cast<int>(i), static_cast<int>(i), num_rows);
        };
    });
}
