// Memory whose edges bite: whole pages between two pages that may not be touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace simt {

// `bytes` (rounded up to pages) between guard pages. A touch of a guard page by a running kernel
// ends its launch with cudaErrorIllegalAddress and a message that names the region.
class Region {
 public:
  Region() = default;
  Region(std::size_t bytes, const char* name);
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Region();
  unsigned char* begin() const { return base_; }
  unsigned char* end() const { return base_ + bytes_; }
  std::size_t size() const { return bytes_; }
  void forbid();  // until allow(), every touch faults
  void allow();

 private:
  void swap(Region& other) {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
  }
  unsigned char* base_ = nullptr;
  std::size_t bytes_ = 0;
};

// "12 bytes past the end of y", or the bare address.
const char* describe_address(const void* address);

// Two patterns, both wrong: NaN (which max() may swallow) and a huge finite value (which it cannot).
inline unsigned char poison_byte(std::uint64_t seed) { return (seed & 1) ? 0xff : 0x7b; }

enum class Place {
  front,  // starts on a page: 16-byte aligned, every underrun faults
  back,   // ends on a page: every overrun faults; aligned only if the size is
};

// n elements of T, filled with poison. The page bytes that are not elements hold a canary.
template <class T>
class Buffer {
 public:
  // `skip`: elements left out before the first, so that `front` can start misaligned.
  explicit Buffer(std::size_t n, Place place = Place::back, const char* name = "a buffer", std::size_t skip = 0)
      : n_(n), region_((n + skip) * sizeof(T) + 1, name) {
    std::memset(region_.begin(), canary, region_.size());
    void* at = place == Place::front ? region_.begin() + skip * sizeof(T) : region_.end() - n * sizeof(T);
    data_ = static_cast<T*>(at);
    poison();
  }
  T* data() const { return data_; }
  std::size_t size() const { return n_; }
  T& operator[](std::size_t i) const { return data_[i]; }
  void poison(std::uint64_t seed = 1) {
    if (n_) std::memset(static_cast<void*>(data_), poison_byte(seed), n_ * sizeof(T));
  }
  // Nobody wrote beside the elements.
  bool intact() const {
    auto* first = reinterpret_cast<const unsigned char*>(data_);
    auto* last = reinterpret_cast<const unsigned char*>(data_ + n_);
    for (const unsigned char* p = region_.begin(); p != first; ++p)
      if (*p != canary) return false;
    for (const unsigned char* p = last; p != region_.end(); ++p)
      if (*p != canary) return false;
    return true;
  }

 private:
  static constexpr unsigned char canary = 0xc5;
  std::size_t n_;
  Region region_;
  T* data_ = nullptr;
};

}  // namespace simt
