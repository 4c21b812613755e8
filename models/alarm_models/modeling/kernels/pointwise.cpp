// What a transformer computes between its matrix products: norms, activations, rotary positions.
// Each kernel reads its operands once, where torch's operators write a tensor for each arithmetic
// operation. Tensors are contiguous; arithmetic is float32.

#include "vectors.h"

namespace {

// Each row divided by its root mean square, times the weight (Zhang and Sennrich 2019).
template <typename Number>
INLINE void rms_norm(const Number *states, const Number *weight, Number *out, long rows, long width,
                     float epsilon, long threads) {
    parallel(rows, threads, [&](long first, long last) INLINED {
        for (long start = first * width; start < last * width; start += width) {
            Floats squares[UNROLLED] = {};
            for_each_vector(0, width, [&](long column, auto extent, int turn) INLINED {
                Floats some = load(states + start + column, extent);
                squares[turn] += some * some;
            });
            float scale = 1 / __builtin_sqrtf(sum(squares) / (float)width + epsilon);
            for_each_vector(0, width, [&](long column, auto extent, int) INLINED {
                Floats some = rounded(load(states + start + column, extent) * scale, Number{});
                store(out + start + column, some * load(weight + column, extent), extent);
            });
        }
    });
}

// LayerNorm (Ba et al. 2016) of the sum of states and the residual.
template <typename Number>
INLINE void residual_norm(const Number *states, const Number *residual, const Number *weight,
                          const Number *bias, Number *out, long rows, long width, float epsilon,
                          long threads) {
    parallel(rows, threads, [&](long first, long last) INLINED {
        for (long start = first * width; start < last * width; start += width) {
            Floats sums[UNROLLED] = {};
            for_each_vector(0, width, [&](long column, auto extent, int turn) INLINED {
                long index = start + column;
                Floats some = load(states + index, extent) + load(residual + index, extent);
                some = rounded(some, Number{});
                store(out + index, some, extent);
                sums[turn] += some;
            });
            float mean = sum(sums) / (float)width;
            Floats squares[UNROLLED] = {};
            for_each_vector(0, width, [&](long column, auto extent, int turn) INLINED {
                Floats some = load(out + start + column, extent, mean) - mean;
                squares[turn] += some * some;
            });
            float scale = 1 / __builtin_sqrtf(sum(squares) / (float)width + epsilon);
            for_each_vector(0, width, [&](long column, auto extent, int) INLINED {
                Floats some = (load(out + start + column, extent) - mean) * scale;
                some = some * load(weight + column, extent) + load(bias + column, extent);
                store(out + start + column, some, extent);
            });
        }
    });
}

// x times the share of a normal distribution below x (Hendrycks and Gimpel 2016).
//
// Up to |x| = 5.5 the share is 0.5 + x p(x^2), with a least-squares polynomial in x^2 scaled to
// [-1, 1]; the error of the product is less than 1e-6. In bfloat16 torch's own is as fast.
INLINE void gelu(const float *states, float *out, long size, long threads) {
    constexpr float LIMIT = 5.5f;
    constexpr float COEFFICIENTS[] = {
        -8.631173305e-04f, 2.545586607e-03f, -2.642607575e-03f, 2.593820921e-03f, -6.174778138e-03f,
        1.131419964e-02f, -1.542418321e-02f, 2.007667890e-02f, -2.593204243e-02f, 3.210475297e-02f,
        -3.880539932e-02f, 4.773619492e-02f, -6.417196841e-02f, 1.285519393e-01f};
    parallel((size + LANES - 1) / LANES, threads, [&](long first, long last) INLINED {
        long end = last * LANES < size ? last * LANES : size;
        for_each_vector(first * LANES, end, [&](long index, auto extent, int) INLINED {
            Floats x = load(states + index, extent);
            Floats scaled = x * x * (2 / (LIMIT * LIMIT)) - 1;
            Floats share{};
            for (float coefficient : COEFFICIENTS) share = share * scaled + coefficient;
            share = share * x + 0.5f;
            share = x > LIMIT ? fill(1) : share;
            share = x < -LIMIT ? fill(0) : share;
            store(out + index, x * share, extent);
        });
    });
}

// silu(gate) * up (Shazeer 2020).
template <typename Number>
INLINE void gated_silu(const Number *gate, const Number *up, Number *out, long size, long threads) {
    parallel((size + LANES - 1) / LANES, threads, [&](long first, long last) INLINED {
        long end = last * LANES < size ? last * LANES : size;
        for_each_vector(first * LANES, end, [&](long index, auto extent, int) INLINED {
            Floats some = load(gate + index, extent);
            Floats silu = rounded(some / (exponential(-larger(fill(-88), some)) + 1), Number{});
            store(out + index, silu * load(up + index, extent), extent);
        });
    });
}

// Rotary positions, for heads whose halves rotate together (Su et al. 2021). `states` and `out` are
// [tokens, heads, dim], `cosine` and `sine` [tokens, dim].
template <typename Number>
INLINE void rotate(const Number *states, const Number *cosine, const Number *sine, Number *out,
                   long tokens, long heads, long dim, long threads) {
    parallel(tokens, threads, [&](long first, long last) INLINED {
        long half = dim / 2;
        for (long row = first * heads; row < last * heads; row++) {
            const Number *left = states + row * dim, *right = left + half;
            const Number *cos = cosine + row / heads * dim, *sin = sine + row / heads * dim;
            Number *to = out + row * dim;
            for_each_vector(0, half, [&](long index, auto extent, int) INLINED {
                Floats one = load(left + index, extent), other = load(right + index, extent);
                Floats turned_one = one * load(cos + index, extent) - other * load(sin + index, extent);
                Floats turned_other = other * load(cos + half + index, extent) +
                                      one * load(sin + half + index, extent);
                store(to + index, turned_one, extent);
                store(to + half + index, turned_other, extent);
            });
        }
    });
}

}  // namespace

#define RMS_NORM(Number, name)                                                                    \
    EXPORTED rms_norm_##name(const Number *states, const Number *weight, Number *out, long rows,  \
                             long width, float epsilon, long threads) {                           \
        rms_norm(states, weight, out, rows, width, epsilon, threads);                             \
    }
FOR_EACH_TYPE(RMS_NORM)

#define RESIDUAL_NORM(Number, name)                                                               \
    EXPORTED residual_norm_##name(const Number *states, const Number *residual,                   \
                                  const Number *weight, const Number *bias, Number *out,          \
                                  long rows, long width, float epsilon, long threads) {           \
        residual_norm(states, residual, weight, bias, out, rows, width, epsilon, threads);        \
    }
FOR_EACH_TYPE(RESIDUAL_NORM)

EXPORTED gelu_float32(const float *states, float *out, long size, long threads) {
    gelu(states, out, size, threads);
}

#define GATED_SILU(Number, name)                                                                  \
    EXPORTED gated_silu_##name(const Number *gate, const Number *up, Number *out, long size,      \
                               long threads) {                                                    \
        gated_silu(gate, up, out, size, threads);                                                 \
    }
FOR_EACH_TYPE(GATED_SILU)

#define ROTATE(Number, name)                                                                      \
    EXPORTED rotate_##name(const Number *states, const Number *cosine, const Number *sine,        \
                           Number *out, long tokens, long heads, long dim, long threads) {        \
        rotate(states, cosine, sine, out, tokens, heads, dim, threads);                           \
    }
FOR_EACH_TYPE(ROTATE)
