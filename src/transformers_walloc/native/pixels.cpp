// Pixels of bytes -> the floats that models take, in one pass: channels taken apart and mapped to [-0.5, 0.5].

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "vectors.h"

namespace {

// Rounded as a subtraction and a division in float32 are, so that results are those of torch.
inline Vector scale(Vector v) { return (v - 127.5f) / 255.0f; }

}  // namespace

EXPORT void walloc_rescale(const uint8_t* pixels, int64_t row_stride, int32_t height, int32_t width, float* out,
                           int64_t out_row_stride, int64_t out_channel_stride) {
    constexpr int kPixels = 16;
    for (int y = 0; y < height; y++, pixels += row_stride, out += out_row_stride) {
        int x = 0;
        for (; x + kPixels <= width; x += kPixels) {
            Bytes planes[3];
            split3(pixels + 3 * x, planes);
            for (int c = 0; c < 3; c++) {
                float* to = out + c * out_channel_stride + x;
                store(to, scale(widen(planes[c])));
                store(to + kLanes, scale(widen(upper(planes[c]))));
            }
        }
        for (; x < width; x++)
            for (int c = 0; c < 3; c++)
                out[c * out_channel_stride + x] = (static_cast<float>(pixels[3 * x + c]) - 127.5f) / 255.0f;
    }
}
