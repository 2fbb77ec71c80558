// Feeds the compiled kernels what nobody should: see fuzz_kernels.py, which compiles this under sanitizers and writes
// the tables and payloads that it starts from. All arrays are of exactly the size that the kernels may touch.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

std::mt19937_64 random_bits;

int64_t below(int64_t n) { return n < 2 ? 0 : static_cast<int64_t>(random_bits() % static_cast<uint64_t>(n)); }
int32_t between(int low, int high) { return low + static_cast<int32_t>(below(high - low + 1)); }

// An array on the heap of its own, where sanitizers see every step beyond its ends.
template <class T>
class Array {
public:
    explicit Array(size_t size) : size_(size), data_(new T[size]()) {}
    T* data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    size_t size_;
    std::unique_ptr<T[]> data_;
};

class Reader {
public:
    explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) std::abort();
    }
    int32_t number() {
        int32_t value;
        read(&value, sizeof value);
        return value;
    }
    template <class T>
    T* array(size_t size) {
        T* data = new T[size];  // kept for the whole run
        read(data, size * sizeof(T));
        return data;
    }

private:
    void read(void* data, size_t size) {
        if (std::fread(data, 1, size, file_) != size) std::abort();
    }
    std::FILE* file_;
};

struct Payload {
    int32_t channels, height, width, size;
    const uint8_t *levels, *data;
};

struct Case {
    Tables tables;
    int32_t channels = 0;
    std::vector<Payload> payloads;
};

Case read_case(Reader& in) {
    Case result;
    const int32_t num_dims = in.number(), num_groups = in.number();
    Group* groups = new Group[num_groups];
    for (int g = 0; g < num_groups; g++) {
        const int32_t first = in.number(), size = in.number(), num_passes = in.number();
        Pass* passes = new Pass[num_passes];
        for (int p = 0; p < num_passes; p++) {
            Pass& pass = passes[p];
            int32_t* const fields[] = {&pass.row_start, &pass.row_step,       &pass.column_start, &pass.column_step,
                                       &pass.stride,    &pass.num_neighbours, &pass.hidden,       &pass.sums,
                                       &pass.outputs};
            for (int32_t* field : fields) *field = in.number();
            const int32_t pairs = in.number();
            pass.neighbours = in.array<int32_t>(2 * pass.num_neighbours);
            pass.levels = in.array<int16_t>(size * pass.sums);
            pass.first = in.array<int16_t>(2 * pairs * pass.sums);
            pass.first_bias = in.array<int32_t>(pass.sums);
            pass.second = in.array<int16_t>(pass.hidden * pass.outputs);
            pass.second_bias = in.array<int32_t>(pass.outputs);
        }
        groups[g] = {first, size, num_passes, 0, passes};
        result.channels += size;
    }
    result.tables = {num_dims,          num_groups, groups, in.array<uint32_t>(256 * 32), in.array<int16_t>(256 * 32),
                     in.array<uint8_t>(256), in.array<uint8_t>(256)};
    for (int32_t n = in.number(); n > 0; n--) {
        Payload payload;
        payload.channels = in.number(), payload.height = in.number(), payload.width = in.number();
        payload.size = in.number();
        payload.levels = in.array<uint8_t>(payload.channels);
        payload.data = in.array<uint8_t>(payload.size);
        result.payloads.push_back(payload);
    }
    return result;
}

void damage(std::vector<uint8_t>& data) {
    for (int n = between(1, 4); n > 0; n--) {
        const size_t at = static_cast<size_t>(below(static_cast<int64_t>(data.size())));
        switch (below(6)) {
            case 0: if (!data.empty()) data[at] ^= 1 << below(8); break;
            case 1: if (!data.empty()) data[at] = static_cast<uint8_t>(below(256)); break;
            case 2: data.resize(at); break;
            case 3: data.resize(data.size() + 4 * below(8), static_cast<uint8_t>(below(2) * 255)); break;
            case 4: for (size_t i = at; i < data.size(); i++) data[i] = static_cast<uint8_t>(random_bits()); break;
            case 5: std::fill(data.begin() + at, data.end(), static_cast<uint8_t>(below(2) * 255)); break;
        }
    }
    data.resize(data.size() / 4 * 4);
}

// A damaged or foreign payload, as the shape it was or another.
void decode(const Case& one) {
    const Payload& seed = one.payloads[below(static_cast<int64_t>(one.payloads.size()))];
    std::vector<uint8_t> data(seed.data, seed.data + seed.size);
    damage(data);
    int32_t channels = seed.channels, height = seed.height, width = seed.width;
    Array<uint8_t> levels(one.channels);
    std::copy(seed.levels, seed.levels + channels, levels.data());
    if (below(3) == 0) {
        channels = between(1, one.channels), width = between(1, 24);
        height = one.tables.num_dims == 1 ? 1 : between(1, 12);
        for (int c = 0; c < channels; c++) levels.data()[c] = static_cast<uint8_t>(below(129));
    }
    Array<uint8_t> exact(data.size());
    std::copy(data.begin(), data.end(), exact.data());
    Array<int8_t> codes(static_cast<size_t>(channels) * height * width);
    walloc_entropy_decode(&one.tables, channels, height, width, levels.data(), exact.data(),
                          static_cast<int64_t>(exact.size()), codes.data());
}

// Random codes there and back.
void round_trip(const Case& one) {
    const int32_t channels = between(1, one.channels), width = between(1, 16);
    const int32_t height = one.tables.num_dims == 1 ? 1 : between(1, 9), scale = between(0, 128);
    Array<int8_t> codes(static_cast<size_t>(channels) * height * width), decoded(codes.size());
    Array<uint8_t> levels(channels);
    for (size_t i = 0; i < codes.size(); i++) codes.data()[i] = static_cast<int8_t>(between(-scale, scale - (scale > 127)));
    for (int c = 0; c < channels; c++) levels.data()[c] = static_cast<uint8_t>(below(129));
    Array<uint8_t> data(below(8) == 0 ? below(64) : 5 * codes.size() + 64);
    int64_t size = static_cast<int64_t>(data.size());
    const int status = walloc_entropy_encode(&one.tables, channels, height, width, levels.data(), codes.data(),
                                             data.data(), &size);
    if (status == kNoSpace) return;
    Array<uint8_t> exact(size);
    std::copy(data.data(), data.data() + size, exact.data());
    if (status != kOk || walloc_entropy_decode(&one.tables, channels, height, width, levels.data(), exact.data(), size,
                                               decoded.data()) != kOk ||
        std::memcmp(codes.data(), decoded.data(), codes.size()) != 0) {
        std::fprintf(stderr, "a round trip failed\n");
        std::abort();
    }
}

int mirror(int i, int n) {
    const int period = std::max(2 * (n - 1), 1), at = ((i % period) + period) % period;
    return at > n - 1 ? 2 * (n - 1) - at : at;
}

// A band of blocks of a random picture, of which only the rows that it needs are in memory.
template <class Value>
void encode(bool overlapping) {
    const int channels = between(1, 5), num_levels = overlapping ? between(1, 4) : 4, outputs = between(1, 40);
    const int block = 1 << num_levels, before = overlapping ? 4 : 0, after = overlapping ? 3 : 0;
    Picture picture{};
    picture.is_float = sizeof(Value) == 4;
    picture.height = between(1, 70), picture.width = between(1, 50), picture.margin = block * between(0, 2);
    picture.padded_height = (picture.height + block - 1) / block * block + 2 * picture.margin;
    picture.padded_width = (picture.width + block - 1) / block * block + 2 * picture.margin;
    const int rows = picture.padded_height / block, columns = picture.padded_width / block;
    const int first = between(0, rows - 1), count = between(1, rows - first);
    int low = picture.height, high = -1;
    for (int y = std::max((first - before) * block, 0);
         y < std::min((first + count + after) * block, picture.padded_height); y++) {
        const int row = mirror(y - picture.margin, picture.height);
        low = std::min(low, row), high = std::max(high, row);
    }
    picture.first_row = low, picture.num_rows = high - low + 1;
    const int64_t width = picture.width, size = sizeof(Value);
    Array<Value> pixels(static_cast<size_t>(picture.num_rows * width * channels));
    for (size_t i = 0; i < pixels.size(); i++) pixels.data()[i] = static_cast<Value>(random_bits() & 255);
    if (picture.is_float && below(8) == 0) pixels.data()[below(pixels.size())] = static_cast<Value>(INFINITY);
    picture.pixels = reinterpret_cast<const uint8_t*>(pixels.data());
    const bool planar = below(2) == 0;
    picture.row_stride = size * (planar ? width : width * channels);
    picture.column_stride = size * (planar ? 1 : channels);
    picture.channel_stride = size * (planar ? width * picture.num_rows : 1);
    Array<float> latents(static_cast<size_t>(outputs) * count * columns);
    Array<int8_t> codes(latents.size());
    const float scale = 0.01f, limit = 127.499f, step = below(2) ? 1.0f : 1.5f;
    const auto fill = [](const Array<float>& array) {
        for (size_t i = 0; i < array.size(); i++) array.data()[i] = static_cast<float>(between(-99, 99)) * 0.01f;
    };
    if (overlapping) {
        const int padded = (outputs + 7) / 8 * 8;
        Array<float> weights(static_cast<size_t>(block) * block * channels * padded), bias(padded);
        fill(weights);
        const Encoder encoder{channels, num_levels, outputs, padded, weights.data(), bias.data(), scale, limit, step, 0};
        walloc_encode(&encoder, &picture, first, count, between(1, 2), between(1, 9), between(1, 9), latents.data(),
                      codes.data());
        return;
    }
    BlockEncoder encoder{channels, outputs, {}, nullptr, nullptr, nullptr, scale, limit, step, 0};
    std::vector<int32_t> order;
    int padded = 0;
    for (int q = 0; q < 4; q++) {
        for (int o = 0; o < outputs; o++)
            if (below(2)) order.push_back(o), encoder.counts[q]++;
        padded += (encoder.counts[q] + 15) / 16 * 16;
    }
    Array<int32_t> exact(order.size());
    std::copy(order.begin(), order.end(), exact.data());
    Array<float> weights(static_cast<size_t>(channels) * 64 * padded), bias(outputs);
    fill(weights);
    encoder.order = exact.data(), encoder.weights = weights.data(), encoder.bias = bias.data();
    walloc_encode_blocks(&encoder, &picture, first, count, between(1, 2), latents.data(), codes.data());
}

// A layer of random weights on a random grid.
void convolve() {
    const int inputs = 16 * between(1, 4), outputs = 16 * between(1, 4), batch = between(1, 2);
    const int height = between(1, 21), width = between(1, 120);
    const size_t positions = static_cast<size_t>(batch) * height * width;
    Array<float> weights(static_cast<size_t>(36) * inputs * outputs), bias(outputs), in(positions * inputs);
    Array<float> residual(positions * outputs), out(positions * outputs);
    for (const Array<float>* array : {&weights, &bias, &in, &residual})
        for (size_t i = 0; i < array->size(); i++) array->data()[i] = static_cast<float>(between(-99, 99)) * 0.01f;
    const bool adds = below(2) == 0;
    const Convolution layer{inputs, outputs, weights.data(), bias.data(), adds ? residual.data() : nullptr, below(2)};
    walloc_convolve(&layer, in.data(), batch, height, width, between(1, 2), out.data());
    for (size_t i = 0; i < out.size(); i++)
        if (!std::isfinite(out.data()[i])) std::fprintf(stderr, "a convolution is not finite\n"), std::abort();
}

// The gradient of such a layer's weights, of a small batch.
void differentiate() {
    const int inputs = 16 * between(1, 4), outputs = 16 * between(1, 4), batch = between(1, 3);
    const int height = between(1, 21), width = between(1, 120);
    const size_t positions = static_cast<size_t>(batch) * height * width;
    Array<float> in(positions * inputs), gradient(positions * outputs), sums(static_cast<size_t>(36) * inputs * outputs);
    for (const Array<float>* array : {&in, &gradient, &sums})
        for (size_t i = 0; i < array->size(); i++) array->data()[i] = static_cast<float>(between(-99, 99)) * 0.01f;
    walloc_convolve_gradient(inputs, outputs, in.data(), gradient.data(), batch, height, width, between(1, 4), sums.data());
    for (size_t i = 0; i < sums.size(); i++)
        if (!std::isfinite(sums.data()[i])) std::fprintf(stderr, "a gradient is not finite\n"), std::abort();
}

// Bytes of pictures as floats, between rows of both that are not touched.
void rescale() {
    const int height = between(1, 9), width = between(1, 70), over = between(0, 5);
    const int64_t row = 3 * width + over, out_row = width + over, plane = out_row * height;
    Array<uint8_t> pixels(static_cast<size_t>(row * height - over));
    Array<float> out(static_cast<size_t>(3 * plane - over));
    for (size_t i = 0; i < pixels.size(); i++) pixels.data()[i] = static_cast<uint8_t>(random_bits());
    walloc_rescale(pixels.data(), row, height, width, out.data(), out_row, plane);
    for (int y = 0; y < height; y++)
        for (int i = 0; i < 3 * width; i++)
            if (out.data()[i % 3 * plane + y * out_row + i / 3] !=
                (static_cast<float>(pixels.data()[y * row + i]) - 127.5f) / 255.0f)
                std::fprintf(stderr, "a value is not scaled\n"), std::abort();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    Reader in(argv[1]);
    const long count = std::atol(argv[2]);
    random_bits.seed(std::strtoull(argv[3], nullptr, 10));
    std::vector<Case> cases(static_cast<size_t>(in.number()));
    for (Case& one : cases) one = read_case(in);
    for (long i = 0; i < count; i++) {
        const Case& one = cases[below(static_cast<int64_t>(cases.size()))];
        switch (below(8)) {
            case 0: round_trip(one); break;
            case 1: below(2) ? encode<float>(below(2)) : encode<uint8_t>(below(2)); break;
            case 2: below(3) ? below(2) ? convolve() : differentiate() : rescale(); break;
            default: decode(one);
        }
    }
}
