# What is compiled of csrc/cuda, by nvcc and for tests/simt: the operations of launch.cu's table (operations.cuh), in
# families that share kernels, and the storage types. One translation unit for each family and type, and one for merge.cuh.
set(SUMEXP_CUDA_FAMILIES softmax logsumexp weighted vjp hvp)
set(SUMEXP_CUDA_softmax SoftmaxOp LogSumExpVjpOp)
set(SUMEXP_CUDA_logsumexp LogSoftmaxOp LogSumExpOp)
set(SUMEXP_CUDA_weighted WeightedLogSumExpOp LogSumExpJvpOp)
set(SUMEXP_CUDA_vjp SoftmaxVjpOp LogSoftmaxVjpOp LogSoftmaxJvpOp)
set(SUMEXP_CUDA_hvp SoftmaxHvpOp LogSoftmaxHvpOp)
set(SUMEXP_CUDA_TYPES f16 bf16 float double)

# sumexp_cuda_unit(FILE FOLDER TYPE OPERATIONS...): writes a translation unit with these, of the sources in FOLDER
function(sumexp_cuda_unit file folder type)
  set(text "#include \"${folder}/run.cuh\"\n\nnamespace sumexp::SUMEXP_NS {\n")
  foreach(op IN LISTS ARGN)
    string(APPEND text "template struct Run<${type}, ${op}<${type}>>;\n")
  endforeach()
  file(CONFIGURE OUTPUT ${file} CONTENT "${text}}\n" @ONLY)
endfunction()

# sumexp_cuda_units(TARGET FOLDER EXTENSION): adds all of them to a target, written to the current binary directory
function(sumexp_cuda_units target folder extension)
  foreach(family IN LISTS SUMEXP_CUDA_FAMILIES)
    foreach(type IN LISTS SUMEXP_CUDA_TYPES)
      set(file ${CMAKE_CURRENT_BINARY_DIR}/${family}_${type}.${extension})
      sumexp_cuda_unit(${file} ${folder} ${type} ${SUMEXP_CUDA_${family}})
      target_sources(${target} PRIVATE ${file})
    endforeach()
  endforeach()
endfunction()
