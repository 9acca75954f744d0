// Optimizer steps on the CPU that touch each byte once: the update of the dual, the proximal map to the weight, and the
// count of nonzero weights. Formulas: functional.py; reasons: DECISIONS 6. A tensor is walked in
// storage order, in blocks whose dual is still in the cache when the weight is computed from it; blocks are divided
// among torch's threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Code for several generations of processors, selected when loaded: gcc with glibc can do that.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MULTI_TARGET __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define MULTI_TARGET
#endif

namespace {

constexpr int64_t BLOCK = 1024;

// Writes past the cache what is not read soon, which saves reading the old values first.
void write_past_cache(float* to, const float* from, int64_t count) {
    int64_t i = 0;
#if defined(__SSE2__)
    if (reinterpret_cast<uintptr_t>(to) % 16 == 0)
        for (; i + 4 <= count; i += 4) _mm_stream_ps(to + i, _mm_load_ps(from + i));
#endif
    std::memcpy(to + i, from + i, (count - i) * sizeof(float));
}

MULTI_TARGET
int64_t shrink_block(const float* __restrict v, float* __restrict to, float lambda, float delta, int64_t count) {
    int32_t nonzero = 0;
    for (int64_t i = 0; i < count; i++) {
        float clamped = v[i] > lambda ? lambda : v[i];
        clamped = clamped < -lambda ? -lambda : clamped;
        const float weight = delta * (v[i] - clamped);
        nonzero += weight != 0;
        to[i] = weight;
    }
    return nonzero;
}

MULTI_TARGET
int64_t threshold_block(const float* __restrict v, float* __restrict to, float lambda, float delta, int64_t count) {
    int32_t nonzero = 0;
    for (int64_t i = 0; i < count; i++) {
        // This way round NaN stays NaN.
        const float weight = std::fabs(v[i]) <= lambda ? 0.0f : delta * v[i];
        nonzero += weight != 0;
        to[i] = weight;
    }
    return nonzero;
}

MULTI_TARGET
void decay_block(float* __restrict v, const float* __restrict weight, float rate, int64_t count) {
    for (int64_t i = 0; i < count; i++) v[i] -= rate * weight[i];
}

struct Adam {
    float beta2, new1, new2, eps;  // new: 1 - beta
    float lr;                      // over the first moment's bias correction
    float root;                    // 1 / sqrt(second moment's bias correction)
};

MULTI_TARGET
void adam_block(Adam a, float sign, const float* __restrict grad, float* __restrict v, float* __restrict m,
                float* __restrict u, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float g = sign * grad[i];
        m[i] += (g - m[i]) * a.new1;
        u[i] = a.beta2 * u[i] + a.new2 * g * g;
        v[i] -= a.lr * m[i] / (std::sqrt(u[i]) * a.root + a.eps);
    }
}

// From here on the weight may be its own dual, so the two pointers are not declared __restrict.
struct Momentum {
    float lr, buffer_factor, momentum, grad_factor, nesterov, decay;  // nesterov: 0 or 1
};

MULTI_TARGET
void sgd_block(Momentum s, float sign, const float* __restrict grad, const float* weight, float* v, int64_t count) {
    if (s.decay == 0)
        for (int64_t i = 0; i < count; i++) v[i] -= s.lr * (sign * grad[i]);
    else
        for (int64_t i = 0; i < count; i++) v[i] -= s.lr * (sign * grad[i] + s.decay * weight[i]);
}

MULTI_TARGET
void momentum_block(Momentum s, float sign, const float* __restrict grad, const float* weight, float* v,
                    float* __restrict buffer, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float g = sign * grad[i];
        if (s.decay != 0) g += s.decay * weight[i];
        const float b = s.buffer_factor * buffer[i] + s.grad_factor * g;
        buffer[i] = b;
        v[i] -= s.lr * (s.nesterov != 0 ? g + s.momentum * b : b);
    }
}

// Runs update(tensor, first, count) and then the proximal map on every block: the hard threshold of penalty l0, or the
// soft one of l1. A weight that is its own dual is neither mapped nor counted.
template <class Update>
void each_block(int64_t tensors, const int64_t* sizes, float* const* weights, float* const* duals, bool is_hard,
                float lambda, float delta, int64_t* nonzero, Update update) {
    std::fill(nonzero, nonzero + tensors, 0);
#pragma omp parallel
    {
        for (int64_t t = 0; t < tensors; t++) {
            int64_t nnz = 0;
#pragma omp for schedule(static) nowait
            for (int64_t first = 0; first < sizes[t]; first += BLOCK) {
                const int64_t count = std::min(BLOCK, sizes[t] - first);
                update(t, first, count);
                if (weights[t] == duals[t]) continue;
                alignas(64) float updated[BLOCK];
                nnz += is_hard ? threshold_block(duals[t] + first, updated, lambda, delta, count)
                               : shrink_block(duals[t] + first, updated, lambda, delta, count);
                write_past_cache(weights[t] + first, updated, count);
            }
#pragma omp atomic
            nonzero[t] += nnz;
        }
#if defined(__SSE2__)
        _mm_sfence();  // each thread completes its writes past the cache before the region ends
#endif
    }
}

// Squares of the gradients of nonzero weights. An infinite gradient of a zero weight makes it NaN.
MULTI_TARGET
double support_block(const float* __restrict weight, const float* __restrict grad, int64_t count) {
    constexpr int64_t LANES = 32;
    float sums[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) {
            const float g = grad[i + lane] * float(weight[i + lane] != 0);
            sums[lane] += g * g;
        }
    double sum = 0;
    for (; i < count; i++) {
        const float g = grad[i] * float(weight[i] != 0);
        sum += g * g;
    }
    for (const float lane : sums) sum += lane;
    return sum;
}

// The bits of |v| / scale, which are ordered as the values are.
inline uint32_t ordered_bits(float v, float scale) {
    const float magnitude = std::fabs(v) / scale;
    uint32_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return bits;
}

// Adds up, over all values, how many have which bits at `shift`, among those whose bits above are `prefix`.
void count_bits(int64_t tensors, const int64_t* sizes, const float* const* values, const float* scales, int shift,
                uint32_t mask, uint32_t above, uint32_t prefix, std::vector<int64_t>& histogram) {
    int64_t zeros = 0;
#pragma omp parallel reduction(+ : zeros)
    {
        std::vector<int64_t> local(mask + 1, 0);
        for (int64_t t = 0; t < tensors; t++) {
            const float* v = values[t];
            const float scale = scales[t];
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < sizes[t]; i++) {
                const uint32_t bits = ordered_bits(v[i], scale);
                if (bits == 0) zeros++;  // most, early in a sparse run
                else if (bits >> above == prefix) local[bits >> shift & mask]++;
            }
        }
#pragma omp critical
        for (uint32_t b = 0; b <= mask; b++) histogram[b] += local[b];
    }
    if (prefix == 0) histogram[0] += zeros;
}

// The bin that holds the value of this rank from the top (0 is the largest); rank becomes the rank within the bin.
uint32_t bin_of(const std::vector<int64_t>& histogram, int64_t& rank) {
    uint32_t bin = uint32_t(histogram.size()) - 1;
    for (; bin > 0 && rank >= histogram[bin]; bin--) rank -= histogram[bin];
    return bin;
}

}  // namespace

// The values of |v| / scale with this rank and the one above, from the top, over all tensors; exact, in two passes, or
// three where a gap lies between them. Nothing is above rank 0: infinity.
extern "C" void kth_largest(int64_t tensors, const int64_t* sizes, const float* const* values, const float* scales,
                            int64_t rank, float* result) {
    std::vector<int64_t> high(1 << 16), low(1 << 16);
    count_bits(tensors, sizes, values, scales, 16, 0xffff, 32 - 1, 0, high);
    uint32_t counted = 1 << 16;  // the bin that low has the histogram of; none yet
    for (int64_t above = 0; above < 2; above++) {
        int64_t remaining = rank - above;
        if (remaining < 0) {
            result[above] = std::numeric_limits<float>::infinity();
            continue;
        }
        const uint32_t top = bin_of(high, remaining);
        if (top != counted) {
            std::fill(low.begin(), low.end(), 0);
            count_bits(tensors, sizes, values, scales, 0, 0xffff, 16, top, low);
            counted = top;
        }
        const uint32_t bits = top << 16 | bin_of(low, remaining);
        std::memcpy(result + above, &bits, sizeof bits);
    }
}

// Copies all values of small tensors; of a large one `rows` places of `columns` values, the last at its end.
extern "C" void sample(int64_t tensors, const int64_t* sizes, const float* const* values, int64_t rows,
                       int64_t columns, float* result) {
    for (int64_t t = 0; t < tensors; t++) {
        if (sizes[t] <= rows * columns) {
            std::memcpy(result, values[t], sizes[t] * sizeof(float));
            result += sizes[t];
            continue;
        }
        for (int64_t row = 0; row < rows; row++, result += columns)
            std::memcpy(result, values[t] + row * (sizes[t] - columns) / (rows - 1), columns * sizeof(float));
    }
}

// The norm of all gradients of nonzero weights, the same for any number of threads: the blocks are added up in order.
extern "C" void support_norm(int64_t tensors, const int64_t* sizes, const float* const* weights,
                             const float* const* grads, float* result) {
    std::vector<double> blocks;
    for (int64_t t = 0; t < tensors; t++) {
        const size_t before = blocks.size();
        const int64_t count_blocks = (sizes[t] + BLOCK - 1) / BLOCK;
        blocks.resize(before + count_blocks);
#pragma omp parallel for schedule(static) if (count_blocks > 1)
        for (int64_t b = 0; b < count_blocks; b++) {
            const int64_t first = b * BLOCK, count = std::min(BLOCK, sizes[t] - first);
            blocks[before + b] = support_block(weights[t] + first, grads[t] + first, count);
        }
    }
    double sum = 0;
    for (const double block : blocks) sum += block;
    *result = float(std::sqrt(sum));
}

extern "C" void adabreg(int64_t tensors, const int64_t* sizes, float* const* weights, const float* const* grads,
                        float* const* duals, float* const* exp_avgs, float* const* exp_avg_sqs, float* const* steps,
                        double lr, double beta1, double beta2, double eps, double decay, double sign, double is_hard,
                        double lambda, double delta, int64_t* nonzero) {
    std::vector<Adam> settings;
    for (int64_t t = 0; t < tensors; t++) {
        const double step = *steps[t] += 1;
        settings.push_back({float(beta2), float(1 - beta1), float(1 - beta2), float(eps),
                        float(lr / (1 - std::pow(beta1, step))),
                        float(1 / std::sqrt(1 - std::pow(beta2, step)))});
    }
    const auto update = [&](int64_t t, int64_t first, int64_t count) {
        float* v = duals[t] + first;
        if (decay != 0) {
            if (weights[t] == duals[t])
                for (int64_t i = 0; i < count; i++) v[i] *= float(1 - lr * decay);
            else
                decay_block(v, weights[t] + first, float(lr * decay), count);
        }
        adam_block(settings[t], float(sign), grads[t] + first, v, exp_avgs[t] + first, exp_avg_sqs[t] + first, count);
    };
    each_block(tensors, sizes, weights, duals, is_hard != 0, lambda, delta, nonzero, update);
}

extern "C" void linbreg(int64_t tensors, const int64_t* sizes, float* const* weights, const float* const* grads,
                        float* const* duals, float* const* buffers, double lr, double buffer_factor, double momentum,
                        double grad_factor, double nesterov, double decay, double sign, double is_hard, double lambda,
                        double delta, int64_t* nonzero) {
    const Momentum sgd{float(lr),       float(buffer_factor), float(momentum),
                       float(grad_factor), float(nesterov),      float(decay)};
    const auto update = [&](int64_t t, int64_t first, int64_t count) {
        const float* weight = weights[t] + first;
        if (momentum == 0)
            sgd_block(sgd, float(sign), grads[t] + first, weight, duals[t] + first, count);
        else
            momentum_block(sgd, float(sign), grads[t] + first, weight, duals[t] + first, buffers[t] + first, count);
    };
    each_block(tensors, sizes, weights, duals, is_hard != 0, lambda, delta, nonzero, update);
}
