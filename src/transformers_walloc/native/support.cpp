// Compiled for any processor of its kind, unlike the kernels: it says whether they run on this one.

#include "kernels.h"

// `codec/kernels.py` must ask for the same.
EXPORT int32_t walloc_interface() { return 6; }

EXPORT int32_t walloc_supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(WALLOC_AVX512)
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512cd") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni"))
        return 0;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#elif defined(__aarch64__)
    return 1;
#else
    return 0;
#endif
}
