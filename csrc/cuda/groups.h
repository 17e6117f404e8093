// A group's options as the device has them: numbers, or where on the device they lie.
#pragma once
#include "../tensor_list.h"

namespace pytl::cuda {

struct Source {
  const void* address;  // null: the number stands
  int64_t size;         // in bytes: that of a float or of a double

  PYTL_INLINE double or_else(double number) const {
    if (!address) return number;
    return size == sizeof(double) ? *static_cast<const double*>(address) : *static_cast<const float*>(address);
  }
};

struct Sources {
  Source lr, sp_decay, weight_decay, beta1, beta2;
};

PYTL_INLINE void read_betas(const Sources&, SGDGroup&) {}
PYTL_INLINE void read_betas(const Sources& sources, AdamWGroup& group) {
  group.beta1 = sources.beta1.or_else(group.beta1), group.beta2 = sources.beta2.or_else(group.beta2);
}

template <class Options>
struct DeviceGroup {
  Options options;
  Sources sources;

  PYTL_INLINE Options now() const {
    Options o = options;
    o.lr = sources.lr.or_else(o.lr);
    o.sp_decay = sources.sp_decay.or_else(o.sp_decay);
    o.weight_decay = sources.weight_decay.or_else(o.weight_decay);
    read_betas(sources, o);
    return o;
  }
};

}  // namespace pytl::cuda
