// The entropy coder's inner loops: the same bytes and the same codes as `entropy_coding.py`, which explains the format.
//
// Positions are visited one after another. Everything known of a position lies side by side, 16 bits per channel (code
// and magnitude), so the features of a place are a few short runs of memory.
//
// What is read from outside is the bytes alone, through `RangeDecoder::word`, which knows where they end; all indices
// follow from the shape and from tables that `codec/entropy_kernel.py` has built.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "context_network.h"
#include "kernels.h"
#include "range_coder.h"

namespace {

constexpr int kBlock = 2048;      // positions coded at once: entropy_context.BLOCK
constexpr int kShifted = 3;       // channels whose neighbours' codes are features
constexpr int kBatch = 8;
constexpr int kRow = kBlock + kBatch;  // of a channel's predictions: the last batch may reach further
constexpr int kMaxNeighbours = 16;

// Where position i of a line of n is mirrored to, as numpy's "reflect" does once.
inline int mirror(int i, int n) {
    if (i < 0) i = -i;
    if (i > n - 1) i = 2 * (n - 1) - i;
    return clip(i, 0, n - 1);
}

inline int round_up(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Codes of one item while they are coded.
class Walk {
public:
    Walk(const Tables& tables, int channels, int height, int width, const uint8_t* levels)
        : tables_(tables), channels_(channels), height_(height), width_(width), levels_(levels),
          known_(static_cast<size_t>(channels) * height * width + kMaxGroup), inputs_(kBatch, Inputs(most_inputs())),
          expected_(kMaxGroup * kRow), rows_(kMaxGroup * kRow), values_(kMaxGroup * kRow) {}

    Status decode(RangeDecoder& decoder, int8_t* codes) {
        visit([&](const Block& block) { return decode_block(decoder, block, codes); });
        if (decoder.damaged()) return kDamaged;
        return decoder.exhausted() ? kOk : kLeftOver;
    }

    Status encode(RangeEncoder& encoder, const int8_t* codes) {
        const size_t plane = static_cast<size_t>(height_) * width_;
        for (int c = 0; c < channels_; c++)
            for (size_t i = 0; i < plane; i++) known_[i * channels_ + c] = entry(codes[c * plane + i]);
        visit([&](const Block& block) { return encode_block(encoder, block, codes); });
        return encoder.full() ? kNoSpace : kOk;
    }

private:
    // Positions of a pass: rows from `y` on, columns from `x` on, counted on the grid of the pass.
    struct Block {
        const Group& group;
        const Pass& pass;
        int kept, y, x, height, width;
        int count() const { return height * width; }
    };

    // Numbers of pairs of features: codes from 0 on, then means and codes on opposite sides, each a multiple of eight.
    struct Places {
        int codes = 0, means = 0, sides = 0, all = 0;
        Places() = default;
        Places(const Group& group, const Pass& pass)
            : codes(group.first + pass.num_neighbours * group.size), means(round_up(codes)),
              sides(means + round_up(group.first)), all(group.first ? sides + kLanes : sides) {}
    };

    // What is known of a code: itself and its magnitude.
    uint16_t entry(int8_t code) const {
        const uint8_t index = static_cast<uint8_t>(code);
        return static_cast<uint16_t>(index | tables_.magnitude[index] << 8);
    }

    int most_inputs() const {
        int most = 0;
        for (int g = 0; g < tables_.num_groups; g++)
            for (int p = 0; p < tables_.groups[g].num_passes; p++)
                most = std::max(most, Places(tables_.groups[g], tables_.groups[g].passes[p]).all);
        return most;
    }

    // Calls code(block), which says whether to go on, for all blocks in the order of coding, with predictions made.
    template <class Code>
    void visit(Code code) {
        for (int g = 0; g < tables_.num_groups; g++) {
            const Group& group = tables_.groups[g];
            if (group.first >= channels_) return;
            const int left = channels_ - group.first;
            const int kept = group.size < left ? group.size : left;
            for (int p = 0; p < group.num_passes; p++) {
                const Pass& pass = group.passes[p];
                const int ny = positions(height_, pass.row_start, pass.row_step);
                const int nx = positions(width_, pass.column_start, pass.column_step);
                if (ny == 0 || nx == 0) continue;
                prepare(group, pass, kept, nx);
                const int width = nx < kBlock ? nx : kBlock, height = kBlock / width;
                for (int y = 0; y < ny; y += height)
                    for (int x = 0; x < nx; x += width) {
                        const Block block{group, pass, kept, y, x, ny - y < height ? ny - y : height,
                                          nx - x < width ? nx - x : width};
                        predict(block);
                        if (!code(block)) return;
                    }
            }
        }
    }

    static int positions(int size, int start, int step) { return size > start ? (size - start + step - 1) / step : 0; }

    static bool in_pass(int at, int start, int step) { return at >= start && (at - start) % step == 0; }

    // The bias with the levels' share, and the columns of the neighbours.
    void prepare(const Group& group, const Pass& pass, int kept, int nx) {
        bias_.assign(pass.first_bias, pass.first_bias + pass.sums);
        for (int i = 0; i < kept; i++)
            for (int k = 0; k < pass.sums; k++) bias_[k] += levels_[group.first + i] * pass.levels[i * pass.sums + k];
        const int count = (width_ + pass.stride - 1) / pass.stride;
        narrow_ = count == 1 || height_ <= pass.stride;
        columns_.clear();
        for (int x = 0; x < nx; x++)
            for (int q = 0; q < pass.num_neighbours; q++) {
                const int at = (pass.column_start + x * pass.column_step) / pass.stride + pass.neighbours[2 * q + 1];
                columns_.push_back(mirror(at, count) * pass.stride);
            }
        places_ = Places(group, pass);
        known_codes_.assign(static_cast<size_t>(kBatch) * places_.means + 2 * kMaxGroup, 0);
    }

    // Expected values and rows of the table of all codes of a block.
    void predict(const Block& block) {
        const Pass& pass = block.pass;
        const int rows_of_lattice = (height_ + pass.stride - 1) / pass.stride;
        int t = 0;
        for (int j = 0; j < block.height; j++) {
            const int y = pass.row_start + (block.y + j) * pass.row_step;
            for (int q = 0; q < pass.num_neighbours; q++) {
                const int at = mirror(y / pass.stride + pass.neighbours[2 * q], rows_of_lattice) * pass.stride;
                rows_around_[q] = row(at) + block.group.first;
                row_in_pass_[q] = in_pass(at, pass.row_start, pass.row_step);
            }
            // In batches: what was just written in pieces is slow to read as a whole.
            for (int i = 0; i < block.width; i += kBatch) {
                const int count = std::min(kBatch, block.width - i);
                for (int k = 0; k < count; k++) collect(block, y, block.x + i + k, k);
                for (int k = 0; k < count; k++) list(block, y, block.x + i + k, k);
                run_network(block, count);
                finish(block, t, count);
                t += count;
            }
        }
    }

    // The known codes that number k of a batch sees, of the position in row y of the picture and column x of the pass.
    void collect(const Block& block, int y, int x, int k) {
        const Pass& pass = block.pass;
        const int size = block.group.size, earlier = block.group.first;
        uint16_t* out = known_codes_.data() + static_cast<size_t>(k) * places_.means;
        const uint16_t* here = row(y) + static_cast<size_t>(pass.column_start + x * pass.column_step) * channels_;
        for (int c = 0; c < earlier; c += kLanes) std::memcpy(out + c, here + c, 2 * kLanes);
        out += earlier;
        if (narrow_ || block.kept < size)
            out = collect_checked(block, x, out);
        else if (size <= 2)
            out = collect_around<2>(block, x, out);
        else if (size <= kLanes)
            out = collect_around<kLanes>(block, x, out);
        else
            out = collect_around<kMaxGroup>(block, x, out);
        std::fill_n(out, kLanes, uint16_t{0});
    }

    // Those of the neighbours, `width` at once, of which the group's are kept.
    template <int width>
    uint16_t* collect_around(const Block& block, int x, uint16_t* out) const {
        const int count = block.pass.num_neighbours;
        const int32_t* column = columns_.data() + static_cast<size_t>(x) * count;
        for (int q = 0; q < count; q++, out += block.group.size)
            std::memcpy(out, rows_around_[q] + static_cast<size_t>(column[q]) * channels_, 2 * width);
        return out;
    }

    // The same where a group is cut off, or an axis has one known position: a neighbour may then be the position itself,
    // of which nothing is known.
    uint16_t* collect_checked(const Block& block, int x, uint16_t* out) const {
        const Pass& pass = block.pass;
        const int32_t* column = columns_.data() + static_cast<size_t>(x) * pass.num_neighbours;
        for (int q = 0; q < pass.num_neighbours; q++, out += block.group.size) {
            std::fill_n(out, block.group.size, uint16_t{0});
            if (narrow_ && row_in_pass_[q] && in_pass(column[q], pass.column_start, pass.column_step)) continue;
            std::copy_n(rows_around_[q] + static_cast<size_t>(column[q]) * channels_, block.kept, out);
        }
        return out;
    }

    // Its inputs.
    void list(const Block& block, int y, int x, int k) {
        Inputs& inputs = inputs_[k];
        inputs.num_rows = 0;
        inputs.list_codes(known_codes_.data() + static_cast<size_t>(k) * places_.means, places_.means);
        const int count = block.group.first;
        if (count == 0) return;
        const int column = block.pass.column_start + x * block.pass.column_step;
        const auto beside = [&](int step) {
            const int at = column + step;
            return row(y) + static_cast<size_t>(at >= 0 && at < width_ ? at : mirror(at, width_)) * channels_;
        };
        const uint16_t* sides[4] = {beside(-1), beside(1)};
        if (tables_.num_dims == 2) {
            sides[2] = row(mirror(y - 1, height_)) + static_cast<size_t>(column) * channels_;
            sides[3] = row(mirror(y + 1, height_)) + static_cast<size_t>(column) * channels_;
        } else {
            sides[2] = beside(-2);
            sides[3] = beside(2);
        }
        inputs.list_means(sides, count, places_.means);
        inputs.list_sides(sides, std::min(count, kShifted), places_.sides);
    }

    const uint16_t* row(int y) const { return known_.data() + static_cast<size_t>(y) * width_ * channels_; }

    // Sums for the expected values and the classes of all channels, of `count` places.
    void run_network(const Block& block, int count) {
        const Pass& pass = block.pass;
        accumulate(inputs_.data(), count, pass.first, pass.sums, bias_.data(), sums_);
        for (int k = 0; k < count; k++) {
            alignas(32) int16_t units[kMaxSums];
            const int32_t* sums = sums_ + k * kMaxSums;
            for (int i = 0; i < pass.hidden; i += 16) activate(sums + i, units + i);
            int32_t* out = outputs_ + k * pass.outputs;
            for (int i = 0; i < pass.outputs; i += 4)
                multiply(pass.second + static_cast<ptrdiff_t>(i) * pass.hidden, units, pass.hidden,
                         pass.second_bias + i, out + i);
            for (int i = 0; i < pass.sums - pass.hidden; i++) out[i] += sums[pass.hidden + i];
        }
    }

    // Expected values and rows of a batch from number t of the block on.
    void finish(const Block& block, int t, int count) {
        const int size = block.group.size, outputs = block.pass.outputs;
        alignas(32) int32_t transposed[4 * 2 * kMaxGroup];
        for (int k = 0; k < count; k += 4) {
            for (int i = 0; i < outputs; i += 4) transpose(outputs_ + k * outputs + i, outputs, transposed + 4 * i);
            for (int c = 0; c < block.kept; c++)
                predict_four(transposed + 4 * c, transposed + 4 * (size + c), expected_.data() + c * kRow + t + k,
                             rows_.data() + c * kRow + t + k);
        }
    }

    bool decode_block(RangeDecoder& decoder, const Block& block, int8_t* codes) {
        const int count = block.count();
        escapes_.clear();
        bool wide = false;
        for (int c = 0; c < block.kept; c++)
            for (int t = c * kRow; t < c * kRow + count; t++) {
                const int row = rows_[t] * kRowLength;
                const int symbol = decoder.symbol(tables_.cumulative + row, tables_.coarse + row);
                if (symbol == kEscape) escapes_.push_back(t);
                wide |= tables_.shift[rows_[t]] != 0;
                values_[t] = static_cast<int16_t>(symbol - kWindow);
            }
        if (decoder.damaged()) return false;
        if (wide)
            for (int c = 0; c < block.kept; c++)
                for (int t = c * kRow; t < c * kRow + count; t++)
                    if (const int shift = tables_.shift[rows_[t]])
                        values_[t] = static_cast<int16_t>(values_[t] * (1 << shift) - (1 << shift >> 1) +
                                                          decoder.bits(shift));
        for (int c = 0; c < block.kept; c++)
            for (int t = c * kRow; t < c * kRow + count; t++) values_[t] += expected_[t];
        for (int t : escapes_) values_[t] = static_cast<int16_t>(decoder.bits(8) - 128);
        if (decoder.damaged()) return false;
        for (int c = 0; c < block.kept; c++) {
            int t = c * kRow;
            for (int j = 0; j < block.height; j++) {
                const size_t at = place(block, j);
                int8_t* code = codes + (block.group.first + c) * static_cast<size_t>(height_) * width_ + at;
                uint16_t* known = known_.data() + at * channels_ + block.group.first + c;
                for (int i = 0; i < block.width; i++, t++) {
                    // Only damaged data leaves int8; the reference wraps as well.
                    const int8_t value = static_cast<int8_t>(values_[t] & 255);
                    code[static_cast<size_t>(i) * block.pass.column_step] = value;
                    known[static_cast<size_t>(i) * block.pass.column_step * channels_] = entry(value);
                }
            }
        }
        return true;
    }

    bool encode_block(RangeEncoder& encoder, const Block& block, const int8_t* codes) {
        escapes_.clear();
        plain_.clear();
        for (int c = 0; c < block.kept; c++) {
            int t = c * kRow;
            for (int j = 0; j < block.height; j++) {
                const int8_t* code =
                    codes + (block.group.first + c) * static_cast<size_t>(height_) * width_ + place(block, j);
                for (int i = 0; i < block.width; i++, t++) {
                    const int value = code[static_cast<size_t>(i) * block.pass.column_step];
                    int residual = value - expected_[t];
                    if (const int shift = tables_.shift[rows_[t]]) {
                        residual += 1 << shift >> 1;
                        plain_.push_back({shift, residual & ((1 << shift) - 1)});
                        residual >>= shift;
                    }
                    int symbol = residual + kWindow;
                    if (symbol < 0 || symbol >= kEscape) {
                        symbol = kEscape;
                        escapes_.push_back(value + 128);
                    }
                    encoder.symbol(tables_.cumulative + rows_[t] * kRowLength, symbol);
                }
            }
        }
        for (const Plain& plain : plain_) encoder.bits(plain.count, static_cast<uint32_t>(plain.value));
        for (int value : escapes_) encoder.bits(8, static_cast<uint32_t>(value));
        return !encoder.full();
    }

    // Of the first position in row j of a block.
    size_t place(const Block& block, int j) const {
        const Pass& pass = block.pass;
        return static_cast<size_t>(pass.row_start + (block.y + j) * pass.row_step) * width_ + pass.column_start +
               static_cast<size_t>(block.x) * pass.column_step;
    }

    struct Plain {
        int count, value;
    };

    const Tables& tables_;
    const int channels_, height_, width_;
    const uint8_t* levels_;
    std::vector<uint16_t> known_;  // (height, width, channels)
    std::vector<Inputs> inputs_;  // of a batch
    alignas(32) int32_t sums_[kBatch * kMaxSums];
    std::vector<int16_t> expected_;
    std::vector<uint8_t> rows_;
    std::vector<int16_t> values_;
    std::vector<int32_t> bias_, columns_;  // (columns of the pass, neighbours)
    std::vector<uint16_t> known_codes_;  // (batch, places_.means)
    Places places_{};
    const uint16_t* rows_around_[kMaxNeighbours];
    bool row_in_pass_[kMaxNeighbours];
    alignas(32) int32_t outputs_[kBatch * 2 * kMaxGroup];  // of a batch
    bool narrow_ = false;
    std::vector<int> escapes_;
    std::vector<Plain> plain_;
};

}  // namespace

EXPORT int walloc_entropy_decode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const uint8_t* data, int64_t size, int8_t* codes) {
    try {
        RangeDecoder decoder(data, size);
        return Walk(*tables, channels, height, width, levels).decode(decoder, codes);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

EXPORT int walloc_entropy_encode(const Tables* tables, int32_t channels, int32_t height, int32_t width,
                                 const uint8_t* levels, const int8_t* codes, uint8_t* data, int64_t* size) {
    try {
        RangeEncoder encoder(data, *size);
        const Status status = Walk(*tables, channels, height, width, levels).encode(encoder, codes);
        *size = encoder.finish();
        return encoder.full() ? kNoSpace : status;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

EXPORT void walloc_histograms(const int8_t* codes, int32_t channels, int64_t positions, int64_t* counts) {
    for (int32_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < positions; i++) counts[256 * c + static_cast<uint8_t>(codes[c * positions + i])]++;
}
