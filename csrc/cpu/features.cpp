#include "features.h"

#include <algorithm>
#include <vector>

#include "../formulas/attention_map.h"
#include "feature_loops.h"
#include "threads.h"

namespace pytl::cpu {
namespace {

constexpr int64_t kChunk = 1 << 15;         // elements: 128 KiB an operand in float32
constexpr int64_t kWorthThreads = 1 << 15;  // elements: below, waking the threads costs more than the work
constexpr int64_t kShortRow = 32;           // elements: shorter rows of one weight go together, with a weight each

// visit(a Real)
template <class Visit>
auto with_real(DType dtype, Visit visit) {
  return dtype == DType::float64 ? visit(double()) : visit(float());
}

// A pair as rows, each of one weight or with one weight for each of its elements.
template <class Real>
class Rows {
 public:
  explicit Rows(const FeaturePair& pair) : pair_(pair), weights_(reinterpret_cast<const Real*>(pair.weights)) {
    if (!weights_) {
      length_ = std::max<int64_t>(pair.length(), 1), weights_ = &one_, channels_ = 1;
    } else if (pair.inner >= kShortRow) {
      length_ = pair.inner, channels_ = pair.channels;
    } else {
      length_ = pair.channels * pair.inner, each_ = true;
      if (pair.inner > 1) spread();
    }
  }

  // visit(offset, length, weights) for each row's part in [begin, end)
  template <class Visit>
  void parts(int64_t begin, int64_t end, Visit visit) const {
    for (int64_t at = begin; at < end;) {
      const int64_t row = at / length_, within = at % length_, length = std::min(length_ - within, end - at);
      visit(at, length, Weights<Real>{each_ ? weights_ + within : weights_ + row % channels_, each_});
      at += length;
    }
  }

 private:
  void spread() {
    for (int64_t c = 0; c < pair_.channels; c++) spread_.insert(spread_.end(), pair_.inner, weights_[c]);
    weights_ = spread_.data();
  }

  const FeaturePair& pair_;
  const Real* weights_;
  const Real one_ = 1;
  std::vector<Real> spread_;
  int64_t length_ = 1, channels_ = 1;
  bool each_ = false;
};

// visit(k, begin, end) for each chunk of `length` elements, by all threads.
template <class Visit>
void in_chunks(int64_t length, Visit visit) {
  const int64_t chunks = (length + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (length >= kWorthThreads)
  for (int64_t k = 0; k < chunks; k++) visit(k, k * kChunk, std::min(length, (k + 1) * kChunk));
}

double sum(const std::vector<double>& parts) {
  double total = 0;
  for (double part : parts) total += part;
  return total;
}

}  // namespace

double feature_distance(const FeaturePair& pair) {
  return with_real(pair.dtype, [&](auto real) {
    using Real = decltype(real);
    const Rows<Real> rows(pair);
    const int64_t size = element_size(pair.dtype), length = pair.length();
    std::vector<double> sums((length + kChunk - 1) / kChunk);
    in_chunks(length, [&](int64_t k, int64_t begin, int64_t end) {
      LaneSums lanes = {};
      rows.parts(begin, end, [&](int64_t at, int64_t n, Weights<Real> weights) {
        feature_loops<Real>().distance(pair.dtype, pair.x + at * size, pair.source + at * size, weights, n, lanes);
      });
      sums[k] = lanes.total();
    });
    return sum(sums) / 2;
  });
}

void feature_distance_gradient(const FeaturePair& pair, const char* task, double factor, char* to) {
  with_real(pair.dtype, [&](auto real) {
    using Real = decltype(real);
    const Rows<Real> rows(pair);
    const int64_t size = element_size(pair.dtype);
    in_chunks(pair.length(), [&](int64_t, int64_t begin, int64_t end) {
      rows.parts(begin, end, [&](int64_t at, int64_t n, Weights<Real> weights) {
        const int64_t byte = at * size;
        feature_loops<Real>().distance_gradient(pair.dtype, pair.x + byte, pair.source + byte, weights,
                                                task ? task + byte : nullptr, static_cast<Real>(factor), n, to + byte);
      });
    });
  });
}

namespace {

// visit(sample, its activations' offset in bytes), by all threads.
template <class Visit>
void each_sample(const Activations& of, Visit visit) {
  const int64_t length = of.channels * of.positions;
#pragma omp parallel for schedule(static) if (of.samples * length >= kWorthThreads)
  for (int64_t b = 0; b < of.samples; b++) visit(b, b * length * element_size(of.dtype));
}

template <class Real>
void energies(const Activations& of, const char* a, double* energy) {
  const int64_t size = element_size(of.dtype);
  std::fill(energy, energy + of.positions, 0.0);
  if (of.channels_last) {
    for (int64_t p = 0; p < of.positions; p++) {
      LaneSums lanes = {};
      feature_loops<Real>().squares(of.dtype, a + p * of.channels * size, of.channels, lanes);
      energy[p] = lanes.total();
    }
  } else {
    for (int64_t c = 0; c < of.channels; c++)
      feature_loops<Real>().add_squares(of.dtype, a + c * of.positions * size, of.positions, energy);
  }
}

}  // namespace

void attention_map(const Activations& of, char* map, double* inverse_norms) {
  with_real(of.dtype, [&](auto real) {
    using Real = decltype(real);
    each_sample(of, [&](int64_t b, int64_t offset) {
      std::vector<double> energy(of.positions);
      energies<Real>(of, of.a + offset, energy.data());
      double square = 0;
      for (double e : energy) square += e * e;
      inverse_norms[b] = inverse_norm(square);
      Real* to = reinterpret_cast<Real*>(map) + b * of.positions;
      for (int64_t p = 0; p < of.positions; p++) to[p] = static_cast<Real>(energy[p] * inverse_norms[b]);
    });
  });
}

void attention_map_gradient(const Activations& of, const char* map, const double* inverse_norms, const char* gradient,
                            char* to) {
  with_real(of.dtype, [&](auto real) {
    using Real = decltype(real);
    const int64_t size = element_size(of.dtype);
    each_sample(of, [&](int64_t b, int64_t offset) {
      const Real* m = reinterpret_cast<const Real*>(map) + b * of.positions;
      const Real* g = reinterpret_cast<const Real*>(gradient) + b * of.positions;
      double along = 0;
      for (int64_t p = 0; p < of.positions; p++) along += static_cast<double>(m[p]) * static_cast<double>(g[p]);
      std::vector<Real> slope(of.positions);
      for (int64_t p = 0; p < of.positions; p++)
        slope[p] = static_cast<Real>(attention_slope(m[p], g[p], along, inverse_norms[b]));
      const int64_t rows = of.channels_last ? of.positions : of.channels;
      const int64_t columns = of.channels_last ? of.channels : of.positions;
      for (int64_t k = 0; k < rows; k++) {
        const int64_t at = offset + k * columns * size;
        const Weights<Real> weights = {slope.data() + (of.channels_last ? k : 0), !of.channels_last};
        feature_loops<Real>().scale(of.dtype, of.a + at, weights, columns, to + at);
      }
    });
  });
}

double distillation(const Logits& of, char* to) {
  return with_real(of.dtype, [&](auto real) {
    using Real = decltype(real);
    const auto& loops = feature_loops<Real>();
    const int64_t size = element_size(of.dtype) * of.columns;
    const double share = of.temperature / static_cast<double>(of.rows);
    std::vector<double> values(of.rows);
#pragma omp parallel if (of.rows * of.columns >= kWorthThreads)
    {
      std::vector<Real> e_s(of.columns), e_t(of.columns);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < of.rows; i++) {
        const char *s = of.s + i * size, *t = of.t + i * size;
        const auto row = loops.largest(of.dtype, s, t, of.columns, static_cast<Real>(1 / of.temperature));
        const RowSums sums = loops.exponentials(of.dtype, s, t, of.columns, row, e_s.data(), e_t.data());
        values[i] = row.value(sums.student, sums.source, sums.cross);
        if (to)
          loops.distillation_gradient(of.dtype, e_s.data(), e_t.data(), static_cast<Real>(share / sums.student),
                                      static_cast<Real>(share / sums.source), of.columns, to + i * size);
      }
    }
    return sum(values) / static_cast<double>(of.rows);
  });
}

}  // namespace pytl::cpu
