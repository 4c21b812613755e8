// Vectors of the widest registers, and threads: what all kernels use.
//
// No header and no library is needed except the thread pool that torch has loaded.

#pragma once

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))

// libgomp's functions.
extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned threads, unsigned flags);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));
typedef unsigned Bits __attribute__((vector_size(4 * LANES)));
typedef unsigned short Halves __attribute__((vector_size(2 * LANES)));
// In memory they are aligned to single numbers.
typedef float UnalignedFloats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef unsigned short UnalignedHalves __attribute__((vector_size(2 * LANES), aligned(2)));

constexpr float INFINITE = __builtin_inff();

INLINE Floats fill(float value) { return Floats{} + value; }

// The larger of both, or `other` if one is NaN.
INLINE Floats larger(Floats one, Floats other) { return one > other ? one : other; }

#ifdef __AVX512BF16__
// The upper half of a float32.
struct BFloat16 {
    unsigned short bits;
};

INLINE Floats widen(Halves some) { return (Floats)(__builtin_convertvector(some, Bits) << 16); }

// Rounds to the nearest; NaN stays NaN.
INLINE Halves narrow(Floats values) {
    typedef __bf16 Rounded __attribute__((vector_size(2 * LANES)));
    return (Halves)__builtin_convertvector(values, Rounded);
}
#endif

// How many numbers an access concerns: a whole vector, or the rest of a row.
struct Whole {};
struct Rest {
    long size;
};

INLINE Floats load(const float *from, Whole, float = 0) { return *(const UnalignedFloats *)from; }

// Lanes beyond the rest are `beyond`.
INLINE Floats load(const float *from, Rest rest, float beyond = 0) {
    Floats values = fill(beyond);
    for (long lane = 0; lane < LANES && lane < rest.size; lane++) values[lane] = from[lane];
    return values;
}

INLINE void store(float *to, Floats values, Whole) { *(UnalignedFloats *)to = values; }

INLINE void store(float *to, Floats values, Rest rest) {
    for (long lane = 0; lane < LANES && lane < rest.size; lane++) to[lane] = values[lane];
}

// Rounds as a tensor of the type would.
INLINE Floats rounded(Floats values, float) { return values; }

#ifdef __AVX512BF16__
INLINE Floats load(const BFloat16 *from, Whole, float = 0) {
    return widen(*(const UnalignedHalves *)from);
}

INLINE Floats load(const BFloat16 *from, Rest rest, float beyond = 0) {
    Halves some{};
    for (long lane = 0; lane < LANES && lane < rest.size; lane++) some[lane] = from[lane].bits;
    Floats values = widen(some);
    for (long lane = rest.size; lane < LANES; lane++) values[lane] = beyond;
    return values;
}

INLINE void store(BFloat16 *to, Floats values, Whole) { *(UnalignedHalves *)to = narrow(values); }

INLINE void store(BFloat16 *to, Floats values, Rest rest) {
    Halves some = narrow(values);
    for (long lane = 0; lane < LANES && lane < rest.size; lane++) to[lane].bits = some[lane];
}

INLINE Floats rounded(Floats values, BFloat16) { return widen(narrow(values)); }
#endif

// Exchanges blocks of `STEP` lanes between two rows of a matrix that is transposed.
template <int STEP, int... LANE>
INLINE void exchange(Floats &one, Floats &other) {
    Floats upper = __builtin_shufflevector(one, other, (LANE & STEP ? LANES + LANE - STEP : LANE)...);
    other = __builtin_shufflevector(one, other, (LANE & STEP ? LANES + LANE : LANE + STEP)...);
    one = upper;
}

template <typename Number, Number... LANE>
struct Lanes {
    template <int STEP>
    INLINE static void exchange_rows(Floats (&rows)[LANES]) {
        for (int row = 0; row < LANES; row++)
            if (!(row & STEP)) exchange<STEP, LANE...>(rows[row], rows[row + STEP]);
    }
};

// Transposes a square of numbers (Eklundh 1972).
INLINE void transpose(Floats (&rows)[LANES]) {
    typedef __make_integer_seq<Lanes, int, LANES> All;
    All::exchange_rows<1>(rows);
    All::exchange_rows<2>(rows);
    All::exchange_rows<4>(rows);
    if constexpr (LANES == 16) All::exchange_rows<8>(rows);
}

// Calls `body(index, extent, turn)` for each vector from `start` to `end`. `turn` tells UNROLLED
// consecutive vectors apart: sums in as many variables do not wait for each other.
constexpr int UNROLLED = 4;

template <typename Body>
INLINE void for_each_vector(long start, long end, Body body) {
    long index = start;
    for (; index + UNROLLED * LANES <= end; index += UNROLLED * LANES) {
        body(index, Whole{}, 0);
        body(index + LANES, Whole{}, 1);
        body(index + 2 * LANES, Whole{}, 2);
        body(index + 3 * LANES, Whole{}, 3);
    }
    for (; index + LANES <= end; index += LANES) body(index, Whole{}, 0);
    if (index < end) body(index, Rest{end - index}, 0);
}

INLINE float sum(const Floats (&values)[UNROLLED]) {
    Floats all = (values[0] + values[1]) + (values[2] + values[3]);
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += all[lane];
    return total;
}

// e to the power of numbers up to 88, within two units in the last place; 0 for those below -88.
//
// The argument is reduced to |x| <= log(2) / 2 (Cody and Waite 1980); there e^x is 1 + x + x^2 p(x)
// with the polynomial of Cephes' expf.
INLINE Floats exponential(Floats values) {
    Floats x = larger(fill(-88), values);
    Floats whole = __builtin_elementwise_roundeven(x * 1.44269504f);
    x = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = fill(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1;
    Ints exponent = __builtin_convertvector(whole, Ints);
    return p * (Floats)((exponent + 127) << 23);
}

// Calls `kernel(first, last)` on up to `threads` threads, each with its share of `size`.
template <typename Kernel>
INLINE void parallel(long size, long threads, Kernel kernel) {
    struct Call {
        long size;
        Kernel *kernel;
    } call{size, &kernel};
    auto run = [](void *arguments) {
        Call *call = (Call *)arguments;
        long thread = omp_get_thread_num(), threads = omp_get_num_threads();
        (*call->kernel)(call->size * thread / threads, call->size * (thread + 1) / threads);
    };
    if (threads > 1)
        GOMP_parallel(run, &call, (unsigned)threads, 0);
    else
        kernel(0, size);
}

}  // namespace

// `NAME_float32` of each kernel, and `NAME_bfloat16` if the processor converts to bfloat16.
#ifdef __AVX512BF16__
#define FOR_EACH_TYPE(EXPORT) EXPORT(float, float32) EXPORT(BFloat16, bfloat16)
#else
#define FOR_EACH_TYPE(EXPORT) EXPORT(float, float32)
#endif
#define EXPORTED extern "C" __attribute__((visibility("default"))) void
