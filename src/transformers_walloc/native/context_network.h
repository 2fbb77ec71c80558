// A context network of one pass: one hidden layer, on inputs most of which are small or zero, in exact integers.
//
// All sums are below 2**24 (`Network` in entropy_tables.py proves it), so their order does not matter. The first layer
// takes pairs of inputs, two in one instruction, and leaves out those that are zero.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

constexpr int kLanes = 8;
constexpr int kMaxSums = 272;     // 255 hidden units, padded, and a group
constexpr int kMaxGroup = 16;
constexpr int kMaxTile = 12;  // vectors of sums that stay in registers, with a half

// Two numbers of 16 bits in one of 32.
inline int32_t pack(int32_t low, int32_t high) {
    return static_cast<int32_t>(static_cast<uint32_t>(low & 0xffff) | static_cast<uint32_t>(high) << 16);
}

inline int clip(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

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

// Eight sums (or four, a half) of 32 bits.
#if defined(__AVX2__)

using Eight = __m128i;  // numbers of 16 bits
inline Eight load16(const void* p) { return _mm_loadu_si128(static_cast<const Eight*>(p)); }
inline void store16(void* p, Eight v) { _mm_storeu_si128(static_cast<Eight*>(p), v); }

struct Sums {
    __m256i v;
    static Sums read(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    void write(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    void add(const int16_t* weights, __m256i pair) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
        v = _mm256_add_epi32(v, _mm256_madd_epi16(w, pair));
    }
};
struct Half {
    __m128i v;
    static Half read(const int32_t* p) { return {load16(p)}; }
    void write(int32_t* p) const { store16(p, v); }
    void add(const int16_t* weights, __m256i pair) {
        v = _mm_add_epi32(v, _mm_madd_epi16(load16(weights), _mm256_castsi256_si128(pair)));
    }
};
using Pair = __m256i;
inline Pair broadcast(int32_t pair) { return _mm256_set1_epi32(pair); }

#else

struct Pair {
    int32_t low, high;
};
inline Pair broadcast(int32_t pair) { return {static_cast<int16_t>(pair & 0xffff), pair >> 16}; }

template <int N>
struct Some {
    int32_t v[N];
    static Some read(const int32_t* p) {
        Some s;
        std::memcpy(s.v, p, sizeof s.v);
        return s;
    }
    void write(int32_t* p) const { std::memcpy(p, v, sizeof v); }
    void add(const int16_t* weights, Pair pair) {
        for (int i = 0; i < N; i++) v[i] += weights[2 * i] * pair.low + weights[2 * i + 1] * pair.high;
    }
};
using Sums = Some<8>;
using Half = Some<4>;

#endif

// What a place has: pairs of features, and the numbers of those that are not zero.
struct Inputs {
    std::vector<int32_t> pairs;
    std::vector<uint16_t> rows;
    int num_rows = 0;

    explicit Inputs(size_t most) : pairs(most + 2 * kLanes), rows(most + 2 * kLanes) {}

    // Codes and magnitudes, as number 0 and on: a multiple of eight, filled up with zeros.
    void list_codes(const uint16_t* known, int count) {
        for (int k = 0; k < count; k += kLanes) {
            int32_t* out = pairs.data() + k;
#if defined(__AVX2__)
            const Eight both = load16(known + k);
            const Eight code = _mm_srai_epi16(_mm_slli_epi16(both, 8), 8), magnitude = _mm_srli_epi16(both, 8);
            store16(out, _mm_unpacklo_epi16(code, magnitude));
            store16(out + 4, _mm_unpackhi_epi16(code, magnitude));
            append(both, k, 255);
#else
            for (int i = 0; i < kLanes; i++) out[i] = pack(static_cast<int8_t>(known[k + i] & 255), known[k + i] >> 8);
            append(out, k, kLanes);
#endif
        }
    }

    // Mean magnitudes of both pairs of sides, as number `row` and on.
    void list_means(const uint16_t* const sides[4], int count, int row) {
        for (int k = 0; k < count; k += kLanes, row += kLanes) {
            int32_t* out = pairs.data() + row;
            const int valid = std::min(count - k, kLanes);
#if defined(__AVX2__)
            Eight magnitude[4];
            for (int i = 0; i < 4; i++) magnitude[i] = _mm_srli_epi16(load16(sides[i] + k), 8);
            const Eight low = _mm_srli_epi16(_mm_add_epi16(magnitude[0], magnitude[1]), 1);
            const Eight high = _mm_srli_epi16(_mm_add_epi16(magnitude[2], magnitude[3]), 1);
            store16(out, _mm_unpacklo_epi16(low, high));
            store16(out + 4, _mm_unpackhi_epi16(low, high));
            append(_mm_or_si128(low, high), row, (1u << valid) - 1);
#else
            for (int i = 0; i < kLanes; i++)
                out[i] = pack(((sides[0][k + i] >> 8) + (sides[1][k + i] >> 8)) >> 1,
                              ((sides[2][k + i] >> 8) + (sides[3][k + i] >> 8)) >> 1);
            append(out, row, valid);
#endif
        }
    }

    // Codes on opposite sides, of the first channels, four along each axis.
    void list_sides(const uint16_t* const sides[4], int count, int row) {
        int32_t* out = pairs.data() + row;
#if defined(__AVX2__)
        Eight code[4];
        for (int i = 0; i < 4; i++) {
            const Eight both = _mm_loadl_epi64(reinterpret_cast<const Eight*>(sides[i]));
            code[i] = _mm_srai_epi16(_mm_slli_epi16(both, 8), 8);
        }
        const Eight wide = _mm_unpacklo_epi16(code[0], code[1]), high = _mm_unpacklo_epi16(code[2], code[3]);
        store16(out, wide);
        store16(out + 4, high);
        append(_mm_packs_epi32(wide, high), row, ((1u << count) - 1) * 17);
#else
        for (int i = 0; i < kLanes; i++)
            out[i] = i % 4 < count ? pack(static_cast<int8_t>(sides[i / 4 * 2][i % 4] & 255),
                                          static_cast<int8_t>(sides[i / 4 * 2 + 1][i % 4] & 255))
                                   : 0;
        append(out, row, kLanes);
#endif
    }

private:
#if defined(__AVX2__)
    // Those of eight that are not zero and in the mask, number `row` and on.
    void append(Eight values, int row, unsigned mask) {
        const Eight zero = _mm_cmpeq_epi16(values, _mm_setzero_si128());
        mask &= ~static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(zero, zero)));
        const Eight order = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const Eight*>(kPositions.of[mask])));
        store16(rows.data() + num_rows, _mm_add_epi16(order, _mm_set1_epi16(static_cast<int16_t>(row))));
        num_rows += __builtin_popcount(mask);
    }
#else
    void append(const int32_t* values, int row, int count) {
        for (int i = 0; i < count; i++) {  // written always, counted if not zero: branches would be mispredicted
            rows[num_rows] = static_cast<uint16_t>(row + i);
            num_rows += values[i] != 0;
        }
    }
#endif
};

// The indices are a parameter pack, so that compilers keep all sums in registers.
template <bool half, int... K>
void accumulate_tile(std::integer_sequence<int, K...>, const Inputs& inputs, const int16_t* weights, int row_length,
                     const int32_t* bias, int32_t* out) {
    constexpr int last = kLanes * sizeof...(K);
    Sums sums[] = {Sums::read(bias + kLanes * K)...};
    Half rest = half ? Half::read(bias + last) : Half{};
    for (int i = 0; i < inputs.num_rows; i++) {
        const int16_t* row = weights + 2 * static_cast<ptrdiff_t>(inputs.rows[i]) * row_length;
        const Pair pair = broadcast(inputs.pairs[inputs.rows[i]]);
        (sums[K].add(row + 2 * kLanes * K, pair), ...);
        if (half) rest.add(row + 2 * last, pair);
    }
    (sums[K].write(out + kLanes * K), ...);
    if (half) rest.write(out + last);
}

// out = bias + weights.T @ inputs: `count` sums, a multiple of 4, for each of `places`, kMaxSums apart.
void accumulate(const Inputs* inputs, int places, const int16_t* weights, int count, const int32_t* bias,
                int32_t* out) {
    for (int done = 0; done < count;) {
        const int left = count - done, tile = std::min(left / kLanes, kMaxTile);
        const bool half = left % kLanes && tile == left / kLanes;
        const int16_t* w = weights + 2 * done;
        for (int k = 0; k < places; k++) {
            int32_t* to = out + k * kMaxSums + done;
            switch (2 * tile + half) {
#define TILE(N)                                                                                               \
    case 2 * N:                                                                                               \
        accumulate_tile<false>(std::make_integer_sequence<int, N>(), inputs[k], w, count, bias + done, to);   \
        break;                                                                                                \
    case 2 * N + 1:                                                                                           \
        accumulate_tile<true>(std::make_integer_sequence<int, N>(), inputs[k], w, count, bias + done, to);    \
        break;
                TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#undef TILE
            }
        }
        done += tile * kLanes + 4 * half;
    }
}

// Sixteen hidden units from as many sums, in the order 0-3, 8-11, 4-7, 12-15.
#if defined(__AVX2__)

inline void activate(const int32_t* sums, int16_t* units) {
    const __m256i low = _mm256_srai_epi32(Sums::read(sums).v, 5), high = _mm256_srai_epi32(Sums::read(sums + 8).v, 5);
    const __m256i both = _mm256_max_epi16(_mm256_packs_epi32(low, high), _mm256_setzero_si256());
    _mm256_store_si256(reinterpret_cast<__m256i*>(units), _mm256_min_epi16(both, _mm256_set1_epi16(511)));
}

// Four rows of `count` weights, a multiple of 16, times the units.
inline void multiply(const int16_t* weights, const int16_t* units, int count, const int32_t* bias, int32_t* out) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (int k = 0; k < count; k += 16, weights += 16) {
        const __m256i unit = _mm256_load_si256(reinterpret_cast<const __m256i*>(units + k));
        const auto product = [&](int row) {
            return _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + row * count)), unit);
        };
        a = _mm256_add_epi32(a, product(0));
        b = _mm256_add_epi32(b, product(1));
        c = _mm256_add_epi32(c, product(2));
        d = _mm256_add_epi32(d, product(3));
    }
    const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    const __m256i all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    store16(out, _mm_add_epi32(sums, load16(bias)));
}

// Four numbers of each of four places, `stride` apart -> four places of each of four numbers, four apart.
inline void transpose(const int32_t* in, int stride, int32_t* out) {
    const __m128i a = load16(in), b = load16(in + stride), c = load16(in + 2 * stride), d = load16(in + 3 * stride);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i ab2 = _mm_unpackhi_epi32(a, b), cd2 = _mm_unpackhi_epi32(c, d);
    store16(out, _mm_unpacklo_epi64(ab, cd));
    store16(out + 4, _mm_unpackhi_epi64(ab, cd));
    store16(out + 8, _mm_unpacklo_epi64(ab2, cd2));
    store16(out + 12, _mm_unpackhi_epi64(ab2, cd2));
}

// Four expected values in whole codes, and rows of the table, from sums for the expected value and for the class.
inline void predict_four(const int32_t* sums, const int32_t* classes, int16_t* expected, uint8_t* rows) {
    const __m128i eighths = _mm_add_epi32(
        _mm_min_epi32(_mm_max_epi32(_mm_srai_epi32(load16(sums), 10), _mm_set1_epi32(-1024)), _mm_set1_epi32(1016)),
        _mm_set1_epi32(4));
    const __m128i scale =
        _mm_min_epi32(_mm_max_epi32(_mm_srai_epi32(load16(classes), 15), _mm_setzero_si128()), _mm_set1_epi32(31));
    const __m128i row = _mm_or_si128(_mm_slli_epi32(scale, 3), _mm_and_si128(eighths, _mm_set1_epi32(7)));
    const __m128i both = _mm_packs_epi32(_mm_srai_epi32(eighths, 3), row);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(expected), both);
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_unpackhi_epi64(both, both), both));
    std::memcpy(rows, &four, 4);
}

#else

inline void activate(const int32_t* sums, int16_t* units) {
    constexpr int order[4] = {0, 8, 4, 12};
    for (int i = 0; i < 16; i++) units[i] = static_cast<int16_t>(clip(sums[order[i / 4] + i % 4] >> 5, 0, 511));
}

inline void multiply(const int16_t* weights, const int16_t* units, int count, const int32_t* bias, int32_t* out) {
    for (int i = 0; i < 4; i++, weights += count) {
        int32_t sum = bias[i];
        for (int k = 0; k < count; k++) sum += weights[k] * units[k];
        out[i] = sum;
    }
}

inline void transpose(const int32_t* in, int stride, int32_t* out) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) out[4 * j + i] = in[i * stride + j];
}

inline void predict_four(const int32_t* sums, const int32_t* classes, int16_t* expected, uint8_t* rows) {
    for (int i = 0; i < 4; i++) {
        const int eighths = clip(sums[i] >> 10, -1024, 1016) + 4;
        expected[i] = static_cast<int16_t>(eighths >> 3);
        rows[i] = static_cast<uint8_t>(clip(classes[i] >> 15, 0, 31) << 3 | (eighths & 7));
    }
}

#endif

}  // namespace
