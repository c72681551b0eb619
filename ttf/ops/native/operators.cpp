// The two operators of a reducing layer on a CPU, float32, without gradient: attention with the column sums of its map
// (Eq. 2, 7), and selection, assignment and transform (Eq. 3-8). What each thread works on stays in its cache: a matrix
// product, by the library that torch itself calls, then what is done with every entry of it, in as few passes as can be.
//
// Row-major throughout; "ld" is the distance of two rows. Numerical contract: ttf/ops/native/__init__.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

extern "C" void sgemm_(
    const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k, const float* alpha,
    const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace {

using at::Tensor;

constexpr int64_t kMap = 1 << 18;    // entries of a map, 1 MiB: the second-level cache of today's cores
constexpr int64_t kBlock = 1 << 16;  // entries that are read twice
constexpr int64_t kRows = 256;       // rows that make a product worth its preparation

struct Matrix {
  const float* data;
  int64_t ld;
  const float* row(int64_t i) const { return data + i * ld; }
  Matrix from(int64_t i) const { return {row(i), ld}; }
};

struct Buffer {  // of floats that nobody has set
  std::unique_ptr<float[]> data;
  int64_t size = 0;
  float* of(int64_t length) {
    if (length > size) data = std::make_unique_for_overwrite<float[]>(size = length);
    return data.get();
  }
};

// c (m, n) = alpha a (m, k) b, b (k, n), or (n, k) where it is transposed
void product(Matrix a, Matrix b, bool transposed, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k, float alpha) {
  const int rows = m, columns = n, depth = k, lda = a.ld, ldb = b.ld, ld = ldc;
  const float zero = 0;
  sgemm_(transposed ? "T" : "N", "N", &columns, &rows, &depth, &alpha, b.data, &ldb, a.data, &lda, &zero, c, &ld);
}

// exp(x) for x <= 0 within 3e-7 of itself, 0 below -87: 2^n from the bits of x / log 2 rounded, e^r from its series
inline float exponential(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the lowest bits
  const float shifted = x * 1.44269504f + kMagic, n = shifted - kMagic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float e = 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000u + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : e * power;
}

// ---- attention with the column sums of its map

struct Heads {
  const float* data;
  int64_t batch, head, token;  // strides
  explicit Heads(const Tensor& t)
      : data(t.const_data_ptr<float>()), batch(t.stride(0)), head(t.stride(1)), token(t.stride(2)) {}
  Matrix at(int64_t b, int64_t h, int64_t n) const { return {data + b * batch + h * head + n * token, token}; }
};

// logits -> exp(logits + bias - largest), their sum
float exponentials(float* row, const float* bias, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0;
  if (bias) {
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; ++j) largest = std::max(largest, row[j] += bias[j]);
  } else {
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; ++j) largest = std::max(largest, row[j]);
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    row[j] = exponential(row[j] - largest);
    sum += row[j];
  }
  return sum;
}

// one block of queries of one head: its rows of the output, and what they add to the sums of the columns
void attend(Matrix q, Matrix k, Matrix v, const float* bias, float* map, float* out, int64_t ldo, float* sums,
            int64_t rows, int64_t n, int64_t d, float scale, int64_t uncounted) {
  std::vector<float> inverse(rows);
  product(q, k, true, map, n, rows, n, d, scale);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = map + i * n;
    const float share = inverse[i] = 1.0f / exponentials(row, bias, n);
    if (i < uncounted) continue;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sums[j] += row[j] * share;
  }
  product({map, n}, v, false, out, ldo, rows, d, n, 1.0f);
  for (int64_t i = 0; i < rows; ++i)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) out[i * ldo + c] *= inverse[i];
}

std::tuple<Tensor, Tensor> summed_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias, double scale, int64_t first) {
  const int64_t batch = q.size(0), heads = q.size(1), n = q.size(2), d = q.size(3);
  const int64_t rows = std::min(n, std::max<int64_t>(16, kMap / n)), blocks = (n + rows - 1) / rows;
  const Tensor out = at::empty({batch, n, heads, d}, q.options());
  const Tensor sums = at::zeros({at::get_num_threads(), batch, n}, q.options());
  const Heads queries(q), keys(k), values(v);
  const float* logs = bias ? bias->const_data_ptr<float>() : nullptr;
  float *to = out.data_ptr<float>(), *sum = sums.data_ptr<float>();
  at::parallel_for(0, batch * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Buffer map;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t at = task % blocks * rows, h = task / blocks % heads, b = task / blocks / heads;
      attend(queries.at(b, h, at), keys.at(b, h, 0), values.at(b, h, 0), logs ? logs + b * n : nullptr, map.of(rows * n),
             to + ((b * n + at) * heads + h) * d, heads * d, sum + (at::get_thread_num() * batch + b) * n,
             std::min(rows, n - at), n, d, scale, first - at);
    }
  });
  return {out.transpose(1, 2), sums.sum(0).div_(heads)};
}

// ---- selection, assignment and transform of one image

struct Options {
  float kappa, tau;
  bool mask, redundancy;
};

struct Image {
  Matrix x, features;           // (n, channels), (n, width): the tokens that take part
  const float *scores, *mass;   // (n), (n) or null
  int64_t* index;               // (m): answers, as y (m, channels), sizes (m) and shares (m, n)
  float *y, *sizes, *shares;
  int64_t n, m, prefix, channels, width;
};

struct Workspace {
  Buffer cosines, chosen, weights, inverse, ranks, total;
};

template <typename Part>
void in_parts(int64_t length, int64_t step, const Part& part) {  // in parallel, unless the images are already
  at::parallel_for(0, length, step, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += step) part(at, std::min(at + step, end));
  });
}

void inverse_norms(const Image& im, float* inverse) {
  in_parts(im.n, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* f = im.features.row(i);
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < im.width; ++c) squares += f[c] * f[c];
      inverse[i] = 1.0f / std::max(std::sqrt(squares), 1e-12f);
    }
  });
}

// products of token i with all others -> cosines (Eq. 4); returns the largest with a token that scores above it
float to_cosines(float* row, int64_t i, const float* inverse, const float* scores, int64_t prefix, int64_t n) {
  const float own = inverse[i], score = scores[i];
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) row[j] = std::min(1.0f, std::max(-1.0f, row[j] * own * inverse[j]));
  row[i] = 1.0f;
  float nearest = -1.0f;
#pragma omp simd reduction(max : nearest)
  for (int64_t j = prefix; j < n; ++j) nearest = std::max(nearest, scores[j] > score ? row[j] : -1.0f);
  return nearest;
}

// all cosines, and score_j = h_j (1 - largest cosine with a token above j), as ttf.ops.transform.novelty
void rank_by_novelty(const Image& im, float* cosines, const float* inverse, float* ranks) {
  in_parts(im.n, kRows, [&](int64_t begin, int64_t end) {
    float* rows = cosines + begin * im.n;
    product(im.features.from(begin), im.features, true, rows, im.n, end - begin, im.n, im.width, 1.0f);
    for (int64_t i = begin; i < end; ++i) {
      const float nearest = to_cosines(rows + (i - begin) * im.n, i, inverse, im.scores, im.prefix, im.n);
      ranks[i] = im.scores[i] * (1.0f - nearest);
    }
  });
}

// prefix tokens, then the m - prefix highest ranks in raster order; of equal ones the first
void select(const Image& im, const float* ranks) {
  std::vector<int64_t> order(im.n - im.prefix);
  std::iota(order.begin(), order.end(), im.prefix);
  const int64_t kept = im.m - im.prefix;
  const auto above = [&](int64_t a, int64_t b) { return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : a < b; };
  if (kept < static_cast<int64_t>(order.size()))
    std::nth_element(order.begin(), order.begin() + kept, order.end(), above);
  std::sort(order.begin(), order.begin() + kept);
  std::iota(im.index, im.index + im.prefix, 0);
  std::copy(order.begin(), order.begin() + kept, im.index + im.prefix);
}

// cosines of the informative tokens alone (m, n), where the others were not needed to choose them
void cosines_of_chosen(const Image& im, float* cosines, float* chosen, const float* inverse) {
  in_parts(im.m, kRows, [&](int64_t begin, int64_t end) {
    float *rows = cosines + begin * im.n, *own = chosen + begin * im.width;
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(im.features.row(im.index[i]), im.width, chosen + i * im.width);
    product({own, im.width}, im.features, true, rows, im.n, end - begin, im.n, im.width, 1.0f);
    for (int64_t i = begin; i < end; ++i)
      to_cosines(rows + (i - begin) * im.n, im.index[i], inverse, im.scores, im.prefix, im.n);
  });
}

// gated softmax of old tokens [begin, end) over the new ones (Eq. 3, 5) without its denominator, and 1 / denominator
void assign(const Image& im, const Options& o, const float* cosines, float* total, int64_t begin, int64_t end) {
  const int64_t length = end - begin;
  const float kappa = o.kappa, tau = o.tau, otherwise = o.mask ? -std::numeric_limits<float>::infinity() : 0.0f;
  std::vector<float> largest(length, -1.0f), sum(length, 0.0f);
  const auto row = [&](int64_t i) { return cosines + (o.redundancy ? im.index[i] : i) * im.n + begin; };
  for (int64_t i = 0; i < im.m; ++i) {
    const float* cosine = row(i);
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) largest[j] = std::max(largest[j], cosine[j] >= kappa ? cosine[j] : otherwise);
  }
  for (int64_t i = 0; i < im.m; ++i) {
    const float* cosine = row(i);
    float* share = im.shares + i * im.n + begin;
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) {
      share[j] = exponential(tau * ((cosine[j] >= kappa ? cosine[j] : otherwise) - largest[j]));
      sum[j] += share[j];
    }
  }
  for (int64_t j = 0; j < length; ++j) total[begin + j] = sum[j] > 0 ? 1.0f / sum[j] : 0.0f;
}

// shares (Eq. 5), sizes (Eq. 8) and Y = W X (Eq. 6) of new tokens [begin, end)
void combine(const Image& im, const float* total, float* weights, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float *share = im.shares + i * im.n, *weight = weights + i * im.n, size = 0;
#pragma omp simd reduction(+ : size)
    for (int64_t j = 0; j < im.n; ++j) {
      share[j] *= total[j];
      size += weight[j] = im.mass ? share[j] * im.mass[j] : share[j];
    }
    im.sizes[i] = size;
    const float inverse = 1.0f / std::max(size, std::numeric_limits<float>::min());
#pragma omp simd
    for (int64_t j = 0; j < im.n; ++j) weight[j] *= inverse;
  }
  product({weights + begin * im.n, im.n}, im.x, false, im.y + begin * im.channels, im.channels, end - begin,
          im.channels, im.n, 1.0f);
}

void transform_image(const Image& im, const Options& o, Workspace& w) {
  float *cosines = w.cosines.of((o.redundancy ? im.n : im.m) * im.n), *inverse = w.inverse.of(im.n);
  float *weights = w.weights.of(im.m * im.n), *total = w.total.of(im.n), *ranks = w.ranks.of(im.n);
  inverse_norms(im, inverse);
  if (o.redundancy) {
    rank_by_novelty(im, cosines, inverse, ranks);
    select(im, ranks);
  } else {
    select(im, im.scores);
    cosines_of_chosen(im, cosines, w.chosen.of(im.m * im.width), inverse);
  }
  const int64_t columns = std::max<int64_t>(64, kBlock / im.m / 16 * 16);
  in_parts(im.n, columns, [&](int64_t begin, int64_t end) { assign(im, o, cosines, total, begin, end); });
  in_parts(im.m, kRows, [&](int64_t begin, int64_t end) { combine(im, total, weights, begin, end); });
}

using Answers = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Answers transform(
    const Tensor& x, const Tensor& features, const Tensor& scores, const std::optional<Tensor>& mass, int64_t keep,
    int64_t prefix, double kappa, double tau, bool mask, bool redundancy) {
  const int64_t batch = x.size(0), n = features.size(1), isolated = x.size(1) - n, channels = x.size(2);
  const int64_t m = keep - isolated;
  const Tensor y = at::empty({batch, keep, channels}, x.options()), sizes = at::ones({batch, keep}, x.options());
  const Tensor shares = at::empty({batch, m, n}, x.options()), index = at::empty({batch, m}, x.options().dtype(at::kLong));
  const Options options{static_cast<float>(kappa), static_cast<float>(tau), mask, redundancy};
  const auto run = [&](int64_t b, Workspace& work) {
    const Matrix all{x.const_data_ptr<float>() + b * x.stride(0), x.stride(1)};
    float* answer = y.data_ptr<float>() + b * keep * channels;
    for (int64_t i = 0; i < isolated; ++i) std::copy_n(all.row(i), channels, answer + i * channels);
    const Image image{
        all.from(isolated), {features.const_data_ptr<float>() + b * features.stride(0), features.stride(1)},
        scores.const_data_ptr<float>() + b * scores.stride(0) + isolated,
        mass ? mass->const_data_ptr<float>() + b * mass->stride(0) : nullptr,
        index.data_ptr<int64_t>() + b * m, answer + isolated * channels,
        sizes.data_ptr<float>() + b * keep + isolated, shares.data_ptr<float>() + b * m * n,
        n, m, prefix - isolated, channels, features.size(2)};
    transform_image(image, options, work);
  };
  const auto several = [&](int64_t begin, int64_t end) {
    Workspace work;
    for (int64_t b = begin; b < end; ++b) run(b, work);
  };
  if (batch >= at::get_num_threads()) at::parallel_for(0, batch, 1, several);
  else several(0, batch);  // the threads share every image
  return {y, sizes, index, shares};
}

}  // namespace

TORCH_LIBRARY(ttf, library) {
  library.def("summed_attention(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, int first) -> (Tensor, Tensor)");
  library.def(
      "transform(Tensor x, Tensor features, Tensor scores, Tensor? mass, int keep, int prefix, float kappa, float tau, "
      "bool mask, bool redundancy) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ttf, CPU, library) {
  library.impl("summed_attention", &summed_attention);
  library.impl("transform", &transform);
}
