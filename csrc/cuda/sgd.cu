#include "instantiate.h"

template struct pytl::cuda::Launches<pytl::SGDGroup>;
