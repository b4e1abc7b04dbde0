/* The mean of its arguments, in thousandths, computed with SSE: call it with `--preserve fpu`. */
#include "kjump.h"

uint64_t mean(const uint64_t *args, size_t n)
{
    double sum = 0;
    size_t i;

    for (i = 0; i < n; i++)
        sum += (double)(int64_t)args[i];
    return n ? (uint64_t)(sum * 1000 / (double)n) : 0;
}
