// What the encoders share: vectors, companding, reflection at the borders, and threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

constexpr int kLanes = 8;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

typedef uint8_t Bytes __attribute__((vector_size(16)));

// The first eight as floats.
inline Vector widen(Bytes v) {
#if defined(__AVX2__)
    return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(reinterpret_cast<__m128i>(v))));
#else
    Vector w;
    for (int i = 0; i < kLanes; i++) w[i] = v[i];
    return w;
#endif
}

// Sixteen pixels of three channels that lie side by side, taken apart.
inline void split3(const uint8_t* p, Bytes out[3]) {
    Bytes a, b, c;
    std::memcpy(&a, p, 16), std::memcpy(&b, p + 16, 16), std::memcpy(&c, p + 32, 16);
    const Bytes ab0 = __builtin_shufflevector(a, b, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
    const Bytes ab1 = __builtin_shufflevector(a, b, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
    const Bytes ab2 = __builtin_shufflevector(a, b, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
    out[0] = __builtin_shufflevector(ab0, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
    out[1] = __builtin_shufflevector(ab1, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
    out[2] = __builtin_shufflevector(ab2, c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
}

inline Bytes upper(Bytes v) {
    return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Vector load_values(const float* p) { return load(p); }
inline Vector load_values(const uint8_t* p) {
#if defined(__AVX2__)
    return widen(reinterpret_cast<Bytes>(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    Bytes v = {};
    std::memcpy(&v, p, kLanes);
    return widen(v);
#endif
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
inline Vector fill(float x) { return Vector{x, x, x, x, x, x, x, x}; }
// Whether all lanes are; of what is multiplied by zero, whether it was finite.
inline bool is_zero(Vector v) {
    bool zero = true;
    for (int i = 0; i < kLanes; i++) zero &= v[i] == 0.0f;
    return zero;
}

// Vectors of matrix products, and rows whose sums stay in registers beside two of them.
#if defined(__AVX512F__)
constexpr int kWide = 16, kRows = 12;
#else
constexpr int kWide = 8, kRows = 6;
#endif
typedef float Wide __attribute__((vector_size(4 * kWide)));

inline Wide load_wide(const float* p) {
    Wide v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_wide(float* p, Wide v) { std::memcpy(p, &v, sizeof v); }

// Memory whose start is aligned for vectors.
class Buffer {
public:
    float* reserve(size_t count) {
        if (count > size_) {
            memory_.reset();
            memory_.reset(new float[count + 16]);
            size_ = count;
        }
        const size_t over = reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float) % 16;
        return memory_.get() + (16 - over) % 16;
    }

private:
    std::unique_ptr<float[]> memory_;
    size_t size_ = 0;
};

// erf to 2e-7, a ratio of polynomials; constant beyond +-3.83, where it is 1 in float32. NaN stays NaN.
inline Vector erf(Vector x) {
    const Vector most = fill(3.832506856900711f);
    x = x > most ? most : x;
    x = x < -most ? -most : x;
    const Vector y = x * x;
    Vector p = fill(-2.72614225801306e-10f);
    for (float c : {2.77068142495902e-08f, -2.10102402082508e-06f, -5.69250639462346e-05f, -7.34990630326855e-04f,
                    -2.95459980854025e-03f, -1.60960333262415e-02f})
        p = p * y + c;
    Vector q = fill(-1.45660718464996e-05f);
    for (float c : {-2.13374052778905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f})
        q = q * y + c;
    return x * p / q;
}

// To the nearest integer, ties to even, of numbers below 2**22.
inline Vector round(Vector x) { return x + 12582912.0f - 12582912.0f; }

// Where position i, possibly outside, of a line of n is mirrored to: a triangle wave.
inline int mirror(int i, int n) {
    const int last = n - 1, period = std::max(2 * last, 1);
    int at = i % period;
    if (at < 0) at += period;
    return at > last ? 2 * last - at : at;
}

// Runs `make()(i)` for i below `count`, on as many threads as there are to be had. Returns a Status.
template <class Make>
int run_parallel(int num_threads, size_t count, Make make) {
    std::atomic<size_t> next{0};
    std::atomic<int> status{kOk};
    const auto work = [&]() noexcept {
        try {
            auto worker = make();
            for (size_t i; status == kOk && (i = next++) < count;) {
                const int done = worker(i);
                if (done != kOk) status = done;
            }
        } catch (const std::bad_alloc&) {
            status = kNoMemory;
        }
    };
    try {
        std::vector<std::thread> threads;
        try {
            for (size_t i = 1; i < std::min<size_t>(num_threads, count); i++) threads.emplace_back(work);
        } catch (const std::system_error&) {
            // As many as there are.
        }
        work();
        for (std::thread& thread : threads) thread.join();
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return status;
}

}  // namespace
