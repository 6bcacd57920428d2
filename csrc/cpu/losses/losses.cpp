// Cross-entropy: checks, the denominator of a mean, rows shared out among threads, the sum over rows.
#include "../../include/sumexp/losses.hpp"

#include <cstdio>
#include <cstring>

#include "../../numerics/formats.hpp"
#include "../../ops/losses.hpp"
#include "../drivers/copied_rows.hpp"
#include "../drivers/driver.hpp"
#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"
#include "block.hpp"
#include "transposed_rows.hpp"

namespace sumexp {

namespace {

using namespace cpu;

constexpr std::int64_t kTaskElements = 1 << 16;
constexpr std::int64_t kMostParts = 1 << 16;  // of targets that are laid out together
// Of a row's terms between the two sweeps: what stays in the cache. Longer rows are read and their terms made twice.
constexpr std::int64_t kKeptBytes = std::int64_t{1} << 20;
// One row's gradient is written while the next one is summed, where both rows' terms stay in a cache and gradients go around
// it; by tasks of so many rows. Of float32: of doubles and 16 bits arithmetic is the limit (doubles by 0.89 to 1.05 of the
// time without). csrc/README.md has what it gains.
constexpr std::int64_t kOverlappedBytes = std::int64_t{1} << 20, kOverlappedRows = 64, kOverlappedRow = 192;
// Rows of 16 bits of up to so many elements are copied to float before they go in panels: 0.45 of the time of 21 classes, 0.9
// of 500, 1.05 of 1,000 (Zen 4, 2026-11).
constexpr std::int64_t kWidenedRow = 512;
// Rows of more elements go in panels faster than transposed (Zen 4, 2026-11).
constexpr std::int64_t kTileRow = 64;

// Refuses targets out of range, and adds up the denominator of a mean.
Status look_at_targets(const Rows& rows, double& denominator) {
  const CrossEntropyCall& call = rows.call;
  const Plan& plan = rows.plan;
  Status status;
  RowTree<double> tree;
  std::int64_t kept = 0;
  const bool weighted = (rows.is_index() && call.weight) || call.token_weight.data;
  const std::int64_t targets = rows.is_index() ? 1 : call.kind == TargetKind::pairs ? call.pairs : 0;
  each_row(plan, 0, plan.rows, [&](std::int64_t r, const Offsets& offsets) {
    if (!status.ok()) return;
    bool any = targets == 0;
    for (std::int64_t k = 0; k < targets; ++k) {
      const Index t = rows.index(offsets, k);
      if (rows.is_ignored(t)) continue;
      any = true;
      if (!t.huge && t.value >= 0 && t.value < plan.n) continue;
      char number[32];
      std::snprintf(number, sizeof(number), t.huge ? "%llu" : "%lld", static_cast<unsigned long long>(t.value));
      status = fail(Code::invalid_argument, "target is %s for row %lld, accepted: indices from 0 below %lld, and %lld", number,
                    static_cast<long long>(r), static_cast<long long>(plan.n), static_cast<long long>(call.ignore_index));
      return;
    }
    kept += any;
    if (weighted)
      tree.push(any ? rows.factor(kToken, offsets) * (rows.is_index() ? rows.class_weight(rows.index(offsets).value) : 1.0)
                    : 0.0);
  });
  denominator = weighted ? tree.sum() : static_cast<double>(kept);
  return status;
}

template <class W>
double sum_of_blocks(const double* sums, std::int64_t blocks) {
  RowTree<W> tree;
  for (std::int64_t i = 0; i < blocks; ++i) {
    W sum;
    std::memcpy(&sum, sums + 2 * i, sizeof(sum));
    tree.push(sum);
  }
  const W sum = tree.sum();
  double head;
  std::memcpy(&head, &sum, sizeof(head));
  return head;
}

// Classes of which the gradient alone is computed, from what is saved.
struct Part {
  std::int64_t first, count;
};

void run(const CrossEntropyCall& call, Plan& plan, double denominator, const Part* part) {
  const Rows rows = {call, plan};
  const int isa = isa_in_use();
  const Kernels& kernels = SUMEXP_AT(kernels_, isa);
  const int item = static_cast<int>(item_size(call.dtype)), wide = item == 8 ? 8 : 4;
  const Order order = order_of(wide);
  const bool probabilities = call.kind == TargetKind::probabilities, as_it_is = call.softcap == 0.0 && call.temperature == 1.0;
  const bool mean = call.reduction == LossReduction::mean;
  const std::int64_t classes = part ? part->count : plan.n;
  const int threads = threads_for(plan.rows * classes);
  const bool contiguous = plan.row[0].stride[kLogits] == item || plan.n == 1;
  const bool stores = plan.data[kGradient] && (plan.row[0].stride[kGradient] == item || plan.n == 1);
  const std::int64_t* const last = plan.inner().stride;
  plan.direct = contiguous && (stores || !plan.data[kGradient]);
  plan.columns = !plan.direct && last[kLogits] == item && (!plan.data[kGradient] || last[kGradient] == item);
  plan.kept_bytes = 0;

  const bool statistics = call.lse || call.log_prob || call.entropy || call.z_loss_part || call.predicted || call.correct;
  const bool plain = call.kind == TargetKind::index && as_it_is && call.label_smoothing == 0.0 && call.z_loss == 0.0;
  // A denominator of 0 is for the other way.
  const bool by_table = plain && !statistics && !call.saved && !(mean && denominator == 0.0) && plan.n > 1 &&
                        (plan.columns || plan.n <= order.chunk);

  const bool nothing_left = mean && denominator == 0.0 && call.zero_if_empty;
  const bool dense = probabilities || call.label_smoothing != 0.0;
  const bool short_rows = as_it_is && plan.n > 0 && plan.n <= (dense ? order.chunk : order.chunk / 2) && !part && !call.saved;

  // Of dense sums without more than loss and gradient, columns of one chunk are transposed as they are read, and short rows.
  const LossKernels& loss_kernels = SUMEXP_AT(loss_kernels_, isa);
  const bool same_type = !probabilities || (item_size(call.target_dtype) == 8) == (wide == 8);
  const bool tiles = short_rows && dense && !statistics && call.z_loss == 0.0 && call.kind != TargetKind::pairs && same_type &&
                     !nothing_left && plan.rows > 1 && loss_kernels.tile[static_cast<int>(call.dtype)] &&
                     plan.n <= (plan.columns ? order.chunk : kTileRow);

  // Other rows side by side are copied, some at a time, and short ones of 16 bits; so are their probabilities, where these lie
  // in the same way.
  const bool widens = plan.direct && item == 2 && short_rows && plan.n <= kWidenedRow && plan.rows > 1;
  const std::int64_t copied_at_once = CopiedRows::at_once(plan.n, item, wide) / (widens ? 2 : 1);
  const bool together = !by_table && !part && (plan.columns || widens) && copied_at_once;
  std::int64_t at_once = together ? copied_at_once : kMostRows;
  if (tiles) at_once = TransposedRows::at_once(kernels.moves[static_cast<int>(call.dtype)]->width, item);
  if (call.kind == TargetKind::pairs && at_once * call.pairs > kMostParts)
    at_once = call.pairs < kMostParts ? kMostParts / call.pairs : 1;
  Plan copied;
  bool copies_target = false;
  if (together) {
    copied = plan;
    copied.row[0].stride[kLogits] = copied.row[0].stride[kGradient] = wide;
    const std::int64_t of_target = item_size(call.target_dtype), target_wide = of_target == 8 ? 8 : 4;
    copies_target = probabilities && (plan.columns ? last[kTarget] == of_target : plan.row[0].stride[kTarget] == of_target);
    if (copies_target) copied.row[0].stride[kTarget] = target_wide;
  }
  const bool reads_in_place = contiguous || together, writes_in_place = stores || (together && plan.data[kGradient]);
  std::int64_t next_row = last[kLogits] / item;
  if (together) next_row = plan.n;
  LossJob job = {};
  job.plan = together ? &copied : &plan;
  const auto of_copy = [&](DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; };
  const DType stored = together ? of_copy(call.dtype) : call.dtype;
  const DType target_stored = copies_target ? of_copy(call.target_dtype) : call.target_dtype;
  job.moves = kernels.moves[static_cast<int>(stored)];
  job.item = static_cast<int>(item_size(stored));
  job.storage = together && item == 2 ? kWidened : static_cast<int>(call.dtype);
  job.target_moves = probabilities ? kernels.moves[static_cast<int>(target_stored)] : nullptr;
  job.target_wide = call.target_dtype == DType::f64 ? 8 : 4;
  job.target_in_place = probabilities && item_size(target_stored) == wide && (job.plan->row[0].stride[kTarget] == wide);
  job.weight = call.weight;
  job.smoothing = call.label_smoothing, job.z_loss = call.z_loss, job.softcap = call.softcap,
  job.temperature = call.temperature;
  job.in_place = reads_in_place && as_it_is && job.item == wide;
  job.stores = writes_in_place;
  // Over the logits results are in the cache already: written around it they took 0.37 ns per element of float32 rows of 32,000
  // on one thread, through it 0.31 (Zen 5, 2026-11). Into other memory 0.40 and 0.44.
  job.stream = stores && !together && plan.data[kGradient] != plan.data[kLogits] && plan.rows * plan.n * item >= stream_bytes();
  job.keeps_terms = !part && plan.n * wide <= kKeptBytes;
  job.overlaps =
      job.keeps_terms && job.stream && call.dtype == DType::f32 && plan.n * wide <= kOverlappedBytes && plan.rows > 1;
  job.ahead = !job.in_place ? 0 : plan.n > order.chunk ? order.chunk : next_row;
  job.finds_class = call.predicted || call.correct;
  job.first_class = part ? part->first : 0, job.classes = classes, job.from_saved = part;
  // Rows of one chunk go some at a time, as far as they are read and written where they lie; their terms an odd number of lines
  // apart. Not those that are written while the next one is summed, which from some 200 elements on is faster (0.84 of the
  // time), nor rows that keep vectors busy by themselves.
  const bool overlaps = job.overlaps && call.kind == TargetKind::index && !dense && !call.entropy && plan.n >= kOverlappedRow;
  if (reads_in_place && (writes_in_place || !plan.data[kGradient]) && short_rows && !nothing_left && !overlaps)
    job.terms_pitch = odd_lines(plan.n * wide), job.overlaps = false;

  // A power of two of rows: some tasks for every thread; rows side by side as many together as their driver takes, if there
  // are enough for all threads.
  int level = 0;
  const std::int64_t share = plan.rows / (threads < 1 ? 1 : threads);
  const std::int64_t least = by_table && plan.columns ? kColumnRun / item : together || tiles ? at_once : 0;
  const auto fits = [&](std::int64_t rows) {
    return rows * (classes ? classes : 1) <= kTaskElements || (job.overlaps && rows <= kOverlappedRows);
  };
  while (level < 30 && (((std::int64_t{8} << level) <= share && fits(std::int64_t{2} << level)) ||
                        ((std::int64_t{2} << level) <= share && (std::int64_t{2} << level) <= least)))
    ++level;
  const std::int64_t block = std::int64_t{1} << level, blocks = (plan.rows + block - 1) / block;
  auto* const sums = static_cast<double*>(thread_workspace().keep_bytes(static_cast<std::size_t>(blocks) * 2 * sizeof(double)));
  const LossWork work = {rows,
                         job,
                         kernels,
                         loss_kernels,
                         item,
                         wide,
                         order.chunk,
                         block,
                         mean ? denominator : 1.0,
                         nothing_left,
                         sums,
                         at_once,
                         together,
                         copies_target,
                         by_table,
                         tiles,
                         cross_entropy_saved_bytes(call.dtype, plan.n)};
  const auto body = [](void* context, std::int64_t i, Workspace& workspace) {
    run_loss_block(*static_cast<const LossWork*>(context), i, workspace);
  };
  run_parts(blocks, threads < 1 ? 1 : threads, body, const_cast<LossWork*>(&work));
  if (call.reduction != LossReduction::none && call.loss && !part) {
    double sum = wide == 8 ? sum_of_blocks<base::DD<double>>(sums, blocks) : sum_of_blocks<double>(sums, blocks);
    if (mean) sum = base::mean_of(sum, denominator, call.zero_if_empty);
    write_number(call.dtype, static_cast<char*>(call.loss), base::quiet(sum));
  }
#if defined(__x86_64__)
  if (job.stream) __builtin_ia32_sfence();
#endif
}

// part: of the classes, or null
Status cross_entropy_of(const CrossEntropyCall& given, const Part* part) {
  CrossEntropyCall call = given;
  const DefaultFloatingPoint mode;
  Plan plan;
  double denominator = 1.0;
  Status status = check_loss_options(call);
  if (call.given_denominator && call.denominator_at) call.denominator = *call.denominator_at, call.denominator_at = nullptr;
  if (status.ok()) status = lay_out_losses(call, plan);
  if (!status.ok()) return status;
  const Rows rows = {call, plan};
  status = look_at_targets(rows, denominator);
  if (!status.ok()) return status;
  if (call.given_denominator) denominator = call.denominator;
  if (plan.rows && (part ? part->count : plan.n) && !plan.data[kLogits])
    return fail(Code::invalid_argument, "logits is missing");
  if (part) {
    if (part->first < 0 || part->count < 0 || part->count > plan.n - part->first)
      return fail(Code::invalid_argument, "first and count are %lld, %lld, accepted: some of %lld classes",
                  static_cast<long long>(part->first), static_cast<long long>(part->count), static_cast<long long>(plan.n));
    if (!plan.rows || !part->count) return status;
    if (!call.saved || !plan.data[kGradient])
      return fail(Code::invalid_argument, "%s is missing", call.saved ? "dlogits" : "saved");
    call.loss = call.row_loss = call.lse = call.log_prob = call.entropy = call.z_loss_part = nullptr;
    call.predicted = nullptr, call.correct = nullptr;
    constexpr int kOfClasses[] = {kLogits, kGradient};
    for (const int k : kOfClasses)  // so that class j lies j strides behind
      if (plan.data[k]) plan.data[k] = static_cast<char*>(plan.data[k]) - part->first * plan.row[0].stride[k];
  }
  return with_scratch([&] { run(call, plan, denominator, part); });
}

}  // namespace

Status cross_entropy(const CrossEntropyCall& call) noexcept { return cross_entropy_of(call, nullptr); }

Status cross_entropy_gradient_part(const CrossEntropyCall& call, std::int64_t first, std::int64_t count) noexcept {
  const Part part = {first, count};
  return cross_entropy_of(call, &part);
}

std::int64_t cross_entropy_saved_bytes(DType dtype, std::int64_t classes) noexcept {
  if (!is_dtype(dtype) || classes < 0 || !is_countable(item_size(dtype), {classes})) return 0;
  return SUMEXP_IN_USE(loss_kernels_).saved_bytes[static_cast<int>(dtype)](classes);
}

Status cross_entropy_denominator(const CrossEntropyCall& call, double* denominator) noexcept {
  const DefaultFloatingPoint mode;
  Plan plan;
  Status status = check_loss_options(call);
  if (status.ok()) status = lay_out_losses(call, plan);
  if (status.ok() && !denominator) status = fail(Code::invalid_argument, "denominator is missing");
  double found = 0.0;
  if (status.ok()) status = look_at_targets({call, plan}, found);
  if (status.ok()) *denominator = found;
  return status;
}

Status sum_rows(const void* values, DType dtype, std::int64_t rows, double* sum) noexcept {
  const DefaultFloatingPoint mode;
  if (rows < 0) return fail(Code::invalid_argument, "rows is %lld, accepted: integers from 0", static_cast<long long>(rows));
  if ((rows && !values) || !sum) return fail(Code::invalid_argument, "%s is missing", sum ? "values" : "sum");
  if (!cpu::is_dtype(dtype)) return cpu::bad_dtype("dtype", dtype);
  if (dtype == DType::f64) {
    RowTree<base::DD<double>> tree;
    for (std::int64_t r = 0; r < rows; ++r) tree.push({static_cast<const double*>(values)[r], 0.0});
    *sum = base::quiet(tree.sum().hi);
  } else {
    RowTree<double> tree;
    for (std::int64_t r = 0; r < rows; ++r) tree.push(static_cast<const float*>(values)[r]);
    *sum = base::quiet(tree.sum());
  }
  return Status{};
}

}  // namespace sumexp
