// Selection, assignment and transform of the tokens of a layer (Eq. 3-8).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"

namespace ttf {

constexpr int64_t kBlock = 1 << 16;  // entries that are read twice
constexpr int64_t kRows = 256;       // rows that make a product worth its preparation, where there are so many

struct Options {
  float kappa, tau;
  bool mask, redundancy;
};

struct Image {
  Matrix x, features;           // (n, channels), (n, width): the tokens that take part
  const float *scores, *mass;   // (n), (n) or null
  int64_t* index;               // (m): answers, as y (m, channels) and sizes (m)
  float *y, *sizes;
  int64_t n, m, prefix, channels, width;
};

struct Workspace {  // of the threads that have images of their own, weights of all; shares take the place of cosines
  Scratch cosines, chosen, vectors, weights;
};

// rows of a part: fewer where the threads have only so many to share
inline int64_t step(int64_t rows) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return std::min(kRows, (rows + threads - 1) / threads);
}

template <typename Part>
void in_parts(int64_t length, int64_t step, const Part& part) {  // in parallel, unless the images are already
  at::parallel_for(0, length, step, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += step) part(at, std::min(at + step, end));
  });
}

inline void inverse_norms(const Image& im, float* inverse) {
  in_parts(im.n, step(im.n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* f = im.features.row(i);
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < im.width; ++c) squares += f[c] * f[c];
      inverse[i] = 1.0f / std::max(std::sqrt(squares), 1e-12f);
    }
  });
}

// products of one token with others -> their cosines (Eq. 4)
inline void to_cosines(float* row, float own, const float* inverse, int64_t length) {
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) row[j] = std::min(1.0f, std::max(-1.0f, row[j] * own * inverse[j]));
}

// the largest cosine of a token with one that scores above it, as far as the row of i tells: of i itself, of [end, n)
inline void compare(const Image& im, const float* row, int64_t i, int64_t begin, int64_t end, float* nearest) {
  const float score = im.scores[i], *scores = im.scores;
  float largest = nearest[i];
#pragma omp simd reduction(max : largest)
  for (int64_t j = std::max(begin, im.prefix); j < im.n; ++j)
    largest = std::max(largest, scores[j] > score ? row[j] : -1.0f);
  nearest[i] = largest;
  if (i < im.prefix) return;
#pragma omp simd
  for (int64_t j = end; j < im.n; ++j) nearest[j] = std::max(nearest[j], score > scores[j] ? row[j] : -1.0f);
}

// c (n, m) = the transpose of a (m, n), in squares that stay in the first-level cache
inline void transpose(const float* a, int64_t lda, float* c, int64_t ldc, int64_t m, int64_t n) {
  constexpr int64_t kSide = 16;
  for (int64_t j = 0; j < n; j += kSide)
    for (int64_t i = 0; i < m; i += kSide)
      for (int64_t s = j; s < std::min(n, j + kSide); ++s)
        for (int64_t r = i; r < std::min(m, i + kSide); ++r) c[s * ldc + r] = a[r * lda + s];
}

// cosines of tokens [begin, end) with those from begin on, and the same the other way round
inline void cosines_of(
    const Image& im, float* cosines, const float* inverse, float* nearest, int64_t begin, int64_t end) {
  const Matrix own = im.features.from(begin);
  float* corner = cosines + begin * im.n + begin;
  product(own, own, true, corner, im.n, end - begin, im.n - begin, im.width, 1.0f);
  for (int64_t i = begin; i < end; ++i) {
    float* row = cosines + i * im.n;
    to_cosines(row + begin, inverse[i], inverse + begin, im.n - begin);
    row[i] = 1.0f;
    compare(im, row, i, begin, end, nearest);
  }
  if (end < im.n)
    transpose(corner + end - begin, im.n, cosines + end * im.n + begin, im.n, end - begin, im.n - end);
}

// all cosines, and score_j = h_j (1 - largest cosine with a token above j), as ttf.ops.transform.novelty
inline void rank_by_novelty(const Image& im, float* cosines, const float* inverse, float* ranks) {
  const int64_t threads = at::get_num_threads();
  std::vector<float> nearest(threads * im.n, -1.0f);
  std::atomic<int64_t> next = 0;  // a block has less to do than the one before it: each thread takes another when free
  const int64_t rows = step(im.n);
  in_parts(threads, 1, [&](int64_t, int64_t) {
    float* own = nearest.data() + at::get_thread_num() * im.n;
    for (int64_t at; (at = next.fetch_add(rows)) < im.n;)
      cosines_of(im, cosines, inverse, own, at, std::min(im.n, at + rows));
  });
  for (int64_t i = 0; i < im.n; ++i) {
    for (int64_t t = 1; t < threads; ++t) nearest[i] = std::max(nearest[i], nearest[t * im.n + i]);
    ranks[i] = im.scores[i] * (1.0f - nearest[i]);
  }
}

// prefix tokens, then the m - prefix highest ranks in raster order; of equal ones the first, NaN above all (torch.topk)
inline void select(const Image& im, const float* ranks) {
  std::vector<int64_t> order(im.n - im.prefix);
  std::iota(order.begin(), order.end(), im.prefix);
  const int64_t kept = im.m - im.prefix;
  const auto above = [&](int64_t a, int64_t b) {
    const bool no_number = std::isnan(ranks[a]), neither = std::isnan(ranks[b]);
    if (no_number != neither) return no_number;
    return no_number || ranks[a] == ranks[b] ? a < b : ranks[a] > ranks[b];
  };
  if (kept < static_cast<int64_t>(order.size()))
    std::nth_element(order.begin(), order.begin() + kept, order.end(), above);
  std::sort(order.begin(), order.begin() + kept);
  std::iota(im.index, im.index + im.prefix, 0);
  std::copy(order.begin(), order.begin() + kept, im.index + im.prefix);
}

// cosines of the informative tokens alone (m, n), where the others were not needed to choose them
inline void cosines_of_chosen(const Image& im, float* cosines, float* chosen, const float* inverse) {
  in_parts(im.m, step(im.m), [&](int64_t begin, int64_t end) {
    float *rows = cosines + begin * im.n, *own = chosen + begin * im.width;
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(im.features.row(im.index[i]), im.width, chosen + i * im.width);
    product({own, im.width}, im.features, true, rows, im.n, end - begin, im.n, im.width, 1.0f);
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + (i - begin) * im.n;
      to_cosines(row, inverse[im.index[i]], inverse, im.n);
      row[im.index[i]] = 1.0f;
    }
  });
}

// where the cosines of a new token with all old ones are, and then its shares of them
inline float* row_of(const Image& im, const Options& o, float* cosines, int64_t i) {
  return cosines + (o.redundancy ? im.index[i] : i) * im.n;
}

// gated softmax of old tokens [begin, end) over the new ones (Eq. 3, 5) without its denominator, and 1 / denominator
inline void assign(const Image& im, const Options& o, float* cosines, float* total, int64_t begin, int64_t end) {
  const int64_t length = end - begin;
  const float kappa = o.kappa, tau = o.tau, otherwise = o.mask ? -std::numeric_limits<float>::infinity() : 0.0f;
  std::vector<float> largest(length, -1.0f), sum(length, 0.0f);
  for (int64_t i = 0; i < im.m; ++i) {
    const float* cosine = row_of(im, o, cosines, i) + begin;
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) largest[j] = std::max(largest[j], cosine[j] >= kappa ? cosine[j] : otherwise);
  }
  for (int64_t i = 0; i < im.m; ++i) {
    float* entry = row_of(im, o, cosines, i) + begin;
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) {
      entry[j] = exponential(tau * ((entry[j] >= kappa ? entry[j] : otherwise) - largest[j]));
      sum[j] += entry[j];
    }
  }
  for (int64_t j = 0; j < length; ++j) total[begin + j] = sum[j] > 0 ? 1.0f / sum[j] : 0.0f;
}

// sizes (Eq. 8) and Y = W X (Eq. 6) of new tokens [begin, end)
inline void combine(const Image& im, const Options& o, float* shares, const float* total, float* weights,
                    int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float* share = row_of(im, o, shares, i);
    float *weight = weights + (i - begin) * im.n, size = 0;
#pragma omp simd reduction(+ : size)
    for (int64_t j = 0; j < im.n; ++j) {
      const float own = share[j] * total[j];
      size += weight[j] = im.mass ? own * im.mass[j] : own;
    }
    im.sizes[i] = size;
    const float inverse = 1.0f / std::max(size, std::numeric_limits<float>::min());
#pragma omp simd
    for (int64_t j = 0; j < im.n; ++j) weight[j] *= inverse;
  }
  product({weights, im.n}, im.x, false, im.y + begin * im.channels, im.channels, end - begin,
          im.channels, im.n, 1.0f);
}

inline void transform_image(const Image& im, const Options& o, const Workspace& w) {
  float *cosines = w.cosines.own(), *inverse = w.vectors.own(), *total = inverse + im.n, *ranks = total + im.n;
  inverse_norms(im, inverse);
  if (o.redundancy) {
    rank_by_novelty(im, cosines, inverse, ranks);
    select(im, ranks);
  } else {
    select(im, im.scores);
    cosines_of_chosen(im, cosines, w.chosen.own(), inverse);
  }
  const int64_t outer = at::get_thread_num(), columns = std::max<int64_t>(64, kBlock / im.m / 16 * 16);
  in_parts(im.n, columns, [&](int64_t begin, int64_t end) { assign(im, o, cosines, total, begin, end); });
  in_parts(im.m, step(im.m), [&](int64_t begin, int64_t end) {
    combine(im, o, cosines, total, w.weights.own(outer), begin, end);
  });
}

// everything that is read or written below lies inside of what these shapes say
inline void check_transform(
    const Tensor& x, const Tensor& features, const Tensor& scores, const std::optional<Tensor>& mass, int64_t keep,
    int64_t prefix, const Options& o) {
  check_tensor(x, "x", 3), check_tensor(features, "features", 3), check_tensor(scores, "scores", 2);
  const int64_t batch = x.size(0), tokens = x.size(1), n = features.size(1);
  TORCH_CHECK(features.size(0) == batch && n <= tokens, "features must be of some of the tokens of x, ", x.sizes(),
              ", got ", features.sizes());
  TORCH_CHECK(scores.size(0) == batch && scores.size(1) == tokens, "there must be a score for each of ", batch, " x ",
              tokens, " tokens, got ", scores.sizes());
  TORCH_CHECK(x.size(2) > 0 && features.size(2) > 0, "x and features must have at least one channel");
  TORCH_CHECK(tokens - n <= prefix && prefix < keep && keep <= tokens, "isolated <= prefix < keep <= tokens must hold, ",
              "got ", tokens - n, ", ", prefix, ", ", keep, ", ", tokens);
  TORCH_CHECK(std::isfinite(o.kappa) && std::isfinite(o.tau) && o.tau > 0, "kappa must be finite and tau positive and ",
              "finite, got ", o.kappa, " and ", o.tau);
  check_fits({tokens, x.size(2), features.size(2)});
  if (!mass) return;
  check_tensor(*mass, "the mass", 2);
  TORCH_CHECK(mass->size(0) == batch && mass->size(1) == n, "the mass must have the shape [", batch, ", ", n, "], got ",
              mass->sizes());
}

struct Layer {  // of all images, their rows in order
  Tensor x, features, scores, mass, y, sizes, index;
  int64_t prefix;

  Image image(int64_t b) const {
    const int64_t n = features.size(1), isolated = x.size(1) - n, channels = x.size(2), keep = y.size(1);
    const Matrix all{x.const_data_ptr<float>() + b * x.stride(0), distance(x)};
    float* answer = y.data_ptr<float>() + b * keep * channels;
    for (int64_t i = 0; i < isolated; ++i) std::copy_n(all.row(i), channels, answer + i * channels);
    return {
        all.from(isolated), {features.const_data_ptr<float>() + b * features.stride(0), distance(features)},
        scores.const_data_ptr<float>() + b * distance(scores) + isolated,
        mass.defined() ? mass.const_data_ptr<float>() + b * distance(mass) : nullptr,
        index.data_ptr<int64_t>() + b * index.size(1), answer + isolated * channels,
        sizes.data_ptr<float>() + b * keep + isolated,
        n, index.size(1), prefix - isolated, channels, features.size(2)};
  }
};

// x (B, N, C), features (B, n, F), scores (B, N), mass (B, n) or none: y (B, keep, C), sizes (B, keep), and which old
// tokens the new ones grew from, without the isolated ones (B, m)
inline std::tuple<Tensor, Tensor, Tensor> transform(
    const Tensor& x, const Tensor& features, const Tensor& scores, const std::optional<Tensor>& mass, int64_t keep,
    int64_t prefix, double kappa, double tau, bool mask, bool redundancy) {
  const Options options{static_cast<float>(kappa), static_cast<float>(tau), mask, redundancy};
  check_transform(x, features, scores, mass, keep, prefix, options);
  const int64_t batch = x.size(0), n = features.size(1), m = keep - (x.size(1) - n);
  const Layer layer{
      rows_of(x), rows_of(features), rows_of(scores), mass ? rows_of(*mass) : Tensor(),
      at::empty({batch, keep, x.size(2)}, x.options()), at::ones({batch, keep}, x.options()),
      at::empty({batch, m}, x.options().dtype(at::kLong)), prefix};
  check_fits({distance(layer.x), distance(layer.features)});
  const int64_t threads = at::get_num_threads(), workers = batch < threads ? 1 : threads;
  const Workspace work{
      Scratch(workers, (redundancy ? n : m) * n), Scratch(workers, redundancy ? 0 : m * features.size(2)),
      Scratch(workers, 3 * n), Scratch(threads, std::min(kRows, m) * n)};
  const auto several = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) transform_image(layer.image(b), options, work);
  };
  if (workers > 1) at::parallel_for(0, batch, 1, several);
  else several(0, batch);  // the threads share every image
  return {layer.y, layer.sizes, layer.index};
}

}  // namespace ttf
