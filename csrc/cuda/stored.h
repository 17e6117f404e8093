// A dtype that is known at run time, as a type.
#pragma once
#include "../element.h"

namespace pytl::cuda {

// visit(a value of the stored type)
template <class Visit>
void with_stored(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::float64:
      return visit(double());
    case DType::float32:
      return visit(float());
    case DType::bfloat16:
      return visit(pytl::bfloat16());
    case DType::float16:
      return visit(pytl::float16());
  }
}

}  // namespace pytl::cuda
