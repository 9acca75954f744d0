// Kernels that run a network in evaluation with the zeros of its weights left out. program.py describes programs.
//
// An activation is a row of planes, one for each channel. A plane is an image of `rows` x `cols` values whose rows are
// `stride` apart, with zeros around it that are wide enough for every kernel. So the input of a weight lies at a fixed
// distance from its output, and a convolution is, for each output channel, a list of weights with such distances. A
// tile of outputs stays in registers while the list is walked; each weight costs one multiplication of a stretch of an
// input plane. What follows a convolution, its epilogue, is done before the tile is written.  (DECISIONS 54)
//
// Nothing is checked here: channels and taps were checked when the program was made, and margins hold all taps.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int MAX_TILE = 12;           // vectors in the widest tile
constexpr int64_t CHANNEL_BLOCK = 32;  // output channels that one thread takes at a time
constexpr int64_t ALIGNMENT = 16;      // planes begin at, and have room for, multiples of so many values

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Vec load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
INLINE void store(float* to, Vec value) { *reinterpret_cast<Unaligned*>(to) = value; }
INLINE Vec broadcast(float value) { return Vec{} + value; }
INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }

// e^x to within three units in the last place: 2^n times a polynomial of the remainder (Cephes' expf).
INLINE Vec exponential(Vec x) {
    x = maximum(broadcast(-87.0f), minimum(broadcast(88.0f), x));  // in this order NaN stays NaN
    const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the lowest bits
    const Vec shifted = x * 1.44269504f + magic;
    const Vec n = shifted - magic;
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints power = (reinterpret_cast<Ints>(shifted) - reinterpret_cast<Ints>(magic) + 127) << 23;
    return p * reinterpret_cast<Vec>(power);
}

enum Activation : int32_t { NONE, RELU, TANH, SIGMOID };

INLINE Vec activate(Vec x, int32_t kind) {
    if (kind == RELU) return x < 0.0f ? Vec{} : x;  // not max(x, 0), which would make NaN a zero
    if (kind == SIGMOID) return 1.0f / (1.0f + exponential(-x));
    if (kind == TANH) {
        const Vec e = exponential(-2.0f * maximum(x, -x));  // at most 1, so that nothing overflows
        const Vec magnitude = (1.0f - e) / (1.0f + e);
        return x < 0.0f ? -magnitude : magnitude;
    }
    return x;
}

struct Entry {
    uint32_t code;  // input channel, and the tap's index times 65536
    float weight;
};

}  // namespace

extern "C" {

// Memory layout of the planes of one resolution, in float32 values.
struct PlaneLayout {
    int64_t rows, cols;
    int64_t stride;        // between rows
    int64_t margin;        // zeros before an image, and after it
    int64_t plane_stride;  // between planes
    int64_t base;          // of the first plane
};

struct Step {
    int32_t op, rows;  // rows: planes that are written
    int32_t in_resolution, in_plane, out_resolution, out_plane;
    int32_t add_plane, add_to_next_plane, next_input_plane;  // of the output's resolution; -1: none
    int32_t bias_plane;                                      // of resolution 0, whose planes are single values
    int32_t pre_activation, post_activation;                 // before and after scale and sum
    int32_t tile, taps, mirror_width;
    float correction, min_variance;
    const int64_t* starts;  // of each output channel's entries
    const Entry* entries;
    const int32_t* offsets;  // row and column of each tap
    const float *bias, *scale, *shift;
};

}

namespace {

enum Operation : int32_t { CONVOLVE, EPILOGUE, COPY, PHASES, MIRROR, MEANS, STATISTICS, ATTEND, EXCITE, LOAD, STORE };

struct Run {
    const PlaneLayout* layouts;
    float* memory;
    int threads;
    const float* input;
    float* output;

    float* at(int32_t resolution, int64_t plane) const {
        const PlaneLayout& l = layouts[resolution];
        return memory + l.base + plane * l.plane_stride + l.margin;
    }
};

INLINE int64_t round_up(int64_t count) { return (count + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Restores the zeros between rows and behind the image, which a tile has overwritten.
INLINE void clear_padding(float* plane, const PlaneLayout& l, int64_t begin, int64_t end) {
    for (int64_t row = begin / l.stride; row < l.rows; row++) {
        const int64_t from = std::max(row * l.stride + l.cols, begin), to = std::min((row + 1) * l.stride, end);
        if (row * l.stride + l.cols >= end) break;
        for (int64_t i = from; i < to; i++) plane[i] = 0;
    }
    for (int64_t i = std::max(l.rows * l.stride, begin); i < end; i++) plane[i] = 0;
}

template <int N>
INLINE void apply_epilogue(const Step& s, const Run& run, int64_t row, int64_t begin, Vec* sum) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    float bias = s.bias ? s.bias[row] : 0.0f;
    if (s.bias_plane >= 0) bias += *run.at(0, s.bias_plane + row);
    const float scale = s.scale ? s.scale[row] : 1.0f, shift = s.shift ? s.shift[row] : 0.0f;
    for (int i = 0; i < N; i++) sum[i] = activate(sum[i] + bias, s.pre_activation) * scale + shift;
    if (s.add_plane >= 0) {
        const float* add = run.at(s.out_resolution, s.add_plane + row) + begin;
        for (int i = 0; i < N; i++) sum[i] += load(add + i * LANES);
    }
    float* out = run.at(s.out_resolution, s.out_plane + row);
    for (int i = 0; i < N; i++) store(out + begin + i * LANES, activate(sum[i], s.post_activation));
    clear_padding(out, l, begin, begin + N * LANES);
    if (s.next_input_plane >= 0) {
        const float* add = run.at(s.out_resolution, s.add_to_next_plane + row) + begin;
        float* next = run.at(s.out_resolution, s.next_input_plane + row) + begin;
        for (int i = 0; i < N; i++) store(next + i * LANES, load(out + begin + i * LANES) + load(add + i * LANES));
    }
}

template <int N>
void convolve(const Step& s, const Run& run, int64_t first, int64_t last, int64_t begin, const int64_t* taps) {
    const int64_t plane_stride = run.layouts[s.in_resolution].plane_stride;
    const float* in = run.at(s.in_resolution, s.in_plane) + begin;
    for (int64_t row = first; row < last; row++) {
        Vec sum[N] = {};
        for (const Entry *e = s.entries + s.starts[row], *end = s.entries + s.starts[row + 1]; e != end; e++) {
            const float* from = in + static_cast<int64_t>(e->code & 0xffff) * plane_stride + taps[e->code >> 16];
            const Vec weight = broadcast(e->weight);
#pragma GCC unroll 16
            for (int i = 0; i < N; i++) sum[i] += weight * load(from + i * LANES);
        }
        apply_epilogue<N>(s, run, row, begin, sum);
    }
}

// The epilogue of a product that torch has left in memory.
template <int N>
void epilogue(const Step& s, const Run& run, int64_t first, int64_t last, int64_t begin, const int64_t*) {
    for (int64_t row = first; row < last; row++) {
        const float* in = run.at(s.in_resolution, s.in_plane + row) + begin;
        Vec sum[N];
        for (int i = 0; i < N; i++) sum[i] = load(in + i * LANES);
        apply_epilogue<N>(s, run, row, begin, sum);
    }
}

typedef void (*TileKernel)(const Step&, const Run&, int64_t, int64_t, int64_t, const int64_t*);
const TileKernel CONVOLVE_TILES[MAX_TILE] = {convolve<1>, convolve<2>,  convolve<3>,  convolve<4>,
                                             convolve<5>, convolve<6>,  convolve<7>,  convolve<8>,
                                             convolve<9>, convolve<10>, convolve<11>, convolve<12>};
const TileKernel EPILOGUE_TILES[MAX_TILE] = {epilogue<1>, epilogue<2>,  epilogue<3>,  epilogue<4>,
                                             epilogue<5>, epilogue<6>,  epilogue<7>,  epilogue<8>,
                                             epilogue<9>, epilogue<10>, epilogue<11>, epilogue<12>};

// Computes all tiles of all output channels. The tiles of a plane differ by at most one vector, so that none is a rest.
void run_tiles(const Step& s, const Run& run, const TileKernel* kernels) {
    const PlaneLayout &in = run.layouts[s.in_resolution], &out = run.layouts[s.out_resolution];
    int64_t taps[256];
    for (int32_t i = 0; i < s.taps; i++) taps[i] = s.offsets[2 * i] * in.stride + s.offsets[2 * i + 1];
    const int64_t vectors = (out.rows * out.stride + LANES - 1) / LANES;
    const int64_t num_tiles = (vectors + s.tile - 1) / s.tile;
    const int64_t num_blocks = (s.rows + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
    const int64_t width = vectors / num_tiles, num_wider = vectors % num_tiles;
    // Output channels have different numbers of weights, hence dynamic.
#pragma omp parallel for schedule(dynamic, 1) num_threads(run.threads) if (run.threads > 1)
    for (int64_t item = 0; item < num_tiles * num_blocks; item++) {
        const int64_t tile = item / num_blocks, first = item % num_blocks * CHANNEL_BLOCK;
        const int64_t last = std::min(first + CHANNEL_BLOCK, int64_t(s.rows));
        const int64_t begin = tile * width + std::min(tile, num_wider);
        kernels[width + (tile < num_wider) - 1](s, run, first, last, begin * LANES, taps);
    }
}

#define EACH_ROW                                                                                 \
    _Pragma("omp parallel for schedule(static) num_threads(run.threads) if (run.threads > 1)") \
    for (int64_t row = 0; row < s.rows; row++)

void copy(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    EACH_ROW std::memcpy(run.at(s.out_resolution, s.out_plane + row), run.at(s.in_resolution, s.in_plane + row),
                         round_up(l.rows * l.stride) * sizeof(float));
}

// Splits each input plane into four: even and odd rows, of each the even and odd columns. A convolution of stride two
// then has stride one on them.
void phases(const Step& s, const Run& run) {
    const PlaneLayout &from = run.layouts[s.in_resolution], &to = run.layouts[s.out_resolution];
    EACH_ROW {
        const float* in = run.at(s.in_resolution, s.in_plane + row);
        for (int64_t phase = 0; phase < 4; phase++) {
            float* out = run.at(s.out_resolution, s.out_plane + 4 * row + phase);
            for (int64_t r = 0; r < to.rows; r++) {
                const int64_t source = 2 * r + phase / 2;
                const int64_t count = source < from.rows ? (from.cols - phase % 2 + 1) / 2 : 0;
                const float* line = in + source * from.stride + phase % 2;
                for (int64_t c = 0; c < count; c++) out[r * to.stride + c] = line[2 * c];
                for (int64_t c = count; c < to.stride; c++) out[r * to.stride + c] = 0;
            }
        }
    }
}

// Writes the mirror image of a row beyond its ends, in the place of zeros: padding_mode="reflect".
void mirror(const Step& s, const Run& run) {
    const int64_t cols = run.layouts[s.in_resolution].cols;
    EACH_ROW {
        float* line = run.at(s.in_resolution, s.in_plane + row);
        for (int64_t i = 1; i <= s.mirror_width; i++) {
            line[-i] = line[i];
            line[cols - 1 + i] = line[cols - 1 - i];
        }
    }
}

INLINE float sum_of(const float* line, int64_t count) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += load(line + i);
    float sum = 0;
    for (; i < count; i++) sum += line[i];
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

INLINE float sum_of_squared_deviations(const float* line, int64_t count, float mean) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += (load(line + i) - mean) * (load(line + i) - mean);
    float sum = 0;
    for (; i < count; i++) sum += (line[i] - mean) * (line[i] - mean);
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

// The mean of each plane, which has one row.
void means(const Step& s, const Run& run) {
    const int64_t cols = run.layouts[s.in_resolution].cols;
    EACH_ROW {
        const float sum = sum_of(run.at(s.in_resolution, s.in_plane + row), cols);
        *run.at(0, s.out_plane + row) = sum / static_cast<float>(cols);
    }
}

// Mean and standard deviation of each row of each plane: all means, then all deviations.
void statistics(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.in_resolution];
    EACH_ROW for (int64_t r = 0; r < l.rows; r++) {
        const float* line = run.at(s.in_resolution, s.in_plane + row) + r * l.stride;
        const float mean = sum_of(line, l.cols) / l.cols;
        const float variance = sum_of_squared_deviations(line, l.cols, mean) / (l.cols - s.correction);
        *run.at(0, s.out_plane + row * l.rows + r) = mean;
        *run.at(0, s.out_plane + (s.rows + row) * l.rows + r) = std::sqrt(std::max(variance, s.min_variance));
    }
}

// The same of planes of one row, weighted by the softmax of the scores at add_plane, which it overwrites.
void attend(const Step& s, const Run& run) {
    const int64_t count = run.layouts[s.in_resolution].cols;
    EACH_ROW {
        const float* line = run.at(s.in_resolution, s.in_plane + row);
        float* weight = run.at(s.in_resolution, s.add_plane + row);
        const int64_t padded = (count + LANES - 1) / LANES * LANES;
        for (int64_t i = count; i < padded; i++) weight[i] = -INFINITY;  // their softmax is next to nothing
        Vec highest_of_lane = broadcast(-INFINITY), sums = {}, products = {};
        for (int64_t i = 0; i < count; i += LANES) highest_of_lane = maximum(highest_of_lane, load(weight + i));
        float highest = highest_of_lane[0];
        for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, highest_of_lane[lane]);
        for (int64_t i = 0; i < count; i += LANES) {
            const Vec w = exponential(load(weight + i) - highest);
            store(weight + i, w);
            sums += w;
            products += w * load(line + i);
        }
        float sum = 0, product = 0, square = 0;
        for (int lane = 0; lane < LANES; lane++) sum += sums[lane], product += products[lane];
        const float mean = product / sum;
        Vec squares = {};
        for (int64_t i = 0; i < count; i += LANES) {
            const Vec deviation = load(line + i) - mean;
            squares += load(weight + i) * deviation * deviation;
        }
        for (int lane = 0; lane < LANES; lane++) square += squares[lane];
        *run.at(0, s.out_plane + row) = mean;
        *run.at(0, s.out_plane + s.rows + row) = std::sqrt(std::max(square / sum, s.min_variance));
    }
}

// out = in * gain + add: squeeze-excitation and the residual connection. The gains are at bias_plane.
void excite(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    const int64_t count = round_up(l.rows * l.stride);
    EACH_ROW {
        const float gain = *run.at(0, s.bias_plane + row);
        const float* in = run.at(s.in_resolution, s.in_plane + row);
        const float* add = run.at(s.out_resolution, s.add_plane + row);
        float* out = run.at(s.out_resolution, s.out_plane + row);
        for (int64_t i = 0; i < count; i += LANES) store(out + i, load(in + i) * gain + load(add + i));
    }
}

// Copies the filterbank [rows of all planes together, cols] into planes.
void load_input(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    EACH_ROW for (int64_t r = 0; r < l.rows; r++) {
        float* line = run.at(s.out_resolution, s.out_plane + row) + r * l.stride;
        std::memcpy(line, run.input + (row * l.rows + r) * l.cols, l.cols * sizeof(float));
        for (int64_t i = l.cols; i < l.stride; i++) line[i] = 0;
    }
}

void store_output(const Step& s, const Run& run) {
    for (int64_t row = 0; row < s.rows; row++) run.output[row] = *run.at(0, s.in_plane + row);
}

void run_step(const Step& s, const Run& run) {
    switch (s.op) {
        case CONVOLVE: return run_tiles(s, run, CONVOLVE_TILES);
        case EPILOGUE: return run_tiles(s, run, EPILOGUE_TILES);
        case COPY: return copy(s, run);
        case PHASES: return phases(s, run);
        case MIRROR: return mirror(s, run);
        case MEANS: return means(s, run);
        case STATISTICS: return statistics(s, run);
        case ATTEND: return attend(s, run);
        case EXCITE: return excite(s, run);
        case LOAD: return load_input(s, run);
        case STORE: return store_output(s, run);
    }
}

}  // namespace

extern "C" {

// Runs `count` steps of one utterance.
void run_steps(const Step* steps, int64_t count, const PlaneLayout* layouts, float* memory, int64_t threads,
               const float* input, float* output) {
    const Run run = {layouts, memory, static_cast<int>(threads), input, output};
    for (int64_t i = 0; i < count; i++) run_step(steps[i], run);
}

// Writes the zeros around the images of all planes, of which each resolution has so many. Steps restore them, except
// for MIRROR, whose planes are mirrored again before anything reads beyond their ends.
void clear_margins(const PlaneLayout* layouts, const int64_t* num_planes, int64_t count, float* memory) {
    for (int64_t resolution = 0; resolution < count; resolution++) {
        const PlaneLayout& l = layouts[resolution];
        for (int64_t plane = 0; plane < num_planes[resolution]; plane++) {
            float* start = memory + l.base + plane * l.plane_stride;
            std::fill(start, start + l.margin, 0.0f);
            std::fill(start + l.margin + l.rows * l.stride, start + l.plane_stride, 0.0f);
        }
    }
}
}
