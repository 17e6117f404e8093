// OpenMP, or one thread where the compiler has none.
#pragma once
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pytl::cpu {

#if defined(_OPENMP)
inline int max_threads() { return omp_get_max_threads(); }
inline int thread_index() { return omp_get_thread_num(); }
inline int thread_count() { return omp_get_num_threads(); }
#else
inline int max_threads() { return 1; }
inline int thread_index() { return 0; }
inline int thread_count() { return 1; }
#endif

}  // namespace pytl::cpu
