// Convolutions with 3 x 3 taps of the networks that restore pictures, in float32, by minimal filtering: F(4 x 4, 3 x 3)
// of Winograd (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016). A tile of 4 x 4 results takes
// 36 products of a pair of channels instead of 144:
//
//     6 x 6 inputs of a tile   B' d B   36 numbers of each input channel
//     up to 24 tiles           . weights, for each of the 36      36 numbers of each output channel
//     4 x 4 outputs            A' m A   + bias + residual, rectified
//
// Tiles start at multiples of four, so that parts of a picture that do as well come out the same, bit by bit.
//
// The gradient of the weights is the transpose of that, with the same 36 numbers of the inputs:
//
//     4 x 4 gradients of the outputs   A g A'   36 numbers of each output channel
//     sums over all tiles, for each of the 36, of inputs . outputs

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kTile = 4, kTaps = 6, kNumbers = kTaps * kTaps;
constexpr int kTiles = 2 * kRows;  // tiles at a time: their numbers stay in the second cache
constexpr int kGap = 16;           // between the tiles of one number and of the next, which would share few cache sets

// B' of six numbers.
inline void analyse(const Wide d[kTaps], Wide out[kTaps], int step) {
    const Wide a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    out[step] = a + b;
    out[2 * step] = a - b;
    out[3 * step] = c + e;
    out[4 * step] = c - e;
    out[5 * step] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A' of six numbers.
inline void synthesise(const Wide m[kTaps], Wide out[kTile], int step) {
    const Wide sum1 = m[1] + m[2], sum2 = m[3] + m[4], difference1 = m[1] - m[2], difference2 = m[3] - m[4];
    out[0] = m[0] + sum1 + sum2;
    out[step] = difference1 + 2.0f * difference2;
    out[2 * step] = sum1 + 4.0f * sum2;
    out[3 * step] = difference1 + 8.0f * difference2 + m[5];
}

// A of four numbers.
inline void spread(const Wide g[kTile], Wide out[kTaps], int step) {
    const Wide even1 = g[0] + g[2], odd1 = g[1] + g[3], even2 = g[0] + 4.0f * g[2], odd2 = 2.0f * (g[1] + 4.0f * g[3]);
    out[0] = g[0];
    out[step] = even1 + odd1;
    out[2 * step] = even1 - odd1;
    out[3 * step] = even2 + odd2;
    out[4 * step] = even2 - odd2;
    out[5 * step] = g[3];
}

// The 36 numbers of a tile of inputs whose results start at (y, x); those of different numbers lie `apart`.
inline void analyse_tile(const float* in, int height, int width, int channels, int y, int x, float* numbers, ptrdiff_t apart) {
    const bool inside = y > 0 && x > 0 && y + kTile < height && x + kTile < width;
    const float* corner = in + (static_cast<ptrdiff_t>(y - 1) * width + x - 1) * channels;
    for (int c = 0; c < channels; c += kWide) {
        Wide half[kNumbers], column[kTaps];
        for (int j = 0; j < kTaps; j++) {
            for (int i = 0; i < kTaps; i++) {
                const bool known = inside || (y + i >= 1 && y + i <= height && x + j >= 1 && x + j <= width);
                const float* at = corner + (static_cast<ptrdiff_t>(i) * width + j) * channels + c;
                column[i] = known ? load_wide(at) : Wide{};
            }
            analyse(column, half + j, kTaps);
        }
        for (int i = 0; i < kTaps; i++) {
            Wide whole[kTaps];
            analyse(half + kTaps * i, whole, 1);
            for (int j = 0; j < kTaps; j++) store_wide(numbers + (kTaps * i + j) * apart + c, whole[j]);
        }
    }
}

class Convolver {
public:
    Convolver(const Convolution& convolution, const float* in, int height, int width, float* out)
        : layer_(convolution), first_in_(in), height_(height), width_(width), first_out_(out),
          apart_in_(static_cast<ptrdiff_t>(kTiles) * layer_.inputs + kGap),
          apart_out_(static_cast<ptrdiff_t>(kTiles) * layer_.outputs + kGap) {}

    // A row of tiles, counted from the first picture of the batch on.
    void run(ptrdiff_t row) {
        const int rows = (height_ + kTile - 1) / kTile;
        const ptrdiff_t position = row / rows * height_ * width_;
        in_ = first_in_ + position * layer_.inputs, out_ = first_out_ + position * layer_.outputs;
        residual_ = layer_.residual ? layer_.residual + position * layer_.outputs : nullptr;
        float* numbers = numbers_.reserve(kNumbers * apart_in_);
        float* products = products_.reserve(kNumbers * apart_out_);
        const int y = static_cast<int>(row % rows) * kTile, columns = (width_ + kTile - 1) / kTile;
        for (int first = 0; first < columns; first += kTiles) {
            const int count = std::min(kTiles, columns - first);
            for (int j = 0; j < count; j++)
                analyse_tile(in_, height_, width_, layer_.inputs, y, (first + j) * kTile, numbers + j * layer_.inputs,
                             apart_in_);
            for (int p = 0; p < kNumbers; p++)
                for (int j = 0; j < count; j += kRows)  // numbers behind the last tile are of no use, and harmless
                    multiply(numbers + p * apart_in_ + j * layer_.inputs, p, products + p * apart_out_ + j * layer_.outputs);
            for (int j = 0; j < count; j++) synthesise_tile(products + j * layer_.outputs, y, (first + j) * kTile);
        }
    }

private:
    // Number p of kRows tiles.
    void multiply(const float* x, int p, float* out) const {
        const float* weights = layer_.weights + static_cast<ptrdiff_t>(p) * layer_.inputs * layer_.outputs;
        int o = 0;
        for (; o + 2 * kWide <= layer_.outputs; o += 2 * kWide)
            product<2>(std::make_integer_sequence<int, kRows>(), x, weights + o, layer_.inputs, layer_.outputs, out + o);
        if (o < layer_.outputs)
            product<1>(std::make_integer_sequence<int, kRows>(), x, weights + o, layer_.inputs, layer_.outputs, out + o);
    }

    template <int N, int... P>
    __attribute__((noinline)) static void product(std::integer_sequence<int, P...>, const float* x, const float* weights,
                                                  ptrdiff_t inputs, ptrdiff_t outputs, float* out) {
        Wide low[sizeof...(P)] = {}, high[sizeof...(P)] = {};
        for (const float* end = x + inputs; x < end; x++, weights += outputs) {
            const Wide w0 = load_wide(weights), w1 = load_wide(weights + (N - 1) * kWide);
            const auto step = [&](int p) __attribute__((always_inline)) {
                const float value = x[inputs * p];
                low[p] += w0 * value;
                if (N == 2) high[p] += w1 * value;
            };
            (step(P), ...);
        }
        (store_wide(out + outputs * P, low[P]), ...);
        if (N == 2) (store_wide(out + outputs * P + kWide, high[P]), ...);
    }

    void synthesise_tile(const float* products, int y, int x) const {
        const int rows = std::min(kTile, height_ - y), columns = std::min(kTile, width_ - x);
        for (int o = 0; o < layer_.outputs; o += kWide) {
            Wide half[kTile * kTaps], column[kTaps];
            for (int j = 0; j < kTaps; j++) {
                for (int i = 0; i < kTaps; i++) column[i] = load_wide(products + (kTaps * i + j) * apart_out_ + o);
                synthesise(column, half + j, kTaps);
            }
            const Wide bias = load_wide(layer_.bias + o);
            for (int i = 0; i < rows; i++) {
                Wide whole[kTile];
                synthesise(half + kTaps * i, whole, 1);
                for (int j = 0; j < columns; j++) {
                    const ptrdiff_t at = (static_cast<ptrdiff_t>(y + i) * width_ + x + j) * layer_.outputs + o;
                    Wide v = whole[j] + bias;
                    if (residual_) v += load_wide(residual_ + at);
                    if (layer_.relu) v = v < 0.0f ? Wide{} : v;  // NaN stays NaN
                    store_wide(out_ + at, v);
                }
            }
        }
    }

    const Convolution& layer_;
    const float* const first_in_;
    const int height_, width_;
    float* const first_out_;
    const ptrdiff_t apart_in_, apart_out_;
    const float *in_ = nullptr, *residual_ = nullptr;  // of the picture
    float* out_ = nullptr;
    Buffer numbers_, products_;
};

// The gradient of the weights by some rows of tiles, strip after strip: first their numbers, then the sums.
class WeightGradient {
public:
    WeightGradient(int inputs, int outputs, int height, int width, const float* in, const float* gradient, float* sums)
        : inputs_(inputs), outputs_(outputs), height_(height), width_(width), in_(in), gradient_(gradient), sums_(sums),
          rows_((height + kTile - 1) / kTile), columns_((width + kTile - 1) / kTile),
          strip_(std::max(1, kStrip / std::max(1, columns_))),
          apart_in_(static_cast<ptrdiff_t>(strip_) * columns_ * inputs + kGap),
          apart_out_(static_cast<ptrdiff_t>(strip_) * columns_ * outputs + kGap),
          numbers_(memory_[0].reserve(kNumbers * apart_in_)), spreads_(memory_[1].reserve(kNumbers * apart_out_)) {}

    // Rows of tiles, counted from the first picture of the batch on.
    void run(ptrdiff_t row, ptrdiff_t end) {
        while (row < end) {
            ptrdiff_t tiles = 0;
            for (int i = 0; i < strip_ && row < end; i++, row++, tiles += columns_) transform(row, tiles);
            for (int p = 0; p < kNumbers; p++) accumulate(p, static_cast<int>(tiles));
        }
    }

private:
    // Tiles of a strip, and those whose numbers stay in the first cache; inputs whose sums stay in registers.
    static constexpr int kStrip = 48, kNear = 48, kChannels = 4;

    void transform(ptrdiff_t row, ptrdiff_t at) {
        const ptrdiff_t position = row / rows_ * height_ * width_;
        const int y = static_cast<int>(row % rows_) * kTile;
        for (int x = 0; x < width_; x += kTile, at++) {
            analyse_tile(in_ + position * inputs_, height_, width_, inputs_, y, x, numbers_ + at * inputs_, apart_in_);
            spread_tile(gradient_ + position * outputs_, y, x, spreads_ + at * outputs_);
        }
    }

    void spread_tile(const float* gradient, int y, int x, float* out) const {
        const bool inside = y + kTile <= height_ && x + kTile <= width_;
        const float* corner = gradient + (static_cast<ptrdiff_t>(y) * width_ + x) * outputs_;
        for (int o = 0; o < outputs_; o += kWide) {
            Wide half[kTaps * kTile], column[kTile];
            for (int j = 0; j < kTile; j++) {
                for (int i = 0; i < kTile; i++) {
                    const bool known = inside || (y + i < height_ && x + j < width_);
                    column[i] = known ? load_wide(corner + (static_cast<ptrdiff_t>(i) * width_ + j) * outputs_ + o) : Wide{};
                }
                spread(column, half + j, kTile);
            }
            for (int i = 0; i < kTaps; i++) {
                Wide whole[kTaps];
                spread(half + kTile * i, whole, 1);
                for (int j = 0; j < kTaps; j++) store_wide(out + (kTaps * i + j) * apart_out_ + o, whole[j]);
            }
        }
    }

    void accumulate(int p, int tiles) const {
        const float *x = numbers_ + p * apart_in_, *g = spreads_ + p * apart_out_;
        float* sums = sums_ + static_cast<ptrdiff_t>(p) * inputs_ * outputs_;
        for (; tiles > 0; tiles -= kNear, x += kNear * inputs_, g += kNear * outputs_)
            for (int o = 0; o < outputs_; o += 2 * kWide)
                for (int i = 0; i < inputs_; i += kChannels) {
                    float* out = sums + static_cast<ptrdiff_t>(i) * outputs_ + o;
                    if (o + 2 * kWide <= outputs_)
                        product<2>(x + i, g + o, std::min(tiles, kNear), out);
                    else
                        product<1>(x + i, g + o, std::min(tiles, kNear), out);
                }
    }

    template <int N>
    void product(const float* x, const float* g, int tiles, float* out) const {
        Wide low[kChannels] = {}, high[kChannels] = {};
        for (int t = 0; t < tiles; t++, x += inputs_, g += outputs_) {
            const Wide g0 = load_wide(g), g1 = load_wide(g + (N - 1) * kWide);
            for (int i = 0; i < kChannels; i++) {
                low[i] += g0 * x[i];
                if (N == 2) high[i] += g1 * x[i];
            }
        }
        for (int i = 0; i < kChannels; i++, out += outputs_) {
            store_wide(out, load_wide(out) + low[i]);
            if (N == 2) store_wide(out + kWide, load_wide(out + kWide) + high[i]);
        }
    }

    const int inputs_, outputs_, height_, width_;
    const float *const in_, *const gradient_;
    float* const sums_;
    const int rows_, columns_, strip_;
    const ptrdiff_t apart_in_, apart_out_;
    Buffer memory_[2];
    float *numbers_, *spreads_;
};

}  // namespace

EXPORT int walloc_convolve(const Convolution* convolution, const float* in, int32_t batch, int32_t height, int32_t width,
                           int32_t num_threads, float* out) {
    return run_parallel(num_threads, static_cast<size_t>(batch) * ((height + kTile - 1) / kTile), [&] {
        return [&, convolver = Convolver(*convolution, in, height, width, out)](size_t row) mutable {
            convolver.run(static_cast<ptrdiff_t>(row));
            return static_cast<int>(kOk);
        };
    });
}

EXPORT int walloc_convolve_gradient(int32_t inputs, int32_t outputs, const float* in, const float* gradient, int32_t batch,
                                    int32_t height, int32_t width, int32_t num_threads, float* sums) {
    // Every thread has rows and sums of its own, which are added in their order: the same bits each time.
    const ptrdiff_t rows = static_cast<ptrdiff_t>(batch) * ((height + kTile - 1) / kTile);
    const ptrdiff_t parts = std::max<ptrdiff_t>(1, std::min<ptrdiff_t>(num_threads, rows));
    const size_t size = static_cast<size_t>(kNumbers) * inputs * outputs;
    try {
        std::vector<float> others((parts - 1) * size);
        const int status = run_parallel(num_threads, parts, [&] {
            return [&](size_t part) {
                float* its = part ? others.data() + (part - 1) * size : sums;
                WeightGradient sum(inputs, outputs, height, width, in, gradient, its);
                sum.run(part * rows / parts, (part + 1) * rows / parts);
                return static_cast<int>(kOk);
            };
        });
        for (size_t i = 0; i < others.size(); i++) sums[i % size] += others[i];
        return status;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
