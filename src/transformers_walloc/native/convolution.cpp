// Convolutions with 3 x 3 taps of the networks that restore pictures, in float32, by minimal filtering: F(4 x 4, 3 x 3)
// of Winograd (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016). A tile of 4 x 4 results takes
// 36 products of a pair of channels instead of 144:
//
//     6 x 6 inputs of a tile   B' d B   36 numbers of each input channel
//     up to 24 tiles           . weights, for each of the 36      36 numbers of each output channel
//     4 x 4 outputs            A' m A   + bias + residual, rectified
//
// Tiles start at multiples of four, so that parts of a picture that do as well come out the same, bit by bit.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

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

class Convolver {
public:
    Convolver(const Convolution& convolution, const float* in, int height, int width, float* out)
        : layer_(convolution), in_(in), height_(height), width_(width), out_(out),
          apart_in_(static_cast<ptrdiff_t>(kTiles) * layer_.inputs + kGap),
          apart_out_(static_cast<ptrdiff_t>(kTiles) * layer_.outputs + kGap) {}

    // A row of tiles.
    void run(int row) {
        float* numbers = numbers_.reserve(kNumbers * apart_in_);
        float* products = products_.reserve(kNumbers * apart_out_);
        const int y = row * kTile, columns = (width_ + kTile - 1) / kTile;
        for (int first = 0; first < columns; first += kTiles) {
            const int count = std::min(kTiles, columns - first);
            for (int j = 0; j < count; j++) analyse_tile(y, (first + j) * kTile, numbers + j * layer_.inputs);
            for (int p = 0; p < kNumbers; p++)
                for (int j = 0; j < count; j += kRows)  // numbers behind the last tile are of no use, and harmless
                    multiply(numbers + p * apart_in_ + j * layer_.inputs, p, products + p * apart_out_ + j * layer_.outputs);
            for (int j = 0; j < count; j++) synthesise_tile(products + j * layer_.outputs, y, (first + j) * kTile);
        }
    }

private:
    void analyse_tile(int y, int x, float* numbers) const {
        const bool inside = y > 0 && x > 0 && y + kTile < height_ && x + kTile < width_;
        const float* corner = in_ + (static_cast<ptrdiff_t>(y - 1) * width_ + x - 1) * layer_.inputs;
        for (int c = 0; c < layer_.inputs; c += kWide) {
            Wide half[kNumbers], column[kTaps];
            for (int j = 0; j < kTaps; j++) {
                for (int i = 0; i < kTaps; i++) {
                    const bool known = inside || (y + i >= 1 && y + i <= height_ && x + j >= 1 && x + j <= width_);
                    const float* at = corner + (static_cast<ptrdiff_t>(i) * width_ + j) * layer_.inputs + c;
                    column[i] = known ? load_wide(at) : Wide{};
                }
                analyse(column, half + j, kTaps);
            }
            for (int i = 0; i < kTaps; i++) {
                Wide whole[kTaps];
                analyse(half + kTaps * i, whole, 1);
                for (int j = 0; j < kTaps; j++) store_wide(numbers + (kTaps * i + j) * apart_in_ + c, whole[j]);
            }
        }
    }

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
                    if (layer_.residual) v += load_wide(layer_.residual + at);
                    if (layer_.relu) v = v < 0.0f ? Wide{} : v;  // NaN stays NaN
                    store_wide(out_ + at, v);
                }
            }
        }
    }

    const Convolution& layer_;
    const float* in_;
    const int height_, width_;
    float* out_;
    const ptrdiff_t apart_in_, apart_out_;
    Buffer numbers_, products_;
};

}  // namespace

EXPORT int walloc_convolve(const Convolution* convolution, const float* in, int32_t height, int32_t width,
                           int32_t num_threads, float* out) {
    return run_parallel(num_threads, (height + kTile - 1) / kTile, [&] {
        return [&, convolver = Convolver(*convolution, in, height, width, out)](size_t row) mutable {
            convolver.run(static_cast<int>(row));
            return static_cast<int>(kOk);
        };
    });
}
