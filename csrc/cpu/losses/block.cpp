#include "block.hpp"

#include "../drivers/copied_rows.hpp"
#include "../drivers/driver.hpp"
#include "transposed_rows.hpp"

namespace sumexp::cpu {

namespace {

// Rows [begin, end) by the operations of the table, whose drivers take short rows, and rows side by side, together. They know
// no rows to ignore: these are cleared afterwards. Returns the first row that is left, as one near it has a factor that is not
// finite, or the end.
template <class T, class Put>
std::int64_t run_by_table(const LossWork& work, std::int64_t begin, std::int64_t end, Workspace& workspace, Put put) {
  constexpr std::int64_t kMost = 512, kElements = 1 << 14;
  const Rows& rows = work.rows;
  const Plan& all = rows.plan;
  const bool gradient = all.data[kGradient];
  ScaledIndex targets[kMost];
  T losses[kMost];
  double weights[kMost];  // of the losses
  std::int64_t ignored[kMost];
  std::int64_t most = all.columns || kElements / all.n > kMost ? kMost : kElements / all.n;
  if (most < 1) most = 1;
  Plan plan = all;
  plan.op = gradient ? Op::cross_entropy_with_grad : Op::cross_entropy;
  plan.batch_dims = 1;
  plan.scaled = true;
  for (std::int64_t r = begin; r < end;) {
    const std::int64_t count = even_rows(all, r, end - r < most ? end - r : most);
    Offsets offsets = all.row_offsets(r);
    const Dim& inner = all.inner();
    Dim& dim = plan.batch[0];
    dim = {count, {}};
    dim.stride[kLogits] = inner.stride[kLogits], dim.stride[kGradient] = inner.stride[kGradient];
    dim.stride[kTarget] = sizeof(ScaledIndex);
    char* const to = gradient ? const_cast<char*>(rows.at(kGradient, offsets)) : nullptr;
    for (void*& data : plan.data) data = nullptr;
    plan.rows = count, plan.data[kLogits] = const_cast<char*>(rows.at(kLogits, offsets)), plan.data[kTarget] = targets;
    if (gradient) plan.data[kOut] = to, plan.data[kExtra] = losses, dim.stride[kExtra] = sizeof(T);
    else plan.data[kOut] = losses, dim.stride[kOut] = sizeof(T);
    std::int64_t left_out = 0;
    bool finite = true;
    for (std::int64_t i = 0; i < count; ++i) {
      const Index t = rows.index(offsets);
      const bool kept = !rows.is_ignored(t);
      const double weight = kept ? rows.class_weight(t.value) : 0.0, token = rows.factor(kToken, offsets);
      weights[i] = weight * token;
      targets[i] = {kept ? t.value : 0, weight * (token * rows.factor(kFactor, offsets) / work.denominator)};
      finite &= base::is_finite(static_cast<T>(targets[i].factor));
      if (!kept) ignored[left_out++] = i;
      for (int k = 0; k < kOperands; ++k) offsets.at[k] += inner.stride[k];
    }
    if (!finite) return r;
    const Job job(plan, work.table);
    run_rows(job, 0, count, workspace);
    for (std::int64_t k = 0; gradient && k < left_out; ++k)
      for (std::int64_t j = 0; j < plan.n; ++j)
        std::memset(to + ignored[k] * dim.stride[kGradient] + j * plan.row[0].stride[kGradient], 0,
                    static_cast<std::size_t>(work.item));
    for (std::int64_t i = 0, k = 0; i < count; ++i) {
      const bool is_ignored = k < left_out && ignored[k] == i;
      k += is_ignored;
      put(r + i, is_ignored ? T(0) : base::weighted_loss(losses[i], weights[i]));
    }
    r += count;
  }
  return end;
}

// Rows by the kernels of losses, with scratch for all that they may want.
template <class T>
class RowsOfBlock {
 public:
  RowsOfBlock(const LossWork& work, Workspace& workspace) : work_(work), width_(width_of(work)) {
    const std::int64_t terms = work.job.keeps_terms && plan_.data[kGradient] ? whole_ * piece_ : 0;
    const int sets = work.job.overlaps && terms ? 2 : 1;  // of what is kept of a row
    constexpr std::int64_t kBetween = 1088;               // so that both do not meet in the same sets
    const std::int64_t row_terms = width_ > 1 ? width_ * work.job.terms_pitch + terms : terms;
    const std::int64_t of_parts = work.at_once * most_parts_ * std::int64_t{sizeof(TargetPart)};
    const std::int64_t of_logits = work.copies ? CopiedRows::bytes(work.at_once, plan_.n, work.wide) : 0;
    const std::int64_t of_target = work.copies_target ? CopiedRows::bytes(work.at_once, plan_.n, work.job.target_wide) : 0;
    const std::int64_t of_tiles = work.tiles ? TransposedRows::bytes(work.at_once, lanes_, plan_.n, work.wide) : 0;
    workspace.reset();
    char* free = static_cast<char*>(
        workspace.take_bytes(static_cast<std::size_t>(5 * piece_ + sets * (row_terms + lines(whole_ * work.wide) + kBetween) +
                                                      lines(of_parts) + of_logits + of_target + lines(of_tiles))));
    const auto take = [&](std::int64_t bytes) {
      char* const at = free;
      free += lines(bytes);
      return at;
    };
    void** const chunks[] = {&scratch_.z, &scratch_.dense, &scratch_.terms, &scratch_.out, &scratch_.slopes};
    for (void** const chunk : chunks) *chunk = take(piece_);
    for (int k = 0; k < sets; ++k) {
      if (row_terms) scratch_.row_terms[k] = take(row_terms);
      scratch_.maxima[k] = take(whole_ * work.wide);
      take(kBetween);
    }
    parts_ = reinterpret_cast<TargetPart*>(take(of_parts));
    copied_logits_ = take(of_logits), copied_target_ = take(of_target), tiles_ = take(of_tiles);
  }

  // Rows [begin, end); put(r, loss) takes each loss.
  template <class Put>
  void run(std::int64_t begin, std::int64_t end, Put put) {
    const CopiedRows logits = copies(call_.dtype, work_.wide, copied_logits_);
    const CopiedRows target = copies(call_.target_dtype, work_.job.target_wide, copied_target_);
    TransposedRows tiles(plan_, work_.table, lanes_, work_.tiles ? work_.at_once : 0, work_.wide, tiles_);
    const std::int64_t* const step = plan_.columns ? plan_.row[0].stride : inner_.stride;
    for (std::int64_t r = begin; r < end;) {
      const int count = static_cast<int>(even_rows(plan_, r, end - r < work_.at_once ? end - r : work_.at_once));
      Offsets offsets = plan_.row_offsets(r);
      const char *const x = rows_.at(kLogits, offsets), *const y = indices_ ? nullptr : rows_.at(kTarget, offsets);
      char* const dx = plan_.data[kGradient] ? const_cast<char*>(rows_.at(kGradient, offsets)) : nullptr;
      for (int i = 0; i < count; ++i) {
        LossRow& row = group_[i];
        row.logits = work_.copies ? logits.row(i) : rows_.at(kLogits, offsets);
        row.probabilities = work_.copies_target ? target.row(i) : indices_ ? nullptr : rows_.at(kTarget, offsets);
        row.gradient = dx ? const_cast<char*>(work_.copies ? row.logits : rows_.at(kGradient, offsets)) : nullptr;
        lay_out(r + i, offsets, i);
        for (int k = 0; k < kOperands; ++k) offsets.at[k] += inner_.stride[k];
      }
      if (!work_.tiles || count == 1 || !run_tiles(tiles, x, y, dx, count)) {
        if (work_.copies) logits.gather(x, step[kLogits], count);
        if (work_.copies_target) target.gather(y, step[kTarget], count);
        for (int b = 0; b < count; b += width_) run_panel(b, count - b < width_ ? count - b : width_);
        if (work_.copies && dx) logits.scatter(dx, step[kGradient], count);
      }
      for (int i = 0; i < count; ++i) put(r + i, losses_[i]);
      r += count;
    }
    if (scratch_.waits) work_.kernels.write_waiting(work_.job, scratch_);
  }

 private:
  static int width_of(const LossWork& work) { return work.job.terms_pitch ? work.kernels.width[work.job.storage] : 1; }
  static std::int64_t lines(std::int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }
  CopiedRows copies(DType dtype, int wide, char* memory) const {
    const Moves& moves = *work_.table.moves[static_cast<int>(dtype)];
    return CopiedRows(moves, plan_.columns, plan_.n, static_cast<int>(item_size(dtype)), wide, memory);
  }

  // Row r as the group's row b, but for where its logits, probabilities and gradient are.
  void lay_out(std::int64_t r, const Offsets& offsets, int b) {
    const auto place = [&](void* all) { return all ? static_cast<char*>(all) + r * work_.wide : nullptr; };
    LossRow& row = group_[b];
    losses_[b] = T(0);
    row.parts = parts_ + b * most_parts_;
    row.part_count = indices_ ? rows_.parts(offsets, parts_ + b * most_parts_) : 0;
    row.loss = losses_ + b, row.lse = place(call_.lse), row.log_prob = place(call_.log_prob);
    row.entropy = place(call_.entropy), row.z_loss = place(call_.z_loss_part);
    row.predicted = call_.predicted ? call_.predicted + r : nullptr;
    row.correct = call_.correct ? call_.correct + r : nullptr;
    row.saved = call_.saved ? static_cast<char*>(call_.saved) + r * work_.saved : nullptr;
    row.loss_factor = rows_.factor(kToken, offsets);
    row.gradient_factor = row.loss_factor * rows_.factor(kFactor, offsets) / work_.denominator;
  }
  // The group's rows, of which the first has its logits at x. False, with no gradient written, where one is special.
  bool run_tiles(TransposedRows& tiles, const char* x, const char* y, char* dx, int count) {
    tiles.load(0, kLogits, x, call_.dtype, count);
    if (y) tiles.load(1, kTarget, y, call_.target_dtype, count);
    for (int b = 0; b < count; b += lanes_)
      if (!work_.kernels.tile[static_cast<int>(call_.dtype)](work_.job, tiles.tile(b, count), group_ + b)) return false;
    if (dx) tiles.store(kGradient, dx, call_.dtype, count);
    return true;
  }
  void run_panel(int b, int count) {
    const bool together =
        count > 1 && width_ > 1 && work_.kernels.panel[work_.job.storage](work_.job, scratch_, group_ + b, count);
    for (int i = b; i < b + count; ++i) {
      if (!together) run_row(group_[i]);
      else if (is_left_out(group_[i])) clear(group_[i]);
    }
  }
  void run_row(LossRow row) {
    if (is_left_out(row)) return clear(row);
    char* const gradient = row.gradient;
    if (work_.nothing_left) row.gradient = nullptr;
    if (!work_.nothing_left || !work_.job.from_saved) work_.kernels.row[work_.job.storage](work_.job, scratch_, row);
    if (work_.nothing_left) clear_gradient(gradient);
  }

  bool is_left_out(const LossRow& row) const { return indices_ && row.part_count == 0; }
  void clear(const LossRow& row) {
    void* const numbers[] = {row.lse, row.log_prob, row.entropy, row.z_loss};
    for (void* to : numbers)
      if (to) *static_cast<T*>(to) = T(0);
    if (row.predicted) *row.predicted = -1;
    if (row.correct) *row.correct = 0;
    clear_gradient(row.gradient);
  }
  void clear_gradient(char* gradient) {
    std::memset(scratch_.out, 0, static_cast<std::size_t>(piece_));
    const std::int64_t end = work_.job.first_class + work_.job.classes;
    for (std::int64_t first = work_.job.first_class; gradient && first < end; first += work_.chunk) {
      const std::int64_t left = end - first, count = left < work_.chunk ? left : work_.chunk;
      work_.job.moves->unpack_row(*work_.job.plan, kGradient, gradient, first, static_cast<int>(count), scratch_.out);
    }
  }

  const LossWork& work_;
  const Rows& rows_ = work_.rows;
  const CrossEntropyCall& call_ = rows_.call;
  const Plan& plan_ = rows_.plan;
  const Dim& inner_ = plan_.inner();  // from row to row
  const bool indices_ = call_.kind != TargetKind::probabilities;
  const std::int64_t chunks_ = (plan_.n + work_.chunk - 1) / work_.chunk, whole_ = chunks_ ? chunks_ : 1;
  const std::int64_t piece_ = work_.chunk * work_.wide;  // bytes of a chunk
  const std::int64_t most_parts_ = (rows_.is_index() ? 1 : call_.pairs) + 1;
  const int lanes_ = work_.table.moves[static_cast<int>(call_.dtype)]->width;
  const int width_;  // rows of a panel
  LossScratch scratch_;
  TargetPart* parts_;
  char *copied_logits_, *copied_target_, *tiles_;
  T losses_[kMostRows];
  LossRow group_[kMostRows];
};

void flush_gradients(const LossWork& work, std::int64_t begin, std::int64_t end) {
  const Rows& rows = work.rows;
  const std::int64_t stride = rows.plan.row[0].stride[kGradient];
  each_row(rows.plan, begin, end, [&](std::int64_t, const Offsets& offsets) {
    char* const at = const_cast<char*>(rows.at(kGradient, offsets)) + work.job.first_class * stride;
    work.kernels.flush_subnormal[static_cast<int>(rows.call.dtype)](at, work.job.classes, stride);
  });
}

template <class T>
void run_block(const LossWork& work, std::int64_t i, Workspace& workspace) {
  const CrossEntropyCall& call = work.rows.call;
  const std::int64_t first = i * work.block, rows = work.rows.plan.rows;
  const std::int64_t end = first + work.block < rows ? first + work.block : rows;
  std::int64_t begin = first;
  using W = base::Wide<T>;
  RowTree<W> tree;
  const auto put = [&](std::int64_t r, T loss) {
    if (call.row_loss) static_cast<T*>(call.row_loss)[r] = loss;
    if (call.reduction != LossReduction::none) tree.push(base::WideOf<T>::from(loss));
    else if (call.loss) write_number(call.dtype, static_cast<char*>(call.loss) + r * work.item, loss);
  };
  if (work.by_table) begin = run_by_table<T>(work, begin, end, workspace, put);
  if (begin < end) RowsOfBlock<T>(work, workspace).run(begin, end, put);
  if (call.flush_subnormal && work.rows.plan.data[kGradient]) flush_gradients(work, first, end);
  const W sum = tree.sum();
  std::memcpy(work.block_sums + 2 * i, &sum, sizeof(sum));
}

}  // namespace

void run_loss_block(const LossWork& work, std::int64_t i, Workspace& workspace) {
  if (work.wide == 8) run_block<double>(work, i, workspace);
  else run_block<float>(work, i, workspace);
}

}  // namespace sumexp::cpu
