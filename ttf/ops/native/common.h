// What both operators are made of: checks, views of rows, memory to work in, a matrix product, an exponential.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>

extern "C" void sgemm_(
    const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k, const float* alpha,
    const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace ttf {

using at::Tensor;

// float32 on a CPU, with so many dimensions, all of its values in memory
inline void check_tensor(const Tensor& t, const char* name, int64_t dimensions) {
  TORCH_CHECK(t.device().is_cpu() && t.layout() == at::kStrided && t.scalar_type() == at::kFloat,
              name, " must be a float32 tensor on the CPU, got ", t.scalar_type(), " on ", t.device());
  TORCH_CHECK(t.dim() == dimensions, name, " must have ", dimensions, " dimensions, got ", t.dim());
  const auto bytes = at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.itemsize(), t.storage_offset());
  TORCH_CHECK(t.numel() == 0 || t.storage().nbytes() >= bytes, name, " has a storage that was freed");
}

// the library of matrix products counts in int
inline void check_fits(std::initializer_list<int64_t> lengths) {
  for (const int64_t length : lengths)
    TORCH_CHECK(length <= std::numeric_limits<int>::max(), "a length of ", length, " is more than an int holds");
}

// the same values, those of a row side by side and the rows apart
inline Tensor rows_of(const Tensor& t) {
  const bool beside = t.size(-1) == 1 || t.stride(-1) == 1;
  return beside && (t.size(-2) <= 1 || t.stride(-2) >= t.size(-1)) ? t : t.contiguous();
}

// of two rows; a single one has any stride
inline int64_t distance(const Tensor& t) { return t.size(-2) > 1 ? t.stride(-2) : t.size(-1); }

struct Matrix {
  const float* data;
  int64_t ld;
  const float* row(int64_t i) const { return data + i * ld; }
  Matrix from(int64_t i) const { return {row(i), ld}; }
};

struct Scratch {  // memory for each thread, by torch's allocator, so that what measures its peak sees it
  at::Tensor data;
  Scratch(int64_t threads, int64_t length) : data(at::empty({threads, length}, at::kFloat)) {}
  // of this thread; outer: its number outside of a parallel_for that may be inside another, where all have number 0
  float* own(int64_t outer = 0) const {
    const int64_t thread = data.size(0) > 1 ? outer + at::get_thread_num() : 0;
    return data.data_ptr<float>() + thread * data.size(1);
  }
};

// c (m, n) = alpha a (m, k) b, b (k, n), or (n, k) where it is transposed
inline void product(
    Matrix a, Matrix b, bool transposed, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k, float alpha) {
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

}  // namespace ttf
