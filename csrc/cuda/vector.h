// Elements of an operand, read and written 16 bytes at a time, or a single one.
#pragma once
#include <type_traits>

#include "../element.h"
#include "device.h"

namespace pytl::cuda {

template <class Stored>
using RealOf = std::conditional_t<sizeof(Stored) == 8, double, float>;  // what arithmetic runs in

template <class Stored, int count>
struct alignas(count * sizeof(Stored) % 16 == 0 ? 16 : sizeof(Stored)) Vector {
  Stored of[count];
};

template <int bytes>
struct WordOf {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = unsigned long long;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<1> {
  using type = uint8_t;
};

// The widest words that a vector is made of.
template <class Vector>
using Word = typename WordOf<sizeof(Vector) % 16 == 0 ? 16 : sizeof(Vector)>::type;

// `count` elements from element i on; zeros where they do not exist.
template <class Stored, int count, Kept kept>
__device__ Vector<Stored, count> load_vector(const char* operand, int32_t i, bool exist = true) {
  using V = Vector<Stored, count>;
  const auto* from = reinterpret_cast<const Word<V>*>(operand + i * static_cast<int64_t>(sizeof(Stored)));
  Word<V> words[sizeof(V) / sizeof(Word<V>)];
#pragma unroll
  for (size_t k = 0; k < sizeof(V) / sizeof(Word<V>); k++) words[k] = exist ? load<kept>(from + k) : Word<V>();
  V v;
  memcpy(&v, words, sizeof v);
  return v;
}

template <class Stored, int count>
__device__ void store_vector(char* operand, int32_t i, const Vector<Stored, count>& v) {
  using V = Vector<Stored, count>;
  auto* to = reinterpret_cast<Word<V>*>(operand + i * static_cast<int64_t>(sizeof(Stored)));
  Word<V> words[sizeof(V) / sizeof(Word<V>)];
  memcpy(words, &v, sizeof v);
#pragma unroll
  for (size_t k = 0; k < sizeof(V) / sizeof(Word<V>); k++) store_last(to + k, words[k]);
}

template <class Stored, int count>
__device__ void widen_anew(Vector<Stored, count>& v) {
  constexpr int kWords = sizeof v / 4;
  uint32_t words[kWords > 0 ? kWords : 1];
  memcpy(words, &v, kWords * 4);
#pragma unroll
  for (int k = 0; k < kWords; k++) compute_anew(words[k]);
  memcpy(&v, words, kWords * 4);
}

template <class Real, class Stored, int count, Kept kept>
__device__ Vector<Real, count> load_widened(const char* operand, int32_t i) {
  constexpr bool whole = count * sizeof(Stored) % 16 == 0;
  Vector<Real, count> to;
#pragma unroll
  for (int part = 0; part < (whole ? 1 : count); part++) {
    constexpr int some = whole ? count : 1;
    const auto v = load_vector<Stored, some, kept>(operand, i + part);
#pragma unroll
    for (int j = 0; j < some; j++) to.of[part + j] = widen<Real>(v.of[j]);
  }
  return to;
}

// Of a dtype that is known at run time only.
template <class Real, int count, Kept kept>
__device__ Vector<Real, count> load_widened(DType dtype, const char* operand, int32_t i) {
  switch (dtype) {
    case DType::float64:
      return load_widened<Real, double, count, kept>(operand, i);
    case DType::float32:
      return load_widened<Real, float, count, kept>(operand, i);
    case DType::bfloat16:
      return load_widened<Real, bfloat16, count, kept>(operand, i);
    case DType::float16:
      return load_widened<Real, float16, count, kept>(operand, i);
  }
  return {};
}

}  // namespace pytl::cuda
