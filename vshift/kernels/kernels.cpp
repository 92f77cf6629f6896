// Three loops over activations in memory order, for the CPU: noise, batch norm with ReLU, and its
// gradient. Plain C++ that a compiler vectorises; no header of PyTorch's, so that it compiles in a
// second. A value is float, or bf16 held in 16 bits; all arithmetic is in float, sums over a batch
// in double. Results do not depend on the number of threads: work is cut by the shape alone.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;

namespace {

// ---- values -----------------------------------------------------------------------------------

inline float load(const float* p) { return *p; }
inline void store(float* p, float v) { *p = v; }

inline float load(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}

inline void store(uint16_t* p, float v) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    *p = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// As many values at once as a register holds, in the vector types of GCC and Clang.
#if defined(__AVX512F__)
constexpr int WIDE = 16;
#elif defined(__AVX2__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
typedef float Wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t WideInt __attribute__((vector_size(4 * WIDE)));
typedef uint32_t WideWord __attribute__((vector_size(4 * WIDE)));
typedef uint16_t WideHalf __attribute__((vector_size(2 * WIDE)));

inline void load(const float* p, Wide& v) { std::memcpy(&v, p, sizeof v); }
inline void store(float* p, const Wide& v) { std::memcpy(p, &v, sizeof v); }

inline void load(const uint16_t* p, Wide& v) {
    WideHalf half;
    std::memcpy(&half, p, sizeof half);
    v = reinterpret_cast<Wide>(__builtin_convertvector(half, WideWord) << 16);
}

inline void store(uint16_t* p, const Wide& v) {
    const WideWord bits = reinterpret_cast<WideWord>(v);
    const WideWord rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const WideWord nan = reinterpret_cast<WideWord>((bits & 0x7fffffffu) > 0x7f800000u);
    const WideHalf half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), WideHalf);
    std::memcpy(p, &half, sizeof half);
}

template <typename T>
inline void load(const T* p, float& v) { v = load(p); }

// v, but 0 where z ≤ 0. NaN is not, and passes, so that a diverging run shows.
inline float where_positive(float z, float v) { return z <= 0.0f ? 0.0f : v; }
inline Wide where_positive(const Wide& z, const Wide& v) {
    return reinterpret_cast<Wide>(reinterpret_cast<WideInt>(v) & ~reinterpret_cast<WideInt>(z <= 0.0f));
}

// ---- random numbers ---------------------------------------------------------------------------

// Sixteen lanes at once, in the vector types of GCC and Clang.
constexpr int LANES = 16;
typedef uint32_t Word __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef float Float __attribute__((vector_size(4 * LANES)));

inline Float to_float(Word word) {  // of words below 2³¹
    return __builtin_convertvector(reinterpret_cast<Int>(word), Float);
}

inline Word rotate(Word x, int by) { return (x << by) | (x >> (32 - by)); }

// Threefry4x32-20 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the key
// (low, high, 0, 0), of the counters (lane + 16·block, high 32 bits of block, 0, 0).
inline void random_words(uint64_t block, uint64_t key, Word (&x)[4]) {
    constexpr int turns[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5},
                                 {6, 20},  {17, 11}, {25, 10}, {18, 20}};
    const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    const uint32_t keys[5] = {low, high, 0, 0, 0x1BD11BDAu ^ low ^ high};
    const Word zero = {};
    const Word lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint64_t first = block * LANES;  // LANES divides 2³²: no carry within a block
    x[0] = lanes + (static_cast<uint32_t>(first) + keys[0]);
    x[1] = zero + (static_cast<uint32_t>(first >> 32) + keys[1]);
    x[2] = zero + keys[2];
    x[3] = zero + keys[3];
#pragma GCC unroll 20
    for (int round = 0; round < 20; round++) {
        const int second = round % 2 ? 3 : 1, fourth = round % 2 ? 1 : 3;
        x[0] += x[second];
        x[second] = rotate(x[second], turns[round % 8][0]) ^ x[0];
        x[2] += x[fourth];
        x[fourth] = rotate(x[fourth], turns[round % 8][1]) ^ x[2];
        if (round % 4 == 3) {
            const int turn = round / 4 + 1;
            for (int j = 0; j < 4; j++) x[j] += keys[(turn + j) % 5];
            x[3] += static_cast<uint32_t>(turn);
        }
    }
}

// −ln u for u = (word/2 + ½)·2⁻³¹, from u = m·2^e with m in [√½, √2) and the series of atanh.
inline Float minus_log(Word word) {
    const Float u = (to_float(word >> 1) + 0.5f) * 0x1p-31f;
    const Int bits = reinterpret_cast<Int>(u);
    const Int e = (bits - 0x3f3504f3) >> 23;
    const Float m = reinterpret_cast<Float>(bits - (e << 23));
    const Float s = (m - 1.0f) / (m + 1.0f), q = s * s;
    const Float series =
        s * (2.0f + q * (0.66666667f + q * (0.4f + q * (0.28571429f + q * 0.22222222f))));
    return -(series + 0.69314718f * __builtin_convertvector(e, Float));
}

// sin and cos of 2π·word/2³², from the angle's distance to the nearest quarter turn.
inline void turn(Word word, Float& sine, Float& cosine) {
    const Word quarter = (word + 0x20000000u) >> 30;
    const Float x = to_float(word - (quarter << 30)) * (6.28318531f * 0x1p-32f);
    const Float q = x * x;
    const Float s = x * (1.0f + q * (-0.16666667f + q * (8.3333333e-3f + q * -1.9841270e-4f)));
    const Float c =
        1.0f + q * (-0.5f + q * (4.1666667e-2f + q * (-1.3888889e-3f + q * 2.4801587e-5f)));
    const Int swapped = (quarter & 1u) != 0;
    const Float a = swapped ? c : s, b = swapped ? s : c;
    sine = reinterpret_cast<Float>(reinterpret_cast<Word>(a) ^ ((quarter & 2u) << 30));
    cosine = reinterpret_cast<Float>(reinterpret_cast<Word>(b) ^ (((quarter + 1u) & 2u) << 30));
}

inline void put(float* to, const Float& values) { std::memcpy(to, &values, sizeof values); }

inline Float square_root(const Float& values) {
    float in[LANES], out[LANES];
    std::memcpy(in, &values, sizeof in);
    for (int i = 0; i < LANES; i++) out[i] = std::sqrt(in[i]);
    Float roots;
    std::memcpy(&roots, out, sizeof roots);
    return roots;
}

enum Kind { DROP = 0, UNIFORM = 1, NORMAL = 2 };

// A tile of 128 multipliers. DROP and UNIFORM take 16 bits each, from one block of 64 words: value
// 32j + i is the low half of word j of lane i, value 32j + 16 + i the high half. NORMAL takes 32
// each, from two blocks (Box & Muller 1958): of words 0 and 1, then of 2 and 3, of lane i, one is
// the radius and one the angle of values i and 16 + i.
template <int KIND>
inline void multipliers(int64_t tile, uint64_t key, float scale, uint32_t kept, float* m) {
    Word word[4];
    if constexpr (KIND == NORMAL) {
        for (int half = 0; half < 2; half++) {
            random_words(2 * static_cast<uint64_t>(tile) + half, key, word);
            for (int j = 0; j < 4; j += 2, m += 32) {
                Float sine, cosine;
                const Float radius = square_root(2.0f * minus_log(word[j])) * scale;
                turn(word[j + 1], sine, cosine);
                put(m, 1.0f + radius * cosine);
                put(m + 16, 1.0f + radius * sine);
            }
        }
    } else {
        random_words(static_cast<uint64_t>(tile), key, word);
        for (int j = 0; j < 4; j++, m += 32) {
            const Word halves[2] = {word[j] & 0xffffu, word[j] >> 16};
            for (int k = 0; k < 2; k++) {
                if constexpr (KIND == DROP) {
                    const Float value = scale + Float{};
                    const Int keep = reinterpret_cast<Int>(halves[k]) < static_cast<int32_t>(kept);
                    put(m + 16 * k, reinterpret_cast<Float>(keep & reinterpret_cast<Int>(value)));
                } else {  // the middles of 2¹⁶ cells of (1 − scale, 1 + scale)
                    put(m + 16 * k,
                        1.0f + scale * ((to_float(halves[k]) - 32767.5f) * 0x1p-15f));
                }
            }
        }
    }
}

constexpr int TILE = 128;

template <typename T, int KIND>
void multiply(const T* x, T* y, int64_t n, uint64_t key, float scale, uint32_t kept, int threads) {
    const int64_t tiles = (n + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float m[TILE];
        multipliers<KIND>(tile, key, scale, kept, m);
        const T* from = x + tile * TILE;
        T* to = y + tile * TILE;
        if (tile + 1 < tiles || n % TILE == 0) {
            for (int i = 0; i < TILE; i++) store(to + i, load(from + i) * m[i]);
        } else {
            for (int i = 0; i < n % TILE; i++) store(to + i, load(from + i) * m[i]);
        }
    }
}

template <typename T>
void multiply_any(const T* x, T* y, int64_t n, int kind, uint64_t key, float scale, uint32_t kept,
                  int threads) {
    if (kind == DROP) multiply<T, DROP>(x, y, n, key, scale, kept, threads);
    if (kind == UNIFORM) multiply<T, UNIFORM>(x, y, n, key, scale, kept, threads);
    if (kind == NORMAL) multiply<T, NORMAL>(x, y, n, key, scale, kept, threads);
}

// ---- batch norm, with ReLU --------------------------------------------------------------------

// Rows of `channels` values are cut into chunks, one of which a thread works through in blocks
// that stay in its first cache. Both sizes follow from the shape alone.
constexpr int64_t BLOCK = 64;

struct Cut {
    int64_t rows, chunks, size;
    explicit Cut(int64_t n) : rows(n) {
        const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
        chunks = blocks < 128 ? blocks : 128;
        size = (blocks + chunks - 1) / chunks * BLOCK;
        chunks = (rows + size - 1) / size;
    }
    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t end(int64_t chunk) const { return (chunk + 1) * size < rows ? (chunk + 1) * size : rows; }
};

// Calls work(first row, rows) for the blocks of a chunk.
template <typename Work>
inline void blocks(const Cut& cut, int64_t chunk, Work work, int64_t size = BLOCK) {
    for (int64_t start = cut.begin(chunk); start < cut.end(chunk); start += size)
        work(start, start + size < cut.end(chunk) ? size : cut.end(chunk) - start);
}

// Rows at a time where nothing is summed: of many channels fewer, to stay in the first cache.
inline int64_t few_rows(int64_t channels) { return channels > 64 ? 8 : BLOCK; }

// N neighbouring values of V, a channel or WIDE of them: a row is read by whole cache lines, and its
// sums stay in registers.
template <typename V, int N>
struct Tile {
    typedef V Value;
    static constexpr int values = N, lanes = sizeof(V) / sizeof(float), size = N * lanes;
    int64_t first;  // channel
    int skip;       // of its channels, which its neighbour has

    template <typename T>
    void get(const T* row, V (&to)[N]) const {
        for (int k = 0; k < N; k++) load(row + first + k * lanes, to[k]);
    }

    template <typename T>
    void put(T* row, const V (&from)[N]) const {
        for (int k = 0; k < N; k++) store(row + first + k * lanes, from[k]);
    }

    // Calls work(channel, place in the tile) for its own.
    template <typename Work>
    void each(Work work) const {
        for (int i = skip; i < size; i++) work(first + i, i);
    }

    // Sums over rows r of what add(r, sums) adds: two rows at a time, so that one addition need not
    // wait for the other.
    template <int M, typename Add>
    static void sum_rows(int64_t rows, float (&total)[M * lanes], Add add) {
        V even[M] = {}, odd[M] = {};
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2) add(r, even), add(r + 1, odd);
        if (r < rows) add(r, even);
        for (int k = 0; k < M; k++) store(total + k * lanes, even[k] + odd[k]);
    }
};

constexpr int MOST = WIDE < 16 ? 2 : 4;  // of a tile's values, so that its sums fit into the registers

// Calls work(tile) for all channels. Where WIDE does not divide them, the last tile overlaps its
// neighbour; where there are fewer, tiles are of single floats, which the compiler vectorises.
template <typename Work>
inline void tiles(int64_t channels, Work work) {
    int64_t c = 0;
    if (channels >= WIDE) {
        for (; c + MOST * WIDE <= channels; c += MOST * WIDE) work(Tile<Wide, MOST>{c, 0});
        for (; c + 2 * WIDE <= channels; c += 2 * WIDE) work(Tile<Wide, 2>{c, 0});
        for (; c + WIDE <= channels; c += WIDE) work(Tile<Wide, 1>{c, 0});
        const int64_t last = channels - WIDE;
        if (c < channels) work(Tile<Wide, 1>{last, static_cast<int>(c - last)});
        return;
    }
    for (; c + 8 <= channels; c += 8) work(Tile<float, 8>{c, 0});
    for (; c + 4 <= channels; c += 4) work(Tile<float, 4>{c, 0});
    for (; c < channels; c++) work(Tile<float, 1>{c, 0});
}

// Means and sums of squared deviations of `more` values, to be merged into those of `count` values
// (Chan, Golub & LeVeque 1983, equation 2.1).
struct Merge {
    double share, weight;
    Merge(double count, double more) : share(more / (count + more)), weight(count * share) {}
    void operator()(double& mean, double& m2, double other, double other2) const {
        const double apart = other - mean;
        m2 += other2 + apart * apart * weight;
        mean += apart * share;
    }
};

template <typename T>
void moments(const T* x, int64_t rows, int64_t channels, double* mean, double* m2, int threads) {
    const Cut cut(rows);
    std::vector<double> partial(2 * cut.chunks * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        double* own = partial.data() + 2 * chunk * channels;
        double* own2 = own + channels;
        blocks(cut, chunk, [&](int64_t start, int64_t count) {
            const Merge merge(start - cut.begin(chunk), count);
            const T* from = x + start * channels;
            tiles(channels, [&](auto tile) {
                typedef decltype(tile) Of;
                typedef typename Of::Value V;
                constexpr int N = Of::values;
                float centre[Of::size], square[Of::size];
                tile.template sum_rows<N>(count, centre, [&](int64_t r, V(&to)[N]) {
                    V v[N];
                    tile.get(from + r * channels, v);
                    for (int k = 0; k < N; k++) to[k] += v[k];
                });
                V middle[N];
                for (int k = 0; k < N; k++) {
                    load(centre + k * Of::lanes, middle[k]);
                    middle[k] /= static_cast<float>(count);
                    store(centre + k * Of::lanes, middle[k]);
                }
                tile.template sum_rows<N>(count, square, [&](int64_t r, V(&to)[N]) {
                    V v[N];
                    tile.get(from + r * channels, v);
                    for (int k = 0; k < N; k++) {
                        v[k] -= middle[k];
                        to[k] += v[k] * v[k];
                    }
                });
                tile.each([&](int64_t c, int i) { merge(own[c], own2[c], centre[i], square[i]); });
            });
        });
    }
    for (int64_t c = 0; c < channels; c++) mean[c] = m2[c] = 0.0;
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        const double* own = partial.data() + 2 * chunk * channels;
        const Merge merge(cut.begin(chunk), cut.end(chunk) - cut.begin(chunk));
        for (int64_t c = 0; c < channels; c++) merge(mean[c], m2[c], own[c], own[channels + c]);
    }
}

// y = x·a + b, with ReLU where asked.
template <typename T, bool RELU>
void affine(const T* x, T* y, int64_t rows, int64_t channels, const float* a, const float* b,
            int threads) {
    const Cut cut(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        blocks(cut, chunk, [&](int64_t start, int64_t count) {
            tiles(channels, [&](auto tile) {
                typedef decltype(tile) Of;
                typedef typename Of::Value V;
                constexpr int N = Of::values;
                V scale[N], shift[N], z[N];
                tile.get(a, scale);
                tile.get(b, shift);
                for (int64_t at = start * channels; at < (start + count) * channels; at += channels) {
                    tile.get(x + at, z);
                    for (int k = 0; k < N; k++) {
                        z[k] = z[k] * scale[k] + shift[k];
                        if (RELU) z[k] = where_positive(z[k], z[k]);
                    }
                    tile.put(y + at, z);
                }
            });
        }, few_rows(channels));
    }
}

// Channel sums of g and g·(x − mean), g being the gradient where ReLU let it through.
template <typename T, bool RELU>
void gradient_sums(const T* x, const T* dy, int64_t rows, int64_t channels, const float* a,
                   const float* b, const float* mean, double* sum, double* dot, int threads) {
    const Cut cut(rows);
    std::vector<double> partial(2 * cut.chunks * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        double* own = partial.data() + 2 * chunk * channels;
        blocks(cut, chunk, [&](int64_t start, int64_t count) {
            tiles(channels, [&](auto tile) {
                typedef decltype(tile) Of;
                typedef typename Of::Value V;
                constexpr int N = Of::values;
                V scale[N], shift[N], centre[N];
                tile.get(a, scale);
                tile.get(b, shift);
                tile.get(mean, centre);
                float sums[2 * Of::size];
                tile.template sum_rows<2 * N>(count, sums, [&](int64_t r, V(&to)[2 * N]) {
                    V v[N], g[N];
                    tile.get(x + (start + r) * channels, v);
                    tile.get(dy + (start + r) * channels, g);
                    for (int k = 0; k < N; k++) {
                        if (RELU) g[k] = where_positive(v[k] * scale[k] + shift[k], g[k]);
                        to[k] += g[k];
                        to[N + k] += g[k] * (v[k] - centre[k]);
                    }
                });
                tile.each([&](int64_t c, int i) {
                    own[c] += sums[i];
                    own[channels + c] += sums[Of::size + i];
                });
            });
        });
    }
    for (int64_t c = 0; c < channels; c++) sum[c] = dot[c] = 0.0;
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        const double* own = partial.data() + 2 * chunk * channels;
        for (int64_t c = 0; c < channels; c++) {
            sum[c] += own[c];
            dot[c] += own[channels + c];
        }
    }
}

template <typename T, bool RELU>
void gradient(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, const float* a,
              const float* b, const float* slope, const float* offset, int threads) {
    const Cut cut(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < cut.chunks; chunk++) {
        blocks(cut, chunk, [&](int64_t start, int64_t count) {
            tiles(channels, [&](auto tile) {
                typedef decltype(tile) Of;
                typedef typename Of::Value V;
                constexpr int N = Of::values;
                V scale[N], shift[N], along[N], fixed[N], v[N], g[N];
                tile.get(a, scale);
                tile.get(b, shift);
                tile.get(slope, along);
                tile.get(offset, fixed);
                for (int64_t at = start * channels; at < (start + count) * channels; at += channels) {
                    tile.get(x + at, v);
                    tile.get(dy + at, g);
                    for (int k = 0; k < N; k++) {
                        if (RELU) g[k] = where_positive(v[k] * scale[k] + shift[k], g[k]);
                        g[k] = g[k] * scale[k] + (v[k] * along[k] + fixed[k]);
                    }
                    tile.put(dx + at, g);
                }
            });
        }, few_rows(channels));
    }
}

template <typename T>
void forward(const T* x, T* y, int64_t rows, int64_t channels, const float* weight,
             const float* bias, double eps, float* a, float* b, float* mean, float* variance,
             bool relu, int threads) {
    std::vector<double> centre(channels), m2(channels);
    moments(x, rows, channels, centre.data(), m2.data(), threads);
    for (int64_t c = 0; c < channels; c++) {
        const double scale = (weight ? weight[c] : 1.0) / std::sqrt(m2[c] / rows + eps);
        a[c] = static_cast<float>(scale);
        b[c] = static_cast<float>((bias ? bias[c] : 0.0) - centre[c] * scale);
        mean[c] = static_cast<float>(centre[c]);
        variance[c] = static_cast<float>(m2[c] / (rows - 1));
    }
    if (relu)
        affine<T, true>(x, y, rows, channels, a, b, threads);
    else
        affine<T, false>(x, y, rows, channels, a, b, threads);
}

template <typename T, bool RELU>
void backward(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, double eps,
              const float* a, const float* b, const float* mean, const float* variance,
              float* weight_gradient, float* bias_gradient, int threads) {
    std::vector<double> sum(channels), dot(channels);
    gradient_sums<T, RELU>(x, dy, rows, channels, a, b, mean, sum.data(), dot.data(), threads);
    // dx = a (g − mean(g) − x̂ mean(g x̂)), x̂ = (x − mean)/σ (Ioffe & Szegedy 2015, section 3).
    std::vector<float> slope(channels), offset(channels);
    for (int64_t c = 0; c < channels; c++) {
        const double inverse = 1.0 / (static_cast<double>(variance[c]) * (rows - 1) / rows + eps);
        weight_gradient[c] = static_cast<float>(dot[c] * std::sqrt(inverse));
        bias_gradient[c] = static_cast<float>(sum[c]);
        const double along = -a[c] * dot[c] / rows * inverse;
        slope[c] = static_cast<float>(along);
        offset[c] = static_cast<float>(-a[c] * sum[c] / rows - along * mean[c]);
    }
    gradient<T, RELU>(x, dy, dx, rows, channels, a, b, slope.data(), offset.data(), threads);
}

template <typename T>
void backward_any(const T* x, const T* dy, T* dx, int64_t rows, int64_t channels, double eps,
                  const float* a, const float* b, const float* mean, const float* variance,
                  float* wg, float* bg, bool relu, int threads) {
    auto* run = relu ? backward<T, true> : backward<T, false>;
    run(x, dy, dx, rows, channels, eps, a, b, mean, variance, wg, bg, threads);
}

}  // namespace

extern "C" {

// The multipliers' generator alone, for its known answers: 4 words of each of 16 counters.
void vshift_random(uint64_t block, uint64_t key, uint32_t* out) {
    Word words[4];
    random_words(block, key, words);
    std::memcpy(out, words, sizeof words);
}

void vshift_multiply(const void* x, void* y, int64_t n, int bf16, int kind, uint64_t key,
                     float scale, uint32_t kept, int threads) {
    if (bf16)
        multiply_any(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), n, kind, key,
                     scale, kept, threads);
    else
        multiply_any(static_cast<const float*>(x), static_cast<float*>(y), n, kind, key, scale,
                     kept, threads);
}

void vshift_norm_forward(const void* x, void* y, int64_t rows, int64_t channels, int bf16,
                         const float* weight, const float* bias, double eps, float* a, float* b,
                         float* mean, float* variance, int relu, int threads) {
    if (bf16)
        forward(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), rows, channels, weight,
                bias, eps, a, b, mean, variance, relu, threads);
    else
        forward(static_cast<const float*>(x), static_cast<float*>(y), rows, channels, weight, bias,
                eps, a, b, mean, variance, relu, threads);
}

void vshift_norm_backward(const void* x, const void* dy, void* dx, int64_t rows, int64_t channels,
                          int bf16, double eps, const float* a, const float* b, const float* mean,
                          const float* variance, float* weight_gradient, float* bias_gradient,
                          int relu, int threads) {
    if (bf16)
        backward_any(static_cast<const uint16_t*>(x), static_cast<const uint16_t*>(dy),
                     static_cast<uint16_t*>(dx), rows, channels, eps, a, b, mean, variance,
                     weight_gradient, bias_gradient, relu, threads);
    else
        backward_any(static_cast<const float*>(x), static_cast<const float*>(dy),
                     static_cast<float*>(dx), rows, channels, eps, a, b, mean, variance,
                     weight_gradient, bias_gradient, relu, threads);
}

void vshift_affine(const void* x, void* y, int64_t rows, int64_t channels, int bf16,
                   const float* a, const float* b, int relu, int threads) {
    if (bf16) {
        const auto* from = static_cast<const uint16_t*>(x);
        auto* to = static_cast<uint16_t*>(y);
        (relu ? affine<uint16_t, true> : affine<uint16_t, false>)(from, to, rows, channels, a, b,
                                                                   threads);
    } else {
        const auto* from = static_cast<const float*>(x);
        auto* to = static_cast<float*>(y);
        (relu ? affine<float, true> : affine<float, false>)(from, to, rows, channels, a, b, threads);
    }
}
}
