# simt_planted(NAME FILE OP FILTER EXPECT FROM TO [FROM TO ...]): builds test_kernels over a copy of csrc/cuda in
# which every FROM has become TO in FILE, for one operation in f32, runs it on the cases that FILTER names, and
# passes if they fail saying EXPECT. A FROM that is no longer there is an error: the plant must follow the kernels.
function(simt_planted name file op filter expect)
  set(copy ${CMAKE_CURRENT_BINARY_DIR}/planted/${name}/csrc)
  file(GLOB sources RELATIVE ${cuda} ${cuda}/*.cuh ${cuda}/*.hpp ${cuda}/*.cu ${cuda}/arch/*.hpp)
  foreach(source IN LISTS sources)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${cuda}/${source})
    file(READ ${cuda}/${source} text)
    if(source STREQUAL file)
      math(EXPR last "${ARGC} - 2")
      foreach(i RANGE 5 ${last} 2)
        math(EXPR next "${i} + 1")
        string(FIND "${text}" "${ARGV${i}}" at)
        if(at EQUAL -1)
          message(FATAL_ERROR "planted ${name}: '${ARGV${i}}' is not in ${file}")
        endif()
        string(REPLACE "${ARGV${i}}" "${ARGV${next}}" text "${text}")
      endforeach()
    endif()
    string(REPLACE "\"../" "\"${PROJECT_SOURCE_DIR}/csrc/" text "${text}")
    file(CONFIGURE OUTPUT ${copy}/cuda/${source} CONTENT "${text}" @ONLY)
  endforeach()
  sumexp_cuda_unit(${copy}/planted.cpp ${copy}/cuda float ${op})
  # The planted instance is linked before the library and so takes its place.
  add_executable(planted_${name} $<TARGET_OBJECTS:test_kernels> ${copy}/planted.cpp)
  target_include_directories(planted_${name} BEFORE PRIVATE ${copy}/cuda)
  target_link_libraries(planted_${name} PRIVATE simt_kernels)
  add_test(NAME simt_planted_${name} COMMAND planted_${name} 1 ${filter})
  set_tests_properties(simt_planted_${name} PROPERTIES PASS_REGULAR_EXPRESSION "${expect}")
endfunction()

simt_planted(missing_barrier fold.cuh Softmax "softmax f32 block" "FAILED softmax"
             "arch::block_sync()" "arch::warp_sync()")
simt_planted(lane_order fold.cuh SoftmaxVjp "softmax_vjp f32 warp packed" "on the machine"
             "add_columns<kShare" "add_columns<16"
             "add_columns<2 * bit, kSplits - 1>" "add_columns<(bit > kFirst ? bit / 2 : 32), kSplits - 1>"
             "add_columns<2 * bit, 0>" "add_columns<(bit > kFirst ? bit / 2 : 32), 0>"
             "shfl_xor(member, kShare << s)" "shfl_xor(member, 16 >> s)"
             "template <int bit, int kSplits, class T, int n>"
             "constexpr int kFirst = 4;\ntemplate <int bit, int kSplits, class T, int n>")
simt_planted(tail_load tile_io.cuh Softmax "softmax f32 warp packed" "past the end of an input"
             "left - q * L::kSpan >= L::kPack ? load_whole" "left - q * L::kSpan >= -100 ? load_whole")
simt_planted(tail_store tile_io.cuh Softmax "softmax f32 warp packed" "wrote beside the result"
             "if (left - q * L::kSpan >= L::kPack) put(q)" "if (left - q * L::kSpan > 0) put(q)")
simt_planted(anchor exp_chunk.cuh Softmax "softmax f32 warp packed" "FAILED softmax"
             "base.anchor == T(0) ? sum :" "true ? sum :")
# A warp writes the gradient to the logits' place while another still looks for the target's.
simt_planted(finish_reads kernels.cuh CrossEntropyWithGrad "cross_entropy_with_grad_extra f32 block packed" "on the machine"
             "if constexpr (Op::kFinishReads)" "if constexpr (false)")
# Rows side by side, of which some overflow: elements are divided as their row is, not as that of the warp that fetches them.
simt_planted(fetched_row kernels.cuh Softmax "softmax f32 warp overheated_side" "on the machine"
             "fetched = board[io.fetched_row()];" "fetched = own;")
simt_planted(apart_not_mapped kernels.cuh LogSoftmax "log_softmax f32 stream overheated" "on the machine"
             "tops[r] = at_most" "tops[r] = Limits<T>::nan()")
# Each of the three waits around the stage of rows that are not packed: until it is written, until it is read, until results
# are there.
simt_planted(stage_not_written tile_io.cuh Softmax "softmax f32 warp side" "FAILED softmax"
             "staged = there ? input(k, at) : fill; });\n    stage_sync();" "staged = there ? input(k, at) : fill; });")
simt_planted(stage_not_read tile_io.cuh SoftmaxVjp "softmax_vjp f32 warp side" "FAILED softmax_vjp"
             "if (used_) stage_sync()" "if (!used_) stage_sync()")
simt_planted(stage_no_results tile_io.cuh Softmax "softmax f32 warp side" "FAILED softmax"
             "rows) {\n    stage_sync();\n    each_staged(cuda::kOut" "rows) {\n    each_staged(cuda::kOut")

# simt_planted_rows(NAME FAMILY KERNELS FILTER EXPECT FROM TO): the same for the files rows/FAMILY*.cuh, whose struct is KERNELS,
# by test_FAMILY.cpp.
function(simt_planted_rows name family kernels filter expect from to)
  set(planted ${CMAKE_CURRENT_BINARY_DIR}/planted/${name})
  set(planted_in "")
  file(GLOB sources RELATIVE ${cuda}/rows ${cuda}/rows/${family}*.cuh)
  foreach(source IN LISTS sources)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${cuda}/rows/${source})
    file(READ ${cuda}/rows/${source} text)
    string(FIND "${text}" "${from}" at)
    if(NOT at EQUAL -1)
      list(APPEND planted_in ${source})
      string(REPLACE "${from}" "${to}" text "${text}")
    endif()
    string(REGEX REPLACE "#include \"([^\"]*)\"" "#include \"${cuda}/rows/\\1\"" text "${text}")
    string(REGEX REPLACE "\"${cuda}/rows/(${family}[a-z_]*[.]cuh)\"" "\"\\1\"" text "${text}")  # those that are here
    file(CONFIGURE OUTPUT ${planted}/${source} CONTENT "${text}" @ONLY)
  endforeach()
  if(planted_in STREQUAL "")
    message(FATAL_ERROR "planted ${name}: '${from}' is not in rows/${family}*.cuh")
  endif()
  file(CONFIGURE OUTPUT ${planted}/planted.cpp CONTENT
       "#include \"${planted}/${family}.cuh\"\n\nnamespace sumexp::SUMEXP_NS {\ntemplate struct ${kernels}<float>;\n}\n" @ONLY)
  add_executable(planted_${name} $<TARGET_OBJECTS:test_simt_${family}> ${planted}/planted.cpp)
  target_link_libraries(planted_${name} PRIVATE simt_kernels)
  add_test(NAME simt_planted_${name} COMMAND planted_${name} ${filter})
  set_tests_properties(simt_planted_${name} PROPERTIES PASS_REGULAR_EXPRESSION "${expect}")
endfunction()

# A row of more chunks than warps takes the chunk that happens to be in registers for each of its own; blocks of a bias's
# members join before all are there.
simt_planted_rows(masked_again masked MaskedRows "f32 n 16385" "other bytes"
                  "again = in.chunks > warps()" "again = false")
simt_planted_rows(masked_blocks masked MaskedRows "f32 n 40" "other bytes of the bias's gradient|on the machine"
                  "*mine = sum.value();\n    arch::block_sync();" "*mine = sum.value();")
# Two long segments share a slot; offsets beyond the elements are taken as they are; a chunk is read before it is there.
simt_planted_rows(segment_slots segments SegmentRows "f32" "other bytes"
                  "2 * (found.segment.first / kChunk)" "found.segment.first / kChunk")
simt_planted_rows(segment_offsets segments SegmentRows "f32" "past the end of an input"
                  "at < job.elements ? at : job.elements" "at")
simt_planted_rows(segment_stage segments SegmentRows "f32" "other bytes"
                  "arch::warp_sync();\n    each([&](int r, int i, T& staged) { v[r][i] = staged; })"
                  "each([&](int r, int i, T& staged) { v[r][i] = staged; })")
# Terms are added up before all are made; pieces of a round are joined from the one before.
simt_planted_rows(pieces_terms weighted_rows WeightedRowsOf "f32" "other bytes"
                  "arch::warp_sync();\n  RunningSum sum" "RunningSum sum")
simt_planted_rows(pieces_round weighted_rows WeightedRowsOf "f32" "other bytes"
                  "join(sum, board.totals[round % 2][i])" "join(sum, board.totals[0][i])")
# A chunk far below the maximum of its row; an index that is of no class (what lies there may be memory of another's: then
# it is the bytes that differ).
simt_planted_rows(information_far information Information f32 "the gradient of p has other bytes"
                  "if (scale.far) term" "if (false) term")
simt_planted_rows(information_index information Information f32 "an index of no class"
                  "i < 0 || i >= call.views.n" "i < 0")
