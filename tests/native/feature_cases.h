// Features, activations and logits of every kind, and what the regularisers must make of them: plain loops in float64.
// Passes are those of a device: static functions as in csrc/cpu/features.h.
#pragma once
#include <algorithm>
#include <limits>

#include "../../csrc/feature_list.h"
#include "cases.h"

namespace pytl::cases {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline DType real_of(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

// What an element that is `x` may be off by, once it is stored; `terms` are what it was computed from.
inline double allowed(DType dtype, double x, double terms) {
  const double stored[] = {1e-13, 1e-6, 1.0 / 256, 1.0 / 2048}, computed[] = {1e-12, 4e-6, 4e-6, 4e-6};
  const double smallest = dtype == DType::float16 ? 0x1p-24 : 1e-38;
  return stored[int(dtype)] * std::abs(x) + computed[int(dtype)] * std::abs(terms) + smallest;
}

inline bool is_close(double got, double wanted, double tolerance) {
  if (std::isnan(wanted)) return std::isnan(got);
  return got == wanted || std::abs(got - wanted) <= tolerance;
}

// The elements are compared until one is wrong.
template <class Wanted>
void compare(Operand& got, int64_t length, const std::string& what, Wanted wanted) {
  for (int64_t i = 0; i < length; i++) {
    const auto [value, tolerance] = wanted(i);
    if (is_close(got.get(i), value, tolerance)) continue;
    const std::string numbers = std::to_string(got.get(i)) + ", not " + std::to_string(value);
    return expect(false, "element " + std::to_string(i) + " of " + what + ": " + numbers);
  }
  expect(true, what);
}

struct Expectation {
  double value, tolerance;
};

// Which operands lie one element off their allocation: what is read, or what is added and written.
struct Skew {
  bool inputs, outputs;
};
constexpr Skew kAligned = {false, false}, kSkews[] = {kAligned, {true, false}, {false, true}};

inline std::string describe(Skew skew) {
  return std::string(skew.inputs ? ", inputs skewed" : "") + (skew.outputs ? ", outputs skewed" : "");
}

// ---- distance of features ----

struct DistanceCase {
  DType dtype;
  int64_t outer, channels, inner;
  bool weighted, with_task;
  Skew skew;
};

inline std::string describe(const DistanceCase& c) {
  return "dtype " + std::to_string(int(c.dtype)) + ", " + std::to_string(c.outer) + " x " + std::to_string(c.channels) +
         " x " + std::to_string(c.inner) + (c.weighted ? ", weighted" : "") + (c.with_task ? ", task" : "") +
         describe(c.skew);
}

struct Features {
  explicit Features(const DistanceCase& c, unsigned seed = 3)
      : of(c),
        length(c.outer * c.channels * c.inner),
        x(c.dtype, length, c.skew.inputs),
        source(c.dtype, length, c.skew.inputs),
        task(c.dtype, length, c.skew.outputs),
        gradient(c.dtype, length, c.skew.outputs),
        weights(real_of(c.dtype), c.channels, c.skew.inputs) {
    std::mt19937 random(seed);
    for (Operand* o : {&x, &source, &task}) o->fill(random, 1);
    weights.fill(random, 0.5, 1);
    for (int64_t i = 0; i < c.channels; i++) weights.set(i, std::abs(weights.get(i)));
  }

  FeaturePair pair() {
    return {x.address(), source.address(), of.weighted ? weights.address() : nullptr, of.outer, of.channels,
            of.inner,    of.dtype};
  }
  double weight(int64_t i) { return of.weighted ? weights.get(i / of.inner % of.channels) : 1; }

  DistanceCase of;
  int64_t length;
  Operand x, source, task, gradient, weights;
};

constexpr double kFactor = 0.375;

template <class Passes>
double run(Features& f) {
  Passes::feature_distance_gradient(f.pair(), f.of.with_task ? f.task.address() : nullptr, kFactor,
                                    f.gradient.address());
  return Passes::feature_distance(f.pair());
}

template <class Passes>
void check(const DistanceCase& c) {
  Features f(c);
  const double value = run<Passes>(f);
  double wanted = 0;
  for (int64_t i = 0; i < f.length; i++) wanted += f.weight(i) * std::pow(f.x.get(i) - f.source.get(i), 2) / 2;
  expect(is_close(value, wanted, (c.dtype == DType::float64 ? 1e-13 : 1e-6) * wanted), "value of " + describe(c));
  compare(f.gradient, f.length, "gradient of " + describe(c), [&](int64_t i) -> Expectation {
    const double task = c.with_task ? f.task.get(i) : 0;
    const double own = kFactor * f.weight(i) * (f.x.get(i) - f.source.get(i));
    return {task + own, allowed(c.dtype, task + own, std::abs(task) + std::abs(own))};
  });
}

// One NaN, and a weight that is infinite where nothing differs: both show, and nowhere else.
template <class Passes>
void check_distance_of_nan(DType dtype) {
  Features f({dtype, 3, 5, 7, true, false, kAligned});
  f.x.set(40, kNaN);
  expect(std::isnan(run<Passes>(f)), "a distance with NaN");
  bool holds = true;
  for (int64_t i = 0; i < f.length; i++) holds &= std::isnan(f.gradient.get(i)) == (i == 40);
  expect(holds, "a gradient is NaN where x is");
  Features last({dtype, 1, 3, 7, true, false, kAligned});
  last.weights.set(0, kInfinity);
  for (int64_t i = 0; i < 7; i++) last.x.set(i, 1e3 + i), last.source.set(i, 0);
  expect(run<Passes>(last) == kInfinity, "a weight that is infinite");
}

// ---- attention maps ----

struct MapCase {
  DType dtype;
  int64_t samples, channels, positions;
  bool channels_last;
  Skew skew;
};

inline std::string describe(const MapCase& c) {
  return "dtype " + std::to_string(int(c.dtype)) + ", " + std::to_string(c.samples) + " x " +
         std::to_string(c.channels) + " x " + std::to_string(c.positions) + (c.channels_last ? ", channels last" : "") +
         describe(c.skew);
}

struct Maps {
  explicit Maps(const MapCase& c, unsigned seed = 5)
      : of(c),
        length(c.samples * c.channels * c.positions),
        a(c.dtype, length, c.skew.inputs),
        to(c.dtype, length, c.skew.outputs),
        map(real_of(c.dtype), c.samples * c.positions, 0),
        gradient(real_of(c.dtype), c.samples * c.positions, 0),
        inverse_norms(DType::float64, c.samples, 0) {
    std::mt19937 random(seed);
    a.fill(random, 1), gradient.fill(random, 1);
  }

  Activations activations() { return {a.address(), of.samples, of.channels, of.positions, of.channels_last, of.dtype}; }
  int64_t at(int64_t sample, int64_t channel, int64_t position) const {
    return of.channels_last ? (sample * of.positions + position) * of.channels + channel
                            : (sample * of.channels + channel) * of.positions + position;
  }
  // The sample and position of an element of a, as an element of the map.
  int64_t place(int64_t i) const {
    if (of.channels_last) return i / of.channels;
    return i / (of.channels * of.positions) * of.positions + i % of.positions;
  }

  MapCase of;
  int64_t length;
  Operand a, to, map, gradient, inverse_norms;
};

struct WantedMaps {
  explicit WantedMaps(Maps& m) {
    for (int64_t b = 0; b < m.of.samples; b++) {
      double square = 0, dot = 0;
      const size_t first = map.size();
      for (int64_t p = 0; p < m.of.positions; p++) {
        map.push_back(0);
        for (int64_t c = 0; c < m.of.channels; c++) map.back() += std::pow(m.a.get(m.at(b, c, p)), 2);
        square += map.back() * map.back();
      }
      inverse.push_back(square == 0 ? 0 : 1 / std::sqrt(square));
      for (size_t k = first; k < map.size(); k++) map[k] *= inverse.back(), dot += map[k] * m.gradient.get(k);
      along.push_back(dot);
    }
  }
  std::vector<double> map, inverse, along;
};

template <class Passes>
void run(Maps& m) {
  auto* inverse_norms = reinterpret_cast<double*>(m.inverse_norms.address());
  Passes::attention_map(m.activations(), m.map.address(), inverse_norms);
  Passes::attention_map_gradient(m.activations(), m.map.address(), inverse_norms, m.gradient.address(), m.to.address());
}

inline void compare(Maps& m, const std::string& what) {
  const WantedMaps wanted(m);
  const int64_t places = m.of.samples * m.of.positions;
  compare(m.map, places, "map of " + what,
          [&](int64_t k) -> Expectation { return {wanted.map[k], allowed(real_of(m.of.dtype), wanted.map[k], 0)}; });
  compare(m.inverse_norms, m.of.samples, "inverse norm of " + what, [&](int64_t b) -> Expectation {
    return {wanted.inverse[b], allowed(real_of(m.of.dtype), wanted.inverse[b], 0)};
  });
  compare(m.to, m.length, "gradient of " + what, [&](int64_t i) -> Expectation {
    const int64_t k = m.place(i), b = k / m.of.positions;
    const double g = m.gradient.get(k), along = wanted.map[k] * wanted.along[b];
    const double a = 2 * wanted.inverse[b] * m.a.get(i);
    return {a * (g - along), allowed(m.of.dtype, a * (g - along), a * (std::abs(g) + std::abs(along)))};
  });
}

template <class Passes>
void check(const MapCase& c) {
  Maps m(c);
  run<Passes>(m);
  compare(m, describe(c));
}

// Of three samples one is 0, one has a NaN, and one is as ever.
template <class Passes>
void check_maps_of_nothing_and_nan(DType dtype, bool channels_last) {
  Maps m({dtype, 3, 12, 20, channels_last, kAligned});
  for (int64_t i = 0; i < 240; i++) m.a.set(i, 0);
  m.a.set(300, kNaN);
  run<Passes>(m);
  compare(m, "nothing and NaN");
}

// ---- soft labels ----

struct RowsCase {
  DType dtype;
  int64_t rows, columns;
  double temperature;
  bool with_gradient;
  Skew skew;
  double scale = 3;  // of the logits
};

inline std::string describe(const RowsCase& c) {
  return "dtype " + std::to_string(int(c.dtype)) + ", " + std::to_string(c.rows) + " rows of " +
         std::to_string(c.columns) + ", temperature " + std::to_string(c.temperature) + ", scale " +
         std::to_string(c.scale) + (c.with_gradient ? ", gradient" : "") + describe(c.skew);
}

struct LogitRows {
  explicit LogitRows(const RowsCase& c, unsigned seed = 7)
      : of(c),
        length(c.rows * c.columns),
        s(c.dtype, length, c.skew.inputs),
        t(c.dtype, length, c.skew.inputs),
        gradient(c.dtype, length, c.skew.outputs) {
    std::mt19937 random(seed);
    s.fill(random, c.scale), t.fill(random, c.scale);
  }

  Logits logits() { return {s.address(), t.address(), of.rows, of.columns, of.temperature, of.dtype}; }

  RowsCase of;
  int64_t length;
  Operand s, t, gradient;
};

struct Softmax {
  double largest = -kInfinity, sum = 0, temperature;

  Softmax(Operand& logits, int64_t row, int64_t columns, double temperature) : temperature(temperature) {
    const auto at = [&](int64_t j) { return logits.get(row * columns + j); };
    for (int64_t j = 0; j < columns; j++) largest = std::max(largest, at(j));
    for (int64_t j = 0; j < columns; j++) sum += std::exp((at(j) - largest) / temperature);
  }
  double log(double x) const { return (x - largest) / temperature - std::log(sum); }
};

// value(row) and compared gradients; a class that the source excludes has no part, nor has one whose share is below
// what its dtype's exponential knows.
inline double compare_rows(LogitRows& l, const std::string& what) {
  const RowsCase& c = l.of;
  double value = 0;
  for (int64_t row = 0; row < c.rows; row++) {
    const Softmax q(l.s, row, c.columns, c.temperature), p(l.t, row, c.columns, c.temperature);
    const auto each = [&](int64_t j, double& log_q, double& log_p) {
      log_q = q.log(l.s.get(row * c.columns + j)), log_p = p.log(l.t.get(row * c.columns + j));
    };
    double log_q, log_p;
    for (int64_t j = 0; j < c.columns; j++) {
      each(j, log_q, log_p);
      const bool has_part = !(std::exp(log_p) < (c.dtype == DType::float64 ? 1e-300 : 1e-37));
      if (has_part) value += c.temperature * c.temperature * std::exp(log_p) * (log_p - log_q) / c.rows;
    }
    if (!c.with_gradient) continue;
    for (int64_t j = 0; j < c.columns; j++) {
      each(j, log_q, log_p);
      const double share = c.temperature / c.rows, wanted = share * (std::exp(log_q) - std::exp(log_p));
      const double magnitude = std::max({1.0, std::abs(log_q), std::abs(log_p)});
      const double terms = share * (std::exp(log_q) + std::exp(log_p)) * std::min(magnitude, 90.0);
      const double got = l.gradient.get(row * c.columns + j);
      if (is_close(got, wanted, allowed(c.dtype, wanted, terms))) continue;
      expect(false, "row " + std::to_string(row) + ", column " + std::to_string(j) + " of the gradient of " + what);
      return value;
    }
  }
  expect(true, what);
  return value;
}

template <class Passes>
double run(LogitRows& l) {
  return Passes::distillation(l.logits(), l.of.with_gradient ? l.gradient.address() : nullptr);
}

inline void compare_value(double got, double wanted, const RowsCase& c, const std::string& what) {
  const double scale = std::max(std::abs(wanted), c.temperature * (c.temperature + c.scale));
  expect(is_close(got, wanted, (c.dtype == DType::float64 ? 1e-12 : 3e-6) * scale),
         "value of " + what + ": " + std::to_string(got) + ", not " + std::to_string(wanted));
}

template <class Passes>
void check(const RowsCase& c) {
  LogitRows l(c);
  const double got = run<Passes>(l);
  compare_value(got, compare_rows(l, describe(c)), c, describe(c));
}

// Equal logits are at no distance, exactly.
template <class Passes>
void check_equal_rows(DType dtype, int64_t columns) {
  LogitRows l({dtype, 3, columns, 2.5, true, kAligned});
  for (int64_t i = 0; i < l.length; i++) l.s.set(i, l.t.get(i));
  bool holds = run<Passes>(l) == 0;
  for (int64_t i = 0; i < l.length; i++) holds &= l.gradient.get(i) == 0;
  expect(holds, "equal rows of " + std::to_string(columns) + ", dtype " + std::to_string(int(dtype)));
}

// Classes that are excluded, at first, in the middle and last, by the source alone or by both.
template <class Passes>
void check_excluded_classes(DType dtype, int64_t columns) {
  LogitRows l({dtype, 4, columns, 1, true, kAligned});
  for (int64_t row = 0; row < 4; row++)
    for (int64_t j : {int64_t{0}, columns / 2, columns - 2}) {
      l.t.set(row * columns + j, -kInfinity);
      if (row % 2) l.s.set(row * columns + j, -kInfinity);
    }
  const std::string what = "excluded classes of " + std::to_string(columns);
  const double got = run<Passes>(l);
  compare_value(got, compare_rows(l, what), l.of, what);
}

// The student excludes a class whose share vanishes beside one that comes later: the distance stays finite.
template <class Passes>
void check_vanishing_share(DType dtype, int64_t columns) {
  LogitRows l({dtype, 1, columns, 1, true, kAligned});
  for (int64_t j = 0; j < columns; j++) l.s.set(j, 0), l.t.set(j, j < columns - 1 ? -1000 : 0);
  l.s.set(0, -kInfinity);
  const std::string what = "a share that vanishes, columns " + std::to_string(columns);
  const double got = run<Passes>(l);
  compare_value(got, compare_rows(l, what), l.of, what);
}

// NaN, infinity, or nothing but excluded classes: that row's gradient and the value are NaN.
template <class Passes>
void check_rows_without_probabilities(DType dtype, int64_t columns) {
  for (int kind = 0; kind < 6; kind++) {
    LogitRows l({dtype, 2, columns, 1, true, kAligned});
    Operand& spoilt = kind % 2 ? l.s : l.t;
    for (int64_t j = 0; j < columns; j++)
      if (kind >= 4 || j == columns / 2) spoilt.set(columns + j, kind < 2 ? kNaN : kind < 4 ? kInfinity : -kInfinity);
    bool holds = std::isnan(run<Passes>(l));
    for (int64_t j = 0; j < columns; j++) {
      holds &= !std::isnan(l.gradient.get(j));
      holds &= std::isnan(l.gradient.get(columns + j)) || (kind >= 2 && kind < 4);
    }
    expect(holds, "no probabilities, kind " + std::to_string(kind) + ", columns " + std::to_string(columns));
  }
}

// ---- all of it ----

// What a build's boundaries are: of a block's step over float32 features, and of the parts of a row of 1-byte columns.
struct Boundaries {
  std::vector<int64_t> lengths, positions, channels, columns;
};

template <class Passes>
void check_distances(DType dtype, const Boundaries& at) {
  for (Skew skew : kSkews) {
    for (int64_t length : at.lengths)
      for (bool with_task : {false, true}) check<Passes>(DistanceCase{dtype, 1, 1, length, false, with_task, skew});
    for (int64_t inner : {1, 2, 3, 5, 7, 8, 9, 49, 64, 100, 196})
      for (int64_t channels : {1, 2, 3, 8, 24, 33})
        check<Passes>(DistanceCase{dtype, 3, channels, inner, true, inner % 2 == 0, skew});
    check<Passes>(DistanceCase{dtype, 700, 1, 1, true, true, skew});
    check<Passes>(DistanceCase{dtype, 2, 9000, 1, true, true, skew});
    check<Passes>(DistanceCase{dtype, 2, 9001, 1, true, true, skew});
    check<Passes>(DistanceCase{dtype, 2, 2, 9001, true, true, skew});
  }
  check<Passes>(DistanceCase{dtype, 0, 3, 4, true, true, kAligned});
  check<Passes>(DistanceCase{dtype, 2, 0, 4, true, true, kAligned});
  check<Passes>(DistanceCase{dtype, 2, 3, 0, true, true, kAligned});
  check_distance_of_nan<Passes>(dtype);
}

template <class Passes>
void check_maps(DType dtype, const Boundaries& at) {
  for (bool last : {false, true}) {
    for (Skew skew : kSkews) {
      for (int64_t positions : at.positions)
        for (int64_t channels : {1, 2, 3, 4, 8, 16, 33, 64}) {
          if (positions * channels > 20000 && skew.inputs) continue;
          check<Passes>(MapCase{dtype, 2, channels, positions, last, skew});
        }
      for (int64_t channels : at.channels)
        for (int64_t positions : {1, 4, 7, 49}) check<Passes>(MapCase{dtype, 1, channels, positions, last, skew});
      check<Passes>(MapCase{dtype, 150, 12, 9, last, skew});
      if (skew.outputs) continue;
      check<Passes>(MapCase{dtype, 300, 20, 130, last, skew});
      check<Passes>(MapCase{dtype, 20, 1100, 30, last, skew});
    }
    for (int64_t empty = 0; empty < 3; empty++)
      check<Passes>(MapCase{dtype, empty == 0 ? 0 : 2, empty == 1 ? 0 : 3, empty == 2 ? 0 : 5, last, kAligned});
    check_maps_of_nothing_and_nan<Passes>(dtype, last);
  }
}

template <class Passes>
void check_rows(DType dtype, const Boundaries& at) {
  for (Skew skew : kSkews)
    for (int64_t columns : at.columns) {
      for (bool with_gradient : {false, true})
        check<Passes>(RowsCase{dtype, 3, columns, with_gradient ? 2.5 : 1.0, with_gradient, skew});
      if (columns > 2000) continue;
      check<Passes>(RowsCase{dtype, 37, columns, 0.5, true, skew});
    }
  for (double scale : {0.01, 300.0}) check<Passes>(RowsCase{dtype, 5, 100, 2, true, kAligned, scale});
  check<Passes>(RowsCase{dtype, 20000, 3, 1, true, kAligned});
  check<Passes>(RowsCase{dtype, 9000, 8, 1, true, kAligned});
  for (int64_t columns : at.columns) {
    check_equal_rows<Passes>(dtype, columns);
    if (columns < 4) continue;
    check_excluded_classes<Passes>(dtype, columns);
    check_rows_without_probabilities<Passes>(dtype, columns);
    check_vanishing_share<Passes>(dtype, columns);
  }
}

template <class Passes>
void check_features(const Boundaries& at) {
  for (DType dtype : kDTypes)
    check_distances<Passes>(dtype, at), check_maps<Passes>(dtype, at), check_rows<Passes>(dtype, at);
}

}  // namespace pytl::cases
