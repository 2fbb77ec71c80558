// What the library exports, and the structures that `codec/entropy_kernel.py` and `codec/encoder_kernel.py` fill in.
// Whoever changes one of them raises the number that `walloc_interface` returns.

#pragma once

#include <cstdint>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum Status { kOk = 0, kDamaged = 1, kLeftOver = 2, kNoMemory = 3, kNoSpace = 4, kNotFinite = 5 };

struct Pass {
    int32_t row_start, row_step, column_start, column_step, stride, num_neighbours;
    int32_t hidden;               // units, a multiple of 16; the direct sums of the channels follow
    int32_t sums;                 // hidden + direct sums, a multiple of 4
    int32_t outputs;              // expected values, then classes: 2 * size, padded to a multiple of 4
    int32_t reserved;
    const int32_t* neighbours;    // (num_neighbours, 2) rows and columns in units of stride
    const int16_t* levels;        // (size, sums)
    const int16_t* first;         // (pairs of features, sums, 2): `Places` in entropy.cpp has their order
    const int32_t* first_bias;    // (sums)
    const int16_t* second;        // (outputs, hidden), units in the order of `activate`
    const int32_t* second_bias;   // (outputs)
};

struct Group {
    int32_t first, size, num_passes, reserved;
    const Pass* passes;
};

struct Tables {
    int32_t num_dims, num_groups;
    const Group* groups;
    const uint32_t* cumulative;   // (256, kRowLength)
    const int16_t* coarse;        // (256, kRowLength): the upper 16 bits of the next entry, less 2**15
    const uint8_t* magnitude;     // (256) of a code & 255
    const uint8_t* shift;         // (256) plain bits of a row
};

struct Picture {
    const uint8_t* pixels;  // at row `first_row`, column 0, channel 0
    int64_t is_float;       // whether values are floats, or bytes
    int64_t row_stride, column_stride, channel_stride;
    int32_t height, width;                 // of the whole picture
    int32_t first_row, num_rows;           // rows that are in memory
    int32_t margin;                        // pixels of reflection above and to the left
    int32_t padded_height, padded_width;   // with margins, multiples of the block
};

// The wavelet packets of CDF 9/7.
struct Encoder {
    int32_t channels, num_levels, outputs, padded_outputs;  // padded to a multiple of 8
    const float* weights;  // (block, channels, block, padded_outputs): band along x, channel, band along y
    const float* bias;     // (padded_outputs)
    float scale, limit;    // latents are limit * erf(scale * z)
    float step, reserved;  // codes are latents / step
};

// A linear map of blocks of 16 x 16 pixels, of which each is folded along both axes first: sums and differences of what
// lies opposite, (even along y, even along x), (even, odd), (odd, even), (odd, odd). An output of symmetric weights depends
// on one of the four parts.
struct BlockEncoder {
    int32_t channels, outputs;
    int32_t counts[4];      // of outputs that depend on a part, in `order`, part after part
    const int32_t* order;
    const float* weights;   // part after part, (channels, 8 y, 8 x, its outputs padded to a multiple of 16)
    const float* bias;      // (outputs)
    float scale, limit, step, reserved;  // as above
};

// Codes (channels, height, width) of `size` bytes, a multiple of 4, into `codes`. Returns a Status.
EXPORT int walloc_entropy_decode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const uint8_t* data, int64_t size, int8_t* codes);

// The inverse; `size` is the space at `data` and becomes the bytes written.
EXPORT int walloc_entropy_encode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const int8_t* codes, uint8_t* data, int64_t* size);

// How often each code & 255 occurs in a channel: adds to counts (channels, 256).
EXPORT void walloc_histograms(const int8_t* codes, int32_t channels, int64_t positions, int64_t* counts);

// Rows of blocks first_row .. first_row + num_rows - 1 of a picture, whose rows of pixels from 4 blocks before to 3
// behind must be in memory, as (outputs, num_rows, columns) latents or codes, either of which may be null. Returns a
// Status, kNotFinite where values of the picture are not.
EXPORT int walloc_encode(const Encoder* encoder, const Picture* picture, int32_t first_row, int32_t num_rows,
                         int32_t num_threads, int32_t tile_rows, int32_t tile_columns, float* latents, int8_t* codes);

// The same; blocks do not depend on each other. `first_row` and the picture's margin are in rows of blocks and pixels.
EXPORT int walloc_encode_blocks(const BlockEncoder* encoder, const Picture* picture, int32_t first_row, int32_t num_rows,
                                int32_t num_threads, float* latents, int8_t* codes);

// A convolution with 3 x 3 taps, zeros around: out = activation(bias + weights * in + residual), all (batch, height,
// width, channels), inputs and outputs multiples of 16.
struct Convolution {
    int32_t inputs, outputs;
    const float* weights;   // (36, inputs, outputs): 3 x 3 taps as the 6 x 6 of F(4 x 4, 3 x 3)
    const float* bias;      // (outputs)
    const float* residual;  // or null
    int64_t relu;           // whether negative results become zero
};

// Returns a Status.
EXPORT int walloc_convolve(const Convolution* convolution, const float* in, int32_t batch, int32_t height, int32_t width,
                           int32_t num_threads, float* out);

// How a loss depends on the weights of such a convolution, from what it read, (batch, height, width, inputs), and the
// gradient of its results, (batch, height, width, outputs): adds to sums (36, inputs, outputs) those of the 6 x 6 numbers.
// Returns a Status.
EXPORT int walloc_convolve_gradient(int32_t inputs, int32_t outputs, const float* in, const float* gradient, int32_t batch,
                                    int32_t height, int32_t width, int32_t num_threads, float* sums);

// Three channels that lie side by side, rows `row_stride` bytes apart -> planes of (value - 127.5) / 255, strides in
// floats.
EXPORT void walloc_rescale(const uint8_t* pixels, int64_t row_stride, int32_t height, int32_t width, float* out,
                           int64_t out_row_stride, int64_t out_channel_stride);

EXPORT int32_t walloc_interface();

// Whether this processor has what the kernels are compiled for.
EXPORT int32_t walloc_supported();
