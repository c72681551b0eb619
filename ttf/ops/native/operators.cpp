// The two operators of a reducing layer on a CPU, float32, without gradient: attention with the column sums of its map
// (Eq. 2, 7), and selection, assignment and transform (Eq. 3-8). What a thread works on stays in its cache: a matrix
// product, by the library that torch itself calls, then what is done with every entry, in as few passes as can be.
//
// Row-major throughout; "ld" is the distance of two rows. Numerical contract: ttf/ops/native/__init__.py. The operators
// are defined in ttf/ops/library.py. What is given to them is checked here, whoever calls: shapes, dtypes, strides, and
// every number that becomes an index.

#include <torch/library.h>

#include "attention.h"
#include "transform.h"

TORCH_LIBRARY_IMPL(ttf, CPU, library) {
  library.impl("native_summed_attention", &ttf::summed_attention);
  library.impl("native_transform", &ttf::transform);
}
