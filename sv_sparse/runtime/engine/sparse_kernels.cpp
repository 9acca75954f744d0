// Runs a network in evaluation, with the zeros of its weights left out. program.py says what a program is.
//
// An activation is a row of planes, one for each channel; a plane is an image of `rows` x `cols` values whose rows are
// `stride` apart, with zeros around it that are wide enough for every kernel. So what a weight is multiplied with lies
// at a fixed distance from where its product belongs, and a convolution is, for each output channel, a list of weights
// with such distances: a tile of outputs stays in registers while the list is walked, and each weight costs one
// multiplication of a stretch of an input plane. What follows a convolution is done before the tile is written.
//
// Every weight's channel and tap were checked when the program was made, and planes have room for all taps.
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
constexpr int TILE = 12;       // vectors in the widest tile
constexpr int64_t BLOCK = 32;  // output channels that one thread takes at a time
constexpr int64_t ROOM = 16;   // planes begin, and have room for, multiples of so many values

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
INLINE void store(float* to, Vec value) { *reinterpret_cast<Loose*>(to) = value; }
INLINE Vec every(float value) { return Vec{} + value; }
INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// e^x to within three units in the last place: 2^n times a polynomial in what is left.
INLINE Vec exponential(Vec x) {
    x = larger(every(-87.0f), smaller(every(88.0f), x));  // in this order what is not a number stays
    const Vec magic = every(12582912.0f);  // adding it rounds to a whole number, in the lowest bits
    const Vec shifted = x * 1.44269504f + magic;
    const Vec n = shifted - magic;
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
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

INLINE Vec activated(Vec x, int32_t kind) {
    if (kind == RELU) return x < 0.0f ? Vec{} : x;  // what is not a number stays
    if (kind == SIGMOID) return 1.0f / (1.0f + exponential(-x));
    if (kind == TANH) {
        const Vec small = exponential(-2.0f * larger(x, -x));
        const Vec size = (1.0f - small) / (1.0f + small);
        return x < 0.0f ? -size : size;
    }
    return x;
}

struct Entry {
    uint32_t code;  // input channel, and the tap's number times 65536
    float weight;
};

}  // namespace

extern "C" {

struct Level {
    int64_t rows, cols, stride, lead, plane, base;
};

struct Step {
    int32_t op, rows, in_level, in_plane, out_level, out_plane;
    int32_t add_plane, more_plane, onward_plane, bias_plane;  // at out_level, the bias at level 0; -1: none
    int32_t inner, outer;                                     // activations before and after scale and sum
    int32_t tile, taps;
    float first, second;  // an operation's own numbers
    const int64_t* starts;
    const Entry* entries;
    const int32_t* offsets;  // rows and columns of each tap
    const float *bias, *scale, *shift;
};

}

namespace {

enum Operation : int32_t { CONVOLVE, FINISH, COPY, PHASES, MIRROR, MEANS, STATISTICS, ATTEND, EXCITE, LOAD, STORE };

struct Run {
    const Level* levels;
    float* arena;
    int threads;
    const float* input;
    float* output;

    float* at(int32_t level, int64_t plane) const {
        const Level& l = levels[level];
        return arena + l.base + plane * l.plane + l.lead;
    }
};

INLINE int64_t rounded(int64_t count) { return (count + ROOM - 1) / ROOM * ROOM; }

// Zeros again in what a tile wrote beside the image.
INLINE void clear_beside(float* plane, const Level& l, int64_t begin, int64_t end) {
    for (int64_t row = begin / l.stride; row < l.rows; row++) {
        const int64_t from = std::max(row * l.stride + l.cols, begin), to = std::min((row + 1) * l.stride, end);
        if (row * l.stride + l.cols >= end) break;
        for (int64_t i = from; i < to; i++) plane[i] = 0;
    }
    for (int64_t i = std::max(l.rows * l.stride, begin); i < end; i++) plane[i] = 0;
}

template <int N>
INLINE void finish(const Step& s, const Run& run, int64_t row, int64_t begin, Vec* sum) {
    const Level& l = run.levels[s.out_level];
    float bias = s.bias ? s.bias[row] : 0.0f;
    if (s.bias_plane >= 0) bias += *run.at(0, s.bias_plane + row);
    const float scale = s.scale ? s.scale[row] : 1.0f, shift = s.shift ? s.shift[row] : 0.0f;
    for (int i = 0; i < N; i++) sum[i] = activated(sum[i] + bias, s.inner) * scale + shift;
    if (s.add_plane >= 0) {
        const float* add = run.at(s.out_level, s.add_plane + row) + begin;
        for (int i = 0; i < N; i++) sum[i] += load(add + i * LANES);
    }
    float* out = run.at(s.out_level, s.out_plane + row);
    for (int i = 0; i < N; i++) store(out + begin + i * LANES, activated(sum[i], s.outer));
    clear_beside(out, l, begin, begin + N * LANES);
    if (s.onward_plane >= 0) {
        const float* more = run.at(s.out_level, s.more_plane + row) + begin;
        float* onward = run.at(s.out_level, s.onward_plane + row);
        for (int i = 0; i < N; i++) store(onward + begin + i * LANES, load(out + begin + i * LANES) + load(more + i * LANES));
    }
}

template <int N>
void convolve(const Step& s, const Run& run, int64_t first, int64_t last, int64_t begin, const int64_t* taps) {
    const int64_t plane = run.levels[s.in_level].plane;
    const float* in = run.at(s.in_level, s.in_plane) + begin;
    for (int64_t row = first; row < last; row++) {
        Vec sum[N] = {};
        for (const Entry *e = s.entries + s.starts[row], *end = s.entries + s.starts[row + 1]; e != end; e++) {
            const float* from = in + static_cast<int64_t>(e->code & 0xffff) * plane + taps[e->code >> 16];
            const Vec weight = every(e->weight);
#pragma GCC unroll 16
            for (int i = 0; i < N; i++) sum[i] += weight * load(from + i * LANES);
        }
        finish<N>(s, run, row, begin, sum);
    }
}

template <int N>
void refine(const Step& s, const Run& run, int64_t first, int64_t last, int64_t begin, const int64_t*) {
    for (int64_t row = first; row < last; row++) {
        const float* in = run.at(s.in_level, s.in_plane + row) + begin;
        Vec sum[N];
        for (int i = 0; i < N; i++) sum[i] = load(in + i * LANES);
        finish<N>(s, run, row, begin, sum);
    }
}

typedef void (*Tile)(const Step&, const Run&, int64_t, int64_t, int64_t, const int64_t*);
const Tile CONVOLVE_TILES[TILE] = {convolve<1>, convolve<2>, convolve<3>, convolve<4>,  convolve<5>,  convolve<6>,
                                   convolve<7>, convolve<8>, convolve<9>, convolve<10>, convolve<11>, convolve<12>};
const Tile REFINE_TILES[TILE] = {refine<1>, refine<2>, refine<3>, refine<4>,  refine<5>,  refine<6>,
                                 refine<7>, refine<8>, refine<9>, refine<10>, refine<11>, refine<12>};

// All tiles of all rows; the tiles of a plane are as equally wide as they can be.
void tiles(const Step& s, const Run& run, const Tile* by_width) {
    const Level &in = run.levels[s.in_level], &out = run.levels[s.out_level];
    int64_t taps[256];
    for (int32_t i = 0; i < s.taps; i++) taps[i] = s.offsets[2 * i] * in.stride + s.offsets[2 * i + 1];
    const int64_t vectors = (out.rows * out.stride + LANES - 1) / LANES;
    const int64_t count = (vectors + s.tile - 1) / s.tile, blocks = (s.rows + BLOCK - 1) / BLOCK;
    const int64_t width = vectors / count, wider = vectors % count;
#pragma omp parallel for schedule(dynamic, 1) num_threads(run.threads) if (run.threads > 1)
    for (int64_t item = 0; item < count * blocks; item++) {
        const int64_t tile = item / blocks, first = item % blocks * BLOCK;
        const int64_t begin = tile * width + std::min(tile, wider);
        by_width[width + (tile < wider) - 1](s, run, first, std::min(first + BLOCK, int64_t(s.rows)), begin * LANES, taps);
    }
}

#define EACH_ROW                                                                                 \
    _Pragma("omp parallel for schedule(static) num_threads(run.threads) if (run.threads > 1)") \
    for (int64_t row = 0; row < s.rows; row++)

void copy(const Step& s, const Run& run) {
    const Level& l = run.levels[s.out_level];
    EACH_ROW std::memcpy(run.at(s.out_level, s.out_plane + row), run.at(s.in_level, s.in_plane + row),
                         rounded(l.rows * l.stride) * sizeof(float));
}

// Each input plane becomes four: its even and odd rows, of each the even and odd columns.
void phases(const Step& s, const Run& run) {
    const Level &from = run.levels[s.in_level], &to = run.levels[s.out_level];
    EACH_ROW {
        const float* in = run.at(s.in_level, s.in_plane + row);
        for (int64_t phase = 0; phase < 4; phase++) {
            float* out = run.at(s.out_level, s.out_plane + 4 * row + phase);
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

// The mirror image of a row beyond its ends, in the place of zeros; `first` values wide, at most cols - 1.
void mirror(const Step& s, const Run& run) {
    const int64_t cols = run.levels[s.in_level].cols, width = static_cast<int64_t>(s.first);
    EACH_ROW {
        float* line = run.at(s.in_level, s.in_plane + row);
        for (int64_t i = 1; i <= width; i++) {
            line[-i] = line[i];
            line[cols - 1 + i] = line[cols - 1 - i];
        }
    }
}

INLINE float total(const float* line, int64_t count) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += load(line + i);
    float sum = 0;
    for (; i < count; i++) sum += line[i];
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

INLINE float spread(const float* line, int64_t count, float mean) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += (load(line + i) - mean) * (load(line + i) - mean);
    float sum = 0;
    for (; i < count; i++) sum += (line[i] - mean) * (line[i] - mean);
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

// The mean of each plane.
void means(const Step& s, const Run& run) {
    const Level& l = run.levels[s.in_level];
    EACH_ROW {
        const float* plane = run.at(s.in_level, s.in_plane + row);
        float sum = 0;
        for (int64_t r = 0; r < l.rows; r++) sum += total(plane + r * l.stride, l.cols);
        *run.at(0, s.out_plane + row) = sum / static_cast<float>(l.rows * l.cols);
    }
}

// Mean and standard deviation of each row of each plane; all means, then all deviations. `first` frames fewer divide
// the squares, `second` is the smallest variance.
void statistics(const Step& s, const Run& run) {
    const Level& l = run.levels[s.in_level];
    EACH_ROW for (int64_t r = 0; r < l.rows; r++) {
        const float* line = run.at(s.in_level, s.in_plane + row) + r * l.stride;
        const float mean = total(line, l.cols) / l.cols;
        const float variance = spread(line, l.cols, mean) / (l.cols - s.first);
        *run.at(0, s.out_plane + row * l.rows + r) = mean;
        *run.at(0, s.out_plane + (s.rows + row) * l.rows + r) = std::sqrt(std::max(variance, s.second));
    }
}

// The same of rows of one line, weighted by the softmax of the scores at add_plane, which it overwrites.
void attend(const Step& s, const Run& run) {
    const int64_t count = run.levels[s.in_level].cols;
    EACH_ROW {
        const float* line = run.at(s.in_level, s.in_plane + row);
        float* weight = run.at(s.in_level, s.add_plane + row);
        const int64_t whole = (count + LANES - 1) / LANES * LANES;
        for (int64_t i = count; i < whole; i++) weight[i] = -INFINITY;  // their weight is next to nothing
        Vec most = every(-INFINITY), sums = {}, products = {};
        for (int64_t i = 0; i < count; i += LANES) most = larger(most, load(weight + i));
        float highest = most[0];
        for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, most[lane]);
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
            const Vec off = load(line + i) - mean;
            squares += load(weight + i) * off * off;
        }
        for (int lane = 0; lane < LANES; lane++) square += squares[lane];
        *run.at(0, s.out_plane + row) = mean;
        *run.at(0, s.out_plane + s.rows + row) = std::sqrt(std::max(square / sum, s.second));
    }
}

// out = in * gain + add, the gains at bias_plane.
void excite(const Step& s, const Run& run) {
    const Level& l = run.levels[s.out_level];
    const int64_t count = rounded(l.rows * l.stride);
    EACH_ROW {
        const float gain = *run.at(0, s.bias_plane + row);
        const float *in = run.at(s.in_level, s.in_plane + row), *add = run.at(s.out_level, s.add_plane + row);
        float* out = run.at(s.out_level, s.out_plane + row);
        for (int64_t i = 0; i < count; i += LANES) store(out + i, load(in + i) * gain + load(add + i));
    }
}

// The filterbank, [rows of all planes together, cols].
void load_input(const Step& s, const Run& run) {
    const Level& l = run.levels[s.out_level];
    EACH_ROW for (int64_t r = 0; r < l.rows; r++) {
        float* line = run.at(s.out_level, s.out_plane + row) + r * l.stride;
        std::memcpy(line, run.input + (row * l.rows + r) * l.cols, l.cols * sizeof(float));
        for (int64_t i = l.cols; i < l.stride; i++) line[i] = 0;
    }
}

void store_output(const Step& s, const Run& run) {
    for (int64_t row = 0; row < s.rows; row++) run.output[row] = *run.at(0, s.in_plane + row);
}

void perform(const Step& s, const Run& run) {
    switch (s.op) {
        case CONVOLVE: return tiles(s, run, CONVOLVE_TILES);
        case FINISH: return tiles(s, run, REFINE_TILES);
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
void run_steps(const Step* steps, int64_t count, const Level* levels, float* arena, int64_t threads, const float* input,
               float* output) {
    const Run run = {levels, arena, static_cast<int>(threads), input, output};
    for (int64_t i = 0; i < count; i++) perform(steps[i], run);
}

// Zeros around the images of `planes` planes of each level. Afterwards steps keep them, but for MIRROR, whose planes are
// mirrored again before anything reads beyond their ends.
void clear_around(const Level* levels, const int64_t* planes, int64_t count, float* arena) {
    for (int64_t level = 0; level < count; level++) {
        const Level& l = levels[level];
        for (int64_t plane = 0; plane < planes[level]; plane++) {
            float* start = arena + l.base + plane * l.plane;
            std::fill(start, start + l.lead, 0.0f);
            std::fill(start + l.lead + l.rows * l.stride, start + l.plane, 0.0f);
        }
    }
}
}
