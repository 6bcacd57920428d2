// sumexp::masked: its rows over the threads, and the gradients that are summed over rows (ops/masked.hpp has the order).
#include <algorithm>
#include <vector>

#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "masked_call.hpp"
#include "masked_rows.hpp"

namespace sumexp {

namespace {

using namespace cpu;
using SUMEXP_NS::LongSum;

constexpr std::int64_t kTaskElements = 1 << 15;

// The rows that are summed for each number of view k: its stride is 0 along their dimensions.
SUMEXP_NS::RowGroups<kMaxDims> groups_of(const MaskedPlan& plan, int k) {
  SUMEXP_NS::RowGroups<kMaxDims> groups;
  std::int64_t step = 1;
  for (int d = plan.batch_dims - 1; d >= 0; --d) {
    groups.add(plan.batch[d].size, step, plan.batch[d].stride[k] == 0);
    step *= plan.batch[d].size;
  }
  return groups;
}

template <class T>
void put(const MaskedPlan& plan, char* to, std::int64_t stride, std::int64_t first, int count, const LongSum* sums) {
  T values[64];
  RowMoves moves(plan.forward);
  for (int i = 0; i < count; i += 64) {
    const int part = std::min(64, count - i);
    for (int j = 0; j < part; ++j) values[j] = sums[i + j].rounded_to<T>();
    moves.unpack(to, stride, first + i, part, values);
  }
}
void put(const MaskedPlan& plan, char* to, std::int64_t stride, int count, const LongSum* sums) {
  if (plan.forward.wide == 8) put<double>(plan, to, stride, 0, count, sums);
  else put<float>(plan, to, stride, 0, count, sums);
}

// The sums of no rows, of `count` numbers each.
void put_zeros(const MaskedPlan& plan, int k, std::int64_t count) {
  if (!plan.data[k]) return;
  const MaskedPlan distinct = plan.distinct(k);
  for (std::int64_t r = 0; r < distinct.rows; ++r)
    plan.forward.ragged.fill(distinct.addresses(r).of[k], plan.stride[k], count, 0.0);
}

class MaskedBackward {
 public:
  explicit MaskedBackward(const MaskedPlan& plan) : plan_(plan) {
    if (plan.data[kDSink]) sinks_.resize(static_cast<std::size_t>(plan.rows));
  }

  void run() {
    const int threads = threads_for(plan_.rows * plan_.n);
    if (plan_.data[kDBias]) with_bias(threads);
    else rows(threads);
    if (plan_.data[kDSink]) sinks();
  }

 private:
  void one_row(std::int64_t r, MaskedRows& rows, std::vector<LongSum>* sums) {
    const bool along = plan_.stride[kDBias] != 0;
    const double sink = rows.backward(r, [&](std::int64_t first, int count, const char* dz) {
      if (!sums) return;
      for (int i = 0; i < count; ++i) {
        const double value = plan_.forward.wide == 8 ? reinterpret_cast<const double*>(dz)[i]
                                                     : static_cast<double>(reinterpret_cast<const float*>(dz)[i]);
        (*sums)[static_cast<std::size_t>(along ? first + i : (first + i) % SUMEXP_NS::kSumStreams)].add(value);
      }
    });
    if (!sinks_.empty()) sinks_[static_cast<std::size_t>(r)] = sink;
  }
  template <class Body>
  static void over(std::int64_t tasks, int threads, Body body) {
    run_parts(
        tasks, threads,
        [](void* context, std::int64_t i, Workspace& workspace) { (*static_cast<Body*>(context))(i, workspace); }, &body);
  }

  void rows(int threads) {
    const std::int64_t step = std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(plan_.n, 1));
    over((plan_.rows + step - 1) / step, threads, [&](std::int64_t i, Workspace& workspace) {
      MaskedRows rows(plan_, workspace);
      for (std::int64_t r = i * step; r < std::min((i + 1) * step, plan_.rows); ++r) one_row(r, rows, nullptr);
    });
  }
  static LongSum total_of(const std::vector<LongSum>& streams) {
    LongSum total;
    for (const LongSum& stream : streams) total.add(stream.value());
    return total;
  }
  void with_bias(int threads) {
    constexpr int kBlocks = SUMEXP_NS::kSumBlocks;
    const auto groups = groups_of(plan_, kDBias);
    const bool along = plan_.stride[kDBias] != 0;
    const std::size_t length = static_cast<std::size_t>(along ? plan_.n : SUMEXP_NS::kSumStreams);
    const std::int64_t size = groups.block_size();
    const auto block = [&](std::int64_t group, std::int64_t b, std::vector<LongSum>& sums, Workspace& workspace) {
      MaskedRows rows(plan_, workspace);
      for (std::int64_t m = b * size; m < std::min((b + 1) * size, groups.members); ++m)
        one_row(groups.row(group, m), rows, &sums);
    };
    const auto finish = [&](std::int64_t group, const std::vector<LongSum>& sums) {
      char* const to = plan_.addresses(groups.row(group, 0)).of[kDBias];
      if (along) return put(plan_, to, plan_.stride[kDBias], static_cast<int>(length), sums.data());
      const LongSum total = total_of(sums);
      put(plan_, to, 0, 1, &total);
    };
    const auto join = [&](std::vector<LongSum>& total, const std::vector<LongSum>& sums) {
      for (std::size_t i = 0; i < length; ++i) total[i].add(sums[i].value());
    };
    if (groups.groups >= threads * 4 || threads < 2) {
      over(groups.groups, threads, [&](std::int64_t group, Workspace& workspace) {
        std::vector<LongSum> total(length), sums;
        for (std::int64_t b = 0; b < kBlocks; ++b) {
          sums.assign(length, LongSum{});
          block(group, b, sums, workspace);
          join(total, sums);
        }
        finish(group, total);
      });
      return;
    }
    for (std::int64_t group = 0; group < groups.groups; ++group) {
      std::vector<std::vector<LongSum>> sums(kBlocks, std::vector<LongSum>(length));
      over(kBlocks, threads,
           [&](std::int64_t b, Workspace& workspace) { block(group, b, sums[static_cast<std::size_t>(b)], workspace); });
      std::vector<LongSum> total(length);
      for (const auto& part : sums) join(total, part);
      finish(group, total);
    }
  }
  void sinks() {
    const auto groups = groups_of(plan_, kDSink);
    for (std::int64_t group = 0; group < groups.groups; ++group) {
      std::vector<LongSum> sums(SUMEXP_NS::kSumStreams);
      for (std::int64_t m = 0; m < groups.members; ++m)
        sums[static_cast<std::size_t>(m % SUMEXP_NS::kSumStreams)].add(sinks_[static_cast<std::size_t>(groups.row(group, m))]);
      const LongSum total = total_of(sums);
      put(plan_, plan_.addresses(groups.row(group, 0)).of[kDSink], 0, 1, &total);
    }
  }

  const MaskedPlan& plan_;
  std::vector<double> sinks_;  // of each row
};

void run(const MaskedPlan& plan) {
  if (plan.back) return MaskedBackward(plan).run();
  const int threads = threads_for(plan.rows * plan.n);
  const std::int64_t step = std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(plan.n, 1));
  struct Work {
    const MaskedPlan& plan;
    std::int64_t step;
  } work = {plan, step};
  run_parts((plan.rows + step - 1) / step, threads,
            [](void* context, std::int64_t i, Workspace& workspace) {
              const Work& work = *static_cast<Work*>(context);
              MaskedRows(work.plan, workspace).forward(i * work.step, std::min((i + 1) * work.step, work.plan.rows));
            },
            &work);
}

}  // namespace

Status masked(const MaskedCall& call) noexcept {
  const DefaultFloatingPoint mode;
  Status status = check_masked(call);
  if (!status.ok()) return status;
  return with_scratch([&]() -> Status {
    const bool back = is_vjp(call);
    const RaggedJob forward(back && call.op == Op::logsumexp ? Op::logsumexp_vjp : call.op, call.dtype);
    const RaggedJob backward(call.op == Op::softmax ? Op::softmax_vjp : Op::log_softmax_vjp, call.dtype);
    const MaskedPlan plan(call, forward, back && call.op != Op::logsumexp ? &backward : nullptr);
    if (plan.rows == 0) {
      put_zeros(plan, kDBias, plan.stride[kDBias] ? plan.n : 1);
      put_zeros(plan, kDSink, 1);
      return status;
    }
    status = check_lengths(plan);
    if (!status.ok() || (plan.n == 0 && !plan.row_value && !back)) return status;
    run(plan);
    return status;
  });
}

}  // namespace sumexp
