// The copy that memory-bound benchmarks are held against: load, store, nothing else, with ordinary stores or with
// streaming ones (which bypass the cache and spare the read of the line that is overwritten). Built with the system's
// compiler when a run begins, for the machine it runs on.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t kLine = 64;

template <bool kStreaming>
void copy_range(char* to, const char* from, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; i += kLine) {
#if defined(__AVX512F__)
    const __m512i line = _mm512_load_si512(reinterpret_cast<const __m512i*>(from + i));
    if constexpr (kStreaming)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), line);
    else
      _mm512_store_si512(reinterpret_cast<__m512i*>(to + i), line);
#elif defined(__x86_64__)
    for (std::size_t j = i; j < i + kLine; j += 16) {
      const __m128i part = _mm_load_si128(reinterpret_cast<const __m128i*>(from + j));
      if constexpr (kStreaming)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + j), part);
      else
        _mm_store_si128(reinterpret_cast<__m128i*>(to + j), part);
    }
#else
    std::memcpy(to + i, from + i, kLine);
#endif
  }
#if defined(__x86_64__)
  if constexpr (kStreaming) _mm_sfence();
#endif
}

}  // namespace

extern "C" {

// Whether this build has streaming stores.
int pfc_bench_has_streaming() {
#if defined(__x86_64__)
  return 1;
#else
  return 0;
#endif
}

// Both pointers and `bytes` are multiples of 64.
void pfc_bench_copy(char* to, const char* from, std::size_t bytes, int threads, int streaming) {
  const std::size_t lines = bytes / kLine;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int k = 0; k < threads; ++k) {
    const std::size_t begin = lines * static_cast<std::size_t>(k) / threads * kLine;
    const std::size_t end = lines * static_cast<std::size_t>(k + 1) / threads * kLine;
    streaming ? copy_range<true>(to, from, begin, end) : copy_range<false>(to, from, begin, end);
  }
}
}
