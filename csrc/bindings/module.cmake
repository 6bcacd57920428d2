# sumexp_python_module(TARGET): the extension module, without what serves sumexp/cuda.hpp. Needs Python and pybind11.
set(SUMEXP_BINDINGS ${CMAKE_CURRENT_LIST_DIR})
function(sumexp_python_module target)
  set(sources fast_path.cpp
              filters.cpp
              functions.cpp
              information.cpp
              log_domain.cpp
              logmatmul.cpp
              losses.cpp
              module.cpp
              operands.cpp
              ragged.cpp
              sampling.cpp
              stream.cpp
              strided.cpp
              tensors.cpp)
  list(TRANSFORM sources PREPEND ${SUMEXP_BINDINGS}/)
  # NO_EXTRAS: link-time optimisation across the kernels' translation units would undo the care with which
  # each is compiled for its own ISA.
  pybind11_add_module(${target} MODULE NO_EXTRAS ${sources})
  # Seven files a unit: of one file's time three quarters are pybind11's headers. With -O1 small calls take 2 % less time than
  # with -O3.
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 7)
  target_link_libraries(${target} PRIVATE sumexp::sumexp)
  target_compile_features(${target} PRIVATE cxx_std_17)
  target_compile_definitions(${target} PRIVATE "SUMEXP_BUILD_TYPE=\"$<CONFIG>\"")
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall -Wextra>
                         $<$<AND:$<CXX_COMPILER_ID:GNU>,$<CONFIG:Release>>:-O1>)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    # The symbols of libraries stay inside: another copy of one in the process must not answer for this one.
    target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
  endif()
endfunction()
