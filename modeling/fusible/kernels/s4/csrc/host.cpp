#include "host.h"

#include <cstring>

namespace s4 {

namespace {

const Table& choose() {
  const char* most = std::getenv("FUSIBLE_S4_ISA");  // so that tests see all of them
  const auto allows = [&](const char* name) { return most == nullptr || std::strcmp(most, name) == 0; };
  if (allows("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return avx512::table();
  if ((allows("avx512") || allows("avx2")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return avx2::table();
  return baseline::table();
}

}  // namespace

const Table& table() {
  static const Table& chosen = choose();
  return chosen;
}

}  // namespace s4
