// The two operators of a reducing layer on a CPU, float32, without gradient: attention with the column sums of its map
// (Eq. 2, 7), and selection, assignment and transform (Eq. 3-8). What a thread works on stays in its cache: a matrix
// product, by the library that torch itself calls, then what is done with every entry, in as few passes as can be.
//
// Row-major throughout; "ld" is the distance of two rows. Numerical contract: ttf/ops/native/__init__.py.

#include <torch/library.h>

#include "attention.h"
#include "transform.h"

TORCH_LIBRARY(ttf, library) {
  library.def(
      "summed_attention(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, int first) -> (Tensor, Tensor)");
  library.def(
      "transform(Tensor x, Tensor features, Tensor scores, Tensor? mass, int keep, int prefix, float kappa, float tau, "
      "bool mask, bool redundancy) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ttf, CPU, library) {
  library.impl("summed_attention", &ttf::summed_attention);
  library.impl("transform", &ttf::transform);
}
