// What all adapters share: the parts of a cpu::Kernel that do not depend on the op.
#pragma once

#include "store.hpp"
#include "table.hpp"

namespace sumexp::SUMEXP_NS {

using cpu::RowsAt;

template <class T>
SUMEXP_FN const T& as(const void* p) {
  return *static_cast<const T*>(p);
}
template <class T>
SUMEXP_FN T& as(void* p) {
  return *static_cast<T*>(p);
}

template <class State>
SUMEXP_KERNEL void empty_state(void* state) {
  as<State>(state) = State::empty();
}
template <class State>
SUMEXP_KERNEL void merge_states(const void* a, const void* b, void* to) {
  as<State>(to) = merge(as<State>(a), as<State>(b));
}

// Sizes, the empty state and the merge.
template <class State, class Row>
constexpr cpu::Kernel kernel_of() {
  cpu::Kernel kernel = {};
  kernel.state_bytes = sizeof(State), kernel.row_bytes = sizeof(Row), kernel.log = -1;
  kernel.empty = empty_state<State>, kernel.merge = merge_states<State>;
  return kernel;
}

// An op's row input, in T; an index stands for the element there.
template <class S, class Op>
SUMEXP_FN auto row_input(const cpu::RowContext& context) {
  using T = decltype(widen(S{}));
  if constexpr (Op::kIndex) return as<T>(context.at_index);
  else if constexpr (Op::kRowInput >= 0) return widen(read<S>(static_cast<const char*>(context.input)));
  else return T(0);
}
SUMEXP_FN std::int64_t index_of(const RowsAt& indices, int b) { return read<std::int64_t>(indices.first + b * indices.step); }

}  // namespace sumexp::SUMEXP_NS
