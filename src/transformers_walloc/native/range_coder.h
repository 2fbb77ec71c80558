// The range coder of `constriction` with 64-bit state and 32-bit words: its words, bit by bit.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kWindow = 12;       // residuals -12..12 have symbols of their own, the last symbol is an escape
constexpr int kEscape = 25;
constexpr int kRowLength = 32;    // cumulative frequencies of a row: 27, then 2**24
constexpr int kPrecision = 24;

class RangeDecoder {
public:
    RangeDecoder(const uint8_t* data, int64_t size) : next_(data), end_(data + size) {
        offset_ = word() << 32;
        offset_ |= word();
    }

    // The symbol of a row of cumulative frequencies; `coarse` is their upper 16 bits, of entries 1..25 and less 2**15.
    int symbol(const uint32_t* cumulative, const int16_t* coarse) {
        const uint64_t scale = range_ >> kPrecision;
        if (offset_ >= scale << kPrecision) return damage();
        int symbol = guess(scale, coarse);
        uint64_t from = scale * cumulative[symbol];
        while (offset_ < from) from = scale * cumulative[--symbol];
        uint64_t to = scale * cumulative[symbol + 1];
        while (offset_ >= to) from = to, to = scale * cumulative[++symbol + 1];
        take(from, to);
        return symbol;
    }

    // A number of that many equally likely bits.
    int bits(int count) {
        const uint64_t scale = range_ >> kPrecision << (kPrecision - count);
        const uint64_t value = offset_ / scale;
        if (value >> count) return damage();
        take(scale * value, scale * (value + 1));
        return static_cast<int>(value);
    }

    bool damaged() const { return damaged_; }
    bool exhausted() const { return next_ == end_ && (range_ == ~uint64_t{0} || offset_ < (uint64_t{1} << 33) - 1); }

private:
    uint64_t word() {
        if (next_ == end_) return 0;  // sizes are multiples of 4
        const uint64_t value = next_[0] | next_[1] << 8 | next_[2] << 16 | static_cast<uint32_t>(next_[3]) << 24;
        next_ += 4;
        return value;
    }

    int damage() {
        damaged_ = true;
        return 0;
    }

    // About which symbol it is: without a division, to 12 bits of the quotient.
    int guess(uint64_t scale, const int16_t* coarse) const {
#if defined(__AVX2__)
        const __m128 divisor = _mm_cvtsi64_ss(_mm_setzero_ps(), static_cast<int64_t>(scale));
        const __m128 dividend = _mm_cvtsi64_ss(_mm_setzero_ps(), static_cast<int64_t>(offset_ >> 1));
        const __m128 ratio = _mm_mul_ss(_mm_mul_ss(dividend, _mm_set_ss(0x1p-7f)), _mm_rcp_ss(divisor));
        const __m128i quotient = _mm_add_epi32(_mm_cvttps_epi32(ratio), _mm_set1_epi32(-32768));
        const __m128i at = _mm_shuffle_epi8(quotient, _mm_set1_epi16(0x0100));
        const auto above = [&](int i) {
            return _mm_cmpgt_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(coarse + 8 * i)), at);
        };
        const unsigned low = _mm_movemask_epi8(_mm_packs_epi16(above(0), above(1)));
        const unsigned high = _mm_movemask_epi8(_mm_packs_epi16(above(2), above(3)));
        return __builtin_ctz(low | high << 16 | 1u << 25);
#else
        const int at = static_cast<int>(offset_ / scale >> (kPrecision - 16)) - 32768;
        int count = 0;
        for (int i = 0; i < 25; i++) count += coarse[i] <= at;
        return count;
#endif
    }

    void take(uint64_t from, uint64_t to) {
        offset_ -= from;
        range_ = to - from;
        if (range_ >> 32 == 0) {
            range_ <<= 32;
            offset_ = offset_ << 32 | word();
        }
    }

    uint64_t range_ = ~uint64_t{0}, offset_ = 0;  // of the point that is coded from the lower end of the range
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

}  // namespace
