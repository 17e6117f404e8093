// What one launch of a feature regulariser works on.
#pragma once
#include <stdexcept>
#include <string>

#include "element.h"

namespace pytl {

// Features of the network and of its source, dense, in one common order: outer x channels x inner.
struct FeaturePair {
  const char *x, *source;  // dtype
  const char* weights;     // of each channel, float64 for float64 features, else float32; null: 1
  int64_t outer, channels, inner;
  DType dtype;

  int64_t length() const { return outer * channels * inner; }
};

// Activations of samples x channels x positions, or, channels_last, of samples x positions x channels.
struct Activations {
  const char* a;
  int64_t samples, channels, positions;
  bool channels_last;
  DType dtype;
};

// Rows of logits, of the network and of its source.
struct Logits {
  const char *s, *t;
  int64_t rows, columns;
  double temperature;
  DType dtype;
};

}  // namespace pytl
