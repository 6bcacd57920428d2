// The toy kernel through nvcc: the vocabulary compiles for every architecture.
#include "toy.cuh"

template cudaError_t toy::launch_sum_rows<toy::Fault::none>(const float*, long long, int, int, int, int, float*, float*,
                                                            unsigned*, cudaStream_t);
