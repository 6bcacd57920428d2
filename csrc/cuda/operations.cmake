# What is compiled of csrc/cuda, by nvcc and for tests/simt: the ops of ops/table.hpp for each storage type. One translation
# unit for each family and type, since ops of a family share kernels (operations.cuh), and one for merge.cuh. Families with
# kernels of their own: rows/<family>.cuh has them, a unit for each storage type, rows/<family>.cu calls them.
set(SUMEXP_CUDA_TABLE ${CMAKE_CURRENT_LIST_DIR}/../ops/table.hpp)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${SUMEXP_CUDA_TABLE})
set(SUMEXP_CUDA_TYPES f16 bf16 float double)
set(SUMEXP_CUDA_FAMILIES "")
file(READ ${SUMEXP_CUDA_TABLE} table)
string(REGEX MATCHALL "ROW\\([a-z_]+, *[A-Za-z]+, *[A-Za-z]+\\)" rows "${table}")
foreach(row IN LISTS rows)
  string(REGEX MATCH "([A-Za-z]+), *([A-Za-z]+)\\)" row "${row}")
  set(SUMEXP_CUDA_FAMILY_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
  list(APPEND SUMEXP_CUDA_OPS_${CMAKE_MATCH_2} ${CMAKE_MATCH_1})
  list(APPEND SUMEXP_CUDA_FAMILIES ${CMAKE_MATCH_2})
endforeach()
list(REMOVE_DUPLICATES SUMEXP_CUDA_FAMILIES)

set(SUMEXP_CUDA_SOURCES device launch merge)
# <file>.<Kernels>: rows/<file>.cuh with its struct template Kernels<S>, and rows/<file>.cu
set(SUMEXP_CUDA_ROW_FAMILIES
    elementwise.ElementwiseMap
    filters.FindCuts
    information.Information
    losses.LossRows
    masked.MaskedRows
    sampling.SamplingOf
    segments.SegmentRows
    weighted_rows.WeightedRowsOf)
foreach(family IN LISTS SUMEXP_CUDA_ROW_FAMILIES)
  string(REGEX REPLACE "[.].*" "" name ${family})
  list(APPEND SUMEXP_CUDA_SOURCES rows/${name})
endforeach()
list(APPEND SUMEXP_CUDA_SOURCES rows/linear)  # over the losses'

# sumexp_cuda_unit(FILE FOLDER TYPE OPS...): writes a translation unit with these, of the sources in FOLDER
function(sumexp_cuda_unit file folder type)
  set(text "#include \"${folder}/run.cuh\"\n\nnamespace sumexp::SUMEXP_NS {\n")
  foreach(op IN LISTS ARGN)
    string(APPEND text "template struct Run<${type}, ${SUMEXP_CUDA_FAMILY_${op}}Of<${type}, ${op}>>;\n")
  endforeach()
  file(CONFIGURE OUTPUT ${file} CONTENT "${text}}\n" @ONLY)
endfunction()

# sumexp_cuda_units(TARGET FOLDER EXTENSION): adds all of them to a target, written to the current binary directory
function(sumexp_cuda_units target folder extension)
  foreach(family IN LISTS SUMEXP_CUDA_FAMILIES)
    foreach(type IN LISTS SUMEXP_CUDA_TYPES)
      string(TOLOWER ${family}_${type}.${extension} name)
      set(file ${CMAKE_CURRENT_BINARY_DIR}/${name})
      sumexp_cuda_unit(${file} ${folder} ${type} ${SUMEXP_CUDA_OPS_${family}})
      target_sources(${target} PRIVATE ${file})
    endforeach()
  endforeach()
  foreach(family IN LISTS SUMEXP_CUDA_ROW_FAMILIES)
    string(REGEX MATCH "^([a-z_]+)[.]([A-Za-z]+)$" _ ${family})
    foreach(type IN LISTS SUMEXP_CUDA_TYPES)
      set(file ${CMAKE_CURRENT_BINARY_DIR}/${CMAKE_MATCH_1}_${type}.${extension})
      file(CONFIGURE OUTPUT ${file} CONTENT "#include \"${folder}/rows/${CMAKE_MATCH_1}.cuh\"\n
namespace sumexp::SUMEXP_NS {\ntemplate struct ${CMAKE_MATCH_2}<${type}>;\n}\n" @ONLY)
      target_sources(${target} PRIVATE ${file})
    endforeach()
  endforeach()
endfunction()
