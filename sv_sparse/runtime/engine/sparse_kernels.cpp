// Kernels that run a network in evaluation with the zeros of its weights left out. program.py describes programs.
//
// An activation is a row of planes, one for each channel. A plane is an image of `rows` x `cols` values whose rows are
// `stride` apart, with zeros around it that are wide enough for every kernel. So the input of a weight lies at a fixed
// distance from its output, and a convolution is, for each output channel, a list of weights with such distances. A
// tile of outputs stays in registers while the list is walked; each weight costs one multiplication of a stretch of an
// input plane. What follows a convolution is a list of elementwise operations on the tile while it is in registers,
// which may write it to several places.  (DECISIONS 54)
//
// Nothing is checked here: the reader of a program has checked all planes and taps, and margins hold all taps.
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

INLINE Vec relu(Vec x) { return x < 0.0f ? Vec{} : x; }  // not max(x, 0), which would make NaN a zero

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE Vec tangent(Vec x) {
    const Vec e = exponential(-2.0f * maximum(x, -x));  // at most 1, so that nothing overflows
    const Vec magnitude = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -magnitude : magnitude;
}

INLINE Vec square_root(Vec x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = std::sqrt(x[lane]);
    return x;
}

INLINE Vec logarithm(Vec x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = std::log(x[lane]);
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

// One elementwise operation on the tile. What it reads: of constants, the value of the output channel at argument + row;
// of a vector or scalar, a plane of resolution 0; of a plane, the tile at the same place, in the output's resolution.
struct Action {
    int32_t code, argument;
};

struct Step {
    int32_t op, rows;  // rows: planes, or rows of planes, that are written
    int32_t in_resolution, in_plane, out_resolution, out_plane;
    int32_t tile, num_taps, num_actions;
    int32_t parameters[4];  // of some operations
    float numbers[4];
    const int64_t* starts;  // of each output channel's entries
    const Entry* entries;
    const int32_t* offsets;  // row and column of each tap
    const int32_t* sources;  // of copied rows
    const Action* actions;
    const float* constants;
};

}

namespace {

enum Operation : int32_t {
    CONVOLVE, ELEMENTWISE, COPY, PHASES, EXTEND, REDUCE, SOFTMAX, ATTEND, SEGMENTS, SCALAR, LOAD, STORE
};

enum ActionCode : int32_t {
    STORE_PLANE, ADD_CONSTANT, MULTIPLY_CONSTANT, ADD_RELU, MULTIPLY_ADD, ADD_RELU_MULTIPLY_ADD, ADD_VECTOR, SUBTRACT_VECTOR, MULTIPLY_VECTOR, DIVIDE_VECTOR,
    ADD_SCALAR, MULTIPLY_SCALAR, ADD_PLANE, SUBTRACT_PLANE, MULTIPLY_PLANE, DIVIDE_PLANE,
    MINIMUM_CONSTANT, MAXIMUM_CONSTANT, RELU, SIGMOID, TANH, SQUARE, SQUARE_ROOT, EXPONENTIAL, LOGARITHM, RECIPROCAL
};

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

// Computes what follows on a tile of one output channel.
template <int N>
INLINE void apply_actions(const Step& s, const Run& run, int64_t row, int64_t begin, Vec* x) {
#define EACH(expression)                      \
    _Pragma("GCC unroll 16")                  \
    for (int i = 0; i < N; i++) x[i] = expression; \
    break
    for (const Action *a = s.actions, *end = a + s.num_actions; a != end; a++) {
        const int64_t place = a->argument + row;
        const float* constant = s.constants + place;
        switch (a->code) {
            case STORE_PLANE: {
                float* out = run.at(s.out_resolution, place);
#pragma GCC unroll 16
                for (int i = 0; i < N; i++) store(out + begin + i * LANES, x[i]);
                clear_padding(out, run.layouts[s.out_resolution], begin, begin + N * LANES);
                break;
            }
            case ADD_CONSTANT: EACH(x[i] + *constant);
            case MULTIPLY_CONSTANT: EACH(x[i] * *constant);
            case ADD_RELU: EACH(relu(x[i] + *constant));
            case MULTIPLY_ADD: EACH(x[i] * *constant + constant[s.rows]);
            case ADD_RELU_MULTIPLY_ADD: EACH(relu(x[i] + *constant) * constant[s.rows] + constant[2 * s.rows]);
            case ADD_VECTOR: EACH(x[i] + *run.at(0, place));
            case SUBTRACT_VECTOR: EACH(x[i] - *run.at(0, place));
            case MULTIPLY_VECTOR: EACH(x[i] * *run.at(0, place));
            case DIVIDE_VECTOR: EACH(x[i] / *run.at(0, place));
            case ADD_SCALAR: EACH(x[i] + *run.at(0, a->argument));
            case MULTIPLY_SCALAR: EACH(x[i] * *run.at(0, a->argument));
            case ADD_PLANE: EACH(x[i] + load(run.at(s.out_resolution, place) + begin + i * LANES));
            case SUBTRACT_PLANE: EACH(x[i] - load(run.at(s.out_resolution, place) + begin + i * LANES));
            case MULTIPLY_PLANE: EACH(x[i] * load(run.at(s.out_resolution, place) + begin + i * LANES));
            case DIVIDE_PLANE: EACH(x[i] / load(run.at(s.out_resolution, place) + begin + i * LANES));
            case MINIMUM_CONSTANT: EACH(x[i] > *constant ? broadcast(*constant) : x[i]);
            case MAXIMUM_CONSTANT: EACH(x[i] < *constant ? broadcast(*constant) : x[i]);
            case RELU: EACH(relu(x[i]));
            case SIGMOID: EACH(sigmoid(x[i]));
            case TANH: EACH(tangent(x[i]));
            case SQUARE: EACH(x[i] * x[i]);
            case SQUARE_ROOT: EACH(square_root(x[i]));
            case EXPONENTIAL: EACH(exponential(x[i]));
            case LOGARITHM: EACH(logarithm(x[i]));
            case RECIPROCAL: EACH(1.0f / x[i]);
        }
    }
#undef EACH
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
        apply_actions<N>(s, run, row, begin, sum);
    }
}

// Elementwise operations alone, also behind a dense product.
template <int N>
void elementwise(const Step& s, const Run& run, int64_t first, int64_t last, int64_t begin, const int64_t*) {
    for (int64_t row = first; row < last; row++) {
        const float* in = run.at(s.in_resolution, s.in_plane + row) + begin;
        Vec sum[N];
        for (int i = 0; i < N; i++) sum[i] = load(in + i * LANES);
        apply_actions<N>(s, run, row, begin, sum);
    }
}

typedef void (*TileKernel)(const Step&, const Run&, int64_t, int64_t, int64_t, const int64_t*);
const TileKernel CONVOLVE_TILES[MAX_TILE] = {convolve<1>, convolve<2>,  convolve<3>,  convolve<4>,
                                             convolve<5>, convolve<6>,  convolve<7>,  convolve<8>,
                                             convolve<9>, convolve<10>, convolve<11>, convolve<12>};
const TileKernel ELEMENTWISE_TILES[MAX_TILE] = {elementwise<1>, elementwise<2>,  elementwise<3>,  elementwise<4>,
                                             elementwise<5>, elementwise<6>,  elementwise<7>,  elementwise<8>,
                                             elementwise<9>, elementwise<10>, elementwise<11>, elementwise<12>};

// Computes all tiles of all output channels. The tiles of a plane differ by at most one vector, so that none is a rest.
void run_tiles(const Step& s, const Run& run, const TileKernel* kernels) {
    const PlaneLayout &in = run.layouts[s.in_resolution], &out = run.layouts[s.out_resolution];
    int64_t taps[256];
    for (int32_t i = 0; i < s.num_taps; i++) taps[i] = s.offsets[2 * i] * in.stride + s.offsets[2 * i + 1];
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

// Copies rows of planes to rows of planes: parameters are a number of columns to leave out at the start, and how often
// each column is repeated. A vector's values are repeated in all columns.
void copy(const Step& s, const Run& run) {
    const PlaneLayout &from = run.layouts[s.in_resolution], &to = run.layouts[s.out_resolution];
    const int64_t skip = s.parameters[0], repeats = s.parameters[1];
    EACH_ROW {
        const int64_t source = s.sources[row];
        const float* in = run.at(s.in_resolution, s.in_plane + source / from.rows) + source % from.rows * from.stride;
        float* out = run.at(s.out_resolution, s.out_plane + row / to.rows) + row % to.rows * to.stride;
        if (s.in_resolution == 0) {
            std::fill(out, out + to.cols, *in);
        } else if (repeats == 1) {
            std::memcpy(out, in + skip, to.cols * sizeof(float));
        } else {
            for (int64_t c = 0; c < to.cols; c++) out[c] = in[(c + skip) / repeats];
        }
        if (to.cols < to.stride) std::fill(out + to.cols, out + to.stride, 0.0f);
    }
}

// Splits each input plane into as many as a convolution has strides: with 2 x 2, even and odd rows, of each the even and
// odd columns. A strided convolution then has stride one on them.
void phases(const Step& s, const Run& run) {
    const PlaneLayout &from = run.layouts[s.in_resolution], &to = run.layouts[s.out_resolution];
    const int64_t row_stride = s.parameters[0], col_stride = s.parameters[1];
    EACH_ROW {
        const float* in = run.at(s.in_resolution, s.in_plane + row);
        for (int64_t phase = 0; phase < row_stride * col_stride; phase++) {
            float* out = run.at(s.out_resolution, s.out_plane + row_stride * col_stride * row + phase);
            const int64_t first_col = phase % col_stride;
            for (int64_t r = 0; r < to.rows; r++) {
                const int64_t source = row_stride * r + phase / col_stride;
                const bool is_inside = source < from.rows;
                const int64_t count = is_inside ? (from.cols - first_col + col_stride - 1) / col_stride : 0;
                const float* line = in + source * from.stride + first_col;
                for (int64_t c = 0; c < count; c++) out[r * to.stride + c] = line[col_stride * c];
                for (int64_t c = count; c < to.stride; c++) out[r * to.stride + c] = 0;
            }
        }
    }
}

// Continues rows beyond their ends, in the place of zeros: by the mirror image, or by the last value. Parameters are the
// numbers of columns to the left and to the right, and 1 for the last value.
void extend(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.in_resolution];
    const bool is_edge = s.parameters[2];
    EACH_ROW for (int64_t r = 0; r < l.rows; r++) {
        float* line = run.at(s.in_resolution, s.in_plane + row) + r * l.stride;
        for (int64_t i = 1; i <= s.parameters[0]; i++) line[-i] = line[is_edge ? 0 : i];
        for (int64_t i = 1; i <= s.parameters[1]; i++) line[l.cols - 1 + i] = line[is_edge ? l.cols - 1 : l.cols - 1 - i];
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

INLINE float largest_of(const float* line, int64_t count) {
    float largest = -INFINITY;
    for (int64_t i = 0; i < count; i++) largest = line[i] > largest || line[i] != line[i] ? line[i] : largest;
    return largest;
}

enum Reduction : int32_t { MEAN, SUM, VARIANCE, LARGEST };

// Reduces each row of each plane, or each whole plane, to one value. Parameters are the kind and 1 for whole planes;
// numbers[0] is what the count is lowered by in a variance.
void reduce(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.in_resolution];
    const int64_t rows = s.parameters[1] ? l.rows : 1;  // that one value is made of
    const int64_t count = rows * l.cols;
    EACH_ROW {
        const int64_t first = row * rows;
        const float* lines = run.at(s.in_resolution, s.in_plane + first / l.rows) + first % l.rows * l.stride;
        float result = -INFINITY;
        if (s.parameters[0] == LARGEST) {
            for (int64_t r = 0; r < rows; r++) {
                const float largest = largest_of(lines + r * l.stride, l.cols);
                result = largest > result || largest != largest ? largest : result;
            }
        } else {
            float sum = 0;
            for (int64_t r = 0; r < rows; r++) sum += sum_of(lines + r * l.stride, l.cols);
            result = s.parameters[0] == SUM ? sum : sum / count;
            if (s.parameters[0] == VARIANCE) {
                float squares = 0;
                for (int64_t r = 0; r < rows; r++) {
                    squares += sum_of_squared_deviations(lines + r * l.stride, l.cols, result);
                }
                result = squares / (count - s.numbers[0]);
            }
        }
        *run.at(0, s.out_plane + row) = result;
    }
}

// Writes e^(score - highest score) over the scores of a row, and returns their sum.
INLINE float exponentials(float* line, int64_t count) {
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = count; i < padded; i++) line[i] = -INFINITY;  // their softmax is next to nothing
    Vec highest_of_lane = broadcast(-INFINITY), sums = {};
    for (int64_t i = 0; i < count; i += LANES) highest_of_lane = maximum(highest_of_lane, load(line + i));
    float highest = highest_of_lane[0], sum = 0;
    for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, highest_of_lane[lane]);
    for (int64_t i = 0; i < count; i += LANES) {
        const Vec e = exponential(load(line + i) - highest);
        store(line + i, e);
        sums += e;
    }
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

// The softmax of each row of planes of one row, in place.
void softmax(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    EACH_ROW {
        float* line = run.at(s.out_resolution, s.out_plane + row);
        const float sum = exponentials(line, l.cols);
        for (int64_t i = 0; i < l.cols; i++) line[i] /= sum;
        for (int64_t i = l.cols; i < round_up(l.stride); i++) line[i] = 0;
    }
}

// Mean and mean square deviation of each plane of one row, weighted by the softmax of the scores, which it overwrites:
// those are planes from parameters[0] on.
void attend(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.in_resolution];
    EACH_ROW {
        const float* line = run.at(s.in_resolution, s.in_plane + row);
        float* weight = run.at(s.in_resolution, s.parameters[0] + row);
        const float sum = exponentials(weight, l.cols);
        Vec products = {}, squares = {};
        for (int64_t i = 0; i < l.cols; i += LANES) products += load(weight + i) * load(line + i);
        float product = 0, square = 0;
        for (int lane = 0; lane < LANES; lane++) product += products[lane];
        const float mean = product / sum;
        for (int64_t i = 0; i < l.cols; i += LANES) {
            const Vec deviation = load(line + i) - mean;
            squares += load(weight + i) * deviation * deviation;
        }
        for (int lane = 0; lane < LANES; lane++) square += squares[lane];
        *run.at(0, s.out_plane + row) = mean;
        *run.at(0, s.out_plane + s.rows + row) = square / sum;
        for (int64_t i = l.cols; i < round_up(l.stride); i++) weight[i] = 0;
    }
}

// The mean of each segment of parameters[0] columns; the last one may be shorter.
void segments(const Step& s, const Run& run) {
    const PlaneLayout &from = run.layouts[s.in_resolution], &to = run.layouts[s.out_resolution];
    const int64_t length = s.parameters[0];
    EACH_ROW for (int64_t r = 0; r < to.rows; r++) {
        const float* in = run.at(s.in_resolution, s.in_plane + row) + r * from.stride;
        float* out = run.at(s.out_resolution, s.out_plane + row) + r * to.stride;
        for (int64_t c = 0; c < to.cols; c++) {
            const int64_t count = std::min(length, from.cols - c * length);
            out[c] = sum_of(in + c * length, count) / count;
        }
        std::fill(out + to.cols, out + to.stride, 0.0f);
    }
}

// (a n + b) / (c n + d) with the number n of columns of a resolution.
void scalar(const Step& s, const Run& run) {
    const double n = run.layouts[s.in_resolution].cols;
    *run.at(0, s.out_plane) = (s.numbers[0] * n + s.numbers[1]) / (s.numbers[2] * n + s.numbers[3]);
}

// Copies the filterbank [rows, cols] into planes of one row.
void load_input(const Step& s, const Run& run) {
    const PlaneLayout& l = run.layouts[s.out_resolution];
    EACH_ROW {
        float* line = run.at(s.out_resolution, s.out_plane + row);
        std::memcpy(line, run.input + row * l.cols, l.cols * sizeof(float));
        std::fill(line + l.cols, line + l.stride, 0.0f);
    }
}

void store_output(const Step& s, const Run& run) {
    for (int64_t row = 0; row < s.rows; row++) run.output[row] = *run.at(0, s.in_plane + row);
}

void run_step(const Step& s, const Run& run) {
    switch (s.op) {
        case CONVOLVE: return run_tiles(s, run, CONVOLVE_TILES);
        case ELEMENTWISE: return run_tiles(s, run, ELEMENTWISE_TILES);
        case COPY: return copy(s, run);
        case PHASES: return phases(s, run);
        case EXTEND: return extend(s, run);
        case REDUCE: return reduce(s, run);
        case SOFTMAX: return softmax(s, run);
        case ATTEND: return attend(s, run);
        case SEGMENTS: return segments(s, run);
        case SCALAR: return scalar(s, run);
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
// for EXTEND, whose planes are extended again before anything reads beyond their ends.
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
