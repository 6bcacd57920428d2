# The instances of csrc/cuda: operations of operations.cuh, storage types. As in launch.cu's table.
set(SUMEXP_CUDA_OPERATIONS
    SoftmaxOp LogSoftmaxOp LogSumExpOp WeightedLogSumExpOp
    SoftmaxVjpOp LogSoftmaxVjpOp LogSoftmaxJvpOp LogSumExpVjpOp LogSumExpJvpOp
    SoftmaxHvpOp LogSoftmaxHvpOp)
set(SUMEXP_CUDA_TYPES f16 bf16 float double)
