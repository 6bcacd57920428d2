// Matrices between pages that may not be touched, and a hash of bytes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <csignal>
#include <vector>

#include "../../csrc/include/sumexp/sumexp.hpp"
#include "check.hpp"

namespace guarded {

using Bytes = std::vector<unsigned char>;

inline char g_doing[160];
inline void on_fault(int) {
  constexpr char head[] = "FAILED: touched memory outside of its arrays: ";
  if (write(1, head, sizeof(head) - 1) < 0 || write(1, g_doing, std::strlen(g_doing)) < 0) _exit(2);
  _exit(1);
}
inline void catch_faults() {
  std::signal(SIGSEGV, on_fault);
  std::signal(SIGBUS, on_fault);
}

inline std::uint64_t hash(const Bytes& bytes, std::uint64_t start) {
  for (const unsigned char byte : bytes) start = (start ^ byte) * 0x100000001b3u;
  return start;
}
inline constexpr std::uint64_t kHashStart = 0xcbf29ce484222325u;

// rows x columns elements, row by row or column by column, right after or right before a guard page.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns, std::int64_t size, bool by_columns, bool at_end)
      : rows_(rows), columns_(columns), size_(size), page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    strides_[0] = by_columns ? size : columns * size, strides_[1] = by_columns ? rows * size : size;
    const std::size_t bytes = static_cast<std::size_t>(rows * columns * size);
    whole_ = (bytes + page_) / page_ * page_;
    void* const base = mmap(nullptr, whole_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    first_ = static_cast<unsigned char*>(base) + page_;
    if (mprotect(first_, whole_, PROT_READ | PROT_WRITE) != 0) std::abort();
    std::memset(first_, 0x5a, whole_);
    data_ = at_end ? first_ + whole_ - bytes : first_;
  }
  ~Matrix() { munmap(first_ - page_, whole_ + 2 * page_); }
  Matrix(const Matrix&) = delete;

  sumexp::View view() const { return {data_, strides_}; }
  unsigned char* at(std::int64_t i, std::int64_t j) const { return data_ + i * strides_[0] + j * strides_[1]; }
  Bytes bytes() const {  // row by row
    Bytes all;
    for (std::int64_t i = 0; i < rows_; ++i)
      for (std::int64_t j = 0; j < columns_; ++j) all.insert(all.end(), at(i, j), at(i, j) + size_);
    return all;
  }
  void fill(const Bytes& all) const {
    const unsigned char* p = all.data();
    for (std::int64_t i = 0; i < rows_; ++i)
      for (std::int64_t j = 0; j < columns_; ++j, p += size_) std::memcpy(at(i, j), p, static_cast<std::size_t>(size_));
  }
  bool clean_around() const {
    const unsigned char* const end = data_ + rows_ * columns_ * size_;
    for (const unsigned char* p = first_; p < first_ + whole_; ++p)
      if ((p < data_ || p >= end) && *p != 0x5a) return false;
    return true;
  }

 private:
  std::int64_t rows_, columns_, size_, strides_[2];
  std::size_t page_, whole_;
  unsigned char *first_, *data_;
};

}  // namespace guarded
