// What surrounds the convolutions of a unit and the pooling, on the CPU, in few passes over memory. Formulas: fused.py.
// A matrix has a row for each frame, the channels of a frame side by side; rows may lie apart. One thread works on an
// utterance, so the number of threads changes no bit.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// Code for several generations of processors, chosen when loaded: gcc with glibc knows how.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define EACH_PROCESSOR
#endif

namespace {

constexpr int64_t PANEL = 1024;  // channels at a time: what is kept for each stays in the first cache

enum class Bfloat16 : uint16_t {};

inline float load(Bfloat16 value) { return __builtin_bit_cast(float, uint32_t(value) << 16); }
inline float load(float value) { return value; }

inline void store(Bfloat16& to, float value) {  // to nearest, ties to even; NaNs that arise here stay NaNs
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    to = Bfloat16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store(float& to, float value) { to = value; }

inline float above(float value, float floor) { return value < floor ? floor : value; }

// e^x for x <= 0, within 2e-7 of the value; below -87 as for -87.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
    const float whole = shifted - 12582912.0f;
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const uint32_t power = __builtin_bit_cast(uint32_t, shifted) + 127u - 0x4b400000u;
    return p * __builtin_bit_cast(float, power << 23);
}

// Part of a matrix: data[t * step + c].
template <class Value>
struct Rows {
    Value* data;
    int64_t step;
    Value* row(int64_t t) const { return data + t * step; }
};

// What the kernels keep for each channel of an utterance, [B, C].
struct PerChannel {
    const float *bias, *centre, *gain, *offset, *curve;
};

template <class Value>
EACH_PROCESSOR void moments(int64_t frames, int64_t channels, Rows<const Value> in, const float* __restrict bias,
                            float floor, float* __restrict mean, float* __restrict square) {
    for (int64_t c = 0; c < channels; c++) mean[c] = square[c] = 0;
    for (int64_t t = 0; t < frames; t++) {
        const Value* __restrict x = in.row(t);
        for (int64_t c = 0; c < channels; c++) mean[c] += above(load(x[c]) + bias[c], floor);
    }
    for (int64_t c = 0; c < channels; c++) mean[c] /= float(frames);
    for (int64_t t = 0; t < frames; t++) {
        const Value* __restrict x = in.row(t);
        for (int64_t c = 0; c < channels; c++) {
            const float deviation = above(load(x[c]) + bias[c], floor) - mean[c];
            square[c] += deviation * deviation;
        }
    }
    for (int64_t c = 0; c < channels; c++) square[c] /= float(frames);
}

// out = gain * (r - centre) + offset + added; onward = out + more, where there is more.
template <class Value>
EACH_PROCESSOR void affine(int64_t frames, int64_t channels, Rows<const Value> in, Rows<const Value> added,
                           Rows<const Value> more, PerChannel k, float floor, Rows<Value> out, Rows<Value> onward) {
    const float *__restrict bias = k.bias, *__restrict centre = k.centre;
    const float *__restrict gain = k.gain, *__restrict offset = k.offset;
    for (int64_t t = 0; t < frames; t++) {
        const Value *x = in.row(t), *plus = added.row(t), *plus_more = more.row(t);  // x may be out itself
        Value *y = out.row(t), *z = onward.row(t);
        if (onward.data == nullptr) {
#pragma GCC ivdep
            for (int64_t c = 0; c < channels; c++)
                store(y[c], gain[c] * (above(load(x[c]) + bias[c], floor) - centre[c]) + offset[c] + load(plus[c]));
        } else {
#pragma GCC ivdep
            for (int64_t c = 0; c < channels; c++) {
                const float value = gain[c] * (above(load(x[c]) + bias[c], floor) - centre[c]) + offset[c];
                store(y[c], value + load(plus[c]));
                store(z[c], value + load(plus[c]) + load(plus_more[c]));
            }
        }
    }
}

template <class Value>
EACH_PROCESSOR void sums(int64_t frames, int64_t channels, Rows<const Value> in, Rows<const Value> grad,
                         Rows<const Value> more, PerChannel k, float floor, float* __restrict slope,
                         float* __restrict total) {
    const float *__restrict bias = k.bias, *__restrict centre = k.centre;
    for (int64_t c = 0; c < channels; c++) slope[c] = total[c] = 0;
    for (int64_t t = 0; t < frames; t++) {
        const Value *__restrict x = in.row(t), *__restrict g = grad.row(t), *__restrict h = more.row(t);
        for (int64_t c = 0; c < channels; c++) {
            const float whole = load(g[c]) + load(h[c]);
            slope[c] += whole * (above(load(x[c]) + bias[c], floor) - centre[c]);
            total[c] += whole;
        }
    }
}

template <class Value>
EACH_PROCESSOR void gradient(int64_t frames, int64_t channels, Rows<const Value> in, Rows<const Value> grad,
                             Rows<const Value> more, PerChannel k, float floor, Rows<Value> out,
                             float* __restrict total) {
    const float *__restrict bias = k.bias, *__restrict centre = k.centre;
    const float *__restrict gain = k.gain, *__restrict offset = k.offset, *__restrict curve = k.curve;
    for (int64_t c = 0; c < channels; c++) total[c] = 0;
    for (int64_t t = 0; t < frames; t++) {
        const Value *x = in.row(t), *g = grad.row(t), *h = more.row(t);  // x may be out itself
        Value* y = out.row(t);
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; c++) {
            const float value = load(x[c]) + bias[c];
            const float slope = gain[c] * (load(g[c]) + load(h[c])) + curve[c] * (value - centre[c]) + offset[c];
            const float passed = value > floor ? slope : 0;
            total[c] += passed;
            store(y[c], passed);
        }
    }
}

// Softmax over frames of `scores`, and mean and mean square deviation of `in` under it. `weights` is [frames, channels].
template <class Value>
EACH_PROCESSOR void attend(int64_t frames, int64_t channels, Rows<const Value> in, Rows<const Value> scores,
                           float* __restrict weights, float* __restrict most, float* __restrict sum,
                           float* __restrict mean, float* __restrict square) {
    for (int64_t c = 0; c < channels; c++) {
        most[c] = load(scores.data[c]);
        sum[c] = mean[c] = square[c] = 0;
    }
    for (int64_t t = 1; t < frames; t++) {
        const Value* __restrict s = scores.row(t);
        for (int64_t c = 0; c < channels; c++) most[c] = above(most[c], load(s[c]));
    }
    for (int64_t t = 0; t < frames; t++) {
        const Value *__restrict x = in.row(t), *__restrict s = scores.row(t);
        float* __restrict w = weights + t * channels;
        for (int64_t c = 0; c < channels; c++) {
            w[c] = exponential(load(s[c]) - most[c]);
            sum[c] += w[c];
            mean[c] += w[c] * load(x[c]);
        }
    }
    for (int64_t c = 0; c < channels; c++) mean[c] /= sum[c];
    for (int64_t t = 0; t < frames; t++) {
        const Value* __restrict x = in.row(t);
        const float* __restrict w = weights + t * channels;
        for (int64_t c = 0; c < channels; c++) {
            const float deviation = load(x[c]) - mean[c];
            square[c] += w[c] * (deviation * deviation);
        }
    }
    for (int64_t c = 0; c < channels; c++) square[c] /= sum[c];
}

template <class Value>
EACH_PROCESSOR void attend_gradient(int64_t frames, int64_t channels, Rows<const Value> in, Rows<const Value> scores,
                                    const float* const* kept, const float* __restrict grad_mean,
                                    const float* __restrict grad_square, Rows<Value> to_in, Rows<Value> to_scores) {
    const float *__restrict most = kept[0], *__restrict sum = kept[1];
    const float *__restrict mean = kept[2], *__restrict square = kept[3];
    for (int64_t t = 0; t < frames; t++) {
        const Value *__restrict x = in.row(t), *__restrict s = scores.row(t);
        Value *__restrict gx = to_in.row(t), *__restrict gs = to_scores.row(t);
        for (int64_t c = 0; c < channels; c++) {
            const float weight = exponential(load(s[c]) - most[c]) / sum[c];
            const float deviation = load(x[c]) - mean[c];
            const float slope = grad_mean[c] + grad_square[c] * deviation;
            store(gx[c], weight * (2 * slope - grad_mean[c]));
            store(gs[c], weight * (deviation * slope - grad_square[c] * square[c]));
        }
    }
}

struct Shape {
    int64_t utterances, frames, channels;
};

// Calls work(first row, first channel, where these are in a [B, C] array, channels) for each panel.
template <class Work>
void each_panel(const Shape& shape, Work work) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < shape.utterances; b++)
        for (int64_t c = 0; c < shape.channels; c += PANEL)
            work(b * shape.frames, c, b * shape.channels + c, std::min(PANEL, shape.channels - c));
}

const float NOTHING[PANEL] = {};

// A matrix as it comes from outside. Without data it is read as zeros, and not written.
struct Matrix {
    void* data;
    int64_t step;
    template <class Value>
    Rows<Value> part(int64_t row, int64_t channel) const {
        return {data == nullptr ? nullptr : static_cast<Value*>(data) + row * step + channel, step};
    }
    template <class Value>
    Rows<const Value> read(int64_t row, int64_t channel) const {
        if (data == nullptr) return {reinterpret_cast<const Value*>(NOTHING), 0};
        return part<const Value>(row, channel);
    }
};

constexpr int64_t TILE = 64;
using Eight = uint16_t __attribute__((vector_size(16)));

// 8 x 8 values, from rows TILE values apart to rows `step` values apart: three perfect shuffles of the rows' halves.
inline void transpose_eight(const Eight* from, uint16_t* to, int64_t step) {
    Eight now[8], next[8];
    for (int i = 0; i < 8; i++) now[i] = from[i * TILE / 8];
    for (int stage = 0; stage < 3; stage++) {
        for (int i = 0; i < 4; i++) {
            next[2 * i] = __builtin_shufflevector(now[i], now[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(now[i], now[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        std::copy_n(next, 8, now);
    }
    for (int i = 0; i < 8; i++) std::memcpy(to + i * step, &now[i], sizeof(Eight));
}

// Calls work with a value of the matrices' type.
template <class Work>
void with_type(int64_t bf16, Work work) {
    if (bf16) work(Bfloat16{});
    else work(float{});
}

}  // namespace

// The functions below share their first arguments: whether the matrices are bfloat16 (else float), and the shape.
extern "C" void moments(int64_t bf16, Shape s, Matrix in, float floor, const float* bias, float* mean, float* square) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            moments(s.frames, width, in.read<Value>(row, c), bias + c, floor, mean + at, square + at);
        });
    });
}

extern "C" void affine(int64_t bf16, Shape s, Matrix in, Matrix added, Matrix more, Matrix out, Matrix onward,
                       float floor, const float* bias, const float* centre, const float* gain, const float* offset) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            const PerChannel k{bias + c, centre + at, gain + at, offset + at, nullptr};
            affine(s.frames, width, in.read<Value>(row, c), added.read<Value>(row, c), more.read<Value>(row, c), k,
                   floor, out.part<Value>(row, c), onward.part<Value>(row, c));
        });
    });
}

extern "C" void sums(int64_t bf16, Shape s, Matrix in, Matrix grad, Matrix more, float floor, const float* bias,
                     const float* centre, float* slope, float* total) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            const PerChannel k{bias + c, centre + at, nullptr, nullptr, nullptr};
            sums(s.frames, width, in.read<Value>(row, c), grad.read<Value>(row, c), more.read<Value>(row, c), k, floor,
                 slope + at, total + at);
        });
    });
}

extern "C" void gradient(int64_t bf16, Shape s, Matrix in, Matrix grad, Matrix more, Matrix out, float floor,
                         const float* bias, const float* centre, const float* gain, const float* offset,
                         const float* curve, float* total) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            const PerChannel k{bias + c, centre + at, gain + at, offset + at, curve + at};
            gradient(s.frames, width, in.read<Value>(row, c), grad.read<Value>(row, c), more.read<Value>(row, c), k,
                     floor, out.part<Value>(row, c), total + at);
        });
    });
}

extern "C" void attend(int64_t bf16, Shape s, Matrix in, Matrix scores, float* most, float* sum, float* mean,
                       float* square) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            std::vector<float> weights(s.frames * width);
            attend(s.frames, width, in.read<Value>(row, c), scores.read<Value>(row, c), weights.data(),
                   most + at, sum + at, mean + at, square + at);
        });
    });
}

extern "C" void attend_gradient(int64_t bf16, Shape s, Matrix in, Matrix scores, Matrix to_in, Matrix to_scores,
                                const float* most, const float* sum, const float* mean, const float* square,
                                const float* grad_mean, const float* grad_square) {
    with_type(bf16, [&](auto value) {
        using Value = decltype(value);
        each_panel(s, [&](int64_t row, int64_t c, int64_t at, int64_t width) {
            const float* kept[] = {most + at, sum + at, mean + at, square + at};
            attend_gradient(s.frames, width, in.read<Value>(row, c), scores.read<Value>(row, c), kept,
                            grad_mean + at, grad_square + at, to_in.part<Value>(row, c),
                            to_scores.part<Value>(row, c));
        });
    });
}

// The transpose of a matrix of 16-bit values, [rows, columns] to [columns, rows], multiples of 8.
extern "C" void transpose(int64_t rows, int64_t columns, Matrix in, Matrix out) {
    const auto from = in.part<const uint16_t>(0, 0);
    const auto to = out.part<uint16_t>(0, 0);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < columns; c += TILE)  // along the rows of out, whose pages are then visited once
        for (int64_t r = 0; r < rows; r += TILE) {
            const int64_t high = std::min(TILE, rows - r), wide = std::min(TILE, columns - c);
            Eight block[TILE][TILE / 8];  // rows far apart share few places in the cache; here they do not
            for (int64_t i = 0; i < high; i++) std::memcpy(block[i], from.row(r + i) + c, wide * sizeof(uint16_t));
            for (int64_t j = 0; j < wide; j += 8)
                for (int64_t i = 0; i < high; i += 8) transpose_eight(&block[i][j / 8], to.row(c + j) + r + i, to.step);
        }
}
