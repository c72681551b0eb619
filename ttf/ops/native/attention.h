// Attention with the column sums of its map (Eq. 2, 7): a block of the map at a time, in the second-level cache.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"

namespace ttf {

constexpr int64_t kMap = 1 << 18;  // entries of a map, 1 MiB: the second-level cache of today's cores
constexpr int64_t kColumns = 512;  // columns of a map that are computed together

struct Heads {
  const float* data;
  int64_t batch, head, token;  // strides
  explicit Heads(const Tensor& t)
      : data(t.const_data_ptr<float>()), batch(t.stride(0)), head(t.stride(1)), token(distance(t)) {}
  Matrix at(int64_t b, int64_t h, int64_t n) const { return {data + b * batch + h * head + n * token, token}; }
};

// logits -> exp(logits + bias - largest), their sum
inline float exponentials(float* row, const float* bias, int64_t n) {
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

// (n, d) without gaps: rows of a token's q, k, v and all heads lie kilobytes apart, and evict each other from the cache
inline Matrix gathered(Matrix rows, float* to, int64_t n, int64_t d) {
  for (int64_t i = 0; i < n; ++i) std::copy_n(rows.row(i), d, to + i * d);
  return {to, d};
}

// one block of queries of one head: its rows of the output, and what they add to the sums of the columns
inline void attend(Matrix q, Matrix k, Matrix v, const float* bias, float* map, float* out, int64_t ldo, float* sums,
            int64_t rows, int64_t n, int64_t d, float scale, int64_t uncounted) {
  std::vector<float> inverse(rows);
  for (int64_t j = 0; j < n; j += kColumns)
    product(q, k.from(j), true, map + j, n, rows, std::min(kColumns, n - j), d, scale);
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

// everything that is read or written below lies inside of what these shapes say
inline void check_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias, int64_t first) {
  check_tensor(q, "q", 4), check_tensor(k, "k", 4), check_tensor(v, "v", 4);
  TORCH_CHECK(k.sizes() == q.sizes() && v.sizes() == q.sizes(), "q, k and v must have one shape, got ", q.sizes(), ", ",
              k.sizes(), " and ", v.sizes());
  TORCH_CHECK(q.size(3) > 0, "heads must have at least one channel");
  TORCH_CHECK(0 <= first && first <= q.size(2), "first must be from 0 to ", q.size(2), ", got ", first);
  check_fits({q.size(2), q.size(1) * q.size(3)});
  if (!bias) return;
  check_tensor(*bias, "the bias", 2);
  TORCH_CHECK(bias->size(0) == q.size(0) && bias->size(1) == q.size(2), "the bias must have the shape [", q.size(0),
              ", ", q.size(2), "], got ", bias->sizes());
}

// q, k, v (B, H, N, D), bias (B, N) or none: output (B, H, N, D), heads side by side in memory, and column sums (B, N)
inline std::tuple<Tensor, Tensor> summed_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias, double scale, int64_t first) {
  check_attention(q, k, v, bias, first);
  const int64_t batch = q.size(0), heads = q.size(1), n = q.size(2), d = q.size(3), threads = at::get_num_threads();
  const Tensor out = at::empty({batch, n, heads, d}, q.options());
  if (out.numel() == 0) return {out.transpose(1, 2), at::zeros({batch, n}, q.options())};
  const Tensor q_rows = rows_of(q), k_rows = rows_of(k), v_rows = rows_of(v), logs = bias ? rows_of(*bias) : Tensor();
  const Heads queries(q_rows), keys(k_rows), values(v_rows);
  check_fits({queries.token, keys.token, values.token});
  const int64_t rows = std::min(n, std::max<int64_t>(16, kMap / n)), blocks = (n + rows - 1) / rows;
  const Tensor sums = at::zeros({threads, batch, n}, q.options());
  const Scratch scratch(threads, rows * n + (blocks > 1 ? 2 * n * d : 0));
  const Matrix added = bias ? Matrix{logs.const_data_ptr<float>(), distance(logs)} : Matrix{};
  float *to = out.data_ptr<float>(), *sum = sums.data_ptr<float>();
  at::parallel_for(0, batch * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    float* map = scratch.own();
    Matrix k_head{}, v_head{};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t at = task % blocks * rows, h = task / blocks % heads, b = task / blocks / heads;
      if (task == begin || at == 0) {
        k_head = keys.at(b, h, 0), v_head = values.at(b, h, 0);
        if (blocks > 1) {
          k_head = gathered(k_head, map + rows * n, n, d);
          v_head = gathered(v_head, map + rows * n + n * d, n, d);
        }
      }
      attend(queries.at(b, h, at), k_head, v_head, bias ? added.row(b) : nullptr, map,
             to + ((b * n + at) * heads + h) * d, heads * d, sum + (at::get_thread_num() * batch + b) * n,
             std::min(rows, n - at), n, d, scale, first - at);
    }
  });
  return {out.transpose(1, 2), sums.sum(0).div_(heads)};
}

}  // namespace ttf
