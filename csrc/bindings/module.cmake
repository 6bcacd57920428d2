# sumexp_python_module(TARGET): the extension module, without what serves sumexp/cuda.hpp. Needs Python and pybind11. All modules
# of a build tree have the same objects, those of sumexp_bindings.
set(SUMEXP_BINDINGS ${CMAKE_CURRENT_LIST_DIR})
function(sumexp_python_module target)
  if(NOT TARGET sumexp_bindings)
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
    add_library(sumexp_bindings OBJECT ${sources})
    # Seven files a unit: of one file's time three quarters are pybind11's headers. With -O1 small calls take 2 % less time than
    # with -O3.
    set_target_properties(sumexp_bindings PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 7
                          CXX_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(sumexp_bindings PRIVATE sumexp::sumexp pybind11::module)
    target_compile_features(sumexp_bindings PRIVATE cxx_std_17)
    target_compile_definitions(sumexp_bindings PRIVATE "SUMEXP_BUILD_TYPE=\"$<CONFIG>\"")
    target_compile_options(sumexp_bindings PRIVATE $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall -Wextra>
                           $<$<AND:$<CXX_COMPILER_ID:GNU>,$<CONFIG:Release>>:-O1>)
  endif()
  # NO_EXTRAS: link-time optimisation across the kernels' translation units would undo the care with which
  # each is compiled for its own ISA.
  pybind11_add_module(${target} MODULE NO_EXTRAS $<TARGET_OBJECTS:sumexp_bindings>)
  target_link_libraries(${target} PRIVATE sumexp::sumexp)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    # The symbols of libraries stay inside: another copy of one in the process must not answer for this one.
    target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
  endif()
endfunction()
