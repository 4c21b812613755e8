// Attention over a packed batch, in one pass: each query attends to the keys of its sample.
//
// Queries are in the lanes of vectors and keys are read as they are, one number at a time for all
// queries, so that no key or value is copied or transposed. The softmax is computed as keys come
// (Milakov and Gimelshein 2018; Dao et al. 2022): no logit is written to memory beyond the cache.

#include "vectors.h"

namespace {

// Queries of a block, and keys of a step.
constexpr int VECTORS = 2, QUERIES = VECTORS * LANES, KEYS = 128;

// Keys whose logits, and numbers of the output, that are computed at once in registers.
constexpr int TILE = LANES == 16 ? 8 : 6;

constexpr int MAX_DIM = 256;

// Keys that queries of a block attend to. Query `q` of the queries from `first_query` to
// `last_query` attends to key `k` from `first_key` to `last_key` if the distance
// (k - first_key) - (q - first_query) is from `least` to `most`.
struct Segment {
    long first_key, last_key, first_query, last_query, least, most;
};

// Queries that are computed together, and their segments.
struct Block {
    long first_query, num_queries, first_segment, last_segment;
};

template <typename Number>
struct Attention {
    const Number *query, *key, *value;
    Number *out;
    // Numbers from one token to the next, and from one head to the next.
    long query_stride, query_head, key_stride, key_head, value_stride, value_head;
    long heads, groups, dim, value_dim;
    float scale;
    const Block *blocks;
    const Segment *segments;
    long num_blocks;
    long *next;  // a counter of blocks and heads that threads have taken
};

// What is multiplied at once: a float32, or a pair of bfloat16 along the axis that is summed over.
struct Float {
    typedef float Word;
    static constexpr int NUMBERS = 1;

    INLINE static Floats add_product(Floats sum, Floats words, Word word) { return sum + words * word; }
};

#ifdef __AVX512BF16__
struct Pair {
    typedef unsigned Word;
    static constexpr int NUMBERS = 2;

    INLINE static Floats add_product(Floats sum, Floats words, Word word) {
        typedef __bf16 Pairs __attribute__((vector_size(4 * LANES)));
        return __builtin_ia32_dpbf16ps_512(sum, (Pairs)words, (Pairs)(Bits{} + word));
    }
};
#endif

template <typename Unit>
struct Scratch {
    typename Unit::Word queries[MAX_DIM / Unit::NUMBERS][QUERIES];  // transposed
    float logits[KEYS][QUERIES];                                    // and then weights
    typename Unit::Word weights[KEYS / 2][QUERIES];                 // only pairs
    typename Unit::Word values[KEYS / 2][MAX_DIM];                  // only pairs
    float out[MAX_DIM][QUERIES];  // weighted sums of values, transposed
    Floats largest[VECTORS], sums[VECTORS];
    Ints is_in_segment[VECTORS];
};

template <typename Word>
INLINE Floats load_words(const Word *from) {
    return load((const float *)from, Whole{});
}

// The logits of `NUM` keys.
template <typename Unit, int NUM>
INLINE void multiply_keys(Scratch<Unit> &scratch, const typename Unit::Word *keys, long stride,
                          long num_words, long first, float scale) {
    Floats sums[NUM][VECTORS] = {};
    for (long index = 0; index < num_words; index++) {
        Floats queries[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++)
            queries[vector] = load_words(&scratch.queries[index][vector * LANES]);
        for (int key = 0; key < NUM; key++)
            for (int vector = 0; vector < VECTORS; vector++)
                sums[key][vector] = Unit::add_product(sums[key][vector], queries[vector],
                                                      keys[key * stride + index]);
    }
    for (int key = 0; key < NUM; key++)
        for (int vector = 0; vector < VECTORS; vector++)
            store(&scratch.logits[first + key][vector * LANES], sums[key][vector] * scale, Whole{});
}

// Adds weights times values to `NUM` numbers of the output of the segment's queries. Others have
// weights of 0, and would become NaN if a value of another sample is infinite or NaN.
template <typename Unit, int NUM>
INLINE void add_values(Scratch<Unit> &scratch, const typename Unit::Word (*weights)[QUERIES],
                       const typename Unit::Word *values, long stride, long num_words, long index) {
    Floats sums[NUM][VECTORS];
    for (int one = 0; one < NUM; one++)
        for (int vector = 0; vector < VECTORS; vector++)
            sums[one][vector] = load(&scratch.out[index + one][vector * LANES], Whole{});
    for (long word = 0; word < num_words; word++) {
        Floats some[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++)
            some[vector] = load_words(&weights[word][vector * LANES]);
        for (int one = 0; one < NUM; one++)
            for (int vector = 0; vector < VECTORS; vector++)
                sums[one][vector] = Unit::add_product(sums[one][vector], some[vector],
                                                      values[word * stride + index + one]);
    }
    for (int one = 0; one < NUM; one++)
        for (int vector = 0; vector < VECTORS; vector++) {
            float *out = &scratch.out[index + one][vector * LANES];
            store(out, scratch.is_in_segment[vector] ? sums[one][vector] : load(out, Whole{}), Whole{});
        }
}

// Lanes whose queries are from `first` to `last`.
INLINE Ints lanes_of(long first, long last, int vector) {
    Ints query;
    for (int lane = 0; lane < LANES; lane++) query[lane] = vector * LANES + lane;
    return (query >= (int)first) & (query < (int)last);
}

// Hides the keys that queries do not attend to.
template <typename Unit>
INLINE void mask(Scratch<Unit> &scratch, const Segment &segment, long first_key, long num_keys) {
    for (long key = 0; key < num_keys; key++) {
        // The queries that attend to this key.
        long at = first_key + key - segment.first_key;
        long first = segment.first_query, last = segment.last_query;
        if (at > segment.most) first += at - segment.most;
        if (first > QUERIES) first = QUERIES;
        if (last > segment.first_query + at - segment.least + 1)
            last = segment.first_query + at - segment.least + 1;
        if (last < 0) last = 0;
        if (first == 0 && last == QUERIES) continue;
        for (int vector = 0; vector < VECTORS; vector++) {
            float *logits = &scratch.logits[key][vector * LANES];
            Floats seen = load(logits, Whole{}), hidden = fill(-INFINITE);
            store(logits, lanes_of(first, last, vector) ? seen : hidden, Whole{});
        }
    }
}

// Turns logits into weights, relative to the largest logit so far.
template <typename Unit>
INLINE void exponentiate(Scratch<Unit> &scratch, long num_keys, long value_dim) {
    Floats largest[VECTORS], sums[VECTORS] = {};
    for (int vector = 0; vector < VECTORS; vector++) largest[vector] = scratch.largest[vector];
    for (long key = 0; key < num_keys; key++)
        for (int vector = 0; vector < VECTORS; vector++)
            largest[vector] =
                larger(load(&scratch.logits[key][vector * LANES], Whole{}), largest[vector]);
    for (long key = 0; key < num_keys; key++)
        for (int vector = 0; vector < VECTORS; vector++) {
            float *logits = &scratch.logits[key][vector * LANES];
            Floats weights = exponential(load(logits, Whole{}) - largest[vector]);
            store(logits, weights, Whole{});
            sums[vector] += weights;
        }
    Floats shares[VECTORS];
    for (int vector = 0; vector < VECTORS; vector++) {
        shares[vector] = exponential(scratch.largest[vector] - largest[vector]);
        scratch.largest[vector] = largest[vector];
        scratch.sums[vector] = scratch.sums[vector] * shares[vector] + sums[vector];
    }
    for (long index = 0; index < value_dim; index++)
        for (int vector = 0; vector < VECTORS; vector++) {
            float *out = &scratch.out[index][vector * LANES];
            store(out, load(out, Whole{}) * shares[vector], Whole{});
        }
}

INLINE void add_all_values(const Attention<float> &all, Scratch<Float> &scratch, const float *values,
                           long num_keys) {
    long index = 0;
    for (; index + TILE <= all.value_dim; index += TILE)
        add_values<Float, TILE>(scratch, scratch.logits, values, all.value_stride, num_keys, index);
    for (; index < all.value_dim; index++)
        add_values<Float, 1>(scratch, scratch.logits, values, all.value_stride, num_keys, index);
}

#ifdef __AVX512BF16__
INLINE Bits pair(Halves one, Halves other) {
    return __builtin_convertvector(one, Bits) | (__builtin_convertvector(other, Bits) << 16);
}

INLINE void add_all_values(const Attention<BFloat16> &all, Scratch<Pair> &scratch,
                           const BFloat16 *values, long num_keys) {
    long num_pairs = (num_keys + 1) / 2, index = 0;
    for (long word = 0; word < num_pairs; word++) {
        bool is_single = 2 * word + 1 == num_keys;
        for (int vector = 0; vector < VECTORS; vector++) {
            const float *weights = &scratch.logits[2 * word][vector * LANES];
            Floats other = is_single ? Floats{} : load(weights + QUERIES, Whole{});
            store((float *)&scratch.weights[word][vector * LANES],
                  (Floats)pair(narrow(load(weights, Whole{})), narrow(other)), Whole{});
        }
        const BFloat16 *row = values + 2 * word * all.value_stride;
        for (index = 0; index + LANES <= all.value_dim; index += LANES) {
            Halves one = *(const UnalignedHalves *)(row + index);
            Halves other = is_single ? Halves{} : *(const UnalignedHalves *)(row + all.value_stride + index);
            store((float *)&scratch.values[word][index], (Floats)pair(one, other), Whole{});
        }
        for (; index < all.value_dim; index++)
            scratch.values[word][index] =
                row[index].bits | (is_single ? 0 : (unsigned)row[all.value_stride + index].bits << 16);
    }
    for (index = 0; index + TILE <= all.value_dim; index += TILE)
        add_values<Pair, TILE>(scratch, scratch.weights, scratch.values[0], MAX_DIM, num_pairs, index);
    for (; index < all.value_dim; index++)
        add_values<Pair, 1>(scratch, scratch.weights, scratch.values[0], MAX_DIM, num_pairs, index);
}
#endif

// Transposes the queries of a block; missing ones are 0.
template <typename Number, typename Unit>
INLINE void gather_queries(const Attention<Number> &all, const Block &block, long head,
                           Scratch<Unit> &scratch) {
    typedef typename Unit::Word Word;
    long num_words = all.dim / Unit::NUMBERS;
    const Number *first = all.query + block.first_query * all.query_stride + head * all.query_head;
    for (int vector = 0; vector < VECTORS; vector++) {
        long num_rows = block.num_queries - vector * LANES, index = 0;
        const Number *query = first + vector * LANES * all.query_stride;
        for (; index + LANES <= num_words; index += LANES) {
            Floats rows[LANES];
            for (int row = 0; row < LANES; row++)
                rows[row] = row < num_rows
                                ? load_words((const Word *)(query + row * all.query_stride) + index)
                                : Floats{};
            transpose(rows);
            for (int row = 0; row < LANES; row++)
                store((float *)&scratch.queries[index + row][vector * LANES], rows[row], Whole{});
        }
        for (; index < num_words; index++)
            for (int row = 0; row < LANES; row++)
                scratch.queries[index][vector * LANES + row] =
                    row < num_rows ? ((const Word *)(query + row * all.query_stride))[index] : 0;
    }
}

// Divides the weighted sums by the sums of weights, and transposes them.
template <typename Number, typename Unit>
INLINE void scatter_out(const Attention<Number> &all, const Block &block, long head,
                        const Scratch<Unit> &scratch) {
    long stride = all.heads * all.value_dim;
    Number *first = all.out + block.first_query * stride + head * all.value_dim;
    for (int vector = 0; vector < VECTORS; vector++) {
        long num_rows = block.num_queries - vector * LANES;
        Number *out = first + vector * LANES * stride;
        Floats share = 1 / scratch.sums[vector];
        for (long index = 0; index < all.value_dim; index += LANES) {
            Floats rows[LANES];
            long rest = all.value_dim - index;
            for (int row = 0; row < LANES; row++)
                rows[row] = row < rest
                                ? load(&scratch.out[index + row][vector * LANES], Whole{}) * share
                                : Floats{};
            transpose(rows);
            for (int row = 0; row < LANES; row++) {
                if (row >= num_rows) break;
                if (rest >= LANES)
                    store(out + row * stride + index, rows[row], Whole{});
                else
                    store(out + row * stride + index, rows[row], Rest{rest});
            }
        }
    }
}

template <typename Number, typename Unit>
INLINE void attend(const Attention<Number> &all, const Block &block, long head, Scratch<Unit> &scratch) {
    typedef typename Unit::Word Word;
    long num_words = all.dim / Unit::NUMBERS;
    gather_queries(all, block, head, scratch);
    for (long index = 0; index < all.value_dim; index++)
        for (int vector = 0; vector < VECTORS; vector++)
            store(&scratch.out[index][vector * LANES], Floats{}, Whole{});
    for (int vector = 0; vector < VECTORS; vector++) {
        // Not infinite: the difference to a logit of -inf is a number.
        scratch.largest[vector] = fill(-1e30f);
        scratch.sums[vector] = Floats{};
    }

    long kv_head = head / all.groups, stride = all.key_stride / Unit::NUMBERS;
    for (long number = block.first_segment; number < block.last_segment; number++) {
        const Segment &segment = all.segments[number];
        for (int vector = 0; vector < VECTORS; vector++)
            scratch.is_in_segment[vector] =
                lanes_of(segment.first_query, segment.last_query, vector);
        for (long first = segment.first_key; first < segment.last_key; first += KEYS) {
            long rest = segment.last_key - first, num_keys = rest < KEYS ? rest : KEYS, key = 0;
            const Word *keys = (const Word *)(all.key + first * all.key_stride + kv_head * all.key_head);
            for (; key + TILE <= num_keys; key += TILE)
                multiply_keys<Unit, TILE>(scratch, keys + key * stride, stride, num_words, key, all.scale);
            for (; key < num_keys; key++)
                multiply_keys<Unit, 1>(scratch, keys + key * stride, stride, num_words, key, all.scale);
            mask(scratch, segment, first, num_keys);
            exponentiate(scratch, num_keys, all.value_dim);
            add_all_values(all, scratch, all.value + first * all.value_stride + kv_head * all.value_head,
                           num_keys);
        }
    }

    scatter_out(all, block, head, scratch);
}

template <typename Number, typename Unit>
INLINE void attend_all(const Attention<Number> &all, long threads) {
    parallel(1, threads, [&](long, long) INLINED {
        Scratch<Unit> scratch __attribute__((aligned(64)));
        for (;;) {
            // All blocks of one head come first, which keeps its keys and values in the cache.
            long number = __atomic_fetch_add(all.next, 1, __ATOMIC_RELAXED);
            if (number >= all.num_blocks * all.heads) return;
            attend(all, all.blocks[number % all.num_blocks], number / all.num_blocks, scratch);
        }
    });
}

}  // namespace

// `query` is [tokens, heads, dim], `key` and `value` [keys, heads / groups, dim or value_dim], each
// with its strides; `out` is [tokens, heads, value_dim] and contiguous.
#define ATTEND(Number, name, Unit)                                                                \
    EXPORTED attend_##name(const Number *query, const Number *key, const Number *value,           \
                           Number *out, long query_stride, long query_head, long key_stride,      \
                           long key_head, long value_stride, long value_head, long heads,         \
                           long groups, long dim, long value_dim, float scale,                    \
                           const Block *blocks, const Segment *segments, long num_blocks,         \
                           long threads) {                                                        \
        long next = 0;                                                                            \
        attend_all<Number, Unit>(                                                                 \
            {query, key, value, out, query_stride, query_head, key_stride, key_head,              \
             value_stride, value_head, heads, groups, dim, value_dim, scale, blocks, segments,    \
             num_blocks, &next},                                                                  \
            threads);                                                                             \
    }
ATTEND(float, float32, Float)
#ifdef __AVX512BF16__
ATTEND(BFloat16, bfloat16, Pair)
#endif

extern "C" __attribute__((visibility("default"))) int queries_per_block() { return QUERIES; }

extern "C" __attribute__((visibility("default"))) int checksum_of_sources() { return CHECKSUM; }
