// SPDX-License-Identifier: Apache-2.0
// Memory at a chosen distance from a multiple of 64 bytes, between guards.
#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace fp8gemm {

/// Bytes `offset` past a multiple of 64, between guards. They hold what the guards do.
class Buffer {
 public:
  Buffer(size_t bytes, size_t offset) : bytes_(bytes), memory_(bytes + 3 * kGuardBytes, kGuard) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data()) + kGuardBytes;
    data_ = reinterpret_cast<uint8_t*>((start + 63) / 64 * 64 + offset);
  }
  Buffer(Buffer&&) = default;

  uint8_t* data() { return data_; }
  std::vector<uint8_t> Values() const { return {data_, data_ + bytes_}; }

  /// Sets numbers between -2 and 2 of any type: the exponent's top bits are cleared.
  void Fill(uint32_t element_bytes) {
    std::mt19937 random(bytes_);
    for (size_t i = 0; i < bytes_; ++i) {
      data_[i] = static_cast<uint8_t>(random());
      if (i % element_bytes == element_bytes - 1) data_[i] &= 0xBF;
    }
  }

  /// Whether nothing was written beside the bytes.
  bool IsIntact() const {
    for (const uint8_t& byte : memory_) {
      if ((&byte < data_ || &byte >= data_ + bytes_) && byte != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuardBytes = 64;
  static constexpr uint8_t kGuard = 0xA5;

  size_t bytes_;
  std::vector<uint8_t> memory_;
  uint8_t* data_;
};

}  // namespace fp8gemm
